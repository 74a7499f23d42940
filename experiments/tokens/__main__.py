"""The command `python -m experiments.tokens`."""

from experiments.tokens.config import Config, check, shrink
from experiments.tokens.measures import measure
from experiments.tokens.report import report
from imr.lab.experiment import Experiment

EXPERIMENT = Experiment(
    name="tokens",
    question="Where do tokens cluster, over (beta, t), and what does the column term of attention "
    "change?",
    config=Config, check=check, shrink=shrink, measure=measure, report=report,
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.main())
