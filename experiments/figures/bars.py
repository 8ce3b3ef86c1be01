"""BD-rates of ours against every codec. Rows: the measured runs and results/published/kodak.csv."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures import numbers
from experiments.figures.source import ESTIMATED, LABELS, OURS, Source
from inrjax import results
from inrjax.plots import MEASURED, Style, looks

MEASURED_TOO = ("JPEG (Pillow 7.1.2)", "JPEG2000", "WebP")
"""Published curves of codecs that are measured here: in the table, not among the bars."""


class Bar(NamedTuple):
    """A label, a BD-rate in percent, and the ends of its interval, None where there is none."""

    label: str
    percent: float
    ends: tuple[float, float] | None


def bd_rates(source: Source, style: Style) -> Figure:
    """BD-rate of ours against each codec measured here, with 95 % intervals, and, apart, against
    published curves.

    Curves of means over all the qualities that both cover; the tables say which. The
    intervals are percentile bootstraps over images (`numbers.bd_rate_with_interval`); published
    curves have no rows for each image, so no interval.
    """
    measured, published = measured_bars(source), published_bars(source)
    rows = max(len(measured), len(published))
    figure = style.figure(style.double, 0.12 + 0.026 * rows)
    left, right = figure.subplots(1, 2, sharex=True)
    _draw(left, style, measured, "measured here,\n95 % intervals", {"color": "0.65"}, rows)
    _draw(
        right,
        style,
        published,
        "published,\n* rate estimated",
        {"color": "0.85", "hatch": "////"},
        rows,
    )
    ends = [end for bar in (*measured, *published) for end in (bar.percent, *(bar.ends or ()))]
    low, high = min(*ends, 0.0), max(*ends, 0.0)
    # Numbers stand on the right of the bars, where no label can be in their way.
    margin = 0.06 * style.font * (high - low)
    left.set_xlim(low - 0.05 * (high - low), high + margin)
    figure.supxlabel(
        "BD-rate of MetaSiren against each codec (%), fewer bits below 0", fontsize=style.font
    )
    return figure


def measured_bars(source: Source) -> list[Bar]:
    """Against each codec whose curve of means overlaps ours, lowest first."""
    bars = []
    names = [name for name in source.summaries if name != OURS]
    for name, look in looks(names, MEASURED).items():
        found = numbers.bd_rate_with_interval(source.measured, name, OURS)
        if found is not None:
            percent, low, high = found.of_means
            ends = None if low is None or high is None else (low, high)
            bars.append(Bar(look.label, percent, ends))
    return sorted(bars, key=lambda bar: bar.percent)


def published_bars(source: Source) -> list[Bar]:
    """Against each published curve that overlaps ours, lowest first, but for MEASURED_TOO."""
    ours = [(s.bpp, s.psnr) for s in source.summaries[OURS]]
    curves = results.published_curves(source.published)
    published = {name: curve for name, curve in curves.items() if name not in MEASURED_TOO}
    bars = []
    for name, curve in published.items():
        found = numbers.bd_rate(curve, ours)
        if found is not None:
            label = LABELS[name] + ("*" if name in ESTIMATED else "")
            bars.append(Bar(label, found.percent, None))
    return sorted(bars, key=lambda bar: bar.percent)


def _draw(
    axes: Axes, style: Style, bars: Sequence[Bar], title: str, fill: dict[str, str], rows: int
) -> None:
    places = range(len(bars))
    offset = 0.6 * style.font
    axes.barh(places, [b.percent for b in bars], 0.7, edgecolor="black", **fill)
    for place, bar in zip(places, bars, strict=True):
        low, high = bar.ends or (bar.percent, bar.percent)
        if bar.ends:
            axes.plot((low, high), (place, place), color="black", marker="|")
        axes.annotate(
            f"{bar.percent:+.1f}",
            (max(high, 0.0), place),
            xytext=(offset, 0),
            textcoords="offset points",
            ha="left",
            va="center",
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(places, [bar.label for bar in bars])
    axes.set_ylim(rows - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_title(title)
