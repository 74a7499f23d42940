"""The flags of the beliefs experiment, what they may be, and the nets that it trains."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from imr import ImrError, Process
from imr.processes import mess3

LENGTH = 10  # positions, and the depth to which all words are run
NOISE = 0.6  # a of every Mess3


@dataclass(frozen=True)
class Config:
    """Flags of the beliefs experiment."""

    seeds: int = 3
    """Nets of each kind, trained together in one program."""
    seed: int = 0
    """The first of the seeds."""
    hard: bool = False
    """Train on sampled next tokens too, 15,000 steps instead of 4,000 to 6,000."""
    theory_only: bool = False
    """Check the theory and draw its figures; train nothing."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; rounded down to a multiple of 200."""
    smoke: bool = False
    """Train the smallest net only, for a few steps; for tests."""
    out: Path | None = None
    """Run folder; runs/beliefs/<hash of the configuration> by default."""
    overwrite: bool = False
    """Replace the run in that folder."""


class Net(NamedTuple):
    """One of the architectures, and what it is trained on."""

    name: str
    x: float
    layers: int
    heads: int
    soft_steps: int
    hard_steps: int | None

    @property
    def process(self) -> Process:
        """What it learns."""
        return mess3(self.x, NOISE)

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
    """Refuses values that make no run, before anything is read or written."""
    for name, least in (("seeds", 1), ("seed", 0), ("checkpoint_every", 1)):
        if (value := getattr(config, name)) < least:
            flag = name.replace("_", "-")
            raise ImrError(f"--{flag} must be at least {least}; found {value}.")
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
