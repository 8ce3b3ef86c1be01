"""Does a command that is killed, stopped or without room on its disk lose anything but time?

Claim: meta-training, encoding a folder, and measuring codecs, killed at 200 random moments in all,
go on by the same command and end with the bytes of a run that nobody killed; no file is half
written under its final name; Ctrl-C ends each within 2 s, and says what is kept; a full or
read-only disk is one sentence, and what was there stays.
Command: nice -n 19 python -m experiments.interruptions
Minutes: about 15 of one core. A stopped run goes on.
Expected: no problems in results/interruptions/<config hash>/table.md.

Each trial is a process, forked from this one, that has the command line of a user and small work:
the nets, pictures and steps are tiny, a batch has 8 pictures, so that Python's start is no large
part of it. It is killed when it has used a share of the CPU time of a whole run, uniform from the
seed, and up to 50 ms later: the load of the machine does not move the moments. Where it was then, a
thread of it notes every 5 ms. After each kill every file under its final name is read; the next
trial begins with what is left. When a run ends before its moment, its files are compared with those
of the whole run, all but seconds, dates and versions, and the next trial begins with nothing.

A full disk is a small tmpfs, for which one must be root; without, that part is left out, and the
table says so. ``--smoke``: a few, of one command.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import gc
import io
import json
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import numpy as np
import tyro

from experiments import common

# What a command would import, and no more: this process must not start JAX, or it cannot be forked.
from inrjax import cli, codecs, images, ledger, metatrain, results
from inrjax import quickstart as quickstart
from inrjax.init import load_init, packaged_init

ROOT = Path(__file__).parents[1]
BATCH = 8  # pictures of a batch of fits
LATER = 0.05  # seconds of wall time after the chosen CPU time, at most
NOTE_SECONDS = 0.005
TOO_LONG = 900  # seconds of a run after which it is taken for stuck
PROMPT = 2.0  # seconds that Ctrl-C may take
SEED_KILLS, SEED_STOPS, SEED_DISKS = 0, 1, 2


@dataclass(frozen=True)
class Config:
    """How often what is done, and to which commands; the work of a trial: pictures, a side of them,
    steps of fits and of meta-training; ``init``: digest of the packaged one, filled in when it
    runs."""

    commands: tuple[str, ...] = ("meta-train", "encode", "evaluate")
    kills: int = 200
    stops: int = 30
    disks: int = 30
    pictures: int = 64
    side: int = 32
    fit_steps: int = 20
    meta_steps: int = 1000
    prior_steps: int = 100
    rounds: int = 2
    round_images: int = 8
    seed: int = 0
    init: tyro.conf.Suppress[str] = ""


SMOKE = Config(
    commands=("encode",), kills=2, stops=1, disks=1, pictures=2 * BATCH + 2, side=8, fit_steps=2
)


# ---------------------------------------------------------------------------- the commands


@dataclass(frozen=True)
class Job:
    """A command: its arguments, which name files in the folder that it is started in."""

    name: str
    arguments: tuple[str, ...]


def jobs(config: Config) -> tuple[Job, ...]:
    """The commands."""
    photos = [f"../../photos/{i:03d}.png" for i in range(config.pictures)]
    steps = ("--steps", str(config.fit_steps))
    width = ("--width", str(codecs.inr.WIDTHS[0]))
    meta = ("--width", "4", "--steps", str(config.meta_steps), "--rounds", str(config.rounds))
    known = (
        Job("meta-train", ("meta-train", "--data", "../../few", "-o", "init.npz", *meta,
                           "--resume")),
        Job("encode", ("encode", *photos, "-o", "out/", *width, *steps, "--resume")),
        Job("evaluate", ("evaluate", "--images", "../../some", "--codecs", "meta-siren,jpeg",
                         *steps, "-o", "run")),
    )  # fmt: skip
    return tuple(job for job in known if job.name in config.commands)


def write_pictures(folder: Path, config: Config) -> None:
    """All pictures in ``photos``, some in ``some``, few in ``few``; from the seed."""
    for name, count in (
        ("photos", config.pictures),
        ("some", 2 * BATCH),
        ("few", config.round_images),
    ):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            path = folder / name / f"{i:03d}.png"
            if not path.exists():
                images.write_image(path, picture(config, i))


def picture(config: Config, index: int) -> np.ndarray:
    """A smooth uint8 (side, side, 3) picture of its own."""
    rng = np.random.default_rng([config.seed, index])
    rows, columns = np.mgrid[: config.side, : config.side] / config.side
    waves = [
        np.sin(
            2 * np.pi * (rng.uniform(-2, 2) * rows + rng.uniform(-2, 2) * columns + rng.random())
        )
        for _ in range(3)
    ]
    return np.rint(127.5 + 100 * np.stack(waves, axis=-1)).clip(0, 255).astype(np.uint8)


def make_small(config: Config) -> None:
    """In a trial's own process: what no option of the commands makes small enough."""
    width = codecs.inr.WIDTHS[0]
    cli.BATCH_IMAGES = BATCH
    cli.CURVES = {
        "meta-siren": lambda fit: [codecs.MetaSiren(width=width, **fit)],
        "jpeg": lambda _: [codecs.Jpeg(q, optimize=False) for q in (30, 60, 90)],
    }
    metatrain.MetaTrainConfig = partial(  # pyright: ignore[reportAttributeAccessIssue]
        metatrain.MetaTrainConfig,
        points=64,
        prior_images=2,
        prior_steps=config.prior_steps,
        round_images=config.round_images,
        round_steps=config.prior_steps,
    )


