"""Fixtures that every test file may use, and the devices the tests run on."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import typing
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import jax
import jaxlib.version
import numpy as np
import pytest

# Two CPU devices even on one core: the program that shards images over devices is the one that
# users run, so it is the one that is tested. Here, because the number is fixed once jax computes.
jax.config.update("jax_num_cpu_devices", 2)
if "JAX_PLATFORMS" not in os.environ:
    jax.config.update("jax_platforms", "cpu")  # JAX_PLATFORMS=cuda for the tests marked gpu

if (0, 10) <= jaxlib.version.__version_info__[:2] < (0, 11) and "XLA_FLAGS" not in os.environ:
    # XLA's older compiler of fused loops is quicker than the present one (see `inrjax.gridfit`),
    # and LLVM's first level of optimisation than its last, here and in processes that tests start.
    # Other versions may not know the flags, and would end.
    flags = "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=1"
    os.environ["XLA_FLAGS"] = flags

os.environ["INRJAX_CACHE"] = ""  # the user's compiled programs are no part of a test
os.environ["INRJAX_INITS"] = ""  # and neither are inits that the user added

ROOT = Path(__file__).parents[1]

CHECKED = (
    "inrjax.entropy",
    "inrjax.images",
    "inrjax.metrics",
    "inrjax.nets.siren",
    "inrjax.product_quantization",
    "inrjax.quantize",
)
"""Modules whose annotated types and shapes of arrays are checked at every call of a test."""


def check_annotations() -> None:
    """Import `CHECKED` with jaxtyping's hook. Their annotations need names that the package itself
    imports for type checkers only, so that nobody who uses it needs jaxtyping."""
    import checker  # noqa: F401
    import constriction  # noqa: F401  first, without the flag below: not all packages stand it
    import imageio.v3  # noqa: F401
    import jax.numpy  # noqa: F401
    import PIL.Image  # noqa: F401
    import scipy.ndimage  # noqa: F401
    from jaxtyping import install_import_hook

    assert not set(CHECKED) & set(sys.modules), "imported before the hook"
    typing.TYPE_CHECKING = True
    try:
        with install_import_hook(CHECKED, "checker.checker"):
            for name in CHECKED:
                importlib.import_module(name)
    finally:
        typing.TYPE_CHECKING = False


# Neither is needed where experiments/golden_matrix.py runs a single test file.
if importlib.util.find_spec("jaxtyping"):
    check_annotations()
if importlib.util.find_spec("hypothesis"):
    import hypothesis

    # A first call, of a function that is checked or compiled, takes longer than the others.
    hypothesis.settings.register_profile("inrjax", deadline=None)
    hypothesis.settings.load_profile("inrjax")


UNMEASURED = {
    "test_benchmarks", "test_docs", "test_experiments", "test_figures", "test_fuzz", "test_golden",
    "test_interruptions", "test_load", "test_notebooks", "test_numerics",
    "test_reference", "test_results",
}  # fmt: skip
"""Files of tests that count for no coverage: nearly all lines of the package that they run, others
run too. A tracer makes them, and processes that they start, take up to twice as long."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Have XLA optimise, except for tests marked ``unoptimized``, and stop measuring coverage, if
    it is measured, during tests that are `UNMEASURED`."""
    optimize(item.get_closest_marker("unoptimized") is None)
    coverage = sys.modules.get("coverage")
    measured = coverage.Coverage.current() if coverage else None
    if measured is None or item.path.stem not in UNMEASURED:
        return (yield)
    measured.stop()
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)  # for processes that tests start
    try:
        return (yield)
    finally:
        measured.start()  # sets it again


def optimize(wanted: bool) -> None:
    """Let XLA do its optimisations or leave them out, here and in processes that tests start."""
    if jax.config.read("jax_disable_most_optimizations") != wanted:
        return
    jax.config.update("jax_disable_most_optimizations", not wanted)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(not wanted))
    # No test takes a program that another one compiled otherwise.
    jax.clear_caches()
    for name, module in list(sys.modules.items()):
        if name.startswith(("inrjax.", "experiments.")):
            for function in ("_program", "_programs", "compiler_options"):
                if forget := getattr(getattr(module, function, None), "cache_clear", None):
                    forget()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs an accelerator where there is none."""
    if item.get_closest_marker("gpu") and jax.default_backend() == "cpu":
        pytest.skip("needs an accelerator: run with JAX_PLATFORMS=cuda")


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_fit() -> Iterator[None]:
    """Forget compiled programs when many are held: each takes several of the process's memory
    maps, and when those run out (Linux allows 65,530) XLA ends the process while it compiles."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MOST_MAPS:
        jax.clear_caches()


MOST_MAPS = 20_000


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A uint8 (height, width, 3) image with a photograph's statistics: 1/f texture and edges."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    amplitude = 1 / np.maximum(frequency, 1 / max(height, width)) ** 1.5
    noise = rng.standard_normal((4, height, width))
    planes = np.fft.ifft2(np.fft.fft2(noise) * amplitude).real
    planes /= np.abs(planes).max(axis=(1, 2), keepdims=True) + 1e-12
    luma = planes[0] + 0.5 * np.sign(planes[0])  # two regions with a sharp edge between them
    image = 128 + 60 * luma[..., None] + 25 * np.moveaxis(planes[1:], 0, -1)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def photo() -> Callable[..., np.ndarray]:
    """The function `photograph(height, width, seed=0)`."""
    return photograph


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the image sets: INRJAX_DATA, or ../shared/data beside the checkout."""
    root = Path(os.environ.get("INRJAX_DATA", ROOT.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip("no image sets here: set INRJAX_DATA to the folder that holds kodak/")
    return root
