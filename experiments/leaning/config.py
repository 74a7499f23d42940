"""The flags of the leaning experiment, what they may be, and the ways of training that it compares."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np

from imr.lab.bounds import above, at_least, below
from imr.lab.flags import RunFlags, flag_error

CHUNK = 100  # steps of one dispatch
TIMES = 12  # at which the heads are kept
SUBJECTS = ("slow", "alternating", "one_head", "four_layers", "patches", "images")


@dataclass(frozen=True, kw_only=True)
class Config(RunFlags):
    """Flags of the leaning experiment."""

    subjects: tuple[str, ...] = SUBJECTS
    """Which nets: slow, alternating, one_head and four_layers learn to predict the tokens of a Mess3
    process; patches and images classify images by attention among patches."""
    dataset: str = "digits"
    """digits (bundled with scikit-learn), fashion_mnist or mnist."""
    data_dir: Path | None = None
    """Folder with your own copy of the IDX files; without it they are downloaded once."""
    train_limit: int | None = None
    """Use the first so many training images."""
    steps: Annotated[int, at_least(CHUNK)] = 4000
    """Steps of each training, a multiple of 100."""
    batch_size: Annotated[int, at_least(1)] = 64
    """Sequences or images in a step."""
    learning_rate: Annotated[float, above(0), below(1)] = 1e-3
    """Of Adam, after a warm-up; it decays to a hundredth along a cosine."""
    weight_decay: Annotated[float, above(0), below(10)] = 0.1
    """Decoupled, of all matrices, where it is on."""
    seeds: Annotated[int, at_least(2)] = 3
    """Nets trained in each way, all in one program."""
    checkpoint_every: Annotated[int, at_least(1)] = 1000
    """Steps between checkpoints; rounded down to a multiple of 100."""


class Way(NamedTuple):
    """A way of training: what is switched on."""

    decay: bool = False
    noise: bool = False  # targets that are random, and can only be predicted by their frequency
    attention: bool = True  # whether queries and keys are trained
    values: bool = True  # whether values and outputs are


WAYS = {
    "free": Way(), "decay": Way(decay=True), "random targets": Way(noise=True),
    "random targets, decay": Way(noise=True, decay=True), "attention fixed": Way(attention=False),
    "values fixed": Way(values=False),
}  # fmt: skip
STARTS = {"climbing": 1.0, "descending": -1.0}  # heads that begin as W_V W_O = +-theta^T, scaled


def check(config: Config) -> None:
    """Refuses flags that are within their bounds and still make no run."""
    if config.steps % CHUNK:
        raise flag_error("steps", f"must be a multiple of {CHUNK}", config.steps)
    if not config.subjects or len(set(config.subjects)) < len(config.subjects):
        raise flag_error("subjects", "must hold one name or more, each once", config.subjects)
    for name in config.subjects:
        if name not in SUBJECTS:
            raise flag_error("subjects", f"must be among {', '.join(SUBJECTS)}", repr(name))


def shrink(config: Config) -> Config:
    """The smoke version: two kinds of nets, for a few steps."""
    kept = tuple(name for name in config.subjects if name in ("one_head", "images"))
    return replace(
        config, subjects=kept or config.subjects[:1], steps=2 * CHUNK, batch_size=8, seeds=2,
    )  # fmt: skip


def times(config: Config) -> np.ndarray:
    """The steps at which the heads are kept: 0, and then evenly on a logarithmic scale."""
    return np.concatenate([[0], np.round(np.geomspace(10, config.steps, TIMES - 1))]).astype(int)
