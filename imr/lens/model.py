"""The weights of a trained transformer as plain arrays."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from imr._checks import check_kind
from imr._numerics import matmul
from imr.errors import ImrError
from imr.lens.heads import Heads, HeadWeights, Norm, circuits


class Mlp(NamedTuple):
    """The MLPs of all layers: weights and biases into the m hidden units, and out of them.

    With a gate, the hidden units are `activation(x gate) * (x into + into_bias)`.
    """

    into: Float[Array, "l d m"]
    into_bias: Float[Array, "l m"]
    out: Float[Array, "l m d"]
    out_bias: Float[Array, "l d"]
    gate: Float[Array, "l d m"] | None = None


_STATIC = {"static": True}  # structure under jit, not a leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TransformerWeights:
    """A transformer of the BERT kind (norms after sums), or the GPT-2 or Llama kind (before parts).

    Args:
      tokens: token embeddings, shape (k, d).
      positions: position embeddings, shape (p, d); BERT's embedding of the first segment is in them.
        None if there are none.
      attention: heads of all layers, each of their arrays with a leading axis l, without `norm`,
        `source_norm` and `reach`. They say where norms stand and of what kind all norms are.
      attention_norm, mlp_norm: before each part if norms come first, else after its sum with the stream.
      mlp: of all layers.
      outer_norm: of the end of the stream if norms come first, else of the embeddings.
      mlp_output_norm: scales of RMS norms of what MLPs add, shape (l, d), or None.
      reach: how many tokens away the tokens of each layer see at most, shape (l,), or None.
      activation: of the MLP, a name in `ACTIVATIONS`.
      embedding_scale: multiplies the embeddings of tokens.
      cap: c of logits c tanh(logits / c) of tokens, or None.
      unembedding: shape (d, k); None means the transposed embeddings.
    """

    tokens: Float[Array, "k d"]
    positions: Float[Array, "p d"] | None
    attention: Heads
    attention_norm: Norm
    mlp: Mlp
    mlp_norm: Norm
    outer_norm: Norm
    mlp_output_norm: Float[Array, "l d"] | None = None
    reach: Int[Array, "l"] | None = None
    unembedding: Float[Array, "d k"] | None = None
    activation: str = field(metadata=_STATIC)
    embedding_scale: float = field(default=1.0, metadata=_STATIC)
    cap: float | None = field(default=None, metadata=_STATIC)

    @property
    def heads(self) -> HeadWeights:
        """The circuits of all heads, as measures of weights take them; see `head_weights`."""
        return circuits(self.attention)


ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def input_norms(model: TransformerWeights) -> Norm:
    """The norms (l, d) through which the heads of each layer read the stream."""
    if model.attention.norm_first:
        return model.attention_norm
    both = model.outer_norm, model.mlp_norm
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest[:-1]]), *both)


def layers_of(model: TransformerWeights) -> Heads:
    """The heads of all layers with the norms through which they read."""
    return replace(model.attention, norm=input_norms(model))


def fold_norms(model: TransformerWeights) -> HeadWeights:
    r"""Heads in the coordinates of the normalised stream, scale and centring of norms in the weights.

    $W \to (I - 1 1^T / d) \, diag(\gamma) W$ for $W_Q$, $W_K$, $W_V$, with the norm that the head
    reads through, and $W_O \to W_O (I - 1 1^T / d)$, as the next norm takes the mean away. RMS norms
    do not centre; a norm of what heads add gives its scale to $W_O$. If norms come after sums, the stream itself is $\gamma \hat x + \beta$, and $W_O \to W_O \, diag(1 /
    \gamma) (I - 1 1^T / d)$ writes into $\hat x$. The biases of norms go into those of heads.

    Args:
      model: the transformer.
    """
    check_kind("model", model, TransformerWeights)
    heads, norm, attention = model.heads, input_norms(model), model.attention
    scale, shift = norm.scale[:, None, :, None], norm.bias[:, None, None, :]

    def centred(x, axis):
        return x if attention.rms else x - jnp.mean(x, axis=axis, keepdims=True)

    inverse = jnp.where(norm.scale == 0, 0, 1 / jnp.where(norm.scale == 0, 1, norm.scale))
    written = jnp.ones_like(norm.scale) if attention.norm_first else inverse
    if attention.output_norm is not None:
        written = written * attention.output_norm
    folded = {
        "output": centred(heads.output * written[:, None, None, :], 3),
        "output_bias": centred(heads.output_bias * written, 1),
    }
    for name in ("query", "key", "value"):
        weight, bias = getattr(heads, name), getattr(heads, f"{name}_bias")
        folded[name] = centred(scale * weight, 2)
        folded[f"{name}_bias"] = bias + matmul(shift, weight)[:, :, 0, :]
    return HeadWeights(**folded)


def fold_model(model: TransformerWeights) -> TransformerWeights:
    r"""The same function, with the norms that heads read through in their weights.

    $W \to diag(\gamma) W$ for $W_Q$, $W_K$, $W_V$, after $I - 1 1^T / d$ if the norm is a layer norm, so
    that `heads` are those of `fold_norms` in what they read. What they write stays as it is: a later
    norm takes the mean away, and the length that `output_norm` divides by is of the whole.

    Args:
      model: whose norms come first; if they come after sums, they belong to the stream.
    Raises: ImrError if norms do not come first.

    Reference: Elhage et al. 2021, "Handling layer normalization".
    """
    check_kind("model", model, TransformerWeights)
    heads, norm = model.attention, model.attention_norm
    if not heads.norm_first:
        raise ImrError("model must have norms before its parts; these stand after sums.")
    folded = {}
    for name in ("query", "key", "value"):
        weight, bias = getattr(heads, name), getattr(heads, f"{name}_bias")
        shift = matmul(norm.bias[:, None, None, :], weight)[:, :, 0, :]
        folded[f"{name}_bias"] = shift if bias is None else bias + shift
        weight = norm.scale[:, None, :, None] * weight
        centre = 0 if heads.rms else jnp.mean(weight, axis=2, keepdims=True)
        folded[name] = weight - centre
    plain = Norm(jnp.ones_like(norm.scale), jnp.zeros_like(norm.bias))
    return replace(model, attention=replace(heads, **folded), attention_norm=plain)
