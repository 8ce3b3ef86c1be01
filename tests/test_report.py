"""The HTML report: what is in the file, that it needs nothing else, that it works in a browser."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from conftest import photograph
from hypothesis import given, settings
from hypothesis import strategies as st

from inrjax import cli, codecs, datasets, images, metrics, report, results
from inrjax.codecs import Jpeg, MetaSiren, WebP
from inrjax.evaluate import decode_here, evaluate, row_stream_path, stream_path
from inrjax.init import packaged_init
from inrjax.results import read_rows
from inrjax.types import RDPoint

pytest.importorskip("jinja2", reason="needs the extra report: pip install 'inrjax[report]'")
plotly_offline = pytest.importorskip("plotly.offline", reason="needs the extra report")

WIDTH = codecs.inr.WIDTHS[0]
SHAPE = (48, 64)
HOSTILE = "<img src=x onerror=alert(1)>"  # a file may have this name
PICTURES = {"plain": photograph(*SHAPE), HOSTILE: photograph(*SHAPE, 1)}
QUALITIES = (1, 20, 50, 80, 95)
CODECS = [
    MetaSiren(width=WIDTH, num_steps=2),
    *(Jpeg(quality, optimize=True) for quality in QUALITIES),
    *(Jpeg(quality, optimize=False) for quality in QUALITIES[:2]),
    WebP(10),
]
DECODERS = {codec.name: codec for codec in CODECS}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and the folder of its pictures."""
    root = tmp_path_factory.mktemp("report")
    evaluate(CODECS, PICTURES, root / "run", batch_size=2, decode=decode_here)
    results.write_json(root / "run" / "provenance.json", results.provenance("cpu"))
    (root / "pictures").mkdir()
    for name, image in PICTURES.items():
        images.write_image(root / "pictures" / f"{name}.png", image)
    return root


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be spoilt."""
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


def path_of(run: Path, row: RDPoint) -> Path:
    """Where the stream of a WebP row is."""
    return row_stream_path(run, row.codec, row.setting, row.image, ".webp")


@pytest.fixture(scope="module")
def page(made: Path) -> bytes:
    """The whole report."""
    return report.build_report(made / "run", DECODERS, made / "pictures").html


@pytest.fixture
def small_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the 5 MB that say nothing on what a test is about."""
    monkeypatch.setattr(plotly_offline, "get_plotlyjs", lambda: "var Plotly;")


SCRIPT = re.compile(rb"<script>(.*?)</script>", re.S)


def parse(html: bytes) -> Any:
    """The document as an ElementTree; a ParseError for any deviation from HTML 5.

    Plotly's script, which takes the parser most of its time, is only searched for what would be an
    error or would end it.
    """
    html5lib = pytest.importorskip("html5lib", reason="needs html5lib")
    plotly = SCRIPT.findall(html)[0]
    assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]|<!--|<script", plotly)
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    return parser.parse(html.replace(plotly, b"var Plotly;"), transport_encoding="utf-8")


