"""Finding the latents of a picture, and the loss that their shared nets are learned by, in JAX.

The loss is mse + lmbda * bpp of integer latents. They are found by proximal gradient steps (Parikh
and Boyd 2014, "Proximal algorithms", section 4.2) over the integers: the gradient of the mse says
where each latent would be best by itself, since the synthesis is nearly orthonormal; there the best
of three integers is taken, rate and all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inrjax import context, entropy
from inrjax.fit import known_options
from inrjax.nets.latent_grid import LatentGridNet, analyze, level_params, step_size, synthesize
from inrjax.nets.sine import sine
from inrjax.types import Image

GRANULE = 64
"""Pictures are padded to multiples of so many pixels, so that few programs are compiled."""

GROUP_PIXELS = 1 << 22
"""Padded pixels that an accelerator fits by one program, at most, unless one picture has more.

A CPU holds 0.7 KiB for each; `inrjax.codecs.LatentGrid` has up to four such groups at work."""

_BORDER = 3  # latents so near to a border weigh up to twice: the border's values are repeated


@dataclass(frozen=True)
class Schedule:
    """How the steps of a fit go; the defaults were chosen on held-back images of cid22.

    Attributes:
      caution: of the first steps, at least 1 (see `improve`); from far away, steps of the full
        length grow on some pictures, at fine step sizes most of all.
      cautious: the share of all steps that are the first, 0..1.
      foresight: of all steps, 0..1 (see `improve`).
      first_share, last_share: of the latents that may move, in the first and, nearly, in the last
        step, above 0, at most 1; linear between.
    """

    caution: float = 1.5
    cautious: float = 0.25
    foresight: float = 0.7
    first_share: float = 0.6
    last_share: float = 0.3

    def __post_init__(self):
        shares = (self.first_share, self.last_share)
        good = self.caution >= 1 and 0 < min(shares) <= max(shares) <= 1
        if not good or not (0 <= self.cautious <= 1 and 0 <= self.foresight <= 1):
            raise ValueError(
                f"got {self}, expected a caution of at least 1, cautious and foresight of 0..1, "
                "and shares above 0, of at most 1"
            )

    def step(self, iteration: int, iterations: int) -> tuple[float, float, float]:
        """caution, foresight and share of a step, as `improve` takes them."""
        passed = iteration / iterations
        share = self.first_share + passed * (self.last_share - self.first_share)
        return self.caution if passed < self.cautious else 1.0, self.foresight, share


class Shared(NamedTuple):
    """What is learned: ``synthesis`` (see `LatentGridNet.shapes`) and ``context`` (see
    `inrjax.context.shapes`), trees of float32."""

    synthesis: Mapping[str, Any]
    context: Mapping[str, Mapping[str, Any]]


def rate_weight(step: Any) -> Any:
    """The lmbda that suits a step size: mse + lmbda * bpp, mse on [0, 1].

    At high rate, a step of size s costs an mse of s^2 / 36 (three components on three values),
    which falls by 6.02 dB for each bit of a latent: lmbda = ln 2 / 18 * s^2 = s^2 / 26.
    """
    return np.log(2) / 18 * step_size(step) ** 2


def convolve(values: Any, kernel: Any, true: tuple[Any, Any]) -> Any:
    """A convolution as `inrjax.nets.latent_grid.Convolve` asks for, of an array that may be longer
    than its true size."""
    reach = kernel.shape[0] // 2
    for axis, size in enumerate(true):
        length = values.shape[axis]
        if isinstance(size, int) and size == length:
            pads = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
            values = jnp.pad(values, pads, mode="edge")
        else:
            places = jnp.clip(jnp.arange(-reach, length + reach), 0, size - 1)
            values = jnp.take(values, places, axis=axis)
    return jax.lax.conv_general_dilated(
        values[None], kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]


def pixels(
    net: LatentGridNet, shared: Shared, latents: Sequence[Any], step: Any, sizes: Any
) -> jax.Array:
    """`synthesize` in JAX."""
    return synthesize(net, shared.synthesis, latents, step, sizes, jnp, convolve, sine)


class Scales(NamedTuple):
    """Laplace distributions of latents: ``mean``, and log2 of the scale, in steps; of one shape."""

    mean: Any
    exponent: Any


Distributions = Scales | entropy.Logits
"""Of some latents, arrays shaped as they."""


def distributions(
    net: LatentGridNet, weights: Mapping[str, Any], latents: Sequence[Any], step: Any, width: Any
) -> list[Distributions]:
    """Those of every latent, a list as the latents; logits in nats.

    ``width``: true columns of the lowest grid.
    """
    details = _details(net, weights, _seen(net, latents), step)
    return [*details, _low(weights, latents[-1], step, width)]


class Seen(NamedTuple):
    """What context models see of each grid of details: `inrjax.context.magnitude` and, if they see
    signs, `inrjax.context.signed`; lists shaped as the details, or an empty one."""

    magnitudes: list[Any]
    signed: list[Any]


def _seen(net: LatentGridNet, latents: Sequence[Any]) -> Seen:
    details = latents[:-1]
    signs = [context.signed(jnp, z) for z in details] if net.odd_width else []
    return Seen([context.magnitude(jnp, z) for z in details], signs)


def _details(
    net: LatentGridNet, weights: Mapping[str, Any], seen: Seen, step: Any
) -> list[Distributions]:
    result: list[Distributions] = []
    for level in range(net.levels):
        parts = [
            _component(net, weights[f"level{level}_{component}"], level, component, seen, step)
            for component in range(net.components(level))
        ]
        result.append(jax.tree.map(lambda *own: jnp.concatenate(own, axis=-1), *parts))
    return result


def _component(
    net: LatentGridNet, weights: Any, level: int, component: int, seen: Seen, step: Any
) -> Distributions:
    def features(values: Sequence[Any], step: Any) -> Any:
        own = values[level][..., 3 * component : 3 * component + 3]
        known = context.known_features(jnp, net, level, component, values, step)
        return jnp.concatenate([*context.shifted(jnp, own, context.CAUSAL), known], axis=-1)

    even = features(seen.magnitudes, step)
    if seen.signed:
        return context.logits(jnp, weights, even, features(seen.signed, None))
    exponent = context.scale_exponents(jnp, weights, even)
    return Scales(jnp.zeros_like(exponent), exponent)


def _low(weights: Mapping[str, Any], low: Any, step: Any, width: Any) -> Scales:
    row, column = jnp.indices(low.shape[:2])
    padded = jnp.pad(low, ((1, 0), (1, 1), (0, 0)))
    means: list[Any] = []
    exponents: list[Any] = []
    residuals: list[Any] = []
    for component in range(3):
        own = weights[f"low{component}"]
        around = context.neighbours(jnp, padded[..., component], row, column, width)
        mean = sum(w * x for w, x in zip(own["predict"], around, strict=True))
        features = context.low_features(jnp, around, residuals, step, jnp.float32)
        exponents.append(context.scale_exponents(jnp, own, features))
        means.append(mean)
        residuals.append(low[..., component] - jnp.floor(mean + 0.5))  # as `context.predictions`
    return Scales(jnp.stack(means, axis=-1), jnp.concatenate(exponents, axis=-1))


def bits_of(latents: Any, model: Distributions) -> Any:
    """Bits of each latent."""
    if isinstance(model, entropy.Logits):
        return entropy.decision_bits(latents, model)
    return entropy.bits(latents - model.mean, jnp.exp2(model.exponent))


# ---------------------------------------------------------------------------- one picture


class Target(NamedTuple):
    """A picture to fit: pixels (h, w, 3) in [0, 1], which may be padded; its true size."""

    pixels: Any
    height: Any
    width: Any


def padded_size(image: Image) -> tuple[int, int]:
    """Height and width of the `Target` of a picture: multiples of `GRANULE`."""
    height, width = image.shape[:2]
    return -(-height // GRANULE) * GRANULE, -(-width // GRANULE) * GRANULE


def make_target(image: Image) -> Target:
    """A uint8 picture, padded by its border to its `padded_size`."""
    height, width = image.shape[:2]
    rows, columns = padded_size(image)
    padded = np.pad(image, [(0, rows - height), (0, columns - width), (0, 0)], mode="edge")
    return Target(padded.astype(np.float32) / 255, np.int32(height), np.int32(width))


def mse(net: LatentGridNet, shared: Shared, latents: Any, target: Target, step: Any) -> jax.Array:
    """Mean squared error over the true pixels, of values in [0, 1]."""
    sizes = net.sizes(target.height, target.width)
    image = pixels(net, shared, latents, step, sizes)
    rows, columns, _ = target.pixels.shape
    true = (jnp.arange(rows) < target.height)[:, None] & (jnp.arange(columns) < target.width)
    errors = jnp.where(true[..., None], image[:rows, :columns] - target.pixels, 0.0)
    return jnp.sum(errors**2) / (3.0 * target.height * target.width)


def start(net: LatentGridNet, target: Target, step: Any) -> list[np.ndarray]:
    """Latents to start from, float32 integers: the wavelet's coefficients, rounded. Host arrays."""
    height, width = int(target.height), int(target.width)
    coefficients = analyze(net, target.pixels)
    shapes = net.latent_shapes(height, width)
    result = []
    for values, (rows, columns, _) in zip(coefficients, shapes, strict=True):
        rounded = np.rint(values / step_size(step)).astype(np.float32)
        rounded[rows:], rounded[:, columns:] = 0, 0
        result.append(rounded)
    return result


