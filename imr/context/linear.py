"""Linear self-attention as gradient descent on linear regression in context."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import check_axis, check_counts, check_rank
from imr._numerics import matmul
from imr._typing import Features, Rows, ScalarLike
from imr.context.fields import Labelled, as_mask


class LinearAttention(NamedTuple):
    """Merged weights of a linear self-attention layer, each (e, e): $Q^T K$, and value and output."""

    key_query: Float[Array, "e e"]
    value: Float[Array, "e e"]


def gradient_step_weights(num_features: int, num_outputs: int, step: ScalarLike) -> LinearAttention:
    r"""The layer that is one gradient step of linear regression on the examples in its context.

    Tokens are $(x_i, y_i)$, the query $(x_q, 0)$. A step of size $\eta$ on
    $\frac{1}{2N} \sum_i \|y_i - W x_i\|^2$ leaves the residuals $y_i - \eta \Delta W x_i$, which is
    what the layer puts in their place; after L layers the query's last entries are minus the
    prediction of L steps from W = 0.

    Args:
      num_features, num_outputs: lengths of x and y.
      step: eta.
    Returns: Weights for `linear_self_attention`.
    Raises: ImrError if a length is no positive integer.

    >>> weights = gradient_step_weights(1, 1, 0.5)
    >>> weights.key_query.tolist(), weights.value.tolist()
    ([[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, -0.5]])

    Reference: von Oswald et al., Transformers learn in-context by gradient descent, arXiv 2212.07677.
    """
    check_counts(num_features=num_features, num_outputs=num_outputs)
    x, y = jnp.ones(num_features), jnp.ones(num_outputs)
    of_x = jnp.concatenate([x, 0 * y])
    return LinearAttention(jnp.diag(of_x), -step * jnp.diag(1 - of_x))


def linear_self_attention(
    tokens: Features, weights: LinearAttention, labelled: Labelled
) -> Features:
    r"""$e_i + \frac1N \sum_{j \, labelled} (e_i^T A \, e_j) \, V e_j$, attention without a softmax.

    Args:
      tokens: e, shape (n, e).
      weights: A and V, each (e, e).
      labelled: boolean, shape (n,): the N examples, which alone are keys.
    Returns: Shape (n, e).
    Raises: ImrError if shapes do not fit or no token is labelled.

    >>> import jax.numpy as jnp
    >>> tokens = jnp.array([[1.0, 2.0], [3.0, 0.0]])
    >>> weights = gradient_step_weights(1, 1, 0.5)
    >>> linear_self_attention(tokens, weights, jnp.array([True, False])).tolist()
    [[1.0, 1.0], [3.0, -3.0]]
    """
    check_rank("tokens", tokens, 2, "(n, e)")
    labelled = as_mask(labelled)
    check_axis("labelled", labelled.shape[0], "tokens", tokens.shape[0], "tokens")
    check_axis("weights", weights.value.shape[-1], "tokens", tokens.shape[1], "columns")
    keys = jnp.where(labelled[:, None], tokens, 0)
    summary = matmul(keys.T, matmul(keys, weights.value.T)) / labelled.sum()
    return tokens + matmul(matmul(tokens, weights.key_query), summary)


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
