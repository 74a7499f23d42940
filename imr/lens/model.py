"""A trained transformer as plain arrays, and its forward pass with all that its heads do."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from imr._checks import as_tokens, is_concrete
from imr._numerics import matmul, softmax
from imr.errors import ImrError


class Heads(NamedTuple):
    r"""Attention of all layers: queries $x W_Q + b_Q$, and a head adds $P (x W_V + b_V) W_O$.

    Attributes:
      query, key, value: W, shape (l, h, d, r); query_bias, key_bias, value_bias: (l, h, r).
      output: W_O, shape (l, h, r, d); output_bias: (l, d), once for all heads.
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
    """Layer norms of all layers (l, d), or one of them (d,)."""

    scale: Float[Array, "*l d"]
    bias: Float[Array, "*l d"]


class Mlp(NamedTuple):
    """into (l, d, m), into_bias (l, m), out (l, m, d), out_bias (l, d)."""

    into: Float[Array, "l d m"]
    into_bias: Float[Array, "l m"]
    out: Float[Array, "l m d"]
    out_bias: Float[Array, "l d"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "tokens",
        "positions",
        "heads",
        "attention_norm",
        "mlp",
        "mlp_norm",
        "outer_norm",
        "unembedding",
    ],
    meta_fields=["causal", "norm_first", "activation", "epsilon"],
)
@dataclass(frozen=True)
class Model:
    """A transformer read from a checkpoint: BERT's kind, or GPT-2's.

    Attributes:
      tokens: embeddings (k, d); positions: (p, d), with BERT's embedding of the first segment in it.
      heads, mlp: of all layers. attention_norm, mlp_norm: (l, d), before the parts where
        `norm_first`, else after their sums.
      outer_norm: of the embeddings (norms after), or of the end (norms before).
      causal, norm_first, activation, epsilon: what kind it is.
      unembedding: (d, k); None is the embeddings, transposed.
    """

    tokens: Float[Array, "k d"]
    positions: Float[Array, "p d"]
    heads: Heads
    attention_norm: Norm
    mlp: Mlp
    mlp_norm: Norm
    outer_norm: Norm
    causal: bool
    norm_first: bool
    activation: str
    epsilon: float
    unembedding: Float[Array, "d k"] | None = None


class Record(NamedTuple):
    """All of a forward pass, a leading axis of layers.

    Attributes:
      inputs: what the heads read, (l, n, d), after the norm where that comes first.
      attention: (l, h, n, n). updates: what each head adds, (l, h, n, d), without `output_bias`.
      before, middle, after: the residual stream (l, n, d) at the beginning, between attention and
        MLP, and at the end of each layer. mlp: what the MLP adds, (l, n, d).
      final: (n, d), after the last norm.
    """

    inputs: Float[Array, "l n d"]
    attention: Float[Array, "l h n n"]
    updates: Float[Array, "l h n d"]
    before: Float[Array, "l n d"]
    middle: Float[Array, "l n d"]
    mlp: Float[Array, "l n d"]
    after: Float[Array, "l n d"]
    final: Float[Array, "n d"]


ACTIVATIONS = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


def record(model: Model, tokens: Any) -> Record:
    """Runs the model on one sequence of tokens, shape (n,), and returns all that happens.

    For several texts of one length use `jax.vmap`.

    Raises:
      ImrError: for tokens that are no integers, out of range, or more than there are positions.
    """
    tokens = _checked(model, tokens)
    return run(model, tokens, jnp.ones(tokens.shape, bool))


def checked_text(model: Model, tokens: Any, length: Any) -> tuple[Int[Array, "n"], Int[Array, ""]]:
    """Tokens that the model can read, the first `length` of which are the text, at least 3."""
    tokens = _checked(model, tokens)
    if not is_concrete(length):
        return tokens, length
    if jnp.ndim(length) or not 3 <= int(length) <= tokens.shape[0]:
        raise ImrError(
            f"length must be from 3 to the {tokens.shape[0]} tokens there are; found {length}."
        )
    return tokens, jnp.asarray(length, jnp.int32)


def _checked(model, tokens):
    tokens = as_tokens(tokens, model.tokens.shape[0])
    if tokens.ndim != 1 or not 1 <= tokens.shape[0] <= model.positions.shape[0]:
        raise ImrError(
            f"tokens must have shape (n,), n from 1 to the {model.positions.shape[0]} positions of "
            f"the model; found shape {tokens.shape}. Split longer texts."
        )
    return tokens


def normalise(x: Array, norm: Norm, epsilon: float) -> Array:
    """Layer norm over the last axis."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    return centred / jnp.sqrt(variance + epsilon) * norm.scale[None, :] + norm.bias[None, :]


def input_norms(model: Model) -> Norm:
    """The norm that the heads of each layer read through, (l, d)."""
    if model.norm_first:
        return model.attention_norm
    both = model.outer_norm, model.mlp_norm
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest[:-1]]), *both)


def attend(
    heads: Heads, inputs: Float[Array, "n d"], seen: Bool[Array, "n n"]
) -> tuple[Float[Array, "h n n"], Float[Array, "h n d"]]:
    """Attention and updates of the heads of one layer, which reads `inputs`.

    `seen`: which tokens (columns) a token looks at, at least one of them.
    """
    project = lambda w, b: matmul(inputs[None], w) + b[:, None, :]  # noqa: E731
    queries, keys = project(heads.query, heads.query_bias), project(heads.key, heads.key_bias)
    values = matmul(project(heads.value, heads.value_bias), heads.output)
    logits = matmul(queries, jnp.swapaxes(keys, 1, 2)) * queries.shape[-1] ** -0.5
    attention = softmax(logits, seen[None])
    return attention, matmul(attention, values)


@jax.jit
def run(
    model: Model, tokens: Int[Array, "n"], there: Bool[Array, "n"], scramble: Any = None
) -> Record:
    """`record` of tokens that are known to fit; nobody looks at those that are not there.

    `scramble`: (layer, order); the features of what the MLP of that layer adds are put in that order.
    """
    n = tokens.shape[0]
    norm = lambda x, which: normalise(x, which, model.epsilon)  # noqa: E731
    x = model.tokens[tokens] + model.positions[:n]
    if not model.norm_first:
        x = norm(x, model.outer_norm)
    seen = jnp.broadcast_to(there[None, :], (n, n))
    if model.causal:
        seen = seen & np.tri(n, dtype=bool)

    def layer(x, weights):
        heads, attention_norm, mlp, mlp_norm, number = weights
        inputs = norm(x, attention_norm) if model.norm_first else x
        attention, updates = attend(heads, inputs, seen)
        middle = x + jnp.sum(updates, axis=0) + heads.output_bias[None, :]
        middle = middle if model.norm_first else norm(middle, attention_norm)
        read = norm(middle, mlp_norm) if model.norm_first else middle
        hidden = ACTIVATIONS[model.activation](matmul(read, mlp.into) + mlp.into_bias[None, :])
        added = matmul(hidden, mlp.out) + mlp.out_bias[None, :]
        if scramble is not None:
            added = jnp.where(number == scramble[0], added[:, scramble[1]], added)
        after = middle + added
        after = after if model.norm_first else norm(after, mlp_norm)
        return after, (inputs, attention, updates, x, middle, added, after)

    numbers = jnp.arange(model.heads.query.shape[0])
    layers = (model.heads, model.attention_norm, model.mlp, model.mlp_norm, numbers)
    x, columns = jax.lax.scan(layer, x, layers)
    return Record(*columns, final=norm(x, model.outer_norm) if model.norm_first else x)
