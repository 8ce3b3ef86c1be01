"""Which optimiser reaches plain Adam's quality in the fewest seconds?

Claim: the default needs at most a third of the seconds of plain Adam, at equal PSNR (COIN's shape
5x30, against 10,000 steps at COIN's 2e-4), and at equal PSNR and bpp (MetaSiren of width 32).
Command: python -m experiments.optimizers --data DIR   (DIR holds cid22/; or set INRJAX_DATA)
Then: ... --timing measures the seconds again; ... --kodak fits Kodak at the rates that were chosen.
Minutes: about 25 on 2 cores, --kodak 40 more, --timing 2. A stopped run goes on: rows are kept.
Expected: the tables in results/optimizers/<config hash>/table.md and table_kodak.md.

Learning rates are tuned, in short fits, on held-back cid22 images; the table is of 12 others. Every
number of steps is a fit of its own, with its own schedule; PSNR and bpp are taken from files that
another process decoded. ``score`` is mean PSNR - 1.6 dB * log2(bpp / bpp of plain Adam's longest
fit): what `defaults` uses, and plain PSNR for COIN, whose files are all of one size. Steps between
the measured ones are interpolated in their logarithm. Seconds are steps times the seconds of one:
steady state, compilation left out, an image on each core, all optimisers in turn in one process.
``solved`` is COIN's file with its last layer replaced by the least-squares solution under the coded
features. ``--smoke``: one small crop, few steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import tyro

from experiments import common
from experiments.common import smoke_images
from experiments.defaults import DB_PER_OCTAVE
from experiments.kodak_rd import COIN_PUBLISHED, ROOT, markdown
from inrjax import bitstream, codecs, datasets, metrics, results, trees
from inrjax.evaluate import evaluate, safe_name, stream_path
from inrjax.images import coordinates, to_uint8
from inrjax.init import packaged_init
from inrjax.nets.siren import Siren, layer_name
from inrjax.optimizers import Adam, Muon, Optimizer, Soap
from inrjax.results import Summary
from inrjax.types import Image

PLAIN = "Adam, constant"


@dataclass(frozen=True)
class Method:
    """An optimiser, and the learning rates that it is tried at; one rate is not tuned."""

    name: str
    optimizer: Optimizer
    rates: tuple[float, ...]

    def at(self, rate: float) -> Optimizer:
        """The optimiser at this rate."""
        return replace(self.optimizer, learning_rate=rate)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Study:
    """One codec: the methods, the lengths of their fits, and those of plain Adam, the first."""

    methods: tuple[Method, ...]
    steps: tuple[int, ...]
    plain_steps: tuple[int, ...]
    tuning_steps: int


def _methods(
    plain: tuple[float, ...], adam: tuple[float, ...], soap: tuple[float, ...],
    muon: tuple[float, ...],
) -> tuple[Method, ...]:  # fmt: skip
    return (
        Method(PLAIN, Adam(0.0), plain),
        Method("Adam, cosine", Adam(0.0, final=0.0), adam),
        Method("SOAP", Soap(0.0), soap),
        Method("Muon", Muon(0.0), muon),
    )


COIN = Study(
    _methods(
        plain=(2e-4,),
        adam=(1.5e-3, 3e-3, 4.5e-3),
        soap=(1.5e-3, 3e-3, 4.5e-3),
        muon=(3e-3, 4.5e-3, 6e-3),
    ),
    steps=(200, 400, 800, 1600, 3200),
    plain_steps=(200, 800, 3200, 10_000),
    tuning_steps=600,
)
META = Study(
    _methods(
        plain=(1.5e-4, 3e-4, 6e-4),
        adam=(1e-3, 1.5e-3, 2e-3),
        soap=(1e-3, 1.5e-3, 2e-3),
        muon=(2e-3, 3e-3, 4e-3),
    ),
    steps=(300, 600, 1200),
    plain_steps=(300, 1200, 4800),
    tuning_steps=600,
)


@dataclass(frozen=True)
class Config:
    """What is measured; ``init``: digest of MetaSiren's, filled in when it runs."""

    coin_shape: tuple[int, int] = (30, 5)
    coin: Study = COIN
    meta_width: int = 32
    meta: Study = META
    points_per_step: int = 8192
    tuning_images: int = 6
    num_images: int = 12
    rounds: int = 5
    timing_steps: int = 300
    seed: int = 0
    images: tyro.conf.Suppress[str] = "cid22, held back"
    init: tyro.conf.Suppress[str] = ""


