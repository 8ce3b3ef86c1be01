"""What a fit steps with: choices of an optimiser, each built for a number of steps.

A choice is a pytree whose leaves are its rates: under `jax.jit` they, and the number of steps, may
be traced, so that fits of any rates and lengths share one compiled program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import optax

T = TypeVar("T")

Number: TypeAlias = Any
"""A Python number, or a traced scalar."""


def traced(*names: str) -> Callable[[type[T]], type[T]]:
    """Make a dataclass a pytree whose leaves are the fields of these names; the others must be
    hashable, and are compiled into the programs that take it."""

    def register(cls: type[T]) -> type[T]:
        others = [field.name for field in fields(cls) if field.name not in names]  # pyright: ignore
        return jax.tree_util.register_dataclass(cls, names, others)

    return register


def cosine_decay(learning_rate: Number, num_steps: Number, final: Number = 0.0) -> optax.Schedule:
    """From ``learning_rate`` to ``final`` times it along half a cosine, constant after that.

    As optax's, which looks at its arguments in Python and so takes no traced ones.
    """

    def schedule(count: Any) -> Any:
        decay = (1 + jnp.cos(jnp.pi * jnp.minimum(count, num_steps) / num_steps)) / 2
        return learning_rate * ((1 - final) * decay + final)

    return schedule


class Optimizer(Protocol):
    """A choice of an optax optimiser, built for a number of steps, which may be traced: a dataclass
    under `traced`."""

    @property
    def learning_rate(self) -> float:
        """Its highest learning rate, a field that `dataclasses.replace` can lower."""
        ...

    def build(self, num_steps: Number) -> optax.GradientTransformation:
        """The optimiser with its schedule."""
        ...


# optax's own coefficients and number of steps. Given one by one, they are scanned over rather than
# unrolled, which compiles in 0.3 s less.
_NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5


@traced("learning_rate")
@dataclass(frozen=True)
class Muon:
    """Muon (Jordan et al. 2024) for weight matrices and Adam for the rest, both on a cosine decay
    to 0. optax gives every leaf that is not 2-D to Adam, so it must not see stacked params."""

    learning_rate: float

    def build(self, num_steps: Number) -> optax.GradientTransformation:
        """The optimiser for a fit of this many steps."""
        rate = cosine_decay(self.learning_rate, num_steps)
        return optax.contrib.muon(rate, adam_learning_rate=rate, ns_coeffs=_NEWTON_SCHULZ)


@traced("learning_rate", "final")
@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015), on a cosine decay to ``final`` times its rate: 1 is the constant
    rate that COIN uses."""

    learning_rate: float
    final: float = 1.0

    def build(self, num_steps: Number) -> optax.GradientTransformation:
        """The optimiser for a fit of this many steps."""
        return optax.adam(cosine_decay(self.learning_rate, num_steps, self.final))


@traced("learning_rate")
@dataclass(frozen=True)
class PlateauAdam:
    """Adam at a rate that is halved whenever the loss has stopped falling: Strümpler et al. 2022.

    ``patience``: steps in which no loss was lower than the lowest by 1e-4 of it. ``average``: steps
    whose mean counts as a loss: 1 for full-image steps; for pixel subsets, the steps of an epoch,
    or one lucky subset would be the lowest for ever. ``warmup``: steps in which the rate rises
    from 0.
    """

    learning_rate: float
    patience: int = 500
    average: int = 1
    warmup: int = 0

    def build(self, num_steps: Number) -> optax.GradientTransformation:
        """The optimiser; its schedule does not depend on the number of steps."""
        rising = optax.linear_schedule(0.0, self.learning_rate, max(1, self.warmup))
        halving = optax.contrib.reduce_on_plateau(
            factor=0.5,
            patience=max(1, round(self.patience / self.average)),
            rtol=1e-4,
            accumulation_size=self.average,
        )
        return optax.chain(optax.adam(rising if self.warmup else self.learning_rate), halving)


@traced("learning_rate")
@dataclass(frozen=True)
class Soap:
    """SOAP (Vyas et al. 2024, arXiv:2409.11321) for weight matrices and Adam for the rest, both on
    a cosine decay to 0. As for `Muon`, params must not be stacked; see `scale_by_soap`.

    ``refresh``: steps from one refresh of the eigenbases to the next, >= 1.
    """

    learning_rate: float
    refresh: int = 10

    def build(self, num_steps: Number) -> optax.GradientTransformation:
        """The optimiser for a fit of this many steps."""
        rate = cosine_decay(self.learning_rate, num_steps)
        soap = optax.chain(scale_by_soap(refresh=self.refresh), optax.scale_by_learning_rate(rate))
        return optax.partition({"matrix": soap, "rest": optax.adam(rate)}, _labels)


def _labels(params: Any) -> Any:
    return jax.tree.map(lambda leaf: "matrix" if leaf.ndim == 2 else "rest", params)


