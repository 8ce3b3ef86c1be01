"""Many devices, many processes: the same bytes, no communication in a fit, deaths noticed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import photograph

from inrjax import cli, codecs, distributed, images, ledger, meta
from inrjax.distributed import Place, Team

ROOT = Path(__file__).parents[1]
WIDTH = codecs.inr.WIDTHS[0]
FAST = ("--width", str(WIDTH), "--steps", "2")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---------------------------------------------------------------------------- sharing out


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("length", [0, 1, 6, 7, 20])
def test_shares_hold_each_item_once_and_are_equally_long(length: int, count: int) -> None:
    shares = [distributed.share(range(length), index, count) for index in range(count)]
    assert sorted(item for part in shares for item in part) == list(range(length))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


# ---------------------------------------------------------------------------- teams


class Member(threading.Thread):
    """A process of a team, played by a thread: it works when told to, and finishes or dies."""

    def __init__(self, place: Place, value: object = None):
        super().__init__(daemon=True)
        self.place, self.value = place, value
        self.work, self.dies, self.joined = threading.Event(), False, threading.Event()
        self.deaths: list[int] = []
        self.noticed = threading.Event()
        self.gathered: list[object] | None = None
        self.dead: list[int] | None = None
        self.start()

    def note(self, index: int) -> None:
        self.deaths.append(index)
        self.noticed.set()

    def run(self) -> None:
        with Team(self.place, self.note) as team:
            self.gathered = team.gather(self.value)
            self.joined.set()
            self.work.wait(60)
            if not self.dies:
                self.dead = team.finish()

    def end(self, dies: bool = False) -> None:
        self.dies = dies
        self.work.set()


@pytest.fixture
def team() -> Iterator[Callable[[int], list[Member]]]:
    """Start a team of members that have met; they end with the test."""
    members: list[Member] = []

    def start(count: int) -> list[Member]:
        port = free_port()
        members.extend(Member(Place(i, count, "127.0.0.1", port), [i]) for i in range(count))
        assert all(member.joined.wait(30) for member in members)
        return members

    yield start
    for member in members:
        member.end()
    for member in members:
        member.join(30)
        assert not member.is_alive()


def test_everyone_learns_what_everyone_gave_and_waits_for_the_last(team) -> None:
    members = team(3)
    assert [member.gathered for member in members] == [[[0], [1], [2]]] * 3
    members[0].end(), members[1].end()
    members[1].join(0.3)
    assert members[1].is_alive()
    members[2].end()
    for member in members:
        member.join(30)
    assert [(member.dead, member.deaths) for member in members] == [([], [])] * 3


@pytest.mark.parametrize("victim", [0, 1])
def test_a_death_is_noticed_at_once_and_the_others_go_on(team, victim: int) -> None:
    members = team(3)
    others = [member for member in members if member.place.index != victim]
    members[victim].end(dies=True)
    assert all(member.noticed.wait(20) for member in others)
    assert all(member.is_alive() for member in others)
    for member in others:
        member.end()
    for member in others:
        member.join(30)
        assert (member.deaths, member.dead) == ([victim], [victim])


def frame(message: dict[str, object]) -> bytes:
    data = json.dumps(message).encode()
    return len(data).to_bytes(4, "big") + data


def test_a_process_that_falls_silent_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.SILENCE_SECONDS + distributed.BEAT_SECONDS < 60
    monkeypatch.setattr(distributed, "SILENCE_SECONDS", 2.0)
    monkeypatch.setattr(distributed, "BEAT_SECONDS", 0.1)
    port = free_port()
    first = Member(Place(0, 3, "127.0.0.1", port))
    other = Member(Place(1, 3, "127.0.0.1", port))
    silent = connect(port)  # as if the machine of process 2 had lost its network after the start
    silent.sendall(frame({"hello": 2}) + frame({"value": 2}))
    assert first.joined.wait(20)
    assert first.noticed.wait(20) and other.noticed.wait(20)
    assert first.deaths == other.deaths == [2]  # the one that does speak is alive
    for member in (first, other):
        member.end()
    for member in (first, other):
        member.join(30)
        assert member.dead == [2]
    silent.close()


def connect(port: int) -> socket.socket:
    for _ in range(200):
        try:
            return socket.create_connection(("127.0.0.1", port))
        except OSError:
            time.sleep(0.05)
    pytest.fail("nobody listens")


def test_a_stranger_does_no_harm(team) -> None:
    members = team(2)
    place = members[0].place
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\2{}", b"\0\0\0\x0b" + b'{"hello":1}'):
        with socket.create_connection((place.host, place.port)) as stranger:
            stranger.sendall(garbage)
    for member in members:
        member.end()
    for member in members:
        member.join(30)
        assert (member.dead, member.deaths) == ([], [])


def test_a_process_that_ends_before_the_work_is_an_error_for_the_others() -> None:
    for _ in range(20):  # it may leave while its own sign of life is on the way, or just after
        port, failures = free_port(), []
        places = [Place(i, 2, "127.0.0.1", port) for i in range(2)]

        def first(place: Place = places[0], failures: list[str] = failures) -> None:
            try:
                with Team(place, lambda _: None) as team:
                    team.gather(0)
            except ValueError as error:
                failures.append(str(error))

        thread = threading.Thread(target=first, daemon=True)
        thread.start()
        with Team(places[1], lambda _: None):
            pass  # it met the others, and ended
        thread.join(30)
        assert len(failures) == 1 and "process 1" in failures[0]


def test_who_waits_in_vain_is_told_so(tmp_path: Path) -> None:
    program = f"""
