"""Which program fits all of Kodak fastest on a GPU, and what does low precision cost?

Claim: at 10x28 on 24 x 393,216 pixels, the fused kernel makes at least 1.5 times as many
pixel-steps a second as the best plain program, and its float16 products cost under 0.05 dB.
Command: python -m experiments.benchmark_gpu --output DIR
Minutes: 7 on one H200 (it stops starting new variants at --minutes, 8); --smoke takes seconds on
a CPU, where the kernel is interpreted and no rate means anything.
Expected: on paper (bytes of XLA's program for an H200 at 4.3 TB/s), plain 0.35 Gpixel-steps/s, 0.45
with float16 activations, fused 2.5 to 4; the goal is 2.5.

Rates are of whole fits by `fit.fit_batch`: forward, backward, Adam, best snapshot. A variant that
fails says so in its row, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inrjax import fit, metrics, optimizers, overfit
from inrjax.datasets import packaged
from inrjax.images import coordinates, to_uint8
from inrjax.nets import fused
from inrjax.nets.sine import sine
from inrjax.nets.siren import Siren, layer_name

PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}
COIN_SHAPES = ((20, 5), (30, 5), (28, 10), (40, 10), (49, 13))


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    width: int = 28
    depth: int = 10
    num_images: int = 24
    num_points: int = 768 * 512
    chunks: int = 3
    psnr_crop: int = 256
    psnr_steps: int = 2000
    psnr_seeds: int = 4
    matmul_columns: int = 1 << 20
    smoke: bool = False


SMOKE = Scale(8, 2, 2, 128, 2, 16, 51, 1, 256, True)
CHUNK = 51
"""Steps of a chunk: `fit.fit_batch` cuts multiples of it into chunks of this size."""


@dataclass(frozen=True)
class Variant:
    """A way to the squared error and its gradient: a `fit.TileLoss`, and XLA's precision."""

    name: str
    tile_loss: fit.TileLoss
    matmul: str = "highest"
    tile: int | None = None
    """Points of a tile; None for all of an image."""


@optimizers.traced("optimizer", "num_steps", "window")
@dataclass(frozen=True, kw_only=True)
class VariantPlan(overfit.PlainPlan):
    """`PlainPlan` by a given `TileLoss`."""

    tile_loss: fit.TileLoss

    def advance(self, shared, datum, state, num_steps, axis=None):
        """Further steps; see `fit.advance`."""
        _, key_tiles, key_steps = jax.random.split(shared, 3)

        def loss_fn(params, step, key):
            tiles = fit.draw_tiles(datum, self.tiles_per_step, step, key_tiles)
            return jnp.asarray(fit.tiled_mse(self.tile_loss, params, datum, tiles, None, axis))

        optimizer = self.optimizer.build(self.num_steps)
        return fit.advance(loss_fn, state, optimizer, num_steps, self.window, key_steps)


def plain_variant(net: Siren, precision: str, tile: int | None = None) -> Variant:
    """The package's own program at one of XLA's precisions."""
    name = f"plain {precision}" + (f", tiles of {tile}" if tile else "")
    loss = fit.squared_error(net.apply_columns)
    return Variant(name, loss, PRECISIONS[precision], tile)


def float16_variant(net: Siren) -> Variant:
    """Plain, with the activations in float16: half the bytes."""

    def apply_fn(params, coords):
        h = coords
        for i in range(net.depth + 1):
            layer = params[layer_name(i)]
            w0 = net.w0 if i < net.depth else 1.0
            weight = (w0 * layer["weight"]).astype(h.dtype)
            z = jnp.dot(weight, h, preferred_element_type=jnp.float32)
            z = z + w0 * layer["bias"][:, None]
            h = sine(z).astype(jnp.float16) if i < net.depth else z
        return h

    return Variant("plain, float16 activations", fit.squared_error(apply_fn))


def fused_variant(net: Siren, kernel: fused.Kernel, smoke: bool) -> Variant:
    """The fused kernel; interpreted for the smoke test."""
    differs = {k: v for k, v in vars(kernel).items() if v != getattr(fused.Kernel(), k)}
    name = " ".join(["fused", kernel.precision, *(f"{k}={v}" for k, v in differs.items())])
    loss = partial(fused.squared_error_and_grads, net, kernel=kernel, interpret=smoke)
    return Variant(name, loss)


# -------------------------------------------------------------------------------- measurements


