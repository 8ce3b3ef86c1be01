"""Runs looked at afterwards: found, whole or partial, measured again from their files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import photograph

from inrjax import codecs, results, runs
from inrjax.codecs.classic import Jpeg, WebP
from inrjax.evaluate import decode_here, evaluate
from inrjax.runs import read_run, sample, stored_rows, verify

ROOT = Path(__file__).parents[1]
IMAGES = {name: photograph(24, 30, seed) for seed, name in enumerate("abc")}
CODECS = [Jpeg(10, optimize=True), Jpeg(40, optimize=True), WebP(10)]


@dataclass(frozen=True)
class Config:
    seed: int = 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run of an experiment: three codecs, three pictures."""
    folder = results.run_folder(tmp_path / "experiment", Config())
    results.write_json(folder / "provenance.json", [results.provenance("cpu")])
    evaluate(CODECS, IMAGES, folder, batch_size=3, decode=decode_here)
    (folder / "table.md").write_text("done\n")
    return folder


def test_the_committed_runs_are_found_and_complete() -> None:
    folders = runs.find_runs(ROOT / "results")
    assert ROOT / "results" / "kodak_rd" / "f8b7f45e568a" in folders
    for folder in folders:
        run = read_run(folder)
        assert run.status == "complete" and run.is_addressed and run.experiment in str(folder)
        assert run.provenance and run.provenance[-1]["date"].startswith("2026")
        tables = {path for path in (ROOT / "results").rglob("rows.csv") if folder in path.parents}
        assert set(run.tables) == tables


def test_a_run_says_what_it_holds(folder: Path) -> None:
    assert runs.find_runs(folder.parents[1]) == runs.find_runs(folder) == [folder]
    run = read_run(folder)
    assert (run.experiment, run.num_images, run.num_rows) == ("experiment", 3, 9)
    assert (run.status, run.is_addressed) == ("complete", True)
    assert run.config == {"type": "Config", "seed": 0}
    assert run.provenance[0]["device"] == "cpu"


def test_a_run_in_a_run_keeps_its_own_tables(folder: Path) -> None:
    inner = results.run_folder(folder / "inner", Config(1))
    results.write_rows(inner / "rows.csv", [])
    assert runs.find_runs(folder) == [folder, inner]
    assert list(read_run(folder).tables) == [folder / "rows.csv"]
    assert list(read_run(inner).tables) == [inner / "rows.csv"]


@pytest.mark.parametrize("change", ["no table.md", "a row", "an image", "all rows of a codec"])
def test_what_is_missing_makes_a_run_partial(folder: Path, change: str) -> None:
    path = folder / "rows.csv"
    rows = results.read_rows(path)
    if change == "no table.md":
        (folder / "table.md").unlink()
    elif change == "a row":
        results.write_rows(path, rows[1:])
    elif change == "an image":  # that the table is about, but no codec reached
        results.write_json(folder / "images.json", dict.fromkeys("abcd", "00"))
    else:
        fields = {f"{c.name} {c.setting}": {"quality": c.quality} for c in CODECS}
        results.write_json(folder / "config.json", fields)
        assert read_run(folder).status == "complete"
        results.write_rows(path, [row for row in rows if row.codec != "webp"])
    assert read_run(folder).status == "partial"


def test_a_folder_that_is_no_run_is_said(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="not a folder"):
        runs.find_runs(tmp_path / "missing")
    (folder / "provenance.json").write_text("{")
    with pytest.raises(ValueError, match=r"provenance\.json"):
        read_run(folder)


def test_a_config_changed_by_hand_is_noticed(folder: Path) -> None:
    results.write_json(folder / "config.json", {"type": "Config", "seed": 1})
    assert read_run(folder).is_addressed is False
    assert read_run(folder.rename(folder.with_name("named"))).is_addressed is None


# Verifying


def test_intact_rows_hold(folder: Path) -> None:
    stored = stored_rows(read_run(folder))
    assert all(one.is_there for one in stored)
    checks = verify(stored, IMAGES)
    assert [check.row for check in checks] == [one.row for one in stored]
    assert all(check.has_qualities and check.problems == () for check in checks)


CHANGES = {
    "psnr": {"psnr": 0.02},
    "psnr_y": {"psnr_y": 0.02},
    "psnr_ycbcr": {"psnr_ycbcr": -0.02},
    "ssim": {"ssim": 2e-4},
    "num_bytes": {"num_bytes": 1},
    "bpp": {"bpp": 1e-6},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_number_that_does_not_hold_is_named(folder: Path, name: str) -> None:
    stored = stored_rows(read_run(folder))[:1]
    changed = {key: getattr(stored[0].row, key) + by for key, by in CHANGES[name].items()}
    [check] = verify(
        [stored[0]._replace(row=replace(stored[0].row, **changed))], IMAGES, decode=decode_here
    )
    [problem] = check.problems
    assert problem.startswith(f"{name} is ") and "the table says" in problem


def test_a_difference_within_the_tolerance_holds(folder: Path) -> None:
    one = stored_rows(read_run(folder))[0]
    row = replace(one.row, psnr=one.row.psnr + 0.005, psnr_y=None)
    [check] = verify([one._replace(row=row)], IMAGES, decode=decode_here)
    assert check.problems == () and check.has_qualities


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda data, other: data[:-2], ("num_bytes", "SHA-256", "does not decode", "truncated")),
        (lambda data, other: other, ("SHA-256",)),
    ],
)
def test_a_changed_stream_is_noticed(folder: Path, damage, words: tuple[str, ...]) -> None:
    stored = stored_rows(read_run(folder))
    first, second = stored[0].stream, stored[1].stream
    assert first is not None and second is not None
    first.write_bytes(damage(first.read_bytes(), second.read_bytes()))
    [check, *others] = verify(stored, IMAGES)
    assert all(any(word in problem for problem in check.problems) for word in words)
    assert not any(other.problems for other in others)


