"""What an experiment needs: a frame, flags, claims, run folder, training, checkpoints, data, figures."""

from imr._lazy import load_on_use

SUBMODULES = (
    "architecture", "as_json", "beside", "bounds", "cache", "checkpoint", "claims", "console", "data",
    "experiment", "files", "flags", "folder", "idx", "lock", "metrics", "nets", "phases", "plotting",
    "seeds", "train",
)  # fmt: skip

__getattr__ = load_on_use(__name__, SUBMODULES)


def __dir__() -> list[str]:
    return sorted([*globals(), *SUBMODULES])
