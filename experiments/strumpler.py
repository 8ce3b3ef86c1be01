"""Where do the codecs of Strümpler et al. 2022 stand, from real files, at a CPU's budget of steps?

Claim: at equal width, 7 bits and steps, starting from the packaged init and coding the distance
from it gives fewer bytes and a higher PSNR than a random init and the params themselves; at 6000
steps of 4096 pixels neither reaches the paper's own curve, of 25,000 full-image steps.
Command: python -m experiments.strumpler --data DIR     (DIR holds kodak/; or set INRJAX_DATA)
Minutes: about 100 on 2 idle cores for six widths, reckoned from 14 s of CPU for an image at width
32. Stopped at any time, it goes on where it was.
Expected: the table in results/strumpler/<config hash>/table.md.

The paper compares 8 bits without the init to 7 bits with it; basic at 7 bits tells the two apart.
Every number comes from a file that another process decoded; the paper's rates are of no file.
``--images 8`` measures on as many held-back CID22 images instead, ``--smoke`` on small crops.
``--muon 1e-3`` fits by Muon in place of the paper's Adam, everything else the same; 3e-3 is too
high for these nets. The ladder has both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TypeAlias

import tyro

from experiments import common
from experiments.kodak_rd import ROOT, markdown, note_provenance
from inrjax import codecs, compare, fit, optimizers, published, results
from inrjax.codecs import strumpler
from inrjax.evaluate import evaluate, image_digest, read_digests, stream_path
from inrjax.results import Summary
from inrjax.types import Image, RDPoint

PUBLISHED = {"basic (8 bit)": "Strumpler basic (8 bit)",
             "meta-learned (7 bit)": "Strumpler meta-learned (7 bit)"}  # fmt: skip
"""The paper's own curves, as a column calls them and as `inrjax.published` does."""

JPEG = "jpeg-optimized"

Coded: TypeAlias = codecs.StrumplerBasic | codecs.StrumplerMeta


@dataclass(frozen=True)
class Config:
    """What is measured, on the first ``num_images`` of a dataset. ``muon``: learning rate of Muon,
    in place of Adam at ``learning_rate``; ``inits``: digests of the packaged inits, filled in when
    it runs."""

    widths: tuple[int, ...] = strumpler.WIDTHS
    basic_bits: tuple[int, ...] = (8, 7)
    meta_bits: tuple[int, ...] = (7,)
    num_steps: int = strumpler.NUM_STEPS
    points_per_step: int = strumpler.POINTS_PER_STEP
    learning_rate: float = strumpler.LEARNING_RATE
    muon: float | None = None
    l1: float = codecs.StrumplerBasic.l1
    rounding_steps: int = codecs.StrumplerBasic.rounding_steps
    retraining_steps: int = codecs.StrumplerBasic.retraining_steps
    seed: int = 0
    dataset: str = "kodak"
    num_images: int = 24
    inits: tyro.conf.Suppress[tuple[str, ...]] = ()


SMOKE = Config(
    widths=(24,), basic_bits=(8,), num_steps=4, points_per_step=512, rounding_steps=2,
    retraining_steps=2, dataset="smoke", num_images=1,
)  # fmt: skip


def build_series(config: Config) -> dict[str, list[Coded]]:
    """The codec at each width of each curve, by the curve's name."""
    common = {
        "num_steps": config.num_steps,
        "seed": config.seed,
        "optimizer": (
            optimizers.Adam(config.learning_rate, final=0.0)
            if config.muon is None
            else optimizers.Muon(config.muon)
        ),
        "points_per_step": config.points_per_step,
        "l1": config.l1,
        "rounding_steps": config.rounding_steps,
        "retraining_steps": config.retraining_steps,
    }
    series: dict[str, list[Coded]] = {}
    for bits in config.basic_bits:
        made = [codecs.StrumplerBasic(width, bits, **common) for width in config.widths]
        series[f"basic, {bits} bit"] = list(made)
    for bits in config.meta_bits:
        learned = [codecs.StrumplerMeta(width, bits, **common) for width in config.widths]
        series[f"meta-learned, {bits} bit"] = list(learned)
    return series


def run(config: Config, images: Mapping[str, Image], root: Path) -> Path:
    """Measure, and write rows.csv, provenance.json, side.json and table.md."""
    digests = tuple(strumpler.learned_init(width).short_digest for width in config.widths)
    config = replace(config, inits=digests)
    folder = results.run_folder(root, config)
    note_provenance(folder)
    series = build_series(config)
    chosen = [codec for curve in series.values() for codec in curve]
    evaluate(chosen, images, folder, batch_size=len(images), on_progress=common.print_progress())
    results.write_json(folder / "side.json", side_bytes(chosen, images, folder))
    report(config, images, folder)
    return folder


def side_bytes(
    chosen: Sequence[Coded], images: Mapping[str, Image], folder: Path
) -> dict[str, float]:
    """Mean bytes of a file beside the range-coded symbols, by codec and setting, from the files."""
    found = {}
    for codec in chosen:
        streams = [stream_path(folder, codec, name).read_bytes() for name in images]
        symbols = [codecs.describe(data).sections["symbols"] for data in streams]
        sizes = [len(data) - size for data, size in zip(streams, symbols, strict=True)]
        found[f"{codec.name} {codec.setting}"] = fmean(sizes)
    return found


# ---------------------------------------------------------------------------- the table


