"""Learning a base: it learns, a stopped run ends like a whole one, devices share the work."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import photograph

from inrjax import basetrain, modulation, trees
from inrjax.base import BITS, Base, load_base, save_base, to_symbols
from inrjax.modulation import Learned

SMALL = basetrain.BaseTrainConfig(
    width=8, depth=2, latent_dim=6, patch=8, num_steps=5, inner_steps=2, tasks_per_step=4,
    points=32, fit_inner_steps=3, moments=9,
)  # fmt: skip
PATCHES = np.stack([photograph(8, 8, seed=i) for i in range(12)])


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints at steps 2, 4 and 5."""
    monkeypatch.setattr(basetrain, "CHECKPOINT_STEPS", 2)


@pytest.fixture(scope="module")
def whole() -> Base:
    """The base of a run that nothing stopped, in chunks of two steps, without checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(basetrain, "CHECKPOINT_STEPS", 2)
        return basetrain.train_base(SMALL, PATCHES, info={"licence": "none"})


class Stop(Exception):
    """What a user's interruption looks like to `train_base`."""


def stop_at(step: int):
    def on_progress(done: int, total: int) -> None:
        assert total == SMALL.num_steps
        if done == step:
            raise Stop

    return on_progress


def same(one: Base, other: Base) -> bool:
    return one.digest == other.digest and np.array_equal(one.rates, other.rates)


def test_the_base_is_whole(whole: Base, tmp_path: Path) -> None:
    assert (whole.net.width, whole.net.depth, whole.latent_dim, whole.patch) == (8, 2, 6, 8)
    assert whole.info["licence"] == "none" and whole.info["num_patches"] == 12
    assert whole.info["config"]["num_steps"] == 5
    assert len(whole.info["losses"]) == 1 and whole.info["losses"][0] > 0
    save_base(tmp_path / "base.npz", whole)
    assert same(load_base(tmp_path / "base.npz"), whole)


@pytest.mark.parametrize("stops", [(2,), (2, 4), (5,)])
def test_a_stopped_run_ends_like_a_whole_one(whole: Base, tmp_path: Path, stops) -> None:
    for step in stops:
        with pytest.raises(Stop):
            basetrain.train_base(SMALL, PATCHES, tmp_path, stop_at(step))
    assert same(basetrain.train_base(SMALL, PATCHES, tmp_path), whole)


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        basetrain.train_base(SMALL, PATCHES, tmp_path, stop_at(2))
    for config, patches in (
        (replace(SMALL, learning_rate=2e-3), PATCHES),
        (SMALL, PATCHES[:5]),
    ):
        with pytest.raises(ValueError, match="another run"):
            basetrain.train_base(config, patches, tmp_path)


def test_training_lowers_the_loss_and_moves_every_part() -> None:
    config = replace(SMALL, num_steps=100, points=64, learning_rate=5e-3)
    coords = jnp.asarray(modulation.patch_coords(config.patch))
    pixels = modulation.to_pixels(jnp.asarray(PATCHES.reshape(12, -1, 3)))

    @jax.jit
    def mean_loss(learned: Learned) -> jax.Array:
        one = partial(basetrain.outer_loss, config, learned, coords)
        return jnp.mean(jax.lax.map(one, pixels))

    start = basetrain.initial(config)
    learned = basetrain._train(config, PATCHES, "digest", None, None).learned
    assert mean_loss(learned) < 0.8 * mean_loss(start)
    for new, old in zip(jax.tree.leaves(learned), jax.tree.leaves(start), strict=True):
        assert not np.array_equal(new, old)


def test_the_outer_gradient_goes_through_the_inner_steps() -> None:
    """Against a finite difference of the outer loss, along random directions of all parts."""
    config = replace(SMALL, inner_rate=0.3)
    coords = jnp.asarray(modulation.patch_coords(config.patch))
    pixels = modulation.to_pixels(jnp.asarray(PATCHES[0].reshape(-1, 3)))
    with jax.enable_x64(True):
        learned = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), basetrain.initial(config))

        @jax.jit
        def loss(learned):
            return basetrain.outer_loss(config, learned, coords, pixels)

        grads = jax.jit(jax.grad(loss))(learned)
        rng = np.random.default_rng(0)
        for part in Learned._fields:
            direction = jax.tree.map(lambda x: rng.standard_normal(x.shape), getattr(learned, part))

            def along(size, part=part, direction=direction):
                moved = jax.tree.map(lambda x, d: x + size * d, getattr(learned, part), direction)
                return float(loss(learned._replace(**{part: moved})))

            slope = (along(1e-6) - along(-1e-6)) / 2e-6
            parts = jax.tree.map(
                lambda g, d: np.sum(np.asarray(g) * d), getattr(grads, part), direction
            )
            assert slope == pytest.approx(float(sum(jax.tree.leaves(parts))), rel=1e-3, abs=1e-9)


