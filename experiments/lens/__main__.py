"""The command `python -m experiments.lens`."""

from experiments.lens.config import Config, check, shrink
from experiments.lens.measures import measure
from experiments.lens.report import report
from experiments.lens.subjects import subjects
from imr.lab.experiment import Experiment

EXPERIMENT = Experiment(
    name="lens",
    question="Do the heads of a trained transformer carry out the flow of multinomial regression?",
    config=Config,
    check=check,
    shrink=shrink,
    data=subjects,
    measure=measure,
    report=report,
)

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.main())