class SoapState(NamedTuple):
    """What SOAP carries: ``count`` int32; for each (m, n) leaf the first moment ``mu`` of its
    gradients and the second ``nu`` in the eigenbasis, (m, n); Shampoo's factors ``left`` (m, m)
    and ``right`` (n, n), and their eigenvectors as columns, ``left_basis`` and ``right_basis``."""

    count: jax.Array
    mu: Any
    nu: Any
    left: Any
    right: Any
    left_basis: Any
    right_basis: Any


def scale_by_soap(
    b1: float = 0.95, b2: float = 0.95, eps: float = 1e-8, refresh: int = 10
) -> optax.GradientTransformation:
    """Adam in the eigenbasis of Shampoo's preconditioner (arXiv:2409.11321, algorithm 3).

    Every leaf is a matrix. The first step moves nothing: its gradient gives the bases, by an
    eigendecomposition. Every ``refresh`` steps they follow, by one step of power iteration and a
    QR decomposition. Both moments have Adam's bias correction. Under vmap the condition becomes a
    choice, so that every step pays for both decompositions: map over fits (`jax.lax.map`) instead.

    Args:
      b1, b2: decay of the first moment, and of the second and of Shampoo's factors, in [0, 1).
      eps: added to the root of the second moment. refresh: >= 1.

    Raises:
      ValueError: refresh < 1, or (when it starts) a leaf is not a matrix.
    """
    if refresh < 1:
        raise ValueError(f"got refresh {refresh}, expected at least 1")

    def init(params):
        leaves = jax.tree.leaves(params)
        if any(leaf.ndim != 2 for leaf in leaves):
            shapes = sorted({leaf.shape for leaf in leaves if leaf.ndim != 2})
            raise ValueError(f"SOAP got leaves of shapes {shapes}, expected matrices")

        def squares(make, axis: int):
            return jax.tree.map(lambda leaf: make(leaf.shape[axis], dtype=leaf.dtype), params)

        def zeros(size: int, dtype) -> jax.Array:
            return jnp.zeros((size, size), dtype)

        moment = jax.tree.map(jnp.zeros_like, params)
        return SoapState(
            count=jnp.zeros((), jnp.int32),
            mu=moment,
            nu=moment,
            left=squares(zeros, 0),
            right=squares(zeros, 1),
            left_basis=squares(jnp.eye, 0),
            right_basis=squares(jnp.eye, 1),
        )

    def update(updates, state, params=None):
        del params
        first, count = state.count == 0, jnp.maximum(state.count, 1)

        def average(old, new, decay: float):
            return jax.tree.map(lambda o, n: decay * o + (1 - decay) * n, old, new)

        gradient = jax.tree.map(_rotate, updates, state.left_basis, state.right_basis)
        # The first gradient is diagonal in its own basis: beside the diagonal, Adam would
        # scale rounding errors up to whole steps.
        mu = _where(first, state.mu, average(state.mu, updates, b1))
        nu = _where(first, state.nu, average(state.nu, jax.tree.map(jnp.square, gradient), b2))

        def direction(mu, nu, left_basis, right_basis):
            moment = _rotate(mu, left_basis, right_basis) / (1 - b1**count)
            root = jnp.sqrt(nu / (1 - b2**count))
            # The moment is rotated anew, so that it rounds otherwise than the gradients in nu did:
            # where these are rounding errors themselves, nothing else bounds the quotient.
            scaled = moment / (root + eps + 1e-6 * jnp.max(root))
            return left_basis @ scaled @ right_basis.T

        step = jax.tree.map(direction, mu, nu, state.left_basis, state.right_basis)
        left = average(state.left, jax.tree.map(lambda g: g @ g.T, updates), b2)
        right = average(state.right, jax.tree.map(lambda g: g.T @ g, updates), b2)
        kind = jnp.where(first, 1, jnp.where(state.count % refresh == 0, 2, 0))
        left_basis, right_basis = jax.lax.switch(
            kind,
            (_same_basis, _eigenbasis, _power_iteration),
            (left, right),
            (state.left_basis, state.right_basis),
        )
        return step, SoapState(state.count + 1, mu, nu, left, right, left_basis, right_basis)

    return optax.GradientTransformation(init, update)


def _rotate(matrix: jax.Array, left_basis: jax.Array, right_basis: jax.Array) -> jax.Array:
    return left_basis.T @ matrix @ right_basis


def _where(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _same_basis(factors: Any, bases: Any) -> Any:
    return bases


def _eigenbasis(factors: Any, bases: Any) -> Any:
    # Largest first: the order that power iteration converges to, so that it keeps it.
    return jax.tree.map(lambda factor: jnp.linalg.eigh(factor)[1][:, ::-1], factors)


def _power_iteration(factors: Any, bases: Any) -> Any:
    return jax.tree.map(lambda factor, basis: jnp.linalg.qr(factor @ basis)[0], factors, bases)
