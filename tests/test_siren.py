"""The fast sine, and SIREN: its init law, its shapes, and its three ways of being evaluated."""

from __future__ import annotations

import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inrjax import trees
from inrjax.images import coordinates, to_uint8
from inrjax.nets import sine as sine_module
from inrjax.nets.sine import cosine, sine
from inrjax.nets.siren import (
    HOST_TILE,
    Encoding,
    Siren,
    layer_name,
    siren_from_dict,
    siren_to_dict,
)

EXACT = {"sine": (sine, np.sin), "cosine": (cosine, np.cos)}
STRUEMPLER = Encoding(num_frequencies=16, ratio=1.4)
init = jax.jit(Siren.init, static_argnums=0)
apply = jax.jit(Siren.apply, static_argnums=0)
# The laws hold for any generator; this one compiles in a fraction of the default's time.
key = partial(jax.random.key, impl="unsafe_rbg")


# ---------------------------------------------------------------------------- sine


def arguments(limit: float) -> np.ndarray:
    """float32 arguments up to ``limit``: random ones, and those where the reduction switches."""
    rng = np.random.default_rng(0)
    k = np.arange(-int(2 * limit / np.pi), int(2 * limit / np.pi) + 1)
    switches = (k * (np.pi / 2)).astype(np.float32)
    neighbours = [np.nextafter(switches, side, dtype=np.float32) for side in (-np.inf, np.inf)]
    return np.concatenate(
        [rng.uniform(-limit, limit, 200_000).astype(np.float32), switches, *neighbours]
    )


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(
    "wrap", [lambda f: f, lambda f: jax.jit(jax.vmap(f))], ids=["eager", "jit"]
)
def test_error_bound(name, wrap) -> None:
    function, exact = EXACT[name]
    for limit, bound in ((150, 2e-7), (1000, 3e-7)):
        x = arguments(limit)
        value = np.asarray(wrap(function)(x))
        assert value.dtype == np.float32
        assert np.abs(value - exact(x.astype(np.float64))).max() <= bound


def test_sine_is_odd_and_exact_near_zero() -> None:
    x = np.geomspace(1e-30, 1e-4, 100).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(sine(-x)), -np.asarray(sine(x)))
    np.testing.assert_allclose(np.asarray(sine(x)), np.sin(x.astype(np.float64)), rtol=2e-7)
    assert float(cosine(jnp.zeros(()))) == 1.0


def derivatives(function, order: int):
    """The derivative of an elementwise function by every mix of forward and reverse mode."""

    def forward(f):
        return lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]

    def reverse(f):
        return lambda x: jax.vjp(f, x)[1](jnp.ones_like(x))[0]

    found = [function]
    for _ in range(order):
        found = [mode(f) for f in found for mode in (forward, reverse)]
    return found


@pytest.mark.parametrize("name", EXACT)
def test_derivatives_in_both_modes(name) -> None:
    # sin, cos, -sin, -cos, sin, ...: the cosine starts one place later.
    cycle = [np.sin, np.cos, lambda x: -np.sin(x), lambda x: -np.cos(x)]
    first = 0 if name == "sine" else 1
    x = arguments(100.0)[::20]
    modes = {order: derivatives(EXACT[name][0], order) for order in (1, 2)}
    compute = jax.jit(lambda x: {order: [f(x) for f in found] for order, found in modes.items()})
    for order, found in compute(x).items():
        assert len(found) == 2**order
        expected = cycle[(first + order) % 4](x.astype(np.float64))
        for value in found:
            np.testing.assert_allclose(np.asarray(value), expected, atol=2e-7)


def test_derivatives_work_under_vmap_and_without_jit() -> None:
    x = jnp.linspace(-9, 9, 31)
    second = jax.vmap(jax.grad(jax.grad(sine)))(x)
    np.testing.assert_allclose(second, -np.sin(np.asarray(x, np.float64)), atol=3e-7)


@pytest.mark.parametrize("name", EXACT)
def test_derivatives_against_finite_differences(name) -> None:
    function, step = EXACT[name][0], 1e-3
    with jax.enable_x64(True):
        x = jnp.linspace(-20, 20, 5001)
        first = jax.jit(jax.vmap(jax.grad(function)))
        second = jax.jit(jax.vmap(jax.grad(jax.grad(function))))
        for f, derivative in ((jax.jit(function), first), (first, second)):
            difference = (f(x + step) - f(x - step)) / (2 * step)
            # h^2/6 of truncation, and a jump of 1e-8 at each switch of the reduction.
            np.testing.assert_allclose(derivative(x), difference, atol=1e-5)


