"""SIREN, a coordinate network with sine activations (Sitzmann et al. 2020, arXiv:2006.09661).

The spec and the host decoder need numpy alone; `Siren.init` and `Siren.apply` import JAX.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from inrjax.types import Coords, Params, Pixels

if TYPE_CHECKING:
    import jax
    from jaxtyping import Float, Float32


@dataclass(frozen=True)
class Encoding:
    """Positional encoding: the coordinates, then sin and cos of ratio^i * pi * coords.

    Strümpler et al. 2022 (arXiv:2112.04267) use 16 frequencies of ratio 1.4.
    """

    num_frequencies: int = 16
    ratio: float = 1.4

    def __post_init__(self):
        if self.num_frequencies < 1 or not 0 < self.ratio < np.inf:
            raise ValueError(f"got {self}, expected num_frequencies >= 1 and ratio > 0")

    def angular(self) -> Float32[np.ndarray, " {self.num_frequencies}"]:
        """float32 (num_frequencies,): ratio^i * pi, i = 0, 1, ..."""
        return (np.pi * self.ratio ** np.arange(self.num_frequencies)).astype(np.float32)


@dataclass(frozen=True)
class Siren:
    """A SIREN: ``depth`` sine layers sin(w0 (W h + b)) of ``width`` neurons, then a linear layer.

    Args:
      width: neurons of a layer, >= 1.
      depth: sine layers, the first included, 1..98.
      w0: the frequency factor of every sine layer, > 0.
      in_dim: coordinates of a point (2 for an image).
      out_dim: values at a point (3 for RGB).
      encoding: what the first layer sees instead of the bare coordinates.

    Raises:
      ValueError: a field is out of range.
    """

    width: int
    depth: int
    w0: float = 30.0
    in_dim: int = 2
    out_dim: int = 3
    encoding: Encoding | None = None

    def __post_init__(self):
        sizes = (self.width, self.depth, self.in_dim, self.out_dim)
        if min(sizes) < 1 or self.depth > MAX_DEPTH or not 0 < self.w0 < np.inf:
            raise ValueError(f"got {self}, expected sizes >= 1, depth <= {MAX_DEPTH} and w0 > 0")

    @property
    def num_features(self) -> int:
        """Inputs of the first layer."""
        return self.in_dim * (1 + 2 * self.encoding.num_frequencies if self.encoding else 1)

    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """The shapes of the params: ``weight`` is (out, in), ``bias`` is (out,)."""
        sizes = [self.num_features, *[self.width] * self.depth, self.out_dim]
        return {
            layer_name(i): {"weight": (sizes[i + 1], sizes[i]), "bias": (sizes[i + 1],)}
            for i in range(self.depth + 1)
        }

    @property
    def num_params(self) -> int:
        """Weights and biases together."""
        return sum(int(np.prod(s)) for layer in self.shapes().values() for s in layer.values())

    def init(self, key: jax.Array) -> dict[str, dict[str, jax.Array]]:
        """Random params, float32 (Sitzmann et al. 2020, section 3.2 and supplement 1.5).

        Weights of the first layer are uniform in +-1/in, of the others in +-sqrt(6/in)/w0, so that
        w0 W h has about unit variance in every hidden layer; biases are uniform in +-1/sqrt(in),
        as COIN's are, and spread the phases of the sines.
        """
        import jax

        params = {}
        for i, (name, shape) in enumerate(self.shapes().items()):
            key_weight, key_bias, key = jax.random.split(key, 3)
            fan_in = shape["weight"][1]
            bound = 1 / fan_in if i == 0 else (6 / fan_in) ** 0.5 / self.w0
            params[name] = {
                "weight": jax.random.uniform(key_weight, shape["weight"], "float32", -bound, bound),
                "bias": jax.random.uniform(
                    key_bias, shape["bias"], "float32", -(fan_in**-0.5), fan_in**-0.5
                ),
            }
        return params

    def apply(self, params: Params, coords: Coords) -> Pixels:
        """The values at ``coords`` (..., in_dim), as (..., out_dim). Differentiable JAX code."""
        import jax.numpy as jnp

        columns = jnp.asarray(coords).reshape(-1, self.in_dim).T
        return self.apply_columns(params, columns).T.reshape(*coords.shape[:-1], self.out_dim)

    def apply_columns(
        self, params: Params, coords: Float[jax.Array | np.ndarray, "{self.in_dim} n"]
    ) -> Float[jax.Array, "{self.out_dim} n"]:
        """`apply` on coords (in_dim, n), as (out_dim, n): the layout that is fast on a CPU."""
        h: Any = coords
        for i in range(self.depth + 1):
            h = self.layer_columns(params, i, h)
        return h

    def layer_columns(
        self, params: Params, index: int, h: Float[jax.Array | np.ndarray, "in n"]
    ) -> Float[jax.Array, "out n"]:
        """What layer ``index`` makes of its inputs (in, n), coords for the first: (out, n)."""
        from inrjax.nets.sine import sine

        layer = params[layer_name(index)]
        if index == self.depth:
            return _affine(layer["weight"], layer["bias"], h)
        # w0 goes into the small weights, not over the large activations.
        if index == 0:
            h = self._first_columns(self.w0 * layer["weight"], h)
            return sine(h + self.w0 * layer["bias"][:, None])
        return sine(_affine(self.w0 * layer["weight"], self.w0 * layer["bias"], h))

    def _first_columns(self, weight: Any, coords: Any) -> Any:
        """The first layer's product with the encoded coords, as a sum of products: XLA computes
        the sines of a concatenation one by one, 20 times as slowly."""
        from inrjax.nets.sine import cosine, sine

        if self.encoding is None:
            return weight @ coords
        angles = coords[None] * self.encoding.angular()[:, None, None]
        angles = angles.reshape(-1, coords.shape[1])
        parts = (coords, sine(angles), cosine(angles))
        ends = (self.in_dim, self.in_dim + len(angles))
        columns = (weight[:, : ends[0]], weight[:, ends[0] : ends[1]], weight[:, ends[1] :])
        products = [w @ part for w, part in zip(columns, parts, strict=True)]
        return products[0] + products[1] + products[2]

    def apply_host(
        self, params: Params, coords: Float[np.ndarray, "n {self.in_dim}"]
    ) -> Float32[np.ndarray, "n {self.out_dim}"]:
        """The numpy twin of `apply`, for coords (n, in_dim): (n, out_dim), float32.

        Works through the points in tiles, so that memory stays bounded; JAX need not be imported.
        """
        first, *others = self._host_matrices(params)
        out = np.empty((len(coords), self.out_dim), np.float32)
        size = self._host_tile
        for start in range(0, len(coords), size):
            tile = np.asarray(coords[start : start + size], np.float32)
            pieces = self._pieces(self.encode_host(tile.T))
            h, spare = self._host_buffers(len(pieces), pieces.shape[-1])
            np.matmul(first[:, :-1], pieces, out=h[..., :-1, :])
            h[..., :-1, :] += first[:, -1:]
            out[start : start + size] = _finish_host(others, h, spare)[: len(tile)]
        return out

    def apply_grid_host(
        self, params: Params, y: Float[np.ndarray, " m"], x: Float[np.ndarray, " n"]
    ) -> Float32[np.ndarray, "m n {self.out_dim}"]:
        """`apply_host` at every pair of y (m,) and x (n,): (m, n, out_dim), float32.

        A file's pixels come from here. The first layer is a function of y plus one of x, so that
        its encoding and its product are computed for rows and columns, not for pixels. The bits
        depend on params, y and x alone, never on a number of threads. Beside the result, memory
        holds about a kB for each y and x, and the activations of one tile.

        Raises:
          ValueError: the net has not two coordinates.
        """
        if self.in_dim != 2:
            raise ValueError(f"got a net of {self.in_dim} coordinates, expected 2")
        first, *others = self._host_matrices(params)
        y_weight, x_weight = first[:, 0:-1:2], first[:, 1:-1:2]  # features alternate
        if len(y) > len(x):  # tiles are long rows of the longer axis
            turned = (first[:, -1:], x_weight, y_weight, others)
            return self._grid_host(turned, x, y).transpose(1, 0, 2)
        return self._grid_host((first[:, -1:], y_weight, x_weight, others), y, x)

    def _grid_host(self, layers: Any, slow: np.ndarray, fast: np.ndarray) -> np.ndarray:
        """(slow, fast, out_dim); ``layers``: what `apply_grid_host` makes of the params."""
        bias, slow_weight, fast_weight, others = layers
        out = np.empty((len(slow), len(fast), self.out_dim), np.float32)
        slow_sums = np.matmul(slow_weight, self._pieces(self.encode_host(slow[None])))
        slow_sums = (slow_sums + bias).swapaxes(1, 2).reshape(-1, self.width)[: len(slow)]
        tile = self._host_tile
        for left in range(0, len(fast), tile):
            columns = slice(left, min(left + tile, len(fast)))
            fast_sums = np.matmul(fast_weight, self._pieces(self.encode_host(fast[None, columns])))
            count, _, size = fast_sums.shape
            rows = max(1, tile // (count * size))
            h, spare = self._host_buffers(rows, count, size)
            for top in range(0, len(slow), rows):
                part = slow_sums[top : top + rows, None, :, None]
                # Repeated along the points first: the sum then runs over long contiguous rows.
                np.add(np.repeat(part, size, axis=3), fast_sums, out=h[: len(part), :, :-1])
                values = _finish_host(others, h[: len(part)], spare[: len(part)])
                by_row = values.reshape(len(part), count * size, self.out_dim)
                out[top : top + rows, columns] = by_row[:, : columns.stop - left]
        return out

    @property
    def _host_tile(self) -> int:
        """Points of a tile: fewer for a wide net, so that its activations are 2 MB at most."""
        return max(1, min(HOST_TILE, _TILE_VALUES // (self.width + 1)))

    def _host_matrices(self, params: Params) -> list[np.ndarray]:
        """Each layer as one float32 matrix (out, in + 1): weight and bias, w0 folded in."""
        factors = [np.float32(self.w0)] * self.depth + [np.float32(1)]
        layers = [params[layer_name(i)] for i in range(self.depth + 1)]
        return [
            factor * np.column_stack([layer["weight"], layer["bias"]]).astype(np.float32)
            for factor, layer in zip(factors, layers, strict=True)
        ]

    def encode_host(self, coords: Float[np.ndarray, "dims n"]) -> Float32[np.ndarray, "features n"]:
        """Coords (dims, n) as the features of these dimensions, (features, n), float32."""
        coords = coords.astype(np.float32)
        if self.encoding is None:
            return coords
        angles = coords[None] * self.encoding.angular()[:, None, None]
        angles = angles.reshape(-1, coords.shape[1])
        return np.concatenate([coords, np.sin(angles), np.cos(angles)])

    def _pieces(self, columns: np.ndarray) -> np.ndarray:
        """Columns (rows, n) as equal pieces (pieces, rows, size), the last filled up with zeros.

        A BLAS spreads a large product over threads of its own, which get in the way of the
        caller's; products of ``width`` rows and ``size`` columns are too small for that.
        """
        limit = min(HOST_PIECE, max(8, _PRODUCT // self.width**2 // 8 * 8))
        rows, n = columns.shape
        count = max(1, -(-n // limit))
        size = -(-n // count)
        padded = np.zeros((rows, count * size), np.float32)
        padded[:, :n] = columns
        return np.ascontiguousarray(padded.reshape(rows, count, size).transpose(1, 0, 2))

    def _host_buffers(self, *shape: int) -> tuple[np.ndarray, np.ndarray]:
        """Two buffers of activations (..., width + 1, size), their last row 1 for the bias."""
        h, spare = (np.empty((*shape[:-1], self.width + 1, shape[-1]), np.float32) for _ in "ab")
        h[..., -1, :] = spare[..., -1, :] = 1
        return h, spare


def _finish_host(matrices: list[np.ndarray], h: np.ndarray, spare: np.ndarray) -> np.ndarray:
    """From the sums of the first layer, (..., width + 1, size), to values (points, out_dim).

    ``matrices`` are those of the other layers. Both buffers are overwritten.
    """
    for matrix in matrices[:-1]:
        np.sin(h[..., :-1, :], out=h[..., :-1, :])
        np.matmul(matrix, h, out=spare[..., :-1, :])
        h, spare = spare, h
    np.sin(h[..., :-1, :], out=h[..., :-1, :])
    values = np.matmul(matrices[-1], h)
    return values.swapaxes(-1, -2).reshape(-1, len(matrices[-1]))


def _affine(weight: Any, bias: Any, h: Any) -> jax.Array:
    """``weight`` @ h + bias for h (in, n): (out, n).

    Where h has a few rows less than a multiple of 16, a row of ones and some of zeros fill it up,
    and the bias is a column of the weights: a CPU's products are 5-8 % faster so (widths 28, 30),
    though slower if more than a half of 16 is added.
    """
    import jax.numpy as jnp

    missing = -h.shape[0] % 16
    if not 0 < missing < 8:
        return weight @ h + bias[:, None]
    filling = jnp.zeros((missing, h.shape[1])).at[0].set(1)
    weight = jnp.concatenate([weight, bias[:, None]], axis=1)
    return jnp.pad(weight, ((0, 0), (0, missing - 1))) @ jnp.concatenate([h, filling])


MAX_DEPTH = 98
"""Sine layers at most: with the linear one, names of two digits sort in the network's order."""

HOST_TILE = 2048
"""Points decoded at once at most: the activations of a tile stay in cache."""

HOST_PIECE = 128
"""Points of one matrix product at most."""

_TILE_VALUES = 1 << 19  # activations of a tile at most; widths up to 255 have whole tiles
_PRODUCT = 1 << 18  # multiplications up to which OpenBLAS keeps to one thread


def layer_name(index: int) -> str:
    """``layer_00``, ``layer_01``, ...: two digits, so that sorted order is network order."""
    return f"layer_{index:02d}"


def siren_to_dict(net: Siren) -> dict[str, Any]:
    """The spec as plain JSON values."""
    return asdict(net)


def siren_from_dict(values: Any) -> Siren:
    """The inverse of `siren_to_dict`; raises ValueError for unknown or missing fields."""
    values = dict(values)
    encoding = values.pop("encoding", None)
    try:
        return Siren(**values, encoding=Encoding(**encoding) if encoding else None)
    except TypeError as error:
        raise ValueError(f"not a SIREN spec: {error}") from None
