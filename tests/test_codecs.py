"""One table of small codecs, and the laws that every codec keeps."""

from __future__ import annotations

import importlib.util
import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from bases import tiny_base, tiny_grid_base
from conftest import photograph

from inrjax import bitstream, decoding, metrics, trees
from inrjax.base import Base, save_base
from inrjax.codecs import (
    BY_TAG,
    Avif,
    Coin,
    Fmm,
    FmmInside,
    Hevc,
    Jpeg,
    Jpeg2000,
    JpegXl,
    LatentGrid,
    MetaSiren,
    ModulatedSiren,
    MozJpeg,
    Png,
    ProductSiren,
    StrumplerBasic,
    StrumplerMeta,
    Vvc,
    WebP,
    decode_stream,
    describe,
    shared_of,
)
from inrjax.grids import GridBase, save_grid_base
from inrjax.init import Init, flat_init, packaged_widths, save_init
from inrjax.nets.siren import Encoding, Siren
from inrjax.quantize import Quantized
from inrjax.types import BitstreamError, Codec


def small_init(width: int) -> Init:
    """A prior that knows nothing, around a random net."""
    net, rng = Siren(width, 4, encoding=Encoding()), np.random.default_rng(width)
    leaves = {
        path: rng.uniform(-1, 1, shape) * (6 / shape[-1]) ** 0.5 / net.w0
        for path, shape in trees.leaves(net.shapes())
    }
    return flat_init(net, trees.from_leaves(leaves))


STEPS = 12
POINTS = 64  # one tile of most images: a step sees a subset, and batches pad to other lengths
COIN = Coin(8, 2, STEPS, points_per_step=POINTS)
META = MetaSiren(8, STEPS, init=small_init(8), points_per_step=POINTS)
PRODUCT = ProductSiren(8, 8, 2, STEPS, 6, init=META.init, points_per_step=POINTS)
MODULATED = ModulatedSiren(tiny_base(), inner_steps=3)
GRID_BASE = tiny_grid_base()
LATENT_GRID = LatentGrid(20, iterations=3, base=GRID_BASE)
FEW = {"points_per_step": POINTS, "rounding_steps": 6, "retraining_steps": 4}
BASIC = StrumplerBasic(8, 8, STEPS, **FEW)
STRUMPLER_META = StrumplerMeta(8, 7, STEPS, init=META.init, **FEW)

# name -> (codec, a codec of the same family at a lower rate; None if it has one rate)
TABLE = {
    "coin": (COIN, replace(COIN, width=5)),
    "meta-siren": (META, replace(META, width=4, init=small_init(4))),
    "strumpler-basic": (BASIC, replace(BASIC, num_bits=5)),
    "strumpler-meta": (STRUMPLER_META, replace(STRUMPLER_META, num_bits=4)),
    "product-siren": (PRODUCT, replace(PRODUCT, num_centroids=2)),
    "modulated-siren": (MODULATED, replace(MODULATED, bits=2)),
    "latent-grid": (LATENT_GRID, replace(LATENT_GRID, step=40)),
    "jpeg": (Jpeg(30, optimize=False), Jpeg(3, optimize=False)),
    "jpeg-optimized": (Jpeg(30, optimize=True), Jpeg(3, optimize=True)),
    "jpeg-progressive": (Jpeg(30, True, progressive=True), Jpeg(3, True, progressive=True)),
    "jpeg-optimized-444": (Jpeg(30, True, subsample=False), Jpeg(3, True, subsample=False)),
    "jpeg2000": (Jpeg2000(4), Jpeg2000(12)),
    "webp": (WebP(70), WebP(0)),
    "avif": (Avif(70), Avif(0)),
    "png": (Png(), None),
    "fmm": (Fmm(), None),
    "fmm-jpeg-optimized": (FmmInside(Jpeg(90, True)), FmmInside(Jpeg(30, True))),
}
# name -> (package that it needs, what makes its row)
OPTIONAL = {
    "jpeg-mozjpeg": ("pyvips", lambda: (MozJpeg(50), MozJpeg(5))),
    "jpeg-xl": ("imagecodecs", lambda: (JpegXl(1.0), JpegXl(15.0))),
    "hevc": ("pillow_heif", lambda: (Hevc(20), Hevc(45))),
    "vvc": ("imageio_ffmpeg", lambda: (Vvc(30), Vvc(48))),
}
ABSENT = {
    name: package
    for name, (package, _) in OPTIONAL.items()
    if importlib.util.find_spec(package) is None
}
TABLE |= {name: make() for name, (_, make) in OPTIONAL.items() if name not in ABSENT}
if packaged_widths():
    PACKAGED = MetaSiren(packaged_widths()[0], 6, points_per_step=POINTS)
    TABLE["meta-siren-packaged"] = (PACKAGED, None)
