"""The optimisation loop, points in tiles, and batches: one program, the same bits for any batch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT, photograph

from inrjax import fit, optimizers, overfit
from inrjax.init import packaged_init, packaged_widths
from inrjax.nets.siren import Siren

KEY = jax.random.key(0)
QUICK = jax.random.key(0, impl="unsafe_rbg")  # compiles in a fraction of the default's time
CURVATURE = np.array([1.0, 0.5, 0.1], np.float32)
RATE = 0.3


def bowl(params, step, key):
    """1/2 sum(CURVATURE * params^2): gradient descent multiplies params by 1 - RATE * CURVATURE."""
    return 0.5 * jnp.sum(CURVATURE * params * params)


def run(loss_fn, num_steps: int, *, window: int = 1, start=(1.0, -2.0, 3.0), optimizer=None):
    """`fit.fit` under jit, as numpy."""
    chosen = optimizer or optax.sgd(RATE)
    params = jnp.asarray(start, jnp.float32)
    fitted = jax.jit(lambda params: fit.fit(loss_fn, params, chosen, num_steps, QUICK, window))
    return jax.tree.map(np.asarray, fitted(params))


def assert_same_bits(one: Any, other: Any) -> None:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    for a, b in pairs:
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


# ---------------------------------------------------------------------------- one datum


def test_gradient_descent_on_a_quadratic() -> None:
    result = run(bowl, 21)
    factors = (1 - RATE * CURVATURE.astype(np.float64)) ** np.arange(21)[:, None]
    path = factors * [1.0, -2.0, 3.0]
    losses = 0.5 * np.sum(CURVATURE * path**2, axis=1)
    np.testing.assert_allclose(result.losses, losses, rtol=1e-5)
    # The snapshot is the params of the last step's loss, before its update.
    np.testing.assert_allclose(result.params, path[-1], rtol=1e-5)
    assert result.finite


def noisy(params, step, key):
    """A loss whose gradient depends on the step's key."""
    return jnp.sum((params - jax.random.normal(key, params.shape)) ** 2)


def test_chunks_give_the_bits_of_the_whole() -> None:
    optimizer = optax.adam(0.1)
    advance = jax.jit(
        lambda state, steps: fit.advance(noisy, state, optimizer, steps, 4, QUICK, 3),
        static_argnums=1,
    )
    begin = fit.start(jnp.array([1.0, 2.0, 3.0]), optimizer)
    whole, losses = advance(begin, 20)
    assert len(np.unique(losses)) == 20  # every step has its own key
    for chunks in ((1, 1, 1, 17), (5, 5, 5, 5)):
        state, pieces = begin, []
        for steps in chunks:
            state, some = advance(state, steps)
            pieces.append(some)
        assert_same_bits((state, np.concatenate(pieces)), (whole, losses))


def test_the_step_and_its_key_are_what_the_loss_sees() -> None:
    def loss_fn(params, step, key):
        return step + jax.random.uniform(key) + 0 * jnp.sum(params)

    keys = [jax.random.fold_in(QUICK, i) for i in range(6)]
    expected = [i + jax.random.uniform(key) for i, key in enumerate(keys)]
    np.testing.assert_allclose(run(loss_fn, 6).losses, expected, rtol=1e-6)


LOSSES = (5.0, 9.0, 2.0, 3.0, 1.0, 8.0, 3.0, 3.0, 9.0, 0.0)


def counted(params, step, key):
    """LOSSES, whatever the params; its gradient adds 1 to params[0] at every step."""
    return jnp.asarray(LOSSES)[step] + -(params[0] - jax.lax.stop_gradient(params[0])) / RATE


def snapshot_step(window: int, snapshots_from: int = 0, steps: int = 10) -> tuple[int, float]:
    """The step whose params were kept, and the loss they were kept for."""
    optimizer = optax.sgd(RATE)
    state = fit.start(jnp.zeros(1), optimizer)
    state, losses = fit.advance(counted, state, optimizer, steps, window, QUICK, snapshots_from)
    np.testing.assert_array_equal(losses, np.float32(LOSSES[:steps]))
    return round(float(state.best_params[0])), float(state.best_loss)


