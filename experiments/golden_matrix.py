"""Do the golden files decode alike under other versions of Python and of the libraries?

Claim: the symbols are exact and the pixels within one level under the oldest and the newest
versions that pyproject.toml allows, under each Python at hand, and where JAX is not installed.
Command: python -m experiments.golden_matrix
Minutes: 1 to 3 an environment, most of them pip's; it needs a package index.
Expected: every row of results/golden_matrix/<config hash>/table.md says passed.

Each row is a fresh environment in a temporary folder, with what tests/test_golden.py needs. That
file runs there, without its tests of damaged files; then the golden files are decoded once more and
compared with the stored pictures, value by value. ``--ends``: the lowest versions on Python 3.11
and the newest on the newest Python at hand alone, as CI does. ``--interpreters``: these
Pythons as they are, nothing is installed. ``--smoke``: the running Python alone. Ends with 1 if an
environment failed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from inrjax import results

ROOT = Path(__file__).parents[1]
PACKAGES = ("jax", "numpy", "constriction", "pillow", "imageio", "scikit-image")
"""What the test file and the fixtures beside it import, by the names of pyproject.toml."""

LOWEST_MINOR = 11
"""The lowest Python of pyproject.toml, 3.11."""


@dataclass(frozen=True)
class Config:
    """The rows: each Python under each of the choices of versions, ``lowest`` on the first only,
    since wheels of old versions are not made for new Pythons."""

    pythons: tuple[str, ...] = ("python3.11", "python3.12", "python3.13")
    newest: bool = True
    lowest: bool = True
    without_jax: bool = True


class Row(NamedTuple):
    """An environment: ``requirements`` as pip takes them; none for the running Python."""

    python: str
    choice: str
    requirements: tuple[str, ...] | None


def requirements(lowest: bool, without: Sequence[str] = ()) -> tuple[str, ...]:
    """The ranges of pyproject.toml, or the series of their lower ends (``numpy==2.0.*``)."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    ranges = {re.split(r"[<>=!~]", r)[0]: r for r in declared["dependencies"]}
    chosen = []
    for name in PACKAGES:
        if name in without:
            continue
        low = re.search(r">=([\d.]+)", ranges[name])
        assert low is not None, f"{name} has no lower end"
        exact = low[1].count(".") == 2
        chosen.append(f"{name}=={low[1]}{'' if exact else '.*'}" if lowest else ranges[name])
    return tuple(chosen)


def rows(config: Config) -> list[Row]:
    """What is run, for the Pythons that are at hand."""
    found = [path for python in config.pythons if (path := interpreter(python))]
    chosen = []
    if config.lowest and found:
        chosen.append(Row(found[0], "lowest", requirements(lowest=True)))
    if config.newest:
        chosen += [Row(python, "newest", requirements(lowest=False)) for python in found]
    if config.without_jax and found:
        bare = requirements(lowest=True, without=("jax",))
        chosen.append(Row(found[0], "lowest, without JAX", bare))
    return chosen


def ends() -> list[Row]:
    """The lowest versions on the lowest Python of the project, if that is at hand (for no other are
    there wheels of all of them), and the newest on the newest Python that has wheels of them."""
    newest = requirements(lowest=False)
    minors = range(LOWEST_MINOR, LOWEST_MINOR + 20)
    found = [path for minor in minors if (path := interpreter(f"python3.{minor}"))]
    with_wheels = next((path for path in reversed(found) if _has_wheels(path, newest)), None)
    chosen = [Row(with_wheels or sys.executable, "newest", newest)]
    if lowest := interpreter(f"python3.{LOWEST_MINOR}"):
        chosen.insert(0, Row(lowest, "lowest", requirements(lowest=True)))
    return chosen


def interpreter(python: str) -> str | None:
    """Its path if it works: the one of PATH, or else one that pyenv keeps, whose name on PATH is
    of a version that is not switched on."""
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    paths = [shutil.which(python), *sorted(kept.glob(f"*/bin/{python}"), reverse=True)]
    return next((str(path) for path in paths if path and _works(str(path))), None)


