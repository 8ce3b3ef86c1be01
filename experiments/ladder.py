"""The ladder of codecs that overfit a picture, from COIN to latents under learned nets: one table.

Claim: LatentGrid needs at least 45 % fewer bytes than optimised JPEG, and 20 % fewer than the
published curve of Strümpler et al. (meta-learned), by BD-rate on all 24 Kodak images; MetaSiren,
whose file is a network's weights, meets the first.
Command: python -m experiments.ladder      (reads results/; measures nothing)
    and the same with --images cid22-held-back or --images clic2025
Minutes: under 1.
Expected: results/ladder/<images>/: table.md, rows.csv (an image a line), rd.png and rd_low.png.

Every rung is a codec whose rows another experiment measured; each is taken from the newest
complete run that has it (``--runs`` names others). What compares with published curves stands in a
column of its own. Side bytes are counted in the coded streams, which stay with whoever ran the
experiment; where they are gone, those of the last table remain (side_bytes.json).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import tyro

from experiments import common
from experiments.figures import numbers
from experiments.figures.source import (
    ANCHOR,
    LABELS,
    LATENT_GRID,
    LATENT_GRID_EQUAL,
    METASIREN,
    METASIREN_BEST,
    MODULATED,
    PRODUCT,
    STRUMPLER,
    STRUMPLER_MUON,
    Found,
    find_codecs,
    ours_last,
)
from experiments.figures.tables import RATES
from experiments.kodak_rd import PUBLISHED, ROOT, markdown
from inrjax import bitstream, context, grids, overfit, plots, results
from inrjax.evaluate import row_stream_path
from inrjax.init import Init, find_init
from inrjax.metrics import BDRate
from inrjax.nets.latent_grid import LatentGridNet
from inrjax.nets.siren import Encoding, Siren
from inrjax.published import KODAK_RD, curves_to_show
from inrjax.results import Summary
from inrjax.types import BitstreamError, RDPoint

OWN_NETWORKS = (METASIREN, METASIREN_BEST)
"""MetaSiren's curves."""

NETWORKS = ("coin", *STRUMPLER, *STRUMPLER_MUON, PRODUCT, *OWN_NETWORKS)
"""Codecs whose file is a coordinate network."""

GRIDS = (LATENT_GRID, LATENT_GRID_EQUAL)
"""LatentGrid's curves: one step size for all pictures, and about the same bpp for all."""

RUNGS = (*NETWORKS[: -len(OWN_NETWORKS)], MODULATED, *OWN_NETWORKS, *GRIDS)
"""Codecs that overfit a picture, ours last; `MODULATED`'s file is latents of a network's patches,
that of `GRIDS` latents on grids."""

CLASSIC = ("jpeg", ANCHOR, "jpeg-mozjpeg", "jpeg2000", "webp", "jpeg-xl", "hevc", "avif", "vvc")
"""Codecs that they are measured beside."""

NOT_DRAWN = ("strumpler-basic-7bit", "strumpler-basic-muon")
"""Rungs that the figures leave out, between others of the same net; the table has them."""

PUBLISHED_ANCHOR = "Strumpler meta-learned (7 bit)"
MIDDLE = (26.0, 32.0)
"""dB over which the goal beside the best published coordinate networks is set."""

LOW_RATE = (0.0, 0.2)


@dataclass(frozen=True)
class Ladder:
    """What the table is made of. ``images``: the set, as the runs' configs name it."""

    root: Path
    images: str = "kodak"
    runs: tuple[Path, ...] = ()

    @cached_property
    def found(self) -> dict[str, Found]:
        """By codec, in the order of the table; a codec that no run has is left out."""
        found = find_codecs(self.root, self.images, self.runs)
        return {name: found[name] for name in (*RUNGS, *CLASSIC) if name in found}

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

    @cached_property
    def costs(self) -> dict[tuple[str, str], Costs]:
        """By codec and setting of the rungs. Raises ValueError as `network_costs` does."""
        return {
            (name, s.setting): _costs_of(name)(self.found[name], s.setting, s.num_bytes)
            for name in RUNGS
            if name in self.found
            for s in self.summaries[name]
        }


# ---------------------------------------------------------------------------- what a decoder needs


def net_of(codec: str, setting: str, inits: Mapping[int, Init]) -> Siren:
    """The network that a rung's files hold; ``codec``: as its run names it; ``inits``: by width,
    those that the run started from.

    Raises ValueError for a codec whose file holds none.
    """
    fields = fields_of(setting)
    width = int(fields["width"])
    if codec == "coin":
        return Siren(width, int(fields["depth"]))
    if codec == "strumpler-basic":
        return Siren(width, 4, encoding=Encoding())
    if codec in NETWORKS:
        return inits[width].net
    raise ValueError(f"got codec {codec!r}, expected one of {', '.join(NETWORKS)}")


