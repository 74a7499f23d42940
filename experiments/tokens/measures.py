"""The flows solved, and rows of tables, in numpy."""

from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tokens.config import Config
from experiments.tokens.flows import SETTINGS, Flows, Setting, _flags, solve, start
from imr import Result
from imr.lab.console import Progress
from imr.lab.folder import RunFolder
from imr.lab.seeds import std

LATER = 1.0
"""The time of the second look at the Jacobian: tokens have moved, and are not merged."""
SLOW = 1e-3
"""Speed of a field of unit features below which rounding in float32 changes its direction."""


class Results(NamedTuple):
    """All that the tables and figures show."""

    betas: np.ndarray
    ts: np.ndarray
    solved: dict[Setting, Flows]
    rows: list[dict[str, Any]]
    changes: list[dict[str, Any]]
    later: float


def measure(config: Config, run: RunFolder) -> Results:
    """Solves every setting, and writes the course of its means into the run folder."""
    betas = np.geomspace(config.beta_min, config.beta_max, config.betas)
    ts = np.geomspace(config.time_min, config.time_max, config.times)
    later = jnp.asarray(np.abs(np.log(ts / LATER)).argmin())
    z0, phi, keys = start(config)
    solved, rows = {}, []
    grid = jax.device_put((betas.astype(z0.dtype), ts.astype(z0.dtype)))
    with Progress(len(SETTINGS), "tokens", "flow") as progress:
        for count, setting in enumerate(SETTINGS):
            found = solve(
                _flags(setting), phi, grid[0], z0, grid[1], later, keys, config.threshold,
                config.rtol, probes=config.probes, max_steps=config.max_steps,
            )  # fmt: skip
            solved[setting] = flows = jax.tree.map(np.asarray, found)
            rows += setting_rows(config, setting, betas, ts, flows)
            write_metrics(config, run, setting, betas, ts, flows)
            progress.update(count + 1)
    changes = column_rows(config, ts, betas, solved)
    return Results(betas, ts, solved, rows, changes, float(ts[int(later)]))


def write_metrics(config: Config, run: RunFolder, setting: Setting, betas, ts, flows) -> None:
    """The mean over seeds at every time, for the inverse temperatures that are shown."""
    metrics = run.metrics(**setting._asdict())
    m = flows.measures
    for b in nearest(betas, config.shown):
        for step, time in enumerate([0.0, *ts]):
            there = np.isfinite(m.clusters[b, :, step])
            if there.any():
                tags = {"beta": float(betas[b]), "time": float(time), "seeds": int(there.sum())}
                names = ("mean_cosine", "clusters", "attention_energy")
                means = {name: getattr(m, name)[b, there, step].mean() for name in names}
                metrics.append(step, **tags, **means)


def nearest(betas, shown) -> list[int]:
    """Indices of the inverse temperatures nearest in log to those to be shown, in order."""
    distance = np.abs(np.log(np.asarray(betas))[:, None] - np.log(np.asarray(shown))[None, :])
    return sorted({int(i) for i in distance.argmin(axis=0)})


def setting_rows(config: Config, setting: Setting, betas, ts, flows: Flows) -> list[dict[str, Any]]:
    """One row for each inverse temperature."""
    m = flows.measures
    last = np.isfinite(m.mean_cosine).sum(axis=2) - 1  # of the times 0, ts
    times = np.concatenate([[0.0], ts])
    half = crossing_times(m.clusters, ts, config.tokens / 2)
    one = crossing_times(m.clusters, ts, 1)
    decades, height, open_ended = plateaus(m.clusters[..., 1:], ts, config.tokens)
    gradient = np.where(m.speed > SLOW, m.gradient_cosine, np.nan)
    rows = []
    for b, beta in enumerate(betas):
        cosine, clusters = at(m.mean_cosine, last)[b], at(m.clusters, last)[b]
        long = decades[b] > 0
        row = {
            **setting._asdict(), "beta": float(beta), "mean_cosine": float(cosine.mean()),
            "mean_cosine_std": std(cosine), "clusters": float(clusters.mean()),
            "clusters_std": std(clusters), "single_cluster_share": float(np.mean(clusters == 1)),
            "half_clustering_time": median(half[b]),
            "half_clustered_share": float(np.isfinite(half[b]).mean()),
            "one_cluster_time": median(one[b]), "plateau_decades": float(decades[b].mean()),
            "plateau_clusters": float(np.median(height[b][long])) if long.any() else None,
            "plateau_open_share": float(open_ended[b].mean()),
            "antisymmetric_share_start": float(flows.antisymmetric_start[b].mean()),
            "antisymmetric_share_later": finite(np.mean, flows.antisymmetric_later[b]),
            "gradient_cosine_mean": finite(np.mean, gradient[b]),
            "gradient_cosine_min": finite(np.min, gradient[b]),
            "norm": float(at(m.norm, last)[b].mean()),
            "norm_error": float(np.nanmax(m.norm_error[b])) if setting.sphere else None,
            "last_time": float(np.median(times[last[b]])), "seeds": config.seeds,
        }  # fmt: skip
        for name in ("attention", "interaction"):
            energy = setting.sign * getattr(m, f"{name}_energy")[b]
            row[f"{name}_violations"], row[f"{name}_worst"] = violations(energy, config.rtol)
        rows.append(row | {c.name.lower(): int(np.sum(flows.result[b] == c)) for c in Result})
    return rows


