"""The way in: `python -m experiments.tokens`."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tokens.config import Config, check, shrink
from experiments.tokens.flows import SETTINGS, Flows, Setting, solve_setting, start
from experiments.tokens.report import draw, nearest, report
from experiments.tokens.tables import column_rows, setting_rows
from imr.lab.console import Progress
from imr.lab.experiment import run_main, run_once
from imr.lab.folder import RunFolder, open_run

LATER = 1.0  # the time of the second look at the Jacobian: tokens have moved, and are not merged


def main(config: Config) -> None:
    """Where do tokens cluster, over (beta, t), and what does the column term of attention change?"""
    check(config)
    run = open_run("tokens", config, out=config.out, overwrite=config.overwrite)
    run_once(run, lambda: measure(shrink(config) if config.smoke else config, run))


def measure(config: Config, run: RunFolder) -> None:
    """Solves every setting, and writes tables and figures into the run folder."""
    betas = np.geomspace(config.beta_min, config.beta_max, config.betas)
    ts = np.geomspace(config.time_min, config.time_max, config.times)
    later = jnp.asarray(np.abs(np.log(ts / LATER)).argmin())
    z0, phi, keys = start(config)
    solved, rows = {}, []
    with Progress(len(SETTINGS), "tokens", "flow") as progress:
        for count, setting in enumerate(SETTINGS):
            device = jax.device_put((betas.astype(z0.dtype), ts.astype(z0.dtype)))
            flows = solve_setting(setting, phi, device[0], z0, device[1], later, config, keys)
            flows = jax.tree.map(np.asarray, flows)
            solved[setting] = flows
            rows += setting_rows(config, setting, betas, ts, flows)
            write_metrics(config, run, setting, betas, ts, flows)
            progress.update(count + 1)
    pairs = [
        (s, solved[Setting(s.sign, s.sphere, False)], solved[s]) for s in SETTINGS if s.column_term
    ]
    changes = column_rows(config, ts, betas, pairs)
    draw(config, run, betas, ts, solved)
    summary = {"table": rows, "column_term": changes, "later": float(ts[int(later)])}
    run.finish(summary, report(config, betas, rows, changes))


def write_metrics(
    config: Config, run: RunFolder, setting: Setting, betas, ts, flows: Flows
) -> None:
    """The mean over seeds at every time, for the inverse temperatures that are shown."""
    metrics = run.metrics(**setting.tags)
    metrics.rewind(-1)  # of a run that was broken off
    m = flows.measures
    for b in nearest(betas, config.shown):
        for step, time in enumerate([0.0, *ts]):
            there = np.isfinite(m.clusters[b, :, step])
            if there.any():
                metrics.append(
                    step, beta=float(betas[b]), time=float(time), seeds=int(there.sum()),
                    mean_cosine=m.mean_cosine[b, there, step].mean(),
                    clusters=m.clusters[b, there, step].mean(),
                    attention_energy=m.attention_energy[b, there, step].mean(),
                )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(run_main(main, Config))
