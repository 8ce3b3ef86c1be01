"""The loader reads a file exactly, converts it and says so, or refuses it in one sentence."""

import io
import random
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import skimage.data

from inrjax import images

PHOTO = skimage.data.astronaut()[20:60, 200:251].copy()
GREY = PHOTO[..., 1].copy()
LOSSLESS = {
    "png": ("PNG", {}),
    "webp": ("WEBP", {"lossless": True}),
    "tiff": ("TIFF", {}),
    "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff-deflate": ("TIFF", {"compression": "tiff_deflate"}),
    "tiff-packbits": ("TIFF", {"compression": "packbits"}),
    "bmp": ("BMP", {}),
    "ppm": ("PPM", {}),
}
LOSSY = {
    "jpeg": ("JPEG", {"quality": 80}),
    "jpeg-progressive": ("JPEG", {"quality": 80, "progressive": True}),
    "webp-lossy": ("WEBP", {"quality": 60}),
    "webp-exif": ("WEBP", {"quality": 60, "exif": b"II*\0\x08" + bytes(9)}),
    "tiff-jpeg": ("TIFF", {"compression": "jpeg"}),
}
SRGB_LIKE = b"\0" * 36 + b"acsp" + b"\0" * 60 + b"sRGB IEC61966-2.1"
WIDE_GAMUT = b"\0" * 36 + b"acsp" + b"\0" * 60 + b"Display P3"


def encoded(array, kind, mode=None, **options):
    """The bytes of a file of this Pillow format."""
    buffer = io.BytesIO()
    picture = PIL.Image.fromarray(array) if isinstance(array, np.ndarray) else array
    (picture.convert(mode) if mode else picture).save(buffer, kind, **options)
    return buffer.getvalue()


def png(width, height, bits, colour, rows, extra=b""):
    """A PNG file written by hand: what Pillow does not write itself."""

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )


def tiff(width, height, strip, tags):
    """A little-endian TIFF file written by hand; tags are number -> tuple of shorts."""
    entries = {256: (width,), 257: (height,), 259: (1,), 277: (1,), 278: (height,), **tags}
    entries |= {273: (8,), 279: (len(strip),)}
    start = 8 + len(strip)
    after = start + 2 + 12 * len(entries) + 4
    table, overflow = struct.pack("<H", len(entries)), b""
    for number, values in sorted(entries.items()):
        body = struct.pack(f"<{len(values)}H", *values)
        if len(body) > 4:
            body, overflow = struct.pack("<I", after + len(overflow)), overflow + body
        table += struct.pack("<HHI", number, 3, len(values)) + body.ljust(4, b"\0")
    return struct.pack("<2sHI", b"II", 42, start) + strip + table + bytes(4) + overflow


@pytest.fixture
def read(tmp_path):
    """Write bytes to a file and read them as an image."""

    def write_and_read(data):
        path = tmp_path / "picture.bin"
        path.write_bytes(data)
        return images.read_image(path)

    return write_and_read


@pytest.fixture
def refused(read, tmp_path):
    """The one sentence with which the bytes are refused; it names the file."""

    def sentence(data):
        with pytest.raises(ValueError) as caught:
            read(data)
        assert type(caught.value) is ValueError
        message = str(caught.value)
        assert message.startswith(str(tmp_path / "picture.bin")) and "\n" not in message
        return message

    return sentence


