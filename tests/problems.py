"""Reference problems: random features, models and targets of fixed seeds, for every test.

Made and compared in numpy: jax would compile each small operation anew for each shape.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

TIGHT = {"rtol": 1e-11, "atol": 1e-11}  # tolerances of solves that are compared with one another
TIMES = jnp.array([0.3, 1.0, 1.7])

# Real images in IDX format; what needs them says so and skips where they are not there.
IMAGES = Path(os.environ.get("IMR_TEST_IMAGES", Path(__file__).parents[2] / "shared" / "data"))


def images_folder(name: str) -> Path:
    """A folder of real images, or a skip that says what is missing."""
    if not (IMAGES / name).is_dir():
        pytest.skip(f"no folder {name} of IDX files; IMR_TEST_IMAGES names the folder above it")
    return IMAGES / name


class Problem(NamedTuple):
    """Features (n, f), class weights (k, f), bias (k,), labels (n,), soft targets (n, k)."""

    z: Any
    theta: Any
    bias: Any
    labels: Any
    targets: Any


def linear(n=7, f=5, k=3, seed=0, dtype=jnp.float64) -> Problem:
    random = np.random.default_rng(seed)
    z, theta, bias = (random.normal(size=shape) for shape in ((n, f), (k, f), (k,)))
    labels, targets = random.integers(0, k, n), random.dirichlet(np.ones(k), n)
    return Problem(
        *(jnp.asarray(x, dtype) for x in (z, theta, bias)),
        jnp.asarray(labels),
        jnp.asarray(targets, dtype),
    )


def projections(heads=None, f=5, r=2, seed=3) -> tuple[Any, Any]:
    """Q and K of the quadratic model, each (f, r) or (h, f, r)."""
    shape = (2, f, r) if heads is None else (2, heads, f, r)
    q, k = 0.6 * np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(q), jnp.asarray(k)


def error(found, wanted) -> float:
    """Largest difference over the largest entry wanted."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape
    return float(np.max(np.abs(found - wanted)) / np.max(np.abs(wanted)))


def central_difference(function, x, step=1e-5):
    """The gradient of a scalar function by central differences, entry by entry."""
    flat = x.ravel()

    def one(index):
        e = jnp.zeros_like(flat).at[index].set(step).reshape(x.shape)
        return (function(x + e) - function(x - e)) / (2 * step)

    return jax.lax.map(one, jnp.arange(flat.size)).reshape(x.shape)