# ---------------------------------------------------------------------------- a trial


PHASES: Mapping[tuple[str, str], str] = {
    ("trees.py", "write_atomic"): "writes a file",
    ("checkpoint.py", "save"): "saves a checkpoint",
    ("checkpoint.py", "restore"): "reads a checkpoint",
    ("metatrain.py", "learn_prior"): "fits for the prior",
    ("metatrain.py", "_round"): "fits for the prior",
    ("metatrain.py", "meta_train"): "meta-trains",
    ("fit.py", "fit_batch"): "fits",
    ("inr.py", "pack"): "codes and decodes",
    ("inr.py", "decode"): "codes and decodes",
    ("evaluate.py", "decode_files"): "waits for the decoder",
    ("evaluate.py", "_measure_batch"): "measures",
    ("plots.py", "rd_figure"): "draws",
    ("plots.py", "save"): "draws",
    ("shutil.py", "rmtree"): "deletes checkpoints",
    ("cli.py", "_own_share"): "looks for what is there",
    ("evaluate.py", "_resume"): "looks for what is there",
}
"""(file, function) -> what a process does that is inside it; the innermost one counts."""

OTHER = "starts, and the rest"
NAMES = (OTHER, *dict.fromkeys(PHASES.values()))


def phase_of(frame: Any) -> str:
    """What a thread does whose innermost frame this is."""
    # Not `is not None`: a frame that ends while it is looked at once gave a dict (Python 3.11).
    while isinstance(frame, FrameType):
        code = frame.f_code
        found = PHASES.get((os.path.basename(code.co_filename), code.co_name))
        if found:
            return found
        frame = frame.f_back
    return OTHER


def note_phase(place: mmap.mmap, thread: int) -> None:
    """Keep the phase of a thread in shared memory."""
    while True:
        place[0] = NAMES.index(phase_of(sys._current_frames().get(thread)))
        time.sleep(NOTE_SECONDS)


@dataclass
class Ended:
    """How a process ended. ``signal``: sent to it, None if it ended before. ``seconds``: from the
    signal to the end. ``share``: of a whole run's CPU time, when the signal was sent."""

    code: int
    signal: int | None
    seconds: float
    cpu: float
    phase: str
    told: list[str]


