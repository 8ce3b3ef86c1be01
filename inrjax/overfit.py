"""Overfitting a SIREN to one image: the plans that `fit.fit_batch` runs for the codecs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from inrjax import entropy, fit, meta, product_quantization, quantize, trees
from inrjax.fit import FitState, Points, Tiling
from inrjax.images import coordinates
from inrjax.init import Init
from inrjax.nets import fused
from inrjax.nets.siren import Siren
from inrjax.optimizers import Number, Optimizer, cosine_decay, traced
from inrjax.types import Image, OnProgress, Params


def image_points(image: Image, tiling: Tiling, num_tiles: int, seed: int) -> Points:
    """The pixels of a uint8 (height, width, 3) image in [-1, 1], at their coordinates, shuffled."""
    height, width = image.shape[:2]
    pixels = image.reshape(-1, 3).astype(np.float32) / np.float32(127.5) - np.float32(1)
    return fit.make_points(coordinates(height, width), pixels, tiling.tile, num_tiles, seed)


def _image_mse(
    net: Siren,
    params: Params,
    points: Points,
    tiles: jax.Array,
    axis: str | None = None,
    kernel: fused.Kernel | None = None,
) -> jax.Array:
    """Mean squared error on the [0, 1] scale: pixels are in [-1, 1], whence the 4."""
    if kernel is None:
        tile_loss = fit.squared_error(net.apply_columns)
    else:
        tile_loss = partial(fused.squared_error_and_grads, net, kernel=kernel)
    piece = fit.piece_of(net.width)
    return 0.25 * jnp.asarray(fit.tiled_mse(tile_loss, params, points, tiles, piece, axis))


@traced("optimizer", "num_steps", "window")
@dataclass(frozen=True)
class PlainPlan:
    """Distortion alone, from a random init: COIN (Dupont et al. 2021, arXiv:2103.03123).

    ``shared`` is a random key. The datum is `Points`. With all tiles in every step this is COIN's
    full-image gradient and its rule for the best snapshot; with fewer, an epoch's mean decides.
    """

    net: Siren
    optimizer: Optimizer
    num_steps: Number
    tiles_per_step: int
    window: Number
    kernel: fused.Kernel | None = None
    """The fused kernel, for a GPU; None for plain XLA."""

    def start(self, shared: jax.Array, datum: Points) -> FitState:
        """The state before the first step."""
        key_init, _, _ = jax.random.split(shared, 3)
        return fit.start(self.net.init(key_init), self.optimizer.build(self.num_steps))

    def advance(
        self,
        shared: jax.Array,
        datum: Points,
        state: FitState,
        num_steps: Number,
        axis: str | None = None,
    ) -> tuple[FitState, jax.Array]:
        """Further steps; see `fit.advance`."""
        _, key_tiles, key_steps = jax.random.split(shared, 3)

        def loss_fn(params, step, key):
            tiles = fit.draw_tiles(datum, self.tiles_per_step, step, key_tiles)
            return _image_mse(self.net, params, datum, tiles, axis, self.kernel)

        optimizer = self.optimizer.build(self.num_steps)
        return fit.advance(loss_fn, state, optimizer, num_steps, self.window, key_steps)


class InitShared(NamedTuple):
    """``params``: where fits start, float32; ``rates``: of the inner steps that come first, None
    for none; ``key``: random."""

    params: Any
    rates: Any
    key: jax.Array


def init_shared(init: Init, key: jax.Array) -> InitShared:
    """What an `InitPlan` needs of an init. Host arrays: JAX compiles a program for each operation
    and shape that it is asked for, a quarter of a second here."""

    def as_float32(tree):
        return _by_path(lambda _, leaf: np.asarray(leaf, np.float32), tree)

    rates = as_float32(init.rates) if init.rates else None
    return InitShared(as_float32(init.params), rates, key)


@traced("optimizer", "num_steps", "window")
@dataclass(frozen=True)
class InitPlan:
    """A fit from given params, and the inner steps before it if there are rates.

    ``shared`` is what the loss needs: an `InitShared` for `distortion`, an `Origin` for
    `sparse_distortion`. The datum is `Points`.
    """

    net: Siren
    optimizer: Optimizer
    num_steps: Number
    tiles_per_step: int
    window: Number
    loss: Callable[[Siren, Params, Any, Points, jax.Array, str | None], jax.Array]
    """Of (net, params, shared, points, tiles, axis). A function of a module: equal plans, which
    share one compilation, have the same one."""

    def start(self, shared: InitShared | Origin, datum: Points) -> FitState:
        """The state before the first step: the params after their inner steps."""
        params = _adapted(self.net, shared.params, shared.rates, datum)
        return fit.start(params, self.optimizer.build(self.num_steps))

    def advance(
        self,
        shared: InitShared | Origin,
        datum: Points,
        state: FitState,
        num_steps: Number,
        axis: str | None = None,
    ) -> tuple[FitState, jax.Array]:
        """Further steps; see `fit.advance`."""
        key_tiles, key_steps = jax.random.split(shared.key)

        def loss_fn(params, step, key):
            tiles = fit.draw_tiles(datum, self.tiles_per_step, step, key_tiles)
            return self.loss(self.net, params, shared, datum, tiles, axis)

        optimizer = self.optimizer.build(self.num_steps)
        return fit.advance(loss_fn, state, optimizer, num_steps, self.window, key_steps)


def distortion(
    net: Siren,
    params: Params,
    shared: InitShared,
    points: Points,
    tiles: jax.Array,
    axis: str | None,
) -> jax.Array:
    """The loss of an `InitPlan` that is the mean squared error on [0, 1] alone."""
    return _image_mse(net, params, points, tiles, axis)


class ProductDatum(NamedTuple):
    """A product-quantised net of an image, whose centroids are to be tuned.

    ``points``: the image's. ``indices``: path -> int32 (out, blocks) of each tensor that has
    centroids. ``values``: where tuning starts, a tree with the params' paths: the centroids
    (num_centroids, block), or the tensor itself where there are no indices. ``steps``: the same
    tree of scalars, what each is rounded to a multiple of.
    """

    points: Points
    indices: Any
    values: Any
    steps: Any


@traced("optimizer", "num_steps", "window")
@dataclass(frozen=True)
class ProductPlan:
    """Centroids, and the tensors that have none, tuned to the image's mse; indices stay.

    Stock et al. 2020 (arXiv:1907.05686, section 3.3) tune centroids to the outputs of the net as it
    was; here the picture itself is at hand. Every step sees the values rounded (straight-through).
    ``shared``: the params (float32) that the values are distances from, and a random key.
    """

    net: Siren
    optimizer: Optimizer
    num_steps: Number
    tiles_per_step: int
    window: Number

    def start(self, shared: tuple[Params, jax.Array], datum: ProductDatum) -> FitState:
        """The state before the first step."""
        return fit.start(datum.values, self.optimizer.build(self.num_steps))

    def advance(
        self,
        shared: tuple[Params, jax.Array],
        datum: ProductDatum,
        state: FitState,
        num_steps: Number,
        axis: str | None = None,
    ) -> tuple[FitState, jax.Array]:
        """Further steps; see `fit.advance`."""
        mean, key = shared
        key_tiles, key_steps = jax.random.split(key)

        def loss_fn(values, step, key):
            rounded = jax.tree.map(
                lambda value, size: size * quantize.straight_through(value / size),
                values,
                datum.steps,
            )
            params = product_quantization.assemble(rounded, datum.indices, mean)
            tiles = fit.draw_tiles(datum.points, self.tiles_per_step, step, key_tiles)
            return _image_mse(self.net, params, datum.points, tiles, axis)

        optimizer = self.optimizer.build(self.num_steps)
        return fit.advance(loss_fn, state, optimizer, num_steps, self.window, key_steps)


class RateShared(NamedTuple):
    """What every image of a rate-aware batch sees.

    ``params``: where fits start; ``rates``: of the inner steps that come first, None for none;
    ``mean`` and ``scales`` (num_params,): centre and Laplace scale of the prior of each param, in
    its own units, in the order of `jax.tree.leaves`; ``slope``: see `RatePlan`; ``key``: random;
    ``learned``: what a fit learned, net and grid, to go on from; None to start from ``params``.
    """

    params: Any
    rates: Any
    mean: Any
    scales: Any
    slope: Any
    key: jax.Array
    learned: Any = None


LEARNING_RATE = 3e-3
"""Muon's; chosen on held-back cid22 images."""

