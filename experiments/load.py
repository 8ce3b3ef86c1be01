"""Does memory stay flat over a thousand pictures, and do eight processes share one folder?

Claim: a process that encodes and decodes 1,000 small pictures, one command each, holds no more
memory after the last than after the tenth; memory grows with the number of different compiled
programs, not with that of pictures; eight processes with one command encode each picture once, and
the files are those of a lone process.
Command: nice -n 19 python -m experiments.load
Minutes: about 6 of one core.
Expected: memory.csv and table.md in results/load/<config hash>/.

The commands are `inrjax encode` and `inrjax decode`, called as a user's own program would call
them (`inrjax.cli.main`), in a process of its own; its memory is what Linux says of it after each
picture. First all pictures have one shape; then come pictures of many shapes, each a new one; then
the same shapes once more. Eight processes then encode one folder, first with ``--distributed``,
then eight of the same plain command, which know nothing of each other; meanwhile every file that is
there under its final name is compared with the lone run's, over and over. ``--smoke``: a few.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from experiments import common, interruptions
from experiments.kodak_rd import ROOT, markdown
from experiments.scale import crop, resident_mib
from inrjax import cli, codecs, datasets, images, results
from inrjax.init import packaged_init

SETTLED = 10
"""Pictures after which memory counts: before, programs are compiled."""


@dataclass(frozen=True)
class Config:
    """``num_images`` of ``side`` x ``side``; ``num_shapes`` others, up to ``largest`` pixels;
    ``processes`` that encode ``shared`` pictures; ``init``: digest, filled in when it runs."""

    num_images: int = 1000
    side: int = 16
    num_shapes: int = 40
    largest: int = 40_000
    processes: int = 8
    shared: int = 40
    num_steps: int = 4
    seed: int = 0
    init: tyro.conf.Suppress[str] = ""


SMOKE = Config(num_images=12, side=8, num_shapes=2, largest=100, processes=2, shared=4, num_steps=2)


class Sample(NamedTuple):
    """Resident MiB after a picture was encoded and decoded; ``programs``: compiled for fits."""

    part: str
    picture: int
    mib: float
    programs: int


def shapes(config: Config) -> list[tuple[int, int]]:
    """(height, width), all different, evenly spread in the logarithm of the pixels."""
    pixels = np.geomspace(81, config.largest, config.num_shapes)
    found: list[tuple[int, int]] = []
    for i, count in enumerate(pixels):
        height = max(8, int(np.sqrt(count) * (0.7, 1.0, 1.4)[i % 3]))
        width = max(8, int(count / height))
        while (height, width) in found:
            width += 1
        found.append((height, width))
    return found


# ---------------------------------------------------------------------------- memory


def measure_memory(config: Config, folder: Path) -> list[Sample]:
    """Run the commands in this process; a sample for each picture."""
    photos = list(datasets.packaged().values())
    samples = []

    def do(part: str, index: int, picture: np.ndarray) -> None:
        code(config, folder, picture)
        samples.append(Sample(part, index, resident_mib(os.getpid()), num_programs()))

    for i in range(config.num_images):
        do("one shape", i, crop(photos, i, config.side, config.seed))
    for part in ("new shapes", "the same again"):
        for i, (height, width) in enumerate(shapes(config)):
            square = crop(photos, i, max(height, width), config.seed)
            do(part, i, np.ascontiguousarray(square[:height, :width]))
    return samples


def code(config: Config, folder: Path, picture: np.ndarray) -> None:
    """A picture to a file, and back, as a user does it."""
    png, inr, back = (folder / name for name in ("a.png", "a.inr", "back.png"))
    images.write_image(png, picture)
    encode = ["encode", str(png), "-o", str(inr), "--overwrite", *options(config)]
    for arguments in (encode, ["decode", str(inr), "-o", str(back), "--overwrite"]):
        with contextlib.redirect_stdout(io.StringIO()):
            exit_code = cli.main(arguments)
        if exit_code:
            raise RuntimeError(f"inrjax {' '.join(arguments)} ended with {exit_code}")
    if images.read_image(back).image.shape != picture.shape:
        raise RuntimeError(f"a picture of {picture.shape} came back with another shape")


def options(config: Config) -> list[str]:
    """Of every ``inrjax encode`` here."""
    return ["--width", str(codecs.inr.WIDTHS[0]), "--steps", str(config.num_steps)]


def num_programs() -> int:
    """Compiled programs that advance a fit, which are most of what JAX keeps."""
    import jax

    from inrjax import fit

    _, advance = fit._programs(jax.devices()[0].platform)
    return advance._cache_size()


def serve() -> None:
    """The process of `measure_memory`: the config from standard input, a CSV file at argv[-1]."""
    config = Config(**json.loads(sys.stdin.read()))
    with tempfile.TemporaryDirectory() as folder:
        samples = measure_memory(config, Path(folder))
    lines = [",".join(Sample._fields)]
    lines += [f"{s.part},{s.picture},{s.mib:.2f},{s.programs}" for s in samples]
    results.write_text(Path(sys.argv[-1]), "\n".join(lines) + "\n")


def read_samples(path: Path) -> list[Sample]:
    """What `serve` wrote."""
    with path.open(newline="") as file:
        return [
            Sample(row["part"], int(row["picture"]), float(row["mib"]), int(row["programs"]))
            for row in csv.DictReader(file)
        ]


# ---------------------------------------------------------------------------- many processes


class Together(NamedTuple):
    """What came of many processes on one folder. ``encoded``: how often a picture was, at least and
    at most; ``looks``: at a file under its final name, and how many were not the lone run's."""

    how: str
    processes: int
    codes: tuple[int, ...]
    encoded: tuple[int, int]
    equal: int
    pictures: int
    looks: int
    bad_looks: int
    leftovers: int
    errors: tuple[str, ...]