def trial(
    job: Job, config: Config, folder: Path, cache: Path, cpu: float | None = None, later: float = 0,
    send: int = signal.SIGKILL,
) -> Ended:  # fmt: skip
    """Run a command in a folder; at ``cpu`` seconds of its CPU time it gets a signal."""
    folder.mkdir(parents=True, exist_ok=True)
    place = mmap.mmap(-1, 1)
    with tempfile.TemporaryFile() as told:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _be_command(job, config, folder, cache, place, told.fileno())
        sent, code, used = _watch(pid, cpu, later, send)
        ended = time.perf_counter()
        told.seek(0)
        lines = anywhere(told.read().decode(errors="replace")).splitlines()
    seconds = 0.0 if sent is None else ended - sent
    return Ended(code, None if sent is None else send, seconds, used, NAMES[place[0]], lines)


def anywhere(text: str) -> str:
    """A text without this machine's folders of libraries and of the project, and without addresses
    in memory: the table is to be read elsewhere."""
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"), str(ROOT)}
    for folder in sorted(folders, key=len, reverse=True):
        text = text.replace(folder, "...")
    return re.sub(r"\b0x[0-9a-f]+\b", "0x...", text)


def _watch(pid: int, cpu: float | None, later: float, send: int) -> tuple[float | None, int, float]:
    """(when the signal was sent, exit code, CPU seconds) of a child."""
    sent, start, used = None, time.perf_counter(), 0.0
    while True:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            # Nothing was stopped that had ended by then.
            return (None if code == 0 else sent), code, usage.ru_utime + usage.ru_stime
        used = _cpu_seconds(pid)
        if cpu is not None and sent is None and used >= cpu:
            time.sleep(later)
            sent = time.perf_counter()
            os.kill(pid, send)
        if time.perf_counter() - start > TOO_LONG:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002 if sent else 0.01)


def _cpu_seconds(pid: int) -> float:
    """Of a process that may have just ended."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text()
        user, system = text.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _be_command(
    job: Job, config: Config, folder: Path, cache: Path, place: mmap.mmap, told: int
) -> None:
    """In the forked process: be that command, and end."""
    code = 99
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # it ends with its parent
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(told, 2)
        os.chdir(folder)
        os.environ["INRJAX_CACHE"] = str(cache)
        sys.argv = ["inrjax", *job.arguments]
        make_small(config)
        main = threading.get_ident()
        threading.Thread(target=note_phase, args=(place, main), daemon=True).start()
        code = cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


# ---------------------------------------------------------------------------- what is left


def problems_of(folder: Path) -> list[str]:
    """What is wrong with the files under their final names."""
    found = []
    for path in final_files(folder):
        read = READERS.get(path.name, READERS.get(path.suffix))
        if read is None:
            continue  # a checkpoint's own files: the command that reads them says what is damaged
        try:
            read(path)
        except Exception as error:
            found.append(f"{path.relative_to(folder)}: {type(error).__name__}: {error}")
    return found


def final_files(folder: Path) -> list[Path]:
    """All but those with a temporary name, which begin with a dot, and those of checkpoints."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".") and not _is_checkpoint(path, folder)
    )


def _is_checkpoint(path: Path, folder: Path) -> bool:
    return ".checkpoints" in str(path.relative_to(folder))


def _whole_pdf(path: Path) -> None:
    data = path.read_bytes()
    if not (data.startswith(b"%PDF") and data.rstrip().endswith(b"%%EOF")):
        raise ValueError("it is no whole PDF file")


READERS: Mapping[str, Callable[[Path], object]] = {
    ".inr": lambda path: codecs.decode_stream(path.read_bytes()),
    ".png": lambda path: images.read_image(path),
    ".jpg": lambda path: images.read_image(path),
    ".npz": load_init,
    ".json": lambda path: json.loads(path.read_text("utf-8")),
    ".pdf": _whole_pdf,
    "rows.csv": results.read_rows,
}
"""Name or ending -> what reads such a file, and raises if it is not whole."""

