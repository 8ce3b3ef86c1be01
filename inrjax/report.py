"""A run as one HTML file: plot, pictures side by side, tables. The page loads nothing else.

Its template, style and script are in ``page/``; Plotly's script comes with the Python package.
Needs the extra ``report``: Jinja, which fills the template and escapes every text, and Plotly.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from inrjax import codecs, datasets, metrics, results
from inrjax.evaluate import image_digest, read_digests, row_stream_path
from inrjax.grids import find_base
from inrjax.images import read_image
from inrjax.init import find_init
from inrjax.machine import cpu_count
from inrjax.results import Summary
from inrjax.types import BitstreamError, Codec, Image, OnProgress, RDPoint

MAX_PIXELS = 40_000_000
"""Pixels of all pictures in one report at most: some 50 MB."""

OURS = "meta-siren"
"""The codec on the left of the viewer, where it was measured."""

ANCHORS = ("jpeg-optimized", "jpeg")
"""What BD-rates are taken against and what stands on the right: the first of these, if any."""

_METRICS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "ms_ssim": "MS-SSIM"}

_WEBP_MAX_SIDE = 16383


class Report(NamedTuple):
    """The HTML file; how many of the run's images its viewer shows; what it lacks, and why."""

    html: bytes
    num_shown: int
    num_images: int
    notes: tuple[str, ...]


Reader: TypeAlias = Callable[[str], Image]
"""Gives the original of a name; raises ValueError if it is not the one that was measured."""


def build_report(
    folder: Path,
    decoders: Mapping[str, Codec],
    originals: Path | None = None,
    *,
    max_images: int = 6,
    max_pixels: int = MAX_PIXELS,
    on_progress: OnProgress | None = None,
) -> Report:
    """The report of a run folder of `inrjax.evaluate`: equal runs give equal bytes.

    ``decoders``: by the name of a codec, one that decodes its files at any setting. ``originals``:
    the folder of pictures that was evaluated. Without it the viewer has no originals, except of the
    packaged photographs. It shows the first ``max_images`` images that have files, as `plan` says.
    Pictures are embedded as lossless WebP. ``on_progress`` counts them.

    Raises ValueError if ``folder`` is no run, a table or stream in it is damaged, an original is
    missing or differs from the one measured, or the extra ``report`` is not installed.
    """
    _require_extra()
    folder = Path(folder)
    rows = _read_run(folder)
    summaries = results.summarise(rows)
    names = _in_order(row.codec for row in rows)
    images = {name: index for index, name in enumerate(dict.fromkeys(row.image for row in rows))}
    anchor = next((name for name in ANCHORS if name in names), names[0])
    read_original = _original_reader(folder, rows, originals)
    files, notes = _files(folder, rows, decoders)
    planned = plan(
        dict(list(files.items())[:max_images]), read_original is not None, max_pixels=max_pixels
    )
    shown, embedded, failed = _pictures(folder, planned, decoders, read_original, on_progress)
    notes += [*failed, *_gaps(files, planned, read_original is not None, len(images))]
    shared_bytes = _shared_bytes(folder, files, decoders)
    html = _render(
        title=folder.resolve().name,
        overview=_overview(len(images), names, summaries),
        codecs=names,
        images=list(images),
        metrics=[
            {"key": key, "label": label, "given": any(getattr(r, key) is not None for r in rows)}
            for key, label in _METRICS.items()
        ],
        anchor=anchor,
        bd_rates=_bd_rates(summaries, anchor),
        header=_HEADER if shared_bytes else _HEADER[:-1],
        lines=[_line(item, shared_bytes) for item in summaries],
        has_shared=bool(shared_bytes),
        provenance=_provenance(folder / "provenance.json"),
        notes=notes,
        num_shown=len(shown),
        has_originals=read_original is not None,
        pictures=embedded,
        data={
            "codecs": names,
            "means": [_point(item, names) for item in summaries],
            "rows": [{**_point(row, names), "image": images[row.image]} for row in rows],
            "viewer": [_entry(name, item, names) for name, item in shown.items()],
        },
    )
    return Report(html, len(shown), len(images), tuple(notes))


