"""From flags to all that is known of the nets: the theory, training, and what is read off each net."""

import jax

from experiments.beliefs import theory
from experiments.beliefs.acceptance import Results
from experiments.beliefs.config import Config, plan
from experiments.beliefs.nets import train_net, untrained
from experiments.beliefs.readings import Readings, read_net
from experiments.beliefs.report import draw_nets, draw_theory
from imr.lab.folder import RunFolder
from imr.lab.phases import phase


def measure(config: Config, run: RunFolder) -> Results:
    """Checks the theory, then trains and reads net after net; draws each as soon as it is read."""
    exact = theory.rows()
    with phase("figures"):
        draw_theory(run)
    readings: Readings = {}
    for net, targets, steps in plan(config):
        known = theory.truth(net)
        kinds = {targets: train_net(config, run, net, targets, steps)}
        if (net.name, "untrained") not in readings:
            kinds["untrained"] = untrained(config, net)
        for kind, params in kinds.items():
            seeds = (jax.tree.map(lambda x, s=s: x[s], params) for s in range(config.seeds))
            readings[net.name, kind] = [read_net(net, each, known) for each in seeds]
        with phase("figures"):
            draw_nets(run, net, targets, readings, known)
    return Results(exact, readings)
