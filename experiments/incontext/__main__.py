"""The command `python -m experiments.incontext`."""

from experiments.incontext.config import Config, check, shrink
from experiments.incontext.measures import load, measure
from experiments.incontext.report import report, verdict
from imr.lab.experiment import Experiment

EXPERIMENT = Experiment(
    name="incontext",
    question="Do nets that learn from examples in their context descend a functional gradient, and how "
    "well does that do?",
    config=Config, check=check, shrink=shrink, data=load,
    measure=measure, report=report, verdict=verdict,
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.main())
