"""The way in: `python -m experiments.bench`. The cores are chosen before jax is imported."""

import importlib.metadata
import os
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imr.lab.folder import RunFolder

PARTS: tuple[str, ...] = ("linear", "attention", "training", "beliefs", "devices", "rates")
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


@dataclass(frozen=True)
class Config:
    """Flags of the benchmark."""

    parts: tuple[str, ...] = PARTS
    """What to measure: linear (the flow of the linear model), attention (its field, by size), training,
    beliefs, devices (a ring of them, results and bytes), rates (of the machine, and the cost model)."""
    n: int = 8000
    """Rows of Z."""
    features: int = 784
    """Features f of a row."""
    classes: int = 10
    """Classes k."""
    t1: float = 5.0
    """The end of the flow."""
    rtol: float = 1e-5
    """Relative tolerance."""
    atol: float = 1e-7
    """Absolute tolerance."""
    scales: tuple[float, ...] = (1.0, 4.0, 16.0)
    """Root mean square lengths of the rows of theta: longer rows make a faster, stiffer flow."""
    tokens: tuple[int, ...] = (2048, 4096, 8192, 16384, 32768, 65536)
    """Numbers of tokens of the self-attention field."""
    most_dense: int = 8192
    """The most of them whose n x n matrix is made at once, to compare."""
    depth: int = 9
    """Length of the words, all 3^depth of them, whose constrained beliefs are timed."""
    repetitions: int = 7
    """Rounds; in each, every way runs once, warm, one after the other."""
    all_cores: bool = False
    """Use every core instead of one."""
    seed: int = 0
    """Of the random problem."""
    smoke: bool = False
    """A small problem and two rounds, for tests."""
    out: Path | None = None
    """Run folder; runs/bench/<hash of the configuration> by default."""
    overwrite: bool = False
    """Measure anew in that folder."""


def main(config: Config) -> None:
    """Times what imr does against the plain ways to the same results."""
    from imr.lab.experiment import run_once
    from imr.lab.folder import open_run

    check(config)
    run = open_run("bench", config, out=config.out, overwrite=config.overwrite)
    run_once(run, lambda: measure(shrink(config) if config.smoke else config, run))


HIDDEN = ("seconds", "norms", "arrays", "peak")  # in summary.json alone


def measure(config: Config, run: "RunFolder") -> None:
    """Times every part and writes the tables."""
    from experiments.bench import attention, beliefs, devices, linear, rates, training
    from imr.lab.console import markdown_table

    modules = (linear, attention, training, beliefs, devices, rates)
    parts = dict(zip(PARTS, modules, strict=True))
    summary, texts = (
        {},
        [
            f"Warm, median of {config.repetitions} rounds; {machine(config)}. `times ...`: median over "
            "rounds of the ratio in one round."
        ],
    )
    for name in config.parts:
        words, summary[name] = parts[name].measure(config)
        if hasattr(parts[name], "draw"):
            parts[name].draw(run, summary[name])
        plain = lambda row: {k: v for k, v in row.items() if k not in HIDDEN}  # noqa: E731
        shown = [plain(row) for row in summary[name]]
        columns = dict.fromkeys(key for row in shown for key in row)
        texts += [words, markdown_table(shown, columns, formats=parts[name].FORMATS)]
    run.finish({**summary, "machine": machine(config)}, "\n\n".join(texts))


def shrink(config: Config) -> Config:
    """The smoke version."""
    return replace(
        config, n=200, features=50, repetitions=2, scales=config.scales[:1], depth=4,
        tokens=(1100, 2048), most_dense=1100,
    )  # fmt: skip


def check(config: Config) -> None:
    """Refuses what makes no benchmark."""
    from imr import ImrError

    for name in ("n", "features", "classes", "depth", "repetitions", "t1", "rtol", "atol"):
        if not getattr(config, name) > 0:
            raise ImrError(f"--{name} must be positive; found {getattr(config, name)}.")
    if not config.parts or not set(config.parts) <= set(PARTS):
        raise ImrError(f"--parts must be among {', '.join(PARTS)}; found {config.parts}.")
    if not config.tokens or min(config.tokens) < 2:
        raise ImrError(f"--tokens takes one or more numbers of at least 2; found {config.tokens}.")
    if not config.scales or min(config.scales) <= 0:
        raise ImrError(f"--scales takes one or more positive lengths; found {config.scales}.")


def machine(config: Config) -> str:
    """The machine in words."""
    cores = os.cpu_count() if config.all_cores else 1
    names = ("jax", "diffrax", "numpy", "torch")
    versions = ", ".join(f"{n} {v}" for n in names if (v := version(n)))
    return f"{platform.machine()}, {cores} core(s) of {os.cpu_count()}, {versions}"


def version(package: str) -> str | None:
    """Of an installed package; None of another."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def one_core() -> None:
    """Keeps this process to one core and XLA to one thread."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {ONE_THREAD}"


if __name__ == "__main__":
    if "--all-cores" not in sys.argv:
        one_core()
    from imr.lab.experiment import run_main

    raise SystemExit(run_main(main, Config))
