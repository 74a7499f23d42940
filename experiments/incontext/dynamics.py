"""How a linear attention layer learns: gradient descent on fresh tasks against its flow."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import imr
from experiments.incontext.config import Config, Sizes
from experiments.incontext.readings import Part, mean_row
from imr.context import attention_dynamics
from imr.lab.console import Progress
from imr.lab.folder import RunFolder

SPECTRUM = np.geomspace(1.0, 0.2, 8)  # of the covariates' covariance
EXAMPLES = 16
BATCH = 128  # contexts
START = 0.1  # of every mode
EARLY, FINE, STEP = 4.0, 0.08, 1.0  # distances of points of the course until then, and later


def points(time: float) -> np.ndarray:
    """When the course is looked at, from 0 on; all are whole numbers of steps of each rate."""
    early = FINE * np.arange(1 + round(min(time, EARLY) / FINE))
    return np.concatenate([early, np.arange(EARLY + STEP, time + STEP / 2, STEP)])


def start() -> tuple[np.ndarray, float]:
    """Balanced, as v^2 = |U|^2 stays along the flow."""
    return np.full(len(SPECTRUM), START), START * len(SPECTRUM) ** 0.5


@jax.jit
def descend(state, rate, key, steps):
    """Steps of gradient descent on half the squared error of v h^T U x, fresh contexts at each.

    The mean over w and the query of a context is taken exactly: |(v S U - I) Lambda^(1/2)|^2, S the
    mean of x x^T over its examples. Its gradient has the same mean, and far less noise.
    """
    root = jnp.sqrt(jnp.asarray(SPECTRUM, jnp.float32))

    def loss(state, key):
        u, v = state
        x = root * jax.random.normal(key, (BATCH, EXAMPLES, len(SPECTRUM)))
        left = v * (jnp.swapaxes(x, 1, 2) @ x / EXAMPLES) @ u - jnp.eye(len(SPECTRUM))
        return 0.5 * jnp.mean(jnp.sum((left * root) ** 2, axis=(1, 2)))

    def one(step, state):
        slope = jax.grad(loss)(state, jax.random.fold_in(key, step))
        return jax.tree.map(lambda x, g: x - rate * g, state, slope)

    return jax.lax.fori_loop(0, steps, one, state)


def courses(
    config: Config, times: np.ndarray, rate: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """v U's diagonal, shape (seeds, times, d), v^2 - |U|^2 and v^2 alone, (seeds, times)."""
    u, v = start()
    state = (jnp.diag(jnp.asarray(u, jnp.float32)), jnp.float32(v))
    states = jax.tree.map(lambda x: jnp.stack([x] * config.seeds), state)
    keys = jnp.stack(
        [jax.random.fold_in(jax.random.key(config.seed + s), 1) for s in range(config.seeds)]
    )
    steps = np.round(np.diff(times) / rate).astype(int)
    found = [states]
    many = jax.jit(jax.vmap(descend, (0, None, 0, None)))
    with Progress(len(steps), f"gradient descent at rate {rate:g}", "point") as progress:
        for point, count in enumerate(steps):
            # One after the other, so that a signal is heard between them.
            states = many(states, rate, jax.vmap(jax.random.fold_in, (0, None))(keys, point), count)
            found.append(jax.block_until_ready(states))
            progress.update(point + 1)
    u, v = (np.stack([np.asarray(each[i]) for each in found], axis=1) for i in (0, 1))
    modes = v[..., None] * np.diagonal(u, axis1=2, axis2=3)
    return modes, v**2 - np.sum(u**2, axis=(2, 3)), v**2


def predicted(times: np.ndarray, examples: float) -> np.ndarray:
    """v u along the flow, shape (times, d)."""
    u, v = start()
    field = attention_dynamics(jnp.asarray(SPECTRUM, jnp.float32), examples)
    ts = jnp.asarray(times[1:], jnp.float32)
    flow = imr.solve(
        field, (jnp.asarray(u, jnp.float32), jnp.float32(v)), t1=ts[-1], ts=ts, rtol=1e-5, atol=1e-7
    )
    states: Any = flow.zs
    u_t, v_t = (np.asarray(x) for x in states)
    return np.concatenate([(v * u)[None], v_t[:, None] * u_t])


def half_times(ts: np.ndarray, modes: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """When each mode, shape (times, d), first is half its limit; NaN if it never is."""
    over = modes >= 0.5 * limits
    after = np.maximum(over.argmax(axis=0), 1)
    columns = np.arange(len(limits))
    low, high = modes[after - 1, columns], modes[after, columns]
    share = (0.5 * limits - low) / np.where(high > low, high - low, 1)
    times = ts[after - 1] + share * (ts[after] - ts[after - 1])
    return np.where(over.any(axis=0), times, np.nan)


def measure_dynamics(config: Config, sizes: Sizes, run: RunFolder) -> Part:
    """Courses at each rate against the flow; the flow of infinitely many examples as a control."""
    del run
    ts = points(sizes.time)
    theory, control = predicted(ts, EXAMPLES), predicted(ts, 1e6)
    second = SPECTRUM**2 * (1 + 1 / EXAMPLES) + SPECTRUM * SPECTRUM.sum() / EXAMPLES
    limits = SPECTRUM / second
    readings, rows = [{} for _ in range(config.seeds)], []
    arrays = {"times": ts, "theory": theory, "limits": limits, "spectrum": SPECTRUM}
    drifts, changes = {}, {}
    for rate in sizes.rates:
        modes, drift, scale = courses(config, ts, rate)
        arrays[f"modes_{rate:g}"] = modes
        drifts[rate], changes[rate] = (
            np.abs(each - each[:, :1]).max(axis=1) for each in (drift, scale)
        )
        apart = np.abs(modes - theory).max(axis=1) / limits
        other = np.abs(modes - control).max(axis=1) / limits
        for s, reading in enumerate(readings):
            reading[f"deviation at {rate:g}"] = float(apart[s].max())
            reading[f"deviation at {rate:g} from infinitely many examples"] = float(other[s].max())
            reading[f"drift at {rate:g}"] = float(drifts[rate][s])
        halves = np.stack([half_times(ts, m, limits) for m in modes])
        rows.append(mean_row(
            {"step size": rate}, {"deviation": apart.max(axis=1), "drift": drifts[rate],
                             "first half-time": halves[:, 0], "last half-time": halves[:, -1]},
        ))  # fmt: skip
    for a, b in zip(sizes.rates[:-1], sizes.rates[1:], strict=True):
        for s, reading in enumerate(readings):
            reading[f"drift at {a:g} over {b:g}"] = float(drifts[a][s] / drifts[b][s])
            # What moves along the flow itself does so at any rate.
            reading[f"change of v^2 at {a:g} over {b:g}"] = float(changes[a][s] / changes[b][s])
    halves = half_times(ts, theory, limits)
    rows.append(
        {
            "step size": "flow",
            "first half-time": float(halves[0]),
            "last half-time": float(halves[-1]),
        }
    )
    return Part(readings, rows, arrays, {})
