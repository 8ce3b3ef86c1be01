"""What the codecs of .inr files share: checks, a stream's parts, its init, its pixels.

Needs numpy alone.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from inrjax import bitstream, images
from inrjax.init import Init, find_init
from inrjax.machine import cpu_count
from inrjax.nets.siren import Siren
from inrjax.types import BitstreamError, Image, Params

CHECK_BYTES = 2
"""Bytes of `symbol_check`."""

DIGEST_BYTES = 4
"""Bytes of an init's digest that name it in a file."""

_BLOCK_PIXELS = 1 << 15
_MAX_THREADS = 32  # each holds up to about 8 MB


def check_at_least(codec: Any, **lowest: float) -> None:
    """Raises ValueError for a field of a codec, by its name, that is below its lowest value."""
    for name, low in lowest.items():
        value = getattr(codec, name)
        if not value >= low:  # nor is NaN
            raise ValueError(f"got {name} {value}, expected at least {low}")


def check_points_per_step(points_per_step: int | None) -> None:
    """Raises ValueError unless there is a point in a step; None stands for all."""
    if points_per_step is not None and points_per_step < 1:
        raise ValueError(
            f"got points_per_step {points_per_step}, expected at least 1, or None for all"
        )


def check_init(init: Init, width: int) -> None:
    """Raises ValueError unless the init is of nets of this width that give a place a colour."""
    net = init.net
    if net.width != width:
        raise ValueError(f"got width {width} with an init of width {net.width}: expected the same")
    if (net.in_dim, net.out_dim) != (2, 3):
        raise ValueError(f"got an init of {net}, expected in_dim 2 and out_dim 3")


def check_images(batch: Sequence[Image]) -> None:
    """Raises ValueError for an image that no .inr file can hold."""
    for image in batch:
        images.check_image(image)
        bitstream.check_size(*image.shape[:2])


def pack_each(
    pack: Callable[[Image, Any], bytes], batch: Sequence[Image], fitted: Sequence[Any]
) -> list[bytes]:
    """``pack`` of each image and of what was fitted to it; a ValueError of it names the image."""
    streams = []
    for number, (image, one) in enumerate(zip(batch, fitted, strict=True), start=1):
        try:
            streams.append(pack(image, one))
        except ValueError as error:
            raise ValueError(f"image {number} of {len(batch)}: {error}") from error
    return streams


def check_sections(stream: bitstream.Stream, tag: int, num_sections: int) -> None:
    """Raises BitstreamError for a stream of another codec, or of another number of sections."""
    if stream.tag != tag:
        raise BitstreamError(f"the stream has codec tag {stream.tag}, expected {tag}")
    if len(stream.sections) != num_sections:
        raise BitstreamError(
            f"the stream has {len(stream.sections)} sections, expected {num_sections}"
        )


def unpack(data: bytes, tag: int, num_sections: int, context: bytes = b"") -> bitstream.Stream:
    """`inrjax.bitstream.unpack` of a stream that passes `check_sections`; BitstreamError."""
    check_sections(bitstream.peek(data), tag, num_sections)
    return bitstream.unpack(data, context)


def named_init(wanted: bytes, own: Init | None) -> Init:
    """The init that a section ``init`` names: the codec's own, or a packaged one.

    Raises BitstreamError if the section is no name of an init, or none at hand has it.
    """
    if len(wanted) != DIGEST_BYTES:
        raise BitstreamError("the section 'init' is damaged")
    if own is not None and own.digest.startswith(wanted):
        return own
    init = find_init(wanted)
    if init is None:
        raise BitstreamError(
            f"the init {wanted.hex()} is not known here: give the init file it was encoded "
            "with, or the file is damaged"
        )
    return init


def symbol_check(symbols: np.ndarray | Sequence[np.ndarray]) -> bytes:
    """CRC-16 (CCITT) of the symbols as little-endian int32, of all arrays, one after the other:
    what a drifting coder would break."""
    check = 0
    for values in [symbols] if isinstance(symbols, np.ndarray) else symbols:
        flat = values.reshape(-1)
        for at in range(0, flat.size, _CHECKED_AT_ONCE):
            check = binascii.crc_hqx(
                flat[at : at + _CHECKED_AT_ONCE].astype("<i4").tobytes(), check
            )
    return check.to_bytes(CHECK_BYTES, "little")


_CHECKED_AT_ONCE = 1 << 20  # so that little is held beside the symbols


def require_symbols(symbols: np.ndarray | Sequence[np.ndarray], check: bytes) -> None:
    """Raises BitstreamError if the symbols are not those of the check in their file."""
    if symbol_check(symbols) != check:
        raise BitstreamError(
            "the symbols do not match their check: the file is damaged, or this machine's range "
            "coder differs from the encoder's"
        )


def reconstruct(net: Siren, params: Params, height: int, width: int) -> Image:
    """The uint8 (height, width, 3) image that a net holds, by blocks on all cores.

    Memory: the image, and a few MB for each core, 32 of them at most. The bytes depend on the
    blocks, which depend on the image's size alone, so any number of cores gives the same. Raises
    BitstreamError for a pixel that is NaN.
    """
    image = np.empty((height, width, 3), np.uint8)

    def fill(block: tuple[slice, slice]) -> None:
        y, x = (images.centres(n, part) for n, part in zip((height, width), block, strict=True))
        image[block] = pixels(net, params, y, x)

    on_all_cores(fill, _blocks(height, width))
    return image


def pixels(net: Siren, params: Params, y: np.ndarray, x: np.ndarray) -> Image:
    """The uint8 (len(y), len(x), 3) pixels of a net on a grid; BitstreamError for a NaN."""
    with np.errstate(over="ignore", invalid="ignore"):  # said below, in a sentence
        values = (net.apply_grid_host(params, y, x) + 1) / 2
    if np.isnan(values).any():
        raise BitstreamError("a pixel is NaN: the file is damaged")
    return images.to_uint8(values)


def on_all_cores(function: Callable[[Any], None], items: Sequence[Any]) -> None:
    """Calls the function for each item, in threads, 32 at most; raises what a call raised."""
    if len(items) == 1:  # a thread costs more than a small picture
        function(items[0])
        return
    with ThreadPoolExecutor(min(cpu_count(), _MAX_THREADS, len(items))) as pool:
        for _ in pool.map(function, items):
            pass


def _blocks(height: int, width: int) -> list[tuple[slice, slice]]:
    """Rows and columns of blocks that make up the image, of at most `_BLOCK_PIXELS` pixels."""
    columns = min(width, _BLOCK_PIXELS)
    count = -(-height // (_BLOCK_PIXELS // columns))
    rows = -(-height // count)  # about equal heights, since each is a share of a core's work
    return [
        (slice(top, min(top + rows, height)), slice(left, min(left + columns, width)))
        for top in range(0, height, rows)
        for left in range(0, width, columns)
    ]
