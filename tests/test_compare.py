"""Comparisons of rows: closed forms, an independent bootstrap, and what is refused."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from inrjax import compare, metrics, results
from inrjax.compare import Bootstrap
from inrjax.results import PublishedPoint
from inrjax.types import RDPoint

ROOT = Path(__file__).parents[1]
KODAK = ROOT / "results" / "kodak_rd" / "f8b7f45e568a" / "rows.csv"


def row(codec: str, setting: str, image: str, bpp: float, psnr: float) -> RDPoint:
    """A row with the numbers that a comparison reads; ms_ssim is 1 - 10^(-psnr / 20)."""
    return RDPoint(
        codec=codec,
        setting=setting,
        image=image,
        height=200,
        width=200,
        num_bytes=round(bpp * 5000),
        bpp=bpp,
        psnr=psnr,
        psnr_y=psnr + 1,
        psnr_ycbcr=psnr + 2,
        ssim=1 - 10 ** (-psnr / 40),
        ms_ssim=1 - 10 ** (-psnr / 20),
        encode_seconds=1.0,
        decode_seconds=1.0,
        batch_size=1,
        seed=None,
        digest="00",
    )


def table(codec: str, factor: float = 1.0, num_images: int = 5, spread: float = 0.2, seed: int = 0):
    """Rows on psnr = 30 + 10 log10(bpp / factor) + an offset of the image's own."""
    generator = np.random.default_rng(seed)
    offsets = generator.normal(0, 1, num_images)
    return [
        row(
            codec,
            f"rate={rate}",
            f"image{i}",
            factor * rate * (1 + spread * i),
            30 + 10 * math.log10(rate) + offsets[i],
        )
        for rate in (0.1, 0.3, 0.5, 1.2)
        for i in range(num_images)
    ]


ANCHOR = table("anchor")
FEW = Bootstrap(num_resamples=50)


@pytest.mark.parametrize("metric", compare.METRICS)
@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_scaled_rates_give_their_scale_under_every_metric_and_resample(metric, factor):
    result = compare.bd_rate_of(ANCHOR, table("b", factor), metric, FEW)
    expected = pytest.approx(100 * (factor - 1), abs=1e-9)
    assert result.of_means == (expected, expected, expected)
    assert result.mean_of_images == (expected, expected, expected)
    assert (result.num_images, result.num_overlapping, result.num_resamples) == (5, 5, 50)


def test_shifted_qualities_give_their_shift():
    better = [replace(r, codec="b", psnr=r.psnr + 1) for r in ANCHOR]
    result = compare.bd_psnr_of(ANCHOR, better, bootstrap=FEW)
    expected = pytest.approx(1, abs=1e-9)
    assert result.of_means == (expected, expected, expected)
    assert result.mean_of_images == (expected, expected, expected)
    means = results.measured_curves(results.summarise(ANCHOR))["anchor"]
    assert (result.low, result.high) == pytest.approx((means[0][0], means[-1][0]))


def test_the_curve_of_means_is_that_of_the_summaries():
    others = table("b", 0.7, seed=1)
    a, b = (results.measured_curves(results.summarise(rows)) for rows in (ANCHOR, others))
    rates_a, psnrs_a = zip(*a["anchor"], strict=True)
    rates_b, psnrs_b = zip(*b["b"], strict=True)
    expected = metrics.bd_rate(rates_a, psnrs_a, rates_b, psnrs_b)
    result = compare.bd_rate_of(ANCHOR, others)
    assert result.of_means.value == pytest.approx(expected.percent, rel=1e-12)
    assert (result.low, result.high) == pytest.approx(expected[1:])
    assert compare.bd_rate_of_curves(a["anchor"], b["b"]) == expected
    expected = metrics.bd_psnr(rates_a, psnrs_a, rates_b, psnrs_b)
    assert compare.bd_psnr_of(ANCHOR, others).of_means.value == pytest.approx(expected.db)


def test_similarities_are_compared_in_decibels_of_their_means():
    """Of ms_ssim 1 - 10^(-psnr / 20) and ssim 1 - 10^(-psnr / 40) it is half and a quarter."""
    one = [r for r in ANCHOR if r.image == "image0"]
    better = [
        row("b", r.setting, r.image, r.bpp, r.psnr + 1) for r in ANCHOR if r.image == "image0"
    ]
    assert compare.bd_psnr_of(one, better, "ms_ssim").of_means.value == pytest.approx(0.5)
    assert compare.bd_psnr_of(one, better, "ssim").of_means.value == pytest.approx(0.25)
    # Of several images, the mean is taken before the logarithm.
    settings = sorted({r.setting for r in ANCHOR})
    low = fmean(r.ms_ssim for r in ANCHOR if r.setting == settings[0] and r.ms_ssim)
    assert compare.bd_rate_of(ANCHOR, table("b"), "ms_ssim").low == pytest.approx(
        -10 * math.log10(1 - low)
    )


