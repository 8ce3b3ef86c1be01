"""Latent grids: wavelet, context models in integers, coder, fit, base files, and training."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bases import tiny_grid_base
from conftest import photograph

from experiments import train_grid
from inrjax import bitstream, context, decoding, entropy, gridfit, grids, gridtrain, images, trees
from inrjax.codecs import LatentGrid, decode_stream, describe
from inrjax.gridfit import Shared
from inrjax.grids import GridBase
from inrjax.nets.latent_grid import COLOUR, LatentGridNet, analyze, step_size, synthesize
from inrjax.types import BitstreamError

BASE = tiny_grid_base()
NET = BASE.net
SHARED = Shared(**BASE.approximate)
SIGNS = tiny_grid_base(odd_width=3)
"""Its context models see signs, as those of `BASE` do not."""

BOTH = pytest.mark.parametrize("base", [BASE, SIGNS], ids=["blind", "signs"])


def random_latents(
    net: LatentGridNet, height: int, width: int, reach: float, seed: int = 0
) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = net.latent_shapes(height, width)
    return [np.rint(rng.laplace(0, reach, shape)).astype(np.int64) for shape in shapes]


def wavelet_latents(image: np.ndarray, step: int) -> list[np.ndarray]:
    coefficients = analyze(NET, image.astype(np.float32) / 255)
    return [np.rint(own / step_size(step)).astype(np.int64) for own in coefficients]


# ---------------------------------------------------------------------------- net and wavelet


def test_steps_double_every_eight() -> None:
    np.testing.assert_allclose(step_size(np.arange(8, 64)), 2 * step_size(np.arange(56)))
    assert (step_size(0), step_size(40)) == (1 / 32, 1.0)


def test_grids_halve_rounded_up() -> None:
    net = LatentGridNet(3)
    assert net.sizes(33, 65) == [(33, 65), (17, 33), (9, 17), (5, 9)]
    assert net.latent_shapes(33, 65) == [(17, 33, 3), (9, 17, 9), (5, 9, 9), (5, 9, 3)]
    assert LatentGridNet(7).latent_shapes(1, 1)[-1] == (1, 1, 3)


@pytest.mark.parametrize(
    "wrong",
    [{"levels": 0}, {"levels": 8}, {"width": 0}, {"context_width": 0}, {"odd_width": -1}],
)
def test_nets_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        LatentGridNet(**wrong)


def linear_psnr(image: np.ndarray, levels: int, margin: int) -> float:
    """Of analysis and synthesis by the start of training, in dB, ``margin`` pixels inside."""
    net = LatentGridNet(levels, width=2, context_width=2)
    synthesis: Any = jax.device_get(gridtrain.initial(net, 0).synthesis)
    latents = [(own / step_size(10)).astype(np.float32) for own in analyze(net, image)]
    sizes = net.sizes(*image.shape[:2])
    image_hat = synthesize(net, synthesis, latents, 10, sizes, np, grids._convolve, np.sin)
    error = (image_hat[: image.shape[0], : image.shape[1]] - image) ** 2
    inside = error[margin : image.shape[0] - margin, margin : image.shape[1] - margin]
    return float(-10 * np.log10(inside.mean()))


@pytest.mark.parametrize("size", [(64, 64), (49, 63), (50, 75)])
def test_training_starts_at_the_wavelet_which_loses_nothing(size: tuple[int, int]) -> None:
    """Grey pictures: the finest colour details are not sent. Filters at the border see repeated
    values on both sides, which is not the wavelet's own extension: a little is lost there."""
    grey = np.repeat(photograph(*size)[..., :1], 3, axis=-1) / 255
    assert linear_psnr(grey, levels=1, margin=8) > 90
    assert linear_psnr(grey, levels=2, margin=14) > 90
    assert linear_psnr(grey, levels=2, margin=0) > 30


def test_colours_are_an_orthonormal_basis() -> None:
    np.testing.assert_allclose(COLOUR @ COLOUR.T, np.eye(3), atol=1e-12)


def test_a_constant_picture_has_no_details() -> None:
    *details, low = analyze(NET, np.broadcast_to([0.2, 0.5, 0.9], (19, 23, 3)))
    assert all(np.abs(own).max() < 1e-9 for own in details)
    np.testing.assert_allclose(low, np.broadcast_to(low[0, 0], low.shape))


# ---------------------------------------------------------------------------- context models


def test_magnitudes_rise_and_are_exact_at_powers_of_two() -> None:
    values = context.magnitude(np, np.arange(context.LARGEST + 10))
    assert (np.diff(values[: context.LARGEST + 1]) >= 0).all() and values[0] == 0
    assert (values[context.LARGEST :] == values[context.LARGEST]).all()
    powers = np.arange(15)
    np.testing.assert_array_equal(values[2**powers - 1], 64 * powers)
    exact = 64 * np.log2(1 + np.arange(context.LARGEST + 1))
    assert np.abs(values[: context.LARGEST + 1] - exact).max() < 6.6  # the chord's most, and 1
    np.testing.assert_array_equal(values, np.rint(values))
    np.testing.assert_array_equal(context.magnitude(np, -np.arange(50)), values[:50])


def slow_levels(weights: Any, features: Sequence[int]) -> list[int]:
    """`context.levels` of one row, in Python's integers."""

    def layer(row: Sequence[int], number: int) -> list[int]:
        matrix = [[int(w) for w in line] for line in weights[f"weight{number}"]]
        bias = [int(b) for b in weights[f"bias{number}"]]
        return [
            sum(x * line[o] for x, line in zip(row, matrix, strict=True)) + b
            for o, b in enumerate(bias)
        ]

    hidden = [min(max(value >> 8, 0), 1 << 16) for value in layer(features, 1)]
    hidden = [min(max(value >> 10, 0), 1 << 16) for value in layer(hidden, 2)]
    return [min(max((value + (1 << 15) >> 16) + 16, 0), 63) for value in layer(hidden, 3)]


def extreme_weights(
    rng: np.random.Generator, name: str, share: float, net: LatentGridNet = NET
) -> dict[str, np.ndarray]:
    """Integers up to a share of the largest that `context.check_integers` lets pass."""
    weights = {}
    for leaf, shape in context.shapes(net)[name].items():
        limit = int(share * (1 << (40 if "bias" in leaf else 17)))
        weights[leaf] = rng.integers(-limit, limit + 1, shape).astype(np.float64)
    assert context.check_integers(weights)
    return weights


