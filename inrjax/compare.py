"""Two codecs compared from their rows: BD-rate and BD-PSNR, with bootstrap intervals over images.

The anchor comes first, as everywhere. Rows are measured ones (`inrjax.types.RDPoint`) of one codec
each; the functions that end in ``_published`` take a curve of the literature as the anchor.

The scale of quality is dB: a PSNR as it is, SSIM and MS-SSIM as -10 log10(1 - value), taken of the
mean on a curve of means and of the image's own value on the curve of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from inrjax import metrics
from inrjax.metrics import BDPsnr, BDRate
from inrjax.results import PublishedPoint
from inrjax.types import RDPoint

METRICS = ("psnr", "psnr_y", "psnr_ycbcr", "ssim", "ms_ssim")
"""The columns of a measured row that say quality."""

_SIMILARITIES = ("ssim", "ms_ssim")
_PUBLISHED_COLUMN = {"psnr": "psnr_db", "ms_ssim": "ms_ssim"}

Points: TypeAlias = Sequence[tuple[float, float]]
"""(rate, quality in dB) points in any order."""

Interval: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: percentiles of a statistic over resamples of the images.

    Images are drawn with replacement, as many as there are, the same ones for both codecs; the
    statistic is computed anew, its range included (Efron and Tibshirani 1993, chapter 13).
    ``level`` is the interval's share of the resamples, in (0, 1). Raises ValueError for another
    level, or for fewer than 1 resample.
    """

    num_resamples: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_resamples < 1 or not 0 < self.level < 1:
            raise ValueError(
                f"got {self.num_resamples} resamples and level {self.level}, expected 1 or more "
                "and a number between 0 and 1"
            )


BOOTSTRAP = Bootstrap()


