"""Tables, run folders and provenance: exact round trips, nothing half written, nothing private."""

from __future__ import annotations

import getpass
import json
import math
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inrjax import results, trees
from inrjax.results import PublishedPoint
from inrjax.types import RDPoint

ROOT = Path(__file__).parents[1]
KODAK = ROOT / "results" / "published" / "kodak.csv"

ROW = RDPoint(
    codec="toy",
    setting="width=8",
    image="a",
    height=2,
    width=3,
    num_bytes=7,
    bpp=28 / 3,
    psnr=30.0,
    ssim=0.9,
    ms_ssim=None,
    encode_seconds=1.5,
    decode_seconds=0.1,
    batch_size=4,
    seed=0,
    digest="00",
)

texts = st.text(max_size=12)
floats = st.floats(allow_nan=False)
kinds = {
    "str": texts,
    "int": st.integers(-(2**70), 2**70),
    "float": floats,
    "float | None": st.none() | floats,
    "int | None": st.none() | st.integers(),
}
rows_strategy = st.lists(
    st.builds(RDPoint, **{f.name: kinds[str(f.type)] for f in fields(RDPoint)}), max_size=4
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(first=rows_strategy, second=rows_strategy)
def test_rows_come_back_exactly(tmp_path, first, second):
    path = tmp_path / "rows.csv"
    results.write_rows(path, first)
    assert results.read_rows(path) == first
    results.append_rows(path, second)
    assert results.read_rows(path) == first + second


def test_a_table_of_an_earlier_version_reads_and_is_upgraded(tmp_path):
    """The tables that are committed have no psnr_y and no psnr_ycbcr."""
    path = tmp_path / "rows.csv"
    header = (
        "codec,setting,image,height,width,num_bytes,bpp,psnr,ssim,ms_ssim,"
        "encode_seconds,decode_seconds,batch_size,seed,digest"
    )
    path.write_text(f"{header}\ntoy,width=8,a,2,3,7,{28 / 3!r},30.0,0.9,,1.5,0.1,4,0,00\n")
    assert results.read_rows(path) == [ROW] and ROW.psnr_y is None and ROW.psnr_ycbcr is None
    measured = replace(ROW, image="b", psnr_y=31.0, psnr_ycbcr=33.0)
    results.append_rows(path, [measured])
    assert path.read_text().splitlines()[0] == ",".join(f.name for f in fields(RDPoint))
    assert results.read_rows(path) == [ROW, measured]
    for columns in (
        header.replace("psnr,", "psnr,psnr_y,"),
        header.replace("ssim,ms_ssim", "ssim"),
    ):
        path.write_text(columns + "\n")
        with pytest.raises(ValueError, match="columns"):
            results.read_rows(path)


def test_the_committed_tables_read():
    tables = list((ROOT / "results").rglob("rows.csv"))
    assert tables
    for path in tables:
        for row in results.read_rows(path):
            assert row.bpp == 8 * row.num_bytes / (row.height * row.width)


def test_odd_values_come_back(tmp_path):
    odd = replace(
        ROW,
        image='a,"b"\r\n\x00ü\udc80',  # the last is a byte of a file name that is not UTF-8
        psnr=math.inf,
        bpp=np.float64(0.1),
        ssim=np.float32(0.1),  # type: ignore[arg-type]
        num_bytes=np.int64(5),  # type: ignore[arg-type]
    )
    results.append_rows(tmp_path / "rows.csv", [odd])
    [back] = results.read_rows(tmp_path / "rows.csv")
    assert back == odd
    assert type(back.ssim) is float and type(back.num_bytes) is int
    results.write_rows(tmp_path / "rows.csv", [replace(ROW, ssim=math.nan)])
    assert math.isnan(results.read_rows(tmp_path / "rows.csv")[0].ssim)


def test_a_file_cut_anywhere_is_refused_or_ends_at_a_row(tmp_path):
    path = tmp_path / "rows.csv"
    rows = [ROW, replace(ROW, image="b")]
    results.write_rows(path, rows)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            assert results.read_rows(path) == rows[: whole[:length].count(b"\n") - 1]
            assert whole[:length].endswith(b"\n")
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "line 0: its columns must be"),
        ("a,b\n1,2\n", "line 1: its columns must be"),
        (None, "line 3"),
    ],
)
def test_a_wrong_table_is_refused_by_file_and_line(tmp_path, text, message):
    path = tmp_path / "rows.csv"
    results.write_rows(path, [ROW, replace(ROW, image="b")])
    path.write_text(path.read_text().replace("b,2,3", "b,two,3") if text is None else text)
    with pytest.raises(ValueError, match=message) as caught:
        results.read_rows(path)
    assert "rows.csv" in str(caught.value)


