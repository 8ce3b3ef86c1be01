"""Image compression with implicit neural representations, in JAX.

Importing the package is cheap: its modules (`inrjax.codecs`, `inrjax.fit`, ...) are imported when
they are first used, and no flag or environment variable is set.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """A module of the package, so that ``import inrjax; inrjax.codecs.MetaSiren()`` works."""
    if name.startswith("_") or find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
