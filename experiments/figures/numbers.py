"""What the figures and tables compute from rows: interpolation at a rate, BD-rates, intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from inrjax import compare, metrics, results
from inrjax.types import RDPoint

Curve = Sequence[tuple[float, float]]

NUM_RESAMPLES = 1000
SEED = 0
CONFIDENCE = 95.0
"""Percent of the resampled values that an interval holds."""


class Interval(NamedTuple):
    """A value and the ends of its interval, all in the value's own unit."""

    value: float
    low: float
    high: float


def at_rate(curve: Curve, bpp: float) -> float | None:
    """A curve's value at a rate, by PCHIP in the logarithm of the rate; None beyond its ends."""
    from scipy.interpolate import PchipInterpolator

    points = sorted(curve)
    rates = np.log([rate for rate, _ in points])
    if len(points) < 2 or not rates[0] <= np.log(bpp) <= rates[-1]:
        return None
    return float(PchipInterpolator(rates, [value for _, value in points])(np.log(bpp)))


def ahead_at(curve: Curve, points: Curve) -> dict[float, float]:
    """By the rates of the points that a curve covers, how far it is above them, in their unit."""
    found = [(rate, at_rate(curve, rate), quality) for rate, quality in sorted(points)]
    return {rate: own - quality for rate, own, quality in found if own is not None}


def bd_rate_with_interval(
    rows: Sequence[RDPoint],
    anchor: str,
    codec: str,
    num_resamples: int = NUM_RESAMPLES,
    decibels: compare.Interval | None = None,
) -> compare.BDResult | None:
    """BD-rate of ``codec`` against ``anchor`` in percent, curves of means, with its interval.

    Each codec's settings are those on the `frontier` of its means. ``decibels`` cuts the range of
    quality. None where the curves of means do not overlap in it.
    """
    a, b = (_on_frontier([row for row in rows if row.codec == name]) for name in (anchor, codec))
    bootstrap = compare.Bootstrap(num_resamples, CONFIDENCE / 100, SEED)
    try:
        return compare.bd_rate_of(a, b, bootstrap=bootstrap, interval=decibels)
    except ValueError:  # no overlap, or a lossless codec, which has one point at infinity
        return None


def _on_frontier(rows: Sequence[RDPoint]) -> list[RDPoint]:
    means = {(s.bpp, s.psnr): s.setting for s in results.summarise(rows)}
    kept = {means[point] for point in frontier(list(means))}
    return [row for row in rows if row.setting in kept]


def bd_rate(
    anchor: Curve, curve: Curve, decibels: compare.Interval | None = None
) -> metrics.BDRate | None:
    """BD-rate of the `frontier` of a curve against that of an anchor, over ``decibels`` or all that
    both cover; None without overlap."""
    try:
        return compare.bd_rate_of_curves(frontier(anchor), frontier(curve), decibels)
    except ValueError:  # the curves do not overlap, or one of them is a point
        return None


def frontier(curve: Curve) -> list[tuple[float, float]]:
    """The points that are better than every cheaper one: nobody would use the others, and a rate
    as a function of quality needs them gone."""
    kept: list[tuple[float, float]] = []
    for rate, quality in sorted(curve):
        if not kept or quality > kept[-1][1]:
            kept.append((rate, quality))
    return kept


def curves_by_image(rows: Iterable[RDPoint], codec: str) -> dict[str, list[tuple[float, float]]]:
    """By image, its (bpp, PSNR in dB) points under a codec, in the order of bpp."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.codec == codec:
            curves.setdefault(row.image, []).append((row.bpp, row.psnr))
    return {image: sorted(curve) for image, curve in sorted(curves.items())}


def mean_with_interval(values: Sequence[float]) -> Interval:
    """The mean, and the percentile bootstrap of the mean."""
    array = np.asarray(values, np.float64)
    rng = np.random.default_rng(SEED)
    draws = array[rng.integers(len(array), size=(NUM_RESAMPLES, len(array)))].mean(axis=1)
    ends = np.percentile(draws, [(100 - CONFIDENCE) / 2, (100 + CONFIDENCE) / 2])
    return Interval(float(array.mean()), *map(float, ends))


def ms_ssim_db(ms_ssim: float) -> float:
    """-10 log10(1 - MS-SSIM): what tells values near 1 apart."""
    return float(-10 * np.log10(1 - ms_ssim))


def shares(parts: Mapping[str, float]) -> dict[str, float]:
    """Parts in percent of their sum."""
    total = sum(parts.values())
    return {name: 100 * part / total for name, part in parts.items()}
