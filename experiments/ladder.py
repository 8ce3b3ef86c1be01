"""The ladder of codecs that overfit a picture, from COIN to latents under learned nets: one table.

Claim: LatentGrid needs at least 45 % fewer bytes than optimised JPEG, and 20 % fewer than the
published curve of Strümpler et al. (meta-learned), by BD-rate on all 24 Kodak images; MetaSiren,
whose file is a network's weights, meets the first.
Command: python -m experiments.ladder      (reads results/; measures nothing)
Minutes: under 1.
Expected: results/ladder/kodak/: table.md, rows.csv (an image a line), rd.png and rd_low.png.

Every rung is a codec whose rows another experiment measured; each is taken from the newest
complete run that has it (``--runs`` names others). What compares with published curves stands in a
column of its own. Side bytes are counted in the coded streams, which stay with whoever ran the
experiment; where they are gone, those of the last table remain (side_bytes.json).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import tyro

from experiments.figures import numbers
from experiments.figures.source import ANCHOR, LABELS, date_of, is_complete
from experiments.figures.tables import RATES
from experiments.kodak_rd import PUBLISHED, ROOT, markdown
from inrjax import bitstream, context, grids, plots, results
from inrjax.evaluate import row_stream_path
from inrjax.init import Init, find_init
from inrjax.nets.latent_grid import LatentGridNet
from inrjax.nets.siren import Encoding, Siren
from inrjax.published import KODAK_RD, curves_to_show
from inrjax.results import Summary
from inrjax.types import BitstreamError, RDPoint

EXPERIMENTS = ("kodak_rd", "grid_rd", "strumpler", "classic_rd")
"""Whose runs are looked through, in this order."""

NETWORKS = ("coin", "strumpler-basic", "strumpler-meta", "meta-siren")
"""Codecs whose file is a coordinate network, from the oldest."""

RUNGS = (*NETWORKS, "latent-grid")
"""Codecs that overfit a picture; the last one's file is latents on grids."""

CLASSIC = ("jpeg", ANCHOR, "jpeg-mozjpeg", "jpeg2000", "webp", "jpeg-xl", "hevc", "avif", "vvc")
"""Codecs that they are measured beside."""

STRUMPLER = "Strumpler meta-learned (7 bit)"
LOW_RATE = (0.0, 0.2)


class Found(NamedTuple):
    """A codec's rows, the run they come from, and that run's config."""

    run: Path
    rows: list[RDPoint]
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Ladder:
    """What the table is made of. ``images``: the set, as the runs' configs name it."""

    root: Path
    images: str = "kodak"
    runs: tuple[Path, ...] = ()

    @cached_property
    def found(self) -> dict[str, Found]:
        """By codec, in the order of the table; a codec that no run has is left out."""
        taken: dict[str, Found] = {}
        for run in self._folders():
            config = json.loads((run / "config.json").read_text("utf-8"))
            if config.get("images") != self.images:
                continue
            by_codec: dict[str, list[RDPoint]] = {}
            for row in results.read_rows(run / "rows.csv"):
                by_codec.setdefault(row.codec, []).append(row)
            for name, rows in by_codec.items():
                taken.setdefault(name, Found(run, rows, config))
        return {name: taken[name] for name in (*RUNGS, *CLASSIC) if name in taken}

    def _folders(self) -> list[Path]:
        """Named runs first, then the newest of each experiment, then its older ones."""
        folders = list(self.runs)
        for experiment in EXPERIMENTS:
            complete = [p for p in self.root.glob(f"{experiment}/*/") if is_complete(p)]
            folders += sorted(complete, key=date_of, reverse=True)
        return folders

    @cached_property
    def rows(self) -> list[RDPoint]:
        """All measured rows."""
        return [row for found in self.found.values() for row in found.rows]

    @cached_property
    def summaries(self) -> dict[str, list[Summary]]:
        """Means by codec, in the order of bpp."""
        return {
            name: sorted(results.summarise(found.rows), key=lambda s: s.bpp)
            for name, found in self.found.items()
        }


# ---------------------------------------------------------------------------- what a decoder needs


def net_of(codec: str, setting: str, inits: Mapping[int, Init]) -> Siren:
    """The network that a rung's files hold; ``inits``: by width, those that the run started from.

    Raises ValueError for a codec that is no rung.
    """
    fields = dict(part.split("=", 1) for part in setting.split("_"))
    width = int(fields["width"])
    if codec == "coin":
        return Siren(width, int(fields["depth"]))
    if codec == "strumpler-basic":
        return Siren(width, 4, encoding=Encoding())
    if codec in NETWORKS:
        return inits[width].net
    raise ValueError(f"got codec {codec!r}, expected one of {', '.join(NETWORKS)}")


def multiplications(net: Siren) -> int:
    """Multiply-accumulates that a pixel takes, the encoding's sines left out: it is computed once
    for each row and column."""
    return sum(prod(layer["weight"]) for layer in net.shapes().values())


def inits_of(config: Mapping[str, Any]) -> dict[int, Init]:
    """The inits that a run's config names by the start of their digest, by width."""
    found = [find_init(bytes.fromhex(digest)) for digest in config.get("inits", ())]
    return {init.net.width: init for init in found if init is not None}