def at(values, index) -> np.ndarray:
    """values at an index of the last axis, one for each entry of the others."""
    return np.take_along_axis(values, index[..., None], -1)[..., 0]


def violations(energy, rtol: float) -> tuple[float, float]:
    """Of an energy that should grow, shape (s, t): share of steps that fall, and the deepest fall.

    A fall counts where it is more than the solver's relative tolerance of the energy, what the
    solution itself is uncertain by; the deepest is a share of the energy's range.
    """
    steps = np.diff(energy, axis=1)
    taken = np.isfinite(steps)
    wrong = steps < -rtol * np.abs(energy[:, :-1])
    span = np.nanmax(energy, axis=1) - np.nanmin(energy, axis=1)
    falls = np.where(taken, np.maximum(-steps, 0), 0).max(axis=1)
    worst = np.max(falls / np.where(span > 0, span, 1))
    return float(wrong[taken].mean()), float(worst)


def crossing_times(counts, ts, level: float) -> np.ndarray:
    """When a count over times (0, ts) is first at most `level`; inf where never.

    Straight in log time between the times measured; 0 where it is so from the start.
    """
    below = counts <= level
    first = np.argmax(below, axis=-1)
    before, after = at(counts, np.maximum(first - 1, 0)), at(counts, first)
    # From time 0 to the first of ts there is no log time: the first of ts counts then.
    log = np.log(np.concatenate([[ts[0]], ts]))
    share = (before - level) / np.where(before > after, before - after, 1)
    lower = log[np.maximum(first - 1, 0)]
    found = np.where(first == 0, 0.0, np.exp(lower + share * (log[first] - lower)))
    return np.where(below.any(axis=-1), found, np.inf)


def plateaus(counts, ts, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The longest stay in log time at one number of clusters, more than 1 and at most n/2."""
    logs, found = np.log10(ts), np.empty((*counts.shape[:2], 3))
    for where in np.ndindex(counts.shape[:2]):
        count = counts[where][np.isfinite(counts[where])]
        stays = [(0.0, np.nan, False)]
        for low, high in pairwise([0, *(np.flatnonzero(np.diff(count)) + 1), len(count)]):
            if low < high and 1 < count[low] <= n / 2:
                stays.append((logs[high - 1] - logs[low], count[low], high == len(count)))
        found[where] = max(stays, key=itemgetter(0))
    return found[..., 0], found[..., 1], found[..., 2] == 1


def column_rows(config: Config, ts, betas, solved: dict[Setting, Flows]) -> list[dict[str, Any]]:
    """What the column term changes, seed by seed: same tokens, same temperature."""
    rows = []
    for setting in [s for s in SETTINGS if s.column_term]:
        a, b = (solved[setting._replace(column_term=c)].measures for c in (False, True))
        reached = np.isfinite(a.clusters) & np.isfinite(b.clusters)
        last = reached.sum(axis=2) - 1  # the last time that both got to
        slow = crossing_times(a.clusters, ts, config.tokens / 2)
        fast = crossing_times(b.clusters, ts, config.tokens / 2)
        both = np.isfinite(slow) & np.isfinite(fast) & (fast > 0)
        for i, beta in enumerate(betas):
            ratio = slow[i][both[i]] / fast[i][both[i]]
            change = at(b.clusters, last)[i] - at(a.clusters, last)[i]
            cosines = at(b.mean_cosine, last)[i] - at(a.mean_cosine, last)[i]
            rows.append(
                {
                    "sign": setting.sign, "sphere": setting.sphere, "beta": float(beta),
                    "half_time_ratio": float(np.median(ratio)) if ratio.size else None,
                    "half_time_pairs": int(ratio.size), "clusters_change": float(change.mean()),
                    "clusters_change_std": std(change),
                    "clusters_differ_share": float(np.mean(change != 0)),
                    "mean_cosine_change": float(cosines.mean()),
                    "mean_cosine_change_std": std(cosines),
                }
            )  # fmt: skip
    return rows


def median(values) -> float | None:
    """Over seeds, those that never get there counted as inf; None where that is the median."""
    found = float(np.quantile(values, 0.5, method="higher"))
    return found if np.isfinite(found) else None


def finite(statistic, values) -> float | None:
    """A statistic of the finite values, or None if there are none."""
    values = values[np.isfinite(values)]
    return float(statistic(values)) if values.size else None


def seed_mean(values) -> np.ndarray:
    """The mean over seeds (axis 1) where at least half of them are there, else NaN."""
    there = np.isfinite(values)
    enough = there.mean(axis=1, keepdims=True) >= 0.5
    return np.mean(np.where(there, values, np.nan), axis=1, where=there | ~enough)
