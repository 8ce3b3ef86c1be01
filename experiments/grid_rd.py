"""Do latents under learned nets need fewer bytes than a network's own weights, from real files?

Claim: LatentGrid needs at least 45 % fewer bytes than optimised JPEG and 20 % fewer than the
published curve of Strümpler et al. (meta-learned), by BD-rate on all 24 Kodak images, in seconds.
Command: python -m experiments.grid_rd --data DIR     (DIR holds kodak/; or set INRJAX_DATA)
    and the same with --images cid22-held-back or --images clic2025
Minutes: about 24 on 2 cores for Kodak. Stopped at any time, it goes on where it was.
Expected: the table in results/grid_rd/<config hash>/table.md.

Nothing was learned or chosen on Kodak. Every number comes from a file that another process decoded.
``--smoke`` runs the same on small crops of packaged photographs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from experiments import common
from experiments.figures import numbers
from experiments.kodak_rd import PUBLISHED, ROOT, markdown, note_provenance
from inrjax import codecs, gridfit, grids, plots, published, results
from inrjax.codecs import classic
from inrjax.evaluate import evaluate
from inrjax.machine import keep_buffers
from inrjax.results import Summary
from inrjax.types import Codec, Image, RDPoint

ANCHOR = "jpeg-optimized"


@dataclass(frozen=True)
class Config:
    """What is measured. ``images``: kodak, cid22-held-back or clic2025; ``max_images``: of them, in
    order. ``base``: digest of the packaged base, filled in when it runs. ``schedule``: the
    one that fits have, noted; earlier runs have ``caution`` or nothing in its place."""

    steps: tuple[int, ...] = codecs.latent_grid.CURVE_STEPS
    iterations: int = codecs.LatentGrid.iterations
    jpeg_qualities: tuple[int, ...] = classic.JPEG_QUALITIES
    jpeg2000_ratios: tuple[float, ...] = classic.JPEG2000_RATIOS
    webp_qualities: tuple[int, ...] = classic.WEBP_QUALITIES
    seed: int = 0
    images: common.SetName = "kodak"
    max_images: int = 24
    base: tyro.conf.Suppress[str] = ""
    schedule: tyro.conf.Suppress[gridfit.Schedule] = field(default_factory=gridfit.Schedule)


SMOKE = Config(
    steps=(24, 34), iterations=2, jpeg_qualities=(1, 10, 30), jpeg2000_ratios=(120, 40),
    webp_qualities=(0, 30), images="smoke",
)  # fmt: skip


def build_codecs(config: Config) -> list[Codec]:
    """Every codec at every rate, the quick ones first."""
    return [
        *(codecs.Jpeg(q, optimize=True) for q in config.jpeg_qualities),
        *(codecs.Jpeg2000(r) for r in config.jpeg2000_ratios),
        *(codecs.WebP(q) for q in config.webp_qualities),
        *(codecs.LatentGrid(s, 1.0, config.iterations, config.seed) for s in config.steps),
    ]


def run(config: Config, images: Mapping[str, Image], root: Path) -> Path:
    """Measure, and write rows.csv, provenance.json, table.md and the figure."""
    config = replace(config, base=grids.packaged_base().short_digest)
    folder = results.run_folder(root, config)
    note_provenance(folder)
    rows = evaluate(
        build_codecs(config),
        images,
        folder,
        batch_size=len(images),
        on_progress=common.print_progress(),
    )
    report(config, folder, rows)
    return folder


def report(config: Config, folder: Path, rows: Sequence[RDPoint]) -> None:
    """table.md and the figure, from the rows alone."""
    summaries = results.summarise(rows)
    results.write_text(folder / "table.md", table(config, rows, summaries))
    is_kodak = config.images == "kodak"
    curves = results.published_curves(results.read_published(PUBLISHED)) if is_kodak else {}
    shown = published.curves_to_show(curves, published.KODAK_RD)
    plots.save(plots.rd_figure(results.measured_curves(summaries), *shown), folder / "rd")


def table(config: Config, rows: Sequence[RDPoint], summaries: Sequence[Summary]) -> str:
    """All measured numbers as Markdown; published ones in a table of their own."""
    base = grids.packaged_base()
    points = [
        [
            s.codec, s.setting, f"{s.num_bytes:.0f}", f"{s.bpp:.4f}", f"{s.psnr:.2f}",
            f"{s.psnr_of_mean_mse:.2f}",
            "" if s.ms_ssim is None else f"{s.ms_ssim:.4f}",
            f"{s.encode_seconds:.2f}", f"{s.decode_seconds:.3f}",
        ]
        for s in summaries
    ]  # fmt: skip
    header = [
        "codec", "setting", "bytes", "bpp", "PSNR dB", "PSNR of mean MSE", "MS-SSIM",
        "encode s/image", "decode s/image",
    ]  # fmt: skip
    parts = [
        f"# Latents under learned nets on {config.images}, from files",
        f"{len({r.image for r in rows})} images; seed {config.seed}; {config.iterations} proximal "
        "steps a fit. PSNR is the mean of the images' PSNRs, the PSNR of the mean error beside it. "
        f"Bytes are whole files; both sides share the base {base.short_digest} beside them, "
        f"{base.shared_bytes} bytes. Seconds are wall seconds an image, of a batch of all.",
        markdown(header, points),
        "## BD-rate of LatentGrid",
        bd_rates(rows, dict.fromkeys(s.codec for s in summaries if s.codec != "latent-grid")),
    ]
    if config.images == "kodak":
        parts += ["## Against published curves (not measured here)", _published(summaries)]
    return "\n\n".join(parts) + "\n"


def bd_rates(rows: Sequence[RDPoint], anchors: Iterable[str]) -> str:
    """LatentGrid's against codecs whose rows are there, curves of means, as a table."""
    lines = []
    for anchor in anchors:
        found = numbers.bd_rate_with_interval(list(rows), anchor, "latent-grid")
        if found is None:
            lines.append([anchor, "no overlap", "", ""])
            continue
        value, low, high = found.of_means
        interval = "" if low is None else f"{low:+.1f} to {high:+.1f}"
        lines.append([anchor, f"{value:+.1f}", interval, f"{found.low:.1f}-{found.high:.1f}"])
    return markdown(["anchor, measured", "BD-rate %, curve of means", "interval", "over dB"], lines)


def _published(summaries: Sequence[Summary]) -> str:
    theirs = results.published_curves(results.read_published(PUBLISHED))
    ours = results.measured_curves(summaries)["latent-grid"]
    lines = []
    for name in published.KODAK_RD:
        rate = numbers.bd_rate(theirs[name], ours)
        text = "no overlap" if rate is None else f"{rate.percent:+.1f}"
        span = "" if rate is None else f"{rate.low_db:.1f}-{rate.high_db:.1f}"
        lines.append([name, text, span])
    return markdown(["anchor, published", "BD-rate % of our measured curve", "over dB"], lines)


@dataclass(frozen=True)
class Options(common.Options):
    """The command line."""

    config: Config = Config()
    output: Path = ROOT / "results" / "grid_rd"


def main(options: Options) -> Path:
    """Have large buffers kept, read the images, run; returns the run folder."""
    keep_buffers()
    config = SMOKE if options.smoke else options.config
    images = common.named(config.images, options.data, config.max_images)
    return common.show(run(config, images, options.output))


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
