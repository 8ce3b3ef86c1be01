"""Learning a base for ModulatedSiren: its weights, its map from latents to shifts, its inner rates.

COIN++ (Dupont et al. 2022, arXiv:2201.12904, algorithm 1) with functa's learned inner rates
(arXiv:2201.12204): the outer loss is a patch's mse after a few inner steps on its latent alone, and
its gradient goes through them. Then the distribution of the fitted latents, for the coder.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from inrjax import checkpoint, entropy, fit, modulation, optimizers
from inrjax.base import BITS, Base, table_arrays, to_symbols
from inrjax.modulation import Learned, Patches
from inrjax.nets.siren import Siren
from inrjax.types import OnProgress


@dataclass(frozen=True)
class BaseTrainConfig:
    """What `train_base` computes.

    Attributes:
      width, depth: of the base network, in neurons and sine layers. w0: its frequency factor.
      latent_dim: numbers of a patch's latent. patch: side of a patch in pixels.
      num_steps: outer steps. inner_steps: of SGD on a latent, within an outer step.
      tasks_per_step: patches of an outer step. points: pixels of each that it sees, of all.
      learning_rate: of the outer steps, of Muon, decaying to 0 by cosine. rate_learning_rate:
        Adam's on the logarithms of the inner rates, which start at ``inner_rate``: from 0.03 a base
        of 32 latents learned little but the colours of patches, from 0.3 it ends at a quarter of
        that error (2000 steps on cid22); one of 128 was as far from either after 1200 steps.
      fit_inner_steps: inner steps of a finished base, of encoders and of the latents' distribution.
      moments: training patches that the distribution is estimated from.
      tasks_at_once: patches of one product on an accelerator; a CPU takes one at a time.
      seed: of everything.
    """

    width: int = 128
    depth: int = 10
    w0: float = 30.0
    latent_dim: int = 256
    patch: int = 32
    num_steps: int = 20_000
    inner_steps: int = 3
    tasks_per_step: int = 16
    points: int = 1024
    learning_rate: float = 6e-4
    rate_learning_rate: float = 3e-3
    inner_rate: float = 0.3
    fit_inner_steps: int = 10
    moments: int = 2048
    tasks_at_once: int = 64
    seed: int = 0

    def __post_init__(self):
        counts = (
            self.latent_dim, self.patch, self.num_steps, self.inner_steps, self.tasks_per_step,
            self.points, self.fit_inner_steps, self.moments, self.tasks_at_once,
        )  # fmt: skip
        if min(counts) < 1 or self.points > self.patch**2:
            raise ValueError(
                f"got {self}, expected counts of at least 1, and points of at most patch^2"
            )
        if min(self.learning_rate, self.rate_learning_rate, self.inner_rate) <= 0:
            raise ValueError(f"got {self}, expected rates above 0")

    @property
    def net(self) -> Siren:
        """The base network."""
        return Siren(self.width, self.depth, self.w0)


CHECKPOINT_STEPS = 100


class TrainState(NamedTuple):
    """What training carries on, and checkpoints. ``step``: int32, outer steps done; ``losses``
    (num_steps,): of each of them, 0 for those to come."""

    learned: Learned
    opt_state: Any
    step: jax.Array
    losses: jax.Array


def train_base(
    config: BaseTrainConfig,
    patches: np.ndarray,
    folder: Path | None = None,
    on_progress: OnProgress | None = None,
    info: dict[str, Any] | None = None,
) -> Base:
    """Learn a base from uint8 patches (n, patch, patch, 3).

    Args:
      folder: where checkpoints go, and come from if there are any: a run that was stopped goes on
        and ends with the same base. None for none.
      on_progress: counts outer steps.
      info: more to note in the base (command, licence of the data); the number of patches, their
        digest and the outer losses, means of `LOSS_STEPS` steps, are noted anyway.

    Raises:
      ValueError: no patches of this size, checkpoints of another run, or the training diverged.
    """
    expected = (config.patch, config.patch, 3)
    if patches.dtype != np.uint8 or patches.shape[1:] != expected or not len(patches):
        raise ValueError(
            f"got patches of type {patches.dtype} and shape {patches.shape}, expected uint8 "
            f"(n, {config.patch}, {config.patch}, 3), at least one"
        )
    digest = hashlib.sha256(str(patches.shape).encode() + patches.tobytes()).hexdigest()
    state = _train(config, patches, digest, folder, on_progress)
    note = {
        "config": asdict(config),
        "num_patches": len(patches),
        "data_sha256": digest,
        "losses": [float(f"{loss:.4g}") for loss in _means(np.asarray(state.losses))],
    }
    return with_distribution(config, state.learned, patches, note | (info or {}))


# ---------------------------------------------------------------------------- outer steps


def _train(
    config: BaseTrainConfig,
    patches: np.ndarray,
    digest: str,
    folder: Path | None,
    on_progress: OnProgress | None,
) -> TrainState:
    mesh = _mesh(config.tasks_per_step)
    everywhere = jax.NamedSharding(mesh, jax.P())
    data = jax.device_put(patches.reshape(len(patches), -1, 3), everywhere)
    optimizer = _optimizer(config)
    learned = initial(config)
    state = TrainState(
        learned, optimizer.init(learned), jnp.zeros((), jnp.int32), jnp.zeros(config.num_steps)
    )
    inputs = {"config": asdict(config), "data_sha256": digest}
    if folder is not None:
        restored = checkpoint.restore(folder, state, inputs)
        state = jax.tree.map(jnp.asarray, restored.state) if restored else state
    done = int(state.step)
    state = jax.device_put(state, everywhere)
    while done < config.num_steps:
        steps = min(CHECKPOINT_STEPS, config.num_steps - done)
        state = _program(jax.default_backend())(config, mesh, steps, state, data)
        done += steps
        _check_losses(np.asarray(state.losses)[:done])
        if folder is not None:
            checkpoint.save(folder, done, state, inputs)
        if on_progress is not None:
            on_progress(done, config.num_steps)
    return jax.tree.map(np.asarray, state)


LOSS_STEPS = 100
"""Steps whose mean loss is noted, and tells whether training diverges."""


def _means(losses: np.ndarray) -> np.ndarray:
    """Means of whole runs of `LOSS_STEPS` losses, of what there is if there is no whole run; a step
    that was skipped, whose loss is not finite, does not count."""
    size = min(LOSS_STEPS, len(losses))
    runs = losses[: len(losses) // size * size].reshape(-1, size)
    finite = np.isfinite(runs)
    return np.where(finite, runs, 0).sum(axis=1) / np.maximum(finite.sum(axis=1), 1)


def _check_losses(losses: np.ndarray) -> None:
    """Raise ValueError where losses are not finite, or higher than they were at first: steps too
    long for the inner loop make it chaotic, and it does not come back."""
    means = _means(losses)
    if not np.isfinite(losses[-LOSS_STEPS:]).any() or means[-1] > means[0]:
        raise ValueError(
            f"the base's training diverged, from a loss of {means[0]:.3g} to {means[-1]:.3g} in "
            f"{len(losses)} steps: lower learning_rate, rate_learning_rate or inner_rate"
        )


def initial(config: BaseTrainConfig) -> Learned:
    """Where training starts: a random net, a random map of orthonormal scale, equal rates."""
    key_net, key_shift = jax.random.split(jax.random.key(config.seed))
    rows = config.depth * config.width
    shift = jax.random.normal(key_shift, (rows, config.latent_dim)) / np.sqrt(rows)
    log_rates = jnp.full(config.latent_dim, np.log(config.inner_rate), jnp.float32)
    return Learned(config.net.init(key_net), shift, log_rates)


def _mesh(num_tasks: int) -> jax.sharding.Mesh:
    """As many of this process's devices as share the tasks of an outer step evenly."""
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if num_tasks % n == 0)
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((count,), ("task",), axis_types=auto, devices=devices[:count])


