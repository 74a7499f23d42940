r"""The energy of heads: is a head's update a step down the log-sum-exp of its own attention?

$E(X) = \sum_i \log \sum_j \exp(q_i k_j / \sqrt r)$ with $q = X W_Q + b_Q$, $k = X W_K + b_K$. Its
gradient has a row term and a column term; a head that descends adds minus their sum.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from imr._checks import as_floats, check_axis, check_count, check_key, check_kind, check_rank
from imr._numerics import log_sum_exp
from imr._typing import Mask
from imr.lens._inputs import as_seen
from imr.lens._parts import checked_text, one_text, over, visible
from imr.lens.activations import forward
from imr.lens.heads import HeadWeights
from imr.lens.logits import EnergyGradient, each_head, head_updates
from imr.lens.model import TransformerWeights
from imr.models.quadratic import Quadratic


def energy_gradient(heads: HeadWeights, inputs: Float[Array, "n d"], seen: Mask) -> EnergyGradient:
    """Energy of the heads of one layer, and its gradient in what they read, as `imr.Quadratic` has it.

    Args:
      heads: of one layer, without the axis l.
      inputs: what they read, shape (n, d).
      seen: which tokens (columns) a token attends to, as in `head_updates`, shape (n, n). A token that sees no token is
        padding: it counts for nothing, and no other token may see it.
    Raises: ImrError if seen is no mask of that shape.

    Reference: arXiv 2509.04653, Theorem 2; THEORY A3 and A8.
    """
    check_kind("heads", heads, HeadWeights)
    inputs = as_floats("inputs", inputs)
    check_rank("inputs", inputs, 2, "(n, d)")
    d, r = heads.query.shape[1:]
    check_axis("inputs", inputs.shape[1], "heads", d, "features")
    mask = as_seen(seen, len(inputs), len(inputs))
    spare = max(0, r - d - 1)  # the model refuses ranks above the number of features
    counted = jnp.any(mask, axis=1)
    # A feature that is 1 carries the biases; padding is 0, and then so are its queries.
    features = jnp.pad(inputs, ((0, 0), (0, 1 + spare)), constant_values=1)
    features = jnp.where(counted[:, None], features, 0)
    where = mask | ~counted[:, None]

    def with_bias(weight, bias):
        weight = jnp.concatenate([weight, bias[:, None]], axis=1)
        return jnp.pad(weight, ((0, 0), (0, spare), (0, 0)))

    def one(query, key):
        model = Quadratic(query, key, beta=r**-0.5)
        terms = model.attention(features, where=where)
        sums = jnp.where(counted, log_sum_exp(model(features), where), 0)
        row = jnp.where(counted[:, None], terms.row, 0)[:, :d]
        column = terms.column[:, :d]  # pyright: ignore[reportOptionalSubscript]
        return EnergyGradient(jnp.sum(sums), row, column)

    query = with_bias(heads.query, heads.query_bias)
    return jax.vmap(one)(query, with_bias(heads.key, heads.key_bias))


def gradient_shares(
    model: TransformerWeights, tokens: Any, length: Any, key: Key[Array, ""], probes: int = 4
) -> Float[Array, "l h"]:
    r"""How far each head's map from features to update is a gradient field.

    $|S|^2 / (|S|^2 + |A|^2)$ of the symmetric part S and the antisymmetric part A of its Jacobian J,
    by random probes v: $S v = (J v + J^T v) / 2$, $A v = (J v - J^T v) / 2$. 1 for a gradient, 1/2
    for a random map. Updates are those before `output_norm`, by which heads depend on one another.

    Args:
      model, tokens, length: as in `measure_text`.
      key, probes: for the probes, and how many.
    Returns: Shape (l, h).
    """
    check_key(key)
    check_count("probes", probes)
    return _gradient_shares(model, *checked_text(model, one_text(tokens), length), key, probes)


@partial(jax.jit, static_argnames="probes")
def _gradient_shares(model, tokens, length, key, probes):
    present = jnp.arange(tokens.shape[0]) < length
    inputs = forward(model, tokens, present).inputs

    def layer(part):
        heads, reach, inputs = part
        seen = visible(model, present, reach)

        def mask(x):
            return jnp.where(present[None, :, None], x, 0)

        def updates(heads, x, _):
            return head_updates(heads, x, seen).updates

        # Each head reads features of its own: one product with J or J^T has those of all heads.
        features = jnp.broadcast_to(inputs[None], (heads.query.shape[0], *inputs.shape))
        _, push = jax.linearize(lambda x: mask(each_head(heads, updates, x)), features)
        pull = jax.linear_transpose(push, features)

        def probe(key):
            v = jax.random.normal(key, inputs.shape, inputs.dtype)[None]
            v = jnp.broadcast_to(mask(v), features.shape)
            forward, backward = push(v), mask(pull(v)[0])
            parts = (forward + backward, forward - backward)
            return jnp.stack([jnp.sum(x**2, axis=(1, 2)) for x in parts])

        even, odd = jnp.sum(jax.lax.map(probe, jax.random.split(key, probes)), axis=0)
        return over(even, even + odd)

    return jax.lax.map(layer, (model.attention, model.reach, inputs))
