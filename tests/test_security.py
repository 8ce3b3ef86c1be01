"""Nothing that a file says is run, and nothing is written outside the folder that was named."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import photograph
from golden import make

import inrjax
from inrjax import cli, codecs, images, ledger, trees

PACKAGE = Path(inrjax.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

RUNS_DATA = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
RUNS_TEXT = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}

TO_ITS_OWN_CHILD = "evaluate.py"
"""`inrjax.evaluate` pickles codecs, its caller's own objects, to a process that it starts itself,
through a pipe of that process; nothing that comes from a file is unpickled."""


def dangers(tree: ast.AST) -> list[str]:
    """What in a module could run what it reads."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in RUNS_DATA]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] if (node.module or "").split(".")[0] in RUNS_DATA else []
        elif isinstance(node, ast.Call):
            name, words = ast.unparse(node.func), {w.arg: w.value for w in node.keywords}
            if name in RUNS_TEXT:
                found.append(name)
            if name in ("np.load", "numpy.load") and not is_(words.get("allow_pickle"), False):
                found.append(f"{name} that does not say allow_pickle=False")
            if is_(words.get("allow_pickle"), True) or is_(words.get("shell"), True):
                found.append(f"{name} with {', '.join(map(str, words))}")
    return found


def is_(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_that_is_read_is_run(path: Path) -> None:
    found = dangers(ast.parse(path.read_text("utf-8")))
    if path == PACKAGE / TO_ITS_OWN_CHILD:
        assert found.count("pickle") == 1
        found.remove("pickle")
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "eval(text)",
        "exec(text)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.save(path, x, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
    ],
)
def test_a_danger_is_found(text: str) -> None:
    assert dangers(ast.parse(text))
    assert not dangers(ast.parse("np.load(path, allow_pickle=False); run(words, shell=False)"))


def test_only_arrays_come_back_from_the_decoding_process() -> None:
    """Where pickle is used, it reads from pipes alone: of a file, `np.load` without pickles."""
    tree = ast.parse((PACKAGE / TO_ITS_OWN_CHILD).read_text("utf-8"))
    loads = [n for n in ast.walk(tree) if isinstance(n, ast.Call) if "loads" in ast.unparse(n.func)]
    read = {ast.unparse(call.args[0]) for call in loads if "pickle" in ast.unparse(call.func)}
    assert read == {
        "_receive(self._process.stdout)",
        "_receive(sys.stdin.buffer)",
        "pickled_codec",  # a part of what was received
    }


# ---------------------------------------------------------------------------- names of files


STREAM = next(path for path in make.paths() if path.name == "v1_coin_odd.inr").read_bytes()

