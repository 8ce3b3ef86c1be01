"""Every experiment has a smoke mode, and what it writes is what it says."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from inrjax import datasets, results

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    path.stem for path in (ROOT / "experiments").glob("*.py") if path.stem != "__init__"
)


@pytest.mark.parametrize("name", MODULES)
def test_the_docstring_holds_claim_command_and_minutes(name: str) -> None:
    text = (importlib.import_module(f"experiments.{name}").__doc__ or "").lower()
    for word in ("command", f"python -m experiments.{name}", "minutes:", "expected:"):
        assert word in text, f"{name} does not say its {word}"


def test_kodak_rd_smoke(tmp_path: Path) -> None:
    from experiments import kodak_rd

    folder = kodak_rd.main(kodak_rd.Options(output=tmp_path, smoke=True))
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
    from experiments.product_quantization import at_bytes

    curve = [(400, 30.0), (100, 20.0), (200, 26.0)]
    assert at_bytes(curve, 200) == pytest.approx(26.0)
    assert at_bytes(curve, 283) == pytest.approx(28.0, abs=0.01)  # half an octave on
    assert at_bytes(curve, 99) is None and at_bytes(curve, 401) is None


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
    with pytest.raises(ValueError, match="another base"):
        from experiments import coinpp

        coinpp.train(
            replace(coinpp.SMOKE.training, seed=1), "smoke", None, tmp_path / "base.npz", None
        )


def test_optimizers_smoke(tmp_path: Path) -> None:
    from experiments import optimizers

    path = optimizers.main(optimizers.Options(output=tmp_path, smoke=True))
    table, timing = path.read_text(), json.loads((path.parent / "timing.json").read_text())
    assert table.count("| Muon | ") == 3 and "To " in table and "gain dB" in table
    assert all(row["step_seconds"] > row["update_seconds"] > 0 for row in timing["rows"])
    # No last layer has a smaller mse than the exact solution, but for the rounding of its file.
    gains = [line.split(" | ")[4] for line in table.splitlines() if "e+" in line]
    assert len(gains) == 2 and min(map(float, gains)) > -0.05


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


def test_coin_published_smoke() -> None:
    from experiments import coin_published

    assert coin_published.smoke().splitlines()[-1].startswith("| 2x8 | 4 | 1 |")


def test_train_inits_smoke(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments import train_inits
    from inrjax.init import load_init

    monkeypatch.setenv("INRJAX_DATA", str(data_root))
    options = "--widths 8 --num-steps 2 --prior-images 1 --prior-steps 2 --points 64 --max-images 2"
    folders = ["--output", str(tmp_path / "out"), "--checkpoints", str(tmp_path / "checkpoints")]
    [path] = train_inits.main([*options.split(), *folders])
    init = load_init(path)
    assert init.net.width == 8 and "CC BY-SA" in init.info["licence"]
    assert init.info["num_images"] == 2 and init.info["config"]["num_steps"] == 2


def test_a_prior_can_be_learned_around_the_packaged_init(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments import train_inits
    from inrjax import trees
    from inrjax.init import load_init, packaged_init

    monkeypatch.setenv("INRJAX_DATA", str(data_root))
    options = "--widths 24 --prior-around-init --prior-images 1 --prior-steps 2 --max-images 1"
    [path] = train_inits.main([*options.split(), "--output", str(tmp_path)])
    init, packaged = load_init(path), packaged_init(24)
    assert all(keep == 1 for _, keep in trees.leaves(init.keep))
    assert trees.digest(init.params) == trees.digest(packaged.params)
    assert init.digest != packaged.digest


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

    table = tmp_path / "table.json"
    options = width_model.Options(output=tmp_path / "runs", table=table, smoke=True)
    assert width_model.main(options) == table
    [(width, measured)] = json.loads(table.read_text())["widths"].items()
    assert width == "24" and 8 < measured["log2_bytes"] < 13 and 5 < measured["psnr"] < 40
