"""Numerics: images that diverge, images at the extremes, and the precision of decoding."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bases import tiny_base, tiny_grid_base
from conftest import photograph
from test_codecs import small_init

from inrjax import codecs, decoding, grids, images, modulation, overfit, trees
from inrjax.nets.latent_grid import synthesize
from inrjax.nets.siren import Siren, layer_name
from inrjax.optimizers import Adam, traced
from inrjax.types import Image

GOLDEN = Path(__file__).parent / "golden"
INIT, BASE = small_init(6), tiny_base()
STEPS, FEW = 8, {"rounding_steps": 4, "retraining_steps": 4}
POINTS = 64  # one tiling for images of all sizes: each plan is compiled once a batch
ADAM = Adam(1e-3)  # compiles in half of Muon's time, which meta-siren has
CODECS = {
    "coin": codecs.Coin(6, 2, STEPS, optimizer=ADAM, points_per_step=POINTS),
    "meta-siren": codecs.MetaSiren(6, STEPS, init=INIT, points_per_step=POINTS),
    "product-siren": codecs.ProductSiren(
        6, 8, 2, STEPS, 4, init=INIT, optimizer=ADAM, points_per_step=POINTS
    ),
    "strumpler-basic": codecs.StrumplerBasic(6, 8, STEPS, points_per_step=POINTS, **FEW),
    "strumpler-meta": codecs.StrumplerMeta(6, 7, STEPS, init=INIT, points_per_step=POINTS, **FEW),
    "modulated-siren": codecs.ModulatedSiren(BASE, inner_steps=2),
}
every_codec = pytest.mark.parametrize("name", CODECS)


def checkers(height: int, width: int) -> Image:
    """Black and white pixels in turn: the highest frequency that there is."""
    black = np.indices((height, width)).sum(0)[..., None] % 2 == 0
    return np.where(black, np.uint8(0), np.uint8(255)).repeat(3, axis=2)


EXTREMES = {
    "black": np.zeros((16, 16, 3), np.uint8),
    "white": np.full((16, 16, 3), 255, np.uint8),
    "checkers": checkers(16, 16),
    "noise": np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8),
    "1x1": photograph(1, 1),
    "tall": photograph(8000, 10),
    "wide": photograph(10, 8000),
}
EXTREMES["noise again"] = EXTREMES["noise"]


@cache
def extremes(name: str) -> dict[str, bytes]:
    """The streams of all extreme images, encoded as one batch."""
    streams = CODECS[name].encode(list(EXTREMES.values()))
    return dict(zip(EXTREMES, streams, strict=True))


# ---------------------------------------------------------------------------- extreme images


@every_codec
def test_extreme_images_encode_and_decode(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of them diverges, overflows or divides by zero
        streams = extremes(name)
        decoded = CODECS[name].decode(list(streams.values()))
    for image, image_hat in zip(EXTREMES.values(), decoded, strict=True):
        assert image_hat.shape == image.shape and image_hat.dtype == np.uint8


@every_codec
def test_encoded_twice_and_in_another_order_the_bytes_are_the_same(name: str) -> None:
    streams = extremes(name)
    turned = list(reversed(EXTREMES))
    again = CODECS[name].encode([EXTREMES[key] for key in turned])
    assert dict(zip(turned, again, strict=True)) == streams


def test_an_image_alone_has_the_bytes_that_it_has_in_a_batch() -> None:
    """Of the longest images; test_codecs.py tests it for every codec, with small ones."""
    assert CODECS["coin"].encode([EXTREMES["tall"]]) == [extremes("coin")["tall"]]


@every_codec
def test_equal_images_of_a_batch_have_equal_bytes(name: str) -> None:
    """The random numbers of a fit depend on the seed, not on its place in the batch."""
    assert extremes(name)["noise"] == extremes(name)["noise again"]


# ---------------------------------------------------------------------------- float32, float64


def exact_pixels(net: Siren, params: Any, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The pixels (len(y), len(x), 3) of a net in float64, straight from its definition."""
    grid = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float64)
    h = grid
    if net.encoding is not None:
        angular = np.pi * net.encoding.ratio ** np.arange(net.encoding.num_frequencies)
        angles = (grid[:, None] * angular[:, None]).reshape(len(grid), -1)
        h = np.concatenate([grid, np.sin(angles), np.cos(angles)], axis=1)
    for i in range(net.depth + 1):
        layer = {key: np.asarray(leaf, np.float64) for key, leaf in params[layer_name(i)].items()}
        h = h @ layer["weight"].T + layer["bias"]
        h = np.sin(net.w0 * h) if i < net.depth else h
    levels = np.floor(127.5 * (h + 1) + 0.5)
    return np.clip(levels, 0, 255).reshape(len(y), len(x), 3)


