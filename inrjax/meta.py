"""Meta-learning of an init: MAML (Finn et al. 2017, arXiv:1703.03400), first-order MAML, Meta-SGD
(Li et al. 2017, arXiv:1707.09835) and Reptile (Nichol et al. 2018, arXiv:1803.02999).

`advance` is MAML with an inner learning rate for each parameter and each inner step, learned too
(the setting of Strümpler et al. 2022, arXiv:2112.04267). The others are a choice of the rates that
meta-training starts with, and of the `TaskGradient` that `advance_by` follows. Pure functions over
pytrees that know nothing of images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

TaskLoss = Callable[[Any, Any], jax.Array]
"""(params, data) -> scalar."""


class MetaParams(NamedTuple):
    """``params``: the init. ``rates``: inner learning rates, the same tree; each leaf has, or
    broadcasts to, a leading axis of inner_steps before the shape of its parameter. An empty tree
    for `reptile`, which has none."""

    params: Any
    rates: Any


class Task(NamedTuple):
    """Data of one task: ``inner`` has a leading axis of inner_steps, one slice for each step;
    ``outer`` is what the adapted params are judged on."""

    inner: Any
    outer: Any


class MetaState(NamedTuple):
    """What meta-training carries on, and checkpoints. ``step``: int32, outer steps done."""

    meta: MetaParams
    opt_state: Any
    step: jax.Array


def init_meta(params: Any, inner_steps: int, rate: float) -> MetaParams:
    """Meta params that start at ``params``, with every inner rate at ``rate``."""
    if inner_steps < 1:
        raise ValueError(f"got inner_steps={inner_steps}, expected at least 1")
    rates = jax.tree.map(lambda p: jnp.full((inner_steps, *jnp.shape(p)), rate), params)
    return MetaParams(params, rates)


def init_meta_sgd(params: Any, rate: float) -> MetaParams:
    """Meta params that start at ``params``, with one inner rate for each parameter at all inner
    steps: Meta-SGD's (Li et al. 2017, eq. 3)."""
    return MetaParams(params, jax.tree.map(lambda p: jnp.full((1, *jnp.shape(p)), rate), params))


def init_meta_scalar(params: Any, rate: float) -> MetaParams:
    """Meta params that start at ``params``, with one inner rate for each leaf: MAML's where
    `fixed_rates` keeps them as they are."""
    return MetaParams(params, jax.tree.map(lambda _: jnp.full((), rate), params))


def spread_rates(meta: MetaParams, inner_steps: int) -> Any:
    """The rate of each parameter at each inner step: leaves ``(inner_steps, ...)``."""
    return jax.tree.map(
        lambda p, rate: jnp.broadcast_to(rate, (inner_steps, *jnp.shape(p))),
        meta.params,
        meta.rates,
    )


def adapt(loss_fn: TaskLoss, meta: MetaParams, inner: Any, first_order: bool) -> Any:
    """The params after the inner steps: params - rate * gradient, once for each slice of data.

    ``first_order`` treats the inner gradients as constants (first-order MAML): a derivative
    through the result then lacks the Hessian terms, and is cheaper. The value is the same.
    """

    def inner_step(params, rates_and_data):
        rates, data = rates_and_data
        grads = jax.grad(loss_fn)(params, data)
        if first_order:
            grads = jax.lax.stop_gradient(grads)
        return jax.tree.map(lambda p, a, g: p - a * g, params, rates, grads), None

    rates = spread_rates(meta, _inner_steps(inner))
    return jax.lax.scan(inner_step, meta.params, (rates, inner))[0]


def _inner_steps(inner: Any) -> int:
    return jax.tree.leaves(inner)[0].shape[0]


def meta_loss(loss_fn: TaskLoss, meta: MetaParams, task: Task, first_order: bool) -> jax.Array:
    """The loss of the adapted params on the task's outer data (Finn et al. 2017, eq. 1)."""
    return loss_fn(adapt(loss_fn, meta, task.inner, first_order), task.outer)


TaskGradient = Callable[[MetaParams, Task], tuple[jax.Array, MetaParams]]
"""(meta params, task) -> the loss of the adapted params on the task's outer data, and what an
outer optimiser is to descend."""


def maml(loss_fn: TaskLoss, first_order: bool) -> TaskGradient:
    """The gradient of `meta_loss`, for params and rates: MAML, or first-order MAML."""

    def gradient(meta: MetaParams, task: Task) -> tuple[jax.Array, MetaParams]:
        return jax.value_and_grad(lambda m: meta_loss(loss_fn, m, task, first_order))(meta)

    return gradient


def fixed_rates(task_gradient: TaskGradient) -> TaskGradient:
    """The same for params, and 0 for the rates, which an outer optimiser then leaves alone."""

    def gradient(meta: MetaParams, task: Task) -> tuple[jax.Array, MetaParams]:
        loss, grads = task_gradient(meta, task)
        return loss, grads._replace(rates=jax.tree.map(jnp.zeros_like, grads.rates))

    return gradient


