"""Where runs are kept, on a file system or in an object store; files that are there whole or not at all.

A path in an object store is one of `etils.epath`, which has the methods of `pathlib.Path`. Such a store
knows whole objects: it has no folders, no renaming, no appending and no locks.
"""

import contextlib
import errno
import importlib.util
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from imr._files import expanded
from imr.errors import ImrError, RunError, UnreachableError, missing_package

# A path in an object store is no `Path`, but has its methods.
if TYPE_CHECKING:
    Place = Path
else:
    Place = PurePath

# Without what its client would take for a pattern, and remove all that fits it.
_STORE = re.compile(r"gs://[^/*?[]+/[^*?[]*[^/*?[][^*?[]*")
# One letter is a drive of Windows. A Path has made gs:/ of gs://.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")

_ROOM = "make room there and run again, without --overwrite, to resume"
_REMEDIES = {
    errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM,
    errno.ENOENT: "it was removed: run the same command again",
    errno.ENAMETOOLONG: "choose a shorter one with --out",
}  # fmt: skip


def place(path: str | os.PathLike[str]) -> Place:
    """The absolute path of a run folder or of a part of one: local, or gs://BUCKET/FOLDER.

    Raises:
      RunError: for any other address; none is taken for a local folder.
      DataError: if it names a user whom there is not.
      MissingPackageError: if the package for object stores is not installed.

    >>> place("s3://bucket/run")
    Traceback (most recent call last):
      ...
    imr.errors.RunError: s3://bucket/run cannot be written to. Give a folder, or gs://BUCKET/FOLDER, ...
    """
    words = os.fspath(path)
    if not words:
        raise RunError("the path of a run folder is empty. Give a folder.")
    if not _SCHEME.match(words):
        return expanded(words).absolute()
    if not _STORE.fullmatch(words):
        raise RunError(
            f"{words} cannot be written to. Give a folder, or gs://BUCKET/FOLDER, which has none of * ? [."
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise missing_package("gcsfs", "gcs")
    import fsspec.config
    from etils import epath

    # Listings that are kept would not show what orbax or another process has written since.
    fsspec.config.conf.setdefault("gcs", {"use_listings_cache": False})
    # What it logs, with its traceback, is raised as well.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    there: Any = epath.Path(words)
    return there


def is_local(path: Place) -> bool:
    """Whether a path of `place` is one of the file system."""
    return isinstance(path, Path)


def make_folder(path: Place) -> None:
    """Makes a folder and those above it; in an object store they come with what is in them."""
    if is_local(path):  # gcsfs would make a missing bucket, too
        with _making():
            path.mkdir(parents=True, exist_ok=True)


def check_writable(path: Place) -> None:
    """Refuses a folder into which, or where it would be made, nothing can be written.

    Of an object store no more is known, before it is written to, than that the bucket can be listed.

    Raises: RunError, as `make_folder` within `using`.
    """
    if not is_local(path):
        return _check_bucket(path)
    with using(path, " as a run folder"):
        there = path
        while True:
            try:
                os.lstat(there)
                break
            except FileNotFoundError:
                there = there.parent
        with _making():
            tempfile.TemporaryFile(dir=there).close()


def _check_bucket(path: Place) -> None:
    import fsspec

    with using(path, " as a run folder"):
        try:
            fsspec.filesystem("gs").find(os.fspath(path))  # of a folder that is not there nothing
        except FileNotFoundError as error:
            bucket = "/".join(os.fspath(path).split("/")[:3])
            raise RunError(
                f"there is no bucket {bucket}; make it, or give another --out."
            ) from error


@contextlib.contextmanager
def _making() -> Iterator[None]:
    # So answer file systems such as /proc, where nothing was removed.
    try:
        yield
    except FileNotFoundError as error:
        raise PermissionError(errno.EPERM, "nothing can be made there") from error


def entries(path: Place) -> list[Place]:
    """What is in a folder; in an object store, nothing if there is none."""
    try:
        return list(path.iterdir())
    except FileNotFoundError:
        if is_local(path):
            raise
        return []


def remove(path: Place) -> None:
    """Removes a file, or a folder with all that is in it."""
    there: Any = path
    if not path.is_dir():
        path.unlink()
    elif is_local(path):
        shutil.rmtree(path)
    else:
        there.rmtree()


@contextlib.contextmanager
def using(path: Place, what: str = "") -> Iterator[None]:
    """Within it an error of the file system is a RunError that names the path and the remedy."""
    try:
        yield
    except ImrError:
        raise
    except Exception as error:
        if is_local(path) and not isinstance(error, OSError):  # clients of stores raise many kinds
            raise
        if lost := unreachable(path, error):
            raise lost from error
        remedy = _REMEDIES.get(getattr(error, "errno", 0), "choose another folder with --out")
        problem = getattr(error, "strerror", None) or " ".join(str(error).split())[:300]
        raise RunError(f"{path} cannot be used{what} ({problem}); {remedy}.") from error


def unreachable(path: Place, error: BaseException) -> UnreachableError | None:
    """The error of ours if this one, or its cause, is that an object store does not answer.

    Its clients, of which each has errors of its own, have by then tried again for half a minute or more.
    """
    words, cause = " ".join(str(error).split())[:300], error
    while cause is not None and not is_local(path):
        code = getattr(cause, "code", None)
        if (
            isinstance(cause, ConnectionError | TimeoutError)
            or type(cause).__module__.partition(".")[0] in ("aiohttp", "requests", "urllib3")
            or (isinstance(code, int) and (code in (408, 429) or code >= 500))
            or any(word in str(cause) for word in ("UNAVAILABLE", "DEADLINE_EXCEEDED"))
        ):
            return UnreachableError(f"{path} cannot be reached ({words})")
        cause = cause.__cause__ or cause.__context__
    return None


def write_whole(path: Place, data: str | bytes) -> None:
    """Writes the whole file or nothing, also if the process is killed or the machine loses power."""
    data = data.encode() if isinstance(data, str) else data
    half = path.with_name(path.name + ".tmp")
    with using(path):
        if not is_local(path):
            path.write_bytes(data)
            return
        try:
            half.unlink(missing_ok=True)
            with half.open("xb") as file:  # never through a link that lies there
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(half, path)
        except OSError:
            with contextlib.suppress(OSError):
                half.unlink()
            raise
