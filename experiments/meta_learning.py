"""Where does meta-learning an init pay, which method of it, and under which optimiser?

Claim (Strümpler et al. 2022): a meta-learned init saves time and bytes. Tested: it saves at least
15 % of the bytes at equal PSNR and equal steps; true of 300 steps (23 % with Muon, 34 with Adam),
of 1000 with Adam alone (12 and 15 %), not of 3000 (8 and 11 %).
Command: python -m experiments.meta_learning --data DIR   (DIR holds cid22/; or set INRJAX_DATA)
    and the same with --question rounds: does it pay longer, with rounds of whole fits (of
    `inrjax.metatrain.refine_prior`) after MAML, or in its place? True of 1000 steps then (16 %),
    not of 3000 (12 %).
Minutes: 17 of 2 CPU cores beside other work, 20 of the rounds. A stopped run goes on where it was.
Expected: the tables in results/meta_learning/<config hash>/table.md.

Every method sees the same number of images while it learns an init, in crops of the size that is
then coded; its prior (the envelope of the distance from the init) comes from fits of its own, as
the random init's does. Every number of steps is a fit of its own with its own schedule, and PSNR
and bytes are those of files that another process decoded. The inner steps of MAML and its kin come
before the optimiser's and are not counted among them; each takes about as long as one of those. 0
steps: the init as it is. 3 steps: for MAML and its kin the three inner steps and nothing else, for
the others three of the optimiser's. Neither of these two is fitted for rate, so that their PSNR
counts and their bytes do not.

Bytes at equal PSNR: at each number of steps the random init is fitted at several widths; between
these, log(mean bytes) is interpolated linearly in mean PSNR, at the PSNR of the method. Nothing is
extrapolated. Steps at equal PSNR: the random init's mean PSNR at the same width is interpolated in
log(steps). Intervals are 95 % percentiles over resamples of the images. ``--smoke``: small crops.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments import activations, common
from experiments.kodak_rd import ROOT, markdown, note_provenance
from experiments.optimizers import steps_to
from inrjax import codecs, compare, fit, metatrain, overfit, plots, results, trees
from inrjax.evaluate import evaluate, safe_name
from inrjax.init import Init, flat_init, load_init, save_init
from inrjax.optimizers import Adam, Muon
from inrjax.types import Image, OnProgress, RDPoint


@dataclass(frozen=True)
class Learner:
    """A method of meta-learning with its number of inner steps."""

    name: str
    method: metatrain.Method
    inner_steps: int = 3


@dataclass(frozen=True)
class Rounds:
    """Rounds of whole fits by `inrjax.metatrain.refine_prior`, from the init of another method, or
    from the random init."""

    name: str
    start: Learner | None
    rounds: int = 3
    round_images: int = 48
    round_steps: int = 1500

    @property
    def inner_steps(self) -> int:
        """As the method's that they follow."""
        return self.start.inner_steps if self.start else 0


LEARNERS = (
    Learner("MAML, learned rates", metatrain.Maml()),
    Learner("MAML, first order", metatrain.Maml(first_order=True)),
    Learner("MAML, one fixed rate", metatrain.FixedRateMaml()),
    Learner("Meta-SGD", metatrain.MetaSgd()),
    Learner("Reptile", metatrain.Reptile(Muon(3e-3), epsilon=0.5), inner_steps=8),
)
"""Rates are from short training on other crops (300 outer steps, not kept): Reptile's inner steps
by Adam at 3e-3 diverged, at 1e-3 they were 0.3 dB behind after 100 steps of Muon; the fixed rate
0.3 was 1.5 dB behind 0.03."""


ROUNDS = (
    LEARNERS[0],
    Rounds("MAML, learned rates, then rounds of fits", LEARNERS[0]),
    Rounds("rounds of fits from the random init", None),
)

OPTIMIZERS = (Muon(overfit.LEARNING_RATE), Adam(1e-3, final=0.0))


@dataclass(frozen=True)
class Config:
    """What is measured. ``outer_steps`` times ``tasks_per_step`` images are seen by each method;
    ``w0``: of all nets. ``reference_widths``: of the random init's curve, the width of all others
    among them, measured at the steps from ``reference_from`` on."""

    width: int = 24
    w0: float = metatrain.MetaTrainConfig.w0
    learners: tuple[Learner | Rounds, ...] = LEARNERS
    outer_steps: int = 2500
    tasks_per_step: int = 2
    points: int = 2048
    prior_images: int = 4
    prior_steps: int = 1000
    steps: tuple[int, ...] = (30, 100, 300, 1000, 3000)
    reference_widths: tuple[int, ...] = (16, 24, 32)
    reference_from: int = 100
    optimizers: tuple[Adam | Muon, ...] = OPTIMIZERS
    points_per_step: int = 1024
    size: int = 256
    num_images: int = 24
    seed: int = 0
    images: tyro.conf.Suppress[str] = "cid22, held back"


