"""The flags of the benchmark."""

from dataclasses import dataclass, replace
from typing import Annotated

from experiments.bench.topologies import LAYOUTS
from imr.lab.bounds import above, at_least
from imr.lab.flags import RunFlags, flag_error

DEFAULT: tuple[str, ...] = (
    "linear", "attention", "training", "beliefs", "context", "devices", "rates"
)  # fmt: skip
PARTS: tuple[str, ...] = (*DEFAULT, "tpu", "cuda")
TOPOLOGIES: tuple[str, ...] = ("v5e", "v5p", "v6e", "v5e-256")  # of which there is a cost model


@dataclass(frozen=True, kw_only=True)
class Config(RunFlags):
    """Flags of the benchmark."""

    parts: tuple[str, ...] = DEFAULT
    """What to measure: linear (the flow of the linear model), attention (its field, by size), training,
    beliefs, context (kernel regression in many), devices (a ring of them, results and bytes), rates (of
    the machine, and the cost model); and tpu, which compiles for TPUs without having one, a minute or
    two for each program: needs libtpu; and cuda, for an H100: needs NVIDIA's compiler."""
    topologies: tuple[str, ...] = TOPOLOGIES
    """Those that tpu compiles for; also v4 and tpu7x."""
    n: Annotated[int, at_least(1)] = 8000
    """Rows of Z."""
    features: Annotated[int, at_least(1)] = 784
    """Features f of a row."""
    classes: Annotated[int, at_least(1)] = 10
    """Classes k."""
    t1: Annotated[float, above(0)] = 5.0
    """The end of the flow."""
    rtol: Annotated[float, above(0)] = 1e-5
    """Relative tolerance."""
    atol: Annotated[float, above(0)] = 1e-7
    """Absolute tolerance."""
    scales: Annotated[tuple[float, ...], above(0)] = (1.0, 4.0, 16.0)
    """Root mean square lengths of the rows of theta: longer rows make a faster, stiffer flow."""
    tokens: Annotated[tuple[int, ...], at_least(2)] = (2048, 4096, 8192, 16384, 32768, 65536)
    """Numbers of tokens of the self-attention field."""
    most_dense: int = 8192
    """The most of them whose n x n matrix is made at once, to compare."""
    depth: Annotated[int, at_least(1)] = 9
    """Length of the words, all 3^depth of them, whose constrained beliefs are timed."""
    contexts: Annotated[int, at_least(1)] = 1000
    """Contexts whose kernel regressions are solved in one call."""
    ridges: Annotated[tuple[float, ...], above(0)] = (1.0, 0.1)
    """Ridges of those."""
    repetitions: Annotated[int, at_least(1)] = 7
    """Rounds; in each, every way runs once, warm, one after the other."""
    all_cores: bool = False
    """Use every core instead of one."""


def shrink(config: Config) -> Config:
    """The smoke version."""
    return replace(
        config, n=200, features=50, repetitions=2, scales=config.scales[:1], depth=4,
        tokens=(1100, 2048), most_dense=1100, contexts=10,
    )  # fmt: skip


def check(config: Config) -> None:
    """Refuses unknown parts and empty lists."""
    if not config.parts or not set(config.parts) <= set(PARTS):
        raise flag_error("parts", f"must be among {', '.join(PARTS)}", config.parts)
    if not set(config.topologies) <= set(LAYOUTS):
        raise flag_error("topologies", f"must be among {', '.join(LAYOUTS)}", config.topologies)
    for name in ("tokens", "scales", "ridges", "topologies"):
        if not getattr(config, name):
            raise flag_error(name, "must hold at least one number", getattr(config, name))
