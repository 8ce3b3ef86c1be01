"""Pictures side by side in equal bytes. Drawn from photographs, not from rows: those that come with
scikit-image or, with ``--images``, those of a folder. The files are coded on the spot and kept in
runs/figures/, so only the first time takes long: about 3 minutes of processor time for both
pictures. A fit depends on the number of devices only up to two, as everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.figures.source import Source
from inrjax import datasets, grids, metrics, results, trees
from inrjax.codecs import Jpeg, Jpeg2000, LatentGrid, MetaSiren, WebP, decode_stream
from inrjax.codecs.classic import JPEG2000_RATIOS
from inrjax.codecs.latent_grid import STEPS
from inrjax.images import read_image
from inrjax.init import packaged_init
from inrjax.plots import Style
from inrjax.types import Codec, Image

NUM_PICTURES = 2
CROP = 96
"""Pixels a side."""


@dataclass(frozen=True)
class Fit:
    """How MetaSiren codes the pictures; ``init``: digest of the packaged init."""

    init: str
    width: int
    num_steps: int
    seed: int = 0


class Coded(NamedTuple):
    """One codec's file of a picture, decoded."""

    label: str
    num_bytes: int
    image: Image


def first(source: Source, style: Style) -> Figure:
    """The first picture: original, MetaSiren's, and LatentGrid and three codecs at the setting
    nearest in bytes; below them the 96 x 96 pixels in which all of them together err the most, and
    the errors there."""
    return draw(source, style, 0)


def second(source: Source, style: Style) -> Figure:
    """The second picture, as `first`."""
    return draw(source, style, 1)


def draw(source: Source, style: Style, index: int) -> Figure:
    """Picture number ``index`` as `first` says; ValueError if there is none."""
    pictures = read_pictures(source.images)
    if index >= len(pictures):
        raise ValueError(f"{source.images} holds {len(pictures)} picture(s), expected {index + 1}")
    init = packaged_init(source.width).short_digest
    streams = our_streams(pictures, Fit(init, source.width, source.num_steps), source.cache)
    name = list(pictures)[index]
    ours = streams[name]
    cache = KeptFiles(source.cache)
    coded = [Coded("MetaSiren", len(ours), decode_stream(ours))]
    coded += [nearest("LatentGrid", latent_grids(), pictures[name], len(ours), cache)]
    coded += [nearest(label, c, pictures[name], len(ours)) for label, c in others(pictures[name])]
    return side_by_side(pictures[name], coded, style)


def read_pictures(folder: Path | None) -> dict[str, Image]:
    """The first pictures of a folder, or of the packaged photographs, by name."""
    if folder is None:
        return dict(list(datasets.packaged().items())[:NUM_PICTURES])
    paths = datasets.images_in(folder)[:NUM_PICTURES]
    return {path.stem: read_image(path).image for path in paths}


def our_streams(pictures: dict[str, Image], fit: Fit, cache: Path) -> dict[str, bytes]:
    """MetaSiren's file of each picture, from the cache or fitted, all in one batch."""
    folder = cache / results.config_hash(fit)
    digests = {name: trees.digest({"image": image}).hex()[:12] for name, image in pictures.items()}
    paths = {name: folder / f"{digest}.inr" for name, digest in digests.items()}
    missing = [name for name, path in paths.items() if not path.exists()]
    if missing:
        codec = MetaSiren(fit.width, fit.num_steps, fit.seed)
        coded = codec.encode([pictures[name] for name in missing])
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in zip(missing, coded, strict=True):
            trees.write_atomic(paths[name], data)
    return {name: path.read_bytes() for name, path in paths.items()}


@dataclass(frozen=True)
class KeptFiles:
    """Files of slow codecs, all .inr: read from a folder, or coded and kept there."""

    folder: Path

    def encode(self, codec: Codec, image: Image) -> bytes:
        """The codec's file of an image."""
        base = grids.packaged_base().short_digest
        digest = trees.digest({"image": image}).hex()[:12]
        path = self.folder / f"{codec.name}_{codec.setting}_{base}_{digest}.inr"
        if not path.exists():
            [data] = codec.encode([image])
            self.folder.mkdir(parents=True, exist_ok=True)
            trees.write_atomic(path, data)
        return path.read_bytes()


def latent_grids() -> list[LatentGrid]:
    """LatentGrid from the smallest file to the largest."""
    return [LatentGrid(step) for step in reversed(STEPS)]