def test_constants_recomputed() -> None:
    parts = (sine_module.PI_HIGH, sine_module.PI_MIDDLE, sine_module.PI_LOW)
    assert abs(sum(parts) - np.pi) < 1e-13
    for part in parts[:2]:  # 11 bits: k * part is exact in float32 while k < 2^13
        mantissa, _ = np.frexp(part)
        assert mantissa * 2**11 == np.rint(mantissa * 2**11)
    r = np.linspace(-np.pi / 2, np.pi / 2, 100_001)
    powers = [r ** (2 * i) for i in range(5)]
    odd = sum(c * p for c, p in zip(sine_module.SIN_COEFFICIENTS, powers, strict=False))
    even = sum(c * p for c, p in zip(sine_module.COS_COEFFICIENTS, powers, strict=True))
    assert np.abs(r + r**3 * odd - np.sin(r)).max() < 5e-9
    assert np.abs(1 + r**2 * even - np.cos(r)).max() < 3e-10


def test_no_value_for_what_has_none() -> None:
    assert np.isnan(np.asarray(sine(jnp.array([jnp.inf, -jnp.inf, jnp.nan])))).all()


# ---------------------------------------------------------------------------- the formulas


def features(net: Siren, coords, xp):
    """What the first layer sees, one point a row (Strümpler et al. 2022), in numpy or jax."""
    if net.encoding is None:
        return coords
    angles = [coords * (net.encoding.ratio**i * np.pi) for i in range(net.encoding.num_frequencies)]
    return xp.concatenate([coords, *map(xp.sin, angles), *map(xp.cos, angles)], axis=-1)


def naive(net: Siren, params, coords, xp):
    """The net as the papers write it, one point a row, with the library's own sine."""
    h = features(net, coords, xp)
    for i in range(net.depth):
        layer = params[f"layer_{i:02d}"]
        h = xp.sin(net.w0 * (h @ layer["weight"].T + layer["bias"]))
    last = params[f"layer_{net.depth:02d}"]
    return h @ last["weight"].T + last["bias"]


# ---------------------------------------------------------------------------- init and shapes


def pre_activations(net: Siren, params, coords) -> list[np.ndarray]:
    """w0 W h of every sine layer, the bias left out: it has a law of its own."""
    h = features(net, coords, np).T
    found = []
    for i in range(net.depth):
        layer = params[layer_name(i)]
        weight = net.w0 * np.asarray(layer["weight"], np.float64)
        found.append(weight @ h)
        h = np.sin(found[-1] + net.w0 * np.asarray(layer["bias"], np.float64)[:, None])
    found.append(np.asarray(params[layer_name(net.depth)]["weight"], np.float64) @ h)
    return found


def rms(arrays) -> float:
    return float(np.sqrt(np.mean(np.square(np.concatenate([np.ravel(a) for a in arrays])))))


@pytest.mark.parametrize(
    "net",
    [
        Siren(32, 4),
        Siren(96, 8, in_dim=1),
        Siren(48, 12, in_dim=3, out_dim=1),
        Siren(32, 4, encoding=STRUEMPLER),
        Siren(80, 7, in_dim=3, encoding=Encoding(5, 2.0)),
    ],
    ids=lambda net: f"{net.width}x{net.depth}-{net.in_dim}d{'-encoded' * bool(net.encoding)}",
)
def test_spread_stays_the_same_through_the_layers(net) -> None:
    """The bias is left out: COIN's bias law adds w0^2 / (3 in) to the variance of every layer."""
    in_dim, w0 = net.in_dim, net.w0
    coords = np.random.default_rng(0).uniform(-1, 1, (100, in_dim)).astype(np.float32)
    drawn = [init(net, key(seed)) for seed in range(40)]
    layers = [pre_activations(net, params, coords) for params in drawn]
    spread = [rms(layer) for layer in zip(*layers, strict=True)]
    power = np.sum(np.mean(features(net, coords, np) ** 2, axis=0))
    first = w0 / net.num_features * np.sqrt(power / 3)
    assert spread[0] == pytest.approx(first, rel=0.12)
    np.testing.assert_allclose(spread[1:-1], 1.0, rtol=0.07)
    assert spread[-1] == pytest.approx(1 / w0, rel=0.15)  # the linear layer: not multiplied by w0


@pytest.mark.parametrize("encoding", [None, STRUEMPLER], ids=["bare", "encoded"])
def test_init_fills_its_bounds(encoding) -> None:
    net = Siren(96, 3, w0=20.0, encoding=encoding)
    params = init(net, key(0))
    for i, (name, shapes) in enumerate(net.shapes().items()):
        fan_in = shapes["weight"][1]
        bounds = {
            "weight": 1 / fan_in if i == 0 else np.sqrt(6 / fan_in) / 20,
            "bias": fan_in**-0.5,
        }
        for part, bound in bounds.items():
            largest = np.abs(np.asarray(params[name][part])).max()
            assert largest <= bound * (1 + 1e-6)
            if params[name][part].size > 90:
                assert largest > 0.95 * bound


