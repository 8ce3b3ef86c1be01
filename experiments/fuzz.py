"""Does any damaged file do anything else than decode or be refused in one sentence?

Claim: of a million damaged streams and pictures, each is read or refused by `BitstreamError` (a
picture: `ValueError`) within 2 s and 512 MiB; and no damaged stream whose checksum was left as it
is decodes at all, nor does any golden file with any one byte changed to any other value.
Command: nice -n 8 python -m experiments.fuzz --count 1000000
Minutes: about 15 on 2 cores. A stopped run goes on, and a larger --count adds to what is there.
Expected: no failures and no silent decodes in results/fuzz/<config hash>/table.md.

Mutants are made of the small golden streams and of pictures that Pillow writes, each from the seed,
its batch and its place there. Half of the streams get the checksum that their content asks for, so
that what is behind it is reached, too; and half of the PNG pictures. Worker processes read them, of
every codec that an .inr file can name, and FMM. What fails is kept in failures/.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock, Timer
from typing import IO, Any, NamedTuple

import numpy as np
import tyro

from inrjax import bitstream, codecs, results, trees
from inrjax.codecs import Fmm
from inrjax.images import read_image
from inrjax.machine import cpu_count
from inrjax.types import BitstreamError

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
from bases import shared_of  # noqa: E402

GOLDEN = ROOT / "tests" / "golden"
MEMORY = 512 << 20  # bytes of address space, Python and all libraries included
SECONDS = 2  # of CPU time, so that a busy machine is not taken for a slow decoder
STUCK = 900  # seconds of a batch after which its process is taken for asleep
MAX_PIXELS = 4096  # that a mutant may claim: a large picture rightly takes seconds
BYTES = 4096  # a golden file longer than that is not used, nor one of more than `BASE_PIXELS`
BASE_PIXELS = 2000
IMAGE_SHARE = 0.2
POSITIONS = 64  # bytes of a golden file in one exhaustive batch


@dataclass(frozen=True)
class Config:
    """What is mutated, and how; ``count`` of mutants is no part of it. ``bases``: a digest."""

    seed: int = 0
    batch: int = 2000
    memory: int = MEMORY
    seconds: int = SECONDS
    max_pixels: int = MAX_PIXELS
    image_share: float = IMAGE_SHARE
    bases: str = ""


class Base(NamedTuple):
    """What mutants are made of. ``kind``: ``inr``, ``fmm`` or ``image``."""

    name: str
    kind: str
    data: bytes


class Mutant(NamedTuple):
    """``how``: the kind of damage; ``repaired``: the checksum was made right again."""

    base: Base
    how: str
    repaired: bool
    data: bytes


# ---------------------------------------------------------------------------- bases


@lru_cache
def stream_bases() -> tuple[Base, ...]:
    """The golden streams that are small, of whatever codec there is."""
    found = []
    for path in sorted(GOLDEN.iterdir()):
        data = path.read_bytes() if path.suffix in (".inr", Fmm.suffix) else b""
        if not 0 < len(data) <= BYTES:
            continue
        if path.suffix == Fmm.suffix:
            found.append(Base(path.name, "fmm", data))
            continue
        stream = bitstream.peek(data)
        if stream.height * stream.width <= BASE_PIXELS:
            found.append(Base(path.name, "inr", data))
    return tuple(found)


@lru_cache
def image_bases() -> tuple[Base, ...]:
    """A small picture in every format that `read_image` reads, in several kinds of it."""
    import PIL.Image

    rng = np.random.default_rng(0)
    y, x = np.mgrid[:20, :24]
    smooth = np.stack([8 * y, 9 * x, 255 - 5 * (x + y)], -1) + rng.integers(0, 20, (20, 24, 3))
    picture = PIL.Image.fromarray(smooth.clip(0, 255).astype(np.uint8))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    kinds: dict[str, tuple[str, str, dict[str, Any]]] = {
        "png": ("RGB", "PNG", {}),
        "png-palette": ("P", "PNG", {}),
        "png-alpha": ("RGBA", "PNG", {}),
        "jpeg": ("RGB", "JPEG", {"quality": 70, "exif": exif}),
        "jpeg-progressive": ("RGB", "JPEG", {"quality": 70, "progressive": True}),
        "jpeg-grey": ("L", "JPEG", {"quality": 70}),
        "tiff": ("RGB", "TIFF", {}),
        "tiff-lzw": ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        "tiff-deflate": ("L", "TIFF", {"compression": "tiff_deflate"}),
        "tiff-jpeg": ("RGB", "TIFF", {"compression": "jpeg"}),
        "webp": ("RGB", "WEBP", {"quality": 60}),
        "webp-lossless": ("RGB", "WEBP", {"lossless": True, "exif": exif}),
        "bmp": ("RGB", "BMP", {}),
        "ppm": ("RGB", "PPM", {}),
    }
    found = []
    for name, (mode, format_name, options) in kinds.items():
        buffer = io.BytesIO()
        picture.convert(mode).save(buffer, format_name, **options)
        found.append(Base(name, "image", buffer.getvalue()))
    return tuple(found)


@lru_cache
def whole() -> frozenset[bytes]:
    """The bytes of all bases: no mutants."""
    return frozenset(base.data for base in (*stream_bases(), *image_bases()))


def digest_of_bases() -> str:
    """First digits of the SHA-256 of all that is mutated, so that other bases are another run.

    Of pictures their names only: another version of Pillow writes them in other bytes.
    """
    streams = {base.name: np.frombuffer(base.data, np.uint8) for base in stream_bases()}
    return trees.digest(streams, json.dumps([base.name for base in image_bases()])).hex()[:8]


# ---------------------------------------------------------------------------- damage

NUMBERS = (0, 1, 2, 3, 63, 64, 127, 128, 255, 256, 4095, 65535, 1 << 16, 1 << 20, (1 << 26) - 1,
           1 << 26, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 34)  # fmt: skip
"""Where counts and lengths go wrong."""


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(8 * len(out))
        out[at // 8] ^= 1 << at % 8
    return bytes(out)


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        near = min(len(out), rng.choice((16, 64, len(out))))
        out[rng.randrange(near)] = rng.choice((0, 255, rng.randrange(256)))
    return bytes(out)


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def extend(data: bytes, rng: random.Random) -> bytes:
    more = rng.randbytes(rng.choice((1, 2, 4, 100)))
    at = rng.choice((len(data), rng.randrange(len(data))))
    return data[:at] + rng.choice((more, bytes(len(more)))) + data[at:]


def splice(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """The head of one and the tail of another, or of itself."""
    donor = rng.choice((data, other))
    return data[: rng.randrange(len(data))] + donor[rng.randrange(len(donor)) :]


def put_number(data: bytes, rng: random.Random) -> bytes:
    """A hostile number of 2 or 4 bytes, in either order, mostly near the front."""
    size, order = rng.choice((("H", 65535), ("I", (1 << 32) - 1))), rng.choice("<>")
    letter, largest = size
    packed = struct.pack(order + letter, min(rng.choice(NUMBERS), largest))
    at = rng.randrange(min(len(data), rng.choice((32, 128, len(data)))))
    return data[:at] + packed + data[at + len(packed) :]


class Parts:
    """A container taken apart, so that each field can be given any bytes."""

    def __init__(self, data: bytes):
        stream = bitstream.peek(data)
        self.head = bytearray(data[: len(bitstream.MAGIC) + 2])
        self.size = [bitstream._varint(stream.height), bitstream._varint(stream.width)]
        self.count = len(stream.sections)
        self.lengths = [bitstream._varint(len(s)) for s in stream.sections[:-1]]
        self.sections = list(stream.sections)
        self.checksum = data[-4:]

    def join(self) -> bytes:
        count = bytes([self.count % 256])
        return b"".join(
            [self.head, *self.size, count, *self.lengths, *self.sections, self.checksum]
        )


def varint(rng: random.Random) -> bytes:
    """A hostile number as a varint, sometimes padded or without an end."""
    plain = bitstream._varint(rng.choice(NUMBERS))
    padded = plain[:-1] + bytes([plain[-1] | 128]) + bytes(rng.randrange(1, 3))
    return rng.choice((plain, plain, plain, padded, b"\xff" * rng.randrange(1, 12)))


def edit_header(data: bytes, rng: random.Random) -> bytes:
    """Version, codec tag or number of sections."""
    parts = Parts(data)
    where = rng.randrange(4)
    if where < 2:
        parts.head[len(bitstream.MAGIC) + where] = rng.choice((rng.randrange(8), 255))
    elif where == 2:
        parts.count = rng.choice((0, parts.count - 1, parts.count + 1, 255))
    else:
        parts.head[rng.randrange(3)] = rng.randrange(256)
    return parts.join()


def edit_size(data: bytes, rng: random.Random) -> bytes:
    """Another height or width, also none that is one."""
    parts = Parts(data)
    parts.size[rng.randrange(2)] = rng.choice((varint(rng), bytes([rng.randrange(1, 65)])))
    return parts.join()


def edit_lengths(data: bytes, rng: random.Random) -> bytes:
    """A section that claims another length than it has."""
    parts = Parts(data)
    if not parts.lengths:
        return edit_size(data, rng)
    i = rng.randrange(len(parts.lengths))
    near = max(0, len(parts.sections[i]) + rng.randrange(-3, 4))
    parts.lengths[i] = rng.choice((varint(rng), bitstream._varint(near)))
    return parts.join()


def edit_section(data: bytes, rng: random.Random) -> bytes:
    """Another content of a section, whose length is right or as it was."""
    parts = Parts(data)
    i = rng.randrange(len(parts.sections))
    old = parts.sections[i]
    some = rng.choice((flip_bits, change_bytes, truncate, extend, put_number)) if old else extend
    if not old:
        new = rng.randbytes(rng.randrange(1, 50))
    else:
        filled = bytes([rng.choice((0, 255, rng.randrange(256)))]) * len(old)
        new = rng.choice((some(old, rng), some(old, rng), filled, rng.randbytes(len(old)), b""))
    parts.sections[i] = new
    if i < len(parts.lengths):
        parts.lengths[i] = bitstream._varint(len(new))
    return parts.join()


def swap_sections(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A section of another file, or the file's own in another order."""
    parts, theirs = Parts(data), Parts(other)
    i = rng.randrange(len(parts.sections))
    parts.sections[i] = rng.choice([*theirs.sections, *parts.sections])
    parts.lengths = [bitstream._varint(len(s)) for s in parts.sections[:-1]]
    return parts.join()


