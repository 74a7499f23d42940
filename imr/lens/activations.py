"""The activations of a transformer: one forward pass, and what each head adds in it."""

from collections.abc import Sequence
from dataclasses import replace
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
from imr.lens.edits import Edit, Site, amounts_of, check_edits, edited
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


def run(
    model: TransformerWeights, tokens: Any, length: Any = None, *, edits: Sequence[Edit] = ()
) -> Activations:
    """Runs a transformer on one text, or on several at once, with what its heads do edited.

    Args:
      model, tokens: as in `measure_text`.
      length: numbers of tokens of each text, integers from 1 on of shape (...); those after are padding.
        None means that all tokens are text.
      edits: of updates of heads, `ablate`, `patch`, `project`, `without_part`, `edit`; in each layer
        one after the other. Later layers read what the edited ones write.
    Returns: `Activations`, their updates after the edits; those of several texts have a leading axis
      b. What padding does is in them, too, and has no meaning. `unembed(model, final)` has logits.
    Raises: ImrError as `measure_text`, or if an edit does not fit the model or the tokens.

    >>> import numpy as np
    >>> from imr.lens import ablate, model_from_arrays
    >>> w = np.random.default_rng(0).normal(size=(1, 4, 12, 3))
    >>> weights = {"query": w, "key": w, "value": w, "output": w.mT, "tokens": w[0, :, :, 0]}
    >>> run(model_from_arrays(weights), [1], edits=[ablate([(0, 2)])]).updates[0].any(axis=(1, 2)).tolist()
    [True, True, False, True]
    """
    if length is None:
        tokens = checked_tokens(model, tokens)
        length = jnp.full(tokens.shape[:-1], tokens.shape[-1])
    tokens, length = checked_text(model, tokens, length, least=1)
    present = within(length, tokens.shape[-1])
    l, h = model.attention.query.shape[:2]
    edits = check_edits(edits, l, h, tokens.shape)
    if tokens.ndim == 1:
        return forward(model, tokens, present, None, edits)
    return _forward_all(model, tokens, present, edits)


def record(model: TransformerWeights, tokens: Any, length: Any = None) -> Activations:
    """`run` without edits.

    Args:
      model, tokens, length: as in `run`.
    Returns: `Activations`.
    Raises: ImrError as `run`.
    """
    return run(model, tokens, length)


@jax.jit
def forward(
    model: TransformerWeights,
    tokens: Int[Array, "n"],
    present: Bool[Array, "n"],
    scramble: tuple[Int[Array, ""], Int[Array, "d"]] | None = None,
    edits: tuple[Edit, ...] = (),
) -> Activations:
    """`run` of tokens that are known to fit; no token attends to those that are not present.

    `scramble` is a control: a layer, and the order into which the features that its MLP adds are put.
    """
    attention = model.attention
    l, h = attention.query.shape[:2]
    each = [amounts_of(x, l, h, len(tokens)) for x in edits]
    rows = [at for _, at in each]

    def norm_if(first, x, norm):
        return normalise(x, norm, attention) if attention.norm_first == first else x

    def layer(x, weights):
        heads, attention_norm, mlp, mlp_norm, output_norm, reach, number, amounts = weights
        inputs = norm_if(True, x, attention_norm)
        seen = visible(model, present, reach)
        made = head_updates(heads, inputs, seen)
        site = Site(number, heads, inputs, seen, *made)
        updates, total = written(heads, edited(edits, amounts, rows, site))
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
        model.reach, jnp.arange(l), [amounts for amounts, _ in each],
    )  # fmt: skip
    x, activations = jax.lax.scan(layer, norm_if(False, embedded, model.outer_norm), layers)
    return activations._replace(final=norm_if(True, x, model.outer_norm))


@jax.jit
def _forward_all(model, tokens, present, edits):
    def one(tokens, present, functions):
        pairs = zip(edits, functions, strict=True)
        own = tuple(replace(edit, function=function) for edit, function in pairs)
        return forward(model, tokens, present, None, own)

    axes = 0, 0, [0 if edit.per_text else None for edit in edits]
    return jax.vmap(one, in_axes=axes)(tokens, present, [edit.function for edit in edits])


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
