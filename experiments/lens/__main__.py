"""The way in: `python -m experiments.lens`."""

from experiments.lens.config import Config, check
from experiments.lens.measures import measure
from experiments.lens.report import draw, findings, report
from experiments.lens.subjects import subjects
from imr.lab.experiment import run_main, run_once
from imr.lab.folder import RunFolder, open_run


def main(config: Config) -> int:
    """Do the heads of a trained transformer carry out the flow of multinomial regression?"""
    check(config)
    everything = list(subjects(config))  # whatever cannot be read is said before a folder is made
    run = open_run("lens", config, out=config.out, overwrite=config.overwrite)
    run_once(run, lambda: measure_all(config, everything, run))
    return 0


def measure_all(config: Config, everything: list, run: RunFolder) -> None:
    """Measures every model, and writes tables and figures."""
    heads, layers = [], []
    for number, subject in enumerate(everything):
        found = measure(config, subject)
        draw(run, subject, found, "" if len(everything) == 1 else f"_{number}")
        heads += found.heads
        layers += found.layers
    words = findings(heads, layers) if len(everything) == 1 else []
    summary = {"heads": heads, "layers": layers, "findings": words}
    run.finish(summary, report(config, heads, layers, len(everything)))


if __name__ == "__main__":
    raise SystemExit(run_main(main, Config))
