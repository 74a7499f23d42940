"""What a part of the experiment hands on: numbers of each seed, rows to print, and arrays to draw."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from imr.lab.seeds import std


class Part(NamedTuple):
    """What one part has measured."""

    readings: list[dict[str, float]]  # a dictionary for each seed; claims name its entries
    rows: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]
    rates: dict[str, float]  # chosen for nets that the lens reads, by folder of checkpoints


def mean_row(
    method: Mapping[str, Any], numbers: Mapping[str, Any], trained: Any = None, tunings: int = 0
) -> dict[str, Any]:
    """A row: means and standard deviations over seeds, and what tuning and training it had.

    Args:
      method: what tells the row from others.
      numbers: by name, shape (seeds,).
      trained: a `Trained` net, if the method is one; else `tunings` settings were tried.
    """
    row = dict(method)
    for name, values in numbers.items():
        values = np.asarray(values, float)
        row |= {name: float(values.mean()), f"{name}_std": std(values)}
    row |= {"tuned": trained.tunings if trained else tunings}
    return row | {
        "steps": trained.steps if trained else 0,
        "rate": trained.rate if trained else None,
        "seeds ended": trained.ended if trained else None,
        "skipped": int(trained.skipped.sum()) if trained else None,
    }


def at_edge(settings: np.ndarray, scores: np.ndarray, best: int) -> str:
    """Which entries of the best of several settings are the least or the largest that were tried.

    Args:
      settings: a full grid, shape (s, entries).
      scores: of each, shape (s,); an entry that moves none is not told.
      best: index of the one chosen.
    """
    chosen, found = settings[best], []
    for entry, values in enumerate(settings.T):
        others = np.delete(settings == chosen, entry, axis=1).all(axis=1)
        if np.ptp(scores[others]) > 0 and chosen[entry] in (values.min(), values.max()):
            found.append(f"{chosen[entry]:g}")
    return ", ".join(found)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.sum(a * b, axis=-1) / np.where(norms > 0, norms, 1)


def off_identity(matrix: np.ndarray, target: np.ndarray) -> float:
    """What of a matrix is no multiple of the target, as a share of its norm."""
    matrix, target = np.asarray(matrix, np.float64), np.asarray(target, np.float64)
    part = np.sum(matrix * target) / np.sum(target**2) * target
    return float(np.linalg.norm(matrix - part) / np.linalg.norm(matrix))
