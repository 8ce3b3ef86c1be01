"""A learned base network: what encoder and decoder of modulated SIRENs share. Needs numpy alone.

COIN++ (Dupont et al. 2022, arXiv:2201.12904) and functa (arXiv:2201.12204): the weights of a SIREN
are learned once and never sent. A patch of an image is a latent vector; a learned linear map turns
it into shifts, which are added to the biases of the sine layers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from inrjax import trees
from inrjax.entropy import PRECISION
from inrjax.nets.siren import Siren, layer_name, siren_from_dict, siren_to_dict
from inrjax.types import Params

FORMAT = "inrjax-base-1"

BITS = range(2, 9)
"""Bits of a latent's symbol that a base has tables for."""

SIGMAS = 3.0
"""Symbols span this many standard deviations on both sides of the mean, as in COIN++."""


@dataclass(frozen=True, eq=False)
class Base:
    """A base network and the distribution of its latents.

    Attributes:
      net: the network, 2 coordinates and 3 values.
      patch: side in pixels of the patches that it was learned for, 1..65535.
      params: float16 tree of the net.
      shift: float16 (depth * width, latent_dim): a latent's shifts are ``shift @ latent``, layer by
        layer, one for each neuron of a sine layer.
      centre, spread: float32 (latent_dim,): mean and standard deviation of training latents.
      tables: name ``bits_B`` -> int32 (2^B,): counts of the symbols of B bits, each at least 1, of
        sum 2^24; for all B of `BITS`.
      rates: float32 (latent_dim,): learned rates of the inner steps. Encoder only.
      info: how it was made: command, data and their digest, licence, steps, seed.
    """

    net: Siren
    patch: int
    params: Params
    shift: np.ndarray
    centre: np.ndarray
    spread: np.ndarray
    tables: Mapping[str, np.ndarray]
    rates: np.ndarray
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if (self.net.in_dim, self.net.out_dim) != (2, 3) or not 1 <= self.patch <= 65535:
            raise ValueError(
                f"got {self.net} with patches of {self.patch}, expected in_dim 2, out_dim 3 and "
                "patches of 1..65535 pixels"
            )
        shapes = {path: tuple(shape) for path, shape in trees.leaves(self.net.shapes())}
        if {path: np.shape(leaf) for path, leaf in trees.leaves(self.params)} != shapes:
            raise ValueError(f"the base's params do not fit {self.net}")
        rows, latent_dim = self.net.depth * self.net.width, self.latent_dim
        if np.shape(self.shift) != (rows, latent_dim) or not 1 <= latent_dim <= 65535:
            raise ValueError(
                f"the base's shift is {np.shape(self.shift)}, expected ({rows}, 1..65535)"
            )
        for name in ("centre", "spread", "rates"):
            if np.shape(getattr(self, name)) != (latent_dim,):
                raise ValueError(f"the base's {name} does not fit latents of {latent_dim}")
        for bits in BITS:
            table = np.asarray(self.tables.get(_table_name(bits), ()), np.int64)
            if table.shape != (1 << bits,) or table.min() < 1 or table.sum() != 1 << PRECISION:
                raise ValueError(f"the base's table of {bits} bits is no table of counts")

    @property
    def latent_dim(self) -> int:
        """Numbers of a patch's latent."""
        return np.shape(self.shift)[-1]

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of what a decoder uses: all but rates and info."""
        label = json.dumps([siren_to_dict(self.net), self.patch], sort_keys=True)
        return trees.digest(self._decoder_parts(), label)

    @property
    def short_digest(self) -> str:
        """The digest's first 8 hexadecimal digits: what file names, configs and tables say."""
        return self.digest.hex()[:8]

    @property
    def shared_bytes(self) -> int:
        """Bytes that a decoder needs beside the files: the arrays as stored."""
        return sum(np.asarray(leaf).nbytes for _, leaf in trees.leaves(self._decoder_parts()))

    def table(self, bits: int) -> np.ndarray:
        """Counts of the symbols of so many bits, int64 (2^bits,); ValueError without such a one."""
        if bits not in BITS:
            raise ValueError(f"got {bits} bits, expected {BITS.start}..{BITS.stop - 1}")
        return np.asarray(self.tables[_table_name(bits)], np.int64)

    def _decoder_parts(self) -> dict[str, Any]:
        names = ("centre", "params", "shift", "spread", "tables")
        return {name: getattr(self, name) for name in names}


