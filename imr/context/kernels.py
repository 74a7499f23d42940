r"""Kernels K between the tokens of a context, as operators: what is large is never held."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from imr._checks import (
    as_choice_of,
    as_floats,
    check_at_least,
    check_axis,
    check_count,
    check_finite,
    check_flags,
    check_positive,
    check_rank,
    check_scalar,
    is_concrete,
)
from imr._module import Module
from imr._numerics import matmul
from imr._shapes import check_features
from imr._typing import Features, Rows, Scalar, ScalarLike
from imr.errors import ImrError

_LARGEST_CHECKED = 2048  # rows of a dense kernel whose eigenvalues are computed to check it


Labelled = Bool[Array | np.ndarray, "n"] | Integer[Array | np.ndarray, "n"]


class Kernel(Module):
    """A symmetric, positive semi-definite matrix K, shape (n, n), by its products."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """n."""

    @abc.abstractmethod
    def mv(self, y: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """$K Y$."""

    @abc.abstractmethod
    def of_tokens(self, rows: Any) -> "Kernel":
        """The kernel between some of the tokens, given by their indices or a slice."""

    def bound(self) -> Scalar:
        """What no eigenvalue exceeds: the largest sum of a row, of entries that are not negative."""
        return jnp.max(self.mv(jnp.ones((self.size, 1))))

    def matrix(self) -> Float[Array, "n n"]:
        """K itself."""
        return self.mv(jnp.eye(self.size))


class DenseKernel(Kernel):
    """A kernel held as a matrix."""

    values: Float[Array, "n n"]

    @property
    def size(self):
        return self.values.shape[0]

    def mv(self, y):
        return matmul(self.values.astype(y.dtype), y)

    def bound(self):
        return jnp.max(jnp.sum(jnp.abs(self.values), axis=1))

    def of_tokens(self, rows):
        return DenseKernel(self.values[rows][:, rows])

    def matrix(self):
        return self.values


class FactorKernel(Kernel):
    """$K = X X^T$ by its factor X, shape (n, r)."""

    factor: Float[Array, "n r"]

    @property
    def size(self):
        return self.factor.shape[0]

    def mv(self, y):
        factor = self.factor.astype(y.dtype)
        return matmul(factor, matmul(factor.T, y))

    def bound(self):
        lengths = jnp.abs(self.factor)
        return jnp.max(jnp.sum(lengths, axis=0)) * jnp.max(jnp.sum(lengths, axis=1))

    def of_tokens(self, rows):
        return FactorKernel(self.factor[rows])


class ExponentialKernel(Kernel):
    r"""$K_{ij} = \exp(\beta x_i \cdot x_j)$, or $\exp(-\beta |x_i - x_j|^2 / 2)$, some rows at a time."""

    x: Features
    beta: Scalar
    distance: bool = eqx.field(static=True)
    block: int = eqx.field(static=True)

    @property
    def size(self):
        return self.x.shape[0]

    def mv(self, y):
        x = self.x.astype(y.dtype)
        squares = jnp.sum(x**2, axis=1)

        @jax.checkpoint
        def row(pair):
            of_row, square = pair
            logits = matmul(x, of_row)
            if self.distance:
                logits = logits - 0.5 * (squares + square)
            return matmul(jnp.exp(self.beta.astype(x.dtype) * logits), y)

        return jax.lax.map(row, (x, squares), batch_size=self.block)

    def of_tokens(self, rows):
        return ExponentialKernel(self.x[rows], self.beta, self.distance, self.block)


def as_kernel(kernel: Any, num_tokens: int | None = None) -> Kernel:
    """A kernel as an operator.

    Args:
      kernel: K, shape (n, n), symmetric and positive semi-definite; a factor X of another shape
        (n, r), $K = X X^T$; or what a function of `imr.context` returns, such as `linear_kernel` of a
        factor that is square.
      num_tokens: n, to be checked.
    Returns: A `Kernel`.
    Raises: ImrError if it is no such matrix, by how much where values are concrete (eigenvalues up
      to 2,048 rows), or has another number of tokens.

    >>> import jax.numpy as jnp
    >>> as_kernel(jnp.eye(2)).mv(jnp.ones((2, 1))).tolist()
    [[1.0], [1.0]]
    """
    if not isinstance(kernel, Kernel):
        kernel = as_floats("kernel", kernel)
        check_rank("kernel", kernel, 2, "(n, n), or (n, r) for a factor")
        check_finite("kernel", kernel)
        square = kernel.shape[0] == kernel.shape[1]
        if square and is_concrete(kernel):
            _check_kernel(np.asarray(kernel))
        kernel = DenseKernel(kernel) if square else FactorKernel(kernel)
    if num_tokens is not None:
        check_count("num_tokens", num_tokens)
        check_axis("kernel", kernel.size, "the context", num_tokens, "tokens")
    return kernel


def _check_kernel(k: np.ndarray) -> None:
    scale, eps = np.abs(k).max(initial=0.0), np.finfo(k.dtype).eps
    apart = np.abs(k - k.T).max(initial=0.0)
    if apart > 100 * eps * scale:
        raise ImrError(
            f"kernel must be symmetric; found entries that differ by {apart:.3g} from their mirror "
            f"images, of at most {scale:.3g}."
        )
    if 0 < len(k) <= _LARGEST_CHECKED:
        least = np.linalg.eigvalsh(k)[0]
        if least < -100 * len(k) * eps * scale:
            raise ImrError(
                f"kernel must be positive semi-definite; found the eigenvalue {least:.3g}, with "
                f"entries of at most {scale:.3g}."
            )


def linear_kernel(x: Features) -> FactorKernel:
    r"""$K = X X^T$, never held.

    Args:
      x: covariates, shape (n, p).
    Returns: A `Kernel`.
    Raises: ImrError if x is no floating (n, p) or not finite.

    >>> import jax.numpy as jnp
    >>> linear_kernel(jnp.array([[1.0], [2.0]])).matrix().tolist()
    [[1.0, 2.0], [2.0, 4.0]]
    """
    x = as_floats("x", x)
    check_features(x)
    check_finite("x", x)
    return FactorKernel(x)


def exponential_kernel(
    x: Features, beta: ScalarLike = 1.0, *, distance: bool = False, block: int = 1024
) -> ExponentialKernel:
    r"""$K_{ij} = \exp(\beta x_i \cdot x_j)$, the kernel of softmax attention before its normalisation.

    Args:
      x: covariates, shape (n, p).
      beta: inverse temperature, positive.
      distance: whether K is $\exp(-\beta |x_i - x_j|^2 / 2)$, which no covariates make overflow.
      block: rows of K that are held at a time.
    Returns: A `Kernel`; `matrix()` holds all of it.
    Raises: ImrError if x is no floating (n, p) or not finite, or beta is not positive.

    >>> import jax.numpy as jnp
    >>> exponential_kernel(jnp.array([[0.0], [1.0]])).matrix().round(2).tolist()
    [[1.0, 1.0], [1.0, 2.72]]
    """
    x = as_floats("x", x)
    check_features(x)
    check_finite("x", x)
    check_scalar("beta", beta)
    check_positive("beta", beta)
    check_flags(distance=distance)
    check_count("block", block)
    return ExponentialKernel(x, jnp.asarray(beta, x.dtype), distance, block)


class ScaledKernel(Kernel):
    """$s_i K_{ij} s_j$, as large as K is."""

    kernel: Kernel
    scale: Rows

    @property
    def size(self):
        return self.kernel.size

    def mv(self, y):
        scale = self.scale.astype(y.dtype)[:, None]
        return scale * self.kernel.mv(scale * y)

    def of_tokens(self, rows):
        return ScaledKernel(self.kernel.of_tokens(rows), self.scale[rows])


class NormalisedKernel(NamedTuple):
    """$K_{ij} / (d_i d_j)$ and its density weights d, shape (n,)."""

    kernel: Kernel
    weights: Rows


def normalised_kernel(kernel: Any, labelled: Labelled | None = None) -> NormalisedKernel:
    r"""What makes softmax attention over examples a gradient flow.

    With $d_i = \sum_{j \, labelled} K_{ij}$, attention with the weights $K_{ij} / d_i$ is the flow of
    the weighted loss $\sum_j d_j CE_j$ in the kernel $K_{ij} / (d_i d_j)$. Of the plain loss it is not:
    that may rise.

    Args:
      kernel: as `as_kernel` takes it, of non-negative entries; one that is never held stays so.
      labelled: boolean, or integers 0 and 1, shape (n,): the examples; by default all tokens.
    Returns: The kernel, and the weights for `context_field(..., weights=)`.
    Raises: ImrError if the kernel is none, no token is labelled, or a token has no weight at all or one
      that overflows.

    >>> import jax.numpy as jnp
    >>> normalised = normalised_kernel(exponential_kernel(jnp.zeros((2, 1))))
    >>> normalised.weights.tolist(), normalised.kernel.matrix().tolist()
    ([2.0, 2.0], [[0.25, 0.25], [0.25, 0.25]])
    """
    kernel = as_kernel(kernel)
    if not isinstance(kernel, ExponentialKernel):
        check_at_least("kernel", kernel.matrix(), 0)
    keys = jnp.ones(kernel.size)
    if labelled is not None:
        keys = jnp.where(as_choice_of("token", "labelled", labelled, kernel.size), keys, 0)
    density = kernel.mv(keys[:, None])[:, 0]
    check_positive("the sum of each row of kernel over labelled tokens", density)
    if is_concrete(density) and not np.isfinite(np.asarray(density)).all():
        raise ImrError(
            f"the sum of each row of kernel must be finite; found inf in {density.dtype}. Lower beta, "
            "compute in float64, or choose the kernel of distance=True, which never overflows."
        )
    return NormalisedKernel(ScaledKernel(kernel, 1 / density), density)


def diffusion_kernel(kernel: Any, share: ScalarLike = 0.9) -> DenseKernel:
    r"""$(I - a S)^{-1}$, $S = D^{-1/2} K D^{-1/2}$: labels go along paths of similar tokens.

    Args:
      kernel: as `as_kernel` takes it, of non-negative entries.
      share: a, at least 0 and below 1, what each token passes on.
    Returns: A `Kernel` over all tokens, unlabelled ones among them.
    Raises: ImrError if the kernel is none or share lies outside of [0, 1).

    Reference: Zhou et al., Learning with local and global consistency, NeurIPS 2003.

    >>> import jax.numpy as jnp
    >>> diffusion_kernel(jnp.eye(2), 0.5).matrix().tolist()
    [[2.0, 0.0], [0.0, 2.0]]
    """
    k = as_kernel(kernel).matrix()
    check_at_least("kernel", k, 0)
    check_scalar("share", share, 0)
    if is_concrete(share) and not np.all(np.asarray(share) < 1):
        raise ImrError(f"share must be below 1; found {share}.")
    # A token without any similarity, to itself either, passes nothing on and keeps its label.
    density = k.sum(axis=1)
    root = jnp.where(density > 0, jnp.where(density > 0, density, 1) ** -0.5, 0)
    inverse = jnp.linalg.inv(
        jnp.eye(len(k), dtype=k.dtype) - share * root[:, None] * k * root[None]
    )
    return DenseKernel(0.5 * (inverse + inverse.T))
