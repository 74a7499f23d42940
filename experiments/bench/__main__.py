"""The command `python -m experiments.bench`."""

import os
import sys

from experiments.bench.cores import one_core

if __name__ == "__main__":  # before jax is imported
    os.environ.setdefault("XLA_FLAGS", "")  # XLA's own settings are what is measured
    if "--all-cores" not in sys.argv:
        one_core()

from experiments.bench.config import Config, check, shrink
from experiments.bench.measures import measure
from experiments.bench.report import report
from imr.lab.experiment import Experiment

EXPERIMENT = Experiment(
    name="bench", question="What does imr cost beside the plain ways to the same results?",
    config=Config, check=check, shrink=shrink, measure=measure, report=report,
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.main())