def reptile(loss_fn: TaskLoss, inner: optax.GradientTransformation) -> TaskGradient:
    """Params less what they become after a step of ``inner``, begun anew for each task, on each
    slice of its inner data.

    Descended with a rate of epsilon and averaged over tasks this is Reptile's outer update, params
    + epsilon * mean(adapted - params) (Nichol et al. 2018, algorithm 2). Rates play no part; the
    task's outer data are for the loss that is returned alone.
    """

    def gradient(meta: MetaParams, task: Task) -> tuple[jax.Array, MetaParams]:
        def inner_step(carry, data):
            params, opt_state = carry
            grads = jax.grad(loss_fn)(params, data)
            updates, opt_state = inner.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        begin = (meta.params, inner.init(meta.params))
        (adapted, _), _ = jax.lax.scan(inner_step, begin, task.inner)
        away = jax.tree.map(jnp.subtract, meta.params, adapted)
        zeros = jax.tree.map(jnp.zeros_like, meta.rates)
        return loss_fn(adapted, task.outer), MetaParams(away, zeros)

    return gradient


def start(meta: MetaParams, optimizer: optax.GradientTransformation) -> MetaState:
    """The state before the first outer step."""
    return MetaState(meta, optimizer.init(meta), jnp.zeros((), jnp.int32))


def advance(
    loss_fn: TaskLoss,
    sample_tasks: Callable[[jax.Array], Task],
    state: MetaState,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    first_order: bool,
    key: jax.Array,
    axis: str | None = None,
) -> tuple[MetaState, jax.Array]:
    """`advance_by` the gradient of `maml`: params and rates are learned."""
    gradient = maml(loss_fn, first_order)
    return advance_by(gradient, sample_tasks, state, optimizer, num_steps, key, axis)


def advance_by(
    task_gradient: TaskGradient,
    sample_tasks: Callable[[jax.Array], Task],
    state: MetaState,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    key: jax.Array,
    axis: str | None = None,
) -> tuple[MetaState, jax.Array]:
    """Run ``num_steps`` more times `outer_step`; returns the state and the losses (num_steps,)."""

    def step(state: MetaState, _) -> tuple[MetaState, jax.Array]:
        return outer_step(task_gradient, sample_tasks, state, optimizer, key, axis)

    return jax.lax.scan(step, state, length=num_steps)


def outer_step(
    task_gradient: TaskGradient,
    sample_tasks: Callable[[jax.Array], Task],
    state: MetaState,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    axis: str | None = None,
) -> tuple[MetaState, jax.Array]:
    """One outer step; returns the state and the tasks' mean loss.

    ``sample_tasks(key)`` gives a batch: a Task whose leaves have a leading axis of tasks, mapped
    one after the other, so that memory holds the derivatives of one task. The key of a step
    depends on ``key`` and its number: chunks of any sizes, and a resumed run, give the same.
    A step whose loss or gradient is not finite is skipped.

    ``axis``: within `jax.shard_map`, the mesh axis whose devices share out the tasks. Each then
    holds the gradients of all tasks, and adds them in the order of tasks as one device does: no
    partial sums, so that the number of devices changes what XLA rounds, but not what is computed.
    """
    tasks = sample_tasks(jax.random.fold_in(key, state.step))
    losses, grads = _each_task(lambda task: task_gradient(state.meta, task), tasks, axis)
    grads = jax.tree.map(lambda g: jnp.mean(g, axis=0), grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.meta)
    moved: Any = optax.apply_updates(cast(Any, state.meta), updates)
    proposed = MetaState(moved, opt_state, state.step)
    finite = jnp.isfinite(losses).all() & jnp.isfinite(optax.tree.norm(grads))
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), proposed, state)
    return kept._replace(step=state.step + 1), jnp.mean(losses)


def _each_task(function: Callable[[Any], Any], tasks: Any, axis: str | None) -> Any:
    """``function`` of each task, stacked, on every device of a mesh axis that shares the work."""
    if axis is None:
        return jax.lax.map(function, tasks)
    count = jax.tree.leaves(tasks)[0].shape[0]
    per_device = -(-count // jax.lax.axis_size(axis))
    first = jax.lax.axis_index(axis) * per_device

    def task(i):  # where devices are left over, they repeat the last task
        return jax.tree.map(lambda leaf: leaf[jnp.minimum(first + i, count - 1)], tasks)

    def add(i, done):
        return jax.tree.map(lambda all_, one: all_.at[i].set(one), done, function(task(i)))

    like = jax.eval_shape(function, jax.eval_shape(task, 0))
    empty = jax.tree.map(lambda leaf: jnp.zeros((per_device, *leaf.shape), leaf.dtype), like)
    # A loop of one turn would be compiled into what surrounds it, and round otherwise than a longer
    # one: so XLA must not see how many turns there are.
    turns = jnp.where(first >= 0, per_device, 0)
    done = jax.lax.fori_loop(0, turns, add, empty)
    return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, axis, tiled=True)[:count], done)
