"""Codecs x images -> one row each, measured on real files that another process decodes."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import IO, Any, NamedTuple, TypeAlias

import numpy as np

from inrjax import metrics, results
from inrjax.machine import cpu_count
from inrjax.trees import digest, write_atomic
from inrjax.types import Codec, Image, OnProgress, RDPoint


class Decoded(NamedTuple):
    """One decoded file: its image and warm seconds, or the reason why there is none."""

    image: Image | None
    seconds: float
    error: str | None = None


DecodeFiles: TypeAlias = Callable[[Codec, Sequence[Path]], list[Decoded]]
"""Decodes the files of one codec; a file that fails is a `Decoded` with an error."""

Decoder: TypeAlias = Callable[[], AbstractContextManager[DecodeFiles]]
"""Opens what decodes for one evaluation: `decode_in_process` or `decode_here`."""


class Failure(NamedTuple):
    """One image that a codec could not encode, or could not decode again."""

    codec: str
    setting: str
    image: str
    reason: str
    cause: Exception | None


class EvaluationError(ValueError):
    """Some files failed; ``failures`` names them, and every other row is in the table."""

    def __init__(self, failures: Sequence[Failure], table: Path):
        shown = "; ".join(f"{f.codec} {f.setting} {f.image} ({f.reason})" for f in failures[:5])
        more = f"; and {len(failures) - 5} more" if len(failures) > 5 else ""
        super().__init__(f"{len(failures)} failed, the other rows are in {table}: {shown}{more}")
        self.failures = list(failures)


# Decoding, here or in another process


def decode_files(codec: Codec, paths: Sequence[Path]) -> list[Decoded]:
    """Decode each file alone, twice: the first decode gives the image, the second the seconds.

    The seconds are thereby warm: without imports, compilation and reading the file.
    """
    return [_decode_file(codec, path) for path in paths]


def _decode_file(codec: Codec, path: Path) -> Decoded:
    try:
        stream = path.read_bytes()
        [image] = codec.decode([stream])
        start = perf_counter()
        codec.decode([stream])
        return Decoded(image, perf_counter() - start)
    except Exception as error:
        return Decoded(None, math.nan, _sentence(error))


@contextmanager
def decode_here() -> Iterator[DecodeFiles]:
    """Decode in this process: for a codec that is defined in a notebook or a script.

    Another process cannot import such a codec. What is given up is the proof that the file alone,
    with the codec's own fields, is enough.
    """
    yield decode_files


@contextmanager
def decode_in_process() -> Iterator[DecodeFiles]:
    """Decode in one other Python process, which gets the pickled codec and the files' paths.

    The process has this one's interpreter, ``sys.path`` and environment, starts with the first
    file and ends with the context. A file on which it dies is reported, and the others are decoded
    by a new one. Raises ValueError if it cannot start, or cannot import the codec.
    """
    worker = _Worker()
    try:
        yield worker.decode_files
    finally:
        worker.stop()


class _Died(Exception):
    """The other process ended before it answered; the text is its last line of errors."""


class _Worker:
    """The other process, seen from this one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None

    def decode_files(self, codec: Codec, paths: Sequence[Path]) -> list[Decoded]:
        """As `decode_files`, over there."""
        with tempfile.TemporaryDirectory(prefix="inrjax-") as folder:
            request = pickle.dumps(([str(p.absolute()) for p in paths], folder, _pickled(codec)))
            try:
                reply = self._ask(request)
            except _Died as died:
                if len(paths) > 1:  # one of them killed it: find out which
                    return [self.decode_files(codec, [path])[0] for path in paths]
                return [Decoded(None, math.nan, f"the decoding process died: {died}")]
            if isinstance(reply, str):
                raise ValueError(
                    f"the decoding process cannot use the codec {codec.name} ({reply}): define it "
                    "in an importable module, or pass decode=decode_here"
                )
            return [_load_decoded(*item) for item in reply]

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def _ask(self, request: bytes) -> Any:
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _send(self._process.stdin, request)
            return pickle.loads(_receive(self._process.stdout))
        except (OSError, EOFError) as error:
            raise _Died(self._last_words()) from error

    def _start(self) -> None:
        # -P keeps the working directory, where any file may shadow a module, off the path.
        program = (
            "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
            "from inrjax.evaluate import serve_decoding; serve_decoding()"
        )
        # This process may hold most of an accelerator's memory: take only what is needed there.
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
        search = [os.path.abspath(entry) for entry in sys.path]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (`stop` closes it)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", program, json.dumps(search)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment,
            )
            assert self._process.stdout is not None
            _receive(self._process.stdout)
        except (OSError, EOFError) as error:
            reason = self._last_words() if self._process else str(error)
            raise ValueError(
                f"the decoding process did not start ({reason}): pass decode=decode_here"
            ) from error

    def _last_words(self) -> str:
        """The last line the process wrote to its standard error; it is gone after this."""
        assert self._process is not None
        assert self._errors is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        code = self._process.returncode
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        self.stop()
        return lines[-1] if lines else f"exit code {code}"


