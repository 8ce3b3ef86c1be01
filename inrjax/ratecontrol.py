"""Encoding to a wanted size or quality, by a short search; every file of it is a real one.

MetaSiren: one picture is fitted once at a width that a table of training images suggests, and at
another if the first was far off. From there, refinements of a tenth of the steps, and of a codec
that searches roundings a search each, try other slopes:
log bytes and PSNR are nearly linear in the logarithm of the slope, so that few are needed.
LatentGrid: a fit takes seconds, so that each try is one, at another step size, then at another
weight of the rate.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import NamedTuple, Protocol

from inrjax import metrics
from inrjax.codecs.inr import MetaSiren
from inrjax.codecs.latent_grid import STEPS, LatentGrid
from inrjax.types import Codec, Image, OnProgress, Params

DB_PER_OCTAVE = 1.6
"""PSNR that twice the bytes buy, by width; measured on held-back cid22 images."""

SLOPES = (0.02, 1.2)
"""Where the search stays, if it can: below, a file grows without getting better."""

STEEPEST = 2.4
"""Beyond `SLOPES`, where PSNR falls ever faster and some pictures fall apart: for what lies between
the least of a width and the most of the next narrower one, and below the least of all."""

_MAX_WIDTHS = 3  # fits of a picture before its slopes are tried, and again while they are
_MAX_REFINEMENTS = 10
_MAX_STEEP_REFINEMENTS = 16  # where PSNR may move by 0.3 dB from a slope to the very next
_REFINE_SHARE = 0.1  # steps of a refinement, of those of a fit
_MIN_REFINE_STEPS = 50
_PROBE_SHARE = 0.25  # steps of the fit that a PSNR is predicted from
_OCTAVES_PER_OCTAVE = -0.31  # of bytes, for one of the slope
_REACH = 0.4  # octaves of bytes that the slope changes without harm
_MARGIN = 0.02  # octaves below a limit that the search aims at
_MOST = 1.0  # octaves: files further off count as this where a line is drawn through them
_FAR = 16.0  # octaves: no file is further from its target, so that lines through it can be drawn


class Measured(NamedTuple):
    """A file as it is: its bytes, bits per pixel, and PSNR in dB of what it decodes to."""

    stream: bytes
    bpp: float
    psnr: float

    @property
    def num_bytes(self) -> float:
        """Bytes of the file."""
        return len(self.stream)


class Rated(Protocol):
    """What a target looks at: a file, or what is expected of one."""

    @property
    def num_bytes(self) -> float:
        """Bytes of the file."""
        ...

    @property
    def bpp(self) -> float:
        """Its bits per pixel."""
        ...

    @property
    def psnr(self) -> float:
        """In dB."""
        ...


class Target(Protocol):
    """What is wanted of a file."""

    def excess(self, measured: Rated) -> float:
        """Octaves of bytes by which the file is too large; below 0, too small."""
        ...

    def is_met(self, measured: Rated) -> bool:
        """Whether the file will do."""
        ...


@dataclass(frozen=True)
class TargetBpp:
    """Bits per pixel, within ``tolerance`` (a share). ValueError unless both are above 0."""

    bpp: float
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        _require_positive("bits per pixel", self.bpp)
        _require_positive("a tolerance", self.tolerance)

    def excess(self, measured: Rated) -> float:
        """See `Target`."""
        return math.log2(measured.bpp / self.bpp)

    def is_met(self, measured: Rated) -> bool:
        """See `Target`."""
        return abs(measured.bpp / self.bpp - 1) <= self.tolerance


@dataclass(frozen=True)
class TargetPsnr:
    """PSNR in dB, within ``tolerance`` dB. ValueError unless both are above 0."""

    psnr: float
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        _require_positive("a PSNR", self.psnr)
        _require_positive("a tolerance", self.tolerance)

    def excess(self, measured: Rated) -> float:
        """See `Target`."""
        return (measured.psnr - self.psnr) / DB_PER_OCTAVE

    def is_met(self, measured: Rated) -> bool:
        """See `Target`."""
        return abs(measured.psnr - self.psnr) <= self.tolerance


@dataclass(frozen=True)
class MaxBytes:
    """Never more than so many bytes, and at least ``1 - tolerance`` of them where the widths reach
    so far. ValueError unless both are above 0."""

    num_bytes: int
    tolerance: float = 0.04

    def __post_init__(self) -> None:
        _require_positive("a number of bytes", self.num_bytes)
        _require_positive("a tolerance", self.tolerance)

    def excess(self, measured: Rated) -> float:
        """See `Target`."""
        return math.log2(measured.num_bytes / self.num_bytes) + _MARGIN

    def is_met(self, measured: Rated) -> bool:
        """See `Target`."""
        return 1 - self.tolerance <= measured.num_bytes / self.num_bytes <= 1

    def allows(self, measured: Rated) -> bool:
        """Whether the file is small enough."""
        return measured.num_bytes <= self.num_bytes


def _require_positive(what: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"got {value} for {what}, expected a number above 0")


class UnreachableError(ValueError):
    """No file of this picture meets the target; ``nearest`` comes nearest."""

    def __init__(self, nearest: Measured):
        super().__init__(
            "the target cannot be reached for this picture: the nearest file has "
            f"{nearest.num_bytes} bytes, {nearest.bpp:.4f} bpp and {nearest.psnr:.2f} dB, ask for "
            "that"
        )
        self.nearest = nearest


class WidthModel(NamedTuple):
    """What a width costs and gives, means over training images: ``log2_bytes`` of a file, and its
    ``psnr`` in dB."""

    log2_bytes: float
    psnr: float


def encode_to(
    image: Image,
    target: Target,
    codec: MetaSiren,
    model: Mapping[int, WidthModel],
    on_progress: OnProgress | None = None,
) -> Measured:
    """The file of a uint8 (height, width, 3) image that meets a target.

    Args:
      codec: steps, seed and optimiser of the fits; its slope is where the search starts. One with
        an init of its own keeps its width.
      model: the widths to choose from, each with a packaged init; see `packaged_model`.
      on_progress: of each fit, refinement and search, one after the other.

    Raises:
      UnreachableError: no width and slope meet the target. ValueError: as the codec.
    """
    allowed = model
    if codec.init is not None:  # one width needs no model: nothing is chosen by it
        allowed = {codec.width: model.get(codec.width, WidthModel(0.0, 0.0))}
    search = _Search(image, target, codec, on_progress)
    for width in _widths_to_try(search, allowed):
        search.fit(width)
        if search.is_met():
            return search.result()
    search.try_slopes(search.nearest_width())
    for _ in range(_MAX_WIDTHS):
        neighbour = _neighbour(search, allowed)
        if search.any_is_met() or neighbour is None:
            break
        if neighbour not in search.fits:
            search.fit(neighbour)
        if not search.any_is_met():
            search.try_slopes(neighbour)
    if not search.any_is_met():
        search.try_steep_slopes()
    return search.result()


def _widths_to_try(search: _Search, model: Mapping[int, WidthModel]) -> Iterator[int]:
    """The width that the model suggests; then, as long as what it gave is out of the slope's reach,
    the one that is nearest by what is known of this picture."""
    width = _first_width(search, model)
    for _ in range(_MAX_WIDTHS):
        yield width
        excess = search.excess(search.fits[width].measured)
        wanted = model[width].log2_bytes - excess
        width = min(model, key=lambda other: abs(model[other].log2_bytes - wanted))
        if abs(excess) <= _REACH or width in search.fits:
            return


def _neighbour(search: _Search, model: Mapping[int, WidthModel]) -> int | None:
    """The next width on the side where the last one's nearest file falls short; None if there is
    none, or its slopes were tried already."""
    widths = sorted(model)
    is_too_small = search.nearest_of(search.last_width) < 0
    at = widths.index(search.last_width) + (1 if is_too_small else -1)
    return widths[at] if 0 <= at < len(widths) and widths[at] not in search.tried else None


def _first_width(search: _Search, model: Mapping[int, WidthModel]) -> int:
    """The width whose typical file comes nearest to the target.

    For a PSNR that depends on the picture most of all: a short fit of the smallest width tells.
    """
    if len(model) == 1:
        return next(iter(model))
    height, width = search.image.shape[:2]
    offset = 0.0
    if isinstance(search.target, TargetPsnr):
        smallest = min(model)
        offset = search.probe(smallest) - model[smallest].psnr

    def distance(candidate: int) -> float:
        num_bytes = 2 ** model[candidate].log2_bytes
        typical = _Typical(
            num_bytes, 8 * num_bytes / (height * width), model[candidate].psnr + offset
        )
        return abs(search.target.excess(typical))

    return min(model, key=distance)


class _Typical(NamedTuple):
    """What a `Target` looks at, of a file that was not made."""

    num_bytes: float
    bpp: float
    psnr: float


class _Fit(NamedTuple):
    """A fit of one width at the codec's own slope."""

    codec: MetaSiren
    learned: Params
    measured: Measured


