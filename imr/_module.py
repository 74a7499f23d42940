"""The base of models, losses and fields: pytrees that can be called, and told apart by identity."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.tree_util import Partial


class Module(eqx.Module):
    """An `equinox.Module` that hashes and compares by identity.

    `jax.jit`, `jax.checkpoint` and others hash the function that they are given. A module of
    equinox hashes its leaves, and arrays have no hash.
    """

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def as_pytree(function: Callable[..., Any]) -> Callable[..., Any]:
    """A callable that is a pytree: as it is if it is one already, else wrapped in a `Partial`.

    A `Partial` of a module has no leaves: its parameters would be constants, and no adjoint of a
    solver would see them.
    """
    return Partial(function) if jax.tree_util.all_leaves([function]) else function
