"""Which optimiser, learning rate, slope, subset and prior mean should be MetaSiren's defaults?

Claim: Muon at 3e-3, slope 0.3, 4096 pixels a step and a prior around the init itself are within 0.1
dB of the best; a prior around 0 is worse.
Command: python -m experiments.defaults --data DIR    (DIR holds cid22/; or set INRJAX_DATA)
Minutes: about 8 on 2 cores. A stopped run goes on: rows that exist are kept.
Expected: the table in results/defaults/<config hash>/table.md.

Measured on cid22 images that were held back from meta-training, one change at a time, from files
that another process decoded. ``score`` is mean PSNR - 1.6 dB * log2(bpp / bpp of the default):
1.6 dB for twice the bytes is what width buys around these rates. ``--smoke``: one small crop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments import common
from experiments.kodak_rd import ROOT, markdown
from inrjax import codecs, metatrain, optimizers, results, trees
from inrjax.evaluate import evaluate, safe_name
from inrjax.init import Init, packaged_init
from inrjax.results import Summary
from inrjax.types import Image

DB_PER_OCTAVE = 1.6


@dataclass(frozen=True)
class Config:
    """What is compared; ``init``: digest of the packaged one, filled in when it runs."""

    width: int = 32
    num_steps: int = 3000
    muon: tuple[float, ...] = (1.5e-3, 3e-3, 4.5e-3, 6e-3)
    adam: tuple[float, ...] = (1e-3, 3e-3)
    slopes: tuple[float, ...] = (0.2, 0.4)
    points: tuple[int, ...] = (2_048, 8_192, 12_288)
    prior_images: int = 8
    """Fits that the scales of each prior mean are estimated from; 0 leaves these variants out."""
    num_images: int = 8
    seed: int = 0
    images: tyro.conf.Suppress[str] = "cid22, held back"
    init: tyro.conf.Suppress[str] = ""


SMOKE = Config(
    num_steps=4, muon=(3e-3,), adam=(), slopes=(), points=(), prior_images=1, num_images=1,
    images="smoke",
)  # fmt: skip


def variants(config: Config, training: Sequence[Image]) -> dict[str, codecs.MetaSiren]:
    """Name -> codec; the first is the default. Pixel subsets are compared at equal pixel-steps."""
    base = codecs.MetaSiren(config.width, config.num_steps, config.seed)
    points = base.points_per_step
    return {
        "default": base,
        **{
            f"Muon {rate:g}": replace(base, optimizer=optimizers.Muon(rate)) for rate in config.muon
        },
        **{
            f"Adam {rate:g}": replace(base, optimizer=optimizers.Adam(rate)) for rate in config.adam
        },
        **{f"slope {slope:g}": replace(base, slope=slope) for slope in config.slopes},
        **{
            f"{n} pixels, {config.num_steps * points // n} steps": replace(
                base, points_per_step=n, num_steps=config.num_steps * points // n
            )
            for n in config.points
        },
        **{
            f"prior mean: {name}": replace(base, init=init)
            for name, init in prior_means(config, training).items()
        },
    }


def prior_means(config: Config, training: Sequence[Image]) -> dict[str, Init]:
    """Inits whose coded distance is from 0, from the init's biases, or from all of it, each with
    scales that were estimated for it by the same fits to training images."""
    if config.prior_images == 0:
        return {}
    init = packaged_init(config.width)
    learning = metatrain.MetaTrainConfig(
        config.width, prior_images=config.prior_images, prior_steps=config.num_steps
    )

    choices: dict[str, Callable[[str], bool]] = {
        "0": lambda path: False,
        "the init's biases": lambda path: path.endswith("bias"),
        "the init": lambda path: True,
    }
    means = {}
    for name, is_kept in choices.items():
        keep = {path: np.float32(is_kept(path)) for path, _ in trees.leaves(init.params)}
        moved = replace(init, keep=trees.from_leaves(keep))
        means[name] = metatrain.learn_prior(learning, moved, training)
    return means


def run(config: Config, training: Sequence[Image], images: Mapping[str, Image], root: Path) -> Path:
    """Measure every variant on the held-back images; returns the run folder."""
    config = replace(config, init=packaged_init(config.width).short_digest)
    folder = results.run_folder(root, config)
    summaries: dict[str, Summary] = {}
    for name, codec in variants(config, training).items():
        print(name, flush=True)
        part = folder / safe_name(name)
        rows = evaluate(
            [codec], images, part, batch_size=len(images), on_progress=common.print_progress()
        )
        [summaries[name]] = results.summarise(rows)
    results.write_json(folder / "provenance.json", results.provenance(results.jax_device()))
    results.write_text(folder / "table.md", table(config, len(images), summaries))
    return folder


def table(config: Config, num_images: int, summaries: Mapping[str, Summary]) -> str:
    """One line a variant."""
    anchor = summaries["default"].bpp

    def score(s: Summary) -> float:
        return s.psnr - DB_PER_OCTAVE * float(np.log2(s.bpp / anchor))

    lines: list[list[Any]] = [
        [name, f"{s.num_bytes:.0f}", f"{s.bpp:.4f}", f"{s.psnr:.2f}", f"{score(s):.2f}"]
        for name, s in summaries.items()
    ]
    title = (
        f"# Defaults of MetaSiren, width {config.width}, {config.num_steps} steps, "
        f"{num_images} images ({config.images}), seed {config.seed}"
    )
    header = ["variant", "bytes", "bpp", "PSNR dB", "score dB"]
    return f"{title}\n\n{markdown(header, lines)}\n"


@dataclass(frozen=True)
class Options(common.Options):
    """The command line."""

    config: Config = Config()
    output: Path = ROOT / "results" / "defaults"


def main(options: Options) -> Path:
    """Set one device a core, read the images, run; returns the run folder."""
    from inrjax import fit

    fit.use_every_core()
    config = SMOKE if options.smoke else options.config
    images = common.pictures(options, slice(config.num_images))
    training = common.training(options)
    return common.show(run(config, training, images, options.output))


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