def textures(count: int, num_points: int, tile: int) -> list[fit.Points]:
    """Images of random colours at random points: what is in a pixel costs nothing."""
    rng = np.random.default_rng(0)
    tiles = -(-num_points // tile)
    coords = rng.uniform(-1, 1, (num_points, 2)).astype(np.float32)
    return [
        fit.make_points(
            coords, rng.uniform(-1, 1, (num_points, 3)).astype(np.float32), tile, tiles, seed
        )
        for seed in range(count)
    ]


def fit_all(variant: Variant, net: Siren, points: Sequence[fit.Points], steps: int, rate, seed=0):
    """Fit; returns the results and the seconds of each chunk of `CHUNK` steps, the first with its
    compilation."""
    tiles = points[0].weights.shape[0]
    plan = VariantPlan(net, optimizers.Adam(*rate), steps, tiles, 1, tile_loss=variant.tile_loss)
    times = [time.perf_counter()]
    with jax.default_matmul_precision(variant.matmul):
        fitted = fit.fit_batch(
            plan, jax.random.key(seed), points, lambda *_: times.append(time.perf_counter())
        )
    return fitted, np.diff(times)


def measure_rate(variant: Variant, net: Siren, scale: Scale) -> dict[str, Any]:
    """Gpixel-steps a second of the fastest chunk, and the seconds before the first step."""
    points = textures(scale.num_images, scale.num_points, variant.tile or scale.num_points)
    _, seconds = fit_all(variant, net, points, scale.chunks * CHUNK, (2e-4,))
    best = float(np.min(seconds[1:]))
    pixel_steps = scale.num_images * scale.num_points * CHUNK
    return {
        "Gpixel-steps/s": pixel_steps / best / 1e9,
        "compile s": float(seconds[0]) - best,
        "minutes of COIN's 50,000 steps": 50_000 * best / CHUNK / 60,
    }


def measure_error(variant: Variant, net: Siren, scale: Scale) -> dict[str, Any]:
    """The greatest relative error of a leaf of value and gradient against plain float32."""
    num_points = min(scale.num_points, 16_384) - 5  # the last block is not full
    rng = np.random.default_rng(1)
    coords, pixels, weights = (
        rng.uniform(low, 1, (2, *rows, num_points)).astype(np.float32)
        for low, rows in ((-1, (2,)), (-1, (3,)), (0, ()))
    )
    params = jax.vmap(net.init)(jax.random.split(jax.random.key(0), 2))
    with jax.default_matmul_precision("highest"):
        plain = jax.jit(jax.vmap(fit.squared_error(net.apply_columns)))
        expected = plain(params, coords, pixels, weights)
    value = jax.jit(jax.vmap(variant.tile_loss))(params, coords, pixels, weights)

    def relative(a, b):
        return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(a))

    return {"relative error": max(jax.tree.leaves(jax.tree.map(relative, expected, value)))}


def photographs(crop: int) -> list[np.ndarray]:
    """Two square crops of each packaged photograph: uint8 (crop, crop, 3)."""
    return [
        image[top : top + crop, left : left + crop]
        for image in packaged().values()
        for top, left in ((0, 0), (image.shape[0] - crop, image.shape[1] - crop))
    ]


def measure_psnrs(variant: Variant, net: Siren, scale: Scale) -> np.ndarray:
    """PSNR in dB of each photograph's fit from each init, (seeds * crops,): pixels by the decoder
    in numpy, hence in float32 whatever the fit's precision."""
    images, side = photographs(scale.psnr_crop), scale.psnr_crop
    tiling = fit.Tiling(side * side, 1)
    points = [overfit.image_points(image, tiling, 1, seed=0) for image in images]
    psnrs = []
    for seed in range(scale.psnr_seeds):
        fitted, _ = fit_all(variant, net, points, scale.psnr_steps, (1e-3, 0.0), seed)
        for image, result in zip(images, fitted, strict=True):
            pixels = net.apply_host(result.params, coordinates(side, side))
            psnrs.append(metrics.psnr(image, to_uint8((pixels.reshape(image.shape) + 1) / 2)))
    return np.array(psnrs)


def measure_matmul(width: int, columns: int, precision: str) -> dict[str, Any]:
    """TFLOP/s of (width, width) @ (width, columns)."""
    key_a, key_b = jax.random.split(jax.random.key(0))
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    a = (jax.random.normal(key_a, (width, width)) / width**0.5).astype(dtype)
    b = jax.random.normal(key_b, (width, columns)).astype(dtype)

    @jax.jit
    def chain(a, b, count):
        return jax.lax.fori_loop(0, count, lambda _, b: (a @ b).astype(b.dtype), b)

    with jax.default_matmul_precision(PRECISIONS[precision]):
        seconds = []
        for count in (2, 50, 50):
            start = time.perf_counter()
            jax.block_until_ready(chain(a, b, count))
            seconds.append((time.perf_counter() - start) / count)
    return {"TFLOP/s": 2 * width**2 * columns / min(seconds[1:]) / 1e12}