def improve(
    net: LatentGridNet,
    shared: Shared,
    latents: Any,
    target: Target,
    step: Any,
    lmbda: Any,
    key: Any,
    caution: Any = 1.0,
    foresight: Any = None,
    share: Any = 0.5,
) -> tuple[list[Any], Any]:
    """One proximal step over the integers; of the latents a ``share``, drawn at random, may move:
    all at once would overshoot. Returns the latents moved, and the `loss` before.

    ``caution``: times the curvature that a synthesis of orthonormal columns has. At 1 a step is the
    longest, and where the learned synthesis bends more, steps may grow instead of settling.
    ``foresight``: how much it counts, 0..1, what a latent's magnitude does to the bits of those
    whose models see it, to first order; None leaves it out, and saves the derivative.
    """
    distortion, gradients = jax.value_and_grad(lambda own: mse(net, shared, own, target, step))(
        list(latents)
    )
    count = target.height * target.width
    sizes = net.sizes(target.height, target.width)
    slopes = Seen([], [])
    if foresight is None:
        models = distributions(net, shared.context, latents, step, sizes[-1][1])
    else:
        slopes, models = context_slopes(net, shared.context, latents, step, sizes)
    before = distortion + lmbda * _total(net, latents, models, sizes) / count
    shapes = [own.shape for own in latents]
    own = _row(latents)
    curvature = caution / count * _curvatures(net, shared.synthesis, shapes, step, sizes)
    best = own - _row(gradients) / (2 * curvature)
    ahead = [
        (foresight * _row([*own, jnp.zeros(shapes[-1])]), see)
        for own, see in zip(slopes, (context.magnitude, context.signed), strict=True)
        if own
    ]
    choice = _cheapest(best, lmbda / count / curvature, _models_row(models), ahead)
    may_move = jax.random.uniform(key, own.shape) < share
    moved = jnp.where(may_move & _inside(net, shapes, sizes), choice, own)
    parts = jnp.split(moved, np.cumsum([math.prod(shape) for shape in shapes])[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)], before


