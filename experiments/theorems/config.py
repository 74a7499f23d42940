"""The flags of the theorems experiment, and what they may be."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

from imr.lab.bounds import at_least
from imr.lab.flags import RunFlags, flag_error


@dataclass(frozen=True, kw_only=True)
class Config(RunFlags):
    """Flags of the theorems experiment."""

    rows: Annotated[int, at_least(2)] = 7
    """Rows n of the features: samples of the linear model, tokens of the quadratic one."""
    features: Annotated[int, at_least(3)] = 6
    """Features f."""
    classes: Annotated[int, at_least(3)] = 4
    """Classes k, at most the features: random class weights then separate the classes."""
    rank: Annotated[int, at_least(1)] = 3
    """Rank r of the projections Q and K, at most the features."""
    heads: Annotated[int, at_least(1)] = 2
    """Heads of the multi-head rows."""
    prototypes: Annotated[int, at_least(1)] = 2
    """Prototypes of each latent class."""
    seeds: Annotated[int, at_least(1)] = 8
    """Random problems for each row, vmapped; the worst of them decides."""
    only: tuple[str, ...] = ()
    """Check only the rows whose id begins with one of these, such as A3 or A5.anchor."""
    smoke: bool = False
    """Small problems and few seeds, for tests; every row all the same, but the derivatives of flows in
    forward mode, along one direction, which compiles in much less time."""


def check(config: Config) -> None:
    """Refuses more classes or ranks than features."""
    for name in ("classes", "rank"):
        if (value := getattr(config, name)) > config.features:
            rule = f"must be at most --features, {config.features}"
            raise flag_error(name, rule, value, "Take fewer, or more features.")


def shrink(config: Config) -> Config:
    """The smoke version: every row on small problems; smaller values of the user's stay."""
    limits = {"rows": 5, "features": 4, "classes": 3, "rank": 2, "heads": 2, "seeds": 3}
    small: Any = {name: min(getattr(config, name), most) for name, most in limits.items()}
    return replace(config, **small)
