r"""The cost of a field: FLOPs, exponentials and bytes, and the time that they take on a machine.

A product of (a, b) by (b, c) counts 2 a b c FLOPs, and any other operation on N numbers counts N.
Bytes are the traffic with main memory if blocks stay in cache: each array is read or written once
for each pass over it.
"""

import math
from typing import NamedTuple

from imr._checks import check_choice, check_count, check_kind, check_scalar
from imr.errors import ImrError


class Cost(NamedTuple):
    """The cost of one evaluation, summed over devices; `exchanged` is the bytes that each sends."""

    flops: float
    exponentials: float
    bytes: float
    exchanged: float = 0.0

    def times(self, count: float) -> "Cost":
        """The cost of `count` evaluations."""
        return Cost(*(count * each for each in self))

    def plus(self, other: "Cost") -> "Cost":
        """The sum of two costs."""
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))


class Machine(NamedTuple):
    """The peak rates and the memory of one device.

    Attributes:
      flops, exponentials, bytes: per second; FLOPs are those of float32 products.
      name, memory: of the device; bytes.
      exchanged: bytes per second to a neighbour.
    """

    name: str
    flops: float
    exponentials: float
    bytes: float
    memory: float
    exchanged: float


# H100 and H200 (SXM) from NVIDIA's data sheets: float32 without tensor cores, and 132 multiprocessors
# that evaluate 16 special functions per clock at 1.98 GHz, the clock of the 67 TFLOP/s. Of TPUs, which
# have no such rates that a program reaches, see `imr.parallel.cycles`.
H100_CACHE = 50 * 2**20  # bytes, of the second level
H100 = Machine("NVIDIA H100", 67e12, 132 * 16 * 1.98e9, 3.35e12, 80e9, 450e9)
H200 = Machine("NVIDIA H200", 67e12, 132 * 16 * 1.98e9, 4.8e12, 141e9, 450e9)


def linear_field_cost(n: int, f: int, k: int, *, itemsize: int = 4) -> Cost:
    """The linear model's field on features, by automatic differentiation.

    Args:
      n, f, k, itemsize: rows, features, classes, and bytes of a number.

    >>> linear_field_cost(8000, 784, 10).flops / 1e6
    251.2
    """
    _check_sizes(n=n, f=f, k=k, itemsize=itemsize)
    # A row's loss is a softplus of the log-sum of the others: four transcendentals more.
    return Cost(4.0 * n * f * k + 4.0 * n * k, n * (k + 4), itemsize * n * (2.0 * f + 4 * k))


def linear_flow_cost(n: int, k: int, *, itemsize: int = 4) -> Cost:
    """The linear model's field in the coordinates of `imr.solve_reduced`.

    Args:
      n, k, itemsize: as in `linear_field_cost`.

    >>> linear_flow_cost(8000, 10).flops / 1e6
    2.64
    """
    _check_sizes(n=n, k=k, itemsize=itemsize)
    return Cost(2.0 * n * k * k + 13.0 * n * k, n * k, itemsize * 4.0 * n * k)


def attention_cost(
    n: int, r: int, *, way: str = "whole", block: int = 256, devices: int = 1, itemsize: int = 4,
    cache: float = math.inf,
) -> Cost:  # fmt: skip
    r"""Both products of `imr.attention.attention_products`, $P K$ and $P^T Q$.

    Products take 6 n^2 r FLOPs, or 8 n^2 r in a ring of strips, which computes the logits twice; it takes
    2 n^2 exponentials, the other ways n^2, or a little more.

    Args:
      n, r, itemsize: rows and columns of Q, and bytes of a number.
      way: "whole" (P is held in memory), "strips", "tiles" (keys that are the queries), or over devices
        "ring" (of strips) or "ring of tiles".
      block, devices: rows of a strip or tile, and devices of the ring.
      cache: bytes of a strip or tile up to which it stays in cache. Of more than that, the logits are
        written, read for their exponentials and, in strips, for the largest; these are written and read
        twice: memory sees a tile five times in each of two sweeps, a strip six times.

    >>> ways = "tiles", "ring of tiles", "ring"
    >>> [attention_cost(8192, 16, way=way, devices=8).exponentials / 8192**2 for way in ways]
    [1.03125, 1.25, 2.0]
    """
    check_choice("way", way, ("whole", "strips", "tiles", "ring", "ring of tiles"))
    _check_sizes(n=n, r=r, block=block, devices=devices, itemsize=itemsize)
    ends = itemsize * 5.0 * n * r  # reads Q and K, writes both products, reads the columns again
    if way == "tiles":
        pairs = n * (n + min(block, n)) / 2.0
        # Two sweeps, each with the logits and both products of a tile and its mirror image.
        flops = 2 * pairs * (2 * r + 2) + 2 * pairs * (2 * r) * 2 + 4 * pairs
        spilled = 10 * itemsize * pairs if itemsize * block * min(block, n) > cache else 0.0
        return Cost(flops, 2 * pairs, ends + 2 * itemsize * pairs / block * 4 * r + spilled)
    pairs = float(n) * n
    if way == "ring of tiles":
        # Each of two sweeps meets its own keys, half of the others', and for even numbers the opposite's.
        half, opposite = (devices - 1) // 2, 1 - devices % 2
        tiles = pairs / devices * (1 + half + opposite)
        flops = 2 * tiles * (2 * r + 2) + pairs * (4 * r + 2)
        # Keys, gauges and scales go on, and with them what they have summed, which in the end goes home.
        # What both sweeps send at first is sent once; a loop of a single hop is none.
        sent = 0.0 if devices == 1 else r + 3.0
        if half:
            sent += (half + 1) * (2 * r + 1) + (
                half * (2 * r + 4) if half > 1 else opposite * (r + 3)
            )
        held = 2 * itemsize * pairs / block * 4 * r
        return Cost(flops, 2 * tiles, ends * devices + held, sent * n / devices * itemsize)
    if way == "ring":
        flops = pairs * (4 * r + 2 * (r + 1) + 2 * r + 6)
        # Keys go round twice, and the sums that they collect once.
        sent = 3.0 * r * n * itemsize if devices > 1 else 0.0
        held = itemsize * pairs / block * 6 * r
        return Cost(flops, 2 * pairs, ends * devices + held, sent)
    flops = pairs * (4 * r + 2 * (r + 1) + 5)
    held = itemsize * pairs * 4 if way == "whole" else itemsize * pairs / block * 3 * r
    if way == "strips" and itemsize * block * n > cache:
        held += 6 * itemsize * pairs
    return Cost(flops, pairs, ends + held)


