"""The Five Modulus Method, the simplest codec of the literature: alone, and inside another codec.

Jassim, Qassim, "Five Modulus Method for Image Compression", Signal & Image Processing: An
International Journal 3 (5), 2012 (arXiv:1211.4591): every value moves to the nearest multiple of
five, an error of at most 2, and is divided by it: 52 values instead of 256. Errors -2..2, equally
likely, are a mean squared error of 2: 45.12 dB.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from inrjax.imagefile import check_image, encode_each
from inrjax.types import BitstreamError, Codec, Image, OnProgress

FMM_JPEG_QUALITIES = (5, 17, 45, 80, 95)
"""On Kodak 0.06 to 1.45 bpp."""

MODULUS = 5
_LARGEST = 255 // MODULUS  # the largest quotient, 51
_BLOCK = 8
_HEADER = struct.Struct(">4sIII")  # magic, height, width, CRC-32 of all the rest
_MAGIC = b"FMM1"
_MIN_BITS, _WIDTH_BITS = 6, 3  # of a block's smallest quotient, and of the bits of a residual
_MAX_SIDE = 65535


def quotients(image: np.ndarray) -> np.ndarray:
    """The nearest multiples of five, divided by five: uint8 0..255 -> uint8 0..51, any shape."""
    return ((image.astype(np.uint16) + MODULUS // 2) // MODULUS).astype(np.uint8)


def multiples(quotient: np.ndarray) -> np.ndarray:
    """Quotients times five, uint8; what is over 51 counts as 51."""
    return (np.minimum(quotient, _LARGEST) * MODULUS).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Fmm:
    """FMM as a file: for each block of 8 x 8 quotients of a channel, its smallest (6 bits), the
    number of bits that the largest residual above it needs (3 bits), and 64 residuals of so many
    bits. A header of 16 bytes holds the size and a checksum. There is no rate to set.
    """

    suffix: ClassVar[str] = ".fmm"

    @property
    def name(self) -> str:
        """``fmm``."""
        return "fmm"

    @property
    def setting(self) -> str:
        """``modulus=5``."""
        return f"modulus={MODULUS}"

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        """One .fmm file for each uint8 (height, width, 3) image; progress counts images.

        Raises ValueError for another array, or for a side longer than 65535 pixels.
        """
        return encode_each(images, _pack, "FMM", _MAX_SIDE, on_progress)

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The uint8 (height, width, 3) images; BitstreamError for any damage (checksum)."""
        return [_unpack(stream) for stream in streams]


@dataclass(frozen=True, eq=False)
class FmmInside:
    """FMM around another codec: that codec's file holds the picture of quotients, 0..51.

    With `inrjax.codecs.Jpeg` inside, it is what Jassim calls FJPEG ("Image Compression by Embedding
    Five Modulus Method into JPEG", Signal & Image Processing: An International Journal 4 (2),
    2013), read so: FMM and the division come before the colour transform and the DCT, and the
    decoder multiplies what JPEG gives back by five. JPEG's own error is multiplied with it, so a
    rate is set by a higher quality than JPEG's alone. The file opens in any viewer, dark.
    """

    codec: Codec

    @property
    def name(self) -> str:
        """``fmm-`` and the inner codec's name."""
        return f"fmm-{self.codec.name}"

    @property
    def setting(self) -> str:
        """The inner codec's."""
        return self.codec.setting

    @property
    def suffix(self) -> str:
        """The inner codec's."""
        return getattr(self.codec, "suffix", ".bin")

    @property
    def shared(self) -> Any:
        """The inner codec's."""
        return getattr(self.codec, "shared", None)

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        """One file of the inner codec for each uint8 (height, width, 3) image.

        Raises ValueError for another array, and as the inner codec does.
        """
        for image in images:
            check_image(image, "FMM", _MAX_SIDE)
        return self.codec.encode([quotients(image) for image in images], on_progress)

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The uint8 (height, width, 3) images; BitstreamError as the inner codec's."""
        return [multiples(image) for image in self.codec.decode(streams)]


