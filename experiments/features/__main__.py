"""The command `python -m experiments.features`."""

from experiments.features.config import Config, shrink
from experiments.features.flows import check_classes
from experiments.features.measures import measure
from experiments.features.report import report
from imr.lab.data import ImageData, load_images
from imr.lab.experiment import Experiment


def load(config: Config) -> ImageData:
    """The images that the flags name, of which each class has two."""
    data = load_images(
        config.dataset, config.data_dir, train_limit=config.train_limit, test_limit=1
    )
    check_classes(data.train_labels, data.class_names)
    return data


EXPERIMENT = Experiment(
    name="features",
    question="How do images flow under a multinomial regression fitted to them, and how fast?",
    config=Config, shrink=shrink, data=load, measure=measure, report=report,
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(EXPERIMENT.main())