class Estimate(NamedTuple):
    """A statistic over images, and its bootstrap interval, None of fewer than 2 images."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class BDResult:
    """A Bjontegaard delta: ``of_means`` of the curves of means, and the mean of the images' own.

    Values are percent of rate (`bd_rate_of`) or dB (`bd_psnr_of`), and ``low`` to ``high`` is the
    range that the curves of means have in common, in dB or in bpp. ``num_images`` have a row at
    every setting of both codecs: only these count. ``of_images`` is by image, of those whose own
    curves overlap, and ``mean_of_images`` over them; empty and None if there is none, or the anchor
    is published.
    ``num_resamples`` is the number in the interval of ``of_means``: a resample whose curves do not
    overlap is left out.
    """

    metric: str
    of_means: Estimate
    low: float
    high: float
    mean_of_images: Estimate | None
    of_images: Mapping[str, float]
    num_images: int
    num_resamples: int

    @property
    def num_overlapping(self) -> int:
        """Images in ``of_images``."""
        return len(self.of_images)


def bd_rate_of(
    rows_a: Iterable[RDPoint],
    rows_b: Iterable[RDPoint],
    metric: str = "psnr",
    bootstrap: Bootstrap = BOOTSTRAP,
    interval: Interval | None = None,
) -> BDResult:
    """BD-rate of codec b against the anchor a, in percent (`inrjax.metrics.bd_rate`).

    ``metric`` is one of `METRICS`. ``interval`` in dB cuts the range of quality, which otherwise is
    all that both curves cover. Raises ValueError for rows of several codecs, another metric, no
    image with it at every setting of both, or curves that do not overlap.
    """
    return _compare(_bd_rate, _paired(rows_a, rows_b, metric), bootstrap, interval)


def bd_psnr_of(
    rows_a: Iterable[RDPoint],
    rows_b: Iterable[RDPoint],
    metric: str = "psnr",
    bootstrap: Bootstrap = BOOTSTRAP,
    interval: Interval | None = None,
) -> BDResult:
    """BD-PSNR of codec b against the anchor a, in dB of ``metric`` (`inrjax.metrics.bd_psnr`).

    ``interval`` in bpp cuts the range of rates. Otherwise as `bd_rate_of`.
    """
    return _compare(_bd_psnr, _paired(rows_a, rows_b, metric), bootstrap, interval)


def bd_rate_published(
    points: Iterable[PublishedPoint],
    rows: Iterable[RDPoint],
    metric: str = "psnr",
    bootstrap: Bootstrap = BOOTSTRAP,
    interval: Interval | None = None,
) -> BDResult:
    """BD-rate of measured rows against a published curve, in percent.

    The published curve is one method's means, without images: the interval is over ours alone,
    and there are no BD-rates of images. ``metric`` is psnr or ms_ssim. Raises ValueError as
    `bd_rate_of` does, and for points of several methods.
    """
    return _compare(_bd_rate, _against_published(points, rows, metric), bootstrap, interval)


def bd_psnr_published(
    points: Iterable[PublishedPoint],
    rows: Iterable[RDPoint],
    metric: str = "psnr",
    bootstrap: Bootstrap = BOOTSTRAP,
    interval: Interval | None = None,
) -> BDResult:
    """BD-PSNR of measured rows against a published curve, in dB; as `bd_rate_published`."""
    return _compare(_bd_psnr, _against_published(points, rows, metric), bootstrap, interval)


def bd_rate_of_curves(anchor: Points, curve: Points, interval: Interval | None = None) -> BDRate:
    """BD-rate of a curve against an anchor over what both cover of ``interval``, in dB.

    Raises ValueError where that is nothing, and as `inrjax.metrics.bd_rate` does.
    """
    return _bd_rate(_columns(anchor), _columns(curve), interval)


def bd_rates_of_images(
    rows_a: Iterable[RDPoint], rows_b: Iterable[RDPoint], metric: str = "psnr"
) -> dict[str, float]:
    """Each image's BD-rate of codec b against the anchor a, in percent.

    An image whose two curves do not overlap is left out. Raises ValueError as `bd_rate_of` does.
    """
    return _of_images(_bd_rate, _paired(rows_a, rows_b, metric), None)


def estimate(
    statistic: Callable[[np.ndarray], float], num_images: int, bootstrap: Bootstrap = BOOTSTRAP
) -> Estimate:
    """Any statistic over images, with its bootstrap interval.

    ``statistic`` takes how often each image is drawn, float64 (num_images,), ones for the value
    itself, and returns a number; a resample for which it is NaN is left out. For example, ``lambda
    counts: counts @ values / counts.sum()`` is the mean. Raises ValueError for no images.
    """
    if num_images < 1:
        raise ValueError(f"got {num_images} images, expected at least 1")
    resampled = np.array([statistic(drawn) for drawn in _resamples(num_images, bootstrap)])
    return _estimate(float(statistic(np.ones(num_images))), resampled, bootstrap.level)


# One statistic of two curves


class _Curve(NamedTuple):
    rates: np.ndarray
    qualities: np.ndarray


_Statistic: TypeAlias = Callable[[_Curve, _Curve, Interval | None], BDRate | BDPsnr]


def _bd_rate(anchor: _Curve, curve: _Curve, interval: Interval | None) -> BDRate:
    covered = _covered(anchor.qualities, curve.qualities, interval, "dB")
    return metrics.bd_rate(*anchor, *curve, interval=covered)


def _bd_psnr(anchor: _Curve, curve: _Curve, interval: Interval | None) -> BDPsnr:
    covered = _covered(anchor.rates, curve.rates, interval, "bpp")
    return metrics.bd_psnr(*anchor, *curve, interval=covered)


def _covered(a: np.ndarray, b: np.ndarray, interval: Interval | None, unit: str) -> Interval | None:
    """What both curves cover of the interval; None for all they have in common."""
    if interval is None:
        return None
    low = max(float(np.min(a)), float(np.min(b)), interval[0])
    high = min(float(np.max(a)), float(np.max(b)), interval[1])
    if not low < high:
        raise ValueError(
            f"the curves do not both reach into {interval[0]:.4g} to {interval[1]:.4g} {unit}: "
            "choose another interval"
        )
    return low, high


def _columns(points: Points) -> _Curve:
    rates, qualities = zip(*points, strict=True) if points else ((), ())
    return _Curve(np.asarray(rates, np.float64), np.asarray(qualities, np.float64))


def _decibels(metric: str, values: np.ndarray) -> np.ndarray:
    if metric not in _SIMILARITIES:
        return values
    with np.errstate(divide="ignore"):  # an exact picture: infinity, which no curve may hold
        return -10 * np.log10(1 - values)


# Tables of the images that count


class _Table(NamedTuple):
    """bpp and quality in the metric's own scale, (settings, images)."""

    rates: np.ndarray
    values: np.ndarray


