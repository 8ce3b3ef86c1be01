"""Codecs: image -> bytes -> image. One file for a family; every codec here has a fixed tag."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from inrjax import bitstream
from inrjax.base import Base, load_base
from inrjax.codecs import (
    classic,
    fmm,
    inr,
    latent_grid,
    modern,
    modulated,
    product,
    strumpler,
    vvc,
)
from inrjax.codecs.classic import Avif, Jpeg, Jpeg2000, MozJpeg, Png, WebP
from inrjax.codecs.fmm import Fmm, FmmInside
from inrjax.codecs.inr import Coin, MetaSiren
from inrjax.codecs.latent_grid import LatentGrid
from inrjax.codecs.modern import Hevc, JpegXl
from inrjax.codecs.modulated import ModulatedSiren
from inrjax.codecs.product import ProductSiren
from inrjax.codecs.strumpler import StrumplerBasic, StrumplerMeta
from inrjax.codecs.vvc import Vvc
from inrjax.grids import GridBase, load_grid_base
from inrjax.init import Init, load_init
from inrjax.types import BitstreamError, Codec, Image

__all__ = [
    "BY_NAME",
    "BY_TAG",
    "DEFAULT_MAX_PIXELS",
    "GIVEN",
    "Avif",
    "Coin",
    "Description",
    "Fmm",
    "FmmInside",
    "Hevc",
    "Jpeg",
    "Jpeg2000",
    "JpegXl",
    "LatentGrid",
    "MetaSiren",
    "ModulatedSiren",
    "MozJpeg",
    "Png",
    "ProductSiren",
    "StrumplerBasic",
    "StrumplerMeta",
    "Vvc",
    "WebP",
    "classic",
    "decode_stream",
    "decoder",
    "describe",
    "fmm",
    "inr",
    "latent_grid",
    "load_shared",
    "modern",
    "modulated",
    "product",
    "shared_of",
    "strumpler",
    "vvc",
]

BY_TAG = {
    codec.tag: codec
    for codec in (
        Coin,
        MetaSiren,
        StrumplerBasic,
        StrumplerMeta,
        ProductSiren,
        ModulatedSiren,
        LatentGrid,
    )
}
"""The codec of each tag that an .inr file can name."""


BY_NAME: dict[str, Callable[[], Codec]] = {
    "coin": Coin,
    "meta-siren": MetaSiren,
    "strumpler-basic": StrumplerBasic,
    "strumpler-meta": StrumplerMeta,
    "product-siren": ProductSiren,
    "modulated-siren": ModulatedSiren,
    "latent-grid": LatentGrid,
    "jpeg": lambda: Jpeg(1, optimize=False),
    "jpeg-optimized": lambda: Jpeg(1, optimize=True),
    "jpeg-progressive": lambda: Jpeg(1, optimize=True, progressive=True),
    "jpeg-optimized-444": lambda: Jpeg(1, optimize=True, subsample=False),
    "jpeg-mozjpeg": lambda: MozJpeg(1),
    "jpeg2000": lambda: Jpeg2000(1),
    "webp": lambda: WebP(0),
    "avif": lambda: Avif(0),
    "jpeg-xl": lambda: JpegXl(1.0),
    "hevc": lambda: Hevc(0),
    "vvc": lambda: Vvc(0),
    "png": Png,
    "fmm": Fmm,
    "fmm-jpeg-optimized": lambda: FmmInside(Jpeg(1, optimize=True)),
}
"""How to make a codec of each name that a row of a table can have; ValueError where its package is
not installed. Decoding needs no setting: any one reads the streams of all."""


Shared = Init | Base | GridBase
"""What an encoder may have been given beside the picture, and its decoder needs."""

GIVEN = ("init", "base")
"""The fields of codecs that it is given by; None there stands for a packaged one."""

_WITH_INIT: tuple[type[Any], ...] = (MetaSiren, StrumplerMeta, ProductSiren)


class Description(NamedTuple):
    """What an .inr file says of itself. ``sections``: bytes of each, ``container`` the rest;
    ``init_digest``: first hex digits of the init or base it needs, None if it needs none."""

    codec: str
    version: int
    height: int
    width: int
    num_bytes: int
    bpp: float
    init_digest: str | None
    sections: dict[str, int]


def _codec_of(stream: bitstream.Stream) -> type[Any]:
    if stream.tag not in BY_TAG:
        raise BitstreamError(
            f"the file has codec tag {stream.tag}, which this inrjax does not know: update "
            "inrjax, or the file is damaged"
        )
    return BY_TAG[stream.tag]


def _with_shared(codec: Callable[[], Codec], shared: Shared | None) -> Any:
    """A codec with the init or the base that its kind takes; others leave it."""
    if isinstance(shared, Base) and codec is ModulatedSiren:
        return ModulatedSiren(shared)
    if isinstance(shared, GridBase) and codec is LatentGrid:
        return LatentGrid(base=shared)
    if isinstance(shared, Init) and codec in _WITH_INIT:
        return codec(width=shared.net.width, init=shared)  # pyright: ignore[reportCallIssue]
    # Without one, a codec finds the packaged init that a stream names, whatever its own width.
    return codec()


def shared_of(codec: Codec) -> Shared | None:
    """What decoders of a codec's files have beside them, its ``shared``; None for a codec that has
    no such thing, whose decoders need nothing."""
    return codec.shared if hasattr(type(codec), "shared") else None  # pyright: ignore


def load_shared(path: str | PathLike[str]) -> Shared:
    """Read what an encoder was given beside the picture: an init, a base of modulated SIRENs, or a
    base of latent grids.

    Raises ValueError if the file is none of them.
    """
    try:
        return load_init(Path(path))
    except ValueError as error:
        for load in (load_base, load_grid_base):
            try:
                return load(Path(path))
            except ValueError:
                continue
        raise error from None


def decoder(name: str, init: Shared | None = None) -> Codec:
    """A codec that decodes every stream of the codec of that name, whatever its setting was.

    ``init``: the init or base that the encoder was given, if it was not a packaged one; codecs
    without one leave it. Raises ValueError for a name that is not in `BY_NAME`, or whose optional
    package is not installed.
    """
    if name not in BY_NAME:
        raise ValueError(f"there is no codec {name!r} here, expected one of {', '.join(BY_NAME)}")
    return _with_shared(BY_NAME[name], init)


DEFAULT_MAX_PIXELS = 1 << 25
"""Pixels that `decode_stream` decodes unless it is told otherwise (33.5 million, 96 MiB)."""


def decode_stream(
    data: bytes, init: Shared | None = None, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Image:
    """The uint8 (height, width, 3) image of any .inr stream that this version knows.

    A stream need not be trusted. ``max_pixels`` is how large a picture it may claim, as Pillow's
    MAX_IMAGE_PIXELS is for other formats: a file of 400 bytes can be a whole picture of any size.
    The format ends at `inrjax.bitstream.MAX_PIXELS` (2^26). Memory is 3 bytes a pixel and a few MB
    for each core; about 20 bytes a pixel of latent grids, which end at 2^24 pixels. Time grows with
    pixels times weights.

    Args:
      data: the bytes of a file.
      init: the init or base that the encoder was given, if it was not a packaged one.
      max_pixels: pixels at most, at least 1.

    Raises:
      BitstreamError: damaged, of another version, of an unknown init or base, or over
        ``max_pixels``; nothing was allocated for the picture.
    """
    stream = bitstream.peek(data)
    bitstream.check_claim(stream, max_pixels)
    return _with_shared(_codec_of(stream), init).decode([data])[0]


def describe(data: bytes, init: Shared | None = None) -> Description:
    """What a stream says of itself, its checksum verified where the init is at hand.

    Raises BitstreamError for a damaged stream, and for one whose init is not known here.
    """
    stream = bitstream.peek(data)
    codec = _with_shared(_codec_of(stream), init)
    context = codec.context(stream)
    bitstream.unpack(data, context)
    return Description(
        codec=codec.name,
        version=data[len(bitstream.MAGIC)],
        height=stream.height,
        width=stream.width,
        num_bytes=len(data),
        bpp=8 * len(data) / (stream.height * stream.width),
        init_digest=stream.sections[0].hex() if context else None,
        sections=bitstream.section_bytes(stream, codec.sections, len(data)),
    )
