"""jax's persistent compilation cache in the user's cache folder: a repeated run compiles nothing anew.

Every program is kept, however small: an experiment compiles a hundred of them, most in well under the
second below which jax by itself keeps none.
"""

import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path

import jax
import jaxlib.version

from imr.lab.console import say

VARIABLE = "IMR_COMPILATION_CACHE"
LARGEST = 2**30  # bytes; a run of the experiments leaves 5 to 30 MB


def cache_folder() -> Path | None:
    """The folder of compiled programs of this jaxlib on this kind of CPU.

    `IMR_COMPILATION_CACHE` chooses the folder above it, or turns the cache off with 0; by default it
    is the user's cache folder, such as `~/.cache/imr/xla`.
    """
    chosen = os.environ.get(VARIABLE, "").strip()
    if chosen == "0":
        return None
    above = _user_cache() / "imr" / "xla" if chosen in ("", "1") else Path(chosen).expanduser()
    # A program for one CPU may hold instructions that another lacks. jax's own key does not tell
    # CPUs apart, and a cache folder in a home folder is shared by many machines.
    key = sha256(_cpu().encode()).hexdigest()[:10]
    return above.absolute() / f"jaxlib-{jaxlib.version.__version__}-{key}"


def _user_cache() -> Path:
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    return Path.home() / ".cache"


def _cpu() -> str:
    """Architecture, model and instruction sets of this CPU, as far as the system says them."""
    words = [platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return " ".join(words)
    kinds = ("model name", "flags", "Features", "CPU part")
    # One line of each kind: all cores are alike.
    first = {kind: line for kind in kinds for line in reversed(lines) if line.startswith(kind)}
    return " ".join([*words, *first.values()])


@contextmanager
def compilation_cache(on: bool = True) -> Iterator[Path | None]:
    """Within it jax reads compiled programs from the cache folder and writes new ones there.

    What cannot be read counts as not there, with a warning. A folder that cannot be written turns the
    cache off and says so. A cache that the user has already given to jax stays.
    """
    theirs = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    folder = cache_folder() if on and theirs is None else None
    if folder is not None and (problem := _open(folder)):
        say(f"compiled programs are not kept: {folder} cannot be written ({problem})")
        folder = None
    if folder is None:
        yield None
        return
    from jax.experimental.compilation_cache import compilation_cache as caches

    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_raise_persistent_cache_errors": False,
    }
    with ExitStack() as exits:
        exits.enter_context(warnings.catch_warnings())
        # A warning even if the user turns warnings into errors: nothing is lost but time.
        warnings.filterwarnings("default", message="Error (reading|writing) persistent comp")
        # jax opens its cache once in a process, in whatever folder was named then.
        caches.reset_cache()
        exits.callback(caches.reset_cache)
        for name, value in settings.items():
            exits.callback(jax.config.update, name, getattr(jax.config, name))
            jax.config.update(name, value)
        yield folder


def _open(folder: Path) -> str | None:
    """Makes the folder and room in it; says what is wrong if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}"
        probe.touch()
        probe.unlink()
        _make_room(folder)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _make_room(folder: Path, largest: int | None = None) -> None:
    """Deletes what was used longest ago until the rest is at most the largest size.

    jax can bound its cache by itself, but then locks the folder (with a package of its own) at every
    read, and reads the age of every entry at every write.
    """
    stats = []
    for path in folder.glob("*-cache"):
        try:
            stats.append((path.stat(), path))
        except FileNotFoundError:  # deleted by another run just now
            continue
    used = sorted((max(s.st_atime, s.st_mtime), s.st_size, path) for s, path in stats)
    excess = sum(size for _, size, _ in used) - (LARGEST if largest is None else largest)
    for _, size, path in used:
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size