def test_files_that_are_no_tables_are_refused(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\xd8")
    for name in ("missing", "binary", "."):
        with pytest.raises(ValueError) as caught:
            results.read_rows(tmp_path / name)
        assert str(tmp_path) in str(caught.value)


def test_an_interrupted_append_leaves_the_table_before_it(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    results.write_rows(path, [ROW])

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(trees.os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        results.append_rows(path, [replace(ROW, image="b")])
    assert results.read_rows(path) == [ROW]
    assert os.listdir(tmp_path) == ["rows.csv"]


def test_a_table_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(ValueError, match="cannot write"):
        results.write_rows(tmp_path / "missing" / "rows.csv", [ROW])


# Run folders


@dataclass(frozen=True)
class Net:
    width: int


@dataclass(frozen=True)
class OtherNet:
    width: int


@dataclass(frozen=True)
class Config:
    net: object = Net(8)
    rates: tuple[float, ...] = (1e-3, 0.1)
    name: str = "ü"
    note: str | None = None


def test_the_same_config_is_the_same_folder(tmp_path):
    folder = results.run_folder(tmp_path, Config())
    assert folder == results.run_folder(tmp_path, Config())
    assert folder.parent == tmp_path and len(folder.name) == 12
    config = json.loads((folder / "config.json").read_text())
    assert config["net"] == {"type": "Net", "width": 8} and config["rates"] == [1e-3, 0.1]


def test_the_hash_is_the_same_in_every_process():
    program = "from test_results import *; print(results.config_hash(Config()))"
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == results.config_hash(Config())


def test_any_difference_changes_the_hash():
    configs = [
        Config(),
        Config(net=Net(9)),
        Config(net=OtherNet(8)),
        Config(rates=(1e-3,)),
        Config(rates=(np.nextafter(1e-3, 1), 0.1)),
        Config(name="u"),
        Config(note=""),
    ]
    assert len({results.config_hash(config) for config in configs}) == len(configs)


@pytest.mark.parametrize("value", [Path("x"), math.nan, np.zeros(2), {1: 2}, {1, 2}, Net])
def test_what_has_no_canonical_text_is_refused(value):
    with pytest.raises(ValueError, match=r"config\.net"):
        results.config_hash(Config(net=value))


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot make the run folder"):
        results.run_folder(tmp_path / "file", Config())


def test_json_without_nan(tmp_path):
    with pytest.raises(ValueError):
        results.write_json(tmp_path / "x.json", {"a": math.nan})
    assert not (tmp_path / "x.json").exists()


# Provenance


def test_provenance_says_what_it_should_and_nothing_private():
    found = results.provenance(device="cpu")
    keys = "commit, dirty, versions, device, cpu, cpu_count, platform, date"
    assert ", ".join(found) == keys
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["numpy"] == np.__version__
    assert found["cpu_count"] >= 1 and found["date"].endswith("+00:00")
    assert (found["commit"] is None) == (found["dirty"] is None)
    text = json.dumps(found)
    assert str(ROOT) not in text and str(Path.home()) not in text
    for private in (platform.node(), getpass.getuser()):
        assert private not in [value for value in found.values() if isinstance(value, str)]


@pytest.mark.parametrize("earlier", [None, {"date": "1"}, [{"date": "0"}, {"date": "1"}]])
def test_a_provenance_is_added_to_what_is_noted(earlier: Any, tmp_path: Path) -> None:
    if earlier is not None:
        results.write_json(tmp_path / "provenance.json", earlier)
    results.note_provenance(tmp_path, {"date": "2"})
    noted = json.loads((tmp_path / "provenance.json").read_text())
    before = [] if earlier is None else earlier if isinstance(earlier, list) else [earlier]
    assert noted[:-1] == before and noted[-1]["date"] == "2"


def test_a_process_that_adds_no_rows_makes_a_run_no_newer(tmp_path: Path) -> None:
    def start(day: int) -> None:
        results.note_provenance(tmp_path, {"date": f"2026-11-0{day}T00:00:00+00:00"})

    def day() -> int:
        return results.date_of_rows(tmp_path).day

    start(1)
    assert day() == 1  # of a run without rows yet, its start
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "rows.csv").write_text("a\n")
    start(2)
    assert day() == 1
    (tmp_path / "part" / "rows.csv").write_text("a\nb\n")
    assert day() == 2
    start(3)
    start(4)
    assert day() == 2
    (tmp_path / "rows.csv").write_text("c\n")
    assert day() == 4
    # Entries of earlier versions say nothing of rows: they are taken to have added some.
    results.write_json(tmp_path / "provenance.json", [{"date": "2026-11-05T00:00:00+00:00"}])
    start(6)
    assert day() == 5


def test_provenance_imports_no_jax():
    program = (
        "import sys; from inrjax import results; results.provenance(); print('jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    subprocess.run(
        ["git", *identity, *arguments], cwd=folder, env=environment, check=True, capture_output=True
    )


def test_commit_and_dirty_flag(tmp_path, monkeypatch):
    """None outside a checkout and inside another project's; dirty only for changes of code."""
    package = tmp_path / "inrjax"
    package.mkdir()
    module = package / "results.py"
    module.write_text("a = 1\n")
    monkeypatch.setattr(results, "__file__", str(module))

    def state():
        found = results.provenance()
        return found["commit"], found["dirty"]

    assert state() == (None, None)

    git(tmp_path, "init", "-q")
    (tmp_path / "other.txt").write_text("")
    git(tmp_path, "add", "other.txt")
    git(tmp_path, "commit", "-q", "-m", "another project")
    assert state() == (None, None)

    git(tmp_path, "add", "inrjax")
    git(tmp_path, "commit", "-q", "-m", "the package")
    commit, dirty = state()
    assert len(commit) == 40 and dirty is False

    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "rows.csv").write_text("")
    assert state() == (commit, False)
    (package / "new.py").write_text("")
    assert state() == (commit, True)

    monkeypatch.setenv("PATH", "")
    assert state() == (None, None)


# Published points, summaries and curves


def test_the_published_file_reads():
    points = results.read_published(KODAK)
    assert all(isinstance(point, PublishedPoint) for point in points)
    curves = results.published_curves(points)
    expected = {"COIN", "COIN++", "C3", "RECOMBINER", "VC-INR", "MSCN", "WebP", "JPEG2000"}
    assert expected < set(curves)
    assert curves["COIN"][1] == pytest.approx((0.0736, 23.21), abs=0.01)
    for curve in curves.values():
        assert len(curve) >= 4 and curve == sorted(curve)
        assert all(0 < bpp < 25 and 15 < psnr < 60 for bpp, psnr in curve)
    assert all(point.source for point in points)


def test_measured_and_published_files_refuse_each_other(tmp_path):
    results.write_rows(tmp_path / "rows.csv", [ROW])
    with pytest.raises(ValueError, match="columns"):
        results.read_published(tmp_path / "rows.csv")
    with pytest.raises(ValueError, match="columns"):
        results.read_rows(KODAK)
    assert results.is_published(KODAK)
    (tmp_path / "binary.csv").write_bytes(b"\xff")
    for name in ("rows.csv", "binary.csv", "missing.csv", "."):
        assert not results.is_published(tmp_path / name)


def test_a_published_point_needs_a_source(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("method,bpp,psnr_db,ms_ssim,source\nX,0.1,30,,\n")
    with pytest.raises(ValueError, match=r"line 2: .*source"):
        results.read_published(path)
    path.write_text("method,bpp,psnr_db,ms_ssim,source\nX,0.1,,0.9,paper\n")
    assert results.read_published(path) == [PublishedPoint("X", 0.1, None, 0.9, "paper")]
    assert results.published_curves(results.read_published(path)) == {}


def test_the_two_means_of_psnr():
    rows = [replace(ROW, psnr=20.0), replace(ROW, image="b", psnr=40.0)]
    [summary] = results.summarise(rows)
    assert summary.psnr == 30.0
    assert summary.psnr_of_mean_mse == pytest.approx(10 * math.log10(2 / (1e-2 + 1e-4)))
    assert summary.num_images == 2 and summary.bpp == pytest.approx(28 / 3)
    exact = results.summarise([replace(ROW, psnr=math.inf)])[0]
    assert exact.psnr == exact.psnr_of_mean_mse == math.inf


def test_means_of_luma_and_weighted_psnr():
    rows = [
        replace(ROW, psnr_y=31.0, psnr_ycbcr=33.0),
        replace(ROW, image="b", psnr_y=33.0, psnr_ycbcr=34.0),
    ]
    [summary] = results.summarise(rows)
    assert (summary.psnr_y, summary.psnr_ycbcr) == (32.0, 33.5)
    [summary] = results.summarise([rows[0], replace(rows[1], psnr_y=None)])
    assert (summary.psnr_y, summary.psnr_ycbcr) == (None, 33.5)


@settings(max_examples=50)
@given(psnrs=st.lists(st.floats(5, 60), min_size=1, max_size=8))
def test_psnr_of_the_mean_error_is_never_above_the_mean_of_psnrs(psnrs):
    rows = [replace(ROW, image=str(i), psnr=psnr) for i, psnr in enumerate(psnrs)]
    [summary] = results.summarise(rows)
    assert min(psnrs) - 1e-9 <= summary.psnr_of_mean_mse <= summary.psnr + 1e-9


def test_summaries_keep_settings_apart_and_the_order():
    rows = [
        replace(ROW, setting="width=9", ms_ssim=0.5),
        ROW,
        replace(ROW, setting="width=9", image="b", ms_ssim=0.7),
        replace(ROW, codec="other", image="b"),
    ]
    summaries = results.summarise(rows)
    assert [(s.codec, s.setting, s.num_images) for s in summaries] == [
        ("toy", "width=9", 2),
        ("toy", "width=8", 1),
        ("other", "width=8", 1),
    ]
    assert summaries[0].ms_ssim == pytest.approx(0.6)
    assert summaries[0].psnr_y is None and summaries[0].psnr_ycbcr is None
    assert summaries[1].ms_ssim is None
    assert results.measured_curves(summaries)["toy"] == [(28 / 3, 30.0), (28 / 3, 30.0)]
    with pytest.raises(ValueError, match="twice"):
        results.summarise([ROW, ROW])