def test_the_intervals_are_percentiles_over_resampled_images():
    """The same by the definition: rows of drawn images, renamed, through the summaries."""
    others = table("b", 0.7, seed=1)
    result = compare.bd_rate_of(ANCHOR, others, bootstrap=Bootstrap(400, 0.8, seed=3))
    generator = np.random.default_rng(99)
    own = compare.bd_rates_of_images(ANCHOR, others)
    of_means, of_images = [], []
    for _ in range(400):
        drawn = generator.integers(5, size=5)
        curves = []
        for rows in (ANCHOR, others):
            copies = [
                replace(r, image=f"copy{i}")
                for i, image in enumerate(drawn)
                for r in rows
                if r.image == f"image{image}"
            ]
            [curve] = results.measured_curves(results.summarise(copies)).values()
            curves += zip(*curve, strict=True)
        of_means.append(metrics.bd_rate(*curves).percent)
        of_images.append(fmean(own[f"image{image}"] for image in drawn))
    for estimate, samples in ((result.of_means, of_means), (result.mean_of_images, of_images)):
        low, high = np.quantile(samples, [0.1, 0.9])
        slack = 0.15 * (high - low)  # two draws of 400 resamples
        assert estimate.low == pytest.approx(low, abs=slack)
        assert estimate.high == pytest.approx(high, abs=slack)
        assert estimate.low < estimate.value < estimate.high
    assert result.mean_of_images.value == pytest.approx(fmean(own.values()))


