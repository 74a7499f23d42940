"""The `config.json` of a model folder."""

import json
from pathlib import Path
from typing import Any

from imr.errors import DataError
from imr.lens.model import ACTIVATIONS


class FolderConfig:
    """The options of a checkpoint, each checked when it is asked for."""

    def __init__(self, folder: Path):
        self.path = folder / "config.json"
        if not self.path.is_file():
            raise DataError(
                f"{folder} is no model folder: config.json is not in it. Give the folder that holds "
                "config.json and model.safetensors."
            )
        try:
            self.options: Any = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{self.path} is damaged: {error}.") from None
        if not isinstance(self.options, dict):
            kind = type(self.options).__name__
            raise DataError(f"{self.path} must hold a JSON object; found a {kind}.")

    def choice(self, name: str, what: str, known: Any, default: Any = None) -> str:
        """An option that is one of the known names."""
        value = self.options.get(name, default)
        if not isinstance(value, str) or value not in known:
            raise DataError(f"{self.path} has {what} {value!r}; known are {', '.join(known)}.")
        return value

    def activation(self, name: str, default: str) -> str:
        """The activation of the MLPs."""
        return self.choice(name, "the activation", ACTIVATIONS, default)

    def positive(self, name: str, kind: Any = int | float, default: Any = None) -> Any:
        """A positive number of that kind."""
        value = self.options.get(name, default)
        if isinstance(value, bool) or not isinstance(value, kind) or not value > 0:
            raise DataError(f"{self.path} must have a positive {name}; found {value!r}.")
        return value

    def sizes(self, *names: str) -> list[int]:
        """Positive integers."""
        return [self.positive(name, int) for name in names]

    def heads(self, name: str, width: int) -> int:
        """The number of heads, which must divide the width of the stream."""
        if width % (heads := self.positive(name, int)):
            raise DataError(f"{self.path} has {heads} heads, which do not divide width {width}.")
        return heads

    def demand(self, **options: Any) -> None:
        """Refuses options that make another architecture of it; a missing one is as demanded."""
        for option, known in options.items():
            if (value := self.options.get(option, known)) != known:
                raise DataError(
                    f"{self.path} has {option} {value!r}, which is not known; {known!r} is."
                )
