"""What do the presets of `inrjax encode` cost, and how far do files scatter with the seed?

Claim: on 2 cores a 768x512 picture takes at most 20 s at ``--preset fast``, 60 s by default and
120 s at the widest net, whole commands, and a curve of five widths at most 3 times its widest.
Tested: other seeds move a picture's PSNR by less than 0.1 dB and its bytes by less than 1 % (one
standard deviation of three seeds); of four runs two had 1.3 and 1.4 % of MetaSiren's bytes.
Command: python -m experiments.presets --data DIR    (DIR holds cid22/; or set INRJAX_DATA), or
    with --presets fast default, without the slowest of the commands
Minutes: 13 on 2 idle cores, 22 on slower ones partly beside tests. A stopped run goes on: rows that
    exist are kept.
Expected: the tables in results/presets/<config hash>/table.md.

Commands: each in a fresh process, twice, on one packaged photograph: first with an empty cache of
compiled programs, as on a user's first day, then with what the first left, as ever after. The limit
is for the second, and for 2 cores: on a machine of more, start this under ``taskset -c 0,1``.
Nothing else may run on it. ``decode`` is the whole command too, the median of three.

Seeds: held-back cid22 images, MetaSiren at its default preset and LatentGrid, all else equal;
every file was decoded by another process. ``--smoke``: small crops, two steps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from math import sqrt
from pathlib import Path
from statistics import fmean, median, stdev, variance
from typing import Literal, NamedTuple, TypeAlias

import tyro

from experiments import common
from experiments.activations import read_rows, write_rows
from experiments.benchmark_codec import photograph
from experiments.kodak_rd import (
    ROOT,
    markdown,
    note_provenance,
    time_cli,
)
from inrjax import codecs, fit, grids, metrics, results
from inrjax.evaluate import evaluate
from inrjax.images import read_image, write_image
from inrjax.init import packaged_init
from inrjax.machine import cpu_count, keep_buffers
from inrjax.types import Codec, Image, RDPoint

Preset: TypeAlias = Literal["fast", "default", "best"]

LIMITS: Mapping[str, float] = {"fast": 20.0, "default": 60.0}
"""Seconds at most at width `Config.width`, by preset."""

WIDE_LIMIT = 120.0
"""Seconds at most of the default preset at the widest net."""

CURVE_LIMIT = 3.0
"""Times the seconds of its widest net that a curve may take at most."""

LIMIT_CORES = 2
"""Cores that the limits are for."""


@dataclass(frozen=True)
class Config:
    """What is measured. ``curve_widths``: of the default preset, ``width`` among them; ``size``:
    (height, width) of the picture; ``num_steps``: None for those of the presets; ``init``,
    ``base``: digests of the packaged ones, filled in when it runs."""

    width: int = 32
    curve_widths: tuple[int, ...] = codecs.inr.WIDTHS[-5:]
    grid_step: int = 31
    size: tuple[int, int] = (512, 768)
    num_decodes: int = 3
    seeds: tuple[int, ...] = (0, 1, 2)
    curve_steps: tuple[int, ...] = codecs.latent_grid.CURVE_STEPS[1::3]
    num_images: int = 6
    num_steps: int | None = None
    images: tyro.conf.Suppress[str] = "cid22, held back"
    init: tyro.conf.Suppress[str] = ""
    base: tyro.conf.Suppress[str] = ""

    def __post_init__(self):
        if len(self.seeds) < 2:
            raise ValueError(f"got seeds {self.seeds}, expected at least two: they are compared")


SMOKE = Config(
    size=(48, 64), num_decodes=1, seeds=(0, 1), curve_steps=(34,), num_images=1, num_steps=2,
    images="smoke",
)  # fmt: skip


def run(config: Config, images: Mapping[str, Image], chosen: Sequence[Preset], root: Path) -> Path:
    """Measure the commands of the chosen presets, then the seeds; returns the run folder."""
    init, base = packaged_init(config.width), grids.packaged_base()
    config = replace(config, init=init.short_digest, base=base.short_digest)
    folder = results.run_folder(root, config)
    note_provenance(folder)
    # First, while this process has computed nothing and its threads sleep.
    commands = measure_commands(config, chosen, folder / "commands.csv")
    rows = measure_seeds(config, images, folder)
    results.write_text(folder / "table.md", table(config, commands, rows))
    return folder


# ---------------------------------------------------------------------------- commands


class Command(NamedTuple):
    """A row: one `inrjax encode` and its `inrjax decode`. ``first_seconds`` without kept programs,
    ``encode_seconds`` with; ``repeats``: 1 if both wrote the same bytes; ``cores``: of the
    process; ``digest``: SHA-256 of the file."""

    name: str
    cores: int
    first_seconds: float
    encode_seconds: float
    decode_seconds: float
    num_bytes: int
    bpp: float
    psnr: float
    repeats: int
    digest: str


class Asked(NamedTuple):
    """Options of `inrjax encode`, and the seconds that they may take; None where none are set."""

    options: tuple[str, ...]
    limit: float | None


def siren_name(preset: Preset, width: int) -> str:
    """The command of MetaSiren, as a row names it."""
    return f"meta-siren, {preset}, width {width}"


def commands_of(config: Config, chosen: Sequence[Preset]) -> dict[str, Asked]:
    """Name -> what is asked: the chosen presets at ``width``, ``default`` at all widths of the
    curve, and LatentGrid."""

    def siren(preset: Preset, width: int, limit: float | None) -> Asked:
        steps = (
            ("--preset", preset) if config.num_steps is None else ("--steps", str(config.num_steps))
        )
        return Asked((*steps, "--width", str(width)), limit)

    asked = {
        siren_name(preset, config.width): siren(preset, config.width, LIMITS.get(preset))
        for preset in chosen
    }
    if "default" in chosen:
        limits = {config.width: LIMITS["default"], max(config.curve_widths): WIDE_LIMIT}
        for width in config.curve_widths:
            asked[siren_name("default", width)] = siren("default", width, limits.get(width))
    grid = ("--codec", "latent-grid", "--step", str(config.grid_step))
    return asked | {f"latent-grid, step {config.grid_step}": Asked(grid, None)}


def measure_commands(config: Config, chosen: Sequence[Preset], path: Path) -> list[Command]:
    """A row for each command, those that the table has already left out; returns all rows."""
    rows = read_rows(path, Command)
    picture = photograph(*config.size)
    for name, asked in commands_of(config, chosen).items():
        if name not in {row.name for row in rows}:
            print(name, flush=True)
            rows.append(measure_command(config, name, asked.options, picture))
            write_rows(path, rows)
    return rows


def measure_command(config: Config, name: str, options: Sequence[str], picture: Image) -> Command:
    """Encode twice and decode, each in a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        photo, first, again, decoded, cache = (
            Path(temporary, part) for part in ("a.png", "a.inr", "b.inr", "a", "cache")
        )
        write_image(photo, picture)
        encode_seconds = [
            time_cli(["encode", str(photo), "-o", str(target), *options], cache)[0]
            for target in (first, again)
        ]
        decode_seconds = [
            time_cli(["decode", str(again), "-o", f"{decoded}{i}.png"], cache)[0]
            for i in range(config.num_decodes)
        ]
        stream = again.read_bytes()
        image_hat = read_image(Path(f"{decoded}0.png")).image
        repeats = int(stream == first.read_bytes())
    return Command(
        name=name,
        cores=cpu_count(),
        first_seconds=encode_seconds[0],
        encode_seconds=encode_seconds[1],
        decode_seconds=median(decode_seconds),
        num_bytes=len(stream),
        bpp=metrics.bpp(len(stream), *picture.shape[:2]),
        psnr=metrics.psnr(picture, image_hat),
        repeats=repeats,
        digest=sha256(stream).hexdigest(),
    )


