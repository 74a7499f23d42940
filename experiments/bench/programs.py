"""Compiled programs, as their compilers write them: what their operations add up to, loops by their lengths."""

import re
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from imr.errors import ImrError


class Computation(NamedTuple):
    """A computation of a program: whether it is the first, and its lines."""

    is_entry: bool
    lines: list[str]


def computations(text: str) -> dict[str, Computation]:
    """Those of a program, by name."""
    found = re.finditer(r"^(ENTRY )?%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", text, re.M | re.S)
    return {match[2]: Computation(bool(match[1]), match[3].splitlines()) for match in found}


def total(text: str, amount: Callable[[str, str], float]) -> float:
    """The sum of `amount(line, computation)` over operations as they run; of branches, the last.

    The number of passes of a loop is the constant that its condition compares with. Branches:
    `lax.cond` puts that of False first.
    """
    bodies = computations(text)

    def passes(line: str, condition: str) -> int:
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
            return int(known[1])
        lines = "\n".join(bodies[condition].lines)
        counts = re.findall(r" s32\[\][^=\n]*constant\((\d+)\)", lines)
        if len(counts) != 1:
            raise ImrError(
                f"the length of a loop must be a constant; found {counts} in {condition}."
            )
        return int(counts[0])

    @cache
    def of(name: str) -> float:
        found = 0.0
        for line in bodies[name].lines:
            found += amount(line, name)
            if loop := re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
                found += passes(line, loop[1]) * of(loop[2])
            if branches := re.search(r" conditional\(.*branch_computations=\{([^}]*)\}", line):
                found += of(branches[1].split(",")[-1].strip().lstrip("%"))
            if branch := re.search(r" conditional\(.*true_computation=%?([\w.\-]+)", line):
                found += of(branch[1])
            if called := re.search(r" call\(.*to_apply=%?([\w.\-]+)", line):
                found += of(called[1])
        return found

    return of(next(name for name, each in bodies.items() if each.is_entry))


def cycles(text: str) -> float:
    """The cycles of a program for a TPU, as estimated beside each operation."""

    def estimate(line: str, _: str) -> float:
        found = re.search(r'"estimated_cycles":"(\d+)"', line)
        return int(found[1]) if found else 0

    return total(text, estimate)


_BYTES = {
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "f16": 2,
    "bf16": 2,
    "pred": 1,
    "s8": 0,
}  # s8: room for cuBLAS
_FREE = "parameter|constant|tuple|get-tuple-element|bitcast|while|conditional|call|iota|after-all"


def _size(shape: str) -> int:
    """Bytes of the arrays of a shape."""
    size = 0
    for kind, dims in re.findall(r"\b(\w+)\[([\d,]*)\]", shape):
        count = 1
        for each in filter(None, dims.split(",")):
            count *= int(each)
        size += _BYTES[kind] * count
    return size


class _Operation(NamedTuple):
    name: str
    shape: str
    kind: str
    operands: list[str]
    line: str


def _operations(lines: list[str]) -> dict[str, _Operation]:
    found = {}
    for line in lines:
        match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)", line)
        if match and not line.lstrip().startswith("//"):
            operands = re.findall(r"%([\w.\-]+)", match[4].split("), ")[0])
            found[match[1]] = _Operation(match[1], match[2], match[3], operands, line)
    return found


def traffic(text: str) -> float:
    """Bytes that the operations of a program for a GPU read and write.

    Of what a fusion only cuts a piece from, or changes a piece of in place, the piece counts.
    """
    inside = {name: _operations(each.lines) for name, each in computations(text).items()}

    def read(fused: dict[str, _Operation], parameter: _Operation) -> int:
        uses = [each for each in fused.values() if parameter.name in each.operands]
        pieces = [use for use in uses if use.operands[0] == parameter.name]
        if uses and all(use in pieces and "dynamic-" in use.kind for use in uses):
            return sum(_size(use.shape) for use in pieces if use.kind == "dynamic-slice")
        return _size(parameter.shape)

    def written(fused: dict[str, _Operation], root: _Operation) -> int:
        if root.kind == "tuple":
            return sum(written(fused, fused[name]) for name in root.operands)
        if root.kind == "dynamic-update-slice":
            return _size(fused[root.operands[1]].shape)
        return _size(root.shape)

    def amount(line: str, computation: str) -> float:
        operations = inside[computation]
        match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line)
        if not match or match[1] not in operations:
            return 0.0
        operation = operations[match[1]]
        if re.fullmatch(_FREE, operation.kind):
            return 0.0
        called = re.search(r" fusion\(.*calls=%?([\w.\-]+)", line)
        if called is None:
            whole = _size(operation.shape)
            return whole + sum(
                _size(operations[x].shape) for x in operation.operands if x in operations
            )
        fused = inside[called[1]]
        root = next(each for each in fused.values() if each.line.lstrip().startswith("ROOT"))
        parameters = [each for each in fused.values() if each.kind == "parameter"]
        return written(fused, root) + sum(read(fused, each) for each in parameters)

    return total(text, amount)
