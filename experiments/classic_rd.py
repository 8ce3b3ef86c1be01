"""Where do the classic codecs stand on Kodak, as run here, from real files?

Claim: against optimised baseline JPEG (4:2:0) MozJPEG saves at least 20 % of the bits (BD-rate,
curve of means), JPEG XL 25 %, WebP 35 %, JPEG 2000 45 %, HEVC intra and AVIF 55 %, VVC intra 65 %;
progressive files, 4:4:4 and the Five Modulus Method save none.
Command: python -m experiments.classic_rd --data DIR     (DIR holds kodak/; or set INRJAX_DATA)
Minutes: 80 on 2 cores, at low priority beside much other work; about 25 of CPU, half of them
VVenC's. Stopped at any time, it goes on where it was.
Expected: the table in results/classic_rd/<config hash>/table.md.

It needs the extras ``codecs`` and ``vvc``; ``--vvc-qps`` without a number leaves VVC out. Every
number comes from a file that another process decoded. Flags were chosen on 4 held-back CID22 images
(``--images cid22-held-back`` measures on all of those), none on Kodak. ``--smoke`` runs the same,
without VVC, on small crops of packaged photographs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments import common
from experiments.kodak_rd import ROOT, bd_rate_text, markdown
from inrjax import codecs, results
from inrjax.codecs import classic, fmm, modern, vvc
from inrjax.evaluate import evaluate
from inrjax.results import Summary
from inrjax.types import Codec, Image, RDPoint

ANCHOR = "jpeg-optimized"
BATCH = 4  # images whose rows are lost at most when a run is killed

FLAGS = {
    "jpeg": "libjpeg-turbo, baseline, default Huffman tables, 4:2:0",
    "jpeg-optimized": "libjpeg-turbo, baseline, optimised Huffman tables, 4:2:0",
    "jpeg-progressive": "libjpeg-turbo, progressive, optimised Huffman tables, 4:2:0",
    "jpeg-optimized-444": "libjpeg-turbo, baseline, optimised Huffman tables, 4:4:4",
    "jpeg-mozjpeg": "MozJPEG, progressive, trellis, optimised scans, deringing, quantisation "
    "table 2, 4:2:0",
    "jpeg2000": "OpenJPEG, 9/7, mct=1, one layer, one tile, bare codestream",
    "webp": "libwebp, method 6, 4:2:0",
    "avif": "libaom, speed 4, tune=psnr, 8 bits, 4:4:4",
    "jpeg-xl": "libjxl, effort 7, VarDCT in XYB, bare codestream",
    "hevc": "x265, preset veryslow, tune psnr, tu-intra-depth 4, constant QP, 8 bits, 4:2:0, HEIF "
    "container",
    "vvc": "VVenC, preset medium, qpa 0, constant QP, 10 bits, 4:2:0, raw bitstream and checksum",
    "png": "zlib level 9, adaptive filters",
    "fmm": "blocks of 8 x 8: minimum, bit width, residuals",
    "fmm-jpeg-optimized": "quotients by five in jpeg-optimized",
}
"""How each codec was run, by name, for the table."""

PUBLISHED = {"jpeg": "JPEG (Pillow 7.1.2)", "webp": "WebP"}
"""Codec -> the published curve (CompressAI's) that it should meet."""


@dataclass(frozen=True)
class Config:
    """What is measured; a codec without a setting is left out."""

    images: common.SetName = "kodak"
    jpeg_qualities: tuple[int, ...] = classic.JPEG_QUALITIES[::2]
    mozjpeg_qualities: tuple[int, ...] = classic.MOZJPEG_QUALITIES
    jpeg2000_ratios: tuple[float, ...] = classic.JPEG2000_RATIOS[::2]
    webp_qualities: tuple[int, ...] = classic.WEBP_QUALITIES[::2]
    avif_qualities: tuple[int, ...] = classic.AVIF_QUALITIES
    jpeg_xl_distances: tuple[float, ...] = modern.JPEG_XL_DISTANCES
    hevc_qps: tuple[int, ...] = modern.HEVC_QPS
    vvc_qps: tuple[int, ...] = vvc.VVC_QPS
    fmm_jpeg_qualities: tuple[int, ...] = fmm.FMM_JPEG_QUALITIES


SMOKE = Config(
    images="smoke", jpeg_qualities=(5, 40), mozjpeg_qualities=(5, 40), jpeg2000_ratios=(120, 40),
    webp_qualities=(0, 50), avif_qualities=(10, 50), jpeg_xl_distances=(15.0, 4.0),
    hevc_qps=(47, 31), vvc_qps=(), fmm_jpeg_qualities=(40, 90),
)  # fmt: skip


def build_codecs(config: Config) -> list[Codec]:
    """Every codec at every rate, the slowest last."""
    optimized = [codecs.Jpeg(q, optimize=True) for q in config.jpeg_qualities]
    return [
        *(codecs.Jpeg(q, optimize=False) for q in config.jpeg_qualities),
        *optimized,
        *(codecs.Jpeg(q, optimize=True, progressive=True) for q in config.jpeg_qualities),
        *(codecs.Jpeg(q, optimize=True, subsample=False) for q in config.jpeg_qualities),
        *(codecs.MozJpeg(q) for q in config.mozjpeg_qualities),
        *(codecs.Jpeg2000(r) for r in config.jpeg2000_ratios),
        *(codecs.WebP(q) for q in config.webp_qualities),
        *(codecs.Avif(q) for q in config.avif_qualities),
        *(codecs.JpegXl(d) for d in config.jpeg_xl_distances),
        *(codecs.Hevc(qp) for qp in config.hevc_qps),
        codecs.Png(),
        codecs.Fmm(),
        *(codecs.FmmInside(codecs.Jpeg(q, optimize=True)) for q in config.fmm_jpeg_qualities),
        *(codecs.Vvc(qp) for qp in config.vvc_qps),
    ]


def run(config: Config, images: Mapping[str, Image], root: Path) -> Path:
    """Measure, and write rows.csv, provenance.json and table.md."""
    chosen = build_codecs(config)
    folder = results.run_folder(root, config)
    note_provenance(folder)
    rows = evaluate(chosen, images, folder, batch_size=BATCH, on_progress=common.print_progress())
    report(config, folder, rows)
    return folder


def note_provenance(folder: Path) -> None:
    """Add this process to provenance.json, before anything is measured, with the versions of the
    libraries that write the bytes."""
    record = results.provenance("cpu")
    record["versions"] |= modern.library_versions() | vvc.library_versions()
    results.note_provenance(folder, record)


def report(config: Config, folder: Path, rows: Sequence[RDPoint]) -> None:
    """table.md, from the rows alone."""
    results.write_text(folder / "table.md", table(config, rows))


def table(config: Config, rows: Sequence[RDPoint]) -> str:
    """All measured numbers as Markdown, BD-rates against published curves in their own table."""
    summaries = results.summarise(rows)
    parts = [
        f"# Classic codecs on {config.images}, from files",
        f"{len({row.image for row in rows})} images; PSNR, SSIM and MS-SSIM are the means of the "
        "images', on RGB; bytes are whole files. Seconds are for one image, on a machine that "
        "other work may have shared; VVC encodes an image a core at once.",
        "## BD-rates (PSNR, curve of means)",
        _bd_rates(summaries),
    ]
    if config.images == "kodak":
        parts += ["## Beside published curves, which were not measured here", _published(summaries)]
    return "\n\n".join([*parts, "## All settings", _points(summaries)]) + "\n"


def _bd_rates(summaries: Sequence[Summary]) -> str:
    curves = results.measured_curves(summaries)
    lines = [
        [
            name,
            FLAGS[name],
            f"{curve[0][0]:.3f}-{curve[-1][0]:.3f}",
            bd_rate_text(curves[ANCHOR], curve),
        ]
        for name, curve in curves.items()
    ]
    return markdown(["codec", "flags", "bpp", f"BD-rate against {ANCHOR}"], lines)


def _published(summaries: Sequence[Summary]) -> str:
    curves = results.measured_curves(summaries)
    published = results.published_curves(
        results.read_published(ROOT / "results" / "published" / "kodak.csv")
    )
    lines = [
        [name, other, bd_rate_text(published[other], curves[name])]
        for name, other in PUBLISHED.items()
    ]
    return markdown(["codec, measured", "published curve", "BD-rate of ours against it"], lines)


def _points(summaries: Sequence[Summary]) -> str:
    lines = [
        [
            s.codec, s.setting, f"{s.num_bytes:.0f}", f"{s.bpp:.4f}", f"{s.psnr:.2f}",
            "" if s.ssim is None else f"{s.ssim:.4f}",
            "" if s.ms_ssim is None else f"{s.ms_ssim:.4f}",
            f"{s.encode_seconds:.3f}", f"{s.decode_seconds:.3f}", FLAGS[s.codec],
        ]
        for s in summaries
    ]  # fmt: skip
    header = [
        "codec", "setting", "bytes", "bpp", "PSNR dB", "SSIM", "MS-SSIM", "encode s/image",
        "decode s/image", "flags",
    ]  # fmt: skip
    return markdown(header, lines)


@dataclass(frozen=True)
class Options(common.Options):
    """The command line. ``redraw``: only the table, from the rows that are there."""

    config: Config = Config()
    output: Path = ROOT / "results" / "classic_rd"
    redraw: bool = False


def main(options: Options) -> Path:
    """Read the images, run; returns the run folder."""
    config = SMOKE if options.smoke else options.config
    if options.redraw:
        folder = results.run_folder(options.output, config)
        report(config, folder, results.read_rows(folder / "rows.csv"))
    else:
        folder = run(config, common.named(config.images, options.data), options.output)
    return common.show(folder)


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