TABLE["meta-siren-searched"] = (replace(META, search_steps=6), None)
INR = [name for name, (codec, _) in TABLE.items() if codec.suffix == ".inr"]

SKIPPED = [
    pytest.param(name, marks=pytest.mark.skip(reason=f"{package} is not installed"))
    for name, package in ABSENT.items()
]
every_codec = pytest.mark.parametrize("name", [*TABLE, *SKIPPED])
every_inr = pytest.mark.parametrize("name", INR)

CHECKERS = np.repeat(np.indices((19, 23)).sum(0)[..., None] % 2 * 255, 3, 2).astype(np.uint8)
IMAGES = {
    "photograph": photograph(24, 20),
    "1x1": photograph(1, 1),
    "1x17": photograph(1, 17),
    "17x1": photograph(17, 1),
    "odd": photograph(19, 23, seed=1),
    "constant": np.full((19, 23, 3), (255, 0, 7), np.uint8),
    "checkers": CHECKERS,
    "noise": np.random.default_rng(0).integers(0, 256, (19, 23, 3), np.uint8),
}


@lru_cache
def encoded(name: str) -> dict[str, bytes]:
    """The streams of all test images, encoded as one batch of mixed shapes."""
    codec, _ = TABLE[name]
    return dict(zip(IMAGES, codec.encode(list(IMAGES.values())), strict=True))


def init_of(name: str) -> Init | Base | GridBase | None:
    """What `decode_stream` needs beside the stream."""
    codec, _ = TABLE[name]
    return getattr(codec, "init", None) or getattr(codec, "base", None)


# ---------------------------------------------------------------------------- every codec


@every_codec
def test_satisfies_the_protocol(name):
    codec, lower = TABLE[name]
    assert isinstance(codec, Codec)
    assert codec.suffix.startswith(".")
    assert codec.name == name.removesuffix("-packaged").removesuffix("-searched")
    assert lower is None or (lower.name, lower.suffix) == (codec.name, codec.suffix)
    assert lower is None or lower.setting != codec.setting


def test_nothing_in_is_nothing_out():
    for codec, _ in TABLE.values():
        assert codec.encode([]) == []
        assert codec.decode([]) == []


@every_codec
def test_round_trip_keeps_shape_and_dtype(name):
    codec, _ = TABLE[name]
    streams = encoded(name)
    for key, image_hat in zip(streams, codec.decode(list(streams.values())), strict=True):
        assert isinstance(streams[key], bytes)
        assert image_hat.shape == IMAGES[key].shape
        assert image_hat.dtype == np.uint8


@every_codec
def test_same_bytes_twice_and_batch_equals_singles(name):
    codec, _ = TABLE[name]
    # The shorter lists of tiny images alone take one more program, which costs seconds: the
    # packaged init leaves them to the flat one, Strümpler's and ProductSiren's fits to COIN's.
    few = name in ("meta-siren-packaged", "product-siren") or name.startswith("strumpler")
    keys = ["photograph", "odd"] if few else IMAGES
    for key in keys:
        assert codec.encode([IMAGES[key]]) == [encoded(name)[key]], key


@every_codec
def test_order_and_neighbours_do_not_matter(name):
    codec, _ = TABLE[name]
    keys = ["odd", "1x1", "photograph"]
    streams = codec.encode([IMAGES[key] for key in keys])
    assert streams == [encoded(name)[key] for key in keys]
    together = codec.decode(streams)
    for stream, image_hat in zip(streams, together, strict=True):
        np.testing.assert_array_equal(codec.decode([stream])[0], image_hat)


@every_codec
def test_encoding_leaves_the_image_as_it_was(name):
    codec, _ = TABLE[name]
    image = IMAGES["odd"].copy()
    image.flags.writeable = False
    assert codec.encode([image]) == [encoded(name)["odd"]]
    transposed = np.asfortranarray(IMAGES["odd"])
    assert codec.encode([transposed]) == [encoded(name)["odd"]]


