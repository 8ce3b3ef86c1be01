"""The layers of inrjax, read from its source: imports point down only, and only the CLI prints."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Higher may import lower, never the reverse and never sideways. The package itself is below
# everything: importing any module runs it, so it imports nothing of its own.
LAYERS = {
    "inrjax": 0,
    "inrjax.types": 0,
    "inrjax.trees": 0,
    "inrjax.machine": 0,
    "inrjax.ledger": 0,
    "inrjax.imagefile": 1,
    "inrjax.images": 1,
    "inrjax.metrics": 1,
    "inrjax.entropy": 1,
    "inrjax.bitstream": 1,
    "inrjax.fit": 1,
    "inrjax.checkpoint": 1,
    "inrjax.distributed": 1,
    "inrjax.optimizers": 1,
    "inrjax.nets": 1,
    "inrjax.datasets": 2,
    "inrjax.quantize": 2,
    "inrjax.product_quantization": 2,
    "inrjax.meta": 2,
    "inrjax.init": 2,
    "inrjax.base": 2,
    "inrjax.context": 2,
    "inrjax.decoding": 3,
    "inrjax.overfit": 3,
    "inrjax.modulation": 3,
    "inrjax.grids": 3,
    "inrjax.gridfit": 3,
    "inrjax.codecs": 4,
    "inrjax.metatrain": 4,
    "inrjax.basetrain": 4,
    "inrjax.gridtrain": 4,
    "inrjax.results": 4,
    "inrjax.compare": 5,
    "inrjax.evaluate": 5,
    "inrjax.published": 5,
    "inrjax.ratecontrol": 5,
    "inrjax.plots": 6,
    "inrjax.report": 6,
    "inrjax.runs": 6,
    "inrjax.quickstart": 7,
    "inrjax.cli": 8,
    "inrjax.__main__": 9,
}
FAMILIES = ("inrjax.nets", "inrjax.codecs")  # every file inside has the layer of its package
ALLOWED_SIDEWAYS = {  # (net, part it is built from)
    ("inrjax.nets.siren", "inrjax.nets.sine"),
    ("inrjax.nets.fused", "inrjax.nets.sine"),
    ("inrjax.nets.fused", "inrjax.nets.siren"),
}
OUTSIDE = ("experiments", "tests", "notebooks")
ENTRY_POINT = "inrjax.cli"  # the only module that prints or exits, but for what starts it
HEAVY = ("jax", "flax", "optax", "matplotlib", "scipy", "skimage")


def sources(root: Path) -> dict[str, str]:
    """Module name -> source text of every file of the package under ``root``."""
    found = {}
    for path in sorted((root / "inrjax").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text("utf-8")
    return found


def layer(module: str) -> int | None:
    """The layer of a module of inrjax; None if it is in no table."""
    family = next((name for name in FAMILIES if module.startswith(f"{name}.")), module)
    return LAYERS.get(family)


def absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """The dotted name that a from-import starts from, its leading dots resolved."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    base = parts[: len(parts) - node.level + is_package]
    return ".".join([*base, *([node.module] if node.module else [])])


