"""Which distribution a latent has, given those decoded before it, in integers alone.

How far a latent is from 0 follows from the magnitudes around it; its sign, from the signs: along an
edge the latents of a band have one sign, or change it from each to the next.

Every machine computes the same: features and weights are integers, sums stay below 2^53, so that
float64 holds them exactly in any order, and what follows a sum is a floor of a quotient by a power
of two. So a decoder cannot drift (as Cool-Chic's context model in fixed point, arXiv:2212.05458).

Training and fits use the same features with float weights. Needs numpy alone; formulas take the
array module as ``xp``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inrjax import entropy
from inrjax.nets.latent_grid import LatentGridNet

CAUSAL = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (-2, 0), (0, -2))
"""Where latents of the same bands are seen: (rows, columns) away, all decoded before."""

CROSS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
"""Where latents of other components, and of the next coarser grid, are seen."""

UNIT = 64
"""Features are in units of 1/64."""

FEATURE_BITS, WEIGHT_BITS, HIDDEN_BITS = 6, 10, 8
_MAX_HIDDEN = 1 << 16
_MAX_WEIGHT = 1 << 17
LARGEST = 1 << 14
"""Latents of at most this magnitude are told apart by `magnitude`."""

LARGEST_SIGNED = 8
"""The same of `signed`."""

Weights = Mapping[str, Any]
"""Of one context model: weight1, bias1, weight2, bias2, weight3, bias3; of the low, predict too; of
details that see signs odd1, fold, gate, gate_bias and odd2."""


def context_names(net: LatentGridNet) -> list[str]:
    """The context models in coding order: low0..2, then levels from the coarsest, by component."""
    details = [
        f"level{level}_{component}"
        for level in reversed(range(net.levels))
        for component in range(net.components(level))
    ]
    return [*(f"low{component}" for component in range(3)), *details]


def num_features(net: LatentGridNet, name: str) -> int:
    """Features of the model of this name, the step size's, which comes last, included."""
    if name.startswith("low"):
        return 4 + int(name[3:])
    level, component = _parse(name)
    coarser = 3 * len(CROSS) if level + 1 < net.levels else 0
    return 3 * len(CAUSAL) + coarser + 3 * len(CROSS) * component + 1


