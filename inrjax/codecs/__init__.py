"""Codecs: image -> bytes -> image. One file for a family; every codec here has a fixed tag."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from inrjax import bitstream
from inrjax.codecs import classic, fmm, inr, modern, product, vvc
from inrjax.codecs.classic import Avif, Jpeg, Jpeg2000, MozJpeg, Png, WebP
from inrjax.codecs.fmm import Fmm, FmmInside
from inrjax.codecs.inr import Coin, MetaSiren
from inrjax.codecs.modern import Hevc, JpegXl
from inrjax.codecs.product import ProductSiren
from inrjax.codecs.vvc import Vvc
from inrjax.init import Init
from inrjax.types import BitstreamError, Codec, Image

__all__ = [
    "BY_NAME",
    "BY_TAG",
    "Avif",
    "Coin",
    "Description",
    "Fmm",
    "FmmInside",
    "Hevc",
    "Jpeg",
    "Jpeg2000",
    "JpegXl",
    "MetaSiren",
    "MozJpeg",
    "Png",
    "ProductSiren",
    "Vvc",
    "WebP",
    "classic",
    "decode_stream",
    "decoder",
    "describe",
    "fmm",
    "inr",
    "modern",
    "product",
    "vvc",
]

BY_TAG = {codec.tag: codec for codec in (Coin, MetaSiren, ProductSiren)}
"""The codec of each tag that an .inr file can name."""


BY_NAME: dict[str, Callable[[], Codec]] = {
    "coin": Coin,
    "meta-siren": MetaSiren,
    "product-siren": ProductSiren,
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


class Description(NamedTuple):
    """What an .inr file says of itself. ``sections``: bytes of each, ``container`` the rest;
    ``init_digest``: first hex digits of the init it needs, None if it needs none."""

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


_WITH_INIT: tuple[type[Any], ...] = (MetaSiren, ProductSiren)


def _codec_for(stream: bitstream.Stream, init: Init | None) -> Any:
    codec = _codec_of(stream)
    # Each finds the packaged init that a stream names, whatever its own width.
    return codec(width=init.net.width, init=init) if init and codec in _WITH_INIT else codec()


def decoder(name: str, init: Init | None = None) -> Codec:
    """A codec that decodes every stream of the codec of that name, whatever its setting was.

    ``init``: what the encoder was given, if it was not a packaged one. Raises ValueError for a name
    that is not in `BY_NAME`, or whose optional package is not installed.
    """
    if name not in BY_NAME:
        raise ValueError(f"there is no codec {name!r} here, expected one of {', '.join(BY_NAME)}")
    own = BY_NAME[name]
    if own in _WITH_INIT and init is not None:
        return own(width=init.net.width, init=init)  # pyright: ignore[reportCallIssue]
    return own()


def decode_stream(data: bytes, init: Init | None = None) -> Image:
    """The uint8 (height, width, 3) image of any .inr stream that this version knows.

    ``init``: what the encoder was given, if it was not a packaged one. Raises BitstreamError.
    """
    return _codec_for(bitstream.peek(data), init).decode([data])[0]


def describe(data: bytes, init: Init | None = None) -> Description:
    """What a stream says of itself, its checksum verified where the init is at hand.

    Raises BitstreamError for a damaged stream, and for one whose init is not known here.
    """
    stream = bitstream.peek(data)
    codec = _codec_for(stream, init)
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
