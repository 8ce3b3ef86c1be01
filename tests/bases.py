"""Bases made by a seed, as small as they can be: what golden streams of tags 6 and 7 need."""

from __future__ import annotations

from functools import cache

import numpy as np

from inrjax import codecs, context, entropy, grids, trees
from inrjax.base import BITS, Base, table_arrays
from inrjax.grids import GridBase
from inrjax.nets.latent_grid import COLOUR, LatentGridNet, wavelet_kernel
from inrjax.nets.siren import Siren


def tiny_base(latent_dim: int = 12, patch: int = 16, seed: int = 0) -> Base:
    """Random weights; numpy keeps the stream of `RandomState`, so the digest stays the same."""
    net, rng = Siren(10, 3), np.random.RandomState(seed)
    leaves = {
        path: rng.uniform(-1, 1, shape) * (6 / shape[-1]) ** 0.5 / net.w0
        for path, shape in trees.leaves(net.shapes())
    }
    shift = rng.uniform(-1, 1, (net.depth * net.width, latent_dim)) / net.w0
    # The counts of a bell, by squares of integers.
    tables = {}
    for bits in BITS:
        top = (1 << bits) - 1
        places = np.arange(top + 1)
        tables[bits] = entropy.adaptive_counts((places * (top - places)) ** 2 // top**2)
    return Base(
        net=net,
        patch=patch,
        params=trees.from_leaves({p: x.astype(np.float16) for p, x in leaves.items()}),
        shift=shift.astype(np.float16),
        centre=np.linspace(-0.25, 0.25, latent_dim, dtype=np.float32),
        spread=np.full(latent_dim, 0.5, np.float32),
        tables=table_arrays(tables),
        rates=np.full(latent_dim, 0.5, np.float32),
    )


def tiny_grid_base(levels: int = 2, seed: int = 0, odd_width: int = 0) -> GridBase:
    """The wavelet and small random sine layers; context models that expect the more, the larger
    the latents around. As `tiny_base`, by `RandomState`."""
    net, rng = LatentGridNet(levels, 4, 4, odd_width), np.random.RandomState(seed)
    synthesis = {}
    for path, shape in trees.leaves(net.shapes()):
        fan_in = int(np.prod(shape[:-1]))
        reach = 0.05 if path.endswith("weight3") else 1.5
        synthesis[path] = rng.uniform(-reach, reach, shape) / fan_in**0.5
        if path.endswith("gain"):
            synthesis[path] = rng.uniform(0.95, 1.05, shape)
    synthesis["colour"] = COLOUR
    for level in range(levels):
        synthesis[f"level{level}/kernel"] = wavelet_kernel(net.components(level))
    models = {}
    for path, shape in trees.leaves(context.shapes(net)):
        # Positive on the whole, so that the layers pass on a mean of the magnitudes.
        reach = (-0.5, 2.5) if path.endswith(("weight1", "weight2")) else (0.1, 0.3)
        models[path] = rng.uniform(*reach, shape) / (1 if path.endswith("3") else shape[0])
        if path.endswith(("bias1", "bias2")):
            models[path] = rng.uniform(-0.2, 0.2, shape)
        if path.endswith("bias3"):
            models[path] = rng.uniform(-0.5, 0.5, shape) + (2 if path.startswith("low") else -2)
        if path.endswith("predict"):
            models[path] = np.array([0.625, 0.625, -0.375, 0.125])
        if odd_width and path.startswith("level"):
            _see_signs(models, path, rng)
    trained = trees.from_leaves(synthesis), trees.from_leaves(models)
    return grids.make_base(net, *trained, {"command": "tests/bases.py"})


def _see_signs(models: dict[str, np.ndarray], path: str, rng: np.random.RandomState) -> None:
    """Weights of details that see signs: of 0, of 2 or more, and of the tail, less or more likely
    the larger the latents around."""
    name, shape = path.split("/")[1], models[path].shape
    if name == "weight3":
        models[path] *= np.repeat((-1, 0.5, 0.5), 3)
    elif name == "bias3":
        models[path] = rng.uniform(-0.3, 0.3, shape) + np.repeat((1.5, -1, -0.5), 3)
    elif name == "gate_bias":
        models[path] = rng.uniform(0.5, 1.5, shape)
    elif name in ("odd1", "odd2", "gate"):
        models[path] = rng.uniform(-1, 1, shape) / {"odd1": 4, "odd2": 1, "gate": 8}[name]


@cache
def _shared() -> tuple[Base, list[GridBase]]:
    return tiny_base(), [tiny_grid_base(), tiny_grid_base(odd_width=3)]


def shared_of(data: bytes) -> Base | GridBase:
    """The tiny base that the decoder of a stream takes, whatever else is wrong with the stream."""
    modulated, grids = _shared()
    if data[4:5] != bytes([codecs.LatentGrid.tag]):
        return modulated
    return next((base for base in grids if base.digest[:4] in data), grids[0])
