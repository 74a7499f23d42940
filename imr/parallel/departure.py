"""Departure: if one process of several has to end before the others, all end with its exit code.

They could do nothing without it: whatever they do together next would fail, or wait until jax ends them.
"""

import atexit
import contextlib
import os
import sys
import threading
import time
from typing import Any, NoReturn

import jax
from jax._src import distributed

_KEY = "imr/departure"  # among what process 0 keeps for all: who has left, and its exit code
_EVERY = 1.0  # seconds between looks at it
_WAIT = 10.0  # seconds that a process which leaves waits for the others
_LAST = 0.5  # seconds that process 0 outlives them, for jax ends those that miss it

_stop = threading.Event()
_leaving = threading.Lock()  # of the one thread that ends this process
_watcher: threading.Thread | None = None


def watch_departures() -> None:
    """From now on this process ends as soon as another one has called `leave`, with the same exit code.

    A process that is the only one goes on as it did.
    """
    global _watcher
    if jax.distributed.is_initialized() and _watcher is None:
        _watcher = threading.Thread(target=_watch, daemon=True, name="imr-departure")
        _watcher.start()
        atexit.register(_end_watch)  # what runs when Python ends must not be within jax


def leave(code: int) -> NoReturn:
    """Ends this process at once, and all that `watch_departures`; the first that leaves gives the code.

    Args:
      code: the exit code.
    """
    _leaving.acquire()  # for good
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # closed, or written to now
        sys.stdout.flush()
        sys.stderr.flush()
    told = [code]
    if jax.distributed.is_initialized():
        # In a thread, for process 0 may be gone, and with it who answers.
        thread = threading.Thread(target=_tell, args=(told,), daemon=True)
        thread.start()
        thread.join(1.5 * _WAIT)
    os._exit(told[0])


def _tell(told: list[int]) -> None:
    state = distributed.global_state
    client: Any = state.client
    # jax has one class for all its errors.
    with contextlib.suppress(Exception):  # somebody may have left before
        client.key_value_set(_KEY, f"{state.process_id} {told[0]}")
    with contextlib.suppress(Exception):
        told[0] = int(client.key_value_try_get(_KEY).split()[1])
    with contextlib.suppress(Exception):
        client.wait_at_barrier(_KEY, int(1000 * _WAIT))
    if state.process_id == 0:
        time.sleep(_LAST)


def _watch() -> None:
    state = distributed.global_state
    while not _stop.wait(_EVERY) and (client := state.client) is not None:
        try:
            number, code = client.key_value_try_get(_KEY).split()
        except Exception:  # nobody has left, or process 0 does not answer
            continue
        if int(number) == state.process_id:
            return
        sys.stderr.write(f"process {number} has ended with exit code {code}: so does this one\n")
        leave(int(code))


def _end_watch() -> None:
    _stop.set()
    if _watcher is not None:
        _watcher.join(_WAIT)