from inrjax import distributed
try:
    distributed.meet("127.0.0.1:{free_port()}", 2, 0, timeout=1)
except ValueError as error:
    assert "not all processes" in str(error)
    print("told")
"""
    assert start(program).communicate(timeout=60)[0] == "told\n"


# ---------------------------------------------------------------------------- real processes


def start(program: str, *arguments: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
    """A Python process that imports this checkout and its tests."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# As many devices as the tests have: on another number, XLA rounds otherwise.
COMMAND_LINE = """
import sys
import conftest
from inrjax import cli
cli._use_every_core = lambda: None
sys.exit(cli.main())
"""
DYING = COMMAND_LINE.replace(
    "sys.exit",
    """
import os, signal
keep = cli._keep
def keep_one_and_die(*arguments):
    keep(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
cli._keep = keep_one_and_die
sys.exit""",
)


@pytest.mark.slow
def test_two_processes_one_dies_and_a_second_run_makes_what_is_missing(tmp_path: Path) -> None:
    pictures = []
    for seed in range(6):
        pictures.append(str(tmp_path / f"{seed}.png"))
        images.write_image(pictures[-1], photograph(8, 7, seed))
    assert cli.main(["encode", *pictures, "-o", str(tmp_path / "alone"), *FAST]) == 0
    expected = [(tmp_path / "alone" / f"{i}.inr").read_bytes() for i in range(6)]
    out = tmp_path / "together"

    def run(programs: list[str], *more: str) -> list[tuple[int, list[str], list[str]]]:
        job = ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}"]
        command = ["encode", *pictures, "-o", str(out), *FAST, *more, *job, "--num-processes", "2"]
        running = [
            start(program, *command, "--process-id", str(index))
            for index, program in enumerate(programs)
        ]
        told = [process.communicate(timeout=240) for process in running]
        return [
            (process.returncode, text.splitlines(), errors.splitlines())
            for process, (text, errors) in zip(running, told, strict=True)
        ]

    healthy, dead = run([COMMAND_LINE, DYING])
    assert dead[0] == -signal.SIGKILL
    assert healthy[0] == 1 and len(healthy[1]) == 3
    [line] = healthy[2]
    assert line.startswith("inrjax: error: process 1 of 2 is dead") and "--resume" in line
    left = {path.name for path in out.iterdir()}
    assert left == {"0.inr", "1.inr", "2.inr", "4.inr", ledger.NAME}

    (out / "4.inr").write_bytes(expected[4][:-3])  # as if a disk had lost its end
    first, second = run([COMMAND_LINE, COMMAND_LINE], "--resume")
    assert first[0] == second[0] == 0
    again, kept = first[2]
    assert again.startswith("inrjax: 1 of 6 files are there and are made again")
    assert kept == "inrjax: 3 of 6 files are there and are kept" and second[2] == []
    assert (len(first[1]), len(second[1])) == (2, 1)  # what one left undone is shared by both
    assert [(out / f"{i}.inr").read_bytes() for i in range(6)] == expected


