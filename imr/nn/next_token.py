"""The loss of next-token prediction on a process, and the exact distance from the optimum."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import check_callable, check_counts, check_flags, check_key, is_concrete
from imr._sequences import as_lengths, within
from imr._typing import Scalar
from imr.beliefs import all_words, bayes_filter, next_token_probabilities
from imr.errors import ImrError
from imr.processes import Process, sample
from imr.processes.process import check_process


def next_token_loss(
    model: Callable[[Array], Array], process: Process, key: Any, *, batch_size: int = 128,
    length: int = 10, soft: bool = False, lengths: Any = None,
) -> Scalar:  # fmt: skip
    r"""Mean cross-entropy, in nats, of a model's predictions along freshly sampled sequences.

    Hard: $-\frac{1}{Bl}\sum \log q(x_{d+1} | x_1 \dots x_d)$. Soft: the sampled next token is replaced
    by its distribution given the tokens before it, the exact Bayes prediction p:
    $-\frac{1}{Bl}\sum_{d,x} p(x) \log q(x)$. The expected gradient is the same, with far less noise.

    Args:
      model: from tokens (b, l) to logits (b, l, k).
      process: the process to learn.
      key: random key of this batch.
      batch_size, length: B sequences of l positions; l + 1 tokens are drawn.
      soft: whether the targets are Bayes predictions.
      lengths: numbers of positions of sequences that end before, shape (b,), not all zero. Positions
        beyond them weigh nothing: the mean is over the others. The model must be causal, as it reads
        token 0 there.
    Raises: ImrError if an argument does not fit.

    >>> from imr.processes import mess3
    >>> def uniform(tokens):
    ...     return jnp.zeros((*tokens.shape, 3))
    >>> round(next_token_loss(uniform, mess3(0.15, 0.6), jax.random.key(0)).item(), 4)
    1.0986
    """
    check_counts(batch_size=batch_size, length=length)
    check_process(process)
    check_key(key)
    check_flags(soft=soft)
    check_callable("model", model)
    tokens = sample(process, jax.random.split(key, batch_size), length + 1).tokens
    weights = None
    if lengths is not None:
        lengths = as_lengths(lengths, (batch_size,), length)
        if is_concrete(lengths) and not lengths.any():
            raise ImrError("lengths must leave a position to take the mean over; found zeros only.")
        weights = within(lengths, length)
        tokens = jnp.where(within(lengths + 1, length + 1), tokens, 0)
    log_q = jax.nn.log_softmax(_logits(model, process, tokens[:, :-1]), axis=-1)
    if soft:
        beliefs = bayes_filter(process, tokens[:, :-1], lengths).beliefs
        p = jax.lax.stop_gradient(next_token_probabilities(process, beliefs))
        losses = -jnp.sum(p.astype(log_q.dtype) * log_q, axis=-1)
    else:
        losses = -jnp.take_along_axis(log_q, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.mean(losses, where=weights)


def exact_kl(
    model: Callable[[Array], Array], process: Process, length: int, *, block: int = 6561
) -> Float[Array, "l"]:
    r"""Divergence of a model's predictions from the optimum at each position, over all prefixes.

    $KL_d = \sum_{x_1 \dots x_d} P(x_1 \dots x_d) \,
    KL(\text{Bayes}(\cdot | x_1 \dots x_d) \| q(\cdot | x_1 \dots x_d))$, in nats. A sampled loss is too
    noisy to measure it: the whole signal of `mess3(0.15, 0.6)` is 0.0094 nats. For a model in float32
    the result is accurate to about 3e-8.

    Args:
      model: causal, from tokens (b, l) to logits (b, l, k).
      process: hidden Markov.
      length: l; all k^l words, at most 2^24, are run.
      block: words at a time.
    Returns: Divergences for d = 1 to l, shape (l,).
    Raises: ImrError if the process is generalised.

    >>> from imr.processes import coin
    >>> exact_kl(lambda tokens: jnp.zeros((*tokens.shape, 2)), coin(0.5), 3).tolist()
    [0.0, 0.0, 0.0]
    """
    check_process(process)
    check_counts(length=length, block=block)
    check_callable("model", model)
    if process.generalised:
        # Its tiny negative probabilities have no logarithm.
        raise ImrError("process must be hidden Markov; found a generalised one.")
    words = all_words(process.num_tokens, length)

    def terms(word):
        filtered = bayes_filter(process, word)
        alive = jnp.isfinite(filtered.log_probability)[:, None]
        beliefs = jnp.where(alive, filtered.beliefs, process.initial[None])
        p = next_token_probabilities(process, beliefs)
        log_q = jax.nn.log_softmax(_logits(model, process, word[None])[0].astype(p.dtype), axis=-1)
        log_p = jnp.log(jnp.where(p > 0, p, 1))
        kl = jnp.sum(jnp.where(p > 0, p * (log_p - log_q), 0), axis=-1)
        kl = jnp.where(alive[:, 0], kl, 0)  # impossible words have no weight
        # The probability of a prefix is the sum over its continuations.
        return jnp.exp(filtered.log_probability[-1]), kl

    weights, kl = jax.lax.map(terms, words, batch_size=min(block, len(words)))
    return jnp.sum(weights[:, None] * kl, axis=0)


def _logits(model, process, tokens):
    logits = model(tokens)
    shape = getattr(logits, "shape", None)
    if shape != (*tokens.shape, process.num_tokens):
        raise ImrError(
            f"model must give logits of shape {(*tokens.shape, process.num_tokens)}, one for each "
            f"token of the process; found {shape}. A begin or end token counts as a token."
        )
    return logits
