"""What the claims of the theory are made of: thresholds, errors, and the claims that come often."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.theorems.reference import central_difference
from imr import closed_field, gradient_field
from imr.lab.bounds import at_most
from imr.lab.claims import Check, Claim

# Thresholds on the largest error over the largest entry.
ROUNDING = 1e-12  # identities: some hundred roundings of 1e-16 and the condition of a softmax
DIFFERENCES = 1e-6  # central differences: about 1e-10 for smooth functions of order 1
SOLVED = 1e-9  # adaptive solves at relative tolerance 1e-11, and their gradients, seen at 1e-10
SINGLE = 1e-6  # where a library computes inside in float32: eps 6e-8 and a few sums
ORDER = 0.1  # measured orders of convergence and exponents
NO_GRADIENT = 1e-2  # an asymmetry that no rounding makes: ten orders above ROUNDING


AUTODIFF = Check("autodiff", at_most(ROUNDING))
CENTRAL = Check("central differences", at_most(DIFFERENCES))


class Measured(NamedTuple):
    """A value for each check of a claim, and arrays for a figure."""

    values: tuple[Any, ...]
    arrays: dict[str, Any] = {}  # noqa: RUF012


def relative_error(result, reference):
    """The largest difference over the largest entry of the reference, the worst over all leaves."""
    pairs = zip(jax.tree.leaves(result), jax.tree.leaves(reference), strict=True)
    errors = [jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)) for a, b in pairs]
    return jnp.max(jnp.stack(errors))


def errors(*pairs, **arrays) -> Measured:
    """The relative errors of pairs (result, reference), and arrays for a figure."""
    return Measured(tuple(relative_error(*pair) for pair in pairs), arrays)


def slope(x, y, where=True):
    """The slope of the straight line, by least squares, through the points where `where` is true."""
    weight = jnp.broadcast_to(where, x.shape).astype(x.dtype)
    weight = weight / weight.sum()
    x, y = x - jnp.sum(weight * x), y - jnp.sum(weight * y)
    return jnp.sum(weight * x * y) / jnp.sum(weight * x * x)


def identity(
    id: str, statement: str, pair: Callable, name: str = "closed form", limit: float = ROUNDING
) -> Claim:
    """The claim that two arrays are equal; `pair` is problem -> (result, reference)."""
    return Claim(id, statement, lambda p: errors(pair(p)), (Check(name, at_most(limit)),))


def gradient(
    id: str, statement: str, loss: Callable, formula: Callable, *, closed: Callable | bool = True
) -> Claim:
    """The claim that a formula is minus the gradient of a loss: three witnesses, or two.

    `loss` is problem -> (z -> scalar) and `formula` problem, z -> what the theory says that -dL/dZ is.
    `closed` is problem -> imr's closed-form field, that of the loss by default; False is none.
    """

    def measure(p):
        written = formula(p, p.z)
        pairs = [
            (written, gradient_field(loss(p))(0.0, p.z, None)),
            (written, -central_difference(loss(p), p.z)),
        ]
        if closed:
            field = closed(p) if callable(closed) else closed_field(loss(p))
            pairs.append((field(0.0, p.z, None), written))
        return errors(*pairs)

    ours = (Check("imr's field", at_most(ROUNDING)),) if closed else ()
    return Claim(id, statement, measure, (AUTODIFF, CENTRAL, *ours))


def asymmetry(field, z):
    """The largest entry of J - J^T over that of J, the Jacobian of a field: 0 for a gradient."""
    jacobian = jax.jacfwd(lambda x: field(0.0, x, None))(z).reshape(z.size, z.size)
    return jnp.max(jnp.abs(jacobian - jacobian.T)) / jnp.max(jnp.abs(jacobian))
