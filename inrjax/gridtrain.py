"""Learning the nets that latent grids share: synthesis and context models, over many pictures.

As meta-learning has it (Finn et al. 2017, arXiv:1703.03400): an inner loop finds a picture's own
latents, an outer loop moves what all share. The inner loop ends near a minimum over the latents, so
that the outer gradient is that of the loss at fixed latents (as in implicit MAML, arXiv:1909.04630;
here even the latents' rounding has no derivative). Each crop keeps its latents from visit to visit.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from inrjax import checkpoint, context, gridfit, trees
from inrjax.gridfit import Shared, Target
from inrjax.grids import GridBase
from inrjax.nets.latent_grid import COLOUR, LatentGridNet, wavelet_kernel
from inrjax.types import OnProgress

CHECKPOINT_STEPS = 200

GAINS = (0.75, 1.5)
"""Least and largest gain of a band. Where few latents of a band are not 0 its gain hardly counts,
and wanders: in 9000 steps that of the finest diagonal details went from 1 to 0.25, so that they
were rounded four times as finely as all others, and fine step sizes cost 13 % more bytes."""


@dataclass(frozen=True)
class GridTrainConfig:
    """What `train` computes.

    Attributes:
      net: the grids and their nets.
      num_steps: outer steps. crops_per_step: crops of one.
      inner_steps: proximal steps on a crop's latents before each outer step that sees it.
      learning_rate: of Adam, decaying to 2 % by a cosine; the linear synthesis, which starts as a
        wavelet, has a 50th of it.
      first_step, last_step: each crop is learned at one step size, drawn evenly from these.
      seed: of everything.
    """

    net: LatentGridNet = field(default_factory=LatentGridNet)
    num_steps: int = 4000
    crops_per_step: int = 4
    inner_steps: int = 1
    learning_rate: float = 3e-3
    first_step: int = 12
    last_step: int = 46
    seed: int = 0

    def __post_init__(self):
        counts = (self.num_steps, self.crops_per_step, self.inner_steps)
        if min(counts) < 1 or not 0 <= self.first_step <= self.last_step <= 63:
            raise ValueError(f"got {self}, expected counts of at least 1, and steps of 0..63")


class TrainState(NamedTuple):
    """What training carries on: ``latents`` of all crops; ``losses`` (num_steps,)."""

    shared: Shared
    opt_state: Any
    latents: Any
    step: Any
    losses: Any


def initial(net: LatentGridNet, seed: int) -> Shared:
    """The wavelet; sine layers that add nothing yet; context models that expect little."""
    rng = np.random.default_rng(seed)

    def normal(shape: tuple[int, ...], gain: float = 1.0) -> np.ndarray:
        fan_in = int(np.prod(shape[:-1]))
        return (gain / np.sqrt(fan_in) * rng.standard_normal(shape)).astype(np.float32)

    tree: dict[str, Any] = {"colour": COLOUR.astype(np.float32), "low": {"gain": np.ones(3)}}
    for level in range(net.levels):
        shapes = net.shapes()[f"level{level}"]
        part = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        part |= {"gain": np.ones(shapes["gain"]), "kernel": wavelet_kernel(net.components(level))}
        part |= {"weight1": normal(shapes["weight1"], 2.0), "weight2": normal(shapes["weight2"])}
        part["bias1"] = rng.uniform(-2, 2, shapes["bias1"])
        tree[f"level{level}"] = part
    models = {}
    for name, shapes in context.shapes(net).items():
        part = {leaf: np.zeros(shape, np.float32) for leaf, shape in shapes.items()}
        part |= {leaf: normal(shapes[leaf]) for leaf in ("weight1", "weight2")}
        part["weight3"] = normal(shapes["weight3"], 0.1)
        part["bias3"] += 2 if name.startswith("low") else -2
        if "predict" in shapes:
            part["predict"] = np.array([0.5, 0.5, 0, 0], np.float32)
        if "odd1" in shapes:
            part["bias3"][:] = np.repeat((2.0, -1.0, -1.0), 3)  # zeros, and seldom more than 1
            part |= {"odd1": normal(shapes["odd1"], 0.25), "gate_bias": np.ones(net.odd_width)}
            part["odd2"] = normal(shapes["odd2"], 0.05)
        models[name] = part
    return Shared(*jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (tree, models)))


def started(net: LatentGridNet, base: GridBase, seed: int) -> Shared:
    """As `initial`, but with all that has the name and the shape of what a learned base has."""
    fresh, learned = initial(net, seed), dict(trees.leaves(base.approximate))

    def leaf(path: str, values: Any) -> Any:
        own = learned.get(path)
        return values if own is None or own.shape != values.shape else jnp.asarray(own)

    kept = {
        part: trees.from_leaves({path: leaf(f"{part}/{path}", v) for path, v in trees.leaves(tree)})
        for part, tree in fresh._asdict().items()
    }
    return Shared(**kept)


def train(
    config: GridTrainConfig,
    crops: np.ndarray,
    folder: Path | None = None,
    on_progress: OnProgress | None = None,
    on_losses: Any = None,
    start: GridBase | None = None,
) -> Shared:
    """Learn shared nets from uint8 crops (n, side, side, 3), the side a multiple of `GRANULE`.

    Args:
      folder: where checkpoints go, and come from; None for none.
      on_progress: counts outer steps. on_losses: called with all losses (num_steps,) at
        the end.
      start: a learned base to begin with, as `started` does; None for `initial`.

    Raises:
      ValueError: other crops, checkpoints of another run, or a loss that is not finite.
    """
    side = crops.shape[1] if crops.ndim == 4 else 0
    expected = (side, side, 3)
    if crops.dtype != np.uint8 or crops.shape[1:] != expected or not side or side % gridfit.GRANULE:
        raise ValueError(
            f"got crops of type {crops.dtype} and shape {crops.shape}, expected uint8 (n, side, "
            f"side, 3) with a side that {gridfit.GRANULE} divides"
        )
    if len(crops) < config.crops_per_step:
        raise ValueError(f"got {len(crops)} crops, expected at least {config.crops_per_step}")
    inputs = {"config": asdict(config), "data_sha256": _digest(crops)}
    if start is not None:
        inputs["start"] = start.digest.hex()
    shared = started(config.net, start, config.seed) if start else initial(config.net, config.seed)
    steps = np.random.default_rng(config.seed).uniform(
        config.first_step, config.last_step, len(crops)
    )
    data = Data(jnp.asarray(crops), jnp.asarray(steps, jnp.float32))
    state = _restored(config, shared, crops, steps, folder, inputs)
    done = int(state.step)
    while done < config.num_steps:
        count = min(CHECKPOINT_STEPS, config.num_steps - done)
        for _ in range(count):
            state = _outer_step(config, state, data)
        done += count
        losses = np.asarray(state.losses)[:done]
        if not np.isfinite(losses).all():
            raise ValueError("the training diverged: lower learning_rate")
        if folder is not None:
            checkpoint.save(folder, done, jax.device_get(state), inputs)
        if on_progress is not None:
            on_progress(done, config.num_steps)
    if on_losses is not None:
        on_losses(np.asarray(state.losses))
    return Shared(*jax.device_get(tuple(state.shared)))


class Data(NamedTuple):
    """Crops uint8 (n, side, side, 3), and the step size's number of each."""

    crops: Any
    steps: Any


