"""What a hostile file can cost: memory and time are bounded by its own bytes and by what the
caller allows, whatever it claims."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from bases import shared_of
from golden import make

from inrjax import bitstream, cli, codecs, decoding, entropy, grids, images
from inrjax.nets.siren import Siren
from inrjax.types import BitstreamError

ROOT = Path(__file__).parents[1]
INR = [path for path in make.paths() if path.suffix == ".inr"]
BY_NAME = [(codecs.BY_TAG[bitstream.peek(path.read_bytes()).tag]().name, path) for path in INR]
# The tall ones take up to half a minute to decode.
ONE_OF_EACH = {name: path for name, path in BY_NAME if not path.stem.endswith("_tall")}
every_codec = pytest.mark.parametrize("name", ONE_OF_EACH)


def claiming(path: Path, height: int, width: int) -> bytes:
    """A file with its header's size changed and the checksum right."""
    stream = bitstream.peek(path.read_bytes())
    codec: Any = codecs.decoder(codecs.BY_TAG[stream.tag]().name, shared_of(path.read_bytes()))
    context = codec.context(stream)
    return bitstream.pack(stream.tag, height, width, stream.sections, context)


def test_each_codec_has_a_file_here() -> None:
    assert ONE_OF_EACH.keys() == {kind().name for kind in codecs.BY_TAG.values()}


# ---------------------------------------------------------------------------- pixels


@every_codec
def test_a_claim_over_the_limit_is_refused_before_anything_is_allocated(name: str) -> None:
    data = claiming(ONE_OF_EACH[name], 8192, 8192)
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(BitstreamError, match=r"8192 x 8192 pixels.*max_pixels"):
        codecs.decode_stream(data)
    assert time.process_time() - start < 0.5
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@every_codec
def test_the_limit_is_the_caller_s(name: str) -> None:
    data = ONE_OF_EACH[name].read_bytes()
    stream = bitstream.peek(data)
    pixels = stream.height * stream.width
    assert codecs.decode_stream(data, shared_of(data), max_pixels=pixels).size == 3 * pixels
    with pytest.raises(BitstreamError, match="max_pixels"):
        codecs.decode_stream(data, shared_of(data), max_pixels=pixels - 1)


def test_the_limit_can_be_all_that_the_format_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    [path] = [path for path in INR if path.name == "v1_coin_odd.inr"]
    data = claiming(path, 8192, 8192)
    monkeypatch.setattr(decoding, "reconstruct", lambda net, params, *size: size)
    assert codecs.decode_stream(data, max_pixels=bitstream.MAX_PIXELS) == (8192, 8192)


def test_decode_has_the_limit_as_an_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [path] = [path for path in INR if path.name == "v1_coin_odd.inr"]
    command = ["decode", str(path), "-o", str(tmp_path / "a.png"), "--max-pixels"]
    assert cli.main([*command, "100"]) == 1
    assert "--max-pixels" in capsys.readouterr().err
    assert cli.main([*command, str(bitstream.MAX_PIXELS + 1)]) == 2
    assert not list(tmp_path.iterdir())
    assert cli.main([*command, str(37 * 53)]) == 0


LARGE = """
import re, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))
from pathlib import Path
from bases import shared_of
from inrjax import codecs
from inrjax.types import BitstreamError
data = Path(sys.argv[1]).read_bytes()
try:
    print(*codecs.decode_stream(data, shared_of(data), max_pixels=1 << 21).shape)
except BitstreamError:
    print("refused")
print(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and sets limits as Linux")


@linux
@every_codec
def test_memory_of_a_large_picture_is_a_few_bytes_a_pixel(name: str, tmp_path: Path) -> None:
    """Two million pixels; at 25 bytes a pixel, the default limit of 2^25 would take 800 MB."""
    (tmp_path / "a.inr").write_bytes(claiming(ONE_OF_EACH[name], 1024, 2048))
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    one_core = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "PYTHONPATH": path}
    output = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path / "a.inr")],
        env=one_core,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert output[0] in ("1024 2048 3", "refused")  # a codec's sections may fit one size only
    assert int(output[1]) < 110 << 10  # kB, of which 40 MB are Python and numpy


# ---------------------------------------------------------------------------- bytes and nets


def test_a_file_that_is_too_long_is_refused_unread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.inr"
    with path.open("wb") as file:
        file.write(b"INR\x01\x01")
        file.truncate(bitstream.MAX_BYTES + 1)
    with pytest.raises(BitstreamError, match="bytes"):
        bitstream.peek(path.read_bytes())
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # a sparse file of a terabyte
    for command in (["decode", str(path), "-o", str(tmp_path / "a.png")], ["info", str(path)]):
        assert cli.main(command) == 1
        assert "a.inr" in capsys.readouterr().err


def test_sections_beyond_the_longest_file_are_not_written() -> None:
    with pytest.raises(ValueError, match="expected"):
        bitstream.pack(1, 8, 8, [bytes(bitstream.MAX_BYTES)])


def coin_bytes(width: int, depth: int, num_params: int, size: int = 64) -> bytes:
    net = width.to_bytes(2, "little") + bytes([depth])
    weights = np.random.default_rng(0).uniform(-0.1, 0.1, num_params).astype("<f2")
    return bitstream.pack(1, size, size, [net, weights.tobytes()])


@pytest.mark.parametrize("width, depth", [(65535, 98), (65535, 1), (4097, 1), (4096, 98), (800, 2)])
def test_a_net_that_is_too_large_is_refused_at_once(width: int, depth: int) -> None:
    """With few weights behind the claim, and with as many as a file can have."""
    for count in (0, 1000, min(Siren(width, depth).num_params, 1 << 22)):
        data = coin_bytes(width, depth, count)
        start = time.process_time()
        with pytest.raises(BitstreamError, match="'net'"):
            codecs.decode_stream(data)
        assert time.process_time() - start < 0.5


@pytest.mark.parametrize("width, depth", [(4096, 1), (700, 2), (72, 98)])
def test_the_largest_nets_take_less_than_two_seconds_for_a_small_picture(
    width: int, depth: int, tmp_path: Path
) -> None:
    """In a process of its own: the CPU time of this one is that of other tests' threads as well."""
    (tmp_path / "a.inr").write_bytes(coin_bytes(width, depth, Siren(width, depth).num_params))
    seconds, shape = seconds_and_shape(tmp_path / "a.inr")
    assert shape == (64, 64, 3)
    assert seconds < 2


