"""The cosines of all heads along every training, their nulls, and rows of what was found."""

from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.leaning.config import Config, times
from experiments.leaning.explanations import EXPLANATIONS, Readings, verdict
from experiments.leaning.nets import Circuits
from experiments.leaning.subjects import Subject
from experiments.leaning.training import PARTS, Trained, train_subject
from imr import lens
from imr.lab.folder import RunFolder
from imr.lens import HeadWeights

_DRAWS = 64  # of random directions


class Results(NamedTuple):
    """Readings by the name of the subject, and the rows of the summary."""

    subjects: list[Subject]
    readings: dict[str, Readings]
    rows: dict[str, list[dict[str, Any]]]


def measure(config: Config, run: RunFolder, subjects: list[Subject]) -> Results:
    """Trains every subject in every way and reads its heads."""
    found = {}
    for subject in subjects:
        found[subject.name] = _readings(config, train_subject(config, run, subject))
    return Results(subjects, found, _rows(config, found))


def _weights(kept: Circuits) -> HeadWeights:
    """As the lens takes them, all leading axes but that of heads as layers."""
    flat = [np.asarray(w, np.float64).reshape(-1, *w.shape[-3:]) for w in kept]
    l, h, d, r = flat[0].shape
    weights: Any = (*flat, *np.zeros((3, l, h, r)), np.zeros((l, d)))
    return HeadWeights(*weights)


def _readings(config: Config, trained: dict[str, Trained]) -> Readings:
    cosines = {
        way: lens.weight_cosines(_weights(one.kept)).whole.reshape(one.kept.query.shape[:4])
        for way, one in trained.items()
    }
    ends = [Circuits(*(w[:, at] for w in trained["free"].kept)) for at in (0, -1)]
    keys = jax.random.split(jax.random.key(config.seed), _DRAWS)
    null = np.array([[
        -lens.weight_cosines(lens.rotated(_weights(end), key)).whole.reshape(config.seeds, -1).mean(1)
        for key in keys
    ] for end in ends])  # fmt: skip
    untransposed = lens.part_cosines(_weights(ends[-1])).untransposed
    return Readings(
        cosines, {way: one.parts for way, one in trained.items()},
        untransposed.reshape(ends[-1].query.shape[:3]), null,
        {way: one.loss for way, one in trained.items()},
    )  # fmt: skip


def _rows(config: Config, found: dict[str, Readings]) -> dict[str, list[dict[str, Any]]]:
    ways, courses, causes = [], [], []
    for name, readings in found.items():
        for way, cosines in readings.cosines.items():
            parts = readings.parts[way].mean(axis=(2, 3))
            for s in range(config.seeds):
                change = cosines[s, -1].mean() - cosines[s, 0].mean()
                row = {"subject": name, "way": way, "seed": config.seed + s}
                ways.append({
                    **row, "loss": float(readings.loss[way][s]),
                    "start": float(cosines[s, 0].mean()), "end": float(cosines[s, -1].mean()),
                    "negative": int((cosines[s, -1] < 0).sum()), "heads": cosines[s, -1].size,
                    **{part: float(parts[s, i]) for i, part in enumerate(PARTS)},
                    "beyond_first_order": float(change - parts[s].sum()),
                })  # fmt: skip
                if way == "free":
                    ways[-1] |= {"z_start": float(readings.z(0)[s]), "z": float(readings.z(-1)[s])}
                courses += [
                    {**row, "step": int(step), "cosines": cosines[s, at].ravel().tolist()}
                    for at, step in enumerate(times(config))
                ]
        for explanation in EXPLANATIONS:
            values, words = verdict(explanation, readings)
            causes.append({
                "subject": name, "cause": explanation.cause, "prediction": explanation.prediction,
                "must be": str(explanation.bound), "values": values.tolist(), "verdict": words,
            })  # fmt: skip
    return {"ways": ways, "courses": courses, "explanations": causes}
