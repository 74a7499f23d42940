"""The phase that an experiment is in: what a signal or a message says of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from imr._checks import check_choice

PHASES = ("data", "train", "evaluate", "figures", "summary")

_current: ContextVar[str | None] = ContextVar("phase", default=None)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Within it `current_phase` returns the name; phases may be nested, and the inner one counts.

    >>> with phase("train"):
    ...     current_phase()
    'train'
    """
    check_choice("name", name, PHASES)
    token = _current.set(name)
    try:
        yield
    finally:
        _current.reset(token)


def current_phase() -> str | None:
    """The name of the phase that this thread's experiment is in; None outside of all."""
    return _current.get()
