"""Tables to figures. Computes nothing and reads no files; no pyplot, so no state and no window.

One look for each codec (`MEASURED`, `PUBLISHED`) and one `Style` for each medium, so that a codec
has the same colour and marker in every figure, on paper, on slides and in grey.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from inrjax.published import METHODS
from inrjax.trees import write_atomic
from inrjax.types import Image

Curve: TypeAlias = Sequence[tuple[float, float]]
"""(bpp, quality) points in the order of bpp; quality is PSNR in dB unless said otherwise."""

_PANEL_WIDTH = 4.0  # inches: at 200 dots per inch, 768 pixels are shown without loss


# Styles


@dataclass(frozen=True)
class Style:
    """Sizes for one medium, in inches and points; `rc` gives them to matplotlib.

    ``single`` and ``double`` are the widths of a figure in one column of a page and in two.
    ``height`` is that of every figure, None where a figure chooses its own by its content.
    ``dpi`` is for PNG files; pictures in a PDF are a third finer.
    """

    single: float
    double: float
    height: float | None
    font: float
    line: float
    marker: float
    dpi: int = 200

    @property
    def rc(self) -> dict[str, Any]:
        """matplotlib's settings."""
        thin = 0.4 * self.line
        return {
            "font.size": self.font,
            "axes.titlesize": self.font,
            "axes.labelsize": self.font,
            "xtick.labelsize": self.font,
            "ytick.labelsize": self.font,
            "legend.fontsize": self.font,
            "lines.linewidth": self.line,
            "lines.markersize": self.marker,
            "axes.linewidth": thin,
            "grid.linewidth": thin,
            "grid.color": "0.88",
            "patch.linewidth": thin,
            "hatch.linewidth": thin,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "xtick.major.width": thin,
            "ytick.major.width": thin,
            "xtick.major.size": 0.35 * self.font,
            "ytick.major.size": 0.35 * self.font,
            "xtick.minor.width": 0.7 * thin,
            "ytick.minor.width": 0.7 * thin,
            "legend.frameon": False,
            "legend.handlelength": 3.2,
            "legend.labelspacing": 0.35,
            "pdf.compression": 9,
            "pdf.fonttype": 42,  # text stays text, as publishers ask
        }

    def context(self) -> AbstractContextManager[None]:
        """matplotlib's settings as those of this style, while a figure is drawn and saved."""
        return rc_context(self.rc)  # pyright: ignore[reportArgumentType]

    def figure(self, width: float, aspect: float) -> Figure:
        """An empty figure so wide, its height ``aspect`` times that unless the style fixes it."""
        return Figure(figsize=(width, self.height or aspect * width), layout="constrained")


SCREEN = Style(single=6.0, double=9.0, height=None, font=10, line=2.0, marker=5.5)
PRINT = Style(single=3.4, double=7.0, height=None, font=8, line=1.1, marker=4.4, dpi=150)
SLIDES = Style(single=10.0, double=10.0, height=5.6, font=15, line=2.8, marker=9.0, dpi=96)


# Looks


class Look(NamedTuple):
    """How a codec is drawn, and what a legend calls it.

    ``dash`` is matplotlib's: lengths of strokes and gaps in line widths, empty for a solid line.
    """

    label: str
    colour: str
    marker: Any
    dash: tuple[float, ...] = ()


# Okabe and Ito's palette, safe for colour-blind readers, without its yellow (too pale on white),
# with a brown, and with a violet as dark as black is, for the second of ours. Members of a family
# share a colour.
_BLACK, _RED, _BLUE, _GREEN = "#000000", "#D55E00", "#0072B2", "#009E73"
_PINK, _ORANGE, _SKY, _GREY = "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F"
_VIOLET, _BROWN = "#6A1B9A", "#8C564B"

_FILES = (5.0, 2.0)
_NO_FILES = (1.2, 1.4)

