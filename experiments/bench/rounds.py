"""Ways to one end, timed side by side."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from imr.errors import ImrError


def race(
    ways: Mapping[str, Callable[[], Any]], repetitions: int, base: str
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Each way once a round, one after the other, warm.

    Returns what each way gives, and for each way its times and the median over rounds of the ratio
    to the way `base` in the same round.
    """
    results = {name: jax.block_until_ready(way()) for name, way in ways.items()}  # compiles
    rounds = [{name: _timed(way) for name, way in ways.items()} for _ in range(repetitions)]
    seconds = {name: np.array([times[name] for times in rounds]) for name in ways}
    return results, {
        name: {
            "way": name, "median s": float(np.median(seconds[name])),
            "least s": float(np.min(seconds[name])), "most s": float(np.max(seconds[name])),
            f"times {base}": float(np.median(seconds[name] / seconds[base])),
            "seconds": seconds[name].tolist(),
        }
        for name in ways
    }  # fmt: skip


def _timed(way):
    """Seconds of one call, to the last array."""
    start = time.perf_counter()
    jax.block_until_ready(way())
    return time.perf_counter() - start


def difference(found: Any, wanted: Any) -> float:
    """Largest difference over the largest entry."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    return float(np.max(np.abs(found - wanted)) / np.max(np.abs(wanted)))


def in_process(module: str, *arguments: Any, **environment: str) -> Any:
    """What `python -m experiments.bench.MODULE ARGUMENTS`, a process of its own, prints as JSON."""
    command = [sys.executable, "-P", "-m", f"experiments.bench.{module}", *map(str, arguments)]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise ImrError(f"{' '.join(command[2:])} has failed: {done.stderr[-2000:].strip()}")
    return json.loads(done.stdout)
