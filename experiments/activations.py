"""Is the sine the right activation for fitting a photograph?

Claim (Sitzmann et al. 2020): at equal size and steps no other activation fits better than the sine.
Command: python -m experiments.activations --data DIR   (DIR holds cid22/; or set INRJAX_DATA)
Minutes: about 8 of one CPU core. A stopped run goes on: rows that exist are kept.
Expected: the table in results/activations/<config hash>/table.md.

Each net has 4 hidden layers and nearly the same number of params. Learning rate and scale (of the
activation, of the first biases or of the encoding) are chosen for each net and each optimiser on
crops of other images than those reported, by fits of the same length. This is about fitting: PSNR
is of the float32 net's picture rounded to uint8, nothing is quantised or coded, and no file is
written. ``--smoke``: two small crops, a few steps.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments import common
from experiments.kodak_rd import ROOT, markdown, note_provenance
from inrjax import compare, fit, images, metrics, results, trees
from inrjax.fit import Points
from inrjax.nets.sine import sine
from inrjax.nets.siren import Encoding, layer_name
from inrjax.optimizers import Adam, Muon
from inrjax.types import Image, Params

# ---------------------------------------------------------------------------- nets


class Activation(Protocol):
    """A hashable choice of an activation; ``factor`` scales what goes into it."""

    def __call__(self, z: jax.Array, factor: Any) -> jax.Array:
        """The activation of z, elementwise."""
        ...

    def bound(self, fan_in: int, fan_out: int, is_first: bool, factor: Any) -> Any:
        """Random weights are uniform between plus and minus this."""
        ...


@dataclass(frozen=True)
class Sine:
    """sin(factor z), weights as SIREN's (Sitzmann et al. 2020, arXiv:2006.09661)."""

    def __call__(self, z: jax.Array, factor: Any) -> jax.Array:
        return sine(factor * z)

    def bound(self, fan_in: int, fan_out: int, is_first: bool, factor: Any) -> Any:
        return 1 / fan_in if is_first else (6 / fan_in) ** 0.5 / factor


@dataclass(frozen=True)
class Finer(Sine):
    """FINER, sin(factor (|z| + 1) z), with SIREN's weights (Liu et al. 2024, arXiv:2312.02434).

    As in the authors' code, |z| + 1 is a constant to the gradient; the range of the first biases
    says how many frequencies a net starts with.
    """

    def __call__(self, z: jax.Array, factor: Any) -> jax.Array:
        return sine(factor * jax.lax.stop_gradient(jnp.abs(z) + 1) * z)


@dataclass(frozen=True)
class Relu:
    """max(z, 0), weights as He et al. 2015 (arXiv:1502.01852). The factor means nothing here."""

    def __call__(self, z: jax.Array, factor: Any) -> jax.Array:
        return jnp.maximum(z, 0)

    def bound(self, fan_in: int, fan_out: int, is_first: bool, factor: Any) -> Any:
        return (6 / fan_in) ** 0.5


@dataclass(frozen=True)
class Tanh:
    """tanh(factor z), weights as Glorot and Bengio 2010."""

    def __call__(self, z: jax.Array, factor: Any) -> jax.Array:
        return jnp.tanh(factor * z)

    def bound(self, fan_in: int, fan_out: int, is_first: bool, factor: Any) -> Any:
        return (6 / (fan_in + fan_out)) ** 0.5


@dataclass(frozen=True)
class Gaussian:
    """exp(-(factor z)^2 / 2) (Ramasinghe and Lucey 2022, arXiv:2111.15135), weights uniform in
    +-1/sqrt(in), the default of the framework that they used."""

    def __call__(self, z: jax.Array, factor: Any) -> jax.Array:
        return jnp.exp(-0.5 * (factor * z) ** 2)

    def bound(self, fan_in: int, fan_out: int, is_first: bool, factor: Any) -> Any:
        return fan_in**-0.5


