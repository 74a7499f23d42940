"""The flags of the features experiment, and what they may be."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from imr import ImrError

FIRST_TIME = 1e-2
"""Of the logarithmic grid: before any row has moved by as much as its distance to a boundary."""


@dataclass(frozen=True)
class Config:
    """Flags of the features experiment."""

    dataset: str = "digits"
    """digits (bundled with scikit-learn), fashion_mnist or mnist."""
    data_dir: Path | None = None
    """Folder with your own copy of the IDX files; without it they are downloaded once."""
    train_limit: int | None = None
    """Use the first so many training images."""
    l2: float = 1e-3
    """Penalty on the sum of squares of theta in the fit, beside the mean cross-entropy."""
    t1: float = 1e4
    """End of the flow."""
    per_decade: int = 10
    """Saved times in each factor of ten of time, from 0.01 to the end."""
    anchor: float = 0.01
    """Weight lam of the second flow's anchor, (lam / 2) times the squared distance to its start."""
    shown: int = 600
    """Images of each seed whose features are kept at every time, for projections and pictures."""
    strips: int = 5
    """Images in the figure of pictures, each of another class."""
    seeds: int = 5
    """Bootstrap samples of the training images, stratified by class: one program for all."""
    seed: int = 0
    """The first of the seeds."""
    smoke: bool = False
    """A small version of everything, for tests."""
    out: Path | None = None
    """Run folder; runs/features/<hash of the configuration> by default."""
    overwrite: bool = False
    """Replace the run in that folder."""


def check(config: Config) -> None:
    """Refuses values that make no run, before anything is read or written."""
    for name in ("l2", "anchor"):
        value = getattr(config, name)
        if not 0 < value < math.inf:
            raise ImrError(f"--{name} must be positive and finite; found {value}. Try 1e-3.")
    # Slopes are measured over the last decade and the one before it, past the first time.
    if not 1 <= config.t1 < math.inf:
        raise ImrError(f"--t1 must be at least 1 and finite; found {config.t1}. Try 1e4.")
    for name, least in (
        ("per_decade", 3), ("shown", 1), ("strips", 1), ("seeds", 1), ("seed", 0),
    ):  # fmt: skip
        value, flag = getattr(config, name), name.replace("_", "-")
        if value < least:
            raise ImrError(f"--{flag} must be at least {least}; found {value}.")


def shrink(config: Config) -> Config:
    """The smoke version: every part, as small as it goes; tighter limits of the user's stay."""
    limit = 300 if config.train_limit is None else min(config.train_limit, 300)
    return replace(
        config,
        train_limit=limit,
        t1=min(config.t1, 1e3),
        per_decade=min(config.per_decade, 4),
        shown=min(config.shown, 100),
        strips=min(config.strips, 3),
        seeds=min(config.seeds, 2),
    )
