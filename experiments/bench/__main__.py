"""The command `python -m experiments.bench`."""

import os
import sys

if __name__ == "__main__":  # before jax is imported
    os.environ.setdefault("XLA_FLAGS", "")  # XLA's own settings are what is measured
    if "--all-cores" not in sys.argv:
        threads = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ["XLA_FLAGS"] += f" {threads}"
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

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
