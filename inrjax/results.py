"""Run folders, provenance, and the tables of measured and of published points.

Measured rows (`RDPoint`) and published ones (`PublishedPoint`) are different types in different
files, so that one can never be taken for the other.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from inrjax.machine import cpu_count
from inrjax.trees import write_atomic
from inrjax.types import RDPoint

T = TypeVar("T")

_COLUMNS = {field.name: str(field.type) for field in fields(RDPoint)}

_LATER_COLUMNS = ("psnr_y", "psnr_ycbcr")
"""Columns that tables written by version 0.1.0 do not have."""

_EARLIER_COLUMNS = tuple(name for name in _COLUMNS if name not in _LATER_COLUMNS)

_PUBLISHED_COLUMNS = ("method", "bpp", "psnr_db", "ms_ssim", "source")

_PACKAGES = (
    "inrjax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "scipy",
    "pillow",
    "imageio",
    "constriction",
    "pillow-heif",
    "imagecodecs",
    "pyvips-binary",
    "imageio-ffmpeg",
)

_PILLOW_LIBRARIES = ("libjpeg_turbo", "jpg_2000", "webp", "avif", "zlib_ng")


# Run folders


def config_hash(config: Any) -> str:
    """The first 12 hex digits of the SHA-256 of a frozen dataclass as canonical JSON.

    The JSON holds the class name of every dataclass inside too: two specs with equal fields but
    different meanings hash differently. A tuple and a list of equal items hash alike. Raises
    ValueError for anything but dataclasses, mappings with text keys, sequences, text, finite
    numbers, booleans and None: a path or an array has no text that is the same on every machine.
    """
    text = json.dumps(_plain(config, "config"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_folder(root: Path, config: Any) -> Path:
    """Make ``root/<config_hash>`` if it is not there, with the config in ``config.json``.

    The same config is the same folder. Raises ValueError as `config_hash` does, and where the
    folder cannot be made.
    """
    folder = Path(root) / config_hash(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the run folder {folder}: {error.strerror}") from error
    write_json(folder / "config.json", _plain(config, "config"))
    return folder


def _plain(value: Any, where: str) -> Any:
    """``value`` as JSON types; ``where`` names it in the error."""
    if is_dataclass(value) and not isinstance(value, type):
        pairs = {field.name: getattr(value, field.name) for field in fields(value)}
        return {"type": type(value).__name__, **_plain(pairs, where)}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    raise ValueError(
        f"{where} is {value!r}, which has no canonical text: use dataclasses, mappings with text "
        "keys, sequences, text, finite numbers, booleans or None"
    )


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with sorted keys, whole or not at all.

    Raises ValueError for a NaN or an infinity, which JSON does not have, and where the file
    cannot be written.
    """
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all; ValueError where the file cannot be written."""
    _write(path, text.encode())


# Provenance


def provenance(device: str | None = None) -> dict[str, Any]:
    """What made a result: code, versions, machine kind, date; no path, host or user name.

    Keys: ``commit`` (hex) and ``dirty`` (bool), both None outside a checkout of inrjax;
    ``versions`` by package, None where it is not installed; ``device`` as given (see
    `jax_device`); ``cpu`` (model), ``cpu_count`` (cores that this process may use), ``platform``
    (system and machine) and ``date`` (UTC, ISO 8601, to the second). JAX is not imported.
    """
    commit, dirty = _git_state()
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": {"python": platform.python_version(), **_versions()},
        "device": device,
        "cpu": _cpu_model(),
        "cpu_count": cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def note_provenance(folder: Path, record: Mapping[str, Any]) -> None:
    """Add a `provenance` to the list in the folder's provenance.json: a resumed run has several.

    With it goes a digest of the rows that are there (every rows.csv in the folder), before the
    process that it tells of adds its own: see `date_of_rows`. Of what holds a single one, as runs
    that are not resumed do, it makes a list.
    """
    path = folder / "provenance.json"
    earlier = provenances(folder) if path.exists() else []
    write_json(path, [*earlier, {**record, _ROWS_BEFORE: _rows_digest(folder)}])


_ROWS_BEFORE = "rows_before_sha256"


def _rows_digest(folder: Path) -> str:
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("rows.csv")):
        sha.update(path.read_bytes())
    return sha.hexdigest()


def provenances(folder: Path) -> list[dict[str, Any]]:
    """What made a run, oldest first: a resumed run has several entries."""
    found = json.loads((folder / "provenance.json").read_text("utf-8"))
    return found if isinstance(found, list) else [found]


def date_of_rows(folder: Path) -> datetime:
    """When the newest of the processes started that added rows to a run: one that found all rows
    there makes it no newer. Of one that did not note what was there it is taken to be so."""
    entries = provenances(folder)
    before = [entry.get(_ROWS_BEFORE) for entry in entries]
    after = [*before[1:], _rows_digest(folder)]
    adding = [
        entry
        for entry, old, new in zip(entries, before, after, strict=True)
        if old is None or old != new
    ]
    return max(datetime.fromisoformat(entry["date"]) for entry in adding or entries[:1])


def jax_device() -> str:
    """JAX's default device, as ``cpu`` or ``gpu: NVIDIA H100``. Imports JAX and starts it."""
    import jax

    device = jax.devices()[0]
    if device.device_kind.lower() == device.platform:
        return device.platform
    return f"{device.platform}: {device.device_kind}"


