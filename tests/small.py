"""An experiment in miniature, which trains as the real ones do and compiles in a second.

`python -m tests.small MARKER PHASE [flags]`, of a process of several or not, waits where the phase
begins until it is asked to stop, in its first run: `MARKER.N` says that process N is there. `saved` is
no phase but amid the training, when its first checkpoint is there.
"""

import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from imr.lab import phases
from imr.lab.beside import beside
from imr.lab.experiment import Experiment
from imr.lab.flags import RunFlags
from imr.lab.phases import phase
from imr.lab.train import Training, fit_run, mean_loss
from imr.parallel import preemption

STEPS, CHUNK, ROWS = 12, 2, 16


def regress(data):
    x, y = data
    with phase("regression"):
        return np.linalg.lstsq(x, y, rcond=None)[0]


def train(config, run, data):
    def init(key):
        return jax.random.normal(key, (3,))

    def loss(params, hyper, data, rows, key):
        x, y = data
        noise = 0.1 * jax.random.normal(key, (ROWS, 3))
        return hyper * jnp.mean(((x[rows] + noise) @ params - y[rows]) ** 2)

    def schedule(data, key, step):
        del step
        return jax.random.randint(key, (CHUNK, ROWS), 0, len(data[1]))

    keys = jax.random.split(jax.random.key(config.seed), 2)
    training = Training(init, loss, schedule, optax.adam(0.1), keys, jnp.ones(2), data, STEPS)
    chunks = []

    def metrics(losses):
        chunks.append(losses)
        if len(chunks) == 3:  # the second checkpoint has waited for the first
            for hook in phases.HOOKS:
                hook("saved")
        return mean_loss(losses)

    tags = {"net": "linear"}
    return fit_run(
        run, "nets", training, holds=tags, every=4, label="nets", tags=tags, metrics=metrics
    )


def measure(config, run, data):
    with beside() as thread:
        regression = thread.submit(regress, data)
        params = train(config, run, data).params
        return {"trained": np.asarray(params), "regression": regression.result()}


def report(config, run, results):
    del config
    run.finish({name: value.tolist() for name, value in results.items()}, "| results |")


def data(config):
    random = np.random.default_rng(config.seed)
    return random.normal(size=(50, 3)).astype(np.float32), random.normal(size=50).astype(np.float32)


SMALL = Experiment(
    name="small", question="?", config=RunFlags, measure=measure, report=report, data=data
)


def wait_once(marker, wanted):
    """A hook that waits at the beginning of a phase until this process is asked to stop."""
    own = Path(f"{marker}.{os.environ.get('SLURM_PROCID', os.environ.get('IMR_PROCESS_ID', '0'))}")

    def hook(phase):
        if phase == wanted and not own.exists():
            own.touch()
            while not preemption._asked:
                time.sleep(0.05)

    return hook


if __name__ == "__main__":
    phases.HOOKS.append(wait_once(sys.argv.pop(1), sys.argv.pop(1)))
    raise SystemExit(SMALL.main())