Damage = Callable[[bytes, bytes, random.Random], bytes]


def alone(damage: Callable[[bytes, random.Random], bytes]) -> Damage:
    """A damage that needs no second file."""
    return lambda data, other, rng: damage(data, rng)


ANY: dict[str, Damage] = {
    "bits": alone(flip_bits),
    "bytes": alone(change_bytes),
    "cut": alone(truncate),
    "extended": alone(extend),
    "spliced": splice,
    "numbers": alone(put_number),
}
DAMAGES: dict[str, dict[str, Damage]] = {
    "inr": ANY
    | {
        "header": alone(edit_header),
        "size": alone(edit_size),
        "lengths": alone(edit_lengths),
        "section": alone(edit_section),
        "swapped": swap_sections,
    },
    "fmm": ANY,
    "image": ANY,
}


def mutant(config: Config, batch: int, index: int) -> Mutant:
    """The damaged file of this place: the same for equal arguments, on every machine."""
    rng = random.Random(f"{config.seed} {batch} {index}")
    bases = image_bases() if rng.random() < config.image_share else stream_bases()
    base = rng.choice(bases)
    other = rng.choice([one for one in bases if one.kind == base.kind])
    how = rng.choice(list(DAMAGES[base.kind]))
    data = DAMAGES[base.kind][how](base.data, other.data, rng)
    if rng.random() < 0.2:
        data = ANY["bits"](data, data, rng) if data else data
    wants_repair = rng.random() < 0.5
    mended = REPAIRS[base.kind](data, base) if wants_repair else None
    return Mutant(base, how, mended is not None, data if mended is None else mended)


