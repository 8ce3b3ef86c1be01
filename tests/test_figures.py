"""The figures of a paper: drawn from any results folder, legible, and the same twice."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from experiments.figures import __main__ as figures
from experiments.figures import bars, comparison, learning, numbers, scatter, tables
from experiments.figures.source import (
    ANCHOR,
    ESTIMATED,
    LATENT_GRID,
    METASIREN,
    NETWORKS,
    STRUMPLER,
    Source,
    is_complete,
)
from inrjax import metrics, plots, results
from inrjax.images import write_image
from inrjax.published import BEST_OF_OTHER_KINDS, METHODS
from inrjax.types import RDPoint

pytestmark = pytest.mark.unoptimized

ROOT = Path(__file__).parents[1]
FROM_ROWS = [name for name in figures.FIGURES if not name.startswith("comparison")]
IMAGES = [f"kodim{i:02d}" for i in range(1, 7)]


def make_row(codec: str, setting: str, image: str, bpp: float, psnr: float) -> RDPoint:
    return RDPoint(
        codec=codec, setting=setting, image=image, height=512, width=768,
        num_bytes=round(bpp * 49152), bpp=bpp, psnr=psnr, ssim=0.8, ms_ssim=0.7 + psnr / 200,
        encode_seconds=1.0 + bpp, decode_seconds=0.1, batch_size=6, seed=0, digest="00",
    )  # fmt: skip


def make_curve(codec: str, gain: float, count: int = 5) -> list[RDPoint]:
    """Rows that save a ``gain`` in log2 rate, with images that differ in difficulty and slope."""
    return [
        make_row(
            codec, f"q={i}", image, 0.05 * 2 ** (i - gain), 24 + 2.5 * i + 0.8 * j + 0.1 * i * j
        )
        for i in range(count)
        for j, image in enumerate(IMAGES)
    ]


def write_run(folder: Path, rows: list[RDPoint], date: str = "2026-01-01T00:00:00+00:00") -> Path:
    folder.mkdir(parents=True)
    results.write_rows(folder / "rows.csv", rows)
    finish(folder, date)
    return folder


def finish(folder: Path, date: str = "2026-01-01T00:00:00+00:00") -> None:
    entry = {"cpu": folder.parent.name, "cpu_count": 2, "date": date}
    results.write_json(folder / "config.json", {"images": "kodak"})
    results.write_json(folder / "provenance.json", [entry])
    (folder / "table.md").write_text("")


MEASURED = [
    *make_curve(METASIREN, 0.3),
    *make_curve(ANCHOR, 0.0),
    *make_curve("jpeg2000", 0.6),
    *make_curve("a codec of tomorrow", 0.1),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small results folder with everything that the figures read."""
    root = tmp_path / "results"
    write_run(root / "kodak_rd" / "aaa", MEASURED)
    more = ("avif", "vvc", "hevc", "jpeg-xl", "jpeg-mozjpeg", "jpeg-optimized-444")
    classic = [row for i, name in enumerate(more) for row in make_curve(name, 0.5 + 0.1 * i)]
    write_run(root / "classic_rd" / "bbb", classic)
    write_run(root / "grid_rd" / "ggg", make_curve(LATENT_GRID, 0.5))
    write_run(root / "kodak_rd" / "old", make_curve("coin", -0.5), "2025-01-01T00:00:00+00:00")
    strumpler = [
        replace(row, setting=f"{row.setting.replace('q', 'width')}_bits={bits}_steps=9")
        for name, bits, gain in (("basic", 8, -0.2), ("basic", 7, -0.1), ("meta", 7, 0.1))
        for row in make_curve(f"strumpler-{name}", gain)
    ]
    results.write_json(
        write_run(root / "strumpler" / "sss", strumpler) / "config.json", {"dataset": "kodak"}
    )
    for j, name in enumerate(("adam_learned", "adam_random", "muon_learned", "muon_random")):
        rows = [
            make_row(METASIREN, f"width=32_steps={steps}", image, 0.05, 20 + steps / 100 - j)
            for steps in (10, 100)
            for image in IMAGES
        ]
        (root / "init_gain" / "ccc" / name).mkdir(parents=True)
        results.write_rows(root / "init_gain" / "ccc" / name / "rows.csv", rows)
    finish(root / "init_gain" / "ccc")
    tensors = {f"layer_0{i}/{part}": 100.0 + i for i in range(5) for part in ("weight", "bias")}
    sections = {"container": 10, "init": 4, "grid": 26, "symbols": 130}
    row = {"image": "a", "sections": sections, "tensors": tensors}
    rows = [row | {"setting": f"width={w}", "num_bytes": w} for w in (24, 32)]
    (root / "sections" / "ddd").mkdir(parents=True)
    results.write_json(root / "sections" / "ddd" / "rows.json", rows)
    finish(root / "sections" / "ddd")
    published = ROOT / "results" / "published" / "kodak.csv"
    (root / "published").mkdir()
    (root / "published" / "kodak.csv").write_text(published.read_text("utf-8"), "utf-8")
    return root


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals from few draws."""
    monkeypatch.setattr(numbers.bd_rate_with_interval, "__defaults__", (20, None))


def pictures(folder: Path, photo) -> Path:
    folder.mkdir()
    for i in range(2):
        write_image(folder / f"{i}.png", photo(40, 56, i))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("style", ["print", "slides"])
def test_all_leaves_every_figure_of_the_registry(root, tmp_path, photo, quick, style) -> None:
    options = figures.Options(
        "all", style, results=root, images=pictures(tmp_path / "in", photo), width=24, num_steps=2,
        cache=tmp_path / "cache",
    )  # fmt: skip
    written = figures.main(options)
    folder = root / "figures" / ("slides" if style == "slides" else "")
    names = {f"{name}.{ending}" for name in figures.FIGURES for ending in ("pdf", "png")}
    if style == "print":
        names |= {f"tables/{name}.{ending}" for name in tables.TABLES for ending in ("md", "tex")}
    assert {str(path.relative_to(folder)) for path in written} == names
    assert all(path.stat().st_size > 500 for path in written if path.suffix in (".pdf", ".png"))
    assert all(b"/Type3" not in path.read_bytes() for path in written if path.suffix == ".pdf")


@pytest.mark.parametrize("name", ["rd_psnr", "images"])
def test_the_same_rows_give_the_same_bytes(root, tmp_path, name) -> None:
    first, again = (
        [p.read_bytes() for p in figures.draw(name, Source(root), plots.PRINT, tmp_path / folder)]
        for folder in ("first", "again")
    )
    assert first == again


# ---------------------------------------------------------------------------- legibility


@pytest.mark.parametrize("style", [plots.PRINT, plots.SLIDES], ids=["print", "slides"])
@pytest.mark.parametrize("name", FROM_ROWS)
def test_legends_and_letters_cover_nothing(root, quick, name, style) -> None:
    """No legend touches an axes, no text of one axes another's, and all of it is on the page."""
    with style.context():
        figure = figures.FIGURES[name](Source(root), style)
        figure.draw_without_rendering()
    page = figure.bbox.padded(1)
    renderer = figure._get_renderer()
    legends = [legend.get_window_extent(renderer) for legend in figure.legends]
    assert not any(axes.get_legend() for axes in figure.axes)
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    for legend in legends:
        assert not any(legend.overlaps(box) for box in boxes)
    for one, other in combinations(boxes, 2):
        assert not one.padded(-2).overlaps(other.padded(-2))
    every = figure.get_tightbbox(renderer).transformed(figure.dpi_scale_trans)
    for box in (*legends, *boxes, every):
        assert page.x0 <= box.x0 and box.x1 <= page.x1
        assert page.y0 <= box.y0 and box.y1 <= page.y1


