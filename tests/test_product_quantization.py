"""Product quantisation: k-means never loses, means are minimisers, enough centroids are exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inrjax import product_quantization as pq

BLOCKS = st.integers(1, 5)


@st.composite
def layers(draw: st.DrawFn):
    """Pieces, Gram matrices and a generator: inputs of full rank, of low rank, and constant."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    out, in_dim, block = draw(st.integers(1, 9)), draw(st.integers(1, 11)), draw(BLOCKS)
    inputs = rng.standard_normal((in_dim, draw(st.sampled_from([1, 3, 50]))))
    inputs *= draw(st.sampled_from([1.0, 1e-3])) * rng.exponential(size=(in_dim, 1))
    weight = rng.standard_normal((out, in_dim)) * rng.exponential(size=(1, in_dim))
    return weight, inputs, block, rng


def laid_out(layer):
    weight, inputs, block, rng = layer
    return pq.cut(weight, block), pq.gram(inputs, block), rng


@given(layers())
def test_cut_and_join_are_inverse(layer):
    weight, _, block, _ = layer
    pieces = pq.cut(weight, block)
    assert pieces.shape == (len(weight), pq.num_blocks(weight.shape[1], block), block)
    np.testing.assert_array_equal(pq.join(pieces, weight.shape[1]), weight)


@given(layers())
def test_the_objective_is_the_error_on_the_output_of_each_piece_alone(layer):
    weight, inputs, block, rng = layer
    pieces, grams, _ = laid_out(layer)
    indices = rng.integers(3, size=pieces.shape[:2])
    product = pq.Product(rng.standard_normal((3, block)), indices)
    error = weight - pq.join(product.centroids[indices], weight.shape[1])
    starts = range(0, weight.shape[1], block)
    outputs = [error[:, i : i + block] @ inputs[i : i + block] for i in starts]
    expected = sum((output**2).mean(axis=1).sum() for output in outputs)
    assert pq.objective(pieces, grams, product) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(layers(), st.integers(1, 12))
@settings(deadline=None)
def test_neither_step_ever_raises_the_objective(layer, num_centroids):
    pieces, grams, rng = laid_out(layer)
    indices = rng.integers(num_centroids, size=pieces.shape[:2])
    product = pq.Product(rng.standard_normal((num_centroids, pieces.shape[-1])), indices)
    last = pq.objective(pieces, grams, product)
    slack = 1e-9 * (last + pq.objective(pieces, grams, product._replace(indices=0 * indices)))
    for _ in range(6):
        centroids = pq.update(pieces, grams, product.indices, num_centroids)
        moved = pq.objective(pieces, grams, pq.Product(centroids, product.indices))
        assert moved <= last + slack
        product = pq.Product(centroids, pq.assign(pieces, grams, centroids))
        last = pq.objective(pieces, grams, product)
        assert last <= moved + slack


@given(layers())
@settings(deadline=None)
def test_no_other_centroids_are_better_for_these_indices(layer):
    pieces, grams, rng = laid_out(layer)
    indices = rng.integers(3, size=pieces.shape[:2])
    centroids = pq.update(pieces, grams, indices, 3)
    best = pq.objective(pieces, grams, pq.Product(centroids, indices))
    scale = np.abs(pieces).max()
    for size in (1.0, 1e-3):
        moved = centroids + size * scale * rng.standard_normal(centroids.shape)
        other = pq.objective(pieces, grams, pq.Product(moved, indices))
        assert best <= other * (1 + 1e-9) + 1e-12


def test_with_equal_inputs_the_centroid_is_the_plain_mean():
    rng = np.random.default_rng(0)
    pieces, grams = rng.standard_normal((6, 4, 3)), np.broadcast_to(np.eye(3), (4, 3, 3))
    indices = rng.integers(2, size=(6, 4))
    expected = [pieces[indices == i].mean(axis=0) for i in range(2)]
    np.testing.assert_allclose(pq.update(pieces, grams, indices, 2), expected, rtol=1e-12)


def test_a_piece_gets_its_cheapest_centroid():
    rng = np.random.default_rng(1)
    pieces, centroids = rng.standard_normal((5, 4, 2)), rng.standard_normal((7, 2))
    grams = pq.gram(rng.standard_normal((8, 30)), 2)
    costs = [
        [[(v - c) @ g @ (v - c) for c in centroids] for v, g in zip(row, grams, strict=True)]
        for row in pieces
    ]
    np.testing.assert_array_equal(pq.assign(pieces, grams, centroids), np.argmin(costs, axis=-1))


@given(layers())
@settings(deadline=None)
def test_as_many_centroids_as_pieces_reproduce_the_outputs(layer):
    pieces, grams, rng = laid_out(layer)
    product = pq.kmeans(pieces, grams, pieces.shape[0] * pieces.shape[1], rng)
    zero = pq.Product(np.zeros((1, pieces.shape[-1])), np.zeros(pieces.shape[:2], np.int64))
    assert pq.objective(pieces, grams, product) <= 1e-12 * pq.objective(pieces, grams, zero)


def test_as_many_centroids_as_pieces_reproduce_the_weights():
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((5, 7))
    pieces = pq.cut(weight, 3)
    grams = pq.gram(rng.standard_normal((7, 40)), 3) + 1e-3 * np.eye(3)
    product = pq.kmeans(pieces, grams, 15, rng)
    again = pq.join(product.centroids[product.indices], 7)
    np.testing.assert_allclose(again, weight, atol=1e-12)


def test_more_centroids_cost_less_and_inputs_count():
    """Where columns matter by a factor of 30, k-means on outputs beats k-means on weights."""
    rng = np.random.default_rng(3)
    weight, spread = rng.standard_normal((40, 20)), np.repeat(np.geomspace(0.03, 1, 10), 2)
    pieces, grams = pq.cut(weight, 2), pq.gram(spread[:, None] * rng.standard_normal((20, 500)), 2)
    blind = np.broadcast_to(np.eye(2), grams.shape)
    costs = {}
    for count in (4, 16, 64):
        own, other = (pq.kmeans(pieces, g, count, np.random.default_rng(0)) for g in (grams, blind))
        costs[count] = pq.objective(pieces, grams, own)
        assert costs[count] < pq.objective(pieces, grams, other)
    assert costs[4] > costs[16] > costs[64] > 0


def test_the_seed_decides():
    rng = np.random.default_rng(4)
    pieces, grams = rng.standard_normal((9, 8, 2)), pq.gram(rng.standard_normal((16, 50)), 2)
    one, again, other = (
        pq.kmeans(pieces, grams, 8, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one.centroids, again.centroids)
    assert not np.array_equal(one.centroids, other.centroids)


def test_what_cannot_be_is_refused():
    pieces, grams = np.ones((2, 2, 2)), np.broadcast_to(np.eye(2), (2, 2, 2))
    with pytest.raises(ValueError, match="expected at least 1"):
        pq.kmeans(pieces, grams, 0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="not finite"):
        pq.kmeans(np.full_like(pieces, np.nan), grams, 1, np.random.default_rng(0))