POINTS_PER_STEP = 4096
"""Pixels a step sees: more of them in fewer steps fit less well in the same time."""


def rate_shared(init: Init, slope: float, seed: int) -> RateShared:
    """What `RatePlan` needs of an init, its slope, and a key."""
    start = init_shared(init, jax.random.key(seed))
    levels = np.concatenate([level.ravel() for _, level in sorted(init.levels().items())])
    return RateShared(
        params=start.params,
        rates=start.rates,
        mean=trees.ravel(init.mean()).astype(np.float32),
        scales=np.exp2(levels / 4).astype(np.float32),
        slope=np.float32(slope),
        key=start.key,
    )


GRID_LEARNING_RATE = 0.03
"""Adam's rate on the logarithms of step sizes and scales, decaying to a tenth by cosine."""

INITIAL_STEP = 2.0**-9
"""Step size that every tensor starts from; the fit learns its own."""


@traced("optimizer", "num_steps", "window", "rounded_share")
@dataclass(frozen=True)
class RatePlan:
    """Distortion and rate together, through a stand-in for quantisation.

    The loss is log(mse) + slope * log(bits), mse on [0, 1] under the noisy or rounded params. Its
    gradient is that of mse + lmbda * bpp with lmbda = slope * mse / bpp: one ``slope`` (the share
    of rate that a share of distortion is worth) then suits easy and hard images alike, where one
    lmbda does not. Rounding is replaced by additive noise (Ballé et al. 2017), and in the last
    steps by straight-through rounding to the very grid that is coded. Step sizes and Laplace
    scales are learned, one for each tensor. Snapshots count in the rounded part only.
    """

    net: Siren
    optimizer: Optimizer
    num_steps: Number
    tiles_per_step: int
    window: Number
    rounded_share: float = 0.05

    @property
    def noisy_steps(self) -> Number:
        """Steps with noise; the others round."""
        rounded = jnp.round(self.rounded_share * self.num_steps).astype(jnp.int32)
        return self.num_steps - jnp.maximum(1, rounded)

    def start(self, shared: RateShared, datum: Points) -> FitState:
        """The state before the first step: that of an earlier fit, or of the init after the inner
        steps if there are rates."""
        if shared.learned is not None:
            return fit.start(shared.learned, self._optimizer())
        params = _adapted(self.net, shared.params, shared.rates, datum)
        num_tensors = len(jax.tree.leaves(params))
        learned = {
            "net": params,
            "log_step": jnp.full(num_tensors, np.log(INITIAL_STEP), jnp.float32),
            "log_scale": jnp.zeros(num_tensors),
        }
        return fit.start(learned, self._optimizer())

    def advance(
        self,
        shared: RateShared,
        datum: Points,
        state: FitState,
        num_steps: Number,
        axis: str | None = None,
    ) -> tuple[FitState, jax.Array]:
        """Further steps; see `fit.advance`."""
        key_tiles, key_steps = jax.random.split(shared.key)

        def loss_fn(learned, step, key):
            tiles = fit.draw_tiles(datum, self.tiles_per_step, step, key_tiles)
            rounded = step >= self.noisy_steps
            symbols, steps = _soft_symbols(learned, shared.mean, rounded, key)
            params = _unravel(shared.mean + symbols * steps, shared.params)
            mse = _image_mse(self.net, params, datum, tiles, axis)
            offsets = _by_tensor(jnp.exp(learned["log_scale"]), shared.params)
            scales = jnp.maximum(shared.scales / steps * offsets, entropy.scale(0))
            bits = jnp.sum(entropy.bits(symbols, scales))
            return jnp.log(mse + MSE_FLOOR) + shared.slope * jnp.log(bits)

        return fit.advance(
            loss_fn, state, self._optimizer(), num_steps, self.window, key_steps, self.noisy_steps
        )

    def _optimizer(self) -> optax.GradientTransformation:
        grid = optax.adam(cosine_decay(GRID_LEARNING_RATE, self.num_steps, 0.1))
        labels = {"net": "net", "log_step": "grid", "log_scale": "grid"}
        return optax.partition({"net": self.optimizer.build(self.num_steps), "grid": grid}, labels)


