"""The Five Modulus Method: its arithmetic, its file read by an independent reader, its quality."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import photograph
from hypothesis import given, settings
from hypothesis import strategies as st

from inrjax import datasets, metrics
from inrjax.codecs import Fmm, FmmInside, Jpeg, Png
from inrjax.codecs.fmm import multiples, quotients
from inrjax.types import BitstreamError


def read_slowly(data: bytes) -> np.ndarray:
    """The image of a .fmm file, bit by bit, as the docstring of `Fmm` tells it."""
    height, width = int.from_bytes(data[4:8], "big"), int.from_bytes(data[8:12], "big")
    bits = "".join(f"{byte:08b}" for byte in data[16:])
    at = 0

    def take(number: int) -> int:
        nonlocal at
        at += number
        return int(bits[at - number : at], 2) if number else 0

    corners = [(c, y, x) for c in range(3) for y in range(0, height, 8) for x in range(0, width, 8)]
    heads = [(take(6), take(3)) for _ in corners]
    image = np.zeros((height + 7, width + 7, 3), int)
    for (channel, top, left), (smallest, number) in zip(corners, heads, strict=True):
        for i in range(64):
            image[top + i // 8, left + i % 8, channel] = 5 * (smallest + take(number))
    assert len(bits) - at < 8
    return image[:height, :width]


def test_every_value_moves_to_the_nearest_multiple_of_five():
    values = np.arange(256, dtype=np.uint8)
    nearest = [min(range(0, 256, 5), key=lambda m: abs(m - int(v))) for v in values]
    np.testing.assert_array_equal(multiples(quotients(values)), nearest)
    assert quotients(values).max() == 51
    np.testing.assert_array_equal(multiples(np.array([51, 52, 255], np.uint8)), 255)


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    spread=st.sampled_from([0, 1, 4, 9, 40, 120, 255]),
    seed=st.integers(0, 99),
)
def test_an_independent_reader_finds_the_same_image_within_two(height, width, spread, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256 - spread) + rng.integers(0, spread + 1, (height, width, 3))
    image = image.astype(np.uint8)
    [stream] = Fmm().encode([image])
    [image_hat] = Fmm().decode([stream])
    assert np.abs(image_hat.astype(int) - image).max() <= 2
    np.testing.assert_array_equal(read_slowly(stream), image_hat)


# Where many values are 0 or 255, which are multiples of five, the error is smaller: astronaut.
@pytest.mark.parametrize("name, high", [("coffee", 45.4), ("chelsea", 45.4), ("astronaut", 45.7)])
def test_photographs_have_the_published_quality(name, high):
    image = datasets.packaged()[name]
    [stream] = Fmm().encode([image])
    [image_hat] = Fmm().decode([stream])
    assert np.abs(image_hat.astype(int) - image).max() == 2
    assert 45.0 <= metrics.psnr(image, image_hat) <= high
    [png] = Png().encode([image])
    assert len(stream) < len(png)


def test_every_flipped_byte_and_every_cut_is_found():
    [stream] = Fmm().encode([photograph(9, 17)])
    damaged = [
        stream[:i] + bytes([stream[i] ^ 1 << i % 8]) + stream[i + 1 :] for i in range(len(stream))
    ]
    for data in [*damaged, *(stream[:i] for i in range(len(stream))), stream + b"\0"]:
        with pytest.raises(BitstreamError):
            Fmm().decode([data])


def test_inside_jpeg_the_file_is_the_jpeg_of_the_quotients():
    image, inner = datasets.packaged()["coffee"], Jpeg(90, optimize=True)
    codec = FmmInside(inner)
    assert (codec.name, codec.setting, codec.suffix) == ("fmm-jpeg-optimized", "quality=90", ".jpg")
    [stream] = codec.encode([image])
    assert [stream] == inner.encode([quotients(image)])
    [image_hat] = codec.decode([stream])
    np.testing.assert_array_equal(image_hat, multiples(inner.decode([stream])[0]))
    [jpeg] = inner.decode(inner.encode([image]))
    assert 25 < metrics.psnr(image, image_hat) < metrics.psnr(image, jpeg)  # an error times five
