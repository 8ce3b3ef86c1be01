"""Does a folder of 10,000 small pictures encode at a steady rate and in bounded memory?

Claim: the rate of `inrjax encode` does not fall from the 100th picture to the last, and its memory
does not grow with their number.
Command: python -m experiments.scale
Minutes: about 8 on 2 cores for 10,000 pictures of 64 x 64, 50 steps at width 24; --num-images
1000 takes a tenth. A stopped run goes on, and its table covers the last stretch alone.
Expected: progress.csv, rate.png and table.md in results/scale/<config hash>/.

The pictures are random crops of three photographs that come with scikit-image, at random scale and
flipped at random, so that no two are alike. They and the coded files go to ``streams/`` in the run
folder, which is not committed. The command is the user's own, in a process of its own, whose lines
are timed as they come; its memory is what Linux says of it. ``--smoke``: six pictures.
"""

from __future__ import annotations

import csv
import io
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import PIL.Image
import tyro

from experiments.kodak_rd import ROOT, markdown
from inrjax import cli, codecs, datasets, fit, images, metrics, overfit, results, trees
from inrjax.init import Init, packaged_init
from inrjax.types import Image, Params

SETTLED = 100
"""Pictures after which the rate counts: before, Python starts and programs are compiled."""

PARTS = 20
"""Stretches, from picture SETTLED to the last, whose rates are compared."""


@dataclass(frozen=True)
class Config:
    """What is encoded, and how; ``init``: digest of the packaged one, filled in when it runs."""

    num_images: int = 10_000
    size: int = 64
    width: int = 24
    num_steps: int = 50
    seed: int = 0
    photo: tuple[int, int] = (512, 768)
    init: tyro.conf.Suppress[str] = ""


SMOKE = Config(num_images=6, size=16, num_steps=2, photo=(20, 24))


class Sample(NamedTuple):
    """What was seen when a picture's line came. seconds: since the start; of the process, where
    the system says it, else NaN: cpu_seconds, the time of all its threads on a core, which other
    work on the machine changes less; mib, its resident memory."""

    images: int
    seconds: float
    cpu_seconds: float
    mib: float


# ---------------------------------------------------------------------------- the pictures


def crop(photos: Sequence[Image], index: int, size: int, seed: int) -> Image:
    """Picture ``index``, uint8 (size, size, 3): it depends on the arguments alone."""
    rng = np.random.default_rng([seed, index])
    photo = photos[rng.integers(len(photos))]
    height, width = photo.shape[:2]
    side = int(rng.integers(size, min(height, width, 4 * size) + 1))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    square = PIL.Image.fromarray(photo[top : top + side, left : left + side])
    small = np.asarray(square.resize((size, size), PIL.Image.Resampling.BOX))
    return np.ascontiguousarray(small[:, ::-1] if rng.integers(2) else small)


def write_pictures(folder: Path, config: Config) -> list[str]:
    """The names of the pictures, each written if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    photos = list(datasets.packaged().values())
    names = [f"{index:06d}.png" for index in range(config.num_images)]
    for index, name in enumerate(names):
        if not (folder / name).exists():
            images.write_image(folder / name, crop(photos, index, config.size, config.seed))
    return names


# ---------------------------------------------------------------------------- the encoder


def encode(folder: Path, names: Sequence[str], config: Config) -> Iterator[Sample]:
    """Run ``inrjax encode`` on pictures of a folder; a sample for each line that it prints."""
    options = ["-o", "../coded", "--resume", "--width", str(config.width)]
    options += ["--steps", str(config.num_steps), "--seed", str(config.seed)]
    command = [sys.executable, "-m", "inrjax.cli", "encode", *names, *options]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    start = perf_counter()
    with subprocess.Popen(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        for count, _ in enumerate(process.stdout, 1):
            seconds = perf_counter() - start
            yield Sample(count, seconds, cpu_seconds(process.pid), resident_mib(process.pid))
    if process.returncode:
        raise RuntimeError(f"inrjax encode ended with exit code {process.returncode}")


def resident_mib(pid: int) -> float:
    """Resident memory of a process; NaN where there is no /proc."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return math.nan
    sizes = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return int(sizes[0]) / 1024 if sizes else math.nan