def test_processes_with_different_commands_are_told_so(tmp_path: Path) -> None:
    images.write_image(tmp_path / "a.png", photograph(8, 7))
    job = ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2"]
    running = [
        start(COMMAND_LINE, "encode", "a.png", "-o", "out/", *FAST, *job, *own, cwd=tmp_path)
        for own in (["--process-id", "0"], ["--process-id", "1", "--seed", "1"])
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1
        assert any("different commands" in line for line in errors.splitlines())
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------- many devices


def on_devices(count: int, program: str, out: Path) -> dict[str, np.ndarray]:
    """Run a program on so many fake CPU devices; the arrays it leaves in ``results``."""
    before = f"import conftest, jax\njax.config.update('jax_num_cpu_devices', {count})\n"
    after = f"\nassert len(jax.devices()) == {count}\nimport numpy as np\n"
    after += f"np.savez({str(out)!r}, *[np.asarray(x) for x in jax.tree.leaves(results)])"
    process = start(before + program + after)
    errors = process.communicate(timeout=240)[1]
    assert process.returncode == 0, errors
    with np.load(out) as arrays:
        return dict(arrays)


FIT_AND_TRAIN = """
import test_distributed, test_fit
from _pytest.monkeypatch import MonkeyPatch
text, _ = test_fit.captured(MonkeyPatch(), 8)
if len(jax.devices()) > 1:
    assert f"num_partitions={len(jax.devices())}" in text
assert not test_fit.COLLECTIVE.search(text)
fits = test_fit.fit.fit_batch(test_fit.PLAN, test_fit.KEY, test_fit.image_data(8))
results = fits, test_distributed.train(len(jax.devices()))
"""


def test_eight_devices_fit_and_train_as_one_does(tmp_path: Path) -> None:
    one = on_devices(1, FIT_AND_TRAIN, tmp_path / "1.npz")
    eight = on_devices(8, FIT_AND_TRAIN, tmp_path / "8.npz")
    assert one.keys() == eight.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(eight[name], values)


NUM_TASKS = 3  # not a multiple of two devices, and fewer than eight


def train(num_devices: int) -> tuple[meta.MetaState, jax.Array]:
    """A few outer steps on quadratics, the tasks of a step shared by so many devices."""
    mesh = jax.make_mesh(
        (num_devices,),
        ("task",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:num_devices],
    )

    def loss_fn(params, centre):
        return jnp.sum((params - centre) ** 4)

    def sample(key):
        centres = jax.random.normal(key, (NUM_TASKS, 3, 5))
        return meta.Task(centres[:, :2], centres[:, 2])

    optimizer = optax.adam(0.05)
    state = meta.start(meta.init_meta(jnp.zeros(5), 2, 0.01), optimizer)

    def advance(state):
        key = jax.random.key(0)
        return meta.advance(loss_fn, sample, state, optimizer, 20, False, key, "task")

    return jax.jit(
        jax.shard_map(advance, mesh=mesh, in_specs=jax.P(), out_specs=jax.P(), check_vma=False)
    )(state)


def test_meta_training_on_two_devices_is_that_on_one() -> None:
    for one, two in zip(jax.tree.leaves(train(1)), jax.tree.leaves(train(2)), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))
