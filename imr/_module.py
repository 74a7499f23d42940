"""The base of models, losses and fields: pytrees that can be called, and told apart by identity."""

from collections.abc import Callable
from reprlib import repr as shortened
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from imr.errors import ImrError


class Module(eqx.Module):
    """An `equinox.Module` that hashes and compares by identity.

    `jax.jit`, `jax.checkpoint` and others hash the function that they are given. A module of
    equinox hashes its leaves, and arrays have no hash.
    """

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def as_pytree(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A callable that is a pytree: as it is if it is one already, else wrapped in a `Partial`.

    A `Partial` of a module has no leaves: its parameters would be constants, and no adjoint of a
    solver would see them.
    """
    if not callable(function):
        raise ImrError(f"{name} must be callable; found {shortened(function)}.")
    return Partial(function) if jax.tree_util.all_leaves([function]) else function


def numbers_as_leaves(tree: Any) -> Any:
    """Python floats of a pytree as arrays: programs then take them as arguments.

    As constants, each other value would compile the program anew. They keep the weak type of a
    Python number, which leaves the dtype of what they meet alone.
    """
    return jax.tree.map(lambda x: jnp.asarray(x) if type(x) is float else x, tree)
