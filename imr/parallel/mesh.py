"""Meshes of devices: making one, placing arrays on it, and what functions with `mesh=` need."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from imr._checks import check_count
from imr.errors import ImrError


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


def make_mesh(num_devices: int | None = None, axis: str = "rows") -> Mesh:
    """A mesh of one axis over the devices of all processes, or the first so many of them.

    A CPU pretends to be several devices with XLA_FLAGS=--xla_force_host_platform_device_count=8; set
    NPROC to several times as many threads then, or collectives may wait for each other forever.

    Raises:
      ImrError: where there are not as many.

    >>> dict(make_mesh(1).shape)
    {'rows': 1}
    """
    devices = jax.devices()
    if num_devices is not None:
        check_count("num_devices", num_devices)
        if num_devices > len(devices):
            raise ImrError(
                f"num_devices must be at most the {len(devices)} devices there are; found "
                f"{num_devices}. On a CPU, XLA_FLAGS=--xla_force_host_platform_device_count={num_devices} "
                f"and NPROC={4 * num_devices} make as many."
            )
        devices = devices[:num_devices]
    return Mesh(np.asarray(devices), (axis,), axis_types=(AxisType.Auto,))


def mesh_of_all() -> Mesh | None:
    """The mesh of all devices, or None where there is only one."""
    return make_mesh() if jax.device_count() > 1 else None


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays, the same in every process, on all devices of the mesh; without one, as they are."""
    return tree if mesh is None else _placed(tree, NamedSharding(mesh, PartitionSpec()))


def from_local_rows(tree: Any, mesh: Mesh) -> Any:
    """Arrays spread by rows over the mesh, of which each process hands in its own.

    Args:
      tree: arrays (n_local, ...); rows of process 0 come first. The devices of a process must
        divide them, and all processes must have as many.
      mesh: of all devices.

    Raises:
      ImrError: where the devices do not divide the rows; fill them up.
    """
    axis, size = mesh_axis(mesh)
    parts = max(1, size // jax.process_count())
    counts = [np.shape(leaf)[0] if np.ndim(leaf) else -1 for leaf in jax.tree.leaves(tree)]
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        every = multihost_utils.process_allgather(np.asarray(counts))
        if np.any(every != every[:1]):
            raise ImrError(f"every process must have as many rows; found {every.tolist()}.")
    for count in counts:
        if count < 0 or count % parts:
            raise ImrError(
                f"tree must have rows that the {parts} devices of a process divide; found "
                f"{'a scalar' if count < 0 else count}. Fill them up, or leave some out."
            )
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    place = lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x))  # noqa: E731
    return jax.tree.map(place, tree)


def _placed(tree, sharding):
    def one(x):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                one(jax.random.key_data(x)), impl=jax.random.key_impl(x)
            )
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(one, tree)


def local(tree: Any) -> Any:
    """What this process holds of replicated arrays, for computations of its own."""

    def one(x):
        if not isinstance(x, jax.Array) or len(x.sharding.device_set) == 1:
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                one(jax.random.key_data(x)), impl=jax.random.key_impl(x)
            )
        return x.addressable_data(0)

    return jax.tree.map(one, tree)