def cpu_seconds(pid: int) -> float:
    """User and system time of a process; NaN where there is no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return math.nan
    user, system = text.rpartition(")")[2].split()[11:13]  # the name before it may hold spaces
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


class Stretch(NamedTuple):
    """A part of the run, from picture ``first`` to ``last``: pictures per second, and per second of
    a core; peak MiB."""

    first: int
    last: int
    rate: float
    cpu_rate: float
    mib: float


def batch_ends(samples: Sequence[Sample]) -> list[Sample]:
    """The last line of each batch, from picture SETTLED on: lines come batch by batch, and a rate
    between two other lines would be of no batch. Of a run of one batch, all lines."""
    last = len(samples)
    ends = [s for s in samples if s.images % cli.BATCH_IMAGES == 0 or s.images == last]
    settled = [s for s in ends if s.images >= SETTLED]
    return settled if len(settled) > 1 else list(samples)


def rates(samples: Sequence[Sample]) -> list[Stretch]:
    """Up to PARTS stretches of the run, of equally many batches, or one more."""
    ends = batch_ends(samples)
    chosen = np.unique(np.linspace(0, len(ends) - 1, PARTS + 1).astype(int))
    return [_stretch(samples, ends[i], ends[j]) for i, j in pairwise(chosen)]


def _stretch(samples: Sequence[Sample], one: Sample, other: Sample) -> Stretch:
    def per(seconds: float) -> float:  # the lines of one batch come within a tick of the CPU clock
        return (other.images - one.images) / seconds if seconds else math.nan

    rate, cpu_rate = per(other.seconds - one.seconds), per(other.cpu_seconds - one.cpu_seconds)
    peak = max(sample.mib for sample in samples[one.images : other.images])
    return Stretch(one.images, other.images, rate, cpu_rate, peak)


# ---------------------------------------------------------------------------- the host's part


def host_costs(config: Config, shape: tuple[int, int], repeats: int) -> dict[str, float]:
    """Milliseconds that each step on the host takes for one picture, the least of some repeats."""
    photo = np.tile(next(iter(datasets.packaged().values())), (2, 2, 1))
    picture = np.ascontiguousarray(photo[: shape[0], : shape[1]])
    codec = codecs.MetaSiren(config.width)
    tiling = fit.tiling(shape[0] * shape[1], codec.points_per_step)
    tiles = fit.bucket(-(-shape[0] * shape[1] // tiling.tile))
    init = packaged_init(config.width)
    learned = typical_fit(init, config.seed)
    stream = codecs.inr._pack(picture, learned, init)
    [image_hat] = codec.decode([stream])
    with tempfile.TemporaryDirectory() as folder:
        png, inr = Path(folder) / "a.png", Path(folder) / "a.inr"
        images.write_image(png, picture)
        steps: Mapping[str, Callable[[], object]] = {
            "read the PNG": lambda: images.read_image(png),
            "shuffle the pixels": lambda: overfit.image_points(picture, tiling, tiles, 0),
            "entropy-code": lambda: codecs.inr._pack(picture, learned, init),
            "decode, as proof": lambda: codec.decode([stream]),
            "measure PSNR": lambda: metrics.psnr(picture, image_hat),
            "write the file": lambda: trees.write_atomic(inr, stream),
        }
        return {name: 1e3 * least_seconds(step, repeats) for name, step in steps.items()}


def typical_fit(init: Init, seed: int) -> Params:
    """What a fit would end with: params drawn from the init's prior, steps as they start."""
    rng = np.random.default_rng(seed)
    levels, mean = init.levels(), dict(trees.leaves(init.mean()))
    net = {
        path: (leaf + rng.laplace(size=leaf.shape) * np.exp2(levels[path] / 4)).astype(np.float32)
        for path, leaf in mean.items()
    }
    steps = np.full(len(mean), np.log(overfit.INITIAL_STEP), np.float32)
    return {"net": trees.from_leaves(net), "log_step": steps}


