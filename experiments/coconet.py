"""Does a coordinate network denoise and enlarge pictures better than classic filters?

Claim (CocoNet, Bricman and Ionescu 2018, arXiv:1805.11357): yes, better than bilateral and median
filtering, and than bicubic interpolation.
Command: python -m experiments.coconet --data DIR   (DIR holds cid22/; or set INRJAX_DATA)
Minutes: about 10 of one CPU core. A stopped run goes on: rows that exist are kept.
Expected: the table in results/coconet/<config hash>/table.md.

Thumbnails of 64 x 64 pixels are made of held-back cid22 photographs by averaging 8 x 8 pixels.
Denoising: Gaussian noise of standard deviation 20 of 255 is added, rounded to uint8; a net is
fitted to the noisy picture and stopped early. Enlarging: 2 x 2 pixels are averaged, a net is fitted
to the 32 x 32 pixels and asked for 64 x 64. Filter parameters, learning rates, scales and the
number of steps are chosen by mean PSNR on thumbnails of other images, for each task; PSNR is of
uint8 pictures against the clean thumbnail. No file is written.

CocoNet is what its authors' code (github.com/paubric/python-fuse-coconet) says: six inputs, in
pixels (x, y, width - x, height - y, the distance to the centre, and the angle atan2(y, x)), ten
layers of 100 tanh neurons, a sigmoid, mean squared error, Adam at 1e-3, batches of 128 pixels.
First weights are uniform in +-0.05, others are Glorot's, biases 0. Different here: pixels are
shuffled once and batches every epoch, other learning rates are tried too, and an enlarged picture
is asked for at its pixels' true centres (the code shifts them by a quarter of a pixel).
``--smoke``: two tiny pictures, a few steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import scipy.ndimage
import skimage.restoration
import tyro

from experiments import activations, common
from experiments.activations import Mlp, Problem, Sine, Tanh
from experiments.kodak_rd import ROOT, markdown, note_provenance
from inrjax import fit, images, metrics, plots, results
from inrjax.nets.siren import Encoding, layer_name
from inrjax.optimizers import Adam
from inrjax.types import Image, Params

# ---------------------------------------------------------------------------- tasks


class Pair(NamedTuple):
    """What a method is given, and the clean thumbnail that it should return. uint8 images."""

    given: Image
    wanted: Image


def shrink(image: Image, factor: int) -> Image:
    """Means over ``factor`` x ``factor`` pixels, rounded; its sides are multiples of factor."""
    height, width = image.shape[:2]
    small = (width // factor, height // factor)
    return np.asarray(PIL.Image.fromarray(image).resize(small, PIL.Image.Resampling.BOX))


def add_noise(image: Image, sigma: float, seed: Any) -> Image:
    """Gaussian noise of standard deviation ``sigma`` of 255, independent in pixels and channels."""
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return images.to_uint8((image + noise) / 255)


# ---------------------------------------------------------------------------- filters

Filter: TypeAlias = Callable[[Image], Image]


def _bilateral(image: Image, sigma_color: float, sigma_spatial: float) -> Image:
    smooth = skimage.restoration.denoise_bilateral(
        images.to_float(image),
        sigma_color=sigma_color,
        sigma_spatial=sigma_spatial,
        channel_axis=-1,
    )
    return images.to_uint8(smooth)


def _median(image: Image, size: int) -> Image:
    return scipy.ndimage.median_filter(image, size=(size, size, 1))


def _total_variation(image: Image, weight: float) -> Image:
    smooth = skimage.restoration.denoise_tv_chambolle(
        images.to_float(image), weight=weight, channel_axis=-1
    )
    return images.to_uint8(smooth)


def _bicubic(image: Image) -> Image:
    size = (2 * image.shape[1], 2 * image.shape[0])
    return np.asarray(PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.BICUBIC))


def _same(image: Image) -> Image:
    return image


class Task(NamedTuple):
    """What a method is given of a clean thumbnail, by the thumbnail and the config, and the filters
    that it is compared with: method -> parameters -> filter, the nets' reference first."""

    give: Callable[[Image, Config], Image]
    filters: Mapping[str, Mapping[str, Filter]]


