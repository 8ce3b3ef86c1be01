"""The optimisers: values that hash, and what their updates obey."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from inrjax import fit, optimizers

SPECS = [
    optimizers.Muon(0.02), optimizers.Adam(0.02), optimizers.Adam(0.02, final=0.1),
    optimizers.Soap(0.02), optimizers.PlateauAdam(0.02, 5),
]  # fmt: skip


@pytest.mark.parametrize("optimizer", SPECS, ids=str)
def test_an_optimiser_is_a_hashable_value_that_a_codec_can_carry(optimizer) -> None:
    for same in (replace(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert same == optimizer and hash(same) == hash(optimizer)
    assert replace(optimizer, learning_rate=0.01) != optimizer


def update_sizes(optimizer: optimizers.Optimizer) -> np.ndarray:
    """The largest update of steps 0..10 of a fit of 10, under a constant gradient."""
    chosen = optimizer.build(10)
    params = {"weight": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
    state, sizes = chosen.init(params), []
    update = jax.jit(chosen.update)
    for _ in range(11):
        updates, state = update(jax.tree.map(jnp.ones_like, params), state, params)
        sizes.append([float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(updates)])
    return np.array(sizes)


@pytest.mark.parametrize("kind", [optimizers.Muon, optimizers.Soap])
def test_muon_and_soap_decay_to_zero(kind) -> None:
    sizes = update_sizes(kind(0.02))
    assert np.all(sizes[1:10] > 0)
    np.testing.assert_array_equal(sizes[10], 0)
    np.testing.assert_allclose(update_sizes(kind(0.01)), sizes / 2, rtol=1e-4)


def test_muon_s_steps_shrink_with_its_schedule() -> None:
    assert np.all(np.diff(update_sizes(optimizers.Muon(0.02)), axis=0) < 0)


def moves(optimizer: optimizers.Optimizer, losses: list[float]) -> np.ndarray:
    """The size of each update of a fit whose gradient is constant and whose losses are these."""
    given = jnp.array(losses)

    def loss_fn(params, step, key):
        return given[step] + params - jax.lax.stop_gradient(params)

    def trace(steps: int) -> float:
        state = fit.start(jnp.zeros(()), optimizer.build(len(losses)))
        key = jax.random.key(0)
        return fit.advance(loss_fn, state, optimizer.build(len(losses)), steps, 1, key)[0].params

    places = [0.0, *(float(jax.jit(trace, static_argnums=0)(n + 1)) for n in range(len(losses)))]
    return -np.diff(places)


@pytest.mark.parametrize("average", [1, 2])
def test_a_plateau_halves_adam_s_rate(average) -> None:
    patient = optimizers.PlateauAdam(0.01, patience=4, average=average)
    falling = [0.9**i for i in range(6)]
    np.testing.assert_allclose(moves(patient, falling), 0.01, rtol=1e-3)
    # The first loss is the lowest: after 4 more (of two steps each, 2 more) the rate is halved.
    sizes = moves(patient, [1.0] * 8)
    first = {1: 4, 2: 5}[average]
    np.testing.assert_allclose(sizes[:first], 0.01, rtol=1e-3)
    np.testing.assert_allclose(sizes[first], 0.005, rtol=1e-3)


def test_a_warmup_rises_to_the_rate() -> None:
    sizes = moves(optimizers.PlateauAdam(0.01, patience=100, warmup=4), [1.0] * 6)
    np.testing.assert_allclose(sizes, [0, 0.0025, 0.005, 0.0075, 0.01, 0.01], atol=1e-5)


@pytest.mark.parametrize("final", [0, 0.1, 1])
def test_adam_decays_to_its_final_share(final) -> None:
    sizes = update_sizes(optimizers.Adam(0.02, final))
    np.testing.assert_allclose(sizes[0], 0.02, rtol=1e-4)
    np.testing.assert_allclose(sizes[5], 0.02 * (1 + final) / 2, rtol=1e-4)
    np.testing.assert_allclose(sizes[10], 0.02 * final, rtol=1e-4)


# ---------------------------------------------------------------------------- SOAP


def run_soap(gradients: list[np.ndarray], **fields: Any) -> list[np.ndarray]:
    """The updates of one matrix under a list of gradients."""
    soap = optimizers.scale_by_soap(**fields)
    state, update, steps = soap.init(jnp.zeros(gradients[0].shape)), jax.jit(soap.update), []
    for gradient in gradients:
        step, state = update(jnp.asarray(gradient, jnp.float32), state)
        steps.append(np.asarray(step))
    return steps


def gaussian(count: int, *shape: int, seed: int = 0) -> list[np.ndarray]:
    """Random matrices around one mean, so that their factors have eigenvalues far apart."""
    rng = np.random.default_rng(seed)
    mean = 3 * rng.normal(size=shape)
    return [mean + rng.normal(size=shape) for _ in range(count)]


def rotation(size: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


@pytest.mark.parametrize("refresh", [1, 3, 100])
def test_soap_is_adam_where_the_eigenbasis_is_the_coordinates(refresh) -> None:
    # Diagonal gradients have diagonal factors: a basis is then an order of the coordinates.
    gradients = [np.diag(np.diag(gradient)) for gradient in gaussian(12, 4, 4)]
    adam = optax.scale_by_adam(0.9, 0.95, 1e-3)
    state = adam.init(jnp.zeros((4, 4)))
    first, *others = run_soap(gradients, b1=0.9, b2=0.95, eps=1e-3, refresh=refresh)
    np.testing.assert_array_equal(first, 0)
    for gradient, step in zip(gradients[1:], others, strict=True):
        expected, state = adam.update(jnp.asarray(gradient, jnp.float32), state)
        np.testing.assert_allclose(step, np.asarray(expected), atol=1e-3)


def test_soap_turns_with_its_gradients_and_adam_does_not() -> None:
    gradients, left, right = gaussian(12, 5, 5), rotation(5, 1), rotation(5, 2)
    turned = [left @ gradient @ right.T for gradient in gradients]
    plain, found = (run_soap(series, refresh=3) for series in (gradients, turned))
    for a, b in zip(plain[1:], found[1:], strict=True):
        np.testing.assert_allclose(b, left @ a @ right.T, atol=2e-2)
    adam = optax.scale_by_adam()
    a, b = (
        adam.update(jnp.asarray(series[0]), adam.init(jnp.zeros((5, 5))))[0]
        for series in (gradients, turned)
    )
    assert np.abs(np.asarray(b) - left @ np.asarray(a) @ right.T).max() > 0.5


def test_soap_is_indifferent_to_the_scale_of_gradients() -> None:
    gradients = gaussian(8, 3, 6)
    for a, b in zip(run_soap(gradients), run_soap([64 * g for g in gradients]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def quadratic_loss(optimizer: optimizers.Optimizer, num_steps: int = 200) -> float:
    """What is left of |A (W - T) B|^2, A and B of condition 100 and far from diagonal."""
    scales = jnp.asarray(np.geomspace(0.1, 10, 6), jnp.float32)
    a, b = (jnp.asarray(rotation(6, seed), jnp.float32) * scales for seed in (1, 2))
    target = jnp.asarray(gaussian(1, 6, 6)[0], jnp.float32)

    def loss_fn(weight):
        return jnp.sum((a.T @ (weight - target) @ b) ** 2)

    chosen = optimizer.build(num_steps)

    def step(carry, _):
        weight, state = carry
        updates, state = chosen.update(jax.grad(loss_fn)(weight), state, weight)
        return (optax.apply_updates(weight, updates), state), None

    @jax.jit
    def fitted(weight):
        return loss_fn(jax.lax.scan(step, (weight, chosen.init(weight)), length=num_steps)[0][0])

    return float(fitted(jnp.zeros((6, 6))) / loss_fn(jnp.zeros((6, 6))))


def test_soap_beats_adam_on_a_badly_turned_quadratic() -> None:
    rates = (0.03, 0.1, 0.3, 1.0)
    soap = min(quadratic_loss(optimizers.Soap(rate)) for rate in rates)
    adam = min(quadratic_loss(optimizers.Adam(rate, final=0)) for rate in rates)
    assert soap < adam / 3


@pytest.mark.parametrize("kind", ["zero", "rank one", "tiny", "huge"])
def test_soap_stays_finite(kind) -> None:
    rank_one = np.outer(np.arange(1.0, 5), np.ones(7))
    gradient = {
        "zero": np.zeros((4, 7)), "rank one": rank_one, "tiny": 1e-18 * rank_one,
        "huge": 1e12 * rank_one,
    }[kind]  # fmt: skip
    steps = np.array(run_soap([gradient] * 25, refresh=2))
    assert np.isfinite(steps).all() and np.abs(steps).max() <= 28


def test_soap_gives_each_of_a_vmapped_batch_what_it_gets_alone() -> None:
    series = np.array([gaussian(6, 4, 3, seed=seed) for seed in range(2)], np.float32)
    soap = optimizers.scale_by_soap(refresh=2)

    @jax.jit
    @jax.vmap
    def steps(gradients):
        def step(state, gradient):
            update, state = soap.update(gradient, state)
            return state, update

        return jax.lax.scan(step, soap.init(jnp.zeros((4, 3))), gradients)[1]

    for own, batched in zip(series, steps(series), strict=True):
        np.testing.assert_allclose(batched, np.array(run_soap(list(own), refresh=2)), atol=1e-3)


def test_soap_takes_matrices_only() -> None:
    with pytest.raises(ValueError, match=r"\(3,\).*expected matrices"):
        optimizers.scale_by_soap().init({"weight": jnp.ones((2, 3)), "bias": jnp.zeros(3)})
    with pytest.raises(ValueError, match="got refresh 0"):
        optimizers.scale_by_soap(refresh=0)


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_the_cosine_is_optax_s_with_numbers_that_may_be_traced(final: float) -> None:
    counts = jnp.arange(40)
    ours = jax.jit(lambda *numbers: optimizers.cosine_decay(*numbers)(counts))(0.02, 30, final)
    theirs = optax.cosine_decay_schedule(0.02, 30, alpha=final)(counts)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("optimizer", SPECS, ids=str)
def test_what_is_traced_of_an_optimiser_are_its_rates(optimizer) -> None:
    leaves, kept = jax.tree.flatten(optimizer)
    assert leaves[0] == optimizer.learning_rate
    assert jax.tree.unflatten(kept, leaves) == optimizer
    assert jax.tree.structure(replace(optimizer, learning_rate=0.01)) == kept
