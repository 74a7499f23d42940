r"""The protocol of a multinomial model, and the closed forms that all models of rows share.

A model maps features z (n, f) to logits (n, m). Its cross-entropy against targets C is
$\sum_i LSE_i(N) - \langle C_i, N_i \rangle$; the gradient of the first term is `attention`, that of
the second is `label_term`, and the flow of the features is the second less the first.
"""

import abc
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import (
    as_floats,
    as_mask,
    as_numbers,
    check_axis,
    check_finite,
    check_positive,
    check_rank,
    out_of_traces,
)
from imr._module import Module
from imr._numerics import log_sum_exp, matmul, softmax
from imr._shapes import check_features
from imr._typing import BiasLike, Features, Mask, Scalar, ScalarLike, WeightsLike
from imr.errors import ImrError
from imr.targets import Targets


class Terms(NamedTuple):
    """A gradient with respect to the features, by what it comes from.

    Attributes:
      row: through the row of the logits that belongs to each row of z, shape (n, f).
      column: through the columns that belong to it, shape (n, f): the keys of a square model.
        None if a row of z takes part in no other row of the logits.
    """

    row: Features
    column: Features | None = None


class Model(Module):
    r"""A multinomial model: a callable z -> logits, and a pytree of its parameters.

    A subclass implements `__call__`, which is all that `imr.feature_loss`, `imr.gradient_field` and
    `imr.solve` need. For `imr.closed_field` it also implements `attention` and `label_term`. A model
    that sees the features only through products with a few vectors says so by `span`: it subclasses
    `SpanModel` or `RowModel`, and `imr.solve_reduced` works too.
    `imr/models/README.md` walks through one.

    Late in a flow the probability p of a label is 1 to all digits, and label term less attention has
    none left: below about 1e-7 of either in float32 the field is rounding. `RowModel` and the models
    of imr subtract p first, by `targets.minus`, which takes 1 - p as the sum of the others. A plain
    `Model` keeps these digits only if it overrides `descent` to do the same.

    Reference: arXiv 2509.04653, Section 2 and the Lemma.
    """

    @property
    def square(self) -> bool:
        """Whether the logits have a column for each row: tokens that attend to tokens."""
        return False

    @abc.abstractmethod
    def __call__(self, z: Features) -> Float[Array, "..."]:
        """Logits, shape (n, m); or (h, n, m) for heads, whose losses add."""

    def attention(self, z: Features) -> Any:
        r"""$\sum_{ij} softmax_{ij} \, dN_{ij}/dZ$, the gradient of the sum of log-sum-exps.

        Args:
          z: features, shape (n, f). Keyword arguments that an implementation adds (`where`,
            `normalise`, `block`, `mesh`, `columns`) are those that `imr.closed_field` passes on.
        Returns: Shape (n, f), or `Terms` if row and column term are told apart.
        Raises: ImrError if the model has no closed form.
        """
        raise _no_closed_form(self)

    def label_term(self, z: Features, targets: Targets) -> Any:
        r"""$\sum_{ij} C_{ij} \, dN_{ij}/dZ$, by the products `targets.mv` and `targets.rmv`.

        Args:
          z: features, shape (n, f).
          targets: as `imr.as_targets` returns them.
        Returns: Shape (n, f), or `Terms` if row and column term are told apart.
        Raises: ImrError if the model has no closed form.
        """
        raise _no_closed_form(self)

    def span(self) -> Float[Array, "m f"] | None:
        """The vectors that the flow never leaves, shape (m, f); optional.

        Returns: None, if they are all of the feature space or not known, as here. What
          `imr.solve_reduced` needs of a model with a span besides is said in `SpanModel`.
        """
        return None

    def descent(self, z: Features, targets: Targets | None, **choices: Any) -> Features:
        """Label term less attention: minus the gradient of the cross-entropy.

        The digits of 1 - p of a label are lost here late in a flow, see `Model`.

        Args:
          z: features, shape (n, f).
          targets: None leaves the label term out.
          choices: keyword arguments of `attention`; `columns=False` leaves both column terms out.
        Returns: Shape (n, f).
        """
        attention = self.attention(z, **choices)
        if targets is None:
            return -total(attention)
        label = self.label_term(z, targets)
        if not choices.get("columns", True):
            return label.row - attention.row
        return total(label) - total(attention)


def _no_closed_form(model: Model) -> ImrError:
    return ImrError(
        f"{type(model).__name__} has no closed form; implement attention(self, z) and "
        "label_term(self, z, targets), or use gradient_field."
    )


def total(x: Any) -> Features:
    """The whole gradient, whether its terms are told apart or not."""
    if not isinstance(x, Terms):
        return x
    return x.row if x.column is None else x.row + x.column


class SpanModel(Model):
    """A model that sees z only through the products $Y = V Z^T$ with the vectors of its span.

    Its flow never leaves $Z_0$ + the row space of V, so that `imr.solve_reduced` integrates
    coordinates instead of features. Products lie on their side, (m, n): sums over a few classes are
    then sums of long rows, which a CPU does three times as fast, and which fill the lanes of a TPU.
    """

    @abc.abstractmethod
    def span(self) -> Float[Array, "m f"] | None:
        """V, the vectors that span all gradients; None if they are all of the feature space."""

    @abc.abstractmethod
    def descent_at(
        self, y: Float[Array, "m n"], targets: Targets | None, *, where: Any, block: Any, mesh: Any
    ) -> Float[Array, "m n"]:
        """Minus the gradient of the cross-entropy with respect to the products, on its side."""

    @abc.abstractmethod
    def loss_at(
        self, y: Float[Array, "m n"], targets: Targets | None, *, where: Any, block: Any, mesh: Any
    ) -> Float[Array, ""]:
        """The cross-entropy, summed over rows, from the products."""