@pytest.mark.parametrize("style", [plots.PRINT, plots.SLIDES], ids=["print", "slides"])
def test_the_committed_figures_letters_do_not_collide(style, quick) -> None:
    """Of the rows that are here, which no synthetic ones stand for."""
    for name in ("bd_rate", "sections", "images"):
        with style.context():
            figure = figures.FIGURES[name](Source(ROOT / "results"), style)
            figure.draw_without_rendering()
        renderer = figure._get_renderer()
        for axes in figure.axes:
            boxes = [t.get_window_extent(renderer) for t in axes.texts if t.get_text()]
            for one, other in combinations(boxes, 2):
                assert not one.padded(-1.5).overlaps(other.padded(-1.5)), name
            for dots in axes.collections:
                for x, y in dots.get_offset_transform().transform(dots.get_offsets()):
                    assert not any(box.padded(-1).contains(x, y) for box in boxes), name


def test_no_two_codecs_share_marker_and_dash() -> None:
    known = [*plots.MEASURED.values(), *plots.PUBLISHED.values()]
    assert len({(look.marker, look.dash) for look in known}) == len(known)
    assert all(not look.dash for look in plots.MEASURED.values())
    assert all(look.dash for look in plots.PUBLISHED.values())


def test_every_colour_is_seen_on_white_and_in_grey() -> None:
    for look in (*plots.MEASURED.values(), *plots.PUBLISHED.values()):
        red, green, blue = (int(look.colour[i : i + 2], 16) for i in (1, 3, 5))
        assert 0.299 * red + 0.587 * green + 0.114 * blue < 180


