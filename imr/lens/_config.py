"""The options of a checkpoint in Hugging Face's folder format."""

import copy
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from imr.errors import DataError
from imr.lens._files import json_in


class Config:
    """The options of a checkpoint, each checked when it is asked for."""

    def __init__(self, folder: Path):
        self.path = folder / "config.json"
        if not self.path.is_file():
            raise DataError(
                f"{folder} is no model folder: config.json is not in it. Give the folder that holds "
                "config.json and model.safetensors."
            )
        self.options: Any = json_in(folder, "config.json")
        if not isinstance(self.options, dict):
            kind = type(self.options).__name__
            raise DataError(f"{self.path} must hold a JSON object; found a {kind}.")

    def choice(self, name: str, what: str, known: Any, default: Any = None, hint: str = "") -> str:
        """An option that is one of the known names."""
        value = self.options.get(name, default)
        if not isinstance(value, str) or value not in known:
            raise DataError(
                f"{self.path} has {what} {shortened(value)}; known are {', '.join(known)}.{hint}"
            )
        return value

    def inside(self, options: Any, name: str) -> "Config":
        """The same for options that are an object within config.json; None is an empty one."""
        if not isinstance(options, dict | None):
            raise DataError(f"{self.path} must have an object {name}; found {shortened(options)}.")
        inner = copy.copy(self)
        inner.options = options or {}
        return inner

    def size(self, name: str, default: int | None = None) -> int:
        """A positive integer."""
        return self._positive(name, int, 2**31 - 1, default)

    def sizes(self, *names: str) -> list[int]:
        """Positive integers."""
        return [self.size(name) for name in names]

    def number(self, name: str, most: float, default: float | None = None) -> float:
        """A positive number of at most `most`."""
        return float(self._positive(name, int | float, most, default))

    def epsilon(self, name: str, default: float) -> float:
        """What a norm adds to the variance."""
        return self.number(name, 1, default)

    def _positive(self, name: str, kind: Any, most: float, default: Any = None) -> Any:
        value = self.options.get(name, default)
        if isinstance(value, bool) or not isinstance(value, kind) or not value > 0:
            raise DataError(f"{self.path} must have a positive {name}; found {shortened(value)}.")
        if value > most:
            raise DataError(
                f"{self.path} must have a {name} of at most {most}; found {shortened(value)}."
            )
        return value

    def heads(self, name: str, width: int) -> int:
        """The number of heads, which must divide the width of the stream."""
        if width % (heads := self.size(name)):
            raise DataError(f"{self.path} has {heads} heads, which do not divide width {width}.")
        return heads

    def demand(self, **options: Any) -> None:
        """Refuses options that make another architecture of it; a missing one is as demanded."""
        for option, known in options.items():
            if (value := self.options.get(option, known)) != known:
                raise DataError(
                    f"{self.path} has {option} {shortened(value)}, which is not known; {known!r} is."
                )
