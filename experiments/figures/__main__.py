"""Every figure and table of a paper, from committed rows.

Command: python -m experiments.figures all      (or one name: rd_psnr, bd_rate, tables, ...)
         ... --style slides      larger letters and lines, into results/figures/slides
         ... --runs results/kodak_rd/HASH ...      these runs, not the newest of their experiments
         ... --images DIR --width 24      other pictures, another size of our files, in the visual
                                          comparisons
Seconds: about 40 of processor time, and 200 more where the visual comparisons were never coded
(both pictures in one batch, a core for each).
Expected: a PDF and a PNG for each name in results/figures/, and tables in results/figures/tables/.

Each figure's docstring says what it shows and from which rows. Nothing is measured here but the
files of the visual comparisons, which need pictures: photographs that come with scikit-image.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Literal

import tyro
from matplotlib.figure import Figure

from experiments.figures import bars, comparison, cost, curves, learning, parts, scatter, tables
from experiments.figures.source import Source
from inrjax import plots, trees
from inrjax.plots import Style

ROOT = Path(__file__).parents[2]

FIGURES: Mapping[str, Callable[[Source, Style], Figure]] = {
    "rd_psnr": curves.psnr,
    "rd_psnr_low": curves.psnr_low,
    "rd_ms_ssim": curves.ms_ssim,
    "rd_networks": curves.networks,
    "bd_rate": bars.bd_rates,
    "psnr_seconds": cost.psnr_seconds,
    "meta_learning": learning.meta_learning,
    "sections": parts.sections,
    "images": scatter.images,
    "comparison_1": comparison.first,
    "comparison_2": comparison.second,
}
"""Name -> figure; the file's name too."""

STYLES = {"print": plots.PRINT, "slides": plots.SLIDES}


def draw(name: str, source: Source, style: Style, output: Path) -> list[Path]:
    """Draw one figure, or the tables; returns the files written."""
    if name == "tables":
        return write_tables(source, output / "tables")
    with style.context():
        return list(plots.save(FIGURES[name](source, style), output / name, style))


def write_tables(source: Source, folder: Path) -> list[Path]:
    """Every table as .md and .tex."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, make in tables.TABLES.items():
        table = make(source)
        for ending, text in ((".md", tables.as_markdown(table)), (".tex", tables.as_latex(table))):
            path = folder / (name + ending)
            trees.write_atomic(path, text.encode())
            written.append(path)
    return written


@dataclass(frozen=True)
class Options:
    """The command line; ``output``: results/figures for print, its folder slides for slides."""

    name: Annotated[
        Literal["all", "tables", *FIGURES],  # pyright: ignore[reportInvalidTypeForm]
        tyro.conf.Positional,
    ]
    style: Literal["print", "slides"] = "print"
    output: Path | None = None
    results: Path = ROOT / "results"
    runs: tuple[Path, ...] = ()
    images: Path | None = None
    width: int = Source.width
    num_steps: int = Source.num_steps
    cache: Path = ROOT / "runs" / "figures"


def main(options: Options) -> list[Path]:
    """Draw what was asked for; returns the files written."""
    from inrjax import fit
    from inrjax.machine import keep_buffers

    keep_buffers()
    fit.use_every_core()
    source = Source(
        options.results,
        options.runs,
        options.images,
        options.width,
        options.num_steps,
        options.cache,
    )
    slides = options.style == "slides"
    output = options.output or options.results / "figures" / ("slides" if slides else "")
    everything = [*FIGURES] if slides else [*FIGURES, "tables"]  # slides show no tables
    names = everything if options.name == "all" else [options.name]
    written = []
    for name in names:
        start = perf_counter()
        written += draw(name, source, STYLES[options.style], output)
        print(f"{name}: {perf_counter() - start:.1f} s", file=sys.stderr)
    return written


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