class RowModel(SpanModel):
    r"""A model whose row i of logits depends on row i of z alone: multinomial regression and its kin.

    A subclass implements `span` (V, shape (m, f)), `logits` of the products $Y = V Z^T$, and
    `pullback`, the transposed derivative of `logits`. With $A = C - softmax(N)$ the flow is

    $$dZ/dt = pullback(Y, A^T)^T V,$$

    and attention and label term are the same with softmax(N) and C in the place of A.
    """

    @abc.abstractmethod
    def logits(self, y: Float[Array, "m n"]) -> Float[Array, "k n"]:
        """Logits on their side from products on their side."""

    @abc.abstractmethod
    def pullback(self, y: Float[Array, "m n"], a: Float[Array, "k n"]) -> Float[Array, "m n"]:
        r"""$\sum_c a_{ci} \, dN_{ci}/dY_{ji}$ for each product j and row i."""

    @abc.abstractmethod
    def span(self) -> Float[Array, "m f"]:
        """V, the vectors that span all gradients."""

    def _products(self, z: Features) -> Float[Array, "m n"]:
        z = as_floats("z", z)
        check_features(z)
        v = self.span()
        check_axis("z", z.shape[1], "theta", v.shape[1], "features (its last axis)")
        return matmul(v, z.T)

    def __call__(self, z: Features) -> Float[Array, "n k"]:
        y = self._products(z)
        logits = self.logits(y)
        if logits.shape[1:] != y.shape[1:]:
            raise ImrError(
                f"{type(self).__name__}.logits must return shape (k, n) with n = {y.shape[1]}, on the "
                f"side as the products that it takes; found shape {logits.shape}."
            )
        return logits.T

    def attention(self, z: Features, *, where: Mask | None = None) -> Features:
        y = self._products(z)
        return matmul(self.pullback(y, _probabilities(self.logits(y), where)).T, self.span())

    def label_term(self, z: Features, targets: Targets) -> Features:
        y = self._products(z)
        num_classes = jnp.shape(self.logits(y))[0]
        return matmul(self.pullback(y, targets.transposed(num_classes, y.dtype)).T, self.span())

    def descent(self, z, targets, *, where: Mask | None = None):
        y = self._products(z)
        return matmul(self.descent_at(y, targets, where=where).T, self.span())

    def descent_at(self, y, targets, *, where=None, block=None, mesh=None):
        del block, mesh  # rows have nothing to do with one another
        p = _probabilities(self.logits(y), where)
        # Not label term - attention: `minus` keeps the digits of 1 - p of the label.
        return self.pullback(y, -p if targets is None else targets.minus(p))

    def loss_at(self, y, targets, *, where=None, block=None, mesh=None):
        del block, mesh
        logits = self.logits(y).T
        lse = log_sum_exp(logits, where)
        return jnp.sum(lse if targets is None else lse - targets.inner(logits))


def _probabilities(logits: Float[Array, "k n"], where: Mask | None) -> Float[Array, "k n"]:
    where = as_mask(where, logits.shape[::-1])
    return softmax(logits, None if where is None else where.T, axis=0)


def class_parameters(
    theta: WeightsLike, bias: BiasLike | None, beta: ScalarLike, rows: str = "(k, f)"
) -> tuple[Array, Array | None, Array]:
    """theta, bias and beta as checked arrays; beta has at least the precision of float32."""
    theta = as_floats("theta", theta)
    check_rank("theta", theta, 2, rows)
    check_finite("theta", theta)
    if theta.shape[0] == 0:
        raise ImrError(f"theta must have one or more rows; found shape {theta.shape}.")
    if bias is not None:
        bias = as_floats("bias", bias)
        check_rank("bias", bias, 1, f"({rows[1]},)")
        check_axis("bias", bias.shape[0], "theta", theta.shape[0], "classes (its first axis)")
        check_finite("bias", bias)
    return theta, bias, as_beta(beta, theta)


def as_beta(beta: ScalarLike, like: Array) -> Scalar:
    """The inverse temperature as an array of the precision of the parameters, float32 or wider."""
    check_positive("beta", as_scalar("beta", beta, like))
    return as_scalar("beta", beta, like)


def as_scalar(name: str, value: ScalarLike, like: Array) -> Scalar:
    """A finite number as an array of the precision of another, float32 or wider.

    An array is a leaf: other values compile nothing new.
    """
    number = as_numbers(name, value)
    check_rank(name, number, 0, "()")
    check_finite(name, number)
    with out_of_traces(number):
        return jnp.asarray(number, jnp.promote_types(like.dtype, jnp.float32))


def scaled(beta: Scalar, x: Array) -> Array:
    """A scalar times x in the dtype of x, as if it were a Python number."""
    return beta.astype(x.dtype) * x