def _noisy(thumbnail: Image, config: Config) -> Image:
    # The noise depends on the thumbnail's own pixels and the config's seed alone.
    return add_noise(thumbnail, config.sigma, [config.seed, int(thumbnail.sum())])


def _small(thumbnail: Image, config: Config) -> Image:
    return shrink(thumbnail, 2)


TASKS: Mapping[str, Task] = {
    "denoising": Task(
        _noisy,
        {
            "bilateral": {
                f"sigma_color {c:g}, sigma_spatial {s:g}": partial(
                    _bilateral, sigma_color=c, sigma_spatial=s
                )
                for c, s in product((0.02, 0.03, 0.05, 0.07, 0.1, 0.15), (0.7, 1, 1.5, 2, 4))
            },
            "median": {f"size {size}": partial(_median, size=size) for size in (3, 5)},
            "total variation": {
                f"weight {w:g}": partial(_total_variation, weight=w)
                for w in (0.01, 0.02, 0.03, 0.05, 0.07, 0.1)
            },
            "nothing": {"": _same},
        },
    ),
    "enlarging": Task(_small, {"bicubic": {"": _bicubic}}),
}
"""By name. Total variation (Chambolle 2004) is none of the paper's filters, but as simple."""


# ---------------------------------------------------------------------------- nets


class Inputs(Protocol):
    """What a net sees of places in a picture."""

    def __call__(self, shape: tuple[int, int], given: tuple[int, int]) -> np.ndarray:
        """Features (n, in_dim) of a grid of ``shape`` pixels over a picture of ``given`` pixels."""
        ...


@dataclass(frozen=True)
class CocoInputs:
    """CocoNet's six, in pixels of the given picture (see the top of this file)."""

    def __call__(self, shape: tuple[int, int], given: tuple[int, int]) -> np.ndarray:
        unit = (images.coordinates(*shape) + 1) / 2  # 0 and 1 at the picture's edges
        sides = np.array(given, np.float32)
        place = unit * sides
        away = place - sides / 2
        distance, angle = np.hypot(*away.T), np.arctan2(place[:, 1], place[:, 0])
        return np.column_stack([place, sides - place, distance, angle]).astype(np.float32)


@dataclass(frozen=True)
class CentredInputs:
    """The coordinates in [-1, 1], with an encoding of 16 frequencies where there is a ratio."""

    ratio: float | None = None

    def __call__(self, shape: tuple[int, int], given: tuple[int, int]) -> np.ndarray:
        encoding = None if self.ratio is None else Encoding(16, self.ratio)
        return activations.encode(images.coordinates(*shape), encoding)


@dataclass(frozen=True)
class CocoNet(Mlp):
    """CocoNet: Keras' initial params, and a sigmoid, moved to [-1, 1] as our pixels are."""

    def init(self, key: jax.Array, factor: Any, first_bias: Any) -> Params:
        """First weights uniform in +-0.05, Glorot's after them, biases 0."""
        params = super().init(key, factor, 0.0)
        first = layer_name(0)
        bound = self.activation.bound(self.in_dim, self.width, True, factor)
        return {
            name: {
                "weight": layer["weight"] * (0.05 / bound if name == first else 1),
                "bias": jnp.zeros_like(layer["bias"]),
            }
            for name, layer in params.items()
        }

    def apply_columns(self, params: Params, features: jax.Array, factor: Any) -> jax.Array:
        """The values (3, n) in [-1, 1] at features (6, n)."""
        return jnp.tanh(super().apply_columns(params, features, factor) / 2)


