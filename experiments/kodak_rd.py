"""Does a photograph fitted by a SIREN take fewer bytes than JPEG, on Kodak, from real files?

Claim: MetaSiren saves at least 35 % of optimised JPEG's bytes (BD-rate, curve of means), fitting
all 24 images at six widths in at most 75 minutes on 2 cores.
Command: python -m experiments.kodak_rd --data DIR     (DIR holds kodak/; or set INRJAX_DATA)
    and the same with --images cid22-held-back or --images clic2025 --max-images 6; as
    --preset best does: --num-steps 24000 --search-steps 48 --widths 24 32 48 64 --coin-shapes;
    COIN alone: --widths --jpeg-qualities --jpeg2000-ratios --webp-qualities
Minutes: about 90 on 2 cores, 26 of them COIN's. Stopped at any time, it goes on where it was.
Expected: the table in results/kodak_rd/<config hash>/table.md.

Every number comes from a file that another process decoded. Nothing was trained on Kodak, and no
default was chosen on it. ``--smoke`` runs the same on small crops of packaged photographs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from time import perf_counter

import tyro

from experiments import common
from inrjax import (
    codecs,
    compare,
    machine,
    optimizers,
    overfit,
    plots,
    published,
    results,
)
from inrjax.codecs import classic
from inrjax.evaluate import evaluate
from inrjax.images import write_image
from inrjax.init import packaged_init
from inrjax.results import Summary
from inrjax.types import Codec, Image, RDPoint

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "results" / "published" / "kodak.csv"
COIN_PUBLISHED = {
    (20, 5): (0.0736, 23.21),
    (30, 5): (0.1604, 24.64),
    (28, 10): (0.3074, 26.41),
    (40, 10): (0.6109, 28.41),
    (49, 13): (1.209, 30.64),
}
"""(width, depth) -> (bpp, mean PSNR in dB), 50,000 full-image steps (Dupont et al. 2021)."""


@dataclass(frozen=True)
class Config:
    """What is measured. ``images``: kodak, cid22-held-back or clic2025; ``max_images``: of them, in
    order; earlier runs have all of Kodak. ``learning_rate``: of MetaSiren's Muon; COIN's is its
    codec's. ``inits``: digests of the packaged inits, filled in when it runs."""

    widths: tuple[int, ...] = (24, 32, 48, 64, 80, 104)
    num_steps: int = codecs.MetaSiren.num_steps
    search_steps: int = codecs.MetaSiren.search_steps
    coin_shapes: tuple[tuple[int, int], ...] = tuple(COIN_PUBLISHED)
    coin_steps: int = codecs.Coin.num_steps
    coin_points_per_step: int = 12_288
    jpeg_qualities: tuple[int, ...] = classic.JPEG_QUALITIES
    jpeg2000_ratios: tuple[float, ...] = classic.JPEG2000_RATIOS
    webp_qualities: tuple[int, ...] = classic.WEBP_QUALITIES
    slope: float = codecs.MetaSiren.slope
    learning_rate: float = overfit.LEARNING_RATE
    points_per_step: int = overfit.POINTS_PER_STEP
    seed: int = 0
    images: common.SetName = "kodak"
    max_images: int = 24
    inits: tyro.conf.Suppress[tuple[str, ...]] = ()


SMOKE = Config(
    widths=(32,), num_steps=20, coin_shapes=((20, 5),), coin_steps=20,
    jpeg_qualities=(1, 10, 30), jpeg2000_ratios=(120, 40), webp_qualities=(0, 30), images="smoke",
)  # fmt: skip


def build_codecs(config: Config) -> list[Codec]:
    """Every codec at every rate, the quick ones first."""
    points = config.coin_points_per_step
    return [
        *(codecs.Jpeg(q, optimize=False) for q in config.jpeg_qualities),
        *(codecs.Jpeg(q, optimize=True) for q in config.jpeg_qualities),
        *(codecs.Jpeg2000(r) for r in config.jpeg2000_ratios),
        *(codecs.WebP(q) for q in config.webp_qualities),
        *(meta_siren(config, width) for width in config.widths),
        *(
            codecs.Coin(w, d, config.coin_steps, config.seed, points_per_step=points)
            for w, d in config.coin_shapes
        ),
    ]


def meta_siren(config: Config, width: int) -> codecs.MetaSiren:
    """Of one width."""
    return codecs.MetaSiren(
        width=width,
        num_steps=config.num_steps,
        seed=config.seed,
        slope=config.slope,
        optimizer=optimizers.Muon(config.learning_rate),
        points_per_step=config.points_per_step,
        search_steps=config.search_steps,
    )