def _restored(config, shared, crops, steps, folder, inputs) -> TrainState:
    net = config.net
    pairs = [
        gridfit.start(net, gridfit.make_target(crop), step)
        for crop, step in zip(crops, steps, strict=True)
    ]
    latents = [jnp.asarray(np.stack(own)) for own in zip(*pairs, strict=True)]
    state = TrainState(
        shared, _optimizer(config, shared).init(shared), latents, jnp.zeros((), jnp.int32),
        jnp.zeros(config.num_steps),
    )  # fmt: skip
    if folder is None:
        return state
    restored = checkpoint.restore(folder, jax.device_get(state), inputs)
    return jax.tree.map(jnp.asarray, restored.state) if restored else state


def _optimizer(config: GridTrainConfig, shared: Shared) -> optax.GradientTransformation:
    def factor(path: Any, _: Any) -> float:
        name = _name(path)
        if name.endswith(("kernel", "colour")):
            return 0.02
        if name.endswith("gain"):
            return 0.2
        return 0.3 if "synthesis" in name and name.endswith("weight3") else 1.0

    factors = jax.tree_util.tree_map_with_path(factor, shared)
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.num_steps, 0.02)
    scale = optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factors))
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b2=0.99),
        scale,
        optax.scale_by_learning_rate(schedule),
    )


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def bounded(shared: Shared) -> Shared:
    """With every gain within `GAINS`."""

    def leaf(path: Any, values: Any) -> Any:
        return jnp.clip(values, *GAINS) if _name(path).endswith("gain") else values

    return jax.tree_util.tree_map_with_path(leaf, shared)


