"""The flags of the collapse experiment, and what they may be."""

from dataclasses import dataclass, replace
from typing import Annotated

from imr.lab.bounds import above, at_least, below
from imr.lab.flags import RunFlags, flag_error

FIRST_TIME = 0.1
"""Of the logarithmic grid: from a small start nothing moves faster than exp(t)."""


@dataclass(frozen=True, kw_only=True)
class Config(RunFlags):
    """Flags of the collapse experiment."""

    classes: Annotated[int, at_least(3)] = 6
    """k, the number of classes."""
    dimensions: Annotated[tuple[int, ...], at_least(2)] = ()
    """f, the dimensions of the features, each at least 2; by default 2 to k + 1."""
    rows: Annotated[int, at_least(1)] = 8
    """Features of each class."""
    decay: Annotated[float, above(0), below(1)] = 0.01
    """Weight decay of the runs that have it, of features; below 1, since from 1 on the origin is
    stable and nothing is learned."""
    scale: Annotated[float, above(0)] = 0.1
    """Standard deviation of the entries of features and theta at the start."""
    t1: Annotated[float, at_least(1)] = 1e6
    """End of the flow without decay."""
    decay_times: Annotated[float, at_least(1)] = 50.0
    """End of the flow with decay, in units of 1 / decay."""
    per_decade: Annotated[int, at_least(1)] = 5
    """Saved times in each factor of ten of time, from 0.1 to the end."""
    seeds: Annotated[int, at_least(1)] = 5
    """Starts of each kind, vmapped with all dimensions and both decays: one program."""


def dimensions(config: Config) -> tuple[int, ...]:
    """Those asked for, in order, or 2 to k + 1."""
    return tuple(sorted(config.dimensions)) or tuple(range(2, config.classes + 2))


def check(config: Config) -> None:
    """Refuses dimensions that are given twice."""
    if len(set(config.dimensions)) < len(config.dimensions):
        raise flag_error("dimensions", "must hold each number once", config.dimensions)


def shrink(config: Config) -> Config:
    """The smoke version: fewer classes and times, and every kind of frame still there."""
    classes = min(config.classes, 4)
    return replace(
        config, classes=classes,
        dimensions=tuple(f for f in config.dimensions if f <= classes + 1),
        rows=min(config.rows, 4), t1=min(config.t1, 1e4), per_decade=min(config.per_decade, 2),
        seeds=min(config.seeds, 3),
    )  # fmt: skip