MEASURED: Mapping[str, Look] = {
    "meta-siren": Look("MetaSiren (ours)", _BLACK, "o"),
    "latent-grid": Look("LatentGrid (ours)", _VIOLET, "s"),
    "meta-siren-best": Look("MetaSiren (ours), best", _BLACK, (10, 1, 0)),
    "latent-grid-equal-bpp": Look("LatentGrid (ours), equal bpp", _VIOLET, (5, 0, 180)),
    "coin": Look("COIN", _GREY, "v"),
    "strumpler-basic": Look("Strümpler, basic (8 bit)", _BROWN, "p"),
    "strumpler-basic-7bit": Look("Strümpler, basic (7 bit)", _BROWN, (4, 1, 0)),
    "strumpler-meta": Look("Strümpler, meta-learned (7 bit)", _BROWN, (8, 1, 0)),
    "strumpler-basic-muon": Look("Strümpler, basic (8 bit), by Muon", _BROWN, (9, 1, 0)),
    "strumpler-meta-muon": Look("Strümpler, meta-learned, by Muon", _BROWN, (4, 0, 0)),
    "product-siren": Look("Product quantisation", _GREY, (3, 1, 0)),
    "modulated-siren": Look("COIN++", _GREY, (7, 1, 0)),
    "jpeg": Look("JPEG, default tables", _RED, "H"),
    "jpeg-optimized": Look("JPEG, optimised", _RED, "D"),
    "jpeg-mozjpeg": Look("MozJPEG", _RED, "*"),
    "jpeg-progressive": Look("JPEG, progressive", _RED, "8"),
    "jpeg-optimized-444": Look("JPEG, optimised, 4:4:4", _RED, "d"),
    "fmm-jpeg-optimized": Look("FMM in JPEG", _GREY, (6, 1, 0)),
    "jpeg2000": Look("JPEG 2000", _BLUE, "^"),
    "jpeg-xl": Look("JPEG XL", _ORANGE, "X"),
    "webp": Look("WebP", _GREEN, "P"),
    "avif": Look("AVIF", _SKY, "<"),
    "hevc": Look("HEVC (x265)", _PINK, ">"),
    "vvc": Look("VVC (VVenC)", _PINK, "h"),
}
"""Codecs measured here, by name: solid lines and filled markers, no two of which are equal."""

_PUBLISHED_MARKS: Mapping[str, tuple[str, Any]] = {
    "C3": (_GREEN, "s"),
    "C3 (Adaptive)": (_BLUE, "D"),
    "Cool-chic 4.2": (_BLUE, "D"),
    "compressai-bmshj2018-hyperprior_mse_cuda": (_PINK, "^"),
    "compressai-cheng2020-attn_mse_cuda": (_RED, "*"),
    "paper-elic2022_mse": (_GREY, (4, 1, 0)),
    "MLIC+": (_SKY, "P"),
    "HM (HEVC)": (_RED, "<"),
    "AV1": (_GREEN, "h"),
    "VTM (VVC)": (_ORANGE, "X"),
    "BPG 4:4:4": (_SKY, "p"),
    "COIN": (_GREY, "v"),
    "COIN++": (_ORANGE, "<"),
    "Strumpler basic (8 bit)": (_RED, "o"),
    "Strumpler meta-learned (7 bit)": (_PINK, "^"),
    "RECOMBINER": (_GREEN, "s"),
    "VC-INR": (_BLUE, "o"),
    "MSCN": (_SKY, ">"),
    "JPEG (Pillow 7.1.2)": (_RED, "d"),
    "JPEG2000": (_BLACK, "8"),
    "WebP": (_ORANGE, "H"),
}

PUBLISHED: Mapping[str, Look] = {
    method.name: Look(
        method.label,
        *_PUBLISHED_MARKS[method.name],
        _NO_FILES if method.is_estimate else _FILES,
    )
    for method in METHODS
    if method.name in _PUBLISHED_MARKS
}
"""Published curves, by method, as `inrjax.published` calls them: dashed where files were written,
dotted where the rate is an estimate; hollow markers. No two share both marker and dash."""

_MARKERS = (
    "o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h", "d", "8", (4, 1, 0), "H",
    (6, 1, 0), (8, 1, 0), (3, 1, 0), (7, 1, 0), (5, 1, 36), (4, 1, 45), (4, 0, 0), (9, 1, 0),
)  # fmt: skip
_COLOURS = (_RED, _BLUE, _GREEN, _PINK, _ORANGE, _SKY, _GREY)


def looks(names: Iterable[str], known: Mapping[str, Look], dash: Any = ()) -> dict[str, Look]:
    """The look of each name: its own where ``known`` has it, else one that none of them has.

    Unknown names take, in alphabetical order, the markers that no known name uses, then those
    free in this figure. Raises ValueError for more names than there are markers.
    """
    names = list(dict.fromkeys(names))
    found = {name: known[name] for name in names if name in known}
    taken = {look.marker for look in found.values() if look.dash == dash}
    reserved = {look.marker for look in known.values()}
    free = sorted((m for m in _MARKERS if m not in taken), key=lambda m: m in reserved)
    unknown = sorted(name for name in names if name not in known)
    if len(unknown) > len(free):
        raise ValueError(f"got {len(names)} curves of one kind, expected at most {len(_MARKERS)}")
    for index, name in enumerate(unknown):
        found[name] = Look(name, _COLOURS[index % len(_COLOURS)], free[index], dash)
    return {name: found[name] for name in names}


