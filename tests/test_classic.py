"""Laws of the classic codecs, at the table's settings and at their limits."""

from __future__ import annotations

import importlib.util
import io
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from inrjax import datasets, metrics
from inrjax.codecs import classic
from inrjax.codecs.classic import Avif, Jpeg, Jpeg2000, MozJpeg, Png, WebP
from inrjax.codecs.modern import Hevc, JpegXl
from inrjax.codecs.vvc import Vvc
from inrjax.types import BitstreamError, Codec

# (codec, a codec of the same family at a lower rate)
CODECS = [
    pytest.param(Jpeg(20, optimize=False), Jpeg(5, optimize=False), id="jpeg"),
    pytest.param(Jpeg(20, optimize=True), Jpeg(5, optimize=True), id="jpeg-optimized"),
    pytest.param(Jpeg2000(40), Jpeg2000(160), id="jpeg2000"),
    pytest.param(WebP(20), WebP(0), id="webp"),
    pytest.param(Jpeg(20, True, True), Jpeg(5, True, True), id="jpeg-progressive"),
    pytest.param(Avif(60), Avif(0), id="avif"),
]
for package, make in {
    "pyvips": lambda: (MozJpeg(20), MozJpeg(5)),
    "imagecodecs": lambda: (JpegXl(2.0), JpegXl(15.0)),
    "pillow_heif": lambda: (Hevc(26), Hevc(45)),
}.items():
    if importlib.util.find_spec(package):
        CODECS.append(pytest.param(*make(), id=make()[0].name))
    else:
        reason = f"{package} is not installed"
        CODECS.append(pytest.param(None, None, id=package, marks=pytest.mark.skip(reason=reason)))
PRESENT = [param.values[0] for param in CODECS if param.values[0] is not None]
each_codec = pytest.mark.parametrize("codec, lower", CODECS)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colour with some texture: something a photograph's codec can work on."""
    y, x = np.mgrid[:height, :width] / 16.0
    planes = [np.sin(y + 0.3 * x), np.cos(0.5 * y - x), np.sin(x * 0.7) * np.cos(y)]
    noise = np.random.default_rng(seed).normal(0, 6, (height, width, 3))
    return np.clip(128 + 80 * np.stack(planes, -1) + noise, 0, 255).astype(np.uint8)


def psnr(image: np.ndarray, image_hat: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((image.astype(float) - image_hat) ** 2))


@each_codec
@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (17, 1), (2, 3), (33, 47), (64, 64), (120, 7)])
def test_round_trip_keeps_shape_and_dtype(codec, lower, shape):
    image = picture(*shape)
    for one in (codec, lower):
        [image_hat] = one.decode(one.encode([image]))
        assert image_hat.dtype == np.uint8
        assert image_hat.shape == image.shape


@each_codec
def test_decodes_to_nearly_the_image(codec, lower):
    image = picture(96, 128)
    [image_hat] = codec.decode(codec.encode([image]))
    assert psnr(image, image_hat) > 23


@each_codec
def test_a_grey_looking_image_stays_rgb_and_grey(codec, lower):
    image = np.repeat(picture(40, 56)[..., :1], 3, axis=2)
    [image_hat] = codec.decode(codec.encode([image]))
    assert image_hat.shape == image.shape
    spread = image_hat.max(axis=2).astype(int) - image_hat.min(axis=2)
    assert spread.max() <= 4


@each_codec
def test_satisfies_the_protocol(codec, lower):
    assert isinstance(codec, Codec)
    assert codec.name == lower.name
    assert codec.setting != lower.setting
    assert codec.suffix.startswith(".")


@each_codec
def test_same_bytes_twice_and_batch_equals_singles(codec, lower):
    images = [picture(40, 56), picture(31, 20, seed=1), picture(40, 56, seed=2)]
    streams = codec.encode(images)
    assert streams == codec.encode(images)
    assert streams == [codec.encode([image])[0] for image in images]
    singles = [codec.decode([stream])[0] for stream in streams]
    for together, alone in zip(codec.decode(streams), singles, strict=True):
        np.testing.assert_array_equal(together, alone)


@each_codec
def test_a_lower_setting_gives_fewer_bytes(codec, lower):
    image = picture(96, 128)
    assert len(lower.encode([image])[0]) < len(codec.encode([image])[0])


@each_codec
def test_every_truncation_is_refused(codec, lower):
    [stream] = lower.encode([picture(40, 56)])
    for length in range(len(stream)):
        with pytest.raises(BitstreamError) as caught:
            codec.decode([stream[:length]])
        assert "\n" not in str(caught.value)


@each_codec
def test_a_lost_end_with_the_end_marker_kept_is_refused_or_decoded_to_shape(codec, lower):
    [stream] = codec.encode([picture(40, 56)])
    try:
        [image_hat] = codec.decode([stream[:-40] + stream[-2:]])
    except BitstreamError:
        return
    assert codec.suffix == ".jpg"  # JPEG cannot tell
    assert image_hat.shape == (40, 56, 3)


