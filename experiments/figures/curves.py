"""Rate-distortion curves. Rows: the measured runs (`source.EXPERIMENTS`, as far as they are there)
and results/published/kodak.csv. Means over the images, on real files; published curves are dashed,
and dotted where their rates are estimates."""

from __future__ import annotations

from matplotlib.figure import Figure

from experiments.figures import numbers
from experiments.figures.source import (
    LATENT_GRID_EQUAL,
    NETWORKS,
    OURS,
    STRUMPLER,
    VARIANTS,
    Source,
    ours_last,
)
from inrjax import results
from inrjax.plots import Style, rd_figure
from inrjax.published import BEST_OF_OTHER_KINDS, curves_to_show


def psnr(source: Source, style: Style) -> Figure:
    """PSNR over bpp up to 1 bpp: all codecs measured here, C3, Cool-chic and an autoencoder."""
    return _psnr(source, style, (0.0, 1.0))


def psnr_low(source: Source, style: Style) -> Figure:
    """The same below 0.25 bpp, where networks are at home."""
    return _psnr(source, style, (0.0, 0.25))


def ms_ssim(source: Source, style: Style) -> Figure:
    """-10 log10(1 - mean MS-SSIM) over bpp: all codecs measured here, and the autoencoder.

    C3 and Cool-chic publish no MS-SSIM. A codec with images too small for MS-SSIM has no curve.
    """
    measured = {
        name: [(s.bpp, numbers.ms_ssim_db(s.ms_ssim)) for s in group if s.ms_ssim is not None]
        for name, group in source.summaries.items()
        if name not in VARIANTS
    }
    published: dict[str, list[tuple[float, float]]] = {}
    for point in source.published:
        if point.ms_ssim is not None:
            pair = (point.bpp, numbers.ms_ssim_db(point.ms_ssim))
            published.setdefault(point.method, []).append(pair)
    shown = curves_to_show(published, BEST_OF_OTHER_KINDS)
    return rd_figure(
        ours_last({name: curve for name, curve in measured.items() if curve}),
        *shown,
        quality=r"MS-SSIM, $-10\,\log_{10}(1 - m)$ (dB)",
        bpp_range=(0.0, 1.0),
        style=style,
    )


def networks(source: Source, style: Style) -> Figure:
    """PSNR over bpp of the codecs that overfit a picture: coordinate networks measured here and
    published ones, and LatentGrid, by one step size and by the same bpp for all pictures.

    COIN and Strümpler's codecs measured here have the steps of their runs' configs, far fewer than
    the published ones.
    """
    shown = ("coin", *STRUMPLER, LATENT_GRID_EQUAL, *OURS)
    groups = (source.summaries.get(name, ()) for name in shown)
    measured = results.measured_curves(summary for group in groups for summary in group)
    return rd_figure(
        ours_last(measured),
        *curves_to_show(results.published_curves(source.published), NETWORKS),
        bpp_range=(0.0, 0.7),
        psnr_range=None,
        style=style,
    )


def _psnr(source: Source, style: Style, bpp_range: tuple[float, float]) -> Figure:
    published = results.published_curves(source.published)
    return rd_figure(
        ours_last(_measured(source)),
        *curves_to_show(published, BEST_OF_OTHER_KINDS),
        bpp_range=bpp_range,
        style=style,
    )


def _measured(source: Source) -> dict[str, list[tuple[float, float]]]:
    shown = [group for name, group in source.summaries.items() if name not in VARIANTS]
    return results.measured_curves(summary for group in shown for summary in group)