def test_a_stream_of_another_size_is_noticed(folder: Path) -> None:
    one = stored_rows(read_run(folder))[0]
    row = replace(one.row, height=30, width=24)
    [check] = verify([one._replace(row=row)], IMAGES, decode=decode_here)
    assert check.problems == ("it decodes to 24 x 30, the table says 30 x 24",)


def test_qualities_need_the_very_picture(folder: Path) -> None:
    stored = stored_rows(read_run(folder))[:1]
    for images in ({}, {"a": IMAGES["b"]}, {"a": IMAGES["a"][:-1]}):
        [check] = verify(stored, images, decode=decode_here)
        assert check.problems == () and not check.has_qualities
    wrong = [stored[0]._replace(row=replace(stored[0].row, psnr=99.0))]
    assert verify(wrong, {}, decode=decode_here)[0].problems == ()
    assert verify(wrong, IMAGES, decode=decode_here)[0].problems != ()


def test_missing_streams_and_unknown_codecs_are_known_before(folder: Path) -> None:
    rows = results.read_rows(folder / "rows.csv")
    results.append_rows(folder / "rows.csv", [replace(rows[0], codec="someone-else-s")])
    stored = stored_rows(read_run(folder))
    assert stored[-1].stream is None and not stored[-1].is_there
    assert stored[0].stream is not None
    stored[0].stream.unlink()
    assert [one.is_there for one in stored] == [False] + [True] * 8 + [False]
    with pytest.raises(ValueError, match="does not exist"):
        verify(stored[:1], IMAGES)


def test_a_sample_is_drawn_by_its_seed_in_the_order_of_the_rows(folder: Path) -> None:
    stored = stored_rows(read_run(folder))
    drawn = [sample(stored, 4, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == [one for one in stored if one in drawn[0]] and len(drawn[0]) == 4
    assert sample(stored, 99, 0) == stored


# The decoder of each name


CODED = {
    codec.name: codec
    for codec in (
        Jpeg(77, optimize=False),
        Jpeg(77, optimize=True),
        Jpeg(77, optimize=True, progressive=True),
        Jpeg(77, optimize=True, subsample=False),
        codecs.Jpeg2000(9.5),
        WebP(77),
        codecs.Avif(50),
        codecs.Png(),
        codecs.Fmm(),
        codecs.FmmInside(Jpeg(77, optimize=True)),
    )
}
NEEDS = {
    "jpeg-mozjpeg": ("pyvips", lambda: codecs.MozJpeg(77)),
    "jpeg-xl": ("imagecodecs", lambda: codecs.JpegXl(3.0)),
    "hevc": ("pillow_heif", lambda: codecs.Hevc(30)),
    "vvc": ("imageio_ffmpeg", lambda: codecs.Vvc(40)),
}
"""Codec -> the optional package that it needs, and a setting of it."""


NEEDS_A_BASE = ("modulated-siren", "latent-grid")
"""Codecs whose golden streams are of a base that is not packaged."""


@pytest.mark.parametrize("name", [name for name in codecs.BY_NAME if name not in NEEDS_A_BASE])
def test_the_decoder_of_a_name_reads_the_streams_of_any_setting(name: str) -> None:
    coded = CODED.get(name)
    if name in NEEDS:
        package, make = NEEDS[name]
        pytest.importorskip(package, reason=f"{package} is not installed")
        coded = make()
    decoder = codecs.decoder(name)
    assert decoder.name == name
    if coded is not None:
        [stream] = coded.encode([IMAGES["a"]])
        [expected] = coded.decode([stream])
    else:  # an .inr file, of a width that is not the decoder's
        stream = (ROOT / "tests" / "golden" / f"v1_{name}.inr").read_bytes()
        expected = codecs.decode_stream(stream)
    assert np.array_equal(decoder.decode([stream])[0], expected)


def test_codecs_import_without_any_optional_package() -> None:
    hidden = [*(package for package, _ in NEEDS.values()), "plotly", "jinja2"]
    program = f"""
import sys
sys.modules.update(dict.fromkeys({hidden!r}))
from inrjax import codecs
assert codecs.decoder("jpeg").name == "jpeg"
for name in {list(NEEDS)!r}:
    try:
        codecs.decoder(name)
    except ValueError as error:
        assert "pip install" in str(error), error
    else:
        raise AssertionError(name)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_name_that_no_codec_has_is_refused() -> None:
    with pytest.raises(ValueError, match="no codec 'bpg' here, expected one of coin, meta-siren"):
        codecs.decoder("bpg")


def test_json_of_a_config_is_its_own_hash(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert results.config_hash(config) == folder.name
