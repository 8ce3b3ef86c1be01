"""Which ideas for MetaSiren pay: its prior, nets and inits chosen by image, roundings, low rank?

Claim: none of the ideas that MetaSiren by default does not have is worth 5 % of the bytes: a
choice by rate and distortion between two seeds, between two inits of other frequencies, or among
three slopes beside the widths; roundings found by a search (3 %); deltas of low rank under a wider
net. Without the rounds of fits that its init comes from files need 5 % more bytes, without the
prior's learned scales 3 %.
Command: python -m experiments.siren_choices --data DIR    (DIR holds cid22/; or set INRJAX_DATA)
Minutes: about 20 on 2 cores. A stopped run goes on: rows that exist are kept.
    With --seeds --slopes --ranks, all three empty: the rest, 20 on a machine half as fast.
Expected: the table in results/siren_choices/<config hash>/table.md.

Measured on cid22 images that were held back from training, one change at a time, from files that
another process decoded: BD-rate of each variant's curve against the default's over the widths,
image by image, mean with its bootstrap interval, and median.

A choice takes, for each image and width, the file of the lowest log(mse) + slope * log(bytes), the
loss of a fit, among files that its variants wrote: a decoder needs nothing for it, since a file
names its init. Its seconds are those of all it chose from. "any width and slope" is each image's
frontier of all points. ``--smoke``: one small crop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean, median
from typing import Any, TypeAlias

import jax
import numpy as np
import tyro

from experiments import common
from experiments.figures import numbers
from experiments.figures.source import METASIREN
from experiments.kodak_rd import ROOT, markdown, note_provenance
from inrjax import codecs, fit, metatrain, results, trees
from inrjax.codecs import strumpler
from inrjax.evaluate import evaluate, safe_name
from inrjax.init import Init, find_init, flat_init, packaged_init
from inrjax.nets.siren import Siren, layer_name
from inrjax.types import Image, Params, RDPoint


@dataclass(frozen=True)
class Config:
    """What is compared. ``seeds``: beside 0; ``slopes``: beside the default; ``ranks``: of the
    deltas of a net of ``low_rank_width``; ``search_steps``: of the search of roundings; ``inits``:
    digests of the packaged ones, filled in when it runs."""

    widths: tuple[int, ...] = (24, 32, 48)
    seeds: tuple[int, ...] = (1,)
    slopes: tuple[float, ...] = (0.15, 0.6)
    low_rank_width: int = 64
    ranks: tuple[int, ...] = (4, 8, 16)
    search_steps: int = 48
    num_steps: int = 3000
    prior_images: int = 8
    prior_steps: int = 3000
    num_images: int = 8
    images: tyro.conf.Suppress[str] = "cid22, held back"
    inits: tyro.conf.Suppress[tuple[str, ...]] = ()


SMOKE = Config(
    widths=(24, 32), seeds=(1,), slopes=(0.6,), low_rank_width=24, ranks=(2, 4), search_steps=2,
    num_steps=100, prior_images=1, prior_steps=4, num_images=1, images="smoke",
)  # fmt: skip
"""As many steps as it takes for the wider net to be the better one: a curve needs two points."""


# ---------------------------------------------------------------------------- low-rank deltas


@dataclass(frozen=True)
class LowRank(Siren):
    """A SIREN whose weights are those of the packaged init of its width plus ``left @ right``, of
    this rank, as LoRA (Hu et al. 2021, arXiv:2106.09685); a weight of no more rows than that, and
    every bias, is a param itself."""

    rank: int = 8

    def shapes(self) -> dict[str, Any]:
        """The shapes of the params: ``left`` (out, rank) and ``right`` (rank, in), or ``weight``,
        and ``bias``."""
        return {
            name: {"bias": layer["bias"], **self._factors(*layer["weight"])}
            for name, layer in super().shapes().items()
        }

    def _factors(self, rows: int, columns: int) -> dict[str, tuple[int, int]]:
        if min(rows, columns) <= self.rank:
            return {"weight": (rows, columns)}
        return {"left": (rows, self.rank), "right": (self.rank, columns)}

    def layer_columns(self, params: Params, index: int, h: Any) -> jax.Array:
        """As `Siren.layer_columns`."""
        name = layer_name(index)
        return super().layer_columns({name: self._whole(name, params[name])}, index, h)

    def _host_matrices(self, params: Params) -> list[np.ndarray]:
        whole = {name: self._whole(name, layer) for name, layer in params.items()}
        return super()._host_matrices(whole)

    def _whole(self, name: str, layer: Params) -> dict[str, Any]:
        if "weight" in layer:
            return dict(layer)
        weight = _origin(self.width)[name]["weight"] + layer["left"] @ layer["right"]
        return {"bias": layer["bias"], "weight": weight}


@lru_cache
def _origin(width: int) -> dict[str, Any]:
    return packaged_init(width).mean()


def low_rank_init(config: Config, rank: int, training: Sequence[Image], folder: Path) -> Init:
    """Where low-rank fits start: at the packaged init, the left factors with orthonormal columns,
    the right ones 0; with a prior around it whose scales come from fits to training images, which
    are kept in a file."""
    net = packaged_init(config.low_rank_width).net
    own = LowRank(net.width, net.depth, net.w0, net.in_dim, net.out_dim, net.encoding, rank)
    origin, rng = _origin(net.width), np.random.default_rng(0)
    params: dict[str, Any] = {}
    for name, shapes in own.shapes().items():
        params[name] = {"bias": origin[name]["bias"]}
        if "weight" in shapes:
            params[name]["weight"] = origin[name]["weight"]
        else:
            square, _ = np.linalg.qr(rng.standard_normal(shapes["left"]))
            params[name] |= {"left": square, "right": np.zeros(shapes["right"])}
    start, scales = metatrain.around(flat_init(own, params)), folder / f"scales_{rank}.npz"
    if scales.exists():
        _, envelope = trees.from_npz(scales.read_bytes())
        return replace(start, envelope=trees.from_leaves(envelope))
    learning = metatrain.MetaTrainConfig(
        net.width, prior_images=config.prior_images, prior_steps=config.prior_steps
    )
    learned = metatrain.learn_prior(learning, start, training)
    folder.mkdir(parents=True, exist_ok=True)
    trees.write_atomic(scales, trees.to_npz({}, dict(trees.leaves(learned.envelope))))
    return learned


def without_scales(init: Init) -> Init:
    """The init with one scale for each tensor, of the file's own, and none that was learned."""
    flat = {path: np.zeros((1,) * np.ndim(x), np.int8) for path, x in trees.leaves(init.params)}
    return replace(init, envelope=trees.from_leaves(flat))


