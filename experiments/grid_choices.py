"""Which choices of LatentGrid matter: proximal steps, the rate's weight, what was learned?

Claim: 24 proximal steps are within 1 % of the bytes of 48; the lmbda that suits the step size is
within 1 % of the best of three weights of the rate; what was learned from other pictures is worth
at least 15 % of the bytes at equal PSNR and time.
Command: python -m experiments.grid_choices --data DIR    (DIR holds cid22/; or set INRJAX_DATA)
Minutes: about 40 on 2 cores. A stopped run goes on: rows that exist are kept.
Expected: the table in results/grid_choices/<config hash>/table.md.

Measured on cid22 images that were held back from training, one change at a time, from files that
another process decoded: BD-rate of each variant against the default, mean and median of the images'
own. ``--smoke``: small crops.

What was learned is taken away in parts. ``scales of its own``: instead of the learned context
models, each band has one Laplace scale, of the picture itself, sent in its file; ``nothing
learned``: the wavelet as well, so that a file owes nothing to other pictures. Both are given two
whole fits, the second under the scales of the first, where the default has one. ``blind to signs``
is no model of its own, but the learned one with what it sees of signs set to 0: more is lost than
signs are worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any, TypeAlias

import numpy as np
import tyro

from experiments import common
from experiments.kodak_rd import ROOT, markdown, note_provenance
from inrjax import codecs, compare, context, entropy, gridfit, grids, gridtrain, results, trees
from inrjax.evaluate import evaluate, safe_name
from inrjax.grids import GridBase
from inrjax.machine import keep_buffers
from inrjax.nets.latent_grid import LatentGridNet
from inrjax.types import Codec, Image, OnProgress, RDPoint


@dataclass(frozen=True)
class Config:
    """What is compared; ``base``: digest of the packaged one, filled in when it runs;
    ``schedule``: of the fits; earlier runs have ``caution`` or nothing in its place."""

    steps: tuple[int, ...] = (20, 28, 36, 44)
    iterations: tuple[int, ...] = (6, 12, 48)
    rate_weights: tuple[float, ...] = (0.71, 1.41)
    num_images: int = 8
    seed: int = 0
    images: tyro.conf.Suppress[str] = "cid22, held back"
    base: tyro.conf.Suppress[str] = ""
    schedule: gridfit.Schedule = field(default_factory=gridfit.Schedule)


@dataclass(frozen=True, eq=False)
class OwnScales(common.Wrapped):
    """LatentGrid with a Laplace scale for each band in place of learned context models; a byte for
    each scale comes before LatentGrid's stream. Of ``codec`` step size, weight, iterations and seed
    count; and the synthesis, of its base."""

    @property
    def name(self) -> str:
        """``latent-grid, scales of its own``."""
        return "latent-grid, scales of its own"

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        """One stream for each image; progress counts them."""
        streams = []
        for image in images:
            streams.append(self._encode_one(image))
            if on_progress is not None:
                on_progress(len(streams), len(images))
        return streams

    def _encode_one(self, image: Image) -> bytes:
        grid, net = self.codec, _base_of(self.codec).net
        coefficients = gridfit.start(net, gridfit.make_target(image), grid.step)
        latents = _cut(coefficients, net.latent_shapes(*image.shape[:2]))
        for _ in range(2):
            levels = own_levels(net, latents)
            under = replace(grid, base=with_scales(_base_of(grid), levels))
            blind = _base_of(under)
            shared = gridfit.Shared(**blind.approximate)
            lmbda = grid.rate_weight * float(gridfit.rate_weight(grid.step))
            [latents] = gridfit.fit_latents(
                blind.net, shared, [image], grid.step, lmbda, grid.iterations, grid.seed
            )
        return bytes(levels) + under.pack(image, latents)

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The images of files; BitstreamError if bad."""
        count = sum(3 * net_components for net_components in _components(_base_of(self.codec).net))
        images = []
        for stream in streams:
            base = with_scales(_base_of(self.codec), list(stream[:count]))
            [image] = replace(self.codec, base=base).decode([stream[count:]])
            images.append(image)
        return images


def _base_of(codec: codecs.LatentGrid) -> GridBase:
    return codec.base if codec.base is not None else grids.packaged_base()


