r"""The cycles of a TPU in the programs of attention and of the filter, from what its units do.

A program is a loop of operations, and an operation takes as long as the slowest of
- the matrix units, which multiply blocks of 128 x 128 bfloat16 numbers: a contraction of 96 costs one of
  128, and float32 takes six passes, or three parts of a packed operand (`imr.attention.platforms`);
- the vector unit, which goes through 1024 numbers at a time, in rows that are filled up to eight;
- the memory, if what it reads or writes does not stay on the chip.

Seven constants, and the exponentials of a chip, are those of the TPU's compiler, which estimates the cycles
of what it makes: fitted to one half of the table of `scripts/bench --parts tpu`, and compared with the
other (`experiments/bench/README.md`). Nothing here has been measured on a TPU.
"""

import math
from typing import NamedTuple

from imr._checks import check_choice, check_counts, check_kind


class Core(NamedTuple):
    """A chip as one program sees it.

    Attributes:
      name, clock: of the chip; cycles per second.
      units: matrix units, counted in blocks of 128 x 128 multipliers.
      memory, cache: bytes per second to and from memory, and bytes of memory on the chip.
      shares: whether an operation finds on the chip what the one before left there. The two cores of
        a v5p share nothing but the memory.
      rows: those of an operand at full precision are filled up to a multiple of these.
      movers: units that move numbers across lanes and rows.
      exponentials: cycles of 1024 of them.
    """

    name: str
    clock: float
    units: int
    memory: float
    cache: float
    shares: bool
    rows: int
    movers: int
    exponentials: float


class Constants(NamedTuple):
    """What the compiler's estimates have in common.

    Attributes:
      share: of the peak rate of the memory.
      start: seconds of an operation, however small.
      load, split, wait: cycles of 1024 numbers that become the operand of a product, of each part that
        is taken from them before, and of those that the matrix units wait for.
      fused: cycles of 1024 exponentials of logits in the operation that makes these.
      narrow: cycles of 1024 numbers that are moved across lanes and rows, as in arrays of few rows.
    """

    share: float
    start: float
    load: float
    split: float
    wait: float
    fused: float
    narrow: float


CONSTANTS = Constants(0.35, 1.25e-6, 0.184, 0.345, 0.279, 3.23, 17.7)
# Fitted by `python -m experiments.bench.constants`; rates of memory as published by Google.
V5E = Core("TPU v5e", 1.5e9, 4, 819e9, 2**27, True, 128, 1, 12.5)
V5P = Core("TPU v5p", 1.75e9, 8, 2765e9, 2**27, False, 128, 2, 6.25)
V6E = Core("TPU v6e", 1.75e9, 8, 1640e9, 2**27, True, 8, 2, 6.39)

_LANES, _SIDE, _PACKED = 1024, 128, 42  # 42: the largest rank whose products are packed


class _Units(NamedTuple):
    """The operations on a block of P of s rows and m columns, at rank r."""

    core: Core
    constants: Constants
    r: int
    s: int
    m: int

    @property
    def packed(self) -> bool:
        return self.r <= _PACKED

    @property
    def vectors(self) -> float:
        return self.s * self.m / _LANES

    @property
    def through_memory(self) -> float:
        """Cycles in which the block passes between chip and memory."""
        return self.bytes(4.0 * self.s * self.m)

    def bytes(self, count: float) -> float:
        return count * self.core.clock / (self.constants.share * self.core.memory)

    def _matrix(self, blocks: float, rows: float) -> float:
        return blocks * rows / self.core.units

    @property
    def start(self) -> float:
        return self.constants.start * self.core.clock

    def logits(self, fused: bool) -> float:
        passes = _blocks(6 * self.r) if self.packed else 6 * _blocks(self.r)
        vector = self.constants.fused * self.vectors if fused else 0.0
        memory = 0.0 if self.core.shares else self.through_memory
        return max(self._matrix(passes * self.m / _SIDE, self.s), vector, memory)

    def exponentials(self) -> float:
        return self.core.exponentials * self.vectors

    def product(self, width: int, reads: float = 0, summed: bool = False) -> float:
        """With P, of `width` rows: `reads` of its passes read P from memory.

        `summed`: over the keys of a strip, whose blocks of P serve so few rows each that the units wait
        while they are loaded.
        """
        blocks, total = self.s * self.m / _SIDE**2, 0.0
        for part in (1, 2, 3) if self.packed else (1,):
            if self.packed:
                matrix = self._matrix(blocks, _filled((4 - part) * width, 8))
            else:
                matrix = self._matrix(6 * blocks, _filled(width, self.core.rows))
            vector = (self.constants.load + self.constants.split * part) * self.vectors
            memory = self.through_memory * min(max(reads + 1 - part, 0), 1)
            if summed:
                vector = matrix + self.constants.wait * self.vectors
            total += max(matrix, vector, memory)
        return total

    def narrow(self, rows: int) -> float:
        """Sums of columns: arrays of so many rows and m columns."""
        numbers = _filled(rows, 8) * self.m
        return self.constants.narrow * numbers / _LANES / self.core.movers


