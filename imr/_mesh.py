"""Meshes of devices for functions that take `mesh=`: checks, padding of rows, placement."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imr._checks import ImrError


def mesh_axis(mesh: Any) -> tuple[str, int]:
    """Name and size of the one axis that rows are spread over."""
    if not isinstance(mesh, Mesh):
        raise ImrError(
            f"mesh must be a jax.sharding.Mesh; found {type(mesh).__name__}. "
            "imr.parallel.make_mesh() makes one of all devices."
        )
    if len(mesh.axis_names) != 1:
        raise ImrError(
            f"mesh must have one axis, over which rows are spread; found {dict(mesh.shape)}. "
            "imr.parallel.make_mesh() makes one of all devices."
        )
    return mesh.axis_names[0], mesh.size


def padding(n: int, parts: int) -> int:
    """Rows that n lacks of a multiple of the parts."""
    return -n % parts


def pad_axis(x: jax.Array, count: int, axis: int = 0, value: Any = 0) -> jax.Array:
    """The array with so many entries more at the end of an axis."""
    if not count:
        return x
    widths = [(0, count if i == axis % x.ndim else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value)


def split_over(mesh: Mesh, x: jax.Array, axis: int = 0) -> jax.Array:
    """The array with an axis spread over the devices of the mesh, which must divide it."""
    spec: list[Any] = [None] * x.ndim
    spec[axis] = mesh.axis_names[0]
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))
