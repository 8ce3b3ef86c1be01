"""Laws of the symbol models and of their range coder, beside a second decoder in plain Python."""

from __future__ import annotations

import bisect
import subprocess
import sys
import time
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import laplace

from inrjax import entropy
from inrjax.entropy import NUM_LEVELS, PRECISION, Laplace
from inrjax.types import BitstreamError

LIMIT = 1 << 30
levels = st.integers(0, NUM_LEVELS - 1)
symbols = st.one_of(
    st.integers(-3, 3),
    st.integers(-300, 300),
    st.integers(-LIMIT, LIMIT),
    st.sampled_from([LIMIT, -LIMIT, 0]),
)
coded_lists = st.lists(st.tuples(symbols, levels), max_size=60)


def model(values) -> Laplace:
    return Laplace(np.asarray(values, np.int64).reshape(-1))


def sample(level_list: np.ndarray, seed: int, spread: float = 1.0) -> np.ndarray:
    """Symbols of the model itself, ``spread`` times as wide."""
    rng = np.random.default_rng(seed)
    return np.rint(rng.laplace(0, spread * entropy.scale(level_list))).astype(np.int64)


# ---------------------------------------------------------------------------- a second decoder


class ReferenceDecoder:
    """The range decoder that docs/bitstream.md describes, in integers of any size."""

    def __init__(self, data: bytes):
        padded = data + bytes(-len(data) % 4)
        words = (padded[i : i + 4] for i in range(0, len(padded), 4))
        self.words = (int.from_bytes(word, "big") for word in words)
        self.ahead, self.span = self.word() << 32 | self.word(), (1 << 64) - 1

    def word(self) -> int:
        return next(self.words, 0)

    def decode(self, table: list[int]) -> int:
        """The index of the next symbol under counts; ``ahead`` is the point minus the lower end."""
        edges = [0]
        for count in table:
            edges.append(edges[-1] + count)
        unit = self.span >> PRECISION
        quantile = self.ahead // unit
        if quantile >= 1 << PRECISION:
            raise BitstreamError("no symbol")
        index = bisect.bisect_right(edges, quantile) - 1
        self.ahead -= unit * edges[index]
        self.span = unit * table[index]
        if self.span < 1 << 32:
            self.span <<= 32
            self.ahead = self.ahead << 32 | self.word()
        return index


def reference_decode(data: bytes, level_list: list[int]) -> list[int]:
    """What `entropy.decode` does, from the description in docs/bitstream.md."""
    decoder, out, escaped = ReferenceDecoder(data), [0] * len(level_list), []
    for level in sorted(set(level_list)):
        table = [int(count) for count in entropy.counts(level)]
        largest = len(table) // 2 - 1
        for place in (i for i, own in enumerate(level_list) if own == level):
            out[place] = decoder.decode(table) - largest
            if out[place] > largest:
                escaped.append((place, largest))
    coin = [1 << PRECISION - 1] * 2
    for place, largest in escaped:
        sign = -1 if decoder.decode(coin) else 1
        length = 1
        while not decoder.decode(coin):
            length += 1
            if length > 31:
                raise BitstreamError("too long")
        excess = 1
        for _ in range(length - 1):
            excess = 2 * excess + decoder.decode(coin)
        out[place] = sign * (largest + excess)
    return out


def outcome(decode, *args) -> list[int] | None:
    """The decoded symbols; None where they are refused."""
    try:
        return [int(symbol) for symbol in decode(*args)]
    except BitstreamError:
        return None


# ---------------------------------------------------------------------------- round trips


@given(coded_lists)
@example([(1170, 42)])  # without its last byte, this one lies where no symbol does
@example([(-16, 5)])
@example([(LIMIT, 0), (-LIMIT, 63)])
@settings(deadline=None, max_examples=200)
def test_round_trip_of_any_symbols_under_any_levels(pairs):
    values, own = np.array([p[0] for p in pairs], np.int64), model([p[1] for p in pairs])
    data = entropy.encode(values, own)
    decoded = entropy.decode(data, own, len(pairs))
    assert decoded.dtype == np.int64
    np.testing.assert_array_equal(decoded, values)
    assert reference_decode(data, own.levels.tolist()) == values.tolist()
    # From above this holds for every list: 32 bits in flight, and whole bytes.
    assert 8 * len(data) <= 1.005 * entropy.cost(values, own) + 64