SECONDS = ("encode_seconds", "decode_seconds")


def outcome_of(folder: Path) -> dict[str, bytes]:
    """Every file by its path, but for seconds, dates and versions."""
    found = {}
    for path in final_files(folder):
        if path.name == "provenance.json":
            continue
        data = path.read_bytes()
        if path.name == "rows.csv":
            rows = list(csv.DictReader(io.StringIO(data.decode())))
            data = json.dumps([row | dict.fromkeys(SECONDS, "") for row in rows]).encode()
        found[str(path.relative_to(folder))] = data
    return found


def kept_of(folder: Path) -> set[str]:
    """What must not go away again: files, measured rows, and the step of the newest checkpoint."""
    kept = {str(path.relative_to(folder)) for path in final_files(folder)}
    table = folder / "run" / "rows.csv"
    if table.exists():
        kept |= {f"row {row.codec} {row.setting} {row.image}" for row in results.read_rows(table)}
    steps = [int(p.name) for p in folder.glob("*.checkpoints/*") if p.name.isdecimal()]
    # The final file stands for all steps before it.
    last = 10**9 if (folder / "init.npz").exists() else max(steps, default=-1)
    return kept | {f"step {step}" for step in range(100, min(last, 100_000) + 1, 100)}


def lost_of(before: set[str], folder: Path) -> list[str]:
    """What is there no longer, of what `kept_of` found before."""
    lost = sorted(before - kept_of(folder))
    return [f"lost: {', '.join(lost[:5])}"] if lost else []


def half_written(folder: Path) -> int:
    """Files that a kill left under a temporary name."""
    return sum(path.is_file() and path.name != ledger.NAME for path in folder.rglob(".*"))


# ---------------------------------------------------------------------------- the parts


@dataclass(frozen=True)
class Place:
    """Where the trials work; ``whole``: job -> (outcome, CPU seconds) of a run that nobody
    stopped."""

    config: Config
    work: Path
    whole: Mapping[str, tuple[dict[str, bytes], float]]

    @property
    def cache(self) -> Path:
        """Compiled programs, which all trials share."""
        return self.work / "cache"


def prepare(config: Config, work: Path) -> Place:
    """The pictures, and the runs that nobody stops: once for the programs, once for the time."""
    write_pictures(work, config)
    whole = {}
    for job in jobs(config):
        folder, noted = work / "whole" / job.name, work / f"{job.name}.json"
        if not noted.exists():
            for _ in range(2):
                shutil.rmtree(folder, ignore_errors=True)
                ended = trial(job, config, folder, work / "cache")
                if ended.code != 0 or problems_of(folder):
                    raise RuntimeError(f"{job.name} ended with {ended.code}: {ended.told}")
            results.write_json(noted, ended.cpu)
        seconds = float(json.loads(noted.read_text("utf-8")))
        whole[job.name] = outcome_of(folder), seconds
        print(f"{job.name}: a whole run takes {seconds:.2f} s of CPU", file=sys.stderr)
    return Place(config, work, whole)


def complaints(ended: Ended) -> list[str]:
    """What no process may say."""
    text = "\n".join(ended.told)
    return [f"it said: {text[-500:]}"] if "Traceback" in text or "damaged" in text else []


def compare(job: Job, place: Place, folder: Path) -> list[str]:
    """How a finished run differs from the whole one."""
    got, expected = outcome_of(folder), place.whole[job.name][0]
    names = sorted(got.keys() ^ expected.keys())
    names += sorted(name for name in got.keys() & expected.keys() if got[name] != expected[name])
    return [f"differs from the whole run: {', '.join(names[:5])}"] if names else []


