"""How long do whole `inrjax encode` and `inrjax decode` commands take, and with what?

Claim: `encode` of a 768x512 picture starts its first step within 4 s of a cold process, within 2 s
where the programs were kept; `decode` takes under 0.8 s cold, under 60 ms warm, and under 3 s for a
picture of 2048 pixels.
Command: python -m experiments.benchmark_codec
Minutes: about 8 on 2 idle cores; ``--quick`` (width 32 alone, one turn) under one.
Expected: the tables in results/benchmark_codec/<config hash>/table.md.

Every number is of a fresh process that runs the command line; its public functions are wrapped to
read the clock between phases, and the phases add up to the whole. ``prepare`` is all between the
picture and the first step: shuffled points, tracing, compilation (or finding the kept program);
the first step begins one chunk of steps before the first report of progress. ``write`` includes
what the command checks: it decodes its own stream. Encoding runs twice: with an empty cache of
compiled programs, and with the cache that the first run left. The fit is short; its seconds are of
``num_steps`` steps, not of the default. ``warm`` is the best of ten further decodes in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import PIL.Image

from inrjax import datasets, results
from inrjax.images import write_image
from inrjax.types import Image

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Config:
    """What is timed. ``widths``: of MetaSiren; ``coin``: widths of COIN with 5 layers; ``sizes``:
    (height, width) of the picture; each command runs ``turns`` times, and the median counts."""

    widths: tuple[int, ...] = (32, 64, 104)
    coin: tuple[int, ...] = (30,)
    sizes: tuple[tuple[int, int], ...] = ((512, 768), (1365, 2048))
    num_steps: int = 300
    turns: int = 3


QUICK = Config(widths=(32,), coin=(), turns=1)
SMOKE = Config(widths=(), coin=(8,), sizes=((32, 48),), num_steps=102, turns=1)

ENCODE_PHASES = ("python", "imports", "read", "prepare", "fit", "code", "write", "exit")
DECODE_PHASES = ("python", "imports", "options", "decode", "write", "exit")

PROBE = """
import json, sys, time
started, target, verb = float(sys.argv[1]), sys.argv[2], sys.argv[3]
marks = [("python", time.time())]

def mark(name):
    marks.append((name, time.time()))

from inrjax import cli, codecs, images