def fields_of(setting: str) -> dict[str, str]:
    """A codec's setting, as ``width=32_steps=100``, by name."""
    return dict(part.split("=", 1) for part in setting.split("_"))


def multiplications(net: Siren) -> int:
    """Multiply-accumulates that a pixel takes, the encoding's sines left out: it is computed once
    for each row and column."""
    return sum(prod(layer["weight"]) for layer in net.shapes().values())


def inits_of(config: Mapping[str, Any]) -> dict[int, Init]:
    """The inits that a run's config names by the start of their digest, by width."""
    found = [find_init(bytes.fromhex(digest)) for digest in config.get("inits", ())]
    return {init.net.width: init for init in found if init is not None}


def side_bytes(found: Found, summary: Summary) -> float | None:
    """Mean bytes of a setting's streams beside the coded params or latents; where a stream is gone,
    those that its run noted in side.json, else None. COIN's files need not be read: all but two
    bytes a param is beside them."""
    if found.codec == "coin":
        return summary.num_bytes - 2 * net_of("coin", summary.setting, {}).num_params
    sizes = []
    for row in (row for row in found.rows if row.setting == summary.setting):
        path = row_stream_path(found.run, found.codec, row.setting, row.image, ".inr")
        try:
            data = path.read_bytes()
            coded = bitstream.peek(data).sections[-CODED_SECTIONS.get(found.codec, 1) :]
            sizes.append(len(data) - sum(map(len, coded)))
        except (FileNotFoundError, BitstreamError):
            noted = found.run / "side.json"
            known = json.loads(noted.read_text("utf-8")) if noted.exists() else {}
            return known.get(f"{found.codec} {summary.setting}")
    return fmean(sizes)


CODED_SECTIONS = {PRODUCT: 2}
"""Sections of a stream, its last ones, that hold params or latents, where that is not the last
alone: codebooks and indices."""


def pixel_steps(codec: str, setting: str, config: Mapping[str, Any], pixels: float) -> float:
    """Steps of the fit times the pixels of each, as the run's config has them: Strümpler's steps of
    rounding and retraining are steps too, and those that tune centroids; and before COIN had pixels
    of its own, it had the same. Those of a search see all ``pixels`` of a picture, or as many as
    they look at."""
    points = config["points_per_step"]
    steps = int(fields_of(setting)["steps"])
    if codec == "coin":
        points = config.get("coin_points_per_step", points)
    elif codec.startswith("strumpler"):
        steps += config["rounding_steps"] + config["retraining_steps"]
    elif codec == PRODUCT:
        steps += config["tune_steps"]
    searched = config.get("search_steps", 0) if codec == METASIREN else 0
    return steps * points + searched * min(pixels, overfit.SEARCHED_PIXELS)


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
            *((_SPREAD,) if LATENT_GRID_EQUAL in ladder.found else ()),
            "## Each setting of what overfits a picture",
            _settings_table(ladder, sides),
            _NOTES,
            *(_against_published(curves) if ladder.images == "kodak" else ()),
            "## Where the rows come from",
            markdown(
                ["codec", "run"],
                [[name, f"{f.run.parent.name}/{f.run.name}"] for name, f in ladder.found.items()],
            ),
        ]
    ) + "\n"  # fmt: skip


def _against_published(curves: Mapping[str, numbers.Curve]) -> tuple[str, ...]:
    """Every rung beside every coordinate network of the literature, over all dB, over those in the
    middle, and at each published point."""
    theirs = results.published_curves(results.read_published(PUBLISHED))
    lines = []
    for method in (*KODAK_RD, "COIN++"):
        for name in (name for name in RUNGS if name in curves):
            cells = beside_published(theirs[method], curves[name])
            lines.append([LABELS.get(method, method), name, *cells])
    header = ["published", "measured", *_BD_RATES, "dB above their points, at their bpp"]
    return (
        "## Beside points of the literature, which were not measured here",
        "BD-rates of our measured curves of means against published curves, and how far ours are "
        "above the published points, at their rates, as far as ours go.",
        markdown(header, lines),
    )


