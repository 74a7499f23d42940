r"""The part of a head's value circuit that lies along $\theta^T$, and as much along something else.

In numpy and float64, from products of d x r matrices, as the measures of weights.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from imr._checks import check_kind
from imr.errors import ImrError
from imr.lens._factors import float64, gram, norm, over
from imr.lens.heads import HeadWeights


class Part(NamedTuple):
    """A part of each value circuit, the matrix `read @ write` of rank s.

    Attributes:
      read: shape (l, h, d, s).
      write: shape (l, h, s, d).
    """

    read: Float64[np.ndarray, "l h d s"]
    write: Float64[np.ndarray, "l h s d"]


def circuit_part(heads: HeadWeights, along: HeadWeights | None = None) -> Part:
    r"""The projection of each $C = W_V W_O$ on its own $\theta^T$, or one as large on another matrix.

    With the cosine c of C with $\theta^T$, and the part R of a matrix B that is orthogonal to C, the
    part is $c |C| (c \, C / |C| + \sqrt{1 - c^2} \, R / |R|)$: the projection of C on a matrix that
    has the cosine c with it. If $B = \theta^T$, that matrix is $\theta^T$. Whatever B is, the part
    is as large, and takes away as much of $|C|$; only its direction differs.

    Args:
      heads: of all layers.
      along: heads whose $\theta^T$ are the B: `rotated(heads, key)`, random directions with the
        spectrum of $\theta$; `mismatched(heads, shift)`, the $\theta$ of other heads; with `query`
        and `key` exchanged, $\theta$ itself. None means `heads`.
    Returns: `Part`, for `without_part`.
    Raises: ImrError if the shapes of `along` do not fit.

    >>> w = np.random.default_rng(0).normal(size=(1, 4, 16, 2)).astype(np.float32)
    >>> zeros = np.zeros((1, 4, 2)), np.zeros((1, 4, 2)), np.zeros((1, 4, 2)), np.zeros((1, 16))
    >>> part = circuit_part(HeadWeights(w, w, w, -w.mT, *zeros))  # which is all of the circuit
    >>> bool(np.allclose(part.read @ part.write, -w @ w.mT, atol=1e-5))
    True

    Reference: imr's own.
    """
    query, key, value, output = float64(heads)
    size = norm(value, output)

    def against(query, key):
        """Cosines of C with W_K W_Q^T, and the norms of the latter."""
        other = norm(key, query)
        inner = np.sum(gram(value, key) * gram(output, query), axis=(-1, -2))
        return over(inner, size * other), other

    cosine, _ = against(query, key)
    if along is not None:
        check_kind("along", along, HeadWeights)
        shapes = query.shape[:3], np.shape(along.query)[:3]
        query, key, _, _ = float64(along)
        if shapes[0] != shapes[1] or key.shape != query.shape:
            raise ImrError(
                f"along must have heads of shape {shapes[0]}, as heads has; found {shapes[1]}."
            )
    tilt, other = against(query, key)
    sine, rest = (np.sqrt(np.maximum(1 - x**2, 0)) for x in (cosine, tilt))
    # The unit vector along R is (B / |B| - tilt C / |C|) / rest.
    amount = over(cosine * sine, rest)
    of_circuit = cosine**2 - amount * tilt
    of_other = over(amount * size, other)
    read = np.concatenate([value, key], axis=-1)
    write = [of_circuit[..., None, None] * output.mT, of_other[..., None, None] * query.mT]
    return Part(read, np.concatenate(write, axis=-2))