@dataclass(frozen=True)
class Method:
    """A net with the inputs, the factors of its activation and the learning rates of Adam that it
    is tried at, and after how many steps it may be stopped: ``every``, twice that, ..."""

    name: str
    net: Mlp
    inputs: tuple[CocoInputs, ...] | tuple[CentredInputs, ...]
    factors: tuple[float, ...]
    rates: tuple[float, ...]
    every: int
    count: int

    def trials(self) -> list[tuple[int, float, float]]:
        """Every (place in ``inputs``, factor, rate)."""
        return list(product(range(len(self.inputs)), self.factors, self.rates))


_ENCODED = tuple(CentredInputs(ratio) for ratio in (1.1, 1.2, 1.4))

METHODS = (
    Method("CocoNet", CocoNet(Tanh(), 6, 100, 10), (CocoInputs(),), (1.0,), (3e-4, 1e-3), 250, 24),
    Method(
        "SIREN", Mlp(Sine(), 2, 100, 10), (CentredInputs(),), (10.0, 20.0), (3e-5, 1e-4), 50, 30
    ),
    Method(
        "SIREN, small", Mlp(Sine(), 2, 41), (CentredInputs(),), (10.0, 20.0, 30.0),
        (1e-4, 3e-4, 1e-3), 100, 40,
    ),
    Method(
        "SIREN + encoding", Mlp(Sine(), 66, 32), _ENCODED, (10.0, 30.0), (1e-4, 3e-4, 1e-3), 100, 30
    ),
)  # fmt: skip
"""The last is MetaSiren's net at width 32, whose own ratio is 1.4 and factor 30."""


@dataclass(frozen=True)
class Config:
    """What is measured. ``tuning_images`` come first in the set, the reported ones last."""

    methods: tuple[Method, ...] = METHODS
    sigma: float = 20.0
    size: int = 64
    points_per_step: int = 128
    tuning_images: int = 3
    num_images: int = 24
    seed: int = 0
    images: str = "cid22, held back"


SMOKE = Config(
    methods=(
        Method("CocoNet", CocoNet(Tanh(), 6, 8, 2), (CocoInputs(),), (1.0,), (1e-3,), 5, 3),
        Method("encoded", Mlp(Sine(), 66, 8, 2), (CentredInputs(1.4),), (30.0,), (1e-3,), 5, 3),
    ),
    size=16, points_per_step=64, tuning_images=1, num_images=2, images="smoke",
)  # fmt: skip


# ---------------------------------------------------------------------------- measuring


class Choice(NamedTuple):
    """What was chosen for a method: text to show, its mean PSNR in dB on the tuning thumbnails,
    and, of a net, the place of its inputs, its factor, rate and steps, and that PSNR after every
    stretch of steps."""

    text: str
    psnr: float
    inputs: int = 0
    factor: float = 0.0
    rate: float = 0.0
    steps: int = 0
    curve: tuple[float, ...] = ()


class Row(NamedTuple):
    """One picture that is reported. psnr in dB."""

    task: str
    method: str
    image: str
    psnr: float


def choose_filter(filters: Mapping[str, Filter], pairs: Sequence[Pair]) -> Choice:
    """The parameters of the highest mean PSNR."""
    psnrs = {
        text: float(np.mean([metrics.psnr(wanted, apply(given)) for given, wanted in pairs]))
        for text, apply in filters.items()
    }
    text = max(psnrs, key=lambda text: psnrs[text])
    return Choice(text, psnrs[text])