def side_bytes(found: Found, summary: Summary) -> float | None:
    """Mean bytes of a setting's streams beside the coded params, None where a stream is gone."""
    sizes = []
    for row in (row for row in found.rows if row.setting == summary.setting):
        path = row_stream_path(found.run, row.codec, row.setting, row.image, ".inr")
        try:
            data = path.read_bytes()
            sizes.append(len(data) - len(bitstream.peek(data).sections[-1]))
        except (FileNotFoundError, BitstreamError):
            return None
    return fmean(sizes)


def pixel_steps(codec: str, setting: str, config: Mapping[str, Any]) -> int | None:
    """Steps of the fit times the pixels of each, as the run's config has them."""
    fields = dict(part.split("=", 1) for part in setting.split("_"))
    points = config.get("coin_points_per_step" if codec == "coin" else "points_per_step")
    return None if points is None else int(fields["steps"]) * int(points)


# ---------------------------------------------------------------------------- the table


def table(ladder: Ladder, sides: Mapping[str, float]) -> str:
    """Rates, qualities and costs of every codec; then each setting of the rungs."""
    curves = {n: [(s.bpp, s.psnr) for s in group] for n, group in ladder.summaries.items()}
    count = len({row.image for row in ladder.rows})
    return "\n\n".join(
        [
            f"# The ladder on {ladder.images}: {count} images, from files",
            "Mean of the images' PSNRs at equal bpp, interpolated by PCHIP in log rate and never "
            "extrapolated; BD-rate of the curves of means with a 95 % bootstrap interval over "
            "images. Seconds are wall seconds an image, of a batch of all, on a machine that other "
            "work may have shared. The last column compares a measured curve with a published one.",
            _curves_table(ladder, curves),
            "## Each setting of the networks",
            _settings_table(ladder, sides),
            "## Each setting of latent grids",
            _grids_table(ladder, sides),
            "## Where the rows come from",
            markdown(
                ["codec", "run"],
                [[name, f"{f.run.parent.name}/{f.run.name}"] for name, f in ladder.found.items()],
            ),
        ]
    ) + "\n"  # fmt: skip


def _curves_table(ladder: Ladder, curves: Mapping[str, numbers.Curve]) -> str:
    theirs = results.published_curves(results.read_published(PUBLISHED))[STRUMPLER]
    lines = []
    for name, group in ladder.summaries.items():
        found = None
        if name != ANCHOR and ANCHOR in ladder.found:
            found = numbers.bd_rate_with_interval(ladder.rows, ANCHOR, name)
        published = numbers.bd_rate(theirs, curves[name]) if ladder.images == "kodak" else None
        at_rates = [numbers.at_rate(curves[name], rate) for rate in RATES]
        lines.append(
            [
                name,
                *("" if value is None else f"{value:.2f}" for value in at_rates),
                _with_interval(found),
                _span([s.encode_seconds for s in group]),
                _span([s.decode_seconds for s in group]),
                ""
                if published is None
                else f"{published.percent:+.1f} ({published.low_db:.1f}-{published.high_db:.1f})",
            ]
        )
    header = [
        "codec", *(f"dB at {rate} bpp" for rate in RATES),
        "BD-rate %, against optimised JPEG (interval; over dB)", "encode s", "decode s",
        f"against published: BD-rate %, {LABELS[STRUMPLER]} (over dB)",
    ]  # fmt: skip
    return markdown(header, lines)


def _with_interval(found: Any) -> str:
    if found is None:
        return ""
    value, low, high = found.of_means
    interval = "" if low is None else f"{low:+.1f} to {high:+.1f}; "
    return f"{value:+.1f} ({interval}{found.low:.1f}-{found.high:.1f})"


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g}-{high:.2g}"


def _settings_table(ladder: Ladder, sides: Mapping[str, float]) -> str:
    lines = []
    for name in (name for name in NETWORKS if name in ladder.found):
        found = ladder.found[name]
        inits = inits_of(found.config)
        for s in ladder.summaries[name]:
            net = net_of(name, s.setting, inits)
            steps = pixel_steps(name, s.setting, found.config)
            side = sides.get(f"{name} {s.setting}")
            is_shared = name in ("strumpler-meta", "meta-siren")
            lines.append(
                [
                    name, s.setting, f"{s.num_bytes:.0f}", f"{s.bpp:.4f}", f"{s.psnr:.2f}",
                    "" if steps is None else f"{steps / 1e6:.1f}",
                    f"{multiplications(net) / 1000:.1f}",
                    f"{8 * s.num_bytes / net.num_params:.2f}",
                    "" if side is None else f"{side:.0f}",
                    str(inits[net.width].shared_bytes) if is_shared else "0",
                    f"{s.encode_seconds:.1f}", f"{s.decode_seconds:.3f}",
                ]
            )  # fmt: skip
    header = [
        "codec", "setting", "bytes", "bpp", "PSNR dB", "million pixel-steps",
        "decoder kMAC a pixel", "bits a param", "side bytes", "bytes of the shared init",
        "encode s", "decode s",
    ]  # fmt: skip
    return markdown(header, lines)


