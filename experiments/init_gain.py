"""What does the meta-learned init buy: PSNR after few steps, and bytes at equal PSNR?

Claim: what a random init reaches at step 100, the learned init reaches by step 33, with the default
optimiser (Muon) and with Adam.
Tested: the present init by steps 38 and 57, with files that are 16 and 19 % smaller at equal PSNR
after 1000 steps; that of the earlier defaults by 29 and 27, with files 3 and 7 % larger.
Command: python -m experiments.init_gain --data DIR   (DIR holds kodak/; or set INRJAX_DATA)
Minutes: about 12 on 2 cores. A stopped run goes on: rows that exist are kept.
Expected: the table in results/init_gain/<config hash>/table.md.

Both inits go through the same codec and steps, and every number is taken from files that another
process decoded. What differs is where the fit starts and what the prior is around; its scales are
those of the learned init for both. From the learned init, MAML's 3 inner steps on 4096 pixels come
first, which cost about one step more. Every number of steps is a fit of its own, with its own
learning-rate schedule. ``--smoke``: small crops, few steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import tyro

from experiments import common
from experiments.kodak_rd import ROOT, markdown
from inrjax import codecs, fit, optimizers, overfit, results
from inrjax.evaluate import evaluate
from inrjax.init import Init, packaged_init
from inrjax.results import Summary
from inrjax.types import Image


@dataclass(frozen=True)
class Config:
    """What is compared; ``bias_scale``: of the random init, the one that meta-training began at."""

    width: int = 32
    steps: tuple[int, ...] = (10, 30, 100, 300, 1000)
    muon: float = overfit.LEARNING_RATE
    adam: float = 1e-3
    bias_scale: float = 0.3
    num_images: int = 24
    seed: int = 0
    images: tyro.conf.Suppress[str] = "kodak"
    init: tyro.conf.Suppress[str] = ""


def random_init(learned: Init, config: Config) -> Init:
    """The learned prior with random params to start from, and inner steps that do not move."""
    params = learned.net.init(jax.random.key(config.seed + 1))
    scaled = {
        name: {"weight": layer["weight"], "bias": config.bias_scale * layer["bias"]}
        for name, layer in params.items()
    }
    return replace(
        learned,
        params=jax.tree.map(lambda x: np.asarray(x, np.float16), scaled),
        # Rates of 0, not None: both inits then run the very same compiled program.
        rates=jax.tree.map(np.zeros_like, dict(learned.rates or {})),
    )


def run(config: Config, images: Mapping[str, Image], root: Path) -> Path:
    """Measure both inits under both optimisers; writes a folder for each, and one table."""
    learned = packaged_init(config.width)
    config = replace(config, init=learned.short_digest)
    images = dict(list(images.items())[: config.num_images])
    folder = results.run_folder(root, config)
    inits = {"learned": learned, "random": random_init(learned, config)}
    compared = {"Muon": optimizers.Muon(config.muon), "Adam": optimizers.Adam(config.adam)}
    summaries: dict[tuple[str, str], list[Summary]] = {}
    for optimizer_name, optimizer in compared.items():
        for init_name, init in inits.items():
            series = [
                codecs.MetaSiren(
                    config.width,
                    steps,
                    config.seed,
                    init=init,
                    optimizer=optimizer,
                    points_per_step=POINTS_PER_STEP,
                )
                for steps in config.steps
            ]
            part = folder / f"{optimizer_name.lower()}_{init_name}"
            print(f"{optimizer_name}, {init_name} init", flush=True)
            rows = evaluate(
                series, images, part, batch_size=len(images), on_progress=common.print_progress()
            )
            summaries[optimizer_name, init_name] = results.summarise(rows)
    results.write_json(folder / "provenance.json", results.provenance(results.jax_device()))
    results.write_text(folder / "table.md", table(config, len(images), summaries))
    return folder


def table(
    config: Config, num_images: int, summaries: Mapping[tuple[str, str], Sequence[Summary]]
) -> str:
    """PSNR and bytes by steps for each optimiser and init, and the answer to the claim."""
    header = ["optimiser", "init", *(f"{steps} steps" for steps in config.steps)]
    lines = [
        [optimizer, init, *(f"{s.psnr:.2f} dB, {s.num_bytes:.0f} B" for s in series)]
        for (optimizer, init), series in summaries.items()
    ]
    answers = [
        answer(optimizer, config.steps, summaries) for optimizer in {o: 0 for o, _ in summaries}
    ]
    return (
        "\n\n".join(
            [
                f"# The learned init against a random one, width {config.width}, "
                f"{num_images} images of {config.images}, seed {config.seed}",
                "Mean of the images' PSNRs and mean bytes of whole files.",
                markdown(header, lines),
                *answers,
            ]
        )
        + "\n"
    )


def answer(
    optimizer: str,
    steps: Sequence[int],
    summaries: Mapping[tuple[str, str], Sequence[Summary]],
) -> str:
    """Where the learned init reaches what the random one has, and bytes at equal PSNR."""
    learned, random = summaries[optimizer, "learned"], summaries[optimizer, "random"]
    logs = np.log([float(s) for s in steps])
    psnrs = np.array([s.psnr for s in learned])
    parts = []
    for count, s in zip(steps, random, strict=True):
        if psnrs[0] >= s.psnr:
            reached = f"by step {steps[0]} or before"
        elif psnrs.max() < s.psnr:
            reached = "never within these steps"
        else:
            rising = np.maximum.accumulate(psnrs)
            reached = f"at step {np.exp(np.interp(s.psnr, rising, logs)):.0f} (interpolated)"
        parts.append(f"{s.psnr:.2f} dB, random at step {count}: learned {reached}")
    return f"{optimizer}: " + "; ".join(parts) + ". " + _bytes_at_equal_psnr(learned, random)


def _bytes_at_equal_psnr(learned: Sequence[Summary], random: Sequence[Summary]) -> str:
    """Bytes of both, interpolated at the last PSNR that both reach, along each one's steps."""
    psnr = min(learned[-1].psnr, random[-1].psnr)

    def at(series: Sequence[Summary]) -> float:
        rising = np.maximum.accumulate([s.psnr for s in series])
        return float(np.interp(psnr, rising, [s.num_bytes for s in series]))

    return (
        f"At {psnr:.2f} dB, between measured points: learned {at(learned):.0f} bytes, random "
        f"{at(random):.0f} bytes ({100 * (at(learned) / at(random) - 1):+.1f} %)."
    )


POINTS_PER_STEP = 12_288
"""Pixels of a step, as when the committed table was made."""

SMOKE = Config(steps=(2,), num_images=1, images="smoke")


@dataclass(frozen=True)
class Options(common.Options):
    """The command line."""

    config: Config = Config()
    output: Path = ROOT / "results" / "init_gain"


def main(options: Options) -> Path:
    """Set one device a core, read the images, run; returns the run folder."""
    fit.use_every_core()
    config = SMOKE if options.smoke else options.config
    images = common.named("smoke" if options.smoke else "kodak", options.data)
    return common.show(run(config, images, options.output))


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
