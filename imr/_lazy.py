"""Submodules that are imported when they are first used (PEP 562)."""

import importlib
from collections.abc import Callable, Iterable
from types import ModuleType


def load_on_use(package: str, names: Iterable[str]) -> Callable[[str], ModuleType]:
    """A module's `__getattr__` that imports the submodules of those names.

    Args:
      package: the module's `__name__`.
      names: of its submodules.

    Raises:
      AttributeError: for any other name.
    """
    known = frozenset(names)

    def __getattr__(name: str) -> ModuleType:
        if name not in known:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return importlib.import_module(f"{package}.{name}")

    return __getattr__
