"""From flags to all that was measured: the theory, then one part after the other."""

from typing import NamedTuple

from experiments.incontext import construction, figures, theory
from experiments.incontext.classification import measure_classification
from experiments.incontext.config import Config, sizes
from experiments.incontext.dynamics import measure_dynamics
from experiments.incontext.images import measure_images
from experiments.incontext.readings import Part
from experiments.incontext.recurrences import measure_recurrences
from experiments.incontext.regression import measure_autoregression, measure_regression
from imr.lab.console import say
from imr.lab.data import ImageData, load_images
from imr.lab.folder import RunFolder
from imr.lab.phases import phase


class Results(NamedTuple):
    """Rows of the equations, the parts by name, and what the lens reads of the trained nets."""

    theory: list[dict]
    parts: dict[str, Part]
    heads: list[dict]


def load(config: Config) -> ImageData | None:
    """The images, if they are asked for."""
    if config.theory_only or "images" not in config.parts:
        return None
    return load_images(config.dataset, config.data_dir)


def measure(config: Config, run: RunFolder, data: ImageData | None) -> Results:
    """Checks the theory, then measures part after part, and draws each as soon as it is there."""
    found = Results(theory.rows(), {}, [])
    if config.theory_only:
        return found
    small = sizes(config)
    for name in config.parts:
        say(f"{name} ...")
        with phase("evaluate"):
            found.parts[name] = _measure(name, config, small, run, data)
        with phase("figures"):
            figures.draw(name, small, run, found.parts[name])
    rates = {name: rate for part in found.parts.values() for name, rate in part.rates.items()}
    return found._replace(heads=construction.rows(config, run, rates))


def _measure(name: str, config: Config, small, run: RunFolder, data: ImageData | None) -> Part:
    if name == "images":
        assert data is not None  # by `load`
        return measure_images(config, small, run, data)
    functions = {
        "regression": measure_regression, "dynamics": measure_dynamics,
        "autoregression": measure_autoregression, "classification": measure_classification,
        "recurrences": measure_recurrences,
    }  # fmt: skip
    return functions[name](config, small, run)
