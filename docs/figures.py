"""The figures of docs/method.md, from the package itself and from committed rows.

They are drawn anew whenever the site is built, in seconds: `python docs/figures.py FOLDER`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from inrjax import entropy, results
from inrjax.images import centres
from inrjax.init import packaged_init, packaged_widths

RESULTS = Path(__file__).parents[1] / "results"
INIT_GAIN = RESULTS / "init_gain" / "7c1ef7e1340e"
BLACK, RED, BLUE, GREEN, PINK = "#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7"


def draw(folder: Path) -> None:
    """Write every figure of the site to a folder, as SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": "inrjax", "font.size": 10, "axes.titlesize": 11}):
        for name, build in FIGURES.items():
            build().savefig(folder / f"{name}.svg", metadata={"Date": None})


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def pipeline() -> Figure:
    """From a picture to a file and back, as boxes."""
    figure = _figure(9.5, 2.9)
    axes = figure.add_subplot(xlim=(0, 19), ylim=(0, 5.6))
    axes.axis("off")

    def box(x: float, y: float, text: str, colour: str, width: float = 3.1) -> None:
        corner = FancyBboxPatch(
            (x, y), width, 1.3, boxstyle="round,pad=0.08", facecolor=colour, edgecolor="0.3"
        )
        axes.add_patch(corner)
        axes.text(x + width / 2, y + 0.65, text, ha="center", va="center", fontsize=9)

    def arrow(x: float, y: float, to_x: float, to_y: float) -> None:
        style = {"arrowstyle": "-|>", "color": "0.3", "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (to_x, to_y), (x, y), arrowprops=style)

    chain = ("photograph", "fit: mse and bits", "symbols, steps", "range coder", "photo.inr")
    for i, text in enumerate(chain):
        box(0.2 + 3.85 * i, 3.9, text, "#DCEAF5" if i not in (0, 4) else "#F3F3F3")
        if i:
            arrow(0.2 + 3.85 * i - 0.62, 4.55, 0.2 + 3.85 * i - 0.12, 4.55)
    back = ("PNG", "network at every pixel", "params", "range decoder", "photo.inr")
    for i, text in enumerate(back):
        box(0.2 + 3.85 * i, 0.2, text, "#DDF1E7" if i not in (0, 4) else "#F3F3F3")
        if i:
            arrow(0.2 + 3.85 * i - 0.12, 0.85, 0.2 + 3.85 * i - 0.62, 0.85)
    box(5.0, 2.05, "init: params, inner rates; prior: a scale for each of them", "#FBE6D8", 9.0)
    for x in (5.6, 9.5, 13.4):
        arrow(x, 3.43, x, 3.78)
    for x in (9.5, 13.4):
        arrow(x, 1.97, x, 1.62)
    return figure


def encoding() -> Figure:
    """What the first layer sees: a few of the sines of y and of x, over a picture."""
    spec = packaged_init(packaged_widths()[0]).net.encoding
    assert spec is not None
    frequencies = (0, 3, 6, 9)
    figure = _figure(9, 4.3)
    grid = figure.subplots(2, 1 + len(frequencies))
    y, x = np.meshgrid(centres(256), centres(256), indexing="ij")
    for row, (name, values) in zip(grid, (("y", y), ("x", x)), strict=True):
        shown = [values, *(np.sin(spec.angular()[i] * values) for i in frequencies)]
        titles = [f"${name}$", *(rf"$\sin({spec.ratio:g}^{{{i}}}\pi {name})$" for i in frequencies)]
        for axes, picture, title in zip(row, shown, titles, strict=True):
            axes.imshow(picture, cmap="gray", vmin=-1, vmax=1)
            axes.set_title(title)
            axes.set(xticks=[], yticks=[])
    return figure


def init_gain() -> Figure:
    """PSNR against steps from the learned init and from a random one, on Kodak."""
    figure = _figure(8.5, 3.6)
    for axes, optimizer in zip(figure.subplots(1, 2, sharey=True), ("muon", "adam"), strict=True):
        for start, colour in (("learned", BLACK), ("random", RED)):
            rows = results.read_rows(INIT_GAIN / f"{optimizer}_{start}" / "rows.csv")
            points = [
                (int(item.setting.rpartition("=")[2]), item.psnr)
                for item in results.summarise(rows)
            ]
            axes.semilogx(*zip(*sorted(points), strict=True), "o-", color=colour, label=start)
        axes.set(title=optimizer.capitalize(), xlabel="steps")
        _tidy(axes)
    figure.axes[0].set_ylabel("PSNR (dB)")
    figure.axes[0].legend(title="init", frameon=False)
    return figure


def rounding() -> Figure:
    """The three stand-ins for rounding, as functions of the real symbol."""
    real = np.linspace(-2.6, 2.6, 521)
    figure = _figure(9, 3)
    titles = ("rounding, as coded", "noise, while fitting", "straight-through, at the end")
    for axes, title in zip(figure.subplots(1, 3, sharey=True), titles, strict=True):
        axes.plot(real, real, color="0.75", linewidth=1)
        axes.set(title=title, xlabel="param / step", aspect="equal")
        _tidy(axes)
    rounded, noise, through = figure.axes
    rounded.step(real, np.rint(real), where="mid", color=BLACK)
    noise.fill_between(real, real - 0.5, real + 0.5, color=BLUE, alpha=0.25, linewidth=0)
    noise.text(-2.3, 1.7, "slope 1,\nuniform in a\nband of 1", fontsize=9, color=BLUE)
    through.step(real, np.rint(real), where="mid", color=BLACK)
    for k in range(-2, 3):
        through.plot((k - 0.35, k + 0.35), (k - 0.35, k + 0.35), color=RED, linewidth=2.5)
    through.text(-2.3, 1.7, "value of rounding,\nslope 1", fontsize=9, color=RED)
    rounded.set_ylabel("symbol")
    return figure


def bits() -> Figure:
    """Bits of a symbol: the differentiable curve of the loss, and the coder's integer counts."""
    figure = _figure(7.5, 3.6)
    axes = figure.add_subplot()
    symbols = np.arange(-8, 9)
    real = np.linspace(-8, 8, 801).astype(np.float32)
    for level, colour in ((8, GREEN), (16, BLUE), (22, RED)):
        scale = entropy.scale(level)
        axes.plot(real, entropy.bits(real, float(scale)), color=colour)
        coded = entropy.symbol_bits(symbols, level)
        axes.plot(symbols, coded, "o", color=colour, markersize=4, label=f"scale {scale:.2f}")
    axes.set(xlabel="symbol", ylabel="bits", ylim=(0, 26))
    axes.legend(frameon=False)
    _tidy(axes)
    return figure


def prior() -> Figure:
    """The packaged priors: the Laplace scale of the first layer's columns by frequency."""
    figure = _figure(9, 3.7)
    widths = packaged_widths()
    shades = np.linspace(0.15, 0.95, len(widths))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, part in zip(panels, ("sine", "cosine"), strict=True):
        ratio = 0.0
        for width, shade in zip(widths, shades, strict=True):
            net = packaged_init(width).net
            assert net.encoding is not None
            count, ratio = net.encoding.num_frequencies, net.encoding.ratio
            levels = packaged_init(width).levels()["layer_00/weight"].mean(axis=0)
            # Features: y, x, the sines (y and x alternate), the cosines.
            first = 2 + (2 * count if part == "cosine" else 0)
            scales = 2.0 ** (levels[first : first + 2 * count].reshape(count, 2).mean(1) / 4)
            colour = (0.0, 0.25 * shade, 0.2 + 0.65 * shade)
            axes.semilogy(np.arange(count), scales, ".-", color=colour, label=f"width {width}")
        axes.set(title=f"columns of the {part}s", xlabel=f"frequency $i$ of ${ratio:g}^i \\pi$")
        _tidy(axes)
    panels[0].set_ylabel("Laplace scale of the weights")
    panels[1].legend(frameon=False, fontsize=8, ncols=2)
    return figure


def interval() -> Figure:
    """How a range coder narrows an interval, symbol after symbol."""
    table = entropy.counts(16)
    centre = len(table) // 2 - 1
    # The symbols -1, 0, 1 with the rest on either side, as shares of the interval.
    total = table.sum()
    shares = np.array([
        table[: centre - 1].sum(), *table[centre - 1 : centre + 2], table[centre + 2 :].sum()
    ]) / total  # fmt: skip
    names = ("≤ -2", "-1", "0", "1", "≥ 2")
    colours = ("#EEEEEE", "#DCEAF5", "#FBE6D8", "#DDF1E7", "#EEEEEE")
    figure = _figure(9, 3.1)
    axes = figure.add_subplot(xlim=(-0.13, 1.17), ylim=(-0.1, 3.75))
    axes.axis("off")
    chosen, left_bits = (1, 0, -1), 0.0
    for row, symbol in enumerate(chosen):
        y, left = 3 - 1.35 * row, 0.0
        for name, share, colour in zip(names, shares, colours, strict=True):
            axes.add_patch(
                Rectangle((left, y), share, 0.6, facecolor=colour, edgecolor="0.4", linewidth=0.8)
            )
            axes.text(left + share / 2, y + 0.3, name, ha="center", va="center", fontsize=9)
            if name == str(symbol):
                axes.add_patch(
                    Rectangle((left, y), share, 0.6, fill=False, edgecolor=BLACK, linewidth=2)
                )
                if row + 1 < len(chosen):
                    for start, end in ((left, 0.0), (left + share, 1.0)):
                        axes.plot((start, end), (y, y - 0.75), color="0.5", linewidth=0.8)
                left_bits += -np.log2(share)
            left += share
        axes.text(-0.02, y + 0.3, f"code {symbol}", ha="right", va="center", fontsize=10)
        axes.text(1.02, y + 0.3, f"{left_bits:.2f} bits so far", va="center", fontsize=10)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "pipeline": pipeline,
    "encoding": encoding,
    "init_gain": init_gain,
    "rounding": rounding,
    "bits": bits,
    "prior": prior,
    "interval": interval,
}


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
