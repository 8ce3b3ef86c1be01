"""ProductSiren: the file holds what was quantised, tuning helps, damaged sections are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from conftest import photograph

from inrjax import bitstream, decoding, product_quantization, quantize, trees
from inrjax.codecs import ProductSiren, describe
from inrjax.codecs.product import Coded, quantize_layers
from inrjax.init import Init, flat_init
from inrjax.nets.siren import Encoding, Siren
from inrjax.types import BitstreamError, Image

IMAGE = photograph(40, 48)


def random_init(width: int, depth: int = 3) -> Init:
    net, rng = Siren(width, depth, encoding=Encoding(4)), np.random.default_rng(width)
    leaves = {
        path: rng.uniform(-1, 1, shape) * (6 / shape[-1]) ** 0.5 / net.w0
        for path, shape in trees.leaves(net.shapes())
    }
    return flat_init(net, trees.from_leaves(leaves))


CODEC = ProductSiren(12, 16, 2, 60, 60, init=random_init(12), points_per_step=512)


@pytest.fixture(scope="module")
def fitted():
    return CODEC.fit([IMAGE])


def params_of(codec: ProductSiren, coded: Coded):
    """Float32 params of a quantised net, not by way of a file."""
    assert codec.init is not None
    values = quantize.dequantize(quantize.Quantized(coded.symbols, coded.grid))
    params = product_quantization.assemble(values, coded.indices, codec.init.mean())
    return trees.from_leaves({path: leaf.astype(np.float32) for path, leaf in trees.leaves(params)})


def mse(image_hat: Image) -> float:
    return float(np.mean((image_hat.astype(float) - IMAGE) ** 2))


@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_the_file_holds_what_was_quantised(block: int, fitted) -> None:
    codec = replace(CODEC, block=block, tune_steps=0)
    [coded] = codec.quantize([IMAGE], fitted)
    stream = codec.pack(IMAGE, coded)
    assert codec.init is not None
    expected = decoding.reconstruct(codec.init.net, params_of(codec, coded), *IMAGE.shape[:2])
    np.testing.assert_array_equal(codec.decode([stream])[0], expected)


def test_layers_have_the_codebooks_that_the_setting_says(fitted) -> None:
    assert CODEC.init is not None
    mean = CODEC.init.mean()
    coded = quantize_layers(CODEC.init.net, fitted[0], mean, IMAGE, replace(CODEC, block=5))
    symbols = dict(trees.leaves(coded.symbols))
    # 18 inputs are 4 pieces of 5, the last filled up; 12 are 3; at most a quarter have a centroid.
    shapes = {path: own.shape for path, own in coded.indices.items()}
    assert list(shapes.values()) == [(12, 4), (12, 3), (12, 3)]
    assert [symbols[path].shape for path in shapes] == [(12, 5), (9, 5), (9, 5)]
    assert all(own.max() < len(symbols[path]) for path, own in coded.indices.items())
    others = {path for path, _ in trees.leaves(mean)} - shapes.keys()
    assert all(symbols[path].shape == dict(trees.leaves(mean))[path].shape for path in others)


def test_tuning_centroids_helps_and_leaves_the_indices(fitted) -> None:
    [plain] = replace(CODEC, tune_steps=0).quantize([IMAGE], fitted)
    [tuned] = replace(CODEC, tune_steps=200).quantize([IMAGE], fitted)
    assert all(np.array_equal(plain.indices[path], tuned.indices[path]) for path in plain.indices)
    assert dict(trees.leaves(plain.grid)) == dict(trees.leaves(tuned.grid))
    before, after = (mse(CODEC.decode([CODEC.pack(IMAGE, one)])[0]) for one in (plain, tuned))
    assert after < 0.9 * before


def test_more_centroids_are_nearer_and_cost_more(fitted) -> None:
    errors, sizes = [], []
    for count in (2, 8, 32):
        codec = replace(CODEC, num_centroids=count)
        [coded] = codec.quantize([IMAGE], fitted)
        stream = codec.pack(IMAGE, coded)
        errors.append(mse(codec.decode([stream])[0]))
        sizes.append(len(stream))
    assert errors == sorted(errors, reverse=True) and sizes == sorted(sizes)


def test_the_codebook_is_in_the_file(fitted) -> None:
    """Twice the centroids of the same block take more bytes of symbols, not of indices alone."""
    found = {}
    for count in (8, 16):
        codec = replace(CODEC, num_centroids=count, tune_steps=0)
        [coded] = codec.quantize([IMAGE], fitted)
        found[count] = describe(codec.pack(IMAGE, coded), CODEC.init).sections
    for section in ("symbols", "indices"):
        assert found[16][section] > found[8][section] + 16


def repacked(stream: bytes, place: int, edit) -> bytes:
    """The stream with one section edited, and a checksum that fits."""
    assert CODEC.init is not None
    content = bitstream.unpack(stream, CODEC.init.digest)
    sections: Sequence[bytes] = [
        edit(own) if i == place else own for i, own in enumerate(content.sections)
    ]
    return bitstream.pack(content.tag, content.height, content.width, sections, CODEC.init.digest)


EDITS = {
    "no centroids": (1, lambda grid: grid[:2] + b"\0\0" + grid[4:]),
    "too many centroids": (1, lambda grid: grid[:2] + b"\x01\x10" + grid[4:]),
    "no block": (1, lambda grid: grid[:4] + b"\0" + grid[5:]),
    "too long a block": (1, lambda grid: grid[:4] + b"\x11" + grid[5:]),
    "another block": (1, lambda grid: grid[:4] + b"\x03" + grid[5:]),
    "no level": (1, lambda grid: grid[:-1] + b"\x40"),
    "a short grid": (1, lambda grid: grid[:-1]),
    "another check": (1, lambda grid: bytes([grid[0] ^ 1]) + grid[1:]),
    "a short init": (0, lambda init: init[:-1]),
    "other symbols": (2, lambda symbols: symbols[::-1]),
    "no indices": (3, lambda indices: b""),
    "other indices": (3, lambda indices: indices[::-1]),
}


@pytest.mark.parametrize("name", EDITS)
def test_sections_that_cannot_be_are_refused(name: str, fitted) -> None:
    codec = replace(CODEC, tune_steps=0)
    stream = codec.pack(IMAGE, codec.quantize([IMAGE], fitted)[0])
    codec.decode([repacked(stream, 0, lambda same: same)])
    with pytest.raises(BitstreamError):
        codec.decode([repacked(stream, *EDITS[name])])


def test_a_fit_that_is_not_finite_is_refused(fitted) -> None:
    broken = trees.from_leaves({p: np.full_like(x, np.nan) for p, x in trees.leaves(fitted[0])})
    with pytest.raises(ValueError, match="finite"):
        CODEC.quantize([IMAGE], [broken])
