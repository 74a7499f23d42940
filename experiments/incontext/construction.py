"""The lens on the trained nets: are they the construction, head by head, beside nulls?"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from experiments.incontext.config import Config
from imr import lens
from imr.lab.folder import RunFolder
from imr.lab.nets import read_nets
from imr.nn import LinearSelfAttention

DRAWS = 64  # of a null


def rows(config: Config, run: RunFolder, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """A row for each circuit of each layer and head of the nets in a run's checkpoints.

    Args:
      config: whose first seed is that of the nulls.
      run: of this experiment.
      rates: by folder of checkpoints, those of the nets to read.
    """
    table = []
    for name, rate in rates.items():
        nets = read_nets(run.checkpoints / name)
        chosen = [nets.net(i) for i, each in enumerate(nets.runs) if each["rate"] == rate]
        found = of_nets(chosen, jax.random.key(config.seed))
        table += [{"net": nets.holds["net"], **row} for row in found]
    return table


def of_nets(nets: list[Any], key: jax.Array) -> list[dict[str, Any]]:
    """Medians over nets of one kind: the cosines with the construction, and their z beside nulls."""
    table, of_each = [], [lens.context_circuits(net) for net in nets]
    for circuits in zip(*of_each, strict=True):
        name = circuits[0].name
        cosines = np.stack([lens.construction_cosines(each) for each in circuits])
        nulls: dict[str, Callable[..., Any]] = {"z (p)": lens.permuted_circuit}
        if isinstance(nets[0], LinearSelfAttention):
            nulls["z (r)"] = lens.rotated_circuit
        scores = {}
        for label, null in nulls.items():
            keys = jax.random.split(key, DRAWS)
            draws = [[lens.construction_cosines(null(each, k)) for k in keys] for each in circuits]
            scores[label] = np.stack([
                lens.score(c, d).z for c, d in zip(cosines, draws, strict=True)
            ])  # fmt: skip
        for l, h in np.ndindex(cosines.shape[1:]):
            row = {
                "layer": l,
                "head": h,
                "circuit": name,
                "cosine": float(np.median(cosines[:, l, h])),
            }
            row |= {label: float(np.median(z[:, l, h])) for label, z in scores.items()}
            table.append(row)
    return table
