"""Image by image: where ours is strong and where it is weak. Rows: the measured runs."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from experiments.figures import numbers
from experiments.figures.source import ANCHOR, METASIREN, Source
from inrjax.plots import Look, Style, measured_looks

AT_BPP = 0.25
NUM_LABELLED = 3
"""Images named at each end."""
OTHER = "jpeg2000"

Points = dict[str, tuple[float, float]]
"""By image."""


def images(source: Source, style: Style) -> Figure:
    """Left: each image's BD-rate of ours against optimised JPEG, over the image's difficulty (PSNR
    of optimised JPEG at 0.25 bpp). Right: PSNR of ours over that of JPEG 2000, both at 0.25 bpp;
    above the diagonal, ours is better.

    Interpolated by PCHIP in log rate; an image whose curve does not reach 0.25 bpp has no point.
    Named are, of MetaSiren, the three images at each end of the BD-rates and the three most
    difficult, and on the right the image at each end of each codec's gains.
    """
    curves = {
        name: numbers.curves_by_image(source.measured, name)
        for name in (*source.ours, ANCHOR, OTHER)
        if name in source.summaries
    }
    known = measured_looks(curves)
    figure = style.figure(style.double, 0.5)
    left, right = figure.subplots(1, 2)
    handles = []
    for name in source.ours:
        points = by_difficulty(curves[ANCHOR], curves[name])
        handles.append(_scatter(left, style, points, known[name]))
        if name == METASIREN:
            rates = {image: rate for image, (_, rate) in points.items()}
            hardest = sorted(points, key=lambda image: points[image])[:NUM_LABELLED]
            _name(left, style, points, [*outliers(rates), *hardest], "left")
    left.margins(x=0.14)
    left.axhline(0, color="0.4", linewidth=0.8)
    left.set_xlabel(f"PSNR of {known[ANCHOR].label} (dB)")
    left.set_title(f"difficulty: PSNR at {AT_BPP} bpp")
    left.set_ylabel(f"BD-rate against {known[ANCHOR].label} (%)")
    if OTHER in curves:
        _beside(right, style, source, curves, known)
    for axes in (left, right):
        axes.grid()
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), handlelength=1)
    return figure


Curves = Mapping[str, numbers.Curve]


def by_difficulty(anchor: Curves, ours: Curves) -> Points:
    """PSNR of the anchor at `AT_BPP`, and BD-rate of ours against it, where both are there."""
    points = {}
    for image, curve in ours.items():
        found = numbers.bd_rate(anchor[image], curve)
        difficulty = numbers.at_rate(anchor[image], AT_BPP)
        if found is not None and difficulty is not None:
            points[image] = (difficulty, found.percent)
    return points


def at_one_rate(other: Curves, ours: Curves) -> Points:
    """PSNR of the other codec and of ours at `AT_BPP`, where both reach it."""
    pairs = {
        image: (numbers.at_rate(other[image], AT_BPP), numbers.at_rate(curve, AT_BPP))
        for image, curve in ours.items()
    }
    return {i: (x, y) for i, (x, y) in pairs.items() if x is not None and y is not None}


def _beside(
    axes: Axes,
    style: Style,
    source: Source,
    curves: Mapping[str, Curves],
    known: Mapping[str, Look],
) -> None:
    everywhere = []
    for name in source.ours:
        points = at_one_rate(curves[OTHER], curves[name])
        everywhere += [value for pair in points.values() for value in pair]
        _scatter(axes, style, points, known[name])
        gains = {image: y - x for image, (x, y) in points.items()}
        lowest, highest = outliers(gains, 1)
        if name == METASIREN:  # the other's points lie above
            _name(axes, style, points, [lowest, highest], "below")
        else:
            _name(axes, style, points, [lowest], "right")
            _name(axes, style, points, [highest], "left")
    low, high = min(everywhere) - 0.5, max(everywhere) + 0.5
    axes.plot([low, high], [low, high], color="0.4", linewidth=0.8, zorder=1)
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.set_xlabel(f"PSNR of {known[OTHER].label} (dB)")
    axes.set_title(f"at {AT_BPP} bpp")
    axes.set_ylabel("PSNR of ours (dB)")


def _scatter(axes: Axes, style: Style, points: Points, look: Look):
    return axes.scatter(
        *zip(*points.values(), strict=True),
        s=style.marker**2,
        color=look.colour,
        marker=look.marker,
        edgecolor="white",
        linewidth=0.3,
        zorder=3,
        label=look.label,
    )


def outliers(values: dict[str, float], count: int = NUM_LABELLED) -> list[str]:
    """The images of the ``count`` lowest and highest values."""
    ordered = sorted(values, key=lambda image: values[image])
    return list(dict.fromkeys([*ordered[:count], *ordered[-count:]]))


_SIDES = {
    "left": ((-1, 0), "right", "center"),
    "right": ((1, 0), "left", "center"),
    "below": ((0, -1), "center", "top"),
}
"""Direction from the point, and the alignment of the name there."""


def _name(axes: Axes, style: Style, points: Points, images: list[str], side: str) -> None:
    """Write an image's name beside its point; the points lie over the names."""
    (x, y), horizontal, vertical = _SIDES[side]
    offset = 2 + style.marker / 2
    for image in dict.fromkeys(images):
        axes.annotate(
            image.removeprefix("kodim"),
            points[image],
            xytext=(x * offset, y * offset),
            textcoords="offset points",
            ha=horizontal,
            va=vertical,
            path_effects=[withStroke(linewidth=2, foreground="white")],
            zorder=2,
        )
