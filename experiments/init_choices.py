"""Which learned init should a width of MetaSiren start from: how many outer steps, which w0, how
many rounds of fits?

Claim: none; for whoever learns other inits. What the packaged ones' rounds are worth is measured by
experiments/siren_choices.py.
Command: python -m experiments.init_choices --data DIR --inits FILE [FILE ...]   (DIR holds cid22/;
or set INRJAX_DATA), files of experiments/train_inits.py --output FOLDER.
Minutes: on 2 cores 3 to 8 for each init from width 64 to 104, as many for each width of the
packaged ones. A stopped run goes on: rows that exist are kept.
Expected: the table in results/init_choices/<config hash>/table.md.

Measured on cid22 images that were held back from meta-training, from files that another process
decoded. The packaged inits of ``widths`` make a curve of each image; an init's files stand beside
that curve at the files' own PSNR, by interpolation in the logarithm of the bytes, beyond its ends
along its last piece. ``--smoke``: one small crop.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from experiments import common
from experiments.figures import numbers
from experiments.kodak_rd import ROOT, markdown, note_provenance
from inrjax import codecs, fit, results
from inrjax.evaluate import evaluate
from inrjax.init import Init, load_init, packaged_init
from inrjax.types import Image, RDPoint


@dataclass(frozen=True)
class Config:
    """What is compared; ``packaged`` and ``others`` are digests, filled in when it runs."""

    widths: tuple[int, ...] = (48, 64, 80, 104)
    num_steps: int = codecs.MetaSiren.num_steps
    search_steps: int = 0
    num_images: int = 8
    seed: int = 0
    images: tyro.conf.Suppress[str] = "cid22, held back"
    packaged: tyro.conf.Suppress[tuple[str, ...]] = ()
    others: tyro.conf.Suppress[tuple[str, ...]] = ()


SMOKE = Config(widths=(24, 32), num_steps=100, num_images=1, images="smoke")
"""As many steps as it takes for the wider net to be the better one: a curve needs two points."""


def run(config: Config, others: Sequence[Init], images: Mapping[str, Image], root: Path) -> Path:
    """Measure the packaged inits and the others; returns the run folder."""
    packaged = [packaged_init(width) for width in config.widths]
    ours, theirs = (tuple(i.short_digest for i in inits) for inits in (packaged, others))
    config = replace(config, packaged=ours, others=theirs)
    folder = results.run_folder(root, config)
    note_provenance(folder)
    measured: list[tuple[Init, list[RDPoint]]] = []
    for init in [*packaged, *others]:
        print(f"width {init.net.width}, init {init.short_digest}", flush=True)
        codec = codecs.MetaSiren(
            init.net.width, config.num_steps, config.seed, init=init,
            search_steps=config.search_steps,
        )  # fmt: skip
        rows = evaluate(
            [codec], images, folder / init.short_digest, batch_size=len(images),
            on_progress=common.print_progress(),
        )  # fmt: skip
        measured.append((init, rows))
    results.write_text(folder / "table.md", table(config, measured))
    return folder


# ---------------------------------------------------------------------------- table


def beside(curves: Mapping[str, numbers.Curve], rows: Sequence[RDPoint]) -> list[float]:
    """By how many percent the rows' bytes are more than those of their images' curves at their
    PSNR; an image whose curve is a point is left out."""
    found = []
    for row in rows:
        points = numbers.frontier(curves[row.image])
        if len(points) > 1:
            found.append(100 * (row.bpp / _rate_at(points, row.psnr) - 1))
    return found


def _rate_at(points: numbers.Curve, psnr: float) -> float:
    """The rate of a curve of two or more points at a quality."""
    psnrs = [quality for _, quality in points]
    i = min(max(bisect(psnrs, psnr), 1), len(points) - 1)
    (rate, start), (further, end) = points[i - 1 : i + 1]
    return rate * (further / rate) ** ((psnr - start) / (end - start))


def table(config: Config, measured: Sequence[tuple[Init, Sequence[RDPoint]]]) -> str:
    """One line an init; the packaged ones, which make the curves, come first."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for init, rows in measured:
        if init.short_digest in config.packaged:
            for row in rows:
                curves.setdefault(row.image, []).append((row.bpp, row.psnr))
    lines: list[list[str]] = []
    for init, rows in measured:
        own = init.short_digest in config.packaged
        [means] = results.summarise(rows)
        cells = [f"{means.num_bytes:.0f}", f"{means.bpp:.4f}", f"{means.psnr:.2f}"]
        lines.append([*_about(init), *cells, *(("packaged", "") if own else _beside(curves, rows))])
    header = [
        "width", "w0", "frequencies", "outer steps", "rounds", "digest", "bytes", "bpp", "PSNR dB",
        "bytes beside the packaged inits' curve, % (95 % interval)", "images",
    ]  # fmt: skip
    searched = f", {config.search_steps} of a search" if config.search_steps else ""
    title = (
        f"# Inits of MetaSiren, {config.num_steps} steps{searched}, {len(measured[0][1])} images "
        f"({config.images}), seed {config.seed}"
    )
    return f"{title}\n\n{markdown(header, lines)}\n"


def _about(init: Init) -> list[str]:
    net, encoding = init.net, init.net.encoding
    frequencies = f"{encoding.num_frequencies}, ratio {encoding.ratio:g}" if encoding else "none"
    return [str(net.width), f"{net.w0:g}", frequencies, *_training(init), init.short_digest]


def _training(init: Init) -> tuple[str, str]:
    """Outer steps of meta-training, and rounds after it, as the init and those before it tell."""
    chain: list[Mapping[str, Any]] = [init.info]
    while "start" in chain[-1]:
        chain.append(chain[-1]["start"])
    configs = [info.get("config", {}) for info in reversed(chain)]
    rounds = [
        f"{config['rounds']} of {config['round_images']} fits of {config['round_steps']}"
        for config in configs
        if config.get("rounds")
    ]
    return str(configs[0].get("num_steps", "")), ", then ".join(rounds) or "0"


def _beside(curves: Mapping[str, numbers.Curve], rows: Sequence[RDPoint]) -> list[str]:
    found = beside(curves, rows)
    if not found:
        return ["", "0"]
    mean = numbers.mean_with_interval(found)
    return [f"{mean.value:+.2f} ({mean.low:+.2f} to {mean.high:+.2f})", str(len(found))]


# ---------------------------------------------------------------------------- command line


@dataclass(frozen=True)
class Options(common.Options):
    """The command line. ``inits``: files to compare with the packaged ones."""

    inits: tuple[Path, ...] = ()
    config: Config = Config()
    output: Path = ROOT / "results" / "init_choices"


@common.exit_with_a_sentence()
def _others(options: Options) -> list[Init]:
    if not options.inits and not options.smoke:
        raise ValueError("name at least one file with --inits: see experiments/train_inits.py")
    return [load_init(path) for path in options.inits]


def main(options: Options) -> Path:
    """Set one device a core, read the inits and images, run; returns the run folder."""
    fit.use_every_core()
    config = SMOKE if options.smoke else options.config
    others = _others(options)
    images = common.pictures(options, slice(config.num_images))
    return common.show(run(config, others, images, options.output))


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
