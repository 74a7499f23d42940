"""The flags of the tokens experiment, and what they may be."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from imr import ImrError


@dataclass(frozen=True)
class Config:
    """Flags of the tokens experiment."""

    tokens: int = 32
    """Tokens of each set, drawn uniformly on the unit sphere; off the sphere they start there too."""
    dim: int = 2
    """Features of a token; 2 puts it on the circle."""
    rank: int | None = None
    """Rank of a random phi of entries N(0, 1/rank), one for each seed; without it phi is the
    identity, as in Geshkovski et al."""
    beta_min: float = 0.1
    """The least inverse temperature."""
    beta_max: float = 30.0
    """The largest inverse temperature."""
    betas: int = 14
    """Inverse temperatures, evenly spaced in log beta."""
    time_min: float = 0.1
    """The first time at which tokens are measured (they are at time 0 as well), in the time of
    Geshkovski et al., that is, beta times that of imr's gradient flow."""
    time_max: float = 300.0
    """The end of the flows, in the same time."""
    times: int = 41
    """Times at which tokens are measured, evenly spaced in log time."""
    threshold: float = 1e-3
    """Tokens are joined where 1 less their cosine is below this; clusters are what is connected."""
    shown: tuple[float, ...] = (1.0, 5.0, 25.0)
    """Inverse temperatures for trajectories, histograms, energies and the printed table; the
    nearest of the grid are taken."""
    probes: int = 16
    """Random probes of the antisymmetric share of the Jacobian."""
    rtol: float = 1e-5
    """Relative tolerance of the solver; the absolute one is a hundredth of it."""
    max_steps: int = 256
    """Step limit of the solver from one time measured to the next."""
    seeds: int = 16
    """Initial sets of tokens, vmapped together with the inverse temperatures."""
    seed: int = 0
    """The first of the seeds."""
    smoke: bool = False
    """A small version of everything, for tests."""
    out: Path | None = None
    """Run folder; runs/tokens/<hash of the configuration> by default."""
    overwrite: bool = False
    """Replace the run in that folder."""


def check(config: Config) -> None:
    """Refuses values that make no run, before anything is read or written."""
    for name, least in (
        ("tokens", 2), ("dim", 2), ("rank", 1), ("betas", 2), ("times", 2), ("probes", 1), ("seeds", 1),
        ("max_steps", 1),
    ):  # fmt: skip
        value = getattr(config, name)
        if value is not None and value < least:
            raise ImrError(
                f"--{name.replace('_', '-')} takes integers of at least {least}; found {value}."
            )
    if config.rank is not None and config.rank > config.dim:
        raise ImrError(
            f"--rank must be at most --dim = {config.dim}; found {config.rank}. Lower it, or leave "
            "it out for the identity."
        )
    for name in ("beta", "time"):
        low, high = getattr(config, f"{name}_min"), getattr(config, f"{name}_max")
        if not 0 < low < high < math.inf:
            raise ImrError(
                f"--{name}-min and --{name}-max must be positive, finite and in this order; found "
                f"{low} and {high}."
            )
    # In float32 the cosine of equal tokens is 1 to about 1e-7.
    if not 1e-6 <= config.threshold < 1:
        raise ImrError(f"--threshold must lie in [1e-6, 1); found {config.threshold}.")
    if not 1e-12 <= config.rtol <= 1e-2:
        raise ImrError(f"--rtol must lie in [1e-12, 0.01]; found {config.rtol}.")
    if not config.shown or any(not 0 < beta < math.inf for beta in config.shown):
        raise ImrError(f"--shown takes positive inverse temperatures; found {config.shown}.")


def shrink(config: Config) -> Config:
    """The smoke version: every part, as small as it goes; tighter limits of the user's stay."""
    return replace(
        config,
        tokens=min(config.tokens, 12),
        betas=min(config.betas, 5),
        times=min(config.times, 21),
        time_max=min(config.time_max, max(50.0, 2 * config.time_min)),
        probes=min(config.probes, 4),
        seeds=min(config.seeds, 3),
    )
