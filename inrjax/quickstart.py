"""The main job end to end: photographs to files and back, beside classic codecs, in a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from inrjax import datasets, metrics, plots, results
from inrjax.codecs import GIVEN, Jpeg, decode_stream, shared_of
from inrjax.evaluate import EvaluationError, Failure, evaluate, stream_path
from inrjax.plots import Panel
from inrjax.types import Codec, Image, OnProgress, RDPoint

WIDTHS = (24, 32, 48)
"""Widths of MetaSiren for `quickstart`."""


@dataclass(frozen=True)
class Report:
    """What was measured: a row for each codec and image; what failed; the files to look at."""

    rows: list[RDPoint]
    failures: list[Failure]
    files: list[Path]


def quickstart(
    folder: Path,
    ours: Sequence[Codec],
    classic: Sequence[Codec],
    on_progress: OnProgress | None = None,
) -> Report:
    """Measure codecs on the packaged photographs, as `measure` does, and show them side by side.

    ``ours`` write .inr files, lowest rate first. ``side_by_side.png`` (and .pdf) has a row for each
    photograph: the original, the middle one of ``ours``, and optimised JPEG in as many bytes or,
    where JPEG cannot go so low, its smallest file, and the caption says so. Raises ValueError as
    `measure` does.
    """
    photographs = datasets.packaged()
    report = measure([*ours, *classic], photographs, folder, len(photographs), on_progress)
    shown = ours[len(ours) // 2]
    panels = [
        _side_by_side(row.image, photographs[row.image], shown, folder)
        for row in report.rows
        if (row.codec, row.setting) == (shown.name, shown.setting)
    ]
    drawn = plots.save(plots.comparison_figure(panels), folder / "side_by_side")
    return Report(report.rows, report.failures, [*report.files, *drawn])


def measure(
    codecs: Sequence[Codec],
    images: Mapping[str, Image],
    folder: Path,
    batch_size: int,
    on_progress: OnProgress | None = None,
) -> Report:
    """Measure codecs on images (name -> uint8 (height, width, 3)) with `inrjax.evaluate`.

    Leaves in ``folder``: ``streams/``, ``rows.csv``, ``config.json`` (the fields of the codecs),
    ``provenance.json``, and the figure ``rd.png`` and ``rd.pdf``. A second call measures only what
    is missing. Raises ValueError for bad arguments, a folder that cannot be written, or one whose
    rows come from the same codecs with other fields.
    """
    _claim(folder, codecs)
    try:
        evaluate(codecs, images, folder, batch_size=batch_size, on_progress=on_progress)
        failures = []
    except EvaluationError as error:
        failures = error.failures
    settings = {(codec.name, codec.setting) for codec in codecs}
    rows = [
        row
        for row in results.read_rows(folder / "rows.csv")
        if (row.codec, row.setting) in settings and row.image in images
    ]
    device = results.jax_device() if any(_is_ours(codec) for codec in codecs) else None
    results.write_json(folder / "provenance.json", results.provenance(device))
    curves = results.measured_curves(results.summarise(rows))
    drawn = plots.save(plots.rd_figure(curves, {}), folder / "rd")
    return Report(rows, failures, [folder / "rows.csv", *drawn])


def _is_ours(codec: Codec) -> bool:
    return getattr(codec, "suffix", None) == ".inr"


def _claim(folder: Path, codecs: Sequence[Codec]) -> None:
    """Note the fields of the codecs in the folder; ValueError if it has others for one of them."""
    path = folder / "config.json"
    given = {f"{codec.name} {codec.setting}": _fields(codec) for codec in codecs}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        recorded = json.loads(path.read_text("utf-8")) if path.exists() else {}
        if not (isinstance(recorded, dict) and all(isinstance(v, dict) for v in recorded.values())):
            raise ValueError("it holds no fields")
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be used ({error.strerror}): choose another folder"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): choose another folder") from error
    for key, values in given.items():
        earlier = recorded.get(key, values)
        if earlier != values:
            others = [name for name in values if earlier.get(name) != values[name]]
            raise ValueError(
                f"{folder} holds {key} measured with other options ({', '.join(others)}): choose "
                "another folder, or delete that one"
            )
    results.write_json(path, recorded | given)


def _fields(codec: Codec) -> dict[str, Any]:
    """The fields of a codec by name; the init or base that its files need by its digest."""
    values = {field.name: getattr(codec, field.name) for field in fields(codec)}  # pyright: ignore
    shared = shared_of(codec)
    if shared is not None:
        values |= {name: shared.digest.hex() for name in GIVEN if name in values}
    plain = (bool, int, float, str, type(None))
    return {name: v if isinstance(v, plain) else repr(v) for name, v in values.items()}


def _side_by_side(name: str, image: Image, codec: Codec, folder: Path) -> list[Panel]:
    """Original, ours, and optimised JPEG in as many bytes."""
    stream = stream_path(folder, codec, name).read_bytes()
    jpeg, note = _jpeg_within(image, len(stream))
    return [
        Panel(name, image),
        _panel(f"{codec.name}, {len(stream)} bytes", image, stream, decode_stream(stream)),
        _panel(f"JPEG, {len(jpeg)} bytes", image, jpeg, Jpeg(1, True).decode([jpeg])[0], note),
    ]


def _panel(title: str, image: Image, stream: bytes, image_hat: Image, note: str = "") -> Panel:
    bpp = metrics.bpp(len(stream), *image.shape[:2])
    return Panel(title, image_hat, bpp, metrics.psnr(image, image_hat), note)


def _jpeg_within(image: Image, num_bytes: int) -> tuple[bytes, str]:
    """The best optimised JPEG of at most so many bytes, or its smallest file and a note."""
    files = [Jpeg(quality, optimize=True).encode([image])[0] for quality in range(1, 101)]
    fitting = [file for file in files if len(file) <= num_bytes]
    if fitting:
        return fitting[-1], ""  # bytes and quality grow together
    return min(files, key=len), "JPEG's smallest file"
