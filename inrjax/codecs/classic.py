"""JPEG, JPEG 2000, WebP, AVIF and PNG: the classic codecs beside which ours are measured.

All are Pillow's but `MozJpeg`, whose encoder is in the extra ``codecs``. A stream is the plain file
that any viewer opens, without a wrapper. The decoders refuse what is cut short, of another format
or damaged where the format shows it: all but PNG carry no checksum, so a flipped bit inside the
coded coefficients may still decode, to a wrong picture.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from inrjax.imagefile import (
    check_integer,
    encode_each,
    pillow_load,
    pillow_save,
    require,
    whole_boxes,
)
from inrjax.types import BitstreamError, Image, OnProgress

JPEG_QUALITIES = (1, 3, 5, 7, 10, 13, 17, 22, 28, 35, 45, 55, 65)
"""On Kodak 0.17 to 1.13 bpp with the default Huffman tables, 0.09 to 1.10 with optimised ones."""

JPEG2000_RATIOS = (480, 340, 240, 160, 120, 80, 60, 40, 30, 24, 20)
"""On Kodak 0.05 to 1.20 bpp: 24 bits per pixel divided by the ratio."""

WEBP_QUALITIES = (0, 1, 4, 8, 13, 20, 28, 38, 50, 62, 72, 80)
"""On Kodak 0.10 to 1.15 bpp; Pillow offers no coarser setting than quality 0."""

MOZJPEG_QUALITIES = (4, 8, 14, 20, 28, 40, 55, 75)
"""On Kodak 0.07 to 1.11 bpp."""

AVIF_QUALITIES = (0, 8, 17, 27, 38, 49, 60)
"""On Kodak 0.04 to 1.13 bpp."""

_JPEG_MAX_SIDE = 65500  # libjpeg's own limit; the format's 16-bit fields would reach 65535
_WEBP_MAX_SIDE = 16383
_AVIF_MAX_SIDE = 16384
_PNG_MAX_SIDE = 2**31 - 1
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, eq=False)
class Jpeg:
    """JPEG by libjpeg-turbo (ITU-T T.81), YCbCr of BT.601.

    ``quality`` is an integer in 1..100. ``optimize=False`` uses the standard's default Huffman
    tables, as the published curves do; ``optimize=True`` codes the same pixels with tables fitted
    to the image, in far fewer bytes at low rates. ``progressive`` codes them in ten scans instead
    of one (baseline), always with fitted tables. ``subsample`` halves both sides of the chroma
    planes (4:2:0); False keeps them whole (4:4:4), which costs 15 % more bits for the same PSNR in
    RGB from 23 to 35 dB (4 held-back CID22 images). Raises ValueError for another quality, or for
    a progressive file without fitted tables.
    """

    quality: int
    optimize: bool
    progressive: bool = False
    subsample: bool = True

    suffix: ClassVar[str] = ".jpg"

    def __post_init__(self) -> None:
        check_integer("JPEG quality", self.quality, 1, 100)
        if self.progressive and not self.optimize:
            raise ValueError(
                "got a progressive JPEG with default Huffman tables, expected optimize=True: "
                "the default tables are for baseline files"
            )

    @property
    def name(self) -> str:
        """``jpeg`` with default Huffman tables, ``jpeg-optimized`` with fitted ones,
        ``jpeg-progressive``; ``-444`` after it without subsampling."""
        kind = "-progressive" if self.progressive else "-optimized" if self.optimize else ""
        return f"jpeg{kind}{'' if self.subsample else '-444'}"

    @property
    def setting(self) -> str:
        """``quality=Q``."""
        return f"quality={self.quality}"

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        """One .jpg file for each uint8 (height, width, 3) image; progress counts images.

        Raises ValueError for another array, or for a side longer than 65500 pixels.
        """
        options = {
            "quality": self.quality,
            "subsampling": 2 if self.subsample else 0,
            "progressive": self.progressive,
            "optimize": self.optimize,
        }
        return _save_each(images, "JPEG", options, _JPEG_MAX_SIDE, on_progress)

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The uint8 (height, width, 3) images; BitstreamError for a cut or foreign file."""
        return [pillow_load(_whole_jpeg(stream), "JPEG") for stream in streams]