def shapes(net: LatentGridNet) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of all weights."""
    width, odd = net.context_width, net.odd_width
    tree: dict[str, dict[str, tuple[int, ...]]] = {}
    for name in context_names(net):
        low = name.startswith("low")
        outputs = 1 if low else 9 if odd else 3
        more = {
            "odd1": (num_features(net, name) - 1, odd),
            "fold": (odd, width),
            "gate": (width, odd),
            "gate_bias": (odd,),
            "odd2": (odd, 6),
        }
        tree[name] = {
            "weight1": (num_features(net, name), width),
            "bias1": (width,),
            "weight2": (width, width),
            "bias2": (width,),
            "weight3": (width, outputs),
            "bias3": (outputs,),
            **({"predict": (4,)} if low else more if odd else {}),
        }
    return tree


def _parse(name: str) -> tuple[int, int]:
    level, component = name.removeprefix("level").split("_")
    return int(level), int(component)


# ---------------------------------------------------------------------------- features


def _magnitudes() -> np.ndarray:
    """About 64 log2(1 + m) for m = 0..LARGEST: exact at powers of two, linear between them."""
    n = 1 + np.arange(LARGEST + 1, dtype=np.int64)
    power = np.frexp(n.astype(np.float64))[1].astype(np.int64) - 1
    return UNIT * power + (UNIT * (n - (1 << power)) >> power)


_TABLE = _magnitudes().astype(np.float64)


def magnitude(xp: Any, latents: Any) -> Any:
    """What a model sees of latents: integers, about 64 log2(1 + abs(latent))."""
    places = xp.minimum(xp.abs(latents), LARGEST).astype(xp.int32)
    return (_TABLE if xp is np else xp.asarray(_TABLE, xp.float32))[places]


def signed(xp: Any, latents: Any) -> Any:
    """What a model sees of latents, sign and all: they themselves, up to 8."""
    dtype = xp.float32 if xp is not np else np.float64
    return xp.clip(latents, -LARGEST_SIGNED, LARGEST_SIGNED).astype(dtype)


def shifted(xp: Any, values: Any, offsets: Sequence[tuple[int, int]]) -> list[Any]:
    """(h, w, n) seen from other places: result[i, j] = values[i + rows, j + columns], 0 beyond."""
    height, width = values.shape[:2]
    reach = max(max(abs(row), abs(column)) for row, column in offsets)
    padded = xp.pad(values, ((reach, reach), (reach, reach), (0, 0)))
    return [
        padded[reach + row : reach + row + height, reach + column : reach + column + width]
        for row, column in offsets
    ]


def known_features(
    xp: Any, net: LatentGridNet, level: int, component: int, seen: Sequence[Any], step: Any = None
) -> Any:
    """Features of the details of one component that do not depend on these themselves.

    From the next coarser grid, from the components before, and from the step, if there is one:
    (h, w, n). ``seen``: of each grid of details `magnitude` or `signed`, as (h, w, bands); of this
    one, the components before count.
    """
    own = seen[level]
    height, width = own.shape[:2]
    parts: list[Any] = []
    for before in range(component):
        parts += shifted(xp, own[..., 3 * before : 3 * before + 3], CROSS)
    if level + 1 < net.levels:
        coarser = seen[level + 1][..., 3 * component : 3 * component + 3]
        for part in shifted(xp, coarser, CROSS):
            parts.append(xp.repeat(xp.repeat(part, 2, axis=0), 2, axis=1)[:height, :width])
    if step is not None:
        parts.append(xp.broadcast_to(step_feature(xp, step, own.dtype), (height, width, 1)))
    return xp.concatenate([own[..., :0], *parts], axis=-1)


def step_feature(xp: Any, step: Any, dtype: Any) -> Any:
    """What a model sees of the step size: 8 units a step, an octave as much as a doubling."""
    return xp.asarray(8 * (step - 32), dtype).reshape(1, 1, 1)


def neighbours(xp: Any, low: Any, row: Any, column: Any, width: Any) -> tuple[Any, Any, Any, Any]:
    """West, north, north-west and north-east of low latents; where there is none, another one.

    Args:
      low: (h + 1, w + 2), the latents with a border of zeros above and at both sides.
      row, column: int arrays of any one shape. width: of the grid.
    """
    west, north = low[row + 1, column], low[row, column + 1]
    corner, right = low[row, column], low[row, column + 2]
    first_row, first_column = row == 0, column == 0
    west, north = xp.where(first_column, north, west), xp.where(first_row, west, north)
    corner = xp.where(first_row | first_column, xp.where(first_column, north, west), corner)
    right = xp.where(first_row | (column == width - 1), north, right)
    return west, north, corner, right


def low_features(
    xp: Any, around: Sequence[Any], residuals: Sequence[Any], step: Any, dtype: Any
) -> Any:
    """Features (..., n) of a low latent: its neighbours' differences, and how far the components
    before were from what was predicted of them."""
    west, north, corner, right = around
    parts = [magnitude(xp, west - corner), magnitude(xp, north - corner)]
    parts += [magnitude(xp, right - north), *(magnitude(xp, part) for part in residuals)]
    parts = [part.astype(dtype) for part in parts]
    parts.append(xp.broadcast_to(step_feature(xp, step, dtype)[0, 0], parts[0].shape))
    return xp.stack(parts, axis=-1)


# ---------------------------------------------------------------------------- the nets


def scale_exponents(xp: Any, weights: Weights, features: Any) -> Any:
    """log2 of the Laplace scales (..., outputs), in float: for losses, never for coding."""
    hidden = xp.clip(features / UNIT @ weights["weight1"] + weights["bias1"], 0, 256)
    hidden = xp.clip(hidden @ weights["weight2"] + weights["bias2"], 0, 256)
    return xp.clip(hidden @ weights["weight3"] + weights["bias3"], -4, 11.75)


def logits(xp: Any, weights: Weights, features: Any, odd: Any) -> entropy.Logits:
    """Of details that see signs the `inrjax.entropy.Logits`, each (..., 3), in float: for losses,
    never for coding.

    All signs turned turn ``odd`` (..., n, of `signed`), nothing else; what it says is weighed by
    what ``features`` say. So the distribution is turned with them, exactly.
    """
    even = xp.clip(features / UNIT @ weights["weight1"] + weights["bias1"], 0, 256)
    turned = xp.clip(odd @ weights["odd1"], -1, 1)
    even = even @ weights["weight2"] + xp.abs(turned) @ weights["fold"] + weights["bias2"]
    even = xp.clip(even, 0, 256)
    gates = xp.clip(even @ weights["gate"] + weights["gate_bias"], -256, 256)
    parts = _kinds(even @ weights["weight3"] + weights["bias3"], (turned * gates) @ weights["odd2"])
    limit = entropy.MAX_LOGIT / entropy.LOGIT_UNIT
    return entropy.Logits(*(xp.clip(part, -limit, limit) for part in parts))


def _kinds(even: Any, odd: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Of outputs (..., 9) and (..., 6), one kind after the other."""
    zero, more, tail = (even[..., 3 * kind : 3 * kind + 3] for kind in range(3))
    sign, lean = odd[..., :3], odd[..., 3:]
    return zero, sign, more + lean, more - lean, tail


_FIXED_POINT = {
    "weight1": WEIGHT_BITS,
    "bias1": FEATURE_BITS + WEIGHT_BITS,
    "weight2": WEIGHT_BITS,
    "bias2": HIDDEN_BITS + WEIGHT_BITS,
    "weight3": WEIGHT_BITS,
    "bias3": HIDDEN_BITS + WEIGHT_BITS,
    "predict": WEIGHT_BITS,
    "odd1": HIDDEN_BITS,
    "fold": WEIGHT_BITS,
    "gate": WEIGHT_BITS,
    "gate_bias": HIDDEN_BITS + WEIGHT_BITS,
    "odd2": WEIGHT_BITS,
}


