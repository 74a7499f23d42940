"""The weights of a trained transformer as plain arrays."""

from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._numerics import matmul


class HeadWeights(NamedTuple):
    r"""Attention heads: queries $x W_Q + b_Q$, and a head adds $P (x W_V + b_V) W_O$.

    Functions that look at one layer take the same tuple without the axis l.

    Attributes:
      query, key, value: $W_Q$, $W_K$, $W_V$, shape (l, h, d, r).
      output: $W_O$, shape (l, h, r, d).
      query_bias, key_bias, value_bias: $b_Q$, $b_K$, $b_V$, shape (l, h, r).
      output_bias: added once for all heads of a layer, shape (l, d).
    """

    query: Float[Array, "l h d r"]
    key: Float[Array, "l h d r"]
    value: Float[Array, "l h d r"]
    output: Float[Array, "l h r d"]
    query_bias: Float[Array, "l h r"]
    key_bias: Float[Array, "l h r"]
    value_bias: Float[Array, "l h r"]
    output_bias: Float[Array, "l d"]


class Norm(NamedTuple):
    """Layer norms: scale and bias, shape (l, d) for all layers or (d,) for one norm."""

    scale: Float[Array, "*l d"]
    bias: Float[Array, "*l d"]


class Mlp(NamedTuple):
    """The MLPs of all layers: weights and biases into the m hidden units, and out of them."""

    into: Float[Array, "l d m"]
    into_bias: Float[Array, "l m"]
    out: Float[Array, "l m d"]
    out_bias: Float[Array, "l d"]


_STATIC = {"static": True}  # structure under jit, not a leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TransformerWeights:
    """A transformer of the BERT kind (norms after sums) or the GPT-2 kind (norms before parts).

    Args:
      tokens: token embeddings, shape (k, d).
      positions: position embeddings, shape (p, d); BERT's embedding of the first segment is in them.
      heads, mlp: attention and MLPs of all layers.
      attention_norm, mlp_norm: before each part if `norm_first`, else after its sum with the stream.
      outer_norm: of the end of the stream if `norm_first`, else of the embeddings.
      causal: whether a token sees only itself and those before it.
      norm_first: whether norms come before the parts.
      activation: of the MLP, a name in `ACTIVATIONS`.
      epsilon: added to the variance in norms.
      unembedding: shape (d, k); None means the transposed embeddings.
    """

    tokens: Float[Array, "k d"]
    positions: Float[Array, "p d"]
    heads: HeadWeights
    attention_norm: Norm
    mlp: Mlp
    mlp_norm: Norm
    outer_norm: Norm
    causal: bool = field(metadata=_STATIC)
    norm_first: bool = field(metadata=_STATIC)
    activation: str = field(metadata=_STATIC)
    epsilon: float = field(metadata=_STATIC)
    unembedding: Float[Array, "d k"] | None = None


ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


def input_norms(model: TransformerWeights) -> Norm:
    """The norms (l, d) through which the heads of each layer read the stream."""
    if model.norm_first:
        return model.attention_norm
    both = model.outer_norm, model.mlp_norm
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest[:-1]]), *both)


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

    inverse = jnp.where(norm.scale == 0, 0, 1 / jnp.where(norm.scale == 0, 1, norm.scale))
    written = jnp.ones_like(norm.scale) if model.norm_first else inverse
    folded = {
        "output": _centred(heads.output * written[:, None, None, :], 3),
        "output_bias": _centred(heads.output_bias * written, 1),
    }
    for name in ("query", "key", "value"):
        weight, bias = getattr(heads, name), getattr(heads, f"{name}_bias")
        folded[name] = _centred(scale * weight, 2)
        folded[f"{name}_bias"] = bias + matmul(shift, weight)[:, :, 0, :]
    return HeadWeights(**folded)


def _centred(x, axis):
    return x - jnp.mean(x, axis=axis, keepdims=True)
