"""The benchmarks run, and what they time is the same fit. Nothing here measures time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import photograph

from experiments import benchmark_fit
from inrjax.nets.siren import Encoding, Siren


@pytest.mark.parametrize(
    "net",
    [Siren(28, 3), Siren(9, 2), Siren(64, 2, encoding=Encoding())],
    ids=["28", "9", "encoded"],
)
def test_the_fast_and_the_naive_program_give_the_same_losses(net: Siren) -> None:
    image = photograph(60, 64)
    num_steps = 30
    naive = benchmark_fit.naive_losses(net, image, num_steps, seed=3)
    [fast] = benchmark_fit.ours(net, [image], seed=3)(num_steps)
    assert naive[-1] < 0.95 * naive[0]
    np.testing.assert_allclose(fast.losses, naive, rtol=2e-4)


@pytest.mark.unoptimized
def test_benchmark_fit_smoke(tmp_path: Path) -> None:
    folder = benchmark_fit.main(["--smoke", "--output", str(tmp_path)])
    assert folder is not None
    [row] = json.loads((folder / "rows.json").read_text())
    assert row["ours"] > 0 and row["naive"] > 0 and row["peak_gflops"] > 0
    assert row["gflops"] == pytest.approx(row["ours"] * 6 * (2 * 8 + 8 * 8 + 8 * 3) / 1e9)
    assert "| COIN 2x8 | 2 |" in (folder / "table.md").read_text()


def test_a_row_that_is_there_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = benchmark_fit.SMOKE
    measured = []

    def measure(config, name, net, batch):
        measured.append((name, batch))
        row = dict.fromkeys(["ours", "gflops", "peak_gflops", "naive"], 1.0)
        return {"net": name, "batch": batch, **row, "eager": None, "compiled": None, "missing": {}}

    monkeypatch.setattr(benchmark_fit, "measure", measure)
    benchmark_fit.run(config, tmp_path)
    benchmark_fit.run(config, tmp_path)
    assert measured == [("COIN 2x8", 2)]


def test_the_cost_of_a_row_is_compilation_and_memory() -> None:
    config = benchmark_fit.Config(side=16)
    costs = benchmark_fit.cost(config, "COIN 5x30", 1)
    assert costs["compile_seconds"] > 0 and costs["peak_mib"] > 50
