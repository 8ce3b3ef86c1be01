"""What the machine lets this process use, and what it has used."""

from __future__ import annotations

import ctypes
import math
import os
import sys
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


def peak_memory() -> int:
    """The most bytes of memory that this process has held at once, its program's alone.

    On Linux not what getrusage or wait4 say: theirs begins with the memory of the process that
    started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text("utf-8").split("VmHWM:")[1].split()[0]) * 2**10
    import resource

    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keep_buffers() -> bool:
    """Have this process keep the large blocks of memory that it frees; whether it will.

    XLA allocates the buffers of each run of a program anew. glibc gives large blocks back to the
    kernel in between, which must clear each of their pages again: a fifth of the time of a fit of
    `latent-grid` (docs/scaling.md). Then the process holds, until it ends, the most that it ever
    needed, and somewhat more, since blocks are cut otherwise. Only before JAX has computed
    anything: its threads take another arena otherwise, which cannot keep large blocks.

    Nothing is done where the C library is not glibc, and for who has set one of glibc's own
    variables for its allocator (MALLOC_ARENA_MAX and the like, GLIBC_TUNABLES).
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS; TypeError: Windows
        return False
    return all(mallopt(option, value) for option, value in _KEEPING.items())


_KEEPING = {-8: 1, -4: 0, -1: -1}
"""M_ARENA_MAX, M_MMAP_MAX and M_TRIM_THRESHOLD of glibc's malloc.h: one arena, no block that is
mapped by itself, and nothing that is given back at the end of the arena."""


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
