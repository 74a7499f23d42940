"""The stationary distribution of a chain, to as many digits as its rates have."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imr._numerics import widen


def long_run(matrix: np.ndarray, start: np.ndarray) -> np.ndarray:
    r"""The long-run average of a chain from a start distribution, by elimination of states.

    The chain that goes back to the start with a tiny probability $\epsilon$ at each step has one
    stationary distribution, whatever its classes: $\epsilon \mu (1 - (1 - \epsilon) A)^{-1}$, which
    tends to the average. The elimination of Grassmann, Taksar and Heyman neither subtracts nor reads
    the diagonal, so that rates far below the rounding errors of the diagonal keep their digits.

    Reference: Grassmann, Taksar and Heyman, Operations Research 33 (1985), 1107.
    """
    chain, size = _returning(np, matrix, start), len(start)
    for n in range(size, 0, -1):
        chain[:n, n] /= chain[n, :n].sum()
        chain[:n, :n] += chain[:n, n, None] * chain[n, None, :n]
    visits = np.ones(size + 1)
    for n in range(1, size + 1):
        visits[n] = visits[:n] @ chain[:n, n]
    average = visits[1:] / visits[1:].sum()
    # Transient states are left by going back alone.
    return np.where(average > _returns(np.float64) ** 0.5, average, 0)


def traced_long_run(matrix: Float[Array, "s s"], start: Float[Array, "s"]) -> Float[Array, "s"]:
    """`long_run` of traced values."""
    dtype, matrix, start = matrix.dtype, widen(matrix), widen(start)
    chain, size = _returning(jnp, matrix, start), len(start)

    def eliminate(chain, n):
        earlier = jnp.arange(size + 1) < n
        row = jnp.where(earlier, chain[n], 0)
        column = jnp.where(earlier, chain[:, n], 0) / jnp.sum(row)
        chain = chain.at[:, n].set(jnp.where(earlier, column, chain[:, n]))
        return chain + column[:, None] * row[None, :], None

    @jax.checkpoint
    def eliminate_all(chain, states):
        return jax.lax.scan(eliminate, chain, states)[0]

    # Reverse mode keeps a matrix for each block, and for each state of one block at a time.
    for states in np.array_split(np.arange(size, 0, -1), math.isqrt(size)):
        chain = eliminate_all(chain, jnp.asarray(states))
    # Visits of each state for one of state 0: visits = e_0 + visits U, U the part above the diagonal.
    upper = jnp.eye(size + 1, dtype=chain.dtype) - jnp.triu(chain, 1)
    first = jnp.eye(size + 1, 1, dtype=chain.dtype)
    visits = jax.scipy.linalg.solve_triangular(upper, first, trans=1, unit_diagonal=True)[1:, 0]
    return (visits / jnp.sum(visits)).astype(dtype)


def _returning(lib, matrix, start):
    """The chain with a state 0 in front that stands for going back: every state leads there."""
    epsilon = _returns(matrix.dtype)
    back = lib.pad(lib.full((len(start), 1), epsilon, matrix.dtype), ((1, 0), (0, 0)))
    return lib.concatenate([back, lib.concatenate([start[None, :], matrix])], axis=1)


def _returns(dtype):
    """The probability of going back; derivatives divide by its square."""
    return float(jnp.finfo(dtype).tiny) ** 0.4


def null_vectors(matrix: Float[Array, "s s"]) -> tuple[Array, Array]:
    """Left and right vector of a matrix for its eigenvalue 1, of length 1, up to their signs.

    The derivative is that of the solutions of linear equations. That of singular vectors is NaN if
    any two of the other singular values are equal.
    """
    gap = jnp.eye(len(matrix), dtype=matrix.dtype) - matrix
    u, _, vh = jnp.linalg.svd(jax.lax.stop_gradient(gap))
    left, right = u[:, -1], vh[-1]
    square = gap + left[:, None] * right[None, :]
    return jnp.linalg.solve(square.T, right), jnp.linalg.solve(square, left)


def closed_classes(matrix: np.ndarray) -> int:
    """The number of closed classes of a chain, from the states that each state can reach."""
    reached = (matrix > 0) | np.eye(len(matrix), dtype=bool)
    for _ in range(int(np.ceil(np.log2(max(len(matrix), 2))))):
        reached = (reached.astype(np.float32) @ reached.astype(np.float32)) > 0
    closed = ~np.any(reached & ~reached.T, axis=1)
    return len(np.unique(reached[closed], axis=0))
