"""A base file keeps its content and its digest, latents their quantiser's bound, patches pixels."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from bases import tiny_base
from hypothesis import given
from hypothesis import strategies as st

from inrjax import codecs, entropy, modulation, trees
from inrjax.base import BITS, from_symbols, load_base, modulate, save_base, to_symbols
from inrjax.grids import load_grid_base
from inrjax.images import centres
from inrjax.init import flat_init, load_init, save_init

BASE = tiny_base()


# ---------------------------------------------------------------------------- the file


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    base = replace(BASE, info={"licence": "none"})
    save_base(tmp_path / "base.npz", base)
    again = load_base(tmp_path / "base.npz")
    assert again.digest == base.digest == BASE.digest
    assert (again.net, again.patch, again.info) == (base.net, base.patch, base.info)
    np.testing.assert_array_equal(again.rates, base.rates)
    assert again.shared_bytes == base.shared_bytes


def test_the_digest_covers_what_a_decoder_uses_and_nothing_else() -> None:
    others = [
        tiny_base(seed=1),
        replace(BASE, patch=17),
        replace(BASE, net=replace(BASE.net, w0=31.0)),
        replace(BASE, shift=BASE.shift + np.float16(1)),
        replace(BASE, centre=BASE.centre + 1),
        replace(BASE, spread=BASE.spread + 1),
        replace(BASE, tables={**BASE.tables, "bits_2": np.array([1, 1, 1, (1 << 24) - 3])}),
    ]
    assert len({base.digest for base in [BASE, *others]}) == 1 + len(others)
    assert replace(BASE, rates=2 * BASE.rates, info={"a": 1}).digest == BASE.digest


def test_shared_bytes_are_the_arrays() -> None:
    net, dims = BASE.net, BASE.latent_dim
    halves = net.num_params + net.depth * net.width * dims
    assert BASE.shared_bytes == 2 * halves + 4 * 2 * dims + 4 * sum(1 << bits for bits in BITS)


def test_damage_and_other_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "base.npz"
    save_base(path, BASE)
    data = bytearray(path.read_bytes())
    for name, content in (
        ("cut", data[:-40]), ("flipped", data[:900] + bytes([data[900] ^ 1]) + data[901:]),
        ("text", b"no base"), ("empty", b""),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(bytes(content))
        with pytest.raises(ValueError, match=name):
            load_base(tmp_path / name)
    with pytest.raises(ValueError, match="not a file"):
        load_base(tmp_path / "absent")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    shift = BASE.shift.copy()
    shift[0, 0] = np.inf
    save_base(tmp_path / "wild.npz", replace(BASE, shift=shift))
    with pytest.raises(ValueError, match=r"wild.npz .* not finite"):
        load_base(tmp_path / "wild.npz")


@pytest.mark.parametrize("load", [load_base, load_grid_base, load_init, codecs.load_shared])
def test_an_archive_that_unpacks_to_too_much_is_not_unpacked(load: Any, tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    npy = io.BytesIO()
    np.save(npy, np.zeros(1 << 23))  # 64 MiB, the header that a reader begins with among them
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("header", *"abcd"):
            archive.writestr(f"{name}.npy", npy.getvalue())
    assert path.stat().st_size < 1 << 22 and trees.MAX_NPZ_CONTENT_BYTES < 5 << 26
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"bomb.npz .* unpacks to more than"):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_an_init_and_a_base_are_told_apart(tmp_path: Path) -> None:
    init = flat_init(BASE.net, BASE.params)
    save_init(tmp_path / "init.npz", init)
    save_base(tmp_path / "base.npz", BASE)
    assert codecs.load_shared(tmp_path / "init.npz").digest == init.digest
    assert codecs.load_shared(tmp_path / "base.npz").digest == BASE.digest
    with pytest.raises(ValueError, match="inrjax-init-1"):
        load_base(tmp_path / "init.npz")
    (tmp_path / "other.npz").write_bytes(b"neither")
    with pytest.raises(ValueError, match="other"):
        codecs.load_shared(tmp_path / "other.npz")


@pytest.mark.parametrize(
    "change",
    [
        {"patch": 0},
        {"net": replace(BASE.net, out_dim=1)},
        {"net": replace(BASE.net, width=11)},
        {"shift": BASE.shift[:-1]},
        {"shift": BASE.shift[0]},
        {"centre": BASE.centre[:-1]},
        {"spread": BASE.spread[:-1]},
        {"rates": BASE.rates[:-1]},
        {"tables": {}},
        {"tables": {**BASE.tables, "bits_2": np.array([0, 1, 1, (1 << 24) - 2])}},
        {"tables": {**BASE.tables, "bits_2": np.full(4, 1 << 21)}},
    ],
)
def test_parts_that_do_not_fit_are_refused(change) -> None:
    with pytest.raises(ValueError):
        replace(BASE, **change)


# ---------------------------------------------------------------------------- latents


@given(st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_a_latent_within_three_sigmas_moves_at_most_half_a_step(bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    centre, spread = rng.standard_normal(5), rng.exponential(size=5)
    latents = centre + 3 * spread * rng.uniform(-1, 1, (7, 5))
    symbols = to_symbols(latents, centre, spread, bits)
    assert symbols.min() >= 0 and symbols.max() < 1 << bits
    moved = np.abs(from_symbols(symbols, centre, spread, bits) - latents)
    assert (moved <= 3 * spread / ((1 << bits) - 1) * (1 + 1e-9)).all()
    again = to_symbols(from_symbols(symbols, centre, spread, bits), centre, spread, bits)
    np.testing.assert_array_equal(again, symbols)


def test_a_latent_beyond_takes_the_outermost_and_one_of_no_spread_its_centre() -> None:
    centre, spread = np.array([1.0, 1.0, 2.0]), np.array([0.1, 0.1, 0.0])
    symbols = to_symbols(np.array([[-9.0, 9.0, 5.0]]), centre, spread, 4)
    assert symbols[0, :2].tolist() == [0, 15]
    np.testing.assert_allclose(from_symbols(symbols, centre, spread, 4), [[0.7, 1.3, 2.0]])


def test_shifts_are_added_layer_by_layer() -> None:
    net, latent = BASE.net, np.arange(BASE.latent_dim) / 10
    shift = np.asarray(BASE.shift, float)
    moved = modulate(net, BASE.params, shift, latent)
    same = dict(trees.leaves(BASE.params))
    shifts = np.split(shift @ latent, net.depth)
    for path, leaf in trees.leaves(moved):
        layer, kind = path.split("/")
        own = shifts[int(layer[-2:])] if kind == "bias" and layer != "layer_03" else 0
        np.testing.assert_allclose(leaf, same[path] + own)


# ---------------------------------------------------------------------------- patches


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (6, 4), (3, 11)])
def test_patches_hold_every_pixel_once(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    pixels, weights = modulation.cut(image, 3)
    rows, columns = (-(-side // 3) for side in shape)
    assert pixels.shape == (rows * columns, 9, 3) and weights.sum() == shape[0] * shape[1]
    back = pixels.reshape(rows, columns, 3, 3, 3).transpose(0, 2, 1, 3, 4)
    whole = back.reshape(rows * 3, columns * 3, 3)
    np.testing.assert_array_equal(whole[: shape[0], : shape[1]], image)


def test_pixels_beyond_the_rim_do_not_count() -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (2, 256, 3), np.uint8)
    weights = np.ones((2, 256), np.float32)
    weights[:, 100:] = 0
    other = pixels.copy()
    other[:, 100:] = 255 - other[:, 100:]
    one, two = (
        modulation.fit_latents(BASE, [modulation.Patches(p, weights)], 3)[0]
        for p in (pixels, other)
    )
    np.testing.assert_array_equal(one, two)


def test_inner_steps_are_gradient_descent_from_zero() -> None:
    """One step from zero is minus rate * gradient, by finite differences in float64 arithmetic."""
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (1, 256, 3), np.uint8)
    patches = modulation.Patches(pixels, np.ones((1, 256), np.float32))
    [latents] = modulation.fit_latents(BASE, [patches], 1)
    places = centres(BASE.patch)
    target = pixels[0].reshape(16, 16, 3) / 127.5 - 1

    def mse(latent: np.ndarray) -> float:
        params = modulate(BASE.net, BASE.params, np.asarray(BASE.shift, float), latent)
        return float(np.mean((BASE.net.apply_grid_host(params, places, places) - target) ** 2) / 4)

    for i in range(3):
        step = 1e-2 * np.eye(BASE.latent_dim)[i]
        slope = (mse(step) - mse(-step)) / 2e-2
        assert latents[0, i] == pytest.approx(-BASE.rates[i] * slope, rel=0.02, abs=2e-4)


def test_more_inner_steps_are_nearer_and_lists_stay_apart() -> None:
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256, (n, 20, 3), np.uint8) for n in (17, 40)]
    patches = [modulation.cut(image, BASE.patch) for image in images]
    learned, coords = modulation.learned_of(BASE), modulation.patch_coords(BASE.patch)

    def error(latents: np.ndarray) -> float:
        own = modulation.to_pixels(jnp.asarray(patches[1].pixels[0]))
        weights = patches[1].weights[0]
        args = (latents[0], coords, own, weights)
        return float(modulation.patch_mse(BASE.net, learned, *args))

    few, many = (modulation.fit_latents(BASE, patches, steps) for steps in (1, 8))
    assert [part.shape for part in many] == [(4, 12), (6, 12)]
    assert error(many[1]) < error(few[1]) < error(np.zeros((1, 12)))
    [alone] = modulation.fit_latents(BASE, patches[1:], 8)
    np.testing.assert_array_equal(alone, many[1])


def test_latents_that_diverge_are_an_error() -> None:
    wild = replace(BASE, rates=np.full(BASE.latent_dim, np.inf, np.float32))
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="diverged"):
        modulation.fit_latents(wild, [modulation.cut(image, BASE.patch)], 2)


# ---------------------------------------------------------------------------- the codec


def test_the_file_is_the_symbols_under_the_table() -> None:
    image = np.random.default_rng(4).integers(0, 256, (33, 20, 3), np.uint8)
    sizes = {}
    for bits in (3, 5):
        codec = codecs.ModulatedSiren(BASE, bits, 2)
        [stream] = codec.encode([image])
        found = codecs.describe(stream, BASE)
        [latents] = modulation.fit_latents(BASE, [modulation.cut(image, BASE.patch)], 2)
        symbols = to_symbols(latents, BASE.centre, BASE.spread, bits).ravel()
        ideal = float(np.sum(entropy.PRECISION - np.log2(BASE.table(bits)[symbols])))
        sizes[bits] = found.sections["latents"]
        assert abs(8 * sizes[bits] - ideal) <= 40
        assert len(stream) - sizes[bits] <= 24
    assert sizes[5] > sizes[3]


def test_a_decoder_is_made_by_name_and_base_file(tmp_path: Path) -> None:
    image = np.random.default_rng(5).integers(0, 256, (20, 20, 3), np.uint8)
    codec = codecs.ModulatedSiren(BASE, 4, 2)
    [stream] = codec.encode([image])
    save_base(tmp_path / "base.npz", BASE)
    shared = codecs.load_shared(tmp_path / "base.npz")
    np.testing.assert_array_equal(
        codecs.decoder("modulated-siren", shared).decode([stream])[0], codec.decode([stream])[0]
    )