# ---------------------------------------------------------------------------- checksums


def repair_inr(data: bytes, base: Base) -> bytes | None:
    """The file with the checksum that its content asks for; None if it is not even a container."""
    try:
        bitstream.peek(data)
    except BitstreamError:
        return None
    context = b""
    for known in (data, base.data):  # a context that is known, or the base's
        try:
            one = bitstream.peek(known)
            codec: Any = codecs.decoder(codecs.BY_TAG[one.tag]().name, shared_of(known))
            context = codec.context(one)
            break
        except (KeyError, BitstreamError):
            continue
    return data[:-4] + zlib.crc32(context + data[:-4]).to_bytes(4, "little")


def repair_fmm(data: bytes, base: Base) -> bytes | None:
    """The same for FMM, whose checksum is in its header."""
    if len(data) < 16:
        return None
    return data[:12] + zlib.crc32(data[4:12] + data[16:]).to_bytes(4, "big") + data[16:]


def repair_image(data: bytes, base: Base) -> bytes | None:
    """A PNG with the checksums of its chunks right, as far as chunks can be told."""
    if not base.name.startswith("png") or data[:8] != base.data[:8]:
        return None
    out, at = [data[:8]], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + length]
        if at + 12 + length > len(data):
            break
        out.append(data[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big"))
        at += 12 + length
    return b"".join([*out, data[at:]])


REPAIRS: dict[str, Callable[[bytes, Base], bytes | None]] = {
    "inr": repair_inr,
    "fmm": repair_fmm,
    "image": repair_image,
}


# ---------------------------------------------------------------------------- what happens


class Reading(NamedTuple):
    """How files of a kind are read, and the error that refuses one."""

    read: Callable[[bytes], np.ndarray]
    refusal: type[Exception]


def readings(folder: Path) -> dict[str, Reading]:
    """The readers of each kind; pictures go through a file in ``folder``."""
    path = folder / "picture"

    def picture(data: bytes) -> np.ndarray:
        path.write_bytes(data)
        return read_image(path).image

    return {
        "inr": Reading(decoded, BitstreamError),
        # `describe` stops where this does.
        "each byte": Reading(
            lambda data: codecs.decode_stream(data, shared_of(data)), BitstreamError
        ),
        "fmm": Reading(lambda data: Fmm().decode([data])[0], BitstreamError),
        "image": Reading(picture, ValueError),
    }


def decoded_alone(data: bytes) -> np.ndarray:
    """What `decode_stream` makes of a stream; `describe` stops where it does."""
    return codecs.decode_stream(data, shared_of(data))


def decoded(data: bytes) -> np.ndarray:
    """What `decode_stream` makes of a stream. `describe` must not fail where it does not."""
    told = None
    try:
        told = codecs.describe(data, shared_of(data))
    except BitstreamError as error:
        one_sentence(error)
    image = codecs.decode_stream(data, shared_of(data), max_pixels=MAX_PIXELS)
    assert told is not None, "decoded, and describe refuses it"
    assert image.shape == (told.height, told.width, 3), "another size than described"
    return image


def one_sentence(error: Exception) -> None:
    """Raises AssertionError unless an error can be shown to a user as it is."""
    assert str(error) and "\n" not in str(error), f"no sentence: {error!r}"


def outcome_of(one: Mutant, reading: Reading) -> tuple[str, str]:
    """(``image``, ``refused``, ``unchanged``, ``silent`` or ``failure``, what failed)."""
    if one.data in whole():  # a splice can be all of another file
        return "unchanged", ""
    try:
        try:
            image = reading.read(one.data)
        except reading.refusal as error:
            if type(error) is not reading.refusal:
                raise
            one_sentence(error)
            return "refused", ""
        assert image.dtype == np.uint8 and image.ndim == 3 and image.size > 0, "no picture"
    except Exception as error:
        return "failure", f"{type(error).__name__}: {error}"
    if one.base.kind != "image" and not one.repaired:
        return "silent", "decoded under its old checksum"
    return "image", ""


class Task(NamedTuple):
    """A batch: mutants by number, or ``positions`` of a golden file with every other value.

    ``skip``: places at which a process died before, and which are counted by whoever asks.
    """

    batch: int
    base: str | None
    positions: tuple[int, int]
    skip: tuple[int, ...] = ()


def mutants(config: Config, task: Task) -> Iterator[tuple[int, Mutant]]:
    """(place, mutant) of a batch, without those to skip."""
    if task.base is None:
        for index in range(config.batch):
            if index not in task.skip:
                yield index, mutant(config, task.batch, index)
        return
    [base] = [one for one in stream_bases() if one.name == task.base]
    data = bytearray(base.data)
    for at in range(*task.positions):
        was = data[at]
        for value in range(256):
            data[at] = value
            if value != was and 256 * at + value not in task.skip:
                yield 256 * at + value, Mutant(base, "each byte", False, bytes(data))
        data[at] = was


def key_of(one: Mutant) -> str:
    """What a count is of: kind, damage, and whether the checksum was repaired."""
    return f"{one.base.kind}|{one.how}|{'repaired' if one.repaired else 'as it is'}"


def serve() -> None:
    """A worker: tasks as lines of JSON from standard input, counts back, until it closes.

    The place that is being read stands in the file that is named first, for whoever finds this
    process dead: more CPU time than allowed ends it, wherever it is.
    """
    shared = Path(sys.argv[-1])
    config = Config(**json.loads(sys.stdin.readline()))
    stream_bases()
    image_bases()
    resource.setrlimit(resource.RLIMIT_AS, (config.memory, config.memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder, shared.open("r+b") as file:
        place = mmap.mmap(file.fileno(), 8)
        reading = readings(Path(folder))
        for line in sys.stdin:
            task = Task(*json.loads(line))
            counts: Counter[str] = Counter()
            failures: list[tuple[int, str]] = []
            for index, one in mutants(config, task):
                place[:] = struct.pack("<q", index)
                signal.setitimer(signal.ITIMER_PROF, config.seconds)
                is_inr_byte = one.how == "each byte" and one.base.kind == "inr"
                outcome, reason = outcome_of(
                    one, reading["each byte" if is_inr_byte else one.base.kind]
                )
                signal.setitimer(signal.ITIMER_PROF, 0)
                counts[f"{key_of(one)}|{outcome}"] += 1
                if outcome in ("failure", "silent"):
                    failures.append((index, reason))
            print(json.dumps([counts, failures]), flush=True)


# ---------------------------------------------------------------------------- the run


class Worker:
    """A process that reads mutants, started again where one kills it."""

    def __init__(self, config: Config, command: Sequence[str]):
        self._config, self._command = config, command
        self._process: subprocess.Popen[str] | None = None
        self._place = Path(tempfile.mkstemp(prefix="inrjax-fuzz-")[1])
        self._place.write_bytes(bytes(8))

    def run(self, task: Task) -> tuple[Counter[str], list[tuple[int, str]]]:
        """Counts and failures (place, reason) of a batch; what killed a process is among them."""
        killed: dict[int, str] = {}
        while True:
            line, status = self._ask(task._replace(skip=tuple(killed)))
            if line:
                counts, failures = json.loads(line)
                for index in killed:
                    counts[f"{key_of(find(self._config, task, index))}|failure"] = (
                        counts.get(f"{key_of(find(self._config, task, index))}|failure", 0) + 1
                    )
                return Counter(counts), [*map(tuple, failures), *killed.items()]
            [index] = struct.unpack("<q", self._place.read_bytes())
            if index in killed:
                raise RuntimeError(f"the worker dies between files, with status {status}")
            name = signal.Signals(-status).name if status < 0 else f"exit code {status}"
            killed[index] = f"the process died of {name}"

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._place.unlink(missing_ok=True)

    def _ask(self, task: Task) -> tuple[str, int]:
        """The answer's line, or "" and the exit status of a process that died."""
        if self._process is None:
            self._start()
        assert self._process is not None
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        timer = Timer(STUCK, self._process.kill)
        timer.start()
        try:
            _put(stdin, json.dumps(task))
            line = stdout.readline()
        except OSError:
            line = ""
        finally:
            timer.cancel()
        if line:
            return line, 0
        status = self._process.wait()
        self._process = None
        return "", status

    def _start(self) -> None:
        # One thread and one arena: address space that nobody uses is no memory.
        environment = {
            **os.environ,
            "OPENBLAS_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "1",
            "INRJAX_INITS": "",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        self._process = subprocess.Popen(
            [*self._command, str(self._place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # libtiff remarks on every file
            text=True,
            env=environment,
        )
        assert self._process.stdin is not None
        _put(self._process.stdin, json.dumps(vars(self._config)))


COMMAND = (sys.executable, "-c", "from experiments.fuzz import serve; serve()")


def _put(pipe: IO[str], line: str) -> None:
    pipe.write(line + "\n")
    pipe.flush()


def find(config: Config, task: Task, index: int) -> Mutant:
    """The mutant at a place of a batch, to look at what failed."""
    return next(one for place, one in mutants(config, task._replace(skip=())) if place == index)


def tasks(config: Config, count: int, exhaustive: bool) -> list[Task]:
    """Batches of at least ``count`` mutants, and of every changed byte of the golden files."""
    random_ones = [Task(i, None, (0, 0)) for i in range(-(-count // config.batch))]
    each_byte = [
        Task(-1, base.name, (start, min(start + POSITIONS, len(base.data))))
        for base in stream_bases()
        for start in range(0, len(base.data), POSITIONS)
    ]
    return [*random_ones, *(each_byte if exhaustive else [])]


def name_of(task: Task) -> str:
    """A task as text, for the list of those that are done."""
    return f"{task.batch}" if task.base is None else f"{task.base}:{task.positions[0]}"


def run(
    config: Config, count: int, exhaustive: bool, root: Path, workers: int = 0,
    command: Sequence[str] = COMMAND,
) -> Path:  # fmt: skip
    """Read the mutants that were not read yet; returns the run folder."""
    config = replace(config, bases=digest_of_bases())
    folder = results.run_folder(root, config)
    state = _load(folder)
    waiting = [t for t in tasks(config, count, exhaustive) if name_of(t) not in state["done"]]
    queue, lock = iter(waiting), Lock()

    def work(_: int) -> None:
        worker = Worker(config, command)
        try:
            while (task := _next(queue, lock)) is not None:
                counts, failures = worker.run(task)
                with lock:
                    _keep(folder, config, state, task, counts, failures)
        finally:
            worker.stop()

    number = min(workers or cpu_count(), len(waiting))
    if number:  # first, so that a run that is stopped has it
        results.write_json(folder / "provenance.json", results.provenance("cpu"))
        with ThreadPoolExecutor(number) as pool:
            list(pool.map(work, range(number)))
    results.write_text(folder / "table.md", table(config, state))
    return folder


def _next(queue: Iterator[Task], lock: Lock) -> Task | None:
    with lock:
        return next(queue, None)


def _load(folder: Path) -> dict[str, Any]:
    path = folder / "counts.json"
    if path.exists():
        return json.loads(path.read_text("utf-8"))
    return {"done": [], "counts": {}, "failures": []}


def _keep(
    folder: Path, config: Config, state: dict[str, Any], task: Task, counts: Mapping[str, int],
    failures: Sequence[tuple[int, str]],
) -> None:  # fmt: skip
    state["done"].append(name_of(task))
    for key, number in counts.items():
        state["counts"][key] = state["counts"].get(key, 0) + number
    for index, reason in failures:
        one = find(config, task, index)
        name = f"{one.base.kind}_{name_of(task).replace(':', '_')}_{index}"
        (folder / "failures").mkdir(exist_ok=True)
        (folder / "failures" / name).write_bytes(one.data)
        state["failures"].append({"file": name, "damage": one.how, "reason": reason})
    results.write_json(folder / "counts.json", state)


OUTCOMES = ("image", "refused", "unchanged", "silent", "failure")


def table(config: Config, state: Mapping[str, Any]) -> str:
    """Outcomes by kind of file and damage, and the sentence that matters."""
    from experiments.kodak_rd import markdown  # which the workers need not import

    rows: dict[tuple[str, str, str], Counter[str]] = {}
    for key, number in state["counts"].items():
        kind, how, checksum, outcome = key.split("|")
        rows.setdefault((kind, how, checksum), Counter())[outcome] += number
    lines = [
        [*row, f"{sum(c.values())}", *(f"{c[name]}" for name in OUTCOMES)]
        for row, c in sorted(rows.items())
    ]
    total = sum(rows.values(), Counter())
    each = sum((c for (_, how, _), c in rows.items() if how == "each byte"), Counter())
    header = ["file", "damage", "checksum", "mutants", *OUTCOMES]
    return (
        "\n\n".join(
            [
                f"# Damaged files, seed {config.seed}",
                f"{total.total() - each.total()} mutants of {len(stream_bases())} golden streams "
                f"and {len(image_bases())} pictures: failures: {total['failure']}, silent decodes: "
                f"{total['silent']}. Beside them, every other value of every byte of the golden "
                f"streams: {each.total()} files, {each['silent'] + each['image']} of them decoded. "
                f"Limits: {config.seconds} s of CPU, {config.memory >> 20} MiB of address space.",
                markdown(header, lines),
                "image: read; refused: by one sentence; unchanged: the damage made the same file; "
                "silent: decoded although the checksum was left as it is; failure: anything else. "
                "A repaired checksum may well belong to a file that decodes.",
            ]
        )
        + "\n"
    )


@dataclass(frozen=True)
class Options:
    """The command line."""

    count: int = 1_000_000
    """Mutants, rounded up to whole batches."""
    config: Config = Config()
    each_byte: bool = True
    """Every value of every byte of the golden files, too. With --count 0 and without: the table."""
    output: Path = ROOT / "results" / "fuzz"
    workers: int = 0
    """Processes; 0 for one a core."""
    smoke: bool = False


SMOKE = Config(batch=150)


def main(options: Options) -> Path:
    """Run, print the table; returns the run folder."""
    if options.smoke:
        folder = run(SMOKE, 300, False, options.output, options.workers)
    else:
        folder = run(
            options.config, options.count, options.each_byte, options.output, options.workers
        )
    print((folder / "table.md").read_text("utf-8"))
    return folder


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
