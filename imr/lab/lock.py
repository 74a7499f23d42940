"""The lock of a run folder: one program at a time writes into it."""

import contextlib
import os
import platform
import uuid
import weakref
from pathlib import Path

from imr.errors import RunError
from imr.lab.files import Place, is_local, using, write_whole

try:
    import fcntl
except ImportError:  # Windows, where run folders are not locked
    fcntl = None

LOCK_FILE = ".lock"


class Lock:
    """An advisory lock on a folder, held until `close`; one that is no longer used closes itself.

    The system lets go of it when the process ends in whatever way. The file that carries it stays.
    Where the file system knows no locks, there is none.
    """

    def __init__(self, folder: Path) -> None:
        if (folder / LOCK_FILE).is_symlink():
            raise RunError(f"{folder / LOCK_FILE} is a link, which no run makes; remove it.")
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        self._file = os.open(folder / LOCK_FILE, flags, 0o666)
        self._release = weakref.finalize(self, os.close, self._file)
        self._release.atexit = False  # the end of the process lets go of it
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(self._file, 200, 0).decode(errors="replace").strip() or "another process"
            self.close()
            raise RunError(
                f"{folder} is in use by {who}; wait for its end, or choose another folder with --out."
            ) from None
        except OSError:
            return
        with contextlib.suppress(OSError):  # only words; a full disk has no room for them
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{_who()}\n".encode(), 0)

    def check(self) -> None:
        """Raises if another process has taken the folder over, as none can take this lock."""

    def close(self) -> None:
        """Lets go of the folder; a second time is no error."""
        self._release()

    @property
    def held(self) -> bool:
        """Whether it has not been closed."""
        return self._release.alive


class Claim:
    """The claim on a folder in an object store, which knows no locks: who made the last one holds it.

    What a killed process leaves behind keeps nobody out. Of two programs in a folder the earlier one
    ends with its next `check`.
    """

    def __init__(self, folder: Place) -> None:
        self._file, self._words = folder / LOCK_FILE, f"{_who()}, {uuid.uuid4().hex}\n"
        write_whole(self._file, self._words)

    def check(self) -> None:
        """Raises a RunError if another process has claimed the folder since."""
        with using(self._file):
            who = self._file.read_text() if self._file.exists() else "nobody, "
        if who != self._words:
            raise RunError(
                f"{self._file.parent} has been taken over by {who.partition(', ')[0]}; let that end, or "
                "choose another folder with --out."
            )

    def close(self) -> None:
        """Leaves the claim as it is, which keeps nobody out."""


def _who() -> str:
    return f"process {os.getpid()} on {platform.node()}"


_held: weakref.WeakValueDictionary[Path, Lock] = weakref.WeakValueDictionary()


def lock(folder: Place) -> Lock | Claim:
    """The lock of a folder, the same for all who ask for it in this process; in a store, a claim.

    Raises: RunError if another process holds it.
    """
    if not is_local(folder):
        return Claim(folder)
    folder = folder.resolve()
    there = _held.get(folder)
    if there is None or not there.held:
        there = _held[folder] = Lock(folder)
    return there
