"""Linear self-attention as gradient descent on linear regression in context."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import block_diag
from jaxtyping import Array, Float

from imr._checks import (
    as_choice_of,
    as_floats,
    check_axis,
    check_counts,
    check_flags,
    check_kind,
    check_rank,
    check_scalar,
    is_concrete,
)
from imr._numerics import matmul
from imr._typing import Features, Rows, ScalarLike
from imr.context.fields import Labelled
from imr.errors import ImrError


class LinearAttention(NamedTuple):
    """Weights of a linear self-attention layer, (e, e) or (h, e, e) for heads: $Q^T K$, output times value."""

    key_query: Float[Array, "... e e"]
    value: Float[Array, "... e e"]


def gradient_step_weights(
    num_features: int,
    num_outputs: int,
    step: ScalarLike,
    curvature: ScalarLike = 0.0,
    *,
    causal: bool = False,
) -> LinearAttention:
    r"""The layer that is one gradient step of linear regression on the examples in its context.

    Tokens are $(x_i, y_i)$, the query $(x_q, 0)$. A step of size $\eta$ on
    $\frac{1}{2N} \sum_i \|y_i - W x_i\|^2$ leaves the residuals $y_i - \eta \Delta W x_i$, which is
    what the layer puts in their place; after L layers the query's last entries are minus the
    prediction of L steps from W = 0. With a curvature $\gamma$ the layer also takes $x_i$ to
    $(I - \gamma X^T X / N) x_i$, so that its successor steps in a better basis (GD++).

    Causal tokens are $(x_i, x_i, y_i, 0)$. Each has examples of its own, those before it, so that
    keys must stay as they are: $r_i$ in the second place loses $\eta S_i r_i$ and the last
    gains $\eta H_i r_i$, with the means $S_i$ of $x_j x_j^T$ and $H_i$ of $y_j x_j^T$ over j < i. After L
    layers it is the prediction of L steps on the examples before i, at every i at once.

    Args:
      num_features, num_outputs: lengths of x and y.
      step: eta.
      curvature: gamma; of layers that are not causal.
      causal: whether the weights are for causal tokens.
    Returns: Weights for `linear_self_attention`.
    Raises: ImrError if a length is no positive integer, or the layer is causal and has a curvature.

    >>> weights = gradient_step_weights(1, 1, 0.5)
    >>> weights.key_query.tolist(), weights.value.tolist()
    ([[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, -0.5]])

    Reference: von Oswald et al., Transformers learn in-context by gradient descent, arXiv 2212.07677;
    of causal layers, Uncovering mesa-optimization algorithms in transformers, arXiv 2309.05858.
    """
    check_counts(num_features=num_features, num_outputs=num_outputs)
    check_flags(causal=causal)
    check_scalar("step", step)
    check_scalar("curvature", curvature)
    x, y = jnp.eye(num_features), jnp.eye(num_outputs)
    if not causal:
        value = block_diag(-curvature * x, -step * y)
        return LinearAttention(block_diag(x, jnp.zeros_like(y)), value)
    if not is_concrete(curvature) or np.any(np.asarray(curvature) != 0):
        raise ImrError("curvature changes the keys, which a causal layer must keep; leave it out.")
    p, end = num_features, 2 * num_features + num_outputs
    none = jnp.zeros((end + num_outputs, end + num_outputs))
    value = none.at[p : 2 * p, :p].set(-step * x).at[end:, 2 * p : end].set(step * y)
    return LinearAttention(none.at[p : 2 * p, :p].set(x), value)


def linear_self_attention(
    tokens: Features, weights: LinearAttention, labelled: Labelled, *, causal: bool = False
) -> Features:
    r"""$e_i + \frac1N \sum_{j \, labelled} (e_i^T A \, e_j) \, V e_j$, attention without a softmax.

    Args:
      tokens: e, shape (n, e).
      weights: A and V, each (e, e), or (h, e, e) for heads, which add.
      labelled: boolean, or integers 0 and 1, shape (n,): the N examples, which alone are keys.
      causal: whether token i attends only to the examples j < i, of which there are then N. The
        first token attends to none, and stays as it is.
    Returns: Shape (n, e).
    Raises: ImrError if shapes do not fit or no token is labelled.

    >>> import jax.numpy as jnp
    >>> tokens = jnp.array([[1.0, 2.0], [3.0, 0.0]])
    >>> weights = gradient_step_weights(1, 1, 0.5)
    >>> linear_self_attention(tokens, weights, jnp.array([True, False])).tolist()
    [[1.0, 1.0], [3.0, -3.0]]
    """
    tokens = as_floats("tokens", tokens)
    check_rank("tokens", tokens, 2, "(n, e)")
    check_flags(causal=causal)
    check_kind("weights", weights, LinearAttention)
    n, width = tokens.shape
    labelled = as_choice_of("token", "labelled", labelled, n)
    check_axis("weights", weights.value.shape[-1], "tokens", width, "columns")
    heads = jax.tree.map(lambda x: x.reshape(-1, width, width), weights)
    keys = jnp.where(labelled[:, None], tokens, 0)
    if not causal:
        # Under a trace there may be no example: then nothing is attended to.
        moment = matmul(keys.T, keys) / jnp.maximum(labelled.sum(), 1)
        change = jax.vmap(lambda head: matmul(matmul(head.key_query, moment), head.value.T))(heads)
        return tokens + matmul(tokens, change.sum(axis=0))
    before = jnp.arange(n)[None, :] < jnp.arange(n)[:, None]
    count = jnp.maximum(jnp.sum(before & labelled[None, :], axis=1), 1)

    def head(head):
        scores = jnp.where(before, matmul(matmul(tokens, head.key_query), keys.T), 0)
        return matmul(scores, matmul(keys, head.value.T))

    return tokens + jax.vmap(head)(heads).sum(axis=0) / count[:, None]


def curvature_filter(
    spectrum: Rows, steps: Float[Array, "layers"], curvature: Float[Array, "layers"]
) -> Rows:
    r"""What gradient descent with curvature correction (GD++) leaves of each mode's residual.

    $$\prod_l (1 - \eta_l s_l), \qquad s_{l+1} = s_l (1 - \gamma_l s_l)^2$$

    Each layer steps along the gradient and transforms the features by $I - \gamma X^T X / N$.

    Args:
      spectrum: s_0, eigenvalues of $X^T X / N$, shape (m,).
      steps, curvature: eta and gamma of each layer, shape (layers,).
    Returns: Shape (m,).
    Raises: ImrError if steps and curvature differ in length.

    >>> import jax.numpy as jnp
    >>> curvature_filter(jnp.array([1.0]), jnp.array([0.5, 0.5]), jnp.array([0.0, 0.0])).tolist()
    [0.25]

    Reference: von Oswald et al., arXiv 2212.07677, Section 4.
    """
    spectrum, steps = as_floats("spectrum", spectrum), as_floats("steps", steps)
    curvature = as_floats("curvature", curvature)
    for name, array, shape in (
        ("spectrum", spectrum, "(m,)"),
        ("steps", steps, "(layers,)"),
        ("curvature", curvature, "(layers,)"),
    ):
        check_rank(name, array, 1, shape)
    check_axis("steps", steps.shape[0], "curvature", curvature.shape[0], "layers")

    def layer(carry, pair):
        residual, s = carry
        eta, gamma = pair
        return (residual * (1 - eta * s), s * (1 - gamma * s) ** 2), None

    start = jnp.ones_like(spectrum), spectrum
    return jax.lax.scan(layer, start, (steps, curvature))[0][0]
