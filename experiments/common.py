"""What experiments have in common beside what they measure: pictures, wrapped codecs, the end.

Starts no JAX: experiments/interruptions.py forks its process.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from inrjax import datasets
from inrjax.images import read_image
from inrjax.types import Image, OnProgress


@dataclass(frozen=True)
class Options:
    """The part of a command line that says which pictures: those in ``data``, or small crops."""

    data: Path | None = None
    smoke: bool = False


@contextlib.contextmanager
def exit_with_a_sentence(expected: type[ValueError] = ValueError) -> Iterator[None]:
    """A ValueError in the block, which reads what the command line names and computes nothing, ends
    the process as a sentence; around what computes, only one that is ``expected``."""
    try:
        yield
    except expected as error:
        raise SystemExit(f"error: {error}") from None


Find: TypeAlias = Callable[[Path | None], Sequence[Path]]
"""The files of a set of `inrjax.datasets`, in a folder of data."""


@exit_with_a_sentence()
def read(find: Find, data: Path | None, part: slice = slice(None)) -> dict[str, Image]:
    """Stem of a file -> image, of a part of a set; ends the process if there is none."""
    return {path.stem: read_image(path).image for path in find(data)[part]}


def smoke_images() -> dict[str, Image]:
    """Crops of 48 x 64 pixels of the packaged photographs."""
    return {name: image[100:148, 100:164] for name, image in datasets.packaged().items()}


SetName: TypeAlias = Literal["kodak", "cid22-held-back", "clic2025", "smoke"]

SETS: dict[str, Find] = {
    "kodak": datasets.kodak,
    "cid22-held-back": datasets.cid22_held_back,
    "clic2025": datasets.clic2025_val,
}
"""Name -> the files of a set, in a folder of data."""


def named(name: SetName, data: Path | None, most: int | None = None) -> dict[str, Image]:
    """Stem of a file -> image, of the first ``most`` of a set; all small crops for "smoke"."""
    if name == "smoke":
        return smoke_images()
    return read(SETS[name], data, slice(most))


def pictures(
    options: Options, part: slice, make: Callable[[Image], Image] | None = None
) -> dict[str, Image]:
    """Name -> image, or what ``make`` makes of it, for a part of the cid22 images that were held
    back from training; with ``smoke``, for that part of the small crops."""
    if options.smoke:
        images = dict([*smoke_images().items()][part])
    else:
        images = read(datasets.cid22_held_back, options.data, part)
    return {name: make(image) for name, image in images.items()} if make else images


def training(options: Options) -> list[Image]:
    """All training images of cid22; with ``smoke``, the first small crop."""
    if options.smoke:
        return [*smoke_images().values()][:1]
    return [*read(datasets.cid22_train, options.data).values()]


@dataclass(frozen=True, eq=False)
class Wrapped:
    """A codec under its own name, setting and seed, whose streams are its own: for experiments that
    encode in another way, on fits that several settings share for instance."""

    codec: Any

    suffix: ClassVar[str] = ".inr"

    @property
    def name(self) -> str:
        """The codec's."""
        return self.codec.name

    @property
    def setting(self) -> str:
        """The codec's."""
        return self.codec.setting

    @property
    def seed(self) -> int:
        """The codec's."""
        return self.codec.seed

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """By the codec."""
        return self.codec.decode(streams)


def psnr_at(curve: Sequence[tuple[float, float]], rate: float) -> float | None:
    """The PSNR in dB of a curve of (rate, PSNR) points at a rate, in bytes or bits per pixel:
    linear in the logarithm of the rate; None beyond its ends."""
    rates, psnrs = zip(*sorted(curve), strict=True)
    if not rates[0] <= rate <= rates[-1]:
        return None
    return float(np.interp(np.log(rate), np.log(rates), psnrs))


def print_progress() -> OnProgress:
    """Prints a line to stderr at every whole percent."""
    start, shown = perf_counter(), -1

    def report(done: int, total: int) -> None:
        nonlocal shown
        if 100 * done // total > shown:
            shown = 100 * done // total
            print(f"{shown} % after {(perf_counter() - start) / 60:.1f} min", file=sys.stderr)

    return report


def show(folder: Path) -> Path:
    """Print the table of a run folder, and return the folder."""
    print((folder / "table.md").read_text("utf-8"))
    return folder