def test_short_lists_encode_whatever_their_last_bytes_are():
    rng = np.random.default_rng(0)
    for _ in range(1500):
        own = model(rng.integers(0, NUM_LEVELS, rng.integers(1, 4)))
        signs = rng.choice([-1, 1], own.levels.size)
        values = signs * (2 ** rng.uniform(0, 30, own.levels.size)).astype(np.int64)
        data = entropy.encode(values, own)
        np.testing.assert_array_equal(entropy.decode(data, own, values.size), values)


@pytest.mark.parametrize("length", [0, 1, 2, 1000, 20_000])
@pytest.mark.parametrize("spread", [0.5, 1.0, 4.0])
def test_length_is_near_the_ideal(length, spread):
    own = model(np.random.default_rng(length).integers(0, NUM_LEVELS, length))
    values = sample(own.levels, 1, spread)
    data = entropy.encode(values, own)
    np.testing.assert_array_equal(entropy.decode(data, own, length), values)
    ideal = entropy.cost(values, own)
    # Below the ideal only by trailing zero bytes, which a drawn list has few of.
    assert ideal - 32 <= 8 * len(data) <= 1.005 * ideal + 64


def test_no_byte_can_be_dropped():
    own = model([20, 30, 40, 0, 63])
    for seed in range(50):
        values = sample(own.levels, seed)
        data = entropy.encode(values, own)
        assert not data or outcome(entropy.decode, data[:-1], own, 5) != values.tolist()


def test_the_empty_list_takes_no_byte():
    assert entropy.encode(np.zeros(0, np.int64), model([])) == b""
    assert entropy.decode(b"", model([]), 0).shape == (0,)


def test_order_is_level_by_level_then_escapes():
    own = model([30, 10, 30, 10])
    grouped = model([10, 10, 30, 30])
    assert entropy.encode(np.array([1, 2, 3, 4]), own) == entropy.encode(
        np.array([2, 4, 1, 3]), grouped
    )


def test_bytes_are_those_of_format_version_1():
    values, own = np.array([0, -1, 3, 100, -5, 7]), model([8, 8, 20, 0, 63, 33])
    assert entropy.encode(values, own).hex() == GOLDEN


GOLDEN = "ffffff1ebb517d3073d3e424"


