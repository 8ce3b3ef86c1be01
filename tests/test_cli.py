"""The command line: what it writes, and what it says to every bad input."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import PIL.Image
import pytest
from conftest import photograph

import inrjax
from inrjax import cli, codecs, compare, images, ledger, ratecontrol, trees
from inrjax.init import load_init, packaged_init, save_init
from inrjax.results import read_rows, write_rows
from inrjax.types import RDPoint

pytestmark = pytest.mark.unoptimized

WIDTH = codecs.inr.WIDTHS[0]
FAST = ("--width", str(WIDTH), "--steps", "2")
SHAPE = (8, 7)  # of all pictures here, so that they share two compiled programs: one or two at once
VERBS = tuple(cli.COMMANDS)


class Result(NamedTuple):
    code: int
    out: list[str]
    err: list[str]


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Result(code, out.splitlines(), err.splitlines())

    return run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def stream() -> bytes:
    """An .inr file of a picture."""
    return codecs.MetaSiren(width=WIDTH, num_steps=2).encode([photograph(*SHAPE)])[0]


def save(name: str, seed: int = 0) -> Path:
    images.write_image(name, photograph(*SHAPE, seed))
    return Path(name)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file and folder below a folder, but for the list of what was made how."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"folder"
        for path in sorted(folder.rglob("*"))
        if path.name != ledger.NAME
    }


def check_refused(result: Result, code: int, *words: str) -> None:
    """One sentence on stderr with the words in it, nothing on stdout."""
    assert result.code == code
    assert result.out == []
    [line] = result.err
    assert line.startswith("inrjax: error: ")
    assert all(word in line for word in words), line


# ------------------------------------------------------------------------------ the main job


def test_latent_grids_make_a_file_and_resume_keeps_it(run: Run, here: Path) -> None:
    save("a.png")
    command = "encode a.png -o out/ --codec latent-grid --step 36"
    assert run(*command.split()).code == 0
    first = Path("out/a.inr").read_bytes()
    assert run("decode", "out/a.inr", "-o", "b.png").code == 0
    assert "latent-grid" in " ".join(run("info", "out/a.inr").out)
    again = run(*command.split(), "--resume")
    assert again.code == 0 and "1 of 1" in again.err[0]
    assert Path("out/a.inr").read_bytes() == first
    other = run(
        "encode", "a.png", "-o", "out/", "--codec", "latent-grid", "--step", "30", "--resume"
    )
    assert other.code == 0 and len(Path("out/a.inr").read_bytes()) > len(first)


def test_a_picture_becomes_a_file_and_comes_back(run: Run) -> None:
    save("photo.png")
    result = run("encode", "photo.png", "-o", "photo.inr", *FAST)
    size = Path("photo.inr").stat().st_size
    assert (result.code, result.err) == (0, [])
    assert f"photo.png -> photo.inr: {size} bytes, {8 * size / 56:.3f} bpp" in result.out[0]
    assert run("decode", "photo.inr", "-o", "back.png").code == 0
    assert images.read_image("back.png").image.shape == (*SHAPE, 3)


def test_many_pictures_go_to_a_folder_and_come_back(run: Run) -> None:
    save("a.png"), save("b.png", seed=1)
    assert run("encode", "a.png", "b.png", "-o", "new/out", *FAST).code == 0
    assert sorted(contents(Path("new"))) == ["out", "out/a.inr", "out/b.inr"]
    assert run("decode", "new/out/a.inr", "new/out/b.inr", "-o", "back/").code == 0
    assert sorted(contents(Path("back"))) == ["a.png", "b.png"]


def test_a_trailing_slash_means_a_folder(run: Run, stream: bytes) -> None:
    Path("a.inr").write_bytes(stream)
    assert run("decode", "a.inr", "-o", "x.png/").code == 0
    assert Path("x.png/a.png").is_file()


def test_the_same_command_gives_the_same_file_and_another_seed_does_not(run: Run) -> None:
    save("a.png")
    for name, seed in {"x.inr": 0, "y.inr": 0, "z.inr": 1}.items():
        assert run("encode", "a.png", "-o", name, *FAST, "--seed", seed).code == 0
    files = [Path(name).read_bytes() for name in ("x.inr", "y.inr", "z.inr")]
    assert files[0] == files[1] != files[2]


@pytest.fixture
def one_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rate control chooses among one width, so that few programs are compiled."""
    model = {WIDTH: ratecontrol.packaged_model()[WIDTH]}
    monkeypatch.setattr(ratecontrol, "packaged_model", lambda: model)


def test_a_limit_in_bytes_is_kept_and_its_files_are_resumed(run: Run, one_width: None) -> None:
    pictures = [save("a.png"), save("b.png", 1)]
    command = ("encode", *pictures, "-o", "out/", "--steps", "2", "--max-bytes")
    made = run(*command, 2200)
    assert made.code == 0 and len(made.out) == 2
    sizes = [len(data) for data in contents(Path("out")).values()]
    assert max(sizes) <= 2200
    again = run(*command, 2200, "--resume")
    assert (again.code, again.out) == (0, [])
    other = run(*command, 2190, "--resume")  # another target, although it may be met already
    assert other.code == 0 and len(other.out) == 2


def test_a_target_out_of_reach_is_refused_with_the_nearest(run: Run, one_width: None) -> None:
    picture = save("a.png")
    refused = run("encode", picture, "-o", "a.inr", "--steps", "2", "--max-bytes", 100)
    check_refused(refused, 1, "a.png", "cannot be reached", "nearest file has")
    assert not Path("a.inr").exists()


def test_coin_is_encoded_and_decoded(run: Run) -> None:
    save("a.png")
    options = ("--codec", "coin", "--width", "4", "--steps", "2")
    assert run("encode", "a.png", "-o", "a.inr", *options).code == 0
    assert run("info", "a.inr").out[0].split() == ["codec", "coin"]
    assert run("decode", "a.inr", "-o", "back.png").code == 0


def test_info_says_what_is_in_a_file(run: Run, stream: bytes) -> None:
    Path("a.inr").write_bytes(stream)
    told = json.loads("\n".join(run("info", "a.inr", "--json").out))
    assert (told["codec"], told["height"], told["width"]) == ("meta-siren", *SHAPE)
    assert told["num_bytes"] == len(stream) == sum(told["sections"].values())
    assert told["bpp"] == pytest.approx(8 * len(stream) / 56)
    plain = dict(line.split(maxsplit=1) for line in run("info", "a.inr").out)
    assert plain["codec"] == "meta-siren"
    assert told["init_digest"] in "".join(run("info", "a.inr").out)


# ------------------------------------------------------------------------------ pictures


