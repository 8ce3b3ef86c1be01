"""Learning an init for MetaSiren: MAML, or another method of meta-learning, over photographs, then
the prior of fitted params, its scales alone or its mean with them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from inrjax import checkpoint, fit, meta, optimizers, overfit, trees
from inrjax.images import coordinates
from inrjax.init import Init, flat_init
from inrjax.nets.siren import Encoding, Siren
from inrjax.optimizers import Optimizer
from inrjax.types import Image, OnProgress, Params


@dataclass(frozen=True)
class MetaTrainConfig:
    """What `train_init` computes.

    Attributes:
      width: neurons of a layer. depth: sine layers. w0: their frequency factor: how far a step
        of Muon moves a layer's product; at 30 a fit of some images does not settle.
      num_frequencies, ratio: of the positional encoding, see `inrjax.nets.siren.Encoding`.
      num_steps: outer steps of MAML. inner_steps: inner SGD steps. first_order: drop the Hessian
        terms. tasks_per_step: images of an outer step. points: pixels an inner step sees.
      learning_rate: outer Adam's, decaying to 0 by cosine; that of the inner rates is
        ``rate_learning_rate``, and they start at ``inner_rate``.
      bias_scale: of the random init's biases. Small ones fit as well and code shorter.
      prior_images, prior_steps: fits that the prior's first scales are estimated from.
      rounds, round_images, round_steps: of `refine_prior`, the fits of each round; 0 rounds: none.
      slope: of all those fits, see `overfit.RatePlan`.
      seed: of everything.
    """

    width: int
    depth: int = 4
    w0: float = 15.0
    num_frequencies: int = 12
    ratio: float = 1.5
    num_steps: int = 3000
    inner_steps: int = 3
    first_order: bool = False
    tasks_per_step: int = 2
    points: int = 4096
    learning_rate: float = 1e-3
    rate_learning_rate: float = 1.5e-3
    inner_rate: float = 0.03
    bias_scale: float = 0.3
    prior_images: int = 8
    prior_steps: int = 3000
    rounds: int = 3
    round_images: int = 48
    round_steps: int = 1500
    slope: float = 0.3
    seed: int = 0

    def __post_init__(self):
        counts = (self.width, self.num_steps, self.inner_steps, self.tasks_per_step, self.points)
        fits = (self.prior_images, self.prior_steps, self.round_images, self.round_steps)
        if min(*counts, *fits) < 1 or self.rounds < 0:
            raise ValueError(f"got {self}, expected counts of at least 1, and 0 rounds or more")
        self.net()  # refuses what is out of range

    def net(self) -> Siren:
        """The network whose init is learned."""
        encoding = Encoding(self.num_frequencies, self.ratio)
        return Siren(self.width, self.depth, self.w0, encoding=encoding)


# ---------------------------------------------------------------------------- methods


class Method(Protocol):
    """A method of meta-learning, as a hashable value."""

    def start(self, params: Params, inner_steps: int) -> meta.MetaParams:
        """The meta params before the first outer step."""
        ...

    def task_gradient(self, loss_fn: meta.TaskLoss, inner_steps: int) -> meta.TaskGradient:
        """What one task says of the meta params."""
        ...

    def optimizer(self, num_steps: int) -> optax.GradientTransformation:
        """The outer optimiser for so many outer steps."""
        ...


def _outer_adam(
    num_steps: int, learning_rate: float, rate_learning_rate: float
) -> optax.GradientTransformation:
    def adam(rate):
        return optax.adam(optax.cosine_decay_schedule(rate, num_steps))

    # A rare image has gradients far beyond the others'; one such step undoes many.
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.partition(
            {"params": adam(learning_rate), "rates": adam(rate_learning_rate)},
            meta.MetaParams("params", "rates"),
        ),
    )


@dataclass(frozen=True)
class Maml:
    """MAML (Finn et al. 2017) with a learned rate for each parameter and inner step (Strümpler et
    al. 2022); the fields are as in `MetaTrainConfig`, whose defaults these are."""

    inner_rate: float = 0.03
    learning_rate: float = 1e-3
    rate_learning_rate: float = 1.5e-3
    first_order: bool = False

    def start(self, params: Params, inner_steps: int) -> meta.MetaParams:
        """All rates at ``inner_rate``."""
        return meta.init_meta(params, inner_steps, self.inner_rate)

    def task_gradient(self, loss_fn: meta.TaskLoss, inner_steps: int) -> meta.TaskGradient:
        """For params and rates."""
        return meta.maml(loss_fn, self.first_order)

    def optimizer(self, num_steps: int) -> optax.GradientTransformation:
        """Adam on a cosine decay, gradients clipped at a norm of 1."""
        return _outer_adam(num_steps, self.learning_rate, self.rate_learning_rate)


@dataclass(frozen=True)
class MetaSgd:
    """Meta-SGD (Li et al. 2017), second order, with several inner steps: a learned rate for each
    parameter, the same at all of them."""

    inner_rate: float = 0.03
    learning_rate: float = 1e-3
    rate_learning_rate: float = 1.5e-3

    def start(self, params: Params, inner_steps: int) -> meta.MetaParams:
        """All rates at ``inner_rate``."""
        return meta.init_meta_sgd(params, self.inner_rate)

    def task_gradient(self, loss_fn: meta.TaskLoss, inner_steps: int) -> meta.TaskGradient:
        """For params and rates."""
        return meta.maml(loss_fn, first_order=False)

    def optimizer(self, num_steps: int) -> optax.GradientTransformation:
        """As `Maml`'s."""
        return _outer_adam(num_steps, self.learning_rate, self.rate_learning_rate)


