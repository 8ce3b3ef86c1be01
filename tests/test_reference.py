"""The page on the format is enough: a decoder written from it agrees with the package."""

from __future__ import annotations

import ast
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_decoder
from bases import shared_of, tiny_base, tiny_grid_base
from hypothesis import example, given, settings
from hypothesis import strategies as st
from marks import is_tall_latent_grid, slow_if

from inrjax import bitstream, codecs, decoding, entropy, grids
from inrjax.base import save_base
from inrjax.init import find_init
from inrjax.types import BitstreamError

HERE = Path(__file__).parent
INITS = Path(codecs.__file__).parents[1] / "inits"
WITH_INIT = (codecs.MetaSiren.tag, codecs.StrumplerMeta.tag, codecs.ProductSiren.tag)
TINY = tiny_base()
GRIDS = {"blind": tiny_grid_base(), "signs": tiny_grid_base(odd_width=3)}
GOLDEN = sorted((HERE / "golden").glob("*.inr"))


@cache
def _bases() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory()
    save_base(Path(folder.name, "tiny.npz"), TINY)
    for name, base in GRIDS.items():
        grids.save_grid_base(Path(folder.name, f"{name}.npz"), base)
    return folder


def bases_folder() -> Path:
    """A folder with the base files of the golden streams."""
    return Path(_bases().name)


def package_decode(data: bytes, patch: pytest.MonkeyPatch) -> reference_decoder.Decoded:
    """What the package decodes, with the symbols that its range decoder gave."""
    seen: list[np.ndarray] = []

    def noting(plain):
        def decode(*arguments):
            result = plain(*arguments)
            parts = result if isinstance(result, list) else [result]
            seen.append(np.concatenate([part.ravel() for part in parts]))
            return result

        return decode

    with patch.context() as context:
        for name in ("decode", "decode_pooled", "decode_table"):
            context.setattr(entropy, name, noting(getattr(entropy, name)))
        context.setattr(grids, "decode_latents", noting(grids.decode_latents))
        image = codecs.decode_stream(data, shared_of(data))
    return reference_decoder.Decoded(seen[0] if seen else None, image)


def assert_agree(data: bytes, patch: pytest.MonkeyPatch, tolerance: int) -> bool:
    """Both refuse, or both give the same symbols and, within so many levels, the same pixels.

    Returns whether they decode.
    """
    try:
        ours = package_decode(data, patch)
    except BitstreamError:
        with pytest.raises(reference_decoder.Damaged):
            reference_decoder.decode(data, INITS, bases_folder())
        return False
    theirs = reference_decoder.decode(data, INITS, bases_folder())
    assert (ours.symbols is None) == (theirs.symbols is None)
    if ours.symbols is not None:
        np.testing.assert_array_equal(ours.symbols, theirs.symbols)
    assert np.abs(ours.image.astype(int) - theirs.image).max() <= tolerance
    return True


def with_checksum(data: bytes) -> bytes:
    """The same file with the checksum that its content asks for, where its init is known."""
    try:
        stream = bitstream.peek(data)
    except BitstreamError:
        return data
    shared: Any = find_init(stream.sections[0]) if stream.tag in WITH_INIT else None
    own = {codecs.ModulatedSiren.tag: [TINY], codecs.LatentGrid.tag: GRIDS.values()}
    for base in own.get(stream.tag, ()):
        if base.digest.startswith(stream.sections[0]):
            shared = base
    context = shared.digest if shared else b""
    return data[:-4] + zlib.crc32(context + data[:-4]).to_bytes(4, "little")


def test_the_second_decoder_is_independent() -> None:
    tree = ast.parse((HERE / "reference_decoder.py").read_text("utf-8"))
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add((node.module or "").split(".")[0])
    assert not roots & {"inrjax", "constriction", "jax", "importlib"}