def least_seconds(function: Callable[[], object], repeats: int) -> float:
    """The least time of some calls, after one that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        start = perf_counter()
        function()
        times.append(perf_counter() - start)
    return min(times)


# ---------------------------------------------------------------------------- the run


def run(config: Config, root: Path, repeats: int = 5) -> Path:
    """Write the pictures, encode them, write CSV, figure and table; returns the run folder."""
    config = replace(config, init=packaged_init(config.width).short_digest)
    folder = results.run_folder(root, config)
    pictures = folder / "streams" / "pictures"
    names = write_pictures(pictures, config)
    coded = folder / "streams" / "coded"
    done = [name for name in names if (coded / name).with_suffix(".inr").exists()]
    if len(done) < len(names) or not (folder / "progress.csv").exists():
        if len(done) == len(names):  # nothing is left to be timed
            for name in names:
                (coded / name).with_suffix(".inr").unlink()
        write_samples(folder / "progress.csv", encode(pictures, names, config))
    samples = read_samples(folder / "progress.csv")
    costs = {
        f"{shape[0]} x {shape[1]}": host_costs(config, shape, repeats)
        for shape in ((config.size, config.size), config.photo)
    }
    results.write_json(folder / "host_milliseconds.json", costs)
    results.write_json(folder / "provenance.json", results.provenance(results.jax_device()))
    results.write_text(folder / "table.md", table(config, samples, costs))
    draw(folder / "rate.png", samples)
    return folder


def write_samples(path: Path, samples: Iterator[Sample]) -> None:
    """One line a picture, whole or not at all; every hundredth is said on stderr."""
    lines = [",".join(Sample._fields)]
    for sample in samples:
        images, *numbers = sample
        lines.append(",".join([str(images), *(f"{number:.3f}" for number in numbers)]))
        if images % 100 == 0:
            minutes = sample.seconds / 60
            print(f"{images} after {minutes:.1f} min, {sample.mib:.0f} MiB", file=sys.stderr)
    trees.write_atomic(path, ("\n".join(lines) + "\n").encode())


def read_samples(path: Path) -> list[Sample]:
    """What `write_samples` wrote."""
    with path.open(newline="") as file:
        return [
            Sample(
                int(row["images"]),
                float(row["seconds"]),
                float(row["cpu_seconds"]),
                float(row["mib"]),
            )
            for row in csv.DictReader(file)
        ]


def table(
    config: Config, samples: Sequence[Sample], costs: Mapping[str, Mapping[str, float]]
) -> str:
    """Rate and memory of equal stretches of the run, and the host's milliseconds."""
    parts = rates(samples)
    lines = [
        [f"{p.first}..{p.last}", f"{p.rate:.2f}", f"{p.cpu_rate:.2f}", f"{p.mib:.0f}"]
        for p in parts
    ]
    first, last = parts[0], parts[-1]
    columns = list(costs)
    steps = [[s, *[f"{costs[c][s]:.2f}" for c in columns]] for s in costs[columns[0]]]
    return (
        "\n\n".join(
            [
                f"# {len(samples)} pictures of {config.size} x {config.size} in one command, width "
                f"{config.width}, {config.num_steps} steps",
                f"{samples[-1].seconds / 60:.1f} minutes. The last stretch over the first: "
                f"{last.rate / first.rate:.3f} in pictures per second, "
                f"{last.cpu_rate / first.cpu_rate:.3f} per second of a core.",
                markdown(["pictures", "pictures/s", "pictures/core s", "peak MiB"], lines),
                "Milliseconds on the host for one picture, one thread, the least of some repeats:",
                markdown(["step", *columns], steps),
            ]
        )
        + "\n"
    )


def draw(path: Path, samples: Sequence[Sample]) -> None:
    """Rate of each stretch, at its end, and memory, against pictures done."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True)
    stretches = rates(samples)
    done = [stretch.last for stretch in stretches]
    top.plot(done, [stretch.rate for stretch in stretches], "o-", label="per second")
    top.plot(done, [stretch.cpu_rate for stretch in stretches], "s-", label="per second of a core")
    top.set(ylabel="pictures", ylim=(0, None))
    top.legend()
    bottom.plot([s.images for s in samples], [s.mib for s in samples])
    bottom.set(ylabel="resident memory, MiB", xlabel="pictures done", ylim=(0, None))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    trees.write_atomic(path, buffer.getvalue())


@dataclass(frozen=True)
class Options:
    """The command line."""

    config: Config = Config()
    output: Path = ROOT / "results" / "scale"
    smoke: bool = False


def main(options: Options) -> Path:
    """Run, and print the table; returns the run folder."""
    config, repeats = (SMOKE, 1) if options.smoke else (options.config, 5)
    folder = run(config, options.output, repeats)
    print((folder / "table.md").read_text("utf-8"))
    return folder


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
