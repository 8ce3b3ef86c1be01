"""Does a file have the size or the quality that was asked for, and what does the search cost?

Claim: --target-bpp is met within 2 %, --target-psnr within 0.1 dB, --max-bytes never exceeded, and
a search of latent-grid takes about four fits.
Command: python -m experiments.rate_control --data DIR    (DIR holds cid22/; or set INRJAX_DATA)
Minutes: about 45 of one core for latent-grid; with --codec meta-siren about 4 an image on two idle
    cores. A stopped run goes on: rows that exist are kept.
Expected: the table in results/rate_control/<config hash>/table.md.

Photographs that were held back from training. Every number is of a file that was decoded again.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import tyro

from experiments import common
from experiments.kodak_rd import ROOT, markdown, note_provenance
from inrjax import codecs, grids, metrics, ratecontrol, results
from inrjax.init import packaged_init, packaged_widths
from inrjax.machine import keep_buffers
from inrjax.types import Image

FIELDS: tuple[str, ...] = (
    "image",
    "target",
    "wanted",
    "reached",
    "met",
    "num_bytes",
    "fits",
    "seconds",
    "seconds_of_one",
)


@dataclass(frozen=True)
class Config:
    """What is asked of each picture. ``shared``: digest of the base, or of all inits, that both
    sides have, filled in when it runs; runs until 2026-11-29 have none."""

    codec: str = "latent-grid"
    bpp: tuple[float, ...] = (0.1, 0.2, 0.5)
    psnr: tuple[float, ...] = (28.0, 32.0)
    max_bytes: tuple[int, ...] = (3000, 10000)
    num_images: int = 6
    seed: int = 0
    images: tyro.conf.Suppress[str] = "cid22, held back"
    shared: tyro.conf.Suppress[str] = ""


SMOKE = Config(bpp=(1.0,), psnr=(30.0,), max_bytes=(400,), num_images=1, images="smoke")


def targets(config: Config) -> list[tuple[str, float, ratecontrol.Target]]:
    """(option, its value, what it means)."""
    return [
        *(("--target-bpp", value, ratecontrol.TargetBpp(value)) for value in config.bpp),
        *(("--target-psnr", value, ratecontrol.TargetPsnr(value)) for value in config.psnr),
        *(("--max-bytes", value, ratecontrol.MaxBytes(value)) for value in config.max_bytes),
    ]


def run(config: Config, images: Mapping[str, Image], root: Path) -> Path:
    """Measure, and write files.csv, provenance.json and table.md."""
    if config.codec not in ("latent-grid", "meta-siren"):
        raise SystemExit(f"got codec {config.codec!r}, expected latent-grid or meta-siren")
    config = replace(config, shared=_shared(config.codec))
    folder = results.run_folder(root, config)
    note_provenance(folder)
    path = folder / "files.csv"
    rows = _read(path)
    done = {(row["image"], row["target"], row["wanted"]) for row in rows}
    for name, image in images.items():
        missing = [t for t in targets(config) if (name, t[0], f"{t[1]:g}") not in done]
        if not missing:
            continue
        alone = _seconds_of_one(config, image)
        for option, value, target in missing:
            rows.append(_row(config, name, image, (option, value, target), alone))
            print(name, option, value, rows[-1]["reached"], flush=True)
            _write(path, rows)
    results.write_text(folder / "table.md", table(config, rows))
    return folder


def _shared(codec: str) -> str:
    if codec == "latent-grid":
        return grids.packaged_base().short_digest
    inits = b"".join(packaged_init(width).digest for width in packaged_widths())
    return hashlib.sha256(inits).hexdigest()[:8]


def _encode(
    config: Config, image: Image, target: ratecontrol.Target, fits: list[int]
) -> ratecontrol.Measured:
    """The file; ``fits`` grows with every fit of LatentGrid."""
    if config.codec == "latent-grid":
        codec = codecs.LatentGrid(seed=config.seed)
        return ratecontrol.encode_grid_to(image, target, codec, lambda done, _: fits.append(done))
    return ratecontrol.encode_to(
        image, target, codecs.MetaSiren(seed=config.seed), ratecontrol.packaged_model()
    )


def _seconds_of_one(config: Config, image: Image) -> float:
    """Wall seconds of one encode without a target, at the largest file there is; compiled."""
    codec: Any = (
        codecs.LatentGrid(codecs.latent_grid.CURVE_STEPS[0], seed=config.seed)
        if config.codec == "latent-grid"
        else codecs.MetaSiren(width=max(codecs.inr.WIDTHS), seed=config.seed)
    )
    codec.encode([image])
    start = perf_counter()
    codec.encode([image])
    return perf_counter() - start


def _row(config: Config, name: str, image: Image, asked: Any, alone: float) -> dict[str, str]:
    option, value, target = asked
    start, fits = perf_counter(), list[int]()
    try:
        made, met = _encode(config, image, target, fits), True
    except ratecontrol.UnreachableError as error:
        made, met = error.nearest, False
    seconds = perf_counter() - start
    bpp = metrics.bpp(len(made.stream), *image.shape[:2])
    reached = {"--target-bpp": bpp, "--target-psnr": made.psnr}.get(option, len(made.stream))
    values = (
        name, option, f"{value:g}", f"{reached:.6g}", str(met), str(len(made.stream)),
        str(len(fits) or ""),
    )  # fmt: skip
    return dict(zip(FIELDS, (*values, f"{seconds:.2f}", f"{alone:.2f}"), strict=True))


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    results.write_text(path, buffer.getvalue())


def table(config: Config, rows: Sequence[Mapping[str, str]]) -> str:
    """For each target: how far off, how often refused, and what it cost."""
    lines = []
    for option, value, _ in targets(config):
        own = [r for r in rows if r["target"] == option and r["wanted"] == f"{value:g}"]
        met = [row for row in own if row["met"] == "True"]
        errors = [float(row["reached"]) - value for row in met]
        if option != "--target-psnr":
            errors = [100 * error / value for error in errors]
        unit = " dB" if option == "--target-psnr" else " %"
        worst = f"{min(errors):+.2f} to {max(errors):+.2f}{unit}" if errors else ""
        ratio = fmean(float(row["seconds"]) / float(row["seconds_of_one"]) for row in own)
        fits = (
            f"{fmean(int(row['fits']) for row in own):.1f}" if all(r["fits"] for r in own) else ""
        )
        asked = f"{option} {value:g}"
        lines.append([asked, str(len(own)), str(len(met)), worst, fits, f"{ratio:.1f}"])
    header = [
        "asked", "pictures", "met", "reached less asked", "fits",
        "seconds, of one encode at the top rate",
    ]  # fmt: skip
    return (
        f"# Rate control of {config.codec}, {len({row['image'] for row in rows})} images "
        f"({config.images}), seed {config.seed}\n\nWhat was not met was refused, with the nearest "
        "file there is.\n\n" + markdown(header, lines) + "\n"
    )


@dataclass(frozen=True)
class Options(common.Options):
    """The command line."""

    config: Config = Config()
    output: Path = ROOT / "results" / "rate_control"


def main(options: Options) -> Path:
    """Set one device a core, read the images, run; returns the run folder."""
    config = SMOKE if options.smoke else options.config
    if config.codec == "meta-siren":
        from inrjax import fit

        fit.use_every_core()
    else:
        keep_buffers()
    images = common.pictures(options, slice(config.num_images))
    return common.show(run(config, images, options.output))


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