def measure_together(config: Config, folder: Path) -> list[Together]:
    """Eight processes on a folder, told of each other and not."""
    photos = list(datasets.packaged().values())
    names = [f"{i:03d}.png" for i in range(config.shared)]
    for i, name in enumerate(names):
        images.write_image(folder / name, crop(photos, i, config.side, config.seed))
    start(config, folder, names, "alone", []).communicate()
    alone = read_all(folder / "alone")
    found = []
    for how in ("--distributed", "each for itself"):
        job: list[list[str]] = [["--resume"]] * config.processes
        if how == "--distributed":
            meeting = ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}"]
            meeting += ["--num-processes", str(config.processes), "--process-id"]
            job = [[*meeting, str(i)] for i in range(config.processes)]
        out = how.strip("-").replace(" ", "_")
        running = [start(config, folder, names, out, more) for more in job]
        looks, bad = watch(running, folder / out, alone)
        told = [process.communicate() for process in running]
        lines = [line for text, _ in told for line in text.splitlines()]
        times = Counter(line.split(" -> ")[0] for line in lines)
        made = read_all(folder / out)
        found.append(
            Together(
                how, config.processes, tuple(p.returncode for p in running),
                (min(times[name] for name in names), max(times[name] for name in names)),
                sum(made.get(name) == data for name, data in alone.items()), len(names),
                looks, bad, interruptions.half_written(folder / out),
                tuple(line for _, text in told for line in text.splitlines() if "error" in line),
            )
        )  # fmt: skip
    return found


def start(
    config: Config, folder: Path, names: Sequence[str], out: str, more: Sequence[str]
) -> subprocess.Popen[str]:
    """``inrjax encode`` of the pictures of a folder, in a process of its own."""
    command = [sys.executable, "-m", "inrjax.cli", "encode", *names, "-o", f"{out}/"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "INRJAX_CACHE": str(folder / "cache")}
    return subprocess.Popen(
        [*command, *options(config), *more], cwd=folder, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def watch(
    running: Sequence[subprocess.Popen[str]], out: Path, expected: Mapping[str, bytes]
) -> tuple[int, int]:
    """(looks, bad ones) at files under their final names, until all processes have ended."""
    looks = bad = 0
    while any(process.poll() is None for process in running):
        for name, data in read_all(out).items():
            looks += 1
            bad += data != expected[name]
        time.sleep(0.1)
    return looks, bad


def read_all(out: Path) -> dict[str, bytes]:
    """Picture -> the bytes of its file, of those that are there."""
    return {path.stem + ".png": path.read_bytes() for path in sorted(out.glob("[!.]*.inr"))}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


# ---------------------------------------------------------------------------- the run


def run(config: Config, root: Path) -> Path:
    """Do the parts that were not done yet, write the table; returns the run folder."""
    config = replace(config, init=packaged_init(codecs.inr.WIDTHS[0]).short_digest)
    folder = results.run_folder(root, config)
    memory, together = folder / "memory.csv", folder / "together.json"
    if not memory.exists():
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        program = "from experiments.load import serve; serve()"
        subprocess.run(
            [sys.executable, "-c", program, str(memory.absolute())],
            input=json.dumps(asdict(config)), text=True, check=True, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, "INRJAX_CACHE": ""},
        )  # fmt: skip
        results.write_json(folder / "provenance.json", results.provenance("cpu"))
    if not together.exists():
        with tempfile.TemporaryDirectory() as temporary:
            found = measure_together(config, Path(temporary))
        results.write_json(together, [one._asdict() for one in found])
    samples = read_samples(memory)
    others = [Together(**one) for one in json.loads(together.read_text("utf-8"))]
    results.write_text(folder / "table.md", table(config, samples, others))
    return folder


