"""Layer norms folded into the weights of the heads."""

import jax.numpy as jnp

from imr._numerics import matmul
from imr.lens._parts import input_norms
from imr.lens.model import HeadWeights, TransformerWeights


def fold_norms(model: TransformerWeights) -> HeadWeights:
    r"""Heads in the coordinates of the normalised stream, scale and centring of norms in the weights.

    $W \to (I - 1 1^T / d) \, diag(\gamma) W$ for $W_Q$, $W_K$, $W_V$, with the norm that the head
    reads through, and $W_O \to W_O (I - 1 1^T / d)$, as the next norm takes the mean away. If norms
    come after sums, the stream itself is $\gamma \hat x + \beta$, and $W_O \to W_O \, diag(1 /
    \gamma) (I - 1 1^T / d)$ writes into $\hat x$. The biases of norms go into those of heads.

    Args:
      model: the transformer.
    """
    heads, norm = model.heads, input_norms(model)
    scale, shift = norm.scale[:, None, :, None], norm.bias[:, None, None, :]

    def folded(weight):
        return _centred(scale * weight, 2)

    def shifted(bias, weight):
        return bias + matmul(shift, weight)[:, :, 0, :]

    inverse = jnp.where(norm.scale == 0, 0, 1 / jnp.where(norm.scale == 0, 1, norm.scale))
    written = jnp.ones_like(norm.scale) if model.norm_first else inverse
    return HeadWeights(
        query=folded(heads.query),
        key=folded(heads.key),
        value=folded(heads.value),
        output=_centred(heads.output * written[:, None, None, :], 3),
        query_bias=shifted(heads.query_bias, heads.query),
        key_bias=shifted(heads.key_bias, heads.key),
        value_bias=shifted(heads.value_bias, heads.value),
        output_bias=_centred(heads.output_bias * written, 1),
    )


def _centred(x, axis):
    return x - jnp.mean(x, axis=axis, keepdims=True)
