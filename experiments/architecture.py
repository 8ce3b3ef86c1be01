"""Which network should MetaSiren fit: frequency factor, encoding, depth, a learned init or not?

Claim: under Muon, w0 = 15 rescues images on which the usual 30 does not settle, and is within
0.3 dB of it on the others; encoding and depth matter little; the learned init is worth about 6 % of
the bytes after 6000 steps.
Command: python -m experiments.architecture --data DIR    (DIR holds cid22/; or set INRJAX_DATA)
Minutes: about 12 on 2 cores. A stopped run goes on: rows that exist are kept.
Expected: the table in results/architecture/<config hash>/table.md.

Every net but the packaged one starts from a random init, with a prior around it whose scales come
from fits to training images. Measured on cid22 images that were held back from meta-training, from
files that another process decoded. ``score`` is mean PSNR - 1.6 dB * log2(geometric mean of bytes /
that of the packaged init): 1.6 dB for twice the bytes is what width buys around these rates.
``--smoke``: one small crop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments import common
from experiments.defaults import DB_PER_OCTAVE
from experiments.kodak_rd import ROOT, markdown
from inrjax import codecs, compare, metatrain, results
from inrjax.evaluate import evaluate, safe_name
from inrjax.init import Init, packaged_init
from inrjax.types import Image, RDPoint

Shape = tuple[int, int, float, int, float]
"""width, depth, w0, number of frequencies of the encoding, their ratio."""


@dataclass(frozen=True)
class Config:
    """What is compared; ``init``: digest of the packaged one, filled in when it runs."""

    packaged_width: int = 32
    shapes: tuple[Shape, ...] = (
        (32, 4, 30.0, 16, 1.4),
        (32, 4, 15.0, 16, 1.4),
        (32, 4, 30.0, 12, 1.5),
        (32, 4, 15.0, 12, 1.5),
        (32, 4, 10.0, 12, 1.5),
        (32, 4, 15.0, 8, 1.6),
        (38, 3, 15.0, 12, 1.5),
        (28, 5, 15.0, 12, 1.5),
    )
    num_steps: int = 6000
    prior_images: int = 8
    prior_steps: int = 3000
    num_images: int = 8
    seed: int = 0
    images: tyro.conf.Suppress[str] = "cid22, held back"
    init: tyro.conf.Suppress[str] = ""


SMOKE = Config(
    shapes=((16, 2, 15.0, 4, 1.5),), num_steps=4, prior_images=1, prior_steps=4, num_images=1,
    images="smoke",
)  # fmt: skip


def variants(config: Config, training: Sequence[Image]) -> dict[str, Init]:
    """Name -> init, the packaged one first."""
    return {"the packaged init": packaged_init(config.packaged_width)} | {
        shape_name(shape): _random_init(config, shape, training) for shape in config.shapes
    }


def shape_name(shape: Shape) -> str:
    """How a table calls a net."""
    width, depth, w0, frequencies, ratio = shape
    return f"{depth} layers of {width}, w0 {w0:g}, {frequencies} frequencies of ratio {ratio:g}"


def _random_init(config: Config, shape: Shape, training: Sequence[Image]) -> Init:
    width, depth, w0, frequencies, ratio = shape
    learning = metatrain.MetaTrainConfig(
        width, depth, w0, frequencies, ratio,
        prior_images=config.prior_images, prior_steps=config.prior_steps, seed=config.seed,
    )  # fmt: skip
    print(f"prior of {shape_name(shape)}", flush=True)
    return metatrain.random_init(learning, training)


def run(config: Config, training: Sequence[Image], images: Mapping[str, Image], root: Path) -> Path:
    """Measure every net on the held-back images; returns the run folder."""
    config = replace(config, init=packaged_init(config.packaged_width).short_digest)
    folder = results.run_folder(root, config)
    rows: dict[str, list[RDPoint]] = {}
    for name, init in variants(config, training).items():
        print(name, flush=True)
        codec = codecs.MetaSiren(init.net.width, config.num_steps, config.seed, init=init)
        rows[name] = evaluate(
            [codec], images, folder / safe_name(name), batch_size=len(images),
            on_progress=common.print_progress(),
        )  # fmt: skip
    results.write_json(folder / "provenance.json", results.provenance(results.jax_device()))
    results.write_text(folder / "table.md", table(config, rows))
    return folder


def table(config: Config, rows: Mapping[str, Sequence[RDPoint]]) -> str:
    """One line a net, and the gain over the first random one with its interval over images."""
    names = list(rows)
    scores = {name: image_scores(rows[name], rows[names[0]]) for name in names}
    reference = names[min(1, len(names) - 1)]
    lines: list[list[Any]] = []
    for name in names:
        gain = mean_estimate(scores[name] - scores[reference])
        lines.append(
            [
                name,
                f"{np.mean([r.num_bytes for r in rows[name]]):.0f}",
                f"{np.mean([r.psnr for r in rows[name]]):.2f}",
                f"{scores[name].mean():.2f}",
                f"{gain.value:+.2f}{_interval(gain)}",
                f"{np.median(scores[name] - scores[reference]):+.2f}",
            ]
        )
    title = (
        f"# Networks for MetaSiren, {config.num_steps} steps, {len(rows[reference])} images "
        f"({config.images}), seed {config.seed}"
    )
    note = (
        f"The gain in dB at equal bytes is over `{reference}`, the mean over images with its 95 % "
        "bootstrap interval, and the median: an image on which a net fails moves the mean alone."
    )
    header = ["net", "bytes", "PSNR dB", "score dB", "gain dB", "median gain"]
    return f"{title}\n\n{markdown(header, lines)}\n\n{note}\n"


def _interval(estimate: compare.Estimate) -> str:
    if estimate.low is None or estimate.high is None:  # of a single image
        return ""
    return f" [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def mean_estimate(values: np.ndarray) -> compare.Estimate:
    """The mean of one value an image, with its bootstrap interval."""
    return compare.estimate(lambda counts: float(counts @ values / counts.sum()), len(values))


def image_scores(rows: Sequence[RDPoint], anchor: Sequence[RDPoint]) -> np.ndarray:
    """Each image's PSNR, moved to the bytes of the anchor's mean along `DB_PER_OCTAVE`."""
    level = np.mean([np.log2(row.num_bytes) for row in anchor])
    ordered = sorted(rows, key=lambda row: row.image)
    return np.array([r.psnr - DB_PER_OCTAVE * (np.log2(r.num_bytes) - level) for r in ordered])


@dataclass(frozen=True)
class Options(common.Options):
    """The command line."""

    config: Config = Config()
    output: Path = ROOT / "results" / "architecture"


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