# ---------------------------------------------------------------------------- what is compared

Curve: TypeAlias = Sequence[tuple[str, Any]]
"""The codecs of a curve, each with the folder that its files are in."""


def variants(config: Config, training: Sequence[Image], folder: Path) -> dict[str, Curve]:
    """Name -> curve; the first is the default. What is learned for them is kept in the folder."""

    def curve(name: str, make: Any) -> Curve:
        return [(safe_name(name), make(width)) for width in config.widths]

    plain = {
        "default": lambda width: codecs.MetaSiren(width, config.num_steps),
        **{
            f"seed {seed}": partial(codecs.MetaSiren, num_steps=config.num_steps, seed=seed)
            for seed in config.seeds
        },
        **{
            f"slope {slope:g}": partial(codecs.MetaSiren, num_steps=config.num_steps, slope=slope)
            for slope in config.slopes
        },
        W0_30: lambda width: codecs.MetaSiren(
            width, config.num_steps, init=strumpler.learned_init(width)
        ),
        BEFORE: lambda width: codecs.MetaSiren(width, config.num_steps, init=before_rounds(width)),
        "no learned scales": lambda width: codecs.MetaSiren(
            width, config.num_steps, init=without_scales(packaged_init(width))
        ),
        "searched roundings": lambda width: codecs.MetaSiren(
            width, config.num_steps, search_steps=config.search_steps
        ),
    }
    found = {name: curve(name, make) for name, make in plain.items()}
    if not config.ranks:
        return found
    width, low_rank = config.low_rank_width, f"deltas of low rank, width {config.low_rank_width}"
    found[low_rank] = [
        (
            safe_name(f"{low_rank}, {rank}"),
            codecs.MetaSiren(
                width, config.num_steps, init=low_rank_init(config, rank, training, folder)
            ),
        )
        for rank in config.ranks
    ]
    return found


W0_30 = "w0 30, 16 frequencies of ratio 1.4"

BEFORE = "the init before its rounds of fits"


def before_rounds(width: int) -> Init:
    """The packaged init that `inrjax.metatrain.refine_prior` made that of a width of."""
    digest = packaged_init(width).info.get("start", {}).get("digest", "")
    init = find_init(bytes.fromhex(digest)) if digest else None
    if init is None:
        raise ValueError(f"the packaged init of width {width} names none that it was made from")
    return init


