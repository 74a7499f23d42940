"""The command `python -m experiments.theorems`."""

from experiments.theorems.config import Config, check, shrink
from experiments.theorems.measures import chosen, measure
from experiments.theorems.report import report, verdict
from imr.lab.experiment import Experiment

EXPERIMENT = Experiment(
    name="theorems",
    question="Does every statement of the theory hold, to what precision, and at which orders?",
    config=Config, check=check, shrink=shrink,
    data=chosen, measure=measure, report=report, float64=True, verdict=verdict,
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.main())
