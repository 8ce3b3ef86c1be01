"""Optimisation loops: one datum by `fit`, batches of data by `fit_batch`, and the points they see.

Nothing here knows of images. A datum is a list of coordinates with values, of any length; lists
are cut into tiles that stay in cache, so lists of different lengths share one compiled program.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from inrjax.machine import cpu_count
from inrjax.types import OnProgress, Params

LossFn = Callable[[Any, jax.Array, jax.Array], jax.Array]
"""(params, step, key) -> scalar; ``step`` counts from 0, ``key`` is fresh at every step."""


class FitState(NamedTuple):
    """What a fit carries from one chunk of steps to the next; a checkpoint of it resumes the fit.

    ``best_params`` are those at the end of the window of steps with the lowest mean loss so far,
    ``best_loss`` that mean (inf before the first window ends). ``finite`` turns False at the
    first loss that is not finite, and nothing is updated after that.
    """

    params: Any
    opt_state: Any
    step: jax.Array
    window_loss: jax.Array
    best_params: Any
    best_loss: jax.Array
    finite: jax.Array


class FitResult(NamedTuple):
    """``params``: the best snapshot; ``losses`` (num_steps,); ``finite``: it never diverged."""

    params: Any
    losses: Any
    finite: Any


def start(params: Any, optimizer: optax.GradientTransformation) -> FitState:
    """The state before the first step."""
    return FitState(
        params=params,
        opt_state=optimizer.init(params),
        step=jnp.zeros((), jnp.int32),
        window_loss=jnp.zeros(()),
        best_params=params,
        best_loss=jnp.asarray(jnp.inf),
        finite=jnp.asarray(True),
    )


def advance(
    loss_fn: LossFn,
    state: FitState,
    optimizer: optax.GradientTransformation,
    num_steps: Any,
    window: Any,
    key: jax.Array,
    snapshots_from: Any = 0,
) -> tuple[FitState, jax.Array]:
    """Run ``num_steps`` more steps; returns the state and their losses (num_steps,).

    If ``num_steps`` is traced, it is at most CHUNK_STEPS, and the losses are (CHUNK_STEPS,), of
    which the others are 0.

    ``window``: a snapshot is compared by the mean loss over this many steps. 1 is COIN's rule for
    full-image steps; for pixel subsets, take the steps of an epoch. Snapshots before step
    ``snapshots_from`` do not count: for a loss that changes its meaning there. Chunks of any
    sizes give the same result as one: the key of a step depends on ``key`` and its number only.
    """

    # Some optimisers look at the loss itself.
    update = optax.with_extra_args_support(optimizer).update

    def step(state: FitState, _) -> tuple[FitState, jax.Array]:
        key_step = jax.random.fold_in(key, state.step)
        loss, grads = jax.value_and_grad(loss_fn)(state.params, state.step, key_step)
        updates, opt_state = update(grads, state.opt_state, state.params, value=loss)
        finite = state.finite & jnp.isfinite(loss)
        params = _where(finite, optax.apply_updates(state.params, updates), state.params)
        counts = state.step >= snapshots_from
        window_loss = state.window_loss + jnp.where(counts, loss / window, 0.0)
        ends = counts & ((state.step + 1 - snapshots_from) % window == 0)
        better = finite & ends & (window_loss < state.best_loss)
        # The loss belongs to the params before the update.
        return FitState(
            params=params,
            opt_state=_where(finite, opt_state, state.opt_state),
            step=state.step + 1,
            window_loss=jnp.where(ends, 0.0, window_loss),
            best_params=_where(better, state.params, state.best_params),
            best_loss=jnp.where(better, window_loss, state.best_loss),
            finite=finite,
        ), loss

    if isinstance(num_steps, int):
        return jax.lax.scan(step, state, length=num_steps)

    def numbered(i: Any, carry: tuple[FitState, jax.Array]) -> tuple[FitState, jax.Array]:
        state, loss = step(carry[0], None)
        return state, carry[1].at[i].set(loss)

    return jax.lax.fori_loop(0, num_steps, numbered, (state, jnp.zeros(CHUNK_STEPS)))


def fit(
    loss_fn: LossFn,
    params: Any,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    key: jax.Array,
    window: int = 1,
) -> FitResult:
    """Minimise ``loss_fn`` from ``params``; pure, so it can be jitted, mapped and vmapped.

    Call it inside a jitted function that takes the data as arguments: a loss_fn that closes over
    arrays would be compiled again for each datum. Raises ValueError if no window of steps ends
    within ``num_steps``, since no snapshot would be taken.
    """
    if not 1 <= window <= num_steps:
        raise ValueError(f"got a window of {window} steps, expected 1 to {num_steps}")
    state = start(params, optimizer)
    state, losses = advance(loss_fn, state, optimizer, num_steps, window, key)
    return FitResult(state.best_params, losses, state.finite)


def _where(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


# ---------------------------------------------------------------------------- points and tiles


class Points(NamedTuple):
    """A list of points in shuffled order, cut into tiles; a batch has further leading axes.

    coords (tiles, in_dim, tile), pixels (tiles, out_dim, tile), weights (tiles, tile): 1 for a
    point, 0 for padding; num_tiles: int32 scalar, the tiles that hold at least one point.
    """

    coords: Any
    pixels: Any
    weights: Any
    num_tiles: Any


class Tiling(NamedTuple):
    """How many points a tile has, and how many tiles a step sees. Static."""

    tile: int
    tiles_per_step: int


MAX_TILE = 4096
"""Points of a tile at most: tiles are drawn at random, `piece_of` points are worked on at once."""


def tiling(num_points: int, points_per_step: int) -> Tiling:
    """The tiling of a list: it depends on the list's own length only, never on its batch.

    A tile is a power of two from 64 to `MAX_TILE` points, so that small data share few programs; a
    step sees whole tiles, hence ``points_per_step`` rounded up to them.
    """
    tile = min(MAX_TILE, max(64, 1 << (min(num_points, points_per_step) - 1).bit_length()))
    steps_tiles = -(-min(num_points, points_per_step) // tile)
    return Tiling(tile, steps_tiles)


def bucket(num_tiles: int) -> int:
    """The padded length of a list of tiles: 1, 2, 3, 4, 6, 8, 12, 16, ... (waste <= 1/3)."""
    power = 1 << (num_tiles - 1).bit_length()
    return 3 * power // 4 if power >= 4 and num_tiles <= 3 * power // 4 else power


def make_points(
    coords: np.ndarray, pixels: np.ndarray, tile: int, num_tiles: int, seed: int
) -> Points:
    """Shuffle a list and cut it into ``num_tiles`` tiles of ``tile`` points, zero-padded.

    Args:
      coords: float32 (n, in_dim). pixels: float32 (n, out_dim). seed: of the shuffle.

    Raises:
      ValueError: the list is empty or does not fit.
    """
    count = len(coords)
    if not 0 < count <= tile * num_tiles:
        raise ValueError(f"got {count} points, expected 1 to {tile * num_tiles}")
    order = np.random.default_rng(seed).permutation(count)

    def cut(values: np.ndarray) -> np.ndarray:
        padded = np.zeros((num_tiles * tile, values.shape[1]), np.float32)
        padded[:count] = values[order]
        return np.ascontiguousarray(padded.reshape(num_tiles, tile, -1).transpose(0, 2, 1))

    weights = (np.arange(num_tiles * tile) < count).astype(np.float32).reshape(num_tiles, tile)
    return Points(cut(coords), cut(pixels), weights, np.int32(-(-count // tile)))


def draw_tiles(points: Points, tiles_per_step: int, step: jax.Array, key: jax.Array) -> jax.Array:
    """The tiles of a step, int32 (tiles_per_step,): drawn without replacement within an epoch.

    An epoch is a fresh permutation of the tiles that hold points. It does not depend on the
    padding: the order comes from a random number that belongs to each tile. ``key`` is the
    same at every step.
    """
    steps_per_epoch = jnp.maximum(points.num_tiles // tiles_per_step, 1)
    key_epoch = jax.random.fold_in(key, step // steps_per_epoch)
    tiles = jnp.arange(points.weights.shape[-2])
    ranks = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key_epoch, i)))(tiles)
    order = jnp.argsort(jnp.where(tiles < points.num_tiles, ranks, jnp.inf))
    first = (step % steps_per_epoch) * tiles_per_step
    return order[(first + jnp.arange(tiles_per_step)) % points.num_tiles]


TileLoss = Callable[[Params, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Params]]
"""(params, coords (in_dim, n), pixels (out_dim, n), weights (n,)) -> the sum over the points of
their weighted squared errors (each the mean over out_dim), and its gradient by params."""


def squared_error(apply_fn: Callable[[Params, jax.Array], jax.Array]) -> TileLoss:
    """The `TileLoss` of a net given as (params, coords (in_dim, n)) -> pixels (out_dim, n)."""

    def tile_sum(params, coords, pixels, weights):
        error = apply_fn(params, coords) - pixels
        return jnp.sum(weights * jnp.mean(error * error, axis=0))

    return jax.value_and_grad(tile_sum)


CACHED_ACTIVATIONS = 1 << 15
"""Activations of one layer that a CPU core works on at once: those of all layers then stay in its
own cache."""


def piece_of(width: int) -> int | None:
    """Points of a tile to work on at once, for a net whose layers have ``width`` neurons.

    On a CPU a power of two: 1024 at width 32, 512 at 64, 256 at 128. Of 128, 256, 512, 1024 and
    2048 these were the fastest, or within 4 % of it, at widths 24 to 128. None, for whole tiles, on
    an accelerator.
    """
    if jax.default_backend() != "cpu":
        return None
    return max(64, 1 << (max(1, CACHED_ACTIVATIONS // width).bit_length() - 1))


MAX_GROUPS = 16
"""Partial sums of a step at most, and so the devices that can share the points of one datum."""


@partial(jax.custom_vjp, nondiff_argnums=(0, 4, 5))
def tiled_mse(
    tile_loss: TileLoss,
    params: Params,
    points: Points,
    tiles: jax.Array,
    piece: int | None = None,
    axis: str | None = None,
) -> jax.Array:
    """Mean squared error over the points of the given tiles, (tiles_per_step,) of indices.

    The mean runs over points of weight 1 and over output dimensions. Gradients are accumulated
    piece by piece in the forward pass, so no activation outlives its ``piece`` of points (a power
    of two; None for whole tiles); first derivatives with respect to params only. ``axis``: a mesh
    axis whose devices hold the same arguments and share the work; the result has the same bits
    with and without it, since pieces are added in one fixed order.
    """
    return _tiled_mse_forward(tile_loss, params, points, tiles, piece, axis)[0]


def _tiled_mse_forward(tile_loss, params, points, tiles, piece, axis):
    tile = points.weights.shape[-1]
    size = min(tile, piece or tile)

    def add_piece(carry, index):
        which, first = tiles[index // (tile // size)], index % (tile // size) * size
        cut = [
            jax.lax.dynamic_slice_in_dim(leaf[which], first, size, -1)
            for leaf in (points.coords, points.pixels, points.weights)
        ]
        return jax.tree.map(jnp.add, carry, tile_loss(params, *cut)), None

    def group(_, indices):
        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        return None, jax.lax.scan(add_piece, zero, indices)[0]

    groups = _groups(tiles.shape[0] * (tile // size))
    total, grads = _tree_sum(group, groups, axis)
    count = jnp.sum(points.weights[tiles])
    return total / count, (jax.tree.map(lambda g: g / count, grads), points, tiles)


def _groups(num_pieces: int) -> np.ndarray:
    """int32 (groups, pieces of each): the pieces in equal groups, as many as a power of two up to
    `MAX_GROUPS` gives."""
    count = MAX_GROUPS
    while num_pieces % count:
        count //= 2
    return np.arange(num_pieces, dtype=np.int32).reshape(count, -1)


def _tree_sum(group, groups: np.ndarray, axis: str | None):
    """The sum of ``group`` over the rows of ``groups``, added in pairs, in pairs of pairs, and so
    on; with an ``axis``, each of its devices works on an equal share of consecutive rows."""
    num_devices = 1 if axis is None else jax.lax.axis_size(axis)
    shares = min(num_devices, len(groups))
    own = jnp.asarray(groups)
    if axis is not None:
        # More devices than groups: neighbours do the same work.
        share = jax.lax.axis_index(axis) * shares // num_devices
        own = own.reshape(shares, -1, groups.shape[1])[share]
    partial_sums = _add_in_pairs(jax.lax.scan(group, None, own)[1])
    if axis is None:
        return partial_sums
    # As one vector: devices wait for one another in each gathering.
    vector, unravel = ravel_pytree(partial_sums)
    every = jax.lax.all_gather(vector, axis)
    return unravel(_add_in_pairs(every[:: num_devices // shares]))


def _add_in_pairs(tree: Any) -> Any:
    """The sum over the leading axis, a power of two long."""

    def add(leaf):
        while leaf.shape[0] > 1:
            leaf = leaf[0::2] + leaf[1::2]
        return leaf[0]

    return jax.tree.map(add, tree)


def _tiled_mse_backward(tile_loss, piece, axis, residuals, cotangent):
    grads, points, tiles = residuals
    zeros = jax.tree.map(jnp.zeros_like, points._replace(num_tiles=np.zeros((), jax.dtypes.float0)))
    no_tiles = np.zeros(tiles.shape, jax.dtypes.float0)
    return jax.tree.map(lambda g: cotangent * g, grads), zeros, no_tiles


tiled_mse.defvjp(_tiled_mse_forward, _tiled_mse_backward)


# ---------------------------------------------------------------------------- batches


def use_every_core() -> None:
    """Make each core that this process may use a JAX device, over which `fit_batch` spreads work.

    Only before JAX has computed anything; after that its devices stay as they are. There are two
    devices at least: XLA compiles for one alone otherwise, and its bits differ.
    """
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", max(2, cpu_count()))


class Plan(Protocol):
    """How to fit one datum: a pytree. Plans that differ in leaves alone share one compilation.

    A dataclass under `inrjax.optimizers.traced`, whose numbers that no shape depends on are
    leaves: within its methods they are traced. ``shared`` is a pytree that all data of a batch see
    (an init, a random key), ``datum`` one item. Both methods are pure.
    """

    @property
    def num_steps(self) -> Any:
        """Steps of a whole fit."""
        ...

    def start(self, shared: Any, datum: Any) -> FitState:
        """The state before the first step."""
        ...

    def advance(
        self, shared: Any, datum: Any, state: FitState, num_steps: Any, axis: str | None
    ) -> tuple[FitState, jax.Array]:
        """``num_steps`` (traced) more steps, and their losses, as `advance` gives them. ``axis``: a
        mesh axis whose devices share the work of this datum, to be passed on to `tiled_mse`; None
        for a device of its own."""
        ...


CHUNK_STEPS = 100
"""Steps between two points where a batch reports progress and may be stopped, at most."""


def fit_batch(
    plan: Plan, shared: Any, data: Sequence[Any], on_progress: OnProgress | None = None
) -> list[FitResult]:
    """Fit every datum of a list; results as host arrays, in order.

    Data are sharded over all of this process's JAX devices. A CPU device takes one datum at a
    time, since its cache holds one fit, and if there are fewer data than devices, several devices
    share a datum's points; a datum has the same bits in either case. An accelerator takes its
    whole share at once. ``on_progress`` counts steps over all data, and may raise to stop.

    Raises:
      ValueError: the data have different shapes (pad them to a common `bucket`).
      TypeError: a leaf of the plan is no number, as where a choice of an optimiser is no pytree.
    """
    if not data:
        return []
    for leaf in jax.tree.leaves(plan):
        if not isinstance(leaf, (int, float, np.generic, np.ndarray, jax.Array)):
            raise TypeError(
                f"got a plan with a {type(leaf).__name__} where a number was expected: put that "
                "class under inrjax.optimizers.traced"
            )
    if len({str(jax.tree.map(np.shape, datum)) for datum in data}) > 1:
        raise ValueError("got data of different shapes, expected one: pad them to one bucket")
    layout = _layout(len(data))
    results: list[FitResult] = []
    for first in range(0, len(data), layout.size):
        group = list(data[first : first + layout.size])

        def report(done: int, total: int, first=first, group=group) -> None:
            if on_progress is not None:
                on_progress(first * total + len(group) * done, len(data) * total)

        results += _fit_group(plan, shared, group, layout, report)
    return results


class _Layout(NamedTuple):
    """How data lie on devices: a mesh of ("data", "points"), and how many data are fitted at once:
    ``size`` in all, ``at_once`` by one device (None: one after the other)."""

    mesh: jax.sharding.Mesh
    size: int
    at_once: int | None

    @property
    def axis(self) -> str | None:
        """The axis whose devices share a datum, if they do."""
        return "points" if self.mesh.shape["points"] > 1 else None


def _layout(num_data: int) -> _Layout:
    devices = jax.local_devices()
    is_cpu = devices[0].platform == "cpu"
    sharing = 1
    while is_cpu and len(devices) % (2 * sharing) == 0 and 2 * sharing * num_data <= len(devices):
        sharing *= 2
    rows = len(devices) // sharing
    mesh = jax.make_mesh(
        (rows, sharing), ("data", "points"), (jax.sharding.AxisType.Auto,) * 2, devices=devices
    )
    per_device = 1 if is_cpu else -(-num_data // rows)
    return _Layout(mesh, rows * per_device, None if is_cpu else per_device)


def _fit_group(plan, shared, group, layout: _Layout, on_progress: OnProgress):
    """Fit up to layout.size data as one sharded program. Places that are left hold a copy of the
    last datum that is not fitted: the program is the same for any number of data, and so are the
    bits of each (XLA compiles another for fewer devices, which rounds otherwise).
    """
    padded = group + group[-1:] * (layout.size - len(group))
    by_datum = jax.NamedSharding(layout.mesh, jax.P("data"))
    stacked = jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *padded), by_datum)
    shared = jax.device_put(shared, jax.NamedSharding(layout.mesh, jax.P()))
    active = jax.device_put(np.arange(layout.size) < len(group), by_datum)
    _, advance_group = _programs(layout.mesh.devices.flat[0].platform)
    losses = []
    state = _start(plan, layout, shared, (active, stacked))
    for done, steps in _chunks(plan.num_steps):
        state, chunk_losses = advance_group(layout, (plan, shared), steps, (active, stacked), state)
        losses.append(np.asarray(chunk_losses)[..., :steps])
        on_progress(done + steps, plan.num_steps)
    result = FitResult(state.best_params, np.concatenate(losses, axis=-1), state.finite)
    host = jax.tree.map(np.asarray, result)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], host) for i in range(len(group))]


def _start(plan, layout: _Layout, shared, data):
    """The states before the first step. Both programs of a fit are compiled at the same time:
    XLA works beside Python, and takes seconds for the one that advances. Where they are compiled
    already, this costs milliseconds."""
    start_group, advance_group = _programs(layout.mesh.devices.flat[0].platform)
    by_datum = jax.NamedSharding(layout.mesh, jax.P("data"))
    # As start_group will return them, weak types included, or advance_group is compiled twice.
    states = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=by_datum, weak_type=leaf.weak_type
        ),
        start_group.eval_shape(layout, (plan, shared), data[1]),
    )
    with ThreadPoolExecutor(1) as pool:
        advancing = advance_group.lower(layout, (plan, shared), CHUNK_STEPS, data, states)
        compiled = pool.submit(advancing.compile)
        started = start_group(layout, (plan, shared), data[1])
        compiled.result()
    return started


def _chunks(num_steps: int) -> list[tuple[int, int]]:
    """(steps done, steps to do) of each chunk."""
    return [(done, min(CHUNK_STEPS, num_steps - done)) for done in range(0, num_steps, CHUNK_STEPS)]


@cache
def compiler_options(platform: str) -> dict[str, Any]:
    """XLA's options for programs that fit, as `jax.jit` takes them; none where XLA lacks one.

    LLVM prefers vectors of 256 bits on CPUs that have 512; the sines gain a quarter by the wider
    ones, a step 15 %. LLVM's third level of optimisation takes 15 % longer than its second at width
    32, and gives no faster program. Each core has a fit of its own to do: to split its loops over
    the threads of the others costs time, and makes the bits depend on how many there are.
    """
    return known_options(
        platform,
        {
            "xla_cpu_prefer_vector_width": 512,
            "xla_backend_optimization_level": 2,
            "xla_disable_hlo_passes": "cpu-parallel-task-assigner",
        },
    )


def known_options(platform: str, options: dict[str, Any]) -> dict[str, Any]:
    """These options of XLA for a CPU, as `jax.jit` takes them; none on another platform, none where
    XLA lacks one, and none for who has set JAX_DISABLE_MOST_OPTIMIZATIONS: they would undo it."""
    if platform != "cpu" or jax.config.read("jax_disable_most_optimizations"):
        return {}
    try:
        probe = jax.jit(lambda x: x + 1, compiler_options=options)
        probe.lower(jax.ShapeDtypeStruct((), jnp.float32)).compile()
    except jax.errors.JaxRuntimeError:  # another version of XLA
        return {}
    return options


@cache
def _programs(platform: str):
    options = compiler_options(platform)
    return (
        jax.jit(_start_group, static_argnums=0, compiler_options=options),
        jax.jit(_advance_group, static_argnums=0, donate_argnums=4, compiler_options=options),
    )


# ``common``: a plan and what it calls shared.


def _start_group(layout: _Layout, common, data):
    def on_device(common, own):
        plan, shared = common
        return jax.lax.map(lambda datum: plan.start(shared, datum), own, batch_size=layout.at_once)

    return _per_device(on_device, layout.mesh, 1, 1)(common, data)


def _advance_group(layout: _Layout, common, num_steps, data, states):
    def on_device(common, num_steps, own, states):
        plan, shared = common

        def advance_one(args):
            (active, datum), state = args
            return jax.lax.cond(
                active,
                lambda: plan.advance(shared, datum, state, num_steps, layout.axis),
                lambda: (state, jnp.zeros(CHUNK_STEPS)),
            )

        return jax.lax.map(advance_one, (own, states), batch_size=layout.at_once)

    return _per_device(on_device, layout.mesh, 2, 2)(common, num_steps, data, states)


# check_vma=False: every value that is differentiated belongs to one datum, so that no sum over
# devices may be added to a gradient.
def _per_device(function, mesh, num_common: int, num_sharded: int):
    by_datum = jax.P("data")
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(*[jax.P()] * num_common, *[by_datum] * num_sharded),
        out_specs=by_datum,
        check_vma=False,
    )
