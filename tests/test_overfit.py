"""The plans of the codecs: they improve an image, and the rate-aware one sees what is coded."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import photograph

from inrjax import entropy, fit, meta, overfit, quantize, trees
from inrjax.images import coordinates, to_float
from inrjax.init import Init, flat_init
from inrjax.nets.siren import Encoding, Siren

IMAGE = photograph(24, 20)
TILING = fit.Tiling(128, 2)
NET = Siren(8, 2, encoding=Encoding(4, 1.7))
STEPS = 60


def points(image: np.ndarray = IMAGE) -> fit.Points:
    return overfit.image_points(image, TILING, 4, seed=0)


def psnr(net: Siren, params: Any, image: np.ndarray = IMAGE) -> float:
    """dB on the [0, 1] scale, before rounding to uint8."""
    pixels = (net.apply_host(params, coordinates(*image.shape[:2])) + 1) / 2
    return -10 * np.log10(np.mean((pixels - to_float(image).reshape(-1, 3)) ** 2))


@cache
def tiny_init(net: Siren = NET, inner_steps: int = 2) -> Init:
    """A random init with a mean, scales and inner rates that are all different."""
    params = jax.tree.map(np.asarray, net.init(jax.random.key(3)))
    start = flat_init(net, params)
    leaves = list(trees.leaves(params))
    keep = {path: np.float32(0.5 + 0.05 * i) for i, (path, _) in enumerate(leaves)}
    envelope = {
        path: np.full((1,) * leaf.ndim, i - 24, np.int8) for i, (path, leaf) in enumerate(leaves)
    }
    rates = {path: np.full((inner_steps, *leaf.shape), 0.02, np.float16) for path, leaf in leaves}
    return replace(
        start,
        keep=trees.from_leaves(keep),
        envelope=trees.from_leaves(envelope),
        rates=trees.from_leaves(rates),
    )


# ---------------------------------------------------------------------------- points of an image


def test_image_points_are_the_pixels_at_their_coordinates() -> None:
    found = points()
    real = found.weights.ravel() == 1
    coords = found.coords.transpose(0, 2, 1).reshape(-1, 2)[real]
    pixels = found.pixels.transpose(0, 2, 1).reshape(-1, 3)[real]
    rows = np.rint((coords[:, 0] * 24 + 23) / 2).astype(int)
    columns = np.rint((coords[:, 1] * 20 + 19) / 2).astype(int)
    assert len(set(zip(rows, columns, strict=True))) == 24 * 20
    np.testing.assert_allclose(pixels, IMAGE[rows, columns] / 127.5 - 1, atol=1e-6)


def test_the_mse_is_on_the_unit_scale() -> None:
    params = jax.tree.map(np.asarray, NET.init(jax.random.key(0)))
    datum = jax.tree.map(jnp.asarray, points())
    mse = overfit._image_mse(NET, params, datum, jnp.arange(4))
    assert -10 * np.log10(float(mse)) == pytest.approx(psnr(NET, params), abs=1e-3)
    by_tile = jax.vmap(lambda *tile: overfit.point_mse(NET, params, *tile))(*datum[:3])
    counts = datum.weights.sum(axis=1)
    assert float(by_tile @ counts / counts.sum()) == pytest.approx(float(mse), rel=1e-5)


# ---------------------------------------------------------------------------- optimisers


@pytest.mark.parametrize("optimizer", [overfit.Muon(0.02), overfit.Adam(0.02)])
def test_an_optimiser_is_a_hashable_value(optimizer) -> None:
    same = replace(optimizer)
    assert same == optimizer and hash(same) == hash(optimizer)
    assert replace(optimizer, learning_rate=0.01) != optimizer


@pytest.mark.parametrize(("optimizer", "decays"), [(overfit.Muon, True), (overfit.Adam, False)])
def test_the_schedule(optimizer, decays) -> None:
    chosen = optimizer(0.02).build(10)
    params = {"bias": jnp.zeros(3)}
    state, sizes = chosen.init(params), []
    for _ in range(11):
        updates, state = chosen.update({"bias": jnp.ones(3)}, state, params)
        sizes.append(float(jnp.abs(updates["bias"]).max()))
    expected = 0.02 * (0.5 * (1 + np.cos(np.pi * np.arange(11) / 10)) if decays else np.ones(11))
    np.testing.assert_allclose(sizes, expected, rtol=1e-3, atol=1e-6)


# ---------------------------------------------------------------------------- plain


@pytest.mark.parametrize("optimizer", [overfit.Muon(0.01), overfit.Adam(3e-3)])
def test_a_plain_fit_improves_the_image(optimizer) -> None:
    plan = overfit.PlainPlan(NET, optimizer, STEPS, tiles_per_step=4, window=1)
    key = jax.random.key(0)
    (result,) = fit.fit_batch(plan, key, [points()])
    assert bool(result.finite)
    begin = jax.tree.map(np.asarray, plan.start(key, points()).params)
    assert psnr(NET, result.params) > psnr(NET, begin) + 6
    # All tiles in every step: the losses are the image's mse, and the best of them was kept.
    assert -10 * np.log10(result.losses[0]) == pytest.approx(psnr(NET, begin), abs=1e-3)
    assert -10 * np.log10(result.losses.min()) == pytest.approx(psnr(NET, result.params), abs=1e-3)


# ---------------------------------------------------------------------------- rate: what is shared


@pytest.mark.parametrize("with_rates", [True, False])
def test_rate_shared_values(with_rates) -> None:
    init = tiny_init() if with_rates else replace(tiny_init(), rates=None)
    shared = overfit.rate_shared(init, seed=4)
    mean, params, scales = (
        dict(trees.leaves(tree)) for tree in (shared.mean, shared.params, shared.scales)
    )
    for i, (path, leaf) in enumerate(trees.leaves(init.params)):
        wide = np.asarray(leaf, np.float32)
        assert params[path].dtype == mean[path].dtype == jnp.float32
        np.testing.assert_array_equal(params[path], wide)
        np.testing.assert_array_equal(mean[path], np.float32(0.5 + 0.05 * i) * wide)
        np.testing.assert_allclose(scales[path], np.full((1,) * wide.ndim, 2.0 ** ((i - 24) / 4)))
    if not with_rates:
        assert shared.rates is None
    else:
        assert {leaf.dtype for _, leaf in trees.leaves(shared.rates)} == {jnp.dtype("float32")}
        assert {leaf.shape[0] for _, leaf in trees.leaves(shared.rates)} == {2}
    assert shared.key == jax.random.key(4)


# ---------------------------------------------------------------------------- rate: the grid


def learned_example(seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """A fit's learned tree with a step size of its own for each tensor, and a mean."""
    rng = np.random.default_rng(seed)
    net = {
        "a": rng.normal(size=(40, 30)).astype("f4"),
        "b": rng.normal(size=50).astype("f4"),
    }
    steps = {name: np.float32(rng.uniform(-8, -1)) for name in net}
    mean = jax.tree.map(lambda leaf: np.float32(0.3) * leaf.round(1), net)
    learned = {"net": net, "log_step": steps, "log_scale": jax.tree.map(np.zeros_like, steps)}
    return learned, mean


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rounded_steps_use_the_coded_ladder(seed) -> None:
    learned, mean = learned_example(seed)
    symbols, steps = overfit._soft_symbols(learned, mean, jnp.asarray(True), jax.random.key(0))
    for name in learned["net"]:
        index = quantize.nearest_index(float(np.exp(np.float64(learned["log_step"][name]))))
        assert float(steps[name]) == pytest.approx(quantize.step_size(index), rel=3e-7)
        delta = np.float64(learned["net"][name]) - np.float64(mean[name])
        coded = quantize.uniform({name: delta}, {name: index}).symbols[name]
        # The same integers, but where float32 and float64 fall on two sides of a tie.
        np.testing.assert_array_equal(symbols[name], np.rint(symbols[name]))
        assert np.mean(symbols[name] != coded) < 0.002