@pytest.mark.parametrize(
    ("window", "snapshots_from", "steps", "expected"),
    [
        (1, 0, 10, (9, 0.0)),  # the lowest of all
        (1, 0, 9, (4, 1.0)),
        (1, 5, 9, (6, 3.0)),  # the first of equals, and nothing before step 5
        (2, 0, 10, (3, 2.5)),  # means 7, 2.5, 4.5, 3, 4.5: params at the window's last step
        (3, 0, 10, (5, 4.0)),  # means 16/3, 4, 5; the last step belongs to no whole window
        (3, 1, 10, (6, 4.0)),  # windows start at snapshots_from: 14/3, 4, 4
        (5, 5, 10, (9, 4.6)),
    ],
)
def test_the_snapshot_is_that_of_the_lowest_window(window, snapshots_from, steps, expected) -> None:
    step, loss = snapshot_step(window, snapshots_from, steps)
    assert step == expected[0]
    assert loss == pytest.approx(expected[1], rel=1e-6)


def falls_off(params, step, key):
    """Fine for three steps, then not finite for good."""
    return jnp.where(step < 3, 1.0, jnp.nan) * jnp.sum(params**2)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_divergence_is_a_value(bad) -> None:
    def loss_fn(params, step, key):
        return jnp.where(step == 3, bad, 1.0) * jnp.sum(params**2)

    result = run(loss_fn, 8)
    good = run(lambda params, step, key: jnp.sum(params**2), 3)
    assert good.finite and not result.finite
    np.testing.assert_array_equal(result.params, good.params)  # the last good snapshot
    np.testing.assert_array_equal(result.losses[:3], good.losses)
    assert not np.isfinite(result.losses[3])


def test_after_divergence_nothing_is_updated() -> None:
    optimizer = optax.adam(0.1)
    state = fit.start(jnp.array([1.0, 2.0]), optimizer)
    advance = jax.jit(
        lambda s, n: fit.advance(falls_off, s, optimizer, n, 1, QUICK), static_argnums=1
    )
    before, _ = advance(state, 3)
    after, _ = advance(before, 5)
    assert bool(before.finite) and not bool(after.finite)
    assert_same_bits((after.params, after.opt_state), (before.params, before.opt_state))
    assert int(after.step) == 8


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adamw(0.1),
        optax.chain(optax.clip_by_global_norm(1.0), optax.rmsprop(0.05)),
        optax.lion(0.05),
        optax.contrib.muon(0.05),
    ],
    ids=["adamw", "rmsprop", "lion", "muon"],
)
def test_any_optimiser_goes_downhill(optimizer) -> None:
    result = run(bowl, 60, optimizer=optimizer)
    assert result.finite
    assert result.losses.min() < 0.5 * result.losses[0]
    assert bowl(result.params, 0, KEY) == pytest.approx(result.losses.min(), rel=1e-5)


def test_vmap_of_fits_is_a_loop() -> None:
    def fitted(params):
        return fit.fit(bowl, params, optax.sgd(RATE), 9, QUICK)

    many = jnp.array([[1.0, 2.0, 3.0], [-1.0, 0.5, 7.0]])
    together = jax.jit(jax.vmap(fitted))(many)
    for i in range(2):
        alone = run(bowl, 9, start=many[i])
        np.testing.assert_allclose(together.params[i], alone.params, rtol=1e-6)
        np.testing.assert_allclose(together.losses[i], alone.losses, rtol=1e-6)


# ---------------------------------------------------------------------------- points and tiles


