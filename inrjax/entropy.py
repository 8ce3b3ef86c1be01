"""Probability models of integer symbols, and their exact range coder (constriction).

A symbol k is Laplace distributed, rounded to integers, with scale b: P(0) = 1 - q and
P(+-k) = q^(2k-1) (1 - q^2) / 2 for k >= 1, where q = exp(-1/(2b)). The scales are a fixed ladder;
the coder never sees a float that depends on a library: every count comes from four integer
constants by multiplication, division and addition of integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, no_type_check

import numpy as np

from inrjax.types import BitstreamError

if TYPE_CHECKING:
    import jax
    from constriction import stream  # pyright: ignore[reportMissingModuleSource]
    from jaxtyping import Float64, Int64, Integer, Shaped

NUM_LEVELS = 64
"""Levels of scale: b = 2^((level - 16) / 4) symbols, so 1/16 to about 3444."""

PRECISION = 24
"""The counts of a model sum to 2**PRECISION."""

_FIXED = 62
# round(2^62 exp(-1/(2b))) for the top octave, b = 2^(44/4) ... 2^(47/4); a test recomputes them.
_TOP_OCTAVE = (
    4610560255948314624,
    4610739350409155263,
    4610889955683844661,
    4611016602927045598,
)


class Laplace(NamedTuple):
    """A model of a list of symbols: ``levels`` int (n,), the scale level of each, 0..63."""

    levels: np.ndarray


class Table(NamedTuple):
    """A model of a list of symbols that are all alike: how often each value occurs, roughly.

    ``lowest``: the first value. ``levels``: int (entries,), for it and the values after it: level
    l >= 1 stands for a count of 2^((l - 1) / 2), 0 for a value that does not occur.
    """

    lowest: int
    levels: np.ndarray


def scale(level: Any) -> Any:
    """The scale b of a level, in symbols, as a float: for losses and reports, never for coding."""
    return 2.0 ** ((np.asarray(level) - 16) / 4)


def bits(
    symbols: Shaped[jax.Array | np.ndarray, " ..."],
    scales: Shaped[jax.Array | np.ndarray, " ..."] | float,
) -> Shaped[jax.Array, " ..."]:
    """Bits of each symbol under a Laplace distribution of the given scales; differentiable JAX.

    -log2 of the mass of [symbol - 1/2, symbol + 1/2], for real symbols too (Ballé et al. 2017,
    arXiv:1611.01704, eq. 12, uses it under additive uniform noise).

    Args:
      symbols: real, any shape. scales: > 0, in symbols, a shape that broadcasts.
    """
    import jax.numpy as jnp

    magnitude = jnp.abs(symbols)
    inside = jnp.minimum(magnitude, 0.5)
    # Both branches are kept finite, so that the gradient of neither is NaN.
    centre = 0.5 * (jnp.expm1(-(0.5 - inside) / scales) + jnp.expm1(-(0.5 + inside) / scales))
    outside = jnp.maximum(magnitude, 0.5)
    tail = -(outside - 0.5) / scales + jnp.log(-jnp.expm1(-1.0 / scales) / 2)
    log_mass = jnp.where(magnitude < 0.5, jnp.log(-centre), tail)
    return -log_mass / np.log(2)


class Logits(NamedTuple):
    """A model of symbols by decisions, each the logarithm of its odds: arrays of one shape.

    Attributes:
      zero: of the symbol being 0.
      sign: of a symbol that is not 0 being above 0.
      up, down: of one above 0, or below, being 2 or more in magnitude.
      tail: of each magnitude from 2 on being exceeded.
    """

    zero: Any
    sign: Any
    up: Any
    down: Any
    tail: Any


LOGIT_UNIT = 16
"""The coder's logits are integers, in units of 1/16."""

MAX_LOGIT = 12 * LOGIT_UNIT
"""Of at most this magnitude, so that no probability is below 2^-18."""