def with_choices(
    config: Config, rows: Mapping[str, Sequence[RDPoint]]
) -> dict[str, Sequence[RDPoint]]:
    """The variants, and what a choice among some of them gives."""
    default, slope = rows["default"], codecs.MetaSiren.slope
    seeds = [default, *(rows[f"seed {seed}"] for seed in config.seeds)]
    slopes = [default, *(rows[f"slope {slope:g}"] for slope in config.slopes)]
    name = f"the better of two inits, this one and of {W0_30}"
    found = {**rows, name: best_of([default, rows[W0_30]], slope)}
    if config.seeds:
        found[f"the best of {len(seeds)} seeds"] = best_of(seeds, slope)
    if config.slopes:
        found["any width and slope"] = [row for own in slopes for row in own]
    return found


def best_of(many: Sequence[Sequence[RDPoint]], slope: float) -> list[RDPoint]:
    """For each image and setting the row of the lowest log(mse) + slope * log(bytes), with the
    seconds of all."""
    groups: dict[tuple[str, str], list[RDPoint]] = {}
    for row in (row for rows in many for row in rows):
        groups.setdefault((row.image, row.setting), []).append(row)

    def loss(row: RDPoint) -> float:
        return -np.log(10) * row.psnr / 10 + slope * np.log(row.num_bytes)

    return [
        replace(min(group, key=loss), encode_seconds=sum(row.encode_seconds for row in group))
        for group in groups.values()
    ]


def run(config: Config, training: Sequence[Image], images: Mapping[str, Image], root: Path) -> Path:
    """Measure every variant; returns the run folder."""
    widths = sorted({*config.widths, config.low_rank_width})
    digests = tuple(packaged_init(width).short_digest for width in widths)
    config = replace(config, inits=digests)
    folder = results.run_folder(root, config)
    note_provenance(folder)
    rows: dict[str, list[RDPoint]] = {}
    learned = folder / "streams" / "inits"  # not committed
    for name, curve in variants(config, training, learned).items():
        print(name, flush=True)
        rows[name] = []
        for part, codec in curve:
            rows[name] += evaluate(
                [codec], images, folder / part, batch_size=len(images),
                on_progress=common.print_progress(),
            )  # fmt: skip
    results.write_text(folder / "table.md", table(config, with_choices(config, rows)))
    return folder


def table(config: Config, rows: Mapping[str, Sequence[RDPoint]]) -> str:
    """BD-rates against the first variant, image by image."""
    curves = {name: numbers.curves_by_image(own, METASIREN) for name, own in rows.items()}
    lines = []
    for name, own in rows.items():
        found = [numbers.bd_rate(curves["default"][i], curve) for i, curve in curves[name].items()]
        rates = [one.percent for one in found if one is not None]
        cells = ["", ""]
        if rates:
            mean = numbers.mean_with_interval(rates)
            cells = [
                f"{mean.value:+.2f} ({mean.low:+.2f} to {mean.high:+.2f})", f"{median(rates):+.2f}"
            ]  # fmt: skip
        seconds = fmean(row.encode_seconds for row in own)
        ends = [f"{end([row.bpp for row in own]):.3f}" for end in (min, max)]
        lines.append([name, *cells, str(len(rates)), " to ".join(ends), f"{seconds:.2f}"])
    header = [
        "variant", "BD-rate %, mean of images (95 % interval)", "median", "images", "bpp",
        "encode s/image",
    ]  # fmt: skip
    default = rows["default"]
    return (
        f"# Choices of MetaSiren, widths {', '.join(map(str, config.widths))}, "
        f"{config.num_steps} steps, {len({row.image for row in default})} images "
        f"({config.images}), seed 0\n\n" + markdown(header, lines) + "\n"
    )


@dataclass(frozen=True)
class Options(common.Options):
    """The command line."""

    config: Config = Config()
    output: Path = ROOT / "results" / "siren_choices"


def main(options: Options) -> Path:
    """Set one device a core, read the images, run; returns the run folder."""
    fit.use_every_core()
    config = SMOKE if options.smoke else options.config
    images = common.pictures(options, slice(config.num_images))
    return common.show(run(config, common.training(options), images, options.output))


if __name__ == "__main__":
    # By its own name, so that the process that decodes can import the codecs above.
    from experiments import siren_choices

    siren_choices.main(tyro.cli(tyro.conf.OmitArgPrefixes[siren_choices.Options]))