# The rate of a packaged init is its width, and only one of those is fitted here.
@pytest.mark.parametrize("name", [name for name, (_, lower) in TABLE.items() if lower is not None])
def test_a_lower_rate_gives_fewer_bytes(name):
    _, lower = TABLE[name]
    for key in ("photograph", "noise"):
        assert len(lower.encode([IMAGES[key]])[0]) < len(encoded(name)[key])


@every_codec
def test_truncated_streams_are_refused(name):
    codec, _ = TABLE[name]
    for stream in (encoded(name)["1x17"], encoded(name)["photograph"]):
        for end in {0, 1, 3, 8, 20, *range(0, len(stream), 37), len(stream) - 1} - {len(stream)}:
            with pytest.raises(BitstreamError) as caught:
                codec.decode([stream[:end]])
            assert "\n" not in str(caught.value)


@every_codec
def test_foreign_streams_are_refused(name):
    codec, _ = TABLE[name]
    # Codecs of one format read each other's files; .inr files of another codec are tested below.
    foreign = [encoded(k)["odd"] for k, (other, _) in TABLE.items() if other.suffix != codec.suffix]
    for data in (b"", b"\0" * 100, b"\x89PNG\r\n\x1a\n" + b"\0" * 50, *foreign):
        with pytest.raises(BitstreamError):
            codec.decode([data])


BAD_IMAGES = [
    np.zeros((4, 4), np.uint8),
    np.zeros((4, 4, 1), np.uint8),
    np.zeros((4, 4, 4), np.uint8),
    np.zeros((4, 4, 3), np.float32),
    np.zeros((4, 4, 3), np.uint16),
    np.zeros((4, 4, 3), bool),
    np.zeros((0, 4, 3), np.uint8),
    np.zeros((4, 0, 3), np.uint8),
]


@every_codec
@pytest.mark.parametrize("image", BAD_IMAGES, ids=lambda x: f"{x.shape}-{x.dtype}")
def test_other_arrays_are_refused_before_any_work(name, image):
    codec, _ = TABLE[name]
    done = []
    with pytest.raises(ValueError, match="expected"):
        codec.encode([IMAGES["odd"], image], lambda *progress: done.append(progress))
    assert done == []


@every_codec
def test_progress_rises_to_its_total(name):
    codec, _ = TABLE[name]
    seen: list[tuple[int, int]] = []
    codec.encode([IMAGES["odd"], IMAGES["1x1"]], lambda *progress: seen.append(progress))
    assert seen
    assert len({total for _, total in seen}) == 1
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


# ---------------------------------------------------------------------------- a fresh process

SCRIPT = """
import json, pathlib, pickle, sys
import numpy as np
from inrjax.codecs import decode_stream, load_shared
folder = pathlib.Path(sys.argv[1])
init, base, grid = (load_shared(folder / f"{name}.npz") for name in ("init", "base", "grid"))
shared, images = {"modulated-siren": base, "latent-grid": grid}, {}
classic = pickle.loads((folder / "classic.pickle").read_bytes())  # at other rates than the files'
for path in sorted((folder / "streams").iterdir()):
    data = path.read_bytes()
    name = path.name.partition("_")[0]
    own = classic.get(name)
    images[path.name] = own.decode([data])[0] if own else decode_stream(
        data, shared.get(name, init)
    )
np.savez(folder / "images.npz", **images)
print(json.dumps([m for m in ("jax", "flax", "optax", "matplotlib", "scipy") if m in sys.modules]))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """What another process decodes: file name -> image, and the heavy modules it imported."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "streams").mkdir()
    save_init(folder / "init.npz", META.init)
    save_base(folder / "base.npz", MODULATED.base)
    save_grid_base(folder / "grid.npz", GRID_BASE)
    classic = {name: lower or codec for name, (codec, lower) in TABLE.items() if name not in INR}
    (folder / "classic.pickle").write_bytes(pickle.dumps(classic))
    for name, (codec, _) in TABLE.items():
        for key, stream in encoded(name).items():
            (folder / "streams" / f"{name}_{key}{codec.suffix}").write_bytes(stream)
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, folder], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    with np.load(folder / "images.npz") as images:
        return dict(images), json.loads(run.stdout)


