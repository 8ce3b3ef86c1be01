"""Which rows the figures and the ladder read: of each codec, those of the newest complete run that
has it, or of the runs named."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from inrjax import results
from inrjax.codecs.inr import PRESETS
from inrjax.published import INR, METHODS, in_group
from inrjax.results import PublishedPoint, Summary
from inrjax.types import RDPoint

T = TypeVar("T")

METASIREN, LATENT_GRID = OURS = ("meta-siren", "latent-grid")
"""The codecs that the figures are about; the first has to be there."""

METASIREN_BEST = "meta-siren-best"
"""MetaSiren as `encode --preset best` writes it: longer fits, and searched roundings."""

BEST = PRESETS["best"]

LATENT_GRID_EQUAL = "latent-grid-equal-bpp"
"""LatentGrid with about the same bits per pixel for every picture."""

ANCHOR = "jpeg-optimized"
"""The codec that rates are compared with."""

EXPERIMENTS = ("kodak_rd", "grid_rd", "equal_bpp", "strumpler", "other_rungs", "classic_rd")
"""Whose rows are the measured curves, in the order in which a codec is looked for."""

STRUMPLER = ("strumpler-basic", "strumpler-basic-7bit", "strumpler-meta")
"""Strümpler's codecs; basic is measured at the paper's 8 bits and at meta's 7: two curves."""

STRUMPLER_MUON = ("strumpler-basic-muon", "strumpler-meta-muon")
"""The same fitted by Muon in place of the paper's Adam."""

PRODUCT, MODULATED = "product-siren", "modulated-siren"
"""Product-quantised weights, and COIN++'s modulations."""

OURS_OTHERWISE = (METASIREN_BEST, LATENT_GRID_EQUAL)
"""Curves of `OURS` by other settings; ours are not compared with ours."""

ESTIMATED = tuple(method.name for method in METHODS if method.is_estimate)
"""Published methods whose rates are no file sizes."""

LABELS = {method.name: method.label for method in METHODS}
"""How a published method is printed."""

VARIANTS = (
    "jpeg-progressive", "jpeg-optimized-444", "fmm", "fmm-jpeg-optimized", *STRUMPLER[:2],
    *STRUMPLER_MUON, PRODUCT, MODULATED, *OURS_OTHERWISE,
)  # fmt: skip
"""Codecs left out where all codecs' curves are: there would be too many."""

NETWORKS = tuple(method.name for method in in_group(INR))
"""Published codecs whose file is a coordinate network, as ours."""


@dataclass(frozen=True)
class Source:
    """Rows of a results folder.

    Attributes:
      root: the folder that holds ``<experiment>/<hash>/`` and ``published/``.
      runs: run folders to look through before the newest of each experiment.
      images: a folder of pictures for the visual comparisons, None for the packaged photographs.
      width, num_steps: of MetaSiren's files in the visual comparisons.
      cache: where the visual comparisons keep the files they coded.
    """

    root: Path
    runs: tuple[Path, ...] = ()
    images: Path | None = None
    width: int = 48
    num_steps: int = 1000
    cache: Path = Path("runs") / "figures"

    def folder(self, experiment: str) -> Path:
        """The run of an experiment to read: the one named, else the newest complete one; ValueError
        if it has none."""
        named = [run for run in self.runs if run.parent.name == experiment]
        if named:
            return check_complete(named[0])
        found = [path for path in self.root.glob(f"{experiment}/*/") if is_complete(path)]
        if not found:
            raise ValueError(
                f"{self.root / experiment} has no complete run: run "
                f"`python -m experiments.{experiment}` first"
            )
        return max(found, key=results.date_of_rows)

    @cached_property
    def found(self) -> dict[str, Found]:
        """The rows of each codec on Kodak. Lossless codecs, which have a rate but no curve, are
        left out; ValueError without MetaSiren, and as `find_codecs` raises it."""
        found = find_codecs(self.root, "kodak", self.runs)
        if METASIREN not in found:
            raise ValueError(
                f"{self.root} has no complete run of MetaSiren on Kodak: run "
                "`python -m experiments.kodak_rd` first"
            )
        kept = {name: one._replace(rows=without_lossless(one.rows)) for name, one in found.items()}
        return {name: one for name, one in kept.items() if one.rows}

    @cached_property
    def measured(self) -> list[RDPoint]:
        """All measured rows."""
        return [row for one in self.found.values() for row in one.rows]

    @property
    def ours(self) -> tuple[str, ...]:
        """Those of `OURS` that are there."""
        return tuple(name for name in OURS if name in self.found)

    @cached_property
    def summaries(self) -> dict[str, list[Summary]]:
        """Means over the images by codec, in the order of bpp."""
        by_codec: dict[str, list[Summary]] = {}
        for summary in results.summarise(self.measured):
            by_codec.setdefault(summary.codec, []).append(summary)
        return {name: sorted(group, key=lambda s: s.bpp) for name, group in by_codec.items()}

    @cached_property
    def published(self) -> list[PublishedPoint]:
        """All published points."""
        return results.read_published(self.root / "published" / "kodak.csv")

    def machines(self) -> dict[str, list[str]]:
        """By machine (processor and number of cores), the codecs that were timed on it."""
        machines: dict[str, list[str]] = {}
        for name, one in self.found.items():
            first = results.provenances(one.run)[0]
            machines.setdefault(f"{first['cpu_count']} cores of {first['cpu']}", []).append(name)
        return machines


