"""Killed, stopped, or without room: one sentence, nothing lost, no half file, and the same bytes.

`experiments.interruptions` does this two hundred times, on more commands; here are a few of each.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import photograph

from experiments import interruptions
from inrjax import checkpoint, cli, codecs, images, ledger, trees

pytestmark = pytest.mark.unoptimized

ROOT = Path(__file__).parents[1]
FAST = ("--width", str(codecs.inr.WIDTHS[0]), "--steps", "2")
SHAPE = (8, 7)

# As many devices as the tests have: on another number, XLA rounds otherwise.
COMMAND = """
import sys
import conftest
from inrjax import cli
cli._use_every_core = lambda: None
cli.BATCH_IMAGES = 1
{before}
sys.exit(cli.main())
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*arguments: str, before: str = "") -> subprocess.Popen[str]:
    """A command line in a process of its own."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(before=before), *arguments],
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores Ctrl-C, and what it starts does, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def save(count: int) -> list[str]:
    for i in range(count):
        images.write_image(f"{i}.png", photograph(*SHAPE, i))
    return [f"{i}.png" for i in range(count)]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != ledger.NAME
    }


# Kills


def test_a_killed_encode_loses_no_file_and_ends_with_the_same_bytes(here: Path) -> None:
    names = save(6)
    # From the second picture on a process takes 0.2 s for each: kills hit different moments.
    slow = "import time\nkeep = cli._keep\ncli._keep = lambda *a: (keep(*a), time.sleep(0.2))"
    process = start("encode", *names, "-o", "out/", *FAST, before=slow)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(np.random.default_rng().uniform(0, 0.4))  # another moment in every run of the tests
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert interruptions.problems_of(here / "out") == []
    kept = contents(here / "out")
    assert 1 <= len([name for name in kept if name[0] != "."]) < 6
    assert cli.main(["encode", *names, "-o", "out/", *FAST, "--resume"]) == 0
    assert cli.main(["encode", *names, "-o", "whole/", *FAST]) == 0
    whole = contents(here / "whole")
    assert kept.items() <= contents(here / "out").items()
    assert {n: d for n, d in contents(here / "out").items() if n[0] != "."} == whole
    assert len(whole) == 6

    # A file of the picture that had this name before is not kept: another one, of the same size.
    images.write_image("0.png", photograph(*SHAPE, 99))
    later = (here / "out" / "0.inr").stat().st_mtime_ns + 1
    os.utime("0.png", ns=(later, later))
    assert cli.main(["encode", *names, "-o", "out/", *FAST, "--resume"]) == 0
    made = contents(here / "out")
    assert made["0.inr"] != whole["0.inr"]
    assert all(made[name] == whole[name] for name in whole if name != "0.inr")


def test_the_experiment_finds_damage_and_loss(here: Path) -> None:
    """Its checks are not of the kind that cannot fail."""
    stream = (ROOT / "tests" / "golden" / "v1_coin.inr").read_bytes()
    (here / "a.inr").write_bytes(stream)
    (here / ".b.inr.x").write_bytes(b"half")  # as a kill leaves it, and nobody reads it
    before = interruptions.kept_of(here)
    assert interruptions.problems_of(here) == []
    assert interruptions.lost_of(before, here) == []
    assert interruptions.half_written(here) == 1
    for name, data in (
        ("a.inr", stream[:-1]),
        ("a.json", b"{"),
        ("rows.csv", b"codec"),
        ("a.pdf", b"%PDF-1.4"),
        ("init.npz", b"PK"),
        ("a.png", b"\x89PNG"),
    ):
        (here / name).write_bytes(data)
        [problem] = interruptions.problems_of(here)
        assert problem.startswith(name)
        (here / name).unlink()
    assert interruptions.lost_of(before, here) == ["lost: a.inr"]


def test_moments_are_named_by_what_is_under_way() -> None:
    def write_atomic() -> str:  # in another file: it is not that one
        return interruptions.phase_of(sys._getframe())

    assert write_atomic() == interruptions.OTHER
    assert interruptions.phase_of({}) == interruptions.OTHER  # no frame, as once was seen
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        note = interruptions.phase_of
        patch.setattr(trees.os, "replace", lambda *_: seen.append(note(sys._getframe())))
        trees.write_atomic(Path("a"), b"")
    assert seen == ["writes a file"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="CPU time of a process is read from /proc")
def test_the_experiment_s_smoke(tmp_path: Path) -> None:
    """In a process of its own: a process that has started JAX cannot be forked."""
    command = [sys.executable, "-m", "experiments.interruptions", "--smoke"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "run")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 of 2 kills, 1 of 1 times Ctrl-C" in done.stdout and "Problems: 0." in done.stdout


def test_what_is_noted_names_no_folder_of_this_machine() -> None:
    text = f'File "{np.__file__}", <f at 0x7fc42>; File "{tempfile.__file__}", line 1; {ROOT}/a'
    expected = 'File ".../numpy/__init__.py", <f at 0x...>; File ".../tempfile.py", line 1; .../a'
    assert interruptions.anywhere(text) == expected


# Ctrl-C


# A lock that is taken twice: foreign code which neither a signal nor Python's own flag ends, as
# XLA while it compiles or computes, and which takes no CPU time.
STUCK = """
import ctypes
def stuck(*_):
    print("stuck", flush=True)
    lock, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    while True:
        libc.pthread_mutex_lock(lock)
