"""The weights of an ONNX file, by a reader of its wire format that knows only what holds them."""

import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lens.convert.tensors import SIZES, Tensor, check_quantised, check_total
from imr import DataError
from imr._files import open_file

_DTYPES = {
    1: "F32", 2: "U8", 3: "I8", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64", 16: "BF16",
}  # fmt: skip
_NARROW = {17, 18, 19, 20, 21, 22, 23}  # floats of 8 and 4 bits, integers of 4
_MOST = 10**6  # nodes and tensors
# Numbers of fields.
_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
_OUTPUT, _KIND, _ATTRIBUTE, _VALUE = 2, 4, 5, 5


def read_onnx(path: Path) -> dict[str, Tensor]:
    """The tensors of a graph by name: its initializers, and constants of one dimension or more.

    Raises:
      OSError: if the file cannot be read.
      DataError: if it is damaged, keeps tensors in other files, or has quantised weights.
    """
    with open_file(path) as file:
        try:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError:
            raise DataError(f"{path} is empty.") from None
    found: dict[str, Tensor] = {}
    narrow: list[str] = []
    try:
        for number, graph in _fields(data):
            if number != _GRAPH:
                continue
            for count, (number, part) in enumerate(_fields(graph)):
                if count > _MOST:
                    raise ValueError(f"its graph has more than {_MOST} parts")
                if number == _INITIALIZER:
                    _add(path, found, narrow, part)
                elif number == _NODE:
                    _add_constant(path, found, narrow, part)
    except DataError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged or no ONNX file: {str(error)[:200]}.") from None
    check_quantised(path, narrow, "integers or floats of 8 bits or fewer")
    check_total(path, found)
    return found


def _fields(data: Any) -> Iterator[tuple[int, Any]]:
    """The fields of a message: their numbers, and integers or bytes."""
    if not isinstance(data, memoryview):
        raise ValueError("a message is a number")
    at, end = 0, len(data)

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value & (2**64 - 1)
        raise ValueError("a number has more than 64 bits")

    while at < end:
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        if at + size > end:
            raise ValueError("it is cut short")
        at += size
        yield number, data[at - size : at]


def _add_constant(path: Path, found: dict[str, Tensor], narrow: list[str], node: Any) -> None:
    """The value of a node that is a constant."""
    output, kind, value = None, None, None
    for number, part in _fields(node):
        if number == _OUTPUT:
            output = bytes(part).decode()
        elif number == _KIND:
            kind = bytes(part)
        elif number == _ATTRIBUTE and kind == b"Constant":
            value = next((x for n, x in _fields(part) if n == _VALUE), value)
    if kind == b"Constant" and value is not None:
        _add(path, found, narrow, value, output)


def _add(
    path: Path, found: dict[str, Tensor], narrow: list[str], message: Any, name: str | None = None
) -> None:
    """A tensor, by its name or that of the constant."""
    shape: list[int] = []
    kind, raw, floats = 0, None, None
    for number, value in _fields(message):
        if number == 1:
            shape += [value] if isinstance(value, int) else _packed(value)
        elif number == 2:
            kind = value
        elif number == 4 and isinstance(value, memoryview):
            floats = value
        elif number == 8 and name is None:
            name = bytes(value).decode()
        elif number == 9:
            raw = value
        elif number == 13 or (number == 14 and value):
            raise DataError(f"{path} keeps tensors in other files. Save it as one file.")
    if name is None or not name.isprintable() or len(name) > 500 or len(shape) > 8:
        raise ValueError(f"a tensor has the name {str(name)[:40]!r}, or {len(shape)} dimensions")
    if kind in _NARROW or (_DTYPES.get(kind) in ("I8", "U8") and len(shape) > 1):
        narrow.append(name)
    dtype, data = _DTYPES.get(kind), raw if raw is not None else floats
    if dtype is None or data is None or not shape:
        return  # strings, numbers, and integers that are kept one by one: shapes, no weights
    if math.prod(shape) * SIZES[dtype] != len(data) or (raw is None and dtype != "F32"):
        raise ValueError(f"tensor {name} has {len(data)} bytes; its shape is {shape}")
    found[name] = Tensor(dtype, tuple(shape), data.tobytes)


def _packed(data: Any) -> list[int]:
    """Integers in one field."""
    values, value, shift = [], 0, 0
    for byte in np.frombuffer(data, np.uint8)[:100].tolist():
        value |= (byte & 127) << shift
        shift = shift + 7 if byte > 127 else 0
        if not shift:
            values.append(value)
            value = 0
    return values
