"""Laws of the .inr container, and a decoder of whole files written from docs/bitstream.md alone."""

from __future__ import annotations

import binascii
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inrjax import bitstream, entropy, trees
from inrjax.codecs import MetaSiren, decode_stream, describe
from inrjax.init import Init, flat_init
from inrjax.nets.siren import Encoding, Siren
from inrjax.types import BitstreamError

SIDE = int(bitstream.MAX_PIXELS**0.5)
CONTEXT = b"a digest of thirty-two bytes...."
SMALL = bitstream.pack(7, 300, 2, [b"abc", b"", b"payload"], CONTEXT)


@given(
    st.integers(0, 255),
    st.integers(1, SIDE),
    st.integers(1, SIDE),
    st.lists(st.binary(max_size=300), min_size=1, max_size=6),
    st.binary(max_size=40),
)
def test_round_trip(tag, height, width, sections, context):
    data = bitstream.pack(tag, height, width, sections, context)
    want = bitstream.Stream(tag, height, width, tuple(sections))
    assert bitstream.unpack(data, context) == want
    assert bitstream.peek(data) == want


@pytest.mark.parametrize("size", [(1, bitstream.MAX_PIXELS), (bitstream.MAX_PIXELS, 1), (127, 128)])
@pytest.mark.parametrize("number", [1, 2, 255])
def test_round_trip_at_the_limits(size, number):
    data = bitstream.pack(255, *size, [b"x" * 128] * number)
    assert bitstream.unpack(data) == bitstream.Stream(255, *size, (b"x" * 128,) * number)


def test_the_limits_are_those_of_the_page():
    """32 MiB and 2^26 pixels: another limit would be another format."""
    overhead = len(bitstream.pack(1, 1, 1, [b""]))
    assert len(bitstream.pack(1, 1, 1, [bytes(2**25 - overhead)])) == 2**25
    with pytest.raises(ValueError, match="33554433 bytes"):
        bitstream.pack(1, 1, 1, [bytes(2**25 - overhead + 1)])
    bitstream.check_size(1, 2**26)
    with pytest.raises(ValueError, match="pixels"):
        bitstream.check_size(1, 2**26 + 1)


def test_bytes_are_those_of_version_1():
    body = b"INR\x01\x07" + b"\xac\x02\x02" + b"\x03\x03\x00" + b"abc" + b"payload"
    crc = zlib.crc32(body, zlib.crc32(CONTEXT))
    assert body + struct.pack("<I", crc) == SMALL


@pytest.mark.parametrize("tag, sections", [(-1, [b""]), (256, [b""]), (0, []), (0, [b""] * 256)])
def test_fields_out_of_range_are_refused(tag, sections):
    with pytest.raises(ValueError, match="expected"):
        bitstream.pack(tag, 1, 1, sections)


@pytest.mark.parametrize("size", [(0, 1), (1, 0), (-1, -1), (SIDE, SIDE + 1)])
def test_images_that_no_file_holds_are_refused(size):
    with pytest.raises(ValueError, match="pixels"):
        bitstream.pack(0, *size, [b""])


def test_every_flipped_bit_is_detected():
    for bit in range(8 * len(SMALL)):
        damaged = bytearray(SMALL)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BitstreamError):
            bitstream.unpack(bytes(damaged), CONTEXT)


def test_every_truncation_and_every_added_byte_is_detected():
    for end in range(len(SMALL)):
        with pytest.raises(BitstreamError):
            bitstream.unpack(SMALL[:end], CONTEXT)
    for extra in (b"\0", b"\xff", SMALL):
        with pytest.raises(BitstreamError):
            bitstream.unpack(SMALL + extra, CONTEXT)


@given(st.binary(max_size=60))
@settings(max_examples=200)
def test_nonsense_is_refused_or_read_and_never_breaks(tail):
    for data in (tail, b"INR" + tail, b"INR\x01\x02" + tail):
        for read in (bitstream.peek, bitstream.unpack, describe, decode_stream):
            try:
                read(data)
            except BitstreamError as error:
                assert "\n" not in str(error)


def resealed(body: bytes, context: bytes = b"") -> bytes:
    """A container whose checksum is right, whatever the body says."""
    return body + zlib.crc32(body, zlib.crc32(context)).to_bytes(4, "little")


def test_another_version_is_named():
    with pytest.raises(BitstreamError, match=r"version 9.*version 1"):
        bitstream.unpack(resealed(b"INR\x09" + SMALL[4:-4], CONTEXT), CONTEXT)