def run(config: Config, images: Mapping[str, Image], root: Path) -> Path:
    """Measure, and write rows.csv, provenance.json, cost.json, table.md and the figure."""
    config = with_inits(config)
    folder = results.run_folder(root, config)
    note_provenance(folder)
    before = _num_rows(folder)
    rows = evaluate(
        build_codecs(config),
        images,
        folder,
        batch_size=len(images),
        on_progress=common.print_progress(),
    )
    if before == 0:  # this process fitted every batch, so the memory it took is theirs
        update_costs(folder, {"peak_memory_batch_gib": machine.peak_memory() / 2**30})
    if config.widths:
        measure_costs(config, images, folder)
    report(config, folder, rows)
    return folder


def with_inits(config: Config) -> Config:
    """The config with the digests of the packaged inits that it uses."""
    digests = tuple(packaged_init(width).short_digest for width in config.widths)
    return replace(config, inits=digests)


def note_provenance(folder: Path) -> None:
    """Add this process to provenance.json, before anything is measured."""
    results.note_provenance(folder, results.provenance(results.jax_device()))


def report(config: Config, folder: Path, rows: Sequence[RDPoint]) -> None:
    """table.md and the figure, from rows and cost.json alone."""
    path = folder / "cost.json"
    costs = json.loads(path.read_text("utf-8")) if path.exists() else {}
    summaries = results.summarise(rows)
    results.write_text(folder / "table.md", table(config, rows, summaries, costs))
    draw(summaries, folder / "rd", config.images == "kodak")


def _num_rows(folder: Path) -> int:
    path = folder / "rows.csv"
    return len(results.read_rows(path)) if path.exists() else 0


# ---------------------------------------------------------------------------- one alone, cold


def measure_costs(config: Config, images: Mapping[str, Image], folder: Path) -> None:
    """One image alone through the command line, each verb in a fresh process: wall seconds and
    peak memory, into cost.json; of encoding only where it has options for the config. A resumed run
    does not measure them again."""
    path = folder / "cost.json"
    if path.exists() and "decode_cold_seconds" in json.loads(path.read_text("utf-8")):
        return
    image = next(iter(images.values()))
    width = 32 if 32 in config.widths else config.widths[0]
    costs: dict[str, float] = {"width": width}
    options = encode_options(config, width)
    with tempfile.TemporaryDirectory() as temporary:
        photo, stream, decoded = (Path(temporary, n) for n in ("a.png", "a.inr", "b"))
        write_image(photo, image)
        if options is None:
            stream.write_bytes(meta_siren(config, width).encode([image])[0])
        else:
            seconds, memory = time_cli(["encode", str(photo), "-o", str(stream), *options])
            costs |= {"encode_alone_seconds": seconds, "peak_memory_encode_gib": memory}
        decode = [time_cli(["decode", str(stream), "-o", f"{decoded}{i}.png"]) for i in range(3)]
    costs["decode_cold_seconds"] = sorted(decode)[1][0]
    costs["peak_memory_decode_gib"] = max(memory for _, memory in decode)
    update_costs(folder, costs)


def encode_options(config: Config, width: int) -> list[str] | None:
    """Of `inrjax encode`, those that make MetaSiren's files of the config; None if it has none."""
    plain, without_option = Config(), ("slope", "learning_rate", "points_per_step")
    if any(getattr(config, name) != getattr(plain, name) for name in without_option):
        return None
    presets = {steps: name for name, steps in codecs.inr.PRESETS.items()}
    preset = presets.get((config.num_steps, config.search_steps))
    if preset is None and config.search_steps:
        return None
    length = ["--preset", preset] if preset else ["--steps", str(config.num_steps)]
    return ["--width", str(width), "--seed", str(config.seed), *length]


def update_costs(folder: Path, costs: Mapping[str, float]) -> None:
    """Add to cost.json."""
    path = folder / "cost.json"
    earlier = json.loads(path.read_text("utf-8")) if path.exists() else {}
    results.write_json(path, earlier | dict(costs))


