"""That the annotated types and shapes of arrays are checked here, and cost a user nothing."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CHECKED

from inrjax import entropy, images, metrics, product_quantization, quantize
from inrjax.nets.siren import Siren

jaxtyping = pytest.importorskip("jaxtyping", reason="an extra that only the tests need")

NET = Siren(4, 2)
# One call of each module in `CHECKED` with an array of a shape or type that it does not take.
WRONG = {
    "inrjax.entropy": lambda: entropy.symbol_bits(np.zeros((2, 2), np.int64), 3),
    "inrjax.images": lambda: images.to_uint8([0.5, 0.5]),  # pyright: ignore[reportArgumentType]
    "inrjax.metrics": lambda: metrics._planes(np.zeros((4, 4, 3))),
    "inrjax.nets.siren": lambda: NET.apply_host({}, np.zeros((5, 3), np.float32)),
    "inrjax.product_quantization": lambda: product_quantization.cut(np.zeros(4), 2),
    "inrjax.quantize": lambda: quantize.straight_through(jnp.zeros(3, int)),
}


@pytest.mark.parametrize("name", CHECKED)
def test_an_array_of_another_shape_or_type_is_noticed(name: str) -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        WRONG[name]()


def test_results_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "centres", lambda count: np.zeros(count + 1, np.float32))
    with pytest.raises(jaxtyping.TypeCheckError, match="return value"):
        images.coordinates(3, 4)


def test_a_dimension_of_one_name_has_one_size() -> None:
    pieces, grams = np.zeros((2, 3, 4)), np.zeros((5, 4, 4))  # blocks: 3 and 5
    with pytest.raises(jaxtyping.TypeCheckError):
        product_quantization.assign(pieces, grams, np.zeros((6, 4)))


def test_the_package_itself_imports_no_checker() -> None:
    script = (
        "import importlib, sys\n"
        f"for name in {CHECKED!r}: importlib.import_module(name)\n"
        "print(sorted({'jaxtyping', 'beartype'} & set(sys.modules)))"
    )
    run: Any = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr
