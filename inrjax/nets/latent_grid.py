"""A picture as integer latents on grids of several resolutions, and the shared net behind them.

As in Cool-Chic (Ladune et al. 2023, arXiv:2212.05458) and C3 (Kim et al. 2024, arXiv:2312.02753) a
picture is its latents, and a small net makes pixels of them. Here the net is learned once and never
sent. It starts as the synthesis of the 9/7 wavelet (Cohen, Daubechies, Feauveau 1992; of JPEG
2000), in an orthonormal colour space; sine layers (Sitzmann et al. 2020, arXiv:2006.09661) at
every resolution add what a linear synthesis cannot give.

The spec needs numpy alone. Formulas take the array module, numpy or jax.numpy, as ``xp``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inrjax.types import Params

MAX_STEP = 63
"""Step sizes are numbered 0..63, from 1/32 to about 7.3: eight to an octave."""

_HALF = 2  # the kernels of the linear synthesis reach so many latents to each side
_SOFT_LIMIT = 4.0


def step_size(step: int | Any) -> Any:
    """The distance of neighbouring values of a latent, 2^(step / 8 - 5), for pixels in [0, 1]."""
    return 2.0 ** (step / 8 - 5)


@dataclass(frozen=True)
class LatentGridNet:
    """Which grids there are, and how wide the nets are.

    Grid k = 1..levels has a latent for every 2^k x 2^k pixels, rounded up: three bands (horizontal,
    vertical, diagonal detail) of each colour component; of the first component alone on grid 1. The
    lowest grid, which has the last one's size, has one latent a component.

    Attributes:
      levels: grids of details, 1..7.
      width: neurons of a sine layer, two at every resolution.
      context_width: neurons of a layer of the context models.
      odd_width: neurons of theirs that see signs, for details (see `inrjax.context.logits`); 0 for
        none, as the first bases had: details are then Laplace distributed around 0.
    """

    levels: int = 5
    width: int = 32
    context_width: int = 32
    odd_width: int = 48

    def __post_init__(self):
        widths = self.width, self.context_width
        if not 1 <= self.levels <= 7 or min(widths) < 1 or self.odd_width < 0:
            raise ValueError(
                f"got {self}, expected 1 to 7 levels, widths of at least 1, an odd_width of 0 or "
                "more"
            )

    def components(self, level: int) -> int:
        """Colour components that have details on grid ``level``, counted from 0 for the finest."""
        return 1 if level == 0 else 3

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Of the picture, of grids 1, 2, ...: ``levels`` + 1 pairs."""
        sizes = [(height, width)]
        for _ in range(self.levels):
            height, width = -(-height // 2), -(-width // 2)
            sizes.append((height, width))
        return sizes

    def latent_shapes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """Of the grids of details, finest first, then of the lowest: (rows, columns, bands)."""
        sizes = self.sizes(height, width)[1:]
        details = [(*size, 3 * self.components(k)) for k, size in enumerate(sizes)]
        return [*details, (*sizes[-1], 3)]

    def shapes(self) -> dict[str, Any]:
        """The shapes of the synthesis' params."""
        return {
            "colour": (3, 3),
            "low": {"gain": (3,)},
            **{_name(k): self._level_shapes(k) for k in range(self.levels)},
        }

    def _level_shapes(self, level: int) -> dict[str, tuple[int, ...]]:
        bands, side = 3 * self.components(level), 2 * _HALF + 1
        return {
            "gain": (bands,),
            "kernel": (side, side, 3 + bands, 12),
            "weight1": (3, 3, 6 + bands, self.width),
            "bias1": (self.width,),
            "step1": (self.width,),
            "weight2": (self.width, self.width),
            "bias2": (self.width,),
            "step2": (self.width,),
            "weight3": (self.width, 12),
        }


def _name(level: int) -> str:
    return f"level{level}"


def level_params(params: Params, level: int) -> Mapping[str, Any]:
    """The params of one resolution, 0 for the finest."""
    return params[_name(level)]


# ---------------------------------------------------------------------------- synthesis

Convolve = Callable[[Any, Any, tuple[Any, Any]], Any]
"""(values (h, w, n), kernel (k, k, n, m), true size) -> (h, w, m), the border's values repeated."""


def synthesize(
    net: LatentGridNet,
    params: Params,
    latents: Sequence[Any],
    step: Any,
    sizes: Sequence[tuple[Any, Any]],
    xp: Any,
    convolve: Convolve,
    sine: Callable[[Any], Any],
) -> Any:
    """Pixels (h, w, 3), about in [0, 1], of latents in steps (see `LatentGridNet.latent_shapes`).

    ``step``: 0..63, which `step_size` gives. ``sizes``: as of `LatentGridNet.sizes`; arrays may be
    longer than those, with anything behind. Each result is cut to the first of its sizes by the
    caller.
    """
    x = latents[-1] * (params["low"]["gain"] * step_size(step))
    for level in reversed(range(net.levels)):
        part, true = level_params(params, level), sizes[level + 1]
        x = refine(part, level, x, latents[level], step, true, xp, convolve, sine)
        x = x[: latents[level - 1].shape[0], : latents[level - 1].shape[1]] if level else x
    return x @ params["colour"] + 0.5


REACH = _HALF
"""What `refine` gives for a latent depends on those so many rows and columns away, at most."""


def refine(
    part: Mapping[str, Any],
    level: int,
    x: Any,
    z: Any,
    step: Any,
    true: tuple[Any, Any],
    xp: Any,
    convolve: Convolve,
    sine: Callable[[Any], Any],
) -> Any:
    """Components (2 h, 2 w, 3) of the next finer resolution, of those of this one (h, w, 3), ``x``,
    and of its details (h, w, bands), ``z``."""
    size, scaled = step_size(step), (step - 32) / 8
    linear = xp.concatenate([x, z * (part["gain"] * size)], axis=-1)
    y = convolve(linear, part["kernel"], true)
    shape = (x - convolve(x, _box(xp, x), true)) / size
    seen = xp.concatenate([_soft(xp, shape), _soft(xp, z), x * 2.0 ** -(level + 1)], axis=-1)
    hidden = convolve(seen, part["weight1"], true) + part["bias1"] + scaled * part["step1"]
    hidden = sine(hidden)
    hidden = sine(hidden @ part["weight2"] + part["bias2"] + scaled * part["step2"])
    return _interleave(y + (hidden @ part["weight3"]) * size)


def _soft(xp: Any, values: Any) -> Any:
    """Values as they are near 0, never beyond 4 steps: a sine layer is to see no larger ones."""
    return values / xp.sqrt(1 + (values / _SOFT_LIMIT) ** 2)


def _box(xp: Any, like: Any) -> Any:
    """The kernel of the mean of 3 x 3 values, of each of three components."""
    kernel = np.zeros((3, 3, 3, 3), np.float32)
    for component in range(3):
        kernel[:, :, component, component] = 1 / 9
    return xp.asarray(kernel, like.dtype)


def _interleave(values: Any) -> Any:
    """(h, w, 12) as (2 h, 2 w, 3): the four pixels of a latent, row by row, of three components."""
    height, width, _ = values.shape
    blocks = values.reshape(height, width, 2, 2, 3)
    return blocks.transpose(0, 2, 1, 3, 4).reshape(2 * height, 2 * width, 3)


# ---------------------------------------------------------------------------- the wavelet

COLOUR = np.array(
    [
        [3**-0.5, 3**-0.5, 3**-0.5],
        [2**-0.5, 0, -(2**-0.5)],
        [-(6**-0.5), (2 / 3) ** 0.5, -(6**-0.5)],
    ]
)
"""RGB to three components, orthonormal rows: brightness, red less blue, green less the others."""

# The 9/7 filters, from the centre outwards; an orthonormal scale, so that a step is worth the same
# on every grid.
_SCALE = 2**0.5
_ANALYSIS_LOW = (
    0.602949018236 * _SCALE, 0.266864118443 * _SCALE, -0.078223266529 * _SCALE,
    -0.016864118443 * _SCALE, 0.026748757411 * _SCALE,
)  # fmt: skip
_ANALYSIS_HIGH = (
    1.115087052457 / _SCALE, -0.591271763114 / _SCALE, -0.057543526229 / _SCALE,
    0.091271763114 / _SCALE,
)  # fmt: skip
# A synthesis filter is the other band's analysis filter with every second sign changed.
_SYNTHESIS_LOW = tuple(tap * (-1) ** i for i, tap in enumerate(_ANALYSIS_HIGH))
_SYNTHESIS_HIGH = tuple(tap * (-1) ** i for i, tap in enumerate(_ANALYSIS_LOW))


def _tap(half: Sequence[float], place: int) -> float:
    return half[abs(place)] if abs(place) < len(half) else 0.0


def wavelet_kernel(components: int) -> np.ndarray:
    """The synthesis kernel (5, 5, 3 + 3 components, 12) of one level: low bands, then details."""
    taps = np.zeros((2 * _HALF + 1, 2, 2))  # (latent, band, pixel of the pair)
    for latent in range(-_HALF, _HALF + 1):
        for pixel in range(2):
            taps[latent + _HALF, 0, pixel] = _tap(_SYNTHESIS_LOW, pixel - 2 * latent)
            taps[latent + _HALF, 1, pixel] = _tap(_SYNTHESIS_HIGH, pixel - 2 * latent - 1)
    planes = np.einsum("abp,cdq->acbdpq", taps, taps)
    kernel = np.zeros((5, 5, 3 + 3 * components, 2, 2, 3))
    for component in range(3):
        kernel[:, :, component, :, :, component] = planes[:, :, 0, 0]
    for component in range(components):
        for band, (vertical, horizontal) in enumerate(((0, 1), (1, 0), (1, 1))):
            place = 3 + 3 * component + band
            kernel[:, :, place, :, :, component] = planes[:, :, vertical, horizontal]
    return kernel.reshape(5, 5, 3 + 3 * components, 12).astype(np.float32)


def analyze(net: LatentGridNet, image: np.ndarray) -> list[np.ndarray]:
    """Wavelet coefficients of pixels (h, w, 3) in [0, 1], ordered as the latents, not in steps.

    The border's values are repeated beyond the picture. A fit of the latents starts from them.
    """
    x = (image.astype(np.float64) - 0.5) @ COLOUR.T
    details = []
    for level in range(net.levels):
        low, high = _split(x, 0)
        (x, across), (down, both) = _split(low, 1), _split(high, 1)
        bands = np.stack([across, down, both], axis=-1)[:, :, : net.components(level)]
        details.append(bands.reshape(*bands.shape[:2], -1))
    return [*details, x]


def _split(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The low and the high band along one axis, each of half the length, rounded up."""
    reach = len(_ANALYSIS_LOW) - 1
    length = x.shape[axis]
    half = -(-length // 2)
    places = np.clip(np.arange(-reach, 2 * half + reach), 0, length - 1)
    padded = np.take(x, places, axis=axis)

    def filtered(taps: Sequence[float], centre: int) -> np.ndarray:
        width = len(taps) - 1
        parts = [
            tap * np.take(padded, reach + centre + offset + 2 * np.arange(half), axis=axis)
            for offset in range(-width, width + 1)
            if (tap := _tap(taps, offset))
        ]
        return np.sum(parts, axis=0)

    return filtered(_ANALYSIS_LOW, 0), filtered(_ANALYSIS_HIGH, 1)
