"""The contributions of single tokens to constrained beliefs."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imr._checks import is_concrete
from imr._numerics import matmul
from imr.errors import ImrError
from imr.processes.process import Process, bare, check_process


def token_vectors(process: Process) -> Float[Array, "k s"]:
    r"""The contribution of each token: $v_x = \pi T_x / (\pi T_x w) - \pi$.

    $\pi + v_x$ is the posterior given only x.

    Args:
      process: the process.
    Raises: ImrError if a token has probability zero (under a trace its row is NaN).

    >>> from imr.processes import mess3
    >>> token_vectors(mess3(0.15, 0.6))[0].round(4).tolist()
    [0.2667, -0.1333, -0.1333]
    """
    check_process(process)
    vectors, p = _token_vectors(bare(process))
    if is_concrete(p) and np.any(bad := ~(np.asarray(p) > 1e-12)):
        names = [name for name, zero in zip(process.tokens, bad, strict=True) if zero]
        raise ImrError(
            f"every token of the process must have positive probability; {names} have none. "
            "Remove their transitions; instead of a process with a begin token pass the one without it."
        )
    return vectors


def row_normalised_token_vectors(process: Process) -> Float[Array, "k s"]:
    r"""A variant for comparison: $\pi \tilde T_x - \pi$, rows of $T_x$ normalised to sum to one.

    It is the contribution of x only if x is equally likely from every state; for `mess3` it is
    parallel to `token_vectors` and has another length.

    Args:
      process: hidden Markov.
    Raises: ImrError if a token cannot be emitted from some state (under a trace its vector is NaN).

    >>> from imr.processes import mess3
    >>> [round(v, 4) for v in row_normalised_token_vectors(mess3(0.15, 0.6))[0].tolist()]
    [0.1891, -0.0946, -0.0946]
    """
    check_process(process)
    if process.generalised:
        raise ImrError("process must be hidden Markov; rows of others are no probabilities.")
    never = ~np.any(np.asarray(process.transitions), -1) if is_concrete(process) else np.False_
    if never.any():
        x, i = np.argwhere(never)[0]
        raise ImrError(
            f"rows cannot be normalised: token {process.tokens[x]!r} is never emitted from state "
            f"{process.states[i]!r}. Use token_vectors."
        )
    return _row_normalised(bare(process))


def pick(vectors, tokens):
    """The vector of each token; NaN for tokens out of range, unchecked under a trace."""
    return vectors.at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


@jax.jit
def _token_vectors(process):
    joint = matmul(process.stationary, process.transitions)
    p = matmul(joint, process.right)
    return joint / jnp.where(p > 0, p, jnp.nan)[:, None] - process.stationary[None, :], p


@jax.jit
def _row_normalised(process):
    rows = jnp.sum(process.transitions, -1, keepdims=True)
    normalised = process.transitions / jnp.where(rows > 0, rows, jnp.nan)
    return matmul(process.stationary, normalised) - process.stationary[None, :]


def lag_table(length):
    """The lags d - s of all pairs of positions (d, s)."""
    return np.arange(length)[:, None] - np.arange(length)[None, :]
