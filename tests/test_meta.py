"""MAML and Reptile on quadratics, where adaptation and meta-gradients have a closed form."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from inrjax import meta, overfit, trees
from inrjax.nets.siren import Siren

RNG = np.random.default_rng(0)
DIM = 4
_ROOT = RNG.normal(size=(DIM, DIM)) / 2
HESSIAN = _ROOT @ _ROOT.T + np.eye(DIM)
START = RNG.normal(size=DIM)
KEY = jax.random.key(0, impl="unsafe_rbg")  # compiles in a fraction of the default's time


def quadratic(params, centre):
    """1/2 (params - centre)' HESSIAN (params - centre); its gradient: HESSIAN (params - centre)."""
    error = params - centre
    return 0.5 * error @ (jnp.asarray(HESSIAN, error.dtype) @ error)


def closed_form(rates: np.ndarray, centres: np.ndarray, outer: np.ndarray, first_order: bool):
    """(adapted params, meta-gradient for the params, for the rates) of the quadratic.

    p_{t+1} = p_t - rates_t * H (p_t - c_t), so dp_{t+1}/dp_t = I - diag(rates_t) H, which
    first-order MAML takes to be I; and dp_{t+1}/drates_t = -diag(H (p_t - c_t)).
    """
    params, gradients = START, []
    for rate, centre in zip(rates, centres, strict=True):
        gradients.append(HESSIAN @ (params - centre))
        params = params - rate * gradients[-1]
    adjoint, by_rate = HESSIAN @ (params - outer), []
    for rate, gradient in zip(rates[::-1], gradients[::-1], strict=True):
        by_rate.append(-gradient * adjoint)
        if not first_order:
            adjoint = (np.eye(DIM) - np.diag(rate) @ HESSIAN).T @ adjoint
    return params, adjoint, np.stack(by_rate[::-1])


def example(inner_steps: int):
    rates = RNG.uniform(0.05, 0.3, (inner_steps, DIM))
    return rates, RNG.normal(size=(inner_steps, DIM)), RNG.normal(size=DIM)


def meta_gradient(rates, centres, outer, first_order: bool):
    with jax.enable_x64(True):
        state = meta.MetaParams(jnp.asarray(START), jnp.asarray(rates))
        task = meta.Task(jnp.asarray(centres), jnp.asarray(outer))
        loss = jax.jit(lambda state: meta.meta_loss(quadratic, state, task, first_order))
        return float(loss(state)), jax.tree.map(np.asarray, jax.grad(loss)(state))


@pytest.mark.parametrize("first_order", [False, True], ids=["second-order", "first-order"])
@pytest.mark.parametrize("inner_steps", [1, 3])
def test_maml_on_a_quadratic_is_its_closed_form(inner_steps, first_order) -> None:
    rates, centres, outer = example(inner_steps)
    adapted, by_params, by_rate = closed_form(rates, centres, outer, first_order)
    loss, gradient = meta_gradient(rates, centres, outer, first_order)
    error = adapted - outer
    assert loss == pytest.approx(0.5 * error @ HESSIAN @ error, rel=1e-12)
    np.testing.assert_allclose(gradient.params, by_params, rtol=1e-10)
    np.testing.assert_allclose(gradient.rates, by_rate, rtol=1e-10)


def test_first_order_differs_by_exactly_the_hessian_term() -> None:
    rates, centres, outer = example(1)
    loss, second = meta_gradient(rates, centres, outer, False)
    same, first = meta_gradient(rates, centres, outer, True)
    assert loss == same
    hessian_term = -HESSIAN @ (rates[0] * first.params)
    np.testing.assert_allclose(second.params - first.params, hessian_term, rtol=1e-9)
    assert np.abs(hessian_term).max() > 0.1 * np.abs(first.params).max()
    np.testing.assert_allclose(second.rates, first.rates)  # one step: no Hessian in between


NET = Siren(4, 2)