@pytest.mark.parametrize("name", context.context_names(NET))
@pytest.mark.parametrize("share", [1.0, 1e-2, 1e-4, None])
def test_levels_are_those_of_integers_in_any_order(name: str, share: float | None) -> None:
    rng = np.random.default_rng(0)
    weights = BASE.exact[name] if share is None else extreme_weights(rng, name, share)
    count = context.num_features(NET, name)
    features = rng.integers(0, 897, (40, count))
    features[:, -1] = rng.integers(-256, 249, 40)
    features[:4] = [[0], [896], [896], [0]]
    levels = context.levels(weights, features.astype(np.float64))
    assert levels.tolist() == [slow_levels(weights, row) for row in features.tolist()]
    order = rng.permutation(count)
    turned = {**weights, "weight1": weights["weight1"][order]}
    np.testing.assert_array_equal(
        context.levels(turned, features[:, order].astype(np.float64)), levels
    )


@pytest.mark.parametrize("name", context.context_names(NET))
def test_float_models_are_within_a_quarter_octave_of_the_integers(name: str) -> None:
    rng = np.random.default_rng(0)
    features = rng.integers(0, 400, (500, context.num_features(NET, name))).astype(np.float64)
    features[:250] *= 0.1
    features = np.rint(features)
    exponents = context.scale_exponents(np, SHARED.context[name], features)
    levels = context.levels(BASE.exact[name], features)
    assert np.abs(levels - np.clip(4 * exponents + 16, 0, 63)).max() <= 1
    assert len(np.unique(levels)) > 3


def slow_logits(weights: Any, features: Sequence[int], signs: Sequence[int]) -> list[list[int]]:
    """`context.exact_logits` of one row, in Python's integers: zero, sign, up, down, tail of three
    bands."""

    def times(row: Sequence[int], leaf: str) -> list[int]:
        matrix = [[int(w) for w in line] for line in weights[leaf]]
        return [
            sum(x * w for x, w in zip(row, line, strict=True)) for line in zip(*matrix, strict=True)
        ]

    def plus(row: Sequence[int], leaf: str) -> list[int]:
        return [x + int(b) for x, b in zip(row, weights[leaf], strict=True)]

    def within(value: int, low: int, high: int) -> int:
        return min(max(value, low), high)

    def towards_0(value: int, bits: int, more: int = 0) -> int:
        return (abs(value) + more >> bits) * (1 if value > 0 else -1)

    even = [within(x >> 8, 0, 1 << 16) for x in plus(times(features, "weight1"), "bias1")]
    turned = [within(x, -256, 256) for x in times(signs, "odd1")]
    folded = times([abs(x) for x in turned], "fold")
    sums = [x + y for x, y in zip(times(even, "weight2"), folded, strict=True)]
    even = [within(x >> 10, 0, 1 << 16) for x in plus(sums, "bias2")]
    gates = [x >> 10 for x in plus(times(even, "gate"), "gate_bias")]
    gates = [within(gate, -(1 << 16), 1 << 16) for gate in gates]
    weighed = [towards_0(x * gate, 8) for x, gate in zip(turned, gates, strict=True)]
    own = [x + (1 << 13) >> 14 for x in plus(times(even, "weight3"), "bias3")]
    odd = [towards_0(x, 14, 1 << 13) for x in times(weighed, "odd2")]
    rows = (own[:3], odd[:3], [own[3 + b] + odd[3 + b] for b in range(3)],
            [own[3 + b] - odd[3 + b] for b in range(3)], own[6:])  # fmt: skip
    return [[within(x, -192, 192) for x in row] for row in rows]


DETAILS = [name for name in context.context_names(NET) if name.startswith("level")]