@dataclass(frozen=True)
class Mlp:
    """``depth`` layers of ``width`` neurons with one activation, then a linear layer."""

    activation: Activation
    in_dim: int
    width: int
    depth: int = 4
    out_dim: int = 3

    @property
    def sizes(self) -> list[int]:
        """Values that go into each layer, and those that come out of the last."""
        return [self.in_dim, *[self.width] * self.depth, self.out_dim]

    @property
    def num_params(self) -> int:
        """Weights and biases together."""
        return sum((n + 1) * m for n, m in zip(self.sizes, self.sizes[1:], strict=False))

    def init(self, key: jax.Array, factor: Any, first_bias: Any) -> Params:
        """Random params: biases are uniform in +-first_bias in the first layer, in +-1/sqrt(in) in
        the others."""
        params = {}
        for i, (fan_in, fan_out) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            key_weight, key_bias, key = jax.random.split(key, 3)
            bound = self.activation.bound(fan_in, fan_out, i == 0, factor)
            shift = first_bias if i == 0 else fan_in**-0.5
            params[layer_name(i)] = {
                "weight": bound * _uniform(key_weight, (fan_out, fan_in)),
                "bias": shift * _uniform(key_bias, (fan_out,)),
            }
        return params

    def apply_columns(self, params: Params, features: jax.Array, factor: Any) -> jax.Array:
        """The values (out_dim, n) at features (in_dim, n)."""
        h = features
        for i in range(self.depth):
            h = self.activation(_affine(params[layer_name(i)], h), factor)
        return _affine(params[layer_name(self.depth)], h)


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, "float32", -1, 1)


def _affine(layer: Any, h: jax.Array) -> jax.Array:
    return layer["weight"] @ h + layer["bias"][:, None]


def encode(coords: np.ndarray, encoding: Encoding | None) -> np.ndarray:
    """What a net sees of coords (n, 2): these and, with an encoding, their sines and cosines."""
    if encoding is None:
        return coords
    angles = (coords[:, None] * encoding.angular()[:, None]).reshape(len(coords), -1)
    return np.concatenate([coords, np.sin(angles), np.cos(angles)], axis=1, dtype=np.float32)


# ---------------------------------------------------------------------------- fits


class Problem(NamedTuple):
    """One fit: its points, the features (in_dim, m) where the picture is wanted, the learning rate,
    and the factor and the range of first biases that the net starts with."""

    points: Points
    queries: Any
    rate: Any
    factor: Any
    first_bias: Any


class Kind(Protocol):
    """What `fit_all` needs of a net, beside its params."""

    def init(self, key: jax.Array, factor: Any, first_bias: Any) -> Params:
        """Random params."""
        ...

    def apply_columns(self, params: Params, features: jax.Array, factor: Any) -> jax.Array:
        """The values at features."""
        ...


def fit_all(
    net: Kind,
    optimizer: Adam | Muon,
    every: int,
    count: int,
    problems: Sequence[Problem],
    seed: int,
) -> np.ndarray:
    """The pictures of each fit after ``every``, 2 ``every``, ... ``count * every`` steps, at its
    queries: float32 (problems, count, out_dim, m).

    A step sees one tile of the points, without replacement within an epoch; the optimiser's
    schedule has ``count * every`` steps, its rate is each problem's own. Problems of equal shapes
    share one compiled program.
    """
    program, key = _program(jax.default_backend()), jax.random.key(seed)
    return np.stack([program(net, optimizer, every, count, one, key) for one in problems])


@cache
def _program(platform: str) -> Callable[..., jax.Array]:
    options = fit.compiler_options(platform)
    return jax.jit(_fit_one, static_argnums=(0, 1, 2, 3), compiler_options=options)


def _fit_one(net, optimizer, every: int, count: int, problem: Problem, key) -> jax.Array:
    key_init, key_tiles, key_steps = jax.random.split(key, 3)
    points, factor = problem.points, problem.factor
    chosen = replace(optimizer, learning_rate=problem.rate).build(every * count)

    def loss_fn(params, step, key):
        [tile] = fit.draw_tiles(points, 1, step, key_tiles)
        error = net.apply_columns(params, points.coords[tile], factor) - points.pixels[tile]
        weights = points.weights[tile]
        return jnp.sum(weights * jnp.mean(error * error, axis=0)) / jnp.sum(weights)

    def stretch(state, _):
        state, _ = fit.advance(loss_fn, state, chosen, every, every, key_steps)
        return state, net.apply_columns(state.params, problem.queries, factor)

    start = fit.start(net.init(key_init, factor, problem.first_bias), chosen)
    return jax.lax.scan(stretch, start, length=count)[1]


