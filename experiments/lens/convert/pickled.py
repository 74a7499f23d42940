"""The tensors of `torch.save`, of files old and new, without torch; see `unpickling`."""

import io
import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lens.convert.tensors import SIZES, Tensor, check_quantised, check_total
from experiments.lens.convert.unpickling import Refused, View, load
from imr import DataError
from imr._files import open_file

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of files before torch 1.6
_LARGEST_PICKLE = 2**25  # bytes; a tensor takes about 250
_MOST_DIMENSIONS, _LONGEST_NAME = 8, 500
# What pickletools and zipfile raise for a file that is damaged.
_DAMAGE = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError, EOFError,
    NotImplementedError, struct.error, zipfile.BadZipFile,
)  # fmt: skip
_WITHIN = ("state_dict", "model_state_dict", "model", "module")  # where trainers put them


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that `torch.save` has written: of a state dict, alone or in a checkpoint.

    Raises:
      OSError: if the file cannot be read.
      DataError: if it is no such file, is damaged, holds anything but tensors, numbers and names, or
        quantised tensors, or would take many times its size.
    """
    open_file(path).close()  # what cannot be opened is an OSError
    try:
        views, places = _zipped(path) if zipfile.is_zipfile(path) else _plain(path)
        for name in views:
            if not (name.isprintable() and len(name) <= _LONGEST_NAME):
                raise Refused(f"a tensor has the name {name[:40]!r}")
        tensors = {name: _tensor(path, name, view, places) for name, view in views.items()}
    except DataError:
        raise
    except Refused as error:
        raise DataError(
            f"{path} is not read: {error}. It must hold a state dict of torch."
        ) from None
    except _DAMAGE as error:
        words = str(error)[:200]
        raise DataError(f"{path} is damaged or no file of torch.save: {words}.") from None
    check_total(path, tensors)
    return tensors


def _zipped(path: Path) -> tuple[dict[str, View], dict[str, tuple[int, int]]]:
    """Views by name, and the place of each storage in the file, of the format since torch 1.6."""
    with open_file(path) as file, zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Refused("it is a zip file without one data.pkl")
        root, size = pickles[0].removesuffix("data.pkl"), file.seek(0, io.SEEK_END)

        def place(name: str) -> tuple[int, int]:
            info = members[name]
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise Refused(f"{name} is compressed or encrypted, as torch does not do")
            file.seek(info.header_offset)
            head = file.read(30)
            if len(head) < 30 or head[:4] != b"PK\3\4":
                raise Refused(f"{name} does not lie where the archive says")
            start = info.header_offset + 30 + int.from_bytes(head[26:28], "little")
            start += int.from_bytes(head[28:30], "little")
            if start + info.file_size > size:
                raise Refused(f"{name} ends beyond the file")
            return start, info.file_size

        start, length = place(pickles[0])
        if length > _LARGEST_PICKLE:
            raise Refused(f"its pickle has {length} bytes; at most {_LARGEST_PICKLE} are read")
        order = members.get(f"{root}byteorder")
        if order is not None:
            at, count = place(order.filename)
            file.seek(at)
            if file.read(min(count, 10)) != b"little":
                raise Refused("its numbers are big-endian")
        file.seek(start)
        views = _views(path, load(io.BytesIO(file.read(length))))
        keys = {view.storage.key for view in views.values()}
        places = {key: place(f"{root}data/{key}") for key in sorted(keys)}
    for view in views.values():
        _, there = places[view.storage.key]
        if there < view.storage.count * SIZES.get(view.storage.dtype or "I8", 1):
            raise Refused(f"storage {view.storage.key} is cut short")
    return views, places


def _plain(path: Path) -> tuple[dict[str, View], dict[str, tuple[int, int]]]:
    """The same of the format before: pickles one after another, then storages with their lengths."""
    with open_file(path) as file:
        head = io.BytesIO(file.read(_LARGEST_PICKLE))
        if load(head) != _MAGIC or load(head) != _PROTOCOL:
            raise Refused("it does not begin as files of torch do")
        system = load(head)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise Refused("its numbers are big-endian")
        views, keys = _views(path, load(head)), load(head)
        storages = {view.storage.key: view.storage for view in views.values()}
        known = type(keys) is list and all(type(key) is str for key in keys)
        if not known or not storages.keys() <= set(keys):
            raise Refused("it does not say where its storages are")
        places, at, size = {}, head.tell(), file.seek(0, io.SEEK_END)
        for key in keys:
            if key not in storages:
                raise Refused(f"storage {key[:40]} is no tensor's")
            file.seek(at)
            count, storage = int.from_bytes(file.read(8), "little"), storages[key]
            length = count * SIZES.get(storage.dtype or "I8", 1)
            if count != storage.count or at + 8 + length > size or key in places:
                raise Refused(f"storage {key[:40]} is cut short")
            places[key] = at + 8, length
            at += 8 + length
    return views, places


def _views(path: Path, value: Any) -> dict[str, View]:
    """The tensors of a state dict, or of the one within a checkpoint."""
    if not isinstance(value, dict):
        raise Refused(f"it holds a {type(value).__name__}")
    for each in (value, *(value.get(name) for name in _WITHIN)):
        if isinstance(each, dict):
            views = {str(name): x for name, x in each.items() if isinstance(x, View)}
            quantised = [name for name, view in views.items() if view.storage.dtype is None]
            check_quantised(path, quantised, "a qtensor of torch")
            if views:
                return views
    raise Refused("it holds no tensors by name")


def _tensor(path: Path, name: str, view: View, places: Mapping[str, tuple[int, int]]) -> Tensor:
    (key, dtype, count), offset, shape, strides = view
    numbers = (offset, *shape, *strides)
    if not all(type(x) is int and 0 <= x < 2**48 for x in numbers) or len(shape) != len(strides):
        raise Refused(f"tensor {name} has no sizes and strides that can be")
    if len(shape) > _MOST_DIMENSIONS:
        raise Refused(f"tensor {name} has {len(shape)} dimensions")
    total = math.prod(shape)
    extent = (
        1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if total else 0
    )
    if offset + extent > count or total > count:
        raise Refused(f"tensor {name} is larger than its storage of {count} numbers")
    assert dtype is not None  # by `read_pickled`
    size = SIZES[dtype]
    start = places[key][0] + offset * size

    def read() -> bytes:
        with open_file(path) as file:
            file.seek(start)
            flat = np.frombuffer(file.read(extent * size), f"<u{size}")
        if flat.size != extent:
            raise DataError(f"{path}: tensor {name} is cut short.")
        steps = [stride * size for stride in strides]
        return np.lib.stride_tricks.as_strided(flat, shape, steps).tobytes() if total else b""

    return Tensor(dtype, tuple(shape), read)
