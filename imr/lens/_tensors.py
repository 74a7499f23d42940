"""The tensors of a model folder."""

import importlib
import re
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import jax.numpy as jnp
import numpy as np

from imr._files import open_file, parse_json
from imr.errors import DataError, missing_package
from imr.lens._files import json_in, path_in

_FLOATS = {"F64", "F32", "F16", "BF16"}
_INDEX = "model.safetensors.index.json"
_QUANTISED = ("qweight", "weight_packed", "weight_quantized", "blocks", "weight.absmax")
_DEQUANTISE = (
    "Convert them first: AutoModel.from_pretrained(FOLDER).dequantize().save_pretrained(OTHER), of "
    "transformers."
)
_MOST_FILES = 10**4
_LARGEST_HEADER = 2**20  # bytes; a tensor takes about 100


class Tensors:
    """The tensors of a folder by name, each read when it is asked for."""

    def __init__(self, folder: Path):
        try:
            self._library: Any = importlib.import_module("safetensors")
        except ImportError as error:
            raise missing_package("safetensors", "lens") from error
        # Open as long as this object lives: to open one is to read its whole header.
        self._file_of: dict[str, Any] = {}
        for path, listed in _files(folder).items():
            file = self._open(path)
            names = set(file.keys())
            for name in sorted(names ^ (names if listed is None else listed)):
                has, places = ("has", "does not place") if name in names else ("lacks", "places")
                raise DataError(
                    f"{path} {has} tensor {name:.200}, which {_INDEX} {places} there. Download both again."
                )
            self._file_of.update(dict.fromkeys(names, file))
        self.prefix = ""

    def _open(self, path: Path) -> Any:
        try:
            if not path.is_file():
                raise DataError(f"{path} is missing, which {_INDEX} names.")
            _check_header(path)
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

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that whole name."""
        return name in self._file_of

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of the tensor of that whole name, or None without it."""
        return tuple(self._file_of[name].get_slice(name).get_shape()) if self.has(name) else None

    def prefix_of(self, name: str, given: str | None = None) -> str:
        """The prefix, of whole words, behind which a tensor lies: the one there is, or that given."""
        ends = [each.removesuffix(name) for each in self._file_of if each.endswith(name)]
        prefixes = sorted(prefix for prefix in ends if not prefix or prefix[-1] == ".")
        if given is not None:
            prefixes = [prefix for prefix in prefixes if prefix == given]
        if len(prefixes) == 1:
            return prefixes[0]
        if prefixes:
            places = shortened([f"{prefix:.60}" for prefix in prefixes])
            raise DataError(f"tensor {name} lies behind {places}. Say which with prefix=.")
        behind = "behind whatever prefix" if given is None else f"behind prefix {given!r}"
        raise DataError(f"tensor {name} is missing, {behind}.{self._packed(name)}")

    def _packed(self, name: str) -> str:
        """What to say if a missing weight is there in the form of a quantiser."""
        stem = name.removesuffix("weight")
        for part in _QUANTISED:
            known = [each for each in self._file_of if each.endswith(stem + part)]
            if known:
                return f" {min(known, key=len)} is there: the weights are quantised. {_DEQUANTISE}"
        return ""

    def check_layers(
        self, start: str, count: int, prefix: str | None = None, exact: bool = False
    ) -> None:
        """Demands that no name behind the prefix and `start` has a number from `count` on.

        If `exact`, the last number must be there.
        """
        prefix = self.prefix if prefix is None else prefix
        number = re.compile(re.escape(prefix + start) + "([0-9]{1,9})[.]")
        found = [int(match[1]) for match in map(number.match, self._file_of) if match]
        if found and (max(found) >= count or (exact and max(found) < count - 1)):
            raise DataError(
                f"the weights have {max(found) + 1} layers, but config.json says {count}. Take both "
                "from the same checkpoint."
            )

    def __call__(self, name: str, *shape: int, prefix: str | None = None, note: str = "") -> Any:
        """A tensor of that shape, which the note explains, in float32, by its name behind the prefix."""
        name = (self.prefix if prefix is None else prefix) + name
        if name not in self._file_of:
            raise DataError(f"tensor {name} is missing from the checkpoint.{self._packed(name)}")
        file = self._file_of[name]
        view = file.get_slice(name)
        if (dtype := view.get_dtype()) not in _FLOATS:
            raise DataError(
                f"tensor {name} has dtype {dtype}: quantised weights are not read. {_DEQUANTISE}"
            )
        if (found := tuple(view.get_shape())) != shape:
            raise DataError(f"tensor {name} must have shape {shape}{note}; found {found}.")
        array = np.asarray(jnp.asarray(file.get_tensor(name), jnp.float32))
        if not np.isfinite(array).all():
            raise DataError(f"tensor {name} holds values that are not finite.")
        return array


def _files(folder: Path) -> dict[Path, set[str] | None]:
    """The safetensors files of a folder, and the tensors that the index says are in each."""
    if (folder / "model.safetensors").is_file():
        return {path_in(folder, "model.safetensors"): None}
    if not (folder / _INDEX).is_file():
        raise DataError(
            f"{folder} holds no model.safetensors, whole or in shards. Checkpoints of other "
            "formats are not read: scripts/convert makes a folder of a .bin, a .gguf or an .onnx, and "
            "transformers by save_pretrained."
        )
    listed: dict[str, set[str]] = {}
    try:
        for name, file in json_in(folder, _INDEX)["weight_map"].items():
            listed.setdefault(file, set()).add(name)
        if not all(isinstance(file, str) for file in listed):
            raise TypeError
    except (KeyError, AttributeError, TypeError):
        raise DataError(f"{folder / _INDEX} is damaged: it must hold a weight_map.") from None
    if len(listed) > _MOST_FILES:
        raise DataError(
            f"{folder / _INDEX} names {len(listed)} files; at most {_MOST_FILES} are read."
        )
    return {path_in(folder, file): names for file, names in sorted(listed.items())}


def _check_header(path: Path) -> None:
    """Bounds the header, and refuses two tensors of one name, of which the library takes the last."""
    with open_file(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LARGEST_HEADER:
            raise DataError(
                f"{path} is damaged or no safetensors file: its header has {length} bytes; at most "
                f"{_LARGEST_HEADER} are read."
            )
        parse_json(file.read(length), path)
