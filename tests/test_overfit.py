"""The plans of the codecs: they improve an image, and the rate-aware one sees what is coded."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import photograph

from inrjax import entropy, fit, optimizers, overfit, quantize, trees
from inrjax.images import coordinates, to_float
from inrjax.init import Init, flat_init
from inrjax.nets.siren import Encoding, Siren

IMAGE = photograph(24, 20)
TILING = fit.Tiling(128, 2)
NET = Siren(8, 2, encoding=Encoding(4, 1.7))
STEPS = 60
INIT = jax.jit(lambda seed: NET.init(jax.random.key(seed, impl="unsafe_rbg")))


def points(image: np.ndarray = IMAGE) -> fit.Points:
    return overfit.image_points(image, TILING, 4, seed=0)


def psnr(net: Siren, params: Any, image: np.ndarray = IMAGE) -> float:
    """dB on the [0, 1] scale, before rounding to uint8."""
    pixels = (net.apply_host(params, coordinates(*image.shape[:2])) + 1) / 2
    return -10 * np.log10(np.mean((pixels - to_float(image).reshape(-1, 3)) ** 2))


@cache
def tiny_init() -> Init:
    """A random init with a mean, scales and inner rates that are all different."""
    params = jax.tree.map(np.asarray, INIT(3))
    start = flat_init(NET, params)
    leaves = list(trees.leaves(params))
    keep = {path: np.float32(0.5 + 0.05 * i) for i, (path, _) in enumerate(leaves)}
    envelope = {
        path: np.full((1,) * leaf.ndim, i - 24, np.int8) for i, (path, leaf) in enumerate(leaves)
    }
    rates = {path: np.full((2, *leaf.shape), 0.02, np.float16) for path, leaf in leaves}
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
    params = jax.tree.map(np.asarray, INIT(0))
    datum = jax.tree.map(jnp.asarray, points())
    mse = jax.jit(lambda params: overfit._image_mse(NET, params, datum, jnp.arange(4)))(params)
    assert -10 * np.log10(float(mse)) == pytest.approx(psnr(NET, params), abs=1e-3)
    by_tile = jax.jit(jax.vmap(lambda *tile: overfit.point_mse(NET, params, *tile)))(*datum[:3])
    counts = datum.weights.sum(axis=1)
    assert float(by_tile @ counts / counts.sum()) == pytest.approx(float(mse), rel=1e-5)


# ---------------------------------------------------------------------------- plain


def test_a_plain_fit_improves_the_image() -> None:
    plan = overfit.PlainPlan(NET, optimizers.Muon(0.01), STEPS, tiles_per_step=4, window=1)
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
    shared = overfit.rate_shared(init, 0.3, seed=4)
    start = 0
    # Means and scales are vectors in the order of the params' leaves, in jax and in trees alike.
    assert shared.mean.shape == shared.scales.shape == (init.net.num_params,)
    for i, (path, leaf) in enumerate(trees.leaves(init.params)):
        part = slice(start, start + leaf.size)
        wide = np.asarray(leaf, np.float32)
        np.testing.assert_array_equal(dict(trees.leaves(shared.params))[path], wide)
        expected = np.float32(0.5 + 0.05 * i) * wide.ravel()
        np.testing.assert_array_equal(shared.mean[part], expected)
        np.testing.assert_allclose(shared.scales[part], 2.0 ** ((i - 24) / 4), rtol=1e-6)
        start += leaf.size
    assert {leaf.dtype for _, leaf in trees.leaves(shared.params)} == {jnp.dtype("float32")}
    if not with_rates:
        assert shared.rates is None
    else:
        rates = dict(trees.leaves(shared.rates))
        for path, leaf in trees.leaves(init.rates):
            assert rates[path].dtype == jnp.float32
            np.testing.assert_array_equal(rates[path], np.asarray(leaf, np.float32))
    assert (shared.slope, shared.key) == (np.float32(0.3), jax.random.key(4))


def test_a_first_layer_s_columns_have_scales_of_their_own() -> None:
    init = tiny_init()
    envelope = trees.from_leaves(dict(trees.leaves(init.envelope)))
    columns = np.arange(NET.num_features, dtype=np.int8)[None] - 40
    envelope["layer_00"]["weight"] = columns
    scales = overfit.rate_shared(replace(init, envelope=envelope), 0.3, seed=0).scales
    weight = trees.unravel(np.asarray(scales), init.params)["layer_00"]["weight"]
    np.testing.assert_allclose(weight, np.repeat(2.0 ** (columns / 4), 8, axis=0), rtol=1e-6)


# ---------------------------------------------------------------------------- rate: the grid

SOFT = jax.jit(overfit._soft_symbols)


def learned_example(seed: int = 0) -> tuple[dict[str, Any], np.ndarray]:
    """A fit's learned tree with a step size of its own for each tensor, and a mean."""
    rng = np.random.default_rng(seed)
    net = {
        "a": rng.normal(size=(40, 30)).astype("f4"),
        "b": rng.normal(size=50).astype("f4"),
    }
    mean = np.float32(0.3) * trees.ravel(net).round(1)
    steps = rng.uniform(-8, -1, 2).astype("f4")
    return {"net": net, "log_step": steps, "log_scale": np.zeros(2, "f4")}, mean