def _git_state() -> tuple[str | None, bool | None]:
    here = Path(__file__).resolve()
    # An environment may lie inside another project's checkout: only a tracked file counts.
    if not _git(here.parent, "ls-files", "--", here.name):
        return None, None
    commit = _git(here.parent, "rev-parse", "--verify", "HEAD")
    # Results are outputs: writing them does not change the code that made them.
    code = ("inrjax", "experiments", "pyproject.toml")
    changes = _git(here.parents[1], "status", "--porcelain", "--", *code)
    return commit or None, None if changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, stripped; None if it fails or is not installed."""
    # Inside a git hook these variables point at another repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, str | None]:
    from PIL import features

    packages = {name: _package_version(name) for name in _PACKAGES}
    # The classic codecs' bytes depend on these libraries, not on Pillow's own version.
    libraries = {f"pillow/{name}": features.version(name) for name in _PILLOW_LIBRARIES}
    return packages | libraries


def _package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else None


# Measured rows


def write_rows(path: Path, rows: Iterable[RDPoint]) -> None:
    """Write a table of measured rows, whole or not at all; `read_rows` gives them back exactly.

    Raises ValueError where the file cannot be written.
    """
    lines = [_line(list(_COLUMNS)), *(_line(_to_text(row)) for row in rows)]
    # A file name that is not valid UTF-8 reaches Python with surrogates in it.
    _write(path, "".join(lines).encode("utf-8", "surrogatepass"))


def append_rows(path: Path, rows: Sequence[RDPoint]) -> None:
    """Add rows to a table, which is made if it is not there.

    The whole file is written anew and renamed, so that an interruption leaves the old one; a table
    of an earlier version gains the columns that it lacks. Raises ValueError as `read_rows` and
    `write_rows` do.
    """
    before = read_rows(path) if Path(path).exists() else []
    write_rows(path, [*before, *rows])


def read_rows(path: Path) -> list[RDPoint]:
    """The measured rows of a table; columns that an earlier version did not write are None.

    Raises ValueError, naming the file and the line, for a missing file, other columns, a cell of
    another type, or a file that was cut short.
    """
    return _read_table(path, (tuple(_COLUMNS), _EARLIER_COLUMNS), _measured)


def _measured(row: Mapping[str, str]) -> RDPoint:
    cells: dict[str, Any] = {name: _FROM_TEXT[_COLUMNS[name]](row[name]) for name in row}
    return RDPoint(**cells)


def _optional_float(text: str) -> float | None:
    return float(text) if text else None


def _optional_int(text: str) -> int | None:
    return int(text) if text else None


_FROM_TEXT: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "float | None": _optional_float,
    "int | None": _optional_int,
}


def _to_text(row: RDPoint) -> list[str]:
    """The row's cells; `repr` of a float reads back to the same float, None is an empty cell."""
    cells = []
    for name, kind in _COLUMNS.items():
        value = getattr(row, name)
        if value is None:
            cells.append("")
        elif kind.startswith("float"):
            cells.append(repr(float(value)))
        else:
            cells.append(str(value))
    return cells


def _line(cells: Sequence[str]) -> str:
    buffer = io.StringIO(newline="")
    # Only what is in the line's end is quoted: with "\n" alone, a "\r" in a cell would end the row.
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue().removesuffix("\r\n") + "\n"


# Published points


@dataclass(frozen=True)
class PublishedPoint:
    """One point of a curve from the literature, as its source file gives it.

    ``psnr_db`` and ``ms_ssim`` (0..1) are means over the images, None where the source has none.
    """

    method: str
    bpp: float
    psnr_db: float | None
    ms_ssim: float | None
    source: str


def read_published(path: Path) -> list[PublishedPoint]:
    """The points of a CSV file with the columns method, bpp, psnr_db, ms_ssim, source.

    Raises ValueError, naming the file and the line, as `read_rows` does.
    """
    return _read_table(path, (_PUBLISHED_COLUMNS,), _published)


