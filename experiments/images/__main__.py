"""The command `python -m experiments.images`."""

from experiments.images.config import Config, check, shrink
from experiments.images.measures import measure
from experiments.images.report import report
from imr.lab.data import ImageData, load_images
from imr.lab.experiment import Experiment


def load(config: Config) -> ImageData:
    """The images that the flags name."""
    return load_images(
        config.dataset, config.data_dir, train_limit=config.train_limit,
        test_limit=config.test_limit,
    )  # fmt: skip


EXPERIMENT = Experiment(
    name="images",
    question="Does iterating the transformer block improve classification of clean and noisy images?",
    config=Config, check=check, shrink=shrink, data=load, measure=measure, report=report,
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.main())
