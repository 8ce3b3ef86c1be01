"""VVC: a legal bitstream with our last NAL unit, any size, colours as the stream says them."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from inrjax import datasets, metrics
from inrjax.codecs import Vvc, vvc
from inrjax.types import BitstreamError

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")

SHAPE = (97, 131)
TRAILER = 11


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.ascontiguousarray(datasets.packaged()["coffee"][100 : 100 + SHAPE[0], : SHAPE[1]])


@pytest.fixture(scope="module")
def stream(image: np.ndarray) -> bytes:
    return Vvc(24).encode([image])[0]


def ffmpeg(data: bytes) -> np.ndarray:
    """What ffmpeg makes of a file by itself, colours included: RGB with the padding."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "vvc", "-i", "pipe:"]
    command += ["-vf", "scale=flags=accurate_rnd+full_chroma_int+bilinear"]
    command += ["-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:"]
    done = subprocess.run(command, input=data, capture_output=True, check=True)
    assert done.stderr == b""
    return np.frombuffer(done.stdout, np.uint8).reshape(98, 132, 3)[: SHAPE[0], : SHAPE[1]]


def test_an_odd_size_comes_back_and_is_near(image, stream):
    [image_hat] = Vvc(40).decode([stream])
    assert image_hat.shape == image.shape
    assert metrics.psnr(image, image_hat) > 34


def test_another_player_ignores_the_last_nal_unit_and_shows_the_same_colours(image, stream):
    np.testing.assert_array_equal(ffmpeg(stream), ffmpeg(stream[:-TRAILER]))
    [image_hat] = Vvc(40).decode([stream])
    difference = ffmpeg(stream).astype(int) - image_hat
    assert np.abs(difference).mean() < 1.5  # it interpolates chroma otherwise
    assert np.abs(difference.mean(axis=(0, 1))).max() < 1


def test_the_stream_is_in_ten_bits_and_starts_with_a_parameter_set(stream):
    assert stream[:4] == b"\0\0\0\1"
    assert len(stream) - TRAILER == stream.rindex(b"\0\0\1\0\xf9")
    assert min(stream[-6:]) >= 0x80
    assert b"onfiguration" not in stream  # VVenC's own messages


def test_every_cut_and_flipped_byte_is_found(stream):
    damaged = [
        stream[:i] + bytes([stream[i] ^ 1 << i % 8]) + stream[i + 1 :] for i in range(len(stream))
    ]
    for data in [*damaged, *(stream[:i] for i in range(len(stream))), stream + b"\x80"]:
        with pytest.raises(BitstreamError, match="VVC"):
            Vvc(40).decode([data])


def test_a_whole_file_that_is_no_vvc_is_refused():
    nonsense = b"\0\0\0\1" + bytes(range(1, 60))
    with pytest.raises(BitstreamError, match="VVC"):
        Vvc(40).decode([nonsense + vvc._trailer(nonsense, (0, 0))])


def test_colour_conversion_loses_little_of_a_smooth_picture():
    y, x = np.mgrid[:64, :48] / 20.0
    planes = [np.sin(y), np.cos(x + y), np.sin(x)]
    image = np.rint(128 + 100 * np.stack(planes, -1)).astype(np.uint8)
    samples = np.frombuffer(vvc._to_yuv(image), "<u2")
    assert samples.size == 64 * 48 * 3 // 2 and samples.max() <= 1023
    assert metrics.psnr(image, vvc._from_yuv(samples, 64, 48)) > 45
    grey = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    converted = vvc._from_yuv(np.frombuffer(vvc._to_yuv(grey), "<u2"), 16, 16)
    np.testing.assert_array_equal(converted, grey)


def test_an_ffmpeg_without_vvenc_is_told_apart_from_a_bad_image(image, monkeypatch):
    failed = subprocess.CompletedProcess([], 8, b"", b"Unknown encoder 'libvvenc'")
    monkeypatch.setattr(vvc.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(ValueError, match=r"imageio-ffmpeg.*libvvenc"):
        Vvc(40).encode([image])


def test_versions_are_those_of_the_encoder_itself():
    versions = vvc.library_versions()
    assert versions["imageio-ffmpeg/vvenc"][0].isdigit()
    assert versions["imageio-ffmpeg/ffmpeg"]


@pytest.mark.parametrize("qp", [-1, 64, 30.5, True])
def test_settings_out_of_range_are_refused_at_construction(qp):
    with pytest.raises(ValueError, match=r"got .* expected"):
        Vvc(qp)
