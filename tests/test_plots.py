"""Figures have what they should, and are written whole."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image as PillowImage

from inrjax import plots

MEASURED = {"ours": [(0.1, 25.0), (0.2, 27.0)], "jpeg": [(0.2, 24.0), (0.6, 30.0)]}
PUBLISHED = {"COIN": [(0.07, 23.2), (1.2, 30.6)], "C3": [(0.09, 27.1), (1.4, 40.8)]}


def lines_by_label(figure):
    return {line.get_label(): line for line in figure.axes[0].get_lines()}


def test_measured_is_solid_and_filled_and_published_dashed_and_hollow():
    lines = lines_by_label(plots.rd_figure(MEASURED, PUBLISHED))
    assert set(lines) == {"ours", plots.MEASURED["jpeg"].label, *PUBLISHED}
    for name, curve in (MEASURED | PUBLISHED).items():
        line = lines[plots.MEASURED[name].label if name == "jpeg" else name]
        np.testing.assert_array_equal(line.get_xydata(), curve)
        assert (line.get_linestyle() == "-") == (name in MEASURED)
        assert (line.get_markerfacecolor() == line.get_color()) == (name in MEASURED)


def test_estimated_rates_stand_apart_and_a_codec_looks_the_same_everywhere():
    figure = plots.rd_figure(MEASURED, {"COIN": PUBLISHED["COIN"]}, {"C3": PUBLISHED["C3"]})
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[-4:] == ["published", "COIN", "published, rate estimated", "C3"]
    alone = lines_by_label(plots.rd_figure({}, {}, {"C3": PUBLISHED["C3"]}))["C3"]
    again = lines_by_label(figure)["C3"]
    assert (alone.get_color(), alone.get_marker()) == (again.get_color(), again.get_marker())
    dashes = [str(lines_by_label(figure)[name]._unscaled_dash_pattern) for name in ("COIN", "C3")]
    assert dashes[0] != dashes[1]


def test_axes_legend_and_limits():
    figure = plots.rd_figure(MEASURED, PUBLISHED, bpp_range=(0, 0.5))
    [axes] = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("bpp", "PSNR (dB)")
    assert axes.get_xlim() == (0, 0.5)
    low, high = axes.get_ylim()
    assert low < 23.2 and 27.1 < high < 30  # fitted to the points at 0.5 bpp and below
    [legend] = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    jpeg = plots.MEASURED["jpeg"].label
    assert labels == ["measured here", "ours", jpeg, "published", *PUBLISHED]
    figure = plots.rd_figure(MEASURED, PUBLISHED, psnr_range=(20, 35))
    assert figure.axes[0].get_ylim() == (20, 35)


def test_the_legend_lies_beside_the_axes():
    figure = plots.rd_figure(MEASURED, PUBLISHED)
    figure.savefig(io.BytesIO())
    assert figure.legends[0].get_window_extent().x0 > figure.axes[0].get_window_extent().x1
    assert figure.legends[0].get_window_extent().x1 <= figure.bbox.x1


def test_one_kind_or_none_is_fine():
    figure = plots.rd_figure(MEASURED, {})
    assert "published" not in [text.get_text() for text in figure.legends[0].get_texts()]
    assert not plots.rd_figure({}, {}).legends
    plots.rd_figure({"one point": [(0.1, 20.0)]}, {})


def test_curves_are_told_apart_without_colour():
    """No two curves of a figure share both marker and dash, whatever they are called."""
    curves = {str(i): [(0.1 * i, 20.0 + i)] for i in range(13)}
    figure = plots.rd_figure(curves, {f"p{name}": curve for name, curve in curves.items()})
    lines = figure.axes[0].get_lines()
    shapes = {(str(line.get_marker()), str(line._unscaled_dash_pattern)) for line in lines}
    assert len(lines) == len(shapes) == 26


def test_too_many_curves_are_refused():
    with pytest.raises(ValueError, match="at most"):
        plots.rd_figure({}, {str(i): [(0.1, 20.0)] for i in range(36)})


def test_a_style_sets_sizes_and_leaves_no_trace():
    before = dict(matplotlib.rcParams)
    for style in (plots.PRINT, plots.SLIDES):
        figure = plots.rd_figure(MEASURED, PUBLISHED, style=style)
        width, height = figure.get_size_inches()
        assert width == style.double and height == (style.height or height)
        assert figure.axes[0].xaxis.label.get_fontsize() == style.font
    assert dict(matplotlib.rcParams) == before


def panels(height=8, width=12):
    image = np.zeros((height, width, 3), np.uint8)
    return [
        plots.Panel("photo", image),
        plots.Panel("ours", image, bpp=0.0834, psnr=25.561),
        plots.Panel("JPEG", image, bpp=0.17, psnr=21.4, note="its smallest file"),
    ]


def test_comparison_has_rows_columns_and_captions():
    figure = plots.comparison_figure([panels(), panels(30, 8)])
    assert len(figure.axes) == 6
    assert [axes.get_title() for axes in figure.axes[:3]] == ["photo", "ours", "JPEG"]
    captions = [axes.get_xlabel() for axes in figure.axes[:3]]
    assert captions == ["", "0.083 bpp, 25.56 dB", "0.170 bpp, 21.40 dB\nits smallest file"]
    assert all(len(axes.get_images()) == 1 for axes in figure.axes)


def test_comparison_text_does_not_overlap_the_next_row():
    figure = plots.comparison_figure([panels(), panels(), panels()])
    figure.savefig(io.BytesIO())
    upper, lower = figure.axes[2], figure.axes[5]
    assert upper.xaxis.label.get_window_extent().y0 >= lower.title.get_window_extent().y1


@pytest.mark.parametrize("rows", [[], [[]], [panels(), panels()[:2]]])
def test_uneven_rows_are_refused(rows):
    with pytest.raises(ValueError, match="expected rows"):
        plots.comparison_figure(rows)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1)])
def test_extreme_shapes_are_drawn(shape, tmp_path):
    pdf, png = plots.save(plots.comparison_figure([panels(*shape)]), tmp_path / "x")
    assert pdf.read_bytes().startswith(b"%PDF")
    with PillowImage.open(png) as picture:
        assert picture.format == "PNG" and min(picture.size) > 100


def test_saved_files_are_what_they_say_and_the_same_twice(tmp_path):
    figure = plots.rd_figure(MEASURED, PUBLISHED)
    pdf, png = plots.save(figure, tmp_path / "new" / "rd.v1")
    assert (pdf.name, png.name) == ("rd.v1.pdf", "rd.v1.png")
    assert pdf.read_bytes().startswith(b"%PDF")
    with PillowImage.open(png) as picture:
        assert picture.format == "PNG" and min(picture.size) > 500
    first = pdf.read_bytes(), png.read_bytes()
    plots.save(plots.rd_figure(MEASURED, PUBLISHED), tmp_path / "new" / "rd.v1")
    assert (pdf.read_bytes(), png.read_bytes()) == first
    assert sorted(os.listdir(tmp_path / "new")) == ["rd.v1.pdf", "rd.v1.png"]


def test_a_file_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write"):
        plots.save(plots.rd_figure(MEASURED, {}), tmp_path / "file" / "rd")


def test_no_pyplot_is_imported():
    root = Path(__file__).parents[1]
    program = "import sys, inrjax.plots; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"
