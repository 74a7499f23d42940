"""Preemption: a first SIGTERM or SIGINT asks a program to stop where nothing is lost, a second ends it."""

import atexit
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

from imr.parallel.hosts import is_one_of_several, largest

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_installed = False  # whether the handlers are ours
_asked = 0  # the signal that asks this process to stop, or 0
_agreed = 0  # the same, once all processes know of it
_waits = 0  # how many contexts have a stop wait for `stop_if_asked`
_end: Callable[[int], None] | None = None  # what a signal does in place of raising
_raised: "Preempted | None" = None  # by a signal, at whatever line it came to


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
def stop_on_signals(
    wait: bool = False, *, end: Callable[[int], None] | None = None
) -> Iterator[None]:
    """A context in which SIGTERM and SIGINT ask the program to stop; a second one ends it at once.

    `stop_if_asked` heeds them. Of a single process the signal itself raises `Preempted`, too, in the
    main thread. Several processes have to agree first. A signal that nobody has heeded is sent again
    on leaving the context, to whoever handled it before. Signals that were ignored still are. One that
    came before counts, if its handler has it as the attribute `asked`.

    Args:
      wait: whether a signal waits for `stop_if_asked`, which is then called where a state is saved.
      end: what a signal does where it would raise `Preempted`, called with its number: it ends the
        process. What is raised amid a library's code may be swallowed or become another error there.
    """
    global _installed, _asked, _agreed, _waits, _end, _raised
    _waits += wait
    try:
        if _installed or threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        with _second_ends(), _swallowed_without_words():
            _installed, _end = True, end
            try:
                for number, handler in handlers.items():
                    if handler is not signal.SIG_IGN:
                        signal.signal(number, _ask)
                _asked = max(_asked, *(getattr(each, "asked", 0) for each in handlers.values()))
                yield
            except Exception as error:
                if _raised is not None and _comes_of(error, _raised):
                    raise _raised from None
                raise
            finally:
                for number, handler in handlers.items():
                    if signal.getsignal(number) is _ask:
                        # None is a handler that Python knows nothing of, and cannot put back.
                        signal.signal(number, signal.SIG_DFL if handler is None else handler)
                _installed, unheard = False, 0 if _agreed else _asked
                _asked = _agreed = 0
                _end = _raised = None
        if unheard:
            os.kill(os.getpid(), unheard)
    finally:
        _waits -= wait


def _ask(number: int, frame: object) -> None:
    global _asked, _agreed, _raised
    _asked = max(_asked, number)
    if not _waits and not is_one_of_several():
        _agreed = _asked
        if _end is not None:
            _end(_asked)
        _raised = Preempted("stopped", _asked)
        raise _raised


def _comes_of(error: BaseException | None, origin: BaseException) -> bool:
    """Whether an error is another or was raised in its course, as by a lock that it left by half."""
    while error is not None and error is not origin:
        error = error.__cause__ or error.__context__
    return error is not None


def end_on_signals(code: int) -> None:
    """From now on SIGTERM and SIGINT do no more than end this process sooner, with its own exit code.

    It has done all that was asked of it, and is about to end by itself. While it takes leave of other
    processes, which would miss it, a first signal does nothing.

    Args:
      code: its exit code.
    """

    def end(number: int, frame: object) -> None:
        if not jax.distributed.is_initialized():
            os._exit(code)

    def ignore() -> None:
        # What Python handles until then gets, amid the last of its exit, the system's own handler.
        for number in _SIGNALS:
            if signal.getsignal(number) is end:
                signal.signal(number, signal.SIG_IGN)

    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
    atexit.register(ignore)


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