def test_an_unknown_codec_takes_a_look_of_its_own() -> None:
    names = [*plots.MEASURED, "zz", "aa"]
    looks = plots.measured_looks(names)
    assert list(looks) == names and looks["aa"].label == "aa"
    assert len({look.marker for look in looks.values()}) == len(names)
    assert plots.measured_looks(["aa", "zz"])["aa"] == looks["aa"]
    with pytest.raises(ValueError, match="at most"):
        plots.measured_looks(str(i) for i in range(99))


def test_published_looks_are_called_and_dashed_as_the_one_table_says() -> None:
    for method in (m for m in METHODS if m.name in plots.PUBLISHED):
        look = plots.PUBLISHED[method.name]
        assert look.label == method.label
        assert (look.dash == plots.PUBLISHED["C3"].dash) == method.is_estimate


def test_every_published_method_that_is_drawn_has_a_look_and_estimates_are_documented() -> None:
    points = results.read_published(ROOT / "results" / "published" / "kodak.csv")
    methods = {point.method for point in points}
    assert {*NETWORKS, *BEST_OF_OTHER_KINDS} <= set(plots.PUBLISHED)
    assert set(ESTIMATED) < methods
    readme = (ROOT / "results" / "published" / "README.md").read_text("utf-8")
    estimates = [
        line
        for line in readme.splitlines()
        if line.startswith("|") and ("rates are estimates" in line or "no file is" in line)
    ]
    for name in ESTIMATED:
        assert any(name.split(" ")[0] in line for line in estimates)


# ---------------------------------------------------------------------------- which rows


def test_the_newest_complete_run_is_read(root) -> None:
    newer = write_run(root / "kodak_rd" / "000", MEASURED[:60], "2026-02-01T00:00:00+00:00")
    unfinished = write_run(root / "kodak_rd" / "zzz", MEASURED[:60], "2026-03-01T00:00:00+00:00")
    (unfinished / "table.md").unlink()
    assert not is_complete(unfinished) and results.date_of_rows(newer) < results.date_of_rows(
        unfinished
    )
    assert Source(root).folder("kodak_rd") == newer
    older = root / "kodak_rd" / "aaa"
    assert Source(root, runs=(older,)).folder("kodak_rd") == older
    with pytest.raises(ValueError, match="not a complete run"):
        Source(root, runs=(unfinished,)).folder("kodak_rd")


def test_a_missing_experiment_is_named_and_classic_rd_is_not_needed(root) -> None:
    import shutil

    shutil.rmtree(root / "classic_rd")
    assert "avif" not in Source(root).summaries
    shutil.rmtree(root / "init_gain")
    with pytest.raises(ValueError, match=r"python -m experiments\.init_gain"):
        learning.meta_learning(Source(root), plots.PRINT)


