"""Metrics against independent implementations and closed forms."""

import math
import time

import bjontegaard
import numpy as np
import PIL.Image
import pytest
import skimage.data
from skimage.metrics import structural_similarity

from inrjax import metrics

METRICS = (
    metrics.mse,
    metrics.psnr,
    metrics.psnr_y,
    metrics.psnr_ycbcr,
    metrics.ssim,
    metrics.ms_ssim,
)
GRADIENT = np.add.outer(np.arange(175) * 3, np.arange(333) * 2)
SYNTHETIC = (np.stack([GRADIENT, GRADIENT * 5 // 3, GRADIENT**2 // 64], -1) % 256).astype(np.uint8)


def posterised(image):
    return (image // 24 * 24 + 7).astype(np.uint8)


def shifted(image):
    return np.roll(image, (2, 1), axis=(0, 1))


def inverted(image):
    return 255 - image


# pytorch-msssim 1.0.0 under torch 2.13.0 (CPU, an environment of its own), x and y float64 tensors
# of shape (1, 3, height, width): ms_ssim(x, y, data_range=255, size_average=True). Its window is
# rounded to float32, which moves the result by up to 2e-6 (first number); the second number is the
# same call with ``win=`` the same window in float64.
MS_SSIM_REFERENCE = [
    ("astronaut", posterised, 0.963444453520845, 0.9634429971258592),
    ("astronaut", shifted, 0.8750018513142414, 0.8750006836705794),
    ("astronaut", inverted, 0.0, 0.0),
    ("coffee", posterised, 0.9586389822011075, 0.9586384773548238),
    ("coffee", shifted, 0.8213541809999079, 0.8213528496418224),
    ("chelsea", posterised, 0.9608766430583904, 0.9608761759970177),
    ("chelsea", shifted, 0.8566046970851305, 0.8566036404445847),
    ("synthetic", posterised, 0.9818068180105706, 0.9818066094809491),
    ("synthetic", shifted, 0.5777014782048941, 0.5777013852943074),
]


def pair(name, distortion):
    image = {
        "synthetic": lambda: SYNTHETIC,
        "astronaut": lambda: skimage.data.astronaut()[:161, 200:361],
        "coffee": skimage.data.coffee,
        "chelsea": skimage.data.chelsea,
    }[name]()
    return image, distortion(image)


def noisy(seed, height=48, width=37):
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    noise = generator.normal(0, 20, image.shape)
    return image, np.clip(image + noise, 0, 255).astype(np.uint8)


def slow_windows(plane):
    """Every 11 x 11 window inside a plane, (rows, columns, 11, 11), and its 2-D weights."""
    windows = np.lib.stride_tricks.sliding_window_view(plane.astype(np.float64), (11, 11))
    y, x = np.mgrid[-5:6, -5:6]
    weights = np.exp(-(x**2 + y**2) / 4.5)
    return windows, weights / weights.sum()


def slow_ssim_maps(x, y):
    """(luminance, contrast times structure) by Wang 2004's definitions, two-pass variances."""
    windows_x, weights = slow_windows(x)
    windows_y, _ = slow_windows(y)
    mean_x = np.einsum("ijkl,kl->ij", windows_x, weights)
    mean_y = np.einsum("ijkl,kl->ij", windows_y, weights)
    centred_x = windows_x - mean_x[..., None, None]
    centred_y = windows_y - mean_y[..., None, None]
    var_x = np.einsum("ijkl,ijkl,kl->ij", centred_x, centred_x, weights)
    var_y = np.einsum("ijkl,ijkl,kl->ij", centred_y, centred_y, weights)
    covariance = np.einsum("ijkl,ijkl,kl->ij", centred_x, centred_y, weights)
    luminance = (2 * mean_x * mean_y + 6.5025) / (mean_x**2 + mean_y**2 + 6.5025)
    return luminance, (2 * covariance + 58.5225) / (var_x + var_y + 58.5225)


def slow_halve(plane):
    """2 x 2 means by explicit loops, zeros outside before the first row or column."""
    height, width = plane.shape
    top, left = height % 2, width % 2
    halved = np.zeros(((height + 1) // 2, (width + 1) // 2))
    for i in range(halved.shape[0]):
        for j in range(halved.shape[1]):
            rows = slice(max(2 * i - top, 0), 2 * i - top + 2)
            columns = slice(max(2 * j - left, 0), 2 * j - left + 2)
            halved[i, j] = plane[rows, columns].sum() / 4
    return halved


def slow_ms_ssim_plane(x, y):
    logarithm = 0.0
    for level, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        luminance, contrast_structure = slow_ssim_maps(x, y)
        last = level == 4
        value = (luminance * contrast_structure if last else contrast_structure).mean()
        if value <= 0:
            return 0.0
        logarithm += weight * math.log(value)
        x, y = slow_halve(x), slow_halve(y)
    return math.exp(logarithm)


def test_mse_and_psnr_of_known_differences():
    image = np.full((4, 5, 3), 100, np.uint8)
    assert metrics.mse(image, image + 5) == 25
    assert metrics.mse(image + 5, image) == 25  # no uint8 wrap-around in either direction
    assert metrics.mse(np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)) == 255**2
    assert metrics.psnr(image, image + 1) == pytest.approx(20 * math.log10(255), rel=1e-15)
    assert metrics.psnr(image, image) == math.inf


def test_psnr_is_scikit_image_s():
    from skimage.metrics import peak_signal_noise_ratio

    image, image_hat = noisy(0)
    expected = peak_signal_noise_ratio(image, image_hat, data_range=255)
    assert metrics.psnr(image, image_hat) == pytest.approx(expected, rel=1e-13)


def test_psnr_of_luma_and_chroma_is_that_of_scikit_image_s_ypbpr():
    """Its YPbPr is JFIF's YCbCr before the scale of 255, with coefficients of six digits."""
    from skimage.color import rgb2ypbpr

    image, image_hat = noisy(5)
    errors = 255 * (rgb2ypbpr(image) - rgb2ypbpr(image_hat))
    expected = [10 * math.log10(255**2 / np.mean(plane**2)) for plane in np.moveaxis(errors, -1, 0)]
    assert metrics.psnr_y(image, image_hat) == pytest.approx(expected[0], rel=1e-9)
    weighted = (6 * expected[0] + expected[1] + expected[2]) / 8
    assert metrics.psnr_ycbcr(image, image_hat) == pytest.approx(weighted, rel=1e-6)


def test_psnr_of_luma_and_chroma_is_pillow_s_but_for_its_rounding():
    image, image_hat = noisy(6)
    planes = [
        np.asarray(PIL.Image.fromarray(x).convert("YCbCr"), np.float64) for x in (image, image_hat)
    ]
    mses = np.mean((planes[0] - planes[1]) ** 2, axis=(0, 1))
    # Rounding both pictures adds at most 2 / 12 to each mean squared error.
    slack = 10 * np.log10(1 + 0.25 / mses)
    psnrs = 10 * np.log10(255**2 / mses)
    assert metrics.psnr_y(image, image_hat) == pytest.approx(psnrs[0], abs=slack[0])
    weights = np.array([6, 1, 1]) / 8
    assert metrics.psnr_ycbcr(image, image_hat) == pytest.approx(weights @ psnrs, abs=slack.max())


def test_a_plane_without_error_has_infinite_psnr():
    image = np.full((4, 5, 3), 100, np.uint8)
    grey = image + 5  # the same in R, G and B: an error of luma alone
    assert metrics.psnr_y(image, grey) == pytest.approx(10 * math.log10(255**2 / 25), rel=1e-15)
    assert metrics.psnr_ycbcr(image, grey) == math.inf
    assert metrics.psnr_y(image, image) == metrics.psnr_ycbcr(image, image) == math.inf


@pytest.mark.parametrize("size", [(48, 37), (11, 11), (11, 64), (12, 13)])
def test_ssim_is_scikit_image_s(size):
    image, image_hat = noisy(1, *size)
    expected = structural_similarity(
        image,
        image_hat,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=-1,
    )
    assert metrics.ssim(image, image_hat) == pytest.approx(expected, rel=1e-12)


def test_ssim_is_the_papers_formula():
    image, image_hat = noisy(2)
    expected = np.mean(
        [np.prod(slow_ssim_maps(image[..., c], image_hat[..., c]), axis=0) for c in range(3)]
    )
    assert metrics.ssim(image, image_hat) == pytest.approx(expected, rel=1e-10)


def test_similarities_of_equal_images_are_1():
    flat = np.full((161, 161, 3), 77, np.uint8)
    for image in (SYNTHETIC, flat):
        assert metrics.ssim(image, image) == pytest.approx(1, abs=1e-9)
        assert metrics.ms_ssim(image, image) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name, distortion, default, exact", MS_SSIM_REFERENCE)
def test_ms_ssim_is_pytorch_msssim_s(name, distortion, default, exact):
    value = metrics.ms_ssim(*pair(name, distortion))
    assert value == pytest.approx(default, abs=2e-6)
    assert value == pytest.approx(exact, abs=1e-11)


@pytest.mark.parametrize("size", [(161, 161), (162, 175)])
def test_ms_ssim_is_the_papers_formula(size):
    image, image_hat = noisy(3, *size)
    expected = np.mean([slow_ms_ssim_plane(image[..., c], image_hat[..., c]) for c in range(3)])
    assert metrics.ms_ssim(image, image_hat) == pytest.approx(expected, rel=1e-9)


def test_metrics_are_symmetric_and_ignore_layout():
    image, image_hat = pair("synthetic", shifted)
    for metric in METRICS[1:]:
        value = metric(image, image_hat)
        assert metric(image_hat, image) == pytest.approx(value, rel=1e-12)
        assert metric(np.asfortranarray(image), image_hat) == pytest.approx(value, rel=1e-12)


def test_metrics_are_fast_on_a_kodak_sized_image():
    image, image_hat = noisy(4, 512, 768)
    for metric in (metrics.psnr_ycbcr, metrics.ssim, metrics.ms_ssim):
        metric(image, image_hat)  # the first call imports scipy
        start = time.process_time()
        metric(image, image_hat)
        assert time.process_time() - start < 1.0  # 0.02 s to 0.2 s on an idle core


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "other",
    [
        np.zeros((161, 162, 3), np.uint8),
        np.zeros((161, 161, 3)),
        np.zeros((161, 161), np.uint8),
        np.zeros((161, 161, 4), np.uint8),
    ],
)
def test_metrics_refuse_what_is_not_a_pair_of_images(metric, other):
    with pytest.raises(ValueError, match="got images of shape"):
        metric(np.zeros((161, 161, 3), np.uint8), other)
    if other.shape != (161, 162, 3):
        with pytest.raises(ValueError, match="expected"):
            metric(other, other)


def test_similarities_refuse_small_images():
    tiny = np.zeros((10, 200, 3), np.uint8)
    with pytest.raises(ValueError, match="SSIM needs sides of at least 11 pixels, got 10 x 200"):
        metrics.ssim(tiny, tiny)
    small = np.zeros((200, 160, 3), np.uint8)
    with pytest.raises(ValueError, match="MS-SSIM needs sides of at least 161 pixels"):
        metrics.ms_ssim(small, small)


def test_bpp():
    assert metrics.bpp(49152, 512, 768) == 1.0
    assert metrics.bpp(1, 1, 1) == 8.0
    with pytest.raises(ValueError, match="0 x 5"):
        metrics.bpp(1, 0, 5)


RATES = [0.1, 0.25, 0.5, 1.0, 1.7]
PSNRS = [25.0, 28.5, 31.0, 34.2, 36.9]


@pytest.mark.parametrize("factor", [0.5, 0.65, 1.0, 3.0])
def test_bd_rate_of_scaled_rates_is_the_scale(factor):
    result = metrics.bd_rate(RATES, PSNRS, [factor * rate for rate in RATES], PSNRS)
    assert result.percent == pytest.approx(100 * (factor - 1), abs=1e-10)
    assert (result.low_db, result.high_db) == (25.0, 36.9)


def test_bd_of_shifted_logarithmic_curves():
    """psnr = 30 + 10 log10(rate): 1 dB more at every rate is a rate of 10^-0.1 at every quality."""
    rates_a, rates_b = np.array([0.1, 0.3, 0.5, 1.2]), np.array([0.15, 0.4, 0.9])
    psnrs_a, psnrs_b = 30 + 10 * np.log10(rates_a), 31 + 10 * np.log10(rates_b)
    curves = (rates_a, psnrs_a, rates_b, psnrs_b)
    result = metrics.bd_rate(*curves)
    assert result.percent == pytest.approx(100 * (10**-0.1 - 1), abs=1e-10)
    assert (result.low_db, result.high_db) == (psnrs_b[0], psnrs_b[-1])
    assert metrics.bd_psnr(*curves).db == pytest.approx(1, abs=1e-12)
    assert metrics.bd_psnr(*curves)[1:] == pytest.approx((0.15, 0.9), rel=1e-14)


def test_bd_of_two_points_each_is_the_mean_of_two_lines():
    """Over 30..32 dB ln(b / a) falls linearly from ln 2 to 0: the mean is (ln 2) / 2."""
    result = metrics.bd_rate([1, 4], [30, 32], [2, 4], [30, 32])
    assert result.percent == pytest.approx(100 * (math.sqrt(2) - 1), abs=1e-10)


@pytest.mark.parametrize("seed", range(20))
def test_bd_is_that_of_the_bjontegaard_package(seed):
    generator = np.random.default_rng(seed)

    def curve(num_points):
        rates = np.cumsum(generator.uniform(0.05, 0.5, num_points))
        psnrs = generator.uniform(22, 25) + np.cumsum(generator.uniform(0.5, 4, num_points))
        return rates, psnrs

    curves = (*curve(5), *curve(int(generator.integers(4, 8))))
    options = {"method": "pchip", "require_matching_points": False, "min_overlap": 0}
    expected_rate = bjontegaard.bd_rate(*curves, **options)
    expected_psnr = bjontegaard.bd_psnr(*curves, **options)
    assert metrics.bd_rate(*curves).percent == pytest.approx(expected_rate, rel=1e-8)
    assert metrics.bd_psnr(*curves).db == pytest.approx(expected_psnr, rel=1e-8)


def test_bd_does_not_depend_on_the_order_of_the_points():
    shuffled = [3, 0, 4, 2, 1]
    rates, psnrs = [2 * RATES[i] for i in shuffled], [PSNRS[i] for i in shuffled]
    assert metrics.bd_rate(RATES, PSNRS, rates, psnrs).percent == pytest.approx(100)
    assert metrics.bd_psnr(RATES, PSNRS, RATES[::-1], PSNRS[::-1]).db == pytest.approx(0, abs=1e-12)


def test_swapping_the_curves_inverts_the_ratio():
    other = [0.09, 0.2, 0.6, 0.8, 1.5]
    there = metrics.bd_rate(RATES, PSNRS, other, PSNRS).percent
    back = metrics.bd_rate(other, PSNRS, RATES, PSNRS).percent
    assert (1 + there / 100) * (1 + back / 100) == pytest.approx(1, rel=1e-12)


def test_bd_over_an_interval():
    rates = [2 * rate if psnr < 31 else rate for rate, psnr in zip(RATES, PSNRS, strict=True)]
    result = metrics.bd_rate(RATES, PSNRS, rates, PSNRS, interval=(34.2, 36))
    assert result == (pytest.approx(0, abs=1e-12), 34.2, 36.0)
    parts = [
        metrics.bd_rate(RATES, PSNRS, rates, PSNRS, interval=part).percent
        for part in ((26, 28), (28, 30), (26, 30))
    ]
    logs = [math.log1p(percent / 100) for percent in parts]
    assert (logs[0] + logs[1]) / 2 == pytest.approx(logs[2], rel=1e-9)
    psnr = metrics.bd_psnr(RATES, PSNRS, RATES, [p + 1 for p in PSNRS], interval=(0.2, 1))
    assert psnr == pytest.approx((1, 0.2, 1))


def test_bd_refuses_intervals_that_a_curve_does_not_cover():
    for interval in ((24, 30), (30, 40), (30, 30), (32, 30), (math.nan, 30)):
        with pytest.raises(ValueError, match=r"not inside both curves: a covers 25 to 36.9 dB"):
            metrics.bd_rate(RATES, PSNRS, RATES, PSNRS, interval=interval)


def test_bd_refuses_curves_that_do_not_overlap():
    for offset in (50, 11.9):  # apart, and touching in one point
        with pytest.raises(ValueError, match=r"do not overlap: a covers 25 to 36.9 dB, b "):
            metrics.bd_rate(RATES, PSNRS, RATES, [psnr + offset for psnr in PSNRS])
    with pytest.raises(ValueError, match="do not overlap"):
        metrics.bd_psnr(RATES, PSNRS, [100 * rate for rate in RATES], PSNRS)


@pytest.mark.parametrize(
    "rates, psnrs, message",
    [
        ([0.5], [30], "curve b has 1 point.*more settings"),
        ([], [], "curve b has 0 point"),
        ([0.5, 0.6], [30, 30], "equal quality"),
        ([0, 0.6], [30, 31], "above 0"),
        ([-1, 0.6], [30, 31], "above 0"),
        ([math.nan, 0.6], [30, 31], "above 0"),
        ([0.5, 0.6], [30, math.inf], "lossless"),
        ([0.5, 0.6], [30, math.nan], "not finite"),
        ([0.5, 0.6], [30, 31, 32], "expected equal lists"),
    ],
)
def test_bd_rate_refuses_bad_curves(rates, psnrs, message):
    with pytest.raises(ValueError, match=message):
        metrics.bd_rate(RATES, PSNRS, rates, psnrs)


def test_bd_psnr_refuses_equal_rates():
    with pytest.raises(ValueError, match="curve a has two points of equal rate"):
        metrics.bd_psnr([0.5, 0.5], [30, 31], RATES, PSNRS)
