"""The flags of the features experiment, and what they may be."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from imr.lab.bounds import above, at_least
from imr.lab.flags import RunFlags

FIRST_TIME = 1e-2
"""Of the logarithmic grid: before any row has moved by as much as its distance to a boundary."""


@dataclass(frozen=True, kw_only=True)
class Config(RunFlags):
    """Flags of the features experiment."""

    dataset: str = "digits"
    """digits (bundled with scikit-learn), fashion_mnist or mnist."""
    data_dir: Path | None = None
    """Folder with your own copy of the IDX files; without it they are downloaded once."""
    train_limit: int | None = None
    """Use the first so many training images."""
    l2: Annotated[float, above(0)] = 1e-3
    """Penalty on the sum of squares of theta in the fit, beside the mean cross-entropy."""
    t1: Annotated[float, at_least(1)] = 1e4
    """End of the flow; slopes are measured over its last decade and the one before it."""
    per_decade: Annotated[int, at_least(3)] = 10
    """Saved times in each factor of ten of time, from 0.01 to the end."""
    anchor: Annotated[float, above(0)] = 0.01
    """Weight lam of the second flow's anchor, (lam / 2) times the squared distance to its start."""
    shown: Annotated[int, at_least(1)] = 600
    """Images of each seed whose features are kept at every time, for projections and pictures."""
    strips: Annotated[int, at_least(1)] = 5
    """Images in the figure of pictures, each of another class."""
    seeds: Annotated[int, at_least(1)] = 5
    """Bootstrap samples of the training images, stratified by class: one program for all."""


def shrink(config: Config) -> Config:
    """The smoke version: every part, as small as it goes; tighter limits of the user's stay."""
    limit = 300 if config.train_limit is None else min(config.train_limit, 300)
    return replace(
        config, train_limit=limit, t1=min(config.t1, 1e3), per_decade=min(config.per_decade, 4),
        shown=min(config.shown, 100), strips=min(config.strips, 3), seeds=min(config.seeds, 2),
    )  # fmt: skip