def serve_decoding() -> None:
    """The other process's main loop: requests from standard input, until it closes."""
    # Whatever a codec prints must not land between the replies.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _send(replies, b"ready")
    folder = None
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            paths, folder, pickled_codec = pickle.loads(_receive(sys.stdin.buffer))
            _send(replies, pickle.dumps(_reply(paths, folder, pickled_codec)))
    if folder is not None:  # whoever asked was killed, and cannot delete it any more
        shutil.rmtree(folder, ignore_errors=True)


def _reply(
    paths: Sequence[str], folder: str, pickled_codec: bytes
) -> list[tuple[str | None, float, str | None]] | str:
    """For each file (.npy path, seconds, error), or why the codec cannot be used."""
    try:
        codec = pickle.loads(pickled_codec)
    except Exception as error:
        return _sentence(error)
    reply = []
    for index, path in enumerate(paths):
        image, seconds, error = _decode_file(codec, Path(path))
        saved = None
        if image is not None:
            saved = os.path.join(folder, f"{index}.npy")
            np.save(saved, image, allow_pickle=False)
        reply.append((saved, seconds, error))
    return reply


def _load_decoded(saved: str | None, seconds: float, error: str | None) -> Decoded:
    return Decoded(np.load(saved, allow_pickle=False) if saved else None, seconds, error)


def _pickled(codec: Codec) -> bytes:
    """The codec as bytes that another process can read, or a ValueError that says what to do."""
    kind = type(codec)
    reason = f"{kind.__qualname__} is defined in a notebook or a script"
    if kind.__module__ != "__main__":
        try:
            return pickle.dumps(codec)
        except Exception as error:
            reason = _sentence(error)
    raise ValueError(
        f"the codec {codec.name} cannot go to another process ({reason}): define it in an "
        "importable module, or pass decode=decode_here"
    )


