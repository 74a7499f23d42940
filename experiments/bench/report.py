"""Tables and figures of the benchmark."""

import importlib.metadata
import os
import platform
from typing import Any

from experiments.bench import attention
from experiments.bench.config import Config
from experiments.bench.measures import MODULES
from imr.lab.console import markdown_table
from imr.lab.folder import RunFolder

HIDDEN = ("seconds", "norms", "arrays", "peak")  # in summary.json alone


def report(config: Config, run: RunFolder, results: dict[str, tuple[str, list[Any]]]) -> None:
    """Writes the figures, the tables and the summary into the run folder."""
    cores = os.cpu_count() if config.all_cores else 1
    found = {each.name: each.version for each in importlib.metadata.distributions()}
    versions = [f"{n} {found[n]}" for n in ("jax", "diffrax", "numpy", "torch") if n in found]
    machine = f"{platform.machine()}, {cores} core(s) of {os.cpu_count()}, {', '.join(versions)}"
    texts = [
        f"Warm, median of {config.repetitions} rounds; {machine}. `times ...`: median over rounds of "
        "the ratio in one round."
    ]
    for name, (words, rows) in results.items():
        if name == "attention":
            attention.draw(run, rows)
        shown = [{k: v for k, v in row.items() if k not in HIDDEN} for row in rows]
        texts += [words, markdown_table(shown, formats=MODULES[name].FORMATS)]
    summary = {name: rows for name, (_, rows) in results.items()}
    run.finish({**summary, "machine": machine}, "\n\n".join(texts))
