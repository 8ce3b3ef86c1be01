"""Files of every format version decode: the symbols exactly, the pixels within one level.

The digests and pictures were written once, beside the streams (tests/golden/make.py).
`python -m experiments.golden_matrix` runs this file under other versions of Python and of the
libraries. Nothing here needs JAX: decoding does not import it.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bases import shared_of
from golden import make
from marks import is_tall_latent_grid, slow_if

from inrjax import codecs, decoding, metrics
from inrjax.images import read_image
from inrjax.types import BitstreamError, Image

GOLDEN = make.paths()
every_file = pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)


# The matrix of versions decodes all.
every_decoded = slow_if(is_tall_latent_grid, GOLDEN)


def record_of(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".json").read_text("utf-8"))


def source_of(path: Path) -> Image:
    fields = record_of(path)["source"]
    return make.Source(**fields).image()


@cache
def decoded(path: Path) -> tuple[Any, Image]:
    """`make.decode`, once for all tests: tall pictures take seconds."""
    return make.decode(path)


@every_file
def test_the_files_are_those_that_were_written(path: Path) -> None:
    record = record_of(path)
    assert make.sha256(path.read_bytes()) == record["stream"]
    assert make.sha256(read_image(path.with_suffix(".png")).image.tobytes()) == record["pixels"]


@every_decoded
def test_the_symbols_are_exact_and_the_pixels_within_a_level(path: Path) -> None:
    record = record_of(path)
    symbols, image = decoded(path)
    if symbols is None:
        assert record["symbols"] is None
    else:
        assert make.sha256(symbols.astype("<i4").tobytes()) == record["symbols"]
    picture = read_image(path.with_suffix(".png")).image
    assert image.dtype == np.uint8 and image.shape == picture.shape
    assert np.abs(image.astype(int) - picture.astype(int)).max() <= 1


@every_decoded
def test_the_quality_is_what_it_was(path: Path) -> None:
    stated = record_of(path)["psnr"]
    psnr = metrics.psnr(source_of(path), decoded(path)[1])
    assert psnr == pytest.approx(math.inf if stated is None else stated, abs=1e-3)


def test_every_codec_has_all_sizes_of_this_version() -> None:
    """If this fails for a new codec: python tests/golden/make.py writes what is missing."""
    missing = [path.name for path in make.wanted() if path not in GOLDEN]
    assert not missing


def test_only_coin_has_no_symbols() -> None:
    """A codec whose coder is not seen by `make.decode` would be tested on its pixels alone."""
    without = {
        codecs.describe(path.read_bytes(), shared_of(path.read_bytes())).codec
        for path in GOLDEN
        if record_of(path)["symbols"] is None
    }
    assert without == {codecs.Coin().name}


def test_the_largest_are_of_several_blocks() -> None:
    for path, (codec, source) in make.wanted().items():
        if path.stem.endswith("_tall"):
            assert len(decoding._blocks(*source.shape)) > 1, codec


def test_a_digest_of_other_symbols_or_pixels_is_noticed() -> None:
    """The tests above compare something: one changed symbol is another picture."""
    path = next(p for p in GOLDEN if record_of(p)["symbols"] is not None and p.suffix == ".inr")
    symbols, image = make.decode(path)
    assert symbols is not None and symbols.size > 1000
    symbols[symbols.size // 2] += 1
    assert make.sha256(symbols.astype("<i4").tobytes()) != record_of(path)["symbols"]
    image[0, 0, 0] ^= 2
    assert make.sha256(image.tobytes()) != record_of(path)["pixels"]


# ---------------------------------------------------------------------------- damage


SMALL = [path for path in GOLDEN if len(path.read_bytes()) <= 4096]
every_small = pytest.mark.parametrize("path", SMALL, ids=lambda path: path.name)


def is_of_another_size(path: Path) -> bool:
    """Not of the size that every codec has: damage to these files is refused by the same lines."""
    return path.stem.endswith(("_1x1", "_odd", "_tall"))


every_small_of_one_size = slow_if(is_of_another_size, SMALL)


def refuses(path: Path, data: bytes) -> bool:
    """Whether the decoder of a stream of this kind refuses these bytes."""
    try:
        if path.suffix == codecs.Fmm.suffix:
            codecs.Fmm().decode([data])
        else:
            codecs.decode_stream(data, shared_of(data))
    except BitstreamError:
        return True
    return False


@every_small_of_one_size
def test_every_flipped_bit_is_refused(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in range(len(data)):
        for bit in range(8):
            data[at] ^= 1 << bit
            assert refuses(path, bytes(data)), f"bit {bit} of byte {at}"
            data[at] ^= 1 << bit


@every_small
def test_every_truncation_is_refused(path: Path) -> None:
    data = path.read_bytes()
    for length in range(len(data)):
        assert refuses(path, data[:length]), f"{length} of {len(data)} bytes"


@every_small_of_one_size
def test_every_changed_byte_of_the_header_and_of_the_checksum_is_refused(path: Path) -> None:
    """Of the others, every value of every byte: `python -m experiments.fuzz`."""
    data = bytearray(path.read_bytes())
    for at in (*range(20), *range(len(data) - 4, len(data))):
        was = data[at]
        for value in {*range(256)} - {was}:
            data[at] = value
            assert refuses(path, bytes(data)), f"{value} in byte {at}"
        data[at] = was


@every_small
def test_what_is_appended_is_refused(path: Path) -> None:
    data = path.read_bytes()
    for more in (*(bytes([value]) for value in range(256)), bytes(64), data, data[:64]):
        assert refuses(path, data + more)


@every_small
def test_describe_refuses_what_the_decoder_refuses(path: Path) -> None:
    if path.suffix != ".inr":
        pytest.skip("describe is for .inr files")
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        with pytest.raises(BitstreamError):
            changed = data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]
            codecs.describe(changed, shared_of(data))
        with pytest.raises(BitstreamError):
            codecs.describe(data[:at], shared_of(data))


@pytest.mark.slow
def test_the_matrix_of_versions_measures_this_python(tmp_path: Path) -> None:
    pytest.importorskip("tyro", reason="the matrix is run from a whole environment")
    from experiments import golden_matrix

    [row] = json.loads((run_smoke(golden_matrix, tmp_path) / "rows.json").read_text("utf-8"))
    assert row["files"] == row["symbols exact"] == len(GOLDEN)
    assert row["largest difference"] <= 1 and row["JAX imported"] is False
    assert row["numpy"] == np.__version__


def run_smoke(golden_matrix: Any, folder: Path) -> Path:
    """Its smoke mode without the test file, which would be this one again."""
    with pytest.MonkeyPatch.context() as patch:
        plain = golden_matrix._run
        nothing = ["-c", "print('1 passed')"]
        patch.setattr(
            golden_matrix, "_run", lambda c: plain(c[:1] + nothing if "pytest" in c else c)
        )
        return golden_matrix.main(golden_matrix.Options(output=folder, smoke=True))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, ""),
        ({"test file": "30 passed, 1 skipped"}, ""),
        ({"test file": "1 failed, 30 passed"}, "1 failed"),
        ({"test file": "31 passed, exit code 3"}, "exit code 3"),
        ({"test file": "did not run"}, "did not run"),
        ({"test file": "31 skipped"}, "31 skipped"),
        ({"files": 0, "symbols exact": 0}, "no file was compared"),
        ({"symbols exact": 29}, "the symbols of 2 files"),
        ({"largest difference": 2}, "by 2 levels"),
    ],
)
def test_an_environment_that_decodes_otherwise_ends_the_matrix(
    wrong: dict[str, Any], said: str
) -> None:
    pytest.importorskip("tyro", reason="the matrix is run from a whole environment")
    from experiments.golden_matrix import problems

    good = {"versions": "newest", "Python": "3.11.7", "test file": "31 passed"}
    good |= {"files": 31, "symbols exact": 31, "largest difference": 1}
    found = problems([good, {**good, **wrong}])
    assert len(found) == bool(said)
    assert all(said in one and "Python 3.11.7, versions newest" in one for one in found)


def test_the_lowest_versions_are_those_of_the_project() -> None:
    pytest.importorskip("tyro", reason="the matrix is run from a whole environment")
    from experiments.golden_matrix import LOWEST_MINOR, PACKAGES, ROOT, requirements

    lowest = requirements(lowest=True)
    assert [name.split("==")[0] for name in lowest] == list(PACKAGES)
    assert f'requires-python = ">=3.{LOWEST_MINOR}"' in (ROOT / "pyproject.toml").read_text()
    assert all("==" in one for one in lowest) and "jax" not in str(requirements(True, ("jax",)))
