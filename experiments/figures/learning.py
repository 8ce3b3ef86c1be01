"""What the meta-learned init buys. Rows: results/init_gain."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from matplotlib.figure import Figure

from experiments.figures import numbers
from experiments.figures.source import Source, check_images
from inrjax import results
from inrjax.plots import Look, Style, draw_curve
from inrjax.types import RDPoint

_SOLID, _DOTTED = (), (1.2, 1.4)
_COLOURS = {"muon": "#000000", "adam": "#D55E00"}
_MARKERS = {"muon": "o", "adam": "s"}


class Series(NamedTuple):
    """Rows of one optimiser from one init, by number of steps, then by image."""

    optimizer: str
    init: str
    rows: dict[int, dict[str, RDPoint]]


def meta_learning(source: Source, style: Style) -> Figure:
    """Over the number of steps: mean PSNR from the learned and a random init, the learned one's
    lead with its 95 % bootstrap interval over images, and mean bytes of the files.

    Every number of steps is a fit of its own, with its own learning-rate schedule.
    """
    series = read(source.folder("init_gain"))
    figure = style.figure(style.double, 0.42)
    psnrs, leads, sizes = figure.subplots(1, 3)
    handles = []
    for one in series:
        look = _look(one.optimizer, one.init)
        groups = {steps: list(rows.values()) for steps, rows in one.rows.items()}
        curve = [(steps, fmean(row.psnr for row in rows)) for steps, rows in groups.items()]
        handles.append(draw_curve(psnrs, curve, look))
        curve = [(steps, fmean(row.num_bytes for row in rows)) for steps, rows in groups.items()]
        draw_curve(sizes, curve, look)
    for optimizer, lead in lead_by_optimizer(series).items():
        look = _look(optimizer, "learned")
        line = draw_curve(leads, [(n, i.value) for n, i in lead.items()], look)
        leads.fill_between(
            list(lead),
            [i.low for i in lead.values()],
            [i.high for i in lead.values()],
            color=line.get_color(),
            alpha=0.2,
            linewidth=0,
        )
    leads.axhline(0, color="0.4", linewidth=0.8)
    labels = ("PSNR (dB)", "lead of the learned init (dB)", "bytes")
    for axes, label in zip((psnrs, leads, sizes), labels, strict=True):
        axes.set_xscale("log")
        axes.set_ylabel(label)
        axes.grid()
    sizes.set_ylim(bottom=0)
    figure.supxlabel("steps of the fit", fontsize=style.font)
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles) // 2)
    return figure


def read(folder: Path) -> list[Series]:
    """The run's series, from its folders ``<optimizer>_<init>``."""
    found = []
    for path in sorted(folder.glob("*_*/rows.csv")):
        rows = results.read_rows(path)
        check_images(path.parent, rows, {row.image for row in rows})
        by_steps: dict[int, dict[str, RDPoint]] = {}
        for row in sorted(rows, key=lambda row: steps_of(row.setting)):
            by_steps.setdefault(steps_of(row.setting), {})[row.image] = row
        optimizer, _, init = path.parent.name.partition("_")
        found.append(Series(optimizer, init, by_steps))
    return sorted(found, key=lambda one: one.optimizer, reverse=True)


def lead_by_optimizer(series: list[Series]) -> dict[str, dict[int, numbers.Interval]]:
    """By optimiser and steps, the mean over images of PSNR from the learned init less that from
    the random one, image by image, with its interval."""
    by_init = {(one.optimizer, one.init): one.rows for one in series}
    leads = {}
    for optimizer in {one.optimizer: None for one in series}:
        learned, random = by_init[optimizer, "learned"], by_init[optimizer, "random"]
        leads[optimizer] = {
            steps: numbers.mean_with_interval(
                [row.psnr - random[steps][image].psnr for image, row in rows.items()]
            )
            for steps, rows in learned.items()
            if steps in random
        }
    return leads


def steps_of(setting: str) -> int:
    """The number of steps in a codec's setting, as ``width=32_steps=100``."""
    match = re.search(r"steps=(\d+)", setting)
    if match is None:
        raise ValueError(f"the setting {setting!r} has no steps=N: expected a fitted codec's")
    return int(match[1])


def _look(optimizer: str, init: str) -> Look:
    return Look(
        f"{optimizer.capitalize()}, {init} init",
        _COLOURS.get(optimizer, "#0072B2"),
        _MARKERS.get(optimizer, "^"),
        _SOLID if init == "learned" else _DOTTED,
    )
