"""A transformer block that is one Lie step of multinomial regression's feature flow."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.tree_util import Partial

from imr._checks import (
    check_counts,
    check_flags,
    check_positive,
    check_rngs,
    check_scalar,
)
from imr._numerics import matmul
from imr._typing import Array, Features, Field
from imr.flow.splitting import lie_step
from imr.models import Linear


class MLP(nnx.Module):
    """Two layers, $MLP(z) = GELU(z W_1 + b_1) W_2 + b_2$: the stand-in for the unknown labels.

    Args:
      num_features: f.
      width: hidden units.
      rngs: random streams of flax nnx; `params` draws W_1 from N(0, 1/f), W_2 from N(0, 0.01^2).

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> MLP(3, 8, rngs=nnx.Rngs(0))(jnp.ones((2, 3))).shape
    (2, 3)
    """

    def __init__(self, num_features: int, width: int, *, rngs: nnx.Rngs):
        check_counts(num_features=num_features, width=width)
        check_rngs(rngs)
        scale = num_features**-0.5
        self.w1 = nnx.Param(scale * jax.random.normal(rngs.params(), (num_features, width)))
        self.b1 = nnx.Param(jnp.zeros(width))
        self.w2 = nnx.Param(0.01 * jax.random.normal(rngs.params(), (width, num_features)))
        self.b2 = nnx.Param(jnp.zeros(num_features))

    def __call__(self, z: Features) -> Features:
        """Shape (n, f) to shape (n, f)."""
        hidden = jax.nn.gelu(matmul(z, self.w1[...]) + self.b1[...][None, :])
        return matmul(hidden, self.w2[...]) + self.b2[...][None, :]


class LieBlock(nnx.Module):
    """The base of blocks: the parameters they share, and a Lie step of attention and MLP."""

    mlp: Any

    def __init__(self, num_features, num_classes, attention, tau, signed_step=False):
        check_counts(num_features=num_features, num_classes=num_classes)
        check_flags(attention=attention, signed_step=signed_step)
        check_scalar("tau", tau)
        if not signed_step:
            check_positive("tau", tau)
        self.attention, self.signed_step = attention, signed_step
        self.bias = nnx.Param(jnp.zeros(num_classes))
        self.step = nnx.Param(jnp.full((), tau if signed_step else math.log(tau), float))

    @property
    def tau(self) -> Array:
        """The step size, or the duration of a flow, as it stands."""
        return self.step[...] if self.signed_step else jnp.exp(self.step[...])

    def fields(self) -> tuple[Field, ...]:
        """The operators of the split flow, f(t, z, args), in order of application.

        They are pytrees of the current parameters: a solver compiled with them serves later ones too.
        """
        operators = (_descend,) * self.attention + (_label_term,) * (self.mlp is not None)
        return tuple(Partial(operator, *nnx.split(self)) for operator in operators)

    def __call__(self, z: Features) -> Features:
        """One step; shape (n, f) to shape (n, f). Without attention and MLP it is the identity."""
        fields = self.fields()
        return lie_step(fields, z, self.tau) if fields else z

    def _descend(self, t, z):
        raise NotImplementedError

    def _label_term(self, z):
        return self.mlp(z)


def _descend(graph, params, t, z, args):
    return nnx.merge(graph, params)._descend(t, z)


def _label_term(graph, params, t, z, args):
    return nnx.merge(graph, params)._label_term(z)


def draw_theta(rngs: nnx.Rngs, *shape: int) -> nnx.Param:
    """Class weights to start from, N(0, 0.01^2)."""
    check_rngs(rngs)
    return nnx.Param(0.01 * jax.random.normal(rngs.params(), shape))


class Block(LieBlock):
    r"""One Lie step of the feature flow, which is a residual transformer block.

    $$Z' = Z - \tau \, CA(Z, \theta), \qquad Z^+ = Z' + \tau \, MLP(Z')$$

    CA is `imr.cross_attention` with the bias of the logits. The label term of the flow, C theta, is
    unknown at test time; the MLP stands in for it. There is no normalisation, and queries, keys and
    values are tied: theta, bias and the step are the block's parameters.

    Args:
      num_features: f.
      num_classes: k, the rows of theta.
      attention: whether the block has its attention step.
      mlp_width: hidden units of the MLP; None leaves the MLP out.
      tau: the step size to start from. It is positive, so its logarithm is the parameter.
      signed_step: learn tau itself, which may then become negative: the block then climbs the
        log-sum-exp instead of descending it.
      rngs: random streams of flax nnx; `params` draws theta from N(0, 0.01^2).
    Raises: ImrError if a size is below 1, or tau is not positive (unless signed).

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> block = Block(num_features=3, num_classes=2, rngs=nnx.Rngs(0))
    >>> block(jnp.ones((5, 3))).shape
    (5, 3)

    Reference: arXiv 2509.04653, Corollary on operator splitting.
    """

    def __init__(
        self, num_features: int, num_classes: int, *, attention: bool = True,
        mlp_width: int | None = 128, tau: float = 0.25, signed_step: bool = False, rngs: nnx.Rngs,
    ):  # fmt: skip
        super().__init__(num_features, num_classes, attention, tau, signed_step)
        self.theta = draw_theta(rngs, num_classes, num_features)
        self.mlp = None if mlp_width is None else MLP(num_features, mlp_width, rngs=rngs)

    def _descend(self, t, z):
        return -Linear(self.theta[...], self.bias[...]).attention(z)
