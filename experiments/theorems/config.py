"""The flags of the theorems experiment, and what they may be."""

from dataclasses import dataclass, replace
from pathlib import Path

from imr import ImrError


@dataclass(frozen=True)
class Config:
    """Flags of the theorems experiment."""

    rows: int = 7
    """Rows n of the features: samples of the linear model, tokens of the quadratic one."""
    features: int = 6
    """Features f."""
    classes: int = 4
    """Classes k, at most the features: random class weights then separate the classes."""
    rank: int = 3
    """Rank r of the projections Q and K, at most the features."""
    heads: int = 2
    """Heads of the multi-head rows."""
    prototypes: int = 2
    """Prototypes of each latent class."""
    seeds: int = 8
    """Random problems for each row, vmapped; the worst of them decides."""
    seed: int = 0
    """The first of the seeds."""
    only: tuple[str, ...] = ()
    """Check only the rows whose id begins with one of these, such as A3 or A5.anchor."""
    smoke: bool = False
    """Small problems and few seeds, for tests; every row all the same, but the derivatives of flows in
    forward mode, along one direction, which compiles in much less time."""
    out: Path | None = None
    """Run folder; runs/theorems/<hash of the configuration> by default."""
    overwrite: bool = False
    """Replace the run in that folder."""


def check(config: Config) -> None:
    """Refuses values that make no run, before anything is read or written."""
    for name, least in (
        ("rows", 2), ("features", 3), ("classes", 3), ("rank", 1), ("heads", 1), ("prototypes", 1),
        ("seeds", 1), ("seed", 0),
    ):  # fmt: skip
        value = getattr(config, name)
        if value < least:
            raise ImrError(f"--{name} must be at least {least}; found {value}.")
    for name in ("classes", "rank"):
        value = getattr(config, name)
        if value > config.features:
            raise ImrError(
                f"--{name} must be at most --features, {config.features}; found {value}. "
                "Take fewer, or more features."
            )


def shrink(config: Config) -> Config:
    """The smoke version: every row, as small as it goes; smaller values of the user's stay."""
    limits = {"rows": 5, "features": 4, "classes": 3, "rank": 2, "heads": 2, "seeds": 3}
    return replace(
        config, **{name: min(getattr(config, name), most) for name, most in limits.items()}
    )
