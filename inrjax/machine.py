"""What the machine lets this process use."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux shows the limits of a container."""


def cpu_count(cgroup: Path = CGROUP) -> int:
    """The cores that this process may use, at least 1: those of its affinity, or fewer if a
    container's quota of CPU time (in ``cgroup``, version 1 or 2) amounts to fewer."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota(cgroup))))


def _quota(cgroup: Path) -> float:
    """CPU seconds per second that the container may spend; inf if it has no limit."""
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        try:
            words = " ".join((cgroup / name).read_text() for name in files).split()
            quota, period = float(words[0].replace("max", "inf")), float(words[1])
        except (OSError, ValueError, IndexError):
            continue
        if quota > 0 and period > 0:  # version 1 says -1 for no limit
            return quota / period
    return math.inf
