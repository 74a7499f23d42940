"""The flags of the beliefs experiment, what they may be, and the nets that it trains."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, NamedTuple

from imr import ImrError, Process
from imr.lab.bounds import at_least
from imr.lab.flags import RunFlags
from imr.processes import mess3

LENGTH = 10  # positions, and the depth to which all words are run
NOISE = 0.6  # a of every Mess3


@dataclass(frozen=True, kw_only=True)
class Config(RunFlags):
    """Flags of the beliefs experiment."""

    seeds: Annotated[int, at_least(1)] = 3
    """Nets of each kind, trained together in one program."""
    hard: bool = False
    """Train on sampled next tokens too, 15,000 steps instead of 4,000 to 6,000."""
    theory_only: bool = False
    """Check the theory and draw its figures; train nothing."""
    checkpoint_every: Annotated[int, at_least(1)] = 1000
    """Steps between checkpoints; rounded down to a multiple of 200."""
    smoke: bool = False
    """Train the smallest net only, for a few steps; for tests."""


class Net(NamedTuple):
    """One of the architectures, and what it is trained on."""

    name: str
    x: float
    layers: int
    heads: int
    soft_steps: int
    hard_steps: int | None

    @property
    def learns(self) -> Callable[[], Process]:
        """The call that makes the process that it learns."""
        return partial(mess3, self.x, NOISE)

    @property
    def process(self) -> Process:
        """What it learns."""
        return self.learns()

    @property
    def decay(self) -> float:
        """The eigenvalue of its chain."""
        return 1 - 3 * self.x

    @property
    def title(self) -> str:
        """For figures."""
        heads = "1 head" if self.heads == 1 else f"{self.heads} heads"
        layers = "" if self.layers == 1 else f", {self.layers} layers"
        return f"Mess3({self.x}, {NOISE}), {heads}{layers}"


ONE = Net("slow", 0.15, 1, 1, 4000, 15000)
TWO = Net("alternating", 0.5, 1, 2, 6000, 15000)
LACKING = Net("alternating, one head", 0.5, 1, 1, 4000, 15000)
DEEP = Net("slow, four layers", 0.15, 4, 1, 5000, None)
NETS = (ONE, TWO, LACKING, DEEP)


def check(config: Config) -> None:
    """Refuses training flags beside `--theory-only`."""
    if config.theory_only and (config.hard or config.smoke):
        raise ImrError("--theory-only trains nothing; leave out --hard and --smoke, or it.")


def plan(config: Config) -> list[tuple[Net, str, int]]:
    """Net, targets and steps of all training there is to do."""
    if config.theory_only:
        return []
    if config.smoke:
        return [(ONE, "soft", 400)]
    soft = [(net, "soft", net.soft_steps) for net in NETS]
    hard = [(net, "hard", net.hard_steps) for net in NETS if net.hard_steps and config.hard]
    return soft + hard


def shrink(config: Config) -> Config:
    """The smoke version."""
    return replace(config, seeds=min(config.seeds, 2))
