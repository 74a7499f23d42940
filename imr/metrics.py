"""Diagnostics: accuracy, neural collapse, superposition, how far from a gradient, clusters.

Labels that are out of range raise where they are concrete; under a trace the result is then NaN.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray

from imr._checks import (
    ImrError,
    check_at_least,
    check_axis,
    check_floating,
    check_positive,
    check_rank,
    is_concrete,
)
from imr._numerics import matmul, widen
from imr._typing import (
    Bias,
    ClassWeights,
    Features,
    Field,
    Labels,
    Logits,
    Rows,
    Scalar,
    ScalarLike,
)
from imr.logits import linear_logits


def accuracy(logits: Logits, labels: Labels) -> Scalar:
    r"""Share of rows whose largest logit is the label's: $\frac1n |\{i : argmax_j N_{ij} = y_i\}|$.

    Args:
      logits: shape (n, m). Of tied logits the first counts; a row with a NaN is wrong.
      labels: integers from 0, shape (n,).
    Returns: a scalar in [0, 1].
    Raises: ImrError where shapes or dtypes do not fit, or a label is out of range.

    >>> accuracy(jnp.array([[2.0, 1.0], [2.0, 1.0]]), jnp.array([0, 1])).item()
    0.5
    """
    logits = _matrix("logits", logits, "(n, m)")
    own = _members(labels, logits, "logits", logits.shape[1])
    hit = jnp.take_along_axis(own, jnp.argmax(logits, axis=1)[:, None], axis=1)[:, 0]
    # To argmax a NaN is the largest.
    return jnp.mean(jnp.where(jnp.isnan(logits).any(axis=1), 0 * own[:, 0], hit))


def margins(logits: Logits, labels: Labels) -> Rows:
    r"""The label's logit minus the largest other: $N_{i y_i} - \max_{j \neq y_i} N_{ij}$.

    Args:
      logits: shape (n, m), m at least 2.
      labels: integers from 0, shape (n,).
    Returns: shape (n,), positive where the row is classified as its label.
    Raises: ImrError where shapes or dtypes do not fit, or a label is out of range.

    >>> margins(jnp.array([[2.0, 1.0, -1.0], [2.0, 1.0, -1.0]]), jnp.array([0, 2])).tolist()
    [1.0, -3.0]
    """
    logits = _matrix("logits", logits, "(n, m)")
    check_at_least("the number of columns of logits", logits.shape[1], 2)
    members = _members(labels, logits, "logits", logits.shape[1])
    label = jnp.where(members == 1, logits, -jnp.inf).max(axis=1)
    other = jnp.where(members == 1, -jnp.inf, logits).max(axis=1)
    return jnp.where(jnp.isnan(members[:, 0]), jnp.nan, label - other)


class ClassScatter(NamedTuple):
    """Covariances within and between classes, each of shape (f, f); their sum is the whole one."""

    within: Float[Array, "f f"]
    between: Float[Array, "f f"]


def class_means(z: Features, labels: Labels, num_classes: int) -> ClassWeights:
    r"""The mean of each class: $\mu_c = \frac{1}{n_c} \sum_{i : y_i = c} z_i$.

    Args:
      z: features, shape (n, f).
      labels: integers from 0, shape (n,).
      num_classes: k, static under `jax.jit`.
    Returns: shape (k, f); zero for a class without rows.
    Raises: ImrError where shapes or dtypes do not fit, or a label is out of range.

    >>> class_means(jnp.array([[1.0], [3.0], [5.0]]), jnp.array([0, 0, 1]), 2).tolist()
    [[2.0], [5.0]]
    """
    z = _matrix("z", z, "(n, f)")
    return _means(z, _members(labels, z, "z", num_classes))


def class_scatter(z: Features, labels: Labels, num_classes: int) -> ClassScatter:
    r"""Covariance of rows about their class means, and of class means about the mean of all rows.

    $$\Sigma_W = \frac1n \sum_i (z_i - \mu_{y_i}) (z_i - \mu_{y_i})^T, \quad
      \Sigma_B = \sum_c \frac{n_c}{n} (\mu_c - \mu) (\mu_c - \mu)^T$$

    Population covariances: divided by n, and a class weighs as many rows as it has.

    Args:
      z: features, shape (n, f).
      labels: integers from 0, shape (n,).
      num_classes: k, static under `jax.jit`.
    Returns: `ClassScatter(within, between)`, each of shape (f, f).
    Raises: ImrError where shapes or dtypes do not fit, or a label is out of range.

    >>> scatter = class_scatter(jnp.array([[0.0], [2.0], [5.0]]), jnp.array([0, 0, 1]), 2)
    >>> [covariance.round(2).item() for covariance in scatter]
    [0.67, 3.56]
    """
    z = _matrix("z", z, "(n, f)")
    _, means, rest, weights = _split(z, _members(labels, z, "z", num_classes))
    return ClassScatter(matmul(rest.T, rest) / len(z), matmul((weights * means).T, means))


class NeuralCollapse(NamedTuple):
    """Four scalars, zero at collapse: variability, simplex frame, self-duality, nearest mean."""

    nc1: Scalar
    nc2: Scalar
    nc3: Scalar
    nc4: Scalar


def neural_collapse(
    z: Features, theta: ClassWeights, labels: Labels, bias: Bias | None = None
) -> NeuralCollapse:
    r"""How far features and classifier are from neural collapse.

    $$nc_1 = \frac1k tr(\Sigma_W \Sigma_B^+), \quad nc_2 = \Big\| \frac{M M^T}{\|M M^T\|_F} -
      \frac{I - 1 1^T / k}{\sqrt{k - 1}} \Big\|_F, \quad nc_3 = \Big\|
      \frac{\theta_\circ}{\|\theta_\circ\|_F} - \frac{M}{\|M\|_F} \Big\|_F$$

    and nc4 is the share of rows that the classifier and the nearest class mean put into different
    classes. The covariances are those of `class_scatter`; M and $\theta_\circ$ are the class means
    and theta less their mean over classes, all classes weighing the same: collapsed classes of
    unequal sizes give zeros too.

    Args:
      z: features, shape (n, f).
      theta: class weights, shape (k, f), k at least 2.
      labels: integers from 0, shape (n,), with a row for each class.
      bias: of the logits, shape (k,).
    Returns: `NeuralCollapse(nc1, nc2, nc3, nc4)`. Where the class means are all equal nc1 is 0, as
      the pseudo-inverse is, but nc2 is 1. NaN where z is not finite, or a class is empty under a
      trace.
    Raises: ImrError where shapes or dtypes do not fit, a label is out of range or a class is empty.
    Reference: Papyan, Han, Donoho, arXiv 2008.08186; nc2 as Zhu et al., arXiv 2105.02375.

    >>> [abs(round(x.item(), 3)) for x in neural_collapse(jnp.eye(3), jnp.eye(3), jnp.arange(3))]
    [0.0, 0.0, 0.0, 0.0]
    """
    z, theta = _matrix("z", z, "(n, f)"), _matrix("theta", theta, "(k, f)")
    n, k = z.shape[0], theta.shape[0]
    check_at_least("the number of rows of theta", k, 2)
    chosen = jnp.argmax(linear_logits(z, theta, bias), axis=1)
    members = _members(labels, z, "z", k)
    counts = members.sum(axis=0)
    if is_concrete(counts) and not bool(jnp.all(counts > 0)):
        raise ImrError(
            f"labels must hold every class, 0 to {k - 1}; found no row of class "
            f"{int(jnp.argmin(counts))}. Leave that class out of theta, or add rows."
        )
    defined = jnp.all(counts > 0) & jnp.isfinite(z).all()
    z, means, rest, weights = _split(z, members)

    # The square root of Sigma_B by its singular vectors: no (f, f) matrix, no squared condition
    # number. Its rank is at most k - 1; a k-th singular value is nothing but rounding.
    root = jnp.sqrt(weights) * means
    _, scale, axes = jnp.linalg.svd(root, full_matrices=False)
    kept = scale > max(root.shape) * jnp.finfo(z.dtype).eps * scale[0]
    kept = kept & (jnp.arange(scale.size) < k - 1)
    inverse = jnp.where(kept, 1 / jnp.where(kept, scale, 1), 0)
    nc1 = jnp.sum((matmul(rest, axes.T) * inverse[None, :]) ** 2) / (n * k)

    frame = (jnp.eye(k, dtype=z.dtype) - 1 / k) / (k - 1) ** 0.5
    centred = _centred(means)
    nc2 = jnp.linalg.norm(_over_norm(matmul(centred, centred.T)) - frame)
    nc3 = jnp.linalg.norm(_centred(theta) - centred)
    distances = jnp.sum(means**2, axis=1)[None, :] - 2 * matmul(z, means.T)
    nc4 = jnp.mean(chosen != jnp.argmin(distances, axis=1), dtype=z.dtype)
    return NeuralCollapse(*(jnp.where(defined, x, jnp.nan) for x in (nc1, nc2, nc3, nc4)))


def simplex_alignment(vectors: ClassWeights) -> Scalar:
    r"""Cosine between the Gram matrix G of centred vectors and that of a simplex frame, P.

    $$\frac{\langle G, P \rangle}{\|G\|_F \|P\|_F} = \frac{tr \, G}{\|G\|_F \sqrt{k - 1}}, \quad
      P = I - 1 1^T / k, \quad G = P V V^T P$$

    Args:
      vectors: V, shape (k, f), k at least 2.
    Returns: a scalar from $1 / \sqrt{k - 1}$ to $\min(1, \sqrt{f / (k - 1)})$, 1 for a simplex
      frame; 0 where all vectors are equal. With V the class means, $nc_2^2$ is twice 1 less it.
    Raises: ImrError where shape or dtype do not fit.
    Reference: Papyan, Han, Donoho, arXiv 2008.08186.

    >>> simplex_alignment(jnp.eye(4)).round(4).item()
    1.0
    """
    centred = _centred(_matrix("vectors", vectors, "(k, f)", rows=2))
    return jnp.trace(_over_norm(matmul(centred, centred.T))) / (len(vectors) - 1) ** 0.5


def interference(vectors: ClassWeights) -> Float[Array, "k"]:
    r"""Superposition of directions: $\sum_{j \neq i} \cos^2(v_i, v_j)$ for each i.

    Args:
      vectors: of any length, shape (k, f). A zero vector has cosine 0 with all others.
    Returns: shape (k,), 0 for a direction of its own; the mean is at least `welch_bound(k, f)`.
    Raises: ImrError where shape or dtype do not fit.
    Reference: Elhage et al., "Toy Models of Superposition", arXiv 2209.10652.

    >>> interference(jnp.array([[1.0, 0.0], [0.0, 2.0], [0.0, -1.0]])).tolist()
    [0.0, 1.0, 1.0]
    """
    unit = _unit_rows(_matrix("vectors", vectors, "(k, f)"))
    squares = matmul(unit, unit.T) ** 2
    return jnp.where(jnp.eye(len(squares), dtype=bool), 0, squares).sum(axis=1)


def welch_bound(k: int, f: int) -> float:
    r"""The least mean of `interference` of k non-zero vectors in f dimensions: $\max(k/f - 1, 0)$.

    For unit vectors U (k, f), $\sum_{ij} \langle u_i, u_j \rangle^2 = \|U^T U\|_F^2 \geq
    (tr \, U^T U)^2 / f = k^2 / f$ by Cauchy-Schwarz on the f eigenvalues, equal where $U^T U$ is a
    multiple of the identity (a tight frame). The k terms i = j are 1; divide the rest by k.

    Args:
      k: number of vectors, at least 1.
      f: dimensions, at least 1.
    Returns: a float.
    Raises: ImrError where either is no positive integer.
    Reference: Welch, "Lower bounds on the maximum cross correlation of signals", 1974.

    >>> welch_bound(6, 4)
    0.5
    """
    _check_count("k", k)
    _check_count("f", f)
    return max(k / f - 1, 0.0)


def antisymmetric_share(
    field: Field, z: Any, key: PRNGKeyArray, num_probes: int = 32, t: ScalarLike = 0.0, args: Any = None
) -> Scalar:  # fmt: skip
    r"""How far a field is from being a gradient: the antisymmetric share of its Jacobian J at z.

    $$\frac{\|(J - J^T) / 2\|_F^2}{\|J\|_F^2} \approx
      \frac{\sum_v \|J v - J^T v\|^2}{2 \sum_v (\|J v\|^2 + \|J^T v\|^2)}, \quad v_i = \pm 1$$

    J is never built: a probe v is a product with J and one with J^T, one probe at a time.

    Args:
      field: f(t, z, args), differentiable in both modes.
      z: features, an array or a pytree of arrays.
      key: of the random probes.
      num_probes: the number of them.
      t, args: time and arguments, handed to the field.
    Returns: a scalar in [0, 1] whatever the probes, exactly 0 for a gradient and 1 for a rotation;
      0 where J is zero.
    Raises: ImrError where the field returns other shapes than z has, z is not floating or
      num_probes is no positive integer.

    >>> field = lambda t, z, args: z @ jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    >>> antisymmetric_share(field, jnp.ones((3, 2)), jax.random.key(0)).item()
    1.0
    """
    _check_count("num_probes", num_probes)
    for leaf in jax.tree.leaves(z):
        check_floating("z", leaf)
    shapes = lambda tree: (jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)])  # noqa: E731
    if (found := shapes(jax.eval_shape(lambda z: field(t, z, args), z))) != shapes(z):
        raise ImrError(f"field must return the shapes of z, {shapes(z)}; found {found}.")
    flat, unravel = ravel_pytree(z)
    flat_field = lambda x: ravel_pytree(field(t, unravel(x), args))[0].astype(x.dtype)  # noqa: E731
    push = jax.linearize(flat_field, flat)[1]
    pull = jax.linear_transpose(push, flat)

    def squares(key):
        v = jax.random.rademacher(key, flat.shape, flat.dtype)
        forward, backward = widen(push(v)), widen(pull(v)[0])
        return jnp.sum((forward - backward) ** 2), jnp.sum(forward**2 + backward**2)

    above, below = (x.sum() for x in jax.lax.map(squares, jax.random.split(key, num_probes)))
    return above / jnp.where(below > 0, 2 * below, 1)


def token_cosines(z: Features) -> Float[Array, "n n"]:
    r"""Cosine similarities of rows: $\langle z_i, z_j \rangle / (\|z_i\| \|z_j\|)$.

    Args:
      z: features, shape (n, f). A row of zeros has cosine 0 with every row, itself too.
    Returns: shape (n, n).
    Raises: ImrError where shape or dtype do not fit.

    >>> token_cosines(jnp.array([[2.0, 0.0], [0.0, 3.0]])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    unit = _unit_rows(_matrix("z", z, "(n, f)"))
    return matmul(unit, unit.T)


def mean_cosine(z: Features) -> Scalar:
    r"""Mean cosine of distinct rows, in O(n f): $(\|\sum_i u_i\|^2 - \sum_i \|u_i\|^2) / (n^2 - n)$.

    Args:
      z: features, shape (n, f), n at least 2. A row of zeros has cosine 0 with all others.
    Returns: a scalar from -1 / (n - 1) to 1.
    Raises: ImrError where shape or dtype do not fit.
    Reference: Ethayarajh, arXiv 1909.00512 (anisotropy of contextual representations).

    >>> mean_cosine(jnp.array([[2.0, 0.0], [0.0, 3.0], [0.0, 1.0]])).round(4).item()
    0.3333
    """
    unit = _unit_rows(_matrix("z", z, "(n, f)", rows=2))
    return (jnp.sum(unit.sum(axis=0) ** 2) - jnp.sum(unit**2)) / (len(z) * (len(z) - 1))


def cluster_count(z: Features, threshold: ScalarLike = 1e-3) -> Int[Array, ""]:
    r"""Number of clusters of directions: components of the graph $\cos(z_i, z_j) > 1 - threshold$.

    Args:
      z: features, shape (n, f). A row of zeros is a cluster of its own.
      threshold: positive; below about 1e-6 it is lost in the rounding of float32.
    Returns: an integer from 1 to n. Memory is O(n^2).
    Raises: ImrError where shape or dtype do not fit, or the threshold is not positive.
    Reference: Geshkovski et al., arXiv 2312.10794 (tokens cluster on the sphere).

    >>> cluster_count(jnp.array([[1.0, 0.0], [3.0, 0.01], [0.0, 1.0]])).item()
    2
    """
    check_positive("threshold", threshold)
    joined = token_cosines(z) > 1 - threshold
    joined = joined | joined.T  # at the threshold rounding decides, differently on either side
    own = jnp.arange(len(z))

    def spread(state):
        least = state[1]
        near = jnp.minimum(least, jnp.where(joined, least[None, :], len(z)).min(axis=1))
        # A label is a row of the same component: its own label is a jump ahead.
        return least, near[near]

    _, least = jax.lax.while_loop(lambda s: jnp.any(s[0] != s[1]), spread, spread((own, own)))
    return jnp.sum(least == own)


def _matrix(name, array, shape, rows=1):
    check_rank(name, array, 2, shape)
    check_floating(name, array)
    check_at_least(f"the number of rows of {name}", array.shape[0], rows)
    return widen(array)


def _check_count(name, value):
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ImrError(f"{name} must be an integer of at least 1; found {value!r}.")


def _members(labels, rows, other, num_classes):
    """One-hot labels (n, k) in the dtype of `rows`; NaN where a label is out of range."""
    _check_count("num_classes", num_classes)
    check_rank("labels", labels, 1, "(n,)")
    check_axis("labels", labels.shape[0], other, rows.shape[0], "rows")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ImrError(f"labels must be integers; found dtype {labels.dtype}. Use .astype(int).")
    bad = (labels < 0) | (labels >= num_classes)
    if is_concrete(bad) and bad.any():
        row = int(jnp.argmax(bad))
        raise ImrError(
            f"labels must lie in 0 to {num_classes - 1}; found labels[{row}] = {labels[row]}."
        )
    return jnp.where(bad[:, None], jnp.nan, jax.nn.one_hot(labels, num_classes, dtype=rows.dtype))


def _means(z, members):
    return matmul(members.T, z) / jnp.maximum(members.sum(axis=0), 1)[:, None]


def _split(z, members):
    """Rows and class means about the mean of all rows, what is left of rows, shares (k, 1)."""
    # Far from the origin, products of what is not centred lose the digits of the differences.
    z = z - z.mean(axis=0, keepdims=True)
    means = _means(z, members)
    return z, means, z - matmul(members, means), members.mean(axis=0)[:, None]


def _over_norm(a):
    norm = jnp.linalg.norm(a)
    return a / jnp.where(norm > 0, norm, 1)


def _centred(vectors):
    """Less their mean, and of Frobenius norm 1 (or zero)."""
    return _over_norm(vectors - vectors.mean(axis=0, keepdims=True))


def _unit_rows(z):
    """Rows of norm 1; a row of zeros stays. Scaled first: squares of tiny entries underflow."""
    largest = jnp.abs(z).max(axis=1, keepdims=True)
    z = z / jnp.where(largest > 0, largest, 1)
    squares = jnp.sum(z**2, axis=1, keepdims=True)
    return z / jnp.sqrt(jnp.where(squares > 0, squares, 1))
