"""VVC intra by VVenC, through the ffmpeg that imageio-ffmpeg carries (the extra ``vvc``).

A stream is a raw VVC bitstream (ITU-T H.266, Annex B), as any VVC decoder plays it, and one NAL
unit of 11 bytes at its end, which decoders ignore (type 31, unspecified): the CRC-32 of the rest,
and how many rows and columns of padding to crop.

The colours are converted here, in floating point: full-range YCbCr of BT.601 in 10 bits, chroma
halved by means of 2 x 2 pixels, and taken back by linear interpolation. VVenC codes 4:2:0 only.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from inrjax.imagefile import check_image, check_integer, one_line, require
from inrjax.machine import cpu_count
from inrjax.types import BitstreamError, Image, OnProgress

VVC_QPS = (54, 48, 43, 38, 33, 29)
"""On Kodak 0.02 to 0.91 bpp."""

_MAX_SIDE = 8192
_MIN_SIDE = 32  # VVenC wants 16; ffmpeg gives it a byte a pixel, which noise of 16 x 16 overruns
_PAD_BITS = 5  # enough for what a single row needs to reach that
_PEAK, _ZERO = 1023, 512  # 10 bits: the largest value, and the one of no colour
_KR, _KB = 0.299, 0.114  # weights of red and blue in luma (ITU-R BT.601)
_TRAILER = b"\x00\x00\x01\x00\xf9"  # start code; layer 0, type 31, first temporal layer
_TRAILER_DIGITS = 6  # of 7 bits: 32 for the checksum, 5 for the rows to crop, 5 for the columns

_RAW = ("-f", "rawvideo", "-pix_fmt", "yuv420p10le")
_COLOUR = ("-color_range", "pc", "-colorspace", "bt470bg")


@dataclass(frozen=True, eq=False)
class Vvc:
    """VVC intra (ITU-T H.266) by VVenC: not VTM, which is slower and a few percent better.

    ``qp`` is the constant quantiser, an integer in 0..63. Flags: preset medium, ``-qpa 0`` (no
    perceptual adaptation of the quantiser), 10 bits, 4:2:0, one thread, the colours signalled (7
    bytes). Several images are encoded at once, a core each. Raises ValueError for another qp, or
    where imageio-ffmpeg is not installed.
    """

    qp: int

    suffix: ClassVar[str] = ".266"

    def __post_init__(self) -> None:
        check_integer("VVC qp", self.qp, 0, 63)
        require("imageio_ffmpeg", self.name, "vvc")

    @property
    def name(self) -> str:
        """``vvc``."""
        return "vvc"

    @property
    def setting(self) -> str:
        """``qp=Q``."""
        return f"qp={self.qp}"

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        """One .266 file for each uint8 (height, width, 3) image; progress counts images.

        Raises ValueError for another array, for a side longer than 8192 pixels, where this
        platform's ffmpeg has no VVenC, or where an image needs more than 8 bits a pixel, for which
        ffmpeg has no room (noise at a qp of 20).
        """
        for image in images:
            check_image(image, "VVC", _MAX_SIDE)
        streams = []
        with ThreadPoolExecutor(cpu_count()) as pool:  # each waits for a process of its own
            for stream in pool.map(self._encode_one, images):
                streams.append(stream)
                if on_progress is not None:
                    on_progress(len(streams), len(images))
        return streams

    def _encode_one(self, image: Image) -> bytes:
        pad = [max(_MIN_SIDE - side, side % 2) for side in image.shape[:2]]
        padded = np.pad(image, [(0, pad[0]), (0, pad[1]), (0, 0)], mode="edge")
        height, width, _ = padded.shape
        source = [*_RAW, *_COLOUR, "-s", f"{width}x{height}", "-r", "1", "-i", "pipe:"]
        coding = ["-frames:v", "1", "-c:v", "libvvenc", "-preset", "medium", "-qpa", "0"]
        coding += ["-qp", str(self.qp), "-threads", "1", "-vvenc-params", "range=full"]
        with tempfile.TemporaryDirectory() as folder:
            # Not through a pipe: VVenC itself prints warnings to stdout, into the midst of it.
            path = Path(folder, "picture.266")
            done = _ffmpeg([*source, *coding, "-f", "vvc", str(path)], _to_yuv(padded))
            if done.returncode or not path.exists():
                reason = one_line(done.stderr.decode(errors="replace"))[:300]
                raise ValueError(
                    "the ffmpeg of imageio-ffmpeg could not encode VVC (does this platform's have "
                    f"VVenC, and does the image need under 8 bpp?): {reason}"
                )
            stream = path.read_bytes()
        return stream + _trailer(stream, pad)

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The uint8 (height, width, 3) images; BitstreamError for any damage (checksum)."""
        return [_decode_one(stream) for stream in streams]


