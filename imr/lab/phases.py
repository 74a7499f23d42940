"""The phase that an experiment is in: what a message says of a run, and where a signal stops it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from imr._checks import check_choice
from imr.parallel import stop_if_asked

PHASES = ("data", "regression", "train", "evaluate", "figures", "summary")

HOOKS: list[Callable[[str], None]] = []
"""Called with the name of each phase that begins, in its thread: for tests that break a run off."""

_current: ContextVar[str | None] = ContextVar("phase", default=None)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Within it `current_phase` returns the name; phases may be nested, and the inner one counts.

    Its beginning and its end are where several processes heed a signal to stop, see
    `imr.parallel.stop_if_asked`: all of them pass through the same phases.

    >>> with phase("train"):
    ...     current_phase()
    'train'
    """
    check_choice("name", name, PHASES)
    stop_if_asked(f"stopped before the phase {name!r}")
    token = _current.set(name)
    try:
        for hook in HOOKS:
            hook(name)
        yield
        stop_if_asked(f"stopped at the end of the phase {name!r}")
    finally:
        _current.reset(token)


def current_phase() -> str | None:
    """The name of the phase that this thread's experiment is in; None outside of all."""
    return _current.get()
