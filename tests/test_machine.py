"""What a process may use: affinity and container quotas; and memory that it keeps."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from inrjax.machine import cpu_count, keep_buffers


def limits(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 4),
        ({"cpu.max": "max 100000\n"}, 4),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "800000 100000\n"}, 4),
        ({"cpu.max": "who knows"}, 4),
        ({"cpu.max": ""}, 4),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
    ],
)
def test_a_quota_lowers_the_count(tmp_path, monkeypatch, files, cores) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 3, 5}, raising=False)
    assert cpu_count(limits(tmp_path, files)) == cores


def test_without_affinity_all_cores_count(tmp_path, monkeypatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert cpu_count(tmp_path) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu_count(tmp_path) == 1


@pytest.fixture
def allocator_as_it_is(monkeypatch) -> None:
    """No setting of glibc's allocator in the environment."""
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(name)


def new_pages(keeps: bool) -> tuple[bool, int]:
    """What `keep_buffers` says in a fresh process, if it is called, and the pages that a block of
    64 MiB costs there, on a thread of its own after one like it was freed on it."""
    script = f"""
import ctypes, resource, threading
from inrjax.machine import keep_buffers
kept = {keeps} and keep_buffers()
libc, pages = ctypes.CDLL(None), []
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def use():
    for _ in range(2):
        start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = libc.malloc(1 << 26)
        ctypes.memset(block, 1, 1 << 26)
        libc.free(block)
        pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
thread = threading.Thread(target=use)
thread.start()
thread.join()
print(int(kept), pages[1])
"""
    path = os.pathsep.join(path for path in sys.path if path)
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert run.returncode == 0, run.stderr
    kept, pages = run.stdout.split()
    return bool(int(kept)), int(pages)


@pytest.mark.usefixtures("allocator_as_it_is")
def test_a_large_block_that_was_freed_costs_no_new_page_under_glibc() -> None:
    kept, pages = new_pages(keeps=True)
    assert kept == (platform.libc_ver()[0] == "glibc")
    if kept:  # no other C library has settings to keep memory by
        assert pages < (1 << 26) // os.sysconf("SC_PAGE_SIZE") / 100
        assert pages < new_pages(keeps=False)[1]


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_the_user_s_own_settings_stay(monkeypatch, name) -> None:
    monkeypatch.setenv(name, "2")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("something was set"))
    assert not keep_buffers()


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
@pytest.mark.usefixtures("allocator_as_it_is")
def test_another_c_library_is_left_alone(monkeypatch, error) -> None:
    def load(_: None) -> SimpleNamespace:
        if error is AttributeError:
            return SimpleNamespace()
        raise error

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert not keep_buffers()