def _curvatures(net: LatentGridNet, params: Any, shapes: Any, step: Any, sizes: Any) -> Any:
    """Half the second derivative, by each latent, of the sum of squared errors a pixel, in a row:
    that of a synthesis of orthonormal columns."""
    gains = [level_params(params, level)["gain"] for level in range(net.levels)]
    weights = [
        gain**2 * _border_weight(shape, true)
        for gain, shape, true in zip(
            [*gains, params["low"]["gain"]], shapes, _grids(net, sizes), strict=True
        )
    ]
    return step_size(step) ** 2 / 3.0 * _row(weights)


def _row(arrays: Iterable[Any]) -> Any:
    """All their values in one row: what is done to each latent alone is compiled once, not for
    every grid."""
    return jnp.concatenate([jnp.ravel(values) for values in arrays])


def _models_row(models: Iterable[Distributions]) -> list[Distributions]:
    """Those of one kind that follow each other in a row."""
    return [jax.tree.map(lambda *own: _row(own), *alike) for _, alike in groupby(models, key=type)]


def _row_bits(row: Any, models: Sequence[Distributions]) -> Any:
    """Bits of latents in a row, under the `_models_row` of them."""
    ends = np.cumsum([jax.tree.leaves(model)[0].size for model in models])
    parts = jnp.split(row, ends[:-1])
    return _row(bits_of(own, model) for own, model in zip(parts, models, strict=True))