def _decode_one(data: bytes) -> Image:
    stream, pad = _split(data)
    output = ["-frames:v", "1", "-pix_fmt", "yuv420p10le", "-strict", "-1", "-f", "yuv4mpegpipe"]
    done = _ffmpeg(["-f", "vvc", "-i", "pipe:", *output, "pipe:"], stream)
    # The picture comes with its size: a line of parameters, a line "FRAME", the planes.
    header = re.match(rb"YUV4MPEG2 W(\d+) H(\d+) [^\n]*\nFRAME\n", done.stdout)
    if done.returncode or header is None:
        reason = one_line(done.stderr.decode(errors="replace"))[:300]
        raise BitstreamError(f"the VVC stream cannot be decoded: {reason}")
    width, height = int(header[1]), int(header[2])
    samples = np.frombuffer(done.stdout[header.end() :], "<u2")
    if samples.size != height * width * 3 // 2 or pad[0] >= height or pad[1] >= width:
        raise BitstreamError("the VVC stream decodes to a picture of another size")
    return _from_yuv(samples, height, width)[: height - pad[0], : width - pad[1]].copy()


def _ffmpeg(arguments: Sequence[str], data: bytes) -> subprocess.CompletedProcess[bytes]:
    import imageio_ffmpeg  # pyright: ignore[reportMissingImports]

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-v", "error", *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=False)


# The last NAL unit


def _trailer(stream: bytes, pad: Sequence[int]) -> bytes:
    """A NAL unit with the checksum and the padding; its digits of 7 bits are never zero bytes,
    which might look like a start code."""
    value = _checksum(stream, pad) << 2 * _PAD_BITS | pad[0] << _PAD_BITS | pad[1]
    digits = (0x80 | value >> 7 * i & 0x7F for i in reversed(range(_TRAILER_DIGITS)))
    return _TRAILER + bytes(digits)


def _split(data: bytes) -> tuple[bytes, tuple[int, int]]:
    """The bitstream before the last NAL unit, and the rows and columns to crop."""
    length = len(_TRAILER) + _TRAILER_DIGITS
    stream, digits = data[:-length], data[-_TRAILER_DIGITS:]
    if not stream or data[-length:-_TRAILER_DIGITS] != _TRAILER or min(digits) < 0x80:
        raise BitstreamError("truncated or foreign data: no VVC stream with its checksum")
    value = 0
    for digit in digits:
        value = value << 7 | digit & 0x7F
    mask = (1 << _PAD_BITS) - 1
    pad = (value >> _PAD_BITS & mask, value & mask)
    if value >> 2 * _PAD_BITS != _checksum(stream, pad):
        raise BitstreamError("damaged VVC stream: its checksum is wrong")
    return stream, pad


def _checksum(stream: bytes, pad: Sequence[int]) -> int:
    return zlib.crc32(bytes(pad), zlib.crc32(stream))


# Colour


def _to_yuv(image: Image) -> bytes:
    """Planes Y, Cb, Cr of an image with even sides, as 16-bit words."""
    red, green, blue = np.moveaxis(image / 255.0, -1, 0)
    luma = _KR * red + (1 - _KR - _KB) * green + _KB * blue
    chroma = [(blue - luma) / (2 * (1 - _KB)), (red - luma) / (2 * (1 - _KR))]
    height, width = luma.shape
    halves = [c.reshape(height // 2, 2, width // 2, 2).mean((1, 3)) for c in chroma]
    planes = [_PEAK * luma, *(_PEAK * half + _ZERO for half in halves)]
    return b"".join(np.clip(np.rint(p), 0, _PEAK).astype("<u2").tobytes() for p in planes)


def _from_yuv(samples: np.ndarray, height: int, width: int) -> Image:
    """The inverse of `_to_yuv`, from all samples in a row."""
    luma, *halves = np.split(samples / _PEAK, [height * width, height * width * 5 // 4])
    luma = luma.reshape(height, width)
    blue_difference, red_difference = (
        _doubled(_doubled(half.reshape(height // 2, width // 2) - _ZERO / _PEAK).T).T
        for half in halves
    )
    red = luma + 2 * (1 - _KR) * red_difference
    blue = luma + 2 * (1 - _KB) * blue_difference
    green = (luma - _KR * red - _KB * blue) / (1 - _KR - _KB)
    pixels = np.stack([red, green, blue], axis=-1)
    return np.clip(np.rint(255 * pixels), 0, 255).astype(np.uint8)


def _doubled(plane: np.ndarray) -> np.ndarray:
    """Twice the rows, interpolated linearly: a new row is a quarter of a row from an old one."""
    before, after = np.vstack([plane[:1], plane[:-1]]), np.vstack([plane[1:], plane[-1:]])
    rows = np.stack([0.75 * plane + 0.25 * before, 0.75 * plane + 0.25 * after], axis=1)
    return rows.reshape(-1, plane.shape[1])


def library_versions() -> dict[str, str]:
    """The versions of ffmpeg and VVenC, as they say them, empty where they are not installed."""
    try:
        import imageio_ffmpeg  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {}
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "debug", *_RAW, "-s", "16x16", "-i", "pipe:"]
    command += ["-c:v", "libvvenc", "-f", "null", "-"]
    done = subprocess.run(command, input=bytes(768), capture_output=True, check=False)
    found = re.search(rb"libvvenc version: *(\S+)", done.stderr)
    vvenc = {"imageio-ffmpeg/vvenc": found[1].decode()} if found else {}
    return {"imageio-ffmpeg/ffmpeg": imageio_ffmpeg.get_ffmpeg_version(), **vvenc}