def stretches(samples: Sequence[Sample]) -> list[tuple[str, int, int, float, float, int]]:
    """(part, first, last, MiB before, MiB after, new programs) of parts of the run."""
    parts: dict[str, list[Sample]] = {}
    for sample in samples:
        parts.setdefault(sample.part, []).append(sample)
    found, before = [], samples[0]
    for part, own in parts.items():
        ends = [SETTLED - 1, *(int(len(own) * q / 4) - 1 for q in (1, 2, 3))]
        if len(own) < 4 * SETTLED or part != "one shape":
            ends = []
        last = -1
        for end in [*sorted(ends), len(own) - 1]:
            after = own[end]
            programs = after.programs - (before.programs if last >= 0 or found else 0)
            found.append((part, last + 1, end, before.mib, after.mib, programs))
            before, last = after, end
    return found


def table(config: Config, samples: Sequence[Sample], together: Sequence[Together]) -> str:
    """Memory along the run, and what came of many processes."""
    lines = [
        [part, f"{first + 1}..{last + 1}", f"{after:.1f}", f"{after - before:+.1f}", f"{programs}"]
        for part, first, last, before, after, programs in stretches(samples)
    ]
    one = [s for s in samples if s.part == "one shape"]
    settled = one[min(SETTLED, len(one)) - 1]
    new = [s for s in samples if s.part == "new shapes"]
    programs = new[-1].programs - one[-1].programs
    growth = new[-1].mib - one[-1].mib
    processes = [
        [
            t.how, f"{t.processes}", " ".join(map(str, t.codes)), f"{t.encoded[0]}..{t.encoded[1]}",
            f"{t.equal} of {t.pictures}", f"{t.bad_looks} of {t.looks}", f"{t.leftovers}",
            f"{len(t.errors)}",
        ]
        for t in together
    ]  # fmt: skip
    change = one[-1].mib - settled.mib
    rows: list[Any] = [
        f"# Load: {len(one)} pictures of {config.side} x {config.side}, encoded and decoded one by "
        f"one in one process, {config.num_steps} steps",
        f"From picture {settled.picture + 1} to {len(one)}, memory changes by {change:+.1f} MiB, "
        f"{1024 * change / len(one):+.1f} KiB a picture. {len(new)} new shapes make {programs} new "
        f"programs and {growth:+.1f} MiB: {growth / max(programs, 1):.1f} MiB a program. JAX keeps "
        "every program that it compiled.",
        markdown(["pictures", "which", "MiB at the end", "change", "new programs"], lines),
        f"{config.processes} processes encode {config.shared} pictures to one folder:",
        markdown(
            ["how", "processes", "exit codes", "times a picture was encoded",
             "files equal to a lone run's", "looks at a file that was not whole",
             "files left under a temporary name", "errors said"],
            processes,
        ),
    ]  # fmt: skip
    return "\n\n".join(rows) + "\n"


@dataclass(frozen=True)
class Options:
    """The command line."""

    config: Config = Config()
    output: Path = ROOT / "results" / "load"
    smoke: bool = False


def main(options: Options) -> Path:
    """Run, print the table; returns the run folder."""
    return common.show(run(SMOKE if options.smoke else options.config, options.output))


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
