"""Every experiment has a smoke mode, and what it writes is what it says."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bases import tiny_base
from conftest import photograph

from experiments import common
from inrjax import datasets, grids, results, trees
from inrjax.init import packaged_init, save_init
from inrjax.types import RDPoint

pytestmark = pytest.mark.unoptimized

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    path.stem
    for path in (ROOT / "experiments").glob("*.py")
    if path.stem not in ("__init__", "common")
)


@pytest.mark.parametrize("name", MODULES)
def test_the_docstring_holds_claim_command_and_minutes(name: str) -> None:
    text = (importlib.import_module(f"experiments.{name}").__doc__ or "").lower()
    for word in ("command", f"python -m experiments.{name}", "minutes:", "expected:"):
        assert word in text, f"{name} does not say its {word}"


@pytest.mark.parametrize("name", MODULES)
def test_a_command_starts_and_tells_its_options(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of those whose smoke run is `slow`, too."""
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'experiments", RuntimeWarning)  # imported before it runs
        runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    assert not ended.value.code and "usage: " in capsys.readouterr().out


@pytest.mark.parametrize("name", MODULES)
def test_a_result_is_written_whole_or_not_at_all(name: str) -> None:
    """`results.write_text` and `plots.save`: a kill inside of another call leaves half a file."""
    text = (ROOT / "experiments" / f"{name}.py").read_text("utf-8")
    if name != "benchmark_gpu":  # which a machine runs without the rest of the package
        assert not re.search(r'table[^\n]*\.md"\)?\.write_text|savefig\(path', text)


@pytest.fixture(scope="module")
def kodak_smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of kodak_rd, in ``<results>/kodak_rd/<hash>``."""
    from experiments import kodak_rd

    root = tmp_path_factory.mktemp("results")
    return kodak_rd.main(kodak_rd.Options(output=root / "kodak_rd", smoke=True))


def test_kodak_rd_smoke(kodak_smoke: Path) -> None:
    from experiments import kodak_rd

    folder = kodak_smoke
    rows = results.read_rows(folder / "rows.csv")
    wanted = {(c.name, c.setting) for c in kodak_rd.build_codecs(kodak_rd.SMOKE)}
    assert {(row.codec, row.setting) for row in rows} == wanted
    assert len(rows) == 3 * len(wanted)
    assert all(row.bpp == 8 * row.num_bytes / (row.height * row.width) for row in rows)
    costs = json.loads((folder / "cost.json").read_text())
    assert costs["encode_alone_seconds"] > costs["decode_cold_seconds"] > 0
    table = (folder / "table.md").read_text()
    assert "meta-siren" in table and "jpeg-optimized" in table
    assert (folder / "rd.png").stat().st_size > 1000 and (folder / "provenance.json").exists()
    # Without COIN there is no table of it.
    config = replace(kodak_rd.SMOKE, coin_shapes=())
    others = [row for row in rows if row.codec != "coin"]
    bare = kodak_rd.table(config, others, results.summarise(others), costs)
    assert "COIN" in table and "COIN" not in bare
    # Without MetaSiren, none of what is about it.
    config = replace(kodak_rd.SMOKE, widths=())
    others = [row for row in rows if row.codec != "meta-siren"]
    bare = kodak_rd.table(config, others, results.summarise(others), {})
    assert "## COIN" in bare and "MetaSiren" not in bare and "Cost" not in bare


def test_kodak_rd_smoke_of_shapes_that_were_not_published(kodak_smoke: Path) -> None:
    from experiments import kodak_rd

    rows = results.read_rows(kodak_smoke / "rows.csv")
    config = replace(kodak_rd.SMOKE, coin_shapes=((8, 2),))
    coin = kodak_rd.codecs.Coin(8, 2, config.coin_steps).setting
    renamed = [replace(r, setting=coin) if r.codec == "coin" else r for r in rows]
    table = kodak_rd.table(replace(config, widths=()), renamed, results.summarise(renamed), {})
    [line] = [line for line in table.splitlines() if line.startswith("| 2x8 |")]
    assert line.endswith("|  |  |")


def test_kodak_rd_redraws_what_was_measured_and_nothing_else(
    kodak_smoke: Path, tmp_path: Path
) -> None:
    from experiments import kodak_rd

    table = (kodak_smoke / "table.md").read_bytes()
    (kodak_smoke / "table.md").unlink()
    options = kodak_rd.Options(output=kodak_smoke.parent, smoke=True, redraw=True)
    assert kodak_rd.main(options) == kodak_smoke
    assert (kodak_smoke / "table.md").read_bytes() == table
    with pytest.raises(SystemExit, match="without --redraw first"):
        kodak_rd.main(replace(options, output=tmp_path))
    assert not [*tmp_path.iterdir()]
    with pytest.raises(SystemExit, match="40"):
        kodak_rd.main(kodak_rd.Options(config=kodak_rd.Config(widths=(40,)), output=tmp_path))


def test_one_encode_is_timed_by_options_that_make_the_configs_file_or_not_at_all() -> None:
    from experiments.kodak_rd import Config, encode_options

    plain = ["--width", "24", "--seed", "0"]
    assert encode_options(Config(), 24) == [*plain, "--preset", "default"]
    best = Config(num_steps=24_000, search_steps=48)
    assert encode_options(best, 24) == [*plain, "--preset", "best"]
    assert encode_options(Config(num_steps=7, seed=3), 24) == [*plain[:3], "3", "--steps", "7"]
    for other in (
        Config(slope=0.6), Config(learning_rate=1e-3), Config(points_per_step=64),
        Config(num_steps=7, search_steps=48),
    ):  # fmt: skip
        assert encode_options(other, 24) is None


def test_a_commands_memory_is_not_that_of_the_process_that_starts_it() -> None:
    from experiments import kodak_rd

    held = np.ones(300 * 2**20, np.uint8)  # more than `inrjax inits list` ever needs
    _, peak = kodak_rd.time_cli(["inits", "list"])
    assert 0.01 < peak < held.nbytes / 2**30


def test_classic_rd_smoke(tmp_path: Path) -> None:
    for package in ("pyvips", "imagecodecs", "pillow_heif"):
        pytest.importorskip(package)
    from experiments import classic_rd

    folder = classic_rd.main(classic_rd.Options(output=tmp_path, smoke=True))
    rows = results.read_rows(folder / "rows.csv")
    wanted = {(c.name, c.setting) for c in classic_rd.build_codecs(classic_rd.SMOKE)}
    assert {(row.codec, row.setting) for row in rows} == wanted
    assert len(rows) == 3 * len(wanted)
    table = (folder / "table.md").read_text()
    names = {name for name, _ in wanted}
    assert names == set(classic_rd.FLAGS) - {"vvc"}
    assert all(f"| {name} | " in table for name in names)
    [record] = json.loads((folder / "provenance.json").read_text())
    libraries = ("imagecodecs/libjxl", "pillow-heif/x265", "pillow/avif", "pyvips-binary")
    assert all(record["versions"][name] for name in libraries)
    before = (folder / "rows.csv").read_bytes(), (folder / "table.md").read_bytes()
    classic_rd.main(classic_rd.Options(output=tmp_path, smoke=True))  # nothing is measured twice
    assert before == ((folder / "rows.csv").read_bytes(), (folder / "table.md").read_bytes())


@pytest.mark.slow
def test_init_gain_smoke(tmp_path: Path) -> None:
    from experiments import init_gain

    folder = init_gain.main(init_gain.Options(output=tmp_path, smoke=True))
    table = (folder / "table.md").read_text()
    assert all(f"| {o} | {i} |" in table for o in ("Muon", "Adam") for i in ("learned", "random"))


def test_defaults_smoke(tmp_path: Path) -> None:
    from experiments import defaults

    folder = defaults.main(defaults.Options(output=tmp_path, smoke=True))
    table = (folder / "table.md").read_text()
    assert "| default |" in table and "| prior mean: the init |" in table


@pytest.mark.slow
def test_product_quantization_smoke(tmp_path: Path) -> None:
    from experiments import product_quantization as experiment

    folder = experiment.main(experiment.Options(output=tmp_path, smoke=True))
    rows = results.read_rows(folder / "rows.csv")
    wanted = [(codec.name, codec.setting) for codec in experiment.build_codecs(experiment.SMOKE)]
    assert [(row.codec, row.setting) for row in rows] == wanted
    table = (folder / "table.md").read_text()
    assert table.count("| 24 | 2 | 8 |") == 2 and "rounding, same net: of 2 products" in table
    # Both settings of one fit: the one that was tuned is nearer.
    tuned, plain = (row.psnr for row in rows if row.codec == "product-siren")
    assert tuned > plain


def test_a_score_is_read_off_the_curve_and_nothing_is_extended() -> None:
    from experiments.common import psnr_at

    curve = [(400, 30.0), (100, 20.0), (200, 26.0)]
    assert psnr_at(curve, 200) == pytest.approx(26.0)
    assert psnr_at(curve, 283) == pytest.approx(28.0, abs=0.01)  # half an octave on
    assert psnr_at(curve, 99) is None and psnr_at(curve, 401) is None


@pytest.mark.slow
def test_coinpp_smoke(tmp_path: Path) -> None:
    from experiments import coinpp

    folder = coinpp.smoke(tmp_path)
    for name, count in (("cifar-10", 2), ("kodak", 1)):
        rows = results.read_rows(folder / name / "rows.csv")
        assert len(rows) == 2 * count
        assert all(row.bpp == 8 * row.num_bytes / (row.height * row.width) for row in rows)
    table = (folder / "table.md").read_text()
    assert table.count("| CIFAR-10 | 2 |") == 2 and table.count("| Kodak | 1 |") == 2
    before = table, (folder / "kodak" / "rows.csv").read_bytes()
    coinpp.smoke(tmp_path)  # nothing is trained or measured twice
    assert before == (
        (folder / "table.md").read_text(), (folder / "kodak" / "rows.csv").read_bytes(),
    )  # fmt: skip


def test_a_base_is_trained_where_range_coder_and_command_line_libraries_are_missing(
    tmp_path: Path,
) -> None:
    program = f"""
