"""SIREN, a coordinate network with sine activations (Sitzmann et al. 2020, arXiv:2006.09661).

The spec and the host decoder need numpy alone; `Siren.init` and `Siren.apply` import JAX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from inrjax.types import Coords, Params, Pixels

if TYPE_CHECKING:
    import jax


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

    def angular(self) -> np.ndarray:
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
        columns = coords.reshape(-1, self.in_dim).T
        return self.apply_columns(params, columns).T.reshape(*coords.shape[:-1], self.out_dim)

    def apply_columns(self, params: Params, coords: jax.Array) -> jax.Array:
        """`apply` on coords (in_dim, n), as (out_dim, n): the layout that is fast on a CPU."""
        from inrjax.nets.sine import sine

        h = self._encode_columns(coords)
        for i in range(self.depth):
            layer = params[layer_name(i)]
            # w0 goes into the small weights, not over the large activations.
            h = sine((self.w0 * layer["weight"]) @ h + self.w0 * layer["bias"][:, None])
        last = params[layer_name(self.depth)]
        return last["weight"] @ h + last["bias"][:, None]

    def _encode_columns(self, coords: jax.Array) -> jax.Array:
        import jax.numpy as jnp

        from inrjax.nets.sine import cosine, sine

        if self.encoding is None:
            return coords
        angles = coords[None] * self.encoding.angular()[:, None, None]
        angles = angles.reshape(-1, coords.shape[1])
        return jnp.concatenate([coords, sine(angles), cosine(angles)])

    def apply_host(self, params: Params, coords: np.ndarray) -> np.ndarray:
        """The numpy twin of `apply`, for coords (n, in_dim): (n, out_dim), float32.

        Works through the points in tiles, so that memory stays bounded. A file's pixels come from
        here; JAX need not be imported.
        """
        out = np.empty((len(coords), self.out_dim), np.float32)
        folded = self._fold_w0(params)
        for start in range(0, len(coords), HOST_TILE):
            tile = np.ascontiguousarray(coords[start : start + HOST_TILE].T, np.float32)
            out[start : start + HOST_TILE] = self._host_tile(folded, tile).T
        return out

    def _fold_w0(self, params: Params) -> list[tuple[np.ndarray, np.ndarray]]:
        factors = [np.float32(self.w0)] * self.depth + [np.float32(1)]
        layers = [params[layer_name(i)] for i in range(self.depth + 1)]
        return [
            (
                factor * np.asarray(layer["weight"], np.float32),
                factor * np.asarray(layer["bias"], np.float32)[:, None],
            )
            for factor, layer in zip(factors, layers, strict=True)
        ]

    def _host_tile(self, layers: list[tuple[np.ndarray, np.ndarray]], h: np.ndarray) -> np.ndarray:
        if self.encoding is not None:
            angles = h[None] * self.encoding.angular()[:, None, None]
            angles = angles.reshape(-1, h.shape[1])
            h = np.concatenate([h, np.sin(angles), np.cos(angles)])
        for weight, bias in layers[:-1]:
            h = weight @ h
            h += bias
            np.sin(h, out=h)
        weight, bias = layers[-1]
        return weight @ h + bias


MAX_DEPTH = 98
"""Sine layers at most: with the linear one, names of two digits sort in the network's order."""

HOST_TILE = 4096
"""Points decoded at once: the activations of a tile stay in cache."""


def layer_name(index: int) -> str:
    """``layer_00``, ``layer_01``, ...: two digits, so that sorted order is network order."""
    return f"layer_{index:02d}"


def siren_to_dict(net: Siren) -> dict[str, Any]:
    """The spec as plain JSON values."""
    return asdict(net)


def siren_from_dict(values: Mapping[str, Any]) -> Siren:
    """The inverse of `siren_to_dict`; raises ValueError for unknown or missing fields."""
    values = dict(values)
    encoding = values.pop("encoding", None)
    try:
        return Siren(**values, encoding=Encoding(**encoding) if encoding else None)
    except TypeError as error:
        raise ValueError(f"not a SIREN spec: {error}") from None
