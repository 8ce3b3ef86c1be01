"""The documentation site: what is built into it is complete, and its build would notice a gap.

The site itself is built by `.ci/run`, with warnings as errors.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import pytest

from inrjax import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture
def sitetools(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("sphinx", reason="needs the extra docs")
    pytest.importorskip("myst_parser", reason="needs the extra docs")
    monkeypatch.syspath_prepend(str(DOCS))
    import sitetools

    return sitetools


def test_every_public_module_is_in_the_reference(sitetools: ModuleType) -> None:
    text = (DOCS / "reference" / "index.md").read_text("utf-8")
    listed = re.findall(r"^   (inrjax\.[\w.]+)$", text, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == sitetools.public_modules()


def test_public_modules_are_those_on_disk(sitetools: ModuleType) -> None:
    files = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "inrjax").rglob("*.py"))
    names = {".".join(f.parts).removesuffix(".__init__") for f in files} - {"inrjax"}
    assert sitetools.public_modules() == {n for n in names if "._" not in n}


def test_a_gap_is_found(sitetools: ModuleType) -> None:
    assert sitetools.missing(["inrjax.fit", "inrjax.new"], ["inrjax.fit"]) == ["inrjax.new"]
    assert sitetools.missing(["a"], ["a", "b"]) == []


@pytest.mark.parametrize("verb", cli.COMMANDS)
def test_a_command_has_a_page_with_its_own_help(verb: str, sitetools: ModuleType) -> None:
    text = (DOCS / "howto" / f"{verb}.md").read_text("utf-8")
    shown = re.findall(r"^```\{cli-help\} (.+)$", text, re.MULTILINE)
    assert shown and all(words.split()[0] == verb for words in shown)
    assert f"({verb}.md)" in (DOCS / "howto" / "index.md").read_text("utf-8")
    printed = sitetools.help_text([verb])
    assert printed.startswith(f"usage: inrjax {verb}") and "\x1b" not in printed
    assert printed == "\n".join(line.rstrip() for line in printed.splitlines())


def test_the_help_of_no_command_is_an_error(sitetools: ModuleType) -> None:
    with pytest.raises(ValueError, match="no-such-verb"):
        sitetools.help_text(["no-such-verb"])


def test_the_figures_are_drawn_and_are_the_same_twice(
    sitetools: ModuleType, tmp_path: Path
) -> None:
    figures = sys.modules["figures"]
    figures.draw(tmp_path / "one")
    figures.draw(tmp_path / "two")
    pages = "".join(path.read_text("utf-8") for path in DOCS.glob("*.md"))
    used = set(re.findall(r"\(_figures/(\w+)\.svg\)", pages))
    assert used == set(figures.FIGURES)
    for name in used:
        one, two = ((tmp_path / part / f"{name}.svg").read_bytes() for part in ("one", "two"))
        assert one == two
        ElementTree.fromstring(one)


def test_no_page_needs_the_network() -> None:
    sources = [*DOCS.rglob("*.md"), *DOCS.glob("*.py"), *DOCS.glob("_*/*.*")]
    for path in sources:
        if path.relative_to(DOCS).parts[0] == "_build":  # what was built from them
            continue
        text = path.read_text("utf-8") if path.suffix in (".md", ".py", ".css", ".html") else ""
        assert not re.search(r"<script|@import|src=[\"']http|cdn\.", text), path
