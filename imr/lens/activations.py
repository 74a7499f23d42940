"""The activations of a transformer: one forward pass, and what each head adds in it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from imr._checks import as_floats, check_kind
from imr._numerics import matmul
from imr._sequences import within
from imr._typing import AnyArray
from imr.errors import ImrError
from imr.lens._parts import checked_text, checked_tokens, normalise, visible
from imr.lens.heads import Norm
from imr.lens.logits import head_updates, written
from imr.lens.model import ACTIVATIONS, TransformerWeights


class Activations(NamedTuple):
    """All of a forward pass over n tokens, with a leading axis of layers.

    Attributes:
      inputs: what the heads read, after the norm if that comes first, shape (l, n, d).
      attention: attention weights, shape (l, h, n, n).
      updates: what each head adds, behind `output_norm` but without `output_bias`, shape
        (l, h, n, d).
      before, middle, after: the residual stream at the beginning of a layer, between attention and
        MLP, and at the end, shape (l, n, d).
      mlp: what the MLP adds, shape (l, n, d).
      final: the stream after the last norm, shape (n, d).
    """

    inputs: Float[Array, "*b l n d"]
    attention: Float[Array, "*b l h n n"]
    updates: Float[Array, "*b l h n d"]
    before: Float[Array, "*b l n d"]
    middle: Float[Array, "*b l n d"]
    mlp: Float[Array, "*b l n d"]
    after: Float[Array, "*b l n d"]
    final: Float[Array, "*b n d"] | None


def record(model: TransformerWeights, tokens: Any, length: Any = None) -> Activations:
    """Runs a transformer on one text, or on several at once.

    Args:
      model, tokens: as in `measure_text`.
      length: numbers of tokens of each text, integers from 1 on of shape (...); those after are padding.
        None means that all tokens are text.
    Returns: `Activations`; those of several texts have a leading axis b. What padding does is in
      them, too, and has no meaning.
    Raises: ImrError as `measure_text`.
    """
    if length is None:
        tokens = checked_tokens(model, tokens)
        length = jnp.full(tokens.shape[:-1], tokens.shape[-1])
    tokens, length = checked_text(model, tokens, length, least=1)
    present = within(length, tokens.shape[-1])
    return run(model, tokens, present) if tokens.ndim == 1 else _run_all(model, tokens, present)


@jax.jit
def run(
    model: TransformerWeights,
    tokens: Int[Array, "n"],
    present: Bool[Array, "n"],
    scramble: tuple[Int[Array, ""], Int[Array, "d"]] | None = None,
) -> Activations:
    """`record` of tokens that are known to fit; no token attends to those that are not present.

    `scramble` is a control: a layer, and the order into which the features that its MLP adds are put.
    """
    attention = model.attention

    def norm_if(first, x, norm):
        return normalise(x, norm, attention) if attention.norm_first == first else x

    def layer(x, weights):
        heads, attention_norm, mlp, mlp_norm, output_norm, reach, number = weights
        inputs = norm_if(True, x, attention_norm)
        made = head_updates(heads, inputs, visible(model, present, reach))
        updates, total = written(heads, made.updates)
        middle = norm_if(False, x + total, attention_norm)
        read = norm_if(True, middle, mlp_norm)
        hidden = matmul(read, mlp.into) + mlp.into_bias[None, :]
        activate = ACTIVATIONS[model.activation]
        hidden = activate(hidden) if mlp.gate is None else activate(matmul(read, mlp.gate)) * hidden
        added = matmul(hidden, mlp.out) + mlp.out_bias[None, :]
        if output_norm is not None:
            added = normalise(added, Norm(output_norm, jnp.zeros_like(output_norm)), attention)
        if scramble is not None:
            added = jnp.where(number == scramble[0], added[:, scramble[1]], added)
        after = norm_if(False, middle + added, mlp_norm)
        return after, Activations(inputs, made.attention, updates, x, middle, added, after, None)

    embedded = model.tokens[tokens] * model.embedding_scale
    if model.positions is not None:
        embedded = embedded + model.positions[: tokens.shape[0]]
    layers = (
        attention, model.attention_norm, model.mlp, model.mlp_norm, model.mlp_output_norm,
        model.reach, jnp.arange(len(attention.query)),
    )  # fmt: skip
    x, activations = jax.lax.scan(layer, norm_if(False, embedded, model.outer_norm), layers)
    return activations._replace(final=norm_if(True, x, model.outer_norm))


_run_all = jax.jit(jax.vmap(run, in_axes=(None, 0, 0)))


def unembed(model: TransformerWeights, final: Float[AnyArray, "*n d"]) -> Float[Array, "*n k"]:
    """The logits of tokens, after soft capping, that a model reads off a stream.

    Args:
      model: the transformer.
      final: streams after the last norm, such as `record(model, tokens).final`, shape (..., d).
    Returns: Logits, shape (..., k).
    Raises: ImrError if an argument does not fit.
    """
    check_kind("model", model, TransformerWeights)
    final, weight = as_floats("final", final), unembedding_of(model)
    if not final.ndim or final.shape[-1] != len(weight):
        raise ImrError(f"final must have shape (..., {len(weight)}); found {final.shape}.")
    logits = matmul(final, weight)
    return logits if model.cap is None else model.cap * jnp.tanh(logits / model.cap)


def unembedding_of(model: TransformerWeights) -> Float[Array, "d k"]:
    """The weights of the logits of tokens."""
    return model.tokens.T if model.unembedding is None else model.unembedding
