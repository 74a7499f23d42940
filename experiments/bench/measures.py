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
from imr.lab.folder import RunFolder

_PARTS = linear, attention, training, beliefs, context, devices, rates, tpu, cuda
MODULES = dict(zip(PARTS, _PARTS, strict=True))


def measure(config: Config, run: RunFolder) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """Of every part that the flags name: what was measured, in words, and a row for each way."""
    del run
    return {name: MODULES[name].measure(config) for name in config.parts}