@every_codec
def test_a_fresh_process_decodes_the_same_pixels(name, elsewhere):
    codec, _ = TABLE[name]
    for key, stream in encoded(name).items():
        there = elsewhere[0][f"{name}_{key}{codec.suffix}"]
        np.testing.assert_array_equal(codec.decode([stream])[0], there)


def test_decoding_imports_nothing_heavy(elsewhere):
    assert elsewhere[1] == []


# ---------------------------------------------------------------------------- .inr


@every_inr
def test_every_flipped_byte_is_detected(name):
    codec, _ = TABLE[name]
    stream = encoded(name)["1x17"]
    for i in range(len(stream)):
        damaged = bytearray(stream)
        damaged[i] ^= 1 << i % 8
        for decode in (lambda data: codec.decode([data]), decode_stream):
            with pytest.raises(BitstreamError):
                decode(bytes(damaged))


@every_inr
def test_a_file_names_what_its_codec_shares(name):
    codec, _ = TABLE[name]
    shared = shared_of(codec)
    for stream in encoded(name).values():
        named = describe(stream, init_of(name)).init_digest
        if shared is None:
            assert named is None
        else:
            assert named and shared.digest.hex().startswith(named)
            assert shared.shared_bytes > 0


@every_inr
def test_decode_stream_and_describe_know_it(name):
    codec, _ = TABLE[name]
    for key, stream in encoded(name).items():
        image_hat = decode_stream(stream, init_of(name))
        np.testing.assert_array_equal(image_hat, codec.decode([stream])[0])
        found = describe(stream, init_of(name))
        height, width = IMAGES[key].shape[:2]
        assert (found.codec, found.version) == (codec.name, 1)
        assert (found.height, found.width, found.num_bytes) == (height, width, len(stream))
        assert found.bpp == 8 * len(stream) / (height * width)
        assert sum(found.sections.values()) == len(stream)
        assert found.sections.keys() == {"container", *codec.sections}


# The other rows have an init of their own, which their streams need.
@pytest.mark.parametrize("name", [name for name in INR if init_of(name) is None])
def test_another_init_at_hand_does_not_matter(name):
    other = small_init(3)
    stream = encoded(name)["odd"]
    np.testing.assert_array_equal(decode_stream(stream, other), decode_stream(stream))


@pytest.mark.parametrize("name", ["meta-siren", "product-siren", "strumpler-meta"])
def test_an_unknown_init_is_named_by_its_digest(name):
    other = replace(TABLE[name][0], width=4, init=small_init(4))
    digest = META.init.digest[:4].hex()
    for decode in (decode_stream, describe, lambda data: other.decode([data])):
        with pytest.raises(BitstreamError, match=f"init {digest}"):
            decode(encoded(name)["odd"])
    assert describe(encoded(name)["odd"], META.init).init_digest == digest


@pytest.mark.parametrize(
    "name, lacking",
    [
        ("modulated-siren", (ModulatedSiren(), ModulatedSiren(tiny_base(seed=1)))),
        ("latent-grid", (LatentGrid(), LatentGrid(base=tiny_grid_base(seed=1)))),
    ],
)
def test_an_unknown_base_is_named_by_its_digest(name, lacking):
    base, stream = TABLE[name][0].base, encoded(name)["odd"]
    digest = base.digest[:4].hex()
    others = [lambda data, d=codec.decode: d([data]) for codec in lacking]
    for decode in (decode_stream, describe, *others):
        with pytest.raises(BitstreamError, match=f"base {digest}"):
            decode(stream)
    assert describe(stream, base).init_digest == digest


def test_there_is_no_packaged_base_of_modulated_sirens():
    with pytest.raises(ValueError, match="no base"):
        ModulatedSiren().encode([IMAGES["odd"]])


def test_an_unknown_tag_is_named():
    assert 200 not in BY_TAG
    data = bitstream.pack(200, 4, 4, [b""])
    for decode in (decode_stream, describe, lambda d: COIN.decode([d]), lambda d: META.decode([d])):
        with pytest.raises(BitstreamError, match="tag 200"):
            decode(data)


def test_a_stream_of_the_other_codec_is_refused_by_its_tag():
    others = {
        "meta-siren": COIN,
        "strumpler-meta": META,
        "coin": BASIC,
        "strumpler-basic": STRUMPLER_META,
        "modulated-siren": PRODUCT,
        "product-siren": LATENT_GRID,
        "latent-grid": MODULATED,
    }
    for other, codec in others.items():
        with pytest.raises(BitstreamError, match="tag"):
            codec.decode([encoded(other)["odd"]])