def test_each_codec_comes_from_the_first_run_that_has_it(root) -> None:
    write_run(root / "classic_rd" / "eee", make_curve(ANCHOR, 5.0), "2026-02-01T00:00:00+00:00")
    found = Source(root).found
    where = {name: found[name].run.name for name in (METASIREN, ANCHOR, "coin", LATENT_GRID)}
    assert where == {METASIREN: "aaa", ANCHOR: "aaa", "coin": "old", LATENT_GRID: "ggg"}
    named = root / "classic_rd" / "eee"
    assert Source(root, runs=(named,)).found[ANCHOR].run == named
    for name in STRUMPLER:  # one curve for each number of bits
        assert len(Source(root).summaries[name]) == 5


def test_runs_on_other_images_are_left_out(root) -> None:
    run = write_run(root / "grid_rd" / "hhh", make_curve("x", 1.0)[:9], "2026-02-01T00:00:00+00:00")
    results.write_json(run / "config.json", {"images": "cid22-held-back"})
    assert "x" not in Source(root).found


def test_metasiren_has_to_be_there_and_latent_grids_need_not(root) -> None:
    import shutil

    shutil.rmtree(root / "grid_rd")
    assert Source(root).ours == (METASIREN,)
    shutil.rmtree(root / "kodak_rd")
    with pytest.raises(ValueError, match=r"python -m experiments\.kodak_rd"):
        _ = Source(root).found


def test_lossless_codecs_have_no_curve(root) -> None:
    rows = [replace(row, codec="png", psnr=float("inf")) for row in make_curve("png", 0.0, 1)]
    write_run(
        root / "classic_rd" / "eee", [*make_curve("avif", 0.9), *rows], "2026-02-01T00:00:00+00:00"
    )
    assert "avif" in Source(root).summaries and "png" not in Source(root).summaries


def test_rows_of_other_images_are_refused(root) -> None:
    write_run(root / "classic_rd" / "eee", make_curve("avif", 0.9)[:3], "2026-02-01T00:00:00+00:00")
    with pytest.raises(ValueError, match="avif q=0 on 3 images"):
        _ = Source(root).measured


# ---------------------------------------------------------------------------- numbers


def test_interpolation_meets_the_points_and_never_leaves_them() -> None:
    curve = [(0.1, 25.0), (0.2, 27.0), (0.4, 30.0)]
    for rate, value in curve:
        assert numbers.at_rate(curve, rate) == pytest.approx(value)
    assert 25 < (numbers.at_rate(curve, 0.15) or 0) < 27
    assert numbers.at_rate(curve, 0.099) is None and numbers.at_rate(curve, 0.41) is None


def test_a_curve_is_as_far_above_points_as_it_was_raised() -> None:
    points = [(0.4, 30.0), (0.1, 25.0), (0.2, 27.0)]
    raised = [(rate, value + 0.5) for rate, value in points]
    ahead = numbers.ahead_at(raised, [*points, (0.05, 20.0), (0.5, 40.0)])
    assert list(ahead) == [0.1, 0.2, 0.4]  # as far as it goes
    assert list(ahead.values()) == pytest.approx([0.5, 0.5, 0.5])


def test_a_bd_rate_can_be_of_some_decibels_only() -> None:
    """Half of the bits at low qualities, all of them at high ones."""
    anchor = [(0.1, 20.0), (0.2, 22.0), (0.4, 24.0), (0.8, 26.0), (1.6, 28.0)]
    curve = [(rate * (0.5 if psnr < 24 else 1), psnr) for rate, psnr in anchor]
    cuts = ((10.0, 22.0), None, (26.0, 40.0))
    low, whole, high = (numbers.bd_rate(anchor, curve, cut) for cut in cuts)
    assert low is not None and whole is not None and high is not None
    assert low.percent < -45 and low.percent < whole.percent < high.percent < 5
    assert [(b.low_db, b.high_db) for b in (low, whole, high)] == [(20, 22), (20, 28), (26, 28)]
    assert numbers.bd_rate(anchor, curve, (10.0, 19.0)) is None


def test_the_interval_of_a_constant_saving_has_no_width() -> None:
    """Every image saves the same share of the bits, so does every draw of images."""
    rows = make_curve(ANCHOR, 0.0)
    ours = [replace(row, codec=METASIREN, bpp=0.6 * row.bpp) for row in rows]
    found = numbers.bd_rate_with_interval([*rows, *ours], ANCHOR, METASIREN, 50)
    assert found is not None
    np.testing.assert_allclose(found.of_means, -40)


