"""Fitting latents: the few numbers of a patch that shift the biases of a shared base network.

COIN++ (Dupont et al. 2022, arXiv:2201.12904, section 3) and functa (arXiv:2201.12204, section 3):
a few steps of SGD from zero, at a learned rate for each number of the latent (Meta-SGD).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inrjax import fit, meta
from inrjax.base import Base, modulate
from inrjax.images import coordinates
from inrjax.nets.siren import Siren
from inrjax.types import Image, OnProgress


class Learned(NamedTuple):
    """What all patches share while it is learned: ``params`` of the net; ``shift`` (depth * width,
    latent_dim), the map from latents to shifts; ``log_rates`` (latent_dim,) of the inner steps."""

    params: Any
    shift: Any
    log_rates: Any


class Patches(NamedTuple):
    """``pixels`` uint8 (n, patch^2, 3), row by row; ``weights`` float32 (n, patch^2): 1 for a pixel
    of the image, 0 for what only fills up a patch at its rim."""

    pixels: np.ndarray
    weights: np.ndarray


def cut(image: Image, patch: int) -> Patches:
    """A uint8 (height, width, 3) image as patches, row by row; edge pixels fill up the last."""
    height, width = image.shape[:2]
    rim = ((0, -height % patch), (0, -width % patch))
    filled = np.pad(image, (*rim, (0, 0)), mode="edge")
    weights = np.pad(np.ones((height, width), np.float32), rim)

    def tiles(values: np.ndarray, channels: int) -> np.ndarray:
        rows, columns = values.shape[0] // patch, values.shape[1] // patch
        parts = values.reshape(rows, patch, columns, patch, channels)
        return parts.transpose(0, 2, 1, 3, 4).reshape(-1, patch * patch, channels)

    return Patches(tiles(filled, 3), tiles(weights, 1)[..., 0])


def patch_coords(patch: int) -> np.ndarray:
    """Pixel centres of a patch, float32 (2, patch^2) in [-1, 1]."""
    return coordinates(patch, patch).T


def patch_mse(
    net: Siren, learned: Learned, latent: jax.Array, coords: Any, pixels: Any, weights: Any
) -> jax.Array:
    """Mean squared error on [0, 1] of one patch: coords (2, n), pixels (3, n) in [-1, 1], weights
    (n,). Differentiable as often as needed."""
    params = modulate(net, learned.params, learned.shift, latent)
    error = jnp.mean((net.apply_columns(params, coords) - pixels) ** 2, axis=0)
    return jnp.sum(weights * error) / jnp.sum(weights) / 4


def fit_latent(
    net: Siren, learned: Learned, inner_steps: int, coords: Any, pixels: Any, weights: Any
) -> jax.Array:
    """The latent (latent_dim,) of one patch after SGD from zero; arguments as in `patch_mse`."""
    rates = jnp.exp(learned.log_rates)
    every = jnp.broadcast_to(rates, (inner_steps, *rates.shape))

    def loss_fn(latent: jax.Array, _: Any) -> jax.Array:
        return patch_mse(net, learned, latent, coords, pixels, weights)

    start = meta.MetaParams(jnp.zeros_like(rates), every)
    return meta.adapt(loss_fn, start, jnp.arange(inner_steps), first_order=False)


GROUP = 64
"""Patches of one call of the compiled program; a list is filled up to a multiple of it."""

RETRIES = 2
"""Further tries of a patch whose latent diverged, each at a quarter of the inner rates."""


def fit_latents(
    base: Base,
    patches: Sequence[Patches],
    inner_steps: int,
    on_progress: OnProgress | None = None,
) -> list[np.ndarray]:
    """The latents, float32 (n, latent_dim), of each list of patches, under the base as stored.

    A patch's bits do not depend on its neighbours on a CPU: groups have one size, and their patches
    are fitted one after the other. A patch whose latent is not finite is tried again at a quarter
    of the base's rates, and a warning says so. ``on_progress`` counts patches. Raises ValueError,
    which names the image, for a latent that is not finite at any rate.
    """
    counts = [len(own.pixels) for own in patches]
    if not sum(counts):
        return [np.zeros((0, base.latent_dim), np.float32) for _ in counts]
    pixels, weights = (np.concatenate(part) for part in zip(*patches, strict=True))
    images = np.repeat(np.arange(len(counts)), counts)
    latents = _fit_groups(base, 1.0, inner_steps, pixels, weights, on_progress)
    for attempt in range(1, 1 + RETRIES):
        bad = np.flatnonzero(~np.isfinite(latents).all(axis=1))
        if not len(bad):
            break
        share = 0.25**attempt
        warnings.warn(
            f"the latents of {len(bad)} patches of image {_numbers(images[bad])} of {len(counts)} "
            f"diverged: they are fitted again at {share} of the base's rates",
            stacklevel=2,
        )
        latents[bad] = _fit_groups(base, share, inner_steps, pixels[bad], weights[bad], None)
    bad = ~np.isfinite(latents).all(axis=1)
    if bad.any():
        raise ValueError(
            f"the latents of image {_numbers(images[bad])} of {len(counts)} diverged "
            f"{1 + RETRIES} times: take fewer inner steps, or another base"
        )
    return np.split(latents, np.cumsum(counts)[:-1])


def _numbers(images: np.ndarray) -> str:
    return ", ".join(str(i + 1) for i in np.unique(images))


def _fit_groups(
    base: Base,
    share: float,
    inner_steps: int,
    pixels: np.ndarray,
    weights: np.ndarray,
    on_progress: OnProgress | None,
) -> np.ndarray:
    """The latents of patches, float32 (n, latent_dim), at a share of the base's rates."""
    learned = learned_of(base)
    learned = learned._replace(log_rates=learned.log_rates + np.float32(np.log(share)))
    coords, found = patch_coords(base.patch), []
    program = _program(jax.default_backend())
    for first in range(0, len(pixels), GROUP):
        # Copies of the last patch fill up the last group.
        group = np.minimum(np.arange(first, first + GROUP), len(pixels) - 1)
        latents = program(base.net, inner_steps, learned, coords, pixels[group], weights[group])
        found.append(np.asarray(latents)[: len(pixels) - first])
        if on_progress is not None:
            on_progress(min(first + GROUP, len(pixels)), len(pixels))
    return np.concatenate(found)


def learned_of(base: Base) -> Learned:
    """The base's arrays as float32."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), dict(base.params))
    with np.errstate(divide="ignore"):
        log_rates = np.log(np.asarray(base.rates, np.float32))
    return Learned(params, np.asarray(base.shift, np.float32), log_rates)


def to_pixels(values: Any) -> Any:
    """Uint8 pixels (..., n, 3) as float32 (..., 3, n) in [-1, 1], in JAX."""
    return jnp.swapaxes(values, -1, -2).astype(jnp.float32) / 127.5 - 1


@cache
def _program(platform: str):
    options = fit.compiler_options(platform)
    return jax.jit(_fit_group, static_argnums=(0, 1), compiler_options=options)


def _fit_group(net, inner_steps, learned, coords, pixels, weights):
    def one(args):
        own_pixels, own_weights = args
        return fit_latent(net, learned, inner_steps, coords, to_pixels(own_pixels), own_weights)

    # A core's cache holds one patch; an accelerator takes all at once.
    at_once = None if jax.default_backend() == "cpu" else GROUP
    return jax.lax.map(one, (pixels, weights), batch_size=at_once)