# ---------------------------------------------------------------------------- seeds


def codecs_of(config: Config, seed: int) -> list[Codec]:
    """MetaSiren at the default preset, and LatentGrid at two rates, all of one seed."""
    steps = config.num_steps or codecs.MetaSiren.num_steps
    grid = [codecs.LatentGrid(step, seed=seed) for step in config.curve_steps]
    return [codecs.MetaSiren(config.width, steps, seed), *grid]


def measure_seeds(config: Config, images: Mapping[str, Image], folder: Path) -> list[RDPoint]:
    """A row for each codec, image and seed. A table of rows has one seed of each, so that every
    seed has a folder."""
    rows = []
    for seed in config.seeds:
        print(f"seed {seed}", flush=True)
        rows += evaluate(
            codecs_of(config, seed),
            images,
            folder / f"seed={seed}",
            batch_size=len(images),
            on_progress=common.print_progress(),
        )
    return rows


class Scatter(NamedTuple):
    """How numbers of several images scatter over the seeds, in the numbers' unit.

    ``deviation``: the standard deviation over the seeds (n - 1), pooled over the images: the root
    of the mean variance. ``largest``: the largest range of an image. ``of_mean``: the standard
    deviation over the seeds of the mean of all images.
    """

    deviation: float
    largest: float
    of_mean: float


