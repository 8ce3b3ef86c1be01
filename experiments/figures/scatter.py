"""Image by image: where ours is strong and where it is weak. Rows: the measured runs."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from experiments.figures import numbers
from experiments.figures.source import ANCHOR, OURS, Source
from inrjax.plots import Style, measured_looks

AT_BPP = 0.25
NUM_LABELLED = 3
"""Images named at each end."""


def images(source: Source, style: Style) -> Figure:
    """Left: each image's BD-rate of ours against optimised JPEG, over the image's difficulty (PSNR
    of optimised JPEG at 0.25 bpp). Right: PSNR of ours over that of optimised JPEG and of
    JPEG 2000, all at 0.25 bpp; above the diagonal, ours is better.

    Interpolated by PCHIP in log rate; an image whose curve does not reach 0.25 bpp has no point.
    Named are the three images at each end of the BD-rates, and the three most difficult.
    """
    ours = numbers.curves_by_image(source.measured, OURS)
    others = {
        name: numbers.curves_by_image(source.measured, name)
        for name in (ANCHOR, "jpeg2000")
        if name in source.summaries
    }
    figure = style.figure(style.double, 0.46)
    left, right = figure.subplots(1, 2)
    known = measured_looks(others)
    points = {}
    for image, curve in ours.items():
        found = numbers.bd_rate(others[ANCHOR][image], curve)
        difficulty = numbers.at_rate(others[ANCHOR][image], AT_BPP)
        if found is not None and difficulty is not None:
            points[image] = (difficulty, found.percent)
    dots = {"s": style.marker**2, "edgecolor": "white", "linewidth": 0.3, "zorder": 3}
    left.scatter(*zip(*points.values(), strict=True), color="black", marker="o", **dots)
    left.margins(x=0.14)
    left.axhline(0, color="0.4", linewidth=0.8)
    hardest = sorted(points, key=lambda image: points[image])[:NUM_LABELLED]
    _name(left, style, points, [*outliers({i: y for i, (_, y) in points.items()}), *hardest])
    left.set_xlabel(f"PSNR of {known[ANCHOR].label} (dB)")
    left.set_title(f"difficulty: PSNR at {AT_BPP} bpp")
    left.set_ylabel(f"BD-rate against {known[ANCHOR].label} (%)")
    handles = []
    everywhere = []
    for name, curves in others.items():
        pairs = {
            image: (numbers.at_rate(curves[image], AT_BPP), numbers.at_rate(curve, AT_BPP))
            for image, curve in ours.items()
        }
        whole = {i: (x, y) for i, (x, y) in pairs.items() if x is not None and y is not None}
        everywhere += [value for pair in whole.values() for value in pair]
        look = known[name]
        handles.append(
            right.scatter(
                *zip(*whole.values(), strict=True),
                color=look.colour,
                marker=look.marker,
                label=look.label,
                **dots,
            )
        )
        gains = {image: y - x for image, (x, y) in whole.items()}
        _name(right, style, whole, outliers(gains, 1), below=name != ANCHOR)
    low, high = min(everywhere) - 0.5, max(everywhere) + 0.5
    right.plot([low, high], [low, high], color="0.4", linewidth=0.8, zorder=1)
    right.set(xlim=(low, high), ylim=(low, high))
    right.set_xlabel("PSNR of the other codec (dB)")
    right.set_title(f"at {AT_BPP} bpp")
    right.set_ylabel("PSNR of MetaSiren (dB)")
    for axes in (left, right):
        axes.grid()
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), handlelength=1)
    return figure


def outliers(values: dict[str, float], count: int = NUM_LABELLED) -> list[str]:
    """The images of the ``count`` lowest and highest values."""
    ordered = sorted(values, key=lambda image: values[image])
    return list(dict.fromkeys([*ordered[:count], *ordered[-count:]]))


def _name(
    axes: Axes,
    style: Style,
    points: dict[str, tuple[float, float]],
    images: list[str],
    below: bool = False,
) -> None:
    """Write an image's name left of its point, or below; the points lie over the names."""
    offset = 2 + style.marker / 2
    for image in dict.fromkeys(images):
        axes.annotate(
            image.removeprefix("kodim"),
            points[image],
            xytext=(0, -offset) if below else (-offset, 0),
            textcoords="offset points",
            ha="center" if below else "right",
            va="top" if below else "center",
            path_effects=[withStroke(linewidth=2, foreground="white")],
            zorder=2,
        )