def modulate(net: Siren, params: Params, shift: Any, latent: Any) -> dict[str, Any]:
    """The params of one patch: ``shift @ latent`` added to the biases. Host or JAX arrays.

    Args:
      params: of the net. shift: (depth * width, latent_dim). latent: (latent_dim,).
    """
    shifts = (shift @ latent).reshape(net.depth, net.width)
    moved = {
        layer_name(i): {**params[layer_name(i)], "bias": params[layer_name(i)]["bias"] + shifts[i]}
        for i in range(net.depth)
    }
    return {**params, **moved}


def to_symbols(
    latents: np.ndarray, centre: np.ndarray, spread: np.ndarray, bits: int
) -> np.ndarray:
    """Latents (n, latent_dim) as int64 symbols 0..2^bits - 1: the nearest of 2^bits values, evenly
    from centre - 3 spread to centre + 3 spread; what is beyond takes the outermost."""
    top = (1 << bits) - 1
    reach = SIGMAS * np.asarray(spread, np.float64)
    # A number that never varied in training has a spread of 0: every symbol means its centre.
    unit = np.where(reach > 0, 2 * reach / top, 1.0)
    places = (np.asarray(latents, np.float64) - centre + reach) / unit
    return np.clip(np.rint(places), 0, top).astype(np.int64)


def from_symbols(
    symbols: np.ndarray, centre: np.ndarray, spread: np.ndarray, bits: int
) -> np.ndarray:
    """What symbols s (n, latent_dim) stand for, float64: centre + 3 spread (2 s / top - 1), where
    top = 2^bits - 1."""
    places = 2 * symbols.astype(np.float64) / ((1 << bits) - 1) - 1
    return np.asarray(centre, np.float64) + SIGMAS * np.asarray(spread, np.float64) * places


def _table_name(bits: int) -> str:
    return f"bits_{bits}"


def save_base(path: Path, base: Base) -> None:
    """Write a base as npz, whole or not at all; `load_base` reads it back exactly."""
    arrays = dict(trees.leaves({**base._decoder_parts(), "rates": base.rates}))
    header = {
        "format": FORMAT,
        "net": siren_to_dict(base.net),
        "patch": base.patch,
        "info": dict(base.info),
        "digest": base.digest.hex(),
        # The digest covers what a decoder uses; this covers the inner rates too.
        "file_digest": trees.digest(arrays).hex(),
    }
    trees.write_atomic(Path(path), trees.to_npz(header, arrays))


def load_base(path: Path) -> Base:
    """Read a base, its digest verified.

    Raises:
      ValueError: the file is missing, damaged, not a base, or of another format; it says which.
    """
    path = Path(path)
    data = trees.read_npz_file(path, "a base", "experiments.coinpp train")
    try:
        header, leaves = trees.from_npz(data)
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']!r}, expected {FORMAT!r}")
        net = siren_from_dict(header["net"])
        base = Base(net, header["patch"], info=header["info"], **trees.from_leaves(leaves))
        stated = (header["digest"], header["file_digest"])
    except Exception as error:  # a damaged archive makes its reader raise nearly anything
        raise ValueError(f"{path} is damaged or no base of inrjax: {error}") from None
    if stated != (base.digest.hex(), trees.digest(leaves).hex()):
        raise ValueError(f"{path} is damaged: its content does not match its digest")
    return base


def table_arrays(tables: Mapping[int, np.ndarray]) -> dict[str, np.ndarray]:
    """Counts by bits as a `Base` takes them."""
    return {_table_name(bits): np.asarray(table, np.int32) for bits, table in tables.items()}