def _optimizer(config: BaseTrainConfig) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(config.rate_learning_rate, config.num_steps)
    net = optimizers.Muon(config.learning_rate).build(config.num_steps)
    # A rare patch has gradients far beyond the others'; one such step undoes many.
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.partition(
            {"net": net, "rates": optax.adam(schedule)},
            Learned("net", "net", "rates"),
        ),
    )


@cache
def _program(platform: str):
    options = fit.compiler_options(platform)
    return jax.jit(_advance, static_argnums=(0, 1), compiler_options=options)


def _advance(config, mesh, num_steps, state, data):
    """``num_steps`` more outer steps, the tasks of each shared out over the mesh: one program for
    chunks of all lengths."""

    def on_device(num_steps, state, data):
        return jax.lax.fori_loop(
            0, num_steps, lambda _, own: _outer_step(config, mesh.size, own, data), state
        )

    # check_vma=False: every device holds the same state, and gradients are summed by hand.
    return jax.shard_map(
        on_device, mesh=mesh, in_specs=(jax.P(),) * 3, out_specs=jax.P(), check_vma=False
    )(num_steps, state, data)


def _outer_step(config: BaseTrainConfig, num_devices: int, state: TrainState, data):
    coords, pixels = _sample(config, data, jax.random.fold_in(_key(config), state.step))
    share = config.tasks_per_step // num_devices
    first = jax.lax.axis_index("task") * share
    own = [jax.lax.dynamic_slice_in_dim(part, first, share) for part in (coords, pixels)]
    loss, grads = _mean_loss_and_grads(config, state.learned, *own)
    loss, grads = jax.lax.pmean((loss, grads), "task")
    updates, opt_state = _optimizer(config).update(grads, state.opt_state, state.learned)
    moved: Any = optax.apply_updates(cast(Any, state.learned), updates)
    proposed = state._replace(learned=moved, opt_state=opt_state)
    finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), proposed, state)
    losses = state.losses.at[state.step].set(loss)
    return kept._replace(step=state.step + 1, losses=losses)