def decision_bits(
    symbols: Shaped[jax.Array | np.ndarray, " ..."], logits: Logits
) -> Shaped[jax.Array, " ..."]:
    """Bits of each integer symbol by `Logits` as they are, not in the coder's units; differentiable
    JAX."""
    import jax.numpy as jnp

    # Nats of each decision against its logit; for it they are those less the logit. Nothing here
    # depends on the symbols, so that a program that asks for several of them computes it once.
    against = Logits(*(jnp.logaddexp(0.0, logit) for logit in logits))
    longer = against.tail - logits.tail
    above = (against.sign - logits.sign, against.up, against.up - logits.up)
    below = (against.sign, against.down, against.down - logits.down)
    magnitude = jnp.abs(symbols)
    side, one, more = (jnp.where(symbols > 0, *pair) for pair in zip(above, below, strict=True))
    beyond = more + (magnitude - 2) * longer + against.tail
    other = against.zero + side + jnp.where(magnitude >= 2, beyond, one)
    return jnp.where(magnitude == 0, against.zero - logits.zero, other) / np.log(2)


@lru_cache(maxsize=NUM_LEVELS)
def counts(level: int) -> Int64[np.ndarray, " counts"]:
    """Integer counts, int64 (2 m + 2,), of the symbols -m..m, then of the escape; sum 2^24.

    m is the largest magnitude with a count of its own. A symbol beyond it is sent as an escape,
    and by itself after all the others. Every count is at least 1.
    """
    tails = _tails(level)
    sides = [(tail - beyond) // 2 for tail, beyond in pairwise(tails)]
    escape = max(1, tails[-1])
    centre = (1 << PRECISION) - 2 * sum(sides) - escape
    table = np.array([*sides[::-1], centre, *sides, escape], np.int64)
    table.setflags(write=False)  # it is cached, and shared by all callers
    return table


def _tails(level: int) -> list[int]:
    """2^24 P(abs(symbol) >= k) = 2^24 q^(2k - 1), k = 1..m + 1, where (m + 1)'s count is 0."""
    q = _TOP_OCTAVE[level % 4]
    # Half the scale is the square of q.
    for _ in range((NUM_LEVELS - 1 - level) // 4):
        q = (q * q) >> _FIXED
    square, power, shift = (q * q) >> _FIXED, q, _FIXED - PRECISION
    tails = [power >> shift]
    while True:
        power = (power * square) >> _FIXED
        if tails[-1] - (power >> shift) < 2:
            return tails
        tails.append(power >> shift)


def cost(symbols: np.ndarray, model: Laplace) -> float:
    """The ideal code length in bits: minus the sum of log2(count / 2^24), escapes included."""
    symbols = np.asarray(symbols)
    groups = _groups(model)
    return float(sum(symbol_bits(symbols[where], level).sum() for level, _, where in groups))


def symbol_bits(symbols: Integer[np.ndarray, " n"], level: int) -> Float64[np.ndarray, " n"]:
    """The ideal code length of each int symbol (n,) at one level, in bits, float64 (n,)."""
    table = counts(level)
    index, escaped = _to_index(np.asarray(symbols), len(table))
    lengths = PRECISION - np.log2(table[index])
    lengths[index == len(table) - 1] += _escape_length(escaped, len(table) // 2 - 1)
    return lengths


def encode(symbols: np.ndarray, model: Laplace) -> bytes:
    """The range-coded bytes of int symbols (n,), under a model of as many levels.

    Symbols are coded level by level, each level in order; then the magnitudes of the escaped.

    Raises:
      ValueError: the lengths differ, or a symbol is beyond 2^30.
    """
    symbols = np.asarray(symbols, np.int64)
    if symbols.shape != model.levels.shape or symbols.ndim != 1:
        raise ValueError(f"got {symbols.shape} symbols, expected {model.levels.shape}")
    if symbols.size and np.abs(symbols).max() > 1 << 30:
        raise ValueError(f"got a symbol of {np.abs(symbols).max()}, expected at most {1 << 30}")
    encoder = _coder().queue.RangeEncoder()
    escapes: list[int] = []
    for _, table, where in _groups(model):
        index, escaped = _to_index(symbols[where], len(table))
        encoder.encode(index.astype(np.int32), _categorical(table))
        for k in escaped:
            escapes += _escape_bits(int(k), len(table) // 2 - 1)
    if escapes:
        encoder.encode(np.array(escapes, np.int32), _coin())
    data = encoder.get_compressed().astype(">u4").tobytes()
    return _shorten(data, lambda cut: decode(cut, model, symbols.size), symbols)


def decode(data: bytes, model: Laplace, num_symbols: int) -> Int64[np.ndarray, " {num_symbols}"]:
    """The int64 symbols (num_symbols,); exactly those that `encode` was given.

    Raises:
      ValueError: ``num_symbols`` is not the number of levels.
      BitstreamError: the data cannot be of this model.
    """
    if (num_symbols,) != model.levels.shape:
        raise ValueError(f"got {num_symbols} symbols, expected {model.levels.shape}")
    decoder = _decoder(data)
    symbols = np.zeros(num_symbols, np.int64)
    escapes: list[tuple[int, int]] = []
    for _, table, where in _groups(model):
        m = len(table) // 2 - 1
        index = _decode_places(decoder, table, len(where))
        symbols[where] = index - m
        escapes += [(int(i), m) for i in where[index == len(table) - 1]]
    limits = [m for _, m in escapes]
    symbols[[i for i, _ in escapes]] = _decode_escapes(decoder, limits)
    return symbols


def _coder():
    """constriction's stream coders; imported late, since a machine that only fits needs none."""
    from constriction import stream  # pyright: ignore[reportMissingModuleSource]

    return stream


def _decoder(data: bytes) -> stream.queue.RangeDecoder:
    words = np.frombuffer(data + bytes(-len(data) % 4), ">u4").astype(np.uint32)
    return _coder().queue.RangeDecoder(words)


def _groups(model: Laplace) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(level, its counts, the positions that have it), by rising level."""
    for level in np.flatnonzero(np.bincount(model.levels)):
        yield int(level), counts(int(level)), np.flatnonzero(model.levels == level)


def _to_index(
    symbols: Integer[np.ndarray, " n"], num_counts: int
) -> tuple[Integer[np.ndarray, " n"], Integer[np.ndarray, " escaped"]]:
    """Positions in the table of counts, and the symbols that need an escape."""
    m = num_counts // 2 - 1
    escaped = np.abs(symbols) > m
    return np.where(escaped, num_counts - 1, symbols + m), symbols[escaped]


def _fresh_categorical(table: np.ndarray) -> stream.model.Categorical:
    # The library gives every symbol one count and shares out the rest in proportion. Passing
    # count - 1, which sums to that rest, makes its proportions exactly ours, in exact arithmetic.
    return _coder().model.Categorical((table - 1).astype(np.float32), lazy=False, perfect=False)


@lru_cache(maxsize=NUM_LEVELS)
def _categorical_of(table: bytes) -> stream.model.Categorical:
    return _fresh_categorical(np.frombuffer(table, np.int64))


def _categorical(table: np.ndarray) -> stream.model.Categorical:
    return _categorical_of(table.tobytes())


def _coin() -> stream.model.Model:
    return _coder().model.Uniform(2)


def _escape_bits(symbol: int, m: int) -> list[int]:
    """Sign, then abs(symbol) - m >= 1 in Elias' gamma code (Elias 1975)."""
    excess = abs(symbol) - m
    length = excess.bit_length()
    return [int(symbol < 0), *[0] * (length - 1), *[int(b) for b in f"{excess:b}"]]


def _escape_length(symbols: Integer[np.ndarray, " n"], m: int) -> Integer[np.ndarray, " n"]:
    """The number of `_escape_bits` of each symbol: a sign, and 2 n - 1 for n bits of excess."""
    _, num_bits = np.frexp((np.abs(symbols) - m).astype(np.float64))
    return 2 * num_bits


def _decode_escapes(decoder: stream.queue.RangeDecoder, limits: Sequence[int]) -> list[int]:
    """The escaped symbols in the order in which they were coded; ``limits``: m of each."""
    bits = _Bits(decoder)
    symbols: list[int] = []
    for left, m in zip(range(len(limits) - 1, -1, -1), limits, strict=True):
        bits.least_later = _SHORTEST_ESCAPE * left
        negative = bits.take(1) == b"1"
        excess = bits.take_gamma()
        symbols.append(-(m + excess) if negative else m + excess)
    return symbols


_SHORTEST_ESCAPE = 2  # bits: a sign, and the gamma code of 1
_LONGEST_GAMMA = 31  # binary digits


@no_type_check
class _Bits:
    """Bits of probability 1/2, as ASCII digits.

    They are read many at a time, since one at a time takes seconds where a hostile file has only
    escapes; but no bit is read that is not needed in any case, since a range decoder may find the
    one after the last impossible. ``least_later``: how many are, after those asked for.
    """

    def __init__(self, decoder: stream.queue.RangeDecoder):
        self.least_later = 0
        self._decoder = decoder
        self._bits = b""
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next digits."""
        self._need(count)
        self._at += count
        return self._bits[self._at - count : self._at]

    def take_gamma(self) -> int:
        """The next number of Elias' gamma code; BitstreamError if it has over 31 digits."""
        self._need(1)
        while (first := self._bits.find(b"1", self._at, self._at + _LONGEST_GAMMA)) < 0:
            zeros = len(self._bits) - self._at
            if zeros >= _LONGEST_GAMMA:
                raise BitstreamError("the payload is damaged: an escape code is too long")
            self._need(2 * zeros + 1)
        zeros = first - self._at
        return int(self.take(2 * zeros + 1), 2)

    def _need(self, count: int) -> None:
        missing = self._at + count - len(self._bits)
        if missing > 0:
            read = _read(self._decoder, _coin(), missing + self.least_later)
            self._bits = self._bits[self._at :] + (read + ord("0")).astype(np.uint8).tobytes()
            self._at = 0


def _decode_places(decoder: stream.queue.RangeDecoder, table: np.ndarray, size: int) -> np.ndarray:
    return _read(decoder, _categorical(table), size)


def _read(
    decoder: stream.queue.RangeDecoder, model: stream.model.Model, count: int
) -> Int64[np.ndarray, " {count}"]:
    """The next places in a model, int64 (count,). The range decoder reports impossible data by
    assorted exceptions; name them all one."""
    try:
        return np.asarray(decoder.decode(model, count), np.int64)
    except Exception as error:
        raise BitstreamError("the payload is damaged: no symbol fits its bits") from error


def _shorten(data: bytes, decoded: Callable[[bytes], np.ndarray], symbols: np.ndarray) -> bytes:
    """Drop final bytes that decode the same as zeros: the coder flushes whole 32-bit words."""
    while data and _decodes_to(data[:-1], decoded, symbols):
        data = data[:-1]
    return data


def _decodes_to(data: bytes, decoded: Callable[[bytes], np.ndarray], symbols: np.ndarray) -> bool:
    try:
        return np.array_equal(decoded(data), symbols)
    except BitstreamError:  # not every cut is a code of something
        return False


# ---------------------------------------------------------------------------- a table that is sent

MAX_TABLE_LEVEL = 48
"""Of a `Table`: a count of 2^23.5, more than a net has params."""

MAX_TABLE_ENTRIES = 256
"""Of a `Table`, whose values are -128..127."""

_MAX_TABLE_BYTES = 2 + MAX_TABLE_ENTRIES * 13 // 8  # 13 bits: a difference of MAX_TABLE_LEVEL
_HALF_OCTAVES = (1024, 1448)  # round(2^10), round(2^10.5)


def table_of(symbols: np.ndarray) -> Table:
    """The table of int symbols (n,), n >= 1: the level next to each count; two values at least.

    Raises ValueError for a symbol beyond -128..127, or for none.
    """
    symbols = np.asarray(symbols, np.int64)
    if not symbols.size or symbols.min() < -128 or symbols.max() > 127:
        raise ValueError(f"got {symbols.size} symbols, expected some in -128..127")
    lowest, highest = int(symbols.min()), int(symbols.max())
    if lowest == highest:  # a coder needs two: give the other one the least there is
        lowest = lowest - 1 if lowest > -128 else lowest
        highest = lowest + 1
    often = np.bincount(symbols - lowest, minlength=highest - lowest + 1)
    levels = np.where(often > 0, np.rint(2 * np.log2(np.maximum(often, 1))) + 1, 0)
    if np.count_nonzero(levels) < 2:
        levels = np.maximum(levels, 1)
    return Table(lowest, levels.astype(np.int64))


def table_counts(table: Table) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """The values that occur, rising, and their integer counts, both int64 (m,); sum 2^24.

    Each has one count, and a share of the rest in proportion to its level's, rounded down; the
    first of the highest level has what is left over.
    """
    places = np.flatnonzero(table.levels)
    levels = [int(level) for level in table.levels[places]]
    weights = [_HALF_OCTAVES[(level - 1) % 2] << (level - 1) // 2 for level in levels]
    spare, total = (1 << PRECISION) - len(levels), sum(weights)
    shares = [1 + weight * spare // total for weight in weights]
    shares[levels.index(max(levels))] += (1 << PRECISION) - sum(shares)
    return places + table.lowest, np.array(shares, np.int64)


def pack_table(table: Table) -> bytes:
    """The bytes of a table: lowest value (signed), entries - 1, then the differences of the levels
    (the first from 0), as 0, -1, 1, -2, 2, ... in Elias' gamma code of 1, 2, 3, ..."""
    steps = np.diff(table.levels, prepend=0)
    ranks = np.where(steps < 0, -2 * steps - 1, 2 * steps)
    text = "".join(_gamma(int(rank) + 1) for rank in ranks)
    packed = int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")
    return bytes([table.lowest & 255, len(table.levels) - 1]) + packed


def unpack_table(data: bytes) -> Table:
    """The inverse of `pack_table`; BitstreamError for bytes that it does not give."""
    if not 3 <= len(data) <= _MAX_TABLE_BYTES:
        raise BitstreamError(f"the table of counts has {len(data)} bytes")
    lowest, size = int.from_bytes(data[:1], "big", signed=True), data[1] + 1
    text = "".join(f"{byte:08b}" for byte in data[2:])
    levels: list[int] = []
    at, level = 0, 0
    for _ in range(size):
        value, at = _read_gamma(text, at)
        level += value // 2 if value % 2 else -(value // 2)
        levels.append(level)
    too_long = len(text) - at >= 8 or "1" in text[at:]
    if too_long or min(levels) < 0 or max(levels) > MAX_TABLE_LEVEL or lowest + size > 128:
        raise BitstreamError("the table of counts is damaged")
    if np.count_nonzero(levels) < 2:
        raise BitstreamError("the table of counts has fewer than two values")
    return Table(lowest, np.array(levels, np.int64))


def encode_pooled(symbols: np.ndarray, table: Table) -> bytes:
    """The range-coded bytes of int symbols (n,), all under one table.

    Raises ValueError for a symbol that the table does not have.
    """
    symbols = np.asarray(symbols, np.int64)
    values, shares = table_counts(table)
    places = np.minimum(np.searchsorted(values, symbols), len(values) - 1)
    if not np.array_equal(values[places], symbols):
        raise ValueError("got a symbol that the table of counts does not have")
    encoder = _coder().queue.RangeEncoder()
    encoder.encode(places.astype(np.int32), _categorical(shares))
    data = encoder.get_compressed().astype(">u4").tobytes()
    return _shorten(data, lambda cut: decode_pooled(cut, table, symbols.size), symbols)


def decode_pooled(
    data: bytes, table: Table, num_symbols: int
) -> Int64[np.ndarray, " {num_symbols}"]:
    """The int64 symbols (num_symbols,) that `encode_pooled` was given; BitstreamError if the data
    cannot be of this table."""
    values, shares = table_counts(table)
    return values[_decode_places(_decoder(data), shares, num_symbols)]


def pooled_cost(symbols: np.ndarray, table: Table) -> float:
    """The ideal code length of int symbols (n,) of the table, in bits."""
    values, shares = table_counts(table)
    return float((PRECISION - np.log2(shares[np.searchsorted(values, symbols)])).sum())


def _gamma(value: int) -> str:
    """A number >= 1 in Elias' gamma code (Elias 1975), as text of 0 and 1."""
    return "0" * (value.bit_length() - 1) + f"{value:b}"


def _read_gamma(text: str, at: int) -> tuple[int, int]:
    """A number from its gamma code at a place, and the place after it."""
    one = text.find("1", at)
    end = 2 * one - at + 1
    if one < 0 or end > len(text):
        raise BitstreamError("the table of counts is not complete")
    return int(text[one:end], 2), end


# ---------------------------------------------------------------------------- indices


class Adaptive(NamedTuple):
    """A model of arrays of indices that learns from the rows it has seen, so that no table is sent.

    ``shapes``: (rows, columns) of each array; ``sizes``: its indices are 0..size-1, size >= 1.
    """

    shapes: Sequence[tuple[int, int]]
    sizes: Sequence[int]


def adaptive_counts(seen: Integer[np.ndarray, " size"]) -> Int64[np.ndarray, " size"]:
    """Counts, int64 (size,) of sum 2^24, from how often each index came before, int (size,).

    floor((seen + 1) 2^24 / (sum of seen + size)), and what is left goes to the first of the most
    frequent (Laplace's rule of succession). Raises ValueError beyond 2^24 in the denominator.
    """
    often = np.asarray(seen, np.int64) + 1
    total = int(often.sum())
    if total > 1 << PRECISION:
        raise ValueError(f"got {total} indices and values, expected at most {1 << PRECISION}")
    table = (often << PRECISION) // total
    table[np.argmax(often)] += (1 << PRECISION) - table.sum()
    return table


def encode_indices(arrays: Sequence[np.ndarray], model: Adaptive) -> bytes:
    """The range-coded bytes of int arrays, one after the other, row by row.

    A row is coded under the counts of the rows before it in its own array; an array of one possible
    index takes nothing. Raises ValueError for arrays that the model does not describe.
    """
    arrays = [np.asarray(array, np.int64) for array in arrays]
    if [array.shape for array in arrays] != [tuple(shape) for shape in model.shapes]:
        raise ValueError(
            f"got indices of shapes {[a.shape for a in arrays]}, expected {list(model.shapes)}"
        )
    for array, size in zip(arrays, model.sizes, strict=True):
        if array.size and not 0 <= array.min() <= array.max() < size:
            raise ValueError(f"got indices {array.min()}..{array.max()}, expected 0..{size - 1}")
    encoder = _coder().queue.RangeEncoder()
    for array, size in zip(arrays, model.sizes, strict=True):
        seen = np.zeros(size, np.int64)
        for row in array if size > 1 else ():
            encoder.encode(row.astype(np.int32), _fresh_categorical(adaptive_counts(seen)))
            seen += np.bincount(row, minlength=size)
    data = encoder.get_compressed().astype(">u4").tobytes()
    return _shorten(data, lambda cut: _raveled(decode_indices(cut, model)), _raveled(arrays))


def decode_indices(data: bytes, model: Adaptive) -> list[np.ndarray]:
    """The int64 arrays that `encode_indices` was given; BitstreamError if they cannot be."""
    decoder = _decoder(data)
    arrays: list[np.ndarray] = []
    for shape, size in zip(model.shapes, model.sizes, strict=True):
        array, seen = np.zeros(shape, np.int64), np.zeros(size, np.int64)
        for row in array if size > 1 else ():
            categorical = _fresh_categorical(adaptive_counts(seen))
            row[:] = _read(decoder, categorical, len(row))
            seen += np.bincount(row, minlength=size)
        arrays.append(array)
    return arrays


def _raveled(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *map(np.ravel, arrays)])


# ---------------------------------------------------------------------------- one static table


def encode_table(symbols: np.ndarray, table: Integer[np.ndarray, " size"]) -> bytes:
    """The range-coded bytes of int symbols (n,), all under one table that both sides have.

    Args:
      symbols: 0..size-1. table: counts, int (size,), size >= 2, each at least 1, of sum 2^24.

    Raises:
      ValueError: a symbol that the table does not have.
    """
    symbols = np.asarray(symbols, np.int64)
    if symbols.size and not 0 <= symbols.min() <= symbols.max() < len(table):
        raise ValueError(
            f"got symbols {symbols.min()}..{symbols.max()}, expected 0..{len(table) - 1}"
        )
    encoder = _coder().queue.RangeEncoder()
    encoder.encode(symbols.astype(np.int32), _fresh_categorical(np.asarray(table, np.int64)))
    data = encoder.get_compressed().astype(">u4").tobytes()
    return _shorten(data, lambda cut: decode_table(cut, table, symbols.size), symbols)


def decode_table(
    data: bytes, table: Integer[np.ndarray, " size"], num_symbols: int
) -> Int64[np.ndarray, " {num_symbols}"]:
    """The int64 symbols (num_symbols,) that `encode_table` was given; BitstreamError if they cannot
    be."""
    categorical = _fresh_categorical(np.asarray(table, np.int64))
    return _read(_decoder(data), categorical, num_symbols)


# ---------------------------------------------------------------------------- in several calls


@lru_cache(maxsize=NUM_LEVELS)
def _level_model(level: int) -> tuple[int, Any]:
    """The number of counts of a level, and the coder's model of them."""
    table = counts(level)
    return len(table), _categorical(table)


def _runs(levels: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(level, the places that have it), by rising level."""
    # Slices by hand: `numpy.split` takes several times as long, which counts for short lists.
    order = levels.argsort(kind="stable")
    ranked = levels[order]
    inner = np.flatnonzero(ranked[1:] != ranked[:-1]) + 1
    ends = [0, *inner.tolist(), len(order)]
    return [(int(ranked[a]), order[a:b]) for a, b in pairwise(ends) if a < b]


class CallEncoder:
    """Codes symbols in several calls, so that a decoder may choose the models of a call by what it
    has decoded in those before."""

    def __init__(self):
        self._encoder = _coder().queue.RangeEncoder()

    def put(self, symbols: np.ndarray, levels: np.ndarray) -> None:
        """Code int symbols (n,) at levels (n,) of 0..63: level by level, each level in order, the
        escapes of a level after its symbols. ValueError for a symbol beyond 2^30."""
        _check_range(symbols)
        for level, places in _runs(levels):
            size, model = _level_model(level)
            index, escaped = _to_index(symbols[places], size)
            self._encoder.encode(index.astype(np.int32), model)
            digits = [bit for k in escaped for bit in _escape_bits(int(k), size // 2 - 1)]
            if digits:
                self._encoder.encode(np.array(digits, np.int32), _coin())

    def put_decided(self, symbols: np.ndarray, logits: Logits) -> None:
        """Code int symbols (n,) under int `Logits` (n,), in units of 1/`LOGIT_UNIT`: all as far as
        -2 or less, -1, 0, 1, 2 or more; of those beyond 1 what is more than 2, modulo 16, then the
        sixteens, then the escapes of these. ValueError for a symbol beyond 2^30."""
        _check_range(symbols)
        first = np.clip(symbols, -2, 2) + 2
        _write_rows(self._encoder, first, _row_params(first_counts(logits)))
        beyond = np.abs(symbols) >= 2
        if not beyond.any():
            return
        more, both = np.abs(symbols[beyond]) - 2, _tail_tables()
        tail = np.asarray(logits.tail)[beyond] + MAX_LOGIT
        for places, tables in zip((more % 16, np.minimum(more // 16, 16)), both, strict=True):
            _write_rows(self._encoder, places, tables[tail])
        digits = [bit for k in more[more >= 256] // 16 for bit in _escape_bits(int(k), 15)]
        if digits:
            self._encoder.encode(np.array(digits, np.int32), _coin())

    def to_bytes(self) -> bytes:
        """All that was coded. Zeros at the end are left out: the decoder reads zeros there."""
        return self._encoder.get_compressed().astype(">u4").tobytes().rstrip(b"\0")


class CallDecoder:
    """Decodes what a `CallEncoder` coded, by calls with the same models."""

    def __init__(self, data: bytes):
        self._decoder = _decoder(data)

    def get(self, levels: np.ndarray) -> np.ndarray:
        """The next int64 symbols (n,), at levels (n,) of 0..63; BitstreamError for bad data."""
        symbols = np.empty(len(levels), np.int64)
        for level, places in _runs(levels):
            size, model = _level_model(level)
            index = _read(self._decoder, model, len(places))
            symbols[places] = index - (size // 2 - 1)
            escaped = places[index == size - 1]
            if len(escaped):
                limits = [size // 2 - 1] * len(escaped)
                symbols[escaped] = _decode_escapes(self._decoder, limits)
        return symbols

    def get_decided(self, logits: Logits) -> np.ndarray:
        """The next int64 symbols (n,), under int `Logits` (n,); BitstreamError for bad data."""
        symbols = _read_rows(self._decoder, _row_params(first_counts(logits))) - 2
        beyond = np.flatnonzero(np.abs(symbols) >= 2)
        if len(beyond):
            tail = np.asarray(logits.tail)[beyond] + MAX_LOGIT
            tables = _tail_tables()
            low = _read_rows(self._decoder, tables.low[tail])
            high = _read_rows(self._decoder, tables.high[tail])
            escaped = np.flatnonzero(high == tables.high.shape[1] - 1)
            if len(escaped):
                high[escaped] = np.abs(_decode_escapes(self._decoder, [15] * len(escaped)))
            symbols[beyond] += np.sign(symbols[beyond]) * (low + 16 * high)
        return symbols


def _check_range(symbols: np.ndarray) -> None:
    if symbols.size and np.abs(symbols).max() > 1 << 30:
        raise ValueError(f"got a symbol of {np.abs(symbols).max()}, expected {1 << 30} at most")


# round(2^62 exp(-1/16)); a test recomputes it.
_SIXTEENTH = 4332278087304955805


@lru_cache(maxsize=1)
def _sigmoids() -> tuple[int, ...]:
    """2^62 / (1 + exp(-logit / 16)) for the logits -MAX_LOGIT..MAX_LOGIT, in integers."""
    one = power = 1 << _FIXED
    upper: list[int] = []
    for _ in range(MAX_LOGIT + 1):
        upper.append((one << _FIXED) // (one + power))
        power = (power * _SIXTEENTH) >> _FIXED
    return (*(one - p for p in upper[:0:-1]), *upper)


@lru_cache(maxsize=1)
def _probabilities() -> np.ndarray:
    """The same, in units of 2^-24."""
    return np.array([p >> (_FIXED - PRECISION) for p in _sigmoids()], np.int64)


def first_counts(logits: Logits) -> np.ndarray:
    """Integer counts, int64 (n, 5), of symbols of -2 or less, -1, 0, 1, 2 or more under int
    `Logits` (n,); each at least 1, of sum 2^24."""
    zero, sign, up, down, _ = (
        _probabilities()[np.asarray(logit, np.int64) + MAX_LOGIT] for logit in logits
    )
    rest = (1 << PRECISION) - zero
    above = (rest * sign) >> PRECISION
    below = rest - above
    two, minus_two = (above * up) >> PRECISION, (below * down) >> PRECISION
    sides = [np.maximum(1, own) for own in (minus_two, below - minus_two, above - two, two)]
    return np.stack([*sides[:2], (1 << PRECISION) - sum(sides), *sides[2:]], axis=1)


class _Tails(NamedTuple):
    """Params of the coder's models of magnitudes beyond 2, a row for each logit of a tail."""

    low: np.ndarray  # of what is more than 2, modulo 16
    high: np.ndarray  # of its sixteens: 0..15, and an escape


@lru_cache(maxsize=1)
def _tail_tables() -> _Tails:
    low, high = zip(*(_geometric_counts(ratio) for ratio in _sigmoids()), strict=True)
    return _Tails(_row_params(np.array(low)), _row_params(np.array(high)))


def _geometric_counts(ratio: int) -> tuple[list[int], list[int]]:
    """Counts of sum 2^24 of a geometric number's low four binary digits, and of the rest of it;
    ``ratio``, in units of 2^-62: of each next number's probability to the one before."""
    powers = [1 << _FIXED]
    for _ in range(16):
        powers.append((powers[-1] * ratio) >> _FIXED)
    high_powers = [1 << _FIXED]
    for _ in range(16):
        high_powers.append((high_powers[-1] * powers[16]) >> _FIXED)
    whole = powers[0] - powers[16]
    low = [(powers[k] - powers[k + 1]) * (1 << PRECISION) // whole for k in range(16)]
    high = [(high_powers[k] - high_powers[k + 1]) >> (_FIXED - PRECISION) for k in range(16)]
    high.append(high_powers[16] >> (_FIXED - PRECISION))
    return _filled(low), _filled(high)


def _filled(table: list[int]) -> list[int]:
    """Each count at least 1; what is missing of 2^24 goes to the largest."""
    table = [max(1, count) for count in table]
    table[table.index(max(table))] += (1 << PRECISION) - sum(table)
    return table


def _rows() -> stream.model.Model:
    """A categorical model of each symbol's own params, a row for each."""
    return _coder().model.Categorical(lazy=False, perfect=False)


def _row_params(tables: np.ndarray) -> np.ndarray:
    return (tables - 1).astype(np.float32)  # as `_fresh_categorical` does


def _write_rows(encoder: Any, places: np.ndarray, params: np.ndarray) -> None:
    """Code places, int (n,), in models of params (n, counts)."""
    encoder.encode(places.astype(np.int32), _rows(), params)


def _read_rows(decoder: Any, params: np.ndarray) -> np.ndarray:
    """The next places, int64 (n,), in models of params (n, counts)."""
    try:
        return np.asarray(decoder.decode(_rows(), params), np.int64)
    except Exception as error:
        raise BitstreamError("the payload is damaged: no symbol fits its bits") from error
