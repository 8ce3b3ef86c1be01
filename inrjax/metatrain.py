"""Learning an init for MetaSiren: MAML, or another method of meta-learning, over photographs, then
the prior of fitted params, its scales alone or its mean with them."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from inrjax import checkpoint, meta, optimizers, overfit, trees
from inrjax.images import coordinates
from inrjax.init import Init, flat_init
from inrjax.nets.siren import Encoding, Siren
from inrjax.optimizers import Optimizer
from inrjax.types import Image, OnProgress, Params

MIN_ROUND_IMAGES = 8
"""Of a round of `refine_prior`: of fewer, their own mean is too near to each of them to say how far
other images are from it."""


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
      rounds, round_images, round_steps: of `refine_prior`, and of the fits of each; 0 for none.
      slope: of all those fits, see `overfit.RatePlan`.
      seed: of everything, 0 to 2^32 - 1.

    Raises ValueError for what is out of range.
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
        if self.rounds and self.round_images < MIN_ROUND_IMAGES:
            raise ValueError(
                f"got {self.round_images} images of a round, expected at least {MIN_ROUND_IMAGES}"
            )
        rates = (self.learning_rate, self.rate_learning_rate, self.inner_rate, self.slope)
        if not all(0 <= rate < math.inf for rate in (*rates, self.bias_scale)):
            raise ValueError(f"got {self}, expected rates, slope and scale of 0 or more")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"got seed {self.seed}, expected 0 to 2^32 - 1")
        self.net()  # refuses what is out of range

    def net(self) -> Siren:
        """The network whose init is learned."""
        encoding = Encoding(self.num_frequencies, self.ratio)
        return Siren(self.width, self.depth, self.w0, encoding=encoding)


def done_with(config: MetaTrainConfig, num_images: int) -> MetaTrainConfig:
    """What is done with so many images: no rounds of too few, and no image twice in one."""
    return replace(
        config,
        prior_images=min(config.prior_images, num_images),
        rounds=config.rounds if num_images >= MIN_ROUND_IMAGES else 0,
        round_images=min(config.round_images, max(num_images, MIN_ROUND_IMAGES)),
    )


_PRIOR_FIELDS = ("prior_images", "prior_steps")
_ROUND_FIELDS = ("round_images", "round_steps", "slope", "seed")
_MAML_FIELDS = tuple(
    field.name
    for field in fields(MetaTrainConfig)
    if field.name not in (*_PRIOR_FIELDS, "rounds", *_ROUND_FIELDS) or field.name == "seed"
)


def _only(config: MetaTrainConfig, names: Sequence[str]) -> dict[str, Any]:
    """The fields that a phase uses: another value of the others is no other run of it."""
    return {name: getattr(config, name) for name in names}


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

    inner_rate: float = MetaTrainConfig.inner_rate
    learning_rate: float = MetaTrainConfig.learning_rate
    rate_learning_rate: float = MetaTrainConfig.rate_learning_rate
    first_order: bool = MetaTrainConfig.first_order

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

    inner_rate: float = MetaTrainConfig.inner_rate
    learning_rate: float = MetaTrainConfig.learning_rate
    rate_learning_rate: float = MetaTrainConfig.rate_learning_rate

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

    inner_rate: float = MetaTrainConfig.inner_rate
    learning_rate: float = MetaTrainConfig.learning_rate

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
    then `learn_prior`, then `refine_prior`, this of `MIN_ROUND_IMAGES` images or more.

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
    if images:
        config = done_with(config, len(images))
    weights = [
        _OUTER_STEP * config.num_steps,
        config.prior_images * config.prior_steps,
        config.rounds * config.round_images * config.round_steps,
    ]
    on_maml, on_prior, on_rounds = _parts(on_progress, weights)
    start = meta_train(config, method, images, folder, on_maml)
    if config.rounds:
        learned = _learn_and_refine(config, start, images, folder, on_prior, on_rounds)
    else:
        learned = learn_prior(config, start, images, on_prior)
    return replace(learned, info=dict(start.info) | (info or {}))


def _learn_and_refine(
    config: MetaTrainConfig,
    start: Init,
    images: Sequence[Image],
    folder: Path | None,
    on_prior: OnProgress | None,
    on_rounds: OnProgress | None,
) -> Init:
    """`learn_prior`, which is kept as the round 0, and `refine_prior`."""
    rounds = _Rounds.of(config, start, images, folder and folder / ROUNDS_FOLDER, _PRIOR_FIELDS)
    found = rounds.restore()
    if found is None:
        found = 0, learn_prior(config, start, images, on_prior)
        rounds.save(*found)
    return rounds.run(*found, on_rounds)


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
    start = around(flat_init(net, jax.tree.map(np.asarray, trained.params)))
    note = {"config": asdict(config), "num_images": len(images), "data_sha256": digest}
    return replace(start, rates=_rates(trained, config.inner_steps), info=note)


def random_init(
    config: MetaTrainConfig, images: Sequence[Image], on_progress: OnProgress | None = None
) -> Init:
    """A random init with a prior around it, learned from fits to ``images``: what a learned init
    is to be compared with. Raises ValueError as `learn_prior` does."""
    net = config.net()
    params = jax.tree.map(np.asarray, initial_params(config, net))
    start = replace(around(flat_init(net, params)), info={"config": asdict(config)})
    return learn_prior(config, start, images, on_progress)


def around(init: Init) -> Init:
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
    inputs = {
        "config": _only(config, _MAML_FIELDS), "method": repr(method), "data_sha256": digest,
    }  # fmt: skip
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


ROUNDS_FOLDER = "rounds"
"""Of `refine_prior`'s checkpoints, in the folder of `train_init`'s."""

_PSEUDO_FITS = 16
"""As many fits as the scale of a param's group counts for beside the param's own distances."""


def refine_prior(
    config: MetaTrainConfig,
    init: Init,
    images: Sequence[Image],
    folder: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Init:
    """The init with the prior's mean and scales learned by rounds of fits, under distortion and
    rate by the prior as it is.

    Each of ``config.rounds`` fits ``config.round_images`` images, other ones than the round before
    while there are any; then the mean, where fits start as well, becomes that of the fitted params,
    and each param's scale its mean distance from there, shrunk towards that of its group (as in
    `learn_prior`). COMBINER learns its Gaussian prior so (Guo et al. 2023, arXiv:2305.19185), from
    posteriors where there are points here; that the mean is kept with a Laplace distribution, whose
    location of maximum likelihood is the median, is a choice: rates draw most params of a fit to
    where they started, and the median would stay there. Of the mean alone it is Reptile (Nichol et
    al. 2018) with long fits inside and a step of 1.

    A fit that diverges is left out, and a warning says so. ``folder``: each round is saved there,
    the two newest are kept; a run that was stopped goes on, as one of more rounds does.

    Raises:
      ValueError: fewer than `MIN_ROUND_IMAGES` images, or fits of a round that did not diverge; an
        init whose prior's mean is not its params; checkpoints of another run, or of more rounds.
    """
    if len(images) < MIN_ROUND_IMAGES:
        raise ValueError(f"got {len(images)} images, expected at least {MIN_ROUND_IMAGES}")
    if any(keep != 1 for _, keep in trees.leaves(init.keep)):
        raise ValueError("the prior's mean is not the init's params (keep is not 1)")
    if not config.rounds:
        return init
    config = done_with(config, len(images))
    rounds = _Rounds.of(config, init, images, folder, (), init.digest.hex())
    found = rounds.run(*(rounds.restore() or (0, init)), on_progress)
    return replace(found, info=rounds_info(config, init, len(images), rounds.inputs["data_sha256"]))


def rounds_info(
    config: MetaTrainConfig, start: Init, num_images: int, data_sha256: str
) -> dict[str, Any]:
    """What `refine_prior` notes: its options and data, and under ``start`` all that was noted of
    the init it went on from, with its digest."""
    return {
        "config": _only(config, ("rounds", *_ROUND_FIELDS)),
        "num_images": num_images,
        "data_sha256": data_sha256,
        "start": {"digest": start.digest.hex()} | dict(start.info),
    }


@dataclass(frozen=True, eq=False)
class _Rounds:
    """Rounds of `refine_prior` from params and rates of ``start``; ``inputs``: what makes them."""

    config: MetaTrainConfig
    start: Init
    images: Sequence[Image]
    folder: Path | None
    inputs: Mapping[str, Any]

    @classmethod
    def of(
        cls, config: MetaTrainConfig, start: Init, images: Sequence[Image], folder: Path | None,
        more: Sequence[str], prior: str = "",
    ) -> _Rounds:  # fmt: skip
        """``more``: fields of the config, beside those of rounds, and ``prior``: what else decides
        about the prior that the first round is under."""
        inputs = {
            "config": _only(config, (*_ROUND_FIELDS, *more)),
            "start": trees.digest(start.params).hex(),
            "rates": trees.digest(start.rates or {}).hex(),
            "prior": prior,
            "data_sha256": _data_digest(images),
        }
        return cls(config, start, images, folder, inputs)

    def restore(self) -> tuple[int, Init] | None:
        """The newest round that was saved, and what it found."""
        if self.folder is None:
            return None
        restored = checkpoint.restore(self.folder, _state(self.start), self.inputs)
        if restored is not None and restored.step > self.config.rounds:
            raise checkpoint.OtherRunError(
                f"{self.folder} is of {restored.step} rounds, {self.config.rounds} were asked for: "
                "choose another folder, or delete it"
            )
        return restored and (restored.step, _with(self.start, restored.state))

    def save(self, done: int, init: Init) -> None:
        if self.folder is not None:
            checkpoint.save(self.folder, done, _state(init), self.inputs)

    def run(self, done: int, init: Init, on_progress: OnProgress | None) -> Init:
        """The rounds that are left."""
        count = self.config.rounds
        for i in range(done, count):
            part = _parts(on_progress, [_PROGRESS_UNITS] * count)[i]
            init = self._round(init, i, part)
            self.save(i + 1, init)
        if on_progress is not None and done >= count > 0:
            on_progress(_PROGRESS_UNITS * count, _PROGRESS_UNITS * count)
        return init

    def _round(self, init: Init, index: int, on_progress: OnProgress | None) -> Init:
        config, images = self.config, self.images
        order = np.random.default_rng(config.seed).permutation(len(images))
        count = config.round_images
        chosen = [images[order[(index * count + i) % len(images)]] for i in range(count)]
        fits = _prior_fits(config, init, chosen, config.round_steps, on_progress)
        state: dict[str, Any] = {"params": {}, "envelope": {}}
        for path, fitted in fits.items():
            if len(fitted) < MIN_ROUND_IMAGES:
                diverged = f"{count - len(fitted)} of {count} fits of a round diverged"
                raise ValueError(f"{diverged}: the init is of no use")
            # Distances are from the mean as it is stored: what files will be coded by.
            mean = state["params"][path] = fitted.mean(axis=0).astype(np.float16)
            distance = np.abs(fitted - mean.astype(np.float32))
            own, group = distance.mean(axis=0), distance.mean(_group(path, distance), keepdims=True)
            scale = (len(fitted) * own + _PSEUDO_FITS * group[0]) / (len(fitted) + _PSEUDO_FITS)
            state["envelope"][path] = _level(scale)
        return _with(init, {name: trees.from_leaves(tree) for name, tree in state.items()})


def _state(init: Init) -> dict[str, Any]:
    """What a round finds, the envelope at full shape."""
    levels = {path: level.astype(np.int8) for path, level in init.levels().items()}
    return {"params": init.params, "envelope": trees.from_leaves(levels)}


def _with(init: Init, state: Params) -> Init:
    params, envelope = (
        trees.from_leaves({path: np.asarray(leaf) for path, leaf in trees.leaves(state[name])})
        for name in ("params", "envelope")
    )
    return replace(init, params=params, envelope=envelope)


def _group(path: str, distance: np.ndarray) -> tuple[int, ...]:
    """The axes of (fits, *shape) over which params are alike: all, but columns of the first layer,
    whose scales fall steeply with the frequency."""
    by_column = path.startswith("layer_00/") and distance.ndim == 3
    return (0, 1) if by_column else tuple(range(distance.ndim))


def _level(scale: np.ndarray) -> np.ndarray:
    """The nearest quarter octave."""
    return np.clip(np.rint(4 * np.log2(scale + 1e-12)), -127, 127).astype(np.int8)


FIT_PIXELS = 1 << 24
"""Pixels of the images that are fitted at once, each as large as the largest of them: it bounds the
memory."""


def _prior_fits(
    config: MetaTrainConfig,
    init: Init,
    images: Sequence[Image],
    num_steps: int,
    on_progress: OnProgress | None,
) -> dict[str, np.ndarray]:
    """Path -> the fitted params of the images whose fit is finite, (fits, *shape), float32."""
    fitting = overfit.Fitting(
        lambda optimizer, tiles: overfit.RatePlan(
            init.net, optimizer, num_steps, tiles, max(1, num_steps // 40)
        ),
        optimizers.Muon(overfit.LEARNING_RATE),
        overfit.POINTS_PER_STEP,
        config.seed,
    )
    shared = overfit.rate_shared(init, config.slope, config.seed)
    largest = max(image.shape[0] * image.shape[1] for image in images)
    size = max(1, FIT_PIXELS // largest)
    batches = [images[i : i + size] for i in range(0, len(images), size)]
    fitted: list[dict[str, Any]] = []
    for batch, part in zip(batches, _parts(on_progress, [len(b) for b in batches]), strict=True):
        results = overfit.fit_once(dict(enumerate(batch)), fitting, shared, part)
        fitted += [dict(trees.leaves(r.params["net"])) for r in results.values() if r.finite]
    if not fitted:
        raise ValueError("every fit of the prior diverged: the init is of no use")
    if len(fitted) < len(images):
        warnings.warn(
            f"{len(images) - len(fitted)} of {len(images)} fits of the prior diverged: they are "
            "left out",
            stacklevel=2,
        )
    return {path: np.stack([one[path] for one in fitted]) for path in fitted[0]}


def _spread(count: int, most: int) -> list[int]:
    """Up to ``most`` positions spread evenly over ``count``."""
    return [int(i) for i in np.unique(np.linspace(0, count - 1, min(count, most)).round())]


_PROGRESS_UNITS = 1000

_OUTER_STEP = 20
"""Steps of a fit that an outer step takes as long as, about: for the progress alone."""


def _parts(on_progress: OnProgress | None, weights: Sequence[int]) -> list[OnProgress | None]:
    """The progress of each of consecutive parts, in `_PROGRESS_UNITS` for each of its weight."""
    if on_progress is None:
        return [None] * len(weights)
    report, total = on_progress, _PROGRESS_UNITS * sum(weights)

    def part(before: int, weight: int) -> OnProgress:
        return lambda done, of: report(_PROGRESS_UNITS * (before * of + weight * done) // of, total)

    return [part(sum(weights[:i]), weight) for i, weight in enumerate(weights)]
