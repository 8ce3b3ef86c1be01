"""What do latent grids reach where every picture gets the same bits per pixel?

Claim: on Kodak, files of LatentGrid of nearly the same bpp for each picture have a mean PSNR that
is above RECOMBINER's published points at all rates up to 0.49 bpp; one step size for all pictures,
as experiments/grid_rd.py has it, gives up 0.3 to 0.5 dB of it at the same mean bpp.
Command: python -m experiments.equal_bpp --data DIR     (DIR holds kodak/; or set INRJAX_DATA)
    and the same with --images cid22-held-back
Minutes: about 20 on 2 cores for Kodak. Stopped at any time, it goes on where it was.
Expected: the table in results/equal_bpp/<config hash>/table.md.

A network of one width gives every picture about as many bytes, however hard it is: COIN's files are
equal, Strümpler's scatter by 1 to 5 %, MetaSiren's by 7 to 20 % (standard deviation, by width).
One step size, or one quality of JPEG, gives the hard ones far more: the mean squared error of all
gains, the mean of their PSNRs loses. So the latter, at a mean bpp, compares codecs with how they
spread bits. Here LatentGrid spreads them as a network does: for each rate and picture a step size
is chosen (they are whole numbers, 8 to 17 % of the bytes apart), and its file is measured. First
guesses come from the newest run of grid_rd on the same images, if there is one; then from what was
measured here, until no other step size should be nearer. All files tried are kept in ``--work``.

Nothing was learned or chosen on Kodak. Every number comes from a file that another process decoded.
``--smoke`` runs the same on small crops of packaged photographs.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log2
from pathlib import Path
from typing import TypeAlias

import numpy as np
import tyro

from experiments import common
from experiments.figures import numbers
from experiments.figures.source import LABELS, LATENT_GRID, METASIREN, Found, find_codecs
from experiments.grid_rd import bd_rates
from experiments.kodak_rd import PUBLISHED, ROOT, markdown, note_provenance
from experiments.ladder import MIDDLE, beside_published, fields_of
from inrjax import codecs, gridfit, grids, results
from inrjax.codecs.latent_grid import STEPS
from inrjax.evaluate import evaluate, image_digest, row_stream_path
from inrjax.machine import keep_buffers
from inrjax.published import KODAK_RD
from inrjax.types import Image, RDPoint


@dataclass(frozen=True)
class Config:
    """What is measured. ``rates``: bpp that every picture is to have; ``images``, ``max_images``,
    ``base``, ``schedule``: as of `experiments.grid_rd`."""

    rates: tuple[float, ...] = (0.05, 0.08, 0.13, 0.2, 0.32, 0.5)
    iterations: int = codecs.LatentGrid.iterations
    seed: int = 0
    images: common.SetName = "kodak"
    max_images: int = 24
    base: tyro.conf.Suppress[str] = ""
    schedule: tyro.conf.Suppress[gridfit.Schedule] = field(default_factory=gridfit.Schedule)


SMOKE = Config(rates=(0.5, 1.0), iterations=2, images="smoke")

OCTAVES_PER_STEP = -0.17
"""Of bytes, beyond the step sizes that are known."""

Known: TypeAlias = Mapping[int, float]
"""Step size -> bpp of a picture's file."""


# ---------------------------------------------------------------------------- which step sizes


def choose_step(known: Known, rate: float) -> int:
    """The step size whose file should come nearest to a rate, by log bpp interpolated between the
    known ones."""
    if not known:
        return 34
    steps = sorted(known)
    octaves = [log2(known[step]) for step in steps]
    wanted = log2(rate)

    def expected(step: int) -> float:
        inside = float(np.interp(step, steps, octaves))
        beyond = max(0, step - steps[-1]) + min(0, step - steps[0])
        return inside + OCTAVES_PER_STEP * beyond

    return min(STEPS, key=lambda step: (abs(expected(step) - wanted), step))


def nearest(rows: Sequence[RDPoint], rate: float) -> RDPoint:
    """Of a picture's files that of the bpp nearest to a rate."""
    return min(rows, key=lambda row: abs(log2(row.bpp / rate)))


# ---------------------------------------------------------------------------- measuring


def run(
    config: Config, images: Mapping[str, Image], root: Path, work: Path, results_root: Path
) -> Path:
    """Measure, and write rows.csv and the streams, of each rate, provenance.json and table.md."""
    config = replace(config, base=grids.packaged_base().short_digest)
    folder = results.run_folder(root, config)
    note_provenance(folder)
    found = find_codecs(results_root, config.images)
    others = {
        name: one for name, one in found.items() if {row.image for row in one.rows} == set(images)
    }
    tried = work / folder.name
    measured = measure(config, images, tried, guesses(config, others, images))
    rows = []
    for rate in config.rates:
        for own in measured.values():
            row = nearest(own, rate)
            rows.append(replace(row, setting=f"bpp={rate:g}"))
            streams = (
                row_stream_path(run, LATENT_GRID, setting, row.image, ".inr")
                for run, setting in ((tried, row.setting), (folder, rows[-1].setting))
            )
            source, target = streams
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    digests = {name: image_digest(image) for name, image in images.items()}
    results.write_json(folder / "images.json", digests)
    results.write_rows(folder / "rows.csv", rows)
    results.write_text(folder / "table.md", table(config, rows, others))
    return folder


