"""Write what is missing among the golden files of the current version: python tests/golden/make.py

A golden file says what released readers must still read, so one that is there is never replaced.
Beside each stream NAME.inr (or .fmm) lie the picture it decodes to, NAME.png, and NAME.json:

    source   the part of a photograph of scikit-image that was encoded, cut anew to its shape
    stream   SHA-256 of the file
    symbols  SHA-256 of its symbols as little-endian int32, in the order of the stream; null for a
             codec whose file holds its numbers as they are
    pixels   SHA-256 of the pixels of NAME.png
    psnr     of the decoded picture to the source, in dB; null if there is no difference
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

from bases import shared_of, tiny_base, tiny_grid_base  # noqa: E402

from inrjax import bitstream, codecs, datasets, entropy, grids, metrics  # noqa: E402
from inrjax.codecs import fmm  # noqa: E402
from inrjax.images import write_image  # noqa: E402
from inrjax.types import Image  # noqa: E402


class Source(NamedTuple):
    """A part of a packaged photograph, its pixels laid out anew, row by row."""

    picture: str
    rows: tuple[int, int]
    columns: tuple[int, int]
    shape: tuple[int, int]

    def image(self) -> Image:
        """uint8 (height, width, 3)."""
        part = datasets.packaged()[self.picture][slice(*self.rows), slice(*self.columns)]
        return np.ascontiguousarray(part.reshape(*self.shape, 3))


SOURCES = {
    "": Source("astronaut", (40, 104), (180, 260), (64, 80)),
    "_odd": Source("chelsea", (90, 127), (120, 173), (37, 53)),
    "_1x1": Source("chelsea", (90, 91), (120, 121), (1, 1)),
    "_tall": Source("astronaut", (100, 260), (100, 325), (12_000, 3)),  # of several blocks
}
"""End of a file's name -> what is encoded."""

SMALL: dict[str, Callable[[], Any]] = {
    "coin": lambda: codecs.Coin(8, 3, num_steps=300),
    "meta-siren": lambda: codecs.MetaSiren(24, num_steps=300),
    "strumpler-basic": lambda: codecs.StrumplerBasic(8, num_steps=300),
    "strumpler-meta": lambda: codecs.StrumplerMeta(24, num_steps=300),
    "product-siren": lambda: codecs.ProductSiren(24, 32, num_steps=300, tune_steps=100),
    "modulated-siren": lambda: codecs.ModulatedSiren(tiny_base()),
    "latent-grid": lambda: codecs.LatentGrid(base=tiny_grid_base()),
}
"""Codecs with other settings than their defaults, for small files."""


def all_codecs() -> dict[str, Any]:
    """Every codec whose stream is our own format, by name; LatentGrid of both kinds of base."""
    made = [SMALL.get(kind().name, kind)() for kind in codecs.BY_TAG.values()]
    by_name = {codec.name: codec for codec in [*made, codecs.Fmm()]}
    return by_name | {"latent-grid-signs": codecs.LatentGrid(base=tiny_grid_base(odd_width=3))}


def paths() -> list[Path]:
    """The golden streams that are there, of all versions."""
    endings = {codec.suffix for codec in all_codecs().values()}
    return sorted(path for path in FOLDER.iterdir() if path.suffix in endings)


def decode(path: Path) -> tuple[np.ndarray | None, Image]:
    """The symbols of a stream, int (n,), None if it has none, and its picture."""
    data = path.read_bytes()
    if path.suffix == codecs.Fmm.suffix:
        [image] = codecs.Fmm().decode([data])
        return fmm.quotients(image).ravel(), image
    with ExitStack() as stack:
        seen = _watch_entropy(stack)
        image = codecs.decode_stream(data, shared_of(data))
    return (np.concatenate(seen) if seen else None), image


def _watch_entropy(stack: ExitStack) -> list[np.ndarray]:
    """A list that gets what is decoded of symbols and latents, until the stack is closed."""
    seen: list[np.ndarray] = []
    depth = 0

    def noting(plain: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **others: Any) -> Any:
            nonlocal depth
            depth += 1
            try:
                result = plain(*arguments, **others)
            finally:
                depth -= 1
            if depth == 0:  # what one decoder has from another is noted once
                seen.extend(map(np.ravel, result if isinstance(result, list) else [result]))
            return result

        return noted

    for module in (entropy, grids):
        for name, plain in list(vars(module).items()):
            if name.startswith("decode") and callable(plain):
                stack.enter_context(mock.patch.object(module, name, noting(plain)))
    return seen


def record(path: Path, source: Source) -> dict[str, Any]:
    """What stands in NAME.json."""
    symbols, image = decode(path)
    psnr = metrics.psnr(source.image(), image)
    return {
        "source": source._asdict(),
        "stream": sha256(path.read_bytes()),
        "symbols": None if symbols is None else sha256(symbols.astype("<i4").tobytes()),
        "pixels": sha256(image.tobytes()),
        "psnr": psnr if math.isfinite(psnr) else None,
    }


def sha256(data: bytes) -> str:
    """In hex."""
    return hashlib.sha256(data).hexdigest()


def fitted(codec: Any, source: Source) -> Any:
    """The codec with fewer steps for a pixel, which many would fit without an error."""
    has_steps = "num_steps" in codec.__dataclass_fields__
    return replace(codec, num_steps=3) if has_steps and source.shape == (1, 1) else codec


def wanted() -> dict[Path, tuple[Any, Source]]:
    """The streams of the current versions: path -> what makes it, and of what."""
    found = {}
    for name, codec in all_codecs().items():
        is_inr = codec.suffix == ".inr"
        version = bitstream.VERSION if is_inr else 1
        for end, source in SOURCES.items():
            if is_inr or end != "_tall":  # FMM's blocks are small, its files large
                path = FOLDER / f"v{version}_{name}{end}{codec.suffix}"
                found[path] = (fitted(codec, source), source)
    return found


def main() -> None:
    """Write the streams, pictures and digests that are not there yet."""
    for path, (codec, source) in wanted().items():
        if not path.exists():
            [stream] = codec.encode([source.image()])
            path.write_bytes(stream)
            write_image(path.with_suffix(".png"), decode(path)[1])
        if not path.with_suffix(".json").exists():
            text = json.dumps(record(path, source), indent=2)
            path.with_suffix(".json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
