"""Where do product quantisation and COIN++ stand on whole Kodak pictures, from real files?

Claims: product-quantised weights (`ProductSiren`) need more bytes than MetaSiren's at equal PSNR;
modulations of a base learned in minutes of a CPU (`ModulatedSiren`) are 1 to 2.5 dB behind COIN++'s
published curve, of a base 16 times as large.
Command: python -m experiments.other_rungs --data DIR --bases base.npz ...
    (DIR holds kodak/; or set INRJAX_DATA; the bases are made by `python -m experiments.coinpp train
    --set cid22`, one for each size of a latent)
Minutes: about 30 on 2 cores. Stopped at any time, it goes on where it was.
Expected: the table in results/other_rungs/<config hash>/table.md.

These are the ladder's rungs that no other experiment has on Kodak; their settings were chosen by
`experiments.product_quantization` and `experiments.coinpp`. Nothing was learned from Kodak.
``--smoke`` runs the same on small crops of packaged photographs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from experiments import coinpp, common
from experiments.kodak_rd import ROOT, markdown, note_provenance
from inrjax import codecs, fit, results
from inrjax.base import Base
from inrjax.evaluate import evaluate
from inrjax.init import packaged_init
from inrjax.types import Codec, Image


@dataclass(frozen=True)
class BaseNote:
    """What a table says of a base, whose file stays with whoever learned it."""

    digest: str
    width: int
    depth: int
    latent_dim: int
    patch: int
    shared_bytes: int
    outer_steps: int
    training_set: str


@dataclass(frozen=True)
class Config:
    """What is measured. ``block``, ``num_centroids``, ``num_steps``, ``tune_steps``,
    ``points_per_step``: of the product-quantised nets of ``widths``; ``bits``, ``inner_steps``: of
    latents, as many steps as the bases were learned with: ten, as COIN++ has, are no better on
    held-back images; ``inits``: digests of the packaged inits; ``bases``: what the bases are. Both
    are filled in when it runs."""

    widths: tuple[int, ...] = (24, 32, 48)
    block: int = 1
    num_centroids: int = 32
    num_steps: int = codecs.ProductSiren.num_steps
    tune_steps: int = codecs.ProductSiren.tune_steps
    points_per_step: int = codecs.ProductSiren.points_per_step
    bits: int = 5
    inner_steps: int = 3
    seed: int = 0
    images: common.SetName = "kodak"
    max_images: int = 24
    inits: tyro.conf.Suppress[tuple[str, ...]] = ()
    bases: tyro.conf.Suppress[tuple[BaseNote, ...]] = ()


SMOKE = Config(widths=(24,), num_steps=8, tune_steps=4, images="smoke", max_images=1)


def build_codecs(config: Config, bases: Sequence[Base]) -> list[Codec]:
    """Products by width, then modulations by base."""
    products = [
        codecs.ProductSiren(
            width, config.num_centroids, config.block, config.num_steps, config.tune_steps,
            config.seed, points_per_step=config.points_per_step,
        )
        for width in config.widths
    ]  # fmt: skip
    modulated = [codecs.ModulatedSiren(base, config.bits, config.inner_steps) for base in bases]
    return [*products, *modulated]


def note_of(base: Base) -> BaseNote:
    """What is noted of a base."""
    made: Mapping[str, Any] = base.info.get("config", {})
    return BaseNote(
        base.short_digest, base.net.width, base.net.depth, base.latent_dim, base.patch,
        base.shared_bytes, int(made.get("num_steps", 0)), str(base.info.get("training_set", "")),
    )  # fmt: skip


def run(config: Config, bases: Sequence[Base], images: Mapping[str, Image], root: Path) -> Path:
    """Measure; returns the run folder."""
    config = replace(
        config,
        inits=tuple(packaged_init(width).short_digest for width in config.widths),
        bases=tuple(map(note_of, bases)),
    )
    folder = results.run_folder(root, config)
    note_provenance(folder)
    evaluate(
        build_codecs(config, bases),
        images,
        folder,
        batch_size=len(images),
        on_progress=common.print_progress(),
    )
    report(config, folder)
    return folder


def report(config: Config, folder: Path) -> None:
    """table.md, from the rows."""
    summaries = results.summarise(results.read_rows(folder / "rows.csv"))
    lines = [
        [
            s.codec, s.setting, f"{s.num_bytes:.0f}", f"{s.bpp:.4f}", f"{s.psnr:.2f}",
            f"{s.encode_seconds:.1f}", f"{s.decode_seconds:.3f}",
        ]
        for s in summaries
    ]  # fmt: skip
    header = ["codec", "setting", "bytes", "bpp", "PSNR dB", "encode s/image", "decode s/image"]
    bases = [
        f"- latent {base.latent_dim}: base {base.depth} x {base.width} learned in "
        f"{base.outer_steps} outer steps ({base.training_set}), {base.shared_bytes} bytes that a "
        f"decoder has beside the files, digest {base.digest}"
        for base in config.bases
    ]
    parts = [
        f"# Product quantisation and COIN++ on {config.images}, from files",
        "Mean bytes of whole files, and mean of the images' PSNRs.",
        markdown(header, lines),
        "\n".join(bases),
    ]
    results.write_text(folder / "table.md", "\n\n".join(parts) + "\n")


@dataclass(frozen=True)
class Options(common.Options):
    """The command line. ``bases``: files of `experiments.coinpp train`."""

    config: Config = Config()
    bases: tuple[Path, ...] = ()
    output: Path = ROOT / "results" / "other_rungs"


def main(options: Options) -> Path:
    """Set one device a core, read the images, run; returns the run folder."""
    fit.use_every_core()
    if options.smoke:
        return common.show(run(SMOKE, _smoke_bases(), _some(SMOKE, options), options.output))
    if not options.bases:
        raise SystemExit(
            "error: no bases: learn some by `python -m experiments.coinpp train --set cid22`, "
            "and name their files by --bases"
        )
    bases = coinpp.load_bases(options.bases)
    config = options.config
    return common.show(run(config, bases, _some(config, options), options.output))


def _some(config: Config, options: Options) -> dict[str, Image]:
    images = common.named(config.images, options.data, config.max_images)
    return dict([*images.items()][: config.max_images])


def _smoke_bases() -> list[Base]:
    with tempfile.TemporaryDirectory() as folder:
        return coinpp.train_all(coinpp.SMOKE, None, Path(folder))


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
