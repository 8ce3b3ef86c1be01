"""Is a package that is installed here known to be vulnerable, and is there a version that is not?

    python .ci/audit.py

pip-audit (Apache-2.0, 60 MB with what it needs) is installed into a folder that is deleted again,
and asks the package index about every package of this environment. Ends with 1 if one has a known
vulnerability that another version mends. Where the answer cannot be had in time, one sentence says
so, and the exit code is 0: a change must not wait for a service.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

SECONDS = 60.0
"""Of wall time, installing pip-audit included."""

REQUIREMENT = "pip-audit>=2.9,<3"


class Verdict(NamedTuple):
    """What to say, and whether the audit failed."""

    lines: list[str]
    failed: bool


def main() -> int:
    """Audit this environment; returns the exit code."""
    try:
        report = audit(time.monotonic() + SECONDS)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(f"audit: nothing was audited ({reason(error)})")
        return 0
    verdict = judge(report)
    print(*(f"audit: {line}" for line in verdict.lines), sep="\n")
    return int(verdict.failed)


def audit(deadline: float) -> Mapping[str, Any]:
    """pip-audit's report on this environment.

    Raises SubprocessError if it cannot be installed or takes too long, ValueError if it reports
    nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        install = ["pip", "install", "--quiet", "--no-compile", "--target", folder, REQUIREMENT]
        started(install, dict(os.environ), deadline).check_returncode()
        options = ["--path", sysconfig.get_path("purelib"), "--skip-editable", "--format", "json"]
        environment = {**os.environ, "PYTHONPATH": folder}
        command = ["pip_audit", *options, "--progress-spinner", "off", "--timeout", "5"]
        done = started(command, environment, deadline)
    if not done.stdout.strip():  # a service that does not answer; a vulnerability ends with 1, too
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ValueError(said[-1])
    return json.loads(done.stdout)


def started(
    module: list[str], environment: Mapping[str, str], deadline: float
) -> subprocess.CompletedProcess[str]:
    """``python -m`` with a time limit."""
    return subprocess.run(
        [sys.executable, "-m", *module], env=environment, capture_output=True, text=True,
        timeout=max(0.1, deadline - time.monotonic()),
    )  # fmt: skip


def reason(error: Exception) -> str:
    """An error in a few words."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no answer in {SECONDS:.0f} s"
    if isinstance(error, subprocess.CalledProcessError):
        said = (error.stderr or "").strip().splitlines() or [str(error)]
        return f"pip-audit cannot be installed: {said[-1]}"
    return str(error)


def judge(report: Mapping[str, Any]) -> Verdict:
    """What a report in pip-audit's JSON format means.

    pip-audit passes over a package that the service does not know, and then says that nothing was
    found; an index that has no data on vulnerabilities knows none.
    """
    packages = report["dependencies"]
    audited = [package for package in packages if "skip_reason" not in package]
    if not audited:
        return Verdict([f"the index has no data on any of {len(packages)} packages"], False)
    lines, failed = [], False
    for package in audited:
        for found in package["vulns"]:
            fixes = ", ".join(found["fix_versions"])
            failed = failed or bool(fixes)
            remedy = f"mended in {fixes}" if fixes else "not mended in any version yet"
            lines.append(f"{package['name']} {package['version']}: {found['id']}, {remedy}")
    count = f"{len(audited)} of {len(packages)} packages were audited"
    return Verdict([*lines, f"{count}, {len(lines)} vulnerabilities found"], failed)


if __name__ == "__main__":
    sys.exit(main())