def scatter(by_image: Sequence[Sequence[float]]) -> Scatter:
    """The scatter of a number for each image and seed, the seeds of an image in one order; at
    least two of them."""
    return Scatter(
        sqrt(fmean(variance(own) for own in by_image)),
        max(max(own) - min(own) for own in by_image),
        stdev(fmean(column) for column in zip(*by_image, strict=True)),
    )


def in_percent(by_image: Sequence[Sequence[float]]) -> list[list[float]]:
    """Each number in percent of its image's mean over the seeds."""
    return [[100 * value / fmean(own) for value in own] for own in by_image]


# ---------------------------------------------------------------------------- table


def table(config: Config, commands: Sequence[Command], rows: Sequence[RDPoint]) -> str:
    """The costs of the commands, the scatter over seeds, and every file of MetaSiren and others."""
    height, width = config.size
    images = len({row.image for row in rows})
    seeds = ", ".join(map(str, config.seeds))
    override = "" if config.num_steps is None else f" (but {config.num_steps} steps)"
    parts = [
        f"# What presets cost, and how far seeds scatter{override}",
        f"## Whole commands, one {width}x{height} picture",
        "Wall seconds of a fresh process: `encode` with an empty cache of compiled programs (first "
        "run), and with the programs that it left, which the limit is for; `decode`, median of "
        f"{config.num_decodes}. Limits are for {LIMIT_CORES} cores.",
        _commands(config, commands),
        curve_text(config, commands),
        f"## Seeds {seeds}, {images} images ({config.images})",
        "Means over images and seeds. sd: standard deviation over the seeds (n - 1), pooled over "
        "the images; range: the largest of an image; sd of the mean: of the mean of all images, "
        "over the seeds. Bytes in percent of the image's mean.",
        _scatters(config, rows),
        "## Every file",
        _files(config, rows),
    ]
    return "\n\n".join(parts) + "\n"


def _commands(config: Config, commands: Sequence[Command]) -> str:
    by_name = {row.name: row for row in commands}
    presets: tuple[Preset, ...] = ("fast", "default", "best")
    lines = []
    for name, asked in commands_of(config, presets).items():
        limit = "" if asked.limit is None else f"{asked.limit:.0f}"
        row = by_name.get(name)
        if row is None:
            lines.append([name, "not measured", "", limit, *[""] * 7])
            continue
        lines.append([
            name, f"{row.first_seconds:.1f}", f"{row.encode_seconds:.1f}", limit,
            _within(row, asked.limit), str(row.cores), f"{row.decode_seconds:.2f}",
            str(row.num_bytes), f"{row.bpp:.4f}", f"{row.psnr:.2f}",
            "yes" if row.repeats else "no",
        ])  # fmt: skip
    header = [
        "command", "first run s", "encode s", "limit s", "within", "cores", "decode s", "bytes",
        "bpp", "PSNR dB", "same bytes twice",
    ]  # fmt: skip
    return markdown(header, lines)


