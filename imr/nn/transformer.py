"""A small decoder-only transformer that records all intermediate activations."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from imr._checks import check_counts, check_rngs
from imr._numerics import dot_general, einsum
from imr._sequences import as_tokens
from imr.errors import ImrError

# The initialisation of GPT-2.
_SMALL = nnx.initializers.normal(0.02)

Edit = Callable[[str, int, Array], Array]


class Record(NamedTuple):
    """All activations of a `Transformer`, layers first; `*b` are the leading axes of the tokens.

    Attributes:
      before, middle, after: residual stream before the attention of each layer, between attention
        and MLP, and after the MLP, shape (layers, ..., l, d).
      attention: weights, rows are queries, shape (layers, ..., heads, l, l).
      values: OV vectors, what a head adds to the residual stream for a position that it attends to
        with weight one, shape (layers, ..., heads, l, d).
      normed: output of the last norm, the input of the unembedding, shape (..., l, d).
      logits: shape (..., l, k).
    """

    before: Float[Array, "layers *b l d"]
    middle: Float[Array, "layers *b l d"]
    after: Float[Array, "layers *b l d"]
    attention: Float[Array, "layers *b heads l l"]
    values: Float[Array, "layers *b heads l d"]
    normed: Float[Array, "*b l d"]
    logits: Float[Array, "*b l k"]


def _linear(inputs, outputs, rngs, use_bias=True):
    return nnx.Linear(
        inputs, outputs, use_bias=use_bias, kernel_init=_SMALL, dot_general=dot_general, rngs=rngs
    )


class _Layer(nnx.Module):
    """Norm, causal attention, add; norm, MLP, add."""

    def __init__(self, features, heads, head_features, mlp_width, rngs):
        def draw(*shape):
            return nnx.Param(_SMALL(rngs.params(), shape, jnp.float32))

        self.query, self.key, self.value = (draw(heads, features, head_features) for _ in range(3))
        self.output = draw(heads, head_features, features)
        self.attention_norm = nnx.LayerNorm(features, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(features, rngs=rngs)
        self.widen = _linear(features, mlp_width, rngs)
        self.narrow = _linear(mlp_width, features, rngs)

    def attend(self, x):
        """Weights (..., h, l, l) and OV vectors (..., h, l, d)."""
        normed = self.attention_norm(x)
        queries, keys, values = (
            einsum("...ld,hdr->...hlr", normed, w[...]) for w in (self.query, self.key, self.value)
        )
        scores = einsum("...hqr,...hkr->...hqk", queries, keys) * queries.shape[-1] ** -0.5
        causal = np.tri(x.shape[-2], dtype=bool)
        weights = jax.nn.softmax(scores, axis=-1, where=causal)
        return weights, einsum("...hlr,hrd->...hld", values, self.output[...])

    def mlp(self, x):
        return self.narrow(jax.nn.relu(self.widen(self.mlp_norm(x))))


class Transformer(nnx.Module):
    """A decoder-only transformer: pre-norm, learned positions, ReLU, no biases in the attention.

    Parameters and activations are float32. Weights and embeddings are drawn from N(0, 0.02^2).

    Args:
      num_tokens: k, size of the vocabulary.
      length: largest number of positions.
      layers, heads: numbers of layers, and of heads in each.
      features: d, width of the residual stream.
      head_features: width of queries, keys and values of one head.
      mlp_width: hidden units of the MLP.
      rngs: random streams of flax nnx.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> model = Transformer(3, 10, rngs=nnx.Rngs(0))
    >>> record = model.record(jnp.array([0, 2, 1]))
    >>> record.logits.shape, record.attention.shape
    ((3, 3), (1, 1, 3, 3))

    Reference: arXiv 2502.01954, section 3.
    """

    def __init__(
        self, num_tokens: int, length: int, *, layers: int = 1, heads: int = 1, features: int = 64,
        head_features: int = 32, mlp_width: int = 256, rngs: nnx.Rngs,
    ):  # fmt: skip
        check_counts(num_tokens=num_tokens, length=length, layers=layers, heads=heads)
        check_counts(features=features, head_features=head_features, mlp_width=mlp_width)
        check_rngs(rngs)
        self.num_tokens, self.length = num_tokens, length
        self.embedding = nnx.Embed(num_tokens, features, embedding_init=_SMALL, rngs=rngs)
        self.position = nnx.Param(_SMALL(rngs.params(), (length, features), jnp.float32))
        options = (features, heads, head_features, mlp_width, rngs)
        self.layers = nnx.List(_Layer(*options) for _ in range(layers))
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.unembedding = _linear(features, num_tokens, rngs, use_bias=False)

    def __call__(self, tokens: Any, edit: Edit | None = None) -> Float[Array, "*b l k"]:
        """Logits of the token after each position; arguments as in `record`."""
        return self.record(tokens, edit).logits

    def record(self, tokens: Any, edit: Edit | None = None) -> Record:
        """Runs the model and returns all activations.

        Args:
          tokens: integers, shape (..., l), l at most `length`. Under a trace a token out of range
            makes its sequence NaN.
          edit: `edit(site, layer, residual)` returns the replacement of the residual stream at site
            "before", "middle" or "after" of a layer, for interventions such as
            `imr.nn.replace_along`.
        """
        tokens = as_tokens(tokens, self.num_tokens)
        if not 1 <= (positions := tokens.shape[-1]) <= self.length:
            raise ImrError(f"tokens must have 1 to {self.length} positions; found {positions}.")
        embedded = self.embedding(jnp.clip(tokens, 0, self.num_tokens - 1))
        # Under a trace tokens out of range pass the checks.
        wrong = (tokens < 0) | (tokens >= self.num_tokens)
        embedded = jnp.where(wrong[..., None], jnp.nan, embedded)
        x = embedded + jnp.broadcast_to(self.position[...][:positions], embedded.shape)
        columns = []
        for number, layer in enumerate(self.layers):
            before = _edited(edit, "before", number, x)
            attention, values = layer.attend(before)
            written = einsum("...hqk,...hkd->...qd", attention, values)
            middle = _edited(edit, "middle", number, before + written)
            x = _edited(edit, "after", number, middle + layer.mlp(middle))
            columns.append((before, middle, x, attention, values))
        normed = self.norm(x)
        stacked = (jnp.stack(column) for column in zip(*columns, strict=True))
        return Record(*stacked, normed=normed, logits=self.unembedding(normed))


def _edited(edit, site, layer, residual):
    """What the edit, if there is one, makes of the residual stream; it must keep the shape."""
    edited = edit(site, layer, residual) if edit else residual
    if (shape := getattr(edited, "shape", None)) != residual.shape:
        raise ImrError(
            f"edit must return the residual's shape, {residual.shape}; found {shape} at site "
            f"{site!r} of layer {layer}. Return the residual itself to leave it unchanged."
        )
    return edited