def time_cli(arguments: Sequence[str], cache: Path | None = None) -> tuple[float, float]:
    """Wall seconds and peak memory in GiB of one command line in a fresh process, which says itself
    what it held: the system adds what this one holds. ``cache`` is where compiled programs are
    kept, the user's own folder without it.

    Raises RuntimeError with what the command said if it fails.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if cache is not None:
        environment["INRJAX_CACHE"] = str(cache)
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # it would go before
    start = perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    seconds = perf_counter() - start
    if done.returncode:
        raise RuntimeError(
            f"inrjax {' '.join(arguments)} ended with exit code {done.returncode}: {done.stderr}"
        )
    return seconds, int(done.stdout.splitlines()[-1]) / 2**30


_COMMAND = """
import sys
from inrjax import cli, machine
code = cli.main(sys.argv[1:])
print(machine.peak_memory())
sys.exit(code)
"""


# ---------------------------------------------------------------------------- tables, figure


def table(
    config: Config,
    rows: Sequence[RDPoint],
    summaries: Sequence[Summary],
    costs: Mapping[str, float],
) -> str:
    """All measured numbers as Markdown; published ones in columns of their own."""
    is_kodak = config.images in ("kodak", "smoke")  # COIN's published numbers are Kodak's
    coin = f"COIN {config.coin_steps} steps of {config.coin_points_per_step} pixels of Muon (as "
    coin = f"{coin}published: 50,000 full-image steps of Adam); " if config.coin_shapes else ""
    search = f", then {config.search_steps} of a search for better roundings"
    search = search if config.search_steps else ""
    siren = f"MetaSiren {config.num_steps} steps of {config.points_per_step} pixels of Muon{search}"
    siren = f"{siren}; " if config.widths else ""
    parts = [
        f"# Rate and distortion on {config.images}, from files",
        f"{len({r.image for r in rows})} images; seed {config.seed}; {siren}{coin}PSNR is the "
        "mean of the images' PSNRs, the PSNR of the mean error beside it. Bytes are whole files; "
        "what a decoder shares beside them (the init) is in its own column.",
        _points(summaries),
        *(("## BD-rate of MetaSiren", _bd_rates(config, rows, summaries)) if config.widths else ()),
        *(_coin(config, summaries) if config.coin_shapes and is_kodak else ()),
        *(("## Cost", _costs(rows, costs)) if config.widths else ()),
    ]
    return "\n\n".join(parts) + "\n"


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines)
    )


def _points(summaries: Sequence[Summary]) -> str:
    lines = [
        [
            s.codec, s.setting, f"{s.num_bytes:.0f}", f"{s.bpp:.4f}", f"{s.psnr:.2f}",
            f"{s.psnr_of_mean_mse:.2f}",
            "" if s.ssim is None else f"{s.ssim:.4f}",
            "" if s.ms_ssim is None else f"{s.ms_ssim:.4f}",
            f"{s.encode_seconds:.2f}", f"{s.decode_seconds:.3f}", _shared_bytes(s),
        ]
        for s in summaries
    ]  # fmt: skip
    header = [
        "codec", "setting", "bytes", "bpp", "PSNR dB", "PSNR of mean MSE", "SSIM", "MS-SSIM",
        "encode s/image", "decode s/image", "shared bytes",
    ]  # fmt: skip
    return markdown(header, lines)


def _shared_bytes(summary: Summary) -> str:
    if summary.codec != "meta-siren":
        return "0"
    width = int(summary.setting.split("_")[0].removeprefix("width="))
    return str(packaged_init(width).shared_bytes)


def _bd_rates(config: Config, rows: Sequence[RDPoint], summaries: Sequence[Summary]) -> str:
    curves = results.measured_curves(summaries)
    by_codec = {name: [row for row in rows if row.codec == name] for name in curves}
    ours = curves["meta-siren"]
    lines = []
    for anchor in (name for name in curves if name != "meta-siren"):
        images = compare.bd_rates_of_images(by_codec[anchor], by_codec["meta-siren"])
        mean = f"{fmean(images.values()):+.1f} % ({len(images)} images)" if images else "no overlap"
        lines.append(
            [
                anchor,
                bd_rate_text(curves[anchor], ours),
                mean,
                bd_rate_text(curves[anchor], ours, (26, 32)),
            ]
        )
    header = [
        "anchor, measured", "curve of means", "mean of per-image BD-rates",
        "curve of means, what it covers of 26-32 dB",
    ]  # fmt: skip
    if config.images != "kodak":
        return markdown(header, lines)
    theirs = results.published_curves(results.read_published(PUBLISHED))
    other = markdown(
        ["anchor, published (not measured here)", "BD-rate of our measured curve against it"],
        [[name, bd_rate_text(theirs[name], ours)] for name in published.KODAK_RD],
    )
    return markdown(header, lines) + "\n\n" + other


def bd_rate_text(
    anchor: compare.Points, curve: compare.Points, interval: compare.Interval | None = None
) -> str:
    """BD-rate with the range of PSNR it covers: the common one, cut to the interval in dB."""
    try:
        rate = compare.bd_rate_of_curves(anchor, curve, interval)
    except ValueError:  # no common range, or the single rate of a smoke test
        return "no overlap"
    return f"{rate.percent:+.1f} % ({rate.low_db:.1f}-{rate.high_db:.1f} dB)"


def _coin(config: Config, summaries: Sequence[Summary]) -> list[str]:
    measured = {s.setting: s for s in summaries if s.codec == "coin"}
    lines = []
    for width, depth in config.coin_shapes:
        s = measured[codecs.Coin(width, depth, config.coin_steps).setting]
        known = COIN_PUBLISHED.get((width, depth))
        theirs = (f"{known[0]:.4f}", f"{known[1]:.2f}") if known else ("", "")
        lines.append([f"{depth}x{width}", f"{s.bpp:.4f}", f"{s.psnr:.2f}", *theirs])
    header = [
        "layers x width", "bpp measured", f"PSNR measured, {config.coin_steps} steps",
        "bpp published", "PSNR published, 50,000 steps",
    ]  # fmt: skip
    return ["## COIN, measured and published", markdown(header, lines)]


def _costs(rows: Sequence[RDPoint], costs: Mapping[str, float]) -> str:
    ours = [row for row in rows if row.codec == "meta-siren"]
    minutes = sum(row.encode_seconds for row in ours) / 60
    slowest = max(row.encode_seconds for row in ours)
    lines: list[list[str]] = []
    if "encode_alone_seconds" in costs:
        lines.append(
            [f"encode one image alone, width {costs['width']:.0f}, cold command, wall",
             f"{costs['encode_alone_seconds']:.1f} s, {costs['peak_memory_encode_gib']:.2f} GiB"]
        )  # fmt: skip
    lines += [
        ["decode one image, cold command, wall (median of 3)",
         f"{costs['decode_cold_seconds']:.2f} s, {costs['peak_memory_decode_gib']:.2f} GiB"],
        ["MetaSiren in a batch of all images, slowest width, wall / images", f"{slowest:.1f} s"],
        ["MetaSiren, whole curve, wall", f"{minutes:.1f} min"],
    ]  # fmt: skip
    if "peak_memory_batch_gib" in costs:
        lines.append(
            ["fitting the batches, peak memory", f"{costs['peak_memory_batch_gib']:.2f} GiB"]
        )
    return markdown(["what", "measured"], lines)


def draw(summaries: Sequence[Summary], path: Path, with_published: bool) -> None:
    """The rate-distortion figure, png and pdf."""
    curves = results.published_curves(results.read_published(PUBLISHED)) if with_published else {}
    shown = published.curves_to_show(curves, published.KODAK_RD)
    figure = plots.rd_figure(
        results.measured_curves(summaries),
        *shown,
        bpp_range=(0.0, 0.7) if with_published else None,
        psnr_range=(21.0, 34.0) if with_published else None,
    )
    plots.save(figure, path)


# ---------------------------------------------------------------------------- the command line


@dataclass(frozen=True)
class Options(common.Options):
    """The command line. ``redraw``: only table and figure, from the rows that are there."""

    config: Config = Config()
    output: Path = ROOT / "results" / "kodak_rd"
    redraw: bool = False


def main(options: Options) -> Path:
    """Set one device a core, read the images, run; returns the run folder."""
    from inrjax import fit

    fit.use_every_core()
    with common.exit_with_a_sentence():
        config = with_inits(SMOKE if options.smoke else options.config)
        rows = _rows_to_redraw(options.output, config) if options.redraw else None
    if rows is not None:
        folder = results.run_folder(options.output, config)
        report(config, folder, rows)
    else:
        images = common.named(config.images, options.data, config.max_images)
        folder = run(config, images, options.output)
    return common.show(folder)


def _rows_to_redraw(root: Path, config: Config) -> list[RDPoint]:
    path = root / results.config_hash(config) / "rows.csv"
    if not path.exists():
        raise ValueError(f"{path} is not there: run the same command without --redraw first")
    return results.read_rows(path)


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
