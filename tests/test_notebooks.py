"""The notebooks run from top to bottom, draw, and are the same as script and as notebook."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from marks import slow_if

pytestmark = pytest.mark.unoptimized

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))

# Runs a script, and prints for each figure that it made how many pictures, lines and bars it holds.
RUN = """
import json, runpy, sys
from matplotlib.figure import Figure

figures, build = [], Figure.__init__

def build_and_note(figure, *args, **kwargs):
    figures.append(figure)
    build(figure, *args, **kwargs)

Figure.__init__ = build_and_note
runpy.run_path(sys.argv[1], run_name="__main__")
counts = []
for figure in figures:
    figure.canvas.draw()
    counts.append([sum(len(getattr(axes, kind)) for axes in figure.axes)
                   for kind in ("images", "lines", "patches")])
print("figures:", json.dumps(counts))
"""


@slow_if(lambda path: path != SCRIPTS[0], SCRIPTS, "script")
def test_a_notebook_runs_and_draws(script: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "INRJAX_SMOKE": "1",
        "MPLBACKEND": "Agg",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    environment.pop("INRJAX_DATA", None)  # they need no data beside the packaged photographs
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    label, _, counts = done.stdout.splitlines()[-1].partition(" ")
    drawn = json.loads(counts)
    assert label == "figures:" and len(drawn) >= 3
    assert all(sum(figure) > 0 for figure in drawn)
    images, lines, _ = map(sum, zip(*drawn, strict=True))
    assert images >= 3 and lines >= 1, "pictures and plots, not numbers alone"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_and_notebook_are_one(script: Path) -> None:
    jupytext = pytest.importorskip("jupytext")
    ours = jupytext.read(script)
    notebook = jupytext.read(script.with_suffix(".ipynb"))
    cells = [[(cell.cell_type, cell.source) for cell in nb.cells] for nb in (ours, notebook)]
    assert cells[0] == cells[1], f"run: jupytext --to ipynb --update {script.name}"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def test_every_notebook_has_its_script() -> None:
    stems = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert stems == {path.stem for path in SCRIPTS} and len(stems) >= 4