def _blocks(depth: int) -> int:
    return math.ceil(depth / _SIDE)


def _filled(rows: int, multiple: int) -> int:
    return rows + -rows % multiple


def attention_cycles(
    n: int, r: int, core: Core, *, way: str = "tiles", block: int | None = None, devices: int = 1,
    constants: Constants = CONSTANTS,
) -> float:  # fmt: skip
    """The cycles of `imr.attention.attention_products` in float32, of each device.

    Args:
      n, r: rows and columns of Q.
      core: `V5E`, `V5P` or `V6E`.
      way: "tiles" (keys that are the queries), "ring of tiles" (the same over devices), "strips"
        (others), or "gradient" (by strips).
      block: rows of a tile or strip; those that the program takes by default.
      devices: of the ring.
      constants: what the estimates have in common.
    Raises: ImrError for an unknown way, or counts that are none.

    >>> round(attention_cycles(65_536, 16, V5E) / V5E.clock, 3)
    0.027
    """
    check_kind("core", core, Core)
    check_kind("constants", constants, Constants)
    check_choice("way", way, ("tiles", "ring of tiles", "strips", "gradient"))
    check_counts(n=n, r=r, devices=devices, **({} if block is None else {"block": block}))
    if way in ("tiles", "ring of tiles"):
        tile = block or 2048
        if way == "tiles":
            return _tiles(n, _Units(core, constants, r, tile, tile))
        share = math.ceil(n / devices)
        tile = math.ceil(share / math.ceil(share / tile))
        return _ring(share, devices, _Units(core, constants, r, tile, tile))
    size = min(n, block or max(128, 2**23 // n))
    return math.ceil(n / size) * _strip(_Units(core, constants, r, size, n), way == "gradient")


def _tiles(n: int, units: _Units) -> float:
    r, tile, shares = units.r, units.s, units.core.shares
    side = math.ceil(n / tile)
    # Parts of Q for the logits and for both products, and sums that are read and written: what of it
    # the chip does not hold passes through memory.
    held = n * (2.0 * 12 * r + 6 * (r + 1) + 8 * (r + 1))
    far, total = max(0.0, 1 - units.core.cache / held), 0.0
    for width in (r + 1, r):
        total += units.logits(fused=True) + units.start
        total += units.product(width, reads=0 if shares else 1 + far) + units.product(width)
        total += far * (7 * units.start + units.bytes(tile * (24.0 * r + 24 * width)))
    return side * (side + 1) / 2 * total


def _ring(share: int, devices: int, units: _Units) -> float:
    """Tiles of its own keys and the opposite device's serve the rows alone, those between both."""
    both, reads = (devices - 1) // 2, 0 if units.core.shares else 1
    total = 0.0
    for width in (units.r + 1, units.r):
        first = units.logits(fused=True) + units.start + units.product(width, reads)
        total += (1 + both + (devices % 2 == 0)) * first + both * units.product(width)
    return math.ceil(share / units.s) ** 2 * total


def _strip(units: _Units, gradient: bool) -> float:
    r, shares = units.r, units.core.shares
    reads = 0 if shares or units.s * units.m <= 2**23 else 3
    total = units.logits(fused=False) + units.exponentials() + 12 * units.start
    total += units.product(r + 1, reads, summed=units.packed)
    if not gradient:
        return total + units.product(r, reads) + (units.narrow(r) if units.packed else 0.0)
    # Three products of the kind of the logits and three with P, all at full precision.
    passes = 6 * _blocks(r) * units.s * units.m / _SIDE / units.core.units
    return total + 6 * max(passes, 0.0 if shares else units.through_memory)


# Operations for each token, and of a chip that hands nothing over the time of as many more, in which the
# operators of the tokens pass through memory; operations for each level of the tree, and how often each
# token of a thousand words is moved.
_SCAN, _GATHER, _TREE, _MOVED = 8, 3.5, 38, 110


def filter_cycles(
    length: int, core: Core, *, way: str = "scan", constants: Constants = CONSTANTS
) -> float:
    """The cycles of `imr.bayes_filter` of a thousand short words: those of starting operations.

    Args:
      length: tokens of a word.
      core, constants: as in `attention_cycles`.
      way: "scan" or "associative".
    Raises: ImrError for an unknown way or a length that is no count.

    >>> round(filter_cycles(256, V5E) / V5E.clock, 4)
    0.0026
    """
    check_kind("core", core, Core)
    check_kind("constants", constants, Constants)
    check_choice("way", way, ("scan", "associative"))
    check_counts(length=length)
    start = constants.start * core.clock
    if way == "scan":
        return (_SCAN + (0 if core.shares else _GATHER)) * length * start
    moved = _MOVED * constants.narrow * 1000 * length / _LANES / core.movers
    return _TREE * math.log2(max(length, 2)) * start + moved
