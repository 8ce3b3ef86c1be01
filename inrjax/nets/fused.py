"""A SIREN's squared error and its gradient in one GPU kernel, and the plain twin of it.

Unfused, every activation of every layer goes through the device's memory several times. Here a
program keeps the activations of a block of points on the chip: forward, backward and the
gradient's contraction over the points, block after block; only sums of gradients leave it.

The kernel is Pallas on the Triton backend: Ampere or newer. JAX 0.11 deprecates that backend in
favour of one that is Hopper-only and still moves, so the kernel stays behind this one function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from inrjax.nets.sine import cosine, sine
from inrjax.nets.siren import Siren, layer_name
from inrjax.types import Params

Precision = Literal["float32", "tf32", "bfloat16", "float16"]
"""What matrix products round their operands to; they always accumulate in float32. tf32 and
float16 have the same 11 significant bits; float16 is twice as fast and takes half the registers."""

DTYPES = {
    "float32": jnp.float32,
    "tf32": jnp.float32,
    "bfloat16": jnp.bfloat16,
    "float16": jnp.float16,
}
LEAST = 16
"""The least size of a side of a matrix product on tensor cores; all sides are powers of two."""

GRADIENT_SCALE = 1024.0
"""Backward values are scaled by this, exactly, so that those of float16 stay above its least
normal number, 6e-5: at 30 dB they are 1e-4 to 1e-2 unscaled, and its greatest is 65504."""


@dataclass(frozen=True)
class Kernel:
    """How the fused kernel runs. ``precision`` matters to the result; the others to rounding only.

    Args:
      precision: of the matrix products.
      block: points that a program holds at once: a power of two, 16 or more. A block of 64 is one
        group of four warps; a thread then holds 16 activations of a layer of width 32.
      blocks: blocks that a program works through before it writes its sums of gradients.
      stages: how many steps ahead Triton loads, in as many buffers of shared memory.
      resident: the weights stay in shared memory from block to block, instead of being loaded for
        each. For 10x28 they and the activations take 101 kB of a Hopper's 228, else 83; 13x49
        fits only without.

    Raises:
      ValueError: a field is out of range.
    """

    precision: Precision = "float16"
    block: int = 64
    blocks: int = 64
    stages: int = 1
    resident: bool = True

    def __post_init__(self):
        power_of_two = self.block >= LEAST and self.block & (self.block - 1) == 0
        if not power_of_two or min(self.blocks, self.stages) < 1 or self.precision not in DTYPES:
            raise ValueError(
                f"got {self}, expected a block of a power of two >= {LEAST}, blocks and stages "
                f">= 1, and a precision of {', '.join(DTYPES)}"
            )


def squared_error_and_grads(
    net: Siren,
    params: Params,
    coords: jax.Array,
    pixels: jax.Array,
    weights: jax.Array,
    *,
    kernel: Kernel | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, Params]:
    """The weighted squared error of a list of points and its gradient, by the fused kernel.

    Its plain twin is `inrjax.fit.squared_error` of ``net.apply_columns``. Works under vmap, not
    under grad.

    Args:
      coords: float32 (in_dim, n). pixels: float32 (out_dim, n). weights: float32 (n,), >= 0.

    Returns:
      The sum over points of weight * mean over out_dim of the squared error, a float32 scalar,
      and its gradient, shaped as params.

    ``kernel``: None for the default. ``interpret``: run on any device, slowly, for tests; sines
    are polynomials then, and tf32 is emulated by rounding. The sums of the programs are added in
    a fixed order: the same arguments give the same bits.

    Raises:
      ValueError: on a CPU without ``interpret`` (from JAX).
    """
    kernel = kernel or Kernel()
    blocks = max(1, min(kernel.blocks, -(-coords.shape[1] // kernel.block)))
    padding = -coords.shape[1] % (kernel.block * blocks)
    if padding:
        coords, pixels, weights = (
            jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)]) for x in (coords, pixels, weights)
        )
    inputs = {"coords": coords, "pixels": pixels, "weights": weights}
    inputs |= _fold(net, params, DTYPES[kernel.precision])
    loss, sums = _call(net, kernel, blocks, inputs, interpret)
    return jnp.sum(loss), _unfold(net, jax.tree.map(lambda g: jnp.sum(g, axis=0), sums))


# ------------------------------------------------------------------ padded params and gradients


def _padded(size: int) -> int:
    return max(LEAST, 1 << (size - 1).bit_length())


def _pad(x: jax.Array, *shape: int) -> jax.Array:
    return jnp.pad(x, [(0, new - old) for old, new in zip(x.shape, shape, strict=True)])


def _has_spare(net: Siren) -> bool:
    """Whether the padded width has room for a feature that is 1: it turns the gradients of the
    biases into a column of the gradients of the weights, which costs nothing more."""
    return _padded(net.width) > net.width


def _fold(net: Siren, params: Params, dtype: Any) -> dict[str, Any]:
    """The params as the kernel takes them: w0 multiplied in, zero-padded, biases in float32.

    first (in_dim, width) and encoded (2, width, angles): the weights of the bare coordinates,
    and of the sines and cosines of the angles; hidden (depth - 1, width, width), none of depth 1;
    last (out, width); biases (depth, width), last_bias (out,); angular (in_dim, angles): the
    coordinates' factors of each angle. Few arrays, so that few small programs surround the kernel.
    """
    width, last = _padded(net.width), params[layer_name(net.depth)]
    layers = [params[layer_name(i)] for i in range(net.depth)]
    first = net.w0 * layers[0]["weight"]
    biases = _pad(net.w0 * jnp.stack([h["bias"] for h in layers]), net.depth, width)
    if _has_spare(net):
        # The spare neuron's weights are zero, so that it is sin(pi/2) = 1 in every layer.
        biases = jnp.where(jnp.arange(width) == net.width, math.pi / 2, biases)
    folded = {
        "first": _pad(first[:, : net.in_dim].T, net.in_dim, width),
        "biases": biases,
        "last": _pad(last["weight"], _padded(net.out_dim), width).astype(dtype),
        "last_bias": _pad(last["bias"], _padded(net.out_dim)),
    }
    if net.depth > 1:
        hidden = net.w0 * jnp.stack([h["weight"] for h in layers[1:]])
        folded["hidden"] = _pad(hidden, net.depth - 1, width, width).astype(dtype)
    if net.encoding is not None:
        num_angles = net.encoding.num_frequencies * net.in_dim
        angles = _padded(num_angles)
        parts = first[:, net.in_dim :].reshape(-1, 2, num_angles).transpose(1, 0, 2)
        factors = np.kron(net.encoding.angular(), np.eye(net.in_dim, dtype=np.float32))
        folded["encoded"] = _pad(parts, 2, width, angles).astype(dtype)
        folded["angular"] = _pad(jnp.asarray(factors), net.in_dim, angles)
    return folded


def _unfold(net: Siren, sums: dict[str, Any]) -> Params:
    """The gradients of the params from those of the kernel's inputs."""
    weights = [sums["first"][:, : net.in_dim], *sums.get("hidden", ()), sums["last"]]
    if net.encoding is not None:
        num_angles = net.encoding.num_frequencies * net.in_dim
        parts = [part[:, :num_angles] for part in sums["encoded"]]
        weights[0] = jnp.concatenate([weights[0], *parts], axis=1)
    if _has_spare(net):
        biases = [gradient[:, net.width] for gradient in weights[1:]]
    else:
        biases = [*sums.get("biases", ()), sums["last_bias"]]
        biases = [gradient[:, net.in_dim] for gradient in biases]
    biases = [sums["first"][:, net.in_dim], *biases]
    grads = {}
    for i, (name, shape) in enumerate(net.shapes().items()):
        factor = (net.w0 if i < net.depth else 1.0) / GRADIENT_SCALE
        rows, columns = shape["weight"]
        grads[name] = {
            "weight": factor * weights[i][:rows, :columns],
            "bias": factor * biases[i][:rows],
        }
    return grads


