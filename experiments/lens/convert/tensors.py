"""Tensors on their way from one file to another, a tensor in memory at a time."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imr import DataError

SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
MOST_COPIES = 4  # times what a file holds that its tensors may take


class Tensor(NamedTuple):
    """A tensor by the dtypes of safetensors; `read` gives its bytes, little-endian and in C order."""

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], bytes]

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * SIZES[self.dtype]

    def array(self) -> np.ndarray:
        """In float32, if it is that or half precision."""
        data = self.read()
        if self.dtype == "BF16":
            wide = np.frombuffer(data, "<u2").astype(np.uint32) << 16
            return wide.view(np.float32).reshape(self.shape)
        kind = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[self.dtype]
        return np.frombuffer(data, kind).astype(np.float32).reshape(self.shape)


def of_array(array: Any) -> Tensor:
    """An array as a tensor of float32."""
    array = np.ascontiguousarray(array, "<f4")
    return Tensor("F32", array.shape, array.tobytes)


def check_quantised(path: Path, names: list[str], kind: str) -> None:
    """Refuses a file with quantised tensors, by their names."""
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise DataError(
            f"{path}: {', '.join(names[:3])}{more} are quantised ({kind}), which is not known here. Convert "
            "the model in half or single precision, or have the library that wrote it dequantise it."
        )


def check_total(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuses a file whose tensors would take many times its size."""
    total, size = sum(tensor.size for tensor in tensors.values()), path.stat().st_size
    if total > MOST_COPIES * size:
        raise DataError(
            f"{path} has {size} bytes, and its {len(tensors)} tensors would take {total}: many are views "
            "of the same data. Save them without what is shared."
        )


def write_folder(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
) -> None:  # fmt: skip
    """Writes model.safetensors, whole or not at all, config.json and other files of a model folder.

    Raises: DataError if the folder has weights already, or there are no tensors.
    """
    if not tensors:
        raise DataError("the file holds no tensors.")
    target = folder / "model.safetensors"
    if target.exists():
        raise DataError(f"{target} is there already. Give another folder.")
    header, at = {}, 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, at + tensor.size],
        }  # fmt: skip
        at += tensor.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "model.safetensors.partial"
    try:
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, tensor in tensors.items():
                if len(data := tensor.read()) != tensor.size:
                    raise DataError(f"tensor {name} is cut short.")
                file.write(data)
        if config:
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for name, data in (files or {}).items():
            (folder / name).write_bytes(data)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