def report(config: Config, images: Mapping[str, Image], folder: Path) -> None:
    """table.md, from the rows and side.json."""
    rows = results.read_rows(folder / "rows.csv")
    side = json.loads((folder / "side.json").read_text("utf-8"))
    parts = [
        f"# Strümpler's codecs on {config.dataset}, from files",
        f"{len(images)} images, seed {config.seed}; {_optimizer_text(config)} on a cosine, "
        f"L1 {config.l1:g}, AdaRound and quantisation-aware steps included in the steps. PSNR is "
        "the mean of the images'. Bytes are whole files; side bytes are what is not range-coded "
        "symbols: header, checksum, step sizes, table of counts. Shared bytes are the init's.",
        _points(config, rows, side, images),
        "## BD-rates (PSNR, curve of means)",
        _bd_rates(config, rows, images),
    ]
    results.write_text(folder / "table.md", "\n\n".join(parts) + "\n")


def _optimizer_text(config: Config) -> str:
    if config.muon is None:
        return f"Adam {config.learning_rate:g}"
    return f"Muon {config.muon:g}, which is not the paper's,"


def _points(
    config: Config,
    rows: Sequence[RDPoint],
    side: Mapping[str, float],
    images: Mapping[str, Image],
) -> str:
    summaries = {(s.codec, s.setting): s for s in results.summarise(rows)}
    lines = []
    for curve, series in build_series(config).items():
        for codec in series:
            s: Summary = summaries[codec.name, codec.setting]
            steps = codec.num_steps + codec.rounding_steps + codec.retraining_steps
            seen = fmean(_pixels_of_a_step(codec, image) for image in images.values())
            init = (
                strumpler.learned_init(codec.width)
                if isinstance(codec, codecs.StrumplerMeta)
                else None
            )
            lines.append([
                curve, str(codec.width), f"{s.num_bytes:.0f}", f"{s.bpp:.4f}", f"{s.psnr:.2f}",
                f"{side[f'{codec.name} {codec.setting}']:.0f}", str(steps),
                f"{steps * seen / 1e6:.1f}", f"{s.encode_seconds:.1f}", f"{s.decode_seconds:.3f}",
                str(init.shared_bytes if init else 0),
            ])  # fmt: skip
    header = [
        "codec", "width", "bytes", "bpp", "PSNR dB", "side bytes", "steps",
        "pixel-steps, millions", "encode s/image", "decode s/image", "shared bytes",
    ]  # fmt: skip
    return markdown(header, lines)


def _pixels_of_a_step(codec: Coded, image: Image) -> int:
    size = image.shape[0] * image.shape[1]
    tiling = fit.tiling(size, codec.points_per_step or size)
    return min(size, tiling.tile * tiling.tiles_per_step)


def _bd_rates(config: Config, rows: Sequence[RDPoint], images: Mapping[str, Image]) -> str:
    jpeg = measured_jpeg(images)
    theirs = results.read_published(ROOT / "results" / "published" / "kodak.csv")
    known = {method.name for method in published.METHODS}
    lines = []
    for curve, series in build_series(config).items():
        settings = {(codec.name, codec.setting) for codec in series}
        own = [row for row in rows if (row.codec, row.setting) in settings]
        cells = [_text(lambda own=own: compare.bd_rate_of(jpeg, own)) if jpeg else "no rows"]
        for name in PUBLISHED.values():
            assert name in known
            points = [point for point in theirs if point.method == name]
            is_kodak = config.dataset == "kodak"
            rate = _text(lambda p=points, own=own: compare.bd_rate_published(p, own))
            cells.append(rate if is_kodak else "of Kodak only")
        lines.append([curve, *cells])
    header = [
        "codec", f"against {JPEG}, measured here",
        *(f"against published: {label}" for label in PUBLISHED),
    ]  # fmt: skip
    return markdown(header, lines)


def _text(compute) -> str:
    try:
        found = compute()
    except ValueError:  # curves that do not overlap, or a smoke test's few points
        return "no overlap"
    value = found.of_means
    interval = "" if value.low is None else f" ({value.low:+.1f} to {value.high:+.1f})"
    return f"{value.value:+.1f} %{interval}, {found.low:.1f}-{found.high:.1f} dB"


def measured_jpeg(images: Mapping[str, Image]) -> list[RDPoint]:
    """Rows of optimised JPEG on these very images, made by `experiments.classic_rd`, if any."""
    wanted = {name: image_digest(image) for name, image in images.items()}
    for folder in sorted((ROOT / "results" / "classic_rd").glob("*/")):
        digests = read_digests(folder / "images.json")
        if all(digests.get(name) == digest for name, digest in wanted.items()):
            rows = results.read_rows(folder / "rows.csv")
            return [row for row in rows if row.codec == JPEG and row.image in wanted]
    return []


# ---------------------------------------------------------------------------- the command line


@dataclass(frozen=True)
class Options(common.Options):
    """The command line. ``images``: as many held-back CID22 images instead of Kodak. ``redraw``:
    only the table, from the rows that are there."""

    config: Config = Config()
    output: Path = ROOT / "results" / "strumpler"
    images: int | None = None
    redraw: bool = False


def chosen_images(options: Options) -> tuple[Config, dict[str, Image]]:
    """The config with what its images are, and these."""
    if options.smoke:
        [(stem, image), *_] = common.smoke_images().items()
        return SMOKE, {stem: image}
    if options.images is None:
        config, name = options.config, "kodak"
    else:
        config = replace(options.config, dataset="cid22, held back", num_images=options.images)
        name = "cid22-held-back"
    return config, common.named(name, options.data, config.num_images)


def main(options: Options) -> Path:
    """Set one device a core, read the images, run; returns the run folder."""
    fit.use_every_core()
    config, images = chosen_images(options)
    if options.redraw:
        digests = tuple(strumpler.learned_init(width).short_digest for width in config.widths)
        config = replace(config, inits=digests)
        folder = results.run_folder(options.output, config)
        report(config, images, folder)
    else:
        folder = run(config, images, options.output)
    print((folder / "table.md").read_text("utf-8"))
    return folder


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