def beside_published(theirs: numbers.Curve, ours: numbers.Curve) -> list[str]:
    """Cells of a table: our BD-rate against a published curve, over all dB and over those in the
    middle, and how far ours is above its points, at their rates."""
    rates = (numbers.bd_rate(theirs, ours, cut) for cut in (None, MIDDLE))
    ahead = numbers.ahead_at(numbers.frontier(ours), theirs)
    points = ", ".join(f"{value:+.2f} at {rate:.3f}" for rate, value in ahead.items())
    return [*map(_percent, rates), points]


_MIDDLE = f"{MIDDLE[0]:.0f}-{MIDDLE[1]:.0f} dB"
_BD_RATES = ("BD-rate % (over dB)", f"BD-rate %, {_MIDDLE} (over dB)")


def _percent(found: BDRate | None) -> str:
    return f"{found.percent:+.1f} ({found.low_db:.1f}-{found.high_db:.1f})" if found else ""


def _curves_table(ladder: Ladder, curves: Mapping[str, numbers.Curve]) -> str:
    theirs = results.published_curves(results.read_published(PUBLISHED))[PUBLISHED_ANCHOR]
    lines = []
    for name, group in ladder.summaries.items():
        found = [None, None]
        if name != ANCHOR and ANCHOR in ladder.found:
            found = [
                numbers.bd_rate_with_interval(ladder.rows, ANCHOR, name, decibels=cut)
                for cut in (None, MIDDLE)
            ]
        published = numbers.bd_rate(theirs, curves[name]) if ladder.images == "kodak" else None
        at_rates = [numbers.at_rate(curves[name], rate) for rate in RATES]
        lines.append(
            [
                name,
                *("" if value is None else f"{value:.2f}" for value in at_rates),
                *map(_with_interval, found),
                _span([s.encode_seconds for s in group]),
                _span([s.decode_seconds for s in group]),
                _percent(published),
            ]
        )
    header = [
        "codec", *(f"dB at {rate} bpp" for rate in RATES),
        "BD-rate %, against optimised JPEG (interval; over dB)",
        f"the same, {_MIDDLE}", "encode s", "decode s",
        f"against published: BD-rate %, {LABELS[PUBLISHED_ANCHOR]} (over dB)",
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


_HEADER = (
    "codec", "setting", "bytes", "bpp", "PSNR dB", "million pixel-steps [1]",
    "decoder kMAC a pixel [2]", "bits a param [3]", "bits a latent [3]", "side bytes [4]",
    "shared bytes [5]", "encode s", "decode s",
)  # fmt: skip

_SPREAD = (
    f"{LATENT_GRID_EQUAL} gives every picture about the same bpp, as the networks of one width of "
    "coin and strumpler do, meta-siren's less so, and a ratio of jpeg2000. One step size or one "
    "quality gives hard pictures more, which the mean of PSNRs does not reward: beside codecs at "
    "one quality, a part of its lead is how bits are spread."
)

_NOTES = "\n".join(
    [
        "[1] Steps of the fit times the pixels of each; a step of latent-grid is a proximal one, "
        "over all pixels.",
        "[2] Multiply-accumulates of the network's products; of latent-grid, synthesis + context "
        "models.",
        "[3] Bits of the whole file over the number of params or of latents. A dash: a network's "
        "file holds params and no latents, those of latent-grid and modulated-siren the other way "
        "round.",
        "[4] Bytes of a file beside its coded params or latents: header, checksum, digest, steps. "
        "A dash: the run's streams were not there to be counted.",
        "[5] What a decoder has beside the file: the learned init of a width, the base of a size "
        "of latent, or that of latent grids, one for all settings; 0 where a net starts at random "
        "and is sent whole.",
    ]
)  # fmt: skip


def _settings_table(ladder: Ladder, sides: Mapping[str, float]) -> str:
    lines = []
    for name in (name for name in RUNGS if name in ladder.found):
        for s in ladder.summaries[name]:
            side = sides.get(f"{name} {s.setting}")
            steps, products, param, latent, shared = ladder.costs[name, s.setting]
            lines.append(
                [
                    name, s.setting, f"{s.num_bytes:.0f}", f"{s.bpp:.4f}", f"{s.psnr:.2f}",
                    f"{steps / 1e6:.1f}", products, param, latent,
                    _DASH if side is None else f"{side:.0f}", str(shared),
                    f"{s.encode_seconds:.1f}", f"{s.decode_seconds:.3f}",
                ]
            )  # fmt: skip
    return markdown(_HEADER, lines)


_DASH = "-"


class Costs(NamedTuple):
    """Pixel-steps of a fit, then cells: kMAC a pixel, bits a param, bits a latent; shared bytes."""

    pixel_steps: float
    products: str
    bits_a_param: str
    bits_a_latent: str
    shared_bytes: int


def _costs_of(name: str) -> Callable[[Found, str, float], Costs]:
    if name in GRIDS:
        return grid_costs
    return modulated_costs if name == MODULATED else network_costs


def network_costs(found: Found, setting: str, num_bytes: float) -> Costs:
    """Of a file that is a network's params; ValueError if the run's init is not here."""
    inits = inits_of(found.config) if found.codec in LEARNED else {}
    width = int(fields_of(setting)["width"])
    if found.codec in LEARNED and width not in inits:
        raise ValueError(
            f"{found.run} started from an init of width {width} that is not here: add it by "
            "`inrjax inits add FILE`, or name another run"
        )
    net = net_of(found.codec, setting, inits)
    pixels = fmean(row.height * row.width for row in found.rows if row.setting == setting)
    return Costs(
        pixel_steps(found.codec, setting, found.config, pixels),
        f"{multiplications(net) / 1000:.1f}",
        f"{8 * num_bytes / net.num_params:.2f}",
        _DASH,
        inits[width].shared_bytes if inits else 0,
    )


LEARNED = ("strumpler-meta", PRODUCT, METASIREN)
"""Codecs whose fits start from a learned init that the decoder has."""


def grid_costs(found: Found, setting: str, num_bytes: float) -> Costs:
    """Of a file that is latents; ValueError if the run's base is not here."""
    base = grids.find_base(bytes.fromhex(found.config["base"]))
    if base is None:
        raise ValueError(
            f"{found.run} has files under the base {found.config['base']}, which is not here: "
            "name another run"
        )
    sizes = [(row.height, row.width) for row in found.rows if row.setting == setting]
    latents = fmean(sum(map(prod, base.net.latent_shapes(*size))) for size in sizes)
    synthesis, models = grid_multiplications(base.net)
    return Costs(
        found.config["iterations"] * fmean(map(prod, sizes)),
        f"{synthesis / 1000:.2f} + {models / 1000:.2f}",
        _DASH,
        f"{8 * num_bytes / latents:.3f}",
        base.shared_bytes,
    )


def modulated_costs(found: Found, setting: str, num_bytes: float) -> Costs:
    """Of a file that is the latents of patches: a base's, which the run's config describes."""
    fields = fields_of(setting)
    [base] = [b for b in found.config["bases"] if b["latent_dim"] == int(fields["latent"])]
    sizes = [(row.height, row.width) for row in found.rows if row.setting == setting]
    patches = fmean(prod(-(-side // base["patch"]) for side in size) for size in sizes)
    return Costs(
        int(fields["inner"]) * patches * base["patch"] ** 2,
        f"{multiplications(Siren(base['width'], base['depth'])) / 1000:.1f}",
        _DASH,
        f"{8 * num_bytes / (patches * base['latent_dim']):.3f}",
        base["shared_bytes"],
    )


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


# ---------------------------------------------------------------------------- the files


def write(ladder: Ladder, folder: Path) -> Path:
    """The table, the rows of the rungs and the figures."""
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
    """The rate-distortion figure of the measured codecs and the published networks."""
    curves = results.published_curves(results.read_published(PUBLISHED))
    shown = curves_to_show(curves, KODAK_RD) if ladder.images == "kodak" else ({}, {})
    groups = (group for name, group in ladder.summaries.items() if name not in NOT_DRAWN)
    summaries: Iterable[Summary] = (s for group in groups for s in group)
    measured = results.measured_curves(summaries)
    plots.save(plots.rd_figure(ours_last(measured), *shown, bpp_range=bpp_range), path)


@dataclass(frozen=True)
class Options:
    """The command line. ``runs``: run folders to take first."""

    root: Path = ROOT / "results"
    images: str = "kodak"
    runs: tuple[Path, ...] = ()
    output: Path = field(default=ROOT / "results" / "ladder")


def main(options: Options) -> Path:
    """Write the ladder of an image set; returns its folder."""
    with common.exit_with_a_sentence():
        ladder = Ladder(options.root, options.images, options.runs)
        if METASIREN not in ladder.found:
            raise ValueError(
                f"{ladder.root} has no complete run of MetaSiren on {ladder.images}: run "
                "`python -m experiments.kodak_rd` first"
            )
        _ = ladder.costs  # before anything is written: it needs the runs' inits and bases
    folder = write(ladder, options.output / options.images.split(",")[0].replace(" ", "_"))
    print((folder / "table.md").read_text("utf-8"))
    return folder


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
