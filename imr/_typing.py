"""Array aliases, by jaxtyping. They are checked in the tests and cost users nothing at run time."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, PRNGKeyArray, PyTree, Shaped

AnyArray = Array | np.ndarray
Scalar = Float[Array, ""]
ScalarLike = Float[Array, ""] | float | int
Features = Float[Array, "n f"]
FeaturesLike = Float[AnyArray, "n f"]
ClassWeights = Float[Array, "k f"]
WeightsLike = Float[AnyArray, "k f"]
Bias = Float[Array, "k"]
BiasLike = Float[AnyArray, "k"]
Logits = Float[Array, "n m"]
LogitsLike = Float[AnyArray, "n m"]
Rows = Float[Array, "n"]
Labels = Integer[Array, "n"]
LabelsLike = Integer[AnyArray, "n"]
Mask = Bool[AnyArray, "n m"] | Integer[AnyArray, "n m"]

Loss = Callable[[Any], Array]
Field = Callable[[Any, Any, Any], Any]


__all__ = [
    "AnyArray",
    "Array",
    "Bias",
    "BiasLike",
    "Bool",
    "ClassWeights",
    "Features",
    "FeaturesLike",
    "Field",
    "Float",
    "Int",
    "Labels",
    "LabelsLike",
    "Logits",
    "LogitsLike",
    "Loss",
    "Mask",
    "PRNGKeyArray",
    "PyTree",
    "Rows",
    "Scalar",
    "ScalarLike",
    "Shaped",
    "WeightsLike",
]