def _send(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(len(message).to_bytes(8, "little") + message)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    head = pipe.read(8)
    message = pipe.read(int.from_bytes(head, "little")) if len(head) == 8 else b""
    if not message or len(message) != int.from_bytes(head, "little"):
        raise EOFError("the pipe was closed")
    return message


def _sentence(error: Exception) -> str:
    """An error as one line; our own errors speak for themselves, others need their type."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


# The evaluation


def evaluate(
    codecs: Sequence[Codec],
    images: Mapping[str, Image],
    folder: Path,
    *,
    batch_size: int,
    on_progress: OnProgress | None = None,
    decode: Decoder = decode_in_process,
) -> list[RDPoint]:
    """Encode every image with every codec, decode the files, measure: a row for each pair.

    ``images`` maps a name to a uint8 (height, width, 3) array. The streams are written to
    ``folder/streams/<codec>/<setting>/<image><suffix>``, and after each batch of up to
    ``batch_size`` images its rows are added to ``folder/rows.csv``: a killed evaluation loses at
    most the current batch. A second call measures only what is missing; a row counts as done
    if its image has the same pixels, its codec the same name, setting and seed, and its stream
    file the recorded SHA-256. Other fields of a codec are not recorded: one folder belongs to one
    configuration (`inrjax.results.run_folder`).

    Metrics are taken on the images that ``decode`` gives back from the files: `decode_in_process`
    by default, or `decode_here`; the SSIM of an image with a side under 11 pixels is None. Encode
    seconds are a batch's wall seconds, compilation included, divided by its size; decode seconds
    are those of a second, warm decode of the file alone.
    ``on_progress`` counts hundredths of a (codec, image) pair.

    Returns the rows by codec, then by image. Raises ValueError for bad arguments or a folder that
    cannot be written, and at the end `EvaluationError` if any image failed under any codec.
    """
    folder = Path(folder)
    _check_arguments(codecs, images, batch_size)
    if decode is decode_in_process:
        for codec in codecs:  # say so now, rather than after the first long encode
            _pickled(codec)
    table = folder / "rows.csv"
    done = _resume(table, codecs, images)
    progress = _Progress(on_progress, total=len(codecs) * len(images), done=len(done))
    failures: list[Failure] = []
    with decode() as decode_some, progress.passing_on_interrupts():
        for codec, names in _batches(codecs, images, done, batch_size):
            batch = {name: images[name] for name in names}
            rows, failed = _measure_batch(codec, batch, folder, progress, decode_some)
            results.append_rows(table, rows)
            done |= {_key(row): row for row in rows}
            failures += failed
            progress.finish(len(names))
    if failures:
        raise EvaluationError(failures, table) from failures[0].cause
    return [done[codec.name, codec.setting, name] for codec in codecs for name in images]


Key: TypeAlias = tuple[str, str, str]


def _key(row: RDPoint) -> Key:
    return row.codec, row.setting, row.image


def _check_arguments(codecs: Sequence[Codec], images: Mapping[str, Image], batch_size: int) -> None:
    if not codecs or not images:
        raise ValueError(f"got {len(codecs)} codecs and {len(images)} images, expected some")
    if batch_size < 1:
        raise ValueError(f"got batch_size {batch_size}, expected 1 or more")
    for name, image in images.items():
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(
                f"image {name} has dtype {image.dtype} and shape {image.shape}, "
                "expected uint8 (height, width, 3)"
            )
    _check_distinct([safe_name(name) for name in images], "images")
    _check_distinct([f"{safe_name(c.name)} {safe_name(c.setting)}" for c in codecs], "codecs")


def _check_distinct(names: Sequence[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name.casefold() in seen:  # some file systems do not tell upper from lower case
            raise ValueError(f"two {what} have the name {name}: give them different names")
        seen.add(name.casefold())


def _resume(
    table: Path, codecs: Sequence[Codec], images: Mapping[str, Image]
) -> dict[Key, RDPoint]:
    """The rows that need no work; the table is left with these and with rows of others."""
    folder = table.parent
    _make_folder(folder)
    _remove_leftovers(folder)
    codec_of = {(c.name, c.setting, name): c for c in codecs for name in images}
    digests = {name: image_digest(image) for name, image in images.items()}
    recorded = read_digests(folder / "images.json")
    changed = {name for name in images if recorded.get(name) != digests[name]}
    rows = results.read_rows(table) if table.exists() else []
    kept = {
        _key(row): row
        for row in rows
        if row.image not in changed
        and (_key(row) not in codec_of or _is_done(row, codec_of[_key(row)], folder))
    }
    # In this order a kill in between leaves no row of another picture that looks current.
    if list(kept.values()) != rows:
        results.write_rows(table, kept.values())
    results.write_json(folder / "images.json", recorded | digests)
    return {key: row for key, row in kept.items() if key in codec_of}


def _remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of an evaluation that was killed while it wrote.

    Nothing else there is hidden: `safe_name` begins no name with a dot.
    """
    names = ("rows.csv", "images.json")
    hidden = [path for name in names for path in folder.glob(f".{name}.*")]
    for path in [*hidden, *(folder / "streams").rglob(".*")]:
        with suppress(OSError):
            path.unlink()


def image_digest(image: Image) -> str:
    """The SHA-256 of an image's pixels and shape, as ``images.json`` of a run has it."""
    return digest({"image": image}).hex()


def read_digests(path: Path) -> dict[str, str]:
    """Image name -> `image_digest`, from ``images.json``; empty if it is not there.

    Raises ValueError if it cannot be read.
    """
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"cannot read {path}: {error}; delete it to measure anew") from error