def curve_text(config: Config, commands: Sequence[Command]) -> str:
    """What the curve of the default preset costs beside its widest net."""
    by_name = {row.name: row.encode_seconds for row in commands}
    seconds = [by_name.get(siren_name("default", width)) for width in config.curve_widths]
    known = [each for each in seconds if each is not None]
    if len(known) < len(seconds):
        return "The curve of the default preset was not measured."
    ratio = sum(known) / known[config.curve_widths.index(max(config.curve_widths))]
    answer = "yes" if ratio <= CURVE_LIMIT else "no"
    return (
        f"A curve of widths {', '.join(map(str, config.curve_widths))}, each encoded by itself: "
        f"{sum(known):.0f} s, {ratio:.2f} times its widest. At most {CURVE_LIMIT:g} times: "
        f"{answer}."
    )


def _within(row: Command, limit: float | None) -> str:
    if limit is None:
        return "no limit"
    answer = "yes" if row.encode_seconds <= limit else "no"
    more = row.cores > LIMIT_CORES
    return f"{answer}, on more cores than meant" if more else answer


Grouped: TypeAlias = dict[tuple[str, str], dict[str, list[RDPoint]]]


def _grouped(config: Config, rows: Sequence[RDPoint]) -> Grouped:
    """(codec, setting) -> image -> rows in the order of the seeds."""
    groups: Grouped = {}
    for row in sorted(rows, key=lambda row: config.seeds.index(row.seed or 0)):
        images = groups.setdefault((row.codec, row.setting), {})
        images.setdefault(row.image, []).append(row)
    return groups


def _scatters(config: Config, rows: Sequence[RDPoint]) -> str:
    lines = []
    for (codec, setting), images in _grouped(config, rows).items():
        psnrs = [[row.psnr for row in own] for own in images.values()]
        sizes = [[float(row.num_bytes) for row in own] for own in images.values()]
        db, percent = scatter(psnrs), scatter(in_percent(sizes))
        equal = sum(len({row.digest for row in own}) == 1 for own in images.values())
        lines.append([
            codec, setting, f"{fmean(map(fmean, sizes)):.0f}", f"{fmean(map(fmean, psnrs)):.2f}",
            f"{db.deviation:.3f}", f"{db.largest:.3f}", f"{db.of_mean:.3f}",
            f"{percent.deviation:.2f}", f"{percent.largest:.2f}", f"{percent.of_mean:.2f}",
            f"{equal} of {len(images)}",
        ])  # fmt: skip
    header = [
        "codec", "setting", "bytes", "PSNR dB", "PSNR sd dB", "PSNR range dB",
        "PSNR sd of the mean dB", "bytes sd %", "bytes range %", "bytes sd of the mean %",
        "images whose files are equal",
    ]  # fmt: skip
    return markdown(header, lines)


def _files(config: Config, rows: Sequence[RDPoint]) -> str:
    lines = [
        [codec, setting, image, *(f"{row.num_bytes} B, {row.psnr:.2f} dB" for row in own)]
        for (codec, setting), images in _grouped(config, rows).items()
        for image, own in images.items()
    ]
    return markdown(
        ["codec", "setting", "image", *(f"seed {seed}" for seed in config.seeds)], lines
    )


# ---------------------------------------------------------------------------- the command line


@dataclass(frozen=True)
class Options(common.Options):
    """The command line. ``presets``: those whose commands are measured now; rows that are there
    stay in the table. ``smoke`` takes the first of them."""

    config: Config = Config()
    output: Path = ROOT / "results" / "presets"
    presets: tuple[Preset, ...] = ("fast", "default", "best")


def main(options: Options) -> Path:
    """Set one device a core, read the images, run; returns the run folder."""
    keep_buffers()
    fit.use_every_core()
    config = SMOKE if options.smoke else options.config
    chosen = options.presets[:1] if options.smoke else options.presets
    images = common.pictures(options, slice(config.num_images))
    return common.show(run(config, images, chosen, options.output))


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