def data_of(html: bytes) -> dict[str, Any]:
    [block] = re.findall(rb'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    return json.loads(block)


def pictures_of(html: bytes) -> list[np.ndarray]:
    """The embedded pictures by their numbers, decoded by Pillow."""
    uris = re.findall(rb'id="picture-\d+">data:image/(?:webp|png);base64,([^<]*)<', html)
    return [np.array(PIL.Image.open(io.BytesIO(base64.b64decode(uri)))) for uri in uris]


def cells(table: Any) -> list[list[str]]:
    return [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]


def row(codec: str, setting: str, num_bytes: int, image: str = "a", side: int = 10) -> RDPoint:
    quality = {"psnr": 20.0 + num_bytes / 100, "ssim": None, "ms_ssim": None}
    seconds = {"encode_seconds": 1.0, "decode_seconds": 1.0, "batch_size": 1, "seed": None}
    bpp = 8 * num_bytes / side**2
    return RDPoint(
        codec, setting, image, side, side, num_bytes, bpp, **quality, **seconds, digest=""
    )


# ------------------------------------------------------------------------------ the file


def test_it_is_valid_html_and_loads_nothing(page: bytes) -> None:
    document = parse(page)
    for element in document.iter():
        assert element.tag not in ("link", "iframe", "object", "embed", "base"), element.tag
        for name in ("src", "href", "srcset", "action", "data", "poster", "background"):
            assert name not in element.attrib, (element.tag, element.attrib)
    [style] = document.iter("style")
    assert not re.search(r"url\(|@import", style.text)


def test_only_its_own_scripts_may_run(page: bytes) -> None:
    [policy] = [
        meta.get("content")
        for meta in parse(page).iter("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    hashes = [hashlib.sha256(script).digest() for script in SCRIPT.findall(page)]
    assert len(hashes) == 2
    assert allowed == {base64.b64encode(each).decode() for each in hashes}
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy
    assert "unsafe-inline" not in re.search("script-src[^;]*", policy)[0]


def test_the_same_run_gives_the_same_bytes(made: Path, page: bytes) -> None:
    assert report.build_report(made / "run", DECODERS, made / "pictures").html == page


def test_every_mean_is_in_the_table(made: Path, page: bytes) -> None:
    [table] = [each for each in parse(page).iter("table") if each.get("id") == "means"]
    header, *lines = cells(table)
    summaries = results.summarise(read_rows(made / "run" / "rows.csv"))
    assert len(lines) == len(summaries) == len(CODECS)
    for line, item in zip(lines, summaries, strict=True):
        told = dict(zip(header, line, strict=True))
        assert (told["codec"], told["setting"]) == (item.codec, item.setting)
        assert told["images"] == str(len(PICTURES))
        assert told["bytes"] == f"{item.num_bytes:,.0f}"
        assert told["bpp"] == f"{item.bpp:.4f}"
        assert told["PSNR dB"] == f"{item.psnr:.2f}"
        assert told["mean-MSE PSNR"] == f"{item.psnr_of_mean_mse:.2f}"
        assert told["SSIM"] == f"{item.ssim:.4f}"
        assert told["MS-SSIM"] == "-"  # the pictures are too small
        shared = packaged_init(WIDTH).shared_bytes
        assert told["shared bytes"] == (f"{shared:,d}" if item.codec == "meta-siren" else "-")


class Flat(codecs.LatentGrid):
    """Files of latents that are all 0, for which nothing is fitted."""

    def encode(self, images, on_progress=None):
        zeros = [
            [np.zeros(shape, np.int64) for shape in self.shared.net.latent_shapes(*i.shape[:2])]
            for i in images
        ]
        return [self.pack(*pair) for pair in zip(images, zeros, strict=True)]


def test_what_decoders_share_is_found_by_what_files_name(tmp_path: Path) -> None:
    measured = [Flat(), WebP(10)]
    rows = evaluate(measured, PICTURES, tmp_path, batch_size=2, decode=decode_here)
    files = {name: [row for row in rows if row.image == name] for name in PICTURES}
    decoders = {codec.name: codecs.decoder(codec.name) for codec in measured}
    sizes = report._shared_bytes(tmp_path, files, decoders)
    [flat] = [codec for codec in measured if isinstance(codec, Flat)]
    assert sizes == {(flat.name, flat.setting): flat.shared.shared_bytes}


def test_bd_rates_are_against_optimised_jpeg(made: Path, page: bytes) -> None:
    curves = results.measured_curves(results.summarise(read_rows(made / "run" / "rows.csv")))
    [table] = [each for each in parse(page).iter("table") if each.get("id") is None]
    lines = {line[0]: line[1:] for line in cells(table)[1:]}
    assert set(lines) == {"meta-siren", "jpeg", "webp"}
    anchor, jpeg = (zip(*curves[name], strict=True) for name in ("jpeg-optimized", "jpeg"))
    expected = metrics.bd_rate(*anchor, *jpeg)
    assert lines["jpeg"][0] == f"{expected.percent:+.1f} %"
    assert lines["meta-siren"][0].startswith("none: ")  # one point is no curve


def test_provenance_is_shown(made: Path, page: bytes) -> None:
    read = json.loads((made / "run" / "provenance.json").read_text())
    [entry] = parse(page).iter("dl")
    told = {div[0].text: div[1].text for div in entry}
    assert set(told) == set(read)
    assert told["date"] == read["date"]
    assert f"numpy {np.__version__}" in told["versions"]


@pytest.mark.usefixtures("small_plotly")
def test_names_are_texts_whatever_they_hold(tmp_path: Path) -> None:
    names = ["</script><script>alert(1)</script>", "<!--", "\"'&amp;", "\udcff"]
    rows = [row(name, f"{name}{i}", 100 + i, name) for name in names for i in (0, 1)]
    results.write_rows(tmp_path / "rows.csv", rows)
    results.write_json(tmp_path / "provenance.json", {"device": names[0], names[1]: None})
    made = report.build_report(tmp_path, {})
    document = parse(made.html)
    executed = [each for each in document.iter("script") if each.get("type") is None]
    assert [each.text[:11] for each in executed] == ["var Plotly;", '"use strict']
    assert data_of(made.html)["codecs"] == names
    texts = list(document.itertext())
    for name in names[:3]:
        assert name in texts and f"{name}0" in texts


# ------------------------------------------------------------------------------ the pictures


def test_pictures_are_exactly_what_the_files_decode_to(made: Path, page: bytes) -> None:
    pictures = pictures_of(page)
    for entry in data_of(page)["viewer"]:
        assert (entry["height"], entry["width"]) == SHAPE
        np.testing.assert_array_equal(pictures[entry["original"]], PICTURES[entry["name"]])
        assert len(entry["files"]) == len(CODECS)
        for file, codec in zip(entry["files"], CODECS, strict=True):
            stream = stream_path(made / "run", codec, entry["name"]).read_bytes()
            assert file["num_bytes"] == len(stream)
            np.testing.assert_array_equal(pictures[file["picture"]], codec.decode([stream])[0])


def test_equal_pictures_are_embedded_once(page: bytes) -> None:
    pictures = pictures_of(page)
    assert len({image.tobytes() for image in pictures}) == len(pictures)
    # Optimised Huffman tables code the same pixels: two of JPEG's qualities are there twice.
    assert len(pictures) == len(PICTURES) * (1 + len(CODECS) - 2)


def test_ours_is_beside_jpeg_at_the_nearest_bytes(page: bytes) -> None:
    told = data_of(page)
    for entry in told["viewer"]:
        files = entry["files"]
        left, right = (files[index] for index in entry["first"])
        assert told["codecs"][left["codec"]] == "meta-siren"
        assert told["codecs"][right["codec"]] == "jpeg-optimized"
        for file, (codec, index) in itertools.product(files, left["nearest"].items()):
            gaps = {
                i: abs(each["num_bytes"] - file["num_bytes"])
                for i, each in enumerate(files)
                if each["codec"] == int(codec)
            }
            assert gaps[file["nearest"][codec]] == min(gaps.values())
            assert index in gaps
        assert files[left["nearest"][str(right["codec"])]] is right


def test_of_two_as_near_the_larger_is_taken() -> None:
    rows = [row("jpeg", "a", 90), row("jpeg", "b", 110), row("jpeg", "c", 111)]
    assert report.nearest(rows, 100).setting == "b"
    assert report.nearest(rows[::-1], 100).setting == "b"


sizes = st.lists(st.integers(1, 10_000), min_size=1, max_size=9, unique=True)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.dictionaries(st.sampled_from("abcd"), sizes, min_size=1), min_size=1, max_size=4),
    st.integers(1, 12_000),
    st.booleans(),
)
def test_what_is_shown_is_bounded_and_matches(
    of_images: list[dict[str, list[int]]], max_pixels: int, has_originals: bool
) -> None:
    """Whatever is shown of the first codec, the files of others nearest in bytes are, too."""
    files = {
        f"image{i}": [row(c, f"s{n}", n, f"image{i}") for c in codecs_ for n in codecs_[c]]
        for i, codecs_ in enumerate(of_images)
    }
    planned = report.plan(files, has_originals, max_pixels=max_pixels)
    pixels = sum(100 * (len(rows) + has_originals) for rows in planned.values())
    everything = sum(100 * (len(rows) + has_originals) for rows in files.values())
    assert list(planned) == list(files)[: len(planned)] and planned
    if everything <= max_pixels:
        assert planned == files
    assert pixels <= max_pixels or len(planned) == 1
    for name, rows in planned.items():
        first = files[name][0].codec
        ours = [each for each in rows if each.codec == first]
        assert ours and (pixels <= max_pixels or len(ours) == 1)
        for one in ours:
            for codec in {each.codec for each in files[name]} - {first}:
                of_codec = [each for each in files[name] if each.codec == codec]
                assert report.nearest(of_codec, one.num_bytes) in rows


def test_a_bound_on_pixels_leaves_settings_out_and_says_so(made: Path) -> None:
    bound = 64 * 48 * 2 * 5  # of two images, the original and four files
    small = report.build_report(made / "run", DECODERS, made / "pictures", max_pixels=bound)
    assert small.num_shown == 2
    [note] = small.notes
    assert "8 of their 18 files" in note
    for entry in data_of(small.html)["viewer"]:
        assert len({file["codec"] for file in entry["files"]}) == 4


@pytest.mark.usefixtures("small_plotly")
def test_images_beyond_the_most_are_counted(made: Path) -> None:
    one = report.build_report(made / "run", DECODERS, made / "pictures", max_images=1)
    assert (one.num_shown, one.num_images) == (1, 2)
    assert one.notes == ("Here are 1 of the 2 images.",)
    assert len(data_of(one.html)["rows"]) == 2 * len(CODECS)  # the plot has all


@pytest.mark.usefixtures("small_plotly")
def test_without_originals_decoded_pictures_are_compared(made: Path) -> None:
    bare = report.build_report(made / "run", DECODERS)
    assert "originals" in bare.notes[0] and len(bare.notes) == 1
    assert bare.notes[0] in list(parse(bare.html).itertext())
    for entry in data_of(bare.html)["viewer"]:
        assert entry["original"] is None
        assert all(isinstance(index, int) for index in entry["first"])


@pytest.mark.usefixtures("small_plotly")
def test_packaged_photographs_need_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = {"coffee": photograph(8, 7)}
    monkeypatch.setattr(datasets, "packaged", lambda: packaged)
    evaluate([WebP(50)], packaged, tmp_path, batch_size=1, decode=decode_here)
    told = report.build_report(tmp_path, DECODERS)
    assert told.notes == ()
    [entry] = data_of(told.html)["viewer"]
    assert entry["first"] == [0, None]  # one codec alone stands beside the original
    packaged["coffee"] = photograph(8, 7, 1)  # another picture of the same name is not taken
    assert "originals" in report.build_report(tmp_path, DECODERS).notes[0]


@pytest.mark.usefixtures("small_plotly")
def test_a_fresh_clone_has_tables_and_plot(made: Path, run: Path) -> None:
    shutil.rmtree(run / "streams")
    told = report.build_report(run, DECODERS, made / "pictures")
    assert told.num_shown == 0 and "not in the folder" in told.notes[0]
    data = data_of(told.html)
    assert data["viewer"] == [] and len(data["means"]) == len(CODECS)
    ids = {element.get("id") for element in parse(told.html).iter()}
    assert {"plot", "means"} <= ids and "frame" not in ids


@pytest.mark.usefixtures("small_plotly")
def test_what_cannot_be_decoded_is_left_out_and_said(made: Path, run: Path) -> None:
    path_of(run, read_rows(run / "rows.csv")[-1]).unlink()
    ours = {name: codec for name, codec in DECODERS.items() if name not in ("jpeg", "meta-siren")}
    odd = [*read_rows(run / "rows.csv"), replace(row("webp", "mine", 8, "plain"), digest="")]
    data = b"no picture"
    odd[-1] = replace(odd[-1], digest=hashlib.sha256(data).hexdigest())
    results.write_rows(run / "rows.csv", odd)
    path_of(run, odd[-1]).parent.mkdir()
    path_of(run, odd[-1]).write_bytes(data)
    told = report.build_report(run, ours, made / "pictures")
    foreign, missing, broken = told.notes
    assert "meta-siren, jpeg" in foreign
    assert "1 of the 13 files" in missing
    assert broken.startswith("webp mine is left out: not a WebP file")
    codecs_shown = [{file["codec"] for file in e["files"]} for e in data_of(told.html)["viewer"]]
    names = data_of(told.html)["codecs"]
    assert [{names[i] for i in each} for each in codecs_shown] == [
        {"jpeg-optimized", "webp"},
        {"jpeg-optimized"},
    ]


@pytest.mark.usefixtures("small_plotly")
def test_a_lossless_codec_has_infinite_psnr(tmp_path: Path) -> None:
    rows = [replace(row("exact", "x", 900), psnr=float("inf")), row("jpeg", "y", 100)]
    results.write_rows(tmp_path / "rows.csv", rows)
    told = report.build_report(tmp_path, {})
    assert "∞" in list(parse(told.html).itertext())
    assert data_of(told.html)["means"][0]["psnr"] is None


# ------------------------------------------------------------------------------ refusals


def refused(*arguments: Any) -> str:
    with pytest.raises(ValueError) as info:
        report.build_report(*arguments)
    return str(info.value)


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    assert "is not a folder" in refused(tmp_path / "absent", DECODERS)
    assert "is not a run: it has no rows.csv" in refused(tmp_path, DECODERS)
    table = run / "rows.csv"
    table.write_bytes(table.read_bytes()[:-9])
    assert re.search(r"rows\.csv, line \d+: ", refused(run, DECODERS))
    results.write_rows(table, [])
    assert "has no rows" in refused(run, DECODERS)


def test_other_originals_are_refused(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    images.write_image(folder / "plain.png", PICTURES["plain"])
    assert f"holds no picture {HOSTILE}" in refused(made / "run", DECODERS, folder)
    changed = PICTURES["plain"].copy()
    changed[0, 0, 0] ^= 1
    images.write_image(folder / "plain.png", changed)
    assert "plain.png has other pixels" in refused(made / "run", DECODERS, folder)


@pytest.mark.parametrize("text", ["[", "[1]", "3"])
def test_damaged_notes_of_a_run_are_refused(run: Path, made: Path, text: str) -> None:
    (run / "provenance.json").write_text(text)
    assert "provenance.json is damaged" in refused(run, DECODERS)
    (run / "images.json").write_text(text)
    assert "images.json" in refused(run, DECODERS, made / "pictures")


def test_a_changed_stream_is_refused(run: Path) -> None:
    path = stream_path(run, CODECS[-1], "plain")
    path.write_bytes(path.read_bytes() + b"\0")
    assert f"{path.name} is not the file that was measured" in refused(run, DECODERS)


@pytest.mark.parametrize("name", ["jinja2", "plotly"])
def test_a_missing_package_is_said(made: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    text = refused(made / "run", DECODERS)
    assert text == f"a report needs {name}, which is not installed: pip install 'inrjax[report]'"


# ------------------------------------------------------------------------------ the command


def test_the_command_writes_the_page(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new" / "report.html"
    given = ["--images", str(made / "pictures"), "--max-images", "1"]
    words = ["report", str(made / "run"), "-o", str(target), *given]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    size = f"{target.stat().st_size / 1e6:.1f} MB, 1 of 2 images in the viewer"
    assert out == f"{made / 'run'} -> {target}: {size}\n"
    assert err == "inrjax: Here are 1 of the 2 images.\n"
    before = target.read_bytes()
    assert cli.main(words) == 1
    assert "would be replaced: add --overwrite" in capsys.readouterr().err
    assert cli.main([*words, "--overwrite"]) == 0
    assert target.read_bytes() == before
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["run", "-o", "report.htm"], 2, "report.htm does not end in .html"),
        (["run", "-o", "r.html", "--max-images", "0"], 2, "expected a whole number"),
        (["run"], 2, "output"),
        (["absent", "-o", "r.html"], 1, "absent is not a folder"),
        (["run", "-o", "r.html", "--images", "absent"], 1, "absent is not a folder"),
    ],
)
def test_the_command_refuses_in_one_sentence(
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    told: str,
) -> None:
    monkeypatch.chdir(made)
    assert cli.main(["report", *words]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("inrjax: error: ") and told in err
    assert not Path("r.html").exists()


# ------------------------------------------------------------------------------ in a browser


class Browser:
    """A page of headless Chromium, over its DevTools protocol."""

    def __init__(self, url: str):
        import websocket

        self._socket = websocket.create_connection(url, timeout=60, suppress_origin=True)
        self._count = 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        self._socket.send(json.dumps(message))
        while True:
            reply = json.loads(self._socket.recv())
            if reply.get("id") == self._count:
                assert "error" not in reply, reply
                return reply["result"]
            self.events.append(reply)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives, a promise when it is kept."""
        reply = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def wait(self, condition: str) -> None:
        end = time.monotonic() + 60
        while not self.value(f"Boolean({condition})"):
            assert time.monotonic() < end, f"it did not come about: {condition}"
            time.sleep(0.02)

    def open(self, path: Path) -> None:
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def choose(self, name: str, value: object) -> None:
        """Choose an option of a <select>, as a user would, and wait for what is drawn."""
        self.value(
            f"{{ const select = document.getElementById('{name}'); select.value = '{value}';"
            " select.dispatchEvent(new Event('change')); }"
        )

    def key(self, name: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name)

    def mouse(self, kind: str, x: float, y: float) -> None:
        self.call(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1
        )

    def box(self, name: str) -> dict[str, float]:
        """Where an element is in the window, which is scrolled to it."""
        element = f"document.getElementById('{name}')"
        self.value(f"{element}.scrollIntoView({{block: 'center'}})")
        return self.value(f"{element}.getBoundingClientRect().toJSON()")

    def screenshot(self) -> np.ndarray:
        """The window, uint8 (height, width, 3)."""
        png = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return np.array(PIL.Image.open(io.BytesIO(png)).convert("RGB"))

    def complaints(self) -> list[dict[str, Any]]:
        """Errors, warnings, console messages, and requests for anything but the file itself."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        requests = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in requests]
        assert len([url for url in urls if url.startswith("file:")]) == 1
        foreign = [{"url": url} for url in urls if not url.startswith(("file:", "data:", "blob:"))]
        return [event for event in self.events if event["method"] in kinds] + foreign


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    pytest.importorskip("websocket", reason="needs websocket-client")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    profile = tmp_path_factory.mktemp("chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--force-color-profile=srgb"]
    process = subprocess.Popen(
        [
            program,
            *options,
            "--hide-scrollbars",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "about:blank",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield Browser(_page_url(profile / "DevToolsActivePort", process))
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        process.kill()


def _page_url(port_file: Path, process: subprocess.Popen[bytes]) -> str:
    """The address of the browser's one page, once it is up."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if process.poll() is not None:
            pytest.skip(f"Chromium does not start here: exit code {process.returncode}")
        with contextlib.suppress(OSError, IndexError, StopIteration):
            port = port_file.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                pages = json.load(answer)
            return next(each["webSocketDebuggerUrl"] for each in pages if each["type"] == "page")
        time.sleep(0.1)
    pytest.skip("Chromium did not come up within two minutes")


@pytest.fixture
def opened(browser: Browser, page: bytes, tmp_path: Path) -> Iterator[Browser]:
    """The report, in a window of 1200 x 900; at the end, nothing may have gone wrong in it."""
    path = tmp_path / "report.html"
    path.write_bytes(page)
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        width=1200,
        height=900,
        deviceScaleFactor=1,
        mobile=False,
    )
    browser.call("Emulation.setEmulatedMedia", features=[])
    browser.open(path)
    browser.wait("'drawn' in document.getElementById('frame').dataset")
    yield browser
    assert browser.complaints() == []


def drawn(browser: Browser, *expected: object) -> None:
    """Wait until the canvases show pictures of these numbers, at this gain of errors."""
    text = " ".join(map(str, expected))
    browser.wait(f"document.getElementById('frame').dataset.drawn === '{text}'")


def canvas(browser: Browser, name: str) -> np.ndarray:
    height, width = SHAPE
    values = browser.value(
        "(() => {"
        f"const copy = new OffscreenCanvas({width}, {height});"
        "const context = copy.getContext('2d', {willReadFrequently: true});"
        f"context.drawImage(document.getElementById('{name}'), 0, 0);"
        f"return Array.from(context.getImageData(0, 0, {width}, {height}).data); }})()"
    )
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


def shown(browser: Browser, zoom: int) -> np.ndarray:
    """The picture as it stands on the screen: the middle of each pixel's square."""
    box = browser.box("stage")
    rows = (box["y"] + zoom * (np.arange(SHAPE[0]) + 0.5)).astype(int)
    columns = (box["x"] + zoom * (np.arange(SHAPE[1]) + 0.5)).astype(int)
    return browser.screenshot()[rows][:, columns]


def test_the_plot_shows_every_codec_and_each_can_be_hidden(opened: Browser) -> None:
    count = "document.querySelectorAll('#plot .scatterlayer .trace').length"
    assert opened.value(count) == len(DECODERS)
    opened.value("document.querySelector('[data-codec=\"1\"]').click()")
    assert opened.value(count) == len(DECODERS) - 1
    opened.choose("metric", "ssim")
    opened.choose("plotted", 1)
    opened.choose("rate-axis", "linear")
    assert "SSIM" in opened.value("document.querySelector('#plot .ytitle').textContent")
    layout = "document.getElementById('plot')._fullLayout"
    assert opened.value(f"{layout}.xaxis.type") == "linear"
    assert opened.value(f"{layout}.yaxis.range")[1] < 2
    assert opened.value("document.querySelector('#metric option[value=ms_ssim]').disabled")
    assert opened.value("document.getElementById('plotted').selectedOptions[0].text") == HOSTILE


def test_a_point_tells_what_it_is(opened: Browser, made: Path) -> None:
    [row, *_] = read_rows(made / "run" / "rows.csv")
    opened.choose("plotted", 0)
    box = opened.box("plot")
    at = opened.value(
        "(() => { const {x, y, width, height} = document.querySelector('#plot .scatterlayer .trace"
        " .point').getBoundingClientRect(); return [x + width / 2, y + height / 2]; })()"
    )
    assert box["left"] < at[0] < box["right"]
    opened.mouse("mouseMoved", *at)
    opened.wait("document.querySelector('#plot .hoverlayer text')")
    told = opened.value("document.querySelector('#plot .hoverlayer').textContent")
    for part in (row.codec, row.setting, f"{row.num_bytes:,} bytes", f"{row.bpp:.4f}"):
        assert part in told
    assert f"{row.psnr:.2f} dB" in told


def test_a_click_on_a_heading_sorts(opened: Browser) -> None:
    column = (
        "[...document.querySelectorAll('#means tbody tr')].map((row) => row.cells[3].dataset.value)"
    )
    before = [float(each) for each in opened.value(column)]
    opened.value("document.querySelectorAll('#means button')[3].click()")
    assert [float(each) for each in opened.value(column)] == sorted(before) != before
    opened.value("document.querySelectorAll('#means button')[3].click()")
    assert [float(each) for each in opened.value(column)] == sorted(before, reverse=True)
    kinds = opened.value(
        "[...document.querySelectorAll('#means th')].map((head) => head.getAttribute('aria-sort'))"
    )
    assert kinds[3] == "descending" and kinds.count(None) == len(kinds) - 1
    last = "[...document.querySelectorAll('#means tbody tr')].at(-1).cells[8].dataset.value"
    opened.value("document.querySelectorAll('#means button')[11].click()")
    assert opened.value(last) == ""  # a dash is last, rising and falling
    opened.value("document.querySelectorAll('#means button')[11].click()")
    assert opened.value(last) == ""


def test_the_browser_shows_the_decoded_pixels_exactly(opened: Browser, page: bytes) -> None:
    pictures = pictures_of(page)
    for number, entry in enumerate(data_of(page)["viewer"]):
        opened.choose("image", number)
        numbers = [entry["files"][index]["picture"] for index in entry["first"]]
        drawn(opened, *numbers, 0)
        for side, which in zip(("left", "right"), numbers, strict=True):
            np.testing.assert_array_equal(canvas(opened, side), pictures[which])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_slider_moves_by_keys_and_pointer(opened: Browser, page: bytes, scheme: str) -> None:
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    opened.call("Emulation.setEmulatedMedia", features=media)
    [entry, _] = data_of(page)["viewer"]
    left, right = (pictures_of(page)[entry["files"][index]["picture"]] for index in entry["first"])
    zoom, (_, width) = 6, SHAPE
    opened.choose("zoom", zoom)

    def check(split: float) -> None:
        """The screen shows the left picture before the line and the right one behind it."""
        opened.wait(f"document.getElementById('divider').ariaValueNow === '{round(100 * split)}'")
        screen, margin = shown(opened, zoom), 5  # squares that the line and its handle cover
        before, behind = max(0, int(split * width) - margin), int(split * width) + margin
        np.testing.assert_array_equal(screen[:, :before], left[:, :before])
        np.testing.assert_array_equal(screen[:, behind:], right[:, behind:])

    check(0.5)
    opened.value("document.getElementById('divider').focus()")
    for name, split in (("ArrowRight", 0.51), ("PageUp", 0.61), ("ArrowLeft", 0.6)):
        opened.key(name)
        check(split)
    opened.key("Home")
    check(0)
    opened.key("End")
    check(1)
    for name in ("divider", "stage"):  # the handle is dragged, or the picture pressed
        opened.key("Home")
        box, stage = opened.box(name), opened.box("stage")
        y = stage["y"] + 20
        x = stage["x"] + 2 if name == "divider" else stage["x"] + stage["width"] / 3
        assert box["x"] <= x <= box["right"]
        opened.mouse("mousePressed", x, y)
        opened.mouse("mouseMoved", stage["x"] + stage["width"] / 4, y)
        opened.mouse("mouseReleased", stage["x"] + stage["width"] / 4, y)
        check(0.25)
        opened.mouse("mouseMoved", stage["x"] + 5, y)  # let go
        check(0.25)


def test_jpeg_follows_ours_unless_unlinked(opened: Browser, page: bytes) -> None:
    told = data_of(page)
    [entry, other] = told["viewer"]
    files, codec = entry["files"], told["codecs"].index
    of_webp = next(i for i, file in enumerate(files) if file["codec"] == codec("webp"))
    opened.choose("left-codec", codec("webp"))
    match = files[of_webp]["nearest"][str(codec("jpeg-optimized"))]
    drawn(opened, files[of_webp]["picture"], files[match]["picture"], 0)
    assert opened.value("document.getElementById('right-setting').disabled")
    told_bytes = opened.value("document.getElementById('right-caption').textContent")
    assert f"{files[match]['num_bytes']:,} bytes" in told_bytes
    percent = 100 * (files[match]["num_bytes"] / files[of_webp]["num_bytes"] - 1)
    assert f"{abs(percent):.1f} %" in told_bytes
    opened.value("document.getElementById('link').click()")
    free = next(
        i for i, f in enumerate(files) if f["codec"] == files[match]["codec"] and i != match
    )
    opened.choose("right-setting", free)
    drawn(opened, files[of_webp]["picture"], files[free]["picture"], 0)
    opened.choose("image", 1)  # what was chosen stays chosen, of the other image
    drawn(opened, other["files"][of_webp]["picture"], other["files"][free]["picture"], 0)
    opened.choose("right-codec", "original")
    drawn(opened, other["files"][of_webp]["picture"], other["original"], 0)
    told_original = opened.value("document.getElementById('right-caption').textContent")
    assert told_original.startswith("original64 ")


def test_an_error_map_is_the_difference_from_the_original(opened: Browser, page: bytes) -> None:
    [entry, _] = data_of(page)["viewer"]
    pictures = pictures_of(page)
    numbers = [entry["files"][index]["picture"] for index in entry["first"]]
    original = pictures[entry["original"]].astype(int)
    for gain in (1, 4, 16):
        opened.choose("mode", gain)
        drawn(opened, *numbers, gain)
        for side, number in zip(("left", "right"), numbers, strict=True):
            expected = np.minimum(gain * abs(pictures[number].astype(int) - original), 255)
            np.testing.assert_array_equal(canvas(opened, side), expected)


@pytest.mark.parametrize("width", [320, 390, 768, 1920])
def test_it_fits_a_window_of_any_width(opened: Browser, width: int) -> None:
    opened.call(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=800,
        deviceScaleFactor=1,
        mobile=False,
    )
    opened.wait(f"innerWidth === {width}")
    opened.wait(
        "Math.abs(document.getElementById('plot')._fullLayout.width"
        " - document.getElementById('plot').clientWidth) <= 1"
    )
    assert opened.value("document.documentElement.scrollWidth") == width
    wide = "[...document.querySelectorAll('main *')].filter((e) => !e.closest('.table') && "
    wide += "e.getBoundingClientRect().right > innerWidth).map((e) => e.outerHTML.slice(0, 99))"
    assert opened.value(wide) == []


def test_a_page_without_pictures_or_originals_works(
    browser: Browser, run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_bytes(report.build_report(run, DECODERS).html)
    browser.open(path)
    browser.wait("'drawn' in document.getElementById('frame').dataset")
    assert browser.value("document.querySelector('#mode option[value=\"4\"]').disabled")
    assert not browser.value("document.querySelector('#left-codec option[value=original]')")
    assert browser.complaints() == []
    shutil.rmtree(run / "streams")
    path.write_bytes(report.build_report(run, DECODERS).html)
    browser.open(path)
    browser.wait("document.querySelectorAll('#plot .scatterlayer .trace').length > 0")
    assert browser.complaints() == []


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="such file names need POSIX")
def test_a_hostile_name_runs_nothing(browser: Browser, tmp_path: Path) -> None:
    name = "</script><script>window.hit = 1</script><img src=x onerror='window.hit = 2'>"
    rows = [row(name, f"{name}{i}", 100 + i, name) for i in (0, 1)]
    results.write_rows(tmp_path / "rows.csv", rows)
    path = tmp_path / "report.html"
    path.write_bytes(report.build_report(tmp_path, {}).html)
    browser.open(path)
    browser.wait("document.querySelectorAll('#plot .scatterlayer .trace').length === 1")
    browser.value("Plotly.Fx.hover('plot', [{curveNumber: 0, pointNumber: 0}])")
    browser.wait("document.querySelector('#plot .hoverlayer text')")
    assert name in browser.value("document.querySelector('#plot .hoverlayer').textContent")
    assert browser.value("window.hit === undefined && document.images.length === 0")
    assert browser.complaints() == []
