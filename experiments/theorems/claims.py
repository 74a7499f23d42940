"""What a row of the table is made of: a statement, a measurement, and what it must give."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.theorems.problems import Problem
from experiments.theorems.reference import central_difference
from imr import gradient_field

# Thresholds on the largest error over the largest entry.
ROUNDING = 1e-12  # identities: some hundred roundings of 1e-16 and the condition of a softmax
DIFFERENCES = 1e-6  # central differences: about 1e-10 for smooth functions of order 1
SOLVED = 1e-9  # adaptive solves at relative tolerance 1e-11, one or two digits lost on the way
SOLVED_GRADIENT = 1e-9  # their gradients: a solve there and one back, seen at 1e-10
SINGLE = 1e-6  # where a library computes inside in float32: eps 6e-8 and a few sums
ORDER = 0.1  # measured orders of convergence and exponents
NO_GRADIENT = 1e-2  # an asymmetry that no rounding makes: ten orders above ROUNDING


@dataclass(frozen=True)
class Check:
    """What a value must be: at most or at least `limit`, or within `limit` of `expected`, for
    a value that is `near` it; otherwise `expected` says nothing."""

    name: str
    limit: float
    kind: Literal["at most", "at least", "near"] = "at most"
    expected: float = 0.0

    def worst(self, values: np.ndarray) -> float:
        """The value that decides; what is not a number is worst of all."""
        if self.kind == "near":
            return float(values[np.argmax(np.abs(values - self.expected))])
        return float(values.max() if self.kind == "at most" else values.min())

    def passes(self, value: float) -> bool:
        """Whether it holds; never for what is not a number."""
        if self.kind == "near":
            return bool(abs(value - self.expected) <= self.limit)
        return bool(value <= self.limit if self.kind == "at most" else value >= self.limit)


class Measured(NamedTuple):
    """One value for each check, and arrays for a figure."""

    values: tuple[Any, ...]
    arrays: dict[str, Any] = {}  # noqa: RUF012


@dataclass(frozen=True)
class Claim:
    """A statement of the theory; `measure` is a pure function of one problem.

    `sequential`: the problems go one after the other through the program instead of side by side.
    The loops of an adaptive solver and of its adjoint take far longer to compile side by side.
    """

    id: str
    statement: str
    measure: Callable[[Problem], Measured] = field(repr=False)
    checks: tuple[Check, ...]
    sequential: bool = False


def relative_error(found, wanted):
    """Largest difference over the largest entry wanted, over all leaves of each pytree."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    errors = [jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)) for a, b in pairs]
    return jnp.max(jnp.stack(errors))


def slope(x, y, where=True):
    """Of the straight line by least squares through the points that `where` lets take part."""
    weight = jnp.broadcast_to(where, x.shape).astype(x.dtype)
    weight = weight / weight.sum()
    x, y = x - jnp.sum(weight * x), y - jnp.sum(weight * y)
    return jnp.sum(weight * x * y) / jnp.sum(weight * x * x)


def identity(
    id: str, statement: str, pair: Callable, name: str = "closed form", limit: float = ROUNDING
) -> Claim:
    """Of two arrays that are equal; `pair` gives them for a problem."""
    return Claim(
        id, statement, lambda p: Measured((relative_error(*pair(p)),)), (Check(name, limit),)
    )


def gradient_claim(
    id: str, statement: str, loss: Callable, formula: Callable, library: Callable | None = None
) -> Claim:
    """Of a formula that is minus the gradient of a loss: three witnesses, or two.

    Args:
      id, statement: of the row.
      loss: problem -> (z -> scalar).
      formula: problem, z -> what the theory says that -dL/dZ is.
      library: problem -> imr's own closed-form field f(t, z, args).
    """

    def measure(p):
        written = formula(p, p.z)
        values = [
            relative_error(written, gradient_field(loss(p))(0.0, p.z, None)),
            relative_error(written, -central_difference(loss(p), p.z)),
        ]
        if library is not None:
            values.append(relative_error(library(p)(0.0, p.z, None), written))
        return Measured(tuple(values))

    checks = [Check("autodiff", ROUNDING), Check("central differences", DIFFERENCES)]
    if library is not None:
        checks.append(Check("imr's field", ROUNDING))
    return Claim(id, statement, measure, tuple(checks))


def asymmetry(vector_field, z):
    """Largest entry of J - J^T over that of J, the Jacobian of f(t, z, args): 0 for a gradient."""
    jacobian = jax.jacfwd(lambda x: vector_field(0.0, x, None))(z).reshape(z.size, z.size)
    return jnp.max(jnp.abs(jacobian - jacobian.T)) / jnp.max(jnp.abs(jacobian))