def _cut(values: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    return [
        np.asarray(own)[: shape[0], : shape[1]] for own, shape in zip(values, shapes, strict=True)
    ]


def _components(net: LatentGridNet) -> list[int]:
    """Components of each grid of details; and 1 for the low latents, whose bands they are."""
    return [*(net.components(level) for level in range(net.levels)), 1]


def own_levels(net: LatentGridNet, latents: Sequence[np.ndarray]) -> list[int]:
    """For each band, by grid, the level of scale that its latents take the fewest bits at; for a
    low one, what is left of its prediction from west and north."""
    scales = 2.0 ** ((np.arange(entropy.NUM_LEVELS) - 16) / 4)
    levels = []
    for own in [*latents[: net.levels], low_residuals(latents[-1])]:
        for band in range(own.shape[-1]):
            magnitudes, counts = np.unique(np.abs(own[..., band]), return_counts=True)
            # Few lengths, since each is compiled anew.
            pad = (0, (1 << len(counts).bit_length()) - len(counts))
            bits = np.asarray(entropy.bits(np.pad(magnitudes, pad)[:, None], scales))
            levels.append(int(np.argmin(np.pad(counts, pad) @ bits)))
    return levels


def low_residuals(low: np.ndarray) -> np.ndarray:
    """Low latents (h, w, 3) less the mean of west and north, as the coder predicts them."""
    padded = np.pad(np.asarray(low, np.int64), ((1, 0), (1, 1), (0, 0)))
    row, column = np.indices(low.shape[:2])
    parts = []
    for component in range(3):
        around = context.neighbours(np, padded[..., component], row, column, low.shape[1])
        parts.append(low[..., component] - context.predictions(_PREDICT, around))
    return np.stack(parts, axis=-1)


_PREDICT = context.to_integers({"predict": np.array([0.5, 0.5, 0.0, 0.0])})


def with_scales(base: GridBase, levels: Sequence[int]) -> GridBase:
    """The base with context models that know one level of scale for each band, and see no signs."""
    net, left = replace(base.net, odd_width=0), iter(levels)
    named = {
        f"level{level}_{component}": [next(left) for _ in range(3)]
        for level in range(base.net.levels)
        for component in range(base.net.components(level))
    }
    named |= {f"low{component}": [next(left)] for component in range(3)}
    models = {}
    for name, shapes in context.shapes(net).items():
        weights = {leaf: np.zeros(shape) for leaf, shape in shapes.items()}
        weights["bias3"] = (np.array(named[name]) - 16) / 4
        exact = context.to_integers(weights) | (_PREDICT if "predict" in shapes else {})
        models[name] = {leaf: value.astype(np.int32) for leaf, value in exact.items()}
    return replace(base, net=net, models=models)


SMOKE = Config(steps=(24, 36), iterations=(2,), rate_weights=(), num_images=1, images="smoke")


def variants(config: Config) -> dict[str, AtStep]:
    """Name -> the codec of a step size; the first is the default."""
    default = codecs.LatentGrid(seed=config.seed)
    base = grids.packaged_base()
    plain = {
        "default": default,
        **{f"{n} proximal steps": replace(default, iterations=n) for n in config.iterations},
        **{
            f"{w:g} times the rate's weight": replace(default, rate_weight=w)
            for w in config.rate_weights
        },
        "blind to signs": replace(default, base=without_signs(base)),
        "without the sine layers": replace(default, base=without_sine(base)),
        "wavelet instead of the learned synthesis": replace(default, base=wavelet(base)),
    }
    owning = {
        "scales of its own": default,
        "nothing learned: wavelet, scales of its own": replace(default, base=wavelet(base)),
    }
    return {
        **{name: partial(_at_step, codec) for name, codec in plain.items()},
        **{name: partial(_own_at_step, codec) for name, codec in owning.items()},
    }


AtStep: TypeAlias = Callable[[int], Codec]


def _at_step(codec: codecs.LatentGrid, step: int) -> Codec:
    return replace(codec, step=step)


def _own_at_step(codec: codecs.LatentGrid, step: int) -> Codec:
    return OwnScales(replace(codec, step=step))


def without_sine(base: GridBase) -> GridBase:
    """The base with what its sine layers add taken away."""
    leaves = {
        path: np.zeros_like(leaf) if path.endswith("weight3") else leaf
        for path, leaf in trees.leaves(base.synthesis)
    }
    return replace(base, synthesis=trees.from_leaves(leaves))


def without_signs(base: GridBase) -> GridBase:
    """The base with what its context models see of signs taken away."""
    models = {
        path: np.zeros_like(leaf) if path.endswith(("fold", "odd2")) else leaf
        for path, leaf in trees.leaves(base.models)
    }
    return replace(base, models=trees.from_leaves(models))


def wavelet(base: GridBase) -> GridBase:
    """The base with the synthesis that training started from."""
    start = gridtrain.initial(base.net, 0).synthesis
    leaves = {path: np.asarray(leaf, np.float16) for path, leaf in trees.leaves(start)}
    return replace(base, synthesis=trees.from_leaves(leaves))


def run(config: Config, images: Mapping[str, Image], root: Path) -> Path:
    """Measure every variant; returns the run folder."""
    config = replace(config, base=grids.packaged_base().short_digest)
    folder = results.run_folder(root, config)
    note_provenance(folder)
    rows: dict[str, list[RDPoint]] = {}
    for name, at_step in variants(config).items():
        print(name, flush=True)
        curve = [at_step(step) for step in config.steps]
        rows[name] = evaluate(
            curve,
            images,
            folder / safe_name(name),
            batch_size=len(images),
            on_progress=common.print_progress(),
        )
    results.write_text(folder / "table.md", table(config, rows))
    return folder


def table(config: Config, rows: Mapping[str, Sequence[RDPoint]]) -> str:
    """BD-rates against the first variant, image by image."""
    [default, *_] = rows.values()
    lines = []
    for name, own in rows.items():
        rates = list(compare.bd_rates_of_images(default, own).values())
        cells = [f"{fmean(rates):+.2f}", f"{median(rates):+.2f}"] if rates else ["", ""]
        seconds = fmean(row.encode_seconds for row in own)
        lines.append([name, *cells, f"{min(rates):+.1f} to {max(rates):+.1f}" if rates else ""])
        lines[-1].append(f"{seconds:.2f}")
    header = ["variant", "BD-rate %, mean of images", "median", "range", "encode s/image"]
    return (
        f"# Choices of LatentGrid, steps {', '.join(map(str, config.steps))}, "
        f"{len({row.image for row in default})} images ({config.images}), seed {config.seed}\n\n"
        + markdown(header, lines)
        + "\n"
    )


@dataclass(frozen=True)
class Options(common.Options):
    """The command line."""

    config: Config = Config()
    output: Path = ROOT / "results" / "grid_choices"


def main(options: Options) -> Path:
    """Have large buffers kept, read the images, run; returns the run folder."""
    keep_buffers()
    config = SMOKE if options.smoke else options.config
    images = common.pictures(options, slice(config.num_images))
    return common.show(run(config, images, options.output))


if __name__ == "__main__":
    # By its own name, so that the process that decodes can import the codec above.
    from experiments import grid_choices

    grid_choices.main(tyro.cli(tyro.conf.OmitArgPrefixes[grid_choices.Options]))
