"""Shared names: array aliases, the Codec protocol, the row of a rate-distortion table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

Image: TypeAlias = np.ndarray
"""uint8, shape (height, width, 3), RGB, values 0..255."""

Coords: TypeAlias = Any
"""float32 array, shape (..., in_dim), values in [-1, 1]; for an image (y, x), pixel centres."""

Pixels: TypeAlias = Any
"""float32 array, shape (..., out_dim), values in [-1, 1] (a network's output range)."""

Params: TypeAlias = Mapping[str, Any]
"""Weights of a network: a plain nested dict of arrays, a JAX pytree."""


OnProgress: TypeAlias = Callable[[int, int], None]
"""Called with (done, total) in the work's own unit, total fixed; it may raise to interrupt."""


class BitstreamError(ValueError):
    """A stream cannot be decoded: damaged, truncated, of another version, or of an unknown init."""


@runtime_checkable
class Codec(Protocol):
    """Lists in, lists out: a batch is one compiled program, and each stream still decodes alone."""

    @property
    def name(self) -> str:
        """The codec's name in tables, the same at every rate (``meta-siren``, ``jpeg``)."""
        ...

    @property
    def setting(self) -> str:
        """What sets the rate, as text (``width=32_steps=2000``, ``quality=10``)."""
        ...

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        """One stream for each uint8 (height, width, 3) image; deterministic."""
        ...

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The uint8 (height, width, 3) images; raises BitstreamError for bad data."""
        ...


@dataclass(frozen=True)
class RDPoint:
    """One image under one codec at one rate, measured on the bytes of a real file.

    ``bpp`` is 8 * num_bytes / (height * width); the PSNRs in dB (see `inrjax.metrics`) and the
    similarities are taken on the uint8 image that another process decoded from the file. Seconds
    are wall seconds; ``encode_seconds`` of a batch is the batch's time divided by its size.
    ``ssim`` is None where a side is shorter than 11 pixels, ``ms_ssim`` where it is shorter than
    161; ``psnr_y`` and ``psnr_ycbcr`` are None in tables from before they were measured.
    """

    codec: str
    setting: str
    image: str
    height: int
    width: int
    num_bytes: int
    bpp: float
    psnr: float
    psnr_y: float | None = field(default=None, kw_only=True)
    psnr_ycbcr: float | None = field(default=None, kw_only=True)
    ssim: float | None
    ms_ssim: float | None
    encode_seconds: float
    decode_seconds: float
    batch_size: int
    seed: int | None
    digest: str