def _smoke(*methods: Method) -> Study:
    untuned = tuple(replace(method, rates=method.rates[:1]) for method in methods)
    return Study(untuned, (200,), (200,), 200)


# Every fit has one length, and few methods are fitted: compilation is what takes the time.
SMOKE = Config(
    coin_shape=(8, 2), coin=_smoke(COIN.methods[0], COIN.methods[-1]),
    meta=_smoke(META.methods[0]), points_per_step=512, tuning_images=1, num_images=1, rounds=1,
    timing_steps=200, images="smoke",
)  # fmt: skip

Make: TypeAlias = Callable[[Optimizer, int], Any]
"""A codec for an optimiser and a number of steps."""


class Case(NamedTuple):
    """A study with its codec, the net that is fitted, and the published PSNR of Kodak in dB if
    the codec is COIN, whose last layer is solved for too."""

    study: Study
    make: Make
    net: Siren
    published: float | None


def cases(config: Config) -> dict[str, Case]:
    """Name -> what is measured."""
    width, depth = config.coin_shape

    def coin(optimizer: Optimizer, num_steps: int) -> codecs.Coin:
        return codecs.Coin(width, depth, num_steps, config.seed, optimizer, config.points_per_step)

    def meta(optimizer: Optimizer, num_steps: int) -> codecs.MetaSiren:
        return codecs.MetaSiren(
            config.meta_width, num_steps, config.seed, optimizer=optimizer,
            points_per_step=config.points_per_step,
        )  # fmt: skip

    _, published = COIN_PUBLISHED.get(config.coin_shape, (math.nan, math.nan))
    learned = packaged_init(config.meta_width).net
    return {
        f"COIN {depth}x{width}": Case(config.coin, coin, Siren(width, depth), published),
        f"MetaSiren, width {config.meta_width}": Case(config.meta, meta, learned, None),
    }


# ---------------------------------------------------------------------------- quality


def measure(
    case: Case, method: Method, rate: float, steps: Sequence[int], images: Mapping[str, Image],
    folder: Path,
) -> list[Summary]:  # fmt: skip
    """One summary for each number of steps, from files; what is there already is kept."""
    part = folder / method_folder(method, rate)
    print(f"{folder.parent.name} {folder.name}: {method.name}, {rate:g}", flush=True)
    series = [case.make(method.at(rate), num_steps) for num_steps in steps]
    rows = evaluate(
        series, images, part, batch_size=results.cpu_count(), on_progress=common.print_progress()
    )
    return results.summarise(rows)


def method_folder(method: Method, rate: float) -> str:
    """The name of the folder of one method at one rate."""
    return safe_name(f"{method.name} {rate:g}")


def score(summary: Summary, anchor_bpp: float) -> float:
    """Mean PSNR in dB, moved to another mean bpp."""
    return summary.psnr - DB_PER_OCTAVE * math.log2(summary.bpp / anchor_bpp)


def tune(case: Case, images: Mapping[str, Image], folder: Path) -> dict[str, float]:
    """The best rate of each method, by the score of short fits."""
    chosen = {}
    for method in case.study.methods:
        scores: dict[float, float] = {}
        for rate in method.rates if len(method.rates) > 1 else ():
            [summary] = measure(case, method, rate, [case.study.tuning_steps], images, folder)
            scores[rate] = score(summary, 0.1)  # any anchor: it cancels
        chosen[method.name] = max(scores or method.rates, key=lambda rate: scores.get(rate, 0.0))
    return chosen