def make_problem(config: Config, inputs: Inputs, pair: Pair, factor: float, rate: float) -> Problem:
    """The fit of what is given, asked for the size of what is wanted."""
    given = pair.given.shape[:2]
    features, queries = (inputs(one.shape[:2], given) for one in pair)
    pixels = pair.given.reshape(-1, 3).astype(np.float32) / np.float32(127.5) - 1
    tile = config.points_per_step
    points = fit.make_points(features, pixels, tile, -(-len(pixels) // tile), config.seed)
    numbers = (np.float32(n) for n in (rate, factor, 2**-0.5))
    return Problem(points, np.ascontiguousarray(queries.T), *numbers)


def net_psnrs(
    config: Config, method: Method, pairs: Sequence[Pair], trial: tuple[int, float, float],
    every: int, count: int,
) -> np.ndarray:  # fmt: skip
    """PSNR in dB of every pair after every stretch of steps: (pairs, count)."""
    place, factor, rate = trial
    inputs = method.inputs[place]
    problems = [make_problem(config, inputs, pair, factor, rate) for pair in pairs]
    fitted = activations.fit_all(method.net, Adam(0.0), every, count, problems, config.seed)
    return np.array(
        [
            [
                metrics.psnr(pair.wanted, activations.picture(values, *pair.wanted.shape[:2]))
                for values in stretches
            ]
            for pair, stretches in zip(pairs, fitted, strict=True)
        ]
    )


def choose_net(config: Config, method: Method, pairs: Sequence[Pair]) -> Choice:
    """Inputs, factor, rate and number of steps of the highest mean PSNR."""
    found = []
    for trial in method.trials():
        psnrs = net_psnrs(config, method, pairs, trial, method.every, method.count)
        curve = psnrs.mean(axis=0)
        best = int(curve.argmax())
        steps = (best + 1) * method.every
        place, factor, rate = trial
        ratio = getattr(method.inputs[place], "ratio", None)
        text = f"factor {factor:g}, rate {rate:g}, {steps} steps"
        text = text if ratio is None else f"ratio {ratio:g}, {text}"
        found.append(Choice(text, float(curve[best]), *trial, steps, tuple(map(float, curve))))
    return max(found, key=lambda choice: choice.psnr)


# ---------------------------------------------------------------------------- the run


def run(
    config: Config, tuning: Mapping[str, Image], thumbnails: Mapping[str, Image], root: Path
) -> Path:
    """Choose and measure every method at both tasks; what is there already is kept."""
    folder = results.run_folder(root, config)
    note_provenance(folder)
    rows = activations.read_rows(folder / "scores.csv", Row)
    path = folder / "choices.json"
    chosen = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for task, (give, filters) in TASKS.items():
        choosing, reported = (
            {name: Pair(give(image, config), image) for name, image in part.items()}
            for part in (tuning, thumbnails)
        )
        for name, choose, measure in _entries(config, filters):
            if any((row.task, row.method) == (task, name) for row in rows):
                continue
            choice = choose(list(choosing.values()))
            chosen[f"{task}, {name}"] = choice._asdict()
            results.write_json(path, chosen)
            psnrs = measure(list(reported.values()), choice)
            rows += [Row(task, name, *pair) for pair in zip(reported, psnrs, strict=True)]
            activations.write_rows(folder / "scores.csv", rows)
            print(f"{task}, {name}: {np.mean(psnrs):.2f} dB, {choice.text}", flush=True)
    results.write_text(folder / "table.md", table(config, len(thumbnails), rows, chosen))
    plots.save(draw(config, chosen), folder / "steps")
    return folder


class Entry(NamedTuple):
    """A filter or a net: how to choose its parameters on pairs, and PSNRs of pairs under them."""

    name: str
    choose: Callable[[Sequence[Pair]], Choice]
    measure: Callable[[Sequence[Pair], Choice], Sequence[float]]


def _entries(config: Config, filters: Mapping[str, Mapping[str, Filter]]) -> list[Entry]:
    classic = [
        Entry(name, partial(choose_filter, tried), partial(_measure_filter, tried))
        for name, tried in filters.items()
    ]
    nets = [
        Entry(
            method.name,
            partial(choose_net, config, method),
            partial(_measure_net, config, method),
        )
        for method in config.methods
    ]
    return classic + nets


def _measure_filter(
    filters: Mapping[str, Filter], pairs: Sequence[Pair], choice: Choice
) -> list[float]:
    apply = filters[choice.text]
    return [metrics.psnr(wanted, apply(given)) for given, wanted in pairs]


def _measure_net(
    config: Config, method: Method, pairs: Sequence[Pair], choice: Choice
) -> list[float]:
    trial = (choice.inputs, choice.factor, choice.rate)
    psnrs = net_psnrs(config, method, pairs, trial, choice.steps, 1)
    return [float(psnr) for psnr in psnrs[:, 0]]


def table(config: Config, num_images: int, rows: Sequence[Row], chosen: Mapping[str, Any]) -> str:
    """Mean PSNR of every method at both tasks, and its distance from the task's first filter."""
    params = {method.name: f"{method.net.num_params}" for method in config.methods}
    parts = [
        f"# CocoNet's tasks, {num_images} thumbnails of {config.size} x {config.size} "
        f"({config.images}), seed {config.seed}",
        f"Denoising: Gaussian noise, sigma {config.sigma:g}; enlarging: {config.size // 2} to "
        f"{config.size} pixels. Mean PSNR of uint8 pictures against the clean thumbnail. "
        "Differences are paired by picture, with 95 % bootstrap intervals over pictures. "
        f"What is under 'chosen' was chosen on {config.tuning_images} thumbnails of other images.",
    ]
    for task, (_, filters) in TASKS.items():
        reference = next(iter(filters))
        columns = {
            name: {row.image: row.psnr for row in rows if (row.task, row.method) == (task, name)}
            for name in [*filters, *params]
        }
        lines = []
        for name, column in columns.items():
            gaps = activations.paired(column, columns[reference])
            ahead = sum(column[image] > psnr for image, psnr in columns[reference].items())
            compared = (activations.interval_text(gaps), f"{ahead} of {num_images}")
            lines.append(
                [
                    name,
                    params.get(name, ""),
                    chosen[f"{task}, {name}"]["text"],
                    f"{np.mean(list(column.values())):.2f}",
                    *(("", "") if name == reference else compared),
                ]
            )
        header = ["method", "params", "chosen", "PSNR dB", f"less {reference}'s, dB", "ahead of it"]
        parts += [f"## {task.capitalize()}", markdown(header, lines)]
    return "\n\n".join(parts) + "\n"


def draw(config: Config, chosen: Mapping[str, Any]) -> Any:
    """PSNR on the tuning thumbnails by number of steps, for each task: where to stop."""
    style = plots.SCREEN
    figure = style.figure(style.double, 0.4)
    known = plots.looks([method.name for method in config.methods], {})
    handles: list[Any] = []
    for axes, (task, (_, filters)) in zip(figure.subplots(1, 2), TASKS.items(), strict=True):
        handles = [
            plots.draw_curve(
                axes,
                [
                    ((i + 1) * method.every, psnr)
                    for i, psnr in enumerate(chosen[f"{task}, {method.name}"]["curve"])
                ],
                known[method.name],
            )
            for method in config.methods
        ]
        reference = next(iter(filters))
        level = chosen[f"{task}, {reference}"]["psnr"]
        handles.append(axes.axhline(level, color="0.4", linestyle="--", label="the filter"))
        axes.set(title=f"{task} ({reference}: {level:.1f} dB)", xlabel="steps", xscale="log")
        axes.grid()
    figure.supylabel("PSNR on the tuning thumbnails (dB)", fontsize=style.font)
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


# ---------------------------------------------------------------------------- the command line


@dataclass(frozen=True)
class Options(common.Options):
    """The command line."""

    output: Path = ROOT / "results" / "coconet"


def main(options: Options) -> Path:
    """Make the thumbnails, run; returns the run folder."""
    config = SMOKE if options.smoke else Config()

    def thumbnail(image: Image) -> Image:
        if options.smoke:  # a crop is too small to be shrunk
            return activations.centre(image, config.size)
        return shrink(image, image.shape[0] // config.size)

    tuning = common.pictures(options, slice(config.tuning_images), thumbnail)
    thumbnails = common.pictures(options, slice(-config.num_images, None), thumbnail)
    return common.show(run(config, tuning, thumbnails, options.output))


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