def test_init_depends_on_the_key_and_draws_every_tensor_anew() -> None:
    net = Siren(16, 4)
    one, again, two = (init(net, key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(trees.ravel(one), trees.ravel(again))
    assert not np.any(trees.ravel(one) == trees.ravel(two))
    middle = [np.asarray(one[layer_name(i)]["weight"]) for i in (1, 2, 3)]
    assert not np.any(middle[0] == middle[1])
    assert not np.any(middle[1] == middle[2])


@pytest.mark.parametrize(
    ("depth", "width", "count"),
    [(5, 20, 1803), (5, 30, 3903), (10, 28, 7479), (10, 40, 15003), (13, 49, 29697)],
)
def test_coin_s_published_sizes(depth, width, count) -> None:
    assert Siren(width, depth).num_params == count


@pytest.mark.parametrize(("width", "count"), [(32, 5411), (48, 10419), (64, 16963), (128, 58499)])
def test_struempler_s_published_sizes(width, count) -> None:
    net = Siren(width, 4, encoding=STRUEMPLER)
    assert net.num_features == 66
    assert net.num_params == count
    assert trees.count(init(net, key(0))) == count


@pytest.mark.parametrize(
    "net", [Siren(5, 3), Siren(4, 2, in_dim=3, out_dim=1, encoding=STRUEMPLER)]
)
def test_init_has_the_stated_shapes_and_dtype(net) -> None:
    params = init(net, key(0))
    expected = dict(trees.leaves(net.shapes()))
    found = {path: leaf.shape for path, leaf in trees.leaves(params)}
    assert found == expected
    assert {leaf.dtype for _, leaf in trees.leaves(params)} == {np.dtype(np.float32)}


def test_sorted_names_are_the_order_of_the_network() -> None:
    net = Siren(2, 40)
    assert sorted(net.shapes()) == list(net.shapes()) == [layer_name(i) for i in range(41)]
    flattened = jax.tree.leaves(jax.eval_shape(net.init, key(0)))  # bias, weight, bias, ...
    assert [leaf.shape for leaf in flattened[::2]] == [(2,)] * 40 + [(3,)]


# ---------------------------------------------------------------------------- evaluation


NETS = {
    "coin": Siren(12, 5),
    "encoded": Siren(16, 4, encoding=STRUEMPLER),
    "audio": Siren(8, 3, w0=12.0, in_dim=1, out_dim=1),
    "volume": Siren(8, 2, in_dim=3, out_dim=4, encoding=Encoding(3, 2.0)),
    "shallow": Siren(1, 1, out_dim=1),
}
POINTS = HOST_TILE + 37  # a whole tile of the host decoder, and a part of one


@cache
def example(name: str):
    """(net, params, coords (POINTS, in_dim), apply's values) as numpy arrays; net by name."""
    net = NETS[name]
    params = jax.tree.map(np.asarray, init(net, key(7)))
    coords = np.random.default_rng(3).uniform(-1, 1, (POINTS, net.in_dim)).astype(np.float32)
    return net, params, coords, np.asarray(apply(net, params, coords))


@pytest.mark.parametrize("name", NETS)
def test_apply_is_the_written_out_formula(name) -> None:
    net, params, coords, value = example(name)
    wide = jax.tree.map(np.float64, params)
    exact = naive(net, wide, coords.astype(np.float64), np)
    plain = jax.jit(lambda params, coords: naive(net, params, coords, jnp))(params, coords)
    assert value.shape == (POINTS, net.out_dim)
    assert value.dtype == np.float32
    assert exact.std() > 0.02  # not a constant
    np.testing.assert_allclose(value, exact, atol=3e-5)
    np.testing.assert_allclose(value, plain, atol=3e-5)


@pytest.mark.parametrize("name", NETS)
def test_apply_host_is_apply(name) -> None:
    net, params, coords, value = example(name)
    host = net.apply_host(params, coords)
    assert isinstance(host, np.ndarray)
    assert host.dtype == np.float32
    np.testing.assert_allclose(host, value, atol=1e-5)


@pytest.mark.parametrize("name", ["coin", "encoded"])
def test_apply_host_gives_apply_s_image_within_one_level(name) -> None:
    net, params, _, _ = example(name)
    coords = coordinates(1, POINTS)
    host = to_uint8((net.apply_host(params, coords) + 1) / 2)
    device = to_uint8((np.asarray(apply(net, params, coords)) + 1) / 2)
    assert host.std() > 2  # not a flat picture
    assert np.abs(host.astype(int) - device.astype(int)).max() <= 1


def test_apply_host_of_no_points() -> None:
    net, params, _, _ = example("coin")
    assert net.apply_host(params, np.empty((0, 2), np.float32)).shape == (0, 3)


@pytest.mark.parametrize("name", ["audio", "volume"])
def test_leading_axes_of_coords_are_kept(name) -> None:
    net, params, coords, value = example(name)
    grid = apply(net, params, coords[:300].reshape(5, 6, 10, net.in_dim))
    assert grid.shape == (5, 6, 10, net.out_dim)
    np.testing.assert_allclose(np.reshape(grid, (300, -1)), value[:300], atol=1e-5)
    one = apply(net, params, coords[0])
    assert one.shape == (net.out_dim,)
    np.testing.assert_allclose(one, value[0], atol=1e-5)


@pytest.mark.parametrize("name", ["coin", "volume"])
def test_without_jit_and_in_columns_the_same(name) -> None:
    net, params, coords, value = example(name)
    columns = net.apply_columns(jax.tree.map(jnp.asarray, params), jnp.asarray(coords.T))
    assert columns.shape == (net.out_dim, POINTS)
    np.testing.assert_allclose(columns.T, value, rtol=1e-5, atol=1e-5)


def test_equal_specs_share_one_compilation() -> None:
    net, params, coords, value = example("encoded")
    before = apply._cache_size()
    again = apply(siren_from_dict(siren_to_dict(net)), params, coords)
    assert apply._cache_size() == before
    np.testing.assert_array_equal(again, value)


def test_vmap_over_params_is_a_loop() -> None:
    net, _, coords, _ = example("encoded")
    each = [init(net, key(seed)) for seed in range(3)]
    together = jax.jit(jax.vmap(net.apply, in_axes=(0, None)))(trees.stack(each), coords)
    loop = [apply(net, params, coords) for params in each]
    np.testing.assert_allclose(together, np.stack(loop), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["encoded", "volume"])
def test_gradient_against_finite_differences(name) -> None:
    net, params, coords, _ = example(name)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        wide = jax.tree.map(np.float64, params)
        direction = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), wide)
        points = coords[:50].astype(np.float64)
        loss = jax.jit(lambda params: jnp.mean((net.apply(params, points) - 0.3) ** 2))
        gradient = jax.jit(jax.grad(loss))(wide)
        step = 1e-5
        ends = [
            float(loss(jax.tree.map(lambda p, d, s=s: p + s * d, wide, direction)))
            for s in (step, -step)
        ]
    along = float(trees.ravel(gradient) @ trees.ravel(direction))
    assert along == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-3)


