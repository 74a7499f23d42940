"""The way in: `python -m experiments.collapse`."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.collapse.config import Config, check, dimensions, shrink
from experiments.collapse.flows import DECAYS, Course, flows, starts, times
from experiments.collapse.measures import MEASURED, table
from experiments.collapse.report import draw, report
from imr import FlowError
from imr.lab.console import run_main, run_once, say
from imr.lab.folder import RunFolder, open_run


def main(config: Config) -> None:
    """Into what frames do features and class weights collapse, with and without room for them?"""
    check(config)
    run = open_run("collapse", config, out=config.out, overwrite=config.overwrite)
    run_once(run, lambda: measure(shrink(config) if config.smoke else config, run))


def measure(config: Config, run: RunFolder) -> None:
    """Runs every flow, and writes tables and figures into the run folder."""
    fs = dimensions(config)
    say(
        f"{config.classes} classes, f = {', '.join(map(str, fs))}, {len(DECAYS)} decays, "
        f"{config.seeds} seeds: {len(DECAYS) * len(fs) * config.seeds} runs in one program"
    )
    ts, start = times(config), starts(config)
    labels = np.repeat(np.arange(config.classes), config.rows)
    grids = jnp.asarray(ts, start[0].dtype)
    runs = jax.tree.map(np.asarray, flows(*start, jnp.asarray(labels), grids, config.decay))
    if runs.result.any():
        d, i, s = (int(found[0]) for found in np.nonzero(runs.result))
        raise FlowError(
            f"the flow with decay {DECAYS[d]}, f = {fs[i]}, seed {config.seed + s} did not reach t = "
            f"{ts[d, -1]:g} (code {runs.result[d, i, s]}); lower "
            f"{'--decay-times' if d else '--t1'}."
        )
    _log(run, ts, runs, fs)
    rows = table(config, ts, runs, jax.tree.map(np.asarray, start))
    draw(config, run, ts, runs, labels, rows)
    run.finish({"table": rows}, report(config, rows))


def _log(run: RunFolder, ts: np.ndarray, runs: Course, fs) -> None:
    """The course of the means over seeds, one line a time, dimension and decay."""
    for d, decay in enumerate(DECAYS):
        for i, f in enumerate(fs):
            metrics = run.metrics(f=f, decay=decay)
            for step, t in enumerate(ts[d]):
                means = {name: getattr(runs, name)[d, i, :, step].mean() for name in MEASURED}
                metrics.append(step, t=t, **means)


if __name__ == "__main__":
    raise SystemExit(run_main(main, Config))