def to_integers(weights: Weights) -> dict[str, np.ndarray]:
    """Float weights in fixed point: float64 arrays that hold integers."""
    return {
        name: np.rint(np.asarray(leaf, np.float64) * (1 << _FIXED_POINT[name]))
        for name, leaf in weights.items()
    }


def from_integers(weights: Weights) -> dict[str, np.ndarray]:
    """The float32 weights that integers in fixed point stand for."""
    return {
        name: (np.asarray(leaf, np.float64) / (1 << _FIXED_POINT[name])).astype(np.float32)
        for name, leaf in weights.items()
    }


def check_integers(weights: Weights) -> bool:
    """Whether all sums of these integers stay exact: biases below 2^40, other weights 2^17."""
    limits = {name: 1 << 40 if "bias" in name else _MAX_WEIGHT for name in weights}
    return all(
        bool(np.all(np.abs(leaf) <= limits[name]) and np.all(leaf == np.rint(leaf)))
        for name, leaf in weights.items()
    )


def _within(values: np.ndarray, low: int, high: int) -> np.ndarray:
    """`numpy.clip` without its overhead, which counts for the few values of a short diagonal."""
    return np.minimum(np.maximum(values, low), high)


def levels(weights: Weights, features: np.ndarray) -> np.ndarray:
    """The exact levels of scale (n, outputs) of `inrjax.entropy`, int64 0..63, of features (n, m).

    ``weights``: of `to_integers`. features: float64 that hold integers.
    """
    shift = FEATURE_BITS + WEIGHT_BITS - HIDDEN_BITS
    hidden = features @ weights["weight1"] + weights["bias1"]
    hidden = _within(np.floor(hidden / (1 << shift)), 0, _MAX_HIDDEN)
    hidden = hidden @ weights["weight2"] + weights["bias2"]
    hidden = _within(np.floor(hidden / (1 << WEIGHT_BITS)), 0, _MAX_HIDDEN)
    exponents = hidden @ weights["weight3"] + weights["bias3"]
    # 4 levels an octave, level 16 for a scale of 1, rounded half up.
    half = 1 << (HIDDEN_BITS + WEIGHT_BITS - 3)
    quarter = 1 << (HIDDEN_BITS + WEIGHT_BITS - 2)
    return _within(np.floor((exponents + half) / quarter) + 16, 0, 63).astype(np.int64)


def exact_logits(weights: Weights, features: np.ndarray, odd: np.ndarray) -> entropy.Logits:
    """The exact `inrjax.entropy.Logits`, each int64 (n, 3), of features (n, m) and signed ones
    (n, m - 1).

    ``weights``: of `to_integers`. features, odd: float64 that hold integers.
    """
    shift = FEATURE_BITS + WEIGHT_BITS - HIDDEN_BITS
    even = features @ weights["weight1"] + weights["bias1"]
    even = _within(np.floor(even / (1 << shift)), 0, _MAX_HIDDEN)
    turned = _within(odd @ weights["odd1"], -(1 << HIDDEN_BITS), 1 << HIDDEN_BITS)
    even = even @ weights["weight2"] + np.abs(turned) @ weights["fold"] + weights["bias2"]
    even = _within(np.floor(even / (1 << WEIGHT_BITS)), 0, _MAX_HIDDEN)
    gates = even @ weights["gate"] + weights["gate_bias"]
    gates = _within(np.floor(gates / (1 << WEIGHT_BITS)), -_MAX_HIDDEN, _MAX_HIDDEN)
    # Turned and weighed, in 1/2^16; rounded towards 0, so that signs turned turn it exactly.
    weighed = np.trunc(turned * gates / (1 << HIDDEN_BITS))
    # Down to the coder's unit, rounded: the even ones half up, the odd ones half away from 0.
    unit = (1 << (HIDDEN_BITS + WEIGHT_BITS)) // entropy.LOGIT_UNIT
    own = np.floor((even @ weights["weight3"] + weights["bias3"]) / unit + 0.5)
    lean = weighed @ weights["odd2"] / unit
    lean = np.sign(lean) * np.floor(np.abs(lean) + 0.5)
    limit = entropy.MAX_LOGIT
    return entropy.Logits(
        *(_within(part, -limit, limit).astype(np.int64) for part in _kinds(own, lean))
    )


def predictions(weights: Weights, around: Sequence[np.ndarray]) -> np.ndarray:
    """The exact predictions of low latents, int64: the weighted sum of neighbours, rounded."""
    total = sum(
        w * np.asarray(x, np.float64) for w, x in zip(weights["predict"], around, strict=True)
    )
    return np.floor((total + (1 << (WEIGHT_BITS - 1))) / (1 << WEIGHT_BITS)).astype(np.int64)
