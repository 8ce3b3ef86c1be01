"""What the codecs of image file formats share: checks, one file for each image, whole files only.

The functions raise ValueError for what cannot be encoded and BitstreamError for what cannot be
decoded, in the words that every codec uses.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from inrjax.types import BitstreamError, Image, OnProgress


def check_integer(what: str, value: int, low: int, high: int) -> None:
    """Raise ValueError unless ``value`` is an integer in low..high (True is none)."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"got {what} {value!r}, expected an integer in {low}..{high}")


def require(package: str, codec: str, extra: str) -> None:
    """Raise ValueError, naming the pip command, unless ``package`` can be imported."""
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"the codec {codec} needs the package {package}, which is not installed: "
            f"`pip install 'inrjax[{extra}]'`"
        )


def encode_each(
    images: Sequence[Image],
    encode_one: Callable[[Image], bytes],
    format_name: str,
    max_side: int,
    on_progress: OnProgress | None,
) -> list[bytes]:
    """A stream for each image, all of them checked before the first is encoded.

    Progress counts images. Raises ValueError for an array that is not uint8 (height, width, 3),
    or with a side longer than ``max_side`` pixels.
    """
    for image in images:
        check_image(image, format_name, max_side)
    streams = []
    for image in images:
        streams.append(encode_one(image))
        if on_progress is not None:
            on_progress(len(streams), len(images))
    return streams


def check_image(image: Image, format_name: str, max_side: int) -> None:
    """Raise ValueError unless this is a uint8 (height, width, 3) image that the format holds."""
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


def pillow_save(image: Image, format_name: str, options: dict[str, Any]) -> bytes:
    """The file that Pillow writes."""
    buffer = io.BytesIO()
    PillowImage.fromarray(image).save(buffer, format_name, **options)
    return buffer.getvalue()


def pillow_load(data: bytes, format_name: str) -> Image:
    """The RGB picture in a file of this format; BitstreamError for anything else."""
    try:
        with PillowImage.open(io.BytesIO(data), formats=(format_name,)) as picture:
            mode, pixels = picture.mode, np.array(picture)
    except UnidentifiedImageError as error:  # its own text names a buffer's address
        raise BitstreamError(f"damaged {format_name} data: its header cannot be read") from error
    except Exception as error:  # Pillow's plugins raise many types on damaged data
        raise BitstreamError(f"damaged {format_name} data: {one_line(error)}") from error
    if mode != "RGB":
        raise BitstreamError(f"got a {format_name} picture of mode {mode}, expected RGB")
    return pixels


def whole_boxes(data: bytes, format_name: str) -> dict[bytes, bytes]:
    """The top-level boxes of an ISO base media file (ISO/IEC 14496-12), type -> content.

    Raises BitstreamError unless they start with ``ftyp`` and fill the data exactly: a file that
    was cut short always leaves a box incomplete or one of ``meta`` and ``mdat`` out.
    """
    boxes: dict[bytes, bytes] = {}
    start = 0
    while start < len(data):
        size, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        if size < 8 or start + size > len(data):
            raise BitstreamError(f"truncated or damaged {format_name} file: an incomplete box")
        boxes[kind] = data[start + 8 : start + size]
        start += size
    if next(iter(boxes), None) != b"ftyp" or not {b"meta", b"mdat"} <= boxes.keys():
        raise BitstreamError(f"not a whole {format_name} file: its boxes are not all there")
    return boxes


def one_line(error: object) -> str:
    """An error's text without line breaks."""
    return " ".join(str(error).split())