@pytest.mark.slow
def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Of 20 images whose own BD-rates scatter around -30 %, in 80 repetitions."""
    generator = np.random.default_rng(0)
    truth, covered = 100 * math.expm1(math.log(0.7)), 0
    for repetition in range(80):
        factors = 0.7 * np.exp(generator.normal(0, 0.1, 20))
        a = table("anchor", num_images=20, spread=0)
        b = [
            replace(r, codec="b", bpp=r.bpp * factors[int(r.image.removeprefix("image"))])
            for r in a
        ]
        bootstrap = Bootstrap(num_resamples=60, level=0.9, seed=repetition)
        low, high = compare.bd_rate_of(a, b, bootstrap=bootstrap).of_means[1:]
        covered += low <= truth <= high
    assert 60 <= covered <= 79  # 72 expected; percentiles of few images cover a little less


def test_the_seed_decides_the_resamples():
    others = table("b", 0.7, seed=1)
    first, again, other = (
        compare.bd_rate_of(ANCHOR, others, bootstrap=Bootstrap(100, seed=s)) for s in (0, 0, 1)
    )
    assert first == again and first.of_means.low != other.of_means.low
    assert first.of_means.value == other.of_means.value


def test_only_images_with_every_setting_of_both_count():
    others = [r for r in table("b", 0.7) if r.image != "image4"]
    others = [replace(r, psnr_y=None) if r.image == "image3" else r for r in others]
    assert compare.bd_rate_of(ANCHOR, others, bootstrap=FEW).num_images == 4
    assert compare.bd_rate_of(ANCHOR, others, "psnr_y", FEW).num_images == 3
    kept = [r for r in ANCHOR if r.image in ("image0", "image1", "image2")]
    assert compare.bd_rate_of(ANCHOR, others, "psnr_y", FEW) == compare.bd_rate_of(
        kept, others, "psnr_y", FEW
    )


def test_a_single_image_has_no_interval():
    rows = [r for r in table("b", 0.7) if r.image == "image2"]
    result = compare.bd_rate_of(ANCHOR, rows)
    assert result.of_means == (pytest.approx(-30), None, None)
    assert result.mean_of_images == (pytest.approx(-30), None, None)
    assert (result.num_images, result.num_resamples) == (1, 0)


def test_images_and_resamples_without_overlap_are_left_out_and_counted():
    """One image far better under b: its own curves do not overlap, nor do resamples of it alone."""
    a = [r for r in ANCHOR if r.image in ("image0", "image1")]
    b = [
        replace(r, codec="b", bpp=0.5 * r.bpp, psnr=r.psnr + 20 * (r.image == "image1")) for r in a
    ]
    result = compare.bd_rate_of(a, b)
    assert (result.num_images, result.num_overlapping) == (2, 1)
    assert result.mean_of_images is not None
    assert result.mean_of_images.value == pytest.approx(-50)
    assert 650 < result.num_resamples < 850  # three of four draws hold image0
    assert compare.bd_rates_of_images(a, b) == result.of_images
    assert list(result.of_images) == ["image0"]
    with pytest.raises(ValueError, match="do not overlap"):
        compare.bd_rate_of(a, [replace(r, codec="b", psnr=r.psnr + 50) for r in a])


def test_an_interval_cuts_the_range_that_is_covered():
    others = table("b", 0.7, seed=1)
    whole = compare.bd_rate_of(ANCHOR, others, bootstrap=FEW)
    part = compare.bd_rate_of(ANCHOR, others, "psnr", FEW, (whole.low + 3, 99.0))
    assert (part.low, part.high) == (whole.low + 3, whole.high)
    assert part.num_resamples == 50
    rates = compare.bd_psnr_of(ANCHOR, others, "psnr", FEW, (0.0, 0.4))
    assert rates.high == 0.4 and rates.low > 0.1
    with pytest.raises(ValueError, match="do not both reach into 90 to 99 dB"):
        compare.bd_rate_of(ANCHOR, others, interval=(90, 99))


def test_a_published_anchor_has_no_images():
    points = [
        PublishedPoint("X", rate, 30 + 10 * math.log10(rate), None, "paper")
        for rate in (0.1, 0.3, 0.5, 1.2)
    ]
    rows = [r for r in table("b", spread=0) if r.image == "image0"]
    shift = rows[0].psnr - points[0].psnr_db
    result = compare.bd_psnr_published(points, rows)
    assert result.of_means == (pytest.approx(shift), None, None)
    result = compare.bd_rate_published(points, table("b", 0.7))
    assert result.mean_of_images is None and result.num_overlapping == 0
    assert result.of_means.low < result.of_means.value < result.of_means.high
    points = [replace(p, psnr_db=None, ms_ssim=1 - 10 ** (-p.psnr_db / 20)) for p in points]
    assert compare.bd_psnr_published(points, rows, "ms_ssim").of_means.value == pytest.approx(
        shift / 2
    )


POINT = PublishedPoint("X", 0.1, 30.0, None, "paper")


@pytest.mark.parametrize(
    "points, metric, message",
    [
        ([POINT], "psnr_y", "psnr or ms_ssim only"),
        ([POINT], "ms_ssim", "X has no ms_ssim"),
        ([POINT, replace(POINT, method="Y")], "psnr", "points of X, Y"),
        ([], "psnr", "points of none"),
    ],
)
def test_bad_published_points_are_refused(points, metric, message):
    with pytest.raises(ValueError, match=message):
        compare.bd_rate_published(points, ANCHOR, metric)


@pytest.mark.parametrize(
    "rows, metric, message",
    [
        (ANCHOR + table("other"), "psnr", "rows of anchor, other for b"),
        ([], "psnr", "rows at all for b"),
        (ANCHOR, "vmaf", "got metric 'vmaf', expected one of psnr, psnr_y"),
        ([*ANCHOR, ANCHOR[0]], "psnr", "image image0 occurs twice under anchor rate=0.1"),
        ([replace(r, image="x") for r in ANCHOR if r.image == "image0"], "psnr", "same images"),
        ([replace(r, ms_ssim=None) for r in ANCHOR], "ms_ssim", "no image has ms_ssim"),
        ([replace(ANCHOR[0], psnr=math.inf), *ANCHOR[1:]], "psnr", "image0 .* has psnr inf"),
        ([replace(r, ms_ssim=1.0) for r in ANCHOR], "ms_ssim", "leave lossless points out"),
    ],
)
def test_bad_rows_are_refused(rows, metric, message):
    with pytest.raises(ValueError, match=message):
        compare.bd_rate_of(ANCHOR, rows, metric)


@pytest.mark.parametrize("change", [{"num_resamples": 0}, {"level": 1.0}, {"level": 0.0}])
def test_bad_bootstraps_are_refused(change):
    with pytest.raises(ValueError, match="resamples and level"):
        Bootstrap(**change)


def test_the_committed_kodak_table_gives_the_published_numbers_quickly():
    """What README and the run's table.md say, from the rows."""
    rows = results.read_rows(KODAK)
    jpeg, ours = ([r for r in rows if r.codec == name] for name in ("jpeg-optimized", "meta-siren"))
    compare.bd_rate_of(jpeg, ours, bootstrap=Bootstrap(1))  # imports scipy
    start = time.process_time()
    result = compare.bd_rate_of(jpeg, ours)
    assert time.process_time() - start < 6  # 1 s on an idle core: 1000 resamples of 24 images
    assert round(result.of_means.value, 1) == -43.8
    assert result.mean_of_images is not None and round(result.mean_of_images.value, 1) == -38.4
    assert result.num_images == result.num_overlapping == 24


# ---------------------------------------------------------------------------- any statistic


def test_the_estimate_of_a_mean_is_the_mean_and_covers_it() -> None:
    values = np.random.default_rng(0).normal(size=40)
    found = compare.estimate(lambda counts: float(counts @ values / counts.sum()), 40)
    assert found.value == pytest.approx(values.mean())
    assert found.low is not None and found.high is not None
    # The percentile interval of a mean is near the normal one.
    half = 1.96 * values.std() / np.sqrt(40)
    assert found.low == pytest.approx(values.mean() - half, abs=0.25 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.25 * half)


def test_an_estimate_leaves_out_resamples_without_a_value() -> None:
    def statistic(counts: np.ndarray) -> float:
        return float(counts[0]) if counts[0] else math.nan

    found = compare.estimate(statistic, 3)
    assert found.value == 1 and found.low is not None and found.low >= 1
    assert compare.estimate(lambda counts: 5.0, 1) == (5.0, None, None)
    with pytest.raises(ValueError, match="0 images"):
        compare.estimate(statistic, 0)
