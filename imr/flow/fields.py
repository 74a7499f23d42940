"""Vector fields f(t, z, args) of the features.

Each is a `jax.tree_util.Partial`, a pytree whose leaves are its parameters: it passes through
`jax.jit` as an argument, and every adjoint of a solver sees what it depends on.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from imr._checks import check_axis, check_finite, check_positive, check_rank
from imr._numerics import matmul, softmax
from imr._typing import (
    Bias,
    ClassWeights,
    Field,
    Labels,
    LogitsFn,
    Loss,
    Mask,
    ScalarLike,
    Static,
)
from imr.attention import Normalise, Projection, attention_terms, cross_attention
from imr.errors import ImrError
from imr.losses import feature_loss
from imr.models.logits import linear_logits
from imr.targets import target_product, transposed_target_product


def gradient_field(loss: Loss) -> Partial:
    """The gradient flow of a loss, by automatic differentiation: $f(t, z, args) = -dL/dz$.

    Args:
      loss: z -> scalar; `feature_loss` makes one, and any function of the user's will do.

    Returns:
      A field f(t, z, args), whose leaves are those of the loss, theta among them. It makes no use
      of t and args.

    Raises:
      ImrError: where the loss cannot be called.

    >>> import jax.numpy as jnp
    >>> field = gradient_field(lambda z: 0.5 * jnp.sum(z**2))
    >>> field(0.0, jnp.array([1.0, -2.0]), None).tolist()
    [-1.0, 2.0]
    """
    if not callable(loss):
        raise ImrError(f"loss must be callable as loss(z); found {type(loss).__name__}.")
    return Partial(_gradient_field, _partial(loss))


def _gradient_field(loss: Partial, t: Any, z: Any, args: Any) -> Any:
    del t, args
    return jax.tree.map(jnp.negative, jax.grad(loss)(z))


def linear_field(
    theta: ClassWeights,
    targets: Any,
    bias: Bias | None = None,
    *,
    beta: ScalarLike = 1.0,
    anchor: tuple[Any, Any] | None = None,
) -> Partial:
    r"""Closed form of the linear model's flow.

    $$dZ/dt = \beta (C \theta - CA(Z, \theta)) - \lambda (Z - X)$$

    Args:
      theta: class weights, shape (k, f).
      targets: labels (n,) or distributions (n, k).
      bias: shape (k,).
      beta: inverse temperature.
      anchor: (lam, x), as in `feature_loss`.

    Returns:
      A field f(t, z, args) of z, shape (n, f); equal to
      `gradient_field(feature_loss(linear_logits, theta, targets, ...))`.

    >>> import jax.numpy as jnp
    >>> field = linear_field(jnp.eye(2), jnp.array([0]))
    >>> field(0.0, jnp.zeros((1, 2)), None).tolist()
    [[0.5, -0.5]]

    Reference: arXiv 2509.04653, Theorem 1.
    """
    check_positive("beta", beta)
    return Partial(_linear_field, theta, targets, bias, beta, anchor)


def _linear_field(theta, targets, bias, beta, anchor, t, z, args):
    del t, args
    attention = cross_attention(z, theta, bias, beta=beta)
    return _anchored(beta * (target_product(targets, theta) - attention), z, anchor)


def latent_field(
    theta: Float[Array, "m f"], labels: Labels, group: Array, *, beta: ScalarLike = 1.0
) -> Partial:
    r"""The flow of latent classes: the label term is an attention too, masked to the label's own.

    $$dZ/dt = \beta (CA_{own}(Z, \theta) - CA(Z, \theta))$$

    Args:
      theta: prototypes, shape (m, f).
      labels: the class of each row, shape (n,).
      group: the class of each prototype, shape (m,).
      beta: inverse temperature.

    Returns:
      A field f(t, z, args) of z, shape (n, f): minus the gradient of the sum over rows of
      `latent_cross_entropy(beta * linear_logits(z, theta), labels, group)`.

    >>> import jax.numpy as jnp
    >>> field = latent_field(jnp.eye(2), jnp.array([0]), jnp.array([0, 0]))
    >>> field(0.0, jnp.zeros((1, 2)), None).tolist()
    [[0.0, 0.0]]
    """
    check_rank("group", group, 1, "(m,)")
    check_axis("group", group.shape[0], "theta", theta.shape[0], "prototypes")
    return Partial(_latent_field, theta, labels, group, beta)


def _latent_field(theta, labels, group, beta, t, z, args):
    del t, args
    logits = beta * linear_logits(z, theta)
    own = group[None, :] == labels[:, None]
    return beta * matmul(softmax(logits, own) - softmax(logits), theta)


def quadratic_field(
    phi: Projection,
    k: Projection | None,
    targets: Any,
    *,
    beta: ScalarLike = 1.0,
    where: Mask | None = None,
    anchor: tuple[Any, Any] | None = None,
    column_term: bool = True,
    normalise: Normalise = "row",
    block: int | None = None,
    mesh: Any = None,
) -> Partial:
    r"""Closed form of the quadratic model's flow.

    $$dZ/dt = \beta (A Z K Q^T + A^T Z Q K^T) - \lambda (Z - X), \quad
      A = C - softmax(\beta Z Q K^T Z^T)$$

    Args:
      phi: Q, shape (f, r), or (h, f, r) for heads, whose fields add.
      k: K, of the same shape; None is symmetric.
      targets: C, shape (n, n): dense, sparse, `same_class_targets` of class labels, or integers (n,),
        which name for each token the token (column) that it should attend to. None leaves the
        label term out: what is left is the flow down the log-sum-exp, attention alone; minus it
        climbs, as tokens that cluster do.
      beta: inverse temperature.
      where: boolean, shape (n, n).
      anchor: (lam, x), as in `feature_loss`.
      column_term: whether the column term A^T is there. Without it this is the flow of ordinary
        attention, no gradient of anything unless the keys are held fixed.
      normalise: as in `attention_weights`; with `column` the log-sum-exp is over queries.
      block, mesh: how the n x n weights are made without being held, by default as suits their size,
        see `imr.attention.attention_products`.

    Returns:
      A field f(t, z, args) of z, shape (n, f). Memory is O(n (f + r)) beyond the targets.

    >>> import jax.numpy as jnp
    >>> field = quadratic_field(jnp.eye(2), None, jnp.array([0, 1]))
    >>> field(0.0, jnp.zeros((2, 2)), None).tolist()
    [[0.0, 0.0], [0.0, 0.0]]

    Reference: arXiv 2509.04653, Theorem 2.
    """
    check_positive("beta", beta)
    choices = {"column_term": column_term, "normalise": normalise, "block": block, "mesh": mesh}
    choices = {name: Static(value) for name, value in choices.items()}
    return Partial(_quadratic_field, phi, k, targets, beta, where, anchor, **choices)


def _quadratic_field(phi, k, targets, beta, where, anchor, t, z, args, *, column_term, **choices):
    del t, args
    columns = column_term.value
    options: dict[str, Any] = {name: choice.value for name, choice in choices.items()}
    terms = attention_terms(z, phi, k, beta=beta, where=where, columns=columns, **options)
    field = -terms[0] if terms[1] is None else -terms[0] - terms[1]
    if targets is not None:
        field = field + _label_term(z, phi, phi if k is None else k, targets, columns)
    return _anchored(beta * field, z, anchor)


def _label_term(z, q, k, targets, column_term):
    """C Z K Q^T + C^T Z Q K^T, over heads."""

    def one(q, k):
        term = matmul(target_product(targets, matmul(z, k)), q.T)
        if not column_term:
            return term
        columns = transposed_target_product(targets, matmul(z, q), z.shape[0])
        return term + matmul(columns, k.T)

    return one(q, k) if q.ndim == 2 else jnp.sum(jax.vmap(one)(q, k), axis=0)


def path_field(
    logits_fn: LogitsFn, path: Callable[[Any], Any], targets: Any, **options: Any
) -> Partial:
    """The gradient flow under a theta that moves in time: untied depth.

    Args:
      logits_fn: the model, `logits_fn(z, theta)`.
      path: from time t to theta; `linear_path` makes one, and its knots are leaves of the field.
      targets: as `feature_loss` takes them, and so are the options beta, anchor and where.

    Returns:
      A field f(t, z, args).

    >>> import jax.numpy as jnp
    >>> from imr import linear_logits
    >>> path = linear_path(jnp.array([0.0, 1.0]), jnp.stack([jnp.eye(2), 2 * jnp.eye(2)]))
    >>> path_field(linear_logits, path, jnp.array([0]))(1.0, jnp.zeros((1, 2)), None).tolist()
    [[1.0, -1.0]]
    """
    return Partial(_path_field, _partial(logits_fn), _partial(path), targets, **options)


def _path_field(logits_fn, path, targets, t, z, args, **options):
    loss = feature_loss(logits_fn, path(t), targets, **options)
    return _gradient_field(loss, t, z, args)


def linear_path(ts: Float[Array, "s"], values: Any) -> Partial:
    """A path through knots, straight between them and constant outside: t -> value.

    Args:
      ts: increasing times, shape (s,).
      values: a pytree whose leaves have a leading axis of s.

    Raises:
      ImrError: where the times do not increase, or the leading axes do not fit.

    >>> import jax.numpy as jnp
    >>> linear_path(jnp.array([0.0, 2.0]), jnp.array([[1.0], [3.0]]))(0.5).tolist()
    [1.5]
    """
    check_rank("ts", ts, 1, "(s,)")
    check_finite("ts", ts)
    check_positive("the steps of ts", jnp.diff(ts))
    for leaf in jax.tree.leaves(values):
        check_axis("values", leaf.shape[0], "ts", ts.shape[0], "knots (its first axis)")
    return Partial(_linear_path, ts, values)


def _linear_path(ts, values, t):
    index = jnp.clip(jnp.searchsorted(ts, t, side="right") - 1, 0, max(ts.shape[0] - 2, 0))
    if ts.shape[0] == 1:
        return jax.tree.map(lambda v: v[0], values)
    share = jnp.clip((t - ts[index]) / (ts[index + 1] - ts[index]), 0, 1)
    return jax.tree.map(lambda v: (1 - share) * v[index] + share * v[index + 1], values)


def sphere_field(field: Field) -> Partial:
    r"""A field projected to the tangent of a product of spheres: normalisation layers, in time.

    $$dz_i/dt = f_i - \frac{\langle f_i, z_i \rangle}{\|z_i\|^2} z_i$$

    Each row keeps the norm that it has, to the tolerance of the solver; a row of zeros stays.

    Args:
      field: f(t, z, args) of z, shape (n, f).

    Returns:
      A field of the same kind.

    >>> import jax.numpy as jnp
    >>> field = sphere_field(lambda t, z, args: jnp.ones_like(z))
    >>> field(0.0, jnp.array([[2.0, 0.0]]), None).tolist()
    [[0.0, 1.0]]

    Reference: Geshkovski et al., arXiv 2312.10794, Section 2.
    """
    return Partial(_sphere_field, _partial(field))


def _sphere_field(field, t, z, args):
    f = field(t, z, args)
    square = jnp.sum(z * z, axis=-1, keepdims=True)
    along = jnp.sum(f * z, axis=-1, keepdims=True) / jnp.where(square > 0, square, 1)
    return jnp.where(square > 0, f - along * z, 0)


def joint_field(
    loss: Callable[[Any, Any], Array],
    *,
    decay: tuple[ScalarLike, ScalarLike] = (0.0, 0.0),
    rates: tuple[ScalarLike, ScalarLike] = (1.0, 1.0),
) -> Partial:
    r"""Features and parameters moving together, with weight decay: unconstrained features.

    $$dZ/dt = -r_z (dL/dZ + \lambda_z Z), \qquad d\theta/dt = -r_\theta (dL/d\theta +
      \lambda_\theta \theta)$$

    Args:
      loss: `loss(z, theta)`, a scalar.
      decay: weight decay of z and of theta.
      rates: speeds of z and of theta.

    Returns:
      A field f(t, (z, theta), args).

    >>> import jax.numpy as jnp
    >>> field = joint_field(lambda z, theta: jnp.sum(z * theta))
    >>> [x.item() for x in field(0.0, (jnp.array(2.0), jnp.array(3.0)), None)]
    [-3.0, -2.0]

    Reference: Mixon, Parshall, Pi, arXiv 2011.11619 (unconstrained features).
    """
    return Partial(_joint_field, _partial(loss), decay, rates)


def _joint_field(loss, decay, rates, t, state, args):
    del t, args
    gradients = jax.grad(loss, argnums=(0, 1))(*state)
    return tuple(
        jax.tree.map(lambda g, x, r=r, w=w: -r * (g + w * x), gradient, value)
        for gradient, value, w, r in zip(gradients, state, decay, rates, strict=True)
    )


def _anchored(field, z, anchor):
    return field if anchor is None else field - anchor[0] * (z - anchor[1])


def _partial(function: Callable) -> Partial:
    return function if isinstance(function, Partial) else Partial(function)
