"""Are product-quantised weights smaller than rounded ones, at equal PSNR?

Claim tested: product quantisation with tuned centroids (`ProductSiren`) beats scalar quantisation
at equal bytes: that of `MetaSiren`, and the rounding of the very same fits.
Command: python -m experiments.product_quantization --data DIR  (DIR holds cid22/; or INRJAX_DATA)
Minutes: 4 to 8 on 2 cores. A stopped run goes on: rows that exist are kept.
Expected: the table in results/product_quantization/<config hash>/table.md.

Held-back cid22 images; every number is from a file that another process decoded. One fit for each
image and width, by mse alone, is product-quantised at several settings, and is rounded uniformly,
each tensor to the largest step of the ladder's nearest that keeps it within so many bits, and coded
as MetaSiren codes its symbols. MetaSiren itself is fitted with its rate in the loss, in as many
steps. Score: PSNR less that of a scalar curve at the same bytes, image by image: the curve is
linear in the logarithm of bytes between neighbouring points of the image, and is not extended.
Its interval is a bootstrap over images. ``--smoke``: one small crop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tyro

from experiments import common
from experiments.kodak_rd import ROOT, markdown
from inrjax import codecs, results, trees
from inrjax.evaluate import evaluate, image_digest, row_stream_path
from inrjax.init import packaged_init
from inrjax.types import Codec, Image, OnProgress, Params, RDPoint


@dataclass(frozen=True)
class Config:
    """What is compared. ``products``: (block, centroids); ``untuned_block``: of those that are also
    measured without tuning; ``inits``: digests of the packaged ones, filled in when it runs."""

    widths: tuple[int, ...] = (24, 32)
    curve_widths: tuple[int, ...] = (24, 32, 48, 64)
    products: tuple[tuple[int, int], ...] = ((1, 16), (1, 32), (2, 64), (2, 256), (4, 256))
    untuned_block: int = 2
    bits: tuple[int, ...] = (4, 5, 6, 7, 8)
    num_steps: int = 1500
    tune_steps: int = 300
    num_images: int = 8
    resamples: int = 10_000
    seed: int = 0
    images: tyro.conf.Suppress[str] = "cid22, held back"
    inits: tyro.conf.Suppress[tuple[str, ...]] = ()


SMOKE = Config(
    widths=(24,), curve_widths=(24,), products=((2, 8),), bits=(2, 4, 6), num_steps=8,
    tune_steps=4, num_images=1, resamples=20, images="smoke",
)  # fmt: skip


# ---------------------------------------------------------------------------- codecs of one fit

_FITS: dict[tuple[Any, ...], list[Params]] = {}


def fitted(
    codec: codecs.ProductSiren, images: Sequence[Image], on_progress: OnProgress | None
) -> list[Params]:
    """The codec's fits, made once for all settings of its width."""
    key = (codec.width, codec.num_steps, codec.seed, tuple(map(image_digest, images)))
    if key not in _FITS:
        _FITS[key] = codec.fit(images, on_progress)
    return _FITS[key]


@dataclass(frozen=True, eq=False)
class Product(common.Wrapped):
    """`ProductSiren` on fits that other settings share."""

    @property
    def setting(self) -> str:
        return f"{self.codec.setting}_tuned={self.codec.tune_steps}"

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        fits = fitted(self.codec, images, on_progress)
        coded = self.codec.quantize(images, fits)
        return [self.codec.pack(image, one) for image, one in zip(images, coded, strict=True)]


