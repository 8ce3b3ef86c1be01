"""Params to integer symbols and back, and the differentiable stand-ins used while fitting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from inrjax import trees

if TYPE_CHECKING:
    import jax

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
    return symbols.astype(np.int32)


def dequantize(quantized: Quantized) -> dict[str, Any]:
    """The params that the symbols stand for, float64: symbol * step."""
    indices = dict(trees.leaves(quantized.grid))
    return trees.from_leaves(
        {
            path: np.asarray(leaf, np.float64) * step_size(int(indices[path]))
            for path, leaf in trees.leaves(quantized.symbols)
        }
    )


def add_noise(symbols: jax.Array, key: jax.Array) -> jax.Array:
    """Uniform noise in [-1/2, 1/2) in place of rounding (Ballé et al. 2017, arXiv:1611.01704)."""
    import jax

    return symbols + jax.random.uniform(key, symbols.shape, minval=-0.5, maxval=0.5)


def straight_through(symbols: jax.Array) -> jax.Array:
    """Rounding whose derivative is that of the identity (Bengio et al. 2013, arXiv:1308.3432)."""
    import jax
    import jax.numpy as jnp

    return symbols + jax.lax.stop_gradient(jnp.round(symbols) - symbols)
