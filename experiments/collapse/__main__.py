"""The command `python -m experiments.collapse`."""

from experiments.collapse.config import Config, check, shrink
from experiments.collapse.measures import measure
from experiments.collapse.report import report
from imr.lab.experiment import Experiment

EXPERIMENT = Experiment(
    name="collapse",
    question="Into what frames do features and class weights collapse, with and without room for them?",
    config=Config, check=check, shrink=shrink, measure=measure, report=report,
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.main())
