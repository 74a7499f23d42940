"""The flags of the tokens experiment, and what they may be."""

import math
from dataclasses import dataclass, replace
from typing import Annotated

from imr import ImrError
from imr.lab.bounds import above, at_least, at_most, below
from imr.lab.flags import RunFlags, flag_error


@dataclass(frozen=True, kw_only=True)
class Config(RunFlags):
    """Flags of the tokens experiment."""

    tokens: Annotated[int, at_least(2)] = 32
    """Tokens of each set, drawn uniformly on the unit sphere; off the sphere they start there too."""
    dim: Annotated[int, at_least(2)] = 2
    """Features of a token; 2 puts it on the circle."""
    rank: Annotated[int | None, at_least(1)] = None
    """Rank of a random phi of entries N(0, 1/rank), one for each seed; without it phi is the
    identity, as in Geshkovski et al."""
    beta_min: float = 0.1
    """The least inverse temperature."""
    beta_max: float = 30.0
    """The largest inverse temperature."""
    betas: Annotated[int, at_least(2)] = 14
    """Inverse temperatures, evenly spaced in log beta."""
    time_min: float = 0.1
    """The first time at which tokens are measured (they are at time 0 as well), in the time of
    Geshkovski et al., that is, beta times that of imr's gradient flow."""
    time_max: float = 300.0
    """The end of the flows, in the same time."""
    times: Annotated[int, at_least(2)] = 41
    """Times at which tokens are measured, evenly spaced in log time."""
    threshold: Annotated[float, at_least(1e-6), below(1)] = 1e-3
    """Tokens are joined if 1 less their cosine is below this; clusters are what is connected. In
    float32 the cosine of equal tokens is 1 to about 1e-7."""
    shown: Annotated[tuple[float, ...], above(0)] = (1.0, 5.0, 25.0)
    """Inverse temperatures for trajectories, histograms, energies and the printed table; the
    nearest of the grid are taken."""
    probes: Annotated[int, at_least(1)] = 16
    """Random probes of the antisymmetric share of the Jacobian."""
    rtol: Annotated[float, at_least(1e-12), at_most(1e-2)] = 1e-5
    """Relative tolerance of the solver; the absolute one is a hundredth of it."""
    max_steps: Annotated[int, at_least(1)] = 256
    """Step limit of the solver from one time measured to the next."""
    seeds: Annotated[int, at_least(1)] = 16
    """Initial sets of tokens, vmapped together with the inverse temperatures."""


def check(config: Config) -> None:
    """Refuses a rank above the dimension, grids that do not increase, and nothing to be shown."""
    if config.rank is not None and config.rank > config.dim:
        remedy = "Lower it, or leave it out for the identity."
        raise flag_error("rank", f"must be at most --dim = {config.dim}", config.rank, remedy)
    for name in ("beta", "time"):
        low, high = getattr(config, f"{name}_min"), getattr(config, f"{name}_max")
        if not 0 < low < high < math.inf:
            raise ImrError(
                f"--{name}-min and --{name}-max must be positive, finite and in this order; found "
                f"{low} and {high}."
            )
    if not config.shown:
        raise flag_error("shown", "must hold at least one inverse temperature", config.shown)


def shrink(config: Config) -> Config:
    """The smoke version: every part, as small as it goes; tighter limits of the user's stay."""
    return replace(
        config, tokens=min(config.tokens, 12), betas=min(config.betas, 5),
        times=min(config.times, 21), time_max=min(config.time_max, max(50.0, 2 * config.time_min)),
        probes=min(config.probes, 4), seeds=min(config.seeds, 3),
    )  # fmt: skip