def _is_done(row: RDPoint, codec: Codec, folder: Path) -> bool:
    if row.seed != getattr(codec, "seed", None):
        return False
    path = stream_path(folder, codec, row.image)
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == row.digest


def _batches(
    codecs: Sequence[Codec], images: Mapping[str, Image], done: Mapping[Key, Any], size: int
) -> Iterator[tuple[Codec, list[str]]]:
    for codec in codecs:
        todo = [name for name in images if (codec.name, codec.setting, name) not in done]
        for start in range(0, len(todo), size):
            yield codec, todo[start : start + size]


class _Encoded(NamedTuple):
    stream: bytes | None
    seconds: float
    batch_size: int
    error: Exception | None = None


def _measure_batch(
    codec: Codec,
    images: Mapping[str, Image],
    folder: Path,
    progress: _Progress,
    decode_some: DecodeFiles,
) -> tuple[list[RDPoint], list[Failure]]:
    """Encode, write, decode and measure a batch: the rows, and the images that failed."""
    encoded = dict(
        zip(
            images, _encode(codec, list(images.values()), progress.within(len(images))), strict=True
        )
    )
    paths = {
        name: _write_stream(stream_path(folder, codec, name), one.stream)
        for name, one in encoded.items()
        if one.stream is not None
    }
    decoded = dict(zip(paths, decode_some(codec, list(paths.values())), strict=True))
    reasons = {name: _reason(images[name], encoded[name], decoded.get(name)) for name in images}
    failures = [
        Failure(codec.name, codec.setting, name, reason, encoded[name].error)
        for name, reason in reasons.items()
        if reason is not None
    ]
    # The metrics release the interpreter's lock; four images at once bound the memory.
    with ThreadPoolExecutor(min(cpu_count(), 4)) as pool:
        rows = pool.map(
            lambda name: _row(codec, name, images[name], encoded[name], decoded[name]),
            [name for name, reason in reasons.items() if reason is None],
        )
        return list(rows), failures


def _encode(
    codec: Codec, images: Sequence[Image], on_progress: OnProgress | None
) -> list[_Encoded]:
    """Encode as one batch, or one by one if the batch fails, so that one image fails alone."""
    start = perf_counter()
    try:
        streams = codec.encode(images, on_progress)
        if len(streams) != len(images):
            raise ValueError(f"the codec gave {len(streams)} streams for {len(images)} images")
    except Exception as error:
        if len(images) == 1:
            return [_Encoded(None, math.nan, 1, error)]
        return [_encode(codec, [image], None)[0] for image in images]
    seconds = (perf_counter() - start) / len(images)
    return [_Encoded(stream, seconds, len(images)) for stream in streams]


def _reason(image: Image, encoded: _Encoded, decoded: Decoded | None) -> str | None:
    """Why there is nothing to measure for this image, or None."""
    if encoded.error is not None:
        return _sentence(encoded.error)
    if decoded is None or decoded.image is None:
        return decoded.error if decoded is not None else "it was not decoded"
    image_hat = decoded.image
    if image_hat.dtype == np.uint8 and image_hat.shape == image.shape:
        return None
    got = f"{image_hat.dtype} {image_hat.shape}"
    return f"decoded to {got}, expected uint8 {image.shape}"


