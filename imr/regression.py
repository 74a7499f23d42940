"""Multinomial regression fitted to its optimum: the parameters theta, the features fixed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from imr._checks import (
    as_choice_of,
    as_floats,
    as_labels,
    as_numbers,
    check_at_least,
    check_axis,
    check_count,
    check_finite,
    check_key,
    check_rank,
    check_scalar,
    is_concrete,
    numpy_of,
)
from imr._numerics import matmul, widen
from imr._shapes import check_linear
from imr._typing import Bias, ClassWeights, Features, FeaturesLike, LabelsLike, Scalar, ScalarLike
from imr.errors import ImrError
from imr.losses import cross_entropy
from imr.targets import as_targets

Rows = Bool[Array | np.ndarray, "n"] | Int[Array | np.ndarray, "n"]
RowWeights = Float[Array | np.ndarray, "n"] | Int[Array | np.ndarray, "n"]


class Regression(NamedTuple):
    """A fit: theta (k, f), bias (k,), the largest gradient entry, steps taken, and whether it is
    within the tolerance of an optimum. A loss that falls for ever has none, however small its gradient."""

    theta: ClassWeights
    bias: Bias
    gradient: Scalar
    num_steps: Int[Array, ""]
    converged: Bool[Array, ""]


class Basis(NamedTuple):
    """Principal axes of centred features: mean (f,), axes (f, f) in columns, variances (f,)."""

    mean: Float[Array, "f"]
    axes: Float[Array, "f f"]
    variances: Float[Array, "f"]


def principal_basis(x: Features, weights: Float[Array, "n"]) -> tuple[Basis, Features]:
    """The basis of features, shape (n, f), with weights that sum to 1, and coordinates in it."""
    x, weights = as_floats("x", x), as_floats("weights", weights)
    check_rank("x", x, 2, "(n, f)")
    check_rank("weights", weights, 1, "(n,)")
    check_axis("weights", len(weights), "x", len(x), "rows")
    mean = matmul(weights, x)
    centred = x - mean[None, :]
    variances, axes = jnp.linalg.eigh(matmul(centred.T * weights[None, :], centred))
    return Basis(mean, axes, jnp.maximum(variances, 0)), matmul(centred, axes)


def from_basis(basis: Basis, theta: ClassWeights, bias: Bias) -> tuple[ClassWeights, Bias]:
    """Weights and bias on the features from weights and bias on principal coordinates."""
    theta = matmul(theta, basis.axes.T)
    return theta, bias - matmul(theta, basis.mean)


def largest_gradient(basis: Basis, d_theta: ClassWeights, d_bias: Bias) -> Scalar:
    """Largest entry of the gradient on the features, from that on principal coordinates."""
    d_theta = matmul(d_theta, basis.axes.T) + d_bias[:, None] * basis.mean[None, :]
    return jnp.maximum(jnp.max(jnp.abs(d_theta)), jnp.max(jnp.abs(d_bias)))


def preconditioner(basis: Basis, l2: ScalarLike, noise: ScalarLike = 0.0) -> Float[Array, "f"]:
    """Scale of each principal coordinate that makes the objective nearly round.

    The Hessian of the cross-entropy is at most half the covariance of the features (Böhning, Ann.
    Inst. Statist. Math. 44, 1992), noise adds noise^2 to each variance, the penalty 2 l2.
    """
    return (0.5 * (basis.variances + noise**2) + 2 * l2 + 1e-8) ** -0.5


def objective(
    theta: ClassWeights, bias: Bias, x: FeaturesLike, labels: LabelsLike, l2: ScalarLike,
    where: Rows | None = None, weights: RowWeights | None = None,
) -> Scalar:  # fmt: skip
    r"""$F = mean_i CE_i(X \theta^T + b) + l2 \, \|\theta\|^2$; the bias carries no penalty.

    scikit-learn's `LogisticRegression(C)` minimises the same with $l2 = 1 / (2 C n)$; with its
    sample_weight, n is their sum.

    Args:
      theta, bias: class weights, shape (k, f), and b, shape (k,).
      x, labels, l2, where, weights: as in `fit_regression`.
    Returns: a scalar.
    Raises: ImrError as `fit_regression` does.
    """
    theta, bias = as_floats("theta", theta), as_floats("bias", bias)
    check_rank("theta", theta, 2, "(k, f)")
    x, labels, shares = _checked(x, labels, theta.shape[0], l2, where, weights)
    check_linear(x, theta, bias)
    return _objective(theta, bias, x, labels, l2, shares)


def _objective(theta, bias, x, labels, l2, shares):
    losses = cross_entropy(matmul(x, theta.T) + bias[None, :], labels)
    return jnp.sum(shares * losses) + l2 * jnp.sum(theta**2)


def _shares(x, where, weights):
    """The share of each row in a mean over all rows, or over some of them."""
    xp = numpy_of(where, weights)  # in float64 no weight is too large or too small
    shares = xp.ones(x.shape[0]) if weights is None else xp.asarray(weights, float)
    shares = shares if where is None else xp.where(where, shares, 0)
    shares = shares / xp.max(shares)
    return jnp.asarray(shares / xp.sum(shares), jnp.promote_types(x.dtype, jnp.float32))


def _all_classes(labels, num_classes, shares):
    """Whether each class has a row: the bias of one without falls for ever, as nothing holds it."""
    return jnp.all(jax.ops.segment_sum(shares, labels, num_classes) > 0)


def fit_regression(
    x: FeaturesLike, labels: LabelsLike, num_classes: int, l2: ScalarLike, *, where: Rows | None = None,
    weights: RowWeights | None = None, tol: float = 1e-5, max_steps: int = 2000,
) -> Regression:  # fmt: skip
    r"""Multinomial regression at its optimum, by L-BFGS in preconditioned coordinates.

    Minimises $mean_i CE_i(X \theta^T + b) + l2 \, \|\theta\|^2$, which is convex. The features are
    rotated onto their principal axes and scaled by `preconditioner`; that is a change of variables
    only, and saves most of the steps. (Loop over penalties: under `jax.vmap` every line search
    costs as much as the longest.)

    There is no optimum if a class has no row (its bias falls for ever), nor with l2 = 0 if a
    hyperplane separates the rows of classes, touching them or not (theta grows for ever). The fit
    then stops at the tolerance and is not `converged`. With l2 = 0 that is found by going on until the
    gradient is a quarter of what it was: at an optimum the logits stay where they are.

    Args:
      x: features, shape (n, f).
      labels: integers in 0 .. k-1, shape (n,).
      num_classes: k.
      l2: penalty on the sum of squares of theta, beside the mean cross-entropy.
      where: boolean, or integers 0 and 1, shape (n,): fit these rows alone, one at least. One program
        serves every choice of rows.
      weights: of the rows in the mean, shape (n,), not negative, of any sum; None is equal ones.
      tol: the fit has converged if no entry of the gradient with respect to theta and bias exceeds it,
        and there is an optimum.
      max_steps: where to give up; `converged` then says so.
    Returns: a `Regression`, theta and bias in the dtype of x; half precision is computed in float32.
    Raises: ImrError if shapes do not fit, x is not finite or empty, labels are out of range, l2 or a
      weight is negative, or no row has a weight.

    >>> import jax.numpy as jnp
    >>> fit = fit_regression(jnp.array([[-1.0], [1.0]]), jnp.array([0, 1]), 2, l2=0.1)
    >>> bool(fit.converged), fit.theta.shape
    (True, (2, 1))
    """
    x, labels, shares = _checked(x, labels, num_classes, l2, where, weights, tol)
    check_count("max_steps", max_steps, 0)
    fit = _fit_regression(widen(x), labels, num_classes, l2, shares, tol, max_steps)
    return fit._replace(theta=fit.theta.astype(x.dtype), bias=fit.bias.astype(x.dtype))


def _checked(
    x: Any, labels: Any, num_classes, l2: Any, where, weights, tol: Any = 0.0, noise: Any = 0.0
) -> tuple[Features, Array, Array]:
    """The features, labels and shares of the rows."""
    x, labels = as_floats("x", x), as_labels("labels", labels)
    check_rank("x", x, 2, "(n, f)")
    if not x.size:
        raise ImrError(f"x must have a row and a feature at least; found shape {x.shape}.")
    check_finite("x", x)
    check_axis("labels", labels.shape[0], "x", x.shape[0], "rows")
    check_count("num_classes", num_classes)
    as_targets(labels).check((x.shape[0], num_classes))
    for name, value in (("l2", l2), ("noise", noise)):
        check_scalar(name, value, 0)
        check_finite(name, value)
    check_scalar("tol", tol, 0)
    if where is not None:
        where = as_choice_of("row", "where", where, x.shape[0])
    if weights is not None:
        check_rank("weights", as_numbers("weights", weights), 1, "(n,)")
        check_axis("weights", len(weights), "x", x.shape[0], "rows")
        check_finite("weights", weights)
        check_at_least("weights", weights, 0)
        rows = slice(None) if where is None else where
        if is_concrete(where, weights) and not np.any(np.asarray(weights)[rows]):
            raise ImrError("weights must be positive in a row that takes part; found none.")
    return x, labels, _shares(x, where, weights)


@jax.jit(static_argnums=2)
def _fit_regression(x, labels, num_classes, l2, shares, tol, max_steps):
    basis, coordinates = principal_basis(x, shares)
    scale = preconditioner(basis, l2)

    def loss(params):
        phi, bias = params
        return _objective(phi * scale[None, :], bias, coordinates, labels, l2, shares)

    optimizer = optax.lbfgs(memory_size=20)
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry):
        (params, norm, count), state, first = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=loss
        )
        d_phi, d_bias = optax.tree.get(state, "grad")
        above = norm > tol
        norm = largest_gradient(basis, d_phi / scale[None, :], d_bias)
        now = optax.apply_updates(params, updates), norm, count + 1
        first = jax.tree.map(lambda new, old: jnp.where(above, new, old), now, first)
        return now, state, first

    def unfinished(carry):
        (_, norm, count), _, (_, first_norm, first_count) = carry
        # At the end of the digits the gradient falls no further.
        confirmed = (norm <= first_norm / 4) | (count >= first_count + 50)
        return (count < max_steps) & ~((norm <= tol) & ((l2 > 0) | confirmed))

    params = (jnp.zeros((num_classes, x.shape[1]), x.dtype), jnp.zeros(num_classes, x.dtype))
    start = (params, jnp.asarray(jnp.inf, x.dtype), jnp.zeros((), jnp.int32))
    result: Any = jax.lax.while_loop(unfinished, step, (start, optimizer.init(params), start))
    ((phi, bias), norm, count), _, ((first_phi, first_bias), *_) = result
    moved = (
        matmul(coordinates, ((phi - first_phi) * scale[None, :]).T) + (bias - first_bias)[None, :]
    )
    moved = jnp.where(shares[:, None] > 0, moved - jnp.mean(moved, axis=1, keepdims=True), 0)
    # Of a loss that falls for ever the gradient falls to a quarter as a margin grows by log 4.
    there = (l2 > 0) | (jnp.max(jnp.abs(moved)) < 0.25 * np.log(4.0))
    converged = (norm <= tol) & there & _all_classes(labels, num_classes, shares)
    theta, bias = from_basis(basis, phi * scale[None, :], bias)
    return Regression(theta, bias, norm, count, converged)


def fit_noisy_regression(
    key: PRNGKeyArray, x: FeaturesLike, labels: LabelsLike, num_classes: int, l2: ScalarLike,
    noise: ScalarLike, *, where: Rows | None = None, weights: RowWeights | None = None,
    num_steps: int = 1000, tol: float = 1e-3,
) -> Regression:  # fmt: skip
    r"""Multinomial regression trained on noisy features, fresh noise at every step.

    Minimises $E_\epsilon\, mean_i CE_i((X + s \epsilon) \theta^T + b) + l2 \, \|\theta\|^2$,
    $\epsilon$ standard normal, which is convex, by Nesterov's method with cosine decay on all rows
    in the coordinates of `fit_regression`. The noise enters the loss through $\epsilon \theta^T$
    alone, which is N(0, theta theta^T) in k dimensions, so that is what is drawn; and by Stein's
    identity $E[p \epsilon^T] = s \, E[diag(p) - p p^T] \, \theta$ the gradient is

    $$\frac1n (E[p] - C)^T X + \frac{s^2}{n} \sum_i E[diag(p_i) - p_i p_i^T] \, \theta
      + 2 \, l2 \, \theta$$

    without bias and with f / k times fewer draws.

    Args:
      key: random key of the noise.
      x, labels, num_classes, l2, where, weights: as in `fit_regression`.
      noise: s, standard deviation of the noise, in units of the features.
      num_steps: steps, each over all rows.
      tol: the fit has converged if no entry of the gradient, averaged over the last quarter of the
        steps, exceeds it, and there is an optimum: each class has a row, and where neither l2 nor
        noise is positive the fit leaves some row on the wrong side.
    Returns: a `Regression`; its gradient is that average.
    Raises: ImrError if an argument does not fit, as in `fit_regression`, or noise is negative.
    """
    check_key(key)
    x, labels, shares = _checked(x, labels, num_classes, l2, where, weights, tol, noise)
    check_count("num_steps", num_steps)
    fit = _fit_noisy(key, widen(x), labels, l2, noise, shares, tol, num_classes, num_steps)
    return fit._replace(theta=fit.theta.astype(x.dtype), bias=fit.bias.astype(x.dtype))


@jax.jit(static_argnums=(7, 8))
def _fit_noisy(key, x, labels, l2, noise, shares, tol, num_classes, num_steps):
    basis, coordinates = principal_basis(x, shares)
    scale = preconditioner(basis, l2, noise)
    # In these coordinates the Hessian is at most 1, and so may the rate be.
    rate = optax.cosine_decay_schedule(1.0, num_steps)
    optimizer = optax.sgd(rate, momentum=0.95, nesterov=True)
    # Classes come first and rows last: sums over few classes are then sums of long vectors.
    one_hot = jax.nn.one_hot(labels, num_classes, axis=0, dtype=x.dtype)
    n = x.shape[0]
    last = max(1, num_steps // 4)

    def step(carry, count):
        (phi, bias), state, sums = carry
        theta = phi * scale[None, :]
        variances, axes = jnp.linalg.eigh(matmul(theta, theta.T))
        root = axes * jnp.sqrt(jnp.maximum(variances, 0))[None, :]
        shift = _normal_shifts(jax.random.fold_in(key, count), root, n)
        logits = matmul(theta, coordinates.T) + bias[:, None]
        p = jax.nn.softmax(widen(logits[:, None, :] + noise * shift), axis=0).astype(x.dtype)
        weighted = p * shares[None, None, :] / p.shape[1]
        second = matmul(weighted.reshape(num_classes, -1), p.reshape(num_classes, -1).T)
        weighted = jnp.sum(weighted, axis=1)
        spread = jnp.diag(jnp.sum(weighted, axis=1)) - second
        difference = weighted - one_hot * shares[None, :]
        d_theta = matmul(difference, coordinates)
        d_theta = d_theta + noise**2 * matmul(spread, theta) + 2 * l2 * theta
        d_bias = jnp.sum(difference, axis=1)
        updates, state = optimizer.update((d_theta * scale[None, :], d_bias), state)
        late = count >= num_steps - last
        sums = jax.tree.map(lambda s, d: s + jnp.where(late, d, 0), sums, (d_theta, d_bias))
        return (optax.apply_updates((phi, bias), updates), state, sums), None

    params = (jnp.zeros((num_classes, x.shape[1]), x.dtype), jnp.zeros(num_classes, x.dtype))
    start = (params, optimizer.init(params), params)
    result: Any = jax.lax.scan(step, start, jnp.arange(num_steps))
    (phi, bias), _, sums = result[0]
    gradient = largest_gradient(basis, *(s / last for s in sums))
    theta, bias = from_basis(basis, phi * scale[None, :], bias)
    losses = cross_entropy(matmul(x, theta.T) + bias[None, :], labels)
    separated = jnp.all((losses < np.log(2.0)) | (shares == 0))  # p > 1/2: on its own side of all
    there = ((l2 > 0) | (noise > 0) | ~separated) & _all_classes(labels, num_classes, shares)
    return Regression(theta, bias, gradient, jnp.asarray(num_steps), (gradient <= tol) & there)


def _normal_shifts(key, root, n: int) -> Float[Array, "k r n"]:
    """root times standard normal vectors of length k, several for each of n rows: about 8,192 in all.

    Drawing normals costs more than the rest of a step. So each vector serves with both signs and with
    its entries rotated: these are standard normal too, different rotations are uncorrelated, and in
    the mean of both signs the odd terms of the error vanish. Rotating the columns of root the other
    way does the same, and moves less.
    """
    k, count = len(root), -(-8192 // n)
    rotations = min(k, -(-count // 2))
    sets = -(-count // (2 * rotations))
    draws = jnp.moveaxis(jax.random.normal(key, (sets, n, k), root.dtype), 2, 0).reshape(k, -1)
    if count == 1:
        return matmul(root, draws)[:, None, :]
    roots = jnp.stack([jnp.roll(root, -j, axis=1) for j in range(rotations)], axis=1)
    shifts = matmul(roots.reshape(-1, k), draws).reshape(k, rotations * sets, n)
    return jnp.concatenate([shifts, -shifts], axis=1)
