"""The audit of dependencies: what fails it, and that no answer is not taken for a good one."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import pytest

_spec = importlib.util.spec_from_file_location(
    "audit", Path(__file__).parents[1] / ".ci" / "audit.py"
)
assert _spec is not None and _spec.loader is not None
audit = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(audit)

GOOD = {"name": "a", "version": "1", "vulns": []}
SKIPPED = {"name": "b", "skip_reason": "Dependency not found on PyPI"}
MENDED = {"name": "c", "version": "1", "vulns": [{"id": "X-1", "fix_versions": ["1.1", "2"]}]}
OPEN = {"name": "d", "version": "1", "vulns": [{"id": "X-2", "fix_versions": []}]}


@pytest.mark.parametrize(
    ("packages", "failed", "words"),
    [
        ([GOOD], False, "1 of 1 packages were audited, 0 vulnerabilities"),
        ([GOOD, SKIPPED], False, "1 of 2 packages were audited"),
        ([SKIPPED, SKIPPED], False, "the index has no data on any of 2 packages"),
        ([], False, "no data"),
        ([GOOD, MENDED, OPEN], True, "c 1: X-1, mended in 1.1, 2"),
        ([GOOD, OPEN], False, "d 1: X-2, not mended in any version yet"),
    ],
)
def test_only_what_can_be_mended_fails(packages: list[Any], failed: bool, words: str) -> None:
    verdict = audit.judge({"dependencies": packages})
    assert verdict.failed == failed
    assert any(words in line for line in verdict.lines)


Done = subprocess.CompletedProcess


@pytest.mark.parametrize(
    ("answers", "code", "words"),
    [
        ([Done([], 1, "", "no route to the index")], 0, "cannot be installed: no route"),
        ([subprocess.TimeoutExpired([], 1)], 0, "no answer in 60 s"),
        ([Done([], 0, "", ""), Done([], 1, "", "connection refused")], 0, "connection refused"),
        ([Done([], 0, "", ""), Done([], 1, "<html>", "")], 0, "nothing was audited"),
        ([Done([], 0, "", ""), Done([], 1, '{"dependencies": []}', "")], 0, "no data"),
    ],
)
def test_without_an_answer_a_sentence_says_so(
    answers: list[Any],
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = iter(answers)

    def run(*_: Any, **__: Any) -> Any:
        answer = next(told)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(audit.subprocess, "run", run)
    assert audit.main() == code
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("audit: ") and words in line
