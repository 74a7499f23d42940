"""What an experiment needs: flags, run folder, console, checkpoints, training, data, figures."""

from imr._lazy import load_on_use

SUBMODULES = ("checkpoint", "console", "data", "folder", "plotting", "train")

__getattr__ = load_on_use(__name__, SUBMODULES)


def __dir__() -> list[str]:
    return sorted([*globals(), *SUBMODULES])
