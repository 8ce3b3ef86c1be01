"""Memory does not grow with the number of pictures; `experiments.load` does it a thousand times."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from experiments import load

pytestmark = pytest.mark.unoptimized


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory of a process is read from /proc")
def test_memory_is_flat_after_the_tenth_picture(tmp_path: Path) -> None:
    config = load.Config(num_images=40, side=8, num_shapes=1, largest=81, num_steps=2)
    samples = load.measure_memory(config, tmp_path)
    one = [sample for sample in samples if sample.part == "one shape"]
    assert len(one) == 40 and len(samples) == 42
    assert one[-1].mib - one[load.SETTLED - 1].mib < 8
    assert one[-1].programs == one[0].programs  # nothing is compiled twice


def test_shapes_are_all_different_and_reach_the_largest() -> None:
    config = load.Config()
    found = load.shapes(config)
    assert len(set(found)) == config.num_shapes == len(found)
    assert max(h * w for h, w in found) > 0.9 * config.largest


def test_stretches_cover_the_run_and_count_new_programs() -> None:
    one = [load.Sample("one shape", i, 100.0 + (i < 10) * i, 1) for i in range(80)]
    new = [load.Sample("new shapes", i, 110.0 + i, 2 + i) for i in range(3)]
    found = load.stretches([*one, *new])
    assert [(part, first, last) for part, first, last, *_ in found] == [
        ("one shape", 0, 9),
        ("one shape", 10, 19),
        ("one shape", 20, 39),
        ("one shape", 40, 59),
        ("one shape", 60, 79),
        ("new shapes", 0, 2),
    ]
    assert found[-1][3:] == (100.0, 112.0, 3)