PARTS = {"a": slice(0, 1200), "b": slice(1200, 1250)}


@pytest.mark.parametrize("seed", range(5))
def test_rounded_steps_use_the_coded_ladder(seed) -> None:
    learned, mean = learned_example(seed)
    symbols, steps = map(np.asarray, SOFT(learned, mean, True, jax.random.key(0)))
    np.testing.assert_array_equal(symbols, np.rint(symbols))
    for i, (name, part) in enumerate(PARTS.items()):
        index = quantize.nearest_index(float(np.exp(np.float64(learned["log_step"][i]))))
        np.testing.assert_allclose(steps[part], quantize.step_size(index), rtol=3e-6)
        delta = np.float64(learned["net"][name].ravel()) - np.float64(mean[part])
        coded = quantize.uniform({name: delta}, {name: index}).symbols[name]
        # The same integers, but where float32 and float64 fall on two sides of a tie.
        assert np.abs(symbols[part] - coded).max() <= 1
        assert np.sum(symbols[part] != coded) <= 3


def test_noisy_steps_add_at_most_half_a_symbol_and_use_the_learned_step() -> None:
    learned, mean = learned_example()
    noises = []
    for seed in range(2):
        symbols, steps = SOFT(learned, mean, False, jax.random.key(seed))
        for i, part in enumerate(PARTS.values()):
            np.testing.assert_allclose(steps[part], np.exp(learned["log_step"][i]), rtol=1e-6)
        noises.append(np.asarray(symbols - (trees.ravel(learned["net"]) - mean) / steps))
        assert np.abs(noises[-1]).max() <= 0.5 + 1e-3
        assert np.std(noises[-1]) == pytest.approx(12**-0.5, rel=0.1)
    assert np.abs(np.corrcoef(*noises)[0, 1]) < 0.1


def test_rounding_passes_gradients_straight_through() -> None:
    learned, mean = learned_example()

    def total(learned):
        return jnp.sum(overfit._soft_symbols(learned, mean, True, jax.random.key(0))[0])

    gradient = jax.jit(jax.grad(total))(learned)
    for i, (name, part) in enumerate(PARTS.items()):
        step = 2 ** (np.rint(8 * np.log2(np.exp(learned["log_step"][i]))) / 8)
        np.testing.assert_allclose(gradient["net"][name], 1 / step, rtol=1e-5)
        real = (learned["net"][name].ravel() - mean[part]) / step
        # A symbol is delta / step: its derivative by the log of the step is minus itself.
        assert float(gradient["log_step"][i]) == pytest.approx(-real.sum(), rel=1e-4)


def test_some_steps_are_rounded_and_only_the_last() -> None:
    for steps in (1, 2, 10, 19, 40, 100, 2000):
        plan = overfit.RatePlan(NET, optimizers.Muon(0.01), steps, 1, 1)
        assert 0 <= plan.noisy_steps < steps
        assert plan.noisy_steps >= 0.94 * steps - 1


# ---------------------------------------------------------------------------- rate: fits


def rate_plan() -> overfit.RatePlan:
    return overfit.RatePlan(NET, optimizers.Muon(0.01), STEPS, 4, 1)


@cache
def rate_fit(slope: float, envelope_shift: int = 0) -> fit.FitResult:
    init = tiny_init()
    moved = jax.tree.map(lambda e: (e + envelope_shift).astype(np.int8), init.envelope)
    shared = overfit.rate_shared(replace(init, envelope=moved), slope, seed=0)
    return fit.fit_batch(rate_plan(), shared, [points()])[0]


