"""Laws of the quantiser, of its ladder of steps, and of its differentiable stand-ins."""

from __future__ import annotations

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inrjax import quantize, trees

indices = st.integers(0, quantize.NUM_STEPS - 1)
values = st.floats(-1e3, 1e3, allow_nan=False)


@given(indices)
def test_the_ladder_is_exact(index):
    step = quantize.step_size(index)
    # Eight times as many octaves: the power is exact, the root of two is rounded once.
    exact = Fraction(2) ** (index - quantize.NUM_STEPS + 64)
    assert abs(Fraction(step) ** 8 / exact - 1) < Fraction(8, 2**53)
    if index >= 8:
        assert step == 2 * quantize.step_size(index - 8)


def test_the_ladder_spans_what_it_says_and_rises():
    steps = [quantize.step_size(i) for i in range(quantize.NUM_STEPS)]
    assert steps[0] == 2.0**-24
    assert steps[192] == 1.0
    assert steps[-1] == pytest.approx(2**7.875, rel=1e-15)
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("index", [-1, 256, 1000])
def test_a_step_off_the_ladder_is_refused(index):
    with pytest.raises(ValueError, match=r"0\.\.255"):
        quantize.step_size(index)


@given(st.floats(-24, 7.875))
def test_nearest_index_is_within_a_sixteenth_of_an_octave(exponent):
    step = 2.0**exponent
    ratio = quantize.step_size(quantize.nearest_index(step)) / step
    assert 2 ** (-1 / 16) * (1 - 1e-12) <= ratio <= 2 ** (1 / 16) * (1 + 1e-12)


@given(indices)
def test_nearest_index_inverts_step_size(index):
    assert quantize.nearest_index(quantize.step_size(index)) == index


def test_nearest_index_stays_on_the_ladder():
    assert quantize.nearest_index(1e-30) == 0
    assert quantize.nearest_index(1e30) == quantize.NUM_STEPS - 1


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), float("-inf")])
def test_a_step_that_is_no_positive_number_is_refused(step):
    with pytest.raises(ValueError, match="positive"):
        quantize.nearest_index(step)


@given(st.lists(values, min_size=1, max_size=20), st.integers(8 * 4, 255))
def test_the_error_is_at_most_half_a_step(numbers, index):
    params = {"layer": {"weight": np.array(numbers)}}
    quantized = quantize.uniform(params, {"layer": {"weight": index}})
    error = quantize.dequantize(quantized)["layer"]["weight"] - np.array(numbers)
    half = quantize.step_size(index) / 2
    # The product and the quotient round to float64 once each.
    assert np.all(np.abs(error) <= half + 4e-16 * np.abs(numbers))


@given(st.lists(st.integers(-(1 << 30), 1 << 30), min_size=1, max_size=20), indices)
def test_uniform_gives_back_the_symbols_of_dequantized_params(numbers, index):
    quantized = quantize.Quantized({"a": np.array(numbers, np.int32)}, {"a": index})
    again = quantize.uniform(quantize.dequantize(quantized), {"a": index})
    np.testing.assert_array_equal(again.symbols["a"], numbers)
    assert again.symbols["a"].dtype == np.int32
    np.testing.assert_array_equal(
        quantize.dequantize(again)["a"], quantize.dequantize(quantized)["a"]
    )


def test_every_array_has_its_own_step_and_keeps_its_shape():
    params = {"b": {"y": np.ones((2, 3)), "x": np.full(4, -2.0)}, "a": np.float64(0.3)}
    grid = {"a": 168, "b": {"x": 192, "y": 184}}
    quantized = quantize.uniform(params, grid)
    assert quantized.grid == grid
    got = dict(trees.leaves(quantized.symbols))
    assert {path: np.shape(leaf) for path, leaf in got.items()} == {
        "a": (),
        "b/x": (4,),
        "b/y": (2, 3),
    }
    np.testing.assert_array_equal(got["b/x"], -2)
    np.testing.assert_array_equal(got["b/y"], 2)
    assert got["a"] == round(0.3 * 8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**31])
def test_what_cannot_be_quantised_is_refused_by_path(bad):
    with pytest.raises(ValueError, match="net/weight"):
        quantize.uniform({"net": {"weight": np.array([0, bad])}}, {"net": {"weight": 192}})


# ---------------------------------------------------------------------------- stand-ins


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=10))
@settings(deadline=None, max_examples=30)
def test_straight_through_rounds_and_has_derivative_one(numbers):
    x = jnp.asarray(numbers, jnp.float32)
    np.testing.assert_array_equal(quantize.straight_through(x), np.rint(np.asarray(x)))
    slope = jax.grad(lambda x: jnp.sum(3 * quantize.straight_through(x)))(x)
    np.testing.assert_array_equal(slope, 3)


def test_noise_is_uniform_on_half_a_step_each_way():
    noise = np.asarray(quantize.add_noise(jnp.zeros(100_000), jax.random.key(0)))
    assert noise.min() >= -0.5
    assert noise.max() < 0.5
    assert abs(noise.mean()) < 5 * (1 / 12 / noise.size) ** 0.5
    assert noise.var() == pytest.approx(1 / 12, rel=0.02)
    assert not np.array_equal(noise, quantize.add_noise(jnp.zeros(100_000), jax.random.key(1)))


