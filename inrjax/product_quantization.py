"""Product quantisation of a layer's weights: a codebook of short pieces of rows, and an index each.

Stock et al. 2020, "And the bit goes down: revisiting the quantization of neural networks"
(arXiv:1907.05686), section 3: k-means that minimises the error of the layer's output for the
inputs it really sees, not the error of the weights. Host arrays alone, no JAX.

A weight (out, in) is cut along its inputs into pieces of ``block`` weights: (out, blocks, block).
The inputs of a block have a second moment, its Gram matrix G (block, block); a piece v that is
replaced by a centroid c costs (v - c)' G (v - c), the mean squared error that it alone puts on the
output. Errors of different blocks are taken as uncorrelated, as in the paper; its one Gram matrix
for all blocks is here one for each, so that columns of little effect may be coarse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from inrjax import trees

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int64, Integer, Shaped

ROUNDS = 30
"""Rounds of k-means at most; it ends earlier where no index changes."""


class Product(NamedTuple):
    """``centroids`` float64 (num_centroids, block), ``indices`` int64 (out, blocks)."""

    centroids: np.ndarray
    indices: np.ndarray


def num_blocks(in_dim: int, block: int) -> int:
    """Pieces of a row of ``in_dim`` weights; the last is filled up with zeros."""
    return -(-in_dim // block)


def cut(
    weight: Float[np.ndarray, "out columns"], block: int
) -> Float64[np.ndarray, "out -(-columns//{block}) {block}"]:
    """A weight (out, in) as pieces, float64 (out, blocks, block)."""
    out, in_dim = weight.shape
    filled = np.zeros((out, num_blocks(in_dim, block) * block))
    filled[:, :in_dim] = weight
    return filled.reshape(out, -1, block)


def join(pieces: Shaped[Any, "out blocks block"], in_dim: int) -> Shaped[Any, "out {in_dim}"]:
    """The inverse of `cut`: pieces (out, blocks, block) as a weight (out, in_dim). Host or JAX
    arrays."""
    return pieces.reshape(len(pieces), -1)[:, :in_dim]


def gram(
    inputs: Float[np.ndarray, "columns n"], block: int
) -> Float64[np.ndarray, "-(-columns//{block}) {block} {block}"]:
    """The second moments of each block of a layer's inputs (in, n): float64 (blocks, block, block).

    Inputs that only fill up the last block count as 0.
    """
    in_dim, count = inputs.shape
    filled = np.zeros((num_blocks(in_dim, block) * block, count))
    filled[:in_dim] = inputs
    blocks = filled.reshape(-1, block, count)
    return blocks @ blocks.transpose(0, 2, 1) / count


def objective(
    pieces: Float[np.ndarray, "out blocks block"],
    grams: Float[np.ndarray, "blocks block block"],
    product: Product,
) -> float:
    """The sum over all pieces (out, blocks, block) of (v - c)' G (v - c) (the paper's eq. 2)."""
    return float(_costs(pieces - product.centroids[product.indices], grams).sum())


def assign(
    pieces: Float[np.ndarray, "out blocks block"],
    grams: Float[np.ndarray, "blocks block block"],
    centroids: Float[np.ndarray, "num_centroids block"],
) -> Int64[np.ndarray, "out blocks"]:
    """The index of the cheapest centroid of each piece, int64 (out, blocks); ties to the lowest."""
    # v' G v is the same for all centroids.
    cross = np.einsum("obj,bij->obi", pieces, grams) @ centroids.T
    own = np.einsum("ki,bij,kj->bk", centroids, grams, centroids)
    return np.argmin(own - 2 * cross, axis=-1)


def update(
    pieces: Float[np.ndarray, "out blocks block"],
    grams: Float[np.ndarray, "blocks block block"],
    indices: Integer[np.ndarray, "out blocks"],
    num_centroids: int,
) -> Float64[np.ndarray, "{num_centroids} block"]:
    """The centroids (num_centroids, block) that minimise `objective` under these indices.

    Each is the Gram-weighted mean of its pieces; where the Gram matrices leave it free, the plain
    mean. One that has no piece becomes the piece that costs most under the others, so that the
    objective falls there too when indices are assigned again.
    """
    block = pieces.shape[-1]
    flat, counts = indices.ravel(), np.bincount(indices.ravel(), minlength=num_centroids)
    mean = _sums(pieces.reshape(-1, block), flat, num_centroids)
    mean /= np.maximum(counts, 1)[:, None]
    all_grams = np.broadcast_to(grams, (*indices.shape, block, block)).reshape(-1, block, block)
    total = _sums(all_grams, flat, num_centroids)
    away = np.einsum("obj,bij->obi", pieces - mean[indices], grams).reshape(-1, block)
    inverse = np.linalg.pinv(total, rcond=1e-10, hermitian=True)
    centroids = mean + np.einsum("kij,kj->ki", inverse, _sums(away, flat, num_centroids))
    return _refill(pieces, grams, Product(centroids, indices), counts)


def kmeans(
    pieces: Float[np.ndarray, "out blocks block"],
    grams: Float[np.ndarray, "blocks block block"],
    num_centroids: int,
    rng: np.random.Generator,
    rounds: int = ROUNDS,
) -> Product:
    """Centroids and indices of few costs: k-means++ starts, then `assign` and `update` in turn.

    Args:
      pieces: (out, blocks, block). grams: (blocks, block, block), symmetric, not negative.
      num_centroids: >= 1. rng: of the starts. rounds: of both steps, at most.

    Raises:
      ValueError: no centroids, or a value that is not finite.
    """
    if num_centroids < 1:
        raise ValueError(f"got {num_centroids} centroids, expected at least 1")
    if not (np.isfinite(pieces).all() and np.isfinite(grams).all()):
        raise ValueError("got weights or inputs that are not finite: the fit has diverged")
    centroids = _starts(pieces, grams, num_centroids, rng)
    indices = assign(pieces, grams, centroids)
    for _ in range(rounds):
        centroids = update(pieces, grams, indices, num_centroids)
        again = assign(pieces, grams, centroids)
        if np.array_equal(again, indices):
            break
        indices = again
    return Product(centroids, indices)


def assemble(
    values: Mapping[str, Any], indices: Mapping[str, Any], mean: Mapping[str, Any]
) -> dict[str, Any]:
    """The params of a net: ``mean`` plus what the values stand for. Host or JAX arrays.

    Args:
      values: nested dict: the centroids (num_centroids, block) at the paths of ``indices``, else
        the tensor itself. indices: path -> int (out, blocks). mean: nested dict of the params.
    """
    leaves = dict(trees.leaves(values))

    def distance(path: str, shape: tuple[int, ...]) -> Any:
        return join(leaves[path][indices[path]], shape[1]) if path in indices else leaves[path]

    return trees.from_leaves(
        {path: leaf + distance(path, leaf.shape) for path, leaf in trees.leaves(mean)}
    )


def _costs(
    errors: Float[np.ndarray, "out blocks block"], grams: Float[np.ndarray, "blocks block block"]
) -> Float64[np.ndarray, "out blocks"]:
    """e' G e of errors (out, blocks, block), as (out, blocks)."""
    return np.einsum("obi,bij,obj->ob", errors, grams, errors, optimize=True)


