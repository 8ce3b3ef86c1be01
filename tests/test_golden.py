"""Files of every format version decode: the symbols exactly, the pixels within one level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bases import tiny_base

from inrjax import bitstream, codecs
from inrjax.images import read_image

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.inr"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_golden_stream_decodes_to_its_picture(path: Path) -> None:
    # decode_stream checks the symbols against the CRC-16 in the file before it makes a pixel.
    decoded = codecs.decode_stream(path.read_bytes(), tiny_base())
    picture = read_image(path.with_suffix(".png")).image
    assert np.abs(decoded.astype(int) - picture.astype(int)).max() <= 1


def test_every_codec_has_one_of_this_version() -> None:
    names = {codecs.describe(path.read_bytes(), tiny_base()).codec for path in GOLDEN}
    assert names == {codec().name for codec in codecs.BY_TAG.values()}
    assert f"v{bitstream.VERSION}" in {path.stem.split("_")[0] for path in GOLDEN}
