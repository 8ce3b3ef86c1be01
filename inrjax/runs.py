"""Run folders looked at afterwards: what is there, whether it is whole, whether it still holds.

A run folder holds ``config.json`` (`inrjax.results.run_folder`, `inrjax.quickstart.measure`),
``provenance.json`` and tables of measured rows (``rows.csv``), in itself or in folders below it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from inrjax import codecs, metrics, results
from inrjax.evaluate import (
    Decoder,
    decode_in_process,
    image_digest,
    qualities,
    read_digests,
    row_stream_path,
)
from inrjax.types import Image, RDPoint

TOLERANCES = {"psnr": 0.01, "psnr_y": 0.01, "psnr_ycbcr": 0.01, "ssim": 1e-4, "ms_ssim": 1e-4}
"""What a quality may differ by, in dB or as it is: pixels are within one level between machines."""

Status = Literal["complete", "partial"]


@dataclass(frozen=True)
class Run:
    """A run folder. ``provenance``: one entry for each process that measured, oldest first.

    ``tables``: each ``rows.csv`` of the run with its rows. ``status`` is partial if a codec lacks
    an image at one of its settings, or a codec that the config names has no rows, or, where the
    config names none, there is no ``table.md``, which experiments write last.
    """

    folder: Path
    config: Any
    provenance: tuple[Mapping[str, Any], ...]
    tables: Mapping[Path, Sequence[RDPoint]]
    status: Status

    @property
    def experiment(self) -> str:
        """The name of the folder above: ``kodak_rd``."""
        return self.folder.absolute().parent.name

    @property
    def is_addressed(self) -> bool | None:
        """Whether the folder's name is the hash of its config; None if the name is no hash."""
        name = self.folder.absolute().name
        if not re.fullmatch("[0-9a-f]{12}", name):
            return None
        return name == results.config_hash(self.config)

    @property
    def num_rows(self) -> int:
        """Rows in all tables."""
        return sum(len(rows) for rows in self.tables.values())

    @property
    def num_images(self) -> int:
        """Different images in all tables."""
        return len({row.image for rows in self.tables.values() for row in rows})


def find_runs(root: Path) -> list[Path]:
    """Every run folder at or below a folder, sorted; ValueError if it is no folder."""
    if not Path(root).is_dir():
        raise ValueError(f"{root} is not a folder: name a folder of results")
    return sorted(folder for folder, files in _walk(Path(root)) if "config.json" in files)


def read_run(folder: Path) -> Run:
    """What a run folder holds.

    Raises ValueError if it has no ``config.json``, or a file in it cannot be read.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a run folder: it has no config.json")
    config = _read_json(folder / "config.json")
    noted = _read_json(folder / "provenance.json") if _has(folder, "provenance.json") else []
    entries = noted if isinstance(noted, list) else [noted]
    tables = {path: results.read_rows(path) for path in _tables(folder)}
    return Run(
        folder=folder,
        config=config,
        provenance=tuple(entry for entry in entries if isinstance(entry, dict)),
        tables=tables,
        status="complete" if _is_complete(folder, config, tables) else "partial",
    )


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path} ({error}): restore it, or delete the run") from error


def _walk(root: Path) -> list[tuple[Path, list[str]]]:
    """(folder, names of files) of a folder and all below it, but for coded streams."""
    found = []
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if name != "streams" and not name.startswith("."))
        found.append((Path(folder), files))
    return found


def _tables(folder: Path) -> list[Path]:
    """The run's own tables: those of a run folder inside it are not."""
    nested = [path for path in find_runs(folder) if path != folder]
    return sorted(
        below / "rows.csv"
        for below, files in _walk(folder)
        if "rows.csv" in files and not any(below.is_relative_to(other) for other in nested)
    )


def _is_complete(folder: Path, config: Any, tables: Mapping[Path, Sequence[RDPoint]]) -> bool:
    if any(_has_gaps(path, rows) for path, rows in tables.items()):
        return False
    named = _named_settings(config)
    if named is None:
        return _has(folder, "table.md")
    return named <= {f"{row.codec} {row.setting}" for rows in tables.values() for row in rows}


def _has_gaps(path: Path, rows: Sequence[RDPoint]) -> bool:
    """Whether a codec and setting of the table lacks an image that the table is about."""
    images = set(read_digests(path.parent / "images.json")) | {row.image for row in rows}
    measured: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        measured.setdefault((row.codec, row.setting), set()).add(row.image)
    return any(found != images for found in measured.values())