def _key(config: BaseTrainConfig) -> jax.Array:
    return jax.random.fold_in(jax.random.key(config.seed), 1)


def _sample(config: BaseTrainConfig, data: jax.Array, key: jax.Array):
    """coords (tasks, 2, points) and pixels (tasks, 3, points) of random patches, half of them
    mirrored: at the same random pixels of each, or at all of them in order."""
    key_patch, key_mirror, key_point = jax.random.split(key, 3)
    tasks, size = config.tasks_per_step, config.patch**2
    chosen = jax.random.randint(key_patch, (tasks,), 0, len(data))
    mirrored = jax.random.bernoulli(key_mirror, 0.5, (tasks, 1))
    points = jnp.arange(size)
    if config.points < size:
        points = jax.random.choice(key_point, size, (config.points,), replace=False)
    rows, columns = points // config.patch, points % config.patch
    source = jnp.where(mirrored, rows * config.patch + config.patch - 1 - columns, points)
    coords = jnp.asarray(modulation.patch_coords(config.patch))[:, points]
    pixels = modulation.to_pixels(data[chosen[:, None], source])
    return jnp.broadcast_to(coords, (tasks, *coords.shape)), pixels


def _mean_loss_and_grads(config: BaseTrainConfig, learned: Learned, coords, pixels):
    """Mean over the tasks, by groups of as many as the device takes at once."""
    tasks = len(pixels)
    at_once = 1 if jax.default_backend() == "cpu" else min(tasks, config.tasks_at_once)
    while tasks % at_once:
        at_once -= 1

    def group_loss(learned, group):
        return jnp.mean(jax.vmap(lambda task: outer_loss(config, learned, *task))(group))

    def add(total, group):
        return jax.tree.map(jnp.add, total, jax.value_and_grad(group_loss)(learned, group)), None

    groups = jax.tree.map(lambda x: x.reshape(-1, at_once, *x.shape[1:]), (coords, pixels))
    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, learned))
    total, _ = jax.lax.scan(add, zero, groups)
    return jax.tree.map(lambda x: x * (at_once / tasks), total)


def outer_loss(config: BaseTrainConfig, learned: Learned, coords, pixels) -> jax.Array:
    """The mse of one patch after its inner steps (COIN++'s eq. 3): coords (2, n), pixels (3, n)."""
    weights = jnp.ones(coords.shape[1])
    latent = modulation.fit_latent(config.net, learned, config.inner_steps, coords, pixels, weights)
    return modulation.patch_mse(config.net, learned, latent, coords, pixels, weights)


# ---------------------------------------------------------------------------- the distribution


def with_distribution(
    config: BaseTrainConfig, learned: Learned, patches: np.ndarray, info: dict[str, Any]
) -> Base:
    """The base as it is stored, with the moments and the tables of the latents of some patches.

    Raises ValueError if a latent of those is not finite.
    """
    flat = entropy.adaptive_counts
    base = Base(
        net=config.net,
        patch=config.patch,
        params=jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), dict(learned.params)),
        shift=np.asarray(learned.shift, np.float16),
        centre=np.zeros(config.latent_dim, np.float32),
        spread=np.ones(config.latent_dim, np.float32),
        tables=table_arrays({bits: flat(np.zeros(1 << bits, int)) for bits in BITS}),
        rates=np.exp(np.asarray(learned.log_rates, np.float32)),
        info=info,
    )
    rng = np.random.default_rng(config.seed)
    chosen = rng.choice(len(patches), min(config.moments, len(patches)), replace=False)
    pixels = patches[np.sort(chosen)].reshape(len(chosen), -1, 3)
    whole = Patches(pixels, np.ones(pixels.shape[:2], np.float32))
    [latents] = modulation.fit_latents(base, [whole], config.fit_inner_steps)
    return with_moments(base, latents)


def with_moments(base: Base, latents: np.ndarray) -> Base:
    """The base with centre, spread and tables of these latents, float32 (n, latent_dim)."""
    centre, spread = latents.mean(axis=0), latents.std(axis=0)
    tables = {}
    for bits in BITS:
        symbols = to_symbols(latents, centre, spread, bits)
        tables[bits] = entropy.adaptive_counts(np.bincount(symbols.ravel(), minlength=1 << bits))
    return replace(base, centre=centre, spread=spread, tables=table_arrays(tables))
