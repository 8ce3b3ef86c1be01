"""BD-rates of ours against every codec. Rows: the measured runs and results/published/kodak.csv."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from experiments.figures import numbers
from experiments.figures.source import (
    ESTIMATED,
    LABELS,
    METASIREN,
    OURS,
    OURS_OTHERWISE,
    Source,
)
from inrjax import results
from inrjax.plots import Look, Style, measured_looks

MEASURED_TOO = ("JPEG (Pillow 7.1.2)", "JPEG2000", "WebP")
"""Published curves of codecs that are measured here: in the table, not in the figure."""

LEAST_OVERLAP = 1.0
"""dB that two measured curves must share to stand in the figure: over less, a BD-rate tells of
their ends alone. The ladder's table has those, too, with their dB."""


class Value(NamedTuple):
    """A BD-rate in percent, and the ends of its interval, None where there is none."""

    percent: float
    ends: tuple[float, float] | None = None

    @property
    def reach(self) -> tuple[float, float]:
        """Where it starts and ends on the axis."""
        low, high = self.ends or (self.percent, self.percent)
        return on_axis(low), on_axis(high)


def on_axis(percent: float) -> float:
    """The binary logarithm of the ratio of rates: half the bits and double stand equally far."""
    return math.log2(1 + percent / 100)


TICKS = (-75, -50, 0, 100, 300)
"""Percent: a quarter of the bits to four times as many. Every other one has its number."""


class Line(NamedTuple):
    """A codec, and the BD-rate of each of ours against it, by our codec's name."""

    label: str
    values: Mapping[str, Value]


def bd_rates(source: Source, style: Style) -> Figure:
    """BD-rates of ours against each codec measured here, with 95 % intervals, and, apart, against
    published curves. Slides show no numbers.

    Curves of means over all the qualities that both cover; the tables say which. The
    intervals are percentile bootstraps over images (`numbers.bd_rate_with_interval`); published
    curves have no rows for each image, so no interval.
    """
    panels = {
        "measured here,\n95 % intervals": measured_lines(source),
        "published,\n* rate estimated": published_lines(source),
    }
    looks = measured_looks(source.ours)
    rows = max(len(lines) for lines in panels.values())
    figure = style.figure(style.double, 0.2 + 0.026 * rows)
    sides = figure.subplots(1, 2, sharex=True)
    for axes, (title, lines) in zip(sides, panels.items(), strict=True):
        _draw(axes, style, lines, looks, rows)
        axes.set_title(title)
    ends = [
        end
        for lines in panels.values()
        for line in lines
        for value in line.values.values()
        for end in value.reach
    ]
    low, high = min(*ends, on_axis(TICKS[0])), max(*ends, on_axis(TICKS[-1]))
    margin = (0.25 if has_numbers(style) else 0.05) * (high - low)
    sides[0].set_xlim(low - margin, high + margin)
    labels = [f"{tick:+d}" if tick else "0" for tick in TICKS]
    labels[1::2] = [""] * len(labels[1::2])
    sides[0].set_xticks([on_axis(tick) for tick in TICKS], labels)
    figure.supxlabel(
        "BD-rate of ours against each codec (%; fewer bits below 0; logarithmic in the ratio)",
        fontsize=style.font,
    )
    handles = [_handle(look) for look in looks.values()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def has_numbers(style: Style) -> bool:
    """Whether numbers stand beside the marks: the letters of a slide leave no room for them."""
    return style.height is None


def measured_lines(source: Source) -> list[Line]:
    """Against each codec whose curve of means overlaps one of ours by `LEAST_OVERLAP`, by
    MetaSiren's BD-rate."""
    lines = []
    others = [name for name in source.summaries if name not in (*OURS, *OURS_OTHERWISE)]
    for name, look in measured_looks(others).items():
        values = {}
        for ours in source.ours:
            found = numbers.bd_rate_with_interval(source.measured, name, ours)
            if found is not None and found.high - found.low >= LEAST_OVERLAP:
                percent, low, high = found.of_means
                values[ours] = Value(percent, None if low is None or high is None else (low, high))
        lines.append(Line(look.label, values))
    return _in_order(lines)


def published_lines(source: Source) -> list[Line]:
    """Against each published curve that overlaps one of ours, but for `MEASURED_TOO`."""
    curves = results.published_curves(source.published)
    lines = []
    for name in (name for name in curves if name not in MEASURED_TOO):
        values = {}
        for ours in source.ours:
            own = [(s.bpp, s.psnr) for s in source.summaries[ours]]
            found = numbers.bd_rate(curves[name], own)
            if found is not None:
                values[ours] = Value(found.percent)
        lines.append(Line(LABELS[name] + ("*" if name in ESTIMATED else ""), values))
    return _in_order(lines)


def _in_order(lines: Sequence[Line]) -> list[Line]:
    def place(line: Line) -> float:
        return line.values.get(METASIREN, next(iter(line.values.values()))).percent

    return sorted((line for line in lines if line.values), key=place)


def _draw(
    axes: Axes, style: Style, lines: Sequence[Line], looks: Mapping[str, Look], rows: int
) -> None:
    for place, line in enumerate(lines):
        ordered = sorted(line.values.items(), key=lambda pair: pair[1].percent)
        marks = [on_axis(value.percent) for _, value in ordered]
        axes.plot(marks, [place] * len(marks), color="0.75", zorder=1)
        for index, (name, value) in enumerate(ordered):
            look = looks[name]
            if value.ends:
                axes.plot(value.reach, (place, place), color=look.colour, marker="|", zorder=2)
            axes.plot(marks[index], place, zorder=3, **_mark(look))
            # The lower number on the left, so that two never meet.
            if has_numbers(style):
                _write(axes, style, value, place, left=index == 0 and len(ordered) > 1)
    axes.axvline(0, color="black", linewidth=0.8, zorder=0.9)  # over the grid
    axes.set_yticks(range(len(lines)), [line.label for line in lines])
    axes.set_ylim(rows - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def _write(axes: Axes, style: Style, value: Value, place: int, left: bool) -> None:
    offset = 0.3 * style.font + style.marker / 2
    axes.annotate(
        f"{value.percent:+.0f}",
        (value.reach[0 if left else 1], place),
        xytext=(-offset if left else offset, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        path_effects=[withStroke(linewidth=2, foreground="white")],  # over the lines of the grid
    )


def _mark(look: Look) -> dict:
    return {
        "color": look.colour,
        "marker": look.marker,
        "markeredgecolor": "white",
        "markeredgewidth": 0.3,
        "linestyle": "none",
    }


def _handle(look: Look) -> Line2D:
    return Line2D([], [], label=look.label, **_mark(look))
