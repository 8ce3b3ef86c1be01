"""Probability models of integer symbols, and their exact range coder (constriction).

A symbol k is Laplace distributed, rounded to integers, with scale b: P(0) = 1 - q and
P(+-k) = q^(2k-1) (1 - q^2) / 2 for k >= 1, where q = exp(-1/(2b)). The scales are a fixed ladder;
the coder never sees a float that depends on a library: every count comes from four integer
constants by multiplication, division and addition of integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from inrjax.types import BitstreamError

if TYPE_CHECKING:
    import jax

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


def scale(level: Any) -> Any:
    """The scale b of a level, in symbols, as a float: for losses and reports, never for coding."""
    return 2.0 ** ((np.asarray(level) - 16) / 4)


def bits(symbols: jax.Array, scales: jax.Array) -> jax.Array:
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


@lru_cache(maxsize=NUM_LEVELS)
def counts(level: int) -> np.ndarray:
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


def symbol_bits(symbols: np.ndarray, level: int) -> np.ndarray:
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
    return _shorten(
        _bytes_of(encoder), lambda data: np.array_equal(decode(data, model, symbols.size), symbols)
    )


def decode(data: bytes, model: Laplace, num_symbols: int) -> np.ndarray:
    """The int64 symbols (num_symbols,); exactly those that `encode` was given.

    Raises:
      ValueError: ``num_symbols`` is not the number of levels.
      BitstreamError: the data cannot be of this model.
    """
    if (num_symbols,) != model.levels.shape:
        raise ValueError(f"got {num_symbols} symbols, expected {model.levels.shape}")
    decoder = _decoder_of(data)
    symbols = np.zeros(num_symbols, np.int64)
    escapes: list[tuple[int, int]] = []
    for _, table, where in _groups(model):
        m = len(table) // 2 - 1
        index = _decode_indices(decoder, table, len(where))
        symbols[where] = index - m
        escapes += [(int(i), m) for i in where[index == len(table) - 1]]
    for i, m in escapes:
        symbols[i] = _decode_escape(decoder, m)
    return symbols


def _coder() -> Any:
    """constriction's stream coders; imported late, since a machine that only fits needs none."""
    from constriction import stream  # pyright: ignore[reportAttributeAccessIssue]

    return stream


def _groups(model: Laplace):
    """(level, its counts, the positions that have it), by rising level."""
    for level in np.flatnonzero(np.bincount(model.levels)):
        yield int(level), counts(int(level)), np.flatnonzero(model.levels == level)


def _to_index(symbols: np.ndarray, num_counts: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the table of counts, and the symbols that need an escape."""
    m = num_counts // 2 - 1
    escaped = np.abs(symbols) > m
    return np.where(escaped, num_counts - 1, symbols + m), symbols[escaped]


def _fresh_categorical(table: np.ndarray):
    # The library gives every symbol one count and shares out the rest in proportion. Passing
    # count - 1, which sums to that rest, makes its proportions exactly ours, in exact arithmetic.
    return _coder().model.Categorical((table - 1).astype(np.float32), lazy=False, perfect=False)


@lru_cache(maxsize=NUM_LEVELS)
def _categorical_of(table: bytes):
    return _fresh_categorical(np.frombuffer(table, np.int64))


def _categorical(table: np.ndarray):
    return _categorical_of(table.tobytes())


def _coin():
    return _coder().model.Uniform(2)


def _escape_bits(symbol: int, m: int) -> list[int]:
    """Sign, then abs(symbol) - m >= 1 in Elias' gamma code (Elias 1975)."""
    excess = abs(symbol) - m
    length = excess.bit_length()
    return [int(symbol < 0), *[0] * (length - 1), *[int(b) for b in f"{excess:b}"]]


def _escape_length(symbols: np.ndarray, m: int) -> np.ndarray:
    """The number of `_escape_bits` of each symbol: a sign, and 2 n - 1 for n bits of excess."""
    _, num_bits = np.frexp((np.abs(symbols) - m).astype(np.float64))
    return 2 * num_bits


def _decode_escape(decoder, m: int) -> int:
    negative, length = _decode_bit(decoder), 1
    while not _decode_bit(decoder):
        length += 1
        if length > 31:
            raise BitstreamError("the payload is damaged: an escape code is too long")
    excess = 1
    for _ in range(length - 1):
        excess = 2 * excess + _decode_bit(decoder)
    return -(m + excess) if negative else m + excess


def _decode_bit(decoder) -> int:
    return int(_guard(decoder.decode, _coin()))


def _decode_indices(decoder, table: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(_guard(decoder.decode, _categorical(table), size), np.int64)


def _guard(function, *args):
    """The range decoder reports impossible data by assorted exceptions; name them all one."""
    try:
        return function(*args)
    except Exception as error:
        raise BitstreamError("the payload is damaged: no symbol fits its bits") from error


def _bytes_of(encoder) -> bytes:
    return encoder.get_compressed().astype(">u4").tobytes()


def _decoder_of(data: bytes):
    words = np.frombuffer(data + bytes(-len(data) % 4), ">u4").astype(np.uint32)
    return _coder().queue.RangeDecoder(words)


def _shorten(data: bytes, is_enough: Callable[[bytes], bool]) -> bytes:
    """Drop final bytes that decode the same as zeros: the coder flushes whole 32-bit words."""

    def decodes(part: bytes) -> bool:
        try:
            return is_enough(part)
        except BitstreamError:  # not every cut is a code of something
            return False

    while data and decodes(data[:-1]):
        data = data[:-1]
    return data


# ---------------------------------------------------------------------------- indices


class Adaptive(NamedTuple):
    """A model of arrays of indices that learns from the rows it has seen, so that no table is sent.

    ``shapes``: (rows, columns) of each array; ``sizes``: its indices are 0..size-1, size >= 1.
    """

    shapes: Sequence[tuple[int, int]]
    sizes: Sequence[int]


def adaptive_counts(seen: np.ndarray) -> np.ndarray:
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
    return _shorten(
        _bytes_of(encoder),
        lambda data: all(map(np.array_equal, decode_indices(data, model), arrays)),
    )


def decode_indices(data: bytes, model: Adaptive) -> list[np.ndarray]:
    """The int64 arrays that `encode_indices` was given; BitstreamError if they cannot be."""
    decoder, arrays = _decoder_of(data), []
    for shape, size in zip(model.shapes, model.sizes, strict=True):
        array, seen = np.zeros(shape, np.int64), np.zeros(size, np.int64)
        for row in array if size > 1 else ():
            categorical = _fresh_categorical(adaptive_counts(seen))
            row[:] = np.asarray(_guard(decoder.decode, categorical, len(row)), np.int64)
            seen += np.bincount(row, minlength=size)
        arrays.append(array)
    return arrays


# ---------------------------------------------------------------------------- one static table


def encode_table(symbols: np.ndarray, table: np.ndarray) -> bytes:
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
    return _shorten(
        _bytes_of(encoder),
        lambda data: np.array_equal(decode_table(data, table, symbols.size), symbols),
    )


def decode_table(data: bytes, table: np.ndarray, num_symbols: int) -> np.ndarray:
    """The int64 symbols (num_symbols,) that `encode_table` was given; BitstreamError if they cannot
    be."""
    categorical = _fresh_categorical(np.asarray(table, np.int64))
    return np.asarray(_guard(_decoder_of(data).decode, categorical, num_symbols), np.int64)
