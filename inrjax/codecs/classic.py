"""JPEG, JPEG 2000 and WebP through Pillow: the classic codecs beside which ours are measured.

A stream is the plain file that any viewer opens, without a wrapper. The decoders refuse what is
cut short, of another format or damaged where the format shows it: JPEG, JPEG 2000 and WebP carry
no checksum, so a flipped bit inside the coded coefficients may still decode, to a wrong picture.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from inrjax.types import BitstreamError, Image, OnProgress

JPEG_QUALITIES = (1, 3, 5, 7, 10, 13, 17, 22, 28, 35, 45, 55, 65)
"""On Kodak 0.17 to 1.13 bpp with the default Huffman tables, 0.09 to 1.10 with optimised ones."""

JPEG2000_RATIOS = (480, 340, 240, 160, 120, 80, 60, 40, 30, 24, 20)
"""On Kodak 0.05 to 1.20 bpp: 24 bits per pixel divided by the ratio."""

WEBP_QUALITIES = (0, 1, 4, 8, 13, 20, 28, 38, 50, 62, 72, 80)
"""On Kodak 0.10 to 1.15 bpp; Pillow offers no coarser setting than quality 0."""

_JPEG_MAX_SIDE = 65500  # libjpeg's own limit; the format's 16-bit fields would reach 65535
_WEBP_MAX_SIDE = 16383


@dataclass(frozen=True, eq=False)
class Jpeg:
    """Baseline JPEG, 4:2:0, by libjpeg-turbo (ITU-T T.81).

    ``quality`` is an integer in 1..100. ``optimize=False`` uses the standard's default Huffman
    tables, as the published curves do; ``optimize=True`` codes the same pixels with tables fitted
    to the image, in far fewer bytes at low rates. Raises ValueError for another quality.
    """

    quality: int
    optimize: bool

    suffix: ClassVar[str] = ".jpg"

    def __post_init__(self) -> None:
        _check_integer("JPEG quality", self.quality, 1, 100)

    @property
    def name(self) -> str:
        """``jpeg`` with default Huffman tables, ``jpeg-optimized`` with fitted ones."""
        return "jpeg-optimized" if self.optimize else "jpeg"

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
            "subsampling": 2,  # 4:2:0
            "progressive": False,
            "optimize": self.optimize,
        }
        return _save_all(images, "JPEG", options, _JPEG_MAX_SIDE, on_progress)

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The uint8 (height, width, 3) images; BitstreamError for a cut or foreign file."""
        return [_load(_whole_jpeg(stream), "JPEG") for stream in streams]


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
        return _save_all(images, "JPEG2000", options, 2**31 - 1, on_progress)

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The uint8 (height, width, 3) images; BitstreamError for a cut or foreign file."""
        return [_load(_whole_codestream(stream), "JPEG2000") for stream in streams]


@dataclass(frozen=True, eq=False)
class WebP:
    """Lossy WebP (a VP8 key frame, 4:2:0) by libwebp with its slowest search, ``method=6``.

    ``quality`` is an integer in 0..100. Raises ValueError for another quality.
    """

    quality: int

    suffix: ClassVar[str] = ".webp"

    def __post_init__(self) -> None:
        _check_integer("WebP quality", self.quality, 0, 100)

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
        return _save_all(images, "WEBP", options, _WEBP_MAX_SIDE, on_progress)

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The uint8 (height, width, 3) images; BitstreamError for a cut or foreign file."""
        return [_load(_whole_webp(stream), "WEBP") for stream in streams]


def _check_integer(what: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"got {what} {value!r}, expected an integer in {low}..{high}")


def _check_image(image: Image, format_name: str, max_side: int) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"got an image of dtype {image.dtype} and shape {image.shape}, "
            "expected uint8 (height, width, 3)"
        )
    if max(image.shape) > max_side:
        raise ValueError(
            f"{format_name} holds at most {max_side} pixels a side, "
            f"got {image.shape[0]} x {image.shape[1]}: make the image smaller"
        )


def _save_all(
    images: Sequence[Image],
    format_name: str,
    options: dict[str, Any],
    max_side: int,
    on_progress: OnProgress | None,
) -> list[bytes]:
    for image in images:
        _check_image(image, format_name, max_side)
    streams = []
    for image in images:
        buffer = io.BytesIO()
        PillowImage.fromarray(image).save(buffer, format_name, **options)
        streams.append(buffer.getvalue())
        if on_progress is not None:
            on_progress(len(streams), len(images))
    return streams


def _load(data: bytes, format_name: str) -> Image:
    try:
        with PillowImage.open(io.BytesIO(data), formats=(format_name,)) as picture:
            mode, pixels = picture.mode, np.array(picture)
    except UnidentifiedImageError as error:  # its own text names a buffer's address
        raise BitstreamError(f"damaged {format_name} data: its header cannot be read") from error
    except Exception as error:  # Pillow's plugins raise many types on damaged data
        raise BitstreamError(f"damaged {format_name} data: {error}") from error
    if mode != "RGB":
        raise BitstreamError(f"got a {format_name} picture of mode {mode}, expected RGB")
    return pixels


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
