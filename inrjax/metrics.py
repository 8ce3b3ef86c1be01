"""Distortion, similarity, rate, and the distance between two rate-distortion curves.

All are computed on the host in float64, on uint8 images as a decoder returns them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from inrjax.types import Image

if TYPE_CHECKING:
    from jaxtyping import Float64, UInt8

Values: TypeAlias = Sequence[float] | np.ndarray

PEAK = 255.0
WINDOW = 11
"""Side of the Gaussian window of `ssim` and `ms_ssim`, in pixels (sigma 1.5)."""

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales, finest first (Wang, Simoncelli, Bovik 2003, section 3.2)."""

MS_SSIM_MIN_SIDE = (WINDOW - 1) * 2 ** (len(MS_SSIM_WEIGHTS) - 1) + 1
"""161 pixels: the window must still fit after four halvings."""

# 1000 Y, 1772 (Cb - 128) and 1402 (Cr - 128) of (R, G, B): integers, so that a plane without error
# has an error of exactly 0.
_YCBCR = np.array([[299, 587, 114], [-299, -587, 886], [701, -587, -114]], np.int32)
_YCBCR_SCALES = np.array([1000, 1772, 1402], np.float64)
_YCBCR_WEIGHTS = np.array([6, 1, 1])

_SIGMA = 1.5
_C1, _C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


class BDRate(NamedTuple):
    """Mean rate change of b against the anchor a, over a range of quality."""

    percent: float
    """Below 0: b needs fewer bits for the same quality. Halved rates are -50."""
    low_db: float
    high_db: float


class BDPsnr(NamedTuple):
    """Mean quality change of b against the anchor a, over a range of rate."""

    db: float
    """Above 0: b is better at the same rate."""
    low_rate: float
    high_rate: float


def mse(image: Image, image_hat: Image) -> float:
    """Mean squared error over all pixels and channels, in squared grey levels (0 to 65025).

    Like every metric of two images here: uint8, equal shapes (height, width, 3), or ValueError.
    """
    _check_pair(image, image_hat)
    difference = np.asarray(image, np.float64) - image_hat
    return float(np.mean(difference * difference))


def psnr(image: Image, image_hat: Image) -> float:
    """Peak signal-to-noise ratio 10 log10(255^2 / mse) in dB; infinity for equal images."""
    error = mse(image, image_hat)
    return float("inf") if error == 0 else float(10 * np.log10(PEAK**2 / error))


def psnr_y(image: Image, image_hat: Image) -> float:
    """PSNR of the luma Y = 0.299 R + 0.587 G + 0.114 B in dB; infinity for equal lumas.

    The luma of ITU-R BT.601 over the full range 0..255, as JPEG files carry it (JFIF 1.02, ITU-T
    T.871 section 7), in float64 and not rounded; the peak is 255.
    """
    return float(_psnr_of(_ycbcr_mses(image, image_hat)[0]))


def psnr_ycbcr(image: Image, image_hat: Image) -> float:
    """Weighted PSNR (6 PSNR_Y + PSNR_Cb + PSNR_Cr) / 8 in dB, infinite if a plane has no error.

    The weights are on the PSNRs, as in VVC's common test conditions, but the planes are at full
    resolution whatever the codec did: Y as in `psnr_y`, Cb = (B - Y) / 1.772 + 128, Cr =
    (R - Y) / 1.402 + 128 (JFIF), in float64 and not rounded; the peak is 255. A grey picture
    that was decoded as grey has no error in Cb and Cr.
    """
    psnrs = _psnr_of(_ycbcr_mses(image, image_hat))
    return float(psnrs @ _YCBCR_WEIGHTS / _YCBCR_WEIGHTS.sum())


def _ycbcr_mses(image: Image, image_hat: Image) -> Float64[np.ndarray, " 3"]:
    """Mean squared errors of Y, Cb and Cr, (3,)."""
    _check_pair(image, image_hat)
    difference = np.asarray(image, np.int32) - image_hat
    errors = difference.reshape(-1, 3) @ _YCBCR.T / _YCBCR_SCALES
    return np.mean(errors * errors, axis=0)


def _psnr_of(mses: np.ndarray | np.float64) -> np.ndarray | np.float64:
    with np.errstate(divide="ignore"):
        return 10 * np.log10(PEAK**2 / mses)


