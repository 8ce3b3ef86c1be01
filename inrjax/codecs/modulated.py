"""ModulatedSiren: patches as quantised latents that shift the biases of a learned base network.

Encoding imports JAX when it is called; decoding needs numpy and the range coder alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from inrjax import bitstream, decoding, entropy, images
from inrjax.base import BITS, Base, from_symbols, modulate, to_symbols
from inrjax.types import BitstreamError, Image, OnProgress

_GROUP_PIXELS = 1 << 15  # a core's share at a time


@dataclass(frozen=True, eq=False)
class ModulatedSiren:
    """COIN++ (Dupont et al. 2022, arXiv:2201.12904): a base that is never sent, a latent a patch.

    An image is cut into the base's patches. The latent of each is found by a few steps of SGD from
    zero, at the base's learned rates, quantised uniformly within three standard deviations, and
    range-coded under the base's static table. The rate is set by the base's latent size and the
    bits. What both sides share is the base file, named by the first bytes of its digest, and by all
    of it in the checksum: `Base.shared_bytes` belong beside any rate.

    Attributes:
      base: the base that files are written with; decoding takes streams of this one. None can
        only say what a stream needs.
      bits: of a number of a latent, 2..8; COIN++ has 5 or 6.
      inner_steps: of SGD; COIN++ has 3 in training, 10 here.
    """

    base: Base | None = None
    bits: int = 5
    inner_steps: int = 10

    suffix: ClassVar[str] = ".inr"
    tag: ClassVar[int] = 6
    sections: ClassVar[tuple[str, ...]] = ("base", "grid", "latents")

    def __post_init__(self):
        if self.bits not in BITS or self.inner_steps < 1:
            raise ValueError(
                f"got bits {self.bits} and inner_steps {self.inner_steps}, expected bits "
                f"{BITS.start}..{BITS.stop - 1} and at least one step"
            )

    @property
    def name(self) -> str:
        """``modulated-siren``."""
        return "modulated-siren"

    @property
    def setting(self) -> str:
        """``latent=L_bits=B_inner=N``; L is 0 without a base."""
        latent_dim = self.base.latent_dim if self.base else 0
        return f"latent={latent_dim}_bits={self.bits}_inner={self.inner_steps}"

    @property
    def shared(self) -> Base | None:
        """What decoders have beside the files: ``base``."""
        return self.base

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        """One stream for each uint8 (height, width, 3) image; progress counts patches.

        Raises ValueError for another array, or without a base.
        """
        if not images:
            return []
        if self.base is None:
            raise ValueError("got no base, expected one to encode with: give `load_base(path)`")
        from inrjax import modulation

        decoding.check_images(images)
        patches = [modulation.cut(image, self.base.patch) for image in images]
        latents = modulation.fit_latents(self.base, patches, self.inner_steps, on_progress)
        return decoding.pack_each(self.pack, images, latents)

    def pack(self, image: Image, latents: np.ndarray) -> bytes:
        """The stream of fitted latents (patches, latent_dim), for an image of this size."""
        assert self.base is not None
        symbols = to_symbols(latents, self.base.centre, self.base.spread, self.bits).ravel()
        sections = [
            self.base.digest[: decoding.DIGEST_BYTES],
            decoding.symbol_check(symbols) + bytes([self.bits]),
            entropy.encode_table(symbols, self.base.table(self.bits)),
        ]
        height, width = image.shape[:2]
        return bitstream.pack(self.tag, height, width, sections, self.base.digest)

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The uint8 (height, width, 3) images of files of this base; BitstreamError if bad."""
        return [self._decode_one(stream) for stream in streams]

    def context(self, stream: bitstream.Stream) -> bytes:
        """What the checksum covers beside the stream: the digest of the base that it names.

        Raises BitstreamError if that is not this codec's, or the stream is not ModulatedSiren's.
        """
        return self._base_of(stream).digest

    def _base_of(self, stream: bitstream.Stream) -> Base:
        decoding.check_sections(stream, self.tag, len(self.sections))
        wanted = stream.sections[0]
        if len(wanted) != decoding.DIGEST_BYTES:
            raise BitstreamError("the section 'base' is damaged")
        if self.base is None or not self.base.digest.startswith(wanted):
            raise BitstreamError(
                f"the base {wanted.hex()} is not known here: give the base file it was encoded "
                "with, or the file is damaged"
            )
        return self.base

    def _decode_one(self, data: bytes) -> Image:
        base = self._base_of(bitstream.peek(data))
        stream = decoding.unpack(data, self.tag, len(self.sections), base.digest)
        _, grid, payload = stream.sections
        if len(grid) != decoding.CHECK_BYTES + 1 or grid[-1] not in BITS:
            raise BitstreamError("the section 'grid' is damaged")
        bits = grid[-1]
        rows, columns = (-(-side // base.patch) for side in (stream.height, stream.width))
        count = rows * columns * base.latent_dim
        symbols = entropy.decode_table(payload, base.table(bits), count)
        decoding.require_symbols(symbols, grid[: decoding.CHECK_BYTES])
        latents = from_symbols(
            symbols.reshape(rows * columns, base.latent_dim), base.centre, base.spread, bits
        )
        return _render(base, latents.reshape(rows, columns, -1), stream.height, stream.width)


def _render(base: Base, latents: np.ndarray, height: int, width: int) -> Image:
    """The image of latents (rows, columns, latent_dim), patch by patch on all cores."""
    columns, patch = latents.shape[1], base.patch
    image = np.empty((height, width, 3), np.uint8)
    shift = np.asarray(base.shift, np.float64)
    places = images.centres(patch)

    def fill(group: range) -> None:
        for place in group:
            row, column = divmod(place, columns)
            params: Any = modulate(base.net, base.params, shift, latents[row, column])
            part = image[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            values = decoding.pixels(base.net, params, places, places)
            part[:] = values[: part.shape[0], : part.shape[1]]  # what is beyond the image is left

    count, size = latents.shape[0] * columns, max(1, _GROUP_PIXELS // patch**2)
    groups = [range(start, min(start + size, count)) for start in range(0, count, size)]
    decoding.on_all_cores(fill, groups)
    return image