# -------------------------------------------------------------------------------------- the run


def jobs(scale: Scale) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """(name, measurement), the most important first."""
    net = Siren(scale.width, scale.depth)
    kernel = fused.Kernel(block=16, blocks=2) if scale.smoke else fused.Kernel()
    default = fused_variant(net, kernel, scale.smoke)
    plain = [plain_variant(net, precision) for precision in PRECISIONS]
    for variant in [default] if scale.smoke else [default, *plain[1:], plain[0]]:
        yield f"rate: {variant.name}", partial(measure_rate, variant, net, scale)
    yield f"error: {default.name}", partial(measure_error, default, net, scale)

    reference: dict[str, np.ndarray] = {}

    def psnr(variant: Variant) -> dict[str, Any]:
        if not reference:
            reference["float32"] = measure_psnrs(plain[0], net, scale)
        psnrs = measure_psnrs(variant, net, scale)
        gain = psnrs - reference["float32"]
        return {
            "PSNR dB": float(psnrs.mean()),
            "float32 dB": float(reference["float32"].mean()),
            "gain dB": float(gain.mean()),
            "standard error dB": float(gain.std(ddof=1) / len(gain) ** 0.5),
        }

    for variant in plain[1:2] if scale.smoke else [default, *plain[1:]]:
        yield f"psnr: {variant.name}", partial(psnr, variant)
    if scale.smoke:
        yield "matmul: 8 float32", partial(measure_matmul, 8, scale.matmul_columns, "float32")
        return

    variants = [
        replace(kernel, resident=False),
        replace(kernel, stages=2),
        replace(kernel, block=128),
        replace(kernel, block=32),
        replace(kernel, precision="bfloat16"),
        replace(kernel, precision="tf32", resident=False),
    ]
    for options in variants:
        variant = fused_variant(net, options, scale.smoke)
        yield f"error: {variant.name}", partial(measure_error, variant, net, scale)
        yield f"rate: {variant.name}", partial(measure_rate, variant, net, scale)
    half = float16_variant(net)
    yield f"rate: {half.name}", partial(measure_rate, half, net, scale)
    for width, depth in COIN_SHAPES:
        other = Siren(width, depth)
        options = replace(kernel, resident=width <= 32)
        variant = fused_variant(other, options, scale.smoke)
        yield f"rate: {depth}x{width} {variant.name}", partial(measure_rate, variant, other, scale)
    for tile in (65_536, 131_072):
        variant = plain_variant(net, "tf32", tile)
        yield f"rate: {variant.name}", partial(measure_rate, variant, net, scale)
    for width in (32, 64, 128):
        for precision in PRECISIONS:
            yield (
                f"matmul: {width} {precision}",
                partial(measure_matmul, width, scale.matmul_columns, precision),
            )


def run(scale: Scale, minutes: float, output: Path) -> list[dict[str, Any]]:
    """Measure, print a line each, and write results.json and table.md after every line."""
    output.mkdir(parents=True, exist_ok=True)
    device = jax.devices()[0]
    print(f"{len(jax.devices())} x {device.device_kind}, jax {jax.__version__}", flush=True)
    start = time.perf_counter()
    rows: list[dict[str, Any]] = []
    for name, job in jobs(scale):
        begun = time.perf_counter()
        if begun - start > 60 * minutes:
            rows.append({"name": name, "failure": "not started: out of time"})
        else:
            try:
                rows.append({"name": name} | job())
            except Exception as error:  # a program that does not compile is a result
                lines = str(error).strip().splitlines() or [""]
                rows.append({"name": name, "failure": f"{type(error).__name__}: {lines[0][:200]}"})
            rows[-1]["took s"] = time.perf_counter() - begun
        print(line(rows[-1]), flush=True)
        provenance = {"device": device.device_kind, "jax": jax.__version__, "scale": vars(scale)}
        (output / "results.json").write_text(json.dumps(provenance | {"rows": rows}, indent=1))
        (output / "table.md").write_text(table(rows))
    return rows


def line(row: Mapping[str, Any]) -> str:
    """A row as one line of text."""
    values = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items() if k != "name"}
    return f"{row['name']}: " + ", ".join(f"{k} {v}" for k, v in values.items())


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table of two columns."""
    lines = [line(row).split(": ", 2) for row in rows]
    return "| what | measured |\n|---|---|\n" + "".join(
        f"| {what}: {name} | {values} |\n" for what, name, values in lines
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT", "runs/gpu")))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    run(SMOKE if options.smoke else Scale(), options.minutes, options.output)


if __name__ == "__main__":
    main()
