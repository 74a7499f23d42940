"""What every model is measured by."""

import jax
import jax.numpy as jnp
import numpy as np

from imr import cross_entropy
from imr.lab.data import add_noise


def noisy_test(key, index: int, x, level: float):
    """Test images with noise; of one seed and level the same for every model."""
    return add_noise(jax.random.fold_in(key, 1_000_000 + index), x, level)


def score(logits, labels):
    """Accuracy and mean cross-entropy."""
    accuracy = jnp.mean(jnp.argmax(logits, axis=1) == labels)
    return accuracy, jnp.mean(cross_entropy(logits, labels))


def std(values) -> float:
    """Standard deviation over seeds; of one seed there is none."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