@cache
def coded(slope: float) -> tuple[Any, float]:
    """The params that a file of that fit would hold, and their bits under the learned scales."""
    shared, learned = overfit.rate_shared(tiny_init(), slope, seed=0), rate_fit(slope).params
    mean, scales = (trees.unravel(np.asarray(x), shared.params) for x in shared[2:4])
    params, bits = {}, 0.0
    for i, (path, leaf) in enumerate(trees.leaves(learned["net"])):
        centre = np.float64(dict(trees.leaves(mean))[path])
        grid = {"leaf": quantize.nearest_index(float(np.exp(learned["log_step"][i])))}
        quantized = quantize.uniform({"leaf": leaf - centre}, grid)
        params[path] = np.float32(centre + quantize.dequantize(quantized)["leaf"])
        scale = dict(trees.leaves(scales))[path] / quantize.step_size(grid["leaf"])
        scale = np.maximum(scale * np.exp(learned["log_scale"][i]), entropy.scale(0))
        bits += float(np.sum(entropy.bits(quantized.symbols["leaf"].astype("f4"), scale)))
    return trees.from_leaves(params), bits


def test_a_rate_fit_improves_the_image_as_it_is_coded() -> None:
    result = rate_fit(0.3)
    params, _ = coded(0.3)
    assert bool(result.finite)
    begin = jax.tree.map(np.float32, tiny_init().params)
    assert psnr(NET, params) > psnr(NET, begin) + 4


def test_the_snapshot_is_of_the_rounded_part_and_of_its_loss() -> None:
    result, plan = rate_fit(0.3), rate_plan()
    params, bits = coded(0.3)
    loss = np.log(10 ** (-psnr(NET, params) / 10) + overfit.MSE_FLOOR) + 0.3 * np.log(bits)
    assert loss == pytest.approx(result.losses[plan.noisy_steps :].min(), abs=1e-3)


def test_a_larger_slope_gives_fewer_bits() -> None:
    assert coded(0.0)[1] > 1.05 * coded(0.3)[1]


def test_slope_zero_ignores_the_rate() -> None:
    result = rate_fit(0.0)
    np.testing.assert_array_equal(result.params["log_scale"], 0)
    # Another prior changes the rate, and nothing else.
    other = rate_fit(0.0, envelope_shift=8)
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.all(rate_fit(0.3).params["log_scale"] != 0)


def test_a_rate_fit_starts_at_the_adapted_init() -> None:
    shared = overfit.rate_shared(tiny_init(), 0.3, seed=0)
    datum = jax.tree.map(jnp.asarray, points())
    plan = rate_plan()
    params = shared.params
    gradient = jax.jit(jax.grad(partial(overfit.point_mse, NET)))
    for i in range(2):  # by hand: one tile after the other, at its own rates
        slopes = gradient(params, *(leaf[i] for leaf in datum[:3]))
        params = jax.tree.map(lambda p, r, g, i=i: p - r[i] * g, params, shared.rates, slopes)
    started = jax.jit(plan.start)(shared, datum).params
    moved = trees.ravel(params) - trees.ravel(shared.params)
    assert np.abs(moved).max() > 1e-4
    np.testing.assert_allclose(
        trees.ravel(started["net"]) - trees.ravel(shared.params), moved, rtol=1e-3, atol=1e-6
    )
    np.testing.assert_allclose(np.exp(started["log_step"]), overfit.INITIAL_STEP, rtol=1e-6)
    plain = jax.jit(plan.start)(shared._replace(rates=None), datum).params
    np.testing.assert_array_equal(trees.ravel(plain["net"]), trees.ravel(shared.params))