def ssim(image: Image, image_hat: Image) -> float:
    """Structural similarity, at most 1, the mean of the three channels.

    Wang, Bovik, Sheikh, Simoncelli 2004, equation 13, with their 11 x 11 Gaussian window of sigma
    1.5, K1 = 0.01, K2 = 0.03; only windows that lie inside the image count. Equal to scikit-image's
    ``structural_similarity`` with ``gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=255, channel_axis=-1``.
    Raises ValueError where a side is shorter than 11 pixels.
    """
    _check_pair(image, image_hat)
    _check_sides(image, WINDOW, "SSIM")
    return float(np.mean(_ssim_terms(_planes(image), _planes(image_hat))[0]))


def ms_ssim(image: Image, image_hat: Image) -> float:
    """Multi-scale structural similarity in [0, 1], the mean of the three channels.

    Wang, Simoncelli, Bovik 2003, equation 7, five scales, windows inside the image only. What the
    paper leaves open is as in the ``pytorch-msssim`` package: means over a channel's pixels first,
    negative means set to 0, then the weighted product; scales are halved by 2 x 2 means, a side
    of odd length with a row of zeros before it.
    Raises ValueError where a side is shorter than 161 pixels.
    """
    _check_pair(image, image_hat)
    _check_sides(image, MS_SSIM_MIN_SIDE, "MS-SSIM")
    x, y = _planes(image), _planes(image_hat)
    product = np.ones(len(x))
    for weight in MS_SSIM_WEIGHTS[:-1]:
        product *= np.maximum(_ssim_terms(x, y)[1], 0) ** weight
        x, y = _halve(x), _halve(y)
    product *= np.maximum(_ssim_terms(x, y)[0], 0) ** MS_SSIM_WEIGHTS[-1]
    return float(np.mean(product))


def bpp(num_bytes: int, height: int, width: int) -> float:
    """Bits per pixel of a real stream: 8 * num_bytes / (height * width)."""
    if height < 1 or width < 1 or num_bytes < 0:
        raise ValueError(f"got {num_bytes} bytes for {height} x {width} pixels")
    return 8 * num_bytes / (height * width)


def bd_rate(
    rates_a: Values,
    psnrs_a: Values,
    rates_b: Values,
    psnrs_b: Values,
    interval: tuple[float, float] | None = None,
) -> BDRate:
    """Bjontegaard's delta rate of curve b against the anchor a, in percent.

    The mean over quality of log(rate_b / rate_a), turned into a percentage (Bjontegaard 2001,
    VCEG-M33), each curve's log rate interpolated by PCHIP through its points, the two integrals
    taken exactly. The mean is over the qualities both curves cover, or over
    ``interval = (low, high)`` in dB, which both must cover: nothing is extrapolated.

    Rates are in any positive unit, qualities in dB (any other finite scale works too); points come
    in any order. Raises ValueError for fewer than 2 points, unequal lengths, values that are not
    finite, rates of 0 or less, two points of equal quality, and curves that do not overlap.
    """
    curve_a = _curve("a", psnrs_a, np.log(_positive("a", rates_a)), "quality")
    curve_b = _curve("b", psnrs_b, np.log(_positive("b", rates_b)), "quality")
    low, high = _common_range(curve_a[0], curve_b[0], interval, "dB")
    difference = _mean_over(curve_b, low, high) - _mean_over(curve_a, low, high)
    return BDRate(float(100 * np.expm1(difference)), low, high)


def bd_psnr(
    rates_a: Values,
    psnrs_a: Values,
    rates_b: Values,
    psnrs_b: Values,
    interval: tuple[float, float] | None = None,
) -> BDPsnr:
    """Bjontegaard's delta PSNR of curve b against the anchor a, in dB.

    The counterpart of `bd_rate`: the mean of psnr_b - psnr_a over log rate, over the rates both
    curves cover or over ``interval = (low, high)`` in the unit of the rates. It raises as `bd_rate`
    does, and for two points of equal rate instead of equal quality.
    """
    curve_a = _curve("a", np.log(_positive("a", rates_a)), psnrs_a, "rate")
    curve_b = _curve("b", np.log(_positive("b", rates_b)), psnrs_b, "rate")
    log_interval = None if interval is None else tuple(np.log(_positive("interval", interval)))
    low, high = _common_range(curve_a[0], curve_b[0], log_interval, "log rate")
    difference = _mean_over(curve_b, low, high) - _mean_over(curve_a, low, high)
    return BDPsnr(float(difference), float(np.exp(low)), float(np.exp(high)))


def _check_pair(image: Image, image_hat: Image) -> None:
    shapes = (np.shape(image), np.shape(image_hat))
    types = (np.asarray(image).dtype, np.asarray(image_hat).dtype)
    if shapes[0] != shapes[1] or types != (np.uint8, np.uint8):
        raise ValueError(
            f"got images of shapes {shapes[0]} and {shapes[1]}, types {types[0]} and {types[1]}, "
            "expected equal shapes and uint8"
        )
    if len(shapes[0]) != 3 or shapes[0][2] != 3 or 0 in shapes[0]:
        raise ValueError(f"got images of shape {shapes[0]}, expected (height, width, 3)")


