"""Where the bits of a file go. Rows: rows.json of results/sections, `experiments.sections`."""

from __future__ import annotations

import json

from matplotlib.figure import Figure

from experiments.figures import numbers
from experiments.figures.source import Source
from experiments.sections import mean_parts
from inrjax.plots import Style

_LEAST_WRITTEN = 8.0
"""Percent: a part that is smaller has no room for its number."""

# Rising lightness, so that neighbours differ in grey; a hatch sets the side information apart.
_SIDE = (("#000000", ""), ("#7F7F7F", ""), ("#D55E00", "////"), ("#F5C9A6", "...."))
_LAYERS = ("#0B3C5D", "#2C6E9B", "#5FA0CB", "#9CC9E3", "#D3E8F4")


def sections(source: Source, style: Style) -> Figure:
    """Share of each part of MetaSiren's files by width: header and checksum, the init's name, the
    grid, biases, and the weights of each layer; mean bytes of the whole file beside each bar."""
    rows = json.loads((source.folder("sections") / "rows.json").read_text("utf-8"))
    means = mean_parts(rows)
    figure = style.figure(style.double, 0.4)
    axes = figure.add_subplot()
    names = list(next(iter(means.values())))
    styles = [*_SIDE, *((colour, "") for colour in _LAYERS)]
    starts = [0.0] * len(means)
    for index, name in enumerate(names):
        colour, hatch = styles[index % len(styles)]
        widths = [numbers.shares(parts)[name] for parts in means.values()]
        axes.barh(
            range(len(means)), widths, 0.75, starts, label=name,
            color=colour, hatch=hatch, edgecolor="white", linewidth=0.3,
        )  # fmt: skip
        for place, (start, share) in enumerate(zip(starts, widths, strict=True)):
            if share >= _LEAST_WRITTEN:
                text = "white" if _is_dark(colour) else "black"
                axes.text(
                    start + share / 2, place, f"{share:.0f}", color=text, ha="center", va="center"
                )
        starts = [start + share for start, share in zip(starts, widths, strict=True)]
    for place, parts in enumerate(means.values()):
        axes.annotate(
            f"{sum(parts.values()):,.0f} bytes", (100, place), xytext=(4, 0),
            textcoords="offset points", va="center", annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(len(means)), [s.split("_")[0].replace("=", " ") for s in means])
    axes.set_ylim(len(means) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    images = len({row["image"] for row in rows})
    axes.set_xlabel(f"share of the file (%), mean of {images} images")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, handlelength=1.5)
    return figure


def _is_dark(colour: str) -> bool:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 140