@slow_if(is_tall_latent_grid, GOLDEN)
def test_golden_files_decode_to_the_same_symbols(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert assert_agree(path.read_bytes(), monkeypatch, tolerance=1)


@pytest.mark.parametrize("level", range(entropy.NUM_LEVELS))
def test_counts_are_those_of_the_page(level: int) -> None:
    assert entropy.counts(level).tolist() == reference_decoder.counts_of(level)


@pytest.mark.parametrize("scale", [0.05, 1.0, 40.0, 3000.0, 1e6])
def test_symbols_of_any_size_are_read_alike(scale: float) -> None:
    """Scales of 1e6 make most symbols escapes."""
    rng = np.random.default_rng(0)
    levels = rng.integers(0, entropy.NUM_LEVELS, 400)
    symbols = np.rint(rng.laplace(0, scale, 400)).astype(np.int64)
    payload = entropy.encode(symbols, entropy.Laplace(levels))
    np.testing.assert_array_equal(reference_decoder.decode_symbols(payload, levels), symbols)


@pytest.mark.parametrize("spread", [0.3, 5.0, 40.0])
def test_tables_of_counts_are_read_alike(spread: float) -> None:
    rng = np.random.default_rng(0)
    for size in (1, 3, 50, 5000):
        symbols = np.clip(np.rint(rng.normal(0, spread, size)), -128, 127).astype(np.int64)
        table = entropy.table_of(symbols)
        values, counts = reference_decoder.read_counts(entropy.pack_table(table))
        np.testing.assert_array_equal(values, entropy.table_counts(table)[0])
        np.testing.assert_array_equal(counts, entropy.table_counts(table)[1])


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (13, 10)])
@pytest.mark.parametrize("levels, step, reach", [(1, 0, 3.0), (2, 63, 1e6), (3, 30, 40.0)])
@pytest.mark.parametrize("odd_width", [0, 3])
def test_latents_of_any_size_are_read_alike(
    size: tuple[int, int], odd_width: int, levels: int, step: int, reach: float, tmp_path: Path
) -> None:
    """Latents of a million are escapes; pixels of such are a matter of float32's last bits."""
    rng = np.random.default_rng(levels)
    base = tiny_grid_base(levels, odd_width=odd_width)
    grids.save_grid_base(tmp_path / "grid.npz", base)
    latents = [
        np.rint(rng.laplace(0, reach, shape)).astype(np.int64)
        for shape in base.net.latent_shapes(*size)
    ]
    payload = grids.encode_latents(base, latents, step)
    symbols = np.concatenate([own.ravel() for own in latents])
    check = decoding.symbol_check(symbols)
    sections = [base.digest[:4], check + bytes([step]), payload]
    data = bitstream.pack(codecs.LatentGrid.tag, *size, sections, base.digest)
    theirs = reference_decoder.decode(data, tmp_path)
    np.testing.assert_array_equal(theirs.symbols, symbols)
    if reach < 1000:
        image = codecs.decode_stream(data, base)
        assert np.abs(image.astype(int) - theirs.image).max() <= 1


Edit = Callable[[bytes], bytes]


@st.composite
def edits(draw: st.DrawFn) -> Edit:
    """A few bytes replaced, a cut, or a piece put in."""
    kind = draw(st.sampled_from(["replace", "cut", "insert"]))
    at, piece = draw(st.integers(0, 4095)), draw(st.binary(min_size=1, max_size=4))
    near_header = draw(st.booleans())

    def edit(data: bytes) -> bytes:
        i = at % min(len(data), 40 if near_header else len(data))
        ends = {"replace": i + len(piece), "cut": len(data), "insert": i}
        return data[:i] + (b"" if kind == "cut" else piece) + data[ends[kind] :]

    return edit


SMALL = [path for path in GOLDEN if not path.stem.endswith("_tall")]  # the others take seconds


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
@settings(max_examples=60, deadline=None)
@given(edit=edits(), repaired=st.booleans())
@example(edit=lambda data: data, repaired=True)
def test_both_refuse_the_same_damage(path: Path, edit: Edit, repaired: bool) -> None:
    data = edit(path.read_bytes())
    data = with_checksum(data) if repaired else data
    try:
        stream = bitstream.peek(data)
        if stream.height * stream.width > 1 << 16:
            return  # a valid claim of a large picture: seconds of work to compare
        if stream.tag == codecs.StrumplerBasic.tag and stream.sections[0][1:] > b"\0":
            return  # of a large net
        if stream.tag == codecs.LatentGrid.tag and stream.height * stream.width > 1 << 12:
            return  # read place by place
    except BitstreamError:
        pass
    with pytest.MonkeyPatch.context() as patch:
        # Weights of thousands make the pixels a matter of float32's last bits.
        assert_agree(data, patch, tolerance=255)