def _step(config: GridTrainConfig, state: TrainState, data: Data) -> TrainState:
    count, per_step = len(data.crops), config.crops_per_step
    per_epoch = count // per_step
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    key_epoch = jax.random.fold_in(jax.random.key(config.seed + 1), state.step // per_epoch)
    order = jax.random.permutation(key_epoch, count)
    chosen = jax.lax.dynamic_slice_in_dim(order, state.step % per_epoch * per_step, per_step)
    side = data.crops.shape[1]
    pictures, steps = data.crops[chosen].astype(jnp.float32) / 255, data.steps[chosen]
    latents = [own[chosen] for own in state.latents]
    keys = jax.random.split(key, per_step)

    def improved(own, picture, step, key):
        target = Target(picture, side, side)
        for inner in range(config.inner_steps):
            own, _ = gridfit.improve(
                config.net, state.shared, own, target, step, gridfit.rate_weight(step),
                jax.random.fold_in(key, inner),
            )  # fmt: skip
        return own

    latents = jax.vmap(improved)(latents, pictures, steps, keys)
    loss, gradient = jax.value_and_grad(_loss)(state.shared, config, latents, pictures, steps)
    updates, opt_state = _optimizer(config, state.shared).update(gradient, state.opt_state)
    moved: Any = optax.apply_updates(state.shared, updates)  # pyright: ignore[reportArgumentType]
    shared = bounded(moved)
    kept = [all_.at[chosen].set(own) for all_, own in zip(state.latents, latents, strict=True)]
    return TrainState(
        shared, opt_state, kept, state.step + 1, state.losses.at[state.step].set(loss)
    )


_outer_step = jax.jit(_step, static_argnums=0, donate_argnums=1)


def _loss(shared: Shared, config: GridTrainConfig, latents: Any, pictures: Any, steps: Any):
    """Mean over the crops of the logarithm of mse + lmbda * bpp: every rate counts alike."""
    side = pictures.shape[1]

    def one(own, picture, step):
        target = Target(picture, side, side)
        distortion = gridfit.mse(config.net, shared, own, target, step)
        bits = gridfit.num_bits(config.net, shared, own, target, step)
        return jnp.log(distortion + gridfit.rate_weight(step) * bits / side**2)

    return jnp.mean(jax.vmap(one)(latents, pictures, steps))


def noted(config: GridTrainConfig, crops: np.ndarray, losses: np.ndarray) -> dict[str, Any]:
    """What a base says of its training."""
    size = min(100, len(losses))
    means = losses[: len(losses) // size * size].reshape(-1, size).mean(axis=1)
    return {
        "config": asdict(config),
        "num_crops": len(crops),
        "data_sha256": _digest(crops),
        "losses": [float(f"{mean:.4g}") for mean in means],
    }


def _digest(crops: np.ndarray) -> str:
    return hashlib.sha256(str(crops.shape).encode() + crops.tobytes()).hexdigest()