def _row(codec: Codec, name: str, image: Image, encoded: _Encoded, decoded: Decoded) -> RDPoint:
    assert encoded.stream is not None
    assert decoded.image is not None
    height, width, _ = image.shape
    return RDPoint(
        codec=codec.name,
        setting=codec.setting,
        image=name,
        height=height,
        width=width,
        num_bytes=len(encoded.stream),
        bpp=metrics.bpp(len(encoded.stream), height, width),
        **qualities(image, decoded.image),
        encode_seconds=encoded.seconds,
        decode_seconds=decoded.seconds,
        batch_size=encoded.batch_size,
        seed=getattr(codec, "seed", None),
        digest=hashlib.sha256(encoded.stream).hexdigest(),
    )


def qualities(image: Image, image_hat: Image) -> dict[str, Any]:
    """The quality columns of a row: the PSNRs in dB, and the similarities, None if too small."""
    shorter = min(image.shape[:2])
    pair = image, image_hat
    return {
        "psnr": metrics.psnr(*pair),
        "psnr_y": metrics.psnr_y(*pair),
        "psnr_ycbcr": metrics.psnr_ycbcr(*pair),
        "ssim": metrics.ssim(*pair) if shorter >= metrics.WINDOW else None,
        "ms_ssim": metrics.ms_ssim(*pair) if shorter >= metrics.MS_SSIM_MIN_SIDE else None,
    }


# Files


def stream_path(folder: Path, codec: Codec, image_name: str) -> Path:
    """``folder/streams/<codec>/<setting>/<image><suffix>``, each part made safe."""
    suffix = getattr(codec, "suffix", ".bin")
    return row_stream_path(folder, codec.name, codec.setting, image_name, suffix)


def row_stream_path(folder: Path, codec: str, setting: str, image_name: str, suffix: str) -> Path:
    """As `stream_path`, by the names that a row of ``folder/rows.csv`` has."""
    name = safe_name(image_name) + suffix
    return Path(folder) / "streams" / safe_name(codec) / safe_name(setting) / name


def safe_name(text: str) -> str:
    """``text`` as one part of a path on any system: letters, digits and ``. _ = + -`` only.

    It is the text itself where that is already safe; else what is safe of it, and 12 hex digits
    of its SHA-256, so that different texts stay different.
    """
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,79}", text) and not text.endswith("."):
        return text
    cleaned = re.sub(r"[^A-Za-z0-9._=+-]+", "_", text).strip("._")[:60]
    return (
        f"{cleaned or 'x'}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
    )


def _write_stream(path: Path, stream: bytes) -> Path:
    _make_folder(path.parent)
    try:
        write_atomic(path, stream)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error
    return path


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {folder}: {error.strerror}") from error


# Progress


class _Interrupt(BaseException):
    """Carries what the caller's callback raised past every ``except Exception`` on the way."""

    def __init__(self, error: BaseException):
        super().__init__()
        self.error = error


class _Progress:
    """The caller's callback, in hundredths of a (codec, image) pair."""

    def __init__(self, on_progress: OnProgress | None, total: int, done: int):
        self._on_progress, self._total, self._done = on_progress, total, done

    def within(self, count: int) -> OnProgress | None:
        """A callback for one encode of ``count`` images, in whatever unit the codec counts."""
        if self._on_progress is None:
            return None
        return lambda done, total: self._report(100 * count * done // max(total, 1))

    def finish(self, count: int) -> None:
        """Count ``count`` pairs as done."""
        self._done += count
        self._report(0)

    def _report(self, hundredths: int) -> None:
        if self._on_progress is None:
            return
        try:
            self._on_progress(100 * self._done + hundredths, 100 * self._total)
        except BaseException as error:
            raise _Interrupt(error) from error

    @contextmanager
    def passing_on_interrupts(self) -> Iterator[None]:
        """Raise what the callback raised, as it was."""
        try:
            self._report(0)
            yield
        except _Interrupt as interrupt:
            raise interrupt.error from None