class _Search:
    """One picture and its target: every file that was made, and the fits."""

    def __init__(
        self, image: Image, target: Target, codec: MetaSiren, on_progress: OnProgress | None
    ):
        self.image, self.target, self._codec = image, target, codec
        self._on_progress = on_progress
        self.fits: dict[int, _Fit] = {}
        self.files: list[Measured] = []
        self.tried: dict[int, list[float]] = {}
        """The excess of every file of a width whose slopes were tried; widths and files in the
        order of the search."""

    def probe(self, width: int) -> float:
        """PSNR in dB of a short fit."""
        steps = max(1, round(_PROBE_SHARE * self._codec.num_steps))
        codec = replace(self._codec, width=width, num_steps=steps, search_steps=0)
        [learned] = codec.fit([self.image], self._on_progress)
        return self._measure(codec, learned).psnr

    def excess(self, measured: Measured) -> float:
        """Octaves of bytes by which a file is too large; of a perfect picture not inf, but far."""
        return min(max(self.target.excess(measured), -_FAR), _FAR)

    @property
    def last_width(self) -> int:
        """The width whose slopes were tried last."""
        return next(reversed(self.tried))

    def nearest_of(self, width: int) -> float:
        """The excess of the file that came nearest to the target, of a width that was tried."""
        return min(self.tried[width], key=abs)

    def fit(self, width: int) -> None:
        """A whole fit of a width, into ``fits``."""
        codec = replace(self._codec, width=width)
        [learned] = codec.fit([self.image], self._on_progress)
        measured = self._measure(codec, learned)
        self.fits[width] = _Fit(codec, learned, measured)
        self.files.append(measured)

    def nearest_width(self) -> int:
        """The width whose fit came nearest to the target."""
        return min(self.fits, key=lambda width: abs(self.excess(self.fits[width].measured)))

    def try_slopes(self, width: int) -> None:
        """Refine the fit of a width at other slopes, by regula falsi (the Illinois rule), until a
        file meets the target or the slopes are used up."""
        base = self.fits[width]
        low, high = (math.log2(slope) for slope in SLOPES)
        start, excess = math.log2(max(base.codec.slope, SLOPES[0])), self.excess(base.measured)
        self.tried[width] = [excess]
        at = start + excess / -_OCTAVES_PER_OCTAVE
        bracket = _FalsePosition(_MOST)
        for _ in range(_MAX_REFINEMENTS):
            at = min(max(at, low), high)
            excess = self._refine(base, 2**at)
            if self.is_met():
                return
            bracket.add(at, excess)
            if bracket.is_closed:
                at = bracket.next()
            elif at == (high if excess > 0 else low):
                return
            else:
                # A little further than the line says, so that the other side is found soon.
                at += 1.2 * excess / -_OCTAVES_PER_OCTAVE

    def try_steep_slopes(self) -> None:
        """Beyond `SLOPES`, by the same rule: the narrowest width whose files are all too large."""
        all_too_large = [width for width, excesses in self.tried.items() if min(excesses) > 0]
        if not all_too_large:
            return
        width = min(all_too_large)
        base = self.fits[width]
        bracket = _FalsePosition(_MOST)
        bracket.add(math.log2(SLOPES[1]), self.tried[width][-1])
        bracket.add(math.log2(STEEPEST), -1.0)
        for _ in range(_MAX_STEEP_REFINEMENTS):
            at = bracket.next()
            excess = self._refine(base, 2**at)
            if self.is_met():
                return
            bracket.add(at, excess)

    def _refine(self, base: _Fit, slope: float) -> float:
        """Another file of a fit; its excess."""
        codec = replace(base.codec, slope=slope)
        steps = max(_MIN_REFINE_STEPS, round(_REFINE_SHARE * codec.num_steps))
        refined = codec.refine(self.image, base.learned, steps, self._on_progress)
        measured = self._measure(codec, refined)
        self.files.append(measured)
        excess = self.excess(measured)
        self.tried[codec.width].append(excess)
        return excess

    def _measure(self, codec: MetaSiren, learned: Params) -> Measured:
        [searched] = codec.search([self.image], [learned], self._on_progress)
        return _measured(codec, self.image, codec.pack(self.image, searched))

    def is_met(self) -> bool:
        """Whether the last file meets the target."""
        return self.target.is_met(self.files[-1])

    def any_is_met(self) -> bool:
        """Whether any file meets the target."""
        return any(self.target.is_met(file) for file in self.files)

    def result(self) -> Measured:
        """The best file there is; UnreachableError if none will do."""
        return _best(self.files, self.target)


