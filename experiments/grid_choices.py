"""Which choices of LatentGrid matter: proximal steps, the rate's weight, what was learned?

Claim: 24 proximal steps are within 1 % of the bytes of 48; the lmbda that suits the step size is
the best weight of the rate; what was learned beyond the wavelet saves bytes.
Command: python -m experiments.grid_choices --data DIR    (DIR holds cid22/; or set INRJAX_DATA)
Minutes: about 10 on 2 cores. A stopped run goes on: rows that exist are kept.
Expected: the table in results/grid_choices/<config hash>/table.md.

Measured on cid22 images that were held back from training, one change at a time, from files that
another process decoded: BD-rate of each variant against the default, mean and median of the images'
own. ``--smoke``: small crops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

import numpy as np
import tyro

from experiments import common
from experiments.kodak_rd import ROOT, markdown, note_provenance, print_progress
from inrjax import codecs, compare, grids, gridtrain, results, trees
from inrjax.evaluate import evaluate, safe_name
from inrjax.grids import GridBase
from inrjax.types import Image, RDPoint


@dataclass(frozen=True)
class Config:
    """What is compared; ``base``: digest of the packaged one, filled in when it runs."""

    steps: tuple[int, ...] = (20, 28, 36, 44)
    iterations: tuple[int, ...] = (6, 12, 48)
    rate_weights: tuple[float, ...] = (0.71, 1.41)
    num_images: int = 8
    seed: int = 0
    images: str = "cid22, held back"
    base: str = ""


SMOKE = Config(steps=(24, 36), iterations=(2,), rate_weights=(), num_images=1, images="smoke")


def variants(config: Config) -> dict[str, codecs.LatentGrid]:
    """Name -> codec at any step size; the first is the default."""
    default = codecs.LatentGrid(seed=config.seed)
    base = grids.packaged_base()
    return {
        "default": default,
        **{f"{n} proximal steps": replace(default, iterations=n) for n in config.iterations},
        **{
            f"{w:g} times the rate's weight": replace(default, rate_weight=w)
            for w in config.rate_weights
        },
        "without the sine layers": replace(default, base=without_sine(base)),
        "wavelet instead of the learned synthesis": replace(default, base=wavelet(base)),
    }


def without_sine(base: GridBase) -> GridBase:
    """The base with what its sine layers add taken away."""
    leaves = {
        path: np.zeros_like(leaf) if path.endswith("weight3") else leaf
        for path, leaf in trees.leaves(base.synthesis)
    }
    return replace(base, synthesis=trees.from_leaves(leaves))


def wavelet(base: GridBase) -> GridBase:
    """The base with the synthesis that training started from."""
    start = gridtrain.initial(base.net, 0).synthesis
    leaves = {path: np.asarray(leaf, np.float16) for path, leaf in trees.leaves(start)}
    return replace(base, synthesis=trees.from_leaves(leaves))


def run(config: Config, images: Mapping[str, Image], root: Path) -> Path:
    """Measure every variant; returns the run folder."""
    config = replace(config, base=grids.packaged_base().digest.hex()[:8])
    folder = results.run_folder(root, config)
    note_provenance(folder)
    rows: dict[str, list[RDPoint]] = {}
    for name, codec in variants(config).items():
        print(name, flush=True)
        curve = [replace(codec, step=step) for step in config.steps]
        rows[name] = evaluate(
            curve,
            images,
            folder / safe_name(name),
            batch_size=len(images),
            on_progress=print_progress(),
        )
    results.write_text(folder / "table.md", table(config, rows))
    return folder


def table(config: Config, rows: Mapping[str, Sequence[RDPoint]]) -> str:
    """BD-rates against the first variant, image by image."""
    [default, *_] = rows.values()
    lines = []
    for name, own in rows.items():
        rates = list(compare.bd_rates_of_images(default, own).values())
        cells = [f"{fmean(rates):+.2f}", f"{median(rates):+.2f}"] if rates else ["", ""]
        seconds = fmean(row.encode_seconds for row in own)
        lines.append([name, *cells, f"{min(rates):+.1f} to {max(rates):+.1f}" if rates else ""])
        lines[-1].append(f"{seconds:.2f}")
    header = ["variant", "BD-rate %, mean of images", "median", "range", "encode s/image"]
    return (
        f"# Choices of LatentGrid, steps {', '.join(map(str, config.steps))}, "
        f"{len({row.image for row in default})} images ({config.images}), seed {config.seed}\n\n"
        + markdown(header, lines)
        + "\n"
    )


@dataclass(frozen=True)
class Options(common.Options):
    """The command line."""

    config: Config = Config()
    output: Path = ROOT / "results" / "grid_choices"


def main(options: Options) -> Path:
    """Read the images, run; returns the run folder."""
    config = SMOKE if options.smoke else options.config
    images = common.pictures(options, slice(config.num_images))
    return common.show(run(config, images, options.output))


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