def _sums(values: np.ndarray, indices: np.ndarray, num_centroids: int) -> np.ndarray:
    """The sum of the values (n, ...) of each index (n,): (num_centroids, ...)."""
    total = np.zeros((num_centroids, *values.shape[1:]))
    np.add.at(total, indices, values)
    return total


def _refill(
    pieces: np.ndarray, grams: np.ndarray, product: Product, counts: np.ndarray
) -> np.ndarray:
    empty = np.flatnonzero(counts == 0)
    if not len(empty):
        return product.centroids
    costs = _costs(pieces - product.centroids[product.indices], grams).ravel()
    worst = np.argsort(-costs, kind="stable")
    centroids = product.centroids.copy()
    # With more centroids than pieces, the last ones have no use: any piece will do.
    centroids[empty] = pieces.reshape(-1, pieces.shape[-1])[
        worst[np.arange(len(empty)) % len(worst)]
    ]
    return centroids


def _starts(
    pieces: np.ndarray, grams: np.ndarray, num_centroids: int, rng: np.random.Generator
) -> np.ndarray:
    """Pieces drawn with a chance that is their cost under those drawn before (k-means++, Arthur and
    Vassilvitskii 2007)."""
    flat = pieces.reshape(-1, pieces.shape[-1])
    chosen = [int(rng.integers(len(flat)))]
    costs = np.full(len(flat), np.inf)
    for _ in range(num_centroids - 1):
        costs = np.minimum(costs, _costs(pieces - flat[chosen[-1]], grams).ravel())
        ends = np.cumsum(np.maximum(costs, 0))
        if ends[-1] > 0:
            place = np.searchsorted(ends, rng.random() * ends[-1], side="right")
            chosen.append(min(int(place), len(flat) - 1))
        else:  # every piece has its own already
            chosen.append(chosen[0])
    return flat[chosen]
