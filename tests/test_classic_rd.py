"""The committed rows of the classic codecs on Kodak: whole, and where published curves put them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import classic_rd
from inrjax import metrics, results
from inrjax.results import measured_curves, published_curves, read_published, summarise

RESULTS = Path(__file__).parents[1] / "results"
FOLDER = RESULTS / "classic_rd" / results.config_hash(classic_rd.Config())


@pytest.fixture(scope="module")
def rows() -> list[results.RDPoint]:
    if not (FOLDER / "table.md").exists():
        pytest.skip("the run on Kodak is not here: python -m experiments.classic_rd")
    return results.read_rows(FOLDER / "rows.csv")


def percent(anchor: list[tuple[float, float]], curve: list[tuple[float, float]]) -> float:
    columns = [[value[i] for value in c] for c in (anchor, curve) for i in (0, 1)]
    return metrics.bd_rate(*columns).percent


def test_every_codec_has_every_image_at_every_setting(rows) -> None:
    summaries = summarise(rows)
    assert {s.num_images for s in summaries} == {24}
    assert len(summaries) == len({(s.codec, s.setting) for s in summaries})
    assert {s.codec for s in summaries} == set(classic_rd.FLAGS)


def test_the_table_is_that_of_the_rows(rows) -> None:
    text = (FOLDER / "table.md").read_text("utf-8")
    assert text == classic_rd.table(classic_rd.Config(), rows)


def test_jpeg_and_webp_stand_where_they_were_published(rows) -> None:
    """CompressAI's curves, by other versions of the same encoders."""
    measured = measured_curves(summarise(rows))
    published = published_curves(read_published(RESULTS / "published" / "kodak.csv"))
    for name, other in classic_rd.PUBLISHED.items():
        assert abs(percent(published[other], measured[name])) < 3


def test_newer_codecs_need_fewer_bits(rows) -> None:
    curves = measured_curves(summarise(rows))
    anchor = curves[classic_rd.ANCHOR]
    order = ["jpeg", "jpeg-optimized", "jpeg-mozjpeg", "webp", "hevc", "vvc"]
    rates = [percent(anchor, curves[name]) for name in order]
    assert rates == sorted(rates, reverse=True)


def test_png_is_exact_and_fmm_within_its_bounds(rows) -> None:
    assert all(row.psnr == float("inf") for row in rows if row.codec == "png")
    # Errors of -2..2, at most: 10 log10(255 ^ 2 / 4) dB if all were 2.
    psnrs = [row.psnr for row in rows if row.codec == "fmm"]
    assert min(psnrs) > 42.1
    assert 45.0 <= sum(psnrs) / len(psnrs) <= 45.4


def test_provenance_names_the_libraries_that_wrote_the_bytes(rows) -> None:
    records = json.loads((FOLDER / "provenance.json").read_text("utf-8"))
    assert all(record["dirty"] is False for record in records)
    names = ("pillow", "pillow/avif", "imagecodecs/libjxl", "pillow-heif/x265", "pyvips-binary")
    for name in (*names, "imageio-ffmpeg/vvenc"):
        assert records[-1]["versions"][name]
