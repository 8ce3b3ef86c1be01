"""LatentGrid: a picture as quantised latents on grids of several resolutions, under learned nets.

Encoding imports JAX when it is called; decoding needs numpy and the range coder alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import numpy as np

from inrjax import bitstream, decoding, grids, images
from inrjax.grids import GridBase
from inrjax.machine import cpu_count
from inrjax.types import BitstreamError, Image, OnProgress

STEPS = range(8, 53)
"""Step sizes that encoders take: those that bases are learned for, and a few beyond."""

CURVE_STEPS = (19, 24, 29, 34, 39, 44)
"""Step sizes of a rate curve: on Kodak, 0.03 to 0.65 bits per pixel."""

MAX_PIXELS = 1 << 24
"""Pixels of a picture, at most: a decoder holds about 20 bytes for each, a fit about 700."""


@dataclass(frozen=True, eq=False)
class LatentGrid:
    """Latents overfitted to a picture; the nets that make pixels of them, and predict their
    distributions, are learned beforehand, shared, and never sent (see `inrjax.nets.latent_grid`).

    The rate is set by the step size; a fit is a few proximal steps, so that it takes seconds. What
    both sides share is a base, named by the first bytes of its digest, and by all of it in the
    checksum: `GridBase.shared_bytes` belong beside any rate.

    Attributes:
      step: number of the step size, 8 (finest) to 52, eight to an octave.
      rate_weight: factor of the lmbda that suits the step size, > 0; more gives smaller files.
      iterations: proximal steps of a fit, >= 1.
      seed: of which latents move in which step.
      base: None for the packaged one. Decoding takes this one and all packaged ones.
    """

    step: int = 28
    rate_weight: float = 1.0
    iterations: int = 24
    seed: int = 0
    base: GridBase | None = None

    suffix: ClassVar[str] = ".inr"
    tag: ClassVar[int] = 7
    sections: ClassVar[tuple[str, ...]] = ("base", "grid", "latents")

    def __post_init__(self):
        good = (
            isinstance(self.step, Integral) and self.step in STEPS and 0 < self.rate_weight < np.inf
        )
        if not good or self.iterations < 1:
            raise ValueError(
                f"got step {self.step}, rate_weight {self.rate_weight} and iterations "
                f"{self.iterations}, expected a whole step of {STEPS.start}..{STEPS.stop - 1}, a "
                "rate_weight above 0 and at least one iteration"
            )

    @property
    def name(self) -> str:
        """``latent-grid``."""
        return "latent-grid"

    @property
    def setting(self) -> str:
        """``step=S_weight=W_iterations=N``; the weight is left out where it is 1."""
        weight = "" if self.rate_weight == 1 else f"_weight={self.rate_weight:.4g}"
        return f"step={self.step}{weight}_iterations={self.iterations}"

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        """One stream for each uint8 (height, width, 3) image; progress counts images.

        Raises ValueError for another array, or for one of more than `MAX_PIXELS` pixels.
        """
        if not images:
            return []
        decoding.check_images(images)
        for image in images:
            if image.shape[0] * image.shape[1] > MAX_PIXELS:
                raise ValueError(
                    f"got an image of {image.shape[0]} x {image.shape[1]} pixels, expected at most "
                    f"{MAX_PIXELS} pixels: use another codec, or cut it"
                )
        from inrjax import gridfit

        groups = gridfit.groups(images)
        streams, done = [b""] * len(images), 0
        with ThreadPoolExecutor(min(cpu_count(), len(groups), 4)) as pool:
            for places, own in zip(
                groups, pool.map(self._encode_group, [[images[p] for p in g] for g in groups]),
                strict=True,
            ):  # fmt: skip
                for place, stream in zip(places, own, strict=True):
                    streams[place] = stream
                done += len(places)
                if on_progress is not None:
                    on_progress(done, len(images))
        return streams

    def _encode_group(self, images: Sequence[Image]) -> list[bytes]:
        from inrjax import gridfit

        base = self.shared
        shared = gridfit.Shared(**base.approximate)
        lmbda = self.rate_weight * float(gridfit.rate_weight(self.step))
        fitted = gridfit.fit_latents(
            base.net, shared, images, self.step, lmbda, self.iterations, self.seed
        )
        return [self.pack(*pair) for pair in zip(images, fitted, strict=True)]

    def pack(self, image: Image, latents: Sequence[np.ndarray]) -> bytes:
        """The stream of fitted int latents, for an image of this size."""
        base = self.shared
        sections = [
            base.digest[: decoding.DIGEST_BYTES],
            decoding.symbol_check(latents) + bytes([self.step]),
            grids.encode_latents(base, latents, self.step),
        ]
        height, width = image.shape[:2]
        return bitstream.pack(self.tag, height, width, sections, base.digest)

    @property
    def shared(self) -> GridBase:
        """What decoders have beside the files: ``base``, or the packaged one."""
        return self.base if self.base is not None else grids.packaged_base()

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The uint8 (height, width, 3) images of files; BitstreamError if bad, or of a base that is
        neither this codec's nor packaged."""
        return [self._decode_one(stream) for stream in streams]

    def context(self, stream: bitstream.Stream) -> bytes:
        """What the checksum covers beside the stream: the digest of the base that it names.

        Raises BitstreamError if that is not known here, or the stream is not LatentGrid's.
        """
        return self._base_of(stream).digest

    def _base_of(self, stream: bitstream.Stream) -> GridBase:
        decoding.check_sections(stream, self.tag, len(self.sections))
        wanted = stream.sections[0]
        if len(wanted) != decoding.DIGEST_BYTES:
            raise BitstreamError("the section 'base' is damaged")
        if self.base is not None and self.base.digest.startswith(wanted):
            return self.base
        base = grids.find_base(wanted)
        if base is None:
            raise BitstreamError(
                f"the base {wanted.hex()} is not known here: give the base file it was encoded "
                "with, or the file is damaged"
            )
        return base

    def _decode_one(self, data: bytes) -> Image:
        base = self._base_of(bitstream.peek(data))
        stream = decoding.unpack(data, self.tag, len(self.sections), base.digest)
        if stream.height * stream.width > MAX_PIXELS:
            raise BitstreamError(
                f"the file claims {stream.height} x {stream.width} pixels, more than the "
                f"{MAX_PIXELS} that its codec may have: it is damaged"
            )
        _, grid, payload = stream.sections
        if len(grid) != decoding.CHECK_BYTES + 1 or not grids.check_step(grid[-1]):
            raise BitstreamError("the section 'grid' is damaged")
        step = grid[-1]
        latents = grids.decode_latents(base, payload, stream.height, stream.width, step)
        decoding.require_symbols(latents, grid[: decoding.CHECK_BYTES])
        image = np.empty((stream.height, stream.width, 3), np.uint8)
        with np.errstate(over="ignore", invalid="ignore"):  # said below, in a sentence
            for place, pixels in grids.render(base, latents, step, stream.height, stream.width):
                if np.isnan(pixels).any():
                    raise BitstreamError("a pixel is NaN: the file is damaged")
                image[place] = images.to_uint8(pixels)
        return image