"""


# Python shows what is raised in such a callback, and goes on.
COLLECTING = """
import gc, time
def wait(*_):
    print("stuck", flush=True)
    while True:
        time.sleep(0.01)
def collect(*_):
    gc.callbacks.append(wait)
    gc.collect()
    wait()
cli.codecs.decode_stream = collect
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a pthread mutex of zeros is one on Linux")
@pytest.mark.parametrize(
    ("before", "arguments", "kept"),
    [
        ("codecs = cli.codecs; codecs.decode_stream = stuck", ("decode",), "nothing was written"),
        (
            "decode = cli.codecs.decode_stream\n"
            "calls = iter([decode])\n"
            "cli.codecs.decode_stream = lambda *a: next(calls, stuck)(*a)",
            ("decode",),
            "1 of 2 files were written and are kept",
        ),
        (COLLECTING, ("decode",), "nothing was written"),
    ],
)
def test_ctrl_c_ends_foreign_code(
    here: Path, before: str, arguments: tuple[str, ...], kept: str
) -> None:
    for name in ("a.inr", "b.inr"):
        (here / name).write_bytes((ROOT / "tests" / "golden" / "v1_coin.inr").read_bytes())
    process = start(*arguments, "a.inr", "b.inr", "-o", "out/", before=STUCK + before)
    assert process.stdout is not None
    while process.stdout.readline() != "stuck\n":
        pass
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    seconds = time.monotonic() - sent
    assert process.returncode == 130
    assert errors == f"inrjax: stopped: {kept}\n"
    assert seconds < 2 or os.getloadavg()[0] > (os.cpu_count() or 1)


# Ctrl-C comes as a module is looked for, which the program imports before it reads its options.
STARTING = """
import os, runpy, signal, sys
class Finder:
    def find_spec(name, *_):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
{before}
runpy.run_module("inrjax", run_name="__main__", alter_sys=True)
"""