def picture(values: np.ndarray, height: int, width: int) -> Image:
    """A net's values (3, height * width) in [-1, 1] as uint8; a fit that diverged is grey."""
    shown = np.nan_to_num((values.T.reshape(height, width, 3) + 1) / 2, nan=0.5)
    return images.to_uint8(shown)


# ---------------------------------------------------------------------------- what is compared


@dataclass(frozen=True)
class Scale:
    """What a net starts with: the activation's factor, the range of the first layer's biases, and
    the ratio of an encoding of 16 frequencies, None for bare coordinates."""

    factor: float
    first_bias: float
    ratio: float | None = None

    @property
    def encoding(self) -> Encoding | None:
        """The encoding."""
        return None if self.ratio is None else Encoding(16, self.ratio)


@dataclass(frozen=True)
class Method:
    """A net with the scales and, for each optimiser, the learning rates that it is tried at."""

    name: str
    net: Mlp
    scales: tuple[Scale, ...]
    adam: tuple[float, ...]
    muon: tuple[float, ...]


BARE, ENCODED = 41, 32  # widths that give 5415 and 5411 params
_PLAIN, _RICH = 2**-0.5, 66**-0.5  # 1/sqrt(in): SIREN's range of the first biases


def _factors(*factors: float) -> tuple[Scale, ...]:
    return tuple(Scale(factor, _PLAIN) for factor in factors)


def _ratios(*pairs: tuple[float, float]) -> tuple[Scale, ...]:
    return tuple(Scale(factor, _RICH, ratio) for factor, ratio in pairs)


_SLOW: dict[str, Any] = {"adam": (1e-3, 3e-3, 1e-2), "muon": (1.5e-3, 3e-3, 6e-3)}
_FAST: dict[str, Any] = {"adam": (3e-3, 1e-2, 3e-2), "muon": (1e-2, 3e-2, 6e-2)}

