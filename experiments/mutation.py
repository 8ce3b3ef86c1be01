"""Do the tests notice every wrong operator, constant and comparison of the container and the coder?

Claim: of the mutants of inrjax/bitstream.py and inrjax/entropy.py, 85 % or more are killed by the
tests of these two modules, of the second decoder and of the limits.
Command: nice -n 19 python -m experiments.mutation
Minutes: about 25 on 2 free cores. A stopped run goes on: mutants that have an outcome are kept.
Expected: results/mutation/<config hash>/table.md, which lists all that survived.

A mutant is a module with one place changed: an operator, a comparison, `and` or `or`, a `not` or a
minus, a number, a byte string, an error that is not raised. Texts, messages and annotations stay as
they are. Each is tested by a process of its own, forked from one that has imported the libraries
but nothing of inrjax, over a copy of the package of which the other files are links. It is killed
if a test fails, or if its CPU time or memory runs out. Quick tests come first; what survives them
meets the others. Known libraries of this kind were left out for their cost: they start a fresh
interpreter, which imports JAX, for each of several thousand mutants, or fork one that runs JAX.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro

ROOT = Path(__file__).parents[1]
MODULES = ("bitstream", "entropy")
LIBRARIES = (
    "pytest", "hypothesis", "jax.numpy", "scipy.stats", "scipy.ndimage", "constriction",
    "imageio.v3", "PIL.Image", "jaxtyping", "beartype",
)  # fmt: skip

# What a mutant of a module meets, quick tests first: arguments of pytest.
PHASES = {
    "bitstream": (
        ("tests/test_bitstream.py",),
        ("tests/test_reference.py", "tests/test_limits.py"),
    ),
    "entropy": (
        ("tests/test_entropy.py", "-k", "not test_bits_"),
        ("tests/test_reference.py", "tests/test_limits.py"),
    ),
}
# The only functions that JAX runs, whose tests take the longest.
SLOW = {("entropy", "bits"): (("tests/test_entropy.py", "-k", "test_bits_"),)}


@dataclass(frozen=True)
class Config:
    """``source``: of the code and of the tests that are run, filled in; ``seconds``: of CPU for
    each of the two runs of tests; ``memory``: bytes of address space; ``share``: of the mutants
    that is drawn, by the seed."""

    source: tyro.conf.Suppress[str] = ""
    seconds: int = 120
    memory: int = 16 << 30
    share: float = 1.0
    seed: int = 0


# ---------------------------------------------------------------------------- mutants


class Mutant(NamedTuple):
    """``place``: line and column; ``before`` and ``after``: the code that changes."""

    module: str
    function: str
    place: str
    before: str
    after: str
    source: str

    @property
    def key(self) -> str:
        """A name that is the same in every run."""
        return f"{self.module}:{self.place} {self.before} -> {self.after}"


_OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd, ast.MatMult: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def _changes(node: ast.AST) -> Iterator[Callable[[Any], ast.AST]]:
    """Functions that take a copy of the node and return what stands in its place."""

    def operator(copied: Any) -> ast.AST:
        copied.op = _OPERATORS[type(copied.op)]()
        return copied

    def constant(value: Any) -> Callable[[Any], ast.AST]:
        return lambda copied: ast.Constant(value)

    def comparison(i: int) -> Callable[[Any], ast.AST]:
        def change(copied: Any) -> ast.AST:
            copied.ops[i] = _OPERATORS[type(copied.ops[i])]()
            return copied

        return change

    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp):
        yield operator
    elif isinstance(node, ast.Compare):
        yield from map(comparison, range(len(node.ops)))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield lambda copied: copied.operand
    elif isinstance(node, ast.Raise):
        yield lambda copied: ast.Pass()
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield constant(not node.value)
        elif isinstance(node.value, int | float):
            yield constant(node.value + 1)
        elif isinstance(node.value, bytes):
            yield constant(node.value + b"!")


def _sites(node: ast.AST, function: str = "") -> Iterator[tuple[ast.AST, str, Any, ast.AST, str]]:
    """(parent, field, index or None, node, function) of all that may change, in one fixed order."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns") or isinstance(node, ast.JoinedStr):
            continue  # no code, or a message
        children = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
        for index, child in children:
            if not isinstance(child, ast.AST):
                continue
            name = child.name if isinstance(child, ast.FunctionDef) else function
            yield node, field, index, child, name
            if not isinstance(child, ast.Raise):  # what it says is a message
                yield from _sites(child, name)


def mutants(module: str) -> list[Mutant]:
    """All mutants of a module of inrjax."""
    tree = ast.parse((ROOT / "inrjax" / f"{module}.py").read_text("utf-8"))
    found = []
    for parent, field, index, node, function in list(_sites(tree)):
        for change in _changes(node):
            after = ast.fix_missing_locations(ast.copy_location(change(copy.deepcopy(node)), node))
            holder = getattr(parent, field)

            def put(value: ast.AST, parent=parent, field=field, index=index, holder=holder) -> None:
                if index is None:
                    setattr(parent, field, value)
                else:
                    holder[index] = value

            put(after)
            source = ast.unparse(tree)
            put(node)
            texts = (ast.unparse(node), ast.unparse(after))
            place = f"{node.lineno}:{node.col_offset}"  # pyright: ignore[reportAttributeAccessIssue]
            found.append(Mutant(module, function, place, *texts, source))
    return found


# ---------------------------------------------------------------------------- one of them


