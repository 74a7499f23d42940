"""The spectrum of the chain, and the number of attention heads that it predicts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex

from imr._checks import check_scalar, is_concrete
from imr.constrained.vectors import token_vectors
from imr.errors import ImrError
from imr.processes.process import Process, check_process, rounding


class Spectrum(NamedTuple):
    r"""Eigendecomposition of the chain, $A = \sum_k \lambda_k R_k L_k$, sorted by falling $|\lambda|$.

    Attributes:
      eigenvalues: shape (s,), complex.
      right, left: eigenvectors as columns R and as rows L, shape (s, s), $L R = 1$.
      weights: $v_x R_k$, shape (k, s).
      active: whether some token has a weight on the eigenvalue, shape (s,).
    """

    eigenvalues: Complex[Array, "s"]
    right: Complex[Array, "s s"]
    left: Complex[Array, "s s"]
    weights: Complex[Array, "k s"]
    active: Bool[Array, "s"]


def spectrum(process: Process) -> Spectrum:
    """Eigenvalues and eigenvectors of the chain, and the weights that tokens have on them.

    Args:
      process: the process.
    Raises: ImrError if the process is traced, or its chain has no basis of eigenvectors.

    >>> from imr.processes import mess3
    >>> modes = spectrum(mess3(0.15, 0.6))
    >>> modes.eigenvalues.real.round(3).tolist(), modes.active.tolist()
    ([1.0, 0.55, 0.55], [False, True, True])
    """
    check_process(process)
    if not is_concrete(process):
        raise ImrError("spectrum needs a concrete process; call it outside of jax.jit.")
    matrix = np.asarray(process.transitions, np.float64).sum(0)
    values, right = np.linalg.eig(matrix)
    order = np.argsort(-np.abs(values).round(12), kind="stable")
    values, right = values[order].astype(complex), right[:, order].astype(complex)
    if (condition := np.linalg.cond(right)) > 1e8:
        raise ImrError(
            "the chain has no basis of eigenvectors (their matrix has condition number "
            f"{condition:.1e}); use method='recursive' or 'kernel'."
        )
    float64 = process.transitions.dtype == jnp.float64
    precision = 1e-9 if float64 else rounding(process.transitions)
    dtype = jnp.result_type(process.transitions, jnp.complex64)
    with jax.ensure_compile_time_eval():  # other values may be traced
        weights = np.asarray(token_vectors(process), np.float64) @ right
        active = jnp.asarray(np.abs(weights).max(0) > precision)
        arrays = (jnp.asarray(x, dtype) for x in (values, right, np.linalg.inv(right), weights))
        return Spectrum(*arrays, active=active)


def head_count(process: Process, *, tolerance: float = 1e-5) -> int:
    r"""The number of attention heads, over lags of at least one, that the active spectrum predicts.

    Attention weights are positive and a head has one value matrix. So an eigenvalue $\lambda > 0$
    needs one head; $\lambda < 0$ needs two, for even and odd lags, with values of opposite sign; a
    pair $|\lambda| e^{\pm i 2 \pi p / q}$ needs q for q <= 3, one for each residue of the lag modulo
    q, and four for other angles, the positive and negative parts of cosine and sine. Distinct
    eigenvalues need distinct patterns, so their numbers add; zero needs none. This is an ansatz.

    Args:
      process: the process, not traced.
      tolerance: within which eigenvalues are equal.

    >>> from imr.processes import mess3
    >>> head_count(mess3(0.15, 0.6)), head_count(mess3(0.5, 0.6))
    (1, 2)

    Reference: arXiv 2502.01954, section 4.
    """
    check_scalar("tolerance", tolerance, 0)
    modes = spectrum(process)
    distinct = []
    for value in np.asarray(modes.eigenvalues)[np.asarray(modes.active)]:
        value = complex(value.real, abs(value.imag))  # a conjugate pair counts once
        if abs(value) > tolerance and all(abs(value - other) > tolerance for other in distinct):
            distinct.append(value)
    orders = ((q for q in (1, 2, 3) if abs((v / abs(v)) ** q - 1) < tolerance) for v in distinct)
    return sum(next(order, 4) for order in orders)
