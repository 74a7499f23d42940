"""The memory of a device, and whether a block of P fits it."""

import math
import os
from typing import Any

import jax

from imr._checks import is_concrete
from imr.errors import ImrError

# Bytes of a chip, by the kind of device that jax calls it; of other accelerators jax knows their memory.
_MEMORY = {
    "TPU v4": 32e9, "TPU v5 lite": 16e9, "TPU v5": 95e9, "TPU v6 lite": 32e9, "TPU7x": 192e9,
}  # fmt: skip


def memory_of(device: Any) -> float:
    """Bytes of memory of a device, which may be one of a topology that is not at hand."""
    if device.device_kind in _MEMORY:
        return _MEMORY[device.device_kind]
    if device.platform == "cpu":
        known = hasattr(os, "sysconf")
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else math.inf
    try:
        return (device.memory_stats() or {}).get("bytes_limit", math.inf)
    except jax.errors.JaxRuntimeError:
        return math.inf


def _device_of(x: Any, mesh: Any) -> Any:
    """The device that computes; None if it cannot be told."""
    if mesh is not None:
        return mesh.devices.flat[0]
    if is_concrete(x):
        return next(iter(x.devices()))
    # A program that is traced beside CPUs alone may be lowered for what is not at hand.
    return None if jax.default_backend() == "cpu" else jax.devices()[0]


def check_block(block: int, queries: Any, m: int, mesh: Any) -> None:
    """Demands that a block of P, of so many rows and of m columns, fits the memory of its device."""
    device = _device_of(queries, mesh)
    if device is None:
        return
    parts = 1 if mesh is None else mesh.size
    rows, columns = min(block, math.ceil(len(queries) / parts)), math.ceil(m / parts)
    size, memory = max(4, queries.dtype.itemsize) * rows * columns, memory_of(device)
    if size > memory:
        raise ImrError(
            f"block={block} does not fit: {rows} rows and {columns} columns of P take {size / 1e9:.3g} GB, "
            f"and the device, {device.device_kind}, has {memory / 1e9:.3g} GB. Take a smaller block; None "
            "takes one that suits the platform."
        )