def interrupted(module: str, before: str = "") -> tuple[int, str]:
    """(exit code, stderr) of a program that Ctrl-C hits as it imports a module."""
    done = subprocess.run(
        [sys.executable, "-c", STARTING.format(before=before), module],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("module", ["inrjax.cli", "tyro", "numpy", "inrjax.codecs.inr"])
def test_ctrl_c_while_modules_are_imported_is_one_line(module: str) -> None:
    assert interrupted(module) == (130, "inrjax: stopped\n")


def test_a_program_that_is_told_to_ignore_ctrl_c_starts() -> None:
    """As a shell's background job is."""
    code, errors = interrupted("tyro", "signal.signal(signal.SIGINT, signal.SIG_IGN)")
    assert code == 2 and errors.startswith("inrjax: error: there is no command 'tyro'")


def test_a_program_s_own_handler_of_ctrl_c_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cli.main` in somebody else's process ends no process."""
    monkeypatch.setattr(cli.signal, "set_wakeup_fd", lambda *_: pytest.fail("it was taken"))
    assert cli.main(["info", "missing.inr"]) == 1
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        monkeypatch.setattr(sys, "argv", ["inrjax", "info", "missing.inr"])
        assert cli.main() == 1
    finally:
        signal.signal(signal.SIGINT, before)


# No room


@contextmanager
def room_of(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: what a full disk is to those who write, without being
    root. The system then says EFBIG where a disk says ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process: exit code, and lines of errors."""

    def run(*arguments: str) -> tuple[int, list[str]]:
        capsys.readouterr()
        code = cli.main(arguments)
        return code, capsys.readouterr().err.splitlines()

    return run


def test_a_real_write_without_room_is_one_sentence_and_leaves_nothing(run: Run, here: Path) -> None:
    (here / "a.inr").write_bytes((ROOT / "tests" / "golden" / "v1_coin.inr").read_bytes())
    before = contents(here)
    for num_bytes in (0, 20):
        with room_of(num_bytes):
            code, errors = run("decode", "a.inr", "-o", "a.png")
        [line] = errors
        assert code == 1 and line.startswith("inrjax: error: a.png cannot be written (File too")
        assert contents(here) == before
    assert run("decode", "a.inr", "-o", "a.png") == (0, [])


def test_measuring_without_room_keeps_the_rows_and_goes_on(run: Run, here: Path) -> None:
    (here / "photos").mkdir()
    for i in range(3):
        images.write_image(here / "photos" / f"{i}.png", photograph(24, 20, i))
    command = ("evaluate", "--images", "photos", "--codecs", "png", "-o")
    with room_of(1200):  # bytes: enough for some of the files, not for the figure
        code, errors = run(*command, "run")
    [line] = errors
    assert code == 1 and "cannot write run" in line and "File too large" in line
    assert interruptions.problems_of(here / "run") == []
    assert run(*command, "run")[0] == run(*command, "whole")[0] == 0
    assert interruptions.outcome_of(here / "run") == interruptions.outcome_of(here / "whole")


def test_a_checkpoint_without_room_is_an_os_error_and_the_one_before_stays(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = {"a": np.arange(20_000, dtype=np.float64)}
    checkpoint.save(here / "run", 1, state, {})
    with room_of(10_000), pytest.raises(OSError, match="File too large") as caught:
        checkpoint.save(here / "run", 2, state, {})
    assert caught.value.errno == errno.EFBIG
    assert caplog.records == []  # orbax logs a traceback
    found = checkpoint.restore(here / "run", state, {})
    assert found is not None and found.step == 1
    checkpoint.save(here / "run", 2, state, {})
    found = checkpoint.restore(here / "run", state, {})
    assert found is not None and found.step == 2


SAVE = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from inrjax import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
state = [np.arange(1000.0) + i for i in range(12)]
for room in map(int, sys.argv[1:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        for step in (1, 2, 3):
            checkpoint.save(Path(str(room), "run"), step, state, {})
        print("room")
    except OSError:
        print("full")
"""


def test_a_checkpoint_without_room_prints_nothing(here: Path) -> None:
    """Not from a thread either: orbax's handler of arrays closes an event loop that tensorstore
    still calls, and each such call is a traceback. It needs several arrays that do not fit."""
    rooms = (500, 2000, 9000, 30_000, 200_000)
    for room in rooms:
        (here / str(room)).mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SAVE, *map(str, rooms)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["full"] * 4 + ["room"]


def test_meta_training_without_room_says_what_is_kept(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(config, pictures, folder, *_):
        for step in (1, 2):
            with room_of(10_000 if step == 2 else resource.RLIM_INFINITY):
                checkpoint.save(folder, step, {"a": np.arange(20_000.0)}, {})

    from inrjax import metatrain

    (here / "photos").mkdir()
    images.write_image(here / "photos" / "a.png", photograph(64, 64))
    monkeypatch.setattr(metatrain, "train_init", train)
    code, errors = run("meta-train", "--data", "photos", "-o", "init.npz", "--rounds", "0")
    assert code == 1
    assert errors == [
        "inrjax: error: init.checkpoints cannot be used (File too large): choose another -o, or "
        "make room; the same command with --resume goes on from the last checkpoint in "
        "init.checkpoints"
    ]


def test_a_full_disk_ends_the_work_at_the_first_file(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others would be fitted for nothing, and say the same."""
    stream = (ROOT / "tests" / "golden" / "v1_coin.inr").read_bytes()
    for name in ("a.inr", "b.inr", "c.inr"):
        (here / name).write_bytes(stream)
    write, calls = trees.write_atomic, []

    def full_at_the_second(path: Path, data: bytes) -> None:
        calls.append(path)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(trees, "write_atomic", full_at_the_second)
    code, errors = run("decode", "a.inr", "b.inr", "c.inr", "-o", "out/")
    [line] = errors
    assert code == 1 and len(calls) == 2
    assert "out/b.png cannot be written (No space left on device)" in line
    assert line.endswith("; 1 of 3 files were written and are kept")


# Gives up the superuser's right to write where nobody may (capset: CAP_DAC_OVERRIDE).
AS_OTHERS = """
import ctypes
libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()
if libc.capget(header, sets) == 0:
    sets[0] &= ~2
    sets[1] &= ~2
    libc.capset(header, sets)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a superuser's rights are dropped as on Linux")
@pytest.mark.parametrize("output", ["locked/a.png", "locked/new/"])
def test_a_read_only_folder_is_one_sentence(here: Path, output: str) -> None:
    (here / "a.inr").write_bytes((ROOT / "tests" / "golden" / "v1_coin.inr").read_bytes())
    (here / "locked").mkdir()
    (here / "locked" / "mine.png").write_bytes(b"mine")
    (here / "locked").chmod(0o555)
    try:
        process = start("decode", "a.inr", "-o", output, before=AS_OTHERS)
        told, errors = process.communicate(timeout=60)
    finally:
        (here / "locked").chmod(0o755)
    if process.returncode == 0:
        pytest.skip("this system lets the process write in a read-only folder")
    assert (process.returncode, told) == (1, "")
    assert errors == "inrjax: error: locked cannot be written into: choose another -o\n"
    assert contents(here / "locked") == {"mine.png": b"mine"}