class _Pair(NamedTuple):
    """Anchor and codec on the images that count; ``has_images``: the anchor has a curve of each."""

    metric: str
    images: Sequence[str]
    a: _Table
    b: _Table
    has_images: bool


def _paired(rows_a: Iterable[RDPoint], rows_b: Iterable[RDPoint], metric: str) -> _Pair:
    """Two measured codecs, on the images with a row at every setting of both."""
    grids = [_grid(rows_a, metric, "a"), _grid(rows_b, metric, "b")]
    images = _complete([cells for grid in grids for cells in grid.values()], metric)
    a, b = (_table(grid, images) for grid in grids)
    return _Pair(metric, images, a, b, has_images=True)


def _against_published(
    points: Iterable[PublishedPoint], rows: Iterable[RDPoint], metric: str
) -> _Pair:
    """A measured codec and a published curve: the same means whatever images are drawn."""
    grid = _grid(rows, metric, "b")
    images = _complete(list(grid.values()), metric)
    columns = _published_means(points, metric)
    anchor = _Table(*(np.tile(column[:, None], len(images)) for column in columns))
    return _Pair(metric, images, anchor, _table(grid, images), has_images=False)


_Grid: TypeAlias = dict[str, dict[str, tuple[float, float]]]
"""Setting -> image -> (bpp, quality)."""


def _grid(rows: Iterable[RDPoint], metric: str, which: str) -> _Grid:
    """The rows that have the metric, checked."""
    if metric not in METRICS:
        raise ValueError(f"got metric {metric!r}, expected one of {', '.join(METRICS)}")
    rows = list(rows)
    names = sorted({row.codec for row in rows})
    if len(names) != 1:
        found = f"of {', '.join(names)}" if names else "at all"
        raise ValueError(f"got rows {found} for {which}, expected those of one codec")
    grid: _Grid = {row.setting: {} for row in rows}
    seen: set[tuple[str, str]] = set()
    for row in rows:
        if (row.setting, row.image) in seen:
            raise ValueError(
                f"image {row.image} occurs twice under {row.codec} {row.setting}: keep one row"
            )
        seen.add((row.setting, row.image))
        value = getattr(row, metric)
        if value is not None and not np.isfinite(value):
            raise ValueError(
                f"image {row.image} under {row.codec} {row.setting} has {metric} {value}: leave "
                "lossless points out, or choose another metric"
            )
        if value is not None:
            grid[row.setting][row.image] = row.bpp, value
    return grid


def _complete(columns: Sequence[Mapping[str, object]], metric: str) -> list[str]:
    """The images that occur in every column, in the order of the first."""
    images = [name for name in columns[0] if all(name in column for column in columns)]
    if not images:
        raise ValueError(
            f"no image has {metric} at every setting of both: measure the same images with both, "
            "or choose another metric"
        )
    return images


def _table(grid: _Grid, images: Sequence[str]) -> _Table:
    cells = np.array([[grid[setting][image] for image in images] for setting in grid], np.float64)
    return _Table(cells[..., 0], cells[..., 1])


# The statistic over images, and over resamples of them