QUESTIONS = {"methods": Config(), "rounds": Config(learners=ROUNDS, optimizers=OPTIMIZERS[:1])}

SMOKE = Config(
    learners=LEARNERS[1:2], outer_steps=2, points=256, prior_images=1, prior_steps=40, steps=(40,),
    reference_widths=(24,), reference_from=40, optimizers=OPTIMIZERS[1:], points_per_step=256,
    size=48, num_images=2, images="smoke",
)  # fmt: skip


SMOKES = {
    "methods": SMOKE,
    "rounds": replace(SMOKE, learners=(Rounds("rounds of fits", None, 1, 8, round_steps=40),)),
}


# ---------------------------------------------------------------------------- inits


def learn(
    config: Config, learner: Learner | Rounds, pictures: Sequence[Image], folder: Path
) -> Init:
    """The init of a method, with its prior; ``seconds`` of CPU time in its info. Kept as a file."""
    path = folder / f"{safe_name(learner.name)}.npz"
    if path.exists():
        return load_init(path)
    if isinstance(learner, Rounds):
        return _keep(path, _refined(config, learner, pictures, folder))
    training = _training(config, config.width, learner.inner_steps)
    init, seconds = _timed(
        folder / "stopped" / path.stem,
        partial(metatrain.meta_train, training, learner.method, pictures),
    )
    learned = metatrain.learn_prior(training, init, pictures)
    return _keep(path, replace(learned, info={**init.info, "seconds": seconds}))


def _refined(config: Config, learner: Rounds, pictures: Sequence[Image], folder: Path) -> Init:
    """The seconds are those of the rounds and of the method before them."""
    if learner.start is None:
        init = random_init(config, config.width, pictures, folder)
    else:
        init = learn(config, learner.start, pictures, folder)
    training = replace(
        _training(config, config.width, 1),  # rounds take no inner steps
        rounds=learner.rounds,
        round_images=learner.round_images,
        round_steps=learner.round_steps,
    )
    refined, seconds = _timed(
        folder / "stopped" / safe_name(learner.name),
        partial(metatrain.refine_prior, training, init, pictures),
    )
    seconds += init.info.get("seconds", 0.0)
    return replace(refined, info={**refined.info, "seconds": seconds})


def _timed(folder: Path, learn: Callable[[Path, OnProgress], Init]) -> tuple[Init, float]:
    """What is learned, from checkpoints in the folder on if there are any, and the seconds of CPU
    time, with those of a run that was stopped up to its last report."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "seconds.json"
    before = json.loads(path.read_text("utf-8")) if path.exists() else 0.0
    start, show = process_time(), common.print_progress()

    def on_progress(done: int, total: int) -> None:
        show(done, total)
        results.write_json(path, before + process_time() - start)

    init = learn(folder / "checkpoints", on_progress)
    return init, before + process_time() - start


def random_init(config: Config, width: int, pictures: Sequence[Image], folder: Path) -> Init:
    """The init that meta-training begins at, with a prior learned as the others' are."""
    path = folder / f"random_{width}.npz"
    if path.exists():
        return load_init(path)
    return _keep(path, metatrain.random_init(_training(config, width, 1), pictures))


def _training(config: Config, width: int, inner_steps: int) -> metatrain.MetaTrainConfig:
    return metatrain.MetaTrainConfig(
        width=width,
        w0=config.w0,
        num_steps=config.outer_steps,
        inner_steps=inner_steps,
        tasks_per_step=config.tasks_per_step,
        points=config.points,
        prior_images=config.prior_images,
        prior_steps=config.prior_steps,
        seed=config.seed,
    )


def _keep(path: Path, init: Init) -> Init:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_init(path, init)
    shutil.rmtree(path.parent / "stopped" / path.stem, ignore_errors=True)
    return init


# ---------------------------------------------------------------------------- files