def test_a_fit_goes_on_from_what_an_earlier_one_learned() -> None:
    learned = rate_fit(0.3).params
    shared = overfit.rate_shared(tiny_init(), 0.3, seed=0)._replace(learned=learned)
    datum = jax.tree.map(jnp.asarray, points())
    started = jax.jit(rate_plan().start)(shared, datum)
    for a, b in zip(jax.tree.leaves(started.params), jax.tree.leaves(learned), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(started.step) == 0


def test_the_grid_has_an_optimiser_of_its_own() -> None:
    optimizer = rate_plan()._optimizer()
    net = jax.tree.map(jnp.asarray, tiny_init().params)
    learned = {"net": net, "log_step": jnp.zeros(6), "log_scale": jnp.zeros(6)}
    state = jax.jit(optimizer.init)(learned)
    updates, _ = jax.jit(optimizer.update)(jax.tree.map(jnp.ones_like, learned), state, learned)
    for name in ("log_step", "log_scale"):
        np.testing.assert_allclose(updates[name], -overfit.GRID_LEARNING_RATE, rtol=1e-4)
    rates = [float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(updates["net"])]
    assert max(rates) < overfit.GRID_LEARNING_RATE


# ---------------------------------------------------------------------------- roundings


def host(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)


def rounded() -> overfit.Rounded:
    """A random net, rounded coarsely."""
    count = NET.num_params
    rng = np.random.default_rng(0)
    steps = np.exp2(rng.uniform(-7, -5, count)).astype(np.float32)
    mean, net = trees.ravel(tiny_init().mean()), trees.ravel(host(INIT(3)))
    symbols = np.rint((net - mean) / steps).astype(np.float32)
    return overfit.Rounded(points(), symbols, steps, np.full(count, 3, np.float32))


def searched(num_steps: int, slope: float) -> fit.FitResult:
    shared = overfit.rate_shared(tiny_init(), slope, seed=0)
    [result] = fit.fit_batch(overfit.RoundingSearch(NET, num_steps), shared, [rounded()])
    return result


def rate_of(symbols: np.ndarray) -> float:
    return float(entropy.bits(symbols, rounded().scales).sum())


def net_of(symbols: np.ndarray) -> Any:
    start, mean = rounded(), tiny_init().mean()
    return trees.unravel(trees.ravel(mean) + symbols * start.steps, mean)


def test_a_search_ends_at_the_integers_of_its_least_loss() -> None:
    start, result = rounded(), searched(24, 0.3)
    assert np.array_equal(result.params, np.rint(result.params))
    assert 0 < np.abs(result.params - start.symbols).max() < 24

    def loss(symbols: np.ndarray) -> float:
        mse = 10 ** (-psnr(NET, net_of(symbols)) / 10)
        return np.log(mse + overfit.MSE_FLOOR) + 0.3 * np.log(rate_of(symbols))

    assert loss(start.symbols) == pytest.approx(result.losses[0], abs=1e-4)
    assert loss(result.params) == pytest.approx(result.losses.min(), abs=1e-4)
    assert result.losses.min() < result.losses[0] - 0.1


def test_what_a_search_lowers_is_what_the_slope_says() -> None:
    start = rounded().symbols
    of_distortion, of_rate = (searched(24, slope).params for slope in (0.0, 30.0))
    assert psnr(NET, net_of(of_distortion)) > psnr(NET, net_of(start)) + 0.3
    assert rate_of(of_rate) < 0.95 * rate_of(start) < rate_of(of_distortion)


def test_a_search_is_the_same_beside_a_larger_image() -> None:
    """23 and 30 tiles, padded to 24 and 32, which sums are grouped by in other ways."""
    images = {0: photograph(36, 40), 1: photograph(48, 40)}
    fitting = overfit.Fitting(
        make_plan=lambda *_: overfit.RoundingSearch(NET, 6),
        optimizer=None,
        points_per_step=64,
        seed=0,
        make_datum=lambda _, points: rounded()._replace(points=points),
        every_tile=True,
    )
    shared = overfit.rate_shared(tiny_init(), 0.3, seed=0)
    together = overfit.fit_once(images, fitting, shared, None)
    for i, image in images.items():
        alone = overfit.fit_once({i: image}, fitting, shared, None)
        np.testing.assert_array_equal(together[i].losses, alone[i].losses)
    padded = overfit.fit_once(images, fitting._replace(every_tile=False), shared, None)
    assert (padded[0].losses != together[0].losses).any()  # so that the law is not idle


def test_the_error_s_curvature_is_the_diagonal_of_the_gauss_newton_matrix() -> None:
    """In the mean over random signs."""
    start = jax.tree.map(jnp.asarray, rounded())
    shared = overfit.rate_shared(tiny_init(), 0.3, seed=0)

    def curvature(key: jax.Array) -> jax.Array:
        return overfit._error_curvature(NET, shared._replace(key=key), start, None)

    keys = jax.random.split(jax.random.key(1), 512)
    found = jax.jit(lambda keys: jnp.mean(jax.lax.map(curvature, keys), axis=0))(keys)

    def errors(symbols: jax.Array) -> jax.Array:  # on [0, 1]; their mean square is the mse
        params = overfit._unravel(shared.mean + symbols * start.steps, shared.params)
        values = (NET.apply(params, coordinates(*IMAGE.shape[:2])) + 1) / 2
        return jnp.ravel(values) - jnp.ravel(to_float(IMAGE))

    jacobian = jax.jit(jax.jacfwd(errors))(start.symbols)
    np.testing.assert_allclose(found, 2 * jnp.mean(jacobian**2, axis=0), rtol=0.3)
    assert float(jnp.mean(found)) == pytest.approx(float(2 * jnp.mean(jacobian**2)), rel=0.03)


# ---------------------------------------------------------------------------- Strümpler

ALL_TILES = 4


def zeros_like(tree: Any) -> Any:
    return jax.tree.map(np.zeros_like, tree)


def origin_of(centre: Any, l1: float = 0.0) -> overfit.Origin:
    return overfit.Origin(host(INIT(3)), None, centre, np.float32(l1), jax.random.key(0))


def sparse_plan(optimizer: optimizers.Optimizer) -> overfit.InitPlan:
    return overfit.InitPlan(NET, optimizer, STEPS, ALL_TILES, 1, overfit.sparse_distortion)


def sparse_fit(centre: Any, l1: float) -> fit.FitResult:
    plan = sparse_plan(optimizers.Adam(0.01))
    [result] = fit.fit_batch(plan, origin_of(centre, l1), [points()])
    return result


def norm(params: Any, centre: Any) -> float:
    return float(np.abs(trees.ravel(params) - trees.ravel(centre)).sum())


def test_the_l1_norm_is_in_the_loss_and_a_larger_one_is_nearer_the_centre() -> None:
    start = host(INIT(3))
    plain, held = sparse_fit(start, 0.0), sparse_fit(start, 0.01)
    begin = 10 ** (-psnr(NET, start) / 10)
    # All tiles in every step: the losses are the image's mse, and it falls.
    assert plain.losses[0] == pytest.approx(begin, rel=1e-4)
    assert -10 * np.log10(plain.losses.min()) == pytest.approx(psnr(NET, plain.params), abs=1e-3)
    assert psnr(NET, held.params) > psnr(NET, start) + 1
    assert norm(held.params, start) < 0.7 * norm(plain.params, start)
    # The paper's weight is for the error on [-1, 1], 4 times ours.
    around_zero = sparse_fit(zeros_like(start), 0.01)
    expected = begin + 0.01 / 4 * norm(start, zeros_like(start))
    assert around_zero.losses[0] == pytest.approx(expected, rel=1e-4)


def test_the_published_schedule_fits_a_batch() -> None:
    halving = optimizers.PlateauAdam(0.01, patience=5, warmup=4)
    plan = sparse_plan(halving)
    start = host(INIT(3))
    results = fit.fit_batch(plan, origin_of(start, 1e-5), [points(), points(255 - IMAGE)])
    for result, image in zip(results, (IMAGE, 255 - IMAGE), strict=True):
        assert psnr(NET, result.params, image) > psnr(NET, start, image) + 3


def test_a_sparse_fit_starts_at_the_adapted_init() -> None:
    shared = overfit.rate_shared(tiny_init(), 0.3, seed=0)
    origin = overfit.Origin(shared.params, shared.rates, shared.params, 0.0, shared.key)
    datum = jax.tree.map(jnp.asarray, points())
    plan = sparse_plan(optimizers.Adam(0.01))
    started = jax.jit(plan.start)(origin, datum).params
    adapted = jax.jit(rate_plan().start)(shared, datum).params["net"]
    np.testing.assert_array_equal(trees.ravel(started), trees.ravel(adapted))
    assert norm(started, shared.params) > 0.01


NUM_BITS = 4


def coarse() -> tuple[overfit.Gridded, Any]:
    """A random net around a centre of its own, on a grid of few bits, and the centre. The biases
    are the centre's: on so coarse a grid, their errors would hide those of the weights."""
    params, other = host(INIT(3)), host(INIT(4))
    centre = {
        name: {"bias": layer["bias"], "weight": 0.3 * other[name]["weight"]}
        for name, layer in params.items()
    }
    delta = jax.tree.map(lambda a, b: (a - b).astype(np.float32), params, centre)
    grid = quantize.choose_grid(delta, NUM_BITS)
    steps = jax.tree.map(lambda index: np.float32(quantize.step_size(index)), grid)
    limits = tuple(map(np.float32, quantize.symbol_range(NUM_BITS)))
    return overfit.Gridded(points(), delta, steps, limits), centre


def on_grid(delta: Any, datum: overfit.Gridded, centre: Any) -> Any:
    """The params that a file of the delta holds."""
    return jax.tree.map(
        lambda c, d, s: c + s * quantize.clipped(d, s, NUM_BITS).astype(np.float32),
        centre, host(delta), datum.steps,
    )  # fmt: skip


def layer_errors(exact: Any, rounded: Any, datum: overfit.Gridded) -> float:
    """The mean over points and neurons of the squared error of each layer, added, by hand."""
    coords = coordinates(*IMAGE.shape[:2])
    angles = (coords[:, None] * NET.encoding.angular()[:, None]).reshape(len(coords), -1)
    h = h_hat = np.concatenate([coords, np.sin(angles), np.cos(angles)], axis=1)
    total = 0.0
    for i, name in enumerate(sorted(exact)):
        outputs = [
            n @ params[name]["weight"].T + params[name]["bias"]
            for n, params in ((h, exact), (h_hat, rounded))
        ]
        h, h_hat = (np.sin(NET.w0 * o) if i < NET.depth else o for o in outputs)
        total += float(np.mean((h - h_hat) ** 2))
    return total


def test_adaround_rounds_better_than_to_the_nearest() -> None:
    datum, centre = coarse()
    # So few points need a larger weight of the penalty than an image's 1e-4.
    plan = overfit.RoundingPlan(NET, optimizers.Adam(0.05), 200, ALL_TILES, penalty=0.1)
    [result] = fit.fit_batch(plan, origin_of(centre), [datum])
    shares = host(overfit.soft_roundings(result.params))
    moved = {
        name: {
            "bias": datum.delta[name]["bias"],
            "weight": layer["weight"]
            * (np.floor(datum.delta[name]["weight"] / layer["weight"]) + shares[name]),
        }
        for name, layer in datum.steps.items()
    }
    exact = jax.tree.map(np.add, centre, datum.delta)
    errors = [
        layer_errors(exact, on_grid(delta, datum, centre), datum) for delta in (datum.delta, moved)
    ]
    assert errors[1] < 0.9 * errors[0]
    # Every weight is between its two neighbours, and most are decided.
    everywhere = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(shares)])
    assert everywhere.min() >= 0 and everywhere.max() <= 1
    assert np.mean(np.abs(everywhere - 0.5) > 0.48) > 0.6
    # Before the first step weights are clipped, but not rounded.
    limits = quantize.symbol_range(NUM_BITS)
    clipped = jax.tree.map(
        lambda c, d, step: c + step * np.clip(d / step, *limits), centre, datum.delta, datum.steps
    )
    num_points = IMAGE.shape[0] * IMAGE.shape[1]
    expected = num_points * layer_errors(exact, clipped, datum)
    assert result.losses[0] == pytest.approx(expected, rel=2e-2, abs=1e-3)