def test_another_context_is_detected():
    for other in (b"", CONTEXT[:-1], CONTEXT[:-1] + b"!", CONTEXT + b"\0"):
        with pytest.raises(BitstreamError, match="checksum"):
            bitstream.unpack(SMALL, other)


def test_other_files_are_named_as_such():
    for data in (b"", b"\x89PNG\r\n", b"inr" + SMALL[3:]):
        with pytest.raises(BitstreamError, match=r"not an \.inr file"):
            bitstream.unpack(data)


HOSTILE = {
    "no pixels": b"\x00\x05\x01",
    "huge sides": b"\xff\xff\xff\xff\x7f\xff\xff\xff\xff\x7f\x01",
    "one pixel too many": b"\x81\x80\x80\x20\x01\x01",
    "a size without end": b"\xff" * 40,
    "a padded size": b"\x85\x00\x05\x01",
    "no sections": b"\x05\x05\x00",
    "a section of 32 GiB": b"\x05\x05\x02\xff\xff\xff\xff\x7f",
    "sections beyond the end": b"\x05\x05\x03\x04\x04abcdefg",
    "255 sections in 3 bytes": b"\x05\x05\xff\x01\x01\x01",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_at_once(name):
    start = time.perf_counter()
    with pytest.raises(BitstreamError):
        bitstream.unpack(resealed(b"INR\x01\x01" + HOSTILE[name]))
    assert time.perf_counter() - start < 0.1


def test_section_bytes_sum_to_the_file():
    stream = bitstream.unpack(SMALL, CONTEXT)
    sizes = bitstream.section_bytes(stream, ("a", "b", "c"), len(SMALL))
    assert sizes == {"container": len(SMALL) - 10, "a": 3, "b": 0, "c": 7}


# ---------------------------------------------------------------------------- a whole file


def small_init(seed: int = 0) -> Init:
    """An init with a mean and an envelope that differ from tensor to tensor and from row to row."""
    net = Siren(8, 4, encoding=Encoding(4))
    rng = np.random.default_rng(seed)
    shapes = dict(trees.leaves(net.shapes()))
    params = {p: rng.uniform(-0.1, 0.1, s).astype(np.float16) for p, s in shapes.items()}
    flat = flat_init(net, trees.from_leaves(params))
    keep = trees.from_leaves({p: np.float32(rng.uniform()) for p in shapes})
    envelope = trees.from_leaves(
        {p: rng.integers(-30, -20, (*s[:-1], 1)).astype(np.int8) for p, s in shapes.items()}
    )
    return Init(net, flat.params, keep, envelope)


ORDER = [(i, name) for i in range(5) for name in ("bias", "weight")]
SIZES = [18, 8, 8, 8, 8, 3]
STEPS = [120, 118, 116, 121, 125, 117, 122, 119, 120, 123]  # 2^-9 and about
OFFSETS = [64, 60, 70, 63, 64, 65, 58, 66, 64, 68]


def shape_of(layer: int, name: str) -> tuple[int, ...]:
    return (SIZES[layer + 1], SIZES[layer])[: 1 if name == "bias" else 2]


def levels_by_the_book(init: Init, offsets) -> np.ndarray:
    level_list = []
    for (i, name), offset in zip(ORDER, offsets, strict=True):
        envelope = np.broadcast_to(init.envelope[f"layer_{i:02d}"][name], shape_of(i, name))
        level_list += [min(63, max(0, int(e) + offset - 12)) for e in envelope.ravel()]
    return np.array(level_list)


def small_stream(init: Init, height: int = 9, width: int = 13) -> bytes:
    """A file of symbols drawn from their models, written from the document, without a fit."""
    level_list = levels_by_the_book(init, OFFSETS)
    scales = entropy.scale(level_list)
    symbols = np.rint(np.random.default_rng(1).laplace(0, scales)).astype(np.int64)
    check = binascii.crc_hqx(symbols.astype("<i4").tobytes(), 0).to_bytes(2, "little")
    payload = entropy.encode(symbols, entropy.Laplace(level_list))
    sections = [init.digest[:4], check + bytes(STEPS) + bytes(OFFSETS), payload]
    return bitstream.pack(2, height, width, sections, init.digest)


def by_the_book(data: bytes, init: Init) -> np.ndarray:
    """The image of a MetaSiren file, every step as docs/bitstream.md states it."""
    assert data[:5] == b"INR\x01\x02"
    height, width, number, check, grid_bytes = data[5:10]  # all below 128: one byte each
    assert (number, check, grid_bytes) == (3, 4, 22)
    at = 10
    assert data[at : at + 4] == init.digest[:4]
    grid, payload = data[at + 4 : at + 26], data[at + 26 : -4]
    assert zlib.crc32(data[:-4], zlib.crc32(init.digest)) == int.from_bytes(data[-4:], "little")

    level_list = levels_by_the_book(init, grid[12:])
    symbols = entropy.decode(payload, entropy.Laplace(level_list), len(level_list))
    crc = 0
    for byte in symbols.astype("<i4").tobytes():
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ (0x1021 if crc & 0x8000 else 0)) & 0xFFFF
    assert crc == int.from_bytes(grid[:2], "little")

    layers, first = [{} for _ in range(5)], 0
    for tensor, (i, name) in enumerate(ORDER):
        start = init.params[f"layer_{i:02d}"][name]
        mean = init.keep[f"layer_{i:02d}"][name] * start.astype(np.float32)
        step = 2.0 ** ((grid[2 + tensor] - 192) / 8)
        own = symbols[first : first + start.size].reshape(start.shape)
        layers[i][name] = (mean + own * step).astype(np.float32)
        first += start.size

    y, x = np.meshgrid(*((2 * np.arange(n) + 1) / n - 1 for n in (height, width)), indexing="ij")
    coords = np.stack([y.ravel(), x.ravel()])
    angles = [1.4**i * np.pi * coords for i in range(4)]
    h = np.concatenate([coords, *map(np.sin, angles), *map(np.cos, angles)])
    for layer in layers[:4]:
        h = np.sin(30 * (layer["weight"] @ h + layer["bias"][:, None]))
    out = layers[4]["weight"] @ h + layers[4]["bias"][:, None]
    return np.clip(np.floor(255 * (out + 1) / 2 + 0.5), 0, 255).T.reshape(height, width, 3)