def seconds_and_shape(path: Path) -> tuple[float, tuple[int, ...]]:
    """The CPU seconds of decoding a file in a process of its own, and the picture's shape. By one
    thread of BLAS: while several wait for each other, beside other work, they count as working."""
    program = (
        "import sys, time; from pathlib import Path; from inrjax import codecs; "
        "from bases import shared_of; data = Path(sys.argv[1]).read_bytes(); "
        "shared = shared_of(data); start = time.process_time(); "
        "shape = codecs.decode_stream(data, shared).shape; "
        "print(time.process_time() - start, *shape)"
    )
    seconds, *shape = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "OPENBLAS_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return float(seconds), tuple(map(int, shape))


@pytest.mark.parametrize("width, depth", [(4096, 1), (255, 1), (256, 2)])
def test_a_wide_net_decodes_as_its_points_one_by_one(width: int, depth: int) -> None:
    """Tiles of a wide net have fewer points."""
    net = Siren(width, depth)
    rng = np.random.default_rng(0)
    params = {
        name: {k: rng.uniform(-0.02, 0.02, s).astype("f") for k, s in shape.items()}
        for name, shape in net.shapes().items()
    }
    grid = net.apply_grid_host(params, images.centres(3), images.centres(700))
    assert 2 * net._host_tile * (width + 1) * 4 <= 4 << 20
    some = images.coordinates(3, 700)[::97]
    alone = np.concatenate([net.apply_host(params, point[None]) for point in some])
    np.testing.assert_allclose(grid.reshape(-1, 3)[::97], alone, atol=2e-4)


# ---------------------------------------------------------------------------- symbols


