"""Images in and out: one strict loader, one atomic writer, uint8 <-> float, coordinate grids.

Every picture this package compresses or measures comes through `read_image`, so that what is
measured is what the user meant: a file is read exactly, converted and the conversion said, or
refused in one sentence.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from inrjax import trees
from inrjax.types import Image

if TYPE_CHECKING:
    from jaxtyping import Float32, Shaped, UInt8
    from PIL.Image import Image as PilImage

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm")
)
"""File name endings (lower case) of the formats that `read_image` reads."""

MAX_PIXELS = 2**26
"""Larger pictures are refused before anything is allocated (8192 x 8192)."""

MAX_FILE_BYTES = 2**30
"""Larger files are refused before they are read."""

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM")
_CONVERSIONS = {
    "RGB": None,
    "RGBA": None,
    "1": "black and white, converted to RGB",
    "L": "grey, converted to RGB",
    "LA": "grey, converted to RGB",
    "P": "palette, converted to RGB",
    "PA": "palette, converted to RGB",
}
_BAND_PIXELS = 1 << 18
_PNG_BIT_DEPTH = 24  # its place in a file: signature 8, then IHDR: length 4, name 4, two sizes 8
_TIFF_BITS, _TIFF_EXTRA, _TIFF_SAMPLE_FORMAT, _EXIF_ORIENTATION = 258, 338, 339, 274


class Loaded(NamedTuple):
    """A picture as read: uint8 (height, width, 3) RGB, and what had to be done to make it so."""

    image: Image
    notes: tuple[str, ...]


class _Refusal(ValueError):
    """A reason that needs only the file's name in front of it to be the user's sentence."""


def read_image(path: str | PathLike[str]) -> Loaded:
    """Read a PNG, JPEG, WebP, TIFF, BMP or PPM file as uint8 (height, width, 3) RGB.

    Converted, each with a note: grey, black and white, palette; alpha that is 255 everywhere
    (dropped); an EXIF orientation (applied); a colour profile other than sRGB (ignored, like gAMA,
    which has no note); the further pictures of a phone's multi-picture JPEG (ignored); a PPM whose
    maximum is not 255 (scaled). A 1-pixel or 1xN picture is fine.

    Refused with a ValueError, one sentence that names the file and the fix: a file that is missing,
    a folder, empty, truncated, damaged, of another format, over `MAX_PIXELS` pixels or
    `MAX_FILE_BYTES` bytes; real transparency (the background is the user's choice); more than 8
    bits a channel, signed or float values (how to map them is the user's choice); CMYK and other
    colour spaces (they mean nothing without their profile); animations and several pages.

    Memory: about 7 bytes a pixel, 11 where colours are converted or the picture is turned.

    Damage inside a file that is still whole is found in a PNG (checksums), but a JPEG, WebP, BMP,
    TIFF or PPM has none: flipped bytes there may read as another picture.
    """
    path = Path(path)
    data = _read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on metadata that is not used here
            return _decode(data)
    except _Refusal as refusal:
        raise ValueError(f"{path} {refusal}") from None
    except MemoryError:
        raise ValueError(
            f"{path} needs more memory than this process may use: crop or resize it"
        ) from None
    except Exception as error:  # whatever Pillow's parsers raise on bad bytes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{path} is truncated or damaged ({reason}): get an intact copy"
        ) from error


def write_image(path: str | PathLike[str], image: Image) -> None:
    """Write a uint8 (height, width, 3) RGB image as a PNG file, whole or not at all.

    Raises ValueError if the image is not one, the name does not end in .png (a lossy format would
    change the pixels), or the file cannot be written.
    """
    path = Path(path)
    check_image(image)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path} cannot be written: choose a name that ends in .png")
    import imageio.v3 as iio

    # Runs alone are searched for: files as small as by the default, in a quarter of the time.
    data = iio.imwrite(
        "<bytes>", image, extension=".png", plugin="pillow", compress_type=zlib.Z_RLE
    )
    try:
        trees.write_atomic(path, data)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}): choose a folder that exists and is "
            "writable"
        ) from error


def check_image(image: Image) -> None:
    """Raise ValueError unless this is a uint8 array of shape (height, width, 3), not empty."""
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise ValueError(
            f"got an image of shape {array.shape} and type {array.dtype}, expected "
            "(height, width, 3) and uint8"
        )


def to_float(image: Shaped[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Uint8 values 0..255 as float32 in [0, 1], any shape."""
    if image.dtype != np.uint8:
        raise ValueError(f"got {image.dtype}, expected uint8")
    return image.astype(np.float32) / np.float32(255)


def to_uint8(pixels: Shaped[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Values in [0, 1], any shape, as uint8: clipped, scaled by 255, rounded half up.

    The inverse of `to_float`. Raises ValueError for NaN, which is no colour.
    """
    pixels = np.asarray(pixels)
    if np.isnan(pixels).any():
        raise ValueError("got NaN among the pixels, expected numbers: the fit has diverged")
    return np.floor(np.clip(pixels, 0, 1) * pixels.dtype.type(255) + 0.5).astype(np.uint8)


def coordinates(height: int, width: int) -> Float32[np.ndarray, "{height}*{width} 2"]:
    """The (y, x) of pixel centres, float32 (height * width, 2) in [-1, 1], row by row."""
    if height < 1 or width < 1:
        raise ValueError(f"got {height} x {width} pixels, expected at least 1 x 1")
    grid = np.meshgrid(centres(height), centres(width), indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, 2)


def centres(count: int, part: slice = slice(None)) -> Float32[np.ndarray, " places"]:
    """The places of ``count`` pixels along an axis, float32 in [-1, 1]; of a part of them.

    Pixel i of n sits at (2 i + 1) / n - 1: the picture's edges are -1 and 1, a single pixel is 0.
    """
    if count < 1:
        raise ValueError(f"got {count} pixels along an axis, expected at least 1")
    first, last, step = part.indices(count)
    return ((2 * np.arange(first, last, step, dtype=np.float64) + 1) / count - 1).astype(np.float32)


def _read_bytes(path: Path) -> bytes:
    """The bytes of a regular file that is not empty, or ValueError."""
    try:
        if path.is_dir():
            raise ValueError(f"{path} is a folder: name an image file in it")
        if not path.exists():
            raise ValueError(f"{path} does not exist: check the name")
        if not path.is_file():
            raise ValueError(f"{path} is not a regular file: save it to one first")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"{path} is larger than {MAX_FILE_BYTES} bytes: make it smaller")
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}): check its name and permissions"
        ) from error
    if not data:
        raise ValueError(f"{path} is empty: get an intact copy")
    return data


def _decode(data: bytes) -> Loaded:
    """The picture in a file's bytes; raises _Refusal, or anything at all for damaged data."""
    from PIL import ImageOps

    picture = _open(data)
    if picture.width * picture.height > MAX_PIXELS:
        raise _Refusal(_too_large(f"{picture.width} x {picture.height}"))
    notes = [*_check_samples(picture, data), *_check_frames(picture)]
    _check_whole(picture, data)
    # The orientation is read first: Pillow rotates a TIFF as it loads it, and forgets the tag.
    orientation = picture.getexif().get(_EXIF_ORIENTATION, 1)
    picture.load()
    profile_note = _profile_note(picture.info.get("icc_profile"))
    if orientation in range(2, 9):
        picture = ImageOps.exif_transpose(picture)
        notes.append(f"EXIF orientation {orientation}, applied")
    rgb, colour_notes = _to_rgb(picture)
    image = _to_array(rgb)
    check_image(image)
    return Loaded(image, (*colour_notes, *notes, *profile_note))


def _open(data: bytes) -> PilImage:
    """Parse the header; no pixel is decoded yet."""
    import PIL.Image

    try:
        return PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except PIL.Image.DecompressionBombError:
        raise _Refusal(_too_large("far too many")) from None
    except PIL.UnidentifiedImageError:
        raise _Refusal(
            "is not a readable PNG, JPEG, WebP, TIFF, BMP or PPM image: check the file, or convert "
            "it to an 8-bit RGB PNG"
        ) from None


def _too_large(size: str) -> str:
    return f"claims {size} pixels, more than {MAX_PIXELS}: crop or resize it"


def _check_samples(picture: PilImage, data: bytes) -> list[str]:
    """Refuse what does not mean 8-bit RGB or grey: Pillow would cut it down without a word.

    A 16-bit RGB PNG or TIFF opens as 8-bit "RGB", a signed 8-bit TIFF as unsigned; so the file's
    own header decides, not Pillow's mode.
    """
    bits, notes = _bits(picture, data)
    if bits > 8:
        raise _Refusal(f"has {bits} bits a channel: convert it to 8 bits a channel")
    if picture.mode not in _CONVERSIONS:
        raise _Refusal(f"has colours of the kind {picture.mode}: convert it to 8-bit RGB")
    return notes


def _bits(picture: PilImage, data: bytes) -> tuple[int, list[str]]:
    """The bits a channel that the file's header states, and a note if values must be scaled."""
    if picture.format == "PNG":
        return data[_PNG_BIT_DEPTH], []
    if picture.format == "TIFF":
        return _tiff_bits(picture)
    if picture.format == "PPM" and picture.mode != "1" and re.match(rb"P[2356]\s", data):
        maximum = _ppm_maximum(data)
        scaled = [f"values 0..{maximum}, scaled to 0..255"] if maximum != 255 else []
        return maximum.bit_length(), scaled
    return 8, []


def _tiff_bits(picture: PilImage) -> tuple[int, list[str]]:
    tags = picture.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
    if any(kind != 1 for kind in np.atleast_1d(tags.get(_TIFF_SAMPLE_FORMAT, 1))):
        raise _Refusal("has signed or floating-point values: convert it to 8-bit RGB")
    extra = 0 in np.atleast_1d(tags.get(_TIFF_EXTRA, ()))
    notes = ["extra channel without a stated meaning, dropped"] if extra else []
    return int(np.max(tags.get(_TIFF_BITS, 1))), notes


def _ppm_maximum(data: bytes) -> int:
    """The fourth token of a PGM or PPM header, comments skipped."""
    gap = rb"(?:\s|#[^\r\n]*[\r\n])+"
    found = re.match(rb"P\d" + gap + rb"\d+" + gap + rb"\d+" + gap + rb"(\d{1,5})\s", data)
    if found is None:
        raise ValueError("no maximum value in the header")
    return int(found.group(1))


def _check_frames(picture: PilImage) -> list[str]:
    """Refuse animations and pages; the first picture of a phone's MPO file is the photograph."""
    frames = getattr(picture, "n_frames", 1)
    if frames == 1:
        return []
    if picture.format == "MPO":
        return [f"{frames} pictures in the file, the first used"]
    raise _Refusal(f"has {frames} frames or pages: save the one you want as a file of its own")


def _check_whole(picture: PilImage, data: bytes) -> None:
    """Find what the decoders themselves let pass: bad PNG checksums, cut or doubled files."""
    if picture.format == "PNG":
        _open(data).verify()  # the checksums of all chunks, as far as IEND; it uses the object up
    if data[:2] in (b"P2", b"P3") and not data[-1:].isspace():
        raise ValueError("no white space after the last number, which may be cut")
    if data[:2] in (b"P4", b"P5", b"P6"):
        _check_single_ppm(picture, data)


def _check_single_ppm(picture: PilImage, data: bytes) -> None:
    """Raw PPM files may be joined end to end, and Pillow would show only the first."""
    row = (picture.width + 7) // 8 if picture.mode == "1" else picture.width * len(picture.mode)
    start = picture.tile[0].offset  # pyright: ignore[reportAttributeAccessIssue]
    if re.match(rb"\s*P[1-6]\s", data[start + row * picture.height :]):
        raise _Refusal("holds several pictures: save the one you want as a file of its own")


def _profile_note(profile: bytes | None) -> list[str]:
    """A note unless the ICC profile is absent or calls itself sRGB (in ASCII or UTF-16)."""
    if not profile or b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile:
        return []
    return ["colour profile other than sRGB, ignored: colours may look different"]


def _to_rgb(picture: PilImage) -> tuple[PilImage, list[str]]:
    """An RGB picture with the same colours, and notes; refuses real transparency."""
    _check_palette(picture)
    notes = [note] if (note := _CONVERSIONS[picture.mode]) else []
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema() != (255, 255):
            raise _Refusal("has transparent pixels: flatten it onto a background colour")
        notes.append("alpha 100 % opaque, dropped")
    return picture if picture.mode == "RGB" else picture.convert("RGB"), notes


def _to_array(picture: PilImage) -> Image:
    """The pixels of an RGB picture, copied by bands of rows: in one piece, it is copied twice."""
    image = np.empty((picture.height, picture.width, 3), np.uint8)
    rows = max(1, _BAND_PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        box = (0, top, picture.width, min(top + rows, picture.height))
        image[top : top + rows] = np.asarray(picture.crop(box))
    return image


def _check_palette(picture: PilImage) -> None:
    """Refuse an index beyond the palette: Pillow would show it in an invented grey."""
    if picture.mode in ("P", "PA"):
        colours = len(picture.getpalette() or ()) // 3
        if np.asarray(picture.getchannel(0)).max() >= colours:
            raise ValueError("a colour index is outside the palette")
