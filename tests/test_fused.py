"""The fused kernel agrees with its plain twin; it runs here in interpret mode, on tiny shapes."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import triton

from experiments import benchmark_gpu
from inrjax import fit
from inrjax.nets.fused import (
    Kernel,
    squared_error_and_grads,
)
from inrjax.nets.siren import Encoding, Siren

NETS = {
    "padded width": Siren(20, 3),
    "width of a power of two": Siren(16, 3),
    "one sine layer": Siren(12, 1),
    "one sine layer, power of two": Siren(16, 1),
    "encoding": Siren(24, 2, encoding=Encoding(3, 1.4)),
    "other dimensions": Siren(16, 2, w0=10.0, in_dim=3, out_dim=1),
}
KERNEL = Kernel("float32", block=16, blocks=2)


def data(net: Siren, num_points: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    coords = rng.uniform(-1, 1, (net.in_dim, num_points)).astype(np.float32)
    pixels = rng.uniform(0, 1, (net.out_dim, num_points)).astype(np.float32)
    params = net.init(jax.random.key(seed, impl="unsafe_rbg"))  # compiles quickly
    return params, coords, pixels, rng.uniform(0, 1, num_points).astype(np.float32)


def relative_error(expected, value) -> float:
    """The greatest over leaves of the distance, relative to the norm."""

    def distance(a, b):
        return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(a))

    return max(jax.tree.leaves(jax.tree.map(distance, expected, value)))


def fused(net: Siren, kernel: Kernel = KERNEL):
    return jax.jit(partial(squared_error_and_grads, net, kernel=kernel, interpret=True))


def plain(net: Siren):
    return jax.jit(fit.squared_error(net.apply_columns))


@pytest.mark.parametrize("case", NETS)
def test_value_and_gradient_are_those_of_the_plain_twin(case: str) -> None:
    net = NETS[case]
    arguments = data(net, 75)  # not a multiple of the block
    assert relative_error(plain(net)(*arguments), fused(net)(*arguments)) < 1e-5


@pytest.mark.parametrize(
    ("precision", "bound"), [("tf32", 3e-3), ("float16", 3e-3), ("bfloat16", 2e-2)]
)
def test_low_precision_rounds_the_operands_only(precision, bound: float) -> None:
    net = NETS["padded width"]
    arguments = data(net, 64)
    kernel = dataclasses.replace(KERNEL, precision=precision)
    error = relative_error(plain(net)(*arguments), fused(net, kernel)(*arguments))
    assert 1e-6 < error < bound


def test_small_errors_do_not_vanish_in_float16() -> None:
    net = NETS["padded width"]
    params, coords, _, weights = data(net, 64)
    noise = np.random.default_rng(9).standard_normal((net.out_dim, 64), np.float32)
    pixels = net.apply_columns(params, jnp.asarray(coords)) + 1e-3 * noise  # 60 dB
    arguments = params, coords, pixels, weights
    kernel = dataclasses.replace(KERNEL, precision="float16")
    expected, value = plain(net)(*arguments), fused(net, kernel)(*arguments)
    # What remains is the forward pass's rounding against so small an error.
    cosine = sum(
        jnp.vdot(a, b) / jnp.linalg.norm(a) / jnp.linalg.norm(b)
        for a, b in zip(jax.tree.leaves(expected[1]), jax.tree.leaves(value[1]), strict=True)
    ) / len(jax.tree.leaves(expected[1]))
    assert cosine > 0.9


def test_points_of_weight_zero_do_not_count() -> None:
    net = NETS["padded width"]
    params, coords, pixels, weights = data(net, 48)
    seen = np.arange(48) % 3 > 0
    value = fused(net)(params, coords, pixels, weights * seen)
    only = fused(net)(params, coords[:, seen], pixels[:, seen], weights[seen])
    assert relative_error(only, value) < 1e-5
    loss, grads = fused(net)(params, coords, pixels, 0 * weights)
    assert loss == 0 and all(not leaf.any() for leaf in jax.tree.leaves(grads))


def test_vmap_over_data_is_one_after_the_other() -> None:
    net = NETS["padded width"]
    each = [data(net, 40, seed) for seed in range(3)]
    together = jax.jit(
        jax.vmap(partial(squared_error_and_grads, net, kernel=KERNEL, interpret=True))
    )(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *each))
    for i, arguments in enumerate(each):
        expected = plain(net)(*arguments)
        assert relative_error(expected, jax.tree.map(lambda leaf, i=i: leaf[i], together)) < 1e-5


@pytest.mark.parametrize(
    "kernel",
    [
        Kernel("float32", block=32, blocks=1),
        Kernel("float32", block=16, blocks=5, stages=3),
        Kernel("float32", block=64, blocks=7, resident=False),
    ],
)
def test_how_the_points_are_cut_does_not_matter(kernel: Kernel) -> None:
    net = NETS["padded width"]
    arguments = data(net, 150)
    assert relative_error(fused(net)(*arguments), fused(net, kernel)(*arguments)) < 1e-5


def test_the_same_arguments_give_the_same_bits() -> None:
    net = NETS["padded width"]
    arguments = data(net, 64)
    first, second = fused(net)(*arguments), fused(net)(*arguments)
    assert all(
        (a == b).all() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )


@pytest.mark.parametrize(
    "fields", [{"block": 48}, {"block": 8}, {"blocks": 0}, {"stages": 0}, {"precision": "float8"}]
)
def test_kernels_that_cannot_run_are_refused(fields) -> None:
    with pytest.raises(ValueError, match=str(next(iter(fields.values())))):
        Kernel(**fields)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("precision", "bound"), [("float32", 1e-4), ("float16", 3e-3), ("bfloat16", 2e-2)]
)
@pytest.mark.parametrize("case", NETS)
def test_on_the_device_the_twins_agree(case: str, precision, bound: float) -> None:
    net = NETS[case]
    arguments = data(net, 10_000)
    run = jax.jit(partial(squared_error_and_grads, net, kernel=Kernel(precision)))
    with jax.default_matmul_precision("highest"):
        expected = plain(net)(*arguments)
    assert relative_error(expected, run(*arguments)) < bound


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path) -> None:
    benchmark_gpu.main(["--smoke", "--output", str(tmp_path)])
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert not [row for row in rows if "failure" in row]
    [error] = [row["relative error"] for row in rows if "relative error" in row]
    assert 1e-6 < error < 3e-3
    assert (tmp_path / "table.md").read_text().count("\n") == len(rows) + 2


def test_the_benchmark_goes_on_after_a_failure(tmp_path: Path, monkeypatch) -> None:
    def fails():
        raise RuntimeError("shared memory exhausted")

    jobs = [("rate: one", fails), ("rate: two", lambda: {"TFLOP/s": 2.0})]
    monkeypatch.setattr(benchmark_gpu, "jobs", lambda _: iter(jobs))
    first, second = benchmark_gpu.run(benchmark_gpu.SMOKE, 1.0, tmp_path)
    assert "shared memory exhausted" in first["failure"] and second["TFLOP/s"] == 2.0
    [late] = benchmark_gpu.run(benchmark_gpu.SMOKE, 0.0, tmp_path)[:1]
    assert "out of time" in late["failure"]


def gpu_to_lower_for():
    """A context in which programs can be lowered for a GPU that is not here."""
    if not hasattr(triton, "get_gpu_info"):  # JAX before 0.11 assumes one
        return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))
    values = {"device_kind": "NVIDIA H200", "num_cores": None, "platform": "gpu"}
    names = {field.name for field in dataclasses.fields(jax.sharding.AbstractDevice)}
    mesh = jax.sharding.AbstractMesh(
        (1,),
        ("data",),
        axis_types=(jax.sharding.AxisType.Auto,),
        abstract_device=jax.sharding.AbstractDevice(
            **{name: value for name, value in values.items() if name in names}
        ),
    )
    return jax.sharding.use_abstract_mesh(mesh)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("net", [Siren(28, 10), Siren(32, 2, encoding=Encoding())], ids=str)
def test_every_operation_has_a_lowering_for_cuda(net: Siren, precision) -> None:
    run = jax.vmap(partial(squared_error_and_grads, net, kernel=Kernel(precision)))
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((3, *leaf.shape), leaf.dtype),
        data(net, 8192),
    )
    with gpu_to_lower_for():
        text = jax.jit(run).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    assert "xla.gpu.triton" in text