@dataclass(frozen=True, eq=False)
class Unfitted(common.Wrapped):
    """A MetaSiren without its fit: the init after its inner steps, if it has rates, as a file.

    Steps of 2^-12 keep the params as they are within what a pixel shows; the bytes mean nothing.
    """

    steps: int
    """What is written as the number of steps: of the inner ones."""

    @property
    def setting(self) -> str:
        """As MetaSiren's."""
        return f"width={self.codec.width}_steps={self.steps}"

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        """One stream for each image."""
        return [self.codec.pack(image, self._start(image)) for image in images]

    def _start(self, image: Image) -> Any:
        init = self.codec.init
        assert init is not None
        tiling = fit.tiling(image.shape[0] * image.shape[1], self.codec.points_per_step)
        num_tiles = -(-image.shape[0] * image.shape[1] // tiling.tile)
        points = overfit.image_points(image, tiling, num_tiles, self.codec.seed)
        plan = overfit.RatePlan(init.net, Adam(0.0), 1, tiling.tiles_per_step, 1)
        shared = overfit.rate_shared(init, self.codec.slope, self.codec.seed)
        learned = jax.tree.map(np.asarray, plan.start(shared, points).params)
        return learned | {"log_step": np.full_like(learned["log_step"], np.log(2.0**-12))}


def series(config: Config, init: Init, optimizer: Adam | Muon) -> list[Any]:
    """A codec for each number of steps, from 0 on."""
    still = replace(init, rates=None)
    base = codecs.MetaSiren(
        init.net.width, 3, config.seed, init=still, optimizer=optimizer,
        points_per_step=config.points_per_step,
    )  # fmt: skip
    # Rates of 0, not None: all inits of a width then run the very same compiled programs.
    moving = replace(init, rates=init.rates or _zero_rates(init))
    three = Unfitted(replace(base, init=init), 3) if init.rates else base
    fitted = [replace(base, init=moving, num_steps=steps) for steps in config.steps]
    return [Unfitted(base, 0), three, *fitted]


def reference_series(config: Config, init: Init, optimizer: Adam | Muon) -> list[Any]:
    """As `series`, for a width of the reference curve that is not the methods' own."""
    return series(replace(config, steps=reference_steps(config)), init, optimizer)[2:]


def reference_steps(config: Config) -> tuple[int, ...]:
    """The numbers of steps at which bytes are compared."""
    return tuple(steps for steps in config.steps if steps >= config.reference_from)


def _zero_rates(init: Init) -> dict[str, Any]:
    return trees.from_leaves(
        {path: np.zeros((3, *leaf.shape), np.float16) for path, leaf in trees.leaves(init.params)}
    )


# ---------------------------------------------------------------------------- numbers


@dataclass(frozen=True)
class Column:
    """Files of one init at one number of steps: bytes and PSNR in dB, (images,)."""

    num_bytes: np.ndarray
    psnr: np.ndarray


def columns(rows: Sequence[RDPoint], images: Sequence[str]) -> dict[int, Column]:
    """Number of steps -> its files, in the order of ``images``."""
    by_steps: dict[int, dict[str, RDPoint]] = {}
    for row in rows:
        by_steps.setdefault(int(row.setting.rpartition("=")[2]), {})[row.image] = row
    return {
        steps: Column(
            np.array([found[name].num_bytes for name in images], np.float64),
            np.array([found[name].psnr for name in images]),
        )
        for steps, found in by_steps.items()
    }


def lead(column: Column, reference: Column) -> compare.Estimate:
    """The mean difference in PSNR, paired by image."""
    gaps = column.psnr - reference.psnr
    return compare.estimate(lambda counts: float(counts @ gaps / counts.sum()), len(gaps))


def bytes_saved(column: Column, curve: Sequence[Column]) -> compare.Estimate:
    """Percent of bytes more (+) or less (-) than a curve needs at the column's mean PSNR.

    ``curve`` is of one codec at several rates; between these, log(mean bytes) is linear in mean
    PSNR. NaN where the PSNR is beyond the curve's ends.
    """

    def statistic(counts: np.ndarray) -> float:
        def mean(values: np.ndarray) -> float:
            return float(counts @ values / counts.sum())

        points = sorted((mean(one.psnr), np.log(mean(one.num_bytes))) for one in curve)
        needed = np.interp(mean(column.psnr), *zip(*points, strict=True), left=np.nan, right=np.nan)
        return 100 * (mean(column.num_bytes) / float(np.exp(needed)) - 1)

    return compare.estimate(statistic, len(column.psnr))


# ---------------------------------------------------------------------------- the run


NO_PRIOR = "random, flat prior"


def run(config: Config, training: Sequence[Image], images: Mapping[str, Image], root: Path) -> Path:
    """Learn every init, measure all under both optimisers; what is there already is kept."""
    folder = results.run_folder(root, config)
    note_provenance(folder)
    where = folder / "streams" / "inits"  # not committed
    inits = {
        **{
            reference(width): random_init(config, width, training, where)
            for width in config.reference_widths
        },
        **{one.name: learn(config, one, training, where) for one in config.learners},
    }
    plain = inits[reference(config.width)]
    inits[NO_PRIOR] = replace(plain, envelope=flat_init(plain.net, plain.params).envelope)
    measured = {
        type(optimizer).__name__: {
            name: measure(config, init, optimizer, images, folder / safe_name(name))
            for name, init in inits.items()
        }
        for optimizer in config.optimizers
    }
    path = folder / "seconds.json"
    if not path.exists():
        results.write_json(path, {name: init.info.get("seconds") for name, init in inits.items()})
    seconds = json.loads(path.read_text("utf-8"))
    text = table(config, len(images), measured, seconds)
    results.write_text(folder / "table.md", text)
    plots.save(draw(config, measured), folder / "lead")
    return folder


def reference(width: int) -> str:
    """The random init's name at a width."""
    return f"random, width {width}"


def measure(
    config: Config, init: Init, optimizer: Adam | Muon, images: Mapping[str, Image], folder: Path
) -> dict[int, Column]:
    """By number of steps, from files; rows that exist are kept."""
    part = folder / type(optimizer).__name__.lower()
    print(f"{folder.name}, {part.name}", flush=True)
    make = series if init.net.width == config.width else reference_series
    rows = evaluate(
        make(config, init, optimizer), images, part, batch_size=len(images),
        on_progress=common.print_progress(),
    )  # fmt: skip
    return columns(rows, list(images))


Measured: TypeAlias = Mapping[str, Mapping[int, Column]]
"""Name of an init -> number of steps -> its files."""


def table(
    config: Config, num_images: int, measured: Mapping[str, Measured],
    seconds: Mapping[str, float | None],
) -> str:  # fmt: skip
    """PSNR, leads, bytes and steps at equal PSNR under each optimiser, and the answer."""
    seen = config.outer_steps * config.tasks_per_step
    parts = [
        f"# Meta-learning an init, width {config.width}, {num_images} crops of {config.size} x "
        f"{config.size} ({config.images}), {config.points_per_step} pixels a step, seed "
        f"{config.seed}",
        f"Training, {seen} images seen by each method of MAML's kind:",
        markdown(
            ["method", "inner steps", "CPU seconds"],
            [[o.name, str(o.inner_steps), f"{seconds[o.name]:.0f}"] for o in config.learners],
        ),
    ]
    for optimizer, by_init in measured.items():
        parts += [f"## {optimizer}", *_section(config, by_init)]
    if len(measured) > 1:
        parts += _crossed(config, measured)
    return "\n\n".join(parts) + "\n"


def _section(config: Config, by_init: Measured) -> list[str]:
    own = by_init[reference(config.width)]
    compared = [*(one.name for one in config.learners), NO_PRIOR]
    steps = list(own)

    def lines(names: Sequence[str], cell: Callable[[str, int], str]) -> list[list[str]]:
        return [[name, *(cell(name, n) for n in steps)] for name in names]

    def size(name: str, n: int) -> str:
        column = by_init[name][n]
        coded = f", {column.num_bytes.mean():.0f} B" if n in config.steps else ""
        return f"{column.psnr.mean():.2f} dB{coded}"

    def any_size(name: str, n: int) -> str:
        return size(name, n) if n in by_init[name] else ""

    def gap(name: str, n: int) -> str:
        return activations.interval_text(lead(by_init[name][n], own[n]))

    def reached(name: str, n: int) -> str:
        psnr = float(by_init[name][n].psnr.mean())
        needed = steps_to({k: float(own[k].psnr.mean()) for k in config.steps}, psnr)
        first = needed == config.steps[0]
        return "none does" if needed is None else f"{'at most ' * first}{needed:.0f}"

    header = ["init", *(f"{n} steps" for n in steps)]
    saved = savings(config, by_init)
    rated = reference_steps(config)
    spent = [[name, *(_saved_text(saved[name, n]) for n in rated)] for name in compared]
    return [
        "Mean PSNR, and mean bytes of whole files.",
        markdown(header, lines(list(by_init), any_size)),
        f"PSNR less that of the random init of width {config.width}, in dB, paired by image.",
        markdown(header, lines(compared, gap)),
        "Bytes at equal PSNR and equal steps, in percent of the random init's.",
        markdown(["init", *(f"{n} steps" for n in rated)], spent),
        "Steps after which the random init has the same PSNR.",
        markdown(header, lines(compared, reached)),
        answer(config, saved),
    ]


def _crossed(config: Config, measured: Mapping[str, Measured]) -> list[str]:
    """Each optimiser's inits against the random init under the other optimisers."""
    parts = [
        "## Each beside the random init under the other optimiser",
        "Bytes at equal PSNR and equal steps, in percent: an optimiser need not suit the random "
        "init as well as it suits the others.",
    ]
    rated = reference_steps(config)
    for optimizer, by_init in measured.items():
        for other in measured:
            if other == optimizer:
                continue
            saved = savings(config, by_init, measured[other])
            lines = [
                [name, *(_saved_text(saved[name, n]) for n in rated)]
                for name in (one.name for one in config.learners)
            ]
            header = [f"{optimizer}, random init by {other}", *(f"{n} steps" for n in rated)]
            parts += [markdown(header, lines), answer(config, saved)]
    return parts


def savings(
    config: Config, by_init: Measured, references: Measured | None = None
) -> dict[tuple[str, int], compare.Estimate]:
    """(init, steps) -> percent of the random init's bytes at the init's PSNR.

    ``references``: what holds the random init; None for the same.
    """
    references = references or by_init
    return {
        (name, n): bytes_saved(
            by_init[name][n], [references[reference(width)][n] for width in config.reference_widths]
        )
        for name in (*(one.name for one in config.learners), NO_PRIOR)
        for n in reference_steps(config)
    }


def _saved_text(estimate: compare.Estimate) -> str:
    if np.isnan(estimate.value):
        return "beyond the widths"
    return activations.interval_text(estimate, "+.1f")


THRESHOLD = 15.0
"""Percent of bytes that make meta-learning worth its while."""


def answer(config: Config, saved: Mapping[tuple[str, int], compare.Estimate]) -> str:
    """At each number of steps the method that saves most, and whether that is enough."""
    found = []
    for n in reference_steps(config):
        by_name = {one.name: saved[one.name, n] for one in config.learners}
        known = {name: one for name, one in by_name.items() if not np.isnan(one.value)}
        if not known:
            found.append(f"{n} steps: no width of the random init has any method's PSNR")
            continue
        best = min(known, key=lambda name: known[name].value)
        verdict = "pays" if known[best].value <= -THRESHOLD else "does not pay"
        found.append(f"{n} steps: {verdict}, {best} {_saved_text(known[best])} %")
    return f"Does it save {THRESHOLD:.0f} % of the bytes? " + "; ".join(found) + "."


def draw(config: Config, measured: Mapping[str, Measured]) -> Figure:
    """The lead in PSNR over the random init by the number of steps, for each optimiser."""
    style = plots.SCREEN
    figure = style.figure(style.double, 0.42)
    names = [one.name for one in config.learners]
    known, handles = plots.looks(names, {}), []
    [panels] = figure.subplots(1, len(measured), sharey=True, squeeze=False)
    for axes, (optimizer, by_init) in zip(panels, measured.items(), strict=True):
        own = by_init[reference(config.width)]
        handles = [
            plots.draw_curve(
                axes,
                [(n, lead(column, own[n]).value) for n, column in by_init[name].items() if n],
                known[name],
            )
            for name in names
        ]
        axes.axhline(0, color="0.4", linewidth=0.8)
        axes.set(title=optimizer, xlabel="steps of the fit", xscale="log")
        axes.grid()
    figure.supylabel("lead over the random init (dB)", fontsize=style.font)
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


# ---------------------------------------------------------------------------- the command line


@dataclass(frozen=True)
class Options(common.Options):
    """The command line."""

    question: Literal["methods", "rounds"] = "methods"
    output: Path = ROOT / "results" / "meta_learning"


def main(options: Options) -> Path:
    """Set one device a core, cut the crops, run; returns the run folder."""
    fit.use_every_core()
    config = (SMOKES if options.smoke else QUESTIONS)[options.question]
    cut = partial(activations.centre, size=config.size)
    training = [cut(image) for image in common.training(options)]
    if options.smoke:  # one image is too few for rounds
        training = [image[y : y + 16] for image in training for y in range(0, 32, 4)]
    images = common.pictures(options, slice(-config.num_images, None), cut)
    return common.show(run(config, training, images, options.output))


if __name__ == "__main__":
    # The process that decodes imports `Unfitted` by its module's name, which is not __main__.
    from experiments import meta_learning

    meta_learning.main(tyro.cli(tyro.conf.OmitArgPrefixes[meta_learning.Options]))
