r"""Ascent of the likelihood: Baum-Welch, and L-BFGS through the filter; all restarts side by side.

The expected number of times that an entry p of a table is used is $p \, \partial \log P / \partial p$
(Eisner, Workshop on Structured Prediction for NLP, 2016), so that both need the gradient of one
function. A step evaluates it once; the first one at the start.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from imr.beliefs.likelihood import mean_log_likelihood
from imr.beliefs.tables import Tables, matrices_of, share
from imr.beliefs.ties import class_max, group_sums


class Ascent(NamedTuple):
    """A method, as functions of a carry with a leading axis of restarts.

    Attributes:
      begin: (tables, entries) -> carry, not evaluated yet.
      step: (carry, done, tables, entries, packed) -> (carry, log-likelihood, gradient), both of the
        new carry; a restart that is done stays.
      tables: (carry, tables, entries) -> the tables evaluated last.
    """

    begin: Callable[..., Any]
    step: Callable[..., Any]
    tables: Callable[..., Any]


def exactly_if_needed(function: Callable[..., Any]) -> Callable[..., Any]:
    """function(*inputs, exact) -> (result, small), without `exact`; if entries were small, exact."""

    def result(*inputs):
        found, small = function(*inputs, False)
        return function(*inputs, True)[0] if np.any(small) else found

    return result


def _log_likelihood(tables, packed, exact=False):
    initial, matrices = matrices_of(tables)
    return mean_log_likelihood(initial, matrices, packed, exact=exact)


@exactly_if_needed
@partial(jax.jit, static_argnames="exact")
def log_likelihoods(tables, packed, exact):
    """Of the tables of each restart."""
    return jax.vmap(partial(_log_likelihood, exact=exact), in_axes=(0, None))(tables, packed)


def _step(step):
    """A step of one restart as a step of all; tables, entries and packed are those of all."""

    @exactly_if_needed
    @partial(jax.jit, static_argnames="exact")
    def of_all(carry, done, tables, entries, packed, exact):
        def one(carry, done, tables):
            new, value, gradient, small = step(carry, tables, entries, packed, exact)
            return (jax.tree.map(partial(jnp.where, done), carry, new), value, gradient), small

        return jax.vmap(one)(carry, done, tables)

    return of_all


def _largest(slopes, entries):
    """The largest entry of a gradient by logits, where tied entries have one."""
    slopes = map(group_sums, slopes, entries.ties)
    return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in slopes]))


def _vdot(a, b):
    return sum(jnp.sum(x * y) for x, y in zip(a, b, strict=True))


@_step
def _em(carry, _, entries, packed, exact):
    """The carry is the tables evaluated last, and the next ones: their rows are shared by counts."""
    _, tables = carry
    differentiated = jax.value_and_grad(_log_likelihood, has_aux=True)
    (value, small), slopes = differentiated(tables, packed, exact)
    counts = map(jnp.multiply, tables, slopes)
    logits = _logits(tables, entries)
    (by_logits,) = jax.vjp(lambda logits: _softmax(logits, tables, entries), logits)[1](slopes)
    following = tuple(map(share, tables, counts, *entries))
    return (tables, following), value, _largest(by_logits, entries), small


class _Search(NamedTuple):
    """A line search: where it begins, with loss and slopes, and the step lengths that bracket its end."""

    logits: Tables
    loss: Array
    slopes: Tables
    direction: Tables
    memory: Any
    low: Array
    high: Array


def _lbfgs():
    import optax  # heavy, and needed here alone

    return optax.scale_by_lbfgs(memory_size=20)


@partial(jax.vmap, in_axes=(0, None))
def _search_begin(tables, entries):
    """A search along no direction that begins above: its one point is the start, and is taken."""
    logits = _logits(tables, entries)
    zeros, infinity = jax.tree.map(jnp.zeros_like, logits), jnp.full((), jnp.inf, logits[0].dtype)
    memory = _lbfgs().init(logits)
    return _Search(logits, infinity, zeros, zeros, memory, jnp.zeros_like(infinity), infinity)


@partial(jax.vmap, in_axes=(0, 0, None))
def _search_tables(search, tables, entries):
    return _softmax(search.logits, tables, entries)


def _logits(tables, entries):
    pairs = zip(tables, entries.free, strict=True)
    return tuple(jnp.where(free, jnp.log(jnp.where(free, t, 1)), 0) for t, free in pairs)


def _softmax(logits, tables, entries):
    """Tables whose free entries are the softmax of their logits, times what these may sum to."""

    def one(logits, table, free, ties):
        logits = jnp.where(free, logits, -jnp.inf)
        top = class_max(jax.lax.stop_gradient(jnp.max(logits, axis=1, keepdims=True)), ties)
        return share(table, jnp.exp(logits - jnp.where(jnp.isneginf(top), 0, top)), free, ties)

    return tuple(map(one, logits, tables, *entries))


@_step
def _gradient(search, tables, entries, packed, exact):
    """One point of a line search to the weak Wolfe conditions; if it fulfils them, the next search.

    Lengths are doubled or bisected (Lewis and Overton, Mathematical Programming 141, 2013): each costs
    one evaluation, so that restarts side by side do not wait for the longest search of all.
    """

    def loss_of(logits):
        value, small = _log_likelihood(_softmax(logits, tables, entries), packed, exact)
        return -value, small

    longer = jnp.where(search.low > 0, 2 * search.low, 1)
    length = jnp.where(jnp.isinf(search.high), longer, 0.5 * (search.low + search.high))
    logits = jax.tree.map(lambda x, d: x + length * d, search.logits, search.direction)
    (loss, small), slopes = jax.value_and_grad(loss_of, has_aux=True)(logits)
    before, after = _vdot(search.slopes, search.direction), _vdot(slopes, search.direction)
    too_far = ~(loss <= search.loss + 1e-4 * length * before)
    too_near = ~too_far & (after < 0.9 * before)
    update, memory = _lbfgs().update(slopes, search.memory, logits)
    low, high = jnp.zeros_like(length), jnp.full_like(length, jnp.inf)
    direction = jax.tree.map(jnp.negative, update)
    following = _Search(logits, loss, slopes, direction, memory, low, high)
    same = search._replace(
        low=jnp.where(too_near, length, search.low), high=jnp.where(too_far, length, search.high)
    )
    search = jax.tree.map(partial(jnp.where, too_far | too_near), same, following)
    return search, -search.loss, _largest(search.slopes, entries), small


METHODS = {
    "em": Ascent(lambda tables, _: (tables, tables), _em, lambda carry, *_: carry[0]),
    "gradient": Ascent(jax.jit(_search_begin), _gradient, jax.jit(_search_tables)),
}
