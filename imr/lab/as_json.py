"""Values as JSON has them."""

import dataclasses
import enum
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from imr.errors import ImrError


def json_ready(name: str, value: Any, spell: bool = False) -> Any:
    """The value as JSON has it; what is not finite becomes null, or its name with `spell`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): json_ready(f"{name}.{key}", entry, spell) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(name, entry, spell) for entry in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return json_ready(name, np.asarray(value).tolist(), spell)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value) if spell else None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ImrError(f"{name} must be JSON-ready; found a {type(value).__name__}. Convert it first.")