@dataclass(frozen=True)
class FixedRateMaml:
    """MAML as published (Finn et al. 2017): one inner rate, which is not learned."""

    inner_rate: float = 0.03
    learning_rate: float = 1e-3

    def start(self, params: Params, inner_steps: int) -> meta.MetaParams:
        """The rate at ``inner_rate``."""
        return meta.init_meta_scalar(params, self.inner_rate)

    def task_gradient(self, loss_fn: meta.TaskLoss, inner_steps: int) -> meta.TaskGradient:
        """For params alone."""
        return meta.fixed_rates(meta.maml(loss_fn, first_order=False))

    def optimizer(self, num_steps: int) -> optax.GradientTransformation:
        """As `Maml`'s."""
        return _outer_adam(num_steps, self.learning_rate, 0.0)


@dataclass(frozen=True)
class Reptile:
    """Reptile (Nichol et al. 2018): towards the params after the steps of ``inner``, a fresh
    optimiser for each task; the outer rate falls from ``epsilon`` to 0, linearly as published."""

    inner: Optimizer
    epsilon: float = 1.0

    def start(self, params: Params, inner_steps: int) -> meta.MetaParams:
        """No rates."""
        return meta.MetaParams(params, {})

    def task_gradient(self, loss_fn: meta.TaskLoss, inner_steps: int) -> meta.TaskGradient:
        """For params alone."""
        # Built for one step more: the last of a schedule that decays to 0 would not move.
        return meta.reptile(loss_fn, self.inner.build(inner_steps + 1))

    def optimizer(self, num_steps: int) -> optax.GradientTransformation:
        """Plain descent."""
        return optax.sgd(optax.linear_schedule(self.epsilon, 0.0, num_steps))


# ---------------------------------------------------------------------------- the whole


CHECKPOINT_STEPS = 100


def train_init(
    config: MetaTrainConfig,
    images: Sequence[Image],
    folder: Path | None = None,
    on_progress: OnProgress | None = None,
    info: dict[str, Any] | None = None,
) -> Init:
    """Learn the init and the prior of a width from photographs (uint8 (height, width, 3)): MAML,
    then `learn_prior`, then `refine_prior`.

    Args:
      folder: where checkpoints of MAML and of the rounds go, and come from if there are any: a run
        that was stopped goes on and ends with the same init. None for none.
      info: more to note in the init (command, licence of the data).

    Raises:
      ValueError: no images, checkpoints of another run, or the training diverged.
    """
    method = Maml(
        config.inner_rate, config.learning_rate, config.rate_learning_rate, config.first_order
    )
    parts = 2 + config.rounds
    start = meta_train(config, method, images, folder, _part(on_progress, 0, parts))
    learned = learn_prior(config, start, images, _part(on_progress, 1, parts))
    if config.rounds:
        learned = refine_prior(
            config, learned, images, folder and folder / ROUNDS, _part(on_progress, 2, parts, parts)
        )
    return replace(learned, info=dict(start.info) | (info or {}))