def _compare(
    statistic: _Statistic, pair: _Pair, bootstrap: Bootstrap, interval: Interval | None
) -> BDResult:
    counts = _resamples(len(pair.images), bootstrap)

    def curves(drawn: np.ndarray) -> tuple[_Curve, _Curve]:
        return _mean_curve(pair.a, drawn, pair.metric), _mean_curve(pair.b, drawn, pair.metric)

    value, low, high = statistic(*curves(np.ones(len(pair.images))), interval)
    resampled = np.array([_or_nan(statistic, *curves(drawn), interval) for drawn in counts])
    own = _of_images(statistic, pair, interval) if pair.has_images else {}
    return BDResult(
        metric=pair.metric,
        of_means=_estimate(value, resampled, bootstrap.level),
        low=low,
        high=high,
        mean_of_images=_mean_estimate(pair.images, own, counts, bootstrap.level),
        of_images=own,
        num_images=len(pair.images),
        num_resamples=int(np.isfinite(resampled).sum()),
    )


def _published_means(points: Iterable[PublishedPoint], metric: str) -> tuple[np.ndarray, ...]:
    if metric not in _PUBLISHED_COLUMN:
        expected = " or ".join(_PUBLISHED_COLUMN)
        raise ValueError(f"got metric {metric!r}, but published curves have {expected} only")
    points = list(points)
    methods = sorted({point.method for point in points})
    if len(methods) != 1:
        found = ", ".join(methods) or "none"
        raise ValueError(f"got published points of {found}, expected those of one method")
    pairs = [(point.bpp, getattr(point, _PUBLISHED_COLUMN[metric])) for point in points]
    given = [(bpp, value) for bpp, value in pairs if value is not None]
    if not given:
        raise ValueError(f"the published curve {methods[0]} has no {metric}: choose another metric")
    return tuple(np.array(given, np.float64).T)


def _resamples(num_images: int, bootstrap: Bootstrap) -> np.ndarray:
    """How often each resample holds each image, (resamples, images); none of a single image."""
    num_resamples = bootstrap.num_resamples if num_images > 1 else 0
    generator = np.random.default_rng(bootstrap.seed)
    chances = np.full(num_images, 1 / num_images)
    return generator.multinomial(num_images, chances, size=num_resamples).astype(np.float64)


def _mean_curve(table: _Table, counts: np.ndarray, metric: str) -> _Curve:
    total = counts.sum()
    return _Curve(table.rates @ counts / total, _decibels(metric, table.values @ counts / total))


def _of_images(statistic: _Statistic, pair: _Pair, interval: Interval | None) -> dict[str, float]:
    """The statistic of each image's own curves, of those that overlap."""

    def curve(table: _Table, i: int) -> _Curve:
        return _Curve(table.rates[:, i], _decibels(pair.metric, table.values[:, i]))

    values = {
        image: _or_nan(statistic, curve(pair.a, i), curve(pair.b, i), interval)
        for i, image in enumerate(pair.images)
    }
    return {image: value for image, value in values.items() if np.isfinite(value)}


def _or_nan(
    statistic: _Statistic, anchor: _Curve, curve: _Curve, interval: Interval | None
) -> float:
    try:
        return statistic(anchor, curve, interval)[0]
    except ValueError:  # nothing in common, or points that make no curve
        return np.nan


def _mean_estimate(
    images: Sequence[str], own: Mapping[str, float], counts: np.ndarray, level: float
) -> Estimate | None:
    """The mean of what the images have, and its interval."""
    if not own:
        return None
    values = np.array(list(own.values()))
    drawn = counts[:, [image in own for image in images]]
    with np.errstate(invalid="ignore"):  # a resample without any image that overlaps
        resampled = drawn @ values / drawn.sum(1)
    return _estimate(float(values.mean()), resampled, level)


def _estimate(value: float, resampled: np.ndarray, level: float) -> Estimate:
    usable = resampled[np.isfinite(resampled)]
    if not usable.size:
        return Estimate(value, None, None)
    low, high = np.quantile(usable, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))
