"""The host decoder: the same pixels as JAX's within one level, the same bytes on every run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import inrjax
from inrjax import decoding
from inrjax.images import centres, coordinates, to_uint8
from inrjax.nets.siren import HOST_TILE, Encoding, Siren

ROOT = Path(inrjax.__file__).parents[1]
GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.inr"))
PATHS = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])

NETS = {
    "coin": Siren(width=30, depth=5),
    "strümpler": Siren(width=32, depth=4, encoding=Encoding()),
    "one layer": Siren(width=5, depth=1, encoding=Encoding(3, 2.0)),
    "wide": Siren(width=200, depth=2),  # products that must be cut small
}
# Square, wide, tall, one row, one column, one pixel; longer than a tile, and no multiple of it.
GRIDS = [(20, 20), (3, 301), (301, 3), (1, HOST_TILE + 77), (HOST_TILE + 77, 1), (1, 1)]


def params_of(net: Siren) -> dict[str, Any]:
    """Random ones with colours all over [-1, 1]."""
    rng = np.random.default_rng(0)
    params = {}
    for name, shapes in net.shapes().items():
        fan_in = shapes["weight"][1]
        bounds = {"weight": (6 / fan_in) ** 0.5 / net.w0, "bias": fan_in**-0.5}
        params[name] = {k: rng.uniform(-b, b, shapes[k]).astype("f") for k, b in bounds.items()}
    params[f"layer_{net.depth:02d}"]["weight"] *= 30
    return params


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("shape", GRIDS)
def test_a_grid_is_every_pair_of_its_rows_and_columns(name: str, shape: tuple[int, int]) -> None:
    net = NETS[name]
    params, (height, width) = params_of(net), shape
    grid = net.apply_grid_host(params, centres(height), centres(width))
    assert grid.shape == (height, width, 3) and grid.dtype == np.float32
    points = net.apply_host(params, coordinates(height, width))
    np.testing.assert_allclose(grid.reshape(-1, 3), points, atol=2e-4)


def test_an_empty_grid() -> None:
    net = NETS["coin"]
    none = np.empty(0, np.float32)
    assert net.apply_grid_host(params_of(net), none, centres(4)).shape == (0, 4, 3)
    assert net.apply_grid_host(params_of(net), centres(4), none).shape == (4, 0, 3)


def test_a_grid_needs_two_coordinates() -> None:
    net = Siren(width=4, depth=1, in_dim=3)
    with pytest.raises(ValueError, match="3 coordinates"):
        net.apply_grid_host(params_of(net), centres(2), centres(2))


@pytest.mark.parametrize("name", NETS)
def test_an_image_is_jax_s_within_one_level(name: str) -> None:
    net, (height, width) = NETS[name], (67, 90)
    params = params_of(net)
    values = np.asarray(net.apply(params, jnp.asarray(coordinates(height, width))))
    expected = to_uint8((values + 1) / 2).reshape(height, width, 3).astype(int)
    image = decoding.reconstruct(net, params, height, width)
    assert np.abs(image - expected).max() <= 1
    assert np.mean(image != expected) < 0.01
    assert image.std() > 20  # not a flat picture


@pytest.mark.parametrize("shape", [(64, 48), (1, 1), (1, 700), (700, 1), (37, 41)])
def test_blocks_cover_each_pixel_once(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_BLOCK_PIXELS", 100)
    covered = np.zeros(shape, int)
    for block in decoding._blocks(*shape):
        assert 1 <= covered[block].size <= 100
        covered[block] += 1
    assert np.all(covered == 1)


def test_any_number_of_cores_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    net = NETS["strümpler"]
    params = params_of(net)
    monkeypatch.setattr(decoding, "_BLOCK_PIXELS", 1000)
    images = []
    for cores in (1, 2, 7):
        monkeypatch.setattr(decoding, "cpu_count", lambda cores=cores: cores)
        images.append(decoding.reconstruct(net, params, 90, 120).tobytes())
    assert len(set(images)) == 1


@pytest.mark.parametrize("tall", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_any_number_of_blas_threads_gives_the_same_bytes_and_jax_is_not_imported(
    tall: bool,
) -> None:
    """Tall pictures, of several blocks, are most of the time."""
    golden = [path for path in GOLDEN if path.stem.endswith("_tall") == tall]
    program = f"""
import hashlib, json, sys
from pathlib import Path
import inrjax.codecs
from bases import shared_of
files = [Path(p).read_bytes() for p in {list(map(str, golden))}]
images = [inrjax.codecs.decode_stream(data, shared_of(data)) for data in files]
heavy = sorted({{"jax", "flax", "optax", "scipy", "matplotlib"}} & set(sys.modules))
print(json.dumps([hashlib.sha256(i.tobytes()).hexdigest() for i in images] + heavy))
"""
    outputs = []
    for threads in ("1", "2", "2"):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = {**os.environ, "PYTHONPATH": PATHS, **dict.fromkeys(names, threads)}
        environment.pop("COVERAGE_PROCESS_CONFIG", None)  # a tracer would take longer than the rest
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.append(json.loads(done.stdout))
    assert len(outputs[0]) == len(golden) > 3 and outputs[0] == outputs[1] == outputs[2]


@pytest.mark.parametrize("shape", [(1, 1_000_000), (1_000_000, 1), (1000, 1000)])
def test_memory_is_bounded_whatever_the_shape(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "cpu_count", lambda: 2)
    net = Siren(width=32, depth=1, encoding=Encoding())
    params = params_of(net)
    tracemalloc.start()
    image = decoding.reconstruct(net, params, *shape)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # All activations at once would take 128 MB for a layer, all encodings 264 MB.
    assert image.nbytes == 3_000_000
    assert peak - image.nbytes < 48 << 20


def test_a_pixel_that_is_no_number_is_an_error() -> None:
    net = NETS["coin"]
    params = params_of(net)
    params["layer_05"]["bias"][1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        decoding.reconstruct(net, params, 30, 30)