import sys
for name in ("constriction", "tyro", "rich", "matplotlib"):
    sys.modules[name] = None
from pathlib import Path
from experiments import coinpp
coinpp.train(coinpp.SMOKE.training, "smoke", None, Path({str(tmp_path / "base.npz")!r}), None)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(SystemExit, match="another base"):
        from experiments import coinpp

        coinpp.train(
            replace(coinpp.SMOKE.training, seed=1), "smoke", None, tmp_path / "base.npz", None
        )


@pytest.mark.slow
def test_optimizers_smoke(tmp_path: Path) -> None:
    from experiments import optimizers

    path = optimizers.main(optimizers.Options(output=tmp_path, smoke=True))
    table, timing = path.read_text(), json.loads((path.parent / "timing.json").read_text())
    assert table.count("| Muon | ") == 3 and "To " in table and "gain dB" in table
    assert all(row["step_seconds"] > row["update_seconds"] > 0 for row in timing["rows"])
    # No last layer has a smaller mse than the exact solution, but for the rounding of its file.
    gains = [line.split(" | ")[4] for line in table.splitlines() if "e+" in line]
    assert len(gains) == 2 and min(map(float, gains)) > -0.05


@pytest.mark.slow
def test_strumpler_smoke(tmp_path: Path) -> None:
    from experiments import strumpler

    folder = strumpler.main(strumpler.Options(output=tmp_path, smoke=True))
    rows = results.read_rows(folder / "rows.csv")
    assert [row.codec for row in rows] == ["strumpler-basic", "strumpler-meta"]
    side = json.loads((folder / "side.json").read_text())
    for row in rows:
        assert 35 < side[f"{row.codec} {row.setting}"] < 200 < row.num_bytes
    table = (folder / "table.md").read_text()
    assert table.count("| basic, 8 bit |") == table.count("| meta-learned, 7 bit |") == 2
    columns = next(line for line in table.splitlines() if "against published" in line)
    assert columns.count("against published: ") == 2 and "measured here" in columns


def test_strumpler_compares_with_jpeg_and_with_the_published_curves(
    data_root: Path, tmp_path: Path
) -> None:
    """The committed JPEG rows of Kodak, under another name, beside the JPEG rows themselves."""

    from experiments import strumpler
    from inrjax.images import read_image

    images = {path.stem: read_image(path).image for path in datasets.kodak(data_root)}
    jpeg = strumpler.measured_jpeg(images)
    assert {row.image for row in jpeg} == set(images)
    config = replace(strumpler.Config(), basic_bits=(8,), meta_bits=())
    [series] = strumpler.build_series(config).values()
    qualities = sorted({row.setting for row in jpeg}, key=lambda s: int(s.split("=")[-1]))
    names = dict(zip(qualities, (codec.setting for codec in series), strict=False))
    rows = [
        replace(row, codec=series[0].name, setting=names[row.setting])
        for row in jpeg
        if row.setting in names
    ]
    [line] = strumpler._bd_rates(config, rows, images).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert float(cells[1].split(" %")[0]) == pytest.approx(0, abs=0.2)
    assert all(" dB" in cell for cell in cells[2:])


@pytest.mark.slow
def test_activations_smoke(tmp_path: Path) -> None:
    from experiments import activations

    options = activations.Options(output=tmp_path, smoke=True)
    folder = activations.main(options)
    rows = activations.read_rows(folder / "scores.csv", activations.Row)
    assert len(rows) == 2 * 2 * activations.SMOKE.num_images
    assert all(5 < row.psnr < 60 for row in rows)
    table = (folder / "table.md").read_text()
    assert table.count("| sine |") == 2 and table.count("| ReLU + encoding |") == 2
    trials = json.loads((folder / "trials.json").read_text())["ReLU + encoding, Adam"]
    assert len(trials) == 3 and trials[0]["psnr"] == max(trial["psnr"] for trial in trials)
    activations.main(options)  # nothing is measured twice
    assert activations.read_rows(folder / "scores.csv", activations.Row) == rows
    assert (folder / "table.md").read_text() == table


