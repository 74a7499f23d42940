"""The way in: `python -m experiments.beliefs`."""

import sys

import jax

from experiments.beliefs import acceptance, theory
from experiments.beliefs.config import Config, check, plan, shrink
from experiments.beliefs.measures import measure, truth
from experiments.beliefs.nets import initial, train_net
from experiments.beliefs.report import draw_nets, draw_theory, report
from imr.lab.experiment import run_main, run_once
from imr.lab.folder import RunFolder, open_run


def main(config: Config) -> int:
    """Do trained transformers carry out constrained belief updates, as predicted?"""
    check(config)
    run = open_run("beliefs", config, out=config.out, overwrite=config.overwrite)

    def work():
        with jax.enable_x64(True):  # the theory; nets are float32 all the same
            measure_all(shrink(config) if config.smoke else config, run)

    run_once(run, work)
    summary = run.summary()
    for name in ("theory", "table"):
        for row in summary[name]:
            if not row["passed"]:
                sys.stderr.write(f"not as predicted: {row['id']}, {row['check']}\n")
    # What nets do is a finding, whatever it is; equations have to hold.
    return 0 if all(row["passed"] for row in summary["theory"]) else 1


def measure_all(config: Config, run: RunFolder) -> None:
    """Checks the theory, trains and measures the nets, and writes tables and figures."""
    exact = theory.rows()
    draw_theory(run)
    measured: acceptance.Measured = {}
    for net, targets, steps in plan(config):
        known = truth(net)
        kinds = {targets: train_net(config, run, net, targets, steps)}
        if (net.name, "untrained") not in measured:
            kinds["untrained"] = initial(config, net, steps).params
        for kind, params in kinds.items():
            seeds = (jax.tree.map(lambda x, s=s: x[s], params) for s in range(config.seeds))
            measured[net.name, kind] = [measure(net, each, known) for each in seeds]
        draw_nets(run, net, targets, measured, known)
    kinds = dict.fromkeys(targets for _, targets, _ in plan(config))
    rows = [row for kind in kinds for row in acceptance.rows(acceptance.lines(kind), measured)]
    spreads = acceptance.spreads(measured)
    summary = {"theory": exact, "table": rows, "attention_spread": spreads}
    run.finish(summary, report(config, exact, rows, spreads))


if __name__ == "__main__":
    raise SystemExit(run_main(main, Config))