def siren_task(inner_steps: int) -> meta.Task:
    rng = np.random.default_rng(1)
    coords = rng.uniform(-1, 1, (inner_steps + 1, 2, 40)).astype("f4")
    pixels = np.stack([coords[:, 0], coords[:, 1] ** 2, 0 * coords[:, 0]], axis=1)
    return meta.Task((coords[:-1], pixels[:-1]), (coords[-1], pixels[-1]))


def siren_loss(params, data):
    coords, pixels = data
    return overfit.point_mse(NET, params, coords, pixels, jnp.ones(coords.shape[1]))


def test_meta_gradient_of_a_net_against_finite_differences() -> None:
    rng = np.random.default_rng(2)
    params = NET.init(jax.random.key(0, impl="unsafe_rbg"))
    with jax.enable_x64(True):
        state = meta.init_meta(jax.tree.map(np.float64, params), 2, 0.02)
        state, task = jax.tree.map(np.float64, (state, siren_task(2)))
        loss = jax.jit(lambda state: meta.meta_loss(siren_loss, state, task, False))
        gradient = jax.jit(jax.grad(loss))(state)
        for part in ("params", "rates"):
            direction = jax.tree.map(
                lambda leaf: rng.standard_normal(leaf.shape), getattr(state, part)
            )
            step, ends = 1e-5, []
            for signed in (step, -step):
                moved = jax.tree.map(
                    lambda p, d, s=signed: p + s * d, getattr(state, part), direction
                )
                ends.append(float(loss(state._replace(**{part: moved}))))
            along = float(trees.ravel(getattr(gradient, part)) @ trees.ravel(direction))
            assert along == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=2e-3)


def test_init_meta() -> None:
    params = {"a": jnp.arange(3.0), "b": jnp.ones((2, 4))}
    state = meta.init_meta(params, 5, 0.25)
    assert state.params is params
    assert jax.tree.map(jnp.shape, state.rates) == {"a": (5, 3), "b": (5, 2, 4)}
    assert all(np.all(np.asarray(leaf) == 0.25) for leaf in jax.tree.leaves(state.rates))
    with pytest.raises(ValueError, match="inner_steps=0"):
        meta.init_meta(params, 0, 0.25)


# ---------------------------------------------------------------------------- other rates, Reptile


def rates_of(state: meta.MetaParams, inner_steps: int) -> np.ndarray:
    return np.asarray(meta.spread_rates(state, inner_steps))


@pytest.mark.parametrize("start", [meta.init_meta_sgd, meta.init_meta_scalar])
def test_fewer_rates_adapt_as_the_same_rates_for_every_step(start) -> None:
    with jax.enable_x64(True):
        full = meta.init_meta(jnp.asarray(START), 3, 0.2)
        few = start(jnp.asarray(START), 0.2)
        assert few.rates.size < full.rates.size
        np.testing.assert_array_equal(rates_of(few, 3), rates_of(full, 3))
        inner = jnp.asarray(RNG.normal(size=(3, DIM)))
        adapted = [meta.adapt(quadratic, one, inner, False) for one in (few, full)]
        np.testing.assert_array_equal(*adapted)