def grid_multiplications(net: LatentGridNet) -> tuple[float, float]:
    """Multiply-accumulates a pixel: of the synthesis, and of the context models."""
    synthesis, models = 9.0, 0.0
    for level in range(net.levels):
        share = 4.0 ** -(level + 1)
        shapes = net.shapes()[f"level{level}"]
        weights = sum(prod(shape) for shape in shapes.values() if len(shape) > 1)
        synthesis += share * (weights + _BOX)
        for component in range(net.components(level)):
            parts = context.shapes(net)[f"level{level}_{component}"]
            models += share * sum(prod(shape) for shape in parts.values() if len(shape) > 1)
    return synthesis, models


_BOX = 27  # the mean of 3 x 3, of three components


def _grids_table(ladder: Ladder, sides: Mapping[str, float]) -> str:
    """As `_settings_table`, of codecs whose file is latents."""
    lines = []
    found = ladder.found.get("latent-grid")
    for s in ladder.summaries.get("latent-grid", ()):
        assert found is not None
        base = grids.find_base(bytes.fromhex(found.config["base"]))
        if base is None:
            continue
        rows = [row for row in found.rows if row.setting == s.setting]
        pixels = fmean(row.height * row.width for row in rows)
        latents = fmean(
            sum(prod(shape) for shape in base.net.latent_shapes(row.height, row.width))
            for row in rows
        )
        side = sides.get(f"latent-grid {s.setting}")
        synthesis, models = grid_multiplications(base.net)
        lines.append(
            [
                s.setting, f"{s.num_bytes:.0f}", f"{s.bpp:.4f}", f"{s.psnr:.2f}",
                f"{found.config['iterations'] * pixels / 1e6:.1f}",
                f"{synthesis / 1000:.2f} + {models / 1000:.2f}",
                f"{8 * s.num_bytes / latents:.3f}", "" if side is None else f"{side:.0f}",
                str(base.shared_bytes), f"{s.encode_seconds:.1f}", f"{s.decode_seconds:.2f}",
            ]
        )  # fmt: skip
    header = [
        "setting", "bytes", "bpp", "PSNR dB", "million pixel-steps",
        "decoder kMAC a pixel: synthesis + context models", "bits a latent", "side bytes",
        "bytes of the shared base", "encode s", "decode s",
    ]  # fmt: skip
    return markdown(header, lines)


# ---------------------------------------------------------------------------- the files


def write(ladder: Ladder, folder: Path) -> Path:
    """The table, the rows of the rungs and the figures; ValueError if no run has MetaSiren."""
    if "meta-siren" not in ladder.found:
        raise ValueError(
            f"{ladder.root} has no complete run of MetaSiren on {ladder.images}: run "
            "`python -m experiments.kodak_rd` first"
        )
    folder.mkdir(parents=True, exist_ok=True)
    sides = _all_side_bytes(ladder, folder / "side_bytes.json")
    rungs = [row for name in RUNGS if name in ladder.found for row in ladder.found[name].rows]
    results.write_rows(folder / "rows.csv", rungs)
    results.write_text(folder / "table.md", table(ladder, sides))
    draw(ladder, folder / "rd", (0.0, 0.7))
    draw(ladder, folder / "rd_low", LOW_RATE)
    return folder


def _all_side_bytes(ladder: Ladder, path: Path) -> dict[str, float]:
    """Counted anew where the streams are there, else as last counted; kept in a file."""
    sides: dict[str, float] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for name in (name for name in RUNGS if name in ladder.found):
        for summary in ladder.summaries[name]:
            counted = side_bytes(ladder.found[name], summary)
            if counted is not None:
                sides[f"{name} {summary.setting}"] = counted
    results.write_json(path, sides)
    return sides


def draw(ladder: Ladder, path: Path, bpp_range: tuple[float, float]) -> None:
    """The rate-distortion figure of all measured codecs and the published networks."""
    curves = results.published_curves(results.read_published(PUBLISHED))
    shown = curves_to_show(curves, KODAK_RD) if ladder.images == "kodak" else ({}, {})
    summaries: Iterable[Summary] = (s for group in ladder.summaries.values() for s in group)
    measured = results.measured_curves(summaries)
    front = [name for name in ("meta-siren", "latent-grid") if name in measured]
    measured = {n: c for n, c in measured.items() if n not in front} | {
        name: measured[name] for name in front
    }
    plots.save(plots.rd_figure(measured, *shown, bpp_range=bpp_range), path)


@dataclass(frozen=True)
class Options:
    """The command line. ``runs``: run folders to take first."""

    root: Path = ROOT / "results"
    images: str = "kodak"
    runs: tuple[Path, ...] = ()
    output: Path = field(default=ROOT / "results" / "ladder")


def main(options: Options) -> Path:
    """Write the ladder of an image set; returns its folder."""
    ladder = Ladder(options.root, options.images, options.runs)
    folder = write(ladder, options.output / options.images.split(",")[0].replace(" ", "_"))
    print((folder / "table.md").read_text("utf-8"))
    return folder


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