def _has_wheels(python: str, wanted: Sequence[str]) -> bool:
    """Whether pip finds a wheel of each package for this Python: none is installed."""
    dry = ["install", "--quiet", "--dry-run", "--ignore-installed", "--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "--python", python, *dry, *wanted]
    return subprocess.run(command, capture_output=True).returncode == 0


def _works(python: str) -> bool:
    """Whether it starts and can make environments: a name may be there without its Python."""
    path = shutil.which(python)
    if path is None:
        return False
    return subprocess.run([path, "-c", "import ensurepip"], capture_output=True).returncode == 0


MEASURE = """
import json, platform, sys
from importlib.metadata import PackageNotFoundError, version
import numpy as np
sys.path[:0] = ["tests", "."]
from golden import make
from inrjax.images import read_image
def of(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
levels, symbols, differing = 0, 0, 0
for path in make.paths():
    record = json.loads(path.with_suffix(".json").read_text("utf-8"))
    coded, image = make.decode(path)
    picture = read_image(path.with_suffix(".png")).image
    levels = max(levels, int(np.abs(image.astype(int) - picture).max()))
    differing += int((image != picture).sum())
    symbols += coded is None or make.sha256(coded.astype("<i4").tobytes()) == record["symbols"]
print(json.dumps({
    "Python": platform.python_version(),
    **{name: of(name) for name in PACKAGES},
    "files": len(make.paths()), "symbols exact": symbols,
    "largest difference": levels, "values that differ": differing,
    "JAX imported": "jax" in sys.modules,
}))
"""


def measure(row: Row) -> dict[str, Any]:
    """Make the environment, run the test file and the comparison there."""
    with tempfile.TemporaryDirectory(prefix="inrjax-matrix-") as folder:
        python = row.python
        if row.requirements is not None:
            python = str(Path(folder) / "bin" / "python")
            subprocess.run([row.python, "-m", "venv", folder], check=True)
            install = [python, "-m", "pip", "install", "--quiet", "--no-compile"]
            subprocess.run([*install, "pytest", "pytest-timeout", *row.requirements], check=True)
        # The fixtures set JAX up; the golden files need none of them.
        bare = [] if "JAX" not in row.choice else ["--noconftest"]
        command = [python, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", *bare]
        tested = _run([*command, "-k", "not refuse", "tests/test_golden.py"])
        summary = re.findall(r"\d+ (?:passed|failed|error|skipped)\w*", tested.stdout[-300:])
        if tested.returncode != 0:
            summary.append(f"exit code {tested.returncode}")
        program = MEASURE.replace("PACKAGES", repr(PACKAGES))
        measured = _run([python, "-c", program])
        values = json.loads(measured.stdout) if measured.returncode == 0 else {}
        if not values or tested.returncode != 0:
            print(tested.stdout[-3000:], tested.stderr[-1000:], measured.stderr[-2000:])
        return {"versions": row.choice, **values, "test file": ", ".join(summary) or "did not run"}


def problems(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each environment where something is not as it must be."""
    return [
        f"golden files, Python {one.get('Python', '?')}, versions {one['versions']}: {problem}"
        for one in measured
        if (problem := _problem(one))
    ]


def _problem(one: Mapping[str, Any]) -> str:
    if not re.fullmatch(r"\d+ passed(, \d+ skipped)?", one["test file"]):
        return f"the test file: {one['test file']}"
    if not one.get("files"):
        return "no file was compared"
    if one["symbols exact"] != one["files"]:
        return f"the symbols of {one['files'] - one['symbols exact']} files differ"
    largest = one["largest difference"]
    return f"pixels differ by {largest} levels, 1 is allowed" if largest > 1 else ""


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "INRJAX_INITS": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def table(measured: Sequence[Mapping[str, Any]]) -> str:
    """One line an environment."""
    header = list(dict.fromkeys(key for one in measured for key in one))
    lines = [header, ["---"] * len(header)]
    lines += [[str(one.get(key, "-")) for key in header] for one in measured]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        "# The golden files under other versions\n\n"
        "Symbols must be exact, and pixels within one level of the stored pictures; the values "
        f"that differ at all are counted. Decoding does not import JAX.\n\n{text}\n"
    )


@dataclass(frozen=True)
class Options:
    """The command line."""

    config: Config = Config()
    output: Path = ROOT / "results" / "golden_matrix"
    interpreters: tuple[Path, ...] = ()
    ends: bool = False
    smoke: bool = False


def main(options: Options) -> Path:
    """Measure each environment, print the table; returns the run folder.

    Raises:
        SystemExit: a golden file does not decode as it must; the message says where.
    """
    there = (Path(sys.executable),) if options.smoke else options.interpreters
    config = Config((), False, False, False) if there or options.ends else options.config
    folder = results.run_folder(options.output, config)
    chosen = [Row(str(path), "as installed", None) for path in there]
    chosen = chosen or (ends() if options.ends else rows(config))
    measured = []
    for row in chosen:  # an environment takes minutes: what is done is kept
        measured.append(measure(row))
        results.write_json(folder / "rows.json", measured)
        results.write_json(folder / "provenance.json", results.provenance("cpu"))
        results.write_text(folder / "table.md", table(measured))
    print((folder / "table.md").read_text("utf-8"))
    if found := problems(measured):
        raise SystemExit("\n".join(found))
    return folder


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