# ---------------------------------------------------------------------------- roundings


class Rounded(NamedTuple):
    """A fitted net of an image as a file holds it, whose roundings are to be searched.

    ``points``: the image's. ``symbols``, ``steps``, ``scales`` (num_params,), float32: integers;
    what a unit of each is worth; Laplace scales, in symbols. In the order of `jax.tree.leaves`.
    """

    points: Points
    symbols: Any
    steps: Any
    scales: Any


@traced("num_steps")
@dataclass(frozen=True)
class RoundingSearch:
    """Symbols of a net moved one up or down where that lowers log(mse) + slope * log(bits).

    What RDOQ is to a video codec (Karczewicz et al. 2008, VCEG-AH21): of the values next to each
    symbol, that of the least loss, by the picture as it is decoded but for its last step, to whole
    numbers in 0..255. Each step tries many moves at once, those that gain most to second order (the
    gradient, and the diagonal of the Gauss-Newton matrix), on all pixels, or 2^19 of a larger
    picture; they stand if the loss is lower, and fewer are tried if not. So by this loss the result
    is never worse than the symbols it began with.

    ``shared`` is a `RateShared`, the datum `Rounded`; what is learned are symbols, float32.
    """

    net: Siren
    num_steps: Number

    def start(self, shared: RateShared, datum: Rounded) -> FitState:
        """The state before the first step, which looks at the symbols as they are."""
        return fit.start(jnp.asarray(datum.symbols), self._moves(shared, datum, None))

    def advance(
        self,
        shared: RateShared,
        datum: Rounded,
        state: FitState,
        num_steps: Number,
        axis: str | None = None,
    ) -> tuple[FitState, jax.Array]:
        """Further steps; see `fit.advance`."""

        def loss_fn(symbols, step, key):
            params = _unravel(shared.mean + symbols * datum.steps, shared.params)
            mse = _image_mse(self.net, params, datum.points, _searched_tiles(datum.points), axis)
            # The rate has no gradient here: what a move does to it is known exactly.
            bits = jax.lax.stop_gradient(jnp.sum(entropy.bits(symbols, datum.scales)))
            return jnp.log(mse + MSE_FLOOR) + shared.slope * jnp.log(bits)

        moves = self._moves(shared, datum, axis)
        return fit.advance(loss_fn, state, moves, num_steps, 1, shared.key)

    def _moves(
        self, shared: RateShared, datum: Rounded, axis: str | None
    ) -> optax.GradientTransformationExtraArgs:
        def init(params: Any) -> _Standing:
            curvature = _error_curvature(self.net, shared, datum, axis)
            infinite, share = jnp.asarray(jnp.inf), jnp.asarray(_FIRST_SHARE / _UP)
            barred = jnp.zeros(params.shape, bool)
            return _Standing(params, infinite, jnp.zeros_like(params), share, barred, curvature)

        def update(updates: Any, state: Any, params: Any = None, **more: Any) -> Any:
            loss = more["value"]
            lower = loss < state.loss
            share = jnp.minimum(state.share * jnp.where(lower, _UP, _DOWN), 1.0)
            moved = params != state.symbols
            barred = ~lower & (state.barred | (moved & (jnp.sum(moved) == 1)))
            seen = _Standing(params, loss, updates, share, barred, state.curvature)
            stands = jax.tree.map(partial(jnp.where, lower), seen, state)
            stands = stands._replace(share=share, barred=barred)
            return stands.symbols + _best_moves(stands, datum, shared.slope) - params, stands

        return optax.GradientTransformationExtraArgs(init, update)