# --- what is read exactly, without a note ---------------------------------------------------------


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("shape", [(40, 51), (1, 1), (1, 9), (9, 1)])
def test_lossless_rgb_is_read_exactly(read, name, shape):
    image = PHOTO[: shape[0], : shape[1]]
    kind, options = LOSSLESS[name]
    loaded = read(encoded(image, kind, **options))
    assert loaded.notes == ()
    assert loaded.image.dtype == np.uint8 and loaded.image.flags.writeable
    np.testing.assert_array_equal(loaded.image, image)


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_rgb_is_read_as_pillow_decodes_it(read, name):
    kind, options = LOSSY[name]
    data = encoded(PHOTO, kind, **options)
    loaded = read(data)
    assert loaded.notes == ()
    expected = np.asarray(PIL.Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(loaded.image, expected)


def test_a_suffix_does_not_matter_and_strings_are_paths(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(PHOTO, "PNG"))
    np.testing.assert_array_equal(images.read_image(str(path)).image, PHOTO)


def test_gamma_chunk_is_ignored(read):
    body = struct.pack(">I", 45455)
    gamma = struct.pack(">I", 4) + b"gAMA" + body + struct.pack(">I", zlib.crc32(b"gAMA" + body))
    loaded = read(png(1, 1, 8, 2, [b"\x01\x02\x03"], extra=gamma))
    assert loaded.notes == () and loaded.image.tolist() == [[[1, 2, 3]]]


def test_bytes_after_the_picture_are_ignored(read):
    for kind in ("PNG", "JPEG"):
        data = encoded(PHOTO, kind)
        expected = read(data).image
        np.testing.assert_array_equal(read(data + bytes(100_000)).image, expected)


# --- what is converted, with a note ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "JPEG"])
def test_grey_becomes_rgb(read, kind):
    data = encoded(GREY, kind)
    loaded = read(data)
    assert loaded.notes == ("grey, converted to RGB",)
    expected = np.asarray(PIL.Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(loaded.image, np.stack([expected] * 3, -1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
def test_black_and_white_becomes_rgb(read, kind):
    loaded = read(encoded(PIL.Image.fromarray(GREY > 99), kind))
    assert loaded.notes == ("black and white, converted to RGB",)
    np.testing.assert_array_equal(loaded.image[..., 2], 255 * (GREY > 99))


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_is_scaled_to_full_range(read, bits):
    top = 2**bits - 1
    loaded = read(png(2, 1, bits, 0, [bytes([top << (8 - 2 * bits)])]))
    assert loaded.image[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_palette_becomes_rgb(read, kind):
    picture = PIL.Image.fromarray(PHOTO).quantize(60)
    loaded = read(encoded(picture, kind))
    assert loaded.notes == ("palette, converted to RGB",)
    np.testing.assert_array_equal(loaded.image, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_opaque_alpha_is_dropped(read, kind):
    rgba = np.dstack([PHOTO, np.full_like(GREY, 255)])
    options = {"lossless": True} if kind == "WEBP" else {}
    loaded = read(encoded(rgba, kind, **options))
    if kind != "WEBP":  # its encoder leaves out an alpha channel that is opaque
        assert loaded.notes == ("alpha 100 % opaque, dropped",)
    np.testing.assert_array_equal(loaded.image, PHOTO)


def test_grey_with_opaque_alpha_is_noted_twice(read):
    rows = [row.tobytes() for row in np.dstack([GREY, np.full_like(GREY, 255)])]
    loaded = read(png(51, 40, 8, 4, rows))
    assert loaded.notes == ("grey, converted to RGB", "alpha 100 % opaque, dropped")
    np.testing.assert_array_equal(loaded.image[..., 0], GREY)


def test_a_transparent_colour_that_no_pixel_has_is_dropped(read):
    loaded = read(encoded(PHOTO, "PNG", transparency=(1, 2, 3)))
    assert loaded.notes == ("alpha 100 % opaque, dropped",)
    np.testing.assert_array_equal(loaded.image, PHOTO)


ORIENTATIONS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation_is_applied_once(read, kind, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    stored = np.asarray(PIL.Image.open(io.BytesIO(encoded(PHOTO, kind, **options))))
    loaded = read(encoded(PHOTO, kind, exif=exif, **options))
    applied = (f"EXIF orientation {orientation}, applied",) if orientation > 1 else ()
    assert loaded.notes == applied
    np.testing.assert_array_equal(loaded.image, ORIENTATIONS[orientation](stored))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_a_colour_profile_other_than_srgb_is_noted(read, kind):
    assert read(encoded(PHOTO, kind, icc_profile=SRGB_LIKE)).notes == ()
    wide = "sRGB".encode("utf-16-be")
    assert read(encoded(PHOTO, kind, icc_profile=WIDE_GAMUT + wide)).notes == ()
    (note,) = read(encoded(PHOTO, kind, icc_profile=WIDE_GAMUT)).notes
    assert note.startswith("colour profile other than sRGB, ignored")


def test_the_first_picture_of_a_phone_s_multi_picture_jpeg_is_used(read):
    second = PIL.Image.fromarray(PHOTO[::2, ::2])
    data = encoded(PHOTO, "MPO", save_all=True, append_images=[second])
    loaded = read(data)
    assert loaded.notes == ("2 pictures in the file, the first used",)
    assert loaded.image.shape == PHOTO.shape


def test_ppm_values_are_scaled(read):
    loaded = read(b"P6\n# a comment\n2 1\n# another\n15\n" + bytes([0, 5, 15, 1, 2, 3]))
    assert loaded.notes == ("values 0..15, scaled to 0..255",)
    assert loaded.image[0].tolist() == [[0, 85, 255], [17, 34, 51]]


def test_plain_ppm(read):
    assert read(b"P3 1 1 255 1 2 3\n").image.tolist() == [[[1, 2, 3]]]
    assert read(b"P2 2 1 255 9 8 ").image[0, :, 0].tolist() == [9, 8]
    assert read(b"P1 2 1 01").image[0, :, 0].tolist() == [255, 0]


def test_tiff_with_an_unstated_extra_channel(read):
    tags = {258: (8,) * 4, 262: (2,), 277: (4,), 338: (0,)}
    loaded = read(tiff(2, 1, bytes([1, 2, 3, 99, 4, 5, 6, 0]), tags))
    assert loaded.image[0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert loaded.notes == ("extra channel without a stated meaning, dropped",)


def test_tiff_where_white_is_zero(read):
    loaded = read(tiff(2, 1, bytes([0, 200]), {258: (8,), 262: (0,)}))
    assert loaded.image[0, :, 0].tolist() == [255, 55]


# --- what is refused ------------------------------------------------------------------------------


def test_missing_folder_empty_and_unreadable(tmp_path, refused):
    with pytest.raises(ValueError, match=r"missing\.png does not exist"):
        images.read_image(tmp_path / "missing.png")
    with pytest.raises(ValueError, match="is a folder"):
        images.read_image(tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):
        images.read_image(tmp_path / ("x" * 300))
    with pytest.raises(ValueError, match="not a regular file"):
        images.read_image("/dev/null")
    assert "is empty" in refused(b"")


def test_a_file_without_permission(tmp_path, monkeypatch):
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(PHOTO, "PNG"))

    def deny(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "read_bytes", deny)
    with pytest.raises(ValueError, match=r"secret\.png cannot be read \(Permission denied\)"):
        images.read_image(path)


@pytest.mark.parametrize(
    "data",
    [
        b"not an image",
        b"\0" * 1000,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        encoded(GREY, "GIF"),
        encoded(PHOTO, "JPEG2000"),
        encoded(PHOTO, "AVIF") if "AVIF" in PIL.Image.SAVE else b"....ftypavif",
    ],
)
def test_other_files_are_refused(refused, data):
    assert "is not a readable PNG, JPEG, WebP, TIFF, BMP or PPM image" in refused(data)


def test_transparency_is_refused(refused):
    alpha = np.full_like(GREY, 255)
    alpha[3, 4] = 254
    picture = PIL.Image.fromarray(PHOTO).quantize(16)
    transparent = [
        encoded(np.dstack([PHOTO, alpha]), "PNG"),
        encoded(np.dstack([PHOTO, alpha]), "TIFF"),
        encoded(np.dstack([PHOTO, alpha]), "WEBP", lossless=True),
        encoded(PIL.Image.fromarray(np.dstack([GREY, alpha])), "PNG"),
        encoded(picture, "PNG", transparency=int(np.asarray(picture)[0, 0])),
        encoded(picture, "PNG", transparency=bytes([200] * 16)),
        encoded(GREY, "PNG", transparency=int(GREY[0, 0])),
        encoded(PHOTO, "PNG", transparency=tuple(int(value) for value in PHOTO[0, 0])),
    ]
    for data in transparent:
        assert "has transparent pixels: flatten it" in refused(data)


def test_16_bits_are_refused_from_the_header(refused):
    deep = [
        *(png(1, 1, 16, colour, [bytes(2 * n)]) for colour, n in ((0, 1), (2, 3), (4, 2), (6, 4))),
        encoded(GREY.astype(np.uint16) * 257, "PNG"),
        encoded(GREY.astype(np.uint16) * 257, "TIFF"),
        tiff(1, 1, bytes(6), {258: (16,) * 3, 262: (2,), 277: (3,)}),
        tiff(1, 1, bytes(2), {258: (16,), 262: (0,)}),
        b"P5 1 1 65535\n\1\2",
        b"P6 1 1 65535\n\1\2\3\4\5\6",
        b"P3 1 1 65535 1 2 3\n",
    ]
    for data in deep:
        assert "has 16 bits a channel: convert it to 8" in refused(data)
    assert "has 12 bits a channel" in refused(tiff(2, 1, bytes(3), {258: (12,), 262: (1,)}))
    assert "has 10 bits a channel" in refused(b"P5 1 1 1023\n\1\2")


def test_values_that_are_not_unsigned_integers_are_refused(refused):
    assert "floating-point" in refused(encoded(GREY.astype(np.float32), "TIFF"))
    assert "signed" in refused(tiff(1, 1, b"\xff", {258: (8,), 262: (1,), 339: (2,)}))
    assert "has colours of the kind F" in refused(b"Pf 1 1 -1.0\n" + bytes(4))


def test_cmyk_and_lab_are_refused(refused):
    for kind in ("JPEG", "TIFF"):
        assert "of the kind CMYK: convert it to 8-bit RGB" in refused(encoded(PHOTO, kind, "CMYK"))
    lab = PIL.Image.merge("LAB", PIL.Image.fromarray(PHOTO).split())
    assert "of the kind LAB" in refused(encoded(lab, "TIFF"))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_animations_and_pages_are_refused(refused, kind):
    second = PIL.Image.fromarray(255 - PHOTO)
    data = encoded(PHOTO, kind, save_all=True, append_images=[second])
    assert "has 2 frames or pages" in refused(data)


def test_joined_ppm_files_are_refused(refused):
    for array in (PHOTO, GREY, GREY > 99):
        data = encoded(PIL.Image.fromarray(array), "PPM")
        assert "holds several pictures" in refused(data + data)


def test_huge_claims_are_refused_before_they_are_allocated(refused):
    side = 100_000
    claims = [
        png(side, side, 8, 2, [b""]),
        png(10_000, 10_000, 8, 2, [b""]),
        png(8193, 8192, 8, 2, [b""]),
        b"P6 100000 100000 255\n",
        b"BM" + struct.pack("<IIIIiiHHIIIIII", 99, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0),
        tiff(65535, 65535, b"\0", {258: (8,), 262: (1,)}),
    ]
    for data in claims:
        assert "crop or resize it" in refused(data)


def test_huge_claims_are_refused_when_pillow_s_own_limit_is_off(refused, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    assert "claims 100000 x 100000 pixels" in refused(png(100_000, 100_000, 8, 2, [b""]))


def test_huge_files_are_refused_before_they_are_read(tmp_path):
    path = tmp_path / "sparse.png"
    with path.open("wb") as file:
        file.truncate(images.MAX_FILE_BYTES + 1)
    with pytest.raises(ValueError, match=r"sparse\.png is larger than"):
        images.read_image(path)


def test_a_colour_index_outside_the_palette_is_refused(refused):
    body = b"\1\2\3"
    palette = struct.pack(">I", 3) + b"PLTE" + body + struct.pack(">I", zlib.crc32(b"PLTE" + body))
    assert "outside the palette" in refused(png(2, 1, 8, 3, [b"\0\7"], extra=palette))


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
def test_a_truncated_file_is_refused(read, name):
    """However little is missing; where padding alone is missing, the pixels must be the same."""
    kind, options = (LOSSLESS | LOSSY)[name]
    data = encoded(PHOTO, kind, **options)
    expected = read(data).image
    cuts = {*range(1, 20), len(data) // 2, len(data) - 30, *range(20, len(data), 97)}
    accepted = []
    for cut in sorted(cuts):
        try:
            np.testing.assert_array_equal(read(data[:-cut]).image, expected)
            accepted.append(cut)
        except ValueError as error:
            assert "picture.bin is" in str(error)
    assert all(cut <= 4 for cut in accepted)


def test_a_truncated_plain_ppm_is_refused(refused):
    assert "may be cut" in refused(b"P3 1 1 255 1 2 3")
    assert "damaged" in refused(b"P3 1 1 255 1 2 ")
    assert "damaged" in refused(b"P1 2 2 101")


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_byte_in_a_png_is_refused(refused, seed):
    data = bytearray(encoded(PHOTO, "PNG"))
    position = random.Random(seed).randrange(len(data) - 12)
    data[position] ^= 0x20
    refused(bytes(data))


MAGICS = [
    b"\x89PNG\r\n\x1a\n",
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    b"\xff\xd8\xff\xe0",
    b"\xff\xd8\xff\xdb",
    b"RIFF\x40\0\0\0WEBPVP8 ",
    b"RIFF\x40\0\0\0WEBPVP8L",
    b"RIFF\x40\0\0\0WEBPVP8X",
    b"II*\0\x08\0\0\0",
    b"MM\0*\0\0\0\x08",
    b"II+\0\x08\0\0\0",
    b"BM",
    b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0",
    b"P1 3 3\n",
    b"P3 3 2 255\n",
    b"P5 3 2 ",
    b"P6 9999 9999 255\n",
    b"Pf 2 2 1\n",
]


@pytest.mark.parametrize("magic", MAGICS)
def test_random_bytes_after_a_magic_are_refused_with_valueerror(refused, magic):
    generator = random.Random(magic)
    for length in (0, 1, 2, 3, 7, 20, 50, 100, 300, 1000):
        refused(magic + b"\xfe" + generator.randbytes(length))


@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
def test_flipped_bytes_raise_nothing_but_valueerror(read, name):
    kind, options = (LOSSLESS | LOSSY)[name]
    data = encoded(PHOTO, kind, **options)
    generator = random.Random(name)
    for _ in range(40):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[generator.randrange(min(len(data), generator.choice([64, 10**6])))] = (
                generator.randrange(256)
            )
        try:
            images.check_image(read(bytes(damaged)).image)
        except ValueError as error:
            assert type(error) is ValueError and "\n" not in str(error)


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 51), (1, 1), (1, 9)])
def test_written_images_are_read_back(tmp_path, shape):
    image = PHOTO[: shape[0], : shape[1]]
    path = tmp_path / "out.PNG"
    images.write_image(path, image)
    loaded = images.read_image(path)
    assert loaded.notes == ()
    np.testing.assert_array_equal(loaded.image, image)


def test_write_refuses_other_formats_folders_and_arrays(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.png"):
        images.write_image(tmp_path / "out.jpg", PHOTO)
    with pytest.raises(ValueError, match=r"missing/out\.png cannot be written \(No such file"):
        images.write_image(tmp_path / "missing" / "out.png", PHOTO)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=r"folder\.png cannot be written"):
        images.write_image(tmp_path / "folder.png", PHOTO)
    for bad in (PHOTO / 255, GREY, PHOTO[:0], np.dstack([PHOTO, GREY])):
        with pytest.raises(ValueError, match=r"expected \(height, width, 3\) and uint8"):
            images.write_image(tmp_path / "out.png", bad)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


# --- numbers --------------------------------------------------------------------------------------


def test_uint8_survives_the_way_to_float_and_back():
    levels = np.arange(256, dtype=np.uint8)
    pixels = images.to_float(levels)
    assert pixels.dtype == np.float32 and pixels.min() == 0 and pixels.max() == 1
    np.testing.assert_array_equal(images.to_uint8(pixels), levels)
    np.testing.assert_array_equal(images.to_uint8(pixels.astype(np.float64)), levels)


def test_to_uint8_clips_and_rounds_half_up():
    pixels = np.array([-np.inf, -0.1, 0.5 / 255, 2.5 / 255, 254.4999 / 255, 1.7, np.inf])
    assert images.to_uint8(pixels).tolist() == [0, 0, 1, 3, 254, 255, 255]


def test_conversions_refuse_what_they_cannot_mean():
    with pytest.raises(ValueError, match="NaN"):
        images.to_uint8(np.array([0.5, np.nan]))
    with pytest.raises(ValueError, match="expected uint8"):
        images.to_float(np.zeros(3))


def test_coordinates_are_pixel_centres_row_by_row():
    coords = images.coordinates(2, 4)
    assert coords.dtype == np.float32 and coords.shape == (8, 2)
    assert coords[:, 0].tolist() == [-0.5] * 4 + [0.5] * 4
    assert coords[:4, 1].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert images.coordinates(1, 1).tolist() == [[0, 0]]


@pytest.mark.parametrize("size", [(5, 3), (512, 768), (1, 1000)])
def test_coordinates_are_symmetric_and_evenly_spaced(size):
    height, width = size
    grid = images.coordinates(height, width).reshape(height, width, 2)
    np.testing.assert_array_equal(grid, -grid[::-1, ::-1])
    np.testing.assert_allclose(np.diff(grid[..., 0], axis=0), 2 / height, atol=1e-6)
    np.testing.assert_allclose(np.diff(grid[..., 1], axis=1), 2 / width, atol=1e-6)
    assert np.abs(grid).max() < 1


def test_coordinates_refuse_an_empty_grid():
    with pytest.raises(ValueError, match="0 x 3"):
        images.coordinates(0, 3)