def test_the_gradient_of_a_shared_rate_is_the_sum_over_its_steps() -> None:
    _, centres, outer = example(3)
    with jax.enable_x64(True):
        task = meta.Task(jnp.asarray(centres), jnp.asarray(outer))
        gradient = meta.maml(quadratic, first_order=False)
        kinds = (
            meta.init_meta(jnp.asarray(START), 3, 0.2),
            meta.init_meta_sgd(jnp.asarray(START), 0.2),
            meta.init_meta_scalar(jnp.asarray(START), 0.2),
        )
        found = jax.tree.map(np.asarray, [gradient(kind, task) for kind in kinds])
    (loss, full), (same, shared), (_, scalar) = found
    assert loss == same
    np.testing.assert_allclose(shared.params, full.params, rtol=1e-12)
    np.testing.assert_allclose(shared.rates, full.rates.sum(0, keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(scalar.rates, full.rates.sum(), rtol=1e-12)


def test_fixed_rates_stay_and_params_learn_as_before() -> None:
    gradient = meta.maml(quadratic, first_order=False)
    state = meta.init_meta_scalar(jnp.asarray(START, jnp.float32), 0.1)
    task = meta.Task(jnp.ones((2, DIM)), jnp.zeros(DIM))
    (loss, learned), (same, fixed) = gradient(state, task), meta.fixed_rates(gradient)(state, task)
    assert loss == same and learned.rates != 0 and fixed.rates == 0
    np.testing.assert_array_equal(learned.params, fixed.params)
    begin = meta.start(meta.init_meta_scalar(jnp.zeros(DIM), 0.05), OPTIMIZER)
    moved, _ = meta.advance_by(
        meta.fixed_rates(gradient), partial(sample, NEVER), begin, OPTIMIZER, 3, KEY
    )
    assert float(moved.meta.rates) == np.float32(0.05)
    assert not np.array_equal(moved.meta.params, begin.meta.params)


@pytest.mark.parametrize("inner_steps", [1, 4])
def test_reptile_on_a_quadratic_is_its_closed_form(inner_steps) -> None:
    """With plain descent at a rate r: adapted - c = (I - r H)^k (params - c)."""
    rate, centre = 0.1, RNG.normal(size=DIM)
    contraction = np.linalg.matrix_power(np.eye(DIM) - rate * HESSIAN, inner_steps)
    adapted = centre + contraction @ (START - centre)
    with jax.enable_x64(True):
        task = meta.Task(jnp.tile(jnp.asarray(centre), (inner_steps, 1)), jnp.asarray(centre))
        state = meta.MetaParams(jnp.asarray(START), {})
        loss, gradient = meta.reptile(quadratic, optax.sgd(rate))(state, task)
    error = adapted - centre
    assert float(loss) == pytest.approx(0.5 * error @ HESSIAN @ error, rel=1e-10)
    np.testing.assert_allclose(gradient.params, START - adapted, rtol=1e-10)
    assert gradient.rates == {}
    if inner_steps == 1:  # one step of Reptile is a step on the mean loss
        np.testing.assert_allclose(gradient.params, rate * HESSIAN @ (START - centre), rtol=1e-10)


def test_an_outer_step_of_reptile_goes_epsilon_of_the_way_to_the_mean_of_the_adapted() -> None:
    epsilon, inner = 0.25, optax.adam(0.1)
    outer = optax.sgd(epsilon)
    begin = meta.start(meta.MetaParams(jnp.asarray(START, jnp.float32), {}), outer)
    gradient = meta.reptile(quadratic, inner)
    moved, _ = meta.advance_by(gradient, partial(sample, NEVER), begin, outer, 1, KEY)
    tasks = sample(NEVER, jax.random.fold_in(KEY, 0))
    adapted = []
    for centres in tasks.inner:
        params, opt_state = begin.meta.params, inner.init(begin.meta.params)
        for centre in centres:
            grads = jax.grad(quadratic)(params, centre)
            updates, opt_state = inner.update(grads, opt_state, params)
            params = params + updates
        adapted.append(params)
    expected = START + epsilon * (np.mean(adapted, axis=0) - START)
    np.testing.assert_allclose(moved.meta.params, expected, rtol=1e-5)


# ---------------------------------------------------------------------------- the outer loop

OPTIMIZER = optax.adam(0.05)


NEVER = 10**6


def sample(bad_step, key: jax.Array) -> meta.Task:
    """Three tasks around (1, 2, 3, 4), each with two inner slices; NaN at one outer step."""
    centres = jnp.arange(1.0, 5.0) + jax.random.normal(key, (3, 1, DIM))
    bad = (jax.random.key_data(key) == jax.random.key_data(jax.random.fold_in(KEY, bad_step))).all()
    centres = jnp.where(bad, jnp.nan, centres)
    return meta.Task(jnp.repeat(centres, 2, axis=1), centres[:, 0])


def begin() -> meta.MetaState:
    return meta.start(meta.init_meta(jnp.zeros(DIM), 2, 0.05), OPTIMIZER)


@partial(jax.jit, static_argnums=1)
def advance(state: meta.MetaState, num_steps: int, bad_step: int = NEVER):
    sampler = partial(sample, bad_step)
    return meta.advance(quadratic, sampler, state, OPTIMIZER, num_steps, False, KEY)


def assert_same_bits(one, other) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_chunks_give_the_bits_of_the_whole() -> None:
    whole, losses = advance(begin(), 8)
    assert int(whole.step) == 8
    assert len(np.unique(losses)) == 8
    for chunks in ((4, 4), (4, 1, 1, 1, 1), (1,) * 8):
        state, pieces = begin(), []
        for steps in chunks:
            state, some = advance(state, steps)
            pieces.append(some)
        assert_same_bits((state, np.concatenate(pieces)), (whole, losses))


def test_an_outer_step_is_the_optimiser_on_the_mean_over_tasks() -> None:
    state, losses = advance(begin(), 1)
    tasks = sample(NEVER, jax.random.fold_in(KEY, 0))
    start = begin()

    def mean_loss(learned):
        each = [
            meta.meta_loss(quadratic, learned, jax.tree.map(lambda x, i=i: x[i], tasks), False)
            for i in range(3)
        ]
        return sum(each) / 3

    value, gradient = jax.jit(jax.value_and_grad(mean_loss))(start.meta)
    updates, _ = OPTIMIZER.update(gradient, start.opt_state, start.meta)
    expected = optax.apply_updates(start.meta, updates)
    assert float(losses[0]) == pytest.approx(float(value), rel=1e-5)
    for a, b in zip(jax.tree.leaves(state.meta), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_meta_training_learns_what_the_tasks_share() -> None:
    state, first = advance(begin(), 8)
    for _ in range(20):
        state, last = advance(state, 8)
    assert np.mean(last) < 0.4 * np.mean(first)


def test_a_step_that_is_not_finite_is_skipped() -> None:
    before, _ = advance(begin(), 4)
    skipped, losses = advance(before, 1, 4)
    assert not np.isfinite(losses[0])
    assert_same_bits((skipped.meta, skipped.opt_state), (before.meta, before.opt_state))
    assert int(skipped.step) == 5
    after, losses = advance(begin(), 8, 4)  # and it goes on after it
    assert list(np.isfinite(losses)) == [True] * 4 + [False] + [True] * 3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    state = skipped
    for _ in range(3):
        state, _ = advance(state, 1)
    assert_same_bits(after, state)


def test_a_gradient_that_is_not_finite_is_skipped_too() -> None:
    def cliff(params, centre):  # at params == centre: the value is 0, its derivative is infinite
        return jnp.sum(jnp.sqrt(jnp.abs(params - centre)))

    def at_zero(key):
        return meta.Task(jnp.full((1, 1, DIM), 9.0), jnp.zeros((1, DIM)))

    start = meta.start(meta.init_meta(jnp.zeros(DIM), 1, 0.0), OPTIMIZER)
    state, losses = meta.advance(cliff, at_zero, start, OPTIMIZER, 1, True, KEY)
    assert np.isfinite(losses).all()
    assert_same_bits(state.meta, start.meta)


def test_a_step_s_tasks_depend_on_the_key_and_its_number_alone() -> None:
    def drawn(key):
        return meta.Task(jnp.zeros((1, 1)), jax.random.uniform(key, (1,)))

    def loss_fn(params, data):
        return data + 0 * jnp.sum(params)

    state = meta.start(meta.init_meta(jnp.zeros(1), 1, 0.1), OPTIMIZER)
    state = state._replace(step=jnp.asarray(3, jnp.int32))
    _, losses = meta.advance(loss_fn, drawn, state, OPTIMIZER, 4, False, KEY)
    expected = [jax.random.uniform(jax.random.fold_in(KEY, i)) for i in range(3, 7)]
    np.testing.assert_array_equal(losses, np.array(expected))