def test_a_file_of_escapes_alone_is_read_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many symbols as the widest packaged net has, each as long as an escape can be."""
    monkeypatch.setattr(entropy, "_shorten", lambda data, symbols, model: data)
    rng = np.random.default_rng(0)
    levels = rng.integers(0, entropy.NUM_LEVELS, 40_043)
    symbols = rng.integers(1 << 29, 1 << 30, levels.size) * rng.choice([-1, 1], levels.size)
    model = entropy.Laplace(levels)
    payload = entropy.encode(symbols, model)
    start = time.process_time()
    np.testing.assert_array_equal(entropy.decode(payload, model, levels.size), symbols)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("seed", range(20))
def test_escapes_read_together_are_those_read_bit_by_bit(seed: int) -> None:
    """Random payloads, most of which end in an escape that cannot be."""

    class BitByBit(entropy._Bits):
        def _need(self, count: int) -> None:
            self.least_later = 0
            while len(self._bits) - self._at < count:
                super()._need(len(self._bits) - self._at + 1)

    rng = np.random.default_rng(seed)
    payload = rng.integers(0, 256, 400, np.uint8).tobytes()
    payload = payload[: rng.integers(4, 400)] if seed % 2 else bytes(8) + payload
    limits = rng.integers(1, 50, 60).tolist()

    def outcome() -> object:
        words = np.frombuffer(payload + bytes(-len(payload) % 4), ">u4").astype(np.uint32)
        decoder = entropy._coder().queue.RangeDecoder(words)
        try:
            return entropy._decode_escapes(decoder, limits)
        except BitstreamError:
            return "refused"

    together = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy, "_Bits", BitByBit)
        assert outcome() == together


def test_extreme_symbols_and_steps_are_a_picture_or_refused() -> None:
    """All levels, all steps, symbols up to 2^30: the numbers stay finite, or it is said."""
    codec = codecs.MetaSiren(codecs.inr.WIDTHS[0])
    init = codec.shared
    rng = np.random.default_rng(0)
    shapes = [leaf.shape for leaf in init.levels().values()]
    for step in (0, 128, 255):
        for offset in (0, 64, 255):
            levels = np.concatenate(
                [codecs.inr._levels(base.ravel(), offset) for base in init.levels().values()]
            )
            symbols = rng.integers(-(1 << 30), 1 << 30, levels.size)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(entropy, "_shorten", lambda data, *_: data)
                payload = entropy.encode(symbols, entropy.Laplace(levels))
            check = decoding.symbol_check(symbols)
            grid = check + bytes([step] * len(shapes)) + bytes([offset] * len(shapes))
            sections = [init.digest[:4], grid, payload]
            data = bitstream.pack(codec.tag, 4, 4, sections, init.digest)
            try:
                assert codecs.decode_stream(data).shape == (4, 4, 3)
            except BitstreamError as error:
                assert "NaN" in str(error)


def test_latent_grids_have_a_limit_of_their_own() -> None:
    """A decoder holds more for each pixel than with the other codecs."""
    data = claiming(ONE_OF_EACH["latent-grid"], 4096, 4097)
    tracemalloc.start()
    with pytest.raises(BitstreamError, match="4096 x 4097 pixels, more than the 16777216"):
        codecs.decode_stream(data, shared_of(data))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def grid_stream(latents: list[np.ndarray], step: int, height: int, width: int) -> bytes:
    """A file of latent grids, as its codec packs it, of any step that the format has."""
    base = shared_of(b"INR\1\7")
    assert isinstance(base, grids.GridBase)
    check = decoding.symbol_check(np.concatenate([own.ravel() for own in latents]))
    sections = [base.digest[:4], check + bytes([step]), grids.encode_latents(base, latents, step)]
    return bitstream.pack(codecs.LatentGrid.tag, height, width, sections, base.digest)


@pytest.mark.parametrize("seed", [None, 0])
def test_a_grid_of_escapes_alone_is_read_in_time(seed: int | None, tmp_path: Path) -> None:
    """64 x 64 pixels of the largest latents there are: all equal, or at random. In a process of its
    own: in this one, each small read is checked by its annotations, which takes most of the time.
    """
    base = shared_of(b"INR\1\7")
    assert isinstance(base, grids.GridBase)
    rng, top = np.random.default_rng(seed), (1 << 24) - 1
    latents = [
        np.full(shape, -top) if seed is None else rng.integers(-top, top + 1, shape)
        for shape in base.net.latent_shapes(64, 64)
    ]
    (tmp_path / "a.inr").write_bytes(grid_stream(latents, 63, 64, 64))
    seconds, shape = seconds_and_shape(tmp_path / "a.inr")
    assert shape == (64, 64, 3)
    assert seconds < 2


@pytest.mark.parametrize("payload", [b"", b"\xff" * 5000, bytes(9) + b"\xff" * 5000])
def test_a_grid_of_any_bytes_is_read_or_refused_in_time(payload: bytes) -> None:
    base = shared_of(b"INR\1\7")
    sections = [base.digest[:4], b"\0\0\x1e", payload]
    data = bitstream.pack(codecs.LatentGrid.tag, 64, 64, sections, base.digest)
    start = time.process_time()
    with pytest.raises(BitstreamError):
        codecs.decode_stream(data, base)
    assert time.process_time() - start < 2


def test_extreme_latents_and_steps_are_a_picture() -> None:
    """The steps that no encoder takes, too; `test_latent_grid` has the base of extreme weights."""
    base, rng = shared_of(b"INR\1\7"), np.random.default_rng(0)
    assert isinstance(base, grids.GridBase)
    for step in (0, 31, 63):
        for reach in (0, 1, 1000, (1 << 24) - 1):
            shapes = base.net.latent_shapes(5, 3)
            latents = [rng.integers(-reach, reach + 1, shape) for shape in shapes]
            assert codecs.decode_stream(grid_stream(latents, step, 5, 3), base).shape == (5, 3, 3)


# ---------------------------------------------------------------------------- pictures


@linux
def test_reading_a_large_picture_takes_seven_bytes_a_pixel(tmp_path: Path) -> None:
    side = 2048
    PIL.Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(tmp_path / "a.png")
    program = """
import re, sys
from inrjax import images
from pathlib import Path
import PIL.Image, PIL.ImageOps
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
image = images.read_image(sys.argv[1]).image
print(peak() - before)
"""
    output = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.png")],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert int(output) * 1024 < 7 * side**2 + (10 << 20)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1_500_000), (1_500_000, 1), (1025, 1025)])
def test_bands_make_up_the_picture(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    picture = PIL.Image.fromarray(image)
    np.testing.assert_array_equal(images._to_array(picture), image)


def test_a_picture_without_memory_for_it_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(data: bytes) -> None:
        raise MemoryError

    (tmp_path / "a.png").write_bytes(b"any")
    monkeypatch.setattr(images, "_decode", no_memory)
    with pytest.raises(ValueError, match=r"a\.png needs more memory"):
        images.read_image(tmp_path / "a.png")