def solve_last_layer(data: bytes, image: Image) -> tuple[float, float]:
    """PSNR in dB of COIN's file with its last layer solved for, and the condition of the problem.

    The features are those that the file holds, in float32; normal equations are accumulated by
    tiles and solved in float64, with a ridge of 1e-9 of their mean eigenvalue: it bounds the
    condition by about 1e10, while float64 would stand 1e15. The solution is rounded to float16,
    as a file would hold it. This is the best that any linear layer can do for the mse.
    """
    stream = bitstream.unpack(data, b"")
    shape, weights = stream.sections
    net = Siren(int.from_bytes(shape[:2], "little"), shape[2])
    like = trees.from_leaves({p: np.empty(s) for p, s in trees.leaves(net.shapes())})
    params = trees.unravel(np.frombuffer(weights, "<f2").astype(np.float32), like)
    # The same net with an identity for its last layer gives what that layer sees.
    features_net, last = replace(net, out_dim=net.width), layer_name(net.depth)
    params[last] = {"weight": np.eye(net.width), "bias": np.zeros(net.width)}
    height, width = image.shape[:2]
    features = features_net.apply_host(params, coordinates(height, width))
    wanted = image.reshape(-1, 3) / 127.5 - 1
    left = np.zeros((net.width + 1, net.width + 1))
    right = np.zeros((net.width + 1, 3))
    for first in range(0, len(features), 4096):
        tile = features[first : first + 4096].astype(np.float64)
        tile = np.concatenate([tile, np.ones((len(tile), 1))], axis=1)
        left += tile.T @ tile
        right += tile.T @ wanted[first : first + 4096]
    left += 1e-9 * np.trace(left) / len(left) * np.eye(len(left))
    solution = np.linalg.solve(left, right).astype(np.float16).astype(np.float64)
    pixels = features.astype(np.float64) @ solution[:-1] + solution[-1]
    image_hat = to_uint8((pixels + 1) / 2).reshape(image.shape)
    return metrics.psnr(image, image_hat), float(np.linalg.cond(left))


def solved(folder: Path, codec: Any, images: Mapping[str, Image]) -> tuple[float, float]:
    """Mean PSNR and the largest condition over the files of one codec, each solved anew."""
    pairs = [
        solve_last_layer(stream_path(folder, codec, name).read_bytes(), image)
        for name, image in images.items()
    ]
    return float(np.mean([psnr for psnr, _ in pairs])), max(cond for _, cond in pairs)


# ---------------------------------------------------------------------------- seconds


def step_seconds(codec: Any, images: Sequence[Image]) -> tuple[float, float]:
    """Seconds of a step in the steady state, one image on each core: the fastest chunk of the fit
    but its first; and seconds until that first chunk ended."""
    marks = [(0.0, perf_counter())]

    def mark(done: int, total: int) -> None:
        marks.append((codec.num_steps * done / total, perf_counter()))

    codec.encode(images, mark)
    later = pairwise(marks[1:])
    return min((t1 - t0) / (s1 - s0) for (s0, t0), (s1, t1) in later), marks[1][1] - marks[0][1]


def update_seconds(optimizer: Optimizer, net: Siren, num_steps: int = 500) -> float:
    """Seconds of the optimiser's own part of a step, on one core."""
    import jax
    import optax

    chosen = optimizer.build(num_steps)
    params = net.init(jax.random.key(0))

    @jax.jit
    def run(params):
        def step(carry, _):  # the params are their own gradient, so that no step can be left out
            params, state = carry
            updates, state = chosen.update(params, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, chosen.init(params)), length=num_steps)[0][0]

    jax.block_until_ready(run(params))
    seconds = []
    for _ in range(3):
        start = perf_counter()
        jax.block_until_ready(run(params))
        seconds.append(perf_counter() - start)
    return min(seconds) / num_steps