def guesses(
    config: Config, others: Mapping[str, Found], images: Mapping[str, Image]
) -> dict[str, dict[int, float]]:
    """By image, what is known before anything was measured here."""
    known: dict[str, dict[int, float]] = {name: {} for name in images}
    found = others.get(LATENT_GRID)
    if found is not None and found.config.get("base") == config.base:
        for row in (row for row in found.rows if row.image in known):
            known[row.image][int(fields_of(row.setting)["step"])] = row.bpp
    return known


def measure(
    config: Config, images: Mapping[str, Image], folder: Path, known: Mapping[str, Known]
) -> dict[str, list[RDPoint]]:
    """By image, the rows of its files, until no step size that is not measured should be nearer to
    a rate: each round measures another one, of `STEPS`."""
    measured: dict[str, dict[int, RDPoint]] = {name: {} for name in images}
    while wanted := _missing(config, known, measured):
        for step, names in sorted(wanted.items()):
            print(f"step {step}, {len(names)} images", flush=True)
            codec = codecs.LatentGrid(step, 1.0, config.iterations, config.seed)
            some = {name: images[name] for name in names}
            for row in evaluate([codec], some, folder, batch_size=len(some)):
                measured[row.image][step] = row
    return {name: list(own.values()) for name, own in measured.items()}


def _missing(
    config: Config, known: Mapping[str, Known], measured: Mapping[str, Mapping[int, RDPoint]]
) -> dict[int, list[str]]:
    """Step size -> images whose file of it should be the nearest to a rate, and is not measured."""
    wanted: dict[int, list[str]] = {}
    for name, own in measured.items():
        bpp = {**known[name], **{step: row.bpp for step, row in own.items()}}
        for step in {choose_step(bpp, rate) for rate in config.rates} - own.keys():
            wanted.setdefault(step, []).append(name)
    return wanted


# ---------------------------------------------------------------------------- the table


def table(config: Config, rows: Sequence[RDPoint], others: Mapping[str, Found]) -> str:
    """Means at each rate, beside those of one step size for all; BD-rates."""
    summaries = sorted(results.summarise(rows), key=lambda s: s.bpp)
    curve = [(s.bpp, s.psnr) for s in summaries]
    alike = _means(others[LATENT_GRID].rows) if LATENT_GRID in others else []
    lines = []
    for s in summaries:
        rates = [row.bpp for row in rows if row.setting == s.setting]
        one_step = numbers.at_rate(alike, s.bpp) if alike else None
        lines.append([
            s.setting, f"{s.bpp:.4f}", f"{min(rates):.3f}-{max(rates):.3f}", f"{s.psnr:.2f}",
            f"{s.psnr_of_mean_mse:.2f}", "" if one_step is None else f"{one_step:.2f}",
        ])  # fmt: skip
    header = [
        "rate", "bpp", "of single images", "PSNR dB", "PSNR of mean MSE",
        "PSNR dB of one step size for all, at this mean bpp",
    ]  # fmt: skip
    parts = [
        f"# LatentGrid at equal bpp for each picture, {config.images}, from files",
        f"{len({row.image for row in rows})} images; seed {config.seed}; {config.iterations} "
        "proximal steps a fit. PSNR is the mean of the images' PSNRs, the PSNR of the mean error "
        "beside it. A step size for each rate and image; the last column is interpolated by PCHIP "
        "in log rate between the means of experiments/grid_rd.py.",
        markdown(header, lines),
        "## BD-rate against codecs that spread bits likewise, or nearly, measured here",
        _measured(rows, others),
    ]
    if config.images == "kodak":
        parts += ["## Against published curves (not measured here)", _published(curve)]
    return "\n\n".join(parts) + "\n"


def _means(rows: Sequence[RDPoint]) -> list[tuple[float, float]]:
    return [(s.bpp, s.psnr) for s in results.summarise(rows)]


LIKEWISE = ("jpeg2000", METASIREN)
"""Codecs whose setting, a ratio or a width, gives every picture about the same bpp: JPEG 2000's
within 4 % of their mean, MetaSiren's with a standard deviation of 7 to 20 %."""


def _measured(rows: Sequence[RDPoint], others: Mapping[str, Found]) -> str:
    anchors = [name for name in LIKEWISE if name in others]
    return bd_rates([*rows, *(row for name in anchors for row in others[name].rows)], anchors)


def _published(curve: numbers.Curve) -> str:
    theirs = results.published_curves(results.read_published(PUBLISHED))
    lines = []
    for method in KODAK_RD:
        lines.append([LABELS.get(method, method), *beside_published(theirs[method], curve)])
    middle = f"{MIDDLE[0]:.0f}-{MIDDLE[1]:.0f} dB"
    header = [
        "anchor, published", "BD-rate % of our measured curve (over dB)", f"the same, {middle}",
        "dB above their points, at their bpp",
    ]  # fmt: skip
    return markdown(header, lines)


@dataclass(frozen=True)
class Options(common.Options):
    """The command line. ``work``: where the files that were tried are kept; ``results_root``: where
    runs of other experiments are."""

    config: Config = Config()
    output: Path = ROOT / "results" / "equal_bpp"
    work: Path = ROOT / "runs" / "equal_bpp"
    results_root: Path = ROOT / "results"


def main(options: Options) -> Path:
    """Have large buffers kept, read the images, run; returns the run folder."""
    keep_buffers()
    config = SMOKE if options.smoke else options.config
    images = common.named(config.images, options.data, config.max_images)
    return common.show(run(config, images, options.output, options.work, options.results_root))


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