def list_of(count: int, in_dim: int = 2, out_dim: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    coords = rng.uniform(-1, 1, (count, in_dim)).astype(np.float32)
    return coords, rng.uniform(-1, 1, (count, out_dim)).astype(np.float32)


@pytest.mark.parametrize(("count", "tiles"), [(1, 1), (64, 1), (65, 2), (150, 3), (150, 8)])
def test_make_points_is_a_permutation_with_padding(count, tiles) -> None:
    coords, pixels = list_of(count, in_dim=1)
    points = fit.make_points(coords, pixels, 64, tiles, seed=5)
    assert points.coords.shape == (tiles, 1, 64)
    assert points.pixels.shape == (tiles, 3, 64)
    assert points.weights.shape == (tiles, 64)
    assert points.num_tiles == -(-count // 64)
    rows = np.concatenate([points.coords, points.pixels], axis=1).transpose(0, 2, 1).reshape(-1, 4)
    real = points.weights.ravel() == 1
    np.testing.assert_array_equal(real, np.arange(tiles * 64) < count)
    assert not rows[~real].any() and not points.weights.ravel()[~real].any()
    original = np.concatenate([coords, pixels], axis=1)
    np.testing.assert_array_equal(
        rows[real][np.lexsort(rows[real].T)], original[np.lexsort(original.T)]
    )


def test_make_points_shuffles_by_its_seed_and_not_by_its_padding() -> None:
    coords, pixels = list_of(150)
    points = fit.make_points(coords, pixels, 64, 3, seed=5)
    longer = fit.make_points(coords, pixels, 64, 8, seed=5)
    other = fit.make_points(coords, pixels, 64, 3, seed=6)
    assert not np.array_equal(points.coords[0].T, coords[:64])
    assert not np.array_equal(points.coords[0], other.coords[0])
    np.testing.assert_array_equal(points.coords, longer.coords[:3])
    np.testing.assert_array_equal(points.pixels, longer.pixels[:3])
    assert points.num_tiles == longer.num_tiles


@pytest.mark.parametrize("count", [0, 129])
def test_make_points_refuses_what_does_not_fit(count) -> None:
    with pytest.raises(ValueError, match="expected 1 to 128"):
        fit.make_points(*list_of(count), 64, 2, seed=0)


@pytest.mark.parametrize("points_per_step", [1, 100, 4096, 12_288, 10**9])
def test_tiling(points_per_step) -> None:
    for count in [1, 63, 64, 65, 480, 5000, 393_216, 10**7]:
        tile, tiles_per_step = fit.tiling(count, points_per_step)
        seen = min(count, points_per_step)
        assert 64 <= tile <= fit.MAX_TILE and tile & (tile - 1) == 0
        assert tile < 2 * max(seen, 33)  # no larger than needed
        assert seen <= tile * tiles_per_step < seen + tile
        assert tiles_per_step <= -(-count // tile)  # a step can draw that many


def test_bucket_bounds() -> None:
    counts = range(1, 5000)
    buckets = [fit.bucket(count) for count in counts]
    assert buckets == sorted(buckets)
    assert all(0 <= (b - n) / b < 1 / 3 for n, b in zip(counts, buckets, strict=True))
    assert all(fit.bucket(b) == b for b in buckets)
    assert sorted(set(buckets))[:10] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]


def epochs(points: fit.Points, tiles_per_step: int, steps: int, seed: int = 0) -> np.ndarray:
    """The tiles of the first steps, (steps, tiles_per_step)."""
    key = jax.random.key(seed)
    draw = jax.jit(
        jax.vmap(lambda points, step: fit.draw_tiles(points, tiles_per_step, step, key), (None, 0))
    )
    return np.asarray(draw(points, jnp.arange(steps)))


@pytest.mark.parametrize(("count", "tiles_per_step"), [(64 * 6 - 5, 2), (64 * 7, 3)])
def test_tiles_are_drawn_without_replacement_whatever_the_padding(count, tiles_per_step) -> None:
    data = list_of(count)
    tiles = -(-count // 64)
    steps = tiles // tiles_per_step
    drawn = epochs(fit.make_points(*data, 64, tiles, 0), tiles_per_step, 6 * steps)
    assert drawn.min() >= 0 and drawn.max() < tiles
    orders = drawn.reshape(6, -1)
    for order in orders:
        assert len(set(order)) == steps * tiles_per_step
    assert len({tuple(order) for order in orders}) > 1  # a fresh permutation each epoch
    assert set(orders.ravel()) == set(range(tiles))
    padded = epochs(fit.make_points(*data, 64, tiles + 9, 0), tiles_per_step, 6 * steps)
    np.testing.assert_array_equal(padded, drawn)
    assert not np.array_equal(
        epochs(fit.make_points(*data, 64, tiles, 0), tiles_per_step, 6 * steps, 1), drawn
    )


def predict(params, coords):
    """A small nonlinear model, columns of points."""
    return jnp.tanh(params["a"] @ coords + params["b"][:, None])


@pytest.mark.parametrize("weighting", ["padding", "unequal"])
def test_tiled_mse_is_the_weighted_mean_and_so_is_its_gradient(weighting) -> None:
    coords, pixels = list_of(150)
    points = fit.make_points(coords, pixels, 64, 4, seed=0)
    rng = np.random.default_rng(1)
    if weighting == "unequal":
        points = points._replace(weights=points.weights * rng.uniform(0.1, 3, (4, 64)).astype("f4"))
    params = {"a": rng.normal(size=(3, 2)).astype("f4"), "b": rng.normal(size=3).astype("f4")}
    points = jax.tree.map(jnp.asarray, points)

    def plain(params, tiles):
        error = [
            jnp.mean((predict(params, points.coords[t]) - points.pixels[t]) ** 2, 0) for t in tiles
        ]
        weights = points.weights[np.array(tiles)]
        return jnp.sum(weights * jnp.stack(error)) / jnp.sum(weights)

    for tiles in ([2], [0, 2, 1], [2, 3]):  # tile 2 is partly padding, tile 3 wholly
        index = jnp.array(tiles)
        tiled = jax.jit(
            jax.value_and_grad(
                lambda p, i: 3 * fit.tiled_mse(fit.squared_error(predict), p, points, i)
            )
        )
        value, gradient = tiled(params, index)
        expected, slope = jax.jit(jax.value_and_grad(lambda p, t=tiles: 3 * plain(p, t)))(params)
        assert float(value) == pytest.approx(float(expected), rel=1e-5)
        for name in params:
            np.testing.assert_allclose(gradient[name], slope[name], rtol=1e-4, atol=1e-6)
        assert float(
            3 * fit.tiled_mse(fit.squared_error(predict), params, points, index)
        ) == pytest.approx(float(value))


def test_tiled_mse_of_all_tiles_is_the_mean_over_the_list() -> None:
    coords, pixels = list_of(150)
    points = jax.tree.map(jnp.asarray, fit.make_points(coords, pixels, 64, 6, seed=0))
    params = {"a": np.eye(3, 2, dtype="f4"), "b": np.zeros(3, "f4")}
    whole = np.mean((np.tanh(coords @ params["a"].T) - pixels) ** 2)
    value = fit.tiled_mse(fit.squared_error(predict), params, points, jnp.arange(6))
    assert float(value) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("width", [1, 24, 32, 49, 128, 4096, 40000])
def test_a_piece_is_a_power_of_two_that_fits_the_cache(width: int) -> None:
    piece = fit.piece_of(width)
    assert piece is not None  # tests run on a CPU
    assert piece & (piece - 1) == 0
    assert piece * width <= fit.CACHED_ACTIVATIONS < 2 * piece * width or piece == 64


def test_a_tile_is_worked_on_in_pieces() -> None:
    coords, pixels = list_of(500)
    points = jax.tree.map(jnp.asarray, fit.make_points(coords, pixels, 256, 2, seed=0))
    params = {"a": np.eye(3, 2, dtype="f4"), "b": np.zeros(3, "f4")}

    def of_pieces(size: int):
        sizes = []

        def tile_loss(params, coords, pixels, weights):
            sizes.append(coords.shape)
            return fit.squared_error(predict)(params, coords, pixels, weights)

        value = jax.value_and_grad(
            lambda p: fit.tiled_mse(tile_loss, p, points, jnp.array([1, 0]), size)
        )(params)
        assert set(sizes) == {(2, size)}
        return value

    for whole, pieces in zip(
        jax.tree.leaves(of_pieces(256)), jax.tree.leaves(of_pieces(64)), strict=True
    ):
        np.testing.assert_allclose(whole, pieces, rtol=1e-5)


# ---------------------------------------------------------------------------- batches


@optimizers.traced("num_steps")
@dataclass(frozen=True)
class Bowl:
    """A plan: gradient descent on |params - datum|^2, with a datum that may be NaN."""

    num_steps: int = 7

    def start(self, shared, datum) -> fit.FitState:
        return fit.start(shared, optax.sgd(0.1))

    def advance(self, shared, datum, state, num_steps, axis):
        def loss_fn(params, step, key):
            return jnp.sum((params - datum) ** 2)

        return fit.advance(loss_fn, state, optax.sgd(0.1), num_steps, 1, QUICK)


ORIGIN = np.zeros(2, np.float32)


def targets(count: int) -> list[np.ndarray]:
    return [np.array([i + 1, -i], np.float32) for i in range(count)]


def test_a_batch_keeps_its_order_and_gives_host_arrays() -> None:
    results = fit.fit_batch(Bowl(), ORIGIN, targets(5))
    for target, result in zip(targets(5), results, strict=True):
        np.testing.assert_allclose(result.params, target * (1 - 0.8**6), rtol=1e-5)
        assert result.losses.shape == (7,)
        assert not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(result))
        assert bool(result.finite)


def test_no_data_no_results() -> None:
    assert fit.fit_batch(Bowl(), ORIGIN, []) == []


def test_a_diverged_datum_does_not_touch_the_others() -> None:
    good = fit.fit_batch(Bowl(), ORIGIN, targets(4))
    data = targets(4)
    data[1] = np.array([np.nan, 0], np.float32)
    results = fit.fit_batch(Bowl(), ORIGIN, data)
    assert [bool(result.finite) for result in results] == [True, False, True, True]
    np.testing.assert_array_equal(results[1].params, ORIGIN)  # where it started
    for i in (0, 2, 3):
        assert_same_bits(results[i], good[i])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("num_steps", [7, 100, 101, 230])
def test_progress_rises_to_a_fixed_total(count, num_steps) -> None:
    calls: list[tuple[int, int]] = []
    fit.fit_batch(Bowl(num_steps), ORIGIN, targets(count), lambda *call: calls.append(call))
    assert {total for _, total in calls} == {count * num_steps}
    done = [done for done, _ in calls]
    assert done == sorted(set(done)) and done[0] > 0
    assert done[-1] == count * num_steps
    assert max(np.diff([0, *done])) <= fit.CHUNK_STEPS * len(jax.devices())


@pytest.mark.parametrize("num_steps", [1, 99, 100, 101, 250, 997, 1000, 2000, 2400])
def test_chunks_cover_the_steps_in_at_most_two_sizes(num_steps) -> None:
    chunks = fit._chunks(num_steps)
    assert [done for done, _ in chunks] == [0, *np.cumsum([steps for _, steps in chunks])[:-1]]
    assert sum(steps for _, steps in chunks) == num_steps
    sizes = [steps for _, steps in chunks]
    assert max(sizes) <= fit.CHUNK_STEPS
    assert len(set(sizes[:-1])) <= 1 and sizes[-1] <= sizes[0]


def test_a_plan_whose_optimiser_is_no_pytree_is_told_what_to_do() -> None:
    @dataclass(frozen=True)
    class Plain:
        learning_rate: float

        def build(self, num_steps: int) -> optax.GradientTransformation:
            return optax.sgd(self.learning_rate)

    plan = overfit.PlainPlan(NET, Plain(0.1), 16, 2, 4)
    with pytest.raises(TypeError, match=r"a Plain where .* under inrjax\.optimizers\.traced"):
        fit.fit_batch(plan, KEY, image_data(1))


def test_progress_may_raise_to_stop() -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        fit.fit_batch(Bowl(), ORIGIN, targets(3), stop)
    assert len(fit.fit_batch(Bowl(), ORIGIN, targets(3))) == 3  # and nothing is broken by it


def test_different_shapes_are_refused() -> None:
    data = [np.zeros(2, np.float32), np.zeros(3, np.float32)]
    with pytest.raises(ValueError, match="bucket"):
        fit.fit_batch(Bowl(), ORIGIN, data)


# ---------------------------------------------------------------------------- batches of images

SHAPES = ((24, 20), (20, 24), (21, 23), (1, 450))
NET = Siren(8, 2)
PLAN = overfit.PlainPlan(NET, optimizers.Muon(5e-3), num_steps=16, tiles_per_step=2, window=4)


def image_data(count: int = 4) -> list[fit.Points]:
    """Pixels of images of different shapes, padded to one bucket."""
    tiling = fit.tiling(450, 128)
    assert {fit.tiling(h * w, 128) for h, w in SHAPES} == {tiling}  # none knows of the others
    tiles = fit.bucket(max(-(-h * w // tiling.tile) for h, w in SHAPES))
    images = [photograph(*SHAPES[i % 4], seed=i) for i in range(count)]
    return [overfit.image_points(image, tiling, tiles, 0) for image in images]


def compilations(action) -> list[str]:
    """The names of the functions that XLA compiles during ``action``, one for each compilation.

    jax reports each under this event; a cache hit reports none.
    """
    names: list[str] = []

    def listen(event: str, seconds: float, **details: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(details["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        action()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return names


def test_four_image_shapes_one_compilation_for_a_width() -> None:
    data = image_data()
    width = Siren(9, 2)  # one that no other test has compiled
    plan = overfit.PlainPlan(width, PLAN.optimizer, 16, 2, 4)

    def fit_all() -> None:
        for datum in data:
            fit.fit_batch(plan, KEY, [datum])
        fit.fit_batch(plan, KEY, data)

    advance = fit._programs("cpu")[1]
    before = advance._cache_size()
    names = compilations(fit_all)
    # One for a datum whose points the devices share, one for batches of any size.
    assert names.count("jit(_advance_group)") == 2
    assert names.count("jit(_start_group)") == 2
    assert advance._cache_size() == before + 2
    assert compilations(fit_all) == []


@pytest.mark.parametrize(
    "optimizer",
    [optimizers.Muon(1e-3), optimizers.Adam(1e-3), optimizers.PlateauAdam(1e-3)],
    ids=lambda choice: type(choice).__name__,
)
def test_fits_of_any_lengths_and_rates_share_a_program(optimizer: Any) -> None:
    data = image_data(2)
    plan = overfit.PlainPlan(Siren(7, 1), optimizer, 16, 2, 4)
    once = fit.fit_batch(plan, KEY, data)
    lower = replace(optimizer, learning_rate=optimizer.learning_rate / 4)
    others = [replace(plan, num_steps=5, window=1), replace(plan, num_steps=230, optimizer=lower)]
    results: list[Any] = []
    compiled = compilations(
        lambda: results.extend(fit.fit_batch(other, KEY, data) for other in others)
    )
    assert compiled == []
    assert [len(result[0].losses) for result in results] == [5, 230]
    assert results[1][0].losses[0] == once[0].losses[0]  # the same start
    assert results[1][0].losses[8] != once[0].losses[8]  # at another rate


def test_a_traced_number_of_steps_gives_the_bits_of_a_static_one() -> None:
    optimizer = optax.adam(0.1)

    def advance(state, steps):
        return fit.advance(noisy, state, optimizer, steps, 4, QUICK, 3)

    begin = fit.start(jnp.array([1.0, 2.0, 3.0]), optimizer)
    traced = jax.jit(advance)
    for steps in (1, 20, fit.CHUNK_STEPS):
        state, losses = traced(begin, steps)
        assert losses.shape == (fit.CHUNK_STEPS,) and not losses[steps:].any()
        whole = jax.jit(advance, static_argnums=1)(begin, steps)
        assert_same_bits((state, losses[:steps]), whole)


def test_a_batch_gives_the_bits_of_singles() -> None:
    data = image_data()
    batch = fit.fit_batch(PLAN, KEY, data)
    for datum, result in zip(data, batch, strict=True):
        assert_same_bits(fit.fit_batch(PLAN, KEY, [datum])[0], result)
    assert_same_bits(fit.fit_batch(PLAN, KEY, data[1:]), batch[1:])  # another device for each
    assert len({float(result.losses[-1]) for result in batch}) == 4


def captured(monkeypatch: pytest.MonkeyPatch, count: int) -> tuple[str, Any]:
    """The compiled text of a fit of ``count`` data, and its state after the last chunk."""
    (start, inner), seen = fit._programs("cpu"), {}

    def spy(*args):
        seen["text"] = inner.lower(*args).compile().as_text()
        seen["state"], losses = inner(*args)
        seen["final"] = jax.tree.map(np.asarray, seen["state"])
        return seen["state"], losses

    spy.lower = inner.lower
    monkeypatch.setattr(fit, "_programs", lambda platform: (start, spy))
    fit.fit_batch(PLAN, KEY, image_data(count))
    return seen["text"], seen["final"]


COLLECTIVE = re.compile(
    r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast)"
)


def test_a_batch_on_two_devices_holds_no_collective_and_muon_holds_every_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert len(jax.devices()) >= 2
    text, state = captured(monkeypatch, 4)
    assert "num_partitions=" in text  # it is the sharded program
    assert not COLLECTIVE.search(text)

    # A batch's leaves have the axis of data first; inside the fit there is none, or no weight
    # would be 2-D and optax would give them all to Adam.
    held: dict[str, set[str]] = {"muon": set(), "adam": set()}
    for name, _ in named(state.opt_state):
        if ".mu[" in name:
            which = name.split("'")[1]  # .inner_states['muon']....mu['layer_00']['weight']
            held[which].add(name.split(".mu")[1])
    params = dict(named(state.params))
    assert held["muon"] == {name for name, leaf in params.items() if leaf.ndim == 1 + 2}
    assert held["adam"] == {name for name, leaf in params.items() if leaf.ndim == 1 + 1}
    assert len(held["muon"]) == len(held["adam"]) == NET.depth + 1


def named(tree: Any) -> list[tuple[str, Any]]:
    """(path, leaf) of every leaf, the path as jax writes it."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def test_a_datum_alone_is_shared_by_the_devices_which_wait_once_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text, _ = captured(monkeypatch, 1)
    assert set(COLLECTIVE.findall(text)) == {"all-gather"}
    assert text.count("all-gather(") == 1  # of all tensors, in the loop over steps


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("pieces", [1, 2, 6, 8, pytest.param(32, marks=pytest.mark.slow)])
def test_shared_points_give_the_bits_of_one_device(pieces: int, devices: int) -> None:
    """On devices of one mesh axis, each of which works on its share of the pieces: `vmap` with
    an axis name stands for them."""
    coords, pixels = list_of(64 * pieces)
    points = jax.tree.map(jnp.asarray, fit.make_points(coords, pixels, 64, pieces, seed=0))
    rng = np.random.default_rng(1)
    params = {"a": rng.normal(size=(3, 2)).astype("f4"), "b": rng.normal(size=3).astype("f4")}

    def value(params, axis):
        tile_loss = fit.squared_error(predict)
        return fit.tiled_mse(tile_loss, params, points, jnp.arange(pieces), None, axis)

    alone = jax.jit(jax.value_and_grad(lambda p: value(p, None)))(params)
    shared = jax.jit(
        jax.vmap(
            jax.value_and_grad(lambda p: value(p, "points")), axis_name="points", out_axes=0,
            in_axes=None, axis_size=devices,
        )
    )(params)  # fmt: skip
    for device in range(devices):
        for here, there in zip(jax.tree.leaves(alone), jax.tree.leaves(shared), strict=True):
            np.testing.assert_allclose(here, there[device], rtol=2e-6, atol=1e-8)


def test_the_check_for_collectives_finds_one() -> None:
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    summed = jax.shard_map(
        lambda x: jax.lax.psum(x, "data"), mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P()
    )
    assert COLLECTIVE.search(jax.jit(summed).lower(jnp.ones(2)).compile().as_text())


def every_bit(plans: str) -> list[np.ndarray]:
    """Results of COIN's or MetaSiren's plan, for data in a batch and for one alone, ravelled."""
    plan, shared = {"coin": (PLAN, KEY), "meta-siren": rate_plan()}[plans]
    data = image_data()
    results = fit.fit_batch(plan, shared, data), fit.fit_batch(plan, shared, data[:1])
    return [np.ravel(leaf) for leaf in jax.tree.leaves(results)]


def rate_plan() -> tuple[overfit.RatePlan, overfit.RateShared]:
    init = packaged_init(packaged_widths()[0])
    plan = overfit.RatePlan(init.net, PLAN.optimizer, 40, PLAN.tiles_per_step, 4)
    return plan, overfit.rate_shared(init, 0.3, 0)


def fit_on_devices(plans: str, count: int, out: Path) -> None:
    """Run in a process of its own: the bits of fits on that many devices."""
    program = f"""
import jax, numpy as np
import conftest
jax.config.update("jax_num_cpu_devices", {count})
import test_fit
np.savez({str(out)!r}, *test_fit.every_bit({plans!r}))
assert len(jax.devices()) == {count}
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, cwd=ROOT)


@pytest.mark.parametrize("plans", ["coin", pytest.param("meta-siren", marks=pytest.mark.slow)])
def test_eight_devices_give_the_bits_of_two(plans: str, tmp_path: Path) -> None:
    fit_on_devices(plans, 8, tmp_path / "8.npz")
    here = every_bit(plans)
    with np.load(tmp_path / "8.npz") as there:
        assert len(there.files) == len(here)
        for i, leaf in enumerate(here):
            np.testing.assert_array_equal(leaf, there[f"arr_{i}"])


def test_options_that_xla_lacks_are_left_out() -> None:
    known = {"xla_backend_optimization_level": 2}
    assert fit.known_options("cpu", known) == known
    assert fit.known_options("cpu", {**known, "xla_cpu_no_such_option": True}) == {}
    assert fit.known_options("cuda", known) == {}
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        assert fit.known_options("cpu", known) == {}
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
