"""The container of an .inr file: header and sections to bytes and back. See docs/bitstream.md.

What the sections mean belongs to the codec that the tag names. Decoding trusts nothing: every
length is checked before it is used, and the checksum before anything else is read.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

from inrjax.types import BitstreamError

MAGIC = b"INR"
VERSION = 1
MAX_PIXELS = 1 << 26
"""Pixels of an image at most (8192 x 8192): what a damaged or hostile header can make us hold."""

MAX_BYTES = 1 << 25
"""Bytes of a file at most, 4 bits for each pixel of the largest image: longer ones are not read."""

_CHECKSUM_BYTES = 4
_FIXED_BYTES = len(MAGIC) + 2


class Stream(NamedTuple):
    """A container's content: codec tag 0..255, size in pixels, and the codec's own sections."""

    tag: int
    height: int
    width: int
    sections: tuple[bytes, ...]


def pack(
    tag: int, height: int, width: int, sections: Sequence[bytes], context: bytes = b""
) -> bytes:
    """The bytes of a version-1 container.

    Args:
      tag: of the codec, 0..255. height, width: at least 1, at most `MAX_PIXELS` together.
      sections: the codec's own, at most 255; the last one needs no length and runs to the end.
      context: bytes that both sides know and the file does not hold, here the full digest of a
        shared init; the checksum covers them, so another context is detected.

    Raises:
      ValueError: a field is out of range, or the file would be longer than `MAX_BYTES`.
    """
    check_size(height, width)
    if not 0 <= tag <= 255 or not 1 <= len(sections) <= 255:
        raise ValueError(f"got tag {tag} and {len(sections)} sections, expected 0..255 and 1..255")
    body = bytearray(MAGIC + bytes([VERSION, tag]) + _varint(height) + _varint(width))
    body.append(len(sections))
    for section in sections[:-1]:
        body += _varint(len(section))
    for section in sections:
        body += section
    if len(body) + _CHECKSUM_BYTES > MAX_BYTES:
        raise ValueError(
            f"got sections that make {len(body) + _CHECKSUM_BYTES} bytes, expected {MAX_BYTES} at "
            "most"
        )
    return bytes(body) + _checksum(bytes(body), context)


def unpack(data: bytes, context: bytes = b"") -> Stream:
    """The content of a container, its checksum verified.

    Raises:
      BitstreamError: not an .inr file, another version, damaged, truncated, or another context.
    """
    stream = peek(data)
    if _checksum(data[:-_CHECKSUM_BYTES], context) != data[-_CHECKSUM_BYTES:]:
        raise BitstreamError("the checksum does not match: the file is damaged or truncated")
    return stream


def peek(data: bytes) -> Stream:
    """`unpack` without the checksum: to learn which codec and context a stream needs.

    Raises:
      BitstreamError: not an .inr file, another version, or lengths that cannot be.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise BitstreamError("not an .inr file: it does not begin with 'INR'")
    if len(data) > MAX_BYTES:
        raise BitstreamError(
            f"the file has {len(data)} bytes, more than the {MAX_BYTES} that an .inr file has at "
            "most"
        )
    if len(data) < _FIXED_BYTES + 3 + _CHECKSUM_BYTES:
        raise BitstreamError("the file is truncated: its header is not complete")
    version, tag = data[len(MAGIC)], data[len(MAGIC) + 1]
    if version != VERSION:
        raise BitstreamError(
            f"the file has version {version}, this inrjax reads version {VERSION}: "
            "update inrjax, or the file is damaged"
        )
    body = data[:-_CHECKSUM_BYTES]
    height, at = _read_varint(body, _FIXED_BYTES)
    width, at = _read_varint(body, at)
    try:
        check_size(height, width)
    except ValueError as error:
        raise BitstreamError(f"the header cannot be right: {error}") from None
    return Stream(tag, height, width, _read_sections(body, at))


def check_size(height: int, width: int) -> None:
    """Raises ValueError for an image that no .inr file can hold."""
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ValueError(
            f"got an image of {height} x {width} pixels, expected 1 to {MAX_PIXELS} pixels in all"
        )


def check_claim(stream: Stream, max_pixels: int) -> None:
    """Raises BitstreamError if a header claims more pixels than the caller wants to hold."""
    if stream.height * stream.width > max_pixels:
        raise BitstreamError(
            f"the header claims {stream.height} x {stream.width} pixels, more than the "
            f"{max_pixels} that are allowed: if that is what you expect, allow more (max_pixels, "
            "or --max-pixels)"
        )


def section_bytes(stream: Stream, names: Sequence[str], num_bytes: int) -> dict[str, int]:
    """Bytes of each part of a stream: the named sections, and what is left as ``container``."""
    sizes = {name: len(s) for name, s in zip(names, stream.sections, strict=True)}
    return {"container": num_bytes - sum(sizes.values()), **sizes}


def _checksum(body: bytes, context: bytes) -> bytes:
    return zlib.crc32(body, zlib.crc32(context)).to_bytes(_CHECKSUM_BYTES, "little")


def _read_sections(body: bytes, at: int) -> tuple[bytes, ...]:
    if at >= len(body) or body[at] == 0:
        raise BitstreamError("the file is damaged: it claims no sections")
    lengths: list[int] = []
    number = body[at]
    at += 1
    for _ in range(number - 1):
        length, at = _read_varint(body, at)
        lengths.append(length)
    lengths.append(len(body) - at - sum(lengths))
    if lengths[-1] < 0:
        raise BitstreamError("the file is damaged or truncated: its sections do not fit")
    sections: list[bytes] = []
    for length in lengths:
        sections.append(body[at : at + length])
        at += length
    return tuple(sections)


def _varint(value: int) -> bytes:
    """Base 128, low digits first, the top bit set on all bytes but the last (LEB128)."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for digit in range(5):
        if at >= len(data):
            raise BitstreamError("the file is truncated: its header is not complete")
        value |= (data[at] & 127) << 7 * digit
        at += 1
        if data[at - 1] < 128:
            if digit and data[at - 1] == 0:
                break
            return value, at
    raise BitstreamError("the file is damaged: a number in its header is too long")
