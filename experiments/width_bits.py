"""Which is better, a wide net of few bits or a narrow one of many, and where does JPEG win?

Claim tested: overfitting is the friend. At the same file size a wider net whose params are rounded
harder beats a narrower one of more bits; the best of them beat JPEG below some rate, and lose to it
above.
Command: python -m experiments.width_bits --data DIR     (DIR holds cid22/; or set INRJAX_DATA)
Minutes: about 4 on 2 cores.
Expected: the tables in results/width_bits/<config hash>/table.md, and the figure beside them.

The nets are Strümpler's (`codecs.StrumplerMeta`): each is fitted once for each image and width,
from the packaged init, by the mean squared error and a little L1; then its distance from the init
is rounded to every number of bits and coded. AdaRound and retraining, fits of their own for every
number of bits, are left out. Held-back cid22 images. Every number, JPEG's too, is of a file that
another process decoded. A stopped run goes on; at most the fits of one width are made again.
``--images 4`` takes as many; ``--smoke``: one small crop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from experiments import common
from experiments.figures import numbers
from experiments.kodak_rd import ROOT, bd_rate_text, markdown, note_provenance
from inrjax import codecs, fit, plots, results
from inrjax.codecs import classic, strumpler
from inrjax.evaluate import evaluate, image_digest
from inrjax.results import Summary
from inrjax.types import Codec, Image, OnProgress, Params

JPEGS = {"jpeg": "standard", "jpeg-optimized": "optimized"}
"""Name of a codec -> its Huffman tables, as the table calls them."""


@dataclass(frozen=True)
class Config:
    """What is measured. ``inits``: digests of the packaged ones, filled in when it runs."""

    widths: tuple[int, ...] = strumpler.WIDTHS
    bits: tuple[int, ...] = (4, 5, 6, 7, 8)
    num_steps: int = 1500
    points_per_step: int = strumpler.POINTS_PER_STEP
    l1: float = codecs.StrumplerMeta.l1
    jpeg_qualities: tuple[int, ...] = classic.JPEG_QUALITIES[::2]
    num_images: int = 8
    seed: int = 0
    dataset: str = "cid22, held back"
    inits: tyro.conf.Suppress[tuple[str, ...]] = ()


SMOKE = Config(
    widths=(24,), bits=(4, 8), num_steps=4, points_per_step=512, jpeg_qualities=(1, 30),
    num_images=1, dataset="smoke",
)  # fmt: skip


# ---------------------------------------------------------------------------- codecs of one fit

_FITS: dict[tuple[Any, ...], list[Params]] = {}


@dataclass(frozen=True, eq=False)
class Packed(common.Wrapped):
    """`StrumplerMeta` on a fit that all numbers of bits of its width share. The seconds of the
    first of them to be measured hold the fit."""

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        coded = self.codec.quantize(images, self._fitted(images, on_progress))
        return [self.codec.pack(image, one) for image, one in zip(images, coded, strict=True)]

    def _fitted(self, images: Sequence[Image], on_progress: OnProgress | None) -> list[Params]:
        codec = self.codec
        made_by = (codec.width, codec.num_steps, codec.points_per_step, codec.l1, codec.seed)
        key = (*made_by, *map(image_digest, images))
        if key not in _FITS:
            _FITS.clear()  # a width is done when the next one begins
            _FITS[key] = codec.fit(images, on_progress)
        return _FITS[key]


def build_cells(config: Config) -> dict[tuple[int, int], Packed]:
    """(width, bits) -> codec, the bits of a width one after the other."""
    chosen = {
        "num_steps": config.num_steps,
        "seed": config.seed,
        "points_per_step": config.points_per_step,
        "l1": config.l1,
        "rounding_steps": 0,
        "retraining_steps": 0,
    }
    return {
        (width, bits): Packed(codecs.StrumplerMeta(width, bits, **chosen))
        for width in config.widths
        for bits in config.bits
    }


def build_codecs(config: Config) -> list[Codec]:
    """JPEG of both kinds at every quality, then every cell."""
    return [
        *(codecs.Jpeg(q, optimize=False) for q in config.jpeg_qualities),
        *(codecs.Jpeg(q, optimize=True) for q in config.jpeg_qualities),
        *build_cells(config).values(),
    ]


def run(config: Config, images: Mapping[str, Image], root: Path) -> Path:
    """Measure, and write rows.csv, provenance.json, table.md and the figure."""
    digests = tuple(strumpler.learned_init(width).short_digest for width in config.widths)
    config = replace(config, inits=digests)
    folder = results.run_folder(root, config)
    note_provenance(folder)
    rows = evaluate(
        build_codecs(config),
        images,
        folder,
        batch_size=len(images),
        on_progress=common.print_progress(),
    )
    summaries = results.summarise(rows)
    results.write_text(folder / "table.md", table(config, len(images), summaries))
    draw(config, summaries, folder / "width_bits")
    return folder


# ---------------------------------------------------------------------------- envelope, crossings


class Cell(NamedTuple):
    """Means of one width at one number of bits."""

    width: int
    bits: int
    num_bytes: float
    bpp: float
    psnr: float

    @property
    def bits_per_param(self) -> float:
        """Of the whole file, by the params of the net."""
        return 8 * self.num_bytes / strumpler.learned_init(self.width).net.num_params


def cells_of(config: Config, summaries: Sequence[Summary]) -> list[Cell]:
    """Every cell, in the order of the table."""
    found = {(s.codec, s.setting): s for s in summaries}
    cells = []
    for (width, bits), codec in build_cells(config).items():
        s = found[codec.name, codec.setting]
        cells.append(Cell(width, bits, s.num_bytes, s.bpp, s.psnr))
    return cells


def envelope(cells: Sequence[Cell]) -> list[Cell]:
    """The cells that are better than every cheaper one, in the order of bpp: each is the best
    there is from its own rate up to that of the next."""
    by_point = {(cell.bpp, cell.psnr): cell for cell in cells}
    return [by_point[point] for point in numbers.frontier(list(by_point))]


NUM_RATES = 500
"""Rates at which two curves are compared, at equal ratios: over a decade, 0.5 % apart."""


class Crossings(NamedTuple):
    """The rates that two curves share, ``low`` to ``high`` bpp; where they cross; and whether the
    first is ahead at ``low``."""

    low: float
    high: float
    rates: list[float]
    is_ahead: bool


def crossings(curve: numbers.Curve, other: numbers.Curve) -> Crossings | None:
    """Where two (bpp, dB) curves cross, each interpolated by PCHIP in the logarithm of the rate as
    `inrjax.compare` does; None where they share no rates."""
    if min(len(curve), len(other)) < 2:
        return None
    low = max(min(curve)[0], min(other)[0])
    high = min(max(curve)[0], max(other)[0])
    if low >= high:
        return None
    rates = np.geomspace(low, high, NUM_RATES + 2)[1:-1]  # a curve ends at its very last point
    mine, theirs = ([numbers.at_rate(c, rate) for rate in rates] for c in (curve, other))
    gaps = np.array(mine, np.float64) - np.array(theirs, np.float64)
    found = []
    for i in np.flatnonzero((gaps[:-1] > 0) != (gaps[1:] > 0)):
        share = gaps[i] / (gaps[i] - gaps[i + 1])
        found.append(float(rates[i] * (rates[i + 1] / rates[i]) ** share))
    return Crossings(float(low), float(high), found, bool(gaps[0] > 0))


# ---------------------------------------------------------------------------- table, figure


def table(config: Config, num_images: int, summaries: Sequence[Summary]) -> str:
    """The cells, the envelope, and where it crosses JPEG."""
    cells = cells_of(config, summaries)
    best = envelope(cells)
    parts = [
        f"# Width against bits, {num_images} images ({config.dataset}), from files",
        f"Strümpler's nets from the packaged inits, {config.num_steps} steps of "
        f"{config.points_per_step} pixels of Adam, one fit for each image and width, no AdaRound, "
        f"no retraining; seed {config.seed}. Mean of the images' PSNRs, mean bpp of whole files. "
        "Bold: on the envelope, better than every cell of fewer bytes.",
        _grid(config, cells, best),
        "## The envelope",
        "Each cell is the best of all from its own rate up to the next one's. Bits per param are "
        "those of the whole file.",
        _envelope(best),
        "## Against JPEG",
        "Curves of means on the same images, interpolated by PCHIP in log rate, over the rates "
        "that both cover. BD-rate is that of the envelope, over the PSNRs that both cover.",
        _against_jpeg(best, summaries),
    ]
    return "\n\n".join(parts) + "\n"


def _grid(config: Config, cells: Sequence[Cell], best: Sequence[Cell]) -> str:
    def text(cell: Cell) -> str:
        found = f"{cell.psnr:.2f} dB, {cell.bpp:.4f} bpp"
        return f"**{found}**" if cell in best else found

    by_place = {(cell.width, cell.bits): text(cell) for cell in cells}
    lines = [
        [
            str(width),
            str(strumpler.learned_init(width).net.num_params),
            *(by_place[width, bits] for bits in config.bits),
        ]
        for width in config.widths
    ]
    return markdown(["width", "params", *(f"{bits} bits" for bits in config.bits)], lines)


def _envelope(best: Sequence[Cell]) -> str:
    lines = [
        [
            f"{cell.bpp:.4f}", f"{cell.psnr:.2f}", f"{cell.num_bytes:.0f}", str(cell.width),
            str(cell.bits), f"{cell.bits_per_param:.2f}",
        ]
        for cell in best
    ]  # fmt: skip
    return markdown(["bpp", "PSNR dB", "bytes", "width", "bits", "bits per param"], lines)


def _against_jpeg(best: Sequence[Cell], summaries: Sequence[Summary]) -> str:
    ours = [(cell.bpp, cell.psnr) for cell in best]
    curves = results.measured_curves(summaries)
    lines = []
    for name, tables in JPEGS.items():
        anchor = numbers.frontier(curves[name])
        span = f"{anchor[0][0]:.3f}-{anchor[-1][0]:.3f}"
        lines.append([tables, span, _crossing(ours, anchor), bd_rate_text(anchor, ours)])
    return markdown(["JPEG, Huffman tables", "its bpp", "crossing", "BD-rate of the nets"], lines)


def _crossing(ours: numbers.Curve, anchor: numbers.Curve) -> str:
    """Where the nets stop being ahead, in words."""
    found = crossings(ours, anchor)
    if found is None:
        return "no rates in common"
    first, second = ("nets", "JPEG") if found.is_ahead else ("JPEG", "nets")
    span = f"{found.low:.3f}-{found.high:.3f} bpp"
    if not found.rates:
        return f"no crossing in the range {span}: {first} ahead"
    at = ", ".join(f"{rate:.3f}" for rate in found.rates)
    return f"at {at} bpp of {span}: {first} ahead below, {second} above the first"


def draw(config: Config, summaries: Sequence[Summary], path: Path) -> None:
    """A curve over the bits for each width, the darker the wider, and JPEG's; png and pdf."""
    cells, jpegs = cells_of(config, summaries), results.measured_curves(summaries)
    style, shades = plots.SCREEN, np.linspace(0.72, 0.0, len(config.widths))
    with style.context():
        figure = style.figure(style.double, 0.6)
        axes = figure.add_subplot()
        nets = [
            plots.draw_curve(
                axes,
                sorted((cell.bpp, cell.psnr) for cell in cells if cell.width == width),
                plots.Look(f"width {width}", f"{shade:.2f}", marker),
            )
            for width, shade, marker in zip(config.widths, shades, cycle("vo^P"))
        ]
        looks = plots.measured_looks(JPEGS)
        others = [plots.draw_curve(axes, jpegs[name], looks[name]) for name in JPEGS]
        psnrs = [cell.psnr for cell in cells]
        axes.set_xlim(0.0, 1.1 * max(cell.bpp for cell in cells))
        axes.set_ylim(min(psnrs) - 1, max(psnrs) + 1)
        axes.set_xlabel("bpp")
        axes.set_ylabel("PSNR (dB)")
        axes.grid()
        bits = f"{min(config.bits)} to {max(config.bits)} bits"
        plots.grouped_legend(figure, {f"nets, {bits}": nets, "classic": others})
    plots.save(figure, path, style)


# ---------------------------------------------------------------------------- the command line


@dataclass(frozen=True)
class Options(common.Options):
    """The command line. ``images``: as many held-back images instead of the config's."""

    config: Config = Config()
    output: Path = ROOT / "results" / "width_bits"
    images: int | None = None


def main(options: Options) -> Path:
    """Set one device a core, read the images, run; returns the run folder."""
    fit.use_every_core()
    config = SMOKE if options.smoke else options.config
    if options.images is not None:
        config = replace(config, num_images=options.images)
    images = common.pictures(options, slice(config.num_images))
    return common.show(run(config, images, options.output))


if __name__ == "__main__":
    # By its own name, so that the process that decodes can import the codec above.
    from experiments import width_bits

    width_bits.main(tyro.cli(tyro.conf.OmitArgPrefixes[width_bits.Options]))