@dataclass(frozen=True, eq=False)
class MozJpeg:
    """JPEG by MozJPEG, 4:2:0, progressive: the strongest JPEG encoder that a wheel carries.

    It is in pyvips-binary (MozJPEG 5.0.0 in 8.18.7). Flags: trellis quantisation, scans chosen for
    the image, overshoot deringing, and quantisation table 2: the best of the nine for PSNR on 4
    held-back CID22 images, where it takes 17 % fewer bits than optimised baseline JPEG (the
    standard's table 0: 7.5 % fewer). Its authors tuned it for MS-SSIM on Kodak, which may flatter
    it there. Jpegli, whose only wheel with an encoder sets nothing but a quality, takes 4 % more
    bits than optimised JPEG. libjpeg-turbo decodes.
    ``quality`` is an integer in 1..100. Raises ValueError for another quality, or where pyvips is
    not installed (extra ``codecs``).
    """

    quality: int

    suffix: ClassVar[str] = ".jpg"

    def __post_init__(self) -> None:
        check_integer("JPEG quality", self.quality, 1, 100)
        require("pyvips", self.name, "codecs")

    @property
    def name(self) -> str:
        """``jpeg-mozjpeg``."""
        return "jpeg-mozjpeg"

    @property
    def setting(self) -> str:
        """``quality=Q``."""
        return f"quality={self.quality}"

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        """One .jpg file for each uint8 (height, width, 3) image; progress counts images.

        Raises ValueError for another array, or for a side longer than 65500 pixels.
        """
        return encode_each(images, self._encode_one, "JPEG", _JPEG_MAX_SIDE, on_progress)

    def _encode_one(self, image: Image) -> bytes:
        import pyvips

        height, width, bands = image.shape
        picture = pyvips.Image.new_from_memory(image.tobytes(), width, height, bands, "uchar")
        return picture.copy(interpretation="srgb").jpegsave_buffer(
            Q=self.quality,
            subsample_mode="on",
            quant_table=2,
            optimize_coding=True,
            interlace=True,
            optimize_scans=True,
            trellis_quant=True,
            overshoot_deringing=True,
            keep=0,  # no metadata
        )

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The uint8 (height, width, 3) images; BitstreamError for a cut or foreign file."""
        return [pillow_load(_whole_jpeg(stream), "JPEG") for stream in streams]


@dataclass(frozen=True, eq=False)
class Jpeg2000:
    """JPEG 2000 Part 1 by OpenJPEG: 9/7 wavelet, colour transform, one layer, one tile.

    ``ratio`` is the compression ratio against 24 bits per pixel, 1..2000: 240 asks for 0.1 bpp.
    The rate is set by ratio and not by a target PSNR because a curve of means is better so: the
    same PSNR for every image of Kodak costs 47 % more bits at an equal mean PSNR. The stream is
    the raw codestream (.j2k), 85 bytes smaller than the .jp2 box file with the same content, and
    OpenJPEG's 33-byte comment is replaced by one blank (an empty one brings the default back), so
    that no byte is counted that the picture does not need. Raises ValueError for another ratio.
    """

    ratio: float

    suffix: ClassVar[str] = ".j2k"

    def __post_init__(self) -> None:
        if isinstance(self.ratio, bool) or not 1 <= self.ratio <= 2000:
            raise ValueError(f"got JPEG 2000 ratio {self.ratio!r}, expected a number in 1..2000")

    @property
    def name(self) -> str:
        """``jpeg2000``."""
        return "jpeg2000"

    @property
    def setting(self) -> str:
        """``ratio=R``."""
        return f"ratio={self.ratio:.12g}"

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        """One .j2k file for each uint8 (height, width, 3) image; progress counts images.

        An image too small for the ratio gets the smallest stream that still decodes, about 100
        bytes. Raises ValueError for another array.
        """
        options = {
            "no_jp2": True,
            "mct": 1,  # Pillow's default codes R, G and B apart: 4.6 dB worse
            "irreversible": True,
            "quality_mode": "rates",
            "quality_layers": [self.ratio],
            "comment": " ",
        }
        return _save_each(images, "JPEG2000", options, 2**31 - 1, on_progress)

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The uint8 (height, width, 3) images; BitstreamError for a cut or foreign file."""
        return [pillow_load(_whole_codestream(stream), "JPEG2000") for stream in streams]


@dataclass(frozen=True, eq=False)
class WebP:
    """Lossy WebP (a VP8 key frame, 4:2:0) by libwebp with its slowest search, ``method=6``.

    ``quality`` is an integer in 0..100. Raises ValueError for another quality.
    """

    quality: int

    suffix: ClassVar[str] = ".webp"

    def __post_init__(self) -> None:
        check_integer("WebP quality", self.quality, 0, 100)

    @property
    def name(self) -> str:
        """``webp``."""
        return "webp"

    @property
    def setting(self) -> str:
        """``quality=Q``."""
        return f"quality={self.quality}"

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        """One .webp file for each uint8 (height, width, 3) image; progress counts images.

        Raises ValueError for another array, or for a side longer than 16383 pixels.
        """
        options = {"quality": self.quality, "method": 6, "lossless": False}
        return _save_each(images, "WEBP", options, _WEBP_MAX_SIDE, on_progress)

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The uint8 (height, width, 3) images; BitstreamError for a cut or foreign file."""
        return [pillow_load(_whole_webp(stream), "WEBP") for stream in streams]


@dataclass(frozen=True, eq=False)
class Avif:
    """AVIF (an AV1 key frame) by libaom, 8 bits, 4:4:4, full-range YCbCr of BT.601.

    ``quality`` is an integer in 0..100. Flags: speed 4, ``tune=psnr`` (libavif's default tunes for
    SSIM), one thread. 4:4:4 takes fewer bits than 4:2:0 for the same PSNR in RGB (58.1 against
    56.6 % fewer than optimised JPEG, 4 held-back CID22 images); at 4:2:0 speed 2 needed 2 % fewer
    bits in 8 times the time. About 300 bytes are the container's. Pillow 13.0.0 carries libaom
    3.14.1. Raises ValueError for another quality.
    """

    quality: int

    suffix: ClassVar[str] = ".avif"

    def __post_init__(self) -> None:
        check_integer("AVIF quality", self.quality, 0, 100)

    @property
    def name(self) -> str:
        """``avif``."""
        return "avif"

    @property
    def setting(self) -> str:
        """``quality=Q``."""
        return f"quality={self.quality}"

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        """One .avif file for each uint8 (height, width, 3) image; progress counts images.

        Raises ValueError for another array, or for a side longer than 16384 pixels.
        """
        options = {
            "quality": self.quality,
            "subsampling": "4:4:4",
            "range": "full",
            "speed": 4,
            "codec": "aom",
            "max_threads": 1,
            "advanced": {"tune": "psnr"},
        }
        return _save_each(images, "AVIF", options, _AVIF_MAX_SIDE, on_progress)

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The uint8 (height, width, 3) images; BitstreamError for a cut or foreign file."""
        return [pillow_load(_whole_avif(stream), "AVIF") for stream in streams]