def measured_looks(names: Iterable[str]) -> dict[str, Look]:
    """`looks` of codecs that were measured here."""
    return looks(names, MEASURED)


def published_looks(names: Iterable[str], estimated: bool = False) -> dict[str, Look]:
    """`looks` of published methods, of those whose rates are estimates or of the others."""
    return looks(names, PUBLISHED, _NO_FILES if estimated else _FILES)


# Curves


def rd_figure(
    measured: Mapping[str, Curve],
    published: Mapping[str, Curve],
    estimated: Mapping[str, Curve] | None = None,
    *,
    quality: str = "PSNR (dB)",
    bpp_range: tuple[float, float] | None = None,
    psnr_range: tuple[float, float] | None = None,
    style: Style = SCREEN,
) -> Figure:
    """Rate-distortion curves: a quality, PSNR in dB unless said otherwise, over bits per pixel.

    Measured curves are solid with filled markers, published ones dashed with hollow ones;
    ``estimated`` holds those of the published whose rates are no file sizes. ``bpp_range`` and
    ``psnr_range`` are the limits of the axes; without ``psnr_range``, it is fitted to what lies
    inside ``bpp_range``. The legend stands beside the axes, measured curves first. Raises
    ValueError for more curves of a kind than there are markers to tell them apart.
    """
    groups = {
        "measured here": (measured, measured_looks(measured)),
        "published": (published, published_looks(published)),
        "published, rate estimated": (estimated or {}, published_looks(estimated or {}, True)),
    }
    with style.context():
        figure = style.figure(style.double, 0.6)
        axes = figure.add_subplot()
        entries = {
            heading: [draw_curve(axes, curve, known[name]) for name, curve in curves.items()]
            for heading, (curves, known) in groups.items()
        }
        axes.set_xlabel("bpp")
        axes.set_ylabel(quality)
        axes.grid()
        curves = [curve for group, _ in groups.values() for curve in group.values()]
        _limit(axes, curves, bpp_range, psnr_range)
        grouped_legend(figure, entries)
    return figure


def draw_curve(axes: Axes, curve: Curve, look: Look) -> Line2D:
    """One curve: solid and filled where the look has no dash, else dashed and hollow."""
    solid = not look.dash
    [line] = axes.plot(
        [x for x, _ in curve],
        [y for _, y in curve],
        label=look.label,
        color=look.colour,
        marker=look.marker,
        markersize=_marker_size(look.marker),
        markerfacecolor=look.colour if solid else "white",
        markeredgecolor="white" if solid else look.colour,
        linestyle="-" if solid else (0, look.dash),
        zorder=3 if solid else 2,
    )
    width = line.get_linewidth()
    line.set_markeredgewidth(0.3 * width if solid else 0.6 * width)
    if not solid:
        line.set_linewidth(0.75 * width)
        line.set_markersize(0.85 * line.get_markersize())
    return line


def _marker_size(marker: Any) -> float:
    """In points: a star's rays hold less ink than a disc, so it is drawn larger."""
    size = rcParams["lines.markersize"]
    return 1.5 * size if marker == "*" or isinstance(marker, tuple) else size


def grouped_legend(figure: Figure, groups: Mapping[str, Sequence[Any]]) -> Legend | None:
    """One legend beside the axes, a bold heading above each group; empty groups are left out."""
    entries: list[Any] = []
    headings = []
    for heading, handles in groups.items():
        if handles:
            headings.append(len(entries))
            entries += [Line2D([], [], linestyle="none", label=heading), *handles]
    if not entries:
        return None
    legend = figure.legend(handles=entries, loc="outside right upper")
    for index in headings:
        legend.get_texts()[index].set_fontweight("bold")
    return legend


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


# Pictures


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


def save(figure: Figure, path: Path, style: Style = SCREEN) -> tuple[Path, Path]:
    """Write ``path``.pdf and ``path``.png (``style.dpi`` dots per inch), each whole or not at all.

    The files hold no date and no machine: equal figures give equal bytes. ``path`` is without an
    ending. Returns the two paths; raises ValueError where they cannot be written.
    """
    path = Path(path)
    pdf = _write(figure, path.with_name(path.name + ".pdf"), style, {"CreationDate": None})
    png = _write(figure, path.with_name(path.name + ".png"), style, {"Software": None})
    return pdf, png


def _write(figure: Figure, path: Path, style: Style, metadata: dict[str, Any]) -> Path:
    buffer = io.BytesIO()
    with style.context():  # ticks are made as late as here
        dpi = style.dpi if path.suffix == ".png" else 4 * style.dpi // 3
        figure.savefig(buffer, format=path.suffix[1:], dpi=dpi, metadata=metadata)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, buffer.getvalue())
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error
    return path