@dataclass(frozen=True, eq=False)
class Rounded:
    """The same fits, each tensor rounded uniformly to ``bits`` bits, in MetaSiren's file."""

    codec: codecs.ProductSiren
    bits: int
    suffix: ClassVar[str] = ".inr"
    name: ClassVar[str] = "rounded"

    @property
    def setting(self) -> str:
        return f"width={self.codec.width}_bits={self.bits}"

    @cached_property
    def _file(self) -> codecs.MetaSiren:
        return codecs.MetaSiren(self.codec.width)

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        fits = fitted(self.codec, images, on_progress)
        return [self._file.pack(i, self._learned(f)) for i, f in zip(images, fits, strict=True)]

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        return self._file.decode(streams)

    def _learned(self, params: Params) -> dict[str, Any]:
        mean = dict(trees.leaves(packaged_init(self.codec.width).mean()))
        largest = [np.abs(leaf - mean[path]).max() for path, leaf in trees.leaves(params)]
        steps = [max(float(x), 1e-6) / (2 ** (self.bits - 1) - 1) for x in largest]
        return {"net": params, "log_step": np.log(steps)}


def build_codecs(config: Config) -> list[Codec]:
    """MetaSiren's curve, then for each width the roundings and the products of one fit."""
    steps, seed = config.num_steps, config.seed
    built: list[Any] = [codecs.MetaSiren(width, steps, seed) for width in config.curve_widths]
    for width in config.widths:
        base = codecs.ProductSiren(width, num_steps=steps, tune_steps=config.tune_steps, seed=seed)
        built += [Rounded(base, bits) for bits in config.bits]
        for block, count in config.products:
            product = replace(base, block=block, num_centroids=count)
            built.append(Product(product))
            if block == config.untuned_block:
                built.append(Product(replace(product, tune_steps=0)))
    return built


# ---------------------------------------------------------------------------- scores


class Score(NamedTuple):
    """Mean dB over the images, and its 95 % interval; None where a curve does not cover one."""

    mean: float
    low: float
    high: float


Points = Sequence[tuple[int, float]]
"""(bytes, PSNR in dB) of one image under one family of codecs."""


def score(
    rows: Mapping[str, RDPoint], curves: Sequence[Mapping[str, Points]], config: Config
) -> Score | None:
    """PSNR less that of the best of the curves at the same bytes; rows and curves by image."""
    gains = []
    for image, row in rows.items():
        there = [common.psnr_at(curve[image], row.num_bytes) for curve in curves]
        known = [psnr for psnr in there if psnr is not None]
        if not known:
            return None
        gains.append(row.psnr - max(known))
    rng = np.random.default_rng(config.seed)
    drawn = rng.integers(len(gains), size=(config.resamples, len(gains)))
    low, high = np.quantile(np.array(gains)[drawn].mean(axis=1), (0.025, 0.975))
    return Score(fmean(gains), float(low), float(high))


def _by_image(rows: Sequence[RDPoint]) -> dict[str, Points]:
    images = {row.image: 0 for row in rows}
    return {i: [(row.num_bytes, row.psnr) for row in rows if row.image == i] for i in images}


# ---------------------------------------------------------------------------- run and table


def run(config: Config, images: Mapping[str, Image], root: Path) -> Path:
    """Measure every codec on the images; returns the run folder."""
    digests = tuple(packaged_init(width).short_digest for width in config.curve_widths)
    config = replace(config, inits=digests)
    folder = results.run_folder(root, config)
    rows = evaluate(
        build_codecs(config),
        images,
        folder,
        batch_size=len(images),
        on_progress=common.print_progress(),
    )
    results.write_json(folder / "provenance.json", results.provenance(results.jax_device()))
    results.write_text(folder / "table.md", table(config, rows, folder))
    return folder


