"""Reference problems: random features, models and targets of fixed keys, for every test."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

# Real images in IDX format; what needs them says so and skips where they are not there.
IMAGES = Path(os.environ.get("IMR_TEST_IMAGES", Path(__file__).parents[2] / "shared" / "data"))


def images_folder(name: str) -> Path:
    """A folder of real images, or a skip that says what is missing."""
    if not (IMAGES / name).is_dir():
        pytest.skip(f"no folder {name} of IDX files; IMR_TEST_IMAGES names the folder above it")
    return IMAGES / name


class Linear(NamedTuple):
    """Features (n, f), class weights (k, f), bias (k,), labels (n,), soft targets (n, k)."""

    z: Any
    theta: Any
    bias: Any
    labels: Any
    targets: Any


def linear(n=7, f=5, k=3, seed=0, dtype=jnp.float64) -> Linear:
    keys = jax.random.split(jax.random.key(seed), 5)
    return Linear(
        jax.random.normal(keys[0], (n, f), dtype),
        jax.random.normal(keys[1], (k, f), dtype),
        jax.random.normal(keys[2], (k,), dtype),
        jax.random.randint(keys[3], (n,), 0, k),
        jax.nn.softmax(jax.random.normal(keys[4], (n, k), dtype)),
    )


def error(found, wanted) -> float:
    """Largest difference over the largest entry wanted."""
    found, wanted = jnp.asarray(found), jnp.asarray(wanted)
    assert found.shape == wanted.shape
    return float(jnp.max(jnp.abs(found - wanted)) / jnp.max(jnp.abs(wanted)))


def central_difference(function, x, step=1e-5):
    """The gradient of a scalar function by central differences, entry by entry."""
    flat = x.ravel()

    def one(index):
        e = jnp.zeros_like(flat).at[index].set(step).reshape(x.shape)
        return (function(x + e) - function(x - e)) / (2 * step)

    return jax.lax.map(one, jnp.arange(flat.size)).reshape(x.shape)
