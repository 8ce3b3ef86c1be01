"""Laws of the classic codecs, at the table's settings and at their limits."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from inrjax.codecs import classic
from inrjax.codecs.classic import Jpeg, Jpeg2000, WebP
from inrjax.types import BitstreamError, Codec

# (codec, a codec of the same family at a lower rate)
CODECS = [
    pytest.param(Jpeg(20, optimize=False), Jpeg(5, optimize=False), id="jpeg"),
    pytest.param(Jpeg(20, optimize=True), Jpeg(5, optimize=True), id="jpeg-optimized"),
    pytest.param(Jpeg2000(40), Jpeg2000(160), id="jpeg2000"),
    pytest.param(WebP(20), WebP(0), id="webp"),
]
each_codec = pytest.mark.parametrize("codec, lower", CODECS)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colour with some texture: something a photograph's codec can work on."""
    y, x = np.mgrid[:height, :width] / 16.0
    planes = [np.sin(y + 0.3 * x), np.cos(0.5 * y - x), np.sin(x * 0.7) * np.cos(y)]
    noise = np.random.default_rng(seed).normal(0, 6, (height, width, 3))
    return np.clip(128 + 80 * np.stack(planes, -1) + noise, 0, 255).astype(np.uint8)


def psnr(image: np.ndarray, image_hat: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((image.astype(float) - image_hat) ** 2))


@each_codec
@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (17, 1), (2, 3), (33, 47), (64, 64), (120, 7)])
def test_round_trip_keeps_shape_and_dtype(codec, lower, shape):
    image = picture(*shape)
    for one in (codec, lower):
        [image_hat] = one.decode(one.encode([image]))
        assert image_hat.dtype == np.uint8
        assert image_hat.shape == image.shape


@each_codec
def test_decodes_to_nearly_the_image(codec, lower):
    image = picture(96, 128)
    [image_hat] = codec.decode(codec.encode([image]))
    assert psnr(image, image_hat) > 23


@each_codec
def test_a_grey_looking_image_stays_rgb_and_grey(codec, lower):
    image = np.repeat(picture(40, 56)[..., :1], 3, axis=2)
    [image_hat] = codec.decode(codec.encode([image]))
    assert image_hat.shape == image.shape
    spread = image_hat.max(axis=2).astype(int) - image_hat.min(axis=2)
    assert spread.max() <= 4


@each_codec
def test_satisfies_the_protocol(codec, lower):
    assert isinstance(codec, Codec)
    assert codec.name == lower.name
    assert codec.setting != lower.setting
    assert codec.suffix.startswith(".")


@each_codec
def test_same_bytes_twice_and_batch_equals_singles(codec, lower):
    images = [picture(40, 56), picture(31, 20, seed=1), picture(40, 56, seed=2)]
    streams = codec.encode(images)
    assert streams == codec.encode(images)
    assert streams == [codec.encode([image])[0] for image in images]
    singles = [codec.decode([stream])[0] for stream in streams]
    for together, alone in zip(codec.decode(streams), singles, strict=True):
        np.testing.assert_array_equal(together, alone)


@each_codec
def test_a_lower_setting_gives_fewer_bytes(codec, lower):
    image = picture(96, 128)
    assert len(lower.encode([image])[0]) < len(codec.encode([image])[0])


@each_codec
def test_every_truncation_is_refused(codec, lower):
    [stream] = lower.encode([picture(40, 56)])
    for length in range(len(stream)):
        with pytest.raises(BitstreamError) as caught:
            codec.decode([stream[:length]])
        assert "\n" not in str(caught.value)


@each_codec
def test_a_lost_end_with_the_end_marker_kept_is_refused_or_decoded_to_shape(codec, lower):
    [stream] = codec.encode([picture(40, 56)])
    try:
        [image_hat] = codec.decode([stream[:-40] + stream[-2:]])
    except BitstreamError:
        return
    assert codec.name.startswith("jpeg") and codec.name != "jpeg2000"  # JPEG cannot tell
    assert image_hat.shape == (40, 56, 3)


@each_codec
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_is_refused_or_decodes_and_never_raises_another_error(codec, lower, data):
    stream = bytearray(lower.encode([picture(24, 40)])[0])
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        [image_hat] = codec.decode([bytes(stream)])
    except BitstreamError as error:
        assert "\n" not in str(error) and " at 0x" not in str(error)
    else:
        assert image_hat.dtype == np.uint8 and image_hat.ndim == 3


