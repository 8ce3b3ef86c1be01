"""Tables to figures. Computes nothing and reads no files; no pyplot, so no state and no window."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from inrjax.trees import write_atomic
from inrjax.types import Image

Curve: TypeAlias = Sequence[tuple[float, float]]
"""(bpp, PSNR in dB) points in the order of bpp."""

# Okabe and Ito's palette, safe for colour-blind readers, without its yellow (too pale on white).
# Black comes first, for the curve that the figure is about.
_COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")

# Published curves run through the colours backwards and through dash patterns: together with
# the missing markers they stay apart from the measured ones, and from each other in grey print.
_DASHES = ((5, 2), (1, 1.5), (7, 2, 1.5, 2), (9, 3), (3, 1.5, 1, 1.5, 1, 1.5))

_PANEL_WIDTH = 4.0  # inches: at 200 dots per inch, 768 pixels are shown without loss


def rd_figure(
    measured: Mapping[str, Curve],
    published: Mapping[str, Curve],
    *,
    bpp_range: tuple[float, float] | None = None,
    psnr_range: tuple[float, float] | None = None,
) -> Figure:
    """Rate-distortion curves: PSNR in dB over bits per pixel.

    Measured curves are solid with markers, published ones dashed without. ``bpp_range`` and
    ``psnr_range`` are the limits of the axes; without ``psnr_range``, it is fitted to the points
    inside ``bpp_range``. The legend stands beside the axes, measured curves first. Raises
    ValueError for more than 70 measured or 35 published curves, which could not be told apart.
    """
    _check_count("measured", measured, len(_COLOURS) * len(_MARKERS))
    _check_count("published", published, len(_COLOURS) * len(_DASHES))
    figure = Figure(figsize=(9.0, 5.4), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, curve) in enumerate(published.items()):
        axes.plot(*_columns(curve), label=name, **_published_style(index))
    for index, (name, curve) in enumerate(measured.items()):
        axes.plot(*_columns(curve), label=name, **_measured_style(index))
    axes.set_xlabel("bpp")
    axes.set_ylabel("PSNR (dB)")
    axes.grid(color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _limit(axes, [*measured.values(), *published.values()], bpp_range, psnr_range)
    _legend(figure, axes.get_lines()[len(published) :], axes.get_lines()[: len(published)])
    return figure


class Panel(NamedTuple):
    """One picture of a comparison: a uint8 (height, width, 3) image and what stands around it.

    ``bpp`` and ``psnr`` (dB) are None for the original; ``note`` is a second line of the caption,
    as "JPEG's smallest file".
    """

    title: str
    image: Image
    bpp: float | None = None
    psnr: float | None = None
    note: str = ""


def comparison_figure(rows: Sequence[Sequence[Panel]]) -> Figure:
    """Pictures side by side: a row for each image, as original, ours, JPEG.

    The title stands above each picture, bpp and PSNR below it. Raises ValueError without a panel,
    or where the rows differ in length.
    """
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        lengths = [len(row) for row in rows]
        raise ValueError(f"got rows of {lengths} panels, expected rows of one equal length")
    heights = [_PANEL_WIDTH * max(_aspect(panel.image) for panel in row) for row in rows]
    text_heights = [0.55 + 0.2 * max(_caption(panel).count("\n") for panel in row) for row in rows]
    size = (_PANEL_WIDTH * len(rows[0]) + 0.1, sum(heights) + sum(text_heights))
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04, wspace=0.0, hspace=0.0)  # pyright: ignore
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False, height_ratios=heights)
    for axes_row, row in zip(grid, rows, strict=True):
        for axes, panel in zip(axes_row, row, strict=True):
            _draw(axes, panel)
    return figure


def save(figure: Figure, path: Path) -> tuple[Path, Path]:
    """Write ``path``.pdf and ``path``.png (200 dots per inch), each whole or not at all.

    The files hold no date and no machine: equal figures give equal bytes. ``path`` is without an
    ending. Returns the two paths; raises ValueError where they cannot be written.
    """
    path = Path(path)
    pdf = _write(figure, path.with_name(path.name + ".pdf"), {"CreationDate": None})
    png = _write(figure, path.with_name(path.name + ".png"), {"Software": None})
    return pdf, png


# Curves


def _check_count(what: str, curves: Mapping[str, Curve], most: int) -> None:
    if len(curves) > most:
        raise ValueError(f"got {len(curves)} {what} curves, expected at most {most}")


def _columns(curve: Curve) -> tuple[list[float], list[float]]:
    return [bpp for bpp, _ in curve], [psnr for _, psnr in curve]


def _measured_style(index: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 5.5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
        "linestyle": "-",
        "linewidth": 2.0,
        "zorder": 3,
    }


def _published_style(index: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[-1 - index % len(_COLOURS)],
        "linestyle": (0, _DASHES[index % len(_DASHES)]),
        "linewidth": 1.4,
        "zorder": 2,
    }


def _limit(
    axes: Axes,
    curves: Sequence[Curve],
    bpp_range: tuple[float, float] | None,
    psnr_range: tuple[float, float] | None,
) -> None:
    if bpp_range is not None:
        axes.set_xlim(*bpp_range)
    if psnr_range is not None:
        axes.set_ylim(*psnr_range)
        return
    low, high = axes.get_xlim()
    inside = [psnr for curve in curves for bpp, psnr in curve if low <= bpp <= high]
    if inside:
        margin = 0.04 * (max(inside) - min(inside)) or 1.0
        axes.set_ylim(min(inside) - margin, max(inside) + margin)


def _legend(figure: Figure, measured: Sequence[Line2D], published: Sequence[Line2D]) -> None:
    """One legend beside the axes, with a heading for each kind of curve."""
    groups = {"measured here": measured, "published": published}
    entries: list[Line2D] = []
    headings = []
    for heading, lines in groups.items():
        if lines:
            headings.append(len(entries))
            entries += [Line2D([], [], linestyle="none", label=heading), *lines]
    if not entries:
        return
    legend = figure.legend(
        handles=entries, loc="outside right upper", frameon=False, fontsize=9, handlelength=3.2
    )
    for index in headings:
        legend.get_texts()[index].set_fontweight("bold")


# Pictures


def _aspect(image: Image) -> float:
    """Height over width, within what a page can hold."""
    return min(max(image.shape[0] / image.shape[1], 0.25), 2.0)


def _caption(panel: Panel) -> str:
    numbers = []
    if panel.bpp is not None:
        numbers.append(f"{panel.bpp:.3f} bpp")
    if panel.psnr is not None:
        numbers.append(f"{panel.psnr:.2f} dB")
    return "\n".join(line for line in (", ".join(numbers), panel.note) if line)


def _draw(axes: Axes, panel: Panel) -> None:
    axes.imshow(panel.image)
    axes.set_title(panel.title, fontsize=12)
    axes.set_xlabel(_caption(panel), fontsize=11)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


# Files


def _write(figure: Figure, path: Path, metadata: dict[str, Any]) -> Path:
    buffer = io.BytesIO()
    with rc_context({"pdf.fonttype": 42}):  # text stays text, as publishers ask
        figure.savefig(buffer, format=path.suffix[1:], dpi=200, metadata=metadata)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, buffer.getvalue())
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error
    return path