def test_a_layer_learns_its_rounding_from_its_own_output_alone() -> None:
    datum, centre = coarse()
    exact = jax.tree.map(np.add, centre, datum.delta)
    tile = (datum.points.coords[0], datum.points.pixels[0], datum.points.weights[0])
    slopes = jax.jit(jax.grad(lambda rounded: overfit._layer_errors(NET, (exact, rounded), *tile)))
    rounded = on_grid(datum.delta, datum, centre)
    names = sorted(rounded)
    other = {**rounded, names[-1]: jax.tree.map(lambda leaf: 2 * leaf, rounded[names[-1]])}
    found, elsewhere = slopes(rounded), slopes(other)
    for name in names[:-1]:
        for a, b in zip(*(jax.tree.leaves(g[name]) for g in (found, elsewhere)), strict=True):
            np.testing.assert_array_equal(a, b)
            assert np.abs(a).max() > 0
    assert not np.allclose(found[names[-1]]["weight"], elsewhere[names[-1]]["weight"])


def test_retraining_improves_the_net_as_it_is_coded() -> None:
    datum, centre = coarse()
    plan = overfit.RetrainingPlan(NET, optimizers.Adam(3e-3), STEPS, ALL_TILES, window=1)
    [result] = fit.fit_batch(plan, origin_of(centre), [datum])
    before, after = (on_grid(d, datum, centre) for d in (datum.delta, result.params))
    assert psnr(NET, after) > psnr(NET, before) + 1
    # What the steps saw is what the file holds.
    assert -10 * np.log10(result.losses[0]) == pytest.approx(psnr(NET, before), abs=0.02)
    assert -10 * np.log10(result.losses.min()) == pytest.approx(psnr(NET, after), abs=0.02)