def test_bytes_are_the_same_in_a_fresh_process():
    script = (
        "import sys, numpy as np; from inrjax import entropy;"
        "r = np.random.default_rng(3); v = r.integers(0, 64, 500);"
        "s = r.integers(-40, 41, 500); m = entropy.Laplace(v);"
        "d = entropy.encode(s, m); assert (entropy.decode(d, m, 500) == s).all();"
        "assert 'jax' not in sys.modules; print(d.hex())"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    rng = np.random.default_rng(3)
    own = model(rng.integers(0, 64, 500))
    assert entropy.encode(rng.integers(-40, 41, 500), own).hex() == run.stdout.strip()


# ---------------------------------------------------------------------------- counts


def test_the_constants_are_what_the_exponential_says():
    with localcontext() as context:
        context.prec = 60
        for i, constant in enumerate(entropy._TOP_OCTAVE):
            b = Decimal(2) ** (Decimal(44 + i) / 4)
            exact = Decimal(2) ** 62 * (-1 / (2 * b)).exp()
            assert constant == int(exact.to_integral_value(rounding=ROUND_HALF_EVEN))
        exact = Decimal(2) ** 62 * (Decimal(-1) / entropy.LOGIT_UNIT).exp()
        assert int(exact.to_integral_value(rounding=ROUND_HALF_EVEN)) == entropy._SIXTEENTH


@pytest.mark.parametrize("level", range(NUM_LEVELS))
def test_counts_are_the_laplace_mass(level):
    table = entropy.counts(level)
    largest = len(table) // 2 - 1
    inner, escape = table[:-1], table[-1]
    assert len(table) == 2 * largest + 2
    assert table.sum() == 1 << PRECISION
    assert table.min() >= 1
    np.testing.assert_array_equal(inner, inner[::-1])
    k = np.arange(1, largest + 1)
    b = float(entropy.scale(level))
    mass = 2**PRECISION * (laplace.sf(k - 0.5, scale=b) - laplace.sf(k + 0.5, scale=b))
    assert np.all(np.abs(table[largest + 1 : -1] - mass) <= 1.5)
    # The rarest symbol of its own has a count; the next one would have none.
    tail = 2**PRECISION * 2 * laplace.sf(largest + 0.5, scale=b)
    assert abs(escape - tail) <= 1.5
    # What rounding down leaves goes to 0: at most one count for each of the others.
    rest = 2**PRECISION * (1 - 2 * laplace.sf(0.5, scale=b))
    assert -2 <= table[largest] - rest <= 2 * largest + 2


def counts_by_the_book(level: int) -> list[int]:
    """As docs/bitstream.md states them."""
    q = (
        4610560255948314624,
        4610739350409155263,
        4610889955683844661,
        4611016602927045598,
    )[level % 4]
    for _ in range((63 - level) // 4):
        q = q * q // 2**62
    r, x, tails = q * q // 2**62, q, [q // 2**38]
    while len(tails) < 2 or tails[-2] - tails[-1] >= 2:
        x = x * r // 2**62
        tails.append(x // 2**38)
    sides = [(a - b) // 2 for a, b in pairwise(tails[:-1])]
    escape = max(1, tails[-2])
    return [*sides[::-1], 2**24 - 2 * sum(sides) - escape, *sides, escape]


def test_counts_are_exactly_the_documented_ones():
    for level in range(NUM_LEVELS):
        assert entropy.counts(level).tolist() == counts_by_the_book(level)


@pytest.mark.parametrize("level", range(0, NUM_LEVELS, 7))
def test_the_library_uses_exactly_these_counts(level):
    """Points at the edges of symbols, and one below: any other table would move one of them."""
    edges = np.cumsum([0, *entropy.counts(level)[:-1]])
    largest = len(edges) // 2 - 1
    unit = ((1 << 64) - 1) >> PRECISION
    rng = np.random.default_rng(level)
    chosen = {0, len(edges) - 1, largest, *rng.integers(0, len(edges), 60).tolist()}
    for index in chosen:
        point = int(edges[index]) * unit
        first, escape = index - largest, index == len(edges) - 1
        at_edge = outcome(entropy.decode, point.to_bytes(8, "big"), model([level]), 1)
        assert (at_edge is None or abs(at_edge[0]) > largest) if escape else at_edge == [first]
        if index:
            below = outcome(entropy.decode, (point - 1).to_bytes(8, "big"), model([level]), 1)
            assert below == [first - 1]


@pytest.mark.parametrize("level, symbol", [(0, 0), (8, 1), (30, 5), (50, -200), (63, 26_000)])
def test_a_long_run_of_one_symbol_costs_what_its_count_says(level, symbol):
    own, values = model(np.full(40_000, level)), np.full(40_000, symbol)
    coded, ideal = 8 * len(entropy.encode(values, own)), entropy.cost(values, own)
    assert abs(coded - ideal) <= 1e-4 * ideal + 64


# ---------------------------------------------------------------------------- bits, for losses


def exact_bits(symbol, b):
    """float64; near 0 from the distribution function of another library."""
    magnitude = np.abs(symbol)
    inside = laplace.cdf(magnitude + 0.5, scale=b) - laplace.cdf(magnitude - 0.5, scale=b)
    with np.errstate(divide="ignore"):
        log_tail = (0.5 - np.maximum(magnitude, 0.5)) / b + np.log(-np.expm1(-1 / b) / 2)
        return -np.where(magnitude < 0.5, np.log(inside), log_tail) / np.log(2)


def test_bits_are_minus_log2_of_the_mass():
    symbol = np.concatenate([np.linspace(-3, 3, 241), [-1e3, 20.25, 77.0, 5e4]])[:, None]
    b = entropy.scale(np.arange(0, NUM_LEVELS, 3))[None]
    got = np.asarray(entropy.bits(jnp.asarray(symbol, jnp.float32), jnp.asarray(b, jnp.float32)))
    np.testing.assert_allclose(got, exact_bits(symbol, b), rtol=2e-5, atol=2e-6)


def test_bits_have_the_derivatives_of_the_mass():
    points = np.array([-2.7, -0.9, -0.3, 0.2, 0.45, 0.55, 1.3, 8.0])[:, None]
    b = np.array([0.25, 0.7, 3.0, 40.0])[None]
    grad = jax.grad(lambda s, b: jnp.sum(entropy.bits(s, b)), argnums=(0, 1))
    by_symbol, by_scale = grad(*(jnp.broadcast_to(x, (8, 4)).astype("f4") for x in (points, b)))
    h = 1e-5
    want = (exact_bits(points + h, b) - exact_bits(points - h, b)) / (2 * h)
    np.testing.assert_allclose(by_symbol, want, rtol=2e-3, atol=2e-5)
    want = (exact_bits(points, b * (1 + h)) - exact_bits(points, b * (1 - h))) / (2 * h * b)
    np.testing.assert_allclose(by_scale, want, rtol=2e-3, atol=2e-5)


def test_bits_and_derivatives_are_finite_at_the_extremes():
    symbol = jnp.array([0, 1e-30, 0.49999997, 0.5, 0.50000006, 1, 1e4, 2.0**30, -(2.0**30)])
    b = jnp.asarray(entropy.scale(np.array([0, 1, 16, 62, 63])), jnp.float32)
    pairs = [x.ravel() for x in jnp.meshgrid(symbol, jnp.append(b, 1e6))]
    assert np.isfinite(entropy.bits(*pairs)).all()
    assert (np.asarray(entropy.bits(*pairs)) >= 0).all()
    for grad in jax.grad(lambda *x: jnp.sum(entropy.bits(*x)), argnums=(0, 1))(*pairs):
        assert np.isfinite(grad).all()


@given(levels, st.integers(0, 2**31))
@settings(deadline=None, max_examples=30)
def test_bits_agree_with_the_cost_of_what_is_coded(level, seed):
    own = model(np.full(400, level))
    values = sample(own.levels, seed)
    largest = len(entropy.counts(level)) // 2 - 1
    values = np.clip(values, -largest, largest)
    estimate = float(jnp.sum(entropy.bits(jnp.asarray(values, "f4"), float(entropy.scale(level)))))
    # Rare symbols have small counts, and these are rounded.
    assert estimate == pytest.approx(entropy.cost(values, own), rel=0.01, abs=0.5)


def test_cost_counts_escapes():
    own = model([0])
    escape = entropy.counts(0)[-1]
    largest = len(entropy.counts(0)) // 2 - 1
    expected = PRECISION - np.log2(escape) + 1 + 2 * 10 + 1  # sign, then gamma of 2^10
    assert entropy.cost(np.array([-(largest + 1024)]), own) == pytest.approx(expected)


# ---------------------------------------------------------------------------- bad data


@given(st.binary(max_size=40), st.lists(levels, max_size=40))
@settings(deadline=None, max_examples=200)
def test_any_bytes_give_symbols_or_a_bitstream_error(data, level_list):
    got = outcome(entropy.decode, data, model(level_list), len(level_list))
    assert got is None or len(got) == len(level_list)
    assert got == outcome(reference_decode, data, level_list)


def test_truncated_bytes_give_symbols_or_a_bitstream_error():
    own = model(np.random.default_rng(0).integers(0, NUM_LEVELS, 200))
    values = sample(own.levels, 2, 3.0)
    data = entropy.encode(values, own)
    for end in range(len(data)):
        got = outcome(entropy.decode, data[:end], own, 200)
        assert got is None or (len(got) == 200 and got != values.tolist())


@pytest.mark.parametrize("byte", [0, 0x55, 0xAA, 0xFE, 0xFF])
def test_hostile_bytes_end_in_bounded_time(byte):
    start = time.perf_counter()
    for level in (0, 31, 63):
        outcome(entropy.decode, bytes([byte]) * 20_000, model(np.full(5000, level)), 5000)
    # All symbols escaped, each as long as can be, is the slowest.
    own, values = model(np.zeros(500)), np.full(500, LIMIT)
    assert outcome(entropy.decode, entropy.encode(values, own), own, 500) == values.tolist()
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize(
    "values, level_list",
    [
        ([1, 2], [3]),
        ([0, 0], [1, 2, 3]),
        ([[1, 2]], [3, 3]),
        ([LIMIT + 1], [20]),
        ([-LIMIT - 1], [63]),
    ],
)
def test_bad_symbols_are_refused(values, level_list):
    with pytest.raises(ValueError, match="got"):
        entropy.encode(np.array(values), model(level_list))


def test_a_wrong_number_of_symbols_is_refused():
    with pytest.raises(ValueError, match="expected"):
        entropy.decode(b"\x00", model([1, 2]), 3)


# ---------------------------------------------------------------------------- a table that is sent

small = st.lists(st.integers(-128, 127), min_size=1, max_size=300)
narrow = st.lists(st.integers(-2, 2), min_size=1, max_size=300)


@given(st.one_of(small, narrow))
@example([0])
@example([-128])
@example([127] * 5)
@example([-128, 127])
@settings(deadline=None, max_examples=200)
def test_round_trip_of_any_symbols_under_their_own_table(numbers):
    values = np.array(numbers)
    table = entropy.unpack_table(entropy.pack_table(entropy.table_of(values)))
    data = entropy.encode_pooled(values, table)
    decoded = entropy.decode_pooled(data, table, len(values))
    assert decoded.dtype == np.int64
    np.testing.assert_array_equal(decoded, values)
    assert 8 * len(data) <= 1.005 * entropy.pooled_cost(values, table) + 64
    known, counts = entropy.table_counts(table)
    reference = ReferenceDecoder(data)
    assert [int(known[reference.decode(counts.tolist())]) for _ in numbers] == numbers


@given(st.one_of(small, narrow))
@settings(deadline=None, max_examples=200)
def test_a_table_costs_little_more_than_the_entropy(numbers):
    """A count off by up to a quarter of an octave costs at most 0.022 bits a symbol."""
    values = np.array(numbers)
    often = np.unique(values, return_counts=True)[1]
    empirical = -np.sum(often * np.log2(often / len(values)))
    # A list of one value gets a second one, whose share falls with the length of the list.
    spare = 1.1 * len(values) / (len(values) / 2**0.25 + 1) * 2 if len(often) == 1 else 0
    cost = entropy.pooled_cost(values, entropy.table_of(values))
    assert empirical - 1e-6 <= cost <= empirical + 0.022 * len(values) + 0.01 + spare


def random_table(seed: int) -> entropy.Table:
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, rng.choice([3, 12, entropy.MAX_TABLE_LEVEL + 1]), rng.integers(2, 257))
    levels[:2] = rng.integers(1, 4, 2)
    return entropy.Table(int(rng.integers(-128, 129 - len(levels))), levels)


@pytest.mark.parametrize("seed", range(40))
def test_counts_of_a_table_rise_with_its_levels_and_have_one_sum(seed):
    table = random_table(seed)
    values, counts = entropy.table_counts(table)
    levels = table.levels[values - table.lowest]
    assert counts.sum() == 1 << PRECISION and counts.min() >= 1
    assert np.all(np.diff(values) > 0) and np.count_nonzero(table.levels) == len(values)
    # The first of the highest level has what rounding left over: a count for each value at most.
    first = int(np.argmax(levels))
    order = np.argsort(np.delete(levels, first), kind="stable")
    others = np.delete(counts, first)[order]
    assert np.all(np.diff(others) >= 0)
    assert others.max() <= counts[first]
    alike = np.delete(counts, first)[np.delete(levels, first) == levels[first]]
    assert np.all(counts[first] - alike < len(values))
    # Half an octave a level, where a count is not held up by its least, 1.
    large = counts > 1000
    ratios = np.log2(counts[large] / counts[first]) - (levels[large] - levels[first]) / 2
    assert np.all(np.abs(ratios) < 0.01)


@pytest.mark.parametrize("seed", range(0, 40, 5))
def test_the_library_uses_exactly_these_counts_of_a_table(seed):
    """Points at the edges of symbols, and one below: any other table would move one of them."""
    table = random_table(seed)
    values, counts = entropy.table_counts(table)
    edges = np.cumsum([0, *counts[:-1]])
    unit = ((1 << 64) - 1) >> PRECISION
    for index in {0, len(edges) - 1, *range(0, len(edges), 7)}:
        point = int(edges[index]) * unit
        assert entropy.decode_pooled(point.to_bytes(8, "big"), table, 1) == [values[index]]
        if index:
            below = entropy.decode_pooled((point - 1).to_bytes(8, "big"), table, 1)
            assert below == [values[index - 1]]


@pytest.mark.parametrize("seed", range(20))
def test_a_table_has_one_packed_form(seed):
    table = random_table(seed)
    data = entropy.pack_table(table)
    found = entropy.unpack_table(data)
    assert found.lowest == table.lowest
    np.testing.assert_array_equal(found.levels, table.levels)
    for other in (data + b"\0", data[:-1], data[:2], b""):
        with pytest.raises(BitstreamError):
            entropy.unpack_table(other)


@given(st.binary(max_size=30))
@settings(deadline=None, max_examples=300)
@example(b"\0\1\xb4")
def test_any_bytes_give_a_table_or_a_bitstream_error(data):
    try:
        table = entropy.unpack_table(data)
    except BitstreamError:
        return
    assert entropy.pack_table(table) == data
    assert entropy.table_counts(table)[1].sum() == 1 << PRECISION


@pytest.mark.parametrize("byte", [0, 0x55, 0xFF])
def test_hostile_tables_and_payloads_end_in_bounded_time(byte):
    start = time.perf_counter()
    with pytest.raises(BitstreamError):
        entropy.unpack_table(bytes([byte]) * 5_000_000)
    outcome(entropy.decode_pooled, bytes([byte]) * 20_000, random_table(0), 100_000)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("numbers", [[], [128], [-129, 0]])
def test_a_table_of_no_or_large_symbols_is_refused(numbers):
    with pytest.raises(ValueError, match="expected"):
        entropy.table_of(np.array(numbers, np.int64))


@pytest.mark.parametrize("symbol", [-2, 1, 3, 9])
def test_a_symbol_that_is_not_in_the_table_is_refused(symbol):
    table = entropy.table_of(np.array([-1, 0, 2, 2]))
    with pytest.raises(ValueError, match="does not have"):
        entropy.encode_pooled(np.array([0, symbol]), table)


# ---------------------------------------------------------------------------- indices


@st.composite
def index_arrays(draw: st.DrawFn) -> tuple[list[np.ndarray], entropy.Adaptive]:
    """A few arrays of indices: of one value, of two, of many; skewed or flat; with no row too."""
    arrays, sizes = [], []
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    for _ in range(draw(st.integers(0, 3))):
        size = draw(st.sampled_from([1, 2, 3, 17, 256]))
        shape = draw(st.integers(0, 12)), draw(st.integers(1, 9))
        skew = draw(st.sampled_from([0.02, 1.0]))
        arrays.append(rng.choice(size, shape, p=rng.dirichlet(np.full(size, skew))))
        sizes.append(size)
    return arrays, entropy.Adaptive([a.shape for a in arrays], sizes)


def reference_indices(data: bytes, index_model: entropy.Adaptive) -> list[list[list[int]]]:
    """What `entropy.decode_indices` does, from the description in docs/bitstream.md."""
    decoder, arrays = ReferenceDecoder(data), []
    for (rows, columns), size in zip(index_model.shapes, index_model.sizes, strict=True):
        array, seen = [[0] * columns for _ in range(rows)], [1] * size
        for row in array if size > 1 else ():
            table = [(own << PRECISION) // sum(seen) for own in seen]
            table[seen.index(max(seen))] += (1 << PRECISION) - sum(table)
            row[:] = [decoder.decode(table) for _ in row]
            for index in row:
                seen[index] += 1
        arrays.append(array)
    return arrays


@given(index_arrays())
@settings(deadline=None, max_examples=80)
def test_indices_come_back_and_the_page_says_how(case):
    arrays, index_model = case
    data = entropy.encode_indices(arrays, index_model)
    again = entropy.decode_indices(data, index_model)
    assert [array.tolist() for array in again] == [array.tolist() for array in arrays]
    assert reference_indices(data, index_model) == [array.tolist() for array in arrays]


@given(index_arrays())
@settings(deadline=None, max_examples=40)
def test_indices_take_what_the_counts_say(case):
    arrays, index_model = case
    ideal = 0.0
    for array, size in zip(arrays, index_model.sizes, strict=True):
        seen = np.zeros(size, np.int64)
        for row in array:
            ideal += np.sum(PRECISION - np.log2(entropy.adaptive_counts(seen)[row]))
            seen += np.bincount(row, minlength=size)
    assert 8 * len(entropy.encode_indices(arrays, index_model)) <= ideal + 40


@given(st.lists(st.integers(0, 50_000), min_size=1, max_size=300))
def test_adaptive_counts_fill_the_range_and_rise_with_what_was_seen(seen):
    table = entropy.adaptive_counts(np.array(seen))
    assert table.sum() == 1 << PRECISION and table.min() >= 1
    # A stable sort puts the first of the most frequent, which has what is left, before its equals.
    order = np.argsort(-np.array(seen), kind="stable")
    assert (np.diff(table[order]) <= 0).all()


def test_indices_that_the_model_cannot_hold_are_refused():
    index_model = entropy.Adaptive([(2, 2)], [3])
    for array in (np.full((2, 2), 3), np.full((2, 2), -1), np.zeros((2, 3), int)):
        with pytest.raises(ValueError, match="expected"):
            entropy.encode_indices([array], index_model)
    with pytest.raises(ValueError, match="expected"):
        entropy.adaptive_counts(np.full(2, 1 << PRECISION))


@given(st.integers(2, 256), st.integers(0, 80), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_symbols_under_a_table_come_back_and_the_page_says_how(size, count, seed):
    rng = np.random.default_rng(seed)
    values = rng.choice(size, count, p=rng.dirichlet(np.full(size, 0.1)))
    table = entropy.adaptive_counts(rng.integers(0, 1000, size))
    data = entropy.encode_table(values, table)
    assert entropy.decode_table(data, table, count).tolist() == values.tolist()
    reference = ReferenceDecoder(data)
    assert [reference.decode(table.tolist()) for _ in range(count)] == values.tolist()
    ideal = float(np.sum(PRECISION - np.log2(table[values])))
    assert 8 * len(data) <= ideal + 40


def test_symbols_that_a_table_lacks_are_refused():
    table = entropy.adaptive_counts(np.zeros(4, int))
    for values in ([4], [-1]):
        with pytest.raises(ValueError, match=r"expected 0\.\.3"):
            entropy.encode_table(np.array(values), table)


# ---------------------------------------------------------------------------- bounds, on both sides


def packed(first: int, *levels: int) -> bytes:
    return entropy.pack_table(entropy.Table(first, np.array(levels, np.int64)))


def test_symbols_beyond_two_to_the_thirty_are_refused_in_several_calls_too():
    symbols, level_list = np.array([LIMIT, -LIMIT, 0]), np.array([0, 20, 63])
    encoder = entropy.CallEncoder()
    encoder.put(symbols, level_list)
    assert (entropy.CallDecoder(encoder.to_bytes()).get(level_list) == symbols).all()
    with pytest.raises(ValueError, match="expected 1073741824 at most"):
        encoder.put(np.array([LIMIT + 1]), np.array([20]))


def test_only_zeros_are_left_out_at_the_end():
    ends = set()
    for seed in range(1500):
        level_list = np.full(3, 30)
        symbols = sample(level_list, seed)
        encoder = entropy.CallEncoder()
        encoder.put(symbols, level_list)
        data = encoder.to_bytes()
        assert (entropy.CallDecoder(data).get(level_list) == symbols).all()
        ends.add(data[-1:])
    assert len(ends) > 200  # nearly every byte was the last of some stream


def test_counts_that_all_share_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        entropy.counts(7)[0] = 1


def test_levels_of_a_table_are_half_octaves_of_the_counts():
    numbers = np.repeat([3, 4, 6, 7], [1, 2, 4, 8])
    table = entropy.table_of(numbers)
    assert table.lowest == 3
    assert table.levels.tolist() == [1, 3, 0, 5, 7]
    assert sorted(entropy.table_of(np.full(16, 9)).levels) == [1, 9]  # the other has the least


@pytest.mark.parametrize(
    "table",
    [
        (-128, *[48, 0] * 128),  # the longest there is
        (126, 1, 1),  # as high as values go
        (0, 0, 3, 3),
        (0, 48, 1),
    ],
)
def test_tables_at_the_bounds_come_back(table):
    back = entropy.unpack_table(packed(*table))
    assert (back.lowest, *back.levels) == table


@pytest.mark.parametrize(
    "data",
    [
        packed(127, 1, 1),  # its second value would be 128
        packed(0, 49, 1),
        packed(5, 7),
        packed(5, 7, 0, 0),
        packed(0, 1, 1, 1, 1, 1, 1) + b"\0",  # a byte too many after codes that end with theirs
    ],
)
def test_tables_past_the_bounds_are_refused(data):
    with pytest.raises(BitstreamError, match="table of counts"):
        entropy.unpack_table(data)


def test_adaptive_counts_of_as_many_as_there_is_room_for():
    room = 1 << PRECISION
    assert entropy.adaptive_counts(np.array([room - 2, 0])).tolist() == [room - 1, 1]
    with pytest.raises(ValueError, match="at most"):
        entropy.adaptive_counts(np.array([room - 1, 0]))
