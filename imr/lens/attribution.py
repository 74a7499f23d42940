r"""Direct logit attribution: what each part of a transformer adds to logits of tokens by itself.

The stream is a sum, and norms are linear once their lengths are given: every logit is the sum of
what heads, MLPs and embeddings add to it along the stream, not through later parts.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import check_kind
from imr._sequences import as_tokens
from imr.errors import ImrError
from imr.lens.activations import Activations, unembedding_of
from imr.lens.model import TransformerWeights


class LogitParts(NamedTuple):
    """Parts of the logit of one token at each of n positions; together they are that logit.

    Attributes:
      heads: of each head's update, shape (l, h, n).
      mlp: of what each MLP adds, shape (l, n).
      embedding: of the stream at the beginning, shape (n,).
      bias: of biases of heads' outputs and of norms, shape (n,).
    """

    heads: Float[Array, "l h n"]
    mlp: Float[Array, "l n"]
    embedding: Float[Array, "n"]
    bias: Float[Array, "n"]


def logit_parts(
    model: TransformerWeights, activations: Activations, tokens: Any, incorrect: Any = None
) -> LogitParts:
    """What each head, each MLP and the embedding add to the logit of a token, directly.

    Args:
      model: the transformer.
      activations: of one text, as `run` gives them; norms have the lengths that they had there.
      tokens: whose logit, one for each position, such as the next ones, shape (n,).
      incorrect: tokens whose logits are subtracted, shape (n,), or None.
    Returns: `LogitParts`, of logits before soft capping.
    Raises: ImrError if activations are of several texts, or of another model, or tokens do not fit.

    >>> import numpy as np
    >>> from imr.lens import model_from_arrays, run, unembed
    >>> w = np.random.default_rng(0).normal(size=(1, 4, 12, 3))
    >>> weights = {"query": w, "key": w, "value": w, "output": w.mT, "tokens": w[0, :, :, 0]}
    >>> model = model_from_arrays(weights)
    >>> activations = run(model, [0])
    >>> parts = logit_parts(model, activations, [2])
    >>> total = parts.heads.sum() + parts.mlp.sum() + parts.embedding[0] + parts.bias[0]
    >>> bool(abs(total - unembed(model, activations.final)[0, 2]) < 1e-4)
    True

    Reference: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
    """
    check_kind("model", model, TransformerWeights)
    check_kind("activations", activations, Activations)
    shape = model.attention.query.shape[:2] + activations.before.shape[-2:-1]
    if activations.before.ndim != 3 or activations.updates.shape[:3] != shape:
        raise ImrError(
            f"activations must be of one text and of model; found updates of shape "
            f"{activations.updates.shape}."
        )
    directions = unembedding_of(model).T[_checked("tokens", tokens, model, shape[2])]
    if incorrect is not None:
        others = _checked("incorrect", incorrect, model, shape[2])
        directions = directions - unembedding_of(model).T[others]
    return _parts(model, activations, directions)


@jax.jit
def _parts(model, activations, directions):
    heads, first = model.attention, model.attention.norm_first
    x = activations

    def behind(bias, directions, stream, norm):
        """Through a norm of the stream, backwards: what its bias adds, and the directions before it."""
        bias = bias + jnp.sum(norm.bias[None, :] * directions, axis=-1)
        centred = stream if heads.rms else stream - jnp.mean(stream, axis=-1, keepdims=True)
        square = jnp.mean(centred**2, axis=-1, keepdims=True)
        before = directions * norm.scale[None, :] / jnp.sqrt(square + heads.epsilon)
        mean = 0 if heads.rms else jnp.mean(before, axis=-1, keepdims=True)
        return bias, before - mean

    def layer(carry, part):
        bias, directions = carry
        before, middle, updates, mlp, attention_norm, mlp_norm, output_bias = part
        if not first:
            bias, directions = behind(bias, directions, middle + mlp, mlp_norm)
        of_mlp = jnp.sum(mlp * directions, axis=-1)
        added = jnp.sum(updates, axis=0)
        if first:
            constant = middle - before - added
        else:
            constant = jnp.zeros_like(added)
            constant = constant if output_bias is None else constant + output_bias[None, :]
            stream = before + added + constant
            bias, directions = behind(bias, directions, stream, attention_norm)
        bias = bias + jnp.sum(constant * directions, axis=-1)
        of_heads = jnp.sum(updates * directions[None], axis=-1)
        return (bias, directions), (of_heads, of_mlp)

    bias = jnp.zeros(len(directions), directions.dtype)
    if first:
        bias, directions = behind(bias, directions, x.after[-1], model.outer_norm)
    layers = (
        x.before, x.middle, x.updates, x.mlp, model.attention_norm, model.mlp_norm,
        heads.output_bias,
    )  # fmt: skip
    (bias, directions), (of_heads, of_mlp) = jax.lax.scan(
        layer, (bias, directions), layers, reverse=True
    )
    embedding = jnp.sum(x.before[0] * directions, axis=-1)
    return LogitParts(of_heads, of_mlp, embedding, bias)


def _checked(name, tokens, model, n):
    """Tokens of each of n positions."""
    try:
        tokens = as_tokens(tokens, model.tokens.shape[0])
    except ImrError as error:
        raise ImrError(f"{name}: {error}") from None
    if tokens.shape != (n,):
        raise ImrError(
            f"{name} must have shape ({n},), one for each position; found {tokens.shape}."
        )
    return tokens