def test_edges_of_what_was_tried() -> None:
    from experiments.activations import edges

    trials = [
        {"factor": factor, "ratio": None, "rate": rate}
        for rate in (0.3, 0.2, 0.1)
        for factor in (20, 10, 30)
    ]
    assert edges(trials) == ["highest rate"]
    assert edges(trials[1:]) == ["lowest factor", "highest rate"]
    assert edges(trials[:1]) == []


def test_nets_of_activations_are_siren_s_where_they_should_be() -> None:
    import jax
    import numpy as np

    from experiments import activations
    from inrjax.images import coordinates
    from inrjax.nets.siren import Encoding, Siren

    assert len({method.net.num_params for method in activations.METHODS}) == 2
    ours = activations.Mlp(activations.Sine(), 66, 5, 2)
    siren = Siren(5, 2, encoding=Encoding(16, 1.3))
    params, coords = siren.init(jax.random.key(0)), coordinates(3, 4)
    assert ours.num_params == siren.num_params
    # Encodings hold the same features, in another order.
    order = [0, 1, *(2 + 2 * i + axis for i in range(32) for axis in range(2))]
    features = activations.encode(coords, siren.encoding)[:, order]
    np.testing.assert_allclose(
        ours.apply_columns(params, features.T, siren.w0).T, siren.apply(params, coords), atol=1e-4
    )
    for activation, bound in ((activations.Finer(), 6), (activations.Sine(), 6)):
        net = activations.Mlp(activation, 2, 50, 1)
        first, last = net.init(jax.random.key(1), 30.0, 4.0).values()
        assert 3.5 < abs(first["bias"]).max() <= 4 and 0.45 < abs(first["weight"]).max() <= 0.5
        assert abs(last["weight"]).max() <= (bound / 50) ** 0.5 / 30


@pytest.mark.slow
def test_coconet_smoke(tmp_path: Path) -> None:
    from experiments import activations, coconet

    options = coconet.Options(output=tmp_path, smoke=True)
    folder = coconet.main(options)
    rows = activations.read_rows(folder / "scores.csv", coconet.Row)
    assert len(rows) == coconet.SMOKE.num_images * (4 + 1 + 2 * len(coconet.SMOKE.methods))
    by_method = {(row.task, row.method, row.image): row.psnr for row in rows}
    for (task, method, image), psnr in by_method.items():
        if (task, method) == ("denoising", "total variation"):
            assert psnr > by_method[task, "nothing", image]
    table = (folder / "table.md").read_text()
    assert table.count("| CocoNet |") == 2 and (folder / "steps.png").stat().st_size > 1000
    coconet.main(options)  # nothing is measured twice
    assert (folder / "table.md").read_text() == table


def test_coconet_s_inputs_and_tasks() -> None:
    import numpy as np

    from experiments import coconet

    features = coconet.CocoInputs()((4, 6), (4, 6)).reshape(4, 6, 6)
    y, x = 1.5, 4.5  # of pixel (1, 4)
    expected = [y, x, 4 - y, 6 - x, np.hypot(y - 2, x - 3), np.arctan2(x, y)]
    np.testing.assert_allclose(features[1, 4], expected, rtol=1e-5)
    fine = coconet.CocoInputs()((8, 12), (4, 6)).reshape(8, 12, 6)
    means = fine.reshape(4, 2, 6, 2, 6).mean(axis=(1, 3))
    np.testing.assert_allclose(means[..., :4], features[..., :4], rtol=1e-5)  # the same places
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert coconet.shrink(image, 2)[0, 0].tolist() == [8, 9, 10]  # of 0 3 12 15, 1 4 13 16, ...
    grey = np.full((64, 64, 3), 128, np.uint8)
    noise = coconet.add_noise(grey, 20.0, 0).astype(float) - 128
    assert abs(noise.std() - 20) < 0.5 and abs(noise.mean()) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("question", ["methods", "rounds"])
def test_meta_learning_smoke(tmp_path: Path, question: Any) -> None:
    from experiments import meta_learning

    options = meta_learning.Options(output=tmp_path, smoke=True, question=question)
    folder = meta_learning.main(options)
    [learner] = meta_learning.SMOKES[question].learners
    names = [meta_learning.reference(24), learner.name, meta_learning.NO_PRIOR]
    tables = sorted(folder.glob("*/adam/rows.csv"))
    assert len(tables) == len(names)
    for table in tables:
        settings = {row.setting for row in results.read_rows(table)}
        assert settings == {f"width=24_steps={n}" for n in (0, 3, 40)}
    text = (folder / "table.md").read_text()
    assert all(f"| {name} |" in text for name in names) and "Does it save 15 %" in text
    assert (folder / "lead.png").stat().st_size > 1000
    from inrjax.init import load_init

    nets = {load_init(path).net for path in (folder / "streams" / "inits").glob("*.npz")}
    assert len(nets) == 1  # all start with the same net: only its weights are compared
    meta_learning.main(options)  # nothing is measured twice
    assert (folder / "table.md").read_text() == text


def test_rounds_of_meta_learning_go_on_from_what_they_follow(tmp_path: Path) -> None:
    from experiments import meta_learning

    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (24, 24, 3), np.uint8) for _ in range(8)]
    config = replace(meta_learning.SMOKE, width=6, prior_steps=8)
    rounds = meta_learning.Rounds("rounds", None, rounds=1, round_images=8, round_steps=8)
    found = meta_learning.learn(config, rounds, pictures, tmp_path)
    random = meta_learning.random_init(config, 6, pictures, tmp_path)
    assert found.info["start"]["digest"] == random.digest.hex() != found.digest.hex()
    assert found.info["seconds"] > 0 and rounds.inner_steps == 0 and found.rates is None
    assert meta_learning.learn(config, rounds, [], tmp_path).digest == found.digest  # kept