@pytest.mark.parametrize("name", [name for name in INR if hasattr(TABLE[name][0], "seed")])
def test_the_seed_changes_the_fit(name):
    codec, _ = TABLE[name]
    [stream] = replace(codec, seed=1).encode([IMAGES["photograph"]])
    assert stream != encoded(name)["photograph"]


def test_longer_fits_are_nearer():
    def error(stream: bytes) -> float:
        [image_hat] = META.decode([stream])
        return np.mean((image_hat - IMAGES["photograph"].astype(float)) ** 2)

    [longer] = replace(META, num_steps=100).encode([IMAGES["photograph"]])
    assert error(longer) < 0.9 * error(encoded("meta-siren")["photograph"])


@pytest.mark.parametrize("name", [name for name in INR if name.startswith("meta")])
def test_side_information_is_at_most_48_bytes(name):
    for stream in encoded(name).values():
        assert len(stream) - describe(stream, init_of(name)).sections["symbols"] <= 48


def test_code_lengths_add_up_to_the_symbols():
    for stream in encoded("meta-siren").values():
        lengths = META.code_lengths(stream)
        assert lengths.keys() == {path for path, _ in trees.leaves(META.init.params)}
        coded = 8 * describe(stream, META.init).sections["symbols"]
        assert coded - 64 <= sum(lengths.values()) <= coded + 1
    with pytest.raises(BitstreamError, match="tag"):
        META.code_lengths(encoded("coin")["odd"])


def test_a_search_of_roundings_lowers_the_loss_of_what_is_decoded():
    image = photograph(96, 80)
    codec = replace(META, num_steps=60, points_per_step=2048)
    [learned] = codec.fit([image])

    def stream(search_steps: int) -> bytes:
        [found] = replace(codec, search_steps=search_steps).search([image], [learned])
        return codec.pack(image, found)

    def loss(data: bytes) -> float:
        [image_hat] = codec.decode([data])
        bits = sum(codec.code_lengths(data).values())
        return np.log(metrics.mse(image, image_hat)) + codec.slope * np.log(bits)

    streams = [stream(steps) for steps in (0, 1, 8, 32)]
    assert streams[0] == codec.pack(image, learned)
    assert streams[1] == streams[0]  # the first step looks at what is there
    assert loss(streams[3]) < loss(streams[2]) < loss(streams[0]) - 0.01


# ---------------------------------------------------------------------------- COIN

# (depth, width): params, bpp as published (Dupont et al. 2021, arXiv:2103.03123, figure 2)
COIN_SHAPES = {
    (5, 20): (1803, 0.0736),
    (5, 30): (3903, 0.1604),
    (10, 28): (7479, 0.3074),
    (10, 40): (15003, 0.6109),
    (13, 49): (29697, 1.209),
}


@pytest.mark.parametrize("depth, width", COIN_SHAPES)
def test_coin_has_the_published_bpp(depth, width):
    num_params, published = COIN_SHAPES[depth, width]
    net = Siren(width, depth)
    assert net.num_params == num_params
    params = {p: np.full(s, 0.01) for p, s in trees.leaves(net.shapes())}
    # Packed without a fit, which would take long and change no size.
    image = np.broadcast_to(np.uint8(0), (512, 768, 3))
    stream = Coin(width, depth).pack(image, trees.from_leaves(params))
    found = describe(stream)
    header = found.num_bytes - found.sections["weights"]
    assert header <= 20
    assert found.bpp == (16 * num_params + 8 * header) / (512 * 768)
    assert found.bpp == pytest.approx(published, rel=0.01)


def coin_stream(shape: bytes, weights: bytes) -> bytes:
    return bitstream.pack(Coin.tag, 4, 4, [shape, weights])


@pytest.mark.parametrize("depth, rate", [(2, 3e-3), (5, 3e-3), (10, 7.5e-4), (13, 4.44e-4)])
def test_deeper_coin_nets_learn_more_slowly(depth, rate, monkeypatch):
    from inrjax import overfit

    def noted(images, fitting, shared, on_progress):
        assert fitting.optimizer.learning_rate == pytest.approx(rate, rel=0.01)
        raise StopIteration

    monkeypatch.setattr(overfit, "fit_images", noted)
    with pytest.raises(StopIteration):
        Coin(4, depth).encode([IMAGES["odd"]])


