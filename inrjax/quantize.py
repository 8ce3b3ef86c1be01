"""Params to integer symbols and back, and the differentiable stand-ins used while fitting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from inrjax import trees

if TYPE_CHECKING:
    import jax
    from jaxtyping import Float, Int32, Shaped

NUM_STEPS = 256
"""Step sizes of the ladder: 2^((index - 192) / 8), index 0..255, so 2^-24 to 2^7.9."""

# 2^(i/8), spelled out so that every platform has the same float64.
_EIGHTHS = (
    1.0,
    1.0905077326652577,
    1.189207115002721,
    1.2968395546510096,
    1.4142135623730951,
    1.5422108254079407,
    1.681792830507429,
    1.8340080864093424,
)
_LADDER = np.array([np.ldexp(_EIGHTHS[i % 8], i // 8 - 24) for i in range(NUM_STEPS)])


class Quantized(NamedTuple):
    """Integers for real numbers: ``symbols``, a nested dict of int32 arrays; ``grid``, the same
    dict with one index of the ladder of step sizes for each array (0..255)."""

    symbols: Mapping[str, Any]
    grid: Mapping[str, Any]


def step_size(index: int) -> float:
    """The step of an index of the ladder, the same float64 everywhere; ValueError beyond 255."""
    if not 0 <= index < NUM_STEPS:
        raise ValueError(f"got step index {index}, expected 0..{NUM_STEPS - 1}")
    return float(_LADDER[index])


def nearest_index(step: float) -> int:
    """The index whose step is nearest in ratio to ``step`` > 0, within a factor of 2^(1/16)."""
    if not step > 0:
        raise ValueError(f"got step {step}, expected a positive number")
    return int(np.clip(np.rint(8 * np.log2(step)) + 192, 0, NUM_STEPS - 1))


def uniform(params: Mapping[str, Any], grid: Mapping[str, Any]) -> Quantized:
    """Round each array to multiples of its step: the error is at most half a step.

    Args:
      params: nested dict of real arrays. grid: the same dict of step indices 0..255.

    Raises:
      ValueError: a value is not finite, or beyond 2^30 steps.
    """
    indices = dict(trees.leaves(grid))
    return Quantized(
        trees.from_leaves(
            {path: _round(path, leaf, indices[path]) for path, leaf in trees.leaves(params)}
        ),
        grid,
    )


def _round(path: str, values: Any, index: int) -> np.ndarray:
    symbols = np.rint(np.asarray(values, np.float64) / step_size(int(index)))
    if not np.all(np.abs(symbols) <= 1 << 30):
        raise ValueError(f"{path} cannot be quantised: not finite, or beyond 2^30 steps")
    return np.asarray(symbols, np.int32)  # an array of no axes, too, where a sum is a scalar


def dequantize(quantized: Quantized) -> dict[str, Any]:
    """The params that the symbols stand for, float64: symbol * step."""
    indices = dict(trees.leaves(quantized.grid))
    return trees.from_leaves(
        {
            path: np.asarray(leaf, np.float64) * step_size(int(indices[path]))
            for path, leaf in trees.leaves(quantized.symbols)
        }
    )


def add_noise(
    symbols: Float[jax.Array, "*shape"], key: Shaped[jax.Array, " "]
) -> Float[jax.Array, "*shape"]:
    """Uniform noise in [-1/2, 1/2) in place of rounding (Ballé et al. 2017, arXiv:1611.01704)."""
    import jax

    return symbols + jax.random.uniform(key, symbols.shape, minval=-0.5, maxval=0.5)


def straight_through(symbols: Float[jax.Array, "*shape"]) -> Float[jax.Array, "*shape"]:
    """Rounding whose derivative is that of the identity (Bengio et al. 2013, arXiv:1308.3432)."""
    import jax
    import jax.numpy as jnp

    return symbols + jax.lax.stop_gradient(jnp.round(symbols) - symbols)


# ---------------------------------------------------------------------------- a few bits a param


def symbol_range(num_bits: int) -> tuple[int, int]:
    """The lowest and highest symbol of so many bits: -2^(bits - 1) and 2^(bits - 1) - 1."""
    return -(1 << num_bits - 1), (1 << num_bits - 1) - 1


_OCTAVES_TRIED = 3


def choose_grid(params: Mapping[str, Any], num_bits: int) -> dict[str, Any]:
    """The step index 0..255 of each array, as the same dict, for symbols of ``num_bits`` (2..8).

    Of the steps up to the smallest at which no value is clipped, and at most 3 octaves below it,
    the one whose rounding and clipping have the smallest squared error; the larger of equal ones.
    Raises ValueError for a value that is not finite.
    """
    return trees.from_leaves(
        {path: _best_index(path, leaf, num_bits) for path, leaf in trees.leaves(params)}
    )


def _best_index(path: str, values: Any, num_bits: int) -> int:
    values = np.ravel(np.asarray(values, np.float64))
    largest = float(np.abs(values).max())
    if not np.isfinite(largest):
        raise ValueError(f"{path} cannot be quantised: it holds a value that is not finite")
    if largest == 0:
        return 0
    top = np.ceil(8 * np.log2(largest / symbol_range(num_bits)[1])) + 192
    top = int(np.clip(top, 0, NUM_STEPS - 1))
    candidates = np.arange(top, max(-1, top - 8 * _OCTAVES_TRIED - 1), -1)
    steps = _LADDER[candidates]
    errors = [np.sum((step * clipped(values, step, num_bits) - values) ** 2) for step in steps]
    return int(candidates[np.argmin(errors)])


def clipped(
    values: Float[np.ndarray, "*shape"], step: float | np.floating, num_bits: int
) -> Int32[np.ndarray, "*shape"]:
    """The symbols of values at a step, rounded and clipped to `symbol_range`, int32."""
    return np.clip(np.rint(values / step), *symbol_range(num_bits)).astype(np.int32)


# ---------------------------------------------------------------------------- AdaRound

# Nagel et al. 2020, arXiv:2004.10568: a weight is rounded down or up, as a variable v says.

_GAMMA, _ZETA = -0.1, 1.1


def soft_rounding(v: Float[jax.Array, "*shape"]) -> Float[jax.Array, "*shape"]:
    """What is added to the floor of a symbol, in [0, 1]: the rectified sigmoid (eq. 23)."""
    import jax
    import jax.numpy as jnp

    return jnp.clip(jax.nn.sigmoid(v) * (_ZETA - _GAMMA) + _GAMMA, 0, 1)


def rounding_start(fraction: Float[jax.Array, "*shape"]) -> Float[jax.Array, "*shape"]:
    """The v whose `soft_rounding` is a fraction in [0, 1]: rounding starts as no rounding."""
    import jax.numpy as jnp

    return -jnp.log((_ZETA - _GAMMA) / (fraction - _GAMMA) - 1)


def rounding_penalty(v: Float[jax.Array, " ..."], beta: jax.Array | float) -> Float[jax.Array, " "]:
    """The regulariser (eq. 24), a sum over all v: 0 where each is rounded down or up.

    ``beta`` >= 1: the larger, the fewer of the undecided it reaches.
    """
    import jax.numpy as jnp

    return jnp.sum(1 - jnp.abs(2 * soft_rounding(v) - 1) ** beta)


def rounding_beta(share: jax.Array | float, first: float, last: float) -> jax.Array:
    """beta after a share in [0, 1] of the steps, from ``first`` to ``last`` along a cosine."""
    import jax.numpy as jnp

    return last + (first - last) * (1 + jnp.cos(jnp.pi * share)) / 2