def imported(tree: ast.AST, module: str, modules: dict[str, str]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import anywhere in a module, inside functions too."""
    is_package = any(name.startswith(f"{module}.") for name in modules)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, module, is_package)
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield node.lineno, name if name in modules else base
        elif isinstance(node, ast.Call) and called(node).endswith("import_module") and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield node.lineno, first.value


def called(node: ast.Call) -> str:
    """The dotted text of what a call calls (``sys.exit``)."""
    return ast.unparse(node.func)


def may_import(importer: str, target: str) -> bool:
    """Whether the layers allow one module of inrjax to import another."""
    if target == "inrjax":
        return True
    if target.startswith(f"{importer}.") and importer in FAMILIES:
        return True  # a package collects its own files
    upper, lower = layer(importer), layer(target)
    return upper is not None and lower is not None and upper > lower


def import_errors(module: str, tree: ast.AST, modules: dict[str, str]) -> Iterator[str]:
    """One sentence for each import of a module that the layers forbid."""
    for line, name in imported(tree, module, modules):
        top = name.split(".")[0]
        if top in OUTSIDE:
            yield f"{module}:{line} imports {name}: nothing in inrjax imports {top}/"
        elif top != "inrjax" or may_import(module, name) or (module, name) in ALLOWED_SIDEWAYS:
            continue
        elif layer(name) is not None:
            yield (
                f"{module}:{line} (layer {layer(module)}) imports {name} (layer {layer(name)}): "
                "imports point down only; move the shared part to a lower layer, or pass it in"
            )


def output_errors(module: str, tree: ast.AST) -> Iterator[str]:
    """One sentence for each print or exit outside the entry point."""
    if module in (ENTRY_POINT, "inrjax.__main__"):
        return
    for node in ast.walk(tree):
        name = called(node) if isinstance(node, ast.Call) else ""
        if name in ("print", "exit", "quit", "sys.exit", "os._exit", "SystemExit"):
            yield f"{module}:{node.lineno} calls {name}: only {ENTRY_POINT} prints and exits"


def check(modules: dict[str, str]) -> list[str]:
    """Every violation in a package given as module name -> source text."""
    errors = []
    for module, source in modules.items():
        if layer(module) is None:
            errors.append(
                f"{module} is in no layer: add it to LAYERS in tests/test_layers.py and to the "
                "table in CONTRIBUTING.md, or move it to nets/ or codecs/"
            )
        tree = ast.parse(source)
        errors += [*import_errors(module, tree, modules), *output_errors(module, tree)]
    return errors


def test_the_package_keeps_its_layers() -> None:
    modules = sources(ROOT)
    assert "inrjax.types" in modules
    assert check(modules) == []


def test_every_module_of_the_table_is_in_contributing() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    rows = {line.split()[0]: line for line in text.splitlines() if line[4:5].isdigit()}
    for module, number in LAYERS.items():
        name = module.removeprefix("inrjax.")
        assert module == "inrjax" or name in rows[str(number)].replace("/*", "").replace(",", "")


BAD = {
    "down at the top of a file": ("inrjax.fit", "from inrjax.codecs import Coin"),
    "inside a function": ("inrjax.fit", "def f():\n    import inrjax.evaluate"),
    "by a relative name": ("inrjax.nets.siren", "from ..plots import rd_figure"),
    "by a relative module": ("inrjax.codecs.inr", "from . import classic"),
    "by importlib": ("inrjax.types", "import importlib\nimportlib.import_module('inrjax.cli')"),
    "a sibling codec": ("inrjax.codecs.inr", "from inrjax.codecs import classic"),
    "its own package": ("inrjax.codecs.inr", "from inrjax.codecs import decode_stream"),
    "a sibling net": ("inrjax.nets.siren", "from inrjax.nets.modulated import Film"),
    "the same layer": ("inrjax.results", "import inrjax.codecs.inr"),
    "under TYPE_CHECKING": ("inrjax.trees", "if TYPE_CHECKING:\n    from inrjax import types"),
    "experiments": ("inrjax.plots", "from experiments.kodak_rd import run"),
    "tests": ("inrjax.cli", "def f():\n    import tests.conftest"),
    "an unlisted file": ("inrjax.helpers", ""),
    "an unlisted package": ("inrjax.tools.sort", ""),
    "print": ("inrjax.fit", "print('done')"),
    "exit": ("inrjax.evaluate", "import sys\nsys.exit(1)"),
    "SystemExit": ("inrjax.quickstart", "raise SystemExit(1)"),
}
GOOD = {
    "a layer below": ("inrjax.evaluate", "from inrjax import codecs, metrics"),
    "the package": ("inrjax.results", "import inrjax\nfrom inrjax import __version__"),
    "its own files": ("inrjax.codecs", "from .inr import Coin\nfrom inrjax.codecs import classic"),
    "others": ("inrjax.types", "import numpy as np\nfrom jax import numpy as jnp"),
    "printing": ("inrjax.cli", "import sys\nfrom inrjax import quickstart\nprint()\nsys.exit(0)"),
}
KNOWN = dict.fromkeys([*LAYERS, "inrjax.codecs.classic", "inrjax.nets.modulated"], "")


@pytest.mark.parametrize("case", BAD)
def test_the_check_finds(case: str) -> None:
    module, source = BAD[case]
    assert [error for error in check({**KNOWN, module: source}) if error.startswith(module)]


@pytest.mark.parametrize("case", GOOD)
def test_the_check_allows(case: str) -> None:
    module, source = GOOD[case]
    assert check({**KNOWN, module: source}) == []


@pytest.mark.parametrize("statement", ["import inrjax", "import inrjax.codecs"])
def test_importing_is_cheap_and_changes_no_environment(statement: str) -> None:
    program = f"""
import json, os, sys
before = dict(os.environ)
{statement}
print(json.dumps([sorted(set({HEAVY}) & set(sys.modules)), before == dict(os.environ)]))
"""
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(output) == [[], True]
