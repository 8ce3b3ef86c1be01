"""The main job end to end, on small pictures and with few steps."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
from bases import tiny_grid_base
from conftest import photograph

from inrjax import cli, codecs, datasets, quickstart
from inrjax.codecs import Jpeg, MetaSiren, StrumplerMeta, WebP
from inrjax.evaluate import stream_path
from inrjax.init import packaged_init
from inrjax.results import read_rows
from inrjax.types import Codec

pytestmark = pytest.mark.unoptimized

WIDTH = codecs.inr.WIDTHS[0]
SMALL = {"one": photograph(8, 7), "two": photograph(7, 8, 1)}


def test_quickstart_measures_every_codec_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "packaged", lambda: SMALL)
    progress: list[tuple[int, int]] = []
    ours = [MetaSiren(width=WIDTH, num_steps=2)]
    report = quickstart.quickstart(
        tmp_path, ours, [Jpeg(10, optimize=True)], lambda *done: progress.append(done)
    )
    assert report.failures == []
    assert [row.digest for row in report.rows] == [
        row.digest for row in read_rows(tmp_path / "rows.csv")
    ]
    assert {(row.codec, row.image) for row in report.rows} == {
        (name, image) for name in ("meta-siren", "jpeg-optimized") for image in SMALL
    }
    assert all(path.is_file() for path in report.files)
    assert {path.name for path in report.files} >= {"rows.csv", "rd.png", "side_by_side.png"}
    assert progress[-1][0] == progress[-1][1]
    for name, image in SMALL.items():
        [row] = [r for r in report.rows if (r.codec, r.image) == ("meta-siren", name)]
        file = stream_path(tmp_path, ours[0], name)
        assert len(file.read_bytes()) == row.num_bytes
        assert codecs.decode_stream(file.read_bytes()).shape == image.shape


def test_the_command_prints_sizes_and_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(datasets, "packaged", lambda: SMALL)
    monkeypatch.setattr(quickstart, "WIDTHS", (WIDTH,))
    assert cli.main(["quickstart", "-o", str(tmp_path / "out"), "--steps", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = read_rows(tmp_path / "out" / "rows.csv")
    for row in [row for row in rows if row.codec == "meta-siren"]:
        size = rf" {row.num_bytes} +{row.bpp:.3f} +{row.psnr:.2f}$"
        assert any(re.search(f"^{row.image} .*{size}", line) for line in out.splitlines())
    assert f": {packaged_init(WIDTH).shared_bytes} of meta-siren at width {WIDTH}" in out
    for name in ("meta-siren", "jpeg ", "jpeg-optimized", "jpeg2000", "webp"):
        assert any(line.startswith(name) for line in out.splitlines())
    assert PIL.Image.open(tmp_path / "out" / "side_by_side.png").size[0] > 1000


@pytest.mark.parametrize("num_bytes", [0, 10_000, 20_000, 10**9])
def test_jpeg_is_shown_in_as_many_bytes_or_at_its_smallest(num_bytes: int) -> None:
    image = photograph(200, 300)
    sizes = [len(Jpeg(q, optimize=True).encode([image])[0]) for q in range(1, 101)]
    stream, note = quickstart._jpeg_within(image, num_bytes)
    if num_bytes < min(sizes):
        assert (len(stream), note) == (min(sizes), "JPEG's smallest file")
    else:
        assert (len(stream), note) == (max(size for size in sizes if size <= num_bytes), "")


def test_a_folder_keeps_the_fields_of_its_codecs(tmp_path: Path) -> None:
    image = {"one": SMALL["one"]}
    first = MetaSiren(width=WIDTH, num_steps=2)
    quickstart.measure([first], image, tmp_path, 1)
    before = (tmp_path / "rows.csv").read_bytes()
    with pytest.raises(ValueError, match=r"other options \(slope\): choose another folder"):
        quickstart.measure([replace(first, slope=0.1)], image, tmp_path, 1)
    assert (tmp_path / "rows.csv").read_bytes() == before
    report = quickstart.measure([WebP(50)], image, tmp_path, 1)
    assert [row.codec for row in report.rows] == ["webp"]
    assert [row.codec for row in read_rows(tmp_path / "rows.csv")] == ["meta-siren", "webp"]


@pytest.mark.parametrize(
    "codec", [codecs.LatentGrid(), codecs.ProductSiren(24), codecs.StrumplerMeta(24)]
)
def test_a_folder_keeps_what_the_decoders_share(
    codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickstart._claim(tmp_path, [codec])
    quickstart._claim(tmp_path, [codec])
    other = StrumplerMeta(32).shared if hasattr(codec, "init") else tiny_grid_base()
    monkeypatch.setattr(type(codec), "shared", other)  # as of a later version
    with pytest.raises(ValueError, match=r"other options \((init|base)\): choose another folder"):
        quickstart._claim(tmp_path, [codec])


def test_every_byte_that_decoders_share_is_told_once() -> None:
    base, init = codecs.LatentGrid().shared, packaged_init(24)
    measured = [Jpeg(10, optimize=True), MetaSiren(24), MetaSiren(24, slope=0.1), codecs.Coin()]
    [line] = cli._shared_bytes([*measured, codecs.LatentGrid(20), codecs.LatentGrid(30)])
    assert line.endswith(
        f": {init.shared_bytes} of meta-siren at width 24, {base.shared_bytes} of latent-grid"
    )
    assert cli._shared_bytes([WebP(50), codecs.Coin()]) == []


def test_a_damaged_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        quickstart.measure([WebP(50)], SMALL, tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