def _pack(image: Image) -> bytes:
    height, width, _ = image.shape
    blocks = _to_blocks(quotients(image))
    smallest = blocks.min(axis=1)
    residuals = blocks - smallest[:, None]
    widths = _bit_lengths(residuals.max(axis=1))
    heads = np.hstack([_to_bits(smallest, _MIN_BITS), _to_bits(widths, _WIDTH_BITS)])
    places = _Places(widths)
    bits = np.zeros(places.total, np.uint8)
    for number, where, chosen in places.groups():
        bits[where] = _to_bits(residuals[chosen], number).reshape(len(chosen), -1)
    body = np.packbits(np.concatenate([heads.ravel(), bits])).tobytes()
    size = struct.pack(">II", height, width)
    return _HEADER.pack(_MAGIC, height, width, zlib.crc32(size + body)) + body


def _unpack(data: bytes) -> Image:
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        raise BitstreamError("not an FMM file: it does not start with a header of one")
    _, height, width, checksum = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    if zlib.crc32(data[4:12] + body) != checksum:
        raise BitstreamError("truncated or damaged FMM file: its checksum is wrong")
    count = 3 * -(-height // _BLOCK) * -(-width // _BLOCK)
    head_bits = (_MIN_BITS + _WIDTH_BITS) * count
    if not count or 8 * len(body) < head_bits:
        raise BitstreamError("damaged FMM file: too short for the size it states")
    bits = np.unpackbits(np.frombuffer(body, np.uint8))
    heads = bits[:head_bits].reshape(count, -1)
    smallest = _from_bits(heads[:, :_MIN_BITS])
    places = _Places(_from_bits(heads[:, _MIN_BITS:]))
    if len(bits) != -(-(head_bits + places.total) // 8) * 8:
        raise BitstreamError("damaged FMM file: its length is not what its blocks need")
    blocks = np.repeat(smallest[:, None], _BLOCK**2, axis=1)
    for number, where, chosen in places.groups():
        values = bits[head_bits + where].reshape(len(chosen), _BLOCK**2, number)
        blocks[chosen] += _from_bits(values)
    return multiples(_from_blocks(blocks, height, width))


class _Places:
    """Where the residuals of each block are, in bits from the first."""

    def __init__(self, widths: np.ndarray):
        lengths = _BLOCK**2 * widths.astype(np.int64)
        ends = np.cumsum(lengths)
        self._widths, self._starts = widths, ends - lengths
        self.total = int(ends[-1])

    def groups(self):
        """For each number of bits: it, the bits' places (blocks, bits), and the blocks."""
        for number in range(1, 1 << _WIDTH_BITS):
            chosen = np.flatnonzero(self._widths == number)
            where = self._starts[chosen][:, None] + np.arange(_BLOCK**2 * number)
            if len(chosen):
                yield number, where, chosen


def _to_blocks(image: np.ndarray) -> np.ndarray:
    """(blocks, 64): channel by channel, row by row; the last row and column repeat into the rim."""
    height, width, channels = image.shape
    image = np.pad(image, [(0, -height % _BLOCK), (0, -width % _BLOCK), (0, 0)], mode="edge")
    rows, columns = image.shape[0] // _BLOCK, image.shape[1] // _BLOCK
    tiles = image.reshape(rows, _BLOCK, columns, _BLOCK, channels)
    return tiles.transpose(4, 0, 2, 1, 3).reshape(-1, _BLOCK**2)


def _from_blocks(blocks: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = -(-height // _BLOCK), -(-width // _BLOCK)
    tiles = blocks.reshape(-1, rows, columns, _BLOCK, _BLOCK).transpose(1, 3, 2, 4, 0)
    return tiles.reshape(rows * _BLOCK, columns * _BLOCK, -1)[:height, :width]


def _bit_lengths(values: np.ndarray) -> np.ndarray:
    """The number of bits of each value, 0 for 0."""
    return np.searchsorted(1 << np.arange(8), values, side="right").astype(np.uint8)


def _to_bits(values: np.ndarray, number: int) -> np.ndarray:
    """Values as ``number`` bits each, the highest first, along a new last axis."""
    return values[..., None] >> np.arange(number - 1, -1, -1, dtype=np.uint8) & 1


def _from_bits(bits: np.ndarray) -> np.ndarray:
    """The inverse of `_to_bits`."""
    return (bits << np.arange(bits.shape[-1] - 1, -1, -1, dtype=np.uint8)).sum(-1, dtype=np.uint8)
