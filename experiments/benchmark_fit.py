"""How fast is a fit, beside PyTorch, a naive JAX program, and the machine's own matrix products?

Claim: on a CPU, fits are 1.4 to 2.5 times as fast as by compiled PyTorch and 1.7 to 3.6 times as by
eager, and most of the machine's matmul peak is used at width 64.
Command: python -m experiments.benchmark_fit           (pip install -e '.[bench]' for PyTorch)
Minutes: about 17 on 2 idle cores; ``--quick`` (10x28 and width 64, a batch of 8) under one.
Expected: the table in results/benchmark_fit/<config hash>/table.md.

A step is a full one: every pixel of every image, forward, backward, Adam; images are random, since
no rate depends on them. ``Mpx`` are pixel-steps: images x pixels x steps, a second, in millions.
All candidates of a row run in one process, in turns, and the fastest of their turns counts.
Ours is `fit.fit_batch` as the codecs call it, compilation excluded; what it compiles in, and its
memory, come from a process of its own. PyTorch runs on all threads, the images of a batch one after
the other or all in one by `torch.baddbmm`, and the faster counts; positional encodings are computed
once for it, at every step for the others. The naive program is plain `jnp.sin` on (pixels,
features) without tiles. The peak is (w, w) @ (w, 4096) in float32 on all cores, by XLA with a
device for each core or by numpy's BLAS, whichever is faster.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from inrjax import fit, machine, overfit, results
from inrjax.nets.siren import Encoding, Siren, layer_name
from inrjax.optimizers import Adam

ROOT = Path(__file__).parents[1]
LEARNING_RATE = 2e-4
ACCELERATOR_TILE = 131_072  # points; a CPU has its own (`fit.MAX_TILE`)


@dataclass(frozen=True)
class Config:
    """What is timed. ``coin``: (depth, width); ``widths``: of Strümpler's nets, 4 sine layers and
    16 frequencies; ``batches``: numbers of images; ``side`` of each, in pixels; a candidate has
    ``turns`` of about ``seconds`` each.
    """

    coin: tuple[tuple[int, int], ...] = ((5, 30), (10, 28), (13, 49))
    widths: tuple[int, ...] = (32, 64, 128)
    batches: tuple[int, ...] = (1, 8, 24)
    side: int = 128
    seconds: float = 0.7
    turns: int = 4
    memory: bool = True
    seed: int = 0


QUICK = Config(coin=((10, 28),), widths=(64,), batches=(8,), seconds=0.3, memory=False)
SMOKE = Config(
    coin=((2, 8),), widths=(), batches=(2,), side=16, seconds=0.0, turns=1, memory=False
)  # fmt: skip


def nets(config: Config) -> dict[str, Siren]:
    """Name -> net of each row."""
    return {
        **{f"COIN {d}x{w}": Siren(w, d) for d, w in config.coin},
        **{f"Strümpler {w}": Siren(w, 4, encoding=Encoding()) for w in config.widths},
    }


def weights_of(net: Siren) -> int:
    """Multiplications of a forward pass, for one pixel."""
    return sum(math.prod(layer["weight"]) for layer in net.shapes().values())


# ---------------------------------------------------------------------------- the candidates

Run = Callable[[int], Any]
"""Does that many steps."""


def images_for(config: Config, batch: int) -> list[np.ndarray]:
    """uint8 (side, side, 3) noise."""
    rng = np.random.default_rng(config.seed)
    shape = (config.side, config.side, 3)
    return [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(batch)]


def ours(net: Siren, images: Sequence[np.ndarray], seed: int) -> Run:
    """`fit.fit_batch` with every pixel in every step."""
    size = images[0].shape[0] * images[0].shape[1]
    on_cpu = jax.default_backend() == "cpu"
    tile = fit.tiling(size, size).tile if on_cpu else min(size, ACCELERATOR_TILE)
    tiling = fit.Tiling(tile, -(-size // tile))
    points = [overfit.image_points(i, tiling, tiling.tiles_per_step, seed) for i in images]

    def run(num_steps: int):
        plan = overfit.PlainPlan(net, Adam(LEARNING_RATE), num_steps, tiling.tiles_per_step, 1)
        return fit.fit_batch(plan, jax.random.key(seed), points)

    return run


def naive_step(net: Siren, coords: jax.Array, pixels: jax.Array):
    """A jitted step (params, state) -> (params, state, loss) as one would first write it."""
    optimizer = optax.adam(LEARNING_RATE)
    freqs = None if net.encoding is None else net.encoding.angular()

    def predict(params, h):
        if freqs is not None:
            angles = (h[:, None] * freqs[:, None]).reshape(len(h), -1)
            h = jnp.concatenate([h, jnp.sin(angles), jnp.cos(angles)], axis=1)
        for i in range(net.depth):
            layer = params[layer_name(i)]
            h = jnp.sin(net.w0 * (h @ layer["weight"].T + layer["bias"]))
        last = params[layer_name(net.depth)]
        return h @ last["weight"].T + last["bias"]

    @jax.jit
    def step(params, state):
        def loss_fn(params):
            return jnp.mean((predict(params, coords) - pixels) ** 2) / 4

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    return optimizer, step


def naive_losses(net: Siren, image: np.ndarray, num_steps: int, seed: int) -> np.ndarray:
    """The losses of the naive program from the init that `overfit.PlainPlan` starts at."""
    coords, pixels = _coords_and_pixels(image)
    optimizer, step = naive_step(net, jnp.asarray(coords), jnp.asarray(pixels))
    params = net.init(jax.random.split(jax.random.key(seed), 3)[0])
    state, losses = optimizer.init(params), []
    for _ in range(num_steps):
        params, state, loss = step(params, state)
        losses.append(loss)
    return np.asarray(losses)


def naive(net: Siren, images: Sequence[np.ndarray], seed: int) -> Run:
    """The naive program, the images one after the other."""

    def run(num_steps: int):
        for params, state, step in fits:
            for _ in range(num_steps):
                params, state, loss = step(params, state)
            jax.block_until_ready(loss)

    fits = []
    coords, pixels = _coords_and_pixels(images[0])
    optimizer, step = naive_step(net, jnp.asarray(coords), jnp.asarray(pixels))
    for i in range(len(images)):  # the same pixels: another image is not another speed
        params = net.init(jax.random.key(seed + i))
        fits.append((params, optimizer.init(params), step))
    return run


def _coords_and_pixels(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from inrjax.images import coordinates

    return coordinates(*image.shape[:2]), (image.reshape(-1, 3) / 127.5 - 1).astype(np.float32)


def torch_runs(net: Siren, images: Sequence[np.ndarray], compiled: bool) -> list[Run]:
    """The two ways to fit a batch in PyTorch (one for a single image)."""
    import torch

    torch.set_num_threads(machine.cpu_count())
    coords, pixels = _coords_and_pixels(images[0])
    inputs = torch.from_numpy(coords)
    if net.encoding is not None:
        angles = (inputs[:, None] * torch.from_numpy(net.encoding.angular())[:, None]).flatten(1)
        inputs = torch.cat([inputs, torch.sin(angles), torch.cos(angles)], dim=1)
    target = torch.from_numpy(pixels)

    def start(count: int):
        """Params and a function of them, for ``count`` images at once."""
        params = []
        for layer in net.shapes().values():
            out, width = layer["weight"]
            bound = (6 / width) ** 0.5 / net.w0
            params.append(torch.empty(count, width, out).uniform_(-bound, bound))
            params.append(torch.zeros(count, 1, out))
        params = [p.requires_grad_() for p in params]

        def predict(h):
            for i in range(net.depth):
                h = torch.sin(net.w0 * torch.baddbmm(params[2 * i + 1], h, params[2 * i]))
            return torch.baddbmm(params[-1], h, params[-2])

        def predict_one(h):
            for i in range(net.depth):
                h = torch.sin(net.w0 * torch.addmm(params[2 * i + 1][0], h, params[2 * i][0]))
            return torch.addmm(params[-1][0], h, params[-2][0])

        function = predict_one if count == 1 else predict
        return params, torch.compile(function) if compiled else function

    def steps(count: int, repeats: int) -> Run:
        params, predict = start(count)
        optimizer = torch.optim.Adam(params, lr=LEARNING_RATE)
        several = count > 1
        h = inputs.expand(count, *inputs.shape) if several else inputs
        wanted = target.expand(count, *target.shape) if several else target

        def run(num_steps: int):
            for _ in range(num_steps * repeats):
                optimizer.zero_grad()
                loss = ((predict(h) - wanted) ** 2).mean() * count
                loss.backward()
                optimizer.step()

        return run

    batch = len(images)
    return [steps(1, batch)] + ([steps(batch, 1)] if batch > 1 else [])


def matmul_peaks(width: int) -> list[Run]:
    """Runs of 100 products (w, w) @ (w, 4096) a core or a thread pool; see `PEAK_PRODUCTS`."""
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("core",), (jax.sharding.AxisType.Auto,), devices=devices)
    by_core = jax.NamedSharding(mesh, jax.P("core"))
    a = jax.device_put(np.full((len(devices), width, width), 1 / width, np.float32), by_core)
    b = jax.device_put(np.ones((len(devices), width, 4096), np.float32), by_core)

    @jax.jit
    def on_devices(a, b):
        def on_device(a, b):
            return jax.lax.scan(lambda x, _: (a[0] @ x, None), b[0], length=PEAK_PRODUCTS)[0][None]

        specs = (jax.P("core"), jax.P("core"))
        return jax.shard_map(
            on_device, mesh=mesh, in_specs=specs, out_specs=jax.P("core"), check_vma=False
        )(a, b)

    x, y = np.asarray(a[0]), np.asarray(b[0])
    out = np.empty_like(y)

    def xla(num: int):
        for _ in range(num):
            jax.block_until_ready(on_devices(a, b))

    def blas(num: int):
        for _ in range(num * PEAK_PRODUCTS * len(devices)):
            np.matmul(x, y, out=out)

    return [xla, blas] if devices[0].platform == "cpu" else [xla]


PEAK_PRODUCTS = 100


# ---------------------------------------------------------------------------- timing


def race(runs: Mapping[str, Run], seconds: float, turns: int) -> dict[str, float]:
    """Name -> seconds of one step: the best turn of each, in turns of about ``seconds``."""
    steps = {}
    for name, run in runs.items():
        run(MIN_STEPS)  # compiles
        start = time.perf_counter()
        run(MIN_STEPS)
        once = (time.perf_counter() - start) / MIN_STEPS
        steps[name] = max(MIN_STEPS, min(fit.CHUNK_STEPS, round(seconds / once)))
        run(steps[name])  # `fit_batch` compiles a number of steps
    best = dict.fromkeys(runs, math.inf)
    for _ in range(turns):
        for name, run in runs.items():
            start = time.perf_counter()
            run(steps[name])
            best[name] = min(best[name], (time.perf_counter() - start) / steps[name])
    return best


MIN_STEPS = 2


def measure(config: Config, name: str, net: Siren, batch: int) -> dict[str, Any]:
    """One row of the table."""
    images = images_for(config, batch)
    runs: dict[str, Run] = {"ours": ours(net, images, config.seed)}
    runs["naive"] = naive(net, images, config.seed)
    for i, run in enumerate(matmul_peaks(net.width)):
        runs[f"peak {i}"] = run
    missing = {}
    for kind in ("eager", "compiled"):
        try:
            for i, run in enumerate(torch_runs(net, images, kind == "compiled")):
                run(1)
                runs[f"torch {kind} {i}"] = run
        except ImportError:
            missing[kind] = "PyTorch is not installed"
        except Exception as error:  # torch.compile without a C++ compiler
            missing[kind] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    seconds = race(runs, config.seconds, config.turns)
    pixel_steps = batch * config.side**2

    def rate(kind: str) -> float | None:
        found = [pixel_steps / s for key, s in seconds.items() if key.startswith(kind)]
        return max(found) if found else None

    peak_flops = 2 * net.width**2 * 4096 * PEAK_PRODUCTS * len(jax.local_devices())
    peak = max(peak_flops / s for key, s in seconds.items() if key.startswith("peak"))
    ours_rate = pixel_steps / seconds["ours"]
    return {
        "net": name,
        "batch": batch,
        "ours": ours_rate,
        "gflops": 6 * weights_of(net) * ours_rate / 1e9,
        "peak_gflops": peak / 1e9,
        "naive": rate("naive"),
        "eager": rate("torch eager"),
        "compiled": rate("torch compiled"),
        "missing": missing,
    }


def _cost(config: Config, name: str, batch: int) -> dict[str, float]:
    """Compile seconds and peak memory of ours alone, from a process of its own."""
    command = [sys.executable, "-m", "experiments.benchmark_fit", "--cost", name]
    command += ["--batch", str(batch), "--side", str(config.side)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise ValueError(f"the cost of {name} was not measured: {done.stderr[-300:]}")
    return json.loads(done.stdout)


def cost(config: Config, name: str, batch: int) -> dict[str, float]:
    """What `_cost` reads: seconds of the first two steps less those of the next two, peak MiB."""
    run = ours(nets(config)[name], images_for(config, batch), config.seed)
    start = time.perf_counter()
    run(MIN_STEPS)
    first = time.perf_counter() - start
    start = time.perf_counter()
    run(MIN_STEPS)
    compiled = first - (time.perf_counter() - start)
    return {"compile_seconds": compiled, "peak_mib": _peak_mib()}


def _peak_mib() -> float:
    stats = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    if stats:
        return stats["peak_bytes_in_use"] / 2**20
    return machine.peak_memory() / 2**20


# ---------------------------------------------------------------------------- the table


def run(config: Config, root: Path) -> Path:
    """Measure every row that is not there yet; returns the run folder."""
    folder = results.run_folder(root, config)
    path = folder / "rows.json"
    rows = json.loads(path.read_text("utf-8")) if path.exists() else []
    done = {(row["net"], row["batch"]) for row in rows}
    for name, net in nets(config).items():
        for batch in config.batches:
            if (name, batch) not in done:
                rows.append(measure(config, name, net, batch))
                results.write_json(path, rows)
                print(f"{name}, batch {batch}", file=sys.stderr, flush=True)
    for row in rows:
        if config.memory and "peak_mib" not in row:
            row |= _cost(config, row["net"], row["batch"])
            results.write_json(path, rows)
    results.write_json(folder / "provenance.json", results.provenance(results.jax_device()))
    results.write_text(folder / "table.md", table(config, rows))
    return folder


def table(config: Config, rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: rates and ratios, one line a net and batch."""
    header = ["net", "batch", "Mpx/s", "GFLOP/s", "peak", "share", "naive JAX", "eager",
              "compiled", "/ naive", "/ eager", "/ compiled", "compile s", "MiB"]  # fmt: skip
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        others = [row["naive"], row["eager"], row["compiled"]]
        cells = [
            row["net"],
            f"{row['batch']}",
            f"{row['ours'] / 1e6:.2f}",
            f"{row['gflops']:.0f}",
            f"{row['peak_gflops']:.0f}",
            f"{100 * row['gflops'] / row['peak_gflops']:.0f} %",
            *["-" if rate is None else f"{rate / 1e6:.2f}" for rate in others],
            *["-" if rate is None else f"{row['ours'] / rate:.2f}x" for rate in others],
            f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else "-",
            f"{row['peak_mib']:.0f}" if "peak_mib" in row else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    notes = sorted({f"{kind}: {why}" for row in rows for kind, why in row["missing"].items()})
    title = (
        f"# Fit, images of {config.side} x {config.side}, full-image steps of Adam, "
        f"{results.jax_device()}, {machine.cpu_count()} cores"
    )
    return "\n".join([title, "", *lines, "", *notes, ""])


def main(arguments: Sequence[str] | None = None) -> Path | None:
    """argparse, so that a bare machine with a GPU can run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two rows, under a minute")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "benchmark_fit")
    parser.add_argument("--cost", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    fit.use_every_core()
    if options.cost:
        config = Config(side=options.side)
        print(json.dumps(cost(config, options.cost, options.batch)))
        return None
    config = SMOKE if options.smoke else QUICK if options.quick else Config()
    folder = run(config, options.output)
    print((folder / "table.md").read_text("utf-8"))
    return folder


if __name__ == "__main__":
    main()