def context_slopes(
    net: LatentGridNet, weights: Mapping[str, Any], latents: Any, step: Any, sizes: Any
) -> tuple[Seen, list[Distributions]]:
    """What a unit of what models see of a latent costs others, in bits, by their models.

    For each grid of details arrays shaped as it; and all `distributions`. ``sizes``: as of
    `LatentGridNet.sizes`.
    """
    low = _low(weights, latents[-1], step, sizes[-1][1])

    def bits(seen: Seen) -> tuple[Any, Any]:
        models = _details(net, weights, seen, step)
        return _total(net, latents, models, sizes), [*models, low]

    return jax.grad(bits, has_aux=True)(_seen(net, latents))


def _total(net: LatentGridNet, latents: Any, models: Any, sizes: Any) -> jax.Array:
    """Bits of the latents that are inside, of as many grids as there are models."""
    own = latents[: len(models)]
    inside = _inside(net, [values.shape for values in own], sizes)
    return jnp.sum(jnp.where(inside, _row_bits(_row(own), _models_row(models)), 0.0))


def _cheapest(best: Any, price: Any, models: Sequence[Distributions], ahead: Any) -> Any:
    """Of the two integers around ``best``, the next one towards 0, and 0: that of the least
    (z - best)^2 + price * (bits + what it costs others).

    ``ahead``: pairs of bits for a unit of what models see, and what they see of latents.
    """
    nearest = jnp.round(best)
    second = nearest + jnp.where(best > nearest, 1.0, -1.0)
    choice, least, zero = nearest, jnp.inf, jnp.zeros_like(nearest)
    for candidate in (nearest, second, nearest - jnp.sign(nearest), zero):
        bits = _row_bits(candidate, models)
        # Of 0 models see 0: XLA would look it up for every latent, while it compiles.
        for slope, see in () if candidate is zero else ahead:
            bits = bits + slope * see(jnp, candidate)
        cost = (candidate - best) ** 2 + price * bits
        choice = jnp.where(cost < least, candidate, choice)
        least = jnp.minimum(cost, least)
    return choice


def _grids(net: LatentGridNet, sizes: Any) -> list[Any]:
    """The true size of each grid of latents, of those that `LatentGridNet.sizes` gives."""
    return [*sizes[1:], sizes[net.levels]]


def _inside(net: LatentGridNet, shapes: Sequence[tuple[int, ...]], sizes: Any) -> Any:
    """Which latents are inside, in a row, of as many grids as there are shapes."""
    masks = []
    for shape, (height, width) in zip(shapes, _grids(net, sizes)[: len(shapes)], strict=True):
        rows, columns = jnp.arange(shape[0]) < height, jnp.arange(shape[1]) < width
        masks.append(jnp.broadcast_to((rows[:, None] & columns)[..., None], shape))
    return _row(masks)


def _border_weight(shape: tuple[int, ...], true: tuple[Any, Any]) -> Any:
    row, column = jnp.arange(shape[0]), jnp.arange(shape[1])
    near_row = jnp.minimum(row, true[0] - 1 - row) < _BORDER
    near_column = jnp.minimum(column, true[1] - 1 - column) < _BORDER
    return jnp.where(near_row[:, None] | near_column, 2.0, 1.0)[..., None]


def num_bits(net: LatentGridNet, shared: Shared, latents: Any, target: Target, step: Any):
    """Bits of all latents: an estimate, since the coder's models are in fixed point."""
    sizes = net.sizes(target.height, target.width)
    models = distributions(net, shared.context, latents, step, sizes[-1][1])
    return _total(net, latents, models, sizes)


def loss(
    net: LatentGridNet, shared: Shared, latents: Any, target: Target, step: Any, lmbda: Any
) -> jax.Array:
    """mse + lmbda * bpp."""
    bpp = num_bits(net, shared, latents, target, step) / (target.height * target.width)
    return mse(net, shared, latents, target, step) + lmbda * bpp


_COMPILER_OPTIONS = {"xla_cpu_use_fusion_emitters": False}
"""XLA's way to compile fused loops before its present one, which takes 1.7 times as long for a
program of so many small loops, and makes them no faster."""