def random_seen(rng: np.random.Generator, name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (count, n) and signed ones (count, n - 1), int."""
    num = context.num_features(NET, name)
    latents = np.rint(rng.laplace(0, 2.0, (count, num - 1)))
    steps = rng.integers(-256, 249, (count, 1))
    return (
        np.concatenate([context.magnitude(np, latents), steps], axis=1).astype(int),
        context.signed(np, latents).astype(int),
    )


@pytest.mark.parametrize("name", DETAILS)
@pytest.mark.parametrize("share", [1.0, 1e-2, 1e-4, None])
def test_logits_are_those_of_integers(name: str, share: float | None) -> None:
    rng = np.random.default_rng(0)
    weights = SIGNS.exact[name]
    if share is not None:
        weights = extreme_weights(rng, name, share, SIGNS.net)
    features, signs = random_seen(rng, name, 40)
    logits = context.exact_logits(weights, features.astype(float), signs.astype(float))
    expected = [
        slow_logits(weights, *row) for row in zip(features.tolist(), signs.tolist(), strict=True)
    ]
    np.testing.assert_array_equal(np.stack(logits, axis=1), expected)


def test_files_of_a_base_before_are_still_read() -> None:
    old = grids.find_base(bytes.fromhex("fbb48406"))
    assert old is not None and old.net.odd_width == 0 < grids.packaged_base().net.odd_width
    image = np.full((5, 7, 3), 128, np.uint8)
    latents = [np.zeros(shape, np.int64) for shape in old.net.latent_shapes(5, 7)]
    codec = LatentGrid(20, base=old)
    stream = codec.pack(image, latents)
    assert np.abs(decode_stream(stream).astype(int) - image).max() <= 6
    np.testing.assert_array_equal(decode_stream(stream), codec.decode([stream])[0])


@pytest.mark.parametrize("name", DETAILS)
def test_signs_turned_turn_the_distribution(name: str) -> None:
    features, signs = (
        own.astype(float) for own in random_seen(np.random.default_rng(1), name, 200)
    )
    for weights, find in (
        (SIGNS.exact[name], context.exact_logits),
        (SIGNS.approximate["context"][name], partial(context.logits, np)),
    ):
        here, there = find(weights, features, signs), find(weights, features, -signs)
        assert np.abs(here.sign).max() > 0 and np.abs(here.up - here.down).max() > 0
        turned = here._replace(sign=-here.sign, up=here.down, down=here.up)
        for own, other in zip(there, turned, strict=True):
            np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("name", DETAILS)
def test_float_logits_are_near_the_integers(name: str) -> None:
    """Within half a unit for each sum that is rounded, two of up and down, and a quarter for what
    was rounded before."""
    features, signs = (
        own.astype(float) for own in random_seen(np.random.default_rng(2), name, 500)
    )
    floats = context.logits(np, SIGNS.approximate["context"][name], features, signs)
    exact = context.exact_logits(SIGNS.exact[name], features, signs)
    for kind, own, other in zip(exact._fields, floats, exact, strict=True):
        sums = 2 if kind in ("up", "down") else 1
        assert np.abs(own * entropy.LOGIT_UNIT - other).max() <= 0.5 * sums + 0.25
        assert len(np.unique(other)) > 3


def test_weights_in_fixed_point_are_exact() -> None:
    for name, weights in (*BASE.models.items(), *SIGNS.models.items()):
        back = context.to_integers(context.from_integers(weights))
        for leaf, values in weights.items():
            np.testing.assert_array_equal(back[leaf], values, err_msg=f"{name}/{leaf}")


def walked(base: GridBase, latents: Sequence[np.ndarray], step: int) -> list[np.ndarray]:
    """The model of every latent, in arrays as the latents with an axis more, as the coder sees it:
    a level of scale, or five logits."""
    found: list[np.ndarray] = []

    def note(model: Any, values: np.ndarray, mean: Any) -> np.ndarray:
        decided = isinstance(model, entropy.Logits)
        found.append(np.stack(model, axis=-1) if decided else model[..., None])
        return values

    grids._walk(base, [own.copy() for own in latents], step, note)
    logits = 5 if base.net.odd_width else 1
    calls, result = iter(found), [np.zeros((*own.shape, logits), int) for own in latents[:-1]]
    result.append(np.zeros((*latents[-1].shape, 1), int))
    for component in range(3):
        for row, column in grids._diagonals(*latents[-1].shape[:2]):
            result[-1][row, column, component] = next(calls)
    for level in reversed(range(NET.levels)):
        for component in range(NET.components(level)):
            bands = slice(3 * component, 3 * component + 3)
            for row, column in grids._diagonals(*latents[level].shape[:2]):
                result[level][row, column, bands] = next(calls)
    assert next(calls, None) is None
    return result


def single(latents: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [own.astype(np.float32) for own in latents]


_distributions: Any = jax.jit(gridfit.distributions, static_argnums=0)


@BOTH
@pytest.mark.parametrize("step", [12, 40])
def test_the_estimate_has_the_coder_s_distributions(step: int, base: GridBase) -> None:
    """Whatever stands in a feature's place here must stand there: one misplaced neighbour, and
    models of real pictures are far apart."""
    latents = wavelet_latents(photograph(37, 53), step)
    width, weights = latents[-1].shape[1], base.approximate["context"]
    models = _distributions(base.net, weights, single(latents), np.float32(step), width)
    for model, exact in zip(models, walked(base, latents, step), strict=True):
        if isinstance(model, entropy.Logits):
            units = np.stack(model, axis=-1) * entropy.LOGIT_UNIT
            units[..., 2:4] = exact[..., 2:4] + (units - exact)[..., 2:4] / 2  # two are rounded
        else:
            units = np.clip(np.rint(4 * np.asarray(model.exponent)[..., None] + 16), 0, 63)
        assert np.abs(exact - units).max() <= 1
        for kind in range(exact.shape[-1]):
            assert len(np.unique(exact[..., kind])) > 2


@BOTH
@pytest.mark.parametrize("step", [12, 28])
def test_the_estimate_is_near_the_bytes(step: int, base: GridBase) -> None:
    image, shared = photograph(64, 64, seed=2), Shared(**base.approximate)
    latents = wavelet_latents(image, step)
    target = gridfit.make_target(image)
    estimate = float(gridfit.num_bits(base.net, shared, single(latents), target, np.float32(step)))
    assert sum(own.size for own in latents) > 3000
    assert estimate == pytest.approx(8 * len(grids.encode_latents(base, latents, step)), rel=0.03)


def test_every_place_is_visited_once_after_all_it_looks_at() -> None:
    for height, width in ((1, 1), (1, 7), (7, 1), (2, 9), (6, 5)):
        when = np.full((height + 2, width + 4), -1)
        for number, (row, column) in enumerate(grids._diagonals(height, width)):
            assert (when[row + 2, column + 2] == -1).all()
            when[row + 2, column + 2] = number
        inside = when[2:, 2 : width + 2]
        assert (inside >= 0).all()
        for row, column in context.CAUSAL:
            other = when[2 + row : 2 + row + height, 2 + column : 2 + column + width]
            assert (other < inside).all()


# ---------------------------------------------------------------------------- latents and bytes


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (33, 65)])
@pytest.mark.parametrize("reach", [0.3, 30.0, 1e6])
@BOTH
def test_latents_come_back_exactly(size: tuple[int, int], reach: float, base: GridBase) -> None:
    latents = random_latents(NET, *size, reach)
    for own in latents:
        own.flags.writeable = False
    data = grids.encode_latents(base, latents, 30)
    back = grids.decode_latents(base, data, *size, 30)
    for own, other in zip(latents, back, strict=True):
        np.testing.assert_array_equal(own, other)
    assert not data.endswith(b"\0")


@cache
def five_levels() -> GridBase:
    return tiny_grid_base(levels=5)


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (61, 40)])
def test_latents_of_five_levels_come_back(size: tuple[int, int]) -> None:
    latents = random_latents(five_levels().net, *size, 5.0)
    for step in (0, 63):
        data = grids.encode_latents(five_levels(), latents, step)
        back = grids.decode_latents(five_levels(), data, *size, step)
        for own, other in zip(latents, back, strict=True):
            np.testing.assert_array_equal(own, other)


def test_latents_beyond_the_limit_are_refused() -> None:
    latents = random_latents(NET, 5, 5, 1.0)
    latents[0][1, 1, 2] = -(1 << 24)
    with pytest.raises(ValueError, match="16777216"):
        grids.encode_latents(BASE, latents, 30)
    latents[0][1, 1, 2] = (1 << 24) - 1
    back = grids.decode_latents(BASE, grids.encode_latents(BASE, latents, 30), 5, 5, 30)
    assert back[0][1, 1, 2] == (1 << 24) - 1


@BOTH
def test_a_decoded_latent_beyond_the_limit_is_refused(base: GridBase) -> None:
    """A coder that does not look writes one; the decoder does."""
    latents = random_latents(NET, 5, 5, 1.0)
    latents[0][1, 1, 2] = 1 << 24
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grids, "_LARGEST_LATENT", 1 << 30)
        data = grids.encode_latents(base, latents, 30)
    with pytest.raises(BitstreamError, match="too large"):
        grids.decode_latents(base, data, 5, 5, 30)


def test_calls_of_the_coder_are_read_by_the_same_calls() -> None:
    rng = np.random.default_rng(0)
    encoder, calls = entropy.CallEncoder(), []
    for count, reach in ((1, 1.0), (0, 1.0), (7, 1e8), (300, 20.0), (40, 1e5)):
        levels = rng.integers(0, entropy.NUM_LEVELS, count)
        symbols = np.clip(rng.laplace(0, reach, count), -(2.0**30), 2.0**30).astype(np.int64)
        encoder.put(symbols, levels)
        calls.append((levels, symbols))
    data = encoder.to_bytes()
    for more in (b"", bytes(7)):  # what is beyond the end is 0
        decoder = entropy.CallDecoder(data + more)
        for levels, symbols in calls:
            np.testing.assert_array_equal(decoder.get(levels), symbols)


def test_one_call_costs_what_the_symbols_cost() -> None:
    rng = np.random.default_rng(0)
    levels = rng.integers(10, 40, 4000)
    symbols = np.rint(rng.laplace(0, entropy.scale(levels))).astype(np.int64)
    encoder = entropy.CallEncoder()
    encoder.put(symbols, levels)
    cost = entropy.cost(symbols, entropy.Laplace(levels))
    assert cost - 8 < 8 * len(encoder.to_bytes()) < cost * 1.001 + 64


def random_logits(rng: np.random.Generator, count: int, reach: float) -> entropy.Logits:
    limit = entropy.MAX_LOGIT
    values = np.clip(np.rint(rng.normal(0, reach, (5, count))), -limit, limit).astype(np.int64)
    return entropy.Logits(*values)


def drawn(rng: np.random.Generator, logits: entropy.Logits) -> np.ndarray:
    """Symbols as their logits have it, decision by decision."""
    zero, sign, up, down, tail = (1 / (1 + np.exp(-own / entropy.LOGIT_UNIT)) for own in logits)
    above = rng.random(zero.shape) < sign
    more = rng.random(zero.shape) < np.where(above, up, down)
    beyond = rng.geometric(1 - tail) - 1
    magnitude = np.where(rng.random(zero.shape) < zero, 0, 1 + more * (1 + beyond))
    return np.where(above, magnitude, -magnitude)


def test_decided_calls_are_read_by_the_same_calls() -> None:
    rng = np.random.default_rng(0)
    encoder, calls = entropy.CallEncoder(), []
    for count, reach in ((1, 1.0), (0, 1.0), (7, 1e8), (300, 20.0), (40, 1e5), (5, 0.2)):
        logits, levels = random_logits(rng, count, 90.0), rng.integers(0, 64, count)
        symbols = np.clip(rng.laplace(0, reach, count), -(2.0**30), 2.0**30).astype(np.int64)
        encoder.put_decided(symbols, logits)
        encoder.put(symbols, levels)
        calls.append((logits, levels, symbols))
    for more in (b"", bytes(7)):  # what is beyond the end is 0
        decoder = entropy.CallDecoder(encoder.to_bytes() + more)
        for logits, levels, symbols in calls:
            np.testing.assert_array_equal(decoder.get_decided(logits), symbols)
            np.testing.assert_array_equal(decoder.get(levels), symbols)
    with pytest.raises(ValueError, match="expected"):
        encoder.put_decided(np.array([1 << 31]), random_logits(rng, 1, 1.0))


@pytest.mark.parametrize("reach", [10.0, 40.0, 80.0])
def test_a_decided_call_costs_what_the_estimate_says(reach: float) -> None:
    """Tails reach sixteens, but seldom what an escape is for."""
    rng = np.random.default_rng(0)
    logits = random_logits(rng, 20_000, reach)
    logits = logits._replace(tail=np.minimum(logits.tail, 48))  # 1 in 21 ends it
    symbols = drawn(rng, logits)
    assert np.abs(symbols).max() > 18
    encoder = entropy.CallEncoder()
    encoder.put_decided(symbols, logits)
    floats = entropy.Logits(*(own / entropy.LOGIT_UNIT for own in logits))
    bits = float(np.asarray(entropy.decision_bits(symbols, floats), np.float64).sum())
    assert bits * 0.999 - 64 < 8 * len(encoder.to_bytes()) < bits * 1.001 + 64


def test_counts_are_the_decisions_probabilities() -> None:
    limit = entropy.MAX_LOGIT
    extremes = np.array([-limit, -7, 0, 40, limit])
    logits = entropy.Logits(*(own.ravel() for own in np.meshgrid(*[extremes] * 5)))
    counts = entropy.first_counts(logits)
    assert counts.min() >= 1 and (counts.sum(axis=1) == 1 << 24).all()
    floats = entropy.Logits(*(own / entropy.LOGIT_UNIT for own in logits))
    one = np.exp2(
        -np.stack([entropy.decision_bits(np.asarray(k), floats) for k in (-1, 0, 1)], axis=1)
    )
    np.testing.assert_allclose(counts[:, 1:4] / 2.0**24, one, rtol=1e-3, atol=1e-6)
    for table in entropy._tail_tables():
        assert table.min() >= 0 and ((table.astype(np.int64) + 1).sum(axis=1) == 1 << 24).all()
    for symbol in range(2, 40):  # each is the one before times the tail's probability
        two = [
            np.asarray(entropy.decision_bits(np.asarray(k), floats), np.float64)
            for k in (symbol, -symbol)
        ]
        more = np.asarray(entropy.decision_bits(np.asarray(symbol + 1), floats), np.float64)
        np.testing.assert_allclose(more - two[0], np.log2(1 + np.exp(-floats.tail)), atol=1e-3)
        np.testing.assert_allclose(
            (two[1] - two[0])[floats.up == floats.down],
            (floats.sign / np.log(2))[floats.up == floats.down],
            atol=1e-3,
        )


def test_all_probabilities_of_decisions_sum_to_1() -> None:
    logits = random_logits(np.random.default_rng(3), 50, 30.0)
    floats = entropy.Logits(*(own / entropy.LOGIT_UNIT for own in logits))
    floats = floats._replace(tail=np.minimum(floats.tail, 1.0))
    total = sum(
        np.exp2(-np.asarray(entropy.decision_bits(np.asarray(k), floats))) for k in range(-60, 61)
    )
    np.testing.assert_allclose(total, 1, atol=1e-5)


def test_zeros_at_the_end_take_no_bytes() -> None:
    """The lower end of the range stays 0 while the first symbol of the table is coded."""
    encoder = entropy.CallEncoder()
    lowest = -(len(entropy.counts(20)) // 2 - 1)
    encoder.put(np.full(5, lowest), np.full(5, 20))
    data = encoder.to_bytes()
    assert not data.endswith(b"\0")
    np.testing.assert_array_equal(entropy.CallDecoder(data).get(np.full(5, 20)), [lowest] * 5)


def test_a_symbol_beyond_the_coder_is_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        entropy.CallEncoder().put(np.array([1 << 31]), np.array([3]))


@pytest.mark.parametrize("data", [b"\xff" * 40, b"\xff" * 4, bytes(30) + b"\xff" * 9])
@BOTH
def test_bytes_of_no_encoder_are_latents_or_refused(data: bytes, base: GridBase) -> None:
    try:
        latents = grids.decode_latents(base, data, 20, 20, 30)
        assert max(np.abs(own).max() for own in latents) < 1 << 24
    except BitstreamError as error:
        assert "damaged" in str(error)


# ---------------------------------------------------------------------------- pixels


_pixels: Any = jax.jit(gridfit.pixels, static_argnums=(0, 4))
_padded: Any = jax.jit(gridfit.pixels, static_argnums=0)
_improve: Any = jax.jit(gridfit.improve, static_argnums=0)
_context_slopes: Any = jax.jit(gridfit.context_slopes, static_argnums=(0, 4))
_details: Any = jax.jit(gridfit._details, static_argnums=0)


STEADY = np.float32(1), np.float32(0), np.float32(0.5)
"""caution, foresight and share, typed as a fit's own, so that all run the same program."""


@jax.jit
def _loss(latents: Any, target: gridfit.Target, step: Any, lmbda: Any) -> Any:
    return gridfit.loss(NET, SHARED, latents, target, step, lmbda)


def rendered(latents: Any, step: int, size: tuple[int, int]) -> np.ndarray:
    """The pixels that a decoder's blocks make up, each once."""
    pixels = np.full((*size, 3), np.nan, np.float32)
    for place, values in grids.render(BASE, latents, step, *size):
        assert np.isnan(pixels[place]).all()
        pixels[place] = values
    return pixels


@pytest.mark.parametrize("step", [10, 28])
def test_both_decoders_give_the_same_pixels(step: int) -> None:
    """The fit's, in JAX, of padded arrays with garbage behind their true size, and the decoder's,
    in numpy. A picture is of its own latents alone."""
    image = photograph(37, 53)
    latents = wavelet_latents(image, step)
    there = images.to_uint8(rendered(latents, step, (37, 53))).astype(int)
    assert np.abs(there - image).mean() < 15  # it is a picture of it
    rng = np.random.default_rng(0)
    padded = []
    for own, shape in zip(single(latents), NET.latent_shapes(64, 64), strict=True):
        garbage = rng.normal(0, 1000, shape).astype(np.float32)
        garbage[: own.shape[0], : own.shape[1]] = own
        padded.append(garbage)
    sizes = [tuple(np.int32(side) for side in size) for size in NET.sizes(37, 53)]
    here = np.asarray(_padded(NET, SHARED, padded, np.float32(step), sizes))[:37, :53]
    assert np.abs(images.to_uint8(here) - there).max() <= 1
    exact = np.asarray(_pixels(NET, SHARED, single(latents), step, tuple(NET.sizes(37, 53))))
    np.testing.assert_allclose(here, exact[:37, :53], atol=2e-5)


@pytest.mark.parametrize("size", [(37, 53), (90, 1), (2, 90), (1, 1)])
def test_blocks_make_up_the_picture(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any size, and rows of a convolution at a time: what all at once gives."""
    latents, params = random_latents(NET, *size, 3.0), BASE.approximate["synthesis"]
    sizes = NET.sizes(*size)
    whole = synthesize(NET, params, single(latents), 20, sizes, np, grids._convolve, np.sin)
    whole = whole[: size[0], : size[1]]
    np.testing.assert_allclose(rendered(latents, 20, size), whole, atol=1e-5)
    monkeypatch.setattr(grids, "_BLOCK_VALUES", 5000)
    for side in (1, 3, 8):
        monkeypatch.setattr(grids, "_BLOCK_SIDE", side)
        np.testing.assert_allclose(rendered(latents, 20, size), whole, atol=1e-5)


# ---------------------------------------------------------------------------- fits


def test_a_fit_lowers_the_loss_and_leaves_what_is_beyond_the_picture() -> None:
    image, step = photograph(37, 53, seed=3), np.float32(30)
    lmbda = np.float32(gridfit.rate_weight(30))
    target = gridfit.make_target(image)
    latents: Any = gridfit.start(NET, target, step)
    losses = [float(_loss(latents, target, step, lmbda))]
    for number in range(6):
        key = jax.random.key(number)
        latents, before = _improve(NET, SHARED, latents, target, step, lmbda, key, *STEADY)
        assert float(before) == pytest.approx(losses[-1], rel=1e-5)
        losses.append(float(_loss(latents, target, step, lmbda)))
    assert losses[-1] < 0.98 * losses[0]
    assert all(after < 1.02 * before for before, after in pairwise(losses))
    for own, (rows, columns, _) in zip(latents, NET.latent_shapes(37, 53), strict=True):
        own = np.array(own)
        np.testing.assert_array_equal(own, np.rint(own))
        own[:rows, :columns] = 0
        assert not own.any()


@BOTH
def test_the_slopes_of_the_context_are_derivatives_of_the_bits(base: GridBase) -> None:
    """By what models see of one latent, all else equal: those pay that see it."""
    net, weights = base.net, base.approximate["context"]
    image, step = photograph(37, 53, seed=3), np.float32(20)
    target = gridfit.make_target(image)
    latents: Any = [jnp.asarray(own) for own in gridfit.start(net, target, step)]
    sizes = tuple(net.sizes(37, 53))
    slopes, models = _context_slopes(net, weights, latents, step, sizes)
    for own, other in zip(
        jax.tree.leaves(models),
        jax.tree.leaves(_distributions(net, weights, latents, step, sizes[-1][1])),
        strict=True,
    ):
        np.testing.assert_allclose(own, other, atol=1e-5)
    assert len(slopes.signed) == (net.levels if net.odd_width else 0)

    def bits(seen: gridfit.Seen) -> np.ndarray:
        """Of each latent of the details, when models see what they are told to."""
        return np.concatenate([
            np.asarray(gridfit.bits_of(own, model), np.float64)[:rows, :columns].ravel()
            for own, model, (rows, columns) in zip(
                latents, _details(net, weights, seen, step), sizes[1:], strict=False
            )
        ])  # fmt: skip

    seen = gridfit._seen(net, latents)
    for kind, reach in (("magnitudes", 2.0), ("signed", 0.01)):
        for level, own in enumerate(getattr(slopes, kind)):
            index = np.unravel_index(np.argmax(np.abs(own)), own.shape)
            sums = []
            for side in (-reach, reach):
                moved = list(getattr(seen, kind))
                moved[level] = moved[level].at[index].add(side)
                sums.append(bits(seen._replace(**{kind: moved})).sum())
            expected = (sums[1] - sums[0]) / (2 * reach)
            assert abs(expected) > 1e-4
            assert float(own[index]) == pytest.approx(expected, rel=0.05, abs=2e-4)


def test_without_foresight_a_step_is_the_same_at_0_and_at_none() -> None:
    image, step = photograph(37, 53, seed=3), np.float32(20)
    target = gridfit.make_target(image)
    latents: Any = gridfit.start(NET, target, step)
    lmbda, key = np.float32(gridfit.rate_weight(20)), jax.random.key(0)
    rest = NET, SHARED, latents, target, step, lmbda, key
    pair = (_improve(*rest, *own)[0] for own in (STEADY, (STEADY[0], None, STEADY[2])))
    for at_zero, at_none in zip(*pair, strict=True):
        assert np.mean(np.not_equal(at_zero, at_none)) < 0.001  # ties may round either way


def test_a_group_is_fitted_as_each_picture_alone() -> None:
    images = [photograph(37, 53, seed=3), photograph(5, 64, seed=1)]
    lmbda = float(gridfit.rate_weight(24))
    together = gridfit.fit_latents(NET, SHARED, images, 24, lmbda, 3, 0)
    for image, own in zip(images, together, strict=True):
        [alone] = gridfit.fit_latents(NET, SHARED, [image], 24, lmbda, 3, 0)
        for one, other in zip(own, alone, strict=True):
            assert one.shape == other.shape
            assert np.mean(one != other) < 0.005  # sums in another order: a tie may round apart
    with pytest.raises(ValueError, match="several padded sizes"):
        gridfit.fit_latents(NET, SHARED, [*images, photograph(65, 9)], 24, lmbda, 1, 0)


def test_groups_hold_each_picture_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(9, 9), (70, 9), (64, 1)] * 5
    images = [photograph(*size, seed=seed) for seed, size in enumerate(sizes)]
    assert gridfit.groups(images) == [[place] for place in range(15)]  # a CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for most in (1, 64 * 64 * 5, 1 << 22):
        monkeypatch.setattr(gridfit, "GROUP_PIXELS", most)
        found = gridfit.groups(images)
        assert sorted(place for places in found for place in places) == list(range(15))
        for places in found:
            assert len({gridfit.padded_size(images[p]) for p in places}) == 1
            assert len(places).bit_count() == 1
            assert len(places) == 1 or len(places) * 64 * 64 <= most


def test_a_codec_puts_each_picture_of_a_group_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [photograph(9, 9), photograph(70, 9, seed=1), photograph(64, 1, seed=2)]
    codec = LatentGrid(24, iterations=1, base=BASE)
    alone = codec.decode(codec.encode(images))
    monkeypatch.setattr(gridfit, "groups", lambda images: [[1], [2, 0]])  # a CPU has no group of 2
    for one, other in zip(codec.decode(codec.encode(images)), alone, strict=True):
        assert np.mean(one != other) < 0.02  # ties may round apart


def test_bad_schedules_are_refused() -> None:
    for bad in (
        {"caution": 0.9}, {"cautious": 1.1}, {"foresight": -0.1}, {"first_share": 0.0},
        {"last_share": 1.1},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="expected a caution of at least 1"):
            gridfit.Schedule(**bad)


@pytest.mark.parametrize("factor", [1.0, 1.2])
def test_more_steps_do_no_harm(factor: float) -> None:
    """Even where the synthesis bends more than the steps count on, and they grow."""
    synthesis = trees.from_leaves(
        {
            path: np.asarray(leaf * (factor if path.endswith("kernel") else 1), np.float32)
            for path, leaf in trees.leaves(SHARED.synthesis)
        }
    )
    shared = gridfit.Shared(synthesis, SHARED.context)
    image, step = photograph(37, 53, seed=3), 12
    lmbda, target = float(gridfit.rate_weight(step)), gridfit.make_target(image)
    losses = []
    for iterations in (6, 20, 40):
        [fitted] = gridfit.fit_latents(NET, shared, [image], step, lmbda, iterations, 0)
        padded = [
            np.pad(own, [(0, a - b) for a, b in zip(shape, own.shape, strict=True)])
            for own, shape in zip(fitted, NET.latent_shapes(64, 64), strict=True)
        ]
        losses.append(
            float(gridfit.loss(NET, shared, single(padded), target, np.float32(step), lmbda))
        )
    assert all(after < 1.01 * before for before, after in pairwise(losses)), losses


def test_more_weight_on_the_rate_is_a_smaller_file() -> None:
    """And so is a larger step; both fit the picture less well."""
    codec = LatentGrid(20, iterations=3, base=BASE)
    image = photograph(37, 53)
    by_codec = {}
    for one in (codec, replace(codec, rate_weight=4.0), replace(codec, step=36)):
        [stream] = one.encode([image])
        [image_hat] = codec.decode([stream])
        by_codec[one.setting] = len(stream), np.mean((image_hat - image.astype(float)) ** 2)
    (size, error), *others = by_codec.values()
    assert all(other[0] < size and other[1] > error for other in others)
    assert list(by_codec) == [
        "step=20_iterations=3", "step=20_weight=4_iterations=3", "step=36_iterations=3"
    ]  # fmt: skip


def test_a_fit_is_the_same_alone_in_a_batch_and_again() -> None:
    codec = LatentGrid(24, iterations=2, base=BASE)
    batch = [photograph(37, 53), photograph(1, 1), photograph(40, 9, seed=1)]
    done: list[tuple[int, int]] = []
    streams = codec.encode(batch, lambda *progress: done.append(progress))
    assert streams == [codec.encode([image])[0] for image in batch]
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_a_picture_that_is_too_large_is_refused() -> None:
    image = np.broadcast_to(np.uint8(0), (4097, 4096, 3))
    with pytest.raises(ValueError, match="4097 x 4096"):
        LatentGrid(base=BASE).encode([image])


# ---------------------------------------------------------------------------- streams


def sections_of_one() -> list[bytes]:
    latents = random_latents(NET, 9, 7, 2.0)
    symbols = np.concatenate([own.ravel() for own in latents])
    grid = decoding.symbol_check(symbols) + b"\x1e"
    return [BASE.digest[:4], grid, grids.encode_latents(BASE, latents, 30)]


def packed(sections: Sequence[bytes]) -> bytes:
    return bitstream.pack(LatentGrid.tag, 9, 7, sections, BASE.digest)


def test_the_context_is_the_digest_of_the_base() -> None:
    data = packed(sections_of_one())
    codec = LatentGrid(base=BASE)
    assert codec.context(bitstream.peek(data)) == BASE.digest
    assert describe(data, BASE).init_digest == BASE.digest[:4].hex()
    assert decode_stream(data, BASE).shape == (9, 7, 3)
    for other in (LatentGrid(), LatentGrid(base=tiny_grid_base(seed=1))):
        with pytest.raises(BitstreamError, match=BASE.digest[:4].hex()):
            other.context(bitstream.peek(data))


@pytest.mark.parametrize(
    "place, section",
    [
        (0, b""),
        (0, BASE.digest[:3]),
        (0, BASE.digest[:5]),
        (0, b"\0\0\0\0"),
        (1, b""),
        (1, b"\0\0"),
        (1, b"\0\0\x1e"),
        (1, b"\0\0\x40"),
        (1, b"\0\0\x1e\0"),
        (2, b""),
        (2, b"\xff" * 50),
        (2, bytes(100)),
    ],
)
def test_sections_that_cannot_be_are_refused(place: int, section: bytes) -> None:
    sections = sections_of_one()
    sections[place] = section
    with pytest.raises(BitstreamError) as caught:
        decode_stream(packed(sections), BASE)
    assert "\n" not in str(caught.value)


def test_another_number_of_sections_is_refused() -> None:
    for sections in (sections_of_one()[:2], [*sections_of_one(), b""]):
        with pytest.raises(BitstreamError, match="sections"):
            decode_stream(packed(sections), BASE)


def test_a_pixel_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    latents = random_latents(NET, 5, 5, 2.0)
    stream = LatentGrid(52, base=BASE).pack(photograph(5, 5), latents)
    assert decode_stream(stream, BASE).shape == (5, 5, 3)
    # Weights are finite, and no file was found that gives one: a guard.
    pixels = np.zeros((5, 5, 3), np.float32)
    pixels[4, 0, 1] = np.nan
    monkeypatch.setattr(grids, "render", lambda *_: [(np.s_[:, :], pixels)])
    with pytest.raises(BitstreamError, match="NaN"):
        decode_stream(stream, BASE)


# ---------------------------------------------------------------------------- base files


def base_file(path: Path, **changes: Any) -> Path:
    """A file as `save_grid_base` writes it, with other arrays or fields of its header."""
    header = {"format": grids.FORMAT, "net": asdict(NET), "info": {}, "digest": BASE.digest.hex()}
    header |= {name: changes.pop(name) for name in list(changes) if name in header}
    arrays = dict(trees.leaves({"models": BASE.models, "synthesis": BASE.synthesis})) | changes
    buffer = io.BytesIO()
    np.savez(buffer, header=np.array(json.dumps(header)), **arrays)
    path.write_bytes(buffer.getvalue())
    return path


def test_a_base_comes_back_exactly(tmp_path: Path) -> None:
    grids.save_grid_base(tmp_path / "a.npz", BASE)
    back = grids.load_grid_base(tmp_path / "a.npz")
    assert (back.digest, back.net, back.info) == (BASE.digest, BASE.net, BASE.info)
    for tree, other in ((BASE.models, back.models), (BASE.synthesis, back.synthesis)):
        for (path, leaf), (_, own) in zip(trees.leaves(tree), trees.leaves(other), strict=True):
            assert leaf.dtype == own.dtype, path
            np.testing.assert_array_equal(leaf, own)
    assert grids.load_grid_base(base_file(tmp_path / "b.npz")).digest == BASE.digest
    assert [path.name for path in tmp_path.iterdir() if path.name[0] == "."] == []


def test_the_digest_is_of_all_that_a_decoder_uses_and_nothing_else() -> None:
    assert tiny_grid_base().digest == BASE.digest
    assert replace(BASE, info={"other": 1}).digest == BASE.digest
    assert tiny_grid_base(seed=1).digest != BASE.digest
    leaves = dict(trees.leaves(BASE.synthesis))
    for path, leaf in leaves.items():
        other = leaf.copy()
        other.flat[-1] += 1
        changed = replace(BASE, synthesis=trees.from_leaves(leaves | {path: other}))
        assert changed.digest != BASE.digest, path


LARGE = {"models/low0/predict": np.array([1 << 18, 0, 0, 0], np.int32)}
NAN = {"synthesis/colour": np.full((3, 3), np.nan, np.float16)}
OTHER = {"synthesis/colour": np.eye(3, dtype=np.float16)}


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"format": "inrjax-init-1"}, "format"),
        ({"net": {"levels": 9, "width": 4, "context_width": 4}}, "levels"),
        ({"net": {"levels": 3, "width": 4, "context_width": 4}}, "fit its net"),
        ({"net": {"depth": 3}}, "depth"),
        ({"synthesis/colour": np.zeros((2, 3), np.float16)}, "fit its net"),
        ({"synthesis/more": np.zeros(3, np.float16)}, "fit its net"),
        (NAN, "not finite"),
        (LARGE, "too large"),
        (OTHER, "digest"),
        ({"digest": "00" * 32}, "digest"),
    ],
)
def test_a_base_file_that_cannot_be_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    path = base_file(tmp_path / "wrong.npz", **changes)
    with pytest.raises(ValueError, match=reason) as caught:
        grids.load_grid_base(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_base_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    grids.save_grid_base(path, BASE)
    data = path.read_bytes()
    for damaged in (b"", data[: len(data) // 2], data[:-1], b"no archive" * 9, data[40:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.npz") as caught:
            grids.load_grid_base(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"none\.npz is not a file"):
        grids.load_grid_base(tmp_path / "none.npz")


def test_integers_that_could_lose_a_bit_are_refused() -> None:
    good = BASE.models["level0_0"]
    assert context.check_integers(good)
    for name, value in (("weight1", (1 << 17) + 1), ("bias1", (1 << 40) + 1), ("weight3", 0.5)):
        wrong = np.array(good[name], np.float64)
        wrong.flat[0] = value
        assert not context.check_integers({**good, name: wrong})


# ---------------------------------------------------------------------------- training


CONFIG = gridtrain.GridTrainConfig(
    net=LatentGridNet(2, 4, 4, 3), num_steps=4, crops_per_step=2, learning_rate=1e-3
)
CROPS = np.stack([photograph(64, 64, seed) for seed in range(4)])


class Stop(Exception):
    pass


def test_a_stopped_training_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gridtrain, "CHECKPOINT_STEPS", 2)
    losses: list[np.ndarray] = []
    whole = gridtrain.train(CONFIG, CROPS, on_losses=losses.append)
    assert [len(own) for own in losses] == [4] and np.isfinite(losses[-1]).all()

    def stop(done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        gridtrain.train(CONFIG, CROPS, tmp_path, stop)
    seen: list[tuple[int, int]] = []
    again = gridtrain.train(CONFIG, CROPS, tmp_path, lambda *progress: seen.append(progress))
    assert seen == [(4, 4)]
    assert jax.tree.all(jax.tree.map(np.array_equal, whole, again))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), gridtrain.initial(CONFIG.net, 0), whole)
    assert min(jax.tree.leaves(moved)) > 0  # every array is learned
    with pytest.raises(ValueError, match="run"):
        gridtrain.train(CONFIG, CROPS[::-1], tmp_path)
    base = grids.make_base(CONFIG.net, *whole, gridtrain.noted(CONFIG, CROPS, losses[-1]))
    grids.save_grid_base(tmp_path / "grid.npz", base)
    assert grids.load_grid_base(tmp_path / "grid.npz").info["num_crops"] == 4


@pytest.mark.unoptimized
def test_training_begins_with_what_another_base_has_of_the_same_name_and_shape() -> None:
    shared = gridtrain.started(CONFIG.net, BASE, seed=0)
    fresh = gridtrain.initial(CONFIG.net, seed=0)
    theirs = dict(trees.leaves(BASE.approximate))
    kept = 0
    for part in ("synthesis", "context"):
        pairs = zip(
            trees.leaves(getattr(shared, part)), trees.leaves(getattr(fresh, part)), strict=True
        )
        for (path, own), (_, new) in pairs:
            other = theirs.get(f"{part}/{path}")
            same = other is not None and other.shape == new.shape
            np.testing.assert_array_equal(own, other if same else new)
            kept += same
    assert kept == len(theirs) - 4 * 2  # the last layers of the four models of details are wider


@pytest.mark.unoptimized
def test_a_training_from_one_base_is_not_resumed_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted(config: Any, state: Any, data: Any) -> Any:  # nothing is to be compiled
        return state._replace(step=state.step + 1)

    monkeypatch.setattr(gridtrain, "_outer_step", counted)
    begun = gridtrain.train(CONFIG, CROPS, tmp_path, start=BASE)
    expected = gridtrain.started(CONFIG.net, BASE, CONFIG.seed)
    assert jax.tree.all(jax.tree.map(np.array_equal, begun, expected))
    for other in (None, SIGNS):
        with pytest.raises(ValueError, match="run"):
            gridtrain.train(CONFIG, CROPS, tmp_path, start=other)


@pytest.mark.unoptimized
def test_training_keeps_gains_within_bounds_and_bounds_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gridtrain, "GAINS", (0.9999, 1.0001))  # a step of training goes farther
    other = replace(CONFIG, seed=CONFIG.seed + 1)  # or the program of other bounds would be run
    leaves = trees.leaves(gridtrain.train(other, CROPS).synthesis)
    gains = np.concatenate([leaf for path, leaf in leaves if path.endswith("gain")])
    low, high = np.float32(gridtrain.GAINS)
    assert low <= gains.min() and gains.max() <= high
    assert np.isin(gains, [low, high]).any() and len(gains) == 3 + 3 + 9
    assert all(np.abs(leaf).max() > 1.01 for path, leaf in leaves if path.endswith("bias1"))


@pytest.mark.parametrize(
    "crops",
    [
        CROPS.astype(np.float32),
        CROPS[:, :60, :60],
        CROPS[:, :, :32],
        CROPS[..., :1],
        CROPS[0],
        CROPS[:, :0, :0],
        CROPS[:1],
    ],
)
def test_crops_that_cannot_be_are_refused(crops: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        gridtrain.train(CONFIG, crops)


@pytest.mark.parametrize(
    "wrong",
    [{"num_steps": 0}, {"crops_per_step": 0}, {"inner_steps": 0}, {"first_step": 47},
     {"first_step": -1}, {"last_step": 64}],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        gridtrain.GridTrainConfig(**wrong)


def test_crops_are_parts_of_all_pictures_in_turn() -> None:
    """Each picture has one value, so that a crop says where it is from; one is too small."""
    pictures = [np.full((40 + 3 * i, 50, 3), i, np.uint8) for i in range(3)]
    pictures.append(np.full((20, 90, 3), 9, np.uint8))
    crops = train_grid.cut(pictures, 6, 32, seed=0)
    assert crops.shape == (6, 32, 32, 3) and crops.dtype == np.uint8
    assert sorted(crops[:3, 0, 0, 0]) == [0, 1, 2]
    np.testing.assert_array_equal(crops[:3], crops[3:])
    one = photograph(33, 40)
    for crop in train_grid.cut([one], 5, 32, seed=1):
        places = [(r, c) for r in range(2) for c in range(9)]
        assert any(np.array_equal(crop, one[r : r + 32, c : c + 32]) for r, c in places)
    np.testing.assert_array_equal(train_grid.cut([one], 5, 32, 1), train_grid.cut([one], 5, 32, 1))
    with pytest.raises(ValueError, match="91 x 91"):
        train_grid.cut(pictures, 1, 91, seed=0)
