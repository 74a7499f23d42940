"""The flags of the incontext experiment, what they may be, and the sizes of its parts."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

from imr import ImrError
from imr.lab.bounds import above, at_least, below
from imr.lab.data import DATASETS
from imr.lab.flags import RunFlags, flag_error

PARTS = ("regression", "dynamics", "autoregression", "classification", "images", "recurrences")


@dataclass(frozen=True, kw_only=True)
class Config(RunFlags):
    """Flags of the incontext experiment."""

    parts: tuple[str, ...] = PARTS
    """Parts to carry out, in this order."""
    dataset: str = "digits"
    """Images: digits (bundled with scikit-learn), fashion_mnist or mnist."""
    data_dir: Path | None = None
    """Folder with your own copy of the IDX files; without it they are downloaded once."""
    seeds: Annotated[int, at_least(1)] = 3
    """Nets of each kind, each trained, chosen and tested on tasks of its own; splits of the classes of
    images."""
    rates: Annotated[tuple[float, ...], above(0), below(1)] = (0.02, 0.005)
    """Learning rates of Adam, at the start; every net is trained with each, for every seed, and the
    best is chosen by its losses on the tasks of the last steps, which are new at every step."""
    effort: Annotated[float, above(0)] = 1.0
    """Scales all numbers of training steps and of tasks: 0.3 is quick and less certain."""
    theory_only: bool = False
    """Check the theory; train nothing."""
    checkpoint_every: Annotated[int, at_least(1)] = 500
    """Steps between checkpoints; rounded down to a multiple of those of one dispatch."""


class Sizes(NamedTuple):
    """How much is drawn: steps of training, tasks of choices and of tests."""

    chunk: int = 100  # steps of one dispatch
    regression_steps: int = 3000
    regression_tests: int = 20_000
    layers: tuple[int, ...] = (1, 2, 3, 5)
    examples: tuple[int, ...] = (10, 20, 40)
    time: float = 60.0  # to which the dynamics are followed
    rates: tuple[float, ...] = (0.02, 0.01, 0.005)  # of their gradient descent
    autoregression_steps: int = 3000
    classification_steps: int = 600
    depths: tuple[int, ...] = (1, 5, 10, 20)
    chosen: int = 200  # tasks on which something is chosen
    tested: int = 1500
    image_tasks: int = 60
    image_flow: int = 200  # Euler steps of flows of images
    meta_steps: int = 300
    shots: tuple[int, ...] = (1, 2, 5, 10, 20)
    recurrence_steps: int = 1500
    recurrences: int = 3000


FULL = Sizes()
SCALED = ("chosen", "tested", "recurrences")
SMOKE = Sizes(
    chunk=10, regression_steps=20, regression_tests=200, layers=(1, 2), examples=(10,), time=4.0,
    rates=(0.04, 0.02), autoregression_steps=20, classification_steps=20, depths=(1, 1), chosen=10,
    tested=20, image_tasks=6, image_flow=10, meta_steps=20, shots=(1, 5), recurrence_steps=20, recurrences=50,
)  # fmt: skip


def sizes(config: Config) -> Sizes:
    """Those of a run."""
    if config.smoke:
        return SMOKE
    names = [name for name in FULL._fields if name.endswith(("_steps", "_tests")) or name in SCALED]
    scaled = {
        name: max(1, round(config.effort * getattr(FULL, name) / FULL.chunk)) * FULL.chunk
        for name in names
    }
    return FULL._replace(**scaled)


def check(config: Config) -> None:
    """Refuses parts and data sets that there are not, and training flags beside `--theory-only`."""
    if config.theory_only and config.smoke:
        raise ImrError("--theory-only trains nothing; leave out --smoke, or it.")
    for name, values, known in (("parts", config.parts, PARTS), ("dataset", (config.dataset,), DATASETS)):  # fmt: skip
        if unknown := [value for value in values if value not in known]:
            raise flag_error(name, f"must be among {', '.join(known)}", repr(unknown[0]))
    for name in ("parts", "rates"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            raise flag_error(name, "must hold each value once, and at least one", values)


def shrink(config: Config) -> Config:
    """The smoke version."""
    return replace(config, seeds=min(config.seeds, 2), rates=config.rates[:2])
