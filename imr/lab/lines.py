"""A text file that lines are appended to, on a file system or in an object store."""

import os
import threading
import time
from collections.abc import Callable

from imr._files import read_bytes
from imr.errors import RunError
from imr.lab.files import Place, is_local, using, write_whole

LARGEST = 2**28  # bytes
_SECONDS = 10.0  # between two writings of the whole; a store refuses more than one a second


class Lines:
    """The lines of a file; a last one that a killed process left half-written is cut off."""

    def __init__(self, path: Place) -> None:
        self.path = path
        if path.is_symlink():
            raise RunError(f"{path} is a link, which no run makes; remove it.")
        with using(path):
            data = self.read() if path.is_file() else b""
            if data and not data.endswith(b"\n"):
                os.truncate(path, data.rfind(b"\n") + 1)

    def read(self) -> bytes:
        """All lines."""
        with using(self.path):
            return read_bytes(self.path, LARGEST) if self.path.exists() else b""

    def append(self, line: str) -> None:
        """Writes a line, there for any reader on return."""
        # Opened anew for each line, since `replace` puts a new file in the place of the old one.
        with using(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line)

    def replace(self, text: str) -> None:
        """Puts other lines in the place of all, all at once or not at all."""
        write_whole(self.path, text)

    def flush(self) -> None:
        """On return all lines are there for any reader."""


class StoredLines(Lines):
    """The lines of an object, which can only be written whole: every 10 seconds, and by `flush`.

    One object of this class writes, for whom memory is what counts; several threads may share it.

    Args:
      path: of the object.
      check: is called before each writing, and raises if another process writes there now.
    """

    def __init__(self, path: Place, check: Callable[[], None]) -> None:
        self.path, self._check, self._lock = path, check, threading.Lock()
        with using(path):
            # None where there is no object: one without lines is made, too, as on a file system.
            self._written = read_bytes(path, LARGEST).decode() if path.exists() else None
        self._text, self._due = self._written or "", time.monotonic()

    def read(self) -> bytes:
        return self._text.encode()

    def append(self, line: str) -> None:
        with self._lock:
            self._text += line
        if time.monotonic() > self._due:
            self.flush()

    def replace(self, text: str) -> None:
        with self._lock:
            self._text = text
        self.flush()

    def flush(self) -> None:
        with self._lock:
            if self._written != self._text:
                self._check()
                write_whole(self.path, self._text)
                self._written, self._due = self._text, time.monotonic() + _SECONDS


def lines_of(path: Place, check: Callable[[], None]) -> Lines:
    """The lines of a file or object; `check` as in `StoredLines`."""
    return Lines(path) if is_local(path) else StoredLines(path, check)