class _Standing(NamedTuple):
    """The symbols of the lowest loss so far; that loss; its gradient by them, distortion alone;
    which share of all moves that should gain is tried next; which have failed alone since then;
    see `_error_curvature`."""

    symbols: Any
    loss: Any
    gradient: Any
    share: Any
    barred: Any
    curvature: Any


# Of the moves that should gain, tried at once: at first, then times this much where the loss became
# lower, and where not. By hand, on 4 held-back cid22 images: 1.3 gains a third more than 1.
_FIRST_SHARE, _UP, _DOWN = 0.13, 1.3, 0.25


def _best_moves(stands: _Standing, datum: Rounded, slope: Any) -> jax.Array:
    """-1, 0 or 1 for each symbol, the share of moves that gain most; one at least."""
    same, up, down = (entropy.bits(stands.symbols + move, datum.scales) for move in (0, 1, -1))
    bits = jnp.sum(same)
    mse = jnp.exp(stands.loss - slope * jnp.log(bits))
    bend, price = stands.curvature / (2 * mse), slope / bits
    rising = bend + stands.gradient + price * (up - same)
    falling = bend - stands.gradient + price * (down - same)
    gains = jnp.where(stands.barred, 0.0, -jnp.minimum(rising, falling))
    count = jnp.maximum(1, jnp.int32(stands.share * jnp.sum(gains > 0)))
    least = jnp.sort(gains, descending=True)[count - 1]
    move = jnp.where(rising < falling, 1.0, -1.0)
    return jnp.where((gains > 0) & (gains >= least), move, 0.0)


