"""Marks that more than one file of tests gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest


def slow_if(
    is_slow: Callable[[Path], bool], paths: Sequence[Path], name: str = "path"
) -> pytest.MarkDecorator:
    """A test for each of the paths, its argument ``name``; of some only by ``-m slow``."""
    chosen = [
        pytest.param(path, marks=[pytest.mark.slow] if is_slow(path) else []) for path in paths
    ]
    return pytest.mark.parametrize(name, chosen, ids=lambda path: path.name)


def is_tall_latent_grid(path: Path) -> bool:
    """Whether it is a golden stream that is read diagonal by diagonal of 12,000 rows."""
    return path.stem.startswith("v1_latent-grid") and path.stem.endswith("_tall")