class _FalsePosition:
    """Where a falling function crosses 0: regula falsi by the Illinois rule (Dowell and Jarratt
    1971), by which an end that stays twice in a row counts half, so that it moves soon."""

    def __init__(self, most: float) -> None:
        """``most``: values further from 0 count as this."""
        self._most = most
        self._ends: dict[bool, tuple[float, float]] = {}  # is above 0 -> (place, value)
        self._last: bool | None = None  # the side that moved last

    def add(self, at: float, value: float) -> None:
        """A place between the ends so far, or a first one on its side."""
        side = value > 0
        if self.is_closed:
            if side == self._last:
                place, kept = self._ends[not side]
                self._ends[not side] = (place, kept / 2)
            self._last = side
        self._ends[side] = (at, min(max(value, -self._most), self._most))

    @property
    def is_closed(self) -> bool:
        """Whether there are values on both sides of 0."""
        return len(self._ends) == 2

    def next(self) -> float:
        """Where the line between the two ends crosses 0."""
        (a, above), (b, below) = self._ends[True], self._ends[False]
        return a + (b - a) * above / (above - below)


def _measured(codec: Codec, image: Image, stream: bytes) -> Measured:
    [image_hat] = codec.decode([stream])
    bpp = metrics.bpp(len(stream), *image.shape[:2])
    return Measured(stream, bpp, metrics.psnr(image, image_hat))