def test_noise_has_derivative_one():
    x = jnp.linspace(-4, 4, 9)
    slope = jax.grad(lambda x: jnp.sum(quantize.add_noise(x, jax.random.key(0))))(x)
    np.testing.assert_array_equal(slope, 1)


# ---------------------------------------------------------------------------- a few bits a param

NUM_BITS = st.integers(2, 8)
arrays = st.lists(st.floats(-100, 100, allow_nan=False), min_size=1, max_size=40)


def squared_error(numbers: np.ndarray, index: int, num_bits: int) -> float:
    step = quantize.step_size(index)
    return float(np.sum((step * quantize.clipped(numbers, step, num_bits) - numbers) ** 2))


@given(arrays, NUM_BITS)
@settings(deadline=None)
def test_no_larger_step_and_no_other_tried_one_has_less_error(numbers, num_bits):
    numbers = np.array(numbers)
    index = quantize.choose_grid({"a": numbers}, num_bits)["a"]
    own = squared_error(numbers, index, num_bits)
    largest = np.abs(numbers).max()
    highest = quantize.symbol_range(num_bits)[1]
    if largest > 1e-5:
        whole = quantize.nearest_index(largest / highest)
        assert whole - 26 <= index <= whole + 1
        for other in range(max(0, whole - 20), whole + 1):
            assert own <= squared_error(numbers, other, num_bits) * (1 + 1e-9)


@given(arrays, NUM_BITS)
@settings(deadline=None)
def test_clipped_symbols_are_in_range_and_nearest(numbers, num_bits):
    numbers, (low, high) = np.array(numbers), quantize.symbol_range(num_bits)
    assert high - low == (1 << num_bits) - 1 and low == -high - 1
    symbols = quantize.clipped(numbers, 0.5, num_bits)
    assert symbols.min() >= low and symbols.max() <= high
    within = (symbols > low) & (symbols < high)
    assert np.all(np.abs(numbers - 0.5 * symbols)[within] <= 0.25)


def test_steps_follow_the_scale_of_each_array():
    numbers = np.random.default_rng(0).normal(0, 1, (30, 20))
    tree = {"x": {"a": numbers, "b": numbers / 4, "zero": np.zeros(3)}}
    grid = quantize.choose_grid(tree, 7)["x"]
    assert grid["a"] - grid["b"] == 16  # two octaves
    np.testing.assert_array_equal(
        quantize.clipped(np.zeros(3), quantize.step_size(grid["zero"]), 7), 0
    )
    # At 7 bits, rounding costs less than a thousandth of a normal variable's power.
    assert squared_error(numbers, grid["a"], 7) < 1e-3 * np.sum(numbers**2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_step_is_chosen_for_what_is_not_finite(bad):
    with pytest.raises(ValueError, match="x/a"):
        quantize.choose_grid({"x": {"a": np.array([1.0, bad])}}, 8)


# ---------------------------------------------------------------------------- AdaRound


def test_rounding_starts_where_no_rounding_is():
    fractions = jnp.linspace(0, 0.999, 101)
    v = quantize.rounding_start(fractions)
    np.testing.assert_allclose(quantize.soft_rounding(v), fractions, atol=1e-6)
    np.testing.assert_array_equal(quantize.soft_rounding(v) >= 0.5, v >= 0)


def test_soft_rounding_reaches_down_and_up():
    v = jnp.linspace(-20, 20, 401)
    h = quantize.soft_rounding(v)
    assert float(h.min()) == 0 and float(h.max()) == 1 and np.all(np.diff(h) >= 0)


@pytest.mark.parametrize("beta", [2.0, 5.0, 20.0])
def test_the_penalty_is_that_of_the_paper_and_pushes_to_the_ends(beta):
    v = jnp.array([-3.0, -1.0, -0.2, 0.2, 1.0, 3.0])
    h = np.asarray(quantize.soft_rounding(v), np.float64)
    penalty, slopes = jax.value_and_grad(quantize.rounding_penalty)(v, beta)
    assert float(penalty) == pytest.approx(np.sum(1 - np.abs(2 * h - 1) ** beta), rel=1e-5)
    # Downhill is away from the middle; beyond the ends there is no slope.
    np.testing.assert_array_equal(np.sign(slopes), [0, 1, 1, -1, -1, 0])
    assert float(quantize.rounding_penalty(jnp.array([-9.0, 9.0]), beta)) == 0


def test_a_larger_beta_leaves_the_undecided_alone():
    slope = jax.grad(quantize.rounding_penalty)
    undecided = jnp.array([0.3])
    assert abs(float(slope(undecided, 20.0)[0])) < 1e-3 < abs(float(slope(undecided, 2.0)[0]))
    assert np.all(np.isfinite(slope(jnp.zeros(1), 2.0)))


def test_beta_falls_along_a_cosine():
    betas = [float(quantize.rounding_beta(jnp.asarray(s), 20.0, 2.0)) for s in (0, 0.25, 0.5, 1)]
    np.testing.assert_allclose(betas, [20, 2 + 9 * (1 + 0.5**0.5), 11, 2], rtol=1e-6)
