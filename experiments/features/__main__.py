"""The command `python -m experiments.features`."""

import numpy as np

from experiments.features.config import Config, shrink
from experiments.features.measures import measure
from experiments.features.report import report
from imr import ImrError
from imr.lab.data import ImageData, load_images
from imr.lab.experiment import Experiment


def load(config: Config) -> ImageData:
    """The images that the flags name; statistics of classes need two of each."""
    limits = {"train_limit": config.train_limit, "test_limit": 1}
    data = load_images(config.dataset, config.data_dir, **limits)
    counts = np.bincount(data.train_labels, minlength=len(data.class_names))
    if counts.min() < 2:
        raise ImrError(
            f"--train-limit must leave at least two images of each class; found {counts.min()} of "
            f"class {data.class_names[counts.argmin()]} in {counts.sum()} images. Raise it."
        )
    return data


EXPERIMENT = Experiment(
    name="features",
    question="How do images flow under a multinomial regression fitted to them, and how fast?",
    config=Config, shrink=shrink, data=load, measure=measure, report=report,
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.main())