def quadratic_field_cost(
    n: int, f: int, r: int, *, way: str = "tiles", block: int = 256, devices: int = 1,
    itemsize: int = 4,
) -> Cost:  # fmt: skip
    """The field of a symmetric `imr.Quadratic` without targets: its projections and `attention_cost`.

    Args:
      n, f, r: rows, features and columns of Q.
      way, block, devices, itemsize: as in `attention_cost`.

    >>> round(quadratic_field_cost(8192, 16, 16).flops / 1e9, 2)
    6.93
    """
    _check_sizes(n=n, f=f, r=r)
    inner = attention_cost(n, r, way=way, block=block, devices=devices, itemsize=itemsize)
    return inner.plus(Cost(6.0 * n * f * r, 0, itemsize * n * (2.0 * f + 3 * r)))


def step_cost(field: Cost, size: float, *, stages: int = 6, itemsize: int = 4) -> Cost:
    """A step of an explicit Runge-Kutta solver: its stages and their linear combinations.

    Args:
      field, size: cost of one evaluation, and numbers in the state.
      stages: evaluations per step; 6 for Tsit5, which reuses the last one.
      itemsize: bytes of a number.

    >>> step_cost(Cost(10.0, 1.0, 0.0), 0).flops
    60.0
    """
    check_kind("field", field, Cost)
    check_scalar("size", size, 0)
    _check_sizes(stages=stages, itemsize=itemsize)
    terms = (stages + 1) * (stages + 2) / 2
    return field.times(stages).plus(Cost(2 * terms * size, 0, itemsize * terms * size))


def seconds(cost: Cost, machine: Machine, devices: int = 1) -> float:
    r"""The time of products, exponentials and memory traffic at peak rates, one after the other.

    $t = \frac{1}{p}(F / \dot F + E / \dot E + B / \dot B) + X / \dot X$ on p devices. Measured times
    are shorter if the parts overlap, and longer if a rate stays below its peak.

    Args:
      cost, machine, devices: of the computation on all of the p devices of this kind.

    >>> round(1e3 * seconds(attention_cost(65_536, 16, way="tiles", block=4096), H100), 2)
    7.99
    """
    check_kind("cost", cost, Cost)
    check_kind("machine", machine, Machine)
    _check_sizes(devices=devices)
    shared = cost.flops / machine.flops + cost.exponentials / machine.exponentials
    shared += cost.bytes / machine.bytes
    return shared / devices + (cost.exchanged / machine.exchanged if devices > 1 else 0.0)


def largest_n(
    machine: Machine, numbers_per_row: float, *, devices: int = 1, itemsize: int = 4
) -> int:
    """The number of rows that fit in memory.

    Args:
      machine, devices, itemsize: as in `seconds` and `step_cost`.
      numbers_per_row: numbers of the state, the stages of a step and the field's temporaries.
    Raises: ImrError if numbers_per_row is not positive.

    >>> largest_n(H100, 9 * 16 + 6 * 16)
    83333333
    """
    if not numbers_per_row > 0:
        raise ImrError(f"numbers_per_row must be positive; found {numbers_per_row}.")
    return int(devices * machine.memory / (itemsize * numbers_per_row))


def _check_sizes(**values):
    """Sizes may be larger than any array of one machine."""
    for name, value in values.items():
        check_count(name, value, most=2**63)