def _best(files: Sequence[Measured], target: Target) -> Measured:
    """The best of some files; UnreachableError if none will do."""

    def distance(file: Measured) -> float:
        return abs(target.excess(file))

    if isinstance(target, MaxBytes):
        allowed = [file for file in files if target.allows(file)]
        if allowed:
            return max(allowed, key=lambda file: file.psnr)
    elif met := [file for file in files if target.is_met(file)]:
        return min(met, key=distance)
    raise UnreachableError(min(files, key=distance))


# ---------------------------------------------------------------------------- latent grids

_MAX_FITS = 12  # of one picture
_OCTAVES_PER_STEP = -0.14  # of bytes; measured on held-back cid22 images, as the next
_WEIGHT_PER_STEP = 0.56  # octaves of rate_weight that change the bytes as much as a step does
_FARTHEST = 3.0  # steps from a step size that its rate_weight stands in for


def encode_grid_to(
    image: Image, target: Target, codec: LatentGrid, on_progress: OnProgress | None = None
) -> Measured:
    """The file of a uint8 (height, width, 3) image that meets a target, by `LatentGrid`.

    First the step size, then the weight of the rate at the step size that came nearest: from one
    step size to the next, size and quality may leap over the target.

    Args:
      codec: where the search starts; its iterations, seed and base are those of all files.
      on_progress: counts fits, of as many as there may be.

    Raises:
      UnreachableError: no step size meets the target. ValueError: as the codec.
    """
    files: list[Measured] = []

    def excess_at(place: _Place) -> float:
        files.append(_measured_at(codec, image, place))
        if on_progress is not None:
            on_progress(len(files), _MAX_FITS)
        return target.excess(files[-1])

    def is_done() -> bool:
        return target.is_met(files[-1]) or len(files) == _MAX_FITS

    coarse, finest, coarsest = _Bracket(), float(STEPS.start), float(STEPS.stop - 1)
    place = _Place(codec.step, float(codec.step))
    while True:
        coarse.add(place, excess_at(place))
        at = float(round(min(max(coarse.next(), finest), coarsest)))
        if is_done() or coarse.has(at):
            break
        place = _Place(int(at), at)
    nearest, excess = coarse.nearest()
    fine = _Bracket()
    fine.add(nearest, excess)
    while not is_done():
        at = fine.next()
        if abs(at - nearest.step) > _FARTHEST:
            break
        place = nearest._replace(at=at)
        fine.add(place, excess_at(place))
    return _best(files, target)