def _error_curvature(net: Siren, shared: RateShared, datum: Rounded, axis: str | None) -> jax.Array:
    """The diagonal of the Gauss-Newton matrix of the mse by symbols: (num_params,).

    Estimated by random signs (Hutchinson 1990), fresh ones for each piece of a tile: the expected
    square of a piece's Jacobian, transposed, times signs is the piece's part of the diagonal. An
    image has hundreds of pieces, so that one pass is enough.
    """
    points = datum.points
    signs = jax.random.rademacher(shared.key, points.pixels.shape, jnp.float32)

    def squares(params, coords, signs, weights):
        _, transpose = jax.vjp(lambda own: net.apply_columns(own, coords), params)
        [slopes] = transpose(weights * signs)
        return jnp.zeros(()), jax.tree.map(jnp.square, slopes)

    def mean_squares(params):  # what tiled_mse takes for gradients are the squares
        signed = points._replace(pixels=signs)
        tiles = _searched_tiles(points)
        return fit.tiled_mse(squares, params, signed, tiles, fit.piece_of(net.width), axis)

    params = _unravel(shared.mean + datum.symbols * datum.steps, shared.params)
    # The mse on [0, 1] of pixels on [-1, 1] is a mean over three values, divided by 4.
    return _ravel(jax.grad(mean_squares)(params)) * jnp.square(datum.steps) / 6


