"""The parts of the benchmark."""

from typing import Any

from experiments.bench import (
    attention,
    beliefs,
    context,
    cuda,
    devices,
    linear,
    rates,
    tpu,
    training,
)
from experiments.bench.config import PARTS, Config
from imr.errors import MissingPackageError
from imr.lab.console import say
from imr.lab.folder import RunFolder

_PARTS = linear, attention, training, beliefs, context, devices, rates, tpu, cuda
MODULES = dict(zip(PARTS, _PARTS, strict=True))


def measure(config: Config, run: RunFolder) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """Of every part that the flags name: what was measured, in words, and a row for each way.

    A part whose packages are missing is skipped, by name, unless it is the only one.
    """
    del run
    found = {}
    for name in config.parts:
        try:
            found[name] = MODULES[name].measure(config)
        except MissingPackageError as missing:
            if len(config.parts) == 1:
                raise
            say(f"{name}: skipped. {missing}")
    return found
