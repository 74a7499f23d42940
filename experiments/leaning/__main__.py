"""The command `python -m experiments.leaning`."""

from experiments.leaning.config import Config, check, shrink
from experiments.leaning.measures import measure
from experiments.leaning.report import report
from experiments.leaning.subjects import subjects
from imr.lab.experiment import Experiment

EXPERIMENT = Experiment(
    name="leaning",
    question="Why do the value circuits of trained heads lean towards the descent of their attention?",
    config=Config, check=check, shrink=shrink, data=subjects, measure=measure, report=report,
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.main())
