"""Nets that learn from examples in their context: are their weights those of the construction?"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float64, Key

from imr._checks import check_counts, check_key, check_kind
from imr.context import gradient_step_weights
from imr.errors import ImrError
from imr.lens.weights import score
from imr.nn import ContextBlock, LinearSelfAttention


class Circuit(NamedTuple):
    """One matrix of every layer and head, and the construction's in the same places.

    Attributes:
      name: "key-query" or "value"; of a block of examples and classes "metric" or "classes".
      matrices: shape (l, h, a, b); zero where nothing reads what they write.
      construction: of each layer, up to a factor of each of c parts, shape (l, c, a, b).
    """

    name: str
    matrices: Float64[np.ndarray, "l h a b"]
    construction: Float64[np.ndarray, "l c a b"]


def context_circuits(net: LinearSelfAttention | ContextBlock) -> tuple[Circuit, ...]:
    r"""What there is to compare of a net that learns in context.

    Of linear self-attention the merged keys and queries with the identity between covariates, and
    the values with a gradient step, $\eta$, and its curvature correction, $\gamma$, whatever these two
    are. Of a `ContextBlock` the metric $W W^T$ with the identity and the centred $\theta \theta^T$ with
    a simplex, which tasks that know no direction and no order of classes ask for.

    Args:
      net: of `imr.nn`, trained or not.
    Raises: ImrError if it is another net.

    >>> from flax import nnx
    >>> net = LinearSelfAttention(3, layers=2, rngs=nnx.Rngs(0))
    >>> net.gradient_steps(0.5, 0.1)
    >>> [construction_cosines(each).round(6).tolist() for each in context_circuits(net)]
    [[[1.0], [1.0]], [[1.0], [1.0]]]
    """
    if isinstance(net, LinearSelfAttention):
        return _linear(net)
    if isinstance(net, ContextBlock):
        w, theta = (np.asarray(each[...], np.float64) for each in (net.projection, net.theta))
        centre = np.eye(len(theta)) - 1 / len(theta)
        gram = centre @ theta @ theta.T @ centre
        return (
            Circuit("metric", (w @ w.T)[None, None], np.eye(len(w))[None, None]),
            Circuit("classes", gram[None, None], centre[None, None]),
        )
    raise ImrError(
        f"net must be a LinearSelfAttention or a ContextBlock of imr.nn; found a {type(net).__name__}."
    )


def _linear(net: LinearSelfAttention) -> tuple[Circuit, ...]:
    weights = net.weights
    key_query, value = (np.asarray(each, np.float64) for each in weights)
    # The steps, and the correction of curvature, which a causal layer has none of.
    pairs = ((1.0, 0.0),) if net.causal else ((1.0, 0.0), (0.0, 1.0))
    exact = [gradient_step_weights(*net.sizes, *pair, causal=net.causal) for pair in pairs]
    parts = np.stack([np.asarray(each.value, np.float64) for each in exact])
    construction = np.repeat(parts[None], len(value), axis=0)
    if not net.tied:
        # Nothing reads what the last layer writes beside the prediction.
        unread = slice(None, -net.sizes[1])
        value, construction = value.copy(), construction.copy()
        value[-1, :, unread], construction[-1, :, unread] = 0, 0
    scores = np.asarray(exact[0].key_query, np.float64)
    of_scores = np.repeat(scores[None, None], len(key_query), axis=0)
    return Circuit("key-query", key_query, of_scores), Circuit("value", value, construction)


def construction_cosines(circuit: Circuit) -> Float64[np.ndarray, "l h"]:
    """The share of each matrix's norm that lies in the construction: 1 if it is one, 0 if orthogonal.

    NaN of a matrix that is not finite, as of a net whose training has failed.

    For a null, see `permuted_circuit` and `rotated_circuit`, and `score`.

    Args:
      circuit: of `context_circuits`.
    """
    check_kind("circuit", circuit, Circuit)
    parts = circuit.construction
    norms = np.sum(parts**2, axis=(2, 3))  # parts stand in different places, so are orthogonal
    inner = np.einsum("lhab,lcab->lhc", circuit.matrices, parts) ** 2
    inside = np.sum(
        np.where(norms > 0, 1, 0)[:, None] * inner / np.where(norms > 0, norms, 1)[:, None], axis=2
    )
    whole = np.sum(circuit.matrices**2, axis=(2, 3))
    return np.sqrt(np.where(whole == 0, 0, inside / np.where(whole == 0, 1, whole)))


def permuted_circuit(circuit: Circuit, key: Key[Array, ""]) -> Circuit:
    """The circuit with the entries of each matrix in a random order.

    Args:
      circuit: of `context_circuits`.
      key: a PRNG key.
    """
    check_key(key)
    check_kind("circuit", circuit, Circuit)
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    shape = circuit.matrices.shape
    flat = random.permuted(circuit.matrices.reshape(*shape[:2], -1), axis=2)
    return circuit._replace(matrices=flat.reshape(shape))


def rotated_circuit(circuit: Circuit, key: Key[Array, ""]) -> Circuit:
    r"""The circuit with each matrix as $U M U^T$, U orthogonal and random: its spectrum stays.

    Says nothing where the construction is the identity, which no rotation moves.

    Args:
      circuit: of `context_circuits`.
      key: a PRNG key.
    """
    check_key(key)
    check_kind("circuit", circuit, Circuit)
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    frame, sides = np.linalg.qr(random.normal(size=circuit.matrices.shape[-2:]))
    turn = frame * np.sign(np.diagonal(sides))
    return circuit._replace(matrices=turn @ circuit.matrices @ turn.T)


def construction_rows(
    nets: Sequence[LinearSelfAttention | ContextBlock], key: Key[Array, ""], draws: int = 64
) -> list[dict[str, Any]]:
    """Are these nets the construction? A row for each circuit of each layer and head.

    Args:
      nets: of one shape, such as those of several seeds; rows are medians over them.
      key: a PRNG key.
      draws: of each null.
    Returns: Layer, head, circuit, the cosine with the construction, and its z beside permuted entries,
      "z (p)", and of linear attention beside rotated matrices, "z (r)".
    Raises: ImrError if a net is of another kind, there is none, or draws is no positive integer.

    >>> from flax import nnx
    >>> net = LinearSelfAttention(3, rngs=nnx.Rngs(0))
    >>> net.gradient_steps(0.5)
    >>> [round(row["cosine"], 6) for row in construction_rows([net], jax.random.key(0), 4)]
    [1.0, 1.0]
    """
    check_key(key)
    check_counts(draws=draws)
    if not isinstance(nets, Sequence):
        raise ImrError(f"nets must be a list of nets; found a {type(nets).__name__}.")
    if not nets:
        raise ImrError("nets must hold at least one; found none.")
    nulls: dict[str, Callable[..., Circuit]] = {"z (p)": permuted_circuit}
    if isinstance(nets[0], LinearSelfAttention):
        nulls["z (r)"] = rotated_circuit
    table, keys = [], jax.random.split(key, draws)
    for circuits in zip(*(context_circuits(net) for net in nets), strict=True):
        cosines = np.stack([construction_cosines(each) for each in circuits])
        scores = {}
        for label, null in nulls.items():
            of_null = [[construction_cosines(null(each, k)) for k in keys] for each in circuits]
            pairs = zip(cosines, of_null, strict=True)
            scores[label] = np.stack([score(value, drawn).z for value, drawn in pairs])
        for l, h in np.ndindex(cosines.shape[1:]):
            row = {"layer": l, "head": h, "circuit": circuits[0].name}
            row["cosine"] = float(np.median(cosines[:, l, h]))
            table.append(row | {label: float(np.median(z[:, l, h])) for label, z in scores.items()})
    return table