def test_groups_of_tasks_give_the_mean_loss_and_gradient() -> None:
    learned, rng = basetrain.initial(SMALL), np.random.default_rng(1)
    coords = jnp.asarray(rng.uniform(-1, 1, (4, 2, 32)), jnp.float32)
    pixels = jnp.asarray(rng.uniform(-1, 1, (4, 3, 32)), jnp.float32)
    in_groups = jax.jit(partial(basetrain._mean_loss_and_grads, SMALL))
    loss, grads = in_groups(learned, coords, pixels)

    def mean_loss(learned):
        losses = jax.vmap(lambda c, p: basetrain.outer_loss(SMALL, learned, c, p))(coords, pixels)
        return jnp.mean(losses)

    expected, expected_grads = jax.jit(jax.value_and_grad(mean_loss))(learned)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-7)


def test_one_device_and_two_learn_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    two = basetrain._train(SMALL, PATCHES, "digest", None, None)
    devices = jax.local_devices()
    monkeypatch.setattr(jax, "local_devices", lambda: devices[:1])
    one = basetrain._train(SMALL, PATCHES, "digest", None, None)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_tasks_are_pixels_of_patches_or_of_their_mirror_images() -> None:
    data = jnp.asarray(PATCHES.reshape(12, -1, 3))
    config = replace(SMALL, points=64, tasks_per_step=20)
    for own in (config, replace(config, points=10)):
        coords, pixels = jax.jit(partial(basetrain._sample, own))(data, jax.random.key(0))
        assert coords.shape == (20, 2, own.points) and pixels.shape == (20, 3, own.points)
        values = np.rint(127.5 * (np.asarray(pixels) + 1)).astype(int)
        y, x = np.rint((np.asarray(coords) + 1) * 4 - 0.5).astype(int).transpose(1, 0, 2)
        plain, mirrored = (
            [
                any(np.array_equal(values[i].T, p[y[i], columns]) for p in PATCHES)
                for i, columns in enumerate(places)
            ]
            for places in (x, 7 - x)
        )
        assert all(a != b for a, b in zip(plain, mirrored, strict=True))
        assert any(plain) and any(mirrored)


def test_the_distribution_is_that_of_the_latents(whole: Base) -> None:
    latents = np.random.default_rng(0).normal(3.0, 0.5, (500, 6)).astype(np.float32)
    base = basetrain.with_moments(whole, latents)
    np.testing.assert_allclose(base.centre, latents.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(base.spread, latents.std(axis=0), rtol=1e-5)
    for bits in BITS:
        symbols = to_symbols(latents, base.centre, base.spread, bits).ravel()
        often = np.bincount(symbols, minlength=1 << bits)
        shares = base.table(bits) / (1 << 24)
        np.testing.assert_allclose(shares, (often + 1) / (symbols.size + (1 << bits)), atol=1e-5)


def test_divergence_is_a_value_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basetrain, "LOSS_STEPS", 2)
    for losses in ([np.nan] * 5, [1.0, 1.0, 1.1, 1.1, 1.1]):

        def diverged(config, num_steps, mesh, state, data, losses=losses):
            return state._replace(losses=np.array(losses))

        monkeypatch.setattr(basetrain, "_program", lambda platform, own=diverged: own)
        with pytest.raises(ValueError, match="diverged"):
            basetrain.train_base(SMALL, PATCHES)


def test_losses_are_noted_and_one_step_of_chaos_is_no_divergence() -> None:
    losses = np.linspace(2.0, 1.0, 250)
    losses[110] = np.nan  # a step that was skipped
    expected = [losses[:100].mean(), np.nanmean(losses[100:200])]
    np.testing.assert_allclose(basetrain._means(losses), expected)
    basetrain._check_losses(np.linspace(2.0, 1.0, 250))
    basetrain._check_losses(losses)
    basetrain._check_losses(np.array([1.0, 3.0]))  # too few to say


@pytest.mark.parametrize(
    "change",
    [
        {"num_steps": 0}, {"latent_dim": 0}, {"points": 65}, {"inner_steps": 0},
        {"learning_rate": 0.0}, {"inner_rate": -1.0}, {"tasks_at_once": 0},
    ],
)  # fmt: skip
def test_wrong_choices_are_refused(change) -> None:
    with pytest.raises(ValueError, match="expected"):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    "patches",
    [PATCHES[:0], PATCHES.astype(np.float32), PATCHES[:, :4], PATCHES[..., :1]],
    ids=["none", "float", "small", "grey"],
)
def test_other_patches_are_refused(patches) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        basetrain.train_base(SMALL, patches)


def test_every_leaf_is_stored_as_float16(whole: Base) -> None:
    leaves = dict(trees.leaves(whole.params)) | {"shift": whole.shift}
    assert {np.asarray(leaf).dtype for leaf in leaves.values()} == {np.dtype(np.float16)}
