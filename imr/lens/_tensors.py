"""The tensors of a model folder."""

import importlib
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from imr.errors import DataError, missing_package

_FLOATS = {"F64", "F32", "F16", "BF16"}


class Tensors:
    """The tensors of a folder by name, each read when it is asked for."""

    def __init__(self, folder: Path):
        try:
            self._library: Any = importlib.import_module("safetensors")
        except ImportError as error:
            raise missing_package("safetensors", "lens") from error
        self._file_of: dict[str, Path] = {}
        for path in _files(folder):
            with self._open(path) as file:
                self._file_of.update(dict.fromkeys(file.keys(), path))
        self.prefix = ""

    def _open(self, path: Path) -> Any:
        if not path.is_file():
            raise DataError(f"{path} is missing, which model.safetensors.index.json names.")
        try:
            return self._library.safe_open(path, framework="flax")
        except (self._library.SafetensorError, OSError) as error:
            raise DataError(f"{path} is damaged or no safetensors file: {error}.") from None

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self._file_of

    def find_prefix(self, name: str, prefixes: tuple[str, ...]) -> None:
        """Sets the prefix of all names, which a head on top of the model adds, by one tensor."""
        known = [prefix for prefix in prefixes if prefix + name in self._file_of]
        if not known:
            raise DataError(f"tensor {name} is missing, also behind {prefixes[1:]}.")
        self.prefix = known[0]

    def __call__(self, name: str, *shape: int, prefix: str | None = None) -> Any:
        """A tensor of that shape in float32, by its name behind the prefix."""
        name = (self.prefix if prefix is None else prefix) + name
        if name not in self._file_of:
            raise DataError(f"tensor {name} is missing from the checkpoint.")
        with self._open(self._file_of[name]) as file:
            view = file.get_slice(name)
            if (dtype := view.get_dtype()) not in _FLOATS:
                raise DataError(
                    f"tensor {name} has dtype {dtype}: quantised weights are not read. Convert them to "
                    "a floating dtype first."
                )
            if (found := tuple(view.get_shape())) != shape:
                raise DataError(f"tensor {name} must have shape {shape}; found {found}.")
            array = np.asarray(jnp.asarray(file.get_tensor(name), jnp.float32))
        if not np.isfinite(array).all():
            raise DataError(f"tensor {name} holds values that are not finite.")
        return array


def _files(folder: Path) -> list[Path]:
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise DataError(
            f"{folder} holds no model.safetensors, whole or in shards. Checkpoints of other "
            "formats are not read: convert them with save_pretrained(safe_serialization=True)."
        )
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if not all(isinstance(name, str) for name in names):
            raise ValueError
    except (ValueError, KeyError, AttributeError, TypeError):
        raise DataError(f"{index} is damaged: it must hold a weight_map.") from None
    return [folder / name for name in sorted(names)]
