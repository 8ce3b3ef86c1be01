"""Inits of the user's own: listed, verified and added by `inrjax inits`, found from then on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inrjax import cli, codecs, trees
from inrjax import init as init_module
from inrjax.init import (
    Init,
    add_init,
    digest_name,
    find_init,
    flat_init,
    init_files,
    load_init,
    packaged_init,
    packaged_widths,
    save_init,
    user_folder,
)
from inrjax.nets.siren import Encoding, Siren
from inrjax.types import BitstreamError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process: exit code, standard output, errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, which is not there yet; the test works beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INRJAX_INITS", str(tmp_path / "own" / "inits"))
    return tmp_path / "own" / "inits"


def own(seed: int = 0, **net: object) -> Init:
    """An init that is not packaged."""
    shape = Siren(**{"width": 6, "depth": 2, "encoding": Encoding(3), **net})  # type: ignore
    rng = np.random.default_rng(seed)
    leaves = {path: rng.uniform(-0.2, 0.2, s) for path, s in trees.leaves(shape.shapes())}
    return replace(
        flat_init(shape, trees.from_leaves(leaves)),
        info={"command": "inrjax meta-train", "data": "12 pictures", "licence": "mine"},
    )


@pytest.fixture
def saved() -> Path:
    save_init(Path("init.npz"), own())
    return Path("init.npz")


def stream_of(init: Init) -> bytes:
    """A file that needs an init."""
    learned = {"net": init.mean(), "log_step": np.full(len(init.levels()), -6.0)}
    codec = codecs.MetaSiren(init.net.width, init=init)
    return codec.pack(np.zeros((5, 4, 3), np.uint8), learned)


# ---------------------------------------------------------------------------- list and verify


def test_list_shows_what_is_packaged_and_what_was_added(run: Run, saved: Path) -> None:
    assert run("inits", "add", saved)[0] == 0
    code, out, err = run("inits", "list", "--json")
    rows = json.loads(out)
    assert (code, err) == (0, "")
    assert {row["width"] for row in rows if row["origin"] == "packaged"} == {*packaged_widths()}
    for row in rows:
        assert row["command"] and row["data"] and row["licence"], row["init"]
    [mine] = [row for row in rows if row["origin"] == "user"]
    assert mine["digest"] == own().digest.hex() and mine["shared_bytes"] == own().shared_bytes
    assert mine["command"] == "inrjax meta-train"
    code, out, err = run("inits", "list")
    assert (code, err) == (0, "")
    for row in rows:
        [line] = [line for line in out.splitlines() if line.split()[:1] == [row["init"]]]
        assert {str(row["width"]), row["digest"][:8], str(row["shared_bytes"])} <= {*line.split()}
    assert "inrjax meta-train" in out and "mine" in out and "12 pictures" in out


def test_verify_finds_all_packaged_whole(run: Run) -> None:
    code, out, err = run("inits", "verify")
    assert (code, err) == (0, "")
    for width in packaged_widths():
        assert packaged_init(width).digest.hex() in out
    assert out.splitlines()[-1] == f"{len(init_files())} of {len(init_files())} are whole"


def damaged(path: Path) -> None:
    """The same file with another number in it: whole as an archive, but not of its digest."""
    with np.load(path, allow_pickle=False) as arrays:
        members = {name: arrays[name] for name in arrays.files}
    name = next(name for name in members if name.startswith("params"))
    members[name] = -members[name]
    np.savez_compressed(path, **members)


@pytest.mark.parametrize("how", ["content", "cut", "empty", "name", "folder"])
def test_damage_is_named_and_the_others_are_verified(
    run: Run, saved: Path, folder: Path, how: str
) -> None:
    target = add_init(saved)
    whole = len(init_files())
    if how == "content":
        damaged(target)
    elif how == "name":
        target = target.rename(folder / "siren_w006_00000000.npz")
    elif how == "folder":
        target.unlink()
        target.mkdir()
    else:
        target.write_bytes(target.read_bytes()[: 0 if how == "empty" else -100])
    for action in ("verify", "list"):
        code, out, err = run("inits", action)
        assert code == 1
        assert err.startswith("inrjax: error: ") and err.count("\n") == 1 and target.name in err
        if action == "verify":
            assert f"{whole - 1} of {whole} are whole" in out


def test_a_damaged_packaged_init_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(init_module.__file__).parent / "inits"
    shutil.copytree(package, tmp_path / "package" / "inits")
    monkeypatch.setattr(init_module.resources, "files", lambda _: tmp_path / "package")
    assert run("inits", "verify")[0] == 0
    names = sorted(path.name for path in (tmp_path / "package" / "inits").glob("*_*_*.npz"))
    damaged(tmp_path / "package" / "inits" / names[0])
    os.replace(*(tmp_path / "package" / "inits" / name for name in (names[2], names[1])))
    code, _, err = run("inits", "verify")
    assert code == 1 and len(err.splitlines()) == 2
    assert names[0] in err and names[1] in err


def test_files_can_be_verified_by_name(run: Run, saved: Path) -> None:
    code, out, err = run("inits", "verify", saved)
    assert (code, err) == (0, "") and own().digest.hex() in out
    damaged(saved)
    save_init(Path("b.npz"), own(1))
    code, out, err = run("inits", "verify", saved, "b.npz", "missing.npz")
    assert code == 1 and "1 of 3 are whole" in out
    assert "init.npz is damaged" in err and "missing.npz is not a file" in err


# ---------------------------------------------------------------------------- add


def test_an_added_init_is_found_and_its_files_decode(run: Run, saved: Path, folder: Path) -> None:
    init = own()
    Path("a.inr").write_bytes(stream_of(init))
    assert find_init(init.digest[:4]) is None
    code, _, err = run("decode", "a.inr", "-o", "a.png")
    assert code == 1 and "not known" in err and init.digest[:4].hex() in err
    code, out, err = run("inits", "add", saved)
    assert (code, err) == (0, "")
    assert (folder / digest_name(init)).read_bytes() == saved.read_bytes()
    assert str(folder / digest_name(init)) in out
    saved.unlink()
    found = find_init(init.digest[:4])
    assert found is not None and found.digest == init.digest
    assert find_init(init.digest[:4]) is found  # read once
    assert run("decode", "a.inr", "-o", "a.png")[0] == 0
    assert run("info", "a.inr")[0] == 0


def test_adding_twice_is_adding_once_and_mends_a_damaged_copy(saved: Path, folder: Path) -> None:
    target = add_init(saved)
    damaged(target)
    with pytest.raises(BitstreamError, match=target.name):
        find_init(own().digest[:4])
    assert add_init(saved) == target and [*folder.iterdir()] == [target]
    found = find_init(own().digest[:4])
    assert found is not None and found.digest == own().digest


def test_a_damaged_copy_is_never_decoded_with(run: Run, saved: Path) -> None:
    Path("a.inr").write_bytes(stream_of(own()))
    target = add_init(saved)
    damaged(target)
    code, _, err = run("decode", "a.inr", "-o", "a.png")
    assert code == 1 and err.count("\n") == 1 and target.name in err and "a.inr" in err
    assert not Path("a.png").exists()


def test_another_init_under_its_name_is_never_decoded_with(saved: Path) -> None:
    data = stream_of(own())
    target = add_init(saved)
    save_init(target, own(1))
    with pytest.raises(BitstreamError, match="not the init that its name says"):
        codecs.decode_stream(data)


def test_what_cannot_be_an_init_is_not_added(run: Run, saved: Path, folder: Path) -> None:
    whole = saved.read_bytes()
    Path("cut.npz").write_bytes(whole[:-50])
    Path("text.npz").write_text("not an init")
    save_init(Path("three.npz"), own(in_dim=3))
    save_init(Path("grey.npz"), own(out_dim=1))
    save_init(Path("nan.npz"), with_first(own(), np.nan))
    shutil.copy(saved, "changed.npz")
    damaged(Path("changed.npz"))
    names = ("cut", "text", "three", "grey", "nan", "changed", "missing")
    for name in names:
        code, out, err = run("inits", "add", f"{name}.npz")
        assert (code, out) == (1, "") and err.count("\n") == 1 and f"{name}.npz" in err
    assert run("inits", "add", ".")[0] == 1
    assert not folder.exists()


def with_first(init: Init, value: float) -> Init:
    leaves = {path: np.array(leaf) for path, leaf in trees.leaves(init.params)}
    next(iter(leaves.values())).flat[0] = value
    return replace(init, params=trees.from_leaves(leaves))


def test_a_packaged_init_need_not_be_added(run: Run, folder: Path) -> None:
    save_init(Path("a.npz"), packaged_init(packaged_widths()[0]))
    code, _, err = run("inits", "add", "a.npz")
    assert code == 1 and "at hand" in err and not folder.exists()


def test_two_inits_of_the_same_first_digits_do_not_share_a_name(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_init(saved)
    start = own().digest[:4]
    other = own(1)
    assert other.digest[:4] != start
    save_init(Path("other.npz"), other)
    real = init_module._parse

    def colliding(data: bytes, name: str) -> Init:
        init = real(data, name)
        if name == "other.npz":
            init.__dict__["digest"] = start + init.digest[4:]
        return init

    monkeypatch.setattr(init_module, "_parse", colliding)
    with pytest.raises(ValueError, match="another init"):
        add_init(Path("other.npz"))


def test_a_folder_that_cannot_be_written_is_named(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INRJAX_INITS", str(tmp_path / "file" / "inits"))
    with pytest.raises(ValueError, match="INRJAX_INITS"):
        add_init(saved)
    monkeypatch.setenv("INRJAX_INITS", "")
    with pytest.raises(ValueError, match="INRJAX_INITS"):
        add_init(saved)
    assert find_init(b"1234") is None


def test_where_the_folder_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INRJAX_INITS", "relative")
    assert user_folder() == tmp_path / "relative"
    monkeypatch.setenv("INRJAX_INITS", "")
    assert user_folder() is None
    monkeypatch.delenv("INRJAX_INITS")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert user_folder() == tmp_path / "data" / "inrjax" / "inits"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for unset in ("", "not/absolute"):  # which the XDG rule says to ignore
        monkeypatch.setenv("XDG_DATA_HOME", unset)
        assert user_folder() == tmp_path / "home" / ".local" / "share" / "inrjax" / "inits"


# ---------------------------------------------------------------------------- hostile archives


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(saved: Path, value: float) -> None:
    save_init(saved, with_first(own(), value))
    with pytest.raises(ValueError, match="not finite"):
        load_init(saved)