def _searched_tiles(points: Points) -> jax.Array:
    """All, or the first of many: which pixels are in a tile is random."""
    tiles, size = points.weights.shape[-2:]
    return jnp.arange(min(tiles, SEARCHED_PIXELS // size))


SEARCHED_PIXELS = 1 << 19
"""Pixels that a search looks at, at most: more than ten for each param of the widest net."""


# ---------------------------------------------------------------------------- Strümpler et al. 2022

# arXiv:2112.04267: three fits, one after the other. Every symbol codes a distance from an origin.


class Origin(NamedTuple):
    """What every image of Strümpler's fits sees.

    ``params``: where the first fit starts; ``rates``: of the inner steps that come first, None for
    none; ``centre``: what the coded distances are from, a tree as the params; ``l1``: see
    `sparse_distortion`; ``key``: random.
    """

    params: Any
    rates: Any
    centre: Any
    l1: Any
    key: jax.Array


class Gridded(NamedTuple):
    """An image's points, the ``delta`` of its fitted params from the centre, the ``steps`` that
    this is rounded to, the same tree of scalars, and the lowest and the highest symbol. All
    float32."""

    points: Points
    delta: Any
    steps: Any
    symbol_range: tuple[Any, Any]


@partial(jax.jit, static_argnums=0)
def random_params(net: Siren, key: jax.Array) -> Any:
    """`Siren.init`, compiled."""
    return net.init(key)


def sparse_distortion(
    net: Siren,
    params: Params,
    shared: Origin,
    points: Points,
    tiles: jax.Array,
    axis: str | None,
) -> jax.Array:
    """The loss of an `InitPlan` that adds the L1 norm of the params' distance from the centre.

    The paper's loss is the mean squared error on [-1, 1] plus ``l1`` times the norm; here both are
    divided by 4, for the error on [0, 1].
    """
    norm = jnp.sum(jnp.abs(_ravel(params) - _ravel(shared.centre)))
    return _image_mse(net, params, points, tiles, axis) + shared.l1 / 4 * norm


@traced("optimizer", "num_steps", "penalty")
@dataclass(frozen=True)
class RoundingPlan:
    """AdaRound (Nagel et al. 2020, arXiv:2004.10568): which weights to round up, which down.

    What is learned is a variable v for each weight (`quantize.soft_rounding`); biases are rounded
    to nearest. The loss is eq. 25, the squared distance of each layer's output, after its sine,
    from that of the exact net, summed over the image's points and averaged over neurons as AIMET
    does, where the layer's input is the rounded net's; plus ``penalty`` times eq. 24, after a fifth
    of the steps. Strümpler's 1e-4 is little beside a sum over an image: few v are driven to an
    end, and whoever takes them rounds the others to the nearer one.

    All layers learn at the same time, each from its own loss alone, where the paper takes them one
    after the other. ``shared`` is an `Origin`, the datum `Gridded`; the result holds the v of each
    weight after the last step but one.
    """

    net: Siren
    optimizer: Optimizer
    num_steps: Number
    tiles_per_step: int
    penalty: float = 1e-4
    betas: tuple[float, float] = (20.0, 2.0)

    def start(self, shared: Origin, datum: Gridded) -> FitState:
        """The state before the first step: the soft roundings are no roundings."""
        scaled = jax.tree.map(jnp.divide, datum.delta, datum.steps)
        v = {
            name: quantize.rounding_start(_fraction(layer["weight"]))
            for name, layer in scaled.items()
        }
        return fit.start(v, self.optimizer.build(self.num_steps))

    def advance(
        self,
        shared: Origin,
        datum: Gridded,
        state: FitState,
        num_steps: Number,
        axis: str | None = None,
    ) -> tuple[FitState, jax.Array]:
        """Further steps; see `fit.advance`."""
        key_tiles, key_steps = jax.random.split(shared.key)
        exact = jax.tree.map(jnp.add, shared.centre, datum.delta)
        num_points = jnp.sum(datum.points.weights)
        warmup = self.num_steps // 5

        def loss_fn(v, step, key):
            tiles = fit.draw_tiles(datum.points, self.tiles_per_step, step, key_tiles)
            pair = (exact, _softly_rounded(v, shared.centre, datum))
            piece = fit.piece_of(self.net.width)
            layers = partial(_layer_errors, self.net)
            error = fit.tiled_mse(
                jax.value_and_grad(layers), pair, datum.points, tiles, piece, axis
            )
            share = jnp.maximum(step - warmup, 0) / jnp.maximum(1, self.num_steps - warmup)
            beta = quantize.rounding_beta(share, *self.betas)
            terms = [quantize.rounding_penalty(leaf, beta) for leaf in jax.tree.leaves(v)]
            penalty = jnp.where(step >= warmup, self.penalty, 0.0)
            return num_points * jnp.asarray(error) + penalty * sum(terms)

        optimizer = self.optimizer.build(self.num_steps)
        last = self.num_steps - 1
        return fit.advance(loss_fn, state, optimizer, num_steps, 1, key_steps, last)


@jax.jit
def soft_roundings(v: Any) -> Any:
    """`quantize.soft_rounding` of each leaf of what `RoundingPlan` learned."""
    return jax.tree.map(quantize.soft_rounding, v)


def _fraction(values: jax.Array) -> jax.Array:
    return values - jnp.floor(values)


def _softly_rounded(v: Any, centre: Any, datum: Gridded) -> Any:
    """The params whose weights are as far up as ``v`` says, and whose biases are rounded."""

    def tensor(centre, step, symbols):
        return centre + step * jnp.clip(symbols, *datum.symbol_range)

    def layer(name):
        scaled = jax.tree.map(jnp.divide, datum.delta[name], datum.steps[name])
        weight = jnp.floor(scaled["weight"]) + quantize.soft_rounding(v[name])
        symbols = {"bias": jnp.round(scaled["bias"]), "weight": weight}
        return jax.tree.map(tensor, centre[name], datum.steps[name], symbols)

    return {name: layer(name) for name in datum.delta}


def _layer_errors(
    net: Siren, pair: Any, coords: jax.Array, pixels: jax.Array, weights: jax.Array
) -> jax.Array:
    """The sum over points and layers of the weighted squared distance (mean over neurons) between
    the outputs of two nets. Only the second one's layers are learned, each by its own outputs."""
    exact, rounded = jax.lax.stop_gradient(pair[0]), pair[1]
    h, h_hat, total = coords, coords, jnp.zeros(())
    for i in range(net.depth + 1):
        h = net.layer_columns(exact, i, h)
        h_hat = net.layer_columns(rounded, i, jax.lax.stop_gradient(h_hat))
        total += jnp.sum(weights * jnp.mean((h_hat - h) ** 2, axis=0))
    return total


@traced("optimizer", "num_steps", "window")
@dataclass(frozen=True)
class RetrainingPlan:
    """Quantisation-aware training: distortion alone, every step seeing the params on their grid.

    Rounding passes gradients straight through; clipping to the range of symbols stops them.
    ``shared`` is an `Origin`, the datum `Gridded`; what is learned is the delta.
    """

    net: Siren
    optimizer: Optimizer
    num_steps: Number
    tiles_per_step: int
    window: Number

    def start(self, shared: Origin, datum: Gridded) -> FitState:
        """The state before the first step."""
        return fit.start(datum.delta, self.optimizer.build(self.num_steps))

    def advance(
        self,
        shared: Origin,
        datum: Gridded,
        state: FitState,
        num_steps: Number,
        axis: str | None = None,
    ) -> tuple[FitState, jax.Array]:
        """Further steps; see `fit.advance`."""
        key_tiles, key_steps = jax.random.split(shared.key)

        def rounded(centre, delta, step):
            within = jnp.clip(delta / step, *datum.symbol_range)
            return centre + step * quantize.straight_through(within)

        def loss_fn(delta, step, key):
            tiles = fit.draw_tiles(datum.points, self.tiles_per_step, step, key_tiles)
            params = jax.tree.map(rounded, shared.centre, delta, datum.steps)
            return _image_mse(self.net, params, datum.points, tiles, axis)

        optimizer = self.optimizer.build(self.num_steps)
        return fit.advance(loss_fn, state, optimizer, num_steps, self.window, key_steps)


# ---------------------------------------------------------------------------- parts of the losses

MSE_FLOOR = 1e-8
"""Keeps the logarithm finite on an image that a net fits exactly (80 dB)."""


def point_mse(net: Siren, params: Params, coords: jax.Array, pixels: jax.Array, weights: jax.Array):
    """Mean squared error on [0, 1] over one tile: coords (in_dim, n), pixels (out_dim, n), weights
    (n,). Twice differentiable, for meta-learning."""
    error = jnp.mean((net.apply_columns(params, coords) - pixels) ** 2, axis=0)
    return jnp.sum(weights * error) / jnp.sum(weights) / 4


def _adapted(net: Siren, params: Params, rates: Any, points: Points) -> Params:
    """The params after MAML's inner steps, one tile of the image each; as they are without rates.

    ``rates``: leaves (inner_steps, ...), or None.
    """
    if rates is None:
        return params
    inner_steps = jax.tree.leaves(rates)[0].shape[0]
    tiles = jnp.arange(inner_steps) % points.num_tiles
    slices = Points(
        points.coords[tiles], points.pixels[tiles], points.weights[tiles], jnp.ones(inner_steps)
    )

    def loss_fn(params: Params, tile: Points) -> jax.Array:
        return point_mse(net, params, tile.coords, tile.pixels, tile.weights)

    return meta.adapt(loss_fn, meta.MetaParams(params, rates), slices, True)


def _by_path(function, tree: Mapping[str, Any]) -> dict[str, Any]:
    return trees.from_leaves({path: function(path, leaf) for path, leaf in trees.leaves(tree)})


# One vector of all params, rather than ten tensors: far fewer operations to compile and to start.


def _soft_symbols(
    learned: Any, mean: jax.Array, rounded: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Real symbols with noise, or rounded ones on the coded grid, and their steps: (num_params,)
    each, in the order of `jax.tree.leaves`."""
    log_step = learned["log_step"]
    # The file holds steps of a ladder; the rounded part must see those.
    eighths = log_step * (8 / np.log(2))
    on_ladder = quantize.straight_through(eighths) * (np.log(2) / 8)
    steps = _by_tensor(jnp.exp(jnp.where(rounded, on_ladder, log_step)), learned["net"])
    real = (_ravel(learned["net"]) - mean) / steps
    noisy = quantize.add_noise(real, key)
    return jnp.where(rounded, quantize.straight_through(real), noisy), steps


def _by_tensor(values: jax.Array, like: Any) -> jax.Array:
    """One value for each tensor, (num_tensors,), repeated for each of its params."""
    sizes = [leaf.size for leaf in jax.tree.leaves(like)]
    return jnp.concatenate(
        [jnp.broadcast_to(value, (size,)) for value, size in zip(values, sizes, strict=True)]
    )


def _ravel(tree: Any) -> jax.Array:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _unravel(vector: jax.Array, like: Any) -> Any:
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = jnp.split(vector, ends)
    shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)


# ---------------------------------------------------------------------------- batches of images

RETRIES = 2
"""Further tries of a fit that diverged, each at a quarter of the learning rate."""


class Fitting(NamedTuple):
    """How a codec fits: ``make_plan(optimizer, tiles_per_step)`` gives a `fit.Plan`, and
    ``make_datum(i, points)`` what it sees of image i. ``every_tile``: for plans that see all tiles
    at once, padded ones too."""

    make_plan: Callable[[Any, int], Any]
    optimizer: Any
    points_per_step: int
    seed: int
    make_datum: Callable[[int, Points], Any] = lambda _, points: points
    every_tile: bool = False


def fit_images(
    batch: Sequence[Image], fitting: Fitting, shared: Any, on_progress: OnProgress | None
) -> list[Params]:
    """The best params of each image.

    A fit that diverges is tried again at a quarter of its learning rate, and a warning says so; the
    others keep their bits. Raises ValueError, which names the image, if one diverges at every rate.
    """
    params: dict[int, Params] = {}
    waiting = list(range(len(batch)))
    for attempt in range(1 + RETRIES):
        # The few that are tried again are not in the total that was announced.
        report = on_progress if attempt == 0 else None
        results = fit_once({i: batch[i] for i in waiting}, fitting, shared, report)
        params |= {i: result.params for i, result in results.items() if result.finite}
        waiting = [i for i in waiting if i not in params]
        if not waiting:
            return [params[i] for i in range(len(batch))]
        rate = fitting.optimizer.learning_rate
        if attempt < RETRIES:
            numbers = ", ".join(str(i + 1) for i in waiting)
            warnings.warn(
                f"the fit of image {numbers} of {len(batch)} diverged at a learning rate of "
                f"{rate:.1e}: it is tried again at {rate / 4:.1e}",
                stacklevel=2,
            )
            fitting = fitting._replace(optimizer=replace(fitting.optimizer, learning_rate=rate / 4))
    raise ValueError(
        f"the fit of image {waiting[0] + 1} of {len(batch)} diverged {1 + RETRIES} times, the "
        f"last at a learning rate of {fitting.optimizer.learning_rate:.1e}: set a lower one"
    )


def fit_once(
    batch: Mapping[int, Image], fitting: Fitting, shared: Any, on_progress: OnProgress | None
) -> dict[int, fit.FitResult]:
    """The result of each image, by its number, diverged or not; images of one tiling share a
    program and a batch: all that have at least ``points_per_step`` pixels, whatever their shape; if
    their plans see every tile, those of about one size."""
    sizes = {i: image.shape[0] * image.shape[1] for i, image in batch.items()}
    # The plan of an image depends on its own size alone, or its bytes would on its neighbours.
    tilings = {i: fit.tiling(size, fitting.points_per_step) for i, size in sizes.items()}
    lengths = {i: fit.bucket(-(-sizes[i] // tiling.tile)) for i, tiling in tilings.items()}
    groups: dict[tuple[Tiling, int], list[int]] = {}
    for i, tiling in tilings.items():
        groups.setdefault((tiling, lengths[i] if fitting.every_tile else 0), []).append(i)
    results: dict[int, fit.FitResult] = {}
    for (tiling, _), members in sorted(groups.items()):
        num_tiles = max(lengths[i] for i in members)
        data = [
            fitting.make_datum(i, image_points(batch[i], tiling, num_tiles, fitting.seed))
            for i in members
        ]
        plan = fitting.make_plan(fitting.optimizer, tiling.tiles_per_step)
        report = _share(on_progress, len(results), len(members), len(batch))
        results |= zip(members, fit.fit_batch(plan, shared, data, report), strict=True)
    return results


def _share(on_progress: OnProgress | None, done: int, members: int, images: int):
    """Progress of ``members`` out of ``images``, of which ``done`` are behind, as hundredths."""
    if on_progress is None:
        return None

    def report(part: int, whole: int) -> None:
        on_progress(100 * done + 100 * members * part // whole, 100 * images)

    return report