def interrupt(job: Job, place: Place, index: int, send: int) -> list[dict[str, Any]]:
    """Trials of one command until one is interrupted; the folder goes on from the last time."""
    seed = SEED_KILLS if send == signal.SIGKILL else SEED_STOPS
    config, records = place.config, []
    folder = place.work / ("killed" if send == signal.SIGKILL else "stopped") / job.name
    whole_cpu = place.whole[job.name][1]
    for attempt in range(100):
        number = jobs(config).index(job)
        rng = np.random.default_rng([config.seed, seed, number, index, attempt])
        cpu, later = rng.uniform(0, whole_cpu), rng.uniform(0, LATER)
        before = kept_of(folder) if folder.exists() else set()
        ended = trial(job, config, folder, place.cache, cpu, later, send)
        problems = complaints(ended) + problems_of(folder)
        problems += (
            [f"lost: {', '.join(sorted(lost)[:5])}"] if (lost := before - kept_of(folder)) else []
        )
        record = {
            "job": job.name, "share": cpu / whole_cpu, "phase": ended.phase,
            "seconds": ended.seconds, "left": half_written(folder),
        }  # fmt: skip
        if ended.signal is None:
            if ended.code != 0:
                problems.append(f"ended with {ended.code}: {ended.told[-3:]}")
            records.append(
                record | {"what": "ended", "problems": problems + compare(job, place, folder)}
            )
            shutil.rmtree(folder)
            continue
        if send == signal.SIGINT:
            problems += stop_problems(ended)
        record |= {"what": "killed" if send == signal.SIGKILL else "stopped", "problems": problems}
        records.append(record)
        if (
            folder / "init.npz"
        ).exists():  # killed when all was done: there is nothing to go on with
            records.append(record | {"what": "ended", "problems": compare(job, place, folder)})
            shutil.rmtree(folder)
        return records
    raise RuntimeError(f"{job.name} was never interrupted")


def stop_problems(ended: Ended) -> list[str]:
    """What is wrong with how a command took Ctrl-C."""
    found = []
    said = [line for line in ended.told if line.startswith("inrjax: stopped")]
    notes = [
        line for line in ended.told if line not in said and "are there and are kept" not in line
    ]
    if ended.code != 130:
        found.append(f"exit code {ended.code}")
    if len(said) != 1 or notes:
        found.append(f"it said {ended.told}")
    return found


def finish(job: Job, place: Place, kind: str) -> list[dict[str, Any]]:
    """Let the last interrupted run of a command end, and compare it."""
    folder = place.work / kind / job.name
    if not folder.exists():
        return []
    ended = trial(job, place.config, folder, place.cache)
    problems = complaints(ended) + problems_of(folder) + compare(job, place, folder)
    shutil.rmtree(folder)
    return [{"job": job.name, "what": "ended", "problems": problems}]


# ---------------------------------------------------------------------------- disks


