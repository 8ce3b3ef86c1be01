"""Does a fuzzer that sees which branches run find what blind mutants do not?

Claim: atheris (libFuzzer), which keeps an input that reaches a new branch of the package and goes
on from it, finds none that `decode` or `info` answer with anything but an image or one
`BitstreamError`, within 10 s and 2 GiB an input: instrumented code is several times as slow.
Command: pip install atheris; python -m experiments.fuzz_guided --seconds 600
Minutes: as many as it is given, of one core.
Expected: no failure in results/fuzz_guided/<config hash>/table.md; else the input is kept beside.

It starts from the small golden streams. Each input is read as it is, and with the checksum that its
content asks for, so that what is behind the checksum is reached.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import common
from inrjax import results

ROOT = Path(__file__).parents[1]
MAX_BYTES = 2048
"""Of an input."""


@dataclass(frozen=True)
class Config:
    """How long, and from which seed."""

    seconds: int = 600
    seed: int = 1


def fuzz_here(corpus: Path, config: Config, failures: Path) -> None:
    """libFuzzer in this process, which it ends."""
    atheris: Any = importlib.import_module("atheris")  # no dependency: only this run needs it

    with atheris.instrument_imports(include=["inrjax"]):
        from experiments import fuzz
        from inrjax import bitstream
        from inrjax.types import BitstreamError

    bases = [base for base in fuzz.stream_bases() if base.kind == "inr"]
    by_tag = {bitstream.peek(base.data).tag: base for base in bases}

    def read(data: bytes) -> None:
        try:
            fuzz.decoded(data)
        except BitstreamError as error:
            fuzz.one_sentence(error)

    def one_input(data: bytes) -> None:
        read(data)
        try:
            base = by_tag.get(bitstream.peek(data).tag, bases[0])
        except BitstreamError:
            return
        repaired = fuzz.repair_inr(data, base)
        if repaired is not None:
            read(repaired)

    for i, base in enumerate(bases):
        (corpus / f"golden-{i}").write_bytes(base.data)
    options = [
        f"-max_total_time={config.seconds}", f"-seed={config.seed}", f"-max_len={MAX_BYTES}",
        "-timeout=10", "-rss_limit_mb=2048", f"-artifact_prefix={failures}/", str(corpus),
    ]  # fmt: skip
    atheris.Setup(["fuzz_guided", *options], one_input)
    atheris.Fuzz()


def told(output: str) -> tuple[int, int]:
    """Inputs read, and features (edges with counts) reached, of what libFuzzer printed; ValueError
    if it did not come to its end."""
    runs = re.search(r"Done (\d+) runs", output)
    reached = re.findall(r"\bft: (\d+)", output)
    if runs is None or not reached:
        raise ValueError(f"libFuzzer did not come to its end: {output[-2000:]}")
    return int(runs[1]), int(reached[-1])


def run(config: Config, root: Path) -> Path:
    """Fuzz in a child process and write table.md; returns the run folder.

    Raises:
        SystemExit: an input failed, and is kept in ``failures/``; or atheris is not installed.
    """
    from experiments.kodak_rd import markdown, note_provenance

    if importlib.util.find_spec("atheris") is None:
        raise SystemExit("atheris is not installed here: pip install atheris")
    folder = results.run_folder(root, config)
    note_provenance(folder)
    failures = folder / "failures"
    failures.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        child = f"--child {corpus} --seconds {config.seconds} --seed {config.seed}".split()
        done = subprocess.run(
            [sys.executable, "-m", "experiments.fuzz_guided", *child, "--output", str(folder)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "INRJAX_INITS": ""},
            capture_output=True,
            text=True,
        )
        new = sum(not path.name.startswith("golden-") for path in Path(corpus).iterdir())
    found = sorted(path.name for path in failures.iterdir())
    if found:
        raise SystemExit(f"{len(found)} failures, kept in {failures}: {done.stderr[-2000:]}")
    inputs, features = told(done.stderr)
    failures.rmdir()
    header = [
        "seconds", "seed", "inputs, each as it is and with its checksum repaired",
        "features of inrjax's code reached", "inputs that reached new ones", "failures",
    ]  # fmt: skip
    values = (config.seconds, config.seed, inputs, features, new, "none")
    table = markdown(header, [[str(value) for value in values]])
    results.write_text(folder / "table.md", f"# A fuzzer that sees the branches\n\n{table}\n")
    return common.show(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fuzz for ``--seconds``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=int, default=Config.seconds)
    parser.add_argument("--seed", type=int, default=Config.seed)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "fuzz_guided")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    config = Config(options.seconds, options.seed)
    if options.child:
        fuzz_here(options.child, config, options.output / "failures")
    else:
        run(config, options.output)


if __name__ == "__main__":
    main()
