"""Which nets are trained, and on what."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.leaning.config import CHUNK, Config
from experiments.leaning.nets import FreeBlock, PatchTransformer
from imr import cross_entropy
from imr.lab.data import ImageData, load_images
from imr.lab.nets import Call
from imr.lab.train import epoch_of_batches
from imr.nn import Classifier, Transformer, next_token_loss
from imr.processes import mess3

LENGTH = 10  # positions of a sequence
NOISE = 0.6  # a of every Mess3; with a = 1/3 a token says nothing


class Subject(NamedTuple):
    """A net, and what it learns."""

    name: str
    title: str
    call: Call
    # From a net, the data, an entry of the schedule, a key, and whether targets are random.
    loss: Callable[[Any, Any, Any, Array, Array], Array]
    schedule: Callable[[Any, Array, Array], Any]
    data: Any


def subjects(config: Config) -> list[Subject]:
    """Those that the flags ask for; reads the images that they need."""
    makers = {
        "slow": partial(_mess3, config, "slow", 0.15, 1, 1),
        "alternating": partial(_mess3, config, "alternating", 0.5, 1, 2),
        "one_head": partial(_mess3, config, "one_head", 0.5, 1, 1),
        "four_layers": partial(_mess3, config, "four_layers", 0.15, 4, 1),
        "patches": partial(_patches, config), "images": partial(_images, config),
    }  # fmt: skip
    return [makers[name]() for name in config.subjects]


def _mess3(config: Config, name: str, x: float, layers: int, heads: int) -> Subject:
    """The transformers of `experiments.beliefs`, which learn from the exact next-token probabilities."""

    def loss(net, data, batch, key, noise):
        del batch
        process = jax.tree.map(lambda told, blank: jnp.where(noise, blank, told), *data)
        return next_token_loss(
            net, process, key, soft=True, batch_size=config.batch_size, length=LENGTH
        )

    def schedule(data, key, step):
        del data, key, step
        return jnp.zeros(CHUNK)

    data = jax.tree.map(lambda x: x.astype(jnp.float32), (mess3(x, NOISE), mess3(x, 1 / 3)))
    parts = f"{layers} layer{'s' * (layers > 1)}, {heads} head{'s' * (heads > 1)}"
    title = f"Mess3({x}, {NOISE}), {parts}"
    return Subject(
        name,
        title,
        partial(Transformer, 3, LENGTH, layers=layers, heads=heads),
        loss,
        schedule,
        data,
    )


def _patches(config: Config) -> Subject:
    images = _load(config)
    call = partial(PatchTransformer, images.image_shape, len(images.class_names))
    return _classifier(config, "patches", f"{images.name}, patches, norms, 2 layers", call, images)


def _images(config: Config) -> Subject:
    images = _load(config)
    grid = 2 if min(images.image_shape) < 16 else 4
    call = partial(
        Classifier, images.train_images.shape[1], len(images.class_names), iterations=3,
        block=FreeBlock, image_shape=images.image_shape, grid=grid, heads=4, rank=4, mlp_width=16,
    )  # fmt: skip
    return _classifier(config, "images", f"{images.name}, a free block, 3 iterations", call, images)


def _load(config: Config) -> ImageData:
    return load_images(config.dataset, config.data_dir, train_limit=config.train_limit)


def _classifier(
    config: Config, name: str, title: str, call: Call, images: ImageData
) -> Subject:  # fmt: skip
    n, k = len(images.train_labels), len(images.class_names)

    def loss(net, data, rows, key, noise):
        x, y = (each[rows] for each in data)
        y = jnp.where(noise, jax.random.randint(key, y.shape, 0, k), y)
        return jnp.mean(cross_entropy(net(x), y))

    def schedule(data, key, step):
        del data, step
        epochs = -(-CHUNK // max(1, n // config.batch_size))
        orders = jax.vmap(lambda key: epoch_of_batches(key, n, config.batch_size))(
            jax.random.split(key, epochs)
        )
        return orders.reshape(-1, orders.shape[-1])[:CHUNK]

    data = jnp.asarray(images.train_images), jnp.asarray(images.train_labels)
    return Subject(name, title, call, loss, schedule, data)
