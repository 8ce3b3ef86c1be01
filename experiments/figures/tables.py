"""The paper's tables, in Markdown and LaTeX (booktabs), from the rows of the figures.

Measured and published curves never share a table. PSNR at a rate is interpolated (PCHIP in log
rate) between measured points and never extrapolated: a cell beyond a curve's ends is empty.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.figures import numbers
from experiments.figures.source import ANCHOR, ESTIMATED, LABELS, Source
from experiments.kodak_rd import markdown
from inrjax import results
from inrjax.plots import measured_looks

RATES = (0.1, 0.15, 0.25, 0.5)


class Table(NamedTuple):
    """Cells as text; ``caption`` says what they are."""

    caption: str
    header: list[str]
    lines: list[list[str]]


def measured(source: Source) -> Table:
    """Each codec measured here: PSNR at four rates, BD-rate against optimised JPEG, seconds."""
    known = measured_looks(source.summaries)
    lines = []
    for name, group in source.summaries.items():
        found = None
        if name != ANCHOR:
            found = numbers.bd_rate_with_interval(source.measured, ANCHOR, name)
        if found is None:
            rate = ["", "", ""]
        else:
            value, low, high = found.of_means
            interval = "" if low is None else f"{low:+.1f} to {high:+.1f}"
            rate = [f"{value:+.1f}", interval, f"{found.low:.1f}-{found.high:.1f}"]
        curve = [(s.bpp, s.psnr) for s in group]
        encode, decode = (
            _range([getattr(s, f"{verb}_seconds") for s in group]) for verb in ("encode", "decode")
        )
        lines.append([known[name].label, *_at_rates(curve), *rate, encode, decode])
    count = len({row.image for row in source.measured})
    return Table(
        f"Measured here: mean of the PSNRs (dB) of {count} images at equal bpp, interpolated; "
        f"BD-rate (%) of the curves of means against {known[ANCHOR].label}, with 95 % intervals of "
        "a bootstrap over images, over the qualities that both cover (dB); wall seconds an image "
        "over all settings, those of a batch divided by its size.",
        [
            "codec", *(f"{rate} bpp" for rate in RATES), "BD-rate", "95 % interval", "over dB",
            "encode s", "decode s",
        ],
        lines,
    )  # fmt: skip


def published(source: Source) -> Table:
    """Each published curve: PSNR at four rates, whether its rates are files', and our BD-rates."""
    curves = results.published_curves(source.published)
    known = measured_looks(source.ours)
    own = {name: [(s.bpp, s.psnr) for s in source.summaries[name]] for name in known}
    lines = []
    for name, curve in curves.items():
        rates = []
        for ours in own.values():
            found = numbers.bd_rate(curve, ours)
            rates += (
                ["", ""]
                if found is None
                else [f"{found.percent:+.1f}", f"{found.low_db:.1f}-{found.high_db:.1f}"]
            )
        kind = "estimated" if name in ESTIMATED else "published"
        lines.append([LABELS[name], kind, *_at_rates(curve), *rates])
    labels = [look.label for look in known.values()]
    return Table(
        "Against published curves, which were not measured here: their PSNR (dB) at equal bpp, "
        "interpolated, and the BD-rate (%) of measured curves of ours against them, over the "
        "qualities that both cover (dB).",
        [
            "method", "rate", *(f"{rate} bpp" for rate in RATES),
            *(cell for label in labels for cell in (f"BD-rate of {label}", "over dB")),
        ],
        lines,
    )  # fmt: skip


TABLES = {"measured": measured, "published": published}


def as_markdown(table: Table) -> str:
    """The table as a Markdown file."""
    return f"{table.caption}\n\n{markdown(table.header, table.lines)}\n"


def as_latex(table: Table) -> str:
    """The table as a LaTeX file for \\input (booktabs), numbers to the right."""
    columns = "l" + "".join(
        "r" if any(line[i][-1:].isdigit() for line in table.lines) else "l"
        for i in range(1, len(table.header))
    )
    rows = [" & ".join(map(latex_text, cells)) + r" \\" for cells in (table.header, *table.lines)]
    return "\n".join(
        [
            "% " + latex_text(table.caption),
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            rows[0],
            r"\midrule",
            *rows[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


_LATEX: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def latex_text(text: str) -> str:
    """Text with LaTeX's special characters escaped, real minus signs, and dashes in ranges."""
    escaped = "".join(_LATEX.get(character, character) for character in text)
    escaped = re.sub(r"(?<=\d)-(?=\d)", "--", escaped)
    words = [
        f"${word}$" if word[:1] in ("-", "+") and word[1:2].isdigit() else word
        for word in escaped.split(" ")
    ]
    return " ".join(words)


def _at_rates(curve: numbers.Curve) -> list[str]:
    values = [numbers.at_rate(curve, rate) for rate in RATES]
    return ["" if value is None else f"{value:.2f}" for value in values]


def _range(seconds: Sequence[float]) -> str:
    """The shortest and the longest, to two significant digits."""
    low, high = (f"{value:.2g}" for value in (min(seconds), max(seconds)))
    return low if low == high else f"{low}-{high}"