NAMES = {
    "dots": "..inr",
    "more dots": "...inr",
    "a dot file": ".inr",
    "backslashes": "..\\..\\up.inr",
    "as long as can be": "x" * 251 + ".inr",
    "long, of four bytes a character": "😀" * 62 + ".inr",
    "long, of three": "語" * 83 + ".inr",
    "not ASCII": "фото été 写真.inr",
    "a line feed": "two\nlines.inr",
    "a terminal's sequence": "\x1b[31mred\x1b[0m.inr",
    "a tab and a bell": "a\tb\a.inr",
    "not text": "\udcff\udcfe.inr",
    "a shell's letters": "a b;$(touch x)'\"&|.inr",
    "a dash": "-o.inr",
    "without an ending": "plain",
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    return tmp_path


def put(name: str, data: bytes) -> Path:
    path = Path("in") / name
    try:
        path.write_bytes(data)
    except (OSError, ValueError) as error:  # another file system than Linux's
        pytest.skip(f"no file can have this name here: {error}")
    return path


def everything(folder: Path) -> set[str]:
    """But for the list of what was made how, whose name nobody outside can choose."""
    paths = (path for path in folder.rglob("*") if path.name != ledger.NAME)
    return {os.path.relpath(path, folder) for path in paths}


@pytest.mark.parametrize("case", NAMES)
def test_a_decoded_file_lands_in_the_folder(
    case: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(NAMES[case], STREAM)
    before = everything(here)
    assert cli.main(["decode", str(path), "-o", "out/"]) == 0
    [new] = everything(here) - before
    assert new == os.path.join("out", f"{path.stem}.png")
    assert images.read_image(new).image.shape == (37, 53, 3)
    out, err = capsys.readouterr()
    assert err == "" and len(out.splitlines()) == 1 and out.rstrip("\n").isprintable()


@pytest.mark.parametrize("case", NAMES)
def test_an_encoded_file_lands_in_the_folder(
    case: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codecs.MetaSiren, "encode", lambda self, batch, _: [STREAM] * len(batch))
    monkeypatch.setattr(cli, "_use_every_core", lambda: None)
    images.write_image("in/a.png", photograph(37, 53))
    path = put(NAMES[case], Path("in/a.png").read_bytes())
    monkeypatch.setattr(codecs.MetaSiren, "decode", lambda self, streams: [photograph(37, 53)])
    before = everything(here)
    assert cli.main(["encode", str(path), "-o", "out/"]) == 0
    [new] = everything(here) - before
    assert new == os.path.join("out", f"{path.stem}.inr")
    out, err = capsys.readouterr()
    assert err == "" and len(out.splitlines()) == 1 and out.rstrip("\n").isprintable()


@pytest.mark.parametrize("written", ["in/sub/../../in/a.inr", "absolute", "in/./a.inr"])
def test_where_a_file_comes_from_does_not_say_where_it_goes(here: Path, written: str) -> None:
    path = put("a.inr", STREAM)
    (here / "in" / "sub").mkdir()
    before = everything(here)
    name = str(path.absolute()) if written == "absolute" else written
    assert cli.main(["decode", name, "-o", "out/"]) == 0
    assert everything(here) - before == {os.path.join("out", "a.png")}


def test_a_link_in_the_folder_is_not_followed(here: Path) -> None:
    path = put("a.inr", STREAM)
    (here / "precious").write_text("mine")
    (here / "out" / "a.png").symlink_to(here / "precious")
    assert cli.main(["decode", str(path), "-o", "out/"]) == 1
    assert cli.main(["decode", str(path), "-o", "out/", "--overwrite"]) == 0
    assert (here / "precious").read_text() == "mine"
    assert not (here / "out" / "a.png").is_symlink()
    (here / "out" / "a.png").unlink()
    (here / "out" / "a.png").symlink_to(here / "nowhere")
    assert cli.main(["decode", str(path), "-o", "out/", "--overwrite"]) == 0
    assert not (here / "nowhere").exists()


def test_a_name_that_is_no_text_is_said_on_any_terminal(here: Path) -> None:
    put("\udcff.inr", STREAM), put("語.inr", STREAM)
    for encoding in ("utf-8:strict", "ascii:strict"):
        environment = {
            **os.environ,
            "PYTHONPATH": str(PACKAGE.parent),
            "PYTHONIOENCODING": encoding,
        }
        command = "import sys; from inrjax import cli; sys.exit(cli.main())"
        done = subprocess.run(
            [sys.executable, "-c", command, "decode", "in/\udcff.inr", "in/語.inr", "-o", "out/",
             "--overwrite"],
            env=environment,
            capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 2 and b"\\udcff" in done.stdout


@pytest.mark.parametrize("name", ["😀" * 63, "語" * 85, "x" * 255])
def test_a_file_with_the_longest_name_is_written_whole(here: Path, name: str) -> None:
    trees.write_atomic(here / name, b"data")
    assert (here / name).read_bytes() == b"data"
    assert [path.name for path in here.iterdir() if path.is_file()] == [name]


# ---------------------------------------------------------------------------- what is installed


def test_the_constraints_hold_what_the_project_allows() -> None:
    """Made by `.ci/constraints.py`: every dependency is pinned, to a version in its range."""
    requirements = pytest.importorskip("packaging.requirements")
    utils = pytest.importorskip("packaging.utils")
    root = PACKAGE.parent
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    lines = (root / "constraints.txt").read_text("utf-8").splitlines()
    assert all(re.fullmatch(r"#.*|[a-z0-9-]+==[\w.!+]+", line) for line in lines)
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert list(pinned) == sorted(pinned)
    declared = [
        *project["dependencies"],
        *(text for name in ("test", "docs") for text in project["optional-dependencies"][name]),
    ]
    for text in declared:
        one = requirements.Requirement(text)
        assert one.specifier.contains(pinned[utils.canonicalize_name(one.name)]), text