# --------------------------------------------------------------------------------- the kernel


def _call(net: Siren, kernel: Kernel, blocks: int, inputs: dict[str, Any], interpret: bool):
    # Pallas takes a second to import, and only fits on a GPU need it.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    programs = inputs["weights"].shape[0] // (kernel.block * blocks)
    out_shapes = (jax.ShapeDtypeStruct((1,), jnp.float32), _sums_shapes(net))
    per_program = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct((programs, *s.shape), s.dtype), out_shapes
    )

    def own(shape):
        return pl.BlockSpec((None, *shape), lambda program: (program, *[0] * len(shape)))

    call = pl.pallas_call(
        partial(_kernel, net, kernel, blocks, interpret),
        grid=(programs,),
        out_shape=per_program,
        out_specs=jax.tree.map(lambda s: own(s.shape), out_shapes),
        # A warp per 16 points: the tensor cores' instructions have four warps work on 64 rows.
        compiler_params=triton.CompilerParams(
            num_warps=max(1, kernel.block // 16), num_stages=kernel.stages
        ),
        interpret=interpret,
        name="siren_squared_error_and_grads",
    )
    return call(inputs)


def _sums_shapes(net: Siren) -> dict[str, Any]:
    """The sums of gradients: as in `_fold`, but first (width, in_dim + 1, padded) with the first
    bias as its last column; without a spare feature the other hidden biases likewise."""

    def float32(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    width, out, ones = _padded(net.width), _padded(net.out_dim), _padded(net.in_dim + 1)
    shapes = {"first": float32(width, ones), "last": float32(out, width)}
    if net.depth > 1:
        shapes["hidden"] = float32(net.depth - 1, width, width)
    if net.encoding is not None:
        angles = _padded(net.encoding.num_frequencies * net.in_dim)
        shapes["encoded"] = float32(2, width, angles)
    if not _has_spare(net):
        shapes["last_bias"] = float32(out, ones)
        if net.depth > 1:
            shapes["biases"] = float32(net.depth - 1, width, ones)
    return shapes


def _kernel(net: Siren, kernel: Kernel, blocks: int, interpret: bool, inputs, loss_out, sums_out):
    """One program: ``blocks`` blocks of points. Rows are points, columns are features."""
    from jax.experimental import pallas as pl

    dtype = DTYPES[kernel.precision]
    product = partial(_product, kernel.precision, interpret)
    # The polynomials double the kernel's instructions; the GPU has units for sines.
    sin, cos = (sine, cosine) if interpret else (_hardware("sin"), _hardware("cos"))
    program = pl.program_id(0)

    def work(index, carry):
        loss, sums = carry
        block = program * blocks + index
        span = pl.ds(block * kernel.block, kernel.block)
        # Zero, but Triton does not know: it would move loads that do not change out of the loop.
        changing = 0 if kernel.resident else block >> 30
        coords = [inputs["coords"][d, span][:, None] for d in range(net.in_dim)]

        # Forward. Sines, and cosines for the way back, stay in registers in the products' type.
        z = inputs["biases"][0][None, :]
        for d in range(net.in_dim):
            z = z + coords[d] * inputs["first"][d, :][None, :]
        encoded = []
        if net.encoding is not None:
            angles = coords[0] * inputs["angular"][0, :][None, :]
            for d in range(1, net.in_dim):
                angles = angles + coords[d] * inputs["angular"][d, :][None, :]
            encoded = [sin(angles).astype(dtype), cos(angles).astype(dtype)]
            for part in range(2):
                z = z + product(encoded[part], inputs["encoded"][part], (1, 1))
        h, slopes = [sin(z).astype(dtype)], [cos(z).astype(dtype)]
        for i in range(net.depth - 1):
            z = product(h[i], inputs["hidden"][i + changing], (1, 1))
            z = z + inputs["biases"][i + 1][None, :]
            h.append(sin(z).astype(dtype))
            slopes.append(cos(z).astype(dtype))
        out = product(h[-1], inputs["last"][...], (1, 1)) + inputs["last_bias"][...][None, :]

        pixels = [inputs["pixels"][d, span][:, None] for d in range(net.out_dim)]
        error = out - _columns(pixels, out.shape)
        weighted = (inputs["weights"][span] * (1 / net.out_dim))[:, None] * error

        # Backward: a delta is the gradient with respect to a layer's z, times GRADIENT_SCALE.
        with_one = _columns([*coords, 1.0], (kernel.block, _padded(net.in_dim + 1))).astype(dtype)
        deltas = [(2 * GRADIENT_SCALE * weighted).astype(dtype)]
        back = product(deltas[0], inputs["last"][...], (1, 0))
        for i in range(net.depth - 1, -1, -1):
            deltas.insert(0, (back * slopes[i]).astype(dtype))
            if i > 0:
                back = product(deltas[0], inputs["hidden"][i - 1 + changing], (1, 0))
        new: dict[str, Any] = {"first": product(deltas[0], with_one, (0, 0))}
        new["last"] = product(deltas[-1], h[-1], (0, 0))
        if net.depth > 1:
            pairs = zip(deltas[1:-1], h, strict=False)
            new["hidden"] = [product(delta, below, (0, 0)) for delta, below in pairs]
        if encoded:
            new["encoded"] = [product(deltas[0], part, (0, 0)) for part in encoded]
        if not _has_spare(net):
            new["last_bias"] = product(deltas[-1], with_one, (0, 0))
            if net.depth > 1:
                new["biases"] = [product(delta, with_one, (0, 0)) for delta in deltas[1:-1]]
        return loss + jnp.sum(weighted * error, axis=1), jax.tree.map(jnp.add, sums, new)

    def zeros(shape):
        """A list of matrices for a stack of them: what kernels hold is a power of two."""
        if len(shape.shape) == 3:
            return [jnp.zeros(shape.shape[1:], shape.dtype) for _ in range(shape.shape[0])]
        return jnp.zeros(shape.shape, shape.dtype)

    sums = {name: zeros(shape) for name, shape in _sums_shapes(net).items()}
    loss = jnp.zeros((kernel.block,), jnp.float32)
    loss, sums = jax.lax.fori_loop(0, blocks, work, (loss, sums))
    loss_out[0] = jnp.sum(loss)
    for name, value in sums.items():
        if isinstance(value, list):
            for i, part in enumerate(value):
                sums_out[name][i] = part
        else:
            sums_out[name][...] = value


def _product(
    precision: Precision, interpret: bool, a: jax.Array, b: jax.Array, contract: tuple[int, int]
) -> jax.Array:
    """The matrix product of a and b over the given axis of each, accumulated in float32."""
    if precision == "float32":
        how: Any = jax.lax.Precision.HIGHEST
    elif precision == "tf32" and interpret:
        # Eight bits of exponent, ten of mantissa: other devices have no such products.
        a, b = (jax.lax.reduce_precision(x, 8, 10) for x in (a, b))
        how = jax.lax.Precision.HIGHEST
    else:
        how = jax.lax.DotAlgorithmPreset.TF32_TF32_F32 if precision == "tf32" else None
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, how, preferred_element_type=jnp.float32)


def _hardware(name: str):
    """sin or cos by the special-function units: error about 5e-7 + 6e-8 |x|."""
    from jax.experimental.pallas import triton

    def apply(x: jax.Array) -> jax.Array:
        [value] = triton.elementwise_inline_asm(
            f"{name}.approx.ftz.f32 $0, $1;",
            args=[x],
            constraints="=f,f",
            pack=1,
            result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
        )
        return value

    return apply


def _columns(values: list[Any], shape: tuple[int, ...]) -> jax.Array:
    """A matrix with the given (rows, 1) values or scalars as its first columns, then zeros.

    By selection: kernels cannot concatenate.
    """
    column = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    matrix = jnp.zeros(shape, jnp.float32)
    for i, value in enumerate(values):
        matrix = jnp.where(column == i, value, matrix)
    return matrix
