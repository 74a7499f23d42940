"""The command `python -m experiments.beliefs`."""

from experiments.beliefs.config import Config, check, shrink
from experiments.beliefs.measures import measure
from experiments.beliefs.report import report, verdict
from imr.lab.experiment import Experiment

EXPERIMENT = Experiment(
    name="beliefs",
    question="Do trained transformers carry out constrained belief updates, as predicted?",
    config=Config, check=check, shrink=shrink,
    float64=True,  # the theory; nets are float32 all the same
    measure=measure, report=report, verdict=verdict,
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.main())
