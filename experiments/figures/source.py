"""Which rows the figures read: the newest complete run of each experiment, or the runs named."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from inrjax import results
from inrjax.published import INR, METHODS, in_group
from inrjax.results import PublishedPoint, Summary
from inrjax.types import RDPoint

OURS = "meta-siren"
"""The codec that the figures are about."""

ANCHOR = "jpeg-optimized"
"""The codec that rates are compared with."""

MEASURED = ("kodak_rd", "classic_rd")
"""Experiments whose rows are the measured curves; only the first has to be there."""

ESTIMATED = tuple(method.name for method in METHODS if method.is_estimate)
"""Published methods whose rates are no file sizes."""

LABELS = {method.name: method.label for method in METHODS}
"""How a published method is printed."""

VARIANTS = ("jpeg-progressive", "jpeg-optimized-444", "fmm", "fmm-jpeg-optimized")
"""Codecs among the bars and in the tables only: with their curves, there would be too many."""

NETWORKS = tuple(method.name for method in in_group(INR))
"""Published codecs whose file is a coordinate network, as ours."""


@dataclass(frozen=True)
class Source:
    """Rows of a results folder.

    Attributes:
      root: the folder that holds ``<experiment>/<hash>/`` and ``published/``.
      runs: run folders to read in place of the newest of their experiments.
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

    def folders(self, experiment: str) -> list[Path]:
        """The runs of an experiment to read: those named, else the newest complete one, if any."""
        named = [run for run in self.runs if run.parent.name == experiment]
        if named:
            for run in named:
                if not is_complete(run):
                    raise ValueError(f"{run} is not a complete run: let its experiment finish")
            return named
        found = [path for path in sorted(self.root.glob(f"{experiment}/*/")) if is_complete(path)]
        return [max(found, key=date_of)] if found else []

    def folder(self, experiment: str) -> Path:
        """The run of an experiment to read; ValueError if it has none."""
        found = self.folders(experiment)
        if not found:
            raise ValueError(
                f"{self.root / experiment} has no complete run: run "
                f"`python -m experiments.{experiment}` first"
            )
        return found[0]

    @cached_property
    def measured_by_folder(self) -> dict[Path, list[RDPoint]]:
        """Rows of each measured run. A codec that several hold is taken from the first; lossless
        codecs, which have a rate but no curve, are left out."""
        self.folder(MEASURED[0])
        taken: set[str] = set()
        rows: dict[Path, list[RDPoint]] = {}
        for folder in (folder for experiment in MEASURED for folder in self.folders(experiment)):
            new = [r for r in results.read_rows(folder / "rows.csv") if r.codec not in taken]
            taken |= {row.codec for row in new}
            rows[folder] = without_lossless(new)
        images = {row.image for row in next(iter(rows.values()))}
        for folder, some in rows.items():
            check_images(folder, some, images)
        return rows

    @cached_property
    def measured(self) -> list[RDPoint]:
        """All measured rows."""
        return [row for rows in self.measured_by_folder.values() for row in rows]

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
        found: dict[str, list[str]] = {}
        for folder, rows in self.measured_by_folder.items():
            first = provenances(folder)[0]
            machine = f"{first['cpu_count']} cores of {first['cpu']}"
            codecs = dict.fromkeys(row.codec for row in rows)
            found[machine] = [*found.get(machine, []), *codecs]
        return found


def is_complete(folder: Path) -> bool:
    """Whether a run wrote its table, which comes last."""
    names = ("config.json", "provenance.json", "table.md")
    return all((folder / name).is_file() for name in names)


def provenances(folder: Path) -> list[dict[str, Any]]:
    """What made a run, oldest first: a resumed run has several entries."""
    found = json.loads((folder / "provenance.json").read_text("utf-8"))
    return found if isinstance(found, list) else [found]


def date_of(folder: Path) -> datetime:
    """When a run last added rows."""
    return max(datetime.fromisoformat(entry["date"]) for entry in provenances(folder))


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