def test_the_interval_holds_the_value_that_metrics_gives_and_spans_the_images() -> None:
    rows = make_curve(ANCHOR, 0.0)
    ours = [
        replace(row, codec=METASIREN, bpp=row.bpp * (0.5 if row.image < "kodim04" else 0.9))
        for row in rows
    ]
    found = numbers.bd_rate_with_interval([*rows, *ours], ANCHOR, METASIREN)
    means = results.measured_curves(results.summarise([*rows, *ours]))
    expected = metrics.bd_rate(*zip(*means[ANCHOR]), *zip(*means[METASIREN])).percent  # noqa: B905
    assert found is not None and found.of_means.value == pytest.approx(expected)
    low, high = found.of_means.low, found.of_means.high
    assert low is not None and high is not None and -50 <= low < expected < high <= -10
    assert numbers.bd_rate_with_interval([*rows, *ours], ANCHOR, METASIREN) == found


def test_curves_without_overlap_have_no_bd_rate() -> None:
    rows = make_curve(ANCHOR, 0.0)
    ours = [replace(row, codec=METASIREN, psnr=row.psnr + 50) for row in rows]
    assert numbers.bd_rate_with_interval([*rows, *ours], ANCHOR, METASIREN, 5) is None


def test_a_point_that_costs_more_and_is_worse_does_not_count() -> None:
    anchor = [(0.1, 25.0), (0.2, 27.0), (0.4, 29.0)]
    assert numbers.frontier([*anchor, (0.8, 24.0)]) == anchor
    curve = [(0.1, 26.0), (0.3, 30.0)]
    assert numbers.bd_rate([*anchor, (0.8, 24.0)], curve) == numbers.bd_rate(anchor, curve)


def test_the_lead_is_taken_image_by_image(root) -> None:
    leads = learning.lead_by_optimizer(learning.read(root / "init_gain" / "ccc"))
    assert list(leads) == ["muon", "adam"]
    for lead in leads.values():
        assert list(lead) == [10, 100]
        np.testing.assert_allclose([list(interval) for interval in lead.values()], 1)


def test_outliers_are_the_ends() -> None:
    values = {str(i): float(i) for i in range(9)}
    assert scatter.outliers(values, 2) == ["0", "1", "7", "8"]


def test_published_bd_rates_have_no_interval_and_measured_ones_do(root, quick) -> None:
    source = Source(root)
    published, measured = bars.published_lines(source), bars.measured_lines(source)
    assert all(value.ends is None for line in published for value in line.values.values())
    assert {line.label for line in measured} == {
        look.label
        for name, look in plots.measured_looks(source.summaries).items()
        if name not in (METASIREN, LATENT_GRID)
    }
    for line in measured:
        assert list(line.values) == [METASIREN, LATENT_GRID]
        assert all(v.ends and v.ends[0] <= v.ends[1] for v in line.values.values())


def test_a_bd_rate_over_less_than_a_decibel_is_not_drawn(root, quick, monkeypatch) -> None:
    source = Source(root)
    name = next(n for n in source.summaries if n not in (METASIREN, LATENT_GRID))
    found = numbers.bd_rate_with_interval(source.measured, name, METASIREN)
    assert found is not None
    label = plots.measured_looks([name])[name].label
    for least, drawn in ((found.high - found.low, True), (found.high - found.low + 1e-6, False)):
        monkeypatch.setattr(bars, "LEAST_OVERLAP", least)
        lines = {line.label: line.values for line in bars.measured_lines(source)}
        assert (METASIREN in lines.get(label, {})) == drawn


def test_half_the_bits_and_double_stand_equally_far() -> None:
    assert bars.on_axis(0) == 0 and bars.on_axis(-50) == -bars.on_axis(100) == -1


# ---------------------------------------------------------------------------- pictures