class Found(NamedTuple):
    """A curve's rows, the run they come from, its config, and the codec's own name there."""

    run: Path
    rows: list[RDPoint]
    config: Mapping[str, Any]
    codec: str


def find_codecs(root: Path, images: str, runs: Sequence[Path] = ()) -> dict[str, Found]:
    """By curve (`curve_of`), rows on an image set, each from the first run that has them.

    Runs are looked through as `EXPERIMENTS` are listed: those named first, then the newest of each
    experiment, then its older ones; ``images`` is the set as their configs name it. The rows'
    codec becomes the curve's name. Raises ValueError for a named run that is not complete, and
    where not all were measured on the same images.
    """
    taken: dict[str, Found] = {}
    for run in _folders(root, runs):
        config = json.loads((run / "config.json").read_text("utf-8"))
        if images != config.get("images", config.get("dataset")):
            continue
        curves: dict[str, Found] = {}
        for row in results.read_rows(run / "rows.csv"):
            name = curve_of(row, config)
            found = curves.setdefault(name, Found(run, [], config, row.codec))
            found.rows.append(replace(row, codec=name))
        for name, found in curves.items():
            taken.setdefault(name, found)
    measured = {row.image for found in [*taken.values()][:1] for row in found.rows}
    for found in taken.values():
        check_images(found.run, found.rows, measured)
    return taken


def curve_of(row: RDPoint, config: Mapping[str, Any]) -> str:
    """The codec's name, and what else tells curves of one name apart in its run: basic at 7 bits,
    Strümpler's nets under Muon, MetaSiren's of ``--preset best``, and LatentGrid's at equal
    rates."""
    if row.codec == METASIREN and (config.get("num_steps"), config.get("search_steps")) == BEST:
        return METASIREN_BEST
    if row.codec == LATENT_GRID and "rates" in config:
        return LATENT_GRID_EQUAL
    is_seven = row.codec == "strumpler-basic" and "bits=7" in row.setting.split("_")
    name = "strumpler-basic-7bit" if is_seven else row.codec
    return f"{name}-muon" if config.get("muon") else name


def _folders(root: Path, runs: Sequence[Path]) -> list[Path]:
    folders = [check_complete(run) for run in runs if run.parent.name in EXPERIMENTS]
    for experiment in EXPERIMENTS:
        complete = [path for path in root.glob(f"{experiment}/*/") if is_complete(path)]
        folders += sorted(complete, key=results.date_of_rows, reverse=True)
    return folders


def check_complete(run: Path) -> Path:
    """The run; ValueError unless `is_complete`."""
    if not is_complete(run):
        raise ValueError(f"{run} is not a complete run: let its experiment finish")
    return run


def ours_last(curves: Mapping[str, T]) -> dict[str, T]:
    """The legend's order is the drawing's: ours in front of all others, so they come last."""
    ours = {name: curves[name] for name in OURS if name in curves}
    return {name: curve for name, curve in curves.items() if name not in OURS} | ours


def is_complete(folder: Path) -> bool:
    """Whether a run wrote its table, which comes last."""
    names = ("config.json", "provenance.json", "table.md")
    return all((folder / name).is_file() for name in names)


def without_lossless(rows: Sequence[RDPoint]) -> list[RDPoint]:
    """The rows of the codecs and settings that lose something on every image."""
    exact = {(row.codec, row.setting) for row in rows if math.isinf(row.psnr)}
    return [row for row in rows if (row.codec, row.setting) not in exact]


def check_images(folder: Path, rows: Iterable[RDPoint], images: set[str]) -> None:
    """ValueError unless every codec and setting was measured on exactly these images: means over
    different images are not comparable."""
    groups: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        groups.setdefault((row.codec, row.setting), set()).add(row.image)
    for (codec, setting), found in groups.items():
        if found != images:
            raise ValueError(
                f"{folder} has {codec} {setting} on {len(found)} images, expected the same "
                f"{len(images)} for all: finish the run or name another"
            )