def test_a_stopped_method_of_meta_learning_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments import meta_learning

    monkeypatch.setattr(meta_learning.metatrain, "CHECKPOINT_STEPS", 1)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (24, 24, 3), np.uint8) for _ in range(2)]
    config = replace(meta_learning.SMOKE, width=6, prior_steps=8, outer_steps=3)
    [learner] = config.learners
    whole = meta_learning.learn(config, learner, pictures, tmp_path / "whole")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(meta_learning.metatrain, "learn_prior", stop)
        with pytest.raises(KeyboardInterrupt):
            meta_learning.learn(config, learner, pictures, tmp_path / "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(meta_learning.metatrain, "_advance", stop)  # there is nothing left to train
        found = meta_learning.learn(config, learner, pictures, tmp_path / "stopped")
    assert found.digest == whole.digest and found.info["seconds"] > 0
    assert [path.suffix for path in (tmp_path / "stopped").rglob("*") if path.is_file()] == [".npz"]


def test_an_unfitted_file_holds_the_init_itself() -> None:
    import numpy as np

    from experiments import meta_learning
    from inrjax.decoding import reconstruct
    from inrjax.init import packaged_init

    learned = packaged_init(24)
    image = next(iter(datasets.packaged().values()))[:40, :56]
    codec, _, *_ = meta_learning.series(meta_learning.SMOKE, learned, meta_learning.OPTIMIZERS[0])
    [image_hat] = codec.decode(codec.encode([image]))
    params = learned.mean()
    exact = reconstruct(learned.net, params, 40, 56)
    assert np.abs(image_hat.astype(int) - exact).max() <= 1


def test_bytes_saved_of_known_curves() -> None:
    import numpy as np

    from experiments.meta_learning import Column, bytes_saved

    rng = np.random.default_rng(0)
    noise, ones = rng.normal(size=20), np.ones(20)
    curve = [Column(n * ones, p + noise) for n, p in ((1000, 24.0), (2000, 26.0), (4000, 28.0))]
    # 25 dB lies half way between 1000 and 2000 bytes, in the logarithm.
    found = bytes_saved(Column(0.8 * 1000 * 2**0.5 * ones, 25 + noise), curve)
    assert found.value == pytest.approx(-20) and found.low == pytest.approx(-20)
    assert np.isnan(bytes_saved(Column(ones, 29 + noise), curve).value)
    # Without pairing by image the interval of a noisy method is wide; it still covers the value.
    other = bytes_saved(Column(0.8 * 1000 * 2**0.5 * ones, 25 + rng.normal(size=20)), curve)
    assert other.low is not None and other.high is not None and other.low < other.value < other.high


@pytest.mark.slow
def test_scale_smoke(tmp_path: Path) -> None:
    from experiments import scale

    folder = scale.main(scale.Options(output=tmp_path, smoke=True))
    samples = scale.read_samples(folder / "progress.csv")
    assert [sample.images for sample in samples] == [1, 2, 3, 4, 5, 6]
    assert len(list((folder / "streams" / "coded").glob("*.inr"))) == 6
    table = (folder / "table.md").read_text()
    assert "pictures/s" in table and "entropy-code" in table
    assert (folder / "rate.png").stat().st_size > 1000


def test_the_pictures_of_scale_differ_and_are_the_same_every_time() -> None:
    from experiments import scale

    photos = list(datasets.packaged().values())
    first, again = ([scale.crop(photos, i, 16, 0).tobytes() for i in range(40)] for _ in range(2))
    assert first == again and len(set(first)) == 40


@pytest.mark.slow
def test_strumpler_as_published_is_fitted_in_one_place_and_measured_in_another(
    tmp_path: Path,
) -> None:
    from experiments import strumpler_published as experiment

    folder = experiment.smoke(tmp_path)
    [row] = results.read_rows(folder / "rows.csv")
    assert row.codec == "strumpler-basic"
    assert "| basic, 8 bit | 8 | " in (folder / "table.md").read_text()
    [(net, fitted)] = json.loads((folder / "fits.json").read_text()).items()
    assert net == "basic, 8 bit, width 8" and fitted["versions"]["jax"]
    # The files are those that the codec writes without a stop between.
    [(_, image), *_] = experiment.common.smoke_images().items()
    [codec] = experiment.build_codecs(experiment.SMOKE).values()
    [stream] = (folder / "streams").rglob("*.inr")
    assert stream.read_bytes() == codec.encode([image])[0]
    path = experiment.fitted_path(tmp_path / "fitted", "basic, 8 bit", 8)
    with pytest.raises(ValueError, match="fit into another folder"):
        experiment.fit_all(replace(experiment.SMOKE, num_steps=5), {"": image}, path.parent)
    with pytest.raises(ValueError, match="fit them first"):
        experiment.load_fitted(codec, path).encode([image[:40]])


def test_what_the_guided_fuzzer_prints_is_read_or_it_did_not_end() -> None:
    from experiments.fuzz_guided import told

    printed = (
        "#2 INITED ft: 7 corp: 1\n#99 NEW    ft: 1592 corp: 116\nDone 2746 runs in 21 second(s)\n"
    )
    assert told(printed) == (2746, 1592)
    for cut in ("#99 NEW ft: 1592\n", "Done 3 runs in 1 second(s)\n"):
        with pytest.raises(ValueError, match="did not come to its end"):
            told(cut)


def test_coin_published_smoke() -> None:
    from experiments import coin_published

    *_, line, _, where = coin_published.smoke().splitlines()
    assert line.startswith("| 2x8 | 4 | 1 |")
    assert where.startswith("Fitted on cpu, 20")


def test_train_inits_smoke(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments import train_inits
    from inrjax import trees
    from inrjax.init import load_init
    from inrjax.nets.siren import Encoding

    monkeypatch.setenv("INRJAX_DATA", str(data_root))
    options = "--num-steps 2 --prior-images 1 --prior-steps 2 --points 64 --max-images 8"
    rounds = "--rounds 1 --round-images 9 --round-steps 2"
    options = f"--widths 8 {options} {rounds}"
    folders = ["--output", str(tmp_path / "out"), "--checkpoints", str(tmp_path / "checkpoints")]
    [path] = train_inits.main([*options.split(), *folders])
    init = load_init(path)
    assert init.net.width == 8 and "CC BY-SA" in init.info["licence"]
    assert init.info["num_images"] == 8 and init.info["config"]["num_steps"] == 2
    assert (init.info["config"]["rounds"], init.info["config"]["round_images"]) == (1, 8)
    assert all(keep == 1 for _, keep in trees.leaves(init.keep))

    # The command in the header makes the same init; here of another net, and beside the others.
    folders[-1] = str(tmp_path / "other")
    net = "--w0 30 --num-frequencies 16 --ratio 1.4 --by-digest"
    [named] = train_inits.main([*options.split(), *net.split(), *folders])
    init = load_init(named)
    assert (init.net.w0, init.net.encoding) == (30, Encoding(16, 1.4)) and path.exists()
    assert named.name == f"siren_w008_{init.short_digest}.npz"
    folders[-1] = str(tmp_path / "again")
    module, *words = init.info["command"].removeprefix("python -m ").split()
    assert train_inits.__name__ == module and train_inits.main([*words, *folders]) == [named]


def test_train_inits_goes_on_from_a_packaged_init(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments import train_inits
    from inrjax.init import load_init

    monkeypatch.setenv("INRJAX_DATA", str(data_root))
    monkeypatch.setattr(train_inits.metatrain, "MIN_ROUND_IMAGES", 2)
    start = packaged_init(24)
    folders = ["--output", str(tmp_path / "out"), "--checkpoints", str(tmp_path / "checkpoints")]
    rounds = "--rounds 1 --round-images 2 --round-steps 2 --max-images 2"
    options = [*rounds.split(), *folders, "--start"]
    [path] = train_inits.main([*options, start.short_digest])
    init = load_init(path)
    assert init.net == start.net and trees.digest(init.params) != trees.digest(start.params)
    assert trees.digest(init.rates or {}) == trees.digest(start.rates or {})
    assert init.info["config"]["round_steps"] == 2
    words = init.info["command"].removeprefix("python -m experiments.train_inits ").split()
    assert "--start" in words and "--num-steps" not in words  # what it had no part in
    again = [str(tmp_path / "again"), "--checkpoints", str(tmp_path / "other")]
    [same] = train_inits.main([*words, "--output", *again])
    assert load_init(same).digest == init.digest
    assert init.info["start"]["command"] == start.info["command"]
    for wrong in ("00000000", "xyz", "  ", "9a"):
        with pytest.raises(SystemExit, match="inrjax inits list"):
            train_inits.main([*options, wrong])
    for more, word in (
        ("--w0 12", "--w0"),
        ("--num-steps 9", "--num-steps"),
        ("--rounds 0", "one"),
    ):
        with pytest.raises(SystemExit, match=word):
            train_inits.main([*options, start.short_digest, *more.split()])
    with pytest.raises(SystemExit, match="another run"):  # of other fits
        train_inits.main([*options, start.short_digest, "--round-steps", "3"])


@pytest.mark.slow
def test_architecture_smoke(tmp_path: Path) -> None:
    from experiments import architecture

    folder = architecture.main(architecture.Options(output=tmp_path, smoke=True))
    table = (folder / "table.md").read_text("utf-8")
    assert "the packaged init" in table and "2 layers of 16, w0 15" in table


@pytest.mark.slow
def test_the_ladder_is_made_of_the_rows_of_other_runs(kodak_smoke: Path, tmp_path: Path) -> None:
    from experiments import ladder

    shutil.copytree(kodak_smoke, tmp_path / "kodak_rd" / kodak_smoke.name)
    options = ladder.Options(root=tmp_path, images="smoke", output=tmp_path / "ladder")
    folder = ladder.main(options)
    table = (folder / "table.md").read_text("utf-8")
    assert "| coin | width=20_depth=5_steps=20 |" in table and "| meta-siren | width=32" in table
    assert "of the literature" not in table  # which is Kodak's
    rows = results.read_rows(folder / "rows.csv")
    assert {row.codec for row in rows} == {"coin", "meta-siren"}
    header, *lines = cells_of(table, "## Each setting")
    for line in lines:  # nothing is left open, but what has no meaning
        of = dict(zip(header, line, strict=True))
        assert of.pop("bits a latent [3]") == "-"
        assert all(of.values()) and "-" not in of.values()
    sides = json.loads((folder / "side_bytes.json").read_text("utf-8"))
    assert all(0 < side < 48 for side in sides.values())
    for row in rows:  # what is beside the params is never more than the file
        assert sides[f"{row.codec} {row.setting}"] < row.num_bytes
    # The streams gone, the table is the same.
    shutil.rmtree(next(tmp_path.glob("kodak_rd/*/streams")))
    assert (ladder.main(options) / "table.md").read_text("utf-8") == table


@pytest.mark.slow
def test_grid_rd_smoke_and_its_row_of_the_ladder(kodak_smoke: Path, tmp_path: Path) -> None:
    from experiments import grid_rd, ladder

    folder = grid_rd.main(grid_rd.Options(output=tmp_path / "grid_rd", smoke=True))
    rows = results.read_rows(folder / "rows.csv")
    small, large = (
        [row.num_bytes for row in rows if row.setting.startswith(f"step={step}_")]
        for step in (34, 24)
    )
    assert len(small) == 3 and all(a < b for a, b in zip(small, large, strict=True))
    assert (folder / "rd.png").is_file()
    shutil.copytree(kodak_smoke, tmp_path / "kodak_rd" / kodak_smoke.name)
    options = ladder.Options(root=tmp_path, images="smoke", output=tmp_path / "ladder")
    table = (ladder.main(options) / "table.md").read_text("utf-8")
    header, *lines = cells_of(table, "## Each setting")
    [of] = [dict(zip(header, one, strict=True)) for one in lines if "step=24_iterations=2" in one]
    assert of.pop("bits a param [3]") == "-" and all(of.values()) and "-" not in of.values()
    assert of["shared bytes [5]"] == str(grids.packaged_base().shared_bytes)
    assert of["million pixel-steps [1]"] == f"{2 * 48 * 64 / 1e6:.1f}"


def cells_of(table: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, its header first."""
    lines = table.split(heading)[1].split("\n\n")[1].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [cells[0], *cells[2:]]


@pytest.mark.slow
def test_the_ladder_finds_strumplers_run_and_tells_its_bits_apart(
    kodak_smoke: Path, tmp_path: Path
) -> None:
    from experiments import ladder, strumpler
    from inrjax.codecs.strumpler import learned_init

    shutil.copytree(kodak_smoke, tmp_path / "kodak_rd" / kodak_smoke.name)
    rows = [r for r in results.read_rows(kodak_smoke / "rows.csv") if r.codec == "meta-siren"]
    digest = learned_init(24).short_digest
    config = replace(strumpler.SMOKE, basic_bits=(8, 7), inits=(digest,))
    made = [codec for curve in strumpler.build_series(config).values() for codec in curve]
    measured = [replace(r, codec=c.name, setting=c.setting) for c in made for r in rows]
    run = results.run_folder(tmp_path / "strumpler", config)
    results.write_rows(run / "rows.csv", measured)
    results.write_json(run / "side.json", {f"{c.name} {c.setting}": 50.0 for c in made})
    (run / "provenance.json").write_bytes((kodak_smoke / "provenance.json").read_bytes())
    options = ladder.Options(root=tmp_path, images="smoke", output=tmp_path / "ladder")
    names = ("strumpler-basic", "strumpler-basic-7bit", "strumpler-meta")
    assert not set(names) & set(ladder.Ladder(tmp_path, "smoke").found)  # it is not complete
    (run / "table.md").write_text("")
    header, *lines = cells_of((ladder.main(options) / "table.md").read_text("utf-8"), "## Each")
    for name in names:
        [of] = [dict(zip(header, line, strict=True)) for line in lines if line[0] == name]
        steps = config.num_steps + config.rounding_steps + config.retraining_steps
        assert of["million pixel-steps [1]"] == f"{steps * config.points_per_step / 1e6:.1f}"
        assert of["side bytes [4]"] == "50"
        assert (of["shared bytes [5]"] == "0") == (name != "strumpler-meta")
    # Without the init that a run started from, nothing is written.
    results.write_json(
        run / "config.json",
        {**json.loads((run / "config.json").read_text()), "inits": ["00000000"]},
    )
    with pytest.raises(SystemExit, match="not here"):
        ladder.main(replace(options, output=tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    # A run of fewer images is not mixed with the others.
    results.write_rows(run / "rows.csv", measured[1:])
    with pytest.raises(SystemExit, match="on 2 images, expected the same 3"):
        ladder.main(options)


def test_the_ladder_counts_multiplications_of_latent_grids() -> None:
    from experiments import ladder
    from inrjax.nets.latent_grid import LatentGridNet

    kernel, sines = 25 * 6 * 12, 9 * 9 * 4 + 4 * 4 + 4 * 12
    # Six places of three bands, and the step; the layers of signs.
    blind, odd = 19 * 5 + 5 * 5, 18 * 2 + 2 * 5 + 5 * 2 + 2 * 6
    for odd_width, expected in ((0, blind + 5 * 3), (2, blind + 5 * 9 + odd)):
        synthesis, models = ladder.grid_multiplications(LatentGridNet(1, 4, 5, odd_width))
        assert synthesis == 9 + (kernel + sines + 27) / 4
        assert models == expected / 4


@pytest.mark.slow
def test_grid_choices_smoke(tmp_path: Path) -> None:
    from experiments import grid_choices

    folder = grid_choices.main(grid_choices.Options(output=tmp_path, smoke=True))
    table = (folder / "table.md").read_text("utf-8")
    assert "| default | +0.00 | +0.00 |" in table and "without the sine layers" in table


@pytest.mark.slow
def test_siren_choices_smoke(tmp_path: Path) -> None:
    from experiments import siren_choices

    folder = siren_choices.main(siren_choices.Options(output=tmp_path, smoke=True))
    header, *lines = cells_of((folder / "table.md").read_text("utf-8"), "# Choices")
    default, *others = [dict(zip(header, line, strict=True)) for line in lines]
    assert default["median"] == "+0.00" and len(others) == 10
    # A choice among files has no worse a loss than the first of them, and needs all their seconds.
    seconds = {one["variant"]: float(one["encode s/image"]) for one in others}
    assert seconds["the best of 2 seeds"] > seconds["seed 1"]


def test_init_choices_tells_all_that_an_init_went_on_from() -> None:
    from experiments.init_choices import _training

    init = packaged_init(64)
    assert _training(init) == ("1500", "3 of 48 fits of 1500")
    more = {"config": {"rounds": 2, "round_images": 9, "round_steps": 7}, "start": init.info}
    told = _training(replace(init, info=more))
    assert told == ("1500", "3 of 48 fits of 1500, then 2 of 9 fits of 7")


def test_init_choices_smoke(tmp_path: Path) -> None:
    from experiments import init_choices
    from inrjax.codecs import strumpler

    path = tmp_path / "other.npz"
    save_init(path, strumpler.learned_init(24))
    options = init_choices.Options(output=tmp_path, smoke=True, inits=(path,))
    folder = init_choices.main(options)
    header, *lines = cells_of((folder / "table.md").read_text("utf-8"), "# Inits")
    found = [dict(zip(header, line, strict=True)) for line in lines]
    assert [(one["width"], one["w0"]) for one in found] == [
        ("24", "15"),
        ("32", "15"),
        ("24", "30"),
    ]
    assert [one["images"] for one in found] == ["", "", "1"]


def test_an_init_stands_beside_the_curve_at_its_own_quality() -> None:
    from experiments.init_choices import beside

    curves = {"i": [(4.0, 34.0), (1.0, 30.0), (2.0, 32.0)], "other": [(1.0, 30.0)]}
    row = point("meta-siren", "a")
    cases = {(1.0, 30.0): 0, (3.0, 32.0): 50, (2.0, 33.0): 100 * (2 / 8**0.5 - 1), (8.0, 36.0): 0}
    for (bpp, psnr), percent in cases.items():
        assert beside(curves, [replace(row, bpp=bpp, psnr=psnr)]) == pytest.approx([percent])
    assert beside(curves, [replace(row, image="other")]) == []


def test_an_init_choice_without_an_init_is_a_sentence(tmp_path: Path) -> None:
    from experiments import init_choices

    for inits, sentence in (((), "--inits"), ((tmp_path / "none.npz",), "none.npz")):
        with pytest.raises(SystemExit, match=sentence):
            init_choices.main(init_choices.Options(output=tmp_path, inits=inits))


def point(codec: str, setting: str) -> RDPoint:
    """A row of 100 bytes and 30 dB, encoded in a second."""
    return RDPoint(codec, setting, "i", 8, 8, 100, 12.5, 30.0, None, None, 1.0, 0.1, 1, 0, "")


def test_a_choice_takes_the_file_of_the_lowest_loss() -> None:
    from experiments.siren_choices import best_of

    row = point("meta-siren", "a")
    half, worse = replace(row, num_bytes=50), replace(row, psnr=29.0)
    # Half of the bytes are worth 10 * slope * log10(2) dB.
    assert best_of([[row], [half], [worse]], 0.3) == [replace(half, encode_seconds=3.0)]
    for dearer, chosen in ((0.8, half), (1.0, row)):
        close = replace(half, psnr=30.0 - dearer)
        [best] = best_of([[row], [close]], 0.3)
        assert best.num_bytes == chosen.num_bytes
    other = replace(row, image="other")
    assert len(best_of([[row, other], [half]], 0.3)) == 2


def test_low_rank_params_stand_for_the_sum_with_the_packaged_ones() -> None:
    from experiments.siren_choices import LowRank

    own, rng = packaged_init(24), np.random.default_rng(0)
    net = LowRank(*(getattr(own.net, field.name) for field in fields(own.net)), rank=3)
    shapes = dict(trees.leaves(net.shapes()))
    params = trees.from_leaves({p: rng.normal(0, 0.05, shape) for p, shape in shapes.items()})
    whole = {}
    for name, layer in params.items():
        if "weight" in layer:  # of three rows: a product of that rank would be larger
            assert layer["weight"].shape[0] == 3
            whole[name] = layer
        else:
            product = layer["left"] @ layer["right"]
            weight = own.mean()[name]["weight"] + product
            assert np.linalg.matrix_rank(product) == 3 and weight.shape == (24, product.shape[1])
            whole[name] = {"bias": layer["bias"], "weight": weight}
    coords = rng.uniform(-1, 1, (50, 2))
    expected = own.net.apply_host(whole, coords)
    np.testing.assert_allclose(net.apply_host(params, coords), expected, atol=1e-4)
    np.testing.assert_allclose(net.apply(params, coords), expected, atol=1e-3)
    y, x = coords[:5, 0], coords[:7, 1]
    np.testing.assert_allclose(
        net.apply_grid_host(params, y, x), own.net.apply_grid_host(whole, y, x), atol=1e-4
    )


@pytest.mark.slow
def test_other_rungs_smoke_and_their_place_in_the_ladder(kodak_smoke: Path, tmp_path: Path) -> None:
    from experiments import ladder, other_rungs

    shutil.copytree(kodak_smoke, tmp_path / "kodak_rd" / kodak_smoke.name)
    config = replace(other_rungs.SMOKE, max_images=3)
    bases = other_rungs._smoke_bases()
    run = other_rungs.run(config, bases, common.smoke_images(), tmp_path / "other_rungs")
    rows = results.read_rows(run / "rows.csv")
    options = ladder.Options(root=tmp_path, images="smoke", output=tmp_path / "ladder")
    table = (ladder.main(options) / "table.md").read_text("utf-8")
    header, *lines = cells_of(table, "## Each setting")
    of = {line[1]: dict(zip(header, line, strict=True)) for line in lines}
    pixels, patches = 48 * 64, 3 * 4
    product = of["width=24_centroids=32_block=1_steps=8"]
    assert product["million pixel-steps [1]"] == f"{12 * pixels / 1e6:.1f}"
    assert int(product["shared bytes [5]"]) == packaged_init(24).shared_bytes
    for base in bases:
        [one] = [own for name, own in of.items() if f"latent={base.latent_dim}_" in name]
        size = np.mean([row.num_bytes for row in rows if row.setting == one["setting"]])
        bits = 8 * size / (patches * base.latent_dim)
        assert float(one["bits a latent [3]"]) == pytest.approx(bits, abs=1e-3)
        assert int(one["shared bytes [5]"]) == base.shared_bytes
        assert int(one["side bytes [4]"]) < 40
    # Codebooks are params: what is beside them is a few bytes for each tensor.
    assert 40 < int(product["side bytes [4]"]) < 100


def test_other_rungs_names_a_base_that_is_missing_or_damaged(tmp_path: Path) -> None:
    from experiments import other_rungs

    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(b"no base")
    for bases, said in (
        ((), "no bases: learn some"),
        ((tmp_path / "none.npz",), "none.npz is not a file"),
        ((damaged,), "damaged.npz is damaged"),
    ):
        with pytest.raises(SystemExit, match=said):
            other_rungs.main(other_rungs.Options(bases=bases, output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_bases_are_told_apart_by_the_size_of_their_latents(tmp_path: Path) -> None:
    from experiments import coinpp, other_rungs
    from inrjax.base import save_base

    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    for seed, path in enumerate((first, second)):
        save_base(path, tiny_base(seed=seed))
    for bases, said in (((first, second), r"a\.npz and .*b"), ((first, first), r"a\.npz and .*a")):
        with pytest.raises(SystemExit, match=rf"{said}\.npz both have latents of 12"):
            other_rungs.main(other_rungs.Options(bases=bases, output=tmp_path / "out"))
        with pytest.raises(SystemExit, match="both have latents of 12"):
            named = map(str, bases)
            coinpp.main(["measure", "--bases", *named, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "read",
    [
        *(partial(lambda name, o: common.named(name, o.data), name) for name in common.SETS),
        lambda options: common.pictures(options, slice(1)),
        common.training,
    ],
)
def test_a_folder_without_the_pictures_is_one_sentence(read: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: .*none") as caught:
        read(common.Options(data=tmp_path / "none"))
    assert "\n" not in str(caught.value)


def test_what_low_rank_deltas_are_coded_by_is_learned_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments import siren_choices

    first = siren_choices.low_rank_init(siren_choices.SMOKE, 4, [photograph(16, 24)], tmp_path)
    monkeypatch.setattr(siren_choices.metatrain, "learn_prior", None)
    again = siren_choices.low_rank_init(siren_choices.SMOKE, 4, [photograph(16, 24)], tmp_path)
    assert again.digest == first.digest


def test_presets_compare_at_least_two_seeds() -> None:
    from experiments import presets

    with pytest.raises(ValueError, match="at least two"):
        presets.Config(seeds=(0,))


def test_coinpp_measures_nothing_under_a_damaged_base(tmp_path: Path) -> None:
    from experiments import coinpp

    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(b"no base")
    with pytest.raises(SystemExit, match=r"damaged\.npz is damaged"):
        coinpp.main(["measure", "--bases", str(damaged), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_coinpp_measures_nothing_without_its_pictures(tmp_path: Path) -> None:
    from experiments import coinpp

    with pytest.raises(SystemExit, match="none is not a folder"):
        coinpp.measure(coinpp.Config(), [tiny_base()], tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_curves_of_one_name_are_told_apart_by_bits_optimizer_and_search() -> None:
    from experiments.figures.source import (
        LATENT_GRID_EQUAL,
        METASIREN_BEST,
        STRUMPLER,
        STRUMPLER_MUON,
        curve_of,
    )
    from inrjax.codecs.inr import PRESETS

    row = point("strumpler-basic", "width=24_bits=8")
    seven = replace(row, setting="width=24_bits=7")
    meta = replace(seven, codec="strumpler-meta")
    assert tuple(curve_of(one, {"muon": None}) for one in (row, seven, meta)) == STRUMPLER
    assert tuple(curve_of(one, {"muon": 1e-3}) for one in (row, meta)) == STRUMPLER_MUON
    siren = replace(row, codec="meta-siren")
    steps, search_steps = PRESETS["best"]
    configs = {"num_steps": 9}, {"num_steps": steps, "search_steps": search_steps}
    assert [curve_of(siren, config) for config in configs] == ["meta-siren", METASIREN_BEST]
    grid = replace(row, codec="latent-grid")
    found = [curve_of(grid, config) for config in ({"steps": [24]}, {"rates": [0.1]})]
    assert found == ["latent-grid", LATENT_GRID_EQUAL]


def test_a_step_size_is_chosen_by_what_is_known_of_a_picture() -> None:
    from experiments import equal_bpp

    assert equal_bpp.choose_step({}, 0.1) in equal_bpp.STEPS
    known = {step: 2.0 ** (-0.2 * step) for step in (20, 31, 40)}
    for step in equal_bpp.STEPS:  # between what is known exactly, elsewhere by the usual slope
        rate = 2.0 ** (-0.2 * step)
        assert step not in range(20, 41) or equal_bpp.choose_step(known, 1.05 * rate) == step
    assert equal_bpp.choose_step(known, 1e-9) == max(equal_bpp.STEPS)
    assert equal_bpp.choose_step(known, 1e9) == min(equal_bpp.STEPS)


@pytest.mark.slow
def test_equal_bpp_smoke(tmp_path: Path) -> None:
    from experiments import equal_bpp
    from inrjax import runs
    from inrjax.evaluate import decode_here

    options = equal_bpp.Options(
        output=tmp_path / "out", work=tmp_path / "work", results_root=tmp_path, smoke=True
    )
    folder = equal_bpp.main(options)
    tried = tmp_path / "work" / folder.name / "rows.csv"
    files = results.read_rows(tried)
    rows = results.read_rows(folder / "rows.csv")
    assert len(rows) == len(equal_bpp.SMOKE.rates) * len(common.smoke_images())
    assert {row.digest for row in rows} <= {row.digest for row in files}
    for rate in equal_bpp.SMOKE.rates:
        for row in (row for row in rows if row.setting == f"bpp={rate:g}"):
            own = [file.bpp for file in files if file.image == row.image]
            assert abs(np.log(row.bpp / rate)) == min(abs(np.log(np.array(own) / rate)))
            assert 0.75 < row.bpp / rate < 1.25  # small crops; a step size is a tenth elsewhere
    table = (folder / "table.md").read_text()
    equal_bpp.main(options)  # nothing is measured twice
    assert table == (folder / "table.md").read_text()
    assert files == results.read_rows(tried)
    run = runs.read_run(folder)
    assert run.status == "complete"
    checks = runs.verify(runs.stored_rows(run), common.smoke_images(), decode=decode_here)
    assert len(checks) == len(rows) and not any(check.problems for check in checks)


@pytest.mark.slow
def test_rate_control_smoke(tmp_path: Path) -> None:
    from experiments import rate_control

    folder = rate_control.main(rate_control.Options(output=tmp_path, smoke=True))
    # A run is of one base: rows of the base before are not taken for those of this one.
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["shared"] == grids.packaged_base().short_digest
    rows = (folder / "files.csv").read_text("utf-8").splitlines()
    assert len(rows) == 4 and "--max-bytes,400" in rows[3]
    before = rows
    rate_control.main(rate_control.Options(output=tmp_path, smoke=True))  # nothing is done again
    assert (folder / "files.csv").read_text("utf-8").splitlines() == before


def test_the_ladder_counts_multiplications_of_every_layer() -> None:
    from experiments import ladder
    from inrjax.nets.siren import Encoding, Siren

    net = Siren(8, 3, encoding=Encoding(4, 1.5))
    assert ladder.multiplications(net) == 18 * 8 + 2 * 8 * 8 + 8 * 3


@pytest.mark.slow
def test_benchmark_codec_smoke(tmp_path: Path) -> None:
    from experiments import benchmark_codec as benchmark

    folder = benchmark.main(["--smoke", "--output", str(tmp_path)])
    rows = json.loads((folder / "rows.json").read_text())
    for row in rows:
        decodes = row["command"] == "decode"
        phases = benchmark.DECODE_PHASES if decodes else benchmark.ENCODE_PHASES
        assert all(row[phase] >= 0 for phase in phases)
        assert sum(row[phase] for phase in phases) == pytest.approx(row["whole"])
        assert row["memory"] > 10 and ("warm" in row) == decodes
    table = (folder / "table.md").read_text()
    assert len(rows) == 3 and all(f"| {row['codec']} | {row['size']} |" in table for row in rows)
    assert (folder / "provenance.json").exists()


def test_width_model_smoke(tmp_path: Path) -> None:
    from experiments import width_model

    packaged = width_model.PACKAGED.read_bytes()
    table = width_model.main(width_model.Options(output=tmp_path, smoke=True))
    made = json.loads(table.read_text())
    [(width, measured)] = made["widths"].items()
    assert width == "24" and 8 < measured["log2_bytes"] < 13 and 5 < measured["psnr"] < 40
    assert made["inits"] == {"24": packaged_init(24).short_digest}
    # Not of all widths, so not what rate control reads.
    assert table.parent.parent == tmp_path and width_model.PACKAGED.read_bytes() == packaged


@pytest.mark.slow
def test_presets_smoke(tmp_path: Path) -> None:
    from experiments import presets
    from experiments.activations import read_rows

    options = presets.Options(output=tmp_path, smoke=True)
    folder = presets.main(options)
    rows = read_rows(folder / "commands.csv", presets.Command)
    wanted = presets.commands_of(presets.SMOKE, ("fast",))
    assert [row.name for row in rows] == list(wanted) and len(rows) == 2
    for row in rows:
        assert row.bpp == 8 * row.num_bytes / (48 * 64) and 5 < row.psnr < 60 and row.repeats
        assert min(row.first_seconds, row.encode_seconds, row.decode_seconds) > 0
    table = (folder / "table.md").read_text("utf-8")
    assert table.count("| not measured |") == 6 and "images whose files are equal" in table
    for seed in presets.SMOKE.seeds:
        measured = results.read_rows(folder / f"seed={seed}" / "rows.csv")
        assert [row.codec for row in measured] == ["meta-siren", "latent-grid"]
        assert {row.seed for row in measured} == {seed}
        assert all(f"{row.num_bytes} B, {row.psnr:.2f} dB" in table for row in measured)
    before = (folder / "commands.csv").read_bytes(), table
    presets.main(options)  # nothing is measured twice
    assert before == (
        (folder / "commands.csv").read_bytes(), (folder / "table.md").read_text("utf-8"),
    )  # fmt: skip


def test_scatter_of_known_numbers() -> None:
    from experiments import presets

    # Deviations of 1, 5 and 2: the mean variance is 10. The means of the columns are 15, 13, 11.
    found = presets.scatter([[9.0, 10.0, 11.0], [21.0, 16.0, 11.0], [15.0, 13.0, 11.0]])
    assert found.largest == 10 and found.deviation == pytest.approx(10**0.5)
    assert found.of_mean == pytest.approx(2)
    assert presets.scatter([[5.0, 5.0], [7.0, 7.0]]) == (0, 0, 0)
    assert presets.in_percent([[99.0, 101.0], [2.0, 6.0]]) == [[99, 101], [50, 150]]


def test_a_curve_costs_the_sum_of_its_widths() -> None:
    from experiments import presets

    config = replace(presets.SMOKE, curve_widths=(24, 32))
    rows = [
        presets.Command(presets.siren_name("default", width), 2, 99.0, seconds, 1, 10, 1, 1, 1, "")
        for width, seconds in ((24, 8.0), (32, 4.0))
    ]
    assert "12 s, 3.00 times its widest. At most 3 times: yes." in presets.curve_text(config, rows)
    slower = [rows[0]._replace(encode_seconds=8.1), rows[1]]
    assert presets.curve_text(config, slower).endswith(
        "3.02 times its widest. At most 3 times: no."
    )
    assert "not measured" in presets.curve_text(config, rows[1:])


def test_a_limit_is_judged_by_the_run_with_kept_programs() -> None:
    from experiments import presets

    row = presets.Command("x", 2, 70.0, 60.0, 1.0, 10, 0.1, 30.0, 1, "")
    assert presets._within(row, 60) == "yes" and presets._within(row, 59.9) == "no"
    assert presets._within(row, None) == "no limit"
    assert presets._within(row._replace(cores=16), 60).startswith("yes, on more cores")


@pytest.mark.slow
def test_width_bits_smoke(tmp_path: Path) -> None:
    from experiments import width_bits

    options = width_bits.Options(output=tmp_path, smoke=True)
    folder = width_bits.main(options)
    rows = results.read_rows(folder / "rows.csv")
    wanted = {(codec.name, codec.setting) for codec in width_bits.build_codecs(width_bits.SMOKE)}
    assert {(row.codec, row.setting) for row in rows} == wanted and len(rows) == len(wanted)
    few, many = (row.num_bytes for row in rows if row.codec == "strumpler-meta")
    assert few < many  # bits of one fit
    table = (folder / "table.md").read_text("utf-8")
    assert "| 4 bits | 8 bits |" in table and "| optimized |" in table
    assert (folder / "width_bits.png").stat().st_size > 1000
    width_bits.main(options)  # nothing is measured twice
    assert results.read_rows(folder / "rows.csv") == rows
    assert (folder / "table.md").read_text("utf-8") == table


def test_the_envelope_is_what_nothing_cheaper_beats() -> None:
    from experiments.width_bits import Cell, envelope

    cells = [
        Cell(24, 8, 400, 0.4, 30.0), Cell(24, 4, 100, 0.1, 25.0), Cell(32, 4, 200, 0.2, 28.0),
        Cell(32, 6, 300, 0.3, 27.0),
    ]  # fmt: skip
    assert [(c.width, c.bits) for c in envelope(cells)] == [(24, 4), (32, 4), (24, 8)]


def test_crossings_of_known_curves() -> None:
    import numpy as np

    from experiments.width_bits import crossings

    # Straight lines in the logarithm of the rate, which PCHIP keeps: they meet at 0.2 bpp.
    rates = [0.05, 0.1, 0.4, 0.8]
    steep = [(rate, 30 + 3 * np.log2(rate / 0.2)) for rate in rates]
    flat = [(rate, 30 + np.log2(rate / 0.2)) for rate in rates[1:]]
    found = crossings(flat, steep)
    assert found is not None and found.rates == pytest.approx([0.2], rel=1e-3)
    assert (found.low, found.high, found.is_ahead) == (0.1, 0.8, True)
    other = crossings(steep, flat)
    assert other is not None and other.rates == pytest.approx([0.2], rel=1e-3)
    assert not other.is_ahead
    above = crossings([(rate, psnr + 9) for rate, psnr in flat], steep)
    assert above is not None and above.rates == [] and above.is_ahead
    assert crossings(steep, [(1.0, 30.0), (2.0, 31.0)]) is None
    assert crossings(steep, flat[:1]) is None