def test_the_nearest_file_in_bytes_is_found(photo) -> None:
    image = photo(64, 80)
    _, codecs = comparison.others(image)[0]
    sizes = [len(codec.encode([image])[0]) for codec in codecs]
    for wanted in (sizes[0] - 50, sizes[20] + 1, sizes[-1] + 1):
        found = comparison.nearest("JPEG", codecs, image, wanted)
        assert abs(found.num_bytes - wanted) == min(abs(size - wanted) for size in sizes)


def test_the_window_is_where_the_errors_are() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image_hat = image.copy()
    image_hat[24:32, 40:48] = 99
    found = comparison.worst_window(image, [comparison.Coded("x", 1, image_hat)], 8)
    assert found == (24, 40)


def test_a_kept_stream_is_not_fitted_again(tmp_path, photo) -> None:
    fit = comparison.Fit(comparison.packaged_init(24).short_digest, width=24, num_steps=2)
    shown = {"a": photo(24, 32)}
    first = comparison.our_streams(shown, fit, tmp_path)
    [path] = tmp_path.rglob("*.inr")
    path.write_bytes(b"kept")
    assert comparison.our_streams(shown, fit, tmp_path) == {"a": b"kept"}
    assert len(first["a"]) > 100


# ---------------------------------------------------------------------------- tables


def test_a_rate_beyond_a_curve_is_an_empty_cell(root, quick) -> None:
    table = tables.measured(Source(root))
    ours = next(line for line in table.lines if "MetaSiren" in line[0])
    by_name = dict(zip(table.header, ours, strict=True))
    assert by_name["0.1 bpp"] and not by_name["0.1 bpp"].startswith("0")
    few = [row for row in MEASURED if row.codec != METASIREN or row.setting in ("q=0", "q=1")]
    write_run(root / "kodak_rd" / "few", few, "2026-02-01T00:00:00+00:00")
    ours = next(line for line in tables.measured(Source(root)).lines if "MetaSiren" in line[0])
    assert dict(zip(table.header, ours, strict=True))["0.25 bpp"] == ""


def test_markdown_and_latex_say_the_same(root, quick) -> None:
    for make in tables.TABLES.values():
        table = make(Source(root))
        markdown, latex = tables.as_markdown(table), tables.as_latex(table)
        assert markdown.count("\n| ") == latex.count(r"\\") + 1 == len(table.lines) + 2
        numbers_in = [re.findall(r"\d+\.\d+", text.split("tabular")[0]) for text in (markdown,)]
        body = latex.split(r"\begin{tabular}")[1]
        for cells in table.lines:
            for cell in cells[2:]:
                for number in re.findall(r"\d+\.\d+", cell):
                    assert number in body
        assert numbers_in and latex.count(r"\toprule") == latex.count(r"\bottomrule") == 1


def test_latex_characters_are_escaped() -> None:
    assert tables.latex_text("a_b & 5 % -3.1") == r"a\_b \& 5 \% $-3.1$"
    assert tables.latex_text("24.5-30.3") == "24.5--30.3"
    assert tables.latex_text("x\\{y}") == r"x\textbackslash{}\{y\}"


def test_measured_and_published_never_share_a_table(root, quick) -> None:
    measured, published = tables.measured(Source(root)), tables.published(Source(root))
    assert {line[0] for line in measured.lines} == {
        look.label for look in plots.measured_looks(Source(root).summaries).values()
    }
    assert "Against published curves" in published.caption


def test_the_docstrings_say_what_and_from_which_rows() -> None:
    import sys

    for name, function in figures.FIGURES.items():
        module = sys.modules[function.__module__]
        assert function.__doc__ and re.search("[Rr]ows", module.__doc__ or ""), name
    text = (figures.__doc__ or "").lower()
    assert all(word in text for word in ("command:", "seconds:", "expected:"))


def test_sections_smoke(tmp_path) -> None:
    from experiments import sections

    folder = sections.main(sections.Options(output=tmp_path, smoke=True))
    rows = json.loads((folder / "rows.json").read_text("utf-8"))
    assert len(rows) == 3
    [parts] = sections.mean_parts(rows).values()
    assert sum(parts.values()) == pytest.approx(np.mean([row["num_bytes"] for row in rows]))
    with pytest.raises(ValueError, match="no streams"):
        sections.streams_of_run(tmp_path)