def test_noisy_steps_add_less_than_half_a_symbol_and_use_the_learned_step() -> None:
    learned, mean = learned_example()
    drawn = [
        overfit._soft_symbols(learned, mean, jnp.asarray(False), jax.random.key(seed))
        for seed in range(2)
    ]
    noises = []
    for symbols, steps in drawn:
        for name, step in steps.items():
            assert float(step) == pytest.approx(float(np.exp(learned["log_step"][name])), rel=1e-6)
            noise = symbols[name] - (learned["net"][name] - mean[name]) / step
            assert np.abs(noise).max() < 0.5 + 1e-3
            assert np.std(noise) == pytest.approx(12**-0.5, rel=0.2)
        noises.append(np.ravel(symbols["a"]))
    assert not np.any(noises[0] == noises[1])


def test_rounding_passes_gradients_straight_through() -> None:
    learned, mean = learned_example()

    def total(learned):
        symbols, _ = overfit._soft_symbols(learned, mean, jnp.asarray(True), jax.random.key(0))
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(symbols))

    gradient = jax.grad(total)(jax.tree.map(jnp.asarray, learned))
    for name, log_step in learned["log_step"].items():
        step = 2 ** (np.rint(8 * np.log2(np.exp(log_step))) / 8)
        np.testing.assert_allclose(gradient["net"][name], 1 / step, rtol=1e-5)
        # d symbol / d log step = -symbol, up to the ladder's nearest rung.
        expected = -np.sum((learned["net"][name] - mean[name]) / step)
        assert float(gradient["log_step"][name]) == pytest.approx(expected, rel=0.1)


def test_total_bits_is_the_entropy_model_s() -> None:
    learned, mean = learned_example()
    symbols, steps = overfit._soft_symbols(learned, mean, jnp.asarray(True), jax.random.key(0))
    scales = {"a": jnp.full((1, 1), 0.25), "b": jnp.full(1, 1e-9)}  # the second below the floor
    offsets = {"a": jnp.asarray(0.2), "b": jnp.asarray(0.0)}
    bits = overfit._total_bits(symbols, steps, scales, offsets)
    expected = np.sum(entropy.bits(symbols["a"], 0.25 / steps["a"] * np.exp(0.2)))
    expected += np.sum(entropy.bits(symbols["b"], entropy.scale(0)))
    assert float(bits) == pytest.approx(float(expected), rel=1e-5)