def is_published(path: Path) -> bool:
    """Whether a file begins with the columns of published points; False if it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().rstrip("\r\n") == ",".join(_PUBLISHED_COLUMNS)
    except (OSError, UnicodeDecodeError):
        return False


def _published(row: Mapping[str, str]) -> PublishedPoint:
    if not row["method"] or not row["source"]:
        raise ValueError("a published point needs a method and a source")
    return PublishedPoint(
        method=row["method"],
        bpp=float(row["bpp"]),
        psnr_db=_optional_float(row["psnr_db"]),
        ms_ssim=_optional_float(row["ms_ssim"]),
        source=row["source"],
    )


# Summaries and curves


@dataclass(frozen=True)
class Summary:
    """Means over the images of one codec at one setting.

    ``psnr`` is the mean of the images' PSNRs; ``psnr_of_mean_mse`` is the PSNR of their mean
    squared error, about 0.5 dB lower at low rates: the two never share a column. Both in dB.
    ``psnr_y`` and ``psnr_ycbcr`` are means of PSNRs too; they, ``ssim`` and ``ms_ssim`` are None
    where any image has none. Seconds are for one image.
    """

    codec: str
    setting: str
    num_images: int
    num_bytes: float
    bpp: float
    psnr: float
    psnr_of_mean_mse: float
    psnr_y: float | None
    psnr_ycbcr: float | None
    ssim: float | None
    ms_ssim: float | None
    encode_seconds: float
    decode_seconds: float


def summarise(rows: Iterable[RDPoint]) -> list[Summary]:
    """One `Summary` for each codec and setting, in the order of their first rows.

    Raises ValueError if an image occurs twice under one codec and setting.
    """
    groups: dict[tuple[str, str], dict[str, RDPoint]] = {}
    for row in rows:
        group = groups.setdefault((row.codec, row.setting), {})
        if row.image in group:
            raise ValueError(
                f"image {row.image} occurs twice under {row.codec} {row.setting}: keep one row"
            )
        group[row.image] = row
    return [_summary(list(group.values())) for group in groups.values()]


def _summary(rows: list[RDPoint]) -> Summary:
    return Summary(
        codec=rows[0].codec,
        setting=rows[0].setting,
        num_images=len(rows),
        num_bytes=fmean(row.num_bytes for row in rows),
        bpp=fmean(row.bpp for row in rows),
        psnr=fmean(row.psnr for row in rows),
        psnr_of_mean_mse=_psnr_of_mean_mse([row.psnr for row in rows]),
        psnr_y=_mean_if_all([row.psnr_y for row in rows]),
        psnr_ycbcr=_mean_if_all([row.psnr_ycbcr for row in rows]),
        ssim=_mean_if_all([row.ssim for row in rows]),
        ms_ssim=_mean_if_all([row.ms_ssim for row in rows]),
        encode_seconds=fmean(row.encode_seconds for row in rows),
        decode_seconds=fmean(row.decode_seconds for row in rows),
    )


def _mean_if_all(values: Sequence[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return fmean(given) if len(given) == len(values) else None


def _psnr_of_mean_mse(psnrs: Sequence[float]) -> float:
    # On a scale where the peak is 1, mse = 10 ** (-psnr / 10); an exact image (inf dB) has 0.
    mean_mse = fmean(10 ** (-psnr / 10) for psnr in psnrs)
    return -10 * math.log10(mean_mse) if mean_mse > 0 else math.inf


def measured_curves(summaries: Iterable[Summary]) -> dict[str, list[tuple[float, float]]]:
    """By codec, its (bpp, mean of PSNRs) points in the order of bpp."""
    return _curves((item.codec, item.bpp, item.psnr) for item in summaries)


def published_curves(points: Iterable[PublishedPoint]) -> dict[str, list[tuple[float, float]]]:
    """By method, its (bpp, PSNR in dB) points in the order of bpp; points without PSNR left out."""
    return _curves((p.method, p.bpp, p.psnr_db) for p in points if p.psnr_db is not None)


def _curves(points: Iterable[tuple[str, float, float]]) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, bpp, psnr in points:
        curves.setdefault(name, []).append((bpp, psnr))
    return {name: sorted(curve) for name, curve in curves.items()}


# Files


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomic(Path(path), data)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error


def _read_table(
    path: Path, versions: Sequence[tuple[str, ...]], convert: Callable[[Mapping[str, str]], T]
) -> list[T]:
    """Every row of a CSV file through ``convert``, whose ValueError gains the file and line.

    ``versions`` are the columns that the file may have, today's first.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8", "surrogatepass")
    except OSError as error:
        raise ValueError(f"cannot read the table {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a table: it is not UTF-8 text") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = tuple(next(reader, ()))
        if columns not in versions:
            raise ValueError(f"its columns must be {','.join(versions[0])}")
        if not text.endswith("\n"):
            raise ValueError("it was cut short: its last line has no end")
        return [convert(dict(zip(columns, row, strict=True))) for row in reader]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; remake the file") from error