class _Place(NamedTuple):
    """A step size, and where the weight of the rate puts it: ``at`` - ``step`` steps further."""

    step: int
    at: float


def _measured_at(codec: LatentGrid, image: Image, place: _Place) -> Measured:
    weight = codec.rate_weight * 2.0 ** (_WEIGHT_PER_STEP * (place.at - place.step))
    codec = replace(codec, step=place.step, rate_weight=weight)
    return _measured(codec, image, codec.encode([image])[0])


class _Bracket:
    """Places that were tried, and between which of them the target lies."""

    def __init__(self) -> None:
        self._tried: list[tuple[_Place, float]] = []

    def add(self, place: _Place, excess: float) -> None:
        """A place and the octaves of bytes by which it was too large; inf for a perfect picture."""
        self._tried.append((place, min(max(excess, -_FAR), _FAR)))

    def has(self, at: float) -> bool:
        """Whether it was tried."""
        return any(place.at == at for place, _ in self._tried)

    def nearest(self) -> tuple[_Place, float]:
        """The place that came nearest to the target, and its excess."""
        return min(self._tried, key=lambda tried: abs(tried[1]))

    def next(self) -> float:
        """Where to try next: on the line through the nearest on either side; where there is only
        one side, a little further than the line through the last says, so that the other is found
        soon. In turn, the middle of a bracket: bytes are no line over some octaves."""
        finer = [(p.at, excess) for p, excess in self._tried if excess > 0]
        coarser = [(p.at, excess) for p, excess in self._tried if excess <= 0]
        if finer and coarser:
            (a, fa), (b, fb) = max(finer), min(coarser)
            if len(self._tried) % 3 == 0:
                return (a + b) / 2
            return a + (b - a) * fa / (fa - fb)
        place, excess = self._tried[-1]
        return place.at - 1.1 * excess / self._slope()

    def _slope(self) -> float:
        """Octaves for a step, by the last two places; within three times what is typical."""
        if len(self._tried) < 2:
            return _OCTAVES_PER_STEP
        (a, fa), (b, fb) = self._tried[-2:]
        slope = (fb - fa) / (b.at - a.at)
        return min(max(slope, 3 * _OCTAVES_PER_STEP), _OCTAVES_PER_STEP / 3)


# ---------------------------------------------------------------------------- what widths cost

MODEL_FILE = "width_model.json"
"""In the package's ``inits``: it names the digests of the inits that it was measured with."""


@cache
def packaged_model() -> dict[int, WidthModel]:
    """Of every packaged width, measured on training images by experiments/width_model.py."""
    path = resources.files("inrjax").joinpath("inits", MODEL_FILE)
    measured = json.loads(path.read_text("utf-8"))["widths"]
    return {int(width): WidthModel(**values) for width, values in measured.items()}
