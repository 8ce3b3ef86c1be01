"""PSNR against the seconds of encoding. Rows: the measured runs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.figures import numbers
from experiments.figures.source import VARIANTS, Source, ours_last
from inrjax.plots import Look, Style, draw_curve, measured_looks
from inrjax.results import Summary

AT_BPP = 0.25


def psnr_seconds(source: Source, style: Style) -> Figure:
    """Left: every setting's mean PSNR over its mean encode seconds. Right: one point a codec, both
    interpolated at 0.25 bpp (PCHIP in log rate), for codecs that reach that rate.

    Seconds are wall seconds; those of a batch are divided by its size, and the axis says so.
    Where runs come from several machines, a line under the axes says which codec ran where.
    """
    shown = {name: group for name, group in source.summaries.items() if name not in VARIANTS}
    known = measured_looks(ours_last(shown))
    figure = style.figure(style.double, 0.46)
    left, right = figure.subplots(1, 2)
    handles = []
    for name, look in known.items():
        group = shown[name]
        curve = sorted((s.encode_seconds, s.psnr) for s in group)
        handles.append(draw_curve(left, curve, look))
        handles[-1].set_linestyle("none")  # seconds are noisy: a line through them is a scribble
        _point(right, group, look)
    for axes, title in ((left, "every setting"), (right, f"at {AT_BPP} bpp,\ninterpolated")):
        axes.set_xscale("log")
        axes.set_title(title)
        # Labels of one width, whatever the height becomes: the layout is made before the ticks.
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid()
    left.set_ylabel("PSNR (dB)")
    sizes = sorted({row.batch_size for row in source.measured if row.codec in known})
    of = f"of {sizes[0]}" if len(sizes) == 1 else f"of {sizes[0]} to {sizes[-1]}"
    lines = [f"encode seconds an image (wall, in batches {of} images)"]
    machines = {
        machine: [known[name].label for name in codecs if name in known]
        for machine, codecs in source.machines().items()
    }
    if len(machines) == 1:
        lines.append(f"on {next(iter(machines))}")
    else:
        letters = int(style.double * 72 / (0.6 * style.font))  # about as many as a line holds
        for machine, labels in machines.items():
            lines.append(textwrap.fill(f"on {machine}: {'; '.join(labels)}", letters))
    figure.supxlabel("\n".join(lines), fontsize=style.font)
    figure.legend(handles=handles, loc="outside right upper", handlelength=1.0)
    return figure


def _point(axes: Axes, group: Sequence[Summary], look: Look) -> None:
    psnr = numbers.at_rate([(s.bpp, s.psnr) for s in group], AT_BPP)
    seconds = numbers.at_rate([(s.bpp, s.encode_seconds) for s in group], AT_BPP)
    if psnr is not None and seconds is not None:
        draw_curve(axes, [(seconds, psnr)], look)
