"""What the published curves are, and which of them a figure shows: the one place for both choices.

The points are in ``results/published/<dataset>.csv`` (`inrjax.results.read_published`); nothing
here or there was measured by this project.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

INR = "coordinate network"
LATENT_GRID = "latent grid"
AUTOENCODER = "learned autoencoder"
CLASSIC = "classic codec"

GROUPS = (INR, LATENT_GRID, AUTOENCODER, CLASSIC)


@dataclass(frozen=True)
class Method:
    """A published method: its name in the files, and how a figure prints it.

    ``is_estimate``: its rates are estimates of an entropy, not sizes of files.
    """

    name: str
    label: str
    group: str
    is_estimate: bool = False


# fmt: off
METHODS = (
    Method("COIN", "COIN", INR),
    Method("COIN++", "COIN++", INR, is_estimate=True),
    Method("Strumpler basic (8 bit)", "Strümpler, basic (8 bit)", INR, is_estimate=True),
    Method(
        "Strumpler meta-learned (7 bit)", "Strümpler, meta-learned (7 bit)", INR,
        is_estimate=True,
    ),
    Method("MSCN", "MSCN", INR),
    Method("VC-INR", "VC-INR", INR),
    Method("RECOMBINER", "RECOMBINER", INR),
    Method("C3", "C3", LATENT_GRID, is_estimate=True),
    Method("C3 (Adaptive)", "C3 adaptive", LATENT_GRID, is_estimate=True),
    Method("Cool-chic 4.2", "Cool-chic 4.2", LATENT_GRID),
    Method("compressai-bmshj2018-hyperprior_mse_cuda", "Ballé et al. 2018", AUTOENCODER),
    Method("BMS", "Ballé et al. 2018 (BMS)", AUTOENCODER),
    Method("compressai-cheng2020-attn_mse_cuda", "Cheng et al. 2020", AUTOENCODER),
    Method("CST", "Cheng et al. 2020 (CST)", AUTOENCODER),
    Method("paper-elic2022_mse", "ELIC", AUTOENCODER),
    Method("MLIC+", "MLIC+", AUTOENCODER),
    Method("JPEG (Pillow 7.1.2)", "JPEG (default tables)", CLASSIC),
    Method("JPEG", "JPEG", CLASSIC),
    Method("JPEG2000", "JPEG 2000", CLASSIC),
    Method("WebP", "WebP", CLASSIC),
    Method("BPG 4:4:4", "BPG 4:4:4", CLASSIC),
    Method("BPG", "BPG", CLASSIC),
    Method("HM (HEVC)", "HM (HEVC)", CLASSIC),
    Method("AV1", "AV1", CLASSIC),
    Method("VTM (VVC)", "VTM (VVC)", CLASSIC),
    Method("VTM", "VTM (VVC)", CLASSIC),
)
# fmt: on
"""Every method in ``results/published``."""

KODAK_RD = (
    "COIN",
    "Strumpler basic (8 bit)",
    "Strumpler meta-learned (7 bit)",
    "RECOMBINER",
    "VC-INR",
)
"""Shown by `experiments.kodak_rd`: the coordinate networks that ours stands among. COIN++ is left
out because its rates are estimates, MSCN because VC-INR, of the same authors, replaces it."""


BEST_OF_OTHER_KINDS = ("C3", "Cool-chic 4.2", "compressai-bmshj2018-hyperprior_mse_cuda")
"""Shown by the figures beside what is measured: the best latent-grid codecs, and the autoencoder
that the later ones grew from."""


def in_group(group: str) -> tuple[Method, ...]:
    """The methods of one of `GROUPS`; ValueError for another."""
    if group not in GROUPS:
        raise ValueError(f"got group {group!r}, expected one of {', '.join(GROUPS)}")
    return tuple(method for method in METHODS if method.group == group)


Curves: TypeAlias = dict[str, Sequence[tuple[float, float]]]
"""By method, its (bpp, quality) points."""


def curves_to_show(
    curves: Mapping[str, Sequence[tuple[float, float]]], names: Iterable[str]
) -> tuple[Curves, Curves]:
    """The named curves, in the order of the names: those whose rates are sizes of files, and
    those whose rates are estimates.

    A name without a curve is left out: not every method has every quality. Raises ValueError for
    a name that `METHODS` does not have.
    """
    estimates = {method.name: method.is_estimate for method in METHODS}
    names = list(names)
    unknown = [name for name in names if name not in estimates]
    if unknown:
        raise ValueError(
            f"there is no published method {unknown[0]!r}, expected some of {', '.join(estimates)}"
        )
    shown = {name: curves[name] for name in names if name in curves}
    files = {name: curve for name, curve in shown.items() if not estimates[name]}
    return files, {name: curve for name, curve in shown.items() if estimates[name]}