def time_methods(
    config: Config, chosen: Mapping[str, Mapping[str, float]], image: Image
) -> dict[str, Any]:
    """Seconds of every method, ``rounds`` times in turn after a round that compiles."""
    images = [image] * results.cpu_count()
    rows: list[dict[str, Any]] = []
    for name, case in cases(config).items():
        built = {
            method.name: case.make(method.at(chosen[name][method.name]), config.timing_steps)
            for method in case.study.methods
        }
        steps: dict[str, list[float]] = {method: [] for method in built}
        starts: dict[str, list[float]] = {method: [] for method in built}
        for _ in range(1 + config.rounds):
            for method, codec in built.items():
                step, start = step_seconds(codec, images)
                steps[method].append(step)
                starts[method].append(start)
        rows += [
            {
                "study": name,
                "method": method,
                "step_seconds": min(steps[method]),
                "rounds": steps[method],
                "compile_seconds": starts[method][0] - min(starts[method][1:]),
                "update_seconds": update_seconds(codec.optimizer, case.net),
            }
            for method, codec in built.items()
        ]
    return {"rows": rows, "provenance": results.provenance(results.jax_device())}


# ---------------------------------------------------------------------------- the run

CID22, KODAK = "curves", "kodak"


def open_run(config: Config, root: Path) -> tuple[Config, Path]:
    """The config with its init, and its run folder."""
    config = replace(config, init=packaged_init(config.meta_width).short_digest)
    return config, results.run_folder(root, config)


def run(
    config: Config, tuning: Mapping[str, Image], images: Mapping[str, Image], root: Path, name: str
) -> Path:
    """Tune, time, measure: what is there already is kept. Returns the path of the table.

    ``name``: `CID22`, or that of another image set, which gets a table of its own.
    """
    config, folder = open_run(config, root)
    chosen = {
        study: tune(case, tuning, folder / safe_name(study) / "tuning")
        for study, case in cases(config).items()
    }
    results.write_json(folder / "chosen.json", chosen)
    if not (folder / "timing.json").exists():
        timing = time_methods(config, chosen, next(iter(images.values())))
        results.write_json(folder / "timing.json", timing)
    timed = json.loads((folder / "timing.json").read_text("utf-8"))
    parts = [
        f"# Optimisers, {len(images)} images ({config.images if name == CID22 else name}), "
        f"{config.points_per_step} pixels a step, seed {config.seed}"
    ]
    for study, case in cases(config).items():
        where = folder / safe_name(study) / name
        rows = {row["method"]: row for row in timed["rows"] if row["study"] == study}
        curves = {
            method.name: measure_curve(case, method, chosen[study][method.name], images, where)
            for method in case.study.methods
        }
        targets = {} if name != KODAK or case.published is None else {"published": case.published}
        parts += [f"## {study}", *section(chosen[study], curves, rows, targets)]
        if case.published is not None:
            parts.append(solved_section(case, chosen[study], curves, images, where))
    suffix = "" if name == CID22 else f"_{name}"
    device = results.jax_device()
    results.write_json(folder / f"provenance{suffix}.json", results.provenance(device))
    path = folder / f"table{suffix}.md"
    results.write_text(path, "\n\n".join(parts) + "\n")
    return path


def measure_curve(
    case: Case, method: Method, rate: float, images: Mapping[str, Image], where: Path
) -> dict[int, Summary]:
    """Steps -> summary, one fit for each."""
    steps = case.study.plain_steps if method.name == PLAIN else case.study.steps
    return dict(zip(steps, measure(case, method, rate, steps, images, where), strict=True))


def steps_to(curve: Mapping[int, float], target: float) -> float | None:
    """Steps at which a curve, steps -> score, reaches a score, interpolated in the logarithm of
    steps; the first number of steps if that is better already, None if none reaches it."""
    steps = list(curve)
    rising = np.maximum.accumulate(list(curve.values()))
    if rising[0] >= target:
        return float(steps[0])
    if rising[-1] < target:
        return None
    return float(np.exp(np.interp(target, rising, np.log(steps))))