def _damaged(name: str) -> None:
    save("whole.png")
    data = Path("whole.png").read_bytes()
    Path(name).write_bytes(data[: len(data) // 2])


def _pillow(mode: str, **options: object) -> Callable[[str], None]:
    picture = PIL.Image.fromarray(photograph(8, 6)).convert(mode)
    return lambda name: picture.save(name, **options)


REFUSED_PICTURES: dict[str, tuple[str, Callable[[str], object]]] = {
    "missing": ("no.png", lambda name: None),
    "a pattern that matched nothing": ("photos/*.png", lambda name: None),
    "empty": ("empty.png", lambda name: Path(name).touch()),
    "truncated": ("cut.png", _damaged),
    "not an image": ("text.png", lambda name: Path(name).write_text("a poem\n" * 40)),
    "a folder": ("folder", lambda name: Path(name).mkdir()),
    "16 bits": ("deep.png", lambda name: PIL.Image.new("I;16", (8, 6)).save(name)),
    "CMYK": ("print.jpg", _pillow("CMYK")),
    "transparent": ("clear.png", lambda name: PIL.Image.new("RGBA", (8, 6)).save(name)),
}


@pytest.mark.parametrize("case", REFUSED_PICTURES)
def test_a_picture_is_refused(run: Run, here: Path, case: str) -> None:
    name, make = REFUSED_PICTURES[case]
    make(name)
    before = contents(here)
    check_refused(run("encode", name, "-o", "out/", *FAST), 1, name)
    check_refused(run("encode", name, "-o", "out.inr", *FAST), 1, name)
    assert contents(here) == before


def test_one_bad_picture_does_not_lose_the_others(run: Run) -> None:
    save("a.png"), save("b.png", seed=1), Path("bad.png").write_bytes(b"\x89PNG\r\n")
    result = run("encode", "a.png", "bad.png", "none.png", "b.png", "-o", "out", *FAST)
    assert result.code == 1
    assert len(result.out) == 2
    assert [line.split()[2] for line in result.err] == ["bad.png", "none.png"]
    assert sorted(contents(Path("out"))) == ["a.inr", "b.inr"]


def test_a_picture_that_cannot_be_encoded_does_not_lose_its_batch(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = codecs.MetaSiren.encode

    def refuse_tall(self, pictures, on_progress=None):
        if any(picture.shape[0] == 9 for picture in pictures):
            raise ValueError("got 9 rows")
        return encode(self, pictures, on_progress)

    monkeypatch.setattr(codecs.MetaSiren, "encode", refuse_tall)
    save("a.png"), save("c.png", seed=1), images.write_image("b.png", photograph(9, 7))
    result = run("encode", "a.png", "b.png", "c.png", "-o", "out", *FAST)
    assert result.code == 1
    assert result.err == ["inrjax: error: b.png: got 9 rows"]
    assert sorted(contents(Path("out"))) == ["a.inr", "c.inr"]


def test_odd_pictures_are_converted_and_it_is_said(run: Run) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the orientation: to be turned by 90 degrees
    made = {
        "grey.png": (_pillow("L"), (8, 6), "grey"),
        "palette.png": (_pillow("P"), (8, 6), "palette"),
        "opaque.png": (_pillow("RGBA"), (8, 6), "alpha"),
        "turned.jpg": (_pillow("RGB", exif=exif), (6, 8), "orientation"),
    }
    plain = {"pixel.png": (1, 1), "line.png": (1, 9), "column.png": (9, 1)}
    for name, (make, _, _) in made.items():
        make(name)
    for name, shape in plain.items():
        images.write_image(name, photograph(*shape))
    result = run("encode", *made, *plain, "-o", "out", *FAST)
    assert result.code == 0
    assert len(result.err) == len(made)
    for line, (name, (_, _, word)) in zip(result.err, made.items(), strict=True):
        assert line.startswith(f"inrjax: {name}: ") and word in line
    for name, shape in {**{n: s for n, (_, s, _) in made.items()}, **plain}.items():
        told = json.loads("".join(run("info", f"out/{Path(name).stem}.inr", "--json").out))
        assert (told["height"], told["width"]) == shape


# ------------------------------------------------------------------------------ streams


def _flipped(position: int) -> Callable[[bytes], bytes]:
    def flip(stream: bytes) -> bytes:
        damaged = bytearray(stream)
        damaged[position] ^= 0x10
        return bytes(damaged)

    return flip


REFUSED_STREAMS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda stream: b"",
    "not an .inr file": lambda stream: b"\x89PNG\r\n\x1a\n" + bytes(60),
    "another version": lambda stream: stream[:3] + bytes([200]) + stream[4:],
    "another codec": lambda stream: stream[:4] + bytes([250]) + stream[5:],
    "cut in the header": lambda stream: stream[:7],
    "cut by half": lambda stream: stream[: len(stream) // 2],
    "cut by a byte": lambda stream: stream[:-1],
    "a byte too long": lambda stream: stream + b"\0",
    "flipped in the size": _flipped(5),
    "flipped in the middle": _flipped(60),
    "flipped at the end": _flipped(-1),
}


@pytest.mark.parametrize("case", REFUSED_STREAMS)
def test_a_stream_is_refused(run: Run, here: Path, stream: bytes, case: str) -> None:
    Path("bad.inr").write_bytes(REFUSED_STREAMS[case](stream))
    before = contents(here)
    check_refused(run("decode", "bad.inr", "-o", "bad.png"), 1, "bad.inr: ")
    check_refused(run("decode", "bad.inr", "-o", "out/"), 1, "bad.inr: ")
    check_refused(run("info", "bad.inr"), 1, "bad.inr: ")
    assert contents(here) == before


def test_a_missing_stream_and_a_folder_are_refused(run: Run, here: Path) -> None:
    for name in ("none.inr", "."):
        check_refused(run("decode", name, "-o", "a.png"), 1, name)
        check_refused(run("info", name), 1, name)
    assert contents(here) == {}


def test_one_bad_stream_does_not_lose_the_others(run: Run, stream: bytes) -> None:
    for name, data in {"a": stream, "b": stream[:-5], "c": stream}.items():
        Path(f"{name}.inr").write_bytes(data)
    result = run("decode", "a.inr", "b.inr", "c.inr", "-o", "out")
    assert result.code == 1
    assert len(result.err) == 1 and "b.inr" in result.err[0]
    assert sorted(contents(Path("out"))) == ["a.png", "c.png"]


@pytest.fixture
def own_init() -> Path:
    """An init file that is not packaged."""
    packaged = packaged_init(WIDTH)
    params = trees.from_leaves({p: -np.asarray(x) for p, x in trees.leaves(packaged.params)})
    save_init(Path("own.npz"), replace(packaged, params=params))
    return Path("own.npz")


def test_a_file_of_an_own_init_needs_that_init(run: Run, own_init: Path) -> None:
    save("a.png")
    steps = ("--steps", "2")  # the width is the init's
    assert run("encode", "a.png", "-o", "a.inr", *steps, "--init", own_init).code == 0
    before = contents(Path())
    check_refused(run("decode", "a.inr", "-o", "b.png"), 1, "a.inr", "init")
    check_refused(run("info", "a.inr"), 1, "a.inr", "init")
    assert contents(Path()) == before
    assert run("info", "a.inr", "--init", own_init).code == 0
    assert run("decode", "a.inr", "-o", "b.png", "--init", own_init).code == 0


def test_a_bad_init_is_refused(run: Run, own_init: Path, stream: bytes) -> None:
    save("a.png"), Path("a.inr").write_bytes(stream)
    Path("cut.npz").write_bytes(own_init.read_bytes()[:-200])
    before = contents(Path())
    for name in ("none.npz", "cut.npz", "a.png", "."):
        check_refused(run("encode", "a.png", "-o", "b.inr", "--init", name), 1, name)
        check_refused(run("decode", "a.inr", "-o", "b.png", "--init", name), 1, name)
        check_refused(run("info", "a.inr", "--init", name), 1, name)
    coin = ("--codec", "coin", "--init", own_init)
    check_refused(run("encode", "a.png", "-o", "b.inr", *coin), 2, "coin")
    wrong = ("--width", str(WIDTH + 1), "--init", own_init)
    check_refused(run("encode", "a.png", "-o", "b.inr", *wrong), 2, str(WIDTH + 1))
    assert contents(Path()) == before


# ------------------------------------------------------------------------------ outputs


def test_outputs_that_cannot_be_meant_are_refused(run: Run, here: Path, stream: bytes) -> None:
    save("a.png"), save("b.png"), Path("a.inr").write_bytes(stream)
    before = contents(here)
    check_refused(run("encode", "a.png", "b.png", "-o", "x.inr", *FAST), 2, "x.inr", "folder")
    check_refused(run("encode", "a.png", "-o", "x.png", *FAST), 2, "x.png", ".inr")
    check_refused(run("decode", "a.inr", "-o", "x.jpg"), 2, "x.jpg", ".png")
    check_refused(run("encode", "-o", "out", *FAST), 2, "no file")
    assert contents(here) == before


def test_two_pictures_that_would_become_one_file_are_refused(run: Run, here: Path) -> None:
    save("a.png")
    PIL.Image.open("a.png").save("a.jpg")
    before = contents(here)
    check_refused(run("encode", "a.png", "a.jpg", "-o", "out", *FAST), 1, "a.png", "a.jpg")
    assert contents(here) == before


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    run: Run, here: Path, stream: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("a.png"), Path("a.inr").write_bytes(stream)
    before = contents(here)
    for output in ("a.png/", "a.png/x", "a.png/x.inr"):
        check_refused(run("encode", "a.png", "-o", output, *FAST), 1, "a.png is a file")
    # A superuser may write anywhere, so the answer of the system is put in its mouth.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(codecs.MetaSiren, "encode", lambda *_: pytest.fail("it was fitted"))
    check_refused(run("encode", "a.png", "-o", "b.inr", *FAST), 1, "cannot be written")
    check_refused(run("decode", "a.inr", "-o", "b.png"), 1, "cannot be written")
    assert contents(here) == before


def test_a_full_disk_leaves_no_half_file(
    run: Run, here: Path, stream: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, mode: str) -> None:
        os.close(descriptor)
        raise OSError(errno.ENOSPC, "No space left on device")

    save("a.png"), Path("a.inr").write_bytes(stream)
    before = contents(here)
    monkeypatch.setattr(trees.os, "fdopen", full)
    check_refused(run("encode", "a.png", "-o", "b.inr", *FAST), 1, "b.inr", "No space")
    check_refused(run("decode", "a.inr", "-o", "b.png"), 1, "b.png", "No space")
    assert contents(here) == before


def test_a_file_that_is_there_is_replaced_only_if_asked(run: Run, stream: bytes) -> None:
    save("a.png"), Path("a.inr").write_bytes(stream)
    original = Path("a.png").read_bytes()
    check_refused(run("decode", "a.inr", "-o", "."), 1, "a.png", "--overwrite")
    check_refused(run("encode", "a.png", "-o", "a.inr", *FAST), 1, "a.inr", "--overwrite")
    assert (Path("a.png").read_bytes(), Path("a.inr").read_bytes()) == (original, stream)
    assert run("decode", "a.inr", "-o", ".", "--overwrite").code == 0
    assert Path("a.png").read_bytes() != original


def test_resume_makes_what_is_missing_or_not_as_it_should_be(run: Run) -> None:
    names = ("cut", "gone", "kept", "other_net", "other_size", "turned")
    for seed, name in enumerate(names[:-1]):
        save(f"{name}.png", seed)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # stored lying, shown standing
    PIL.Image.fromarray(photograph(SHAPE[1], SHAPE[0])).save("turned.jpg", exif=exif)
    pictures = [*(f"{name}.png" for name in names[:-1]), "turned.jpg"]
    assert run("encode", *pictures, "-o", "out", *FAST).code == 0
    whole = contents(Path("out"))
    init = packaged_init(codecs.inr.WIDTHS[1])
    unfitted = {"net": init.mean(), "log_step": np.full(len(init.levels()), -6.0)}
    other = codecs.inr._pack(photograph(*SHAPE), unfitted, init)  # intact, of another width
    assert codecs.describe(other).height == SHAPE[0]
    Path("out/other_net.inr").write_bytes(other)
    images.write_image("tall.png", photograph(9, 7))
    assert run("encode", "tall.png", "-o", "out/other_size.inr", "--overwrite", *FAST).code == 0
    Path("out/cut.inr").write_bytes(whole["cut.inr"][:-1])
    Path("out/gone.inr").unlink()

    result = run("encode", *pictures, "-o", "out", "--resume", *FAST)
    made = {Path(line.split()[0]).stem for line in result.out}
    assert (result.code, made) == (0, {"cut", "gone", "other_net", "other_size"})
    assert [line for line in result.err if "kept" in line] == [
        "inrjax: 2 of 6 files are there and are kept"
    ]
    assert [line for line in result.err if "made again" in line] == [
        "inrjax: 3 of 6 files are there and are made again: .inrjax-encode.jsonl does not say that "
        "they are of these pictures and options, as they are now"
    ]
    assert contents(Path("out")) == whole
    assert run("encode", *pictures, "-o", "out", "--resume", *FAST).out == []


def test_a_single_file_has_no_list_beside_it(run: Run, here: Path) -> None:
    save("a.png")
    assert run("encode", "a.png", "-o", "a.inr", *FAST).code == 0
    assert sorted(path.name for path in here.iterdir()) == ["a.inr", "a.png"]


def test_resume_makes_again_what_other_options_or_nobody_known_made(run: Run, here: Path) -> None:
    save("a.png"), save("b.png", 1)
    (here / "sub").mkdir()
    command = ("encode", "sub/../a.png", "b.png", "-o", "sub/../out/", "--resume", *FAST[:2])
    two, three = (*command, "--steps", 2), (*command, "--steps", 3)

    def made(*arguments: object) -> int:
        result = run(*arguments)
        assert result.code == 0
        return len(result.out)

    assert [made(*two), made(*two)] == [2, 0]
    first = contents(here / "out")
    assert [made(*three), made(*three), made(*three, "--seed", 1)] == [2, 0, 2]
    assert made(*two) == 2 and contents(here / "out") == first

    # Dates and names do not count, bytes do.
    os.utime("a.png", ns=(2**62, 2**62))
    assert made(*two) == 0
    Path("out/a.inr").write_bytes(Path("out/b.inr").read_bytes())
    assert made(*two) == 1 and contents(here / "out") == first

    log = here / "out" / ledger.NAME
    lines = log.read_bytes().split()
    log.write_bytes(log.read_bytes()[:-3])  # as a full disk leaves a line
    again = made(*two)
    assert again <= 1 and made(*two) == 0 and contents(here / "out") == first
    for damage in (b"", b"null\n[]\n{}\n\xff\n" + b"[" * 100_000):
        log.write_bytes(damage)
        assert [made(*two), made(*two)] == [2, 0]
    log.unlink()
    assert [made(*two), made(*two)] == [2, 0]
    assert lines and contents(here / "out") == first


def test_what_was_made_how_is_not_written_through_a_link(run: Run, here: Path) -> None:
    save("a.png"), (here / "out").mkdir(), (here / "mine").write_text("mine")
    (here / "out" / ledger.NAME).symlink_to(here / "mine")
    assert run("encode", "a.png", "-o", "out/", *FAST).code == 1
    assert (here / "mine").read_text() == "mine"


# ------------------------------------------------------------------------------ options

WRONG_OPTIONS: dict[str, tuple[str, str]] = {
    "no command": ("", "encode"),
    "an unknown command": ("compress a.png", "compress"),
    "an unknown option first": ("--fast encode", "--fast"),
    "an unknown option": ("encode a.png -o b.inr --fast", "--fast"),
    "no output": ("encode a.png", "-o"),
    "an option without its value": ("encode a.png -o b.inr --width", "--width"),
    "a width that is no number": ("encode a.png -o b.inr --width wide", "wide"),
    "no steps": ("encode a.png -o b.inr --steps 0", "--steps"),
    "a negative seed": ("encode a.png -o b.inr --seed -1", "--seed"),
    "a fraction": ("encode a.png -o b.inr --steps 1.5", "1.5"),
    "an unknown codec": ("encode a.png -o b.inr --codec jpeg", "jpeg"),
    "a width without an init": ("encode a.png -o b.inr --width 7", "7"),
    "two files": ("info a.inr b.inr", "b.inr"),
    "codecs that are not there": ("evaluate --images . --codecs jpeg,bpg -o run", "bpg"),
    "no codec": ("evaluate --images . --codecs , -o run", "jpeg2000"),
    "a preset and steps": ("encode a.png -o b.inr --preset best --steps 9", "--steps"),
    "a width of latents": ("encode a.png -o b.inr --codec latent-grid --width 32", "--width"),
    "a step of a network": ("encode a.png -o b.inr --step 20", "latent-grid"),
    "a step and a target": (
        "encode a.png -o b.inr --codec latent-grid --step 20 --max-bytes 900",
        "--step",
    ),
    "a preset for coin": ("encode a.png -o b.inr --preset fast --codec coin", "coin"),
    "two targets": ("encode a.png -o b.inr --target-bpp 1 --max-bytes 9", "--max-bytes"),
    "a target and a width": ("encode a.png -o b.inr --target-psnr 30 --width 24", "--width"),
    "a target for coin": ("encode a.png -o b.inr --codec coin --max-bytes 9", "--max-bytes"),
    "a target of nothing": ("encode a.png -o b.inr --target-bpp 0", "0.0001"),
    "a target that is no number": ("encode a.png -o b.inr --target-bpp nan", "nan"),
    "resume and overwrite": ("encode a.png -o b.inr --resume --overwrite", "--overwrite"),
    "a process id alone": ("encode a.png -o b.inr --distributed --process-id 1", "--coordinator"),
    "a coordinator without the word": (
        "encode a.png -o b.inr --coordinator h:1 --num-processes 2 --process-id 0",
        "--distributed",
    ),
    "a coordinator without a port": (
        "encode a.png -o b.inr --distributed --coordinator h --num-processes 2 --process-id 0",
        "HOST:PORT",
    ),
    "a process too many": (
        "encode a.png -o b.inr --distributed --coordinator h:1 --num-processes 2 --process-id 2",
        "count from 0",
    ),
}


@pytest.mark.parametrize("case", WRONG_OPTIONS)
def test_a_wrong_option_is_refused(run: Run, here: Path, case: str) -> None:
    save("a.png")
    before = contents(here)
    line, word = WRONG_OPTIONS[case]
    check_refused(run(*line.split()), 2, word)
    assert contents(here) == before


def test_the_overview_shows_every_command(run: Run) -> None:
    for option in ("--help", "-h"):
        result = run(option)
        assert (result.code, result.err) == (0, [])
        assert all(any(f"• {verb} " in line for line in result.out) for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_has_help_with_an_example(run: Run, verb: str) -> None:
    result = run(verb, "--help")
    assert (result.code, result.err) == (0, [])
    assert any(line.strip().startswith(f"inrjax {verb} ") for line in result.out[2:])
    assert max(map(len, result.out)) <= 110


# ------------------------------------------------------------------------------ meta-train


@pytest.fixture
def train(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run ``inrjax meta-train`` on two pictures, without the estimate of the prior."""
    from inrjax import metatrain

    short = partial(metatrain.MetaTrainConfig, points=16, round_steps=2)
    monkeypatch.setattr(metatrain, "MetaTrainConfig", short)
    monkeypatch.setattr(metatrain, "learn_prior", lambda _, init, *__: init)
    Path("photos").mkdir()
    save("photos/a.png"), save("photos/b.png", seed=1)
    options = ("--data", "photos", "--width", "4", "--steps", "2", "--rounds", "0")
    return partial(run, "meta-train", *options)


def test_a_trained_init_encodes_and_a_stopped_training_goes_on(
    run: Run, train: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inrjax import metatrain

    monkeypatch.setattr(metatrain, "CHECKPOINT_STEPS", 1)
    result = train("-o", "whole.npz")
    assert (result.code, result.err) == (0, [])
    assert sorted(contents(Path())) == ["photos", "photos/a.png", "photos/b.png", "whole.npz"]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(metatrain, "learn_prior", stop)
        result = train("-o", "init.npz")
    assert (result.code, len(result.err)) == (130, 1)
    assert "--resume" in result.err[0]
    check_refused(train("-o", "init.npz"), 1, "init.checkpoints", "--resume")
    with monkeypatch.context() as patch:
        patch.setattr(metatrain, "_advance", stop)  # there is nothing left to train
        assert train("-o", "init.npz", "--resume").code == 0
    assert load_init(Path("init.npz")).digest == load_init(Path("whole.npz")).digest
    assert not Path("init.checkpoints").exists()


def test_meta_train_makes_rounds_of_fits_or_says_that_there_are_too_few_pictures(
    train: Run,
) -> None:
    result = train("-o", "two.npz", "--rounds", "1")
    assert result.code == 0 and "no rounds of fits" in result.err[0]
    assert load_init(Path("two.npz")).info["config"]["rounds"] == 0
    for i in range(6):
        save(f"photos/{i}.png", seed=2 + i)
    plain, refined = (train("-o", f"{rounds}.npz", "--rounds", rounds) for rounds in ("0", "1"))
    assert (plain.code, plain.err) == (refined.code, refined.err) == (0, [])
    before, after = (load_init(Path(f"{rounds}.npz")) for rounds in ("0", "1"))
    assert (before.info["config"]["rounds"], after.info["config"]["rounds"]) == (0, 1)
    assert "--rounds 1" in after.info["command"]
    weight = before.net.shapes()["layer_01"]["weight"]
    assert before.envelope["layer_01"]["weight"].shape == (1, 1)
    assert after.envelope["layer_01"]["weight"].shape == weight  # a scale for each param


def test_a_file_that_cannot_be_written_after_training_loses_nothing(
    train: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inrjax import cli, metatrain

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cli, "save_init", full)
        result = train("-o", "init.npz")
    check_refused(result, 1, "init.npz", "--resume")
    with monkeypatch.context() as patch:
        patch.setattr(metatrain, "_advance", full)  # there is nothing left to train
        assert train("-o", "init.npz", "--resume").code == 0


def test_meta_train_refuses_what_it_cannot_use(run: Run, train: Run, here: Path) -> None:
    Path("there.npz").write_text("mine")
    Path("folder.npz").mkdir()
    images.write_image("photos/tiny.png", photograph(3, 5))
    before = contents(here)
    check_refused(train("-o", "folder.npz", "--overwrite"), 1, "folder.npz is a folder")
    check_refused(train("-o", "init.npz"), 1, "tiny: too small")
    check_refused(train("-o", "init.npz", "--width", "1025"), 2, "1025")
    check_refused(train("-o", "init"), 2, "init", ".npz")
    check_refused(train("-o", "there.npz"), 1, "there.npz", "--overwrite")
    check_refused(train("-o", "there.npz/init.npz"), 1, "there.npz is a file")
    check_refused(run("meta-train", "--data", "none", "-o", "init.npz"), 1, "none")
    assert contents(here) == before
    Path("photos/bad.png").write_text("?")
    result = train("-o", "init.npz")
    assert result.code == 1
    assert "bad.png" in result.err[0] and "nothing was trained" in result.err[1]
    assert not Path("init.npz").exists()


# ------------------------------------------------------------------------------ stopping, pipes


def test_ctrl_c_keeps_what_was_written_and_says_so(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("a.png"), save("b.png", seed=1)
    encode, calls = codecs.MetaSiren.encode, iter([None])

    def stop_at_the_second(self, pictures, on_progress=None):
        if next(calls, "stop") == "stop":
            raise KeyboardInterrupt
        return encode(self, pictures, on_progress)

    monkeypatch.setattr(codecs.MetaSiren, "encode", stop_at_the_second)
    monkeypatch.setattr(cli, "BATCH_IMAGES", 1)
    result = run("encode", "a.png", "b.png", "-o", "out", *FAST)
    assert result.code == 130
    assert result.err == ["inrjax: stopped: 1 of 2 files were written and are kept"]
    assert sorted(contents(Path("out"))) == ["a.inr"]


def test_batches_are_bounded_in_pixels(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    encode = codecs.MetaSiren.encode

    def note_size(self, pictures, on_progress=None):
        sizes.append(len(pictures))
        return encode(self, pictures, on_progress)

    monkeypatch.setattr(codecs.MetaSiren, "encode", note_size)
    monkeypatch.setattr(cli, "BATCH_PIXELS", 2 * 8 * 7)
    names = [str(save(f"{i}.png", i)) for i in range(5)]
    assert run("encode", *names, "-o", "out", *FAST).code == 0
    assert sizes == [2, 2, 1]
    # A fit holds all pictures at the size of the largest: small ones are not fitted beside it.
    sizes.clear()
    images.write_image(Path("large.png"), photograph(14, 16))
    assert run("encode", *names[:3], "large.png", *names[3:], "-o", "other", *FAST).code == 0
    assert sizes == [2, 1, 1, 2]


@pytest.fixture
def program() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command line in another process, as a shell does."""
    root = str(Path(inrjax.__file__).parents[1])

    def start(*arguments: str, **options: object) -> subprocess.Popen[str]:
        return subprocess.Popen(  # type: ignore[call-overload]
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": root},
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    yield start


def test_a_closed_pipe_is_no_traceback(program, stream: bytes) -> None:
    Path("a.inr").write_bytes(stream)
    for arguments in (["info", "a.inr"], ["--help"], ["encode", "--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        process = program("-m", "inrjax.cli", *arguments, stdout=writer)
        os.close(writer)
        assert process.communicate()[1] == ""
        assert process.returncode == 141


def test_decoding_starts_fast(program, stream: bytes) -> None:
    Path("a.inr").write_bytes(stream)
    check = """
import sys
from inrjax.cli import main
codes = [main(["decode", "a.inr", "-o", "a.png"]), main(["info", "a.inr"])]
slow = {"jax", "flax", "optax", "matplotlib", "scipy", "skimage"} & set(sys.modules)
sys.exit(f"{codes} {slow}" if any(codes) or slow else 0)
"""
    process = program("-c", check, stdout=subprocess.DEVNULL)
    assert process.communicate()[1] == ""
    assert process.returncode == 0


# ------------------------------------------------------------------------------ bdrate

PUBLISHED = Path(__file__).parents[1] / "results" / "published" / "kodak.csv"


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals from 20 resamples: what is tested is which pairs are compared."""
    monkeypatch.setattr(compare, "BOOTSTRAP", compare.Bootstrap(num_resamples=20))


def write_table(name: str, **factors: float) -> Path:
    """A table of codecs whose rates are so many times 0.1, 0.4, 1 bpp, for three pictures."""
    rows = [
        RDPoint(
            codec=codec,
            setting=f"rate={rate}",
            image=f"kodim0{i}",
            height=10,
            width=10,
            num_bytes=1,
            bpp=factor * rate,
            psnr=26 + 8 * rate + i,
            psnr_y=None,
            psnr_ycbcr=None,
            ssim=0.5 + 0.1 * rate + 0.05 * i,
            ms_ssim=None,
            encode_seconds=1.0,
            decode_seconds=1.0,
            batch_size=1,
            seed=None,
            digest="00",
        )
        for codec, factor in factors.items()
        for rate in (0.1, 0.4, 1.0)
        for i in range(3)
    ]
    write_rows(Path(name), rows)
    return Path(name)


@pytest.mark.usefixtures("few_resamples")
def test_bdrate_of_two_tables(run: Run) -> None:
    write_table("a.csv", jpeg=1.0), write_table("b.csv", ours=0.5)
    result = run("bdrate", "a.csv", "b.csv")
    assert (result.code, result.err) == (0, [])
    assert result.out[0] == "ours against jpeg; PSNR, 3 images"
    [rate] = [line for line in result.out if line.startswith("BD-rate  curve of means")]
    assert " ".join(rate.split()[4:]) == "-50.00 % -50.00 to -50.00 27.8 to 35 dB"
    assert any(line.startswith("BD-PSNR  mean of 3 images  +") for line in result.out)


def test_bdrate_as_json(run: Run) -> None:
    write_table("a.csv", jpeg=1.0), write_table("b.csv", ours=0.5)
    result = run("bdrate", "a.csv", "b.csv", "--metric", "ssim", "--json")
    [found] = json.loads("\n".join(result.out))
    assert (found["codec"], found["anchor"], found["metric"]) == ("ours", "jpeg", "ssim")
    for key in ("curve_of_means", "mean_of_images"):
        assert found["bd_rate_percent"][key]["value"] == pytest.approx(-50)
    assert found["bootstrap"] == {"num_resamples": 1000, "level": 0.95, "seed": 0}


@pytest.mark.usefixtures("few_resamples")
def test_bdrate_picture_by_picture(run: Run) -> None:
    rows = read_rows(write_table("a.csv", jpeg=1.0))
    write_rows(Path("a.csv"), rows[::-1])  # the table is in the order of names all the same
    factors = {"kodim00": 0.5, "kodim01": 0.8, "kodim02": 1.0}
    ours = [replace(row, codec="ours", bpp=factors[row.image] * row.bpp) for row in rows]
    far = [replace(r, psnr=r.psnr + 20 * (r.image == "kodim02")) for r in ours]
    write_rows(Path("b.csv"), ours), write_rows(Path("far.csv"), far)
    result = run("bdrate", "a.csv", "b.csv", "--per-image")
    assert (result.code, result.err) == (0, [])
    start = result.out.index("") + 1
    assert result.out[: start - 1] == run("bdrate", "a.csv", "b.csv").out
    assert result.out[start].split() == ["picture", "BD-rate", "BD-PSNR"]
    cells = [line.split() for line in result.out[start + 1 :]]
    assert [(line[0], line[1]) for line in cells] == [
        ("kodim00", "-50.00"), ("kodim01", "-20.00"), ("kodim02", "+0.00"),
    ]  # fmt: skip
    [found] = json.loads("\n".join(run("bdrate", "a.csv", "b.csv", "--per-image", "--json").out))
    values = [of["bd_rate_percent"] for of in found["images"].values()]
    mean = found["bd_rate_percent"]["mean_of_images"]["value"]
    assert sum(values) / 3 == pytest.approx(mean)
    assert run("bdrate", "a.csv", "far.csv", "--per-image").out[-1].split()[:2] == ["kodim02", "-"]


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize(
    "arguments, pairs",
    [
        ("one.csv many.csv", ["jpeg against jpeg", "ours against jpeg", "webp against jpeg"]),
        ("many.csv newer.csv", ["jpeg against jpeg", "ours against ours"]),
        ("many.csv many.csv --codec-a jpeg", ["ours against jpeg", "webp against jpeg"]),
        ("many.csv many.csv --codec-a jpeg --codec-b ours", ["ours against jpeg"]),
        ("many.csv newer.csv --codec-b ours", ["ours against ours"]),
    ],
)
def test_bdrate_pairs_what_makes_sense(run: Run, arguments: str, pairs: list[str]) -> None:
    write_table("one.csv", jpeg=1.0)
    write_table("many.csv", jpeg=1.0, ours=0.6, webp=0.8)
    write_table("newer.csv", jpeg=1.0, ours=0.5, avif=0.7)
    result = run("bdrate", *arguments.split())
    assert (result.code, result.err) == (0, [])
    assert [line.split(";")[0] for line in result.out if "against" in line] == pairs


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        ("many.csv many.csv", 2, ("jpeg, ours", "--codec-a")),
        ("many.csv other.csv", 2, ("jpeg, ours", "avif", "--codec-a")),
        ("many.csv other.csv --codec-a bpg", 2, ("bpg", "jpeg, ours")),
        ("many.csv other.csv --codec-a jpeg --codec-b bpg", 2, ("bpg", "avif")),
        ("missing.csv other.csv", 1, ("missing.csv",)),
        ("empty.csv other.csv", 1, ("empty.csv", "no rows")),
        ("published.csv other.csv", 1, ("published curves", "--anchor-published", "COIN")),
        ("other.csv published.csv", 1, ("published curves", "only be the anchor")),
        ("published.csv published.csv --anchor-published COIN", 1, ("only be the anchor",)),
        ("published.csv other.csv --anchor-published Coin", 2, ("'Coin'", "COIN")),
        ("published.csv other.csv --anchor-published COIN --codec-a x", 2, ("--codec-a",)),
        ("published.csv other.csv --anchor-published COIN --per-image", 2, ("--per-image",)),
        ("many.csv other.csv --anchor-published COIN", 1, ("many.csv", "no published curves")),
        ("other.csv other.csv --codec-a avif --codec-b avif --metric psnr_y", 1, ("psnr_y",)),
    ],
)
def test_bdrate_refuses(run: Run, arguments: str, code: int, words: tuple[str, ...]) -> None:
    write_table("many.csv", jpeg=1.0, ours=0.6), write_table("other.csv", avif=0.7)
    write_table("empty.csv")
    Path("published.csv").write_bytes(PUBLISHED.read_bytes())
    check_refused(run("bdrate", *arguments.split()), code, *words)


@pytest.mark.usefixtures("few_resamples")
def test_bdrate_against_a_published_curve_is_never_taken_for_a_measured_one(run: Run) -> None:
    write_table("ours.csv", ours=0.5)
    Path("kodak.csv").write_bytes(PUBLISHED.read_bytes())
    command = ("bdrate", "kodak.csv", "ours.csv", "--anchor-published", "COIN")
    result = run(*command)
    assert result.code == 0
    assert result.out[0].startswith("ours against published COIN, not measured here; PSNR, 3")
    assert result.err == [
        "inrjax: kodak.csv is about the 24 images of Kodak, ours.csv about others"
    ]
    assert all("against published  curve of means" in line for line in result.out[2:])
    assert "over ours" in result.out[1]
    [found] = json.loads("\n".join(run(*command, "--json").out))
    assert found["bd_rate_percent_against_published"]["mean_of_images"] is None
    assert "bd_rate_percent" not in found and "bd_psnr_db" not in found


@pytest.mark.usefixtures("few_resamples")
def test_bdrate_reports_a_pair_that_cannot_be_compared_and_goes_on(run: Run) -> None:
    write_table("a.csv", jpeg=1.0)
    far = [replace(row, codec="far", psnr=row.psnr + 50) for row in read_rows(Path("a.csv"))]
    near = read_rows(write_table("b.csv", ours=0.5))
    write_rows(Path("b.csv"), [*far, *near])
    result = run("bdrate", "a.csv", "b.csv")
    assert result.code == 1 and "ours against jpeg" in result.out[0]
    [line] = result.err
    assert "far against jpeg" in line and "do not overlap" in line


# ------------------------------------------------------------------------------ results


@pytest.fixture
def measured(run: Run) -> Path:
    """The folder of a run of ``inrjax evaluate``, of two pictures of SHAPE under WebP."""
    Path("photos").mkdir()
    save("photos/a.png"), save("photos/b.png", seed=1)
    assert run("evaluate", "--images", "photos", "--codecs", "webp", "-o", "runs/run").code == 0
    return Path("runs/run")


def test_results_list_shows_every_run_and_whether_it_is_whole(run: Run, measured: Path) -> None:
    result = run("results", "list", "runs")
    num_rows = 2 * len(codecs.classic.WEBP_QUALITIES)
    assert (result.code, result.err) == (0, [])
    assert " ".join(result.out[0].split()) == "experiment run date device images rows status"
    cells = result.out[1].split()
    assert cells[:2] + cells[-3:] == ["runs", "run", "2", str(num_rows), "complete"]

    write_rows(measured / "rows.csv", read_rows(measured / "rows.csv")[:-1])
    Path("runs/broken").mkdir()
    Path("runs/broken/config.json").write_text("{")
    result = run("results", "list", "runs", "--json")
    assert result.code == 1 and "broken" in result.err[0]
    [facts] = json.loads("\n".join(result.out))
    assert (facts["run"], facts["status"]) == ("run", "partial")


def test_results_show_prints_config_provenance_and_means(run: Run, measured: Path) -> None:
    result = run("results", "show", measured)
    assert (result.code, result.err) == (0, [])
    text = "\n".join(result.out)
    assert '"webp quality=0": {' in text and '"cpu_count":' in text
    assert sum(line.startswith("webp ") for line in result.out) == len(
        codecs.classic.WEBP_QUALITIES
    )


def test_results_verify_says_what_holds(run: Run, measured: Path) -> None:
    command = ("results", "verify", measured, "--images", "photos", "--sample", 6)
    result = run(*command)
    num_rows = 2 * len(codecs.classic.WEBP_QUALITIES)
    assert (result.code, result.err) == (0, [])
    assert result.out == [
        "6 of 6 rows hold, 0 no longer hold",
        f"{num_rows - 6} of {num_rows} rows not verified: not in the sample",
    ]
    result = run("results", "verify", measured)
    assert result.code == 0 and "20 of these without quality" in result.out[1]

    rows = read_rows(measured / "rows.csv")
    write_rows(measured / "rows.csv", [replace(rows[0], psnr=99.0), *rows[1:]])
    next(measured.glob("streams/webp/quality=80/b.webp")).unlink()
    result = run(*command[:-1], 1000)
    assert result.code == 1
    assert result.out[0].startswith("a under webp quality=0: psnr is ")
    assert result.out[1] == f"{num_rows - 2} of {num_rows - 1} rows hold, 1 no longer hold"
    assert result.out[2].startswith(f"1 of {num_rows} rows not verified: without their file")


def test_results_verify_of_a_run_without_files_fails(run: Run, measured: Path) -> None:
    (measured / "streams").rename("elsewhere")
    result = run("results", "verify", measured, "--images", "photos")
    assert result.code == 1
    assert result.out[0] == "0 of 0 rows hold, 0 no longer hold"
    assert "without their file" in result.out[1]


@pytest.mark.parametrize(
    "arguments, code, word",
    [
        ("", 2, "list"),
        ("lst", 2, "lst"),
        ("list missing", 1, "missing"),
        ("list empty", 1, "empty"),
        ("show empty", 1, "config.json"),
        ("verify empty", 1, "config.json"),
        ("verify empty --sample 0", 2, "--sample"),
    ],
)
def test_results_refuses(run: Run, arguments: str, code: int, word: str) -> None:
    Path("empty").mkdir()
    check_refused(run("results", *arguments.split()), code, word)


# ------------------------------------------------------------------------------ evaluate


def test_evaluate_leaves_rows_means_and_a_figure(run: Run) -> None:
    Path("photos").mkdir()
    save("photos/a.png"), save("photos/b.png", seed=1)
    command = ("evaluate", "--images", "photos", "--codecs", "jpeg,jpeg-optimized", "-o", "run")
    result = run(*command)
    assert (result.code, result.err) == (0, [])
    names = {"rows.csv", "config.json", "provenance.json", "rd.png", "rd.pdf", "streams"}
    assert names <= set(os.listdir("run"))
    settings = len(codecs.classic.JPEG_QUALITIES)
    assert len(read_rows(Path("run/rows.csv"))) == 2 * 2 * settings
    assert sum(line.startswith("jpeg") for line in result.out) == 2 * settings
    assert any("BD-rate of jpeg against jpeg-optimized: +" in line for line in result.out)
    rows = Path("run/rows.csv").read_bytes()
    assert run(*command).out == result.out
    assert Path("run/rows.csv").read_bytes() == rows


def test_evaluate_reports_bad_pictures_and_measures_the_others(run: Run) -> None:
    Path("photos").mkdir()
    save("photos/a.png"), Path("photos/bad.png").write_text("?")
    result = run("evaluate", "--images", "photos", "--codecs", "webp", "-o", "run")
    assert result.code == 1
    assert len(result.err) == 1 and "bad.png" in result.err[0]
    assert {row.image for row in read_rows(Path("run/rows.csv"))} == {"a"}


@pytest.mark.parametrize("folder", ["none", "empty", "bad"])
def test_evaluate_without_a_picture_writes_nothing(run: Run, here: Path, folder: str) -> None:
    Path("empty").mkdir(), Path("bad").mkdir()
    Path("bad/bad.png").write_text("?")
    before = contents(here)
    check_refused(run("evaluate", "--images", folder, "-o", "run"), 1, folder)
    assert contents(here) == before


def test_evaluate_names_the_command_for_a_missing_package(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("photos").mkdir()
    save("photos/a.png")
    before = contents(here)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, extra in (("hevc", "codecs"), ("vvc", "vvc")):
        result = run("evaluate", "--images", "photos", "--codecs", f"jpeg,{name}", "-o", "run")
        check_refused(result, 1, name, f"pip install 'inrjax[{extra}]'")
    assert contents(here) == before


def test_every_name_of_evaluate_is_in_its_help(run: Run) -> None:
    text = " ".join(run("evaluate", "--help").out)
    assert all(name in text for name in cli.CURVES)


def test_evaluate_refuses_two_pictures_of_one_name(run: Run, here: Path) -> None:
    Path("photos").mkdir()
    PIL.Image.open(save("photos/a.png")).save("photos/a.jpg")
    result = run("evaluate", "--images", "photos", "--codecs", "webp", "-o", "run")
    check_refused(result, 1, "a.png", "a.jpg")
    assert not Path("run").exists()


def test_evaluate_refuses_the_folder_of_other_options(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("photos").mkdir()
    save("photos/a.png")
    monkeypatch.setattr(codecs.inr, "WIDTHS", (WIDTH,))
    command = ("evaluate", "--images", "photos", "--codecs", "meta-siren", "--steps", "2")
    assert run(*command, "-o", "run").code == 0
    before = contents(Path("run"))
    check_refused(run(*command, "--seed", "1", "-o", "run"), 1, "run", f"width={WIDTH}")
    assert contents(Path("run")) == before


# ------------------------------------------------------------------------------ compiled programs


def test_kept_programs_give_the_same_bytes_and_a_damaged_one_is_replaced(
    program, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("photo.png")
    kept = Path("kept")
    monkeypatch.setenv("INRJAX_CACHE", str(kept))
    streams, sizes = [], []
    for name in ("compiled", "found", "damaged"):
        options = ["--codec", "coin", "--width", "4", "--steps", "2"]
        process = program(
            "-m", "inrjax.cli", "encode", "photo.png", "-o", f"{name}.inr", *options,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.communicate()[1] == ""
        streams.append(Path(f"{name}.inr").read_bytes())
        files = {path.name: path.stat().st_size for path in kept.iterdir()}
        sizes.append(files)
        if name == "found":
            for path in kept.iterdir():
                path.write_bytes(path.read_bytes()[:100])
    assert streams[0] == streams[1] == streams[2]
    assert sizes[0] and sizes[0].keys() == sizes[1].keys() == sizes[2].keys()
    assert min(sizes[2].values()) > 100


def test_presets_are_steps_of_fits_and_of_searches(tmp_path):
    def steps(**options):
        codec = cli._inr_codec(cli.Encode((tmp_path / "a.png",), "b.inr", **options))
        return codec.num_steps, codec.search_steps

    found = [steps(preset=preset) for preset in ("fast", "default", "best")]
    assert found == sorted(found) and found[1] == steps(steps=codecs.MetaSiren.num_steps)
    assert found[2][1] > 0
    assert steps(steps=9) == (9, 0)


def test_a_cache_that_cannot_be_made_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("no folder")
    monkeypatch.setenv("INRJAX_CACHE", str(Path("file", "below")))
    cli._keep_programs()
    assert jax.config.jax_compilation_cache_dir is None


def test_decode_and_info_make_no_cache(
    run: Run, stream: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INRJAX_CACHE", "kept")
    Path("a.inr").write_bytes(stream)
    assert run("info", "a.inr").code == run("decode", "a.inr", "-o", "a.png").code == 0
    assert not Path("kept").exists()


def test_where_programs_are_kept(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: here)
    assert cli._cache_folder() is None  # as conftest has it
    monkeypatch.setenv("INRJAX_CACHE", str(here / "own"))
    assert cli._cache_folder() == here / "own"
    monkeypatch.delenv("INRJAX_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cli._cache_folder() == here / ".cache" / "inrjax"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")  # to be ignored, the standard says
    assert cli._cache_folder() == here / ".cache" / "inrjax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "xdg"))
    assert cli._cache_folder() == here / "xdg" / "inrjax"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cli._cache_folder() == here / "Library" / "Caches" / "inrjax"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(here / "local"))
    assert cli._cache_folder() == here / "local" / "inrjax"


def test_programs_not_used_for_longest_are_deleted_first(here: Path) -> None:
    for day in range(6):
        path = here / f"jit_f-{day}-cache"
        path.write_bytes(bytes(100))
        os.utime(path, (86400 * day, 86400))
    others = [here / "photo.png", here / "sub" / "jit_f-7-cache"]  # a user's own folder, perhaps
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(1000))
        os.utime(path, (0, 0))
    cli._prune(here, 299)
    assert {path.name for path in here.glob("jit_*")} == {"jit_f-4-cache", "jit_f-5-cache"}
    cli._prune(here, 200)
    assert len(list(here.glob("jit_*"))) == 2
    assert all(path.exists() for path in others)


def test_a_warning_of_kept_programs_is_not_shown_and_they_are_compiled_again(here: Path) -> None:
    for name in ("jit_f-1-cache", "jit_g-1-cache"):
        (here / name).write_bytes(b"damaged")
    news = "Error reading persistent compilation cache entry for 'jit_f': damaged"
    assert not cli._is_of_cache("a checkpoint is damaged", here)
    assert not cli._is_of_cache(news, None)
    assert cli._is_of_cache(news, here)
    assert [path.name for path in here.glob("jit_*")] == ["jit_g-1-cache"]
