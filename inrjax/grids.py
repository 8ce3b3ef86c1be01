"""The base of latent grids: what encoder and decoder share; latents to bytes, and to pixels.

Needs numpy and the range coder alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from inrjax import context, entropy, trees
from inrjax.nets.latent_grid import (
    MAX_STEP,
    REACH,
    LatentGridNet,
    level_params,
    refine,
    step_size,
)
from inrjax.types import BitstreamError, Params

FORMAT = "inrjax-grid-1"
_FOLDER = "grids"
_DEFAULT = "grid.npz"
_LARGEST_LATENT = 1 << 24


@dataclass(frozen=True, eq=False)
class GridBase:
    """Nets that all latent grids share.

    Attributes:
      net: the grids and the widths.
      synthesis: float16 tree (see `LatentGridNet.shapes`).
      models: context models, name -> int32 arrays in fixed point (see `inrjax.context.shapes`).
      info: how it was made: command, data and their digest, licence, steps, seed.
    """

    net: LatentGridNet
    synthesis: Params
    models: Mapping[str, Mapping[str, np.ndarray]]
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        _check_shapes("synthesis", self.synthesis, self.net.shapes())
        _check_shapes("models", self.models, context.shapes(self.net))
        if not all(context.check_integers(weights) for weights in self.models.values()):
            raise ValueError("the base's context models have weights that are too large")
        if not all(np.isfinite(leaf).all() for _, leaf in trees.leaves(self.synthesis)):
            raise ValueError("the base's synthesis has weights that are not finite")

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of what a decoder uses: all but info."""
        return trees.digest(self._parts(), json.dumps(_net_fields(self.net), sort_keys=True))

    @property
    def short_digest(self) -> str:
        """The digest's first 8 hexadecimal digits: what file names, configs and tables say."""
        return self.digest.hex()[:8]

    @property
    def shared_bytes(self) -> int:
        """Bytes that a decoder needs beside the files: the arrays as stored."""
        return sum(np.asarray(leaf).nbytes for _, leaf in trees.leaves(self._parts()))

    @cached_property
    def exact(self) -> dict[str, dict[str, np.ndarray]]:
        """The models' integers as float64, which holds their sums exactly."""
        return {
            name: {leaf: np.asarray(values, np.float64) for leaf, values in weights.items()}
            for name, weights in self.models.items()
        }

    @cached_property
    def approximate(self) -> dict[str, Any]:
        """Synthesis and context models as float32, for fits: two trees, the latter unscaled."""
        models = {name: context.from_integers(weights) for name, weights in self.models.items()}
        single = {p: np.asarray(leaf, np.float32) for p, leaf in trees.leaves(self.synthesis)}
        return {"synthesis": trees.from_leaves(single), "context": models}

    def _parts(self) -> dict[str, Any]:
        return {"models": self.models, "synthesis": self.synthesis}


def _net_fields(net: LatentGridNet) -> dict[str, int]:
    """All that a base says of its net; without an odd_width of 0, as the first bases did."""
    return {name: value for name, value in asdict(net).items() if (name, value) != ("odd_width", 0)}