@cache
def _programs(platform: str, batched: bool):
    """`improve` and `_better`; ``batched``: latents and target have an axis of pictures."""
    options = known_options(platform, _COMPILER_OPTIONS)
    if not batched:
        return jax.jit(improve, static_argnums=0, compiler_options=options), jax.jit(_better)

    def improve_all(net: Any, shared: Any, latents: Any, target: Any, *rest: Any) -> Any:
        def one(own: Any, target: Any) -> Any:
            return improve(net, shared, own, target, *rest)

        return jax.vmap(one)(latents, target)

    improve_jit = jax.jit(improve_all, static_argnums=0, compiler_options=options)
    return improve_jit, jax.jit(jax.vmap(_better))


def _better(best: Any, least: Any, latents: Any, value: Any) -> tuple[Any, Any]:
    better = value < least  # not where it is NaN
    kept = jax.tree.map(lambda own, new: jnp.where(better, new, own), best, latents)
    return kept, jnp.where(better, value, least)


def groups(images: Sequence[Image]) -> list[list[int]]:
    """The places of the pictures that `fit_latents` is best given at a time, in no special order.

    On a CPU each by itself: its threads fit several at once. On an accelerator those of one padded
    size, a power of two of them so that few programs are compiled, `GROUP_PIXELS` at most.
    """
    if jax.default_backend() == "cpu":
        return [[place] for place in range(len(images))]
    by_size: dict[tuple[int, int], list[int]] = {}
    for place, image in enumerate(images):
        by_size.setdefault(padded_size(image), []).append(place)
    result = []
    for (height, width), places in by_size.items():
        most = max(1, GROUP_PIXELS // (height * width))
        while places:
            count = 1 << (min(most, len(places)).bit_length() - 1)
            result.append(places[:count])
            places = places[count:]
    return result


def fit_latents(
    net: LatentGridNet,
    shared: Shared,
    images: Sequence[Image],
    step: int,
    lmbda: float,
    iterations: int,
    seed: int,
    schedule: Schedule | None = None,
) -> list[list[np.ndarray]]:
    """The int64 latents of each uint8 picture, shaped as `LatentGridNet.latent_shapes`.

    Of all iterates that of the least loss. ``schedule``: None for the default. Several pictures,
    which must have one `padded_size`, are fitted by one program, each as alone but for what sums
    round to.

    Raises ValueError for pictures of several padded sizes.
    """
    if len({padded_size(image) for image in images}) != 1:
        raise ValueError("got pictures of several padded sizes or none: fit each size by itself")
    targets = [make_target(image) for image in images]
    starts: Any = [start(net, target, step) for target in targets]
    rest = np.float32(step), np.float32(lmbda), iterations, seed, schedule or Schedule()
    if len(images) == 1:  # by a program of its own, which rounds the same on every occasion
        fitted = [_descend(False, net, shared, starts[0], targets[0], *rest)]
    else:
        latents, target = (
            jax.tree.map(lambda *own: np.stack(own), *many) for many in (starts, targets)
        )
        found = _descend(True, net, shared, latents, target, *rest)
        fitted = [[own[place] for own in found] for place in range(len(images))]
    return [_cut(net, image, own) for image, own in zip(images, fitted, strict=True)]


def _descend(
    batched: bool, net: Any, shared: Any, latents: Any, target: Any, step: Any, lmbda: Any,
    iterations: int, seed: int, schedule: Schedule,
) -> list[np.ndarray]:  # fmt: skip
    """Of all iterates that of the least loss, for each picture."""
    move, choose = _programs(jax.default_backend(), batched)
    key = jax.random.key(seed)
    best = latents
    least: Any = np.full(target.height.shape, np.inf, np.float32)
    for iteration in range(iterations + 1):
        factors = map(np.float32, schedule.step(iteration, iterations))
        own_key = jax.random.fold_in(key, iteration)
        moved, before = move(net, shared, latents, target, step, lmbda, own_key, *factors)
        best, least = choose(best, least, latents, before)
        latents = moved  # of the last step only the loss before it counts: `loss` alone would be
        # another program to compile, which takes longer than that step
    return [np.asarray(own) for own in best]


def _cut(net: LatentGridNet, image: Image, latents: Sequence[np.ndarray]) -> list[np.ndarray]:
    shapes = net.latent_shapes(*image.shape[:2])
    return [
        own[:rows, :columns].astype(np.int64)
        for own, (rows, columns, _) in zip(latents, shapes, strict=True)
    ]