@lru_cache
def small_stream(codec: Codec) -> bytes:
    return codec.encode([picture(24, 40)])[0]


@each_codec
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_is_refused_or_decodes_and_never_raises_another_error(codec, lower, data):
    stream = bytearray(small_stream(lower))
    for _ in range(data.draw(st.integers(1, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        [image_hat] = codec.decode([bytes(stream)])
    except BitstreamError as error:
        assert "\n" not in str(error) and " at 0x" not in str(error)
    else:
        assert image_hat.dtype == np.uint8 and image_hat.ndim == 3


@each_codec
def test_a_damaged_start_is_refused(codec, lower):
    [stream] = codec.encode([picture(24, 40)])
    with pytest.raises(BitstreamError):
        codec.decode([b"\x7f" + stream[1:]])


@each_codec
def test_other_formats_and_nonsense_are_refused(codec, lower):
    png = io.BytesIO()
    PillowImage.fromarray(picture(8, 8)).save(png, "PNG")
    others = [other.encode([picture(8, 8)])[0] for other in PRESENT if other.suffix != codec.suffix]
    for data in [b"", b"x", bytes(100), png.getvalue(), *others]:
        with pytest.raises(BitstreamError):
            codec.decode([data])


def test_a_jpeg_that_is_not_rgb_is_refused():
    buffer = io.BytesIO()
    PillowImage.fromarray(picture(8, 8)).convert("CMYK").save(buffer, "JPEG")
    with pytest.raises(BitstreamError, match="CMYK"):
        Jpeg(10, optimize=True).decode([buffer.getvalue()])


def test_jpeg_variants_have_the_same_pixels_and_optimised_tables_are_smaller():
    image = picture(96, 128)
    plain, fitted = Jpeg(5, optimize=False), Jpeg(5, optimize=True)
    (a,), (b,) = plain.encode([image]), fitted.encode([image])
    assert len(b) < len(a)
    np.testing.assert_array_equal(plain.decode([a])[0], fitted.decode([b])[0])
    assert (plain.name, fitted.name) == ("jpeg", "jpeg-optimized")
    # SOF0 is baseline; the first component's sampling factors 2x2 are 4:2:0.
    for stream in (a, b):
        start = stream.index(b"\xff\xc0")
        assert stream[start + 11] == 0x22


def test_jpeg2000_codes_colour_together_and_hits_its_rate():
    image = picture(256, 256)
    for ratio in (20, 80):
        [stream] = Jpeg2000(ratio).encode([image])
        assert len(stream) == pytest.approx(image.size / ratio, rel=0.1)
    assert stream.startswith(b"\xff\x4f\xff\x51")
    assert b"OpenJPEG" not in stream
    # COD's multiple component transform byte (marker, length, style, order, layers, transform).
    assert stream[stream.index(b"\xff\x52") + 8] == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Jpeg(0, optimize=True),
        lambda: Jpeg(101, optimize=False),
        lambda: Jpeg(10.5, optimize=False),  # type: ignore[arg-type]
        lambda: Jpeg(True, optimize=False),
        lambda: Jpeg2000(0.5),
        lambda: Jpeg2000(float("nan")),
        lambda: Jpeg2000(1e9),
        lambda: WebP(-1),
        lambda: WebP(101),
        lambda: Jpeg(10, optimize=False, progressive=True),
        lambda: MozJpeg(0),
        lambda: Avif(101),
        lambda: JpegXl(0),
        lambda: JpegXl(25.1),
        lambda: JpegXl(float("nan")),
        lambda: Hevc(52),
        lambda: Hevc(-1),
    ],
)
def test_settings_out_of_range_are_refused_at_construction(make):
    with pytest.raises(ValueError, match=r"got .* expected"):
        make()


@each_codec
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(codec, lower, image):
    with pytest.raises(ValueError, match="expected uint8"):
        codec.encode([image])


@pytest.mark.parametrize(
    "codec, limit",
    [(Jpeg(10, optimize=True), 65500), (WebP(10), 16383), (Avif(10), 16384)],
    ids=["jpeg", "webp", "avif"],
)
def test_the_longest_side_works_and_one_more_is_refused(codec, limit):
    image = np.full((1, limit, 3), 90, np.uint8)
    assert codec.decode(codec.encode([image]))[0].shape == image.shape
    with pytest.raises(ValueError, match=str(limit)):
        codec.encode([np.full((limit + 1, 1, 3), 90, np.uint8)])


def test_arrays_that_are_not_contiguous_are_encoded_as_their_copies():
    image = picture(40, 60)[::-1, ::2]
    for codec in PRESENT:
        assert codec.encode([image]) == codec.encode([np.ascontiguousarray(image)])


@each_codec
def test_progress_counts_images(codec, lower):
    calls = []
    codec.encode([picture(8, 8)] * 3, lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_the_ladders_make_curves_of_ten_rates_or_more():
    image = picture(192, 256)
    for ladder in (
        [Jpeg(q, optimize=True) for q in classic.JPEG_QUALITIES],
        [Jpeg2000(r) for r in classic.JPEG2000_RATIOS],
        [WebP(q) for q in classic.WEBP_QUALITIES],
    ):
        sizes = [len(codec.encode([image])[0]) for codec in ladder]
        assert len(sizes) >= 10
        assert sizes == sorted(sizes) and sizes[0] < sizes[-1] / 2
        assert len({codec.setting for codec in ladder}) == len(ladder)


def scans(stream: bytes) -> int:
    """The start-of-scan markers of a JPEG file: none can occur inside its coded data."""
    return stream.count(b"\xff\xda")


def sampling(stream: bytes) -> int:
    """The luma's sampling factors in a JPEG's frame header, 0x22 for 4:2:0, 0x11 for 4:4:4."""
    start = max(stream.find(b"\xff\xc0"), stream.find(b"\xff\xc2"))
    return stream[start + 11]


def test_jpeg_variants_are_what_their_names_say():
    image = picture(96, 128)
    streams = {}
    for codec in (
        Jpeg(30, True),
        Jpeg(30, True, progressive=True),
        Jpeg(30, True, subsample=False),
        Jpeg(30, True, progressive=True, subsample=False),
    ):
        [streams[codec.name]] = codec.encode([image])
    assert {name: (scans(s), sampling(s)) for name, s in streams.items()} == {
        "jpeg-optimized": (1, 0x22),
        "jpeg-progressive": (10, 0x22),
        "jpeg-optimized-444": (1, 0x11),
        "jpeg-progressive-444": (10, 0x11),
    }
    decode = Jpeg(1, True).decode
    for sequential, progressive in (("", ""), ("-444", "-444")):
        pair = [streams[f"jpeg-optimized{sequential}"], streams[f"jpeg-progressive{progressive}"]]
        np.testing.assert_array_equal(*decode(pair))


def test_mozjpeg_is_a_progressive_420_jpeg_that_needs_fewer_bits_than_libjpeg_turbo():
    pytest.importorskip("pyvips")
    image, rates, psnrs = datasets.packaged()["chelsea"], [], []
    for ladder in (
        [Jpeg(q, optimize=True) for q in classic.JPEG_QUALITIES],
        [MozJpeg(q) for q in classic.MOZJPEG_QUALITIES],
    ):
        streams = [codec.encode([image])[0] for codec in ladder]
        rates.append([len(stream) for stream in streams])
        psnrs.append([psnr(image, image_hat) for image_hat in ladder[0].decode(streams)])
    assert metrics.bd_rate(rates[0], psnrs[0], rates[1], psnrs[1]).percent < -5
    assert scans(streams[-1]) > 1 and sampling(streams[-1]) == 0x22
    assert b"Exif" not in streams[-1] and b"ICC" not in streams[-1]


def test_avif_and_hevc_keep_the_chroma_that_they_say():
    image = datasets.packaged()["chelsea"]
    [avif] = Avif(30).encode([image])
    # av1C (AV1 in ISOBMFF, 2.3): in its third byte, bits 3 and 2 say that chroma is subsampled.
    assert avif[avif.index(b"av1C") + 6] & 0b1100 == 0
    pytest.importorskip("pillow_heif")
    [heic] = Hevc(40).encode([image])
    # hvcC (ISO/IEC 14496-15, 8.3.3.1): chroma_format_idc, two bits, 1 is 4:2:0; then bit depth - 8.
    start = heic.index(b"hvcC") + 4
    assert heic[start + 16] & 3 == 1 and heic[start + 17] & 7 == 0


def test_png_is_exact_and_finds_every_flipped_byte():
    image = picture(5, 7)
    [stream] = Png().encode([image])
    np.testing.assert_array_equal(Png().decode([stream])[0], image)
    for i in range(len(stream)):
        damaged = bytearray(stream)
        damaged[i] ^= 1 << i % 8
        with pytest.raises(BitstreamError):
            Png().decode([bytes(damaged)])
    with pytest.raises(BitstreamError):
        Png().decode([stream + b"\0"])


@pytest.mark.parametrize("shape", [(31, 32), (32, 31), (33, 33), (1, 40)])
def test_small_hevc_pictures_are_padded_and_cropped(shape):
    pytest.importorskip("pillow_heif")
    codec = Hevc(10)
    [stream] = codec.encode([picture(*shape)])
    [image_hat] = codec.decode([stream])
    assert psnr(picture(*shape), image_hat) > 27
    assert (stream[-12:-8] == b"skip") == (min(shape) < 32)


@pytest.mark.parametrize(
    "package, extra, make",
    [
        ("pyvips", "codecs", lambda: MozJpeg(10)),
        ("imagecodecs", "codecs", lambda: JpegXl(5)),
        ("pillow_heif", "codecs", lambda: Hevc(30)),
        ("imageio_ffmpeg", "vvc", lambda: Vvc(30)),
    ],
)
def test_a_missing_package_is_named_with_its_command(package, extra, make, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == package else find(name, *a)
    )
    with pytest.raises(ValueError, match=rf"{package}.*pip install 'inrjax\[{extra}\]'"):
        make()