def _check_sides(image: Image, shortest: int, name: str) -> None:
    height, width = image.shape[:2]
    if min(height, width) < shortest:
        raise ValueError(
            f"{name} needs sides of at least {shortest} pixels, got {height} x {width}"
        )


def _planes(image: UInt8[np.ndarray, "height width 3"]) -> Float64[np.ndarray, "3 height width"]:
    """Float64 (3, height, width), contiguous: the filters run along the last two axes."""
    return np.ascontiguousarray(np.moveaxis(image, -1, 0), dtype=np.float64)


def _blur(
    planes: Float64[np.ndarray, "3 height width"],
) -> Float64[np.ndarray, "3 height-10 width-10"]:
    """The Gaussian-weighted mean in every window inside the image: each side loses 10 pixels."""
    from scipy.ndimage import correlate1d

    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    weights /= weights.sum()
    edge = slice(WINDOW // 2, -(WINDOW // 2))
    return correlate1d(correlate1d(planes, weights, axis=1)[:, edge], weights, axis=2)[..., edge]


def _ssim_terms(
    x: Float64[np.ndarray, "3 height width"], y: Float64[np.ndarray, "3 height width"]
) -> tuple[Float64[np.ndarray, " 3"], Float64[np.ndarray, " 3"]]:
    """Each channel's mean of the full SSIM map, and of its contrast-structure factor alone.

    The variances enter only as their sum, so four filtered images suffice instead of five.
    """
    mean_x, mean_y = _blur(x), _blur(y)
    product, squares = mean_x * mean_y, mean_x**2 + mean_y**2
    covariance = _blur(x * y) - product
    variances = _blur(x**2 + y**2) - squares
    contrast_structure = (2 * covariance + _C2) / (variances + _C2)
    luminance = (2 * product + _C1) / (squares + _C1)
    return (luminance * contrast_structure).mean((1, 2)), contrast_structure.mean((1, 2))


def _halve(
    planes: Float64[np.ndarray, "3 height width"],
) -> Float64[np.ndarray, " 3 (height+1)//2 (width+1)//2"]:
    """2 x 2 means; a zero row or column goes before a side of odd length and counts in the mean."""
    _, height, width = planes.shape
    planes = np.pad(planes, ((0, 0), (height % 2, 0), (width % 2, 0)))
    rows = planes[:, 0::2] + planes[:, 1::2]
    return (rows[..., 0::2] + rows[..., 1::2]) / 4


def _positive(name: str, rates: Values) -> np.ndarray:
    values = np.asarray(rates, np.float64)
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"rates of {name} must be finite and above 0, got {values.tolist()}")
    return values


def _curve(name: str, knots: Values, values: Values, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """The points sorted by the axis to integrate over, checked."""
    x, y = np.asarray(knots, np.float64), np.asarray(values, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"curve {name}: got shapes {x.shape} and {y.shape}, expected equal lists")
    if x.size < 2:
        raise ValueError(
            f"curve {name} has {x.size} point(s), needs 2 or more: measure it at more settings"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"curve {name} has values that are not finite: leave lossless points out")
    order = np.argsort(x)
    if (np.diff(x[order]) == 0).any():
        raise ValueError(f"curve {name} has two points of equal {axis}: keep the better one")
    return x[order], y[order]


def _common_range(
    a: np.ndarray, b: np.ndarray, interval: tuple[float, ...] | None, unit: str
) -> tuple[float, float]:
    """Where both sorted lists reach, or the interval if it lies there and is not empty."""
    low, high = float(max(a[0], b[0])), float(min(a[-1], b[-1]))
    ranges = f"a covers {a[0]:.4g} to {a[-1]:.4g} {unit}, b {b[0]:.4g} to {b[-1]:.4g} {unit}"
    if low >= high:
        raise ValueError(f"the curves do not overlap: {ranges}; measure at closer settings")
    if interval is None:
        return low, high
    start, stop = (float(end) for end in interval)
    if not low <= start < stop <= high:
        raise ValueError(
            f"the interval {start:.4g} to {stop:.4g} {unit} is not inside both curves: {ranges}"
        )
    return start, stop


def _mean_over(curve: tuple[np.ndarray, np.ndarray], low: float, high: float) -> float:
    """The mean of the PCHIP interpolant of a sorted curve between two abscissas."""
    from scipy.interpolate import PchipInterpolator

    return float(PchipInterpolator(*curve).integrate(low, high)) / (high - low)