# 18 trials each, but for ReLU, whose scale is its learning rate: it has 6 rates. Where they lie
# was found by short fits to the first of the tuning crops.
METHODS = (
    Method("sine", Mlp(Sine(), 2, BARE), _factors(7, 10, 15, 20, 30, 40), **_SLOW),
    Method(
        "ReLU", Mlp(Relu(), 2, BARE), _factors(1),
        adam=(1e-3, 3e-3, 1e-2, 2e-2, 3e-2, 6e-2), muon=(3e-3, 1e-2, 2e-2, 3e-2, 6e-2, 1e-1),
    ),
    Method(
        "ReLU + encoding", Mlp(Relu(), 66, ENCODED),
        _ratios(*((1, ratio) for ratio in (1.1, 1.15, 1.2, 1.25, 1.3, 1.4))), **_FAST,
    ),
    Method("tanh", Mlp(Tanh(), 2, BARE), _factors(1, 2, 4, 6, 8, 16), **_FAST),
    Method(
        "Gaussian", Mlp(Gaussian(), 2, BARE), _factors(4, 6, 8, 10, 14, 20),
        adam=(3e-3, 1e-2, 3e-2), muon=(5e-3, 1e-2, 2e-2),
    ),
    Method(
        "FINER", Mlp(Finer(), 2, BARE),
        tuple(Scale(w0, k) for w0, k in product((10, 15, 20), (_PLAIN, 3))), **_SLOW,
    ),
    Method(
        "sine + encoding", Mlp(Sine(), 66, ENCODED),
        _ratios((10, 1.2), (10, 1.3), (15, 1.2), (15, 1.3), (20, 1.25), (30, 1.4)), **_SLOW,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """What is measured. ``tuning_images`` come first in the set, the reported ones last."""

    methods: tuple[Method, ...] = METHODS
    num_steps: int = 1000
    points_per_step: int = 1024
    size: int = 128
    tuning_images: int = 2
    num_images: int = 8
    seed: int = 0
    images: str = "cid22, held back"


SMOKE = Config(
    methods=tuple(replace(METHODS[i], scales=METHODS[i].scales[:1]) for i in (0, 2)),
    num_steps=20, points_per_step=256, size=24, tuning_images=1, num_images=2, images="smoke",
)  # fmt: skip

OPTIMIZERS: Mapping[str, Adam | Muon] = {"Adam": Adam(0.0, final=0.0), "Muon": Muon(0.0)}
"""By name; both decay to 0 by cosine, and get their rate from each problem."""


class Trial(NamedTuple):
    """One choice, and its mean PSNR in dB on the tuning crops."""

    scale: Scale
    rate: float
    psnr: float


class Row(NamedTuple):
    """One fit that is reported. psnr in dB."""

    net: str
    optimizer: str
    image: str
    psnr: float


def trial_rates(method: Method, optimizer: str) -> tuple[float, ...]:
    """The learning rates that a net is tried at."""
    return {"Adam": method.adam, "Muon": method.muon}[optimizer]


def make_problem(config: Config, image: Image, scale: Scale, rate: float) -> Problem:
    """The fit of one crop."""
    height, width = image.shape[:2]
    features = encode(images.coordinates(height, width), scale.encoding)
    pixels = image.reshape(-1, 3).astype(np.float32) / np.float32(127.5) - 1
    tile = config.points_per_step
    points = fit.make_points(features, pixels, tile, -(-len(pixels) // tile), config.seed)
    numbers = (np.float32(n) for n in (rate, scale.factor, scale.first_bias))
    return Problem(points, np.ascontiguousarray(features.T), *numbers)


def fitted_psnrs(
    config: Config, net: Mlp, optimizer: str, crops: Sequence[Image],
    choices: Sequence[tuple[Scale, float]],
) -> np.ndarray:  # fmt: skip
    """PSNR in dB of every crop at every choice of scale and rate: (choices, crops)."""
    pairs = list(product(choices, crops))
    problems = [make_problem(config, crop, *choice) for choice, crop in pairs]
    values = fit_all(net, OPTIMIZERS[optimizer], config.num_steps, 1, problems, config.seed)
    psnrs = [
        metrics.psnr(crop, picture(one[0], *crop.shape[:2]))
        for (_, crop), one in zip(pairs, values, strict=True)
    ]
    return np.array(psnrs).reshape(len(choices), len(crops))


def tune(config: Config, method: Method, optimizer: str, crops: Sequence[Image]) -> list[Trial]:
    """Every choice, measured, best first."""
    choices = list(product(method.scales, trial_rates(method, optimizer)))
    psnrs = fitted_psnrs(config, method.net, optimizer, crops, choices).mean(axis=1)
    trials = [Trial(scale, rate, float(p)) for (scale, rate), p in zip(choices, psnrs, strict=True)]
    return sorted(trials, key=lambda trial: -trial.psnr)


# ---------------------------------------------------------------------------- the run


def run(
    config: Config, tuning: Mapping[str, Image], crops: Mapping[str, Image], root: Path
) -> Path:
    """Tune and measure every net under every optimiser; what is there already is kept."""
    folder = results.run_folder(root, config)
    note_provenance(folder)
    rows = read_rows(folder / "scores.csv", Row)
    path = folder / "trials.json"
    trials = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for method, optimizer in product(config.methods, OPTIMIZERS):
        if any((row.net, row.optimizer) == (method.name, optimizer) for row in rows):
            continue
        tried = tune(config, method, optimizer, list(tuning.values()))
        trials[f"{method.name}, {optimizer}"] = [trial_to_dict(trial) for trial in tried]
        results.write_json(path, trials)
        choice = [(tried[0].scale, tried[0].rate)]
        [psnrs] = fitted_psnrs(config, method.net, optimizer, list(crops.values()), choice)
        new = [Row(method.name, optimizer, *pair) for pair in zip(crops, psnrs, strict=True)]
        rows += new
        write_rows(folder / "scores.csv", rows)
        print(f"{method.name}, {optimizer}: {np.mean(psnrs):.2f} dB", flush=True)
    results.write_text(folder / "table.md", table(config, len(crops), rows, trials))
    return folder


def trial_to_dict(trial: Trial) -> dict[str, Any]:
    """A trial as JSON values."""
    scale = trial.scale
    return {
        "factor": scale.factor,
        "first_bias": scale.first_bias,
        "ratio": scale.ratio,
        "rate": trial.rate,
        "psnr": trial.psnr,
    }


def table(
    config: Config, num_images: int, rows: Sequence[Row], trials: Mapping[str, Sequence[Any]]
) -> str:
    """Mean PSNR of every net under both optimisers, and its distance from the sine's."""
    reference = config.methods[0].name
    parts = [
        f"# Activations, {num_images} crops of {config.size} x {config.size} ({config.images}), "
        f"{config.num_steps} steps of {config.points_per_step} pixels, seed {config.seed}",
        "Mean PSNR of the fitted pictures, rounded to uint8: no file, no quantisation. The "
        f"difference to the {reference} under the same optimiser is paired by crop, with a 95 % "
        "bootstrap interval over crops. Scale and rate were chosen on "
        f"{config.tuning_images} crops of other images, out of what trials.json lists. Edge: what "
        "was chosen at an end of what was tried, so that more of it might be better still.",
    ]
    header = [
        "net", "params", "factor", "first biases", "ratio", "rate", "edge", "PSNR dB",
        f"less the {reference}'s, dB",
    ]  # fmt: skip
    for optimizer in OPTIMIZERS:
        by_net = {method.name: _psnrs(rows, method.name, optimizer) for method in config.methods}
        lines = []
        for method in config.methods:
            best = trials[f"{method.name}, {optimizer}"][0]
            gap = paired(by_net[method.name], by_net[reference])
            lines.append(
                [
                    method.name,
                    str(method.net.num_params),
                    f"{best['factor']:g}",
                    f"{best['first_bias']:.2g}",
                    "none" if best["ratio"] is None else f"{best['ratio']:g}",
                    f"{best['rate']:g}",
                    ", ".join(edges(trials[f"{method.name}, {optimizer}"])),
                    f"{np.mean(list(by_net[method.name].values())):.2f}",
                    "" if method.name == reference else interval_text(gap),
                ]
            )
        parts += [f"## {optimizer}", markdown(header, lines)]
    return "\n\n".join(parts) + "\n"


def edges(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the best of some trials, the first, has at an end of the values tried, where there are
    three or more."""
    found = []
    for name in ("factor", "ratio", "rate"):
        tried = sorted({trial[name] for trial in trials if trial[name] is not None})
        if len(tried) >= 3 and trials[0][name] in (tried[0], tried[-1]):
            found.append(f"{'lowest' if trials[0][name] == tried[0] else 'highest'} {name}")
    return found


def _psnrs(rows: Sequence[Row], net: str, optimizer: str) -> dict[str, float]:
    return {row.image: row.psnr for row in rows if (row.net, row.optimizer) == (net, optimizer)}


# ---------------------------------------------------------------------------- tables


def paired(values: Mapping[str, float], reference: Mapping[str, float]) -> compare.Estimate:
    """The mean over images of the difference of two columns, with its interval."""
    gaps = np.array([values[image] - reference[image] for image in reference])
    return compare.estimate(lambda counts: float(counts @ gaps / counts.sum()), len(gaps))


def interval_text(estimate: compare.Estimate, spec: str = "+.2f") -> str:
    """An estimate with its interval, as a cell of a table."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{spec}}"
    return f"{estimate.value:{spec}} ({estimate.low:{spec}} to {estimate.high:{spec}})"


AnyRow = TypeVar("AnyRow", bound=tuple)


def read_rows(path: Path, kind: type[AnyRow]) -> list[AnyRow]:
    """The rows of a table of this kind of NamedTuple; none where there is no file."""
    if not path.exists():
        return []
    convert = get_type_hints(kind)
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    make: Callable[..., AnyRow] = kind
    return [make(**{name: convert[name](line[name]) for name in convert}) for line in lines]


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    """Write rows of one kind of NamedTuple as a table, whole or not at all."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(rows[0]._fields)
    writer.writerows(
        [repr(float(cell)) if isinstance(cell, float) else cell for cell in row] for row in rows
    )
    trees.write_atomic(path, buffer.getvalue().encode("utf-8"))


# ---------------------------------------------------------------------------- the command line


def centre(image: Image, size: int) -> Image:
    """The middle (size, size) of an image."""
    top, left = ((n - size) // 2 for n in image.shape[:2])
    return np.ascontiguousarray(image[top : top + size, left : left + size])


@dataclass(frozen=True)
class Options(common.Options):
    """The command line."""

    output: Path = ROOT / "results" / "activations"


def main(options: Options) -> Path:
    """Cut the crops, run; returns the run folder."""
    config = SMOKE if options.smoke else Config()
    cut = partial(centre, size=config.size)
    tuning = common.pictures(options, slice(config.tuning_images), cut)
    crops = common.pictures(options, slice(-config.num_images, None), cut)
    return common.show(run(config, tuning, crops, options.output))


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
