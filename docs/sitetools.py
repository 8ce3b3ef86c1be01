"""What this site adds to Sphinx: help texts, figures, formulas without network, completeness."""

from __future__ import annotations

import contextlib
import io
import os
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import figures
from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import inrjax
from inrjax import cli

HELP_COLUMNS = "88"
_logger = logging.getLogger(__name__)


# Help texts, as the command line prints them


def help_text(words: list[str]) -> str:
    """What ``inrjax WORDS --help`` prints, 88 columns wide; ValueError where it fails."""
    told = io.StringIO()
    plain = {"COLUMNS": HELP_COLUMNS, "NO_COLOR": "1", "TERM": "dumb"}
    with mock.patch.dict(os.environ, plain), contextlib.redirect_stdout(told):
        code = cli.main([*words, "--help"])
    if code != 0:
        raise ValueError(f"`inrjax {' '.join(words)} --help` ended with exit code {code}")
    return "\n".join(line.rstrip() for line in told.getvalue().splitlines()).strip("\n")


class CliHelp(SphinxDirective):
    """The directive ``cli-help``: the help of one command, made while the site is built."""

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """A block of text; the build fails for a command that is not there."""
        self.env.note_dependency(cli.__file__)
        words = self.arguments[0].split() if self.arguments else []
        try:
            text = help_text(words)
        except ValueError as error:
            raise self.error(str(error)) from error
        block = nodes.literal_block(text, text, classes=["cli-help"])
        block["language"] = "text"
        return [block]


# Formulas as MathML, which browsers show without any script


def _mathml(visitor: Any, node: nodes.Element, as_block: bool) -> None:
    try:
        visitor.body.append(latex2mathml.tex2mathml(node.astext(), as_block=as_block))
    except MathError as error:
        _logger.warning("no MathML for %r: %s", node.astext(), error, location=node)
    raise nodes.SkipNode


def _visit_math(visitor: Any, node: nodes.Element) -> None:
    _mathml(visitor, node, as_block=False)


def _visit_math_block(visitor: Any, node: nodes.Element) -> None:
    _mathml(visitor, node, as_block=True)


# Completeness: the build says what is missing, and with -W it fails


def public_modules() -> set[str]:
    """Every module of inrjax whose name has no leading underscore."""
    found = pkgutil.walk_packages(inrjax.__path__, "inrjax.")
    return {m.name for m in found if not any(part.startswith("_") for part in m.name.split("."))}


def missing(expected: Iterable[str], documented: Iterable[str]) -> list[str]:
    """Sorted names that ought to be documented and are not."""
    return sorted(set(expected) - set(documented))


def _check_complete(app: Sphinx, env: Any) -> None:
    for name in missing(public_modules(), env.domains.python_domain.modules):
        _logger.warning("%s is not in docs/reference/index.md: add a line", name)
    pages = {doc.removeprefix("docs/howto/") for doc in env.found_docs}
    for name in missing(cli.COMMANDS, pages):
        _logger.warning("the command %s has no page: add docs/howto/%s.md", name, name)


# Names in docstrings


SHORTENED = ("inrjax", "inrjax.types", "inrjax.nets", "inrjax.nets.siren", "inrjax.codecs")
"""Modules whose names docstrings use without the module in front of them."""


def _find_reference(app: Sphinx, env: Any, node: Any, content: nodes.Element) -> Any:
    """`fit.tiling` means `inrjax.fit.tiling`, and `Image` in a signature `inrjax.types.Image`."""
    if node.get("refdomain") != "py":
        return None
    domain = env.domains.python_domain
    for module in SHORTENED:
        name = f"{module}.{node['reftarget'].removesuffix('()')}"
        if name in domain.objects and node["reftarget"] != name:
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, content)
    return None


def _skip(app: Sphinx, kind: str, name: str, item: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of a NamedTuple, which its docstring explains, and the options of a
    command: their docstrings are text for --help, not markup, and stand on the command's page."""
    text = getattr(item, "__doc__", None)
    is_field = isinstance(text, str) and text.startswith("Alias for field number")
    is_options = any(item is options_type for options_type, _ in cli.COMMANDS.values())
    return True if is_field or is_options else None


_PLAIN = ("attribute", "data", "property")
_texts: dict[str, list[str]] = {}


def _before_napoleon(app: Sphinx, kind: str, name: str, item: Any, options: Any, lines: list[str]):
    """Keep the texts of attributes, where napoleon takes the words before a colon for a type; the
    fields of a dataclass are the arguments that it is made from."""
    if kind in _PLAIN:
        _texts[name] = list(lines)
    elif kind == "class":
        lines[:] = ["Args:" if line == "Attributes:" else line for line in lines]


def _after_napoleon(app: Sphinx, kind: str, name: str, item: Any, options: Any, lines: list[str]):
    """Put back what was kept."""
    if kind in _PLAIN:
        lines[:] = _texts.pop(name)


def _draw(app: Sphinx) -> None:
    figures.draw(Path(app.confdir) / "_figures")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("cli-help", CliHelp)
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_math_block, None))
    app.connect("builder-inited", _draw)
    app.connect("env-check-consistency", _check_complete)
    app.connect("missing-reference", _find_reference)
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-docstring", _before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", _after_napoleon, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
