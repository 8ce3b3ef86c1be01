"""A base network made by a seed, as small as it can be: what golden streams of tag 6 need."""

from __future__ import annotations

import numpy as np

from inrjax import entropy, trees
from inrjax.base import BITS, Base, table_arrays
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
