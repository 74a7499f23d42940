"""The parts of the benchmark, and the machine that they ran on."""

import importlib.metadata
import os
import platform
from typing import Any, NamedTuple

from experiments.bench import attention, beliefs, devices, linear, rates, training
from experiments.bench.config import PARTS, Config
from imr.lab.folder import RunFolder

MODULES = dict(zip(PARTS, (linear, attention, training, beliefs, devices, rates), strict=True))


class Part(NamedTuple):
    """What was measured, in words, and a row for each way."""

    words: str
    rows: list[dict[str, Any]]


def measure(config: Config, run: RunFolder) -> dict[str, Part]:
    """Times every part that the flags name."""
    del run
    return {name: Part(*MODULES[name].measure(config)) for name in config.parts}


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
