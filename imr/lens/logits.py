r"""Logits, updates and energies of heads of any architecture, from what they read.

$E = \sum_i \log \sum_j \exp l_{ij}$ with $l_{ij} = c \tanh(s_{ij} / c) + b_{ij}$ and $s_{ij} = s \,
\hat q_i R_{i-j} \hat k_j^T$, in which $\hat q = \gamma q / |q|_{rms}$ if queries have a norm.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import as_floats, as_numbers, check_axis, check_kind, check_rank
from imr._numerics import log_sum_exp, matmul, softmax, widen
from imr._typing import AnyArray, Mask
from imr.errors import ImrError
from imr.lens._inputs import as_seen
from imr.lens.heads import Heads


class EnergyGradient(NamedTuple):
    r"""The log-sum-exp of each head of a layer, and its gradient in the features, rows + columns.

    Attributes:
      energy: E, shape (h,).
      rows, columns: $P K W_Q^T / \sqrt r$ and $P^T Q W_K^T / \sqrt r$, shape (h, n, d).
    """

    energy: Float[Array, "h"]
    rows: Float[Array, "h n d"]
    columns: Float[Array, "h n d"]


class HeadUpdates(NamedTuple):
    """What the heads of a layer do to tokens.

    Attributes:
      attention: attention weights, shape (h, n, m).
      updates: what each head adds, without `output_bias` and before `output_norm`, shape (h, n, d).
    """

    attention: Float[Array, "h n m"]
    updates: Float[Array, "h n d"]


class _Side(NamedTuple):
    """Queries or keys before and after their norm, and what the way back takes.

    `turned` (g, n, r) is after norm and rotary positions, `raw` before; `weight` (g, d, r).
    """

    raw: Any
    turned: Any
    weight: Any
    norm: Any  # (g, r), or None
    length: Any  # (g, n, 1) or (1, n, 1): the root mean square of raw


def head_logits(
    heads: Heads,
    inputs: Float[AnyArray, "n d"],
    source: Float[AnyArray, "m e"] | None = None,
    *,
    positions: Any = None,
    bias: Float[AnyArray, "*h n m"] | None = None,
) -> Float[Array, "h n m"]:
    r"""The attention logits of the heads of one layer, after soft capping.

    Args:
      heads: of one layer.
      inputs: what they read, after the norm if that comes first, shape (n, d).
      source: what keys and values of cross-attention read, after their norm, shape (m, e).
      positions: of the tokens, shape (n,); None means 0, 1, ...
      bias: added to the logits, as those of positions in T5 and ALiBi, shape (h, n, m) or (n, m).
    Returns: Logits, shape (h, n, m).
    Raises: ImrError if source and `cross` contradict one another.

    >>> import numpy as np
    >>> w = np.ones((1, 2, 2), np.float32)
    >>> head_logits(Heads(query=w, key=w, value=w, output=w, scale=0.5), w[0] / 2).tolist()
    [[[1.0, 1.0], [1.0, 1.0]]]
    """
    queries, keys = _sides(heads, inputs, source, positions)
    return _capped(heads, queries, keys, bias)[0]


def head_updates(
    heads: Heads,
    inputs: Float[AnyArray, "n d"],
    seen: Mask,
    source: Float[AnyArray, "m e"] | None = None,
    *,
    positions: Any = None,
    bias: Float[AnyArray, "*h n m"] | None = None,
) -> HeadUpdates:
    """Attention weights of the heads of one layer, and what each adds.

    Args:
      heads, inputs, source, positions, bias: as in `head_logits`.
      seen: which tokens (columns) a token attends to, such as `head_mask` gives, boolean, or integers 0
        and 1, shape (n, m). The updates of a token that sees none are zero.
    Returns: `HeadUpdates`.
    Raises: ImrError as `head_logits` does, or if seen is no mask of that shape.
    """
    logits = head_logits(heads, inputs, source, positions=positions, bias=bias)
    attention = softmax(logits, as_seen(seen, *logits.shape[1:])[None])
    values = _project(inputs if source is None else source, heads.value, heads.value_bias)
    moved = matmul(attention, _repeated(heads, values))
    return HeadUpdates(attention, matmul(moved, heads.output))


def head_gradient(
    heads: Heads,
    inputs: Float[AnyArray, "n d"],
    seen: Mask,
    source: Float[AnyArray, "m e"] | None = None,
    *,
    positions: Any = None,
    bias: Float[AnyArray, "*h n m"] | None = None,
) -> EnergyGradient:
    r"""Energy of the heads of one layer, and its gradient in what they read.

    With $G = P (1 - \tanh^2(s_{ij} / c))$, or P without capping, the row term is $s \sum_j G_{ij}
    \hat k_j R_{i-j}^T W_Q^T$; a norm of queries multiplies by its scale, divides by the length, and
    takes away the part along the query. The column term has queries and keys exchanged. The keys of
    cross-attention are those of another stream, which stays: its column term is 0.

    Args:
      heads, inputs, source, positions, bias: as in `head_logits`.
      seen: as in `head_updates`. A token that sees none counts for nothing.
    Returns: `EnergyGradient`, whose rows plus columns are the gradient.
    Raises: ImrError as `head_updates` does.

    Reference: arXiv 2509.04653, Theorem 2, for heads without rotary positions, norms and capping.
    """
    energy, weights = energy_and_weights(heads, inputs, seen, source, positions, bias)
    return EnergyGradient(energy, *energy_terms(heads, inputs, weights, source, positions))


def energy_and_weights(heads: Heads, inputs, seen, source, positions, bias):
    """Energies (h,), and their derivatives (h, n, m) by products of queries and keys."""
    queries, keys = _sides(heads, inputs, source, positions)
    logits, slopes = _capped(heads, queries, keys, bias)
    seen = as_seen(seen, *logits.shape[1:])[None]
    energy = jnp.sum(log_sum_exp(logits, seen), axis=-1)
    return energy, heads.scale * softmax(logits, seen) * slopes


def energy_terms(heads: Heads, inputs, weights, source, positions):
    """Row and column terms of those weights, which may be of other heads; see `head_gradient`."""
    queries, keys = _sides(heads, inputs, source, positions)
    rows = matmul(weights, _repeated(heads, keys.turned))
    rows = _back(heads, queries, rows, 1, positions)
    if heads.cross:
        return rows, jnp.zeros_like(rows)
    columns = matmul(weights.mT, queries.turned)
    return rows, _back(heads, keys, columns, heads.group_size, positions)


def written(heads: Heads, updates: Float[Array, "h n d"]):
    """Updates as they arrive in the stream, behind `output_norm`, and their sum with the bias."""
    total = jnp.sum(updates, axis=0)
    if heads.output_bias is not None:
        total = total + jnp.asarray(heads.output_bias)[None, :]
    if heads.output_norm is None:
        return updates, total
    length = jnp.sqrt(jnp.mean(total**2, axis=-1, keepdims=True) + heads.epsilon)
    factor = jnp.asarray(heads.output_norm)[None, :] / length
    return updates * factor[None], total * factor


_OF_HEADS = ("query", "output", "query_bias", "query_norm")
_OF_GROUPS = ("key", "value", "key_bias", "value_bias", "key_norm")


def each_head(heads: Heads, function: Any, x: Float[Array, "h n d"], bias: Any = None):
    """What a function of heads and features gives of each head, if each has features of its own.

    Args:
      heads: of one layer.
      function: from heads, features (n, d) and bias to an array with a leading axis of heads.
      x: features, shape (h, n, d).
      bias: as in `head_logits`.
    """
    if heads.joint_norm:  # no head is without the others
        numbers = jnp.arange(len(x))
        return jax.lax.map(lambda pair: function(heads, pair[1], bias)[pair[0]], (numbers, x))
    parts = {name: getattr(heads, name) for name in (*_OF_HEADS, *_OF_GROUPS)}
    arrays = {name: jnp.asarray(array) for name, array in parts.items() if array is not None}
    for name in arrays.keys() & set(_OF_GROUPS):
        arrays[name] = _repeated(heads, arrays[name])
    own_bias = bias is not None and bias.ndim == 3

    def one(arrays, x, bias):
        alone = replace(heads, **{name: array[None] for name, array in arrays.items()})
        return function(alone, x, bias[None] if own_bias else bias)[0]

    return jax.vmap(one, in_axes=(0, 0, 0 if own_bias else None))(arrays, x, bias)


def _sides(heads: Heads, inputs, source, positions) -> tuple[_Side, _Side]:
    """Queries, and keys of groups."""
    check_kind("heads", heads, Heads)
    if heads.cross != (source is not None):
        there, wanted = ("is given", "self") if source is not None else ("is missing", "cross")
        raise ImrError(f"source {there}, but the heads are {wanted}-attention.")

    def side(name, x, weight, bias, norm):
        x = as_floats(name, x)
        check_rank(name, x, 2, "(n, d)")
        check_axis(name, x.shape[1], "heads", weight.shape[1], "features")
        raw = turned = _project(x, weight, bias)
        length = None
        if norm is not None:
            axes = (0, 2) if heads.joint_norm else (2,)
            square = jnp.mean(raw**2, axis=axes, keepdims=True)
            length = jnp.sqrt(square + heads.epsilon)
            turned = raw / length * jnp.asarray(norm)[:, None, :]
        return _Side(raw, _turn(heads, turned, positions, 1), weight, norm, length)

    keys = ("inputs", inputs) if source is None else ("source", source)
    return (
        side("inputs", inputs, heads.query, heads.query_bias, heads.query_norm),
        side(*keys, heads.key, heads.key_bias, heads.key_norm),
    )


def _project(x, weight, bias):
    """Queries, keys or values (g, n, r)."""
    projected = matmul(jnp.asarray(x)[None], weight)
    return projected if bias is None else projected + jnp.asarray(bias)[:, None, :]


def _repeated(heads, x):
    """Keys or values of groups, one for each head."""
    return jnp.repeat(x, heads.group_size, axis=0)


def _turn(heads, x, positions, sign):
    """Rotary positions: x (g, n, r) to x R, or back."""
    if heads.frequencies is None:
        return x
    f = heads.frequencies.shape[0]
    if positions is None:
        positions = jnp.arange(x.shape[1])
    positions = as_numbers("positions", positions)
    if positions.shape != x.shape[1:2]:
        raise ImrError(f"positions must have shape {x.shape[1:2]}; found {positions.shape}.")
    # The angle of a late token has no digits in bfloat16.
    angles = sign * positions[:, None] * widen(jnp.asarray(heads.frequencies))[None]
    cos, sin = jnp.cos(angles)[None].astype(x.dtype), jnp.sin(angles)[None].astype(x.dtype)
    a, b, rest = x[..., :f], x[..., f : 2 * f], x[..., 2 * f :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def _capped(heads, queries, keys, bias):
    """Logits (h, n, m), and their slopes in those before capping."""
    logits = heads.scale * matmul(queries.turned, _repeated(heads, keys.turned).mT)
    slopes = jnp.ones((), logits.dtype)
    if heads.cap is not None:
        bent = jnp.tanh(logits / heads.cap)
        logits, slopes = heads.cap * bent, 1 - bent**2
    if bias is not None:
        bias = as_floats("bias", bias)
        if bias.shape not in (logits.shape, logits.shape[1:]):
            raise ImrError(
                f"bias must have shape {logits.shape[1:]} or {logits.shape}; found {bias.shape}."
            )
        logits = logits + (bias[None] if bias.ndim == 2 else bias)
    return logits, slopes


def _back(heads, side: _Side, x, repeats: int, positions):
    """From the gradient (h, n, r) in turned queries or keys to that in the features, (h, n, d)."""
    x = _turn(heads, x, positions, -1)
    weight = jnp.repeat(jnp.asarray(side.weight), repeats, axis=0)
    if side.norm is None:
        return matmul(x, weight.mT)
    x = x * jnp.repeat(jnp.asarray(side.norm), repeats, axis=0)[:, None, :]
    raw = jnp.repeat(side.raw, repeats, axis=0)
    # The length is that of all g r numbers, or of r; it depends on the features by all of them.
    size = side.raw.shape[-1] * (len(side.raw) if heads.joint_norm else 1)
    along = matmul(side.raw, jnp.asarray(side.weight).mT)
    if heads.joint_norm:
        length, along = side.length, jnp.sum(along, axis=0, keepdims=True)
    else:
        length, along = (jnp.repeat(y, repeats, axis=0) for y in (side.length, along))
    share = jnp.sum(x * raw, axis=-1, keepdims=True) / (size * length**2)
    return (matmul(x, weight.mT) - share * along) / length
