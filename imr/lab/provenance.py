"""What the numbers of a run depend on beside its configuration."""

import importlib.metadata
import platform
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "diffrax", "orbax-checkpoint", "numpy", "imr")


def _commit() -> str | None:
    """The git commit of the source tree, marked if the code differs from it."""
    root = Path(__file__).parents[2]

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, text=True, capture_output=True, check=True)
        return done.stdout.strip()

    try:
        # An installed copy may lie inside somebody else's checkout, which does not track it.
        git("ls-files", "--error-unmatch", "imr/__init__.py")
        changed = git("status", "--porcelain", "--", "imr", "experiments")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def provenance() -> dict[str, Any]:
    """What the numbers of a run depend on beside its configuration."""
    kinds = Counter(device.device_kind for device in jax.devices())
    return {
        "versions": {"python": platform.python_version()}
        | {each: _version(each) for each in _PACKAGES},
        "devices": [{"kind": kind, "count": count} for kind, count in kinds.items()],
        "commit": _commit(),
    }
