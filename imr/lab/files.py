"""Files that are there whole or not at all, and errors of the file system that say what to do."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from imr.errors import RunError

_ROOM = "make room there and run again, without --overwrite, to resume"
_REMEDIES = {
    errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM,
    errno.ENOENT: "it was removed: run the same command again",
    errno.ENAMETOOLONG: "choose a shorter one with --out",
}  # fmt: skip


@contextlib.contextmanager
def using(path: Path, what: str = "") -> Iterator[None]:
    """Within it an error of the file system is a RunError that names the path and the remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "choose another folder with --out")
        problem = error.strerror or error
        raise RunError(f"{path} cannot be used{what} ({problem}); {remedy}.") from error


def write_whole(path: Path, data: str | bytes) -> None:
    """Writes the whole file or nothing, also if the process is killed or the machine loses power."""
    half = path.with_name(path.name + ".tmp")
    with using(path):
        try:
            with half.open("wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(half, path)
        except OSError:
            with contextlib.suppress(OSError):
                half.unlink()
            raise