def largest_difference(monkeypatch: pytest.MonkeyPatch, decode: Callable[[], Any]) -> float:
    """Between the pixels that ``decode`` computes and those of float64, in levels."""
    found: list[float] = []
    plain = decoding.pixels

    def compared(net: Siren, params: Any, y: np.ndarray, x: np.ndarray) -> Image:
        image = plain(net, params, y, x)
        found.append(np.abs(image - exact_pixels(net, params, y, x)).max())
        return image

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "pixels", compared)
        decode()
    assert found
    return max(found)


OF_NETWORKS = [p for p in sorted(GOLDEN.glob("*.inr")) if "latent-grid" not in p.stem]


@pytest.mark.parametrize("path", OF_NETWORKS, ids=lambda path: path.stem)
def test_float32_decodes_as_float64_within_a_level(
    monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    data = path.read_bytes()
    assert largest_difference(monkeypatch, lambda: codecs.decode_stream(data, BASE)) <= 1


def convolved(values: np.ndarray, kernel: np.ndarray, _: Any) -> np.ndarray:
    """As a decoder of latent grids convolves, term by term in float64."""
    reach, (height, width, _) = kernel.shape[0] // 2, values.shape
    padded = np.pad(values, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    return sum(
        padded[i : i + height, j : j + width] @ kernel[i, j]
        for i, j in np.ndindex(*kernel.shape[:2])
    )


@pytest.mark.parametrize("step", [12, 36])
def test_latents_in_float32_are_the_pixels_of_float64_within_a_level(step: int) -> None:
    base, rng = tiny_grid_base(), np.random.default_rng(0)
    net, (height, width) = base.net, (37, 90)
    shapes = net.latent_shapes(height, width)
    latents = [np.rint(rng.laplace(0, 2, shape)).astype(np.int64) for shape in shapes]
    params = trees.from_leaves(
        {path: np.asarray(leaf, np.float64) for path, leaf in trees.leaves(base.synthesis)}
    )
    values = [own.astype(np.float64) for own in latents]
    sizes = net.sizes(height, width)
    exact = synthesize(net, params, values, float(step), sizes, np, convolved, np.sin)
    found = np.empty((height, width, 3), int)
    for place, pixels in grids.render(base, latents, step, height, width):
        found[place] = images.to_uint8(pixels)
    assert np.abs(found - images.to_uint8(exact[:height, :width])).max() <= 1


@every_codec
def test_extreme_images_decode_as_in_float64_within_a_level(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for key in ("tall", "1x1", "checkers"):
        stream = extremes(name)[key]
        assert largest_difference(monkeypatch, lambda s=stream: CODECS[name].decode([s])) <= 1


# ---------------------------------------------------------------------------- divergence


@traced("learning_rate")
@dataclass(frozen=True)
class Fragile:
    """Adam that fails, as a rate that is too high does, for an image whose loss is above a limit
    while the learning rate is."""

    learning_rate: float
    most_loss: float
    most_rate: float

    def build(self, num_steps: int) -> optax.GradientTransformationExtraArgs:
        """The optimiser for a fit of this many steps."""
        adam = optax.adam(self.learning_rate)
        too_fast = self.learning_rate > self.most_rate

        def update(grads, state, params=None, *, value, **_):
            updates, state = adam.update(grads, state, params)
            fails = too_fast & (value > self.most_loss)
            return jax.tree.map(lambda u: jnp.where(fails, jnp.nan, u), updates), state

        return optax.GradientTransformationExtraArgs(adam.init, update)


GREY = np.full((16, 16, 3), 128, np.uint8)
BATCH = [GREY, EXTREMES["checkers"], GREY[:8]]  # the error of the second is far above the others'
RATE = 1e-3


def fragile(rate: float) -> codecs.Coin:
    """A codec whose fits of the second image of `BATCH` fail at rates above `RATE` / 2."""
    return replace(CODECS["coin"], optimizer=Fragile(rate, 0.15, RATE / 2))


def test_one_image_that_diverges_is_retried_and_leaves_the_others_alone() -> None:
    with pytest.warns(UserWarning, match="diverged") as caught:
        streams = fragile(RATE).encode(BATCH)
    assert [str(warning.message) for warning in caught] == [
        "the fit of image 2 of 3 diverged at a learning rate of 1.0e-03: it is tried again at "
        "2.5e-04"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [streams[0], streams[2]] == fragile(RATE).encode([BATCH[0], BATCH[2]])
        assert [streams[1]] == fragile(RATE / 4).encode([BATCH[1]])


def test_an_image_that_diverges_at_every_rate_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overfit, "RETRIES", 0)  # each rate is another program to compile
    with pytest.raises(ValueError, match=r"image 2 of 3 diverged 1 times.* 1.0e-03: set a lower"):
        fragile(RATE).encode(BATCH)


@pytest.fixture
def failing_patches(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes the latents of white patches NaN while the first rate is above a limit."""
    plain = modulation._program(jax.default_backend())

    def install(most_rate: float) -> None:
        def program(net, steps, learned, coords, pixels, weights):
            latents = np.array(plain(net, steps, learned, coords, pixels, weights))
            too_fast = np.exp(learned.log_rates[0]) > most_rate
            latents[(pixels.min(axis=(1, 2)) == 255) & too_fast] = np.nan
            return latents

        monkeypatch.setattr(modulation, "_program", lambda platform: program)

    return install


PATCHED = [EXTREMES["noise"], EXTREMES["white"], EXTREMES["black"]]


def latents_of(images: Sequence[Image], rates: float) -> list[np.ndarray]:
    base = replace(BASE, rates=np.full(BASE.latent_dim, rates, np.float32))
    return modulation.fit_latents(base, [modulation.cut(i, base.patch) for i in images], 2)


def test_latents_that_diverge_are_fitted_again_at_a_quarter_of_the_rates(failing_patches) -> None:
    healthy, slower = latents_of(PATCHED, 0.5), latents_of(PATCHED, 0.125)
    failing_patches(0.2)
    with pytest.warns(UserWarning, match=r"image 2 of 3 diverged.* at 0.25 of the base's rates"):
        found = latents_of(PATCHED, 0.5)
    np.testing.assert_array_equal(found[0], healthy[0])
    np.testing.assert_array_equal(found[2], healthy[2])
    np.testing.assert_allclose(found[1], slower[1], rtol=1e-6)


def test_latents_that_diverge_at_every_rate_are_named(failing_patches) -> None:
    failing_patches(0.0)
    with (
        pytest.warns(UserWarning, match="image 2 of 3"),
        pytest.raises(ValueError, match="image 2 of 3 diverged 3 times"),
    ):
        latents_of(PATCHED, 0.5)


@pytest.mark.parametrize("name", ["coin", "modulated-siren"])
def test_a_fit_that_no_file_can_hold_names_its_image(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is finite, but beyond float16 or the grid: found when the file is made."""
    codec, made = CODECS[name], []

    def pack(self, image, fitted):
        made.append(image)
        if len(made) == 2:
            raise ValueError("a weight does not fit")
        return b""

    monkeypatch.setattr(type(codec), "pack", pack)
    with pytest.raises(ValueError, match=f"image 2 of {len(EXTREMES)}: a weight does not fit"):
        codec.encode(list(EXTREMES.values()))
