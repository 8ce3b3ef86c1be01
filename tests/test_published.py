"""The published curves: copies of their sources, each named in the one table of methods."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from inrjax import published, results

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "results" / "published"
FILES = sorted(FOLDER.glob("*.csv"))
DATA = Path(os.environ.get("INRJAX_DATA", ROOT.parent / "shared" / "data"))
REFERENCE = DATA.parent / "reference"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_reads_and_its_methods_are_in_the_table(path):
    names = {method.name for method in published.METHODS}
    curves = results.published_curves(results.read_published(path))
    assert set(curves) <= names
    for name, curve in curves.items():
        assert len(curve) >= 4, name
        assert all(0 < bpp < 25 and 15 < psnr < 60 for bpp, psnr in curve)
    text = (FOLDER / "README.md").read_text("utf-8")
    assert f"`{path.name}`" in text


def test_every_method_of_the_table_is_in_a_file():
    found = {point.method for path in FILES for point in results.read_published(path)}
    names = [method.name for method in published.METHODS]
    assert sorted(names) == sorted(found)  # each once
    for path in FILES:  # and in a figure of one set, no two have one name
        shown = {point.method for point in results.read_published(path)}
        labels = [method.label for method in published.METHODS if method.name in shown]
        assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_a_copy(path):
    if not REFERENCE.exists():
        pytest.skip("the reference files are not beside the image sets")
    name = "kodak_rd.csv" if path.stem == "kodak" else "other_rd.csv"
    source = (REFERENCE / name).read_text("utf-8").splitlines()
    if path.stem != "kodak":
        source = [line.removeprefix(f"{path.stem},").removeprefix("dataset,") for line in source]
    assert set(path.read_text("utf-8").splitlines()) <= set(source)


def test_estimates_are_said():
    estimates = {method.name for method in published.METHODS if method.is_estimate}
    assert estimates == {
        "COIN++",
        "C3",
        "C3 (Adaptive)",
        "Strumpler basic (8 bit)",
        "Strumpler meta-learned (7 bit)",
    }


def test_groups_share_out_the_methods():
    parts = [published.in_group(group) for group in published.GROUPS]
    assert all(parts) and sorted(m.name for part in parts for m in part) == sorted(
        m.name for m in published.METHODS
    )
    with pytest.raises(ValueError, match="got group 'others', expected one of coordinate network"):
        published.in_group("others")


def test_curves_to_show_are_in_the_order_of_the_names_and_estimates_apart():
    curves = results.published_curves(results.read_published(FOLDER / "kodak.csv"))
    names = ["VC-INR", "C3", "COIN", "COIN++"]
    files, estimates = published.curves_to_show(curves, names)
    assert (list(files), list(estimates)) == (["VC-INR", "COIN"], ["C3", "COIN++"])
    assert files["COIN"] == curves["COIN"]
    assert published.curves_to_show({}, names) == ({}, {})
    with pytest.raises(ValueError, match="no published method 'Coin'"):
        published.curves_to_show(curves, ["COIN", "Coin"])
