"""JPEG XL and HEVC intra through optional packages (the extra ``codecs``).

A stream is the plain file that any viewer of the format opens. Neither format carries a checksum:
the decoders refuse what is cut short, of another format or damaged where the format shows it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image as PillowImage

from inrjax.imagefile import (
    check_integer,
    encode_each,
    one_line,
    pillow_load,
    require,
    whole_boxes,
)
from inrjax.types import BitstreamError, Image, OnProgress

JPEG_XL_DISTANCES = (25.0, 15.0, 10.0, 6.0, 4.0, 2.5, 1.6)
"""On Kodak 0.13 to 1.32 bpp; libjxl offers no coarser setting than distance 25."""

HEVC_QPS = (51, 47, 43, 39, 35, 31, 27)
"""On Kodak 0.05 to 1.19 bpp; the standard offers no coarser quantiser than 51."""

_JPEG_XL_MAX_SIDE = 2**18
_HEVC_MAX_SIDE = 8192
_HEVC_MIN_SIDE = 32  # x265 opens for no smaller picture with the coding trees of its slow presets


@dataclass(frozen=True, eq=False)
class JpegXl:
    """JPEG XL (ISO/IEC 18181), lossy VarDCT in XYB at 4:4:4, by libjxl.

    ``distance`` is libjxl's target in just-noticeable differences, 0.05..25. Flags: effort 7 (8 and
    9 need up to 2 % more bits for the same PSNR in 2 to 3 times the time, on 4 held-back CID22
    images: they search for perceived quality), one thread, a bare codestream. Raises ValueError for
    another distance, or where imagecodecs is not installed.
    """

    distance: float

    suffix: ClassVar[str] = ".jxl"

    def __post_init__(self) -> None:
        if isinstance(self.distance, bool) or not 0.05 <= self.distance <= 25:
            raise ValueError(
                f"got JPEG XL distance {self.distance!r}, expected a number in 0.05..25"
            )
        require("imagecodecs", self.name, "codecs")

    @property
    def name(self) -> str:
        """``jpeg-xl``."""
        return "jpeg-xl"

    @property
    def setting(self) -> str:
        """``distance=D``."""
        return f"distance={self.distance:.12g}"

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        """One .jxl file for each uint8 (height, width, 3) image; progress counts images.

        Raises ValueError for another array, or for a side longer than 262144 pixels.
        """
        return encode_each(images, self._encode_one, "JPEG XL", _JPEG_XL_MAX_SIDE, on_progress)

    def _encode_one(self, image: Image) -> bytes:
        import imagecodecs

        image = np.ascontiguousarray(image)
        return bytes(
            imagecodecs.jpegxl_encode(
                image, distance=self.distance, effort=7, usecontainer=False, numthreads=1
            )
        )

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The uint8 (height, width, 3) images; BitstreamError for a cut or foreign file."""
        return [_load_jpeg_xl(stream) for stream in streams]


def _load_jpeg_xl(data: bytes) -> Image:
    import imagecodecs

    if not data.startswith(b"\xff\x0a"):
        raise BitstreamError("not a bare JPEG XL codestream: it does not start with its signature")
    try:
        image = np.asarray(imagecodecs.jpegxl_decode(data, numthreads=1))
    except Exception as error:  # the package has a type of its own for libjxl's errors
        raise BitstreamError(f"truncated or damaged JPEG XL data: {one_line(error)}") from error
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise BitstreamError(
            f"got a JPEG XL picture of dtype {image.dtype} and shape {image.shape}, expected "
            "uint8 RGB"
        )
    return image


@dataclass(frozen=True, eq=False)
class Hevc:
    """An HEVC intra picture (ITU-T H.265) in a HEIF file, by x265 through libheif.

    This is HEVC as x265 codes it, not BPG, which has a smaller container and its own settings.
    ``qp`` is the constant quantiser, an integer in 0..51. Flags: preset veryslow, tune psnr,
    tu-intra-depth 4, 8 bits, 4:2:0, full-range YCbCr of BT.601. 4:2:0 takes fewer bits than 4:4:4
    for the same PSNR in RGB up to 31 dB (54 against 51 % fewer than optimised JPEG, 4 held-back
    CID22 images), which is where ours are; 10 bits give nothing. About 380 bytes are the
    container's. A picture with a side under 32 pixels is padded, and its size goes into a ``skip``
    box of 16 bytes at the end, which other readers ignore. Raises ValueError for another qp, or
    where pillow-heif is not installed.
    """

    qp: int

    suffix: ClassVar[str] = ".heic"

    def __post_init__(self) -> None:
        check_integer("HEVC qp", self.qp, 0, 51)
        require("pillow_heif", self.name, "codecs")

    @property
    def name(self) -> str:
        """``hevc``."""
        return "hevc"

    @property
    def setting(self) -> str:
        """``qp=Q``."""
        return f"qp={self.qp}"

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        """One .heic file for each uint8 (height, width, 3) image; progress counts images.

        Raises ValueError for another array, or for a side longer than 8192 pixels.
        """
        return encode_each(images, self._encode_one, "HEVC", _HEVC_MAX_SIDE, on_progress)

    def _encode_one(self, image: Image) -> bytes:
        from pillow_heif import from_pillow

        height, width, _ = image.shape
        pad = [(0, max(0, _HEVC_MIN_SIDE - side)) for side in (height, width)]
        padded = np.pad(image, [*pad, (0, 0)], mode="edge")
        buffer = io.BytesIO()
        from_pillow(PillowImage.fromarray(padded)).save(
            buffer,
            quality=50,  # libheif wants one; the constant quantiser overrules it
            chroma=420,
            enc_params={
                "preset": "veryslow",
                "tune": "psnr",
                "tu-intra-depth": "4",
                "x265:qp": str(self.qp),
                "x265:pools": "1",
            },
        )
        if padded.shape == image.shape:
            return buffer.getvalue()
        size = height.to_bytes(4, "big") + width.to_bytes(4, "big")
        return buffer.getvalue() + (8 + len(size)).to_bytes(4, "big") + b"skip" + size

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The uint8 (height, width, 3) images; BitstreamError for a cut or foreign file."""
        return [_load_heic(stream) for stream in streams]


def _load_heic(data: bytes) -> Image:
    from pillow_heif import register_heif_opener

    boxes = whole_boxes(data, "HEIF")
    register_heif_opener()
    image = pillow_load(data, "HEIF")
    size = boxes.get(b"skip")
    if size is None:
        return image
    height, width = int.from_bytes(size[:4], "big"), int.from_bytes(size[4:], "big")
    if len(size) != 8 or not 0 < height <= image.shape[0] or not 0 < width <= image.shape[1]:
        raise BitstreamError(f"damaged HEIF file: it says {height} x {width} pixels are shown")
    return image[:height, :width].copy()


def library_versions() -> dict[str, str]:
    """The versions of the libraries that write the bytes, of those installed: name -> version."""
    versions = {}
    try:
        import imagecodecs

        versions["imagecodecs/libjxl"] = imagecodecs.jpegxl_version().removeprefix("libjxl ")
    except ImportError:
        pass
    try:
        import pillow_heif

        info = pillow_heif.libheif_info()
        versions["pillow-heif/libheif"] = info["libheif"]
        versions["pillow-heif/x265"] = info["HEIF"]
    except ImportError:
        pass
    return versions