def test_a_decoder_written_from_the_document_gives_the_same_image():
    init = small_init()
    data = small_stream(init)
    image = decode_stream(data, init)
    assert image.std() > 1
    assert np.abs(by_the_book(data, init) - image).max() <= 1  # float32 beside float64


@pytest.mark.parametrize("size", [(1, 1), (512, 768), (SIDE, SIDE), (1, bitstream.MAX_PIXELS)])
def test_side_information_is_at_most_48_bytes(size):
    init = small_init()
    stream = bitstream.unpack(small_stream(init), init.digest)
    data = bitstream.pack(stream.tag, *size, stream.sections, init.digest)
    assert len(data) - describe(data, init).sections["symbols"] <= 48


def test_an_init_of_the_same_first_bytes_is_not_taken_for_the_right_one():
    init = small_init()
    data = small_stream(init)
    body = data[:-4]
    with pytest.raises(BitstreamError, match="checksum"):
        decode_stream(resealed(body, init.digest[:4] + bytes(28)), init)


def altered(init: Init, section: int, change) -> bytes:
    """A file with one section changed and all the checksums of the container right."""
    stream = bitstream.unpack(small_stream(init), init.digest)
    sections = list(stream.sections)
    sections[section] = bytes(change(bytearray(sections[section])))
    return bitstream.pack(stream.tag, stream.height, stream.width, sections, init.digest)


def flip_first(section: bytearray) -> bytearray:
    section[0] ^= 1
    return section


@pytest.mark.parametrize(
    "section, change, message",
    [
        (0, flip_first, "is not known here"),
        (0, lambda s: s[:3], "section 'init' is damaged"),
        (1, flip_first, "symbols do not match"),
        (1, lambda s: s[:-1], "section 'grid' is damaged"),
        (1, lambda s: s + b"\0", "section 'grid' is damaged"),
        (2, flip_first, "symbols do not match|payload is damaged"),
        (2, lambda s: s[:-1], "symbols do not match|payload is damaged"),
        (2, lambda s: s[:0], "symbols do not match|payload is damaged"),
    ],
)
def test_damage_under_a_right_checksum_is_refused(section, change, message):
    init = small_init()
    with pytest.raises(BitstreamError, match=message):
        decode_stream(altered(init, section, change), init)


def test_a_codec_refuses_another_number_of_sections():
    init = small_init()
    stream = bitstream.unpack(small_stream(init), init.digest)
    data = bitstream.pack(MetaSiren.tag, 9, 13, [*stream.sections, b""], init.digest)
    for read in (decode_stream, describe):
        with pytest.raises(BitstreamError, match="4 sections"):
            read(data, init)