def section(
    rates: Mapping[str, float], curves: Mapping[str, Mapping[int, Summary]],
    rows: Mapping[str, Mapping[str, Any]], targets: Mapping[str, float],
) -> list[str]:  # fmt: skip
    """The tables of a study: scores by steps, and seconds to plain Adam's and other targets."""
    last, longest = list(curves[PLAIN].items())[-1]
    scores = {
        method: {n: score(s, longest.bpp) for n, s in curve.items()}
        for method, curve in curves.items()
    }
    every = sorted({n for curve in curves.values() for n in curve})

    def cell(method: str, n: int) -> str:
        s = curves[method].get(n)
        return f"{s.psnr:.2f} dB, {s.num_bytes:.0f} B, {scores[method][n]:.2f}" if s else ""

    lines = [[method, f"{rates[method]:g}", *(cell(method, n) for n in every)] for method in curves]
    header = ["optimiser", "rate", *(f"{n} steps" for n in every)]
    parts = ["PSNR, bytes, score.", markdown(header, lines)]
    for label, target in {f"{PLAIN} at {last} steps": scores[PLAIN][last], **targets}.items():
        parts += [f"To {target:.2f} dB, {label}:", _reach(scores, rows, target)]
    return parts


def _reach(
    scores: Mapping[str, Mapping[int, float]], rows: Mapping[str, Mapping[str, Any]], target: float
) -> str:
    header = [
        "optimiser", "steps", "ms a step", "of it the optimiser, ms", "compile s", "seconds",
        "of plain Adam's",
    ]  # fmt: skip
    plain_steps = steps_to(scores[PLAIN], target)
    lines = []
    for method, curve in scores.items():
        row, steps = rows[method], steps_to(curve, target)
        first = steps == next(iter(curve))
        seconds = steps and steps * row["step_seconds"]
        plain = plain_steps and plain_steps * rows[PLAIN]["step_seconds"]
        lines.append(
            [
                method,
                "not reached" if steps is None else f"{'at most ' * first}{steps:.0f}",
                f"{1e3 * row['step_seconds']:.2f}",
                f"{1e3 * row['update_seconds']:.2f}",
                f"{row['compile_seconds']:.1f}",
                f"{seconds:.1f}" if seconds else "",
                f"{100 * seconds / plain:.0f} %" if seconds and plain else "",
            ]
        )
    return markdown(header, lines)


def solved_section(
    case: Case, rates: Mapping[str, float], curves: Mapping[str, Mapping[int, Summary]],
    images: Mapping[str, Image], where: Path,
) -> str:  # fmt: skip
    """What the exact solution of the last layer adds to each of COIN's files."""
    lines = []
    for method in case.study.methods:
        rate = rates[method.name]
        for n, summary in curves[method.name].items():
            own = where / method_folder(method, rate)
            psnr, condition = solved(own, case.make(method.at(rate), n), images)
            gain = f"{psnr - summary.psnr:+.3f}"
            lines.append(
                [
                    method.name,
                    str(n),
                    f"{summary.psnr:.2f}",
                    f"{psnr:.2f}",
                    gain,
                    f"{condition:.0e}",
                ]
            )
    header = ["optimiser", "steps", "PSNR dB", "solved, dB", "gain dB", "condition, largest"]
    return "Last layer solved by least squares, after the fit:\n\n" + markdown(header, lines)


# ---------------------------------------------------------------------------- the command line


@dataclass(frozen=True)
class Options:
    """``timing``: only the seconds, anew, and the table; ``kodak``: the chosen rates on Kodak."""

    data: Path | None = None
    output: Path = ROOT / "results" / "optimizers"
    timing: bool = False
    kodak: bool = False
    smoke: bool = False


def main(options: Options) -> Path:
    """Set one device a core, read the images, run; returns the path of the table."""
    from inrjax import fit

    fit.use_every_core()
    config, name = Config(), CID22
    if options.smoke:
        images = tuning = dict(list(smoke_images().items())[:1])
        config = SMOKE
    else:
        held_back = partial(common.read, datasets.cid22_held_back, options.data)
        tuning = held_back(slice(config.tuning_images))
        # The first images were seen by earlier choices: the table is of the last.
        images = held_back(slice(-config.num_images, None))
    if options.kodak:
        images, name = common.read(datasets.kodak, options.data), KODAK
    if options.timing:
        (open_run(config, options.output)[1] / "timing.json").unlink(missing_ok=True)
    path = run(config, tuning, images, options.output, name)
    print(path.read_text("utf-8"))
    return path


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