@each_codec
def test_a_damaged_start_is_refused(codec, lower):
    [stream] = codec.encode([picture(24, 40)])
    with pytest.raises(BitstreamError):
        codec.decode([b"\x00" + stream[1:]])


@each_codec
def test_other_formats_and_nonsense_are_refused(codec, lower):
    png = io.BytesIO()
    PillowImage.fromarray(picture(8, 8)).save(png, "PNG")
    others = [
        param.values[0].encode([picture(8, 8)])[0]
        for param in CODECS
        if type(param.values[0]) is not type(codec)
    ]
    for data in [b"", b"x", bytes(100), png.getvalue(), *others]:
        with pytest.raises(BitstreamError):
            codec.decode([data])


def test_a_jpeg_that_is_not_rgb_is_refused():
    buffer = io.BytesIO()
    PillowImage.fromarray(picture(8, 8)).convert("CMYK").save(buffer, "JPEG")
    with pytest.raises(BitstreamError, match="CMYK"):
        Jpeg(10, optimize=True).decode([buffer.getvalue()])


def test_jpeg_variants_have_the_same_pixels_and_optimised_tables_are_smaller():
    image = picture(96, 128)
    plain, fitted = Jpeg(5, optimize=False), Jpeg(5, optimize=True)
    (a,), (b,) = plain.encode([image]), fitted.encode([image])
    assert len(b) < len(a)
    np.testing.assert_array_equal(plain.decode([a])[0], fitted.decode([b])[0])
    assert (plain.name, fitted.name) == ("jpeg", "jpeg-optimized")
    # SOF0 is baseline; the first component's sampling factors 2x2 are 4:2:0.
    for stream in (a, b):
        start = stream.index(b"\xff\xc0")
        assert stream[start + 11] == 0x22


def test_jpeg2000_codes_colour_together_and_hits_its_rate():
    image = picture(256, 256)
    for ratio in (20, 80):
        [stream] = Jpeg2000(ratio).encode([image])
        assert len(stream) == pytest.approx(image.size / ratio, rel=0.1)
    assert stream.startswith(b"\xff\x4f\xff\x51")
    assert b"OpenJPEG" not in stream
    # COD's multiple component transform byte (marker, length, style, order, layers, transform).
    assert stream[stream.index(b"\xff\x52") + 8] == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Jpeg(0, optimize=True),
        lambda: Jpeg(101, optimize=False),
        lambda: Jpeg(10.5, optimize=False),  # type: ignore[arg-type]
        lambda: Jpeg(True, optimize=False),
        lambda: Jpeg2000(0.5),
        lambda: Jpeg2000(float("nan")),
        lambda: Jpeg2000(1e9),
        lambda: WebP(-1),
        lambda: WebP(101),
    ],
)
def test_settings_out_of_range_are_refused_at_construction(make):
    with pytest.raises(ValueError, match=r"got .* expected"):
        make()


@each_codec
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(codec, lower, image):
    with pytest.raises(ValueError, match="expected uint8"):
        codec.encode([image])


@pytest.mark.parametrize(
    "codec, limit", [(Jpeg(10, optimize=True), 65500), (WebP(10), 16383)], ids=["jpeg", "webp"]
)
def test_the_longest_side_works_and_one_more_is_refused(codec, limit):
    image = np.full((1, limit, 3), 90, np.uint8)
    assert codec.decode(codec.encode([image]))[0].shape == image.shape
    with pytest.raises(ValueError, match=str(limit)):
        codec.encode([np.full((limit + 1, 1, 3), 90, np.uint8)])


def test_arrays_that_are_not_contiguous_are_encoded_as_their_copies():
    image = picture(40, 60)[::-1, ::2]
    for param in CODECS:
        codec = param.values[0]
        assert codec.encode([image]) == codec.encode([np.ascontiguousarray(image)])


@each_codec
def test_progress_counts_images(codec, lower):
    calls = []
    codec.encode([picture(8, 8)] * 3, lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_the_ladders_make_curves_of_ten_rates_or_more():
    image = picture(192, 256)
    for ladder in (
        [Jpeg(q, optimize=True) for q in classic.JPEG_QUALITIES],
        [Jpeg2000(r) for r in classic.JPEG2000_RATIOS],
        [WebP(q) for q in classic.WEBP_QUALITIES],
    ):
        sizes = [len(codec.encode([image])[0]) for codec in ladder]
        assert len(sizes) >= 10
        assert sizes == sorted(sizes) and sizes[0] < sizes[-1] / 2
        assert len({codec.setting for codec in ladder}) == len(ladder)