def _check_shapes(name: str, tree: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    expected = {path: tuple(shape) for path, shape in trees.leaves(shapes)}
    if {path: np.shape(leaf) for path, leaf in trees.leaves(tree)} != expected:
        raise ValueError(f"the base's {name} do not fit its net")


def make_base(
    net: LatentGridNet, synthesis: Params, models: Mapping[str, Any], info: Mapping[str, Any]
) -> GridBase:
    """A base of float params, as training gives them: rounded to float16 and to fixed point."""
    half = {path: np.asarray(leaf, np.float16) for path, leaf in trees.leaves(synthesis)}
    fixed = {
        name: {leaf: v.astype(np.int32) for leaf, v in context.to_integers(weights).items()}
        for name, weights in models.items()
    }
    return GridBase(net, trees.from_leaves(half), fixed, info)


# ---------------------------------------------------------------------------- files


def save_grid_base(path: Path, base: GridBase) -> None:
    """Write a base as npz, whole or not at all; `load_grid_base` reads it back exactly."""
    header = {
        "format": FORMAT,
        "net": _net_fields(base.net),
        "info": dict(base.info),
        "digest": base.digest.hex(),
    }
    arrays = dict(trees.leaves(base._parts()))
    trees.write_atomic(Path(path), trees.to_npz(header, arrays))


def load_grid_base(path: Path) -> GridBase:
    """Read a base, its digest verified.

    Raises:
      ValueError: the file is missing, damaged, not such a base, or of another format.
    """
    path = Path(path)
    data = trees.read_npz_file(path, "a base", "experiments.train_grid")
    return _parse(data, str(path))


def _parse(data: bytes, name: str) -> GridBase:
    try:
        header, leaves = trees.from_npz(data)
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']!r}, expected {FORMAT!r}")
        tree = trees.from_leaves(leaves)
        net = LatentGridNet(**{"odd_width": 0, **header["net"]})
        base = GridBase(net, tree["synthesis"], tree["models"], header["info"])
        stated = header["digest"]
    except Exception as error:  # a damaged archive makes its reader raise nearly anything
        raise ValueError(f"{name} is damaged or no grid base of inrjax: {error}") from None
    if stated != base.digest.hex():
        raise ValueError(f"{name} is damaged: its content does not match its digest")
    return base


@lru_cache(maxsize=1)
def _packaged() -> dict[str, GridBase]:
    """All packaged bases, present and retired, by file name; read once: decoders ask often."""
    folder = resources.files("inrjax").joinpath(_FOLDER)
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    return {e.name: _parse(e.read_bytes(), e.name) for e in entries if e.name.endswith(".npz")}


def packaged_base() -> GridBase:
    """The base that files are written with unless another is given."""
    return _packaged()[_DEFAULT]


def find_base(digest: bytes) -> GridBase | None:
    """The packaged base whose digest begins so, present or retired; None if there is none."""
    return next((b for b in _packaged().values() if b.digest.startswith(digest)), None)


# ---------------------------------------------------------------------------- latents <-> bytes

Offsets = tuple[tuple[int, int], ...]
"""(rows, columns) from a place to others."""

Code = Callable[[Any, np.ndarray, Any], np.ndarray]
"""(levels of scale or `inrjax.entropy.Logits`, latents, predictions), all of one shape or 0 -> the
latents, coded or decoded."""


def encode_latents(base: GridBase, latents: Sequence[np.ndarray], step: int) -> bytes:
    """The range-coded bytes of int latents (see `LatentGridNet.latent_shapes`).

    Raises ValueError for a latent of 2^24 or more.
    """
    largest = max(int(np.abs(own).max()) for own in latents)
    if largest >= _LARGEST_LATENT:
        raise ValueError(f"got a latent of {largest}, expected less than {_LARGEST_LATENT}")
    encoder = entropy.CallEncoder()

    def put(model: Any, values: np.ndarray, mean: Any) -> np.ndarray:
        if isinstance(model, entropy.Logits):
            encoder.put_decided(values.ravel(), _raveled(model))
        else:
            encoder.put((values - mean).ravel(), model.ravel())
        return values

    _walk(base, [np.array(own, np.int32) for own in latents], step, put)
    return encoder.to_bytes()


def decode_latents(
    base: GridBase, data: bytes, height: int, width: int, step: int
) -> list[np.ndarray]:
    """The int32 latents; exactly those that `encode_latents` was given.

    Raises BitstreamError for data that cannot be of this base and size.
    """
    latents = [np.zeros(shape, np.int32) for shape in base.net.latent_shapes(height, width)]
    decoder = entropy.CallDecoder(data)

    def get(model: Any, values: np.ndarray, mean: Any) -> np.ndarray:
        if isinstance(model, entropy.Logits):
            values = decoder.get_decided(_raveled(model)).reshape(values.shape)
        else:
            values = decoder.get(model.ravel()).reshape(values.shape) + mean
        if np.abs(values).max() >= _LARGEST_LATENT:
            raise BitstreamError("the payload is damaged: a latent is too large")
        return values

    _walk(base, latents, step, get)
    return latents


def _raveled(logits: entropy.Logits) -> entropy.Logits:
    return entropy.Logits(*map(np.ravel, logits))


def _walk(base: GridBase, latents: list[np.ndarray], step: int, code: Code) -> None:
    """Visit all latents in coding order; ``code(model, values, mean)`` gives what they are.

    Low latents first, then grids from the coarsest, by component; in each, diagonal by diagonal:
    all places with the same column + 2 row know all that they look at.
    """
    net, low = base.net, latents[-1]
    _walk_low(base, low, step, code)
    coarser: list[_Seen] = []
    for level in reversed(range(net.levels)):
        done: list[_Seen] = []
        for component in range(net.components(level)):
            weights = base.exact[f"level{level}_{component}"]
            own = latents[level][..., 3 * component : 3 * component + 3]
            known = _Known(done, coarser[component] if coarser else None, step)
            done.append(_walk_details(weights, own, known, code))
        coarser = done


class _Seen:
    """What models see of one component's details (h, w, 3), with a border of zeros around them: at
    any place, what is known of them. int16 holds a magnitude; few bytes a latent are held."""

    _BORDER = max(max(abs(row), abs(column)) for row, column in context.CAUSAL)

    def __init__(self, height: int, width: int, signs: bool):
        self._pitch = width + 2 * self._BORDER
        places = (height + 2 * self._BORDER) * self._pitch
        self._magnitudes = np.zeros((places, 3), np.int16)
        self._signed = np.zeros((places if signs else 0, 3), np.int8)

    def put(self, row: np.ndarray, column: np.ndarray, latents: np.ndarray) -> None:
        """Latents (n, 3) at n places."""
        places = self._places(row, column)
        self._magnitudes[places] = context.magnitude(np, latents)
        if len(self._signed):
            self._signed[places] = context.signed(np, latents)

    def around(self, row: np.ndarray, column: np.ndarray, offsets: Offsets) -> list[np.ndarray]:
        """Of magnitudes and, if there are any, of signed ones (n, 3 times the offsets): what
        `inrjax.context.shifted` sees from n places."""
        places = self._places(row, column)[:, None] + _steps(self._pitch, offsets)
        kinds = [own for own in (self._magnitudes, self._signed) if len(own)]
        return [own[places].reshape(len(row), -1) for own in kinds]

    def _places(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        return (row + self._BORDER) * self._pitch + column + self._BORDER


@lru_cache(maxsize=64)
def _steps(pitch: int, offsets: Offsets) -> np.ndarray:
    """How far (rows, columns) are in a flat array of rows of ``pitch`` places."""
    return np.array([rows * pitch + columns for rows, columns in offsets])


class _Known(NamedTuple):
    """`inrjax.context.known_features`, at some places at a time: all of them would be tens of
    numbers for each latent."""

    before: Sequence[_Seen]
    coarser: _Seen | None
    step: int

    def at(self, row: np.ndarray, column: np.ndarray) -> list[list[np.ndarray]]:
        """Parts (n, any) of the features of n places, as `_Seen.around` has them, step aside."""
        parts = [seen.around(row, column, context.CROSS) for seen in self.before]
        if self.coarser is not None:
            parts.append(self.coarser.around(row // 2, column // 2, context.CROSS))
        return parts


def _walk_details(weights: Any, own: np.ndarray, known: _Known, code: Code) -> _Seen:
    """Code one component's details (h, w, 3), in place; returns what is known of them then."""
    height, width, _ = own.shape
    signs = "odd1" in weights
    seen = _Seen(height, width, signs)
    step = context.step_feature(np, known.step, np.int16).item()
    for row, column in _diagonals(height, width):
        parts = [seen.around(row, column, context.CAUSAL), *known.at(row, column)]
        even, *odd = (list(kind) for kind in zip(*parts, strict=True))
        even.append(np.full((len(row), 1), step, np.int16))
        features = np.concatenate(even, axis=1, dtype=np.float64)
        if signs:
            signed = np.concatenate(odd[0], axis=1, dtype=np.float64)
            model: Any = context.exact_logits(weights, features, signed)
        else:
            model = context.levels(weights, features)
        values = code(model, own[row, column], 0)
        own[row, column] = values
        seen.put(row, column, values)
    return seen


def _walk_low(base: GridBase, low: np.ndarray, step: int, code: Code) -> None:
    height, width, _ = low.shape
    residuals: list[np.ndarray] = []
    for component in range(3):
        weights = base.exact[f"low{component}"]
        padded = np.zeros((height + 1, width + 2), np.int64)
        residual = np.zeros((height, width), np.int64)
        for row, column in _diagonals(height, width):
            around = context.neighbours(np, padded, row, column, width)
            mean = context.predictions(weights, around)
            before = [part[row, column] for part in residuals]
            features = context.low_features(np, around, before, step, np.float64)
            levels = context.levels(weights, features)[:, 0]
            values = code(levels, low[row, column, component], mean)
            low[row, column, component] = values
            padded[row + 1, column + 1] = values
            residual[row, column] = values - mean
        residuals.append(residual)


def _diagonals(height: int, width: int):
    """(rows, columns) of all places, those with the same column + 2 row together."""
    for place in range(width + 2 * (height - 1)):
        first = max(0, -(-(place - width + 1) // 2))
        row = np.arange(first, min(height - 1, place // 2) + 1)
        if len(row):
            yield row, place - 2 * row


# ---------------------------------------------------------------------------- latents -> pixels


def render(
    base: GridBase, latents: Sequence[np.ndarray], step: int, height: int, width: int
) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
    """(rows and columns, pixels) of the blocks of a picture (height, width, 3) of int latents;
    float32, about in [0, 1].

    As `inrjax.nets.latent_grid.synthesize`, block by block: a decoder is to hold little beside
    latents and pixels.
    """
    synthesis, number = base.approximate["synthesis"], np.float32(step)
    x = latents[-1].astype(np.float32) * (synthesis["low"]["gain"] * step_size(number))
    sizes = base.net.sizes(height, width)
    for level in reversed(range(1, base.net.levels)):
        finer = np.empty((*sizes[level], 3), np.float32)
        for place, values in _finer_blocks(base, level, x, latents[level], number, sizes[level]):
            finer[place] = values
        x = finer
    for place, values in _finer_blocks(base, 0, x, latents[0], number, (height, width)):
        yield place, values @ synthesis["colour"] + np.float32(0.5)


def _finer_blocks(
    base: GridBase, level: int, x: np.ndarray, z: np.ndarray, step: np.float32, size: Any
) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
    """(rows and columns, values) of the blocks of the grid of ``size`` that a coarser one, and
    details, make up."""
    part = level_params(base.approximate["synthesis"], level)
    for block in _blocks(*z.shape[:2]):
        # Beyond REACH nothing counts; where the grid ends, the wider block ends, too.
        wider = tuple(slice(max(0, own.start - REACH), own.stop + REACH) for own in block)
        here = z[wider].astype(np.float32)
        values = refine(part, level, x[wider], here, step, here.shape[:2], np, _convolve, np.sin)
        top, left = (2 * (own.start - w.start) for own, w in zip(block, wider, strict=True))
        rows, columns = (
            slice(2 * own.start, min(2 * own.stop, length))
            for own, length in zip(block, size, strict=True)
        )
        height, width = rows.stop - rows.start, columns.stop - columns.start
        yield (rows, columns), values[top : top + height, left : left + width]


def _blocks(height: int, width: int):
    """(rows, columns), slices, of the blocks of a grid."""
    for top in range(0, height, _BLOCK_SIDE):
        for left in range(0, width, _BLOCK_SIDE):
            yield (
                slice(top, min(top + _BLOCK_SIDE, height)),
                slice(left, min(left + _BLOCK_SIDE, width)),
            )


_BLOCK_SIDE = 128


def _convolve(values: np.ndarray, kernel: np.ndarray, true: tuple[int, int]) -> np.ndarray:
    """See `inrjax.nets.latent_grid.Convolve`; some rows at a time, so that little is held."""
    del true  # host arrays have their true size
    height, width, channels = values.shape
    side, reach = kernel.shape[0], kernel.shape[0] // 2
    padded = np.pad(values, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    flat = kernel.reshape(-1, kernel.shape[-1])
    result = np.empty((height, width, kernel.shape[-1]), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (0, 1))
    rows = max(1, _BLOCK_VALUES // (width * side * side * channels))
    for top in range(0, height, rows):
        part = windows[top : top + rows].transpose(0, 1, 3, 4, 2)
        result[top : top + rows] = (part.reshape(-1, len(flat)) @ flat).reshape(
            -1, width, result.shape[-1]
        )
    return result


_BLOCK_VALUES = 1 << 20


def check_step(step: int) -> bool:
    """Whether a file may have this step."""
    return 0 <= step <= MAX_STEP
