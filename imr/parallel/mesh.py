"""Meshes of devices, and the placement of arrays on them."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from imr._checks import check_count
from imr.errors import ImrError


def mesh_axis(mesh: Any) -> tuple[str, int]:
    """Name and size of the one axis of the mesh."""
    hint = "imr.parallel.make_mesh() makes one of all devices."
    if not isinstance(mesh, Mesh):
        raise ImrError(f"mesh must be a jax.sharding.Mesh; found {type(mesh).__name__}. {hint}")
    if len(mesh.axis_names) != 1:
        raise ImrError(f"mesh must have one axis, of the rows; found {dict(mesh.shape)}. {hint}")
    if mesh.axis_types[0] != AxisType.Auto:
        raise ImrError(f"mesh must have an axis of type Auto; found {mesh.axis_types[0]}. {hint}")
    return mesh.axis_names[0], mesh.size


def ring_order(mesh: Any) -> tuple[int, ...]:
    """Places of the mesh's devices in a ring whose neighbours are linked, where there is one.

    TPU chips that fill a box of an even number, two wide at least, are walked through so that each hop
    crosses one link of their torus. Other devices go round in the order of the mesh.
    """
    places: dict[tuple[int, ...], list[int]] = {}  # cores of one chip together
    for place, device in enumerate(mesh.devices.flat):
        places.setdefault(tuple(getattr(device, "coords", ())), []).append(place)
    chips = np.array(list(places))
    corner = chips.min(axis=0)
    sides = (np.ptp(chips, axis=0) + 1).tolist() if chips.size else []
    if math.prod(sides) != len(chips) or chips.size == 0:
        return tuple(range(mesh.size))
    return tuple(place for chip in _cycle(sides) for place in places[tuple(chip + corner)])


def _cycle(sides: list[int]) -> list[tuple[int, ...]]:
    """The cells of a box in steps of one, the last next to the first, if a side is even."""
    even = next((axis for axis, side in enumerate(sides) if side % 2 == 0), None)
    if even is None or math.prod(sides) == sides[even]:
        return _path(sides)
    first, *others = _path(sides[:even] + sides[even + 1 :])
    # Up by a snake through all others, and back along the first.
    cells = [(0, first)]
    cells += [(i, cell) for i in range(sides[even]) for cell in others[:: (1, -1)[i % 2]]]
    cells += [(i, first) for i in range(sides[even] - 1, 0, -1)]
    return [(*cell[:even], i, *cell[even:]) for i, cell in cells]


def _path(sides: list[int]) -> list[tuple[int, ...]]:
    """The cells of a box in steps of one."""
    if not sides:
        return [()]
    rest = _path(sides[1:])
    return [(i, *cell) for i in range(sides[0]) for cell in rest[:: (1, -1)[i % 2]]]


def padding(n: int, parts: int) -> int:
    """The number of rows that fill n up to a multiple of parts."""
    return -n % parts


def pad_axis(x: jax.Array, count: int, axis: int = 0, value: Any = 0) -> jax.Array:
    """The array with `count` more entries at the end of an axis."""
    widths = np.zeros((x.ndim, 2), int)
    widths[axis, 1] = count
    return jnp.pad(x, widths, constant_values=value) if count else x


def split_over(mesh: Mesh, x: jax.Array, axis: int = 0) -> jax.Array:
    """The array with an axis distributed over the devices of the mesh, whose number divides it."""
    spec: list[Any] = [None] * x.ndim
    spec[axis] = mesh.axis_names[0]
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def make_mesh(
    num_devices: int | None = None, axis: str = "rows", *, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of one axis over the devices of all processes.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 makes eight devices of a CPU; set NPROC to
    several times as many threads then, or collectives may wait for each other forever. Devices stand
    in the order of their processes, so that rows of process 0 come first.

    Args:
      num_devices: takes the first so many devices; None takes all.
      axis: its name.
      devices: those of a topology (`jax.experimental.topologies`), to compile for it on a machine
        that has none; None takes the devices at hand.
    Raises: ImrError if there are fewer devices.

    >>> dict(make_mesh(1).shape)
    {'rows': 1}
    """
    found = jax.devices() if devices is None else list(devices)
    if num_devices is not None:
        check_count("num_devices", num_devices)
        if num_devices > len(found):
            flag = f"XLA_FLAGS=--xla_force_host_platform_device_count={num_devices}"
            raise ImrError(
                f"num_devices must be at most the {len(found)} devices "
                + (f"available; found {num_devices}. On a CPU, {flag} and NPROC={4 * num_devices} make as many."
                   if devices is None else f"of the topology; found {num_devices}. Take a larger one.")
            )  # fmt: skip
    return Mesh(np.asarray(found[:num_devices]), (axis,), axis_types=(AxisType.Auto,))


def mesh_of_all() -> Mesh | None:
    """The mesh of all devices, or None if there is only one."""
    return make_mesh() if jax.device_count() > 1 else None


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """Copies arrays to all devices of a mesh.

    Args:
      tree: arrays, the same in every process.
      mesh: None leaves the arrays as they are.
    """
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec())

    def place(x):
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return _of_arrays(place, tree)


def from_local_rows(tree: Any, mesh: Mesh) -> Any:
    """Arrays distributed by rows over the mesh; each process contributes its rows.

    Args:
      tree: arrays (n_local, ...), of the same n_local in each process, divisible by its number of
        devices; rows of process 0 come first.
      mesh: of all devices.
    Raises: ImrError if the numbers of rows do not fit.
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
                f"tree must have a number of rows that is divisible by {parts}, the devices of a "
                f"process; found {'a scalar' if count < 0 else count}. Add or remove rows."
            )
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    place = partial(jax.make_array_from_process_local_data, sharding)
    return jax.tree.map(place, jax.tree.map(np.asarray, tree))


def _of_arrays(function, tree):
    """The function of each array; of random keys, the function of their data."""

    def one(x):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = function(jax.random.key_data(x))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        return function(x)

    return jax.tree.map(one, tree)


def local(tree: Any) -> Any:
    """The local copies of replicated arrays, for computations within this process.

    Args:
      tree: arrays, replicated or local.
    """

    def copy(x):
        alone = not isinstance(x, jax.Array) or len(x.sharding.device_set) == 1
        return x if alone else x.addressable_data(0)

    return _of_arrays(copy, tree)
