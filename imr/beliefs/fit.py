"""Fitting a process to tokens by likelihood."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imr._checks import check_choice, check_count, check_key, check_scalar, is_concrete
from imr._sequences import as_sequences, within
from imr.beliefs.ascent import METHODS, log_likelihoods
from imr.beliefs.likelihood import pack
from imr.beliefs.tables import Fixed, matrices_of, random_tables, start_tables
from imr.beliefs.ties import Tied
from imr.errors import ImrError
from imr.processes.process import Process, check_process

# Steps without a change of the likelihood after which none is expected.
_PATIENCE = 30
_LARGEST = 2**28  # entries of tables, 1 GiB, that a fit makes unasked

Emission = Literal["general", "state"]


class Fit(NamedTuple):
    """A fitted process, and how its fit went.

    Attributes:
      process: the best of the restarts.
      log_likelihood: its mean log-likelihood per token in nats, before each step and after the last.
      gradient: largest entry of the gradient of that mean by the logits of the free entries; tied ones
        have one.
      num_steps: steps that it took.
      converged: whether the gradient is within the tolerance.
      scores: for each restart the mean log-likelihood that the best was chosen by.
    """

    process: Process
    log_likelihood: Float[Array, "steps"]
    gradient: float
    num_steps: int
    converged: bool
    scores: Float[Array, "restarts"]


def fit_process(
    tokens: Any, num_states: int | None = None, *, key: Any = None, start: Process | None = None,
    num_tokens: int | None = None, emission: Emission = "general",
    method: Literal["em", "gradient"] = "em", restarts: int = 1, fixed: Fixed | None = None,
    tied: Tied | None = None, lengths: Any = None, held_out: Any = None,
    held_out_lengths: Any = None, tol: float = 1e-5, max_steps: int = 1000,
) -> Fit:  # fmt: skip
    r"""A hidden Markov process fitted to tokens, by the largest likelihood found.

    Maximises $\sum \log \mu T_{x_1} \cdots T_{x_l} 1$, a sum over sequences, in $\mu$ and in

    - `emission="general"`: any $T_x$; tokens are emitted by moves.
    - `emission="state"`: $T_x = \mathrm{diag}(B_x) A$, $A = \sum_x T_x$, $B_{ix} = \sum_j T_{x,i,j}$:
      a state emits, then moves, and $\mu$ is the state of the first token, as in textbooks and
      hmmlearn. $A \, \mathrm{diag}(B_x)$ started from $\nu$, where the state reached emits, is
      the same process for $\mu = \nu A$.

    The move after the last token is never seen: with "state" it counts for nothing. Entries that are
    zero in the start stay zero. The fit is a local optimum: take several restarts.

    Args:
      tokens: integers, shape (l,) for one sequence, or (..., l).
      num_states: s; None is that of `start`.
      key: random key of the starts, whose rows are uniform in the simplex.
      start: where the first restart starts; the others have its zeros and its fixed entries.
      num_tokens: k; None is that of `start`, or the largest token and one.
      emission: "general" or "state".
      method: "em" is Baum-Welch. "gradient" is L-BFGS in the logits of the entries: a step is one
        evaluation too, and where the likelihood is flat EM needs ten times as many, or more.
      restarts: how many, vectorised in one program.
      fixed: entries of `start` that stay; the others of a row share what these leave.
      tied: groups of entries that share one value, of a start and of all restarts, see `Tied`.
      lengths: of the sequences, integers, shape (...); tokens beyond them are ignored.
      held_out, held_out_lengths: further sequences, as `tokens` and `lengths`: the restart of the
        largest likelihood there is chosen. Without them it is that of the tokens.
      tol: a restart has converged if no entry of the gradient by the logits (the expected counts, less
        what the table predicts of them, per token) exceeds it.
      max_steps: where to give up.
    Returns: A `Fit`, in float32 if the start is in half precision.
    Raises: ImrError if an argument does not fit, there are no tokens, tokens are out of range, the
      start gives them probability zero, or every restart the held-out ones, or a step of EM is not
      closed under the ties.

    >>> from imr.processes import golden_mean
    >>> fit = fit_process([0, 1, 0, 0, 0, 1, 0], start=golden_mean(0.9), tol=1e-4)
    >>> fit.process.transitions.round(2).tolist()
    [[[0.5, 0.0], [1.0, 0.0]], [[0.0, 0.5], [0.0, 0.0]]]

    Reference: Rabiner, Proceedings of the IEEE 77, 1989, section III.C.
    """
    check_choice("emission", emission, ("general", "state"))
    check_choice("method", method, tuple(METHODS))
    check_count("restarts", restarts)
    check_count("max_steps", max_steps, 0)
    check_scalar("tol", tol, 0)
    if not is_concrete(tokens, lengths, held_out, held_out_lengths, start, key):
        raise ImrError(
            "tokens, start and key must be concrete; found a traced value. Fit outside of jax.jit."
        )
    if held_out is None and held_out_lengths is not None:
        raise ImrError("held_out_lengths needs held_out; found None.")
    s, k = _sizes(start, num_states, num_tokens)
    sequences = _sequences(tokens, lengths, k)
    if k is None:
        k = 1 + int(sequences.max())
        if k * s * s * restarts > _LARGEST:
            raise ImrError(
                f"tokens must be numbers from 0 on without large gaps; found {k - 1} as the largest, for "
                f"which {restarts} x {k} matrices of {s} states would be fitted. Number the tokens that "
                "there are (np.unique with return_inverse), or give num_tokens if that is what you want."
            )
    tables, entries = start_tables(start, s, k, emission, fixed, tied)
    if start is None or restarts > 1:
        if key is None:
            raise ImrError(
                "key must be given for random starts: key=jax.random.key(0); found None."
            )
        check_key(key)
        tables = random_tables(key, tables, entries, restarts, start is not None)
    else:
        tables = tuple(table[None] for table in tables)
    packing = partial(pack, num_states=s, num_tokens=k, ends=emission == "state")
    others = None
    if held_out is not None:
        try:
            others = _sequences(held_out, held_out_lengths, k)
        except ImrError as error:
            raise ImrError(f"held_out: {error}") from None

    ascended = _ascend(METHODS[method], tables, entries, packing(sequences), tol, max_steps)
    scores = ascended.values[-1]
    if others is not None:
        scores = log_likelihoods(ascended.tables, packing(others))
    name = "start must give the tokens" if others is None else "a restart must give held_out"
    best = _best(np.asarray(scores), name)
    initial, matrices = matrices_of(tuple(table[best] for table in ascended.tables))
    tokens, states = (None, None) if start is None else (start.tokens, start.states)
    process = Process(matrices[:k], initial, tokens=tokens, states=states)
    values, gradients = ascended.values[:, best], ascended.gradients[:, best]
    converged = gradients[-1] <= tol
    # A restart that has converged waits for the others.
    num_steps = int(np.argmax(gradients <= tol)) if converged else len(values) - 1
    return Fit(
        process, jnp.asarray(values[: num_steps + 1]), float(gradients[-1]), num_steps,
        bool(converged), jnp.asarray(scores),
    )  # fmt: skip


def _best(scores, name):
    """The restart of the highest score among those that are finite."""
    finite = np.isfinite(scores)
    if not finite.any():
        raise ImrError(
            f"{name} a positive probability; found zero, log-likelihoods {np.asarray(scores)}. Tokens "
            "that are impossible at the start, or that the tokens of the fit never show, remain so: "
            "leave them out, or fit to them too."
        )
    return int(np.argmax(np.where(finite, scores, -np.inf)))


class _Ascended(NamedTuple):
    """Tables of all restarts; log-likelihoods and gradients of each step, shape (steps, restarts)."""

    tables: Any
    values: np.ndarray
    gradients: np.ndarray


def _ascend(method, tables, entries, packed, tol, max_steps):
    """Steps until all restarts have converged, or can go no further, or there are too many."""
    carry, done = method.begin(tables, entries), np.full(len(tables[0]), False)
    values, gradients = [], []
    while not done.all() and len(values) <= max_steps:
        carry, *new = method.step(carry, done, tables, entries, packed)
        for each, before in zip(new, (values, gradients), strict=True):
            before.append(np.where(done, before[-1], each) if before else np.asarray(each))
        if len(values) == 1:
            _best(values[0], "start must give the tokens")
        done = (gradients[-1] <= tol) | ~np.isfinite(values[-1])
        if len(values) > _PATIENCE:  # at the end of the digits
            done |= values[-1] == values[-1 - _PATIENCE]
    return _Ascended(method.tables(carry, tables, entries), np.stack(values), np.stack(gradients))


def _sizes(start, num_states, num_tokens) -> tuple[Any, Any]:
    """The numbers of states and tokens, as given or of the start; None if the tokens decide."""
    if start is None:
        if num_states is None:
            raise ImrError("num_states or start must be given; found None for both.")
        check_count("num_states", num_states)
        if num_tokens is not None:
            check_count("num_tokens", num_tokens)
        return num_states, num_tokens
    check_process(start)
    if start.generalised:
        raise ImrError("start must be hidden Markov; found a generalised process.")
    for name, value in (("num_states", num_states), ("num_tokens", num_tokens)):
        if value is not None:
            check_count(name, value)
        if value not in (None, getattr(start, name)):
            raise ImrError(
                f"{name} must be that of start, {getattr(start, name)}, or None; found {value}."
            )
    return start.num_states, start.num_tokens


def _sequences(tokens, lengths, num_tokens):
    """Checked tokens in one batch, shape (b, l), with -1 after the end of each sequence."""
    tokens, lengths = as_sequences(tokens, lengths, 2**31 - 1 if num_tokens is None else num_tokens)
    inside = True if lengths is None else within(lengths, tokens.shape[-1])
    tokens = np.where(inside, np.asarray(tokens, np.int64), -1)
    if not np.any(tokens >= 0):
        raise ImrError("tokens must hold at least one token; found none.")
    return tokens.reshape(-1, tokens.shape[-1])