def meta_train(
    config: MetaTrainConfig,
    method: Method,
    images: Sequence[Image],
    folder: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Init:
    """The init that a method of meta-learning finds, its prior still flat: see `learn_prior`.

    The learning rates of ``config`` and its ``first_order`` are for `train_init`: here the method
    has its own. The init has rates, for each parameter and inner step, where the method has.
    ``folder`` and the errors are as in `train_init`.
    """
    if not images:
        raise ValueError("got no images, expected at least one to learn from")
    smallest = min(images, key=lambda image: image.shape[0] * image.shape[1])
    if smallest.shape[0] * smallest.shape[1] < config.points:
        raise ValueError(
            f"got an image of {smallest.shape[0]} x {smallest.shape[1]} pixels, expected at least "
            f"{config.points} pixels in each: leave the small ones out"
        )
    net = config.net()
    digest = _data_digest(images)
    trained = _train(config, method, net, images, digest, folder, on_progress)
    start = _around(flat_init(net, jax.tree.map(np.asarray, trained.params)))
    note = {"config": asdict(config), "num_images": len(images), "data_sha256": digest}
    return replace(start, rates=_rates(trained, config.inner_steps), info=note)


def random_init(
    config: MetaTrainConfig, images: Sequence[Image], on_progress: OnProgress | None = None
) -> Init:
    """A random init with a prior around it, learned from fits to ``images``: what a learned init
    is to be compared with. Raises ValueError as `learn_prior` does."""
    net = config.net()
    params = jax.tree.map(np.asarray, initial_params(config, net))
    start = replace(_around(flat_init(net, params)), info={"config": asdict(config)})
    return learn_prior(config, start, images, on_progress)


def _around(init: Init) -> Init:
    """The init with the prior's mean at its params: to code the distance from there is 0.15 dB
    better than the distance from 0 (held-back images)."""
    keep = {path: np.float32(1) for path, _ in trees.leaves(init.params)}
    return replace(init, keep=trees.from_leaves(keep))


def _rates(trained: meta.MetaParams, inner_steps: int) -> dict[str, Any] | None:
    if not jax.tree.leaves(trained.rates):
        return None
    rates = meta.spread_rates(trained, inner_steps)
    return trees.from_leaves(
        {path: np.asarray(leaf, np.float16) for path, leaf in trees.leaves(rates)}
    )


# ---------------------------------------------------------------------------- the outer loop


def _train(
    config: MetaTrainConfig,
    method: Method,
    net: Siren,
    images: Sequence[Image],
    digest: str,
    folder: Path | None,
    on_progress: OnProgress | None,
) -> meta.MetaParams:
    mesh = _mesh(config.tasks_per_step)
    everywhere = jax.NamedSharding(mesh, jax.P())
    data = jax.device_put(_task_data(images, config.seed), everywhere)
    initial = method.start(initial_params(config, net), config.inner_steps)
    state = meta.start(initial, method.optimizer(config.num_steps))
    inputs = {"config": asdict(config), "method": repr(method), "data_sha256": digest}
    if folder is not None:
        restored = checkpoint.restore(folder, state, inputs)
        state = jax.tree.map(jnp.asarray, restored.state) if restored else state
    done = int(state.step)
    state = jax.device_put(state, everywhere)  # where the program leaves it: one compilation
    while done < config.num_steps:
        steps = min(CHECKPOINT_STEPS, config.num_steps - done)
        state, any_finite = _advance(config, method, net, mesh, steps, state, data)
        if not any_finite:
            raise ValueError("meta-training diverged: lower learning_rate or inner_rate")
        done += steps
        if folder is not None:
            checkpoint.save(folder, done, state, inputs)
        if on_progress is not None:
            on_progress(done, config.num_steps)
    return state.meta


def _mesh(num_tasks: int) -> jax.sharding.Mesh:
    """This process's devices, as many as have a task of an outer step to do."""
    devices = jax.local_devices()[:num_tasks]
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((len(devices),), ("task",), axis_types=auto, devices=devices)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _advance(config, method, net, mesh, num_steps, state, data):
    """``num_steps`` more outer steps; the state, and whether any of their losses was finite. One
    program for chunks of all lengths: XLA takes longer to compile it than to run a hundred."""

    def loss_fn(params, points):
        coords, pixels = points
        return overfit.point_mse(net, params, coords, pixels, jnp.ones(coords.shape[1]))

    def on_device(num_steps, state, data):
        def step(_, carry):
            state, any_finite = carry
            state, loss = meta.outer_step(
                method.task_gradient(loss_fn, config.inner_steps),
                partial(_sample_tasks, config, data),
                state,
                method.optimizer(config.num_steps),
                jax.random.key(config.seed),
                "task",
            )
            return state, any_finite | jnp.isfinite(loss)

        return jax.lax.fori_loop(0, num_steps, step, (state, jnp.array(False)))

    # check_vma=False: every device holds the same state, and no gradient may be summed over them.
    return jax.shard_map(
        on_device, mesh=mesh, in_specs=(jax.P(),) * 3, out_specs=jax.P(), check_vma=False
    )(num_steps, state, data)


def initial_params(config: MetaTrainConfig, net: Siren) -> Params:
    """The random params that meta-training begins at: the net's own, with smaller biases."""
    return {
        name: {"weight": layer["weight"], "bias": config.bias_scale * layer["bias"]}
        for name, layer in net.init(jax.random.key(config.seed)).items()
    }


POOL_POINTS = 1 << 16
"""Pixels of an image that meta-training draws from, at most: it bounds the memory."""


def _task_data(images: Sequence[Image], seed: int) -> tuple[jax.Array, jax.Array]:
    """coords float32 (images, n, 2) and pixels uint8 (images, n, 3): n random pixels of each."""
    rng = np.random.default_rng(seed)
    size = min(POOL_POINTS, *(i.shape[0] * i.shape[1] for i in images))
    coords, pixels = [], []
    for image in images:
        chosen = rng.choice(image.shape[0] * image.shape[1], size, replace=False)
        coords.append(coordinates(*image.shape[:2])[chosen])
        pixels.append(image.reshape(-1, 3)[chosen])
    return jnp.asarray(np.stack(coords)), jnp.asarray(np.stack(pixels))


def _sample_tasks(config: MetaTrainConfig, data: tuple[jax.Array, jax.Array], key: jax.Array):
    """A batch of tasks: random images, and random pixels for each inner step and the outer one."""
    coords, pixels = data
    key_image, key_point = jax.random.split(key)
    tasks, slices = config.tasks_per_step, config.inner_steps + 1
    image = jax.random.randint(key_image, (tasks, 1, 1), 0, coords.shape[0])
    point = jax.random.randint(key_point, (tasks, slices, config.points), 0, coords.shape[1])
    some_coords = jnp.swapaxes(coords[image, point], -1, -2)
    some_pixels = jnp.swapaxes(pixels[image, point], -1, -2).astype(jnp.float32) / 127.5 - 1
    inner, outer = slice(None, -1), -1
    return meta.Task(
        (some_coords[:, inner], some_pixels[:, inner]),
        (some_coords[:, outer], some_pixels[:, outer]),
    )


def _data_digest(images: Sequence[Image]) -> str:
    sha = hashlib.sha256()
    for image in images:
        sha.update(str(image.shape).encode() + image.tobytes())
    return sha.hexdigest()


# ---------------------------------------------------------------------------- the prior


def learn_prior(
    config: MetaTrainConfig,
    init: Init,
    images: Sequence[Image],
    on_progress: OnProgress | None = None,
) -> Init:
    """The init with its envelope estimated anew, from fits to up to ``config.prior_images`` images.

    One Laplace scale, in quarter octaves, for each column of the first layer, one for each other
    tensor: from so few fits, finer scales gained nothing on held-back images.

    Raises:
      ValueError: every fit diverged.
    """
    chosen = [images[i] for i in _spread(len(images), config.prior_images)]
    fits = _prior_fits(config, init, chosen, config.prior_steps, on_progress)
    envelope = {}
    for path, mean in trees.leaves(init.mean()):
        # The maximum-likelihood scale of a Laplace distribution is the mean distance from its mean.
        distance = np.abs(fits[path] - mean)
        envelope[path] = _level(distance.mean(_group(path, distance), keepdims=True)[0])
    return replace(init, envelope=trees.from_leaves(envelope))


ROUNDS = "rounds"
"""The folder of `refine_prior`'s checkpoints in that of `train_init`'s."""

_PRIOR_FITS = 16
"""As many fits as the scale of a param's group counts for beside the param's own distances."""


def refine_prior(
    config: MetaTrainConfig,
    init: Init,
    images: Sequence[Image],
    folder: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Init:
    """The init with the prior's mean and scales learned by rounds of long fits, all of the file.

    In each of ``config.rounds`` the codec's fit, which sees distortion and rate under the prior as
    it is, is run on ``config.round_images`` images, other ones in each round while there are any;
    then the mean, where fits start as well, becomes that of the fitted params, and the scale of
    each param its mean distance from there, drawn to that of its group (`learn_prior`). This is how
    COMBINER learns its prior (Guo et al. 2023, arXiv:2305.19185), with Laplace distributions and
    points in place of Gaussians and posteriors; of the mean alone it is Reptile (Nichol et al.
    2018) with whole fits inside and a step of 1. ``folder`` has a checkpoint of each round, and is
    as in `train_init`.

    Raises:
      ValueError: every fit of a round diverged, or checkpoints of another run.
    """
    inputs = {
        "config": asdict(config), "init": init.digest.hex(), "data_sha256": _data_digest(images)
    }  # fmt: skip
    state = {"params": init.params, "envelope": _full_levels(init)}
    done = 0
    if folder is not None and (restored := checkpoint.restore(folder, state, inputs)):
        state, done = restored
    for i in range(done, config.rounds):
        found = _round(config, _with(init, state), images, i, _part(on_progress, i, config.rounds))
        state = {"params": found.params, "envelope": found.envelope}
        if folder is not None:
            checkpoint.save(folder, i + 1, state, inputs)
    if on_progress is not None:
        on_progress(config.rounds, config.rounds)
    return _with(init, state)


def _full_levels(init: Init) -> dict[str, Any]:
    return trees.from_leaves({p: level.astype(np.int8) for p, level in init.levels().items()})


def _with(init: Init, state: Params) -> Init:
    """The init with a round's params, all of them the prior's mean, and envelope."""
    params, envelope = (
        {path: np.asarray(leaf) for path, leaf in trees.leaves(state[name])}
        for name in ("params", "envelope")
    )
    keep = {path: np.float32(1) for path in params}
    return replace(
        init, params=trees.from_leaves(params), keep=trees.from_leaves(keep),
        envelope=trees.from_leaves(envelope),
    )  # fmt: skip


def _round(
    config: MetaTrainConfig,
    init: Init,
    images: Sequence[Image],
    index: int,
    on_progress: OnProgress | None,
) -> Init:
    order = np.random.default_rng(config.seed).permutation(len(images))
    count = min(config.round_images, len(images))
    chosen = [images[order[(index * count + i) % len(images)]] for i in range(count)]
    fits = _prior_fits(config, init, chosen, config.round_steps, on_progress)
    params, envelope = {}, {}
    for path, fitted in fits.items():
        # Distances are from the mean as it is stored: what files will be coded by.
        params[path] = fitted.mean(axis=0).astype(np.float16)
        distance = np.abs(fitted - params[path].astype(np.float32))
        own, group = distance.mean(axis=0), distance.mean(_group(path, distance), keepdims=True)[0]
        scale = (len(fitted) * own + _PRIOR_FITS * group) / (len(fitted) + _PRIOR_FITS)
        envelope[path] = _level(scale)
    return _with(
        init, {"params": trees.from_leaves(params), "envelope": trees.from_leaves(envelope)}
    )


def _group(path: str, distance: np.ndarray) -> tuple[int, ...]:
    """The axes of (fits, *shape) over which params are alike: all, but columns of the first layer,
    whose scales fall steeply with the frequency."""
    by_column = path.startswith("layer_00/") and distance.ndim == 3
    return (0, 1) if by_column else tuple(range(distance.ndim))


def _level(scale: np.ndarray) -> np.ndarray:
    """The nearest quarter octave."""
    return np.clip(np.rint(4 * np.log2(scale + 1e-12)), -127, 127).astype(np.int8)


def _prior_fits(
    config: MetaTrainConfig,
    init: Init,
    images: Sequence[Image],
    num_steps: int,
    on_progress: OnProgress | None,
) -> dict[str, np.ndarray]:
    """Path -> the fitted params of the images whose fit is finite, (fits, *shape), float32."""
    sizes = [image.shape[0] * image.shape[1] for image in images]
    tiling = fit.tiling(min(sizes), overfit.POINTS_PER_STEP)
    num_tiles = fit.bucket(max(-(-size // tiling.tile) for size in sizes))
    points = [overfit.image_points(image, tiling, num_tiles, config.seed) for image in images]
    plan = overfit.RatePlan(
        init.net, optimizers.Muon(overfit.LEARNING_RATE), num_steps, tiling.tiles_per_step,
        max(1, num_steps // 40),
    )  # fmt: skip
    shared = overfit.rate_shared(init, config.slope, config.seed)
    results = fit.fit_batch(plan, shared, points, on_progress)
    fitted = [dict(trees.leaves(result.params["net"])) for result in results if result.finite]
    if not fitted:
        raise ValueError("every fit of the prior diverged: the init is of no use")
    return {path: np.stack([one[path] for one in fitted]) for path in fitted[0]}


def _spread(count: int, most: int) -> list[int]:
    """Up to ``most`` positions spread evenly over ``count``."""
    return [int(i) for i in np.unique(np.linspace(0, count - 1, min(count, most)).round())]


_PROGRESS_UNITS = 1000


def _part(
    on_progress: OnProgress | None, index: int, parts: int, end: int | None = None
) -> OnProgress | None:
    """The progress from one of equal parts to before ``end``, that one by default."""
    if on_progress is None:
        return None
    span = (end or index + 1) - index
    return lambda done, total: on_progress(
        _PROGRESS_UNITS * index + _PROGRESS_UNITS * span * done // total, _PROGRESS_UNITS * parts
    )
