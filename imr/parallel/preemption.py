"""Preemption: a first SIGTERM or SIGINT asks a program to stop where nothing is lost, a second ends it."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from imr.parallel.hosts import largest

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_installed = False  # whether the handlers are ours
_asked = 0  # the signal that asks this process to stop, or 0
_agreed = 0  # the same, once all processes know of it
_waits = 0  # how many contexts have a stop wait for `stop_if_asked`


class Preempted(BaseException):
    """The program was asked to stop and has saved what there is; the same command resumes it.

    It is no `Exception`, so that nothing on its way takes it for a failure.

    Args:
      words: what was stopped, and what is saved.
      number: SIGTERM, or SIGINT if nobody has sent that; the attribute `signal`.
    """

    def __init__(self, words: str, number: int = signal.SIGTERM) -> None:
        super().__init__(words)
        self.signal = signal.Signals(number)


@contextmanager
def stop_on_signals(wait: bool = False) -> Iterator[None]:
    """A context in which SIGTERM and SIGINT ask the program to stop; a second one ends it at once.

    `stop_if_asked` heeds them. Of a single process the signal itself raises `Preempted`, too, in the
    main thread. Several processes have to agree first. A signal that nobody has heeded is sent again
    on leaving the context, to whoever handled it before. Signals that were ignored still are.

    Args:
      wait: whether a signal waits for `stop_if_asked`, which is then called where a state is saved.
    """
    global _installed, _asked, _agreed, _waits
    _waits += wait
    try:
        if _installed or threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        with _second_ends(), _swallowed_without_words():
            _installed = True
            try:
                for number, handler in handlers.items():
                    if handler is not signal.SIG_IGN:
                        signal.signal(number, _ask)
                yield
            except Exception as error:
                if (stopped := _within_a_lock(error)) is not None:
                    raise stopped from None
                raise
            finally:
                for number, handler in handlers.items():
                    # None is a handler that Python knows nothing of, and cannot put back.
                    signal.signal(number, signal.SIG_DFL if handler is None else handler)
                _installed, unheard = False, 0 if _agreed else _asked
                _asked = _agreed = 0
        if unheard:
            os.kill(os.getpid(), unheard)
    finally:
        _waits -= wait


def _ask(number: int, frame: object) -> None:
    global _asked, _agreed
    _asked = max(_asked, number)
    if not _waits and not jax.distributed.is_initialized():
        _agreed = _asked
        raise Preempted("stopped", _asked)


def _within_a_lock(error: BaseException | None) -> Preempted | None:
    """`Preempted`, if it was raised in the code of a lock, which then failed on its way out."""
    while error is not None:
        if isinstance(error, RuntimeError) and isinstance(error.__context__, Preempted):
            return error.__context__
        error = error.__context__
    return None


@contextmanager
def _swallowed_without_words() -> Iterator[None]:
    """Within it nothing is printed where `Preempted` is raised in a callback that cannot pass it on.

    The next `stop_if_asked` raises it again.
    """

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if unraisable.exc_type is not Preempted:
            before(unraisable)

    before, sys.unraisablehook = sys.unraisablehook, hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def _second_ends() -> Iterator[None]:
    """Within it the second signal ends the process, even while it runs a compiled program.

    Python itself handles a signal only once that program is done; but it writes the signal's number
    to a socket at once, and a thread reads it there.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        count = 0
        while (number := reader.recv(1)) and number[0]:
            count += number[0] in _SIGNALS
            if count == 2:
                os._exit(128 + number[0])

    thread = threading.Thread(target=watch, daemon=True, name="imr-signals")
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.send(b"\0")
        thread.join()
        reader.close()
        writer.close()


def preempted() -> int:
    """The signal by which any process was asked to stop, or 0; all processes call this together.

    In another thread than the main one, and so for itself: what the processes have agreed upon.
    """
    global _agreed
    if threading.current_thread() is threading.main_thread():
        _agreed = max(_agreed, largest(_asked))
    return _agreed


def stop_if_asked(words: str = "stopped") -> None:
    """Raises `Preempted` if any process was asked to stop; all processes call this together.

    Args:
      words: what the error says.
    """
    if number := preempted():
        raise Preempted(words, number)