@dataclass(frozen=True, eq=False)
class Png:
    """PNG by zlib at its highest level, the filter chosen row by row: the lossless mark."""

    suffix: ClassVar[str] = ".png"

    @property
    def name(self) -> str:
        """``png``."""
        return "png"

    @property
    def setting(self) -> str:
        """``level=9``."""
        return "level=9"

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        """One .png file for each uint8 (height, width, 3) image; progress counts images.

        Raises ValueError for another array.
        """
        return _save_each(images, "PNG", {"optimize": True}, _PNG_MAX_SIDE, on_progress)

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The uint8 (height, width, 3) images; BitstreamError for any damage (checksums)."""
        return [pillow_load(_whole_png(stream), "PNG") for stream in streams]


def _save_each(
    images: Sequence[Image],
    format_name: str,
    options: dict[str, Any],
    max_side: int,
    on_progress: OnProgress | None,
) -> list[bytes]:
    def encode_one(image: Image) -> bytes:
        return pillow_save(image, format_name, options)

    return encode_each(images, encode_one, format_name, max_side, on_progress)


def _whole_jpeg(data: bytes) -> bytes:
    """``data``, if it runs from start-of-image to end-of-image."""
    if not data.startswith(b"\xff\xd8\xff"):
        raise BitstreamError("not a JPEG file: it does not start with a start-of-image marker")
    # End-of-image cannot occur inside the coded data, where every 0xff is followed by a zero.
    if not data.endswith(b"\xff\xd9"):
        raise BitstreamError("truncated JPEG file: it does not end with an end-of-image marker")
    return data


def _whole_webp(data: bytes) -> bytes:
    """``data``, if it is a RIFF WEBP container of exactly the size that its header states."""
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise BitstreamError("not a WebP file: it does not start with a RIFF WEBP header")
    stated = 8 + int.from_bytes(data[4:8], "little")
    if stated != len(data):
        raise BitstreamError(f"damaged WebP file: {len(data)} bytes, its header says {stated}")
    return data


def _whole_avif(data: bytes) -> bytes:
    """``data``, if its boxes are whole."""
    whole_boxes(data, "AVIF")
    return data


def _whole_png(data: bytes) -> bytes:
    """``data``, if its chunks fill it as far as IEND, each with the right checksum."""
    if not data.startswith(_PNG_SIGNATURE):
        raise BitstreamError("not a PNG file: it does not start with PNG's signature")
    start, kind = len(_PNG_SIGNATURE), b""
    while start < len(data) and kind != b"IEND":
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if end > len(data):
            raise BitstreamError("truncated PNG file: an incomplete chunk")
        kind = data[start + 4 : start + 8]
        if data[end - 4 : end] != struct.pack(">I", zlib.crc32(data[start + 4 : end - 4])):
            raise BitstreamError("damaged PNG file: the checksum of a chunk is wrong")
        start = end
    if kind != b"IEND" or start != len(data):
        raise BitstreamError("truncated or damaged PNG file: it does not end with its end chunk")
    return data


def _whole_codestream(data: bytes) -> bytes:
    """``data``, if its tile parts fill it exactly up to the end-of-codestream marker."""
    if not data.startswith(b"\xff\x4f\xff\x51"):
        raise BitstreamError("not a raw JPEG 2000 codestream: it does not start with SOC and SIZ")
    if data[_end_of_tile_parts(data) :] != b"\xff\xd9":
        raise BitstreamError("truncated or damaged JPEG 2000 codestream: no end marker at its end")
    return data


def _end_of_tile_parts(data: bytes) -> int:
    """Where the last whole marker segment or tile part ends (ISO/IEC 15444-1, Annex A)."""
    start, length = 0, 2
    while length >= 2 and len(data) - start - length >= 2:
        start += length
        if data[start : start + 2] == b"\xff\x90":  # SOT: its length covers the whole tile part
            length = int.from_bytes(data[start + 6 : start + 10], "big")
        else:
            length = 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return start