def can_mount() -> bool:
    """Whether this process may mount a file system."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with mounted(Path(folder), 64):
                return True
        except OSError:
            return False


@contextlib.contextmanager
def mounted(folder: Path, kib: int) -> Iterator[None]:
    """A file system of so many KiB in memory; OSError where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    while os.path.ismount(folder):  # of a run that was killed
        subprocess.run(["umount", "-l", str(folder)], check=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        raise OSError("mount is not allowed")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def disk(job: Job, place: Place, index: int) -> dict[str, Any]:
    """A run on a disk that is full from a random byte on, or that can no longer be written after a
    kill; then the same command with room."""
    config, number = place.config, jobs(place.config).index(job)
    rng = np.random.default_rng([config.seed, SEED_DISKS, number, index])
    read_only = index % 3 == 2
    size = _disk_kib(place.work / "whole" / job.name)
    base = place.work / "disks"
    with mounted(base, 1 << 16 if read_only else int(rng.integers(4, max(5, size)))):
        folder = base / "at" / job.name  # as deep as the others: the arguments name ../../photos
        folder.mkdir(parents=True)
        for name in ("photos", "some", "few"):
            (base / name).symlink_to(place.work.absolute() / name)
        if read_only:
            cpu = rng.uniform(0, place.whole[job.name][1])
            trial(job, config, folder, place.cache, cpu)
            remount(base, "ro")
        before = kept_of(folder)
        ended = trial(job, config, folder, place.cache)
        problems = complaints(ended) + problems_of(folder)
        errors = [line for line in ended.told if line.startswith("inrjax: error: ")]
        if ended.code == 0 and not read_only and not errors:
            what = "had room"
        else:
            what = "read-only" if read_only else "full"
            if (folder / "init.npz").exists() and "--overwrite" in "".join(errors):
                what = "was done"
            if ended.code != 1 or len(errors) != 1:
                problems.append(f"ended with {ended.code} and said {ended.told}")
        problems += lost_of(before, folder)
        remount(base, f"rw,size={1 << 16}k")
        if what in ("full", "read-only"):
            again = trial(job, config, folder, place.cache)
            problems += complaints(again) + ([] if again.code == 0 else [f"then said {again.told}"])
        problems += compare(job, place, folder)
    said = errors[0] if errors else ""
    return {"job": job.name, "what": what, "said": _plain(said), "problems": problems}


def _plain(said: str) -> str:
    """A sentence without what differs from trial to trial."""
    return re.sub(r"\d+", "N", said.removeprefix("inrjax: error: "))


def _disk_kib(folder: Path) -> int:
    """What the files of a run take, in whole pages."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return sum(4 * (1 + path.stat().st_size // 4096) for path in paths)


# ---------------------------------------------------------------------------- the run


def run(config: Config, root: Path) -> Path:
    """Do the trials that were not done yet; returns the run folder."""
    config = replace(config, init=packaged_init(codecs.inr.WIDTHS[0]).short_digest)
    folder = results.run_folder(root, config)
    state_path = folder / "trials.json"
    state = json.loads(state_path.read_text("utf-8")) if state_path.exists() else {"done": []}
    state.setdefault("trials", [])
    work = (folder / "streams").absolute()
    missing = [
        (part, job, i) for part, job, i in plan(config) if _name(part, job, i) not in state["done"]
    ]
    if missing:
        gc.freeze()
        results.write_json(folder / "provenance.json", results.provenance("cpu"))
        place = prepare(config, work)
        can = can_mount()
        for part, job, index in missing:
            state["trials"] += [
                {"part": part, **record} for record in do(part, job, index, place, can)
            ]
            state["done"].append(_name(part, job, index))
            results.write_json(state_path, state)
            results.write_text(folder / "table.md", table(config, state["trials"]))
            if len(state["done"]) % 10 == 0:
                print(f"{len(state['done'])} of {len(plan(config))}", file=sys.stderr)
        shutil.rmtree(work)
    results.write_text(folder / "table.md", table(config, state["trials"]))
    return folder


def plan(config: Config) -> list[tuple[str, Job, int]]:
    """Every trial, the parts and the commands in turn: a run that is stopped has some of each."""
    chosen = jobs(config)
    counts = (("kill", config.kills), ("stop", config.stops), ("disk", config.disks))
    found = [
        ((i + 0.5) / count, (part, chosen[i % len(chosen)], i // len(chosen)))
        for part, count in counts
        for i in range(count)
    ]
    trials = [one for _, one in sorted(found, key=lambda pair: pair[0])]
    ends = [(f"end of {part}", job, 0) for part in ("kill", "stop") for job in chosen]
    return trials + ends


def _name(part: str, job: Job, index: int) -> str:
    return f"{part} {job.name} {index}"


def do(part: str, job: Job, index: int, place: Place, can_mount: bool) -> list[dict[str, Any]]:
    """The records of a trial, and of the runs that ended before it."""
    if part == "kill":
        return interrupt(job, place, index, signal.SIGKILL)
    if part == "stop":
        return interrupt(job, place, index, signal.SIGINT)
    if part == "disk":
        return [disk(job, place, index)] if can_mount else []
    return finish(job, place, {"end of kill": "killed", "end of stop": "stopped"}[part])


def table(config: Config, trials: Sequence[Mapping[str, Any]]) -> str:
    """Counts, moments, phases, seconds, sentences, and every problem."""
    from experiments.kodak_rd import markdown

    names = [job.name for job in jobs(config)]

    def of(what: str, name: str, parts: Sequence[str] = ("kill", "end of kill")) -> list[Any]:
        return [t for t in trials if (t["what"], t["job"]) == (what, name) and t["part"] in parts]

    kills = {name: of("killed", name) for name in names}
    all_kills = [t for found in kills.values() for t in found]
    ended = {name: of("ended", name) for name in names}
    stop_parts = ("stop", "end of stop")
    problems = [f"{t['part']} {t['job']}: {p}" for t in trials for p in t["problems"]]
    lines = [
        [
            name, str(len(kills[name])), str(len(ended[name])),
            str(sum(bool(t["problems"]) for t in kills[name] + ended[name])),
            str(sum(t["left"] > 0 for t in kills[name])),
            " / ".join(str(sum(int(4 * t["share"]) == q for t in kills[name])) for q in range(4)),
        ]
        for name in names
    ]  # fmt: skip
    phases = Counter((t["phase"], t["job"]) for t in all_kills)
    where = [
        [phase, *(str(phases[phase, name]) for name in names)]
        for phase in NAMES
        if any(phases[phase, name] for name in names)
    ]
    stops = {name: of("stopped", name, stop_parts) for name in names}
    seconds = {name: [t["seconds"] for t in stops[name]] for name in names}
    stopping = [
        [
            name, str(len(stops[name])),
            f"{median(seconds[name]):.2f}", f"{max(seconds[name]):.2f}",
            str(sum(s > PROMPT for s in seconds[name])),
            str(len(of("ended", name, stop_parts))),
            str(sum(bool(t["problems"]) for t in stops[name] + of("ended", name, stop_parts))),
        ]
        for name in names if seconds[name]
    ]  # fmt: skip
    disks = [t for t in trials if t["part"] == "disk"]
    sentences = Counter((t["what"], t["job"], t["said"]) for t in disks)
    said = [
        [what, name, str(count), text.replace("|", "\\|")]
        for (what, name, text), count in sorted(sentences.items())
    ]
    parts = [
        f"# Interruptions, seed {config.seed}",
        f"{len(all_kills)} of {config.kills} kills, {sum(map(len, stops.values()))} of "
        f"{config.stops} times Ctrl-C, {len(disks)} of {config.disks} disks. "
        f"Problems: {len(problems)}.",
        markdown(
            ["command", "kills", "runs that ended and were compared", "with problems",
             "kills that left a file under a temporary name", "kills by quarter of the CPU time"],
            lines,
        ),
        "Where the process was when it was killed:",
        markdown(["phase", *names], where),
        "Ctrl-C: seconds of wall time until the process was gone.",
        markdown(
            ["command", "stops", "median s", "most s", f"over {PROMPT:.0f} s",
             "runs that ended and were compared", "with problems"],
            stopping,
        ),
        "Disks that were full or read-only, what was said, and how often; then the command was "
        "given room, and its files were compared:"
        if disks
        else "Disks: left out, since mounting needs rights that this process has not.",
        *([markdown(["disk", "command", "trials", "sentence"], said)] if disks else []),
        *(["## Problems", "\n".join(f"- {text}" for text in problems)] if problems else []),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


@dataclass(frozen=True)
class Options:
    """The command line."""

    config: Config = Config()
    output: Path = ROOT / "results" / "interruptions"
    smoke: bool = False


def main(options: Options) -> Path:
    """Run, print the table; returns the run folder."""
    return common.show(run(SMOKE if options.smoke else options.config, options.output))


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
