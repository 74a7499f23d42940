"""Cross-entropy, and the loss of the features that a fixed multinomial model defines."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array

from imr._checks import check_axis, check_finite, check_positive, check_rank, is_concrete
from imr._numerics import log_sum_exp, widen
from imr._typing import Labels, Logits, LogitsFn, Mask, Rows
from imr.errors import ImrError
from imr.models.logits import check_group
from imr.targets import check_targets, target_logits


def cross_entropy(logits: Logits, targets: Any, where: Mask | None = None) -> Rows:
    r"""Negative log-likelihood of a multinomial, row by row.

    $$L_i = \log \sum_j \exp N_{ij} - \langle C_i, N_i \rangle$$

    Args:
      logits: N, shape (n, m).
      targets: integer labels, shape (n,), always column indices of the logits; or distributions C,
        shape (n, m), dense, sparse (BCOO) or `LowRankTargets`.
      where: boolean, shape (n, m); True says that the entry takes part.

    Returns:
      Nats, shape (n,), accumulated in float32 or wider.

    Raises:
      ImrError: where shapes do not fit; for concrete values, where a label is out of range, a row of
        targets is no distribution or puts weight on an excluded entry, or a row is fully masked.

    >>> import jax.numpy as jnp
    >>> cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3])).round(4).tolist()
    [1.3863, 1.3863]

    Reference: arXiv 2509.04653, Section 2.
    """
    check_targets(logits.shape, targets, where)
    logits = widen(logits)
    return log_sum_exp(logits, where) - target_logits(targets, logits)


def latent_cross_entropy(logits: Logits, labels: Labels, group: Array) -> Rows:
    r"""Cross-entropy of latent classes: the label names a class, the model has prototypes of it.

    $$L_i = \log \sum_j \exp N_{ij} - \log \sum_{j : group_j = label_i} \exp N_{ij}$$

    With one prototype for each class this is `cross_entropy`.

    Args:
      logits: prototype logits, shape (n, m).
      labels: the class of each row, integers, shape (n,).
      group: the class of each prototype, integers, shape (m,).

    Returns:
      Nats, shape (n,).

    Raises:
      ImrError: where shapes do not fit, or a label has no prototype.

    >>> import jax.numpy as jnp
    >>> logits, group = jnp.zeros((1, 3)), jnp.array([0, 0, 1])
    >>> latent_cross_entropy(logits, jnp.array([0]), group).round(4).tolist()
    [0.4055]
    """
    check_group(logits, group)
    check_rank("labels", labels, 1, "(n,)")
    check_axis("labels", labels.shape[0], "logits", logits.shape[0], "rows")
    own = jnp.asarray(group)[None, :] == labels[:, None]
    if is_concrete(own) and not bool(own.any(axis=1).all()):
        row = int(jnp.argmin(own.any(axis=1)))
        raise ImrError(
            f"labels must be classes that group gives a prototype; labels[{row}] = "
            f"{int(labels[row])} has none."
        )
    return log_sum_exp(logits) - log_sum_exp(logits, own)


def feature_loss(
    logits_fn: LogitsFn,
    theta: Any,
    targets: Any,
    *,
    beta: Any = 1.0,
    anchor: tuple[Any, Any] | None = None,
    where: Mask | None = None,
) -> Partial:
    r"""The loss of the features under a fixed model: its gradient flow is what attention steps along.

    $$L(Z) = \sum_i CE_i(\beta N(Z, \theta), C) + \frac{\lambda}{2} \|Z - X\|^2$$

    Args:
      logits_fn: the model; `logits_fn(z, theta)` gives logits, shape (n, m), or (h, n, m) for heads,
        whose losses add. For a degree, `functools.partial(polynomial_logits, degree=3)`.
      theta: its parameters, any pytree.
      targets: as `cross_entropy` takes them.
      beta: inverse temperature, multiplies the logits.
      anchor: (lam, x), a weight and the features that hold z back, shape (n, f).
      where: as `cross_entropy` takes it.

    Returns:
      A callable z -> scalar, the sum over rows. It is a `jax.tree_util.Partial`, a pytree whose
      leaves are theta, targets, anchor, beta and where: it passes through `jax.jit` as an argument,
      and the loss of other values of the same shapes compiles nothing new.

    Raises:
      ImrError: for concrete values, where theta is not finite, beta is not positive or the anchor is
        malformed. Targets are checked against the logits when the loss is called or solved.

    >>> import jax.numpy as jnp
    >>> from imr import linear_logits
    >>> loss = feature_loss(linear_logits, jnp.eye(2), jnp.array([0, 1]))
    >>> loss(jnp.zeros((2, 2))).round(4).item()
    1.3863

    Reference: arXiv 2509.04653, Section 2.
    """
    check_finite("theta", theta)
    check_positive("beta", beta)
    if anchor is not None:
        if not (isinstance(anchor, tuple) and len(anchor) == 2):
            raise ImrError(f"anchor must be a pair (lam, x); found {type(anchor).__name__}.")
        check_finite("anchor", anchor)
    if not callable(logits_fn):
        raise ImrError(f"logits_fn must be callable as logits_fn(z, theta); found {logits_fn!r}.")
    model = logits_fn if isinstance(logits_fn, Partial) else Partial(logits_fn)
    return Partial(_feature_loss, model, theta, targets, anchor, beta, where)


def _feature_loss(model, theta, targets, anchor, beta, where, z):
    logits = beta * model(z, theta)
    heads = logits if logits.ndim == 3 else logits[None]
    loss = jnp.sum(jax.vmap(lambda one: cross_entropy(one, targets, where))(heads))
    if anchor is None:
        return loss
    lam, x = anchor
    if jnp.shape(x) != jnp.shape(z):
        raise ImrError(
            f"anchor's x must have the shape of z, {jnp.shape(z)}; found {jnp.shape(x)}."
        )
    return loss + 0.5 * lam * jnp.sum((z - x) ** 2)
