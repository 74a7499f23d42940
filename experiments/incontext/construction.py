"""The lens on the trained nets: are they the construction, head by head, beside nulls?"""

from collections.abc import Mapping
from typing import Any

import jax

from experiments.incontext.config import Config
from imr import lens
from imr.lab.folder import RunFolder
from imr.lab.nets import read_nets


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
        chosen: list[Any] = [
            nets.net(i) for i, each in enumerate(nets.runs) if each["rate"] == rate
        ]
        found = lens.construction_rows(chosen, jax.random.key(config.seed))
        table += [{"net": nets.holds["net"], **row} for row in found]
    return table