def test_some_steps_are_rounded_and_only_the_last() -> None:
    for steps in (1, 2, 10, 19, 40, 100, 2000):
        plan = overfit.RatePlan(NET, overfit.Muon(0.01), steps, 1, 1, 0.3)
        assert 0 <= plan.noisy_steps < steps
        assert plan.noisy_steps >= 0.94 * steps - 1


# ---------------------------------------------------------------------------- rate: fits


def rate_plan(slope: float) -> overfit.RatePlan:
    return overfit.RatePlan(NET, overfit.Muon(0.01), STEPS, 4, 1, slope)


@cache
def rate_fit(slope: float, envelope_shift: int = 0) -> fit.FitResult:
    init = tiny_init()
    moved = jax.tree.map(lambda e: (e + envelope_shift).astype(np.int8), init.envelope)
    shared = overfit.rate_shared(replace(init, envelope=moved), seed=0)
    return fit.fit_batch(rate_plan(slope), shared, [points()])[0]


def coded(result: fit.FitResult) -> tuple[Any, float]:
    """The params that a file would hold, and their bits under the learned scales."""
    shared = overfit.rate_shared(tiny_init(), seed=0)
    symbols, steps = overfit._soft_symbols(
        result.params, shared.mean, jnp.asarray(True), jax.random.key(0)
    )
    params = jax.tree.map(lambda m, k, s: m + k * s, shared.mean, symbols, steps)
    bits = overfit._total_bits(symbols, steps, shared.scales, result.params["log_scale"])
    return jax.tree.map(np.asarray, params), float(bits)


def test_a_rate_fit_improves_the_image_as_it_is_coded() -> None:
    result = rate_fit(0.1)
    params, _ = coded(result)
    assert bool(result.finite)
    begin = jax.tree.map(np.float32, tiny_init().params)
    assert psnr(NET, params) > psnr(NET, begin) + 4


def test_the_snapshot_is_of_the_rounded_part_and_of_its_loss() -> None:
    result, plan = rate_fit(0.1), rate_plan(0.1)
    params, bits = coded(result)
    loss = np.log(10 ** (-psnr(NET, params) / 10) + overfit.MSE_FLOOR) + 0.1 * np.log(bits)
    assert loss == pytest.approx(result.losses[plan.noisy_steps :].min(), abs=1e-3)


def test_a_larger_slope_gives_fewer_bits_and_a_worse_image() -> None:
    params, bits = zip(*[coded(rate_fit(slope)) for slope in (0.0, 0.1, 2.0)], strict=True)
    assert bits[0] > bits[1] > bits[2]
    assert psnr(NET, params[0]) > psnr(NET, params[2])


def test_slope_zero_ignores_the_rate() -> None:
    result = rate_fit(0.0)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(result.params["log_scale"]))
    # Another prior changes the rate, and nothing else.
    other = rate_fit(0.0, envelope_shift=8)
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
    moved = rate_fit(0.1).params["log_scale"]
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(moved))


def test_a_rate_fit_starts_at_the_adapted_init() -> None:
    shared = overfit.rate_shared(tiny_init(), seed=0)
    datum = jax.tree.map(jnp.asarray, points())
    plan = rate_plan(0.1)
    params = shared.params
    for i in range(2):  # by hand: one slice of tiles after the other, at its own rates
        gradient = jax.grad(
            lambda p, i=i: overfit.point_mse(NET, p, *(leaf[i] for leaf in datum[:3]))
        )(params)
        params = jax.tree.map(lambda p, r, g, i=i: p - r[i] * g, params, shared.rates, gradient)
    started = jax.jit(plan.start)(shared, datum).params
    for (path, a), (_, b) in zip(trees.leaves(started["net"]), trees.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=path)
    assert all(
        float(leaf) == pytest.approx(np.log(overfit.INITIAL_STEP))
        for leaf in jax.tree.leaves(started["log_step"])
    )
    plain = jax.jit(plan.start)(shared._replace(rates=None), datum).params
    np.testing.assert_array_equal(trees.ravel(plain["net"]), trees.ravel(shared.params))


def test_the_grid_has_an_optimiser_of_its_own() -> None:
    state = rate_plan(0.1)._optimizer()
    shared = overfit.rate_shared(replace(tiny_init(), rates=None), seed=0)
    learned = rate_plan(0.1).start(shared, points()).params
    gradient = jax.tree.map(jnp.ones_like, learned)
    updates, _ = state.update(gradient, state.init(learned), learned)
    for name in ("log_step", "log_scale"):
        sizes = [float(leaf) for leaf in jax.tree.leaves(updates[name])]
        np.testing.assert_allclose(sizes, -overfit.GRID_LEARNING_RATE, rtol=1e-4)
    assert isinstance(overfit.Muon(0.01).build(5), optax.GradientTransformation)
    assert meta.MetaParams(1, 2) == (1, 2)