def table(config: Config, rows: Sequence[RDPoint], folder: Path) -> str:
    """The scalar curves, the products and their scores, and the answer."""
    meta = [row for row in rows if row.codec == "meta-siren"]
    rounded = {
        width: [row for row in rows if row.codec == "rounded" and f"width={width}_" in row.setting]
        for width in config.widths
    }
    lines, scores = [], {}
    for codec in build_codecs(config):
        if not isinstance(codec, Product):
            continue
        own = {row.image: row for row in rows if row.setting == codec.setting}
        anchors = {
            "MetaSiren": [_by_image(meta)],
            "rounding, same net": [_by_image(rounded[codec.codec.width])],
            "rounding, best net": [_by_image(part) for part in rounded.values()],
        }
        found = {name: score(own, curves, config) for name, curves in anchors.items()}
        scores[codec.setting] = found
        lines.append(_line(codec, list(own.values()), folder) + [_text(s) for s in found.values()])
    scalar = [
        [s.codec, s.setting, f"{s.num_bytes:.0f}", f"{s.psnr:.2f}"]
        for s in results.summarise([*meta, *(row for part in rounded.values() for row in part)])
    ]
    header = [
        "width", "block", "centroids", "tuned", "bytes", "of these symbols", "indices",
        "codebooks as float16", "PSNR dB", *(f"score dB to {name}" for name in anchors),
    ]  # fmt: skip
    return (
        "\n\n".join(
            [
                "# Product against scalar quantisation, "
                f"{len({row.image for row in rows})} images ({config.images}), "
                f"{config.num_steps} steps, seed {config.seed}",
                "Mean bytes of whole files, and mean of the images' PSNRs. A score is PSNR less "
                "that of the scalar curve at the file's own bytes, image by image, linear in log "
                "bytes between that image's neighbouring points (MetaSiren: widths; rounding: "
                f"bits), mean and 95 % bootstrap interval ({config.resamples} resamples of the "
                "images). 'best net' takes the best of all widths' curves for each image. Symbols "
                "hold codebooks, biases and last layer; beside them is what the codebooks alone "
                "would take as float16.",
                markdown(header, lines),
                "## Scalar curves",
                markdown(["codec", "setting", "bytes", "PSNR dB"], scalar),
                "## Answer",
                *(_answer(name, scores) for name in anchors),
            ]
        )
        + "\n"
    )


def _line(product: Product, rows: Sequence[RDPoint], folder: Path) -> list[str]:
    codec = product.codec
    sections = [
        codecs.describe(
            row_stream_path(folder, r.codec, r.setting, r.image, Product.suffix).read_bytes()
        ).sections
        for r in rows
    ]
    net = packaged_init(codec.width).net
    layout = codecs.product.layout_of(net, codec.num_centroids, codec.block)
    return [
        str(codec.width), str(codec.block), str(codec.num_centroids), str(codec.tune_steps),
        f"{fmean(r.num_bytes for r in rows):.0f}",
        f"{fmean(s['symbols'] for s in sections):.0f}",
        f"{fmean(s['indices'] for s in sections):.0f}",
        str(2 * codec.block * sum(layout.sizes.values())),
        f"{fmean(r.psnr for r in rows):.2f}",
    ]  # fmt: skip


def _text(one: Score | None) -> str:
    if one is None:
        return "outside the curve"
    return f"{one.mean:+.2f} ({one.low:+.2f} to {one.high:+.2f})"


def _answer(anchor: str, scores: Mapping[str, Mapping[str, Score | None]]) -> str:
    found = {name: own[anchor] for name, own in scores.items()}
    known = {name: one for name, one in found.items() if one is not None}
    if not known:
        return f"{anchor}: no product lies on its curve."
    best = max(known, key=lambda name: known[name].mean)
    worst = min(known, key=lambda name: known[name].mean)
    return (
        f"{anchor}: of {len(known)} products on its curve, the best is {best}, "
        f"{_text(known[best])} dB; the worst {worst}, {_text(known[worst])} dB."
    )


@dataclass(frozen=True)
class Options(common.Options):
    """The command line."""

    config: Config = Config()
    output: Path = ROOT / "results" / "product_quantization"


def main(options: Options) -> Path:
    """Set one device a core, read the images, run; returns the run folder."""
    from inrjax import fit

    fit.use_every_core()
    config = SMOKE if options.smoke else options.config
    images = common.pictures(options, slice(config.num_images))
    return common.show(run(config, images, options.output))


if __name__ == "__main__":
    # By its own name, so that the process that decodes can import the codecs above.
    from experiments import product_quantization

    product_quantization.main(tyro.cli(tyro.conf.OmitArgPrefixes[product_quantization.Options]))