if verb == "encode":
    import jax, inrjax.overfit

    def watched(encode):
        def watching(self, pictures, on_progress=None):
            mark("read")
            reports = []
            streams = encode(self, pictures, lambda done, total: reports.append(time.time()))
            chunks = sorted(b - a for a, b in zip(reports, reports[1:]))
            marks.append(("prepare", reports[0] - chunks[len(chunks) // 2]))
            marks.append(("fit", reports[-1]))
            mark("code")
            return streams
        return watching

    codecs.Coin.encode = watched(codecs.Coin.encode)
    codecs.MetaSiren.encode = watched(codecs.MetaSiren.encode)
else:
    decode = codecs.decode_stream

    def watching(*arguments):
        mark("options")
        image = decode(*arguments)
        mark("decode")
        return image

    codecs.decode_stream = watching
mark("imports")
code = cli.main(sys.argv[3:])
mark("write")
warm = []
if verb == "decode":
    stream = open(sys.argv[4], "rb").read()
    for _ in range(10):
        start = time.perf_counter()
        decode(stream)
        warm.append(time.perf_counter() - start)
from inrjax.machine import peak_memory

report = {"marks": marks, "warm": min(warm, default=None), "over": time.time()}
report["memory"] = peak_memory()
with open(target, "w") as file:
    json.dump(report, file)
sys.exit(code)
"""


def run_command(arguments: Sequence[str], cache: Path, phases: Sequence[str]) -> dict[str, float]:
    """Seconds of each phase of one command in a fresh process, of all of them (``whole``), and
    ``memory``, the process's peak in MiB; for decode, the seconds of a ``warm`` one too.

    Raises RuntimeError if the command fails.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "INRJAX_CACHE": str(cache)}
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary, "report.json")
        start = time.time()
        words = [sys.executable, "-c", PROBE, repr(start), str(report), *arguments]
        child = subprocess.Popen(
            words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert child.stderr is not None
        told = child.stderr.read()
        child.wait()
        end = time.time()
        if child.returncode:
            raise RuntimeError(f"inrjax {' '.join(arguments)} failed: {told}")
        found = json.loads(report.read_text("utf-8"))
    return seconds_of(found, start, end, phases) | {
        "memory": found["memory"] / 2**20,
        **({} if found["warm"] is None else {"warm": found["warm"]}),
    }


def seconds_of(
    found: Mapping[str, Any], start: float, end: float, phases: Sequence[str]
) -> dict[str, float]:
    """The seconds of each phase, which its mark ends, and of the ``whole``."""
    marks = dict(found["marks"])
    # Between its last mark and the end of the process, it also decoded for `warm`.
    marks["exit"] = marks["write"] + end - found["over"]
    ends = [marks[phase] for phase in phases]
    seconds = [b - a for a, b in zip([start, *ends[:-1]], ends, strict=True)]
    return dict(zip(phases, seconds, strict=True)) | {"whole": ends[-1] - start}


def measure(config: Config) -> list[dict[str, Any]]:
    """A row for each codec, size and command: the median over the turns of each number."""
    rows = []
    for height, width in config.sizes:
        picture = photograph(height, width)
        for name, options in codec_options(config).items():
            turns = [measure_once(picture, options) for _ in range(config.turns)]
            for command in turns[0]:
                every = [turn[command] for turn in turns]
                numbers = {key: median(one[key] for one in every) for key in every[0]}
                rows.append(
                    {"codec": name, "size": f"{width}x{height}", "command": command, **numbers}
                )
    return rows


def codec_options(config: Config) -> dict[str, list[str]]:
    """Name -> options of `inrjax encode`."""
    steps = ["--steps", str(config.num_steps)]
    return {
        **{f"MetaSiren {w}": ["--width", str(w), *steps] for w in config.widths},
        **{f"COIN 5x{w}": ["--codec", "coin", "--width", str(w), *steps] for w in config.coin},
    }


def photograph(height: int, width: int) -> Image:
    """A packaged photograph at this size."""
    coffee = PIL.Image.fromarray(datasets.packaged()["coffee"])
    return np.asarray(coffee.resize((width, height), PIL.Image.Resampling.BICUBIC))


def measure_once(picture: Image, options: Sequence[str]) -> dict[str, dict[str, float]]:
    """The three commands, one after the other, each in a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        source, stream, again, decoded, cache = (
            Path(temporary, name) for name in ("a.png", "a.inr", "b.inr", "a.png.png", "cache")
        )
        write_image(source, picture)

        def encode(target: Path) -> dict[str, float]:
            words = ["encode", str(source), "-o", str(target), *options]
            return run_command(words, cache, ENCODE_PHASES)

        measured = {"encode, nothing kept": encode(stream), "encode, programs kept": encode(again)}
        if stream.read_bytes() != again.read_bytes():
            raise RuntimeError("a program from the cache gave another file than a compiled one")
        words = ["decode", str(stream), "-o", str(decoded)]
        return measured | {"decode": run_command(words, cache, DECODE_PHASES)}


def table(config: Config, rows: Sequence[Mapping[str, Any]]) -> str:
    """The measured numbers as Markdown: one table for encode, one for decode."""
    encodes = [row for row in rows if row["command"] != "decode"]
    decodes = [row for row in rows if row["command"] == "decode"]
    until_first_step = ENCODE_PHASES[: ENCODE_PHASES.index("fit")]
    encode_lines = [
        [
            *(row[key] for key in ("codec", "size", "command")),
            *(f"{row[phase]:.2f}" for phase in ENCODE_PHASES),
            f"{row['whole']:.2f}",
            f"{sum(row[phase] for phase in until_first_step):.2f}",
            f"{row['memory']:.0f}",
        ]
        for row in encodes
    ]
    decode_lines = [
        [
            *(row[key] for key in ("codec", "size")),
            *(f"{row[phase]:.3f}" for phase in DECODE_PHASES),
            f"{row['whole']:.2f}",
            f"{1000 * row['warm']:.0f}",
            f"{row['memory']:.0f}",
        ]
        for row in decodes
    ]
    encode_header = [
        "codec", "size", "command", *(f"{phase} s" for phase in ENCODE_PHASES), "whole s",
        "before the first step s", "peak MiB",
    ]  # fmt: skip
    decode_header = [
        "codec", "size", *(f"{phase} s" for phase in DECODE_PHASES), "whole s", "warm ms",
        "peak MiB",
    ]  # fmt: skip
    return "\n\n".join(
        [
            f"# Whole commands, fits of {config.num_steps} steps, median of {config.turns}",
            markdown(encode_header, encode_lines),
            markdown(decode_header, decode_lines),
        ]
    )


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))


def run(config: Config, root: Path) -> Path:
    """Measure; returns the run folder, with rows.json, provenance.json and table.md."""
    folder = results.run_folder(root, config)
    results.write_json(folder / "provenance.json", results.provenance("cpu"))
    rows = measure(config)
    results.write_json(folder / "rows.json", rows)
    results.write_text(folder / "table.md", table(config, rows) + "\n")
    return folder


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run a command line; returns the run folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "benchmark_codec")
    parser.add_argument(
        "--turns", type=int, help="runs of each command, of which the median counts"
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--quick", action="store_true", help="width 32 alone, one turn")
    chosen.add_argument("--smoke", action="store_true", help="a tiny net on a tiny picture")
    options = parser.parse_args(arguments)
    config = QUICK if options.quick else SMOKE if options.smoke else Config()
    if options.turns is not None:
        config = replace(config, turns=options.turns)
    folder = run(config, options.output)
    print((folder / "table.md").read_text("utf-8"))
    return folder


if __name__ == "__main__":
    main()