def run_tests(mutant: Mutant, config: Config) -> str:
    """What became of a mutant: ``killed``, ``killed by a limit``, or ``survived``."""
    phases = SLOW.get((mutant.module, mutant.function), PHASES[mutant.module])
    for arguments in phases:
        with tempfile.TemporaryDirectory() as name:
            package = Path(name, "inrjax")
            package.mkdir()
            for path in (ROOT / "inrjax").iterdir():
                if path.name not in ("__pycache__", f"{mutant.module}.py"):
                    os.symlink(path, package / path.name)
            (package / f"{mutant.module}.py").write_text(mutant.source, "utf-8")
            status = _forked(arguments, Path(name), config)
        if os.WIFSIGNALED(status):
            return "killed by a limit"
        if os.waitstatus_to_exitcode(status):
            return "killed"
    return "survived"


def _forked(arguments: Sequence[str], folder: Path, config: Config) -> int:
    """The status of a process that runs pytest over the package in a folder."""
    if child := os.fork():
        return _wait(child, config)
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (config.seconds, config.seconds))
        resource.setrlimit(resource.RLIMIT_AS, (config.memory, config.memory))
        output = os.open(os.devnull, os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(ROOT)
        os.environ |= {"PYTHONPATH": str(folder), "HYPOTHESIS_STORAGE_DIRECTORY": str(folder)}
        sys.path[:] = [str(folder), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
        sys.dont_write_bytecode = True
        import pytest

        options = ("-x", "-q", "-o", "addopts=", "-p", "no:xdist", "-p", "no:cacheprovider")
        os._exit(int(pytest.main([*options, "--hypothesis-seed=0", *arguments])))
    finally:
        os._exit(70)


def _wait(child: int, config: Config) -> int:
    """The child's status. What waits for ever uses no CPU, and is ended by the clock."""
    end = time.monotonic() + 10 * config.seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.02)


# ---------------------------------------------------------------------------- all of them


def source_digest() -> str:
    """Of the modules, of the tests that they meet, and of this file."""
    tests = {a for p in (*PHASES.values(), *SLOW.values()) for ph in p for a in ph if "/" in a}
    paths = [*(ROOT / "inrjax" / f"{m}.py" for m in MODULES), *(ROOT / t for t in sorted(tests))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


def run(config: Config, chosen: list[Mutant], folder: Path, workers: int) -> None:
    """Test the mutants that have no outcome yet, and write the table."""
    for name in LIBRARIES:  # once, in the process that is forked; nothing of them runs here
        __import__(name)
    noted = folder / "outcomes.jsonl"
    done = outcomes(noted)
    unchanged = [m for m in MODULES if _survives_unchanged(m, config)] if not done else [*MODULES]
    if unchanged != [*MODULES]:
        raise SystemExit(f"the tests fail without any change: only {unchanged} pass")
    waiting = [mutant for mutant in chosen if mutant.key not in done]
    children = []
    for worker in range(workers):
        if not (child := os.fork()):
            for mutant in waiting[worker::workers]:
                line = json.dumps([mutant.key, mutant.function, run_tests(mutant, config)])
                with noted.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    from inrjax import results  # not before the fork

    results.write_text(folder / "table.md", table(outcomes(noted), chosen))


def _survives_unchanged(module: str, config: Config) -> bool:
    source = (ROOT / "inrjax" / f"{module}.py").read_text("utf-8")
    return run_tests(Mutant(module, "", "", "", "", source), config) == "survived"


def outcomes(path: Path) -> dict[str, str]:
    """Mutant's key -> outcome, of a run so far."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return {key: outcome for key, _, outcome in map(json.loads, lines)}


def table(found: dict[str, str], chosen: Sequence[Mutant]) -> str:
    """Markdown: how many were killed, and the survivors."""
    from experiments.kodak_rd import markdown

    rows = []
    for module in (*MODULES, "both"):
        own = [found[m.key] for m in chosen if m.key in found and module in (m.module, "both")]
        often = Counter(own)
        killed = often["killed"] + often["killed by a limit"]
        share = f"{100 * killed / max(1, len(own)):.1f} %"
        rows.append([module, f"{len(own)}", f"{killed}", f"{often['killed by a limit']}", share])
    survivors = [
        [f"{m.module}.{m.function}", m.place, f"`{m.before}`", f"`{m.after}`"]
        for m in chosen
        if found.get(m.key) == "survived"
    ]
    header = ["module", "mutants", "killed", "of these by a limit", "share"]
    return (
        "# Mutants of the container and the coder\n\n"
        f"{len(found)} of {len(chosen)} tested.\n\n{markdown(header, rows)}\n\n"
        f"## Survivors\n\n{markdown(['where', 'line', 'was', 'became'], survivors)}\n"
    )


# ---------------------------------------------------------------------------- command line


@dataclass(frozen=True)
class Options:
    """The command line."""

    config: Config = Config()
    output: Path = ROOT / "results" / "mutation"
    workers: int = 2
    """Processes."""
    smoke: bool = False
    """A few mutants."""


def main(options: Options) -> Path:
    """Run, print the table; returns the run folder."""
    config = dict(vars(options.config), source=source_digest())
    if options.smoke:
        config["share"] = 0.01
    own = Config(**config)
    every = [mutant for module in MODULES for mutant in mutants(module)]
    drawn = random.Random(own.seed).sample(every, max(1, round(own.share * len(every))))
    folder = options.output / _folder_name(own)
    folder.mkdir(parents=True, exist_ok=True)
    run(own, sorted(drawn, key=every.index), folder, options.workers)
    _note(own, folder)
    print((folder / "table.md").read_text("utf-8"))
    return folder


def _folder_name(config: Config) -> str:
    # As inrjax.results.config_hash does it, which may not be imported before the fork.
    values = {"type": "Config", **vars(config)}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _note(config: Config, folder: Path) -> None:
    """The config and what made the result; only now may inrjax be imported."""
    from inrjax import results

    assert results.run_folder(folder.parent, config) == folder
    results.write_json(folder / "provenance.json", results.provenance("cpu"))


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