# ---------------------------------------------------------------------------- specs


BAD_SPECS = {
    "no width": partial(Siren, 0, 3),
    "no depth": partial(Siren, 4, 0),
    "no coordinates": partial(Siren, 4, 3, in_dim=0),
    "no outputs": partial(Siren, 4, 3, out_dim=0),
    "w0 of zero": partial(Siren, 4, 3, w0=0.0),
    "negative w0": partial(Siren, 4, 3, w0=-30.0),
    "w0 not a number": partial(Siren, 4, 3, w0=float("nan")),
    "no frequencies": partial(Encoding, 0),
    "ratio of zero": partial(Encoding, 4, 0.0),
    "ratio not a number": partial(Encoding, 4, float("nan")),
    "unknown field": partial(siren_from_dict, {"width": 4, "depth": 3, "colour": 1}),
    "missing field": partial(siren_from_dict, {"width": 4}),
    "unknown field of the encoding": partial(
        siren_from_dict, {"width": 4, "depth": 3, "encoding": {"octaves": 4}}
    ),
    "a text for a number": partial(siren_from_dict, {"width": "4", "depth": 3}),
    "a bad value in a dict": partial(siren_from_dict, {"width": 4, "depth": 0}),
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_a_bad_spec_is_a_value_error(case) -> None:
    with pytest.raises(ValueError):
        BAD_SPECS[case]()


@pytest.mark.parametrize("name", NETS)
def test_a_spec_survives_json(name) -> None:
    again = siren_from_dict(json.loads(json.dumps(siren_to_dict(NETS[name]))))
    assert again == NETS[name]
    assert hash(again) == hash(NETS[name])


def test_encoding_s_frequencies() -> None:
    angular = STRUEMPLER.angular()
    assert angular.dtype == np.float32
    np.testing.assert_allclose(angular[0], np.pi, rtol=1e-6)
    np.testing.assert_allclose(angular[1:] / angular[:-1], 1.4, rtol=1e-6)
    assert len(angular) == 16