def _require_extra() -> None:
    try:
        import jinja2  # noqa: F401
        import plotly  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"a report needs {error.name}, which is not installed: pip install 'inrjax[report]'"
        ) from error


def _read_run(folder: Path) -> list[RDPoint]:
    table = folder / "rows.csv"
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name the folder of a run of inrjax evaluate")
    if not table.exists():
        raise ValueError(f"{folder} is not a run: it has no rows.csv, as inrjax evaluate leaves")
    rows = results.read_rows(table)
    if not rows:
        raise ValueError(f"{table} has no rows: evaluate again")
    return rows


def _in_order(names: Iterable[str]) -> list[str]:
    """The codecs as they come, but ours first: what a page is about."""
    return sorted(dict.fromkeys(names), key=lambda name: name != OURS)


# The choice of pictures


def nearest(rows: Sequence[RDPoint], num_bytes: int) -> RDPoint:
    """The row whose file is nearest to so many bytes; of two, the larger, which favours it."""
    return min(rows, key=lambda row: (abs(row.num_bytes - num_bytes), -row.num_bytes))


def plan(
    files: Mapping[str, Sequence[RDPoint]], has_originals: bool, *, max_pixels: int
) -> dict[str, list[RDPoint]]:
    """By image, the rows whose pictures are shown, within ``max_pixels`` pixels in all.

    They are all the rows, if they fit. Else, as many settings of one codec as fit, spread over its
    rates (`OURS` or, of an image without, its first), and of each other codec the files nearest in
    bytes to those. Else one setting, and the first images; at least one.
    """
    for count in range(len(files), 0, -1):
        part = dict(list(files.items())[:count])
        most = max(len(rows) for rows in part.values())
        for num_settings in (None, *range(most, 0, -1)):
            chosen = {name: _matched(rows, num_settings) for name, rows in part.items()}
            pixels = sum(
                (len(rows) + has_originals) * rows[0].height * rows[0].width
                for rows in chosen.values()
            )
            if pixels <= max_pixels or (count == 1 and num_settings == 1):
                return chosen
    return {}


def _matched(rows: Sequence[RDPoint], num_settings: int | None) -> list[RDPoint]:
    """So many rows of the first codec, and those nearest of each other; all rows for None."""
    if num_settings is None:
        return list(rows)
    by_codec = _by_codec(rows)
    first = next(iter(by_codec))
    kept = _spread(sorted(by_codec[first], key=lambda row: row.num_bytes), num_settings)
    others = [group for name, group in by_codec.items() if name != first]
    matches = [nearest(group, row.num_bytes) for row in kept for group in others]
    chosen = {(row.codec, row.setting) for row in [*kept, *matches]}
    return [row for row in rows if (row.codec, row.setting) in chosen]