def others(image: Image) -> list[tuple[str, list[Codec]]]:
    """The codecs beside ours, each at its settings from the smallest file to the largest."""
    ratios = np.geomspace(max(JPEG2000_RATIOS), min(JPEG2000_RATIOS), 200)
    return [
        ("JPEG, optimised", [Jpeg(quality, optimize=True) for quality in range(1, 101)]),
        ("JPEG 2000", [Jpeg2000(float(ratio)) for ratio in ratios]),
        ("WebP", [WebP(quality) for quality in range(101)]),
    ]


def nearest(
    label: str,
    codecs: Sequence[Codec],
    image: Image,
    num_bytes: int,
    kept: KeptFiles | None = None,
) -> Coded:
    """The file nearest in size, of codecs from the smallest file to the largest: by bisection, so
    the nearest of the two that enclose the size."""
    low, high = 0, len(codecs) - 1
    files: dict[int, bytes] = {}

    def size(index: int) -> int:
        if index not in files:
            codec = codecs[index]
            files[index] = kept.encode(codec, image) if kept else codec.encode([image])[0]
        return len(files[index])

    size(low)
    size(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= num_bytes else (low, middle)
    best = min((low, high), key=lambda index: abs(size(index) - num_bytes))
    [image_hat] = codecs[best].decode([files[best]])
    return Coded(label, len(files[best]), image_hat)


def worst_window(image: Image, coded: Sequence[Coded], side: int) -> tuple[int, int]:
    """Top and left of the window in which all codecs' squared errors together are largest, on a
    grid of a quarter of its side."""
    errors = sum(np.square(c.image.astype(float) - image).mean(axis=2) for c in coded)
    total = np.pad(np.cumsum(np.cumsum(errors, 0), 1), ((1, 0), (1, 0)))
    stride = max(1, side // 4)
    places = [
        (y, x)
        for y in range(0, image.shape[0] - side + 1, stride)
        for x in range(0, image.shape[1] - side + 1, stride)
    ]

    def error(place: tuple[int, int]) -> float:
        y, x = place
        return float(
            total[y + side, x + side] - total[y, x + side] - total[y + side, x] + total[y, x]
        )

    return max(places, key=error)


def side_by_side(image: Image, coded: Sequence[Coded], style: Style) -> Figure:
    """Columns: the original and each codec. Rows: picture with bpp and PSNR, crop, its error."""
    side = min(CROP, *image.shape[:2])
    y, x = worst_window(image, coded, side)
    window = (slice(y, y + side), slice(x, x + side))
    errors = [np.abs(c.image.astype(float) - image).mean(axis=2)[window] for c in coded]
    top = float(max(10 * np.ceil(max(np.percentile(e, 99) for e in errors) / 10), 10))
    shape = image.shape[0] / image.shape[1]
    figure = style.figure(style.double, (shape + 2) / (len(coded) + 1) + 0.07)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)  # pyright: ignore
    grid = figure.subplots(3, len(coded) + 1, height_ratios=(shape, 1, 1))
    height, width = image.shape[:2]
    bpps = [metrics.bpp(c.num_bytes, height, width) for c in coded]
    captions = ["original"] + [
        f"{c.label}\n{bpp:.3f} bpp\n{metrics.psnr(image, c.image):.2f} dB"
        for c, bpp in zip(coded, bpps, strict=True)
    ]
    for column, picture in enumerate([image, *(c.image for c in coded)]):
        grid[0, column].imshow(picture)
        grid[0, column].set_title(captions[column])
        grid[1, column].imshow(picture[window], interpolation="nearest")
        _empty(grid[0, column])
        _empty(grid[1, column])
    for width, colour in ((3.0, "black"), (1.2, "white")):  # seen on any ground
        grid[0, 0].add_patch(Rectangle((x, y), side, side, fill=False, lw=width, ec=colour))
    shown = []
    for axes, error in zip(grid[2, 1:], errors, strict=True):
        shown.append(axes.imshow(error, cmap="magma", vmin=0, vmax=top, interpolation="nearest"))
        _empty(axes)
    _empty(grid[2, 0])
    scale = grid[2, 0].inset_axes((0.05, 0.55, 0.9, 0.1))
    figure.colorbar(shown[0], cax=scale, orientation="horizontal", ticks=(0, top / 2, top))
    scale.set_title("absolute error\n(levels of 255)")
    grid[1, 0].set_ylabel(f"{side} x {side} pixels")
    return figure


def _empty(axes: Axes) -> None:
    """No ticks and no frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
