"""The list of what was made how: whole lines of many processes, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from inrjax import ledger

ROOT = Path(__file__).parents[1]
ADD = """
import sys
from pathlib import Path
from inrjax import ledger
for i in range(200):
    ledger.add(Path(sys.argv[1]), ledger.Entry(sys.argv[2], str(i), "{}" * 100))
"""


def test_eight_processes_lose_no_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ADD, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [subprocess.Popen([*command, str(i)], env=environment) for i in range(8)]
    assert [process.wait(timeout=120) for process in running] == [0] * 8
    expected = {ledger.Entry(str(p), str(i), "{}" * 100) for p in range(8) for i in range(200)}
    assert ledger.read(tmp_path) == expected


def test_a_line_cut_anywhere_is_passed_over_and_spoils_no_other(tmp_path: Path) -> None:
    first, second = ledger.Entry("a", "b", "c"), ledger.Entry("d", "e", "f")
    ledger.add(tmp_path, first)
    path = tmp_path / ledger.NAME
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        assert ledger.read(tmp_path) <= {first}
        ledger.add(tmp_path, second)
        assert second in ledger.read(tmp_path) <= {first, second}


def test_only_regular_files_have_digests(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**30 + 1)
    digest = ledger.digest_of_file(tmp_path / "empty")
    assert digest == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for name in ("sparse", "missing", "."):
        assert ledger.digest_of_file(tmp_path / name) is None


@pytest.mark.skipif(
    not hasattr(os, "mkfifo"),
    reason="Windows has no named pipes to find in a folder",
)
def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ledger.NAME)
    assert ledger.read(tmp_path) == set()
    assert ledger.digest_of_file(tmp_path / ledger.NAME) is None
    with pytest.raises(OSError):
        ledger.add(tmp_path, ledger.Entry("a", "b", "c"))