def _spread(rows: Sequence[RDPoint], count: int) -> list[RDPoint]:
    """``count`` of the rows, evenly, with the first and the last; the middle one for 1."""
    if count >= len(rows):
        return list(rows)
    if count == 1:
        return [rows[len(rows) // 2]]
    return [rows[round(i * (len(rows) - 1) / (count - 1))] for i in range(count)]


def _by_codec(rows: Iterable[RDPoint]) -> dict[str, list[RDPoint]]:
    groups: dict[str, list[RDPoint]] = {}
    for row in rows:
        groups.setdefault(row.codec, []).append(row)
    return {name: groups[name] for name in _in_order(groups)}


# Files and originals


def _files(
    folder: Path, rows: Sequence[RDPoint], decoders: Mapping[str, Codec]
) -> tuple[dict[str, list[RDPoint]], list[str]]:
    """By image, the rows whose streams are here and can be decoded; and what to say of others."""
    known = [row for row in rows if row.codec in decoders]
    here = [row for row in known if _stream_path(folder, row, decoders).is_file()]
    files: dict[str, list[RDPoint]] = {}
    for row in here:
        files.setdefault(row.image, []).append(row)
    notes = []
    if foreign := [name for name in _in_order(r.codec for r in rows) if name not in decoders]:
        notes.append(f"No decoder is known for {', '.join(foreign)}: it is left out here.")
    if known and not here:
        notes.append(
            "The files that were measured are not in the folder of the run, so that there are no "
            "pictures to show: the evaluation makes them again."
        )
    elif len(here) < len(known):
        notes.append(
            f"{len(known) - len(here)} of the {len(known)} files that were measured are not in the "
            "folder of the run and are left out."
        )
    return files, notes


def _stream_path(folder: Path, row: RDPoint, decoders: Mapping[str, Codec]) -> Path:
    suffix = getattr(decoders[row.codec], "suffix", ".bin")
    return row_stream_path(folder, row.codec, row.setting, row.image, suffix)


def _read_stream(folder: Path, row: RDPoint, decoders: Mapping[str, Codec]) -> bytes:
    """The measured bytes; ValueError if the file has others."""
    path = _stream_path(folder, row, decoders)
    try:
        stream = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): evaluate again") from error
    if hashlib.sha256(stream).hexdigest() != row.digest:
        raise ValueError(f"{path} is not the file that was measured: evaluate again")
    return stream


def _original_reader(
    folder: Path, rows: Sequence[RDPoint], originals: Path | None
) -> Reader | None:
    """What reads originals: from the folder, of the packaged photographs, or nothing."""
    recorded = read_digests(folder / "images.json")
    if originals is None:
        packaged = datasets.packaged()
        digests = {name: image_digest(image) for name, image in packaged.items()}
        same = all(row.image in packaged and _is_of(recorded, row, digests) for row in rows)
        return packaged.__getitem__ if same else None
    paths = {path.stem: path for path in datasets.images_in(originals)}

    def read(name: str) -> Image:
        if name not in paths:
            raise ValueError(
                f"{originals} holds no picture {name}, which was measured: name the folder that "
                "was evaluated"
            )
        image = read_image(paths[name]).image
        if image_digest(image) != recorded.get(name):
            raise ValueError(
                f"{paths[name]} has other pixels than the picture {name} that was measured: name "
                "the folder that was evaluated"
            )
        return image

    return read


def _is_of(recorded: Mapping[str, str], row: RDPoint, digests: Mapping[str, str]) -> bool:
    return recorded.get(row.image) == digests[row.image]


def _shared_bytes(
    folder: Path, files: Mapping[str, Sequence[RDPoint]], decoders: Mapping[str, Codec]
) -> dict[tuple[str, str], int]:
    """By codec and setting, the bytes that a decoder needs beside its files."""
    sizes: dict[tuple[str, str], int] = {}
    first = {(row.codec, row.setting): row for rows in files.values() for row in rows}
    for key, row in first.items():
        decoder = decoders[row.codec]
        if getattr(decoder, "suffix", None) != ".inr":
            continue
        given = codecs.shared_of(decoder)
        try:
            needed = codecs.describe(_read_stream(folder, row, decoders), given).init_digest
        except BitstreamError:  # said where its picture is decoded
            continue
        if needed is not None:
            start = bytes.fromhex(needed)
            is_given = given is not None and given.digest.startswith(start)
            shared = given if is_given else find_init(start) or find_base(start)
            if shared is not None:
                sizes[key] = shared.shared_bytes
    return sizes


# Pictures


class _Shown(NamedTuple):
    """One image of the viewer: its rows, and the numbers of the embedded pictures."""

    rows: list[RDPoint]
    pictures: list[int]
    original: int | None


def _pictures(
    folder: Path,
    planned: Mapping[str, Sequence[RDPoint]],
    decoders: Mapping[str, Codec],
    read_original: Reader | None,
    on_progress: OnProgress | None,
) -> tuple[dict[str, _Shown], list[str], list[str]]:
    """The images of the viewer, their pictures as data URIs, each once, and what failed."""
    embedded: dict[str, int] = {}
    shown, failures = {}, {}
    total = sum(len(rows) + (read_original is not None) for rows in planned.values())

    def number(uri: str) -> int:
        return embedded.setdefault(uri, len(embedded))

    def decode(row: RDPoint) -> str | BitstreamError:
        try:
            [image] = decoders[row.codec].decode([_read_stream(folder, row, decoders)])
        except BitstreamError as error:
            return error
        return _data_uri(image)

    done = 0
    with ThreadPoolExecutor(min(cpu_count(), 4)) as pool:  # WebP releases the interpreter's lock
        for name, rows in planned.items():
            original = None if read_original is None else number(_data_uri(read_original(name)))
            done += original is not None
            pictures: dict[RDPoint, int] = {}
            for row, uri in zip(rows, pool.map(decode, rows), strict=True):
                if isinstance(uri, str):
                    pictures[row] = number(uri)
                else:
                    failures.setdefault(f"{row.codec} {row.setting}", uri)
                done += 1
                if on_progress is not None:
                    on_progress(done, total)
            if pictures:
                shown[name] = _Shown(list(pictures), list(pictures.values()), original)
    notes = [f"{what} is left out: {reason}." for what, reason in failures.items()]
    return shown, list(embedded), notes


def _data_uri(image: Image) -> str:
    """The picture, exactly, as a URI of its own: WebP, or PNG where that has no such size."""
    from PIL import Image as PillowImage

    buffer = io.BytesIO()
    if max(image.shape) <= _WEBP_MAX_SIDE:
        name = "webp"  # these options: a tenth more bytes than the best, in a fraction of the time
        PillowImage.fromarray(image).save(buffer, "WEBP", lossless=True, method=1, quality=30)
    else:
        name = "png"
        PillowImage.fromarray(image).save(buffer, "PNG")
    return f"data:image/{name};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _entry(name: str, shown: _Shown, names: Sequence[str]) -> dict[str, Any]:
    """An image of the viewer, as the page's script takes it.

    ``nearest`` of a file gives, by codec, the index of its file that is nearest in bytes.
    """
    by_codec = _by_codec(shown.rows)
    index_of = {(row.codec, row.setting): index for index, row in enumerate(shown.rows)}

    def matching(codec: str, row: RDPoint) -> int:
        match = row if codec == row.codec else nearest(by_codec[codec], row.num_bytes)
        return index_of[match.codec, match.setting]

    left_codec = next(iter(by_codec))
    left_rows = sorted(by_codec[left_codec], key=lambda row: row.num_bytes)
    left = left_rows[len(left_rows) // 2]
    others = [codec for codec in (*ANCHORS, *by_codec) if codec in by_codec and codec != left_codec]
    alone = None if shown.original is not None else matching(left_codec, left)
    return {
        "name": name,
        "height": shown.rows[0].height,
        "width": shown.rows[0].width,
        "original": shown.original,
        "files": [
            {
                **_point(row, names),
                "picture": picture,
                "nearest": {names.index(codec): matching(codec, row) for codec in by_codec},
            }
            for row, picture in zip(shown.rows, shown.pictures, strict=True)
        ],
        "first": [matching(left_codec, left), matching(others[0], left) if others else alone],
    }


def _gaps(
    files: Mapping[str, Sequence[RDPoint]],
    planned: Mapping[str, Sequence[RDPoint]],
    has_originals: bool,
    num_images: int,
) -> list[str]:
    """What the viewer leaves out of what is there, as sentences."""
    if not planned:
        return []
    notes = []
    if not has_originals:
        notes.append(
            "The originals are not in the folder of a run and were not given: only decoded "
            "pictures are compared (inrjax report --images DIR adds them)."
        )
    if len(planned) < num_images:
        notes.append(f"Here are {len(planned)} of the {num_images} images.")
    num_files = sum(len(files[name]) for name in planned)
    num_planned = sum(len(rows) for rows in planned.values())
    if num_planned < num_files:
        notes.append(
            f"To bound the size of this page, {num_planned} of their {num_files} files are here: "
            "of each further codec those nearest in bytes to the files of the first."
        )
    return notes


# Tables


class _Cell(NamedTuple):
    """What a table shows, and what it is sorted by: a text, a number's text, or '' for none."""

    text: str
    value: str


_HEADER = (
    "codec",
    "setting",
    "images",
    "bytes",
    "bpp",
    "PSNR dB",
    "mean-MSE PSNR",
    "SSIM",
    "MS-SSIM",
    "encode s",
    "decode s",
    "shared bytes",
)


def _line(item: Summary, shared_bytes: Mapping[tuple[str, str], int]) -> list[_Cell]:
    """A line of the table of means, as long as the header is where any shared bytes are known."""
    cells = [
        _Cell(item.codec, item.codec),
        _Cell(item.setting, item.setting),
        _number(item.num_images, "d"),
        _number(item.num_bytes, ",.0f"),
        _number(item.bpp, ".4f"),
        _number(item.psnr, ".2f"),
        _number(item.psnr_of_mean_mse, ".2f"),
        _number(item.ssim, ".4f"),
        _number(item.ms_ssim, ".4f"),
        _number(item.encode_seconds, ".4f"),
        _number(item.decode_seconds, ".4f"),
    ]
    if shared_bytes:
        cells.append(_number(shared_bytes.get((item.codec, item.setting)), ",d"))
    return cells


def _number(value: float | None, form: str) -> _Cell:
    if value is None or math.isnan(value):
        return _Cell("-", "")
    if math.isinf(value):
        return _Cell("∞" if value > 0 else "-∞", "Infinity" if value > 0 else "-Infinity")
    return _Cell(format(value, form), repr(value))


def _bd_rates(summaries: Sequence[Summary], anchor: str) -> list[dict[str, str]]:
    """A line for each codec but the anchor: its BD-rate and range, or why there is none."""
    curves = results.measured_curves(summaries)
    lines = []
    for name in _in_order(curves):
        if name == anchor:
            continue
        try:
            of_anchor, of_codec = (zip(*curves[each], strict=True) for each in (anchor, name))
            rate = metrics.bd_rate(*of_anchor, *of_codec)
            interval = f"{rate.low_db:.2f} to {rate.high_db:.2f} dB"
            lines.append({"codec": name, "percent": f"{rate.percent:+.1f} %", "interval": interval})
        except ValueError as error:
            lines.append({"codec": name, "percent": "", "reason": str(error)})
    return lines


def _overview(num_images: int, names: Sequence[str], summaries: Sequence[Summary]) -> str:
    counts = {"image": num_images, "codec": len(names), "setting": len(summaries)}
    return ", ".join(f"{n} {noun}{'s' * (n != 1)}" for noun, n in counts.items())


def _provenance(path: Path) -> list[list[tuple[str, str]]]:
    """(name, text) pairs of each entry of a run's provenance; none where there is no file."""
    if not path.exists():
        return []
    try:
        read = json.loads(path.read_text("utf-8"))
        entries = read if isinstance(read, list) else [read]
        return [[(name, _text(value)) for name, value in entry.items()] for entry in entries]
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, or evaluate again") from error


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


# The page


def _point(item: Summary | RDPoint, names: Sequence[str]) -> dict[str, Any]:
    """What the script draws and tells of a row or a mean; JSON has no infinity: it is null."""
    values = {key: getattr(item, key) for key in ("bpp", *_METRICS)}
    return {
        "codec": names.index(item.codec),
        "setting": item.setting,
        "num_bytes": round(item.num_bytes),
        **{key: v if v is None or math.isfinite(v) else None for key, v in values.items()},
    }


def _render(data: Mapping[str, Any], **values: Any) -> bytes:
    """The template, filled. Only scripts that are in the page from the start may run in it."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    # HTML has no control characters; in the strings of a script, an escape means the same.
    plotly = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", lambda m: f"\\x{ord(m[0]):02x}", get_plotlyjs())
    scripts = {"plotly": plotly, "js": _asset("report.js")}
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()) for s in scripts.values()]
    policy = {
        "default-src": "'none'",
        "img-src": "data: blob:",
        "style-src": "'unsafe-inline'",  # Plotly makes its own
        "script-src": " ".join(f"'sha256-{each.decode()}'" for each in hashes),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    block = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", r"\u003c")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.from_string(_asset("report.html")).render(
        policy="; ".join(f"{name} {value}" for name, value in policy.items()),
        css=Markup(_asset("report.css")),
        data=Markup(block),
        **{name: Markup(script) for name, script in scripts.items()},
        **values,
    )
    # A file name that is not valid UTF-8 reaches Python with surrogates in it.
    return html.encode("utf-8", "replace")


def _asset(name: str) -> str:
    return resources.files("inrjax").joinpath("page", name).read_text("utf-8")