def _named_settings(config: Any) -> set[str] | None:
    """The "codec setting" keys of a config of `inrjax.quickstart.measure`; None for another."""
    if not isinstance(config, dict) or not all(isinstance(v, dict) for v in config.values()):
        return None
    return set(config)


# Verifying rows by their stored streams


class Stored(NamedTuple):
    """A row, the folder of its table, and its stream, None if the codec is not known here."""

    row: RDPoint
    folder: Path
    stream: Path | None

    @property
    def is_there(self) -> bool:
        """Whether the stream can be read."""
        return self.stream is not None and self.stream.is_file()


class Check(NamedTuple):
    """A row that was measured again: what no longer holds (nothing: it holds), and whether its
    qualities could be among it, for which the original picture must be at hand."""

    row: RDPoint
    problems: tuple[str, ...]
    has_qualities: bool


def stored_rows(run: Run) -> list[Stored]:
    """Every row of a run, with its stream's path."""
    return [
        Stored(row, path.parent, _stream(path.parent, row))
        for path, rows in run.tables.items()
        for row in rows
    ]


def _stream(folder: Path, row: RDPoint) -> Path | None:
    try:
        suffix = getattr(codecs.decoder(row.codec), "suffix", ".bin")
    except ValueError:  # a codec of the user's own, or one whose package is not installed
        return None
    return row_stream_path(folder, row.codec, row.setting, row.image, suffix)


def sample(stored: Sequence[Stored], num_rows: int, seed: int) -> list[Stored]:
    """Up to ``num_rows`` of them, drawn without replacement, in their order."""
    indices = random.Random(seed).sample(range(len(stored)), min(num_rows, len(stored)))
    return [stored[i] for i in sorted(indices)]


def verify(
    stored: Sequence[Stored],
    images: Mapping[str, Image],
    init: codecs.Shared | None = None,
    decode: Decoder = decode_in_process,
) -> list[Check]:
    """Decode the streams again, in another process, and measure: a check for each row.

    Bytes, SHA-256, bpp and size must be equal, qualities within `TOLERANCES`. ``images`` are the
    originals by name; where one is missing, or its pixels are not those that ``images.json`` of the
    run names, qualities are not checked. ``init``: as in `inrjax.codecs.decoder`. Raises ValueError
    for a stream that is not there.
    """
    for one in stored:
        if not one.is_there:
            raise ValueError(f"{one.stream} does not exist: verify rows whose stream is there")
    checks = []
    with decode() as decode_some:
        for one in stored:
            assert one.stream is not None
            codec = codecs.decoder(one.row.codec, init)
            [decoded] = decode_some(codec, [one.stream])
            recorded = read_digests(one.folder / "images.json").get(one.row.image)
            original = images.get(one.row.image)
            if original is not None and recorded not in (None, image_digest(original)):
                original = None
            checks.append(_check(one.row, one.stream.read_bytes(), decoded, original))
    return checks


def _check(row: RDPoint, stream: bytes, decoded: Any, original: Image | None) -> Check:
    problems = _different(row, _of_bytes(row, stream), dict.fromkeys(("num_bytes", "bpp"), 0.0))
    digest = hashlib.sha256(stream).hexdigest()
    if digest != row.digest:
        problems.append(
            f"SHA-256 of the stream is {digest[:12]}.., the table says {row.digest[:12]}.."
        )
    if decoded.image is None:
        return Check(row, (*problems, f"it does not decode: {decoded.error}"), False)
    size = decoded.image.shape[:2]
    if size != (row.height, row.width):
        problems.append(
            f"it decodes to {size[0]} x {size[1]}, the table says {row.height} x {row.width}"
        )
        return Check(row, tuple(problems), False)
    if original is None or original.shape != decoded.image.shape:
        return Check(row, tuple(problems), False)
    problems += _different(row, qualities(original, decoded.image), TOLERANCES)
    return Check(row, tuple(problems), True)


def _of_bytes(row: RDPoint, stream: bytes) -> dict[str, float]:
    return {
        "num_bytes": len(stream),
        "bpp": metrics.bpp(len(stream), row.height, row.width),
    }


def _different(
    row: RDPoint, measured: Mapping[str, float | None], tolerances: Mapping[str, float]
) -> list[str]:
    """A sentence for each column of the row that is not what was measured; empty cells are not."""
    return [
        f"{name} is {value:.6g}, the table says {getattr(row, name):.6g}"
        for name, value in measured.items()
        if value is not None
        and getattr(row, name) is not None
        and not math.isclose(value, getattr(row, name), rel_tol=0, abs_tol=tolerances[name])
    ]
