"""The flags of the collapse experiment, and what they may be."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from imr import ImrError

FIRST_TIME = 0.1
"""Of the logarithmic grid: from a small start nothing moves faster than exp(t)."""


@dataclass(frozen=True)
class Config:
    """Flags of the collapse experiment."""

    classes: int = 6
    """k, the number of classes."""
    dimensions: tuple[int, ...] = ()
    """f, the dimensions of the features, each at least 2; by default 2 to k + 1."""
    rows: int = 8
    """Features of each class."""
    decay: float = 0.01
    """Weight decay of the runs that have it, of features; below 1, where all would go to zero."""
    scale: float = 0.1
    """Standard deviation of the entries of features and theta at the start."""
    t1: float = 1e6
    """End of the flow without decay."""
    decay_times: float = 50.0
    """End of the flow with decay, in units of 1 / decay."""
    per_decade: int = 5
    """Saved times in each factor of ten of time, from 0.1 to the end."""
    seeds: int = 5
    """Starts of each kind, vmapped with all dimensions and both decays: one program."""
    seed: int = 0
    """The first of the seeds."""
    smoke: bool = False
    """A small version of everything, for tests."""
    out: Path | None = None
    """Run folder; runs/collapse/<hash of the configuration> by default."""
    overwrite: bool = False
    """Replace the run in that folder."""


def dimensions(config: Config) -> tuple[int, ...]:
    """Those asked for, in order, or 2 to k + 1."""
    return tuple(sorted(config.dimensions)) or tuple(range(2, config.classes + 2))


def check(config: Config) -> None:
    """Refuses values that make no run, before anything is written."""
    for name, least in (
        ("classes", 3), ("rows", 1), ("per_decade", 1), ("seeds", 1), ("seed", 0),
    ):  # fmt: skip
        value, flag = getattr(config, name), name.replace("_", "-")
        if value < least:
            raise ImrError(f"--{flag} must be at least {least}; found {value}.")
    found = config.dimensions
    if any(f < 2 for f in found) or len(set(found)) < len(found):
        raise ImrError(f"--dimensions takes different numbers of at least 2; found {found}.")
    # From 1 on the origin is stable: nothing is learned.
    if not 0 < config.decay < 1:
        raise ImrError(f"--decay must lie between 0 and 1; found {config.decay}. Try 0.01.")
    if not 0 < config.scale < math.inf:
        raise ImrError(f"--scale must be positive and finite; found {config.scale}. Try 0.1.")
    for name in ("t1", "decay_times"):
        value, flag = getattr(config, name), name.replace("_", "-")
        if not 1 <= value < math.inf:
            raise ImrError(f"--{flag} must be at least 1 and finite; found {value}.")


def shrink(config: Config) -> Config:
    """The smoke version: fewer classes and times, and every kind of frame still there."""
    classes = min(config.classes, 4)
    return replace(
        config,
        classes=classes,
        dimensions=tuple(f for f in config.dimensions if f <= classes + 1),
        rows=min(config.rows, 4),
        t1=min(config.t1, 1e4),
        per_decade=min(config.per_decade, 2),
        seeds=min(config.seeds, 3),
    )
