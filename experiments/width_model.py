"""How large is a file of each width, and how good? What rate control starts its search from.

Claim: none; a table for `inrjax.ratecontrol`, measured on training images.
Command: python -m experiments.width_model --data DIR   (DIR holds cid22/; or set INRJAX_DATA)
Minutes: about 2 on 2 cores. A stopped run goes on: rows that exist are kept.
Expected: inrjax/inits/width_model.json; rows in results/width_model/<config hash>/.

Short fits will do: at every width their files are a few percent smaller than those of long ones,
and the search corrects that. To be run again whenever the packaged inits or MetaSiren's defaults
change. With other widths the table goes to the run's folder. ``--smoke``: one small crop, one
width, few steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import tyro

from experiments import common
from experiments.common import smoke_images
from experiments.kodak_rd import ROOT, markdown
from inrjax import codecs, datasets, ratecontrol, results
from inrjax.evaluate import evaluate
from inrjax.init import packaged_init
from inrjax.types import Image


@dataclass(frozen=True)
class Config:
    """What is measured; ``inits``: digests of the packaged ones, filled in when it runs."""

    widths: tuple[int, ...] = codecs.inr.WIDTHS
    num_steps: int = 1000
    slope: float = codecs.MetaSiren.slope
    points_per_step: int = codecs.MetaSiren.points_per_step
    num_images: int = 4
    seed: int = 0
    images: tyro.conf.Suppress[str] = "cid22, training"
    inits: tyro.conf.Suppress[tuple[str, ...]] = ()


SMOKE = Config(widths=(24,), num_steps=4, num_images=1, images="smoke")


PACKAGED = ROOT / "inrjax" / "inits" / ratecontrol.MODEL_FILE


def run(config: Config, images: Mapping[str, Image], root: Path, output: Path | None) -> Path:
    """Measure every width; returns the path of the table: ``output``, or the package's own if all
    packaged widths are measured, or one in the run's folder."""
    digests = tuple(packaged_init(width).short_digest for width in config.widths)
    config = replace(config, inits=digests)
    folder = results.run_folder(root, config)
    series = [
        codecs.MetaSiren(
            width, config.num_steps, config.seed, config.slope,
            points_per_step=config.points_per_step,
        )
        for width in config.widths
    ]  # fmt: skip
    rows = evaluate(
        series, images, folder, batch_size=len(images), on_progress=common.print_progress()
    )
    results.write_json(folder / "provenance.json", results.provenance(results.jax_device()))
    widths = {
        str(codec.width): {
            "log2_bytes": fmean(math.log2(r.num_bytes) for r in rows if r.setting == codec.setting),
            "psnr": fmean(r.psnr for r in rows if r.setting == codec.setting),
        }
        for codec in series
    }
    command = "python -m experiments.width_model"
    images_text = f"{len(images)} images ({config.images})"
    made = {
        "command": command,
        "images": images_text,
        "config": folder.name,
        "inits": dict(zip(map(str, config.widths), digests, strict=True)),
        "widths": widths,
    }
    if output is None:
        is_whole = config.widths == codecs.inr.WIDTHS
        output = PACKAGED if is_whole else folder / ratecontrol.MODEL_FILE
    results.write_json(output, made)
    lines = [
        [width, f"{2 ** row['log2_bytes']:.0f}", f"{row['psnr']:.2f}"]
        for width, row in widths.items()
    ]
    title = f"# What a width costs, {images_text}, {config.num_steps} steps, seed {config.seed}"
    table = markdown(["width", "bytes, geometric mean", "PSNR dB, mean"], lines)
    results.write_text(folder / "table.md", f"{title}\n\n{table}\n")
    return output


@dataclass(frozen=True)
class Options:
    """The command line."""

    config: Config = Config()
    data: Path | None = None
    output: Path = ROOT / "results" / "width_model"
    table: Path | None = None
    smoke: bool = False


def main(options: Options) -> Path:
    """Set one device a core, read the images, run; returns the path of the table."""
    from inrjax import fit

    fit.use_every_core()
    if options.smoke:
        [(name, image), *_] = smoke_images().items()
        config, images = SMOKE, {name: image}
    else:
        config = options.config
        with common.exit_with_a_sentence():
            count = len(datasets.cid22_train(options.data))
        step = max(1, count // config.num_images)
        chosen = slice(0, step * config.num_images, step)
        images = common.read(datasets.cid22_train, options.data, chosen)
    path = run(config, images, options.output, options.table)
    print(path.read_text("utf-8"))
    return path


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