def test_coin_holds_the_net_as_float16():
    net = Siren(2, 1)
    weights = np.random.default_rng(0).normal(0, 0.1, net.num_params).astype("<f2")
    image = decode_stream(coin_stream(b"\x02\x00\x01", weights.tobytes()))
    bias, weight, last_bias, last = np.split(weights.astype(float), [2, 6, 9])
    y, x = np.meshgrid([-0.75, -0.25, 0.25, 0.75], [-0.75, -0.25, 0.25, 0.75], indexing="ij")
    h = np.sin(30 * (weight.reshape(2, 2) @ [y.ravel(), x.ravel()] + bias[:, None]))
    pixels = last.reshape(3, 2) @ h + last_bias[:, None]
    want = np.clip(np.floor(127.5 * (pixels + 1) + 0.5), 0, 255).T.reshape(4, 4, 3)
    assert np.abs(want - image).max() <= 1


@pytest.mark.parametrize(
    "shape, weights",
    [
        (b"\x02\x00", bytes(30)),
        (b"\x02\x00\x01\x00", bytes(30)),
        (b"\x00\x00\x01", bytes(30)),
        (b"\x02\x00\x00", bytes(30)),
        (b"\x02\x00\x01", bytes(29)),
        (b"\x02\x00\x01", bytes(32)),
        (b"\xff\xff\xff", bytes(30)),
        (b"\x02\x00\x01", np.full(15, np.nan, "<f2").tobytes()),
        (b"\x02\x00\x01", np.full(15, np.inf, "<f2").tobytes()),
    ],
    ids=["short", "long", "width 0", "depth 0", "odd", "more", "huge", "nan", "inf"],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_coin_stream_that_cannot_be_is_refused(shape, weights):
    with pytest.raises(BitstreamError):
        decode_stream(coin_stream(shape, weights))


# ---------------------------------------------------------------------------- Strümpler


def test_a_strumpler_file_has_the_params_as_symbols_times_steps():
    """At 8 bits of a step of 1/64 each: what is packed is what the net is made of."""
    rng, net = np.random.default_rng(0), Siren(5, 4, encoding=Encoding(16, 1.4))
    shapes = dict(trees.leaves(net.shapes()))
    symbols = {p: rng.integers(-40, 41, s, np.int32) for p, s in shapes.items()}
    indices = dict.fromkeys(shapes, 192 - 8 * 6)
    coded = Quantized(trees.from_leaves(symbols), trees.from_leaves(indices))
    params = trees.from_leaves({p: leaf.astype(np.float32) / 64 for p, leaf in symbols.items()})
    image_hat = decode_stream(StrumplerBasic(5).pack(IMAGES["odd"], coded))
    np.testing.assert_array_equal(image_hat, decoding.reconstruct(net, params, 19, 23))
    init = small_init(5)
    symbols = {p: rng.integers(-40, 41, np.shape(x)) for p, x in trees.leaves(init.params)}
    grid = trees.from_leaves(dict.fromkeys(symbols, 192 - 8 * 9))
    stream = StrumplerMeta(5, init=init).pack(
        IMAGES["odd"], Quantized(trees.from_leaves(symbols), grid)
    )
    moved = {
        p: (x.astype(np.float32) + symbols[p] / 512.0).astype(np.float32)
        for p, x in trees.leaves(init.params)
    }
    expected = decoding.reconstruct(init.net, trees.from_leaves(moved), 19, 23)
    np.testing.assert_array_equal(decode_stream(stream, init), expected)


@pytest.mark.parametrize("name", ["strumpler-basic", "strumpler-meta"])
def test_strumpler_side_information_is_small(name):
    for stream in encoded(name).values():
        sections = describe(stream, init_of(name)).sections
        assert len(stream) - sections["symbols"] - sections["counts"] <= 35
        assert sections["counts"] <= 2 + 256  # a byte for each value, and usually far less


def damage(place: int, section: bytes | Callable[[bytes], bytes]) -> bytes:
    """An intact container around a section that is not that of the stream, or one made of it."""
    stream = bitstream.peek(encoded("strumpler-basic")["1x17"])
    sections = list(stream.sections)
    sections[place] = section(sections[place]) if callable(section) else section
    return bitstream.pack(stream.tag, stream.height, stream.width, sections)


@pytest.mark.parametrize(
    "place, section",
    [
        (0, b""),
        (0, b"\x08"),
        (0, b"\0\0"),
        (0, b"\x08\0\0"),
        (0, b"\xff\xff"),
        (0, b"\x00\x02"),
        (1, b""),
        (1, lambda grid: grid[:-1]),
        (1, lambda grid: grid + b"\0"),
        (1, lambda grid: bytes(2) + grid[2:]),
        (2, b""),
        (2, lambda counts: counts[:-1]),
        (2, lambda counts: counts + b"\0"),
        (2, b"\0\0\x80"),
        (2, b"\0" * 200),
        (2, b"\xff" * 1_000_000),
        (3, b""),
        (3, b"\xff" * 100),
    ],
)
def test_a_strumpler_stream_that_cannot_be_is_refused(place, section):
    """Of a net of 512 neurons too, which a few bytes may claim: in bounded time and memory."""
    start = time.perf_counter()
    with pytest.raises(BitstreamError) as caught:
        decode_stream(damage(place, section))
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - start < 5


def test_the_parts_of_a_strumpler_fit_can_be_left_out():
    image = IMAGES["photograph"]
    [stream] = replace(BASIC, rounding_steps=0, retraining_steps=0).encode([image])
    assert decode_stream(stream).shape == image.shape


def test_one_strumpler_fit_serves_every_number_of_bits():
    image, coarse = IMAGES["photograph"], replace(BASIC, num_bits=5)
    [coded] = coarse.quantize([image], BASIC.fit([image]))
    assert [coarse.pack(image, coded)] == coarse.encode([image])


# ---------------------------------------------------------------------------- wrong settings


@pytest.mark.parametrize(
    "make",
    [
        lambda: Coin(width=0),
        lambda: Coin(depth=0),
        lambda: Coin(depth=256),
        lambda: Coin(width=65536),
        lambda: Coin(num_steps=0),
        lambda: Coin(points_per_step=0),
        lambda: MetaSiren(width=31),
        lambda: replace(META, width=9),
        lambda: replace(META, num_steps=0),
        lambda: replace(META, slope=-1.0),
        lambda: replace(META, slope=float("nan")),
        lambda: replace(META, points_per_step=0),
        lambda: StrumplerBasic(width=0),
        lambda: StrumplerBasic(width=513),
        lambda: StrumplerBasic(num_bits=9),
        lambda: StrumplerBasic(num_bits=1),
        lambda: StrumplerBasic(num_steps=0),
        lambda: StrumplerBasic(rounding_steps=-1),
        lambda: StrumplerBasic(retraining_steps=-1),
        lambda: StrumplerBasic(l1=-1.0),
        lambda: StrumplerBasic(points_per_step=0),
        lambda: StrumplerMeta(width=31),
        lambda: replace(STRUMPLER_META, width=9),
        lambda: replace(STRUMPLER_META, num_bits=9),
        lambda: ProductSiren(width=31),
        lambda: replace(PRODUCT, width=9),
        lambda: replace(PRODUCT, num_steps=0),
        lambda: replace(PRODUCT, points_per_step=0),
        lambda: replace(PRODUCT, tune_steps=-1),
        lambda: replace(PRODUCT, num_centroids=0),
        lambda: replace(PRODUCT, num_centroids=4097),
        lambda: replace(PRODUCT, block=0),
        lambda: replace(PRODUCT, block=17),
        lambda: ModulatedSiren(bits=1),
        lambda: ModulatedSiren(bits=9),
        lambda: ModulatedSiren(inner_steps=0),
        lambda: LatentGrid(step=7),
        lambda: LatentGrid(step=53),
        lambda: LatentGrid(rate_weight=0.0),
        lambda: LatentGrid(rate_weight=float("nan")),
        lambda: LatentGrid(rate_weight=float("inf")),
        lambda: LatentGrid(iterations=0),
    ],
)
def test_wrong_settings_are_refused_at_construction(make):
    with pytest.raises(ValueError, match="expected"):
        make()


def test_weights_beyond_float16_are_refused():
    params = {p: np.full(s, 1e6) for p, s in trees.leaves(Siren(2, 1).shapes())}
    with pytest.raises(ValueError, match="float16"):
        Coin(2, 1).pack(IMAGES["odd"], trees.from_leaves(params))
