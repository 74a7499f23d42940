"""Pickles of tensors, interpreted an operation at a time: nothing is called, whatever they name.

Their globals are names, of which four build what tensors are, and everything else is refused. Python's
own unpickler, which imports and calls what a pickle says, is not used.
"""

import io
import pickletools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

MOST_OPERATIONS = 2**20  # a tensor takes about 30
_DTYPES = {
    "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL",
}  # fmt: skip
_QUANTISED = (
    "QInt8Storage",
    "QUInt8Storage",
    "QInt32Storage",
    "QUInt4x2Storage",
    "QUInt2x4Storage",
)
_SCHEMES = ("per_tensor_affine", "per_channel_affine", "per_channel_affine_float_qparams")
_GLOBALS = {
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_qtensor", *(f"torch {n}" for n in (*_DTYPES, *_QUANTISED, *_SCHEMES)),
}  # fmt: skip


class _Global(NamedTuple):
    """A name, of a function or type of torch."""

    name: str


class Storage(NamedTuple):
    """A storage of so many numbers; without a dtype it is quantised."""

    key: str
    dtype: str | None
    count: int


class View(NamedTuple):
    """A tensor: a part of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Refused(ValueError):
    """What is wrong with a pickle."""


def load(file: io.BytesIO) -> Any:
    """The value of one pickle, up to its end."""
    machine = _Machine()
    for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
        if operation.name == "STOP":
            return machine.pop()
        if count > MOST_OPERATIONS:
            raise Refused(f"its pickle has more than {MOST_OPERATIONS} operations")
        act = _OPERATIONS.get(operation.name)
        if act is None:
            raise Refused(f"its pickle has the operation {operation.name}, which no tensor needs")
        act(machine, argument)
    raise Refused("its pickle has no end")


class _Machine:
    """The stack and the memory of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memory: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise Refused("its pickle takes what is not there")
        return self.stack.pop()

    def cut(self) -> list[Any]:
        """What lies above the last mark."""
        at = self.marks.pop()
        values, self.stack[at:] = self.stack[at:], []
        return values

    def remember(self, number: Any) -> None:
        self.memory[len(self.memory) if number is None else number] = self.stack[-1]

    def take(self, count: int) -> None:
        self.push(tuple([self.pop() for _ in range(count)][::-1]))

    def set_items(self, values: list[Any]) -> None:
        target, keys = self.stack[-1], values[::2]
        if type(target) is not dict or len(values) % 2:
            raise Refused("its pickle sets items of no dictionary")
        if not all(type(key) in (str, int, bool) for key in keys):
            raise Refused("its pickle has keys that are no names")
        target.update(zip(keys, values[1::2], strict=True))

    def append(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise Refused("its pickle appends to no list")
        self.stack[-1].extend(values)

    def name(self, argument: str) -> None:
        if argument not in _GLOBALS:
            raise Refused(f"it names {argument.replace(' ', '.')[:80]}, which no tensor needs")
        self.push(_Global(argument))

    def stacked_name(self) -> None:
        name, module = self.pop(), self.pop()
        if not (type(name) is type(module) is str):
            raise Refused("its pickle has a global without a name")
        self.name(f"{module} {name}")

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(arguments) is not tuple or not isinstance(function, _Global):
            raise Refused("its pickle calls what is no function")
        match function.name.split(" ")[1], arguments:
            case "OrderedDict", ():
                self.push({})
            case "_rebuild_tensor_v2", (
                Storage() as storage,
                offset,
                tuple(shape),
                tuple(strides),
                *_,
            ):
                self.push(View(storage, offset, shape, strides))
            case "_rebuild_parameter", (View() as view, *_):
                self.push(view)
            case "_rebuild_qtensor", (Storage() as storage, *_):
                self.push(View(storage._replace(dtype=None), 0, (), ()))
            case name, _:
                raise Refused(f"its pickle calls {name} with what makes no tensor")

    def persistent(self) -> None:
        match self.pop():
            case ("storage", _Global() as kind, str(key), str(), int(count), *more) if count >= 0:
                name = kind.name.removeprefix("torch ")
                if more not in ([], [None]) or name not in (*_DTYPES, *_QUANTISED):
                    raise Refused(f"storage {key[:40]} is a part of another, or of no known type")
                self.push(Storage(key, _DTYPES.get(name), count))
            case _:
                raise Refused("its pickle refers to what is no storage")

    def build(self) -> None:
        self.pop()  # attributes of a dictionary, such as torch's _metadata
        if type(self.stack[-1]) is not dict:
            raise Refused("its pickle sets the state of what is no dictionary")


def _push_made(make: Callable[[], Any], machine: _Machine, _: Any) -> None:
    machine.push(make())


def _push_argument(machine: _Machine, argument: Any) -> None:
    machine.push(argument)


_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
        _push_argument,
    ),
    **{
        name: partial(_push_made, make)
        for name, make in (
            ("EMPTY_DICT", dict), ("EMPTY_LIST", list), ("EMPTY_TUPLE", tuple), ("NONE", lambda: None),
            ("NEWTRUE", lambda: True), ("NEWFALSE", lambda: False),
        )
    },
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.cut())),
    "TUPLE1": lambda machine, _: machine.take(1),
    "TUPLE2": lambda machine, _: machine.take(2),
    "TUPLE3": lambda machine, _: machine.take(3),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, n: machine.push(machine.memory[n])),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": lambda machine, _: machine.stacked_name(),
    "REDUCE": lambda machine, _: machine.reduce(),
    "BINPERSID": lambda machine, _: machine.persistent(),
    "BUILD": lambda machine, _: machine.build(),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop() for _ in range(2)][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.cut()),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.cut()),
}  # fmt: skip
