"""Cosines of arrays (n, d) over the tokens of a text, and the null of permuted features."""

import jax
import jax.numpy as jnp

from imr._numerics import matmul


def over(x, size):
    """x / size, and 0 if the size is 0: a head that adds nothing has cosine 0 with everything."""
    return jnp.where(size > 0, x / jnp.where(size > 0, size, 1), 0)


def unit(x):
    """Each (n, d) scaled to length 1."""
    return over(x, jnp.sqrt(jnp.sum(x**2, axis=(-2, -1), keepdims=True)))


def centred(x, present):
    """Each (n, d) less its mean over the tokens of the text; rows of padding are 0."""
    present = present.reshape((1,) * (x.ndim - 2) + (-1, 1))
    x = jnp.where(present, x, 0)
    return jnp.where(present, x - jnp.sum(x, axis=-2, keepdims=True) / jnp.sum(present), 0)


def orders_of(key, draws, size):
    """Random permutations, shape (draws, size)."""
    return jax.vmap(lambda k: jax.random.permutation(k, size))(jax.random.split(key, draws))


def permuted(u, t, orders):
    """Inner products of u (..., n, d) with t whose features are in other orders, (draws, ...)."""
    gram = matmul(jnp.swapaxes(jnp.broadcast_to(u, t.shape), -1, -2), t)
    places = jnp.arange(orders.shape[1])
    return jax.lax.map(lambda order: jnp.sum(gram[..., places, order], axis=-1), orders)
