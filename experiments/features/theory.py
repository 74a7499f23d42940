r"""What the flow of one class must do at late times, from theta alone.

A row of class c has margins $m_j$ over the other classes j; with $q_j = e^{-m_j}$ and the Gram matrix
K of the differences $\theta_c - \theta_j$ the flow is

$$\dot m = \frac{K q}{1 + \sum_l q_l}.$$

As it ends in small q, $q_j t \to \alpha_j$, where alpha solves the hard-margin problem of the class,

$$\alpha \geq 0, \quad K \alpha \geq 1, \quad \alpha_j (K \alpha - 1)_j = 0:$$

the features run off as $w_c \log t$ with $w_c = \sum_j \alpha_j (\theta_c - \theta_j)$, the shortest w
of margin 1 over every other class. With $\gamma_c$ the distance from $\theta_c$ to the convex hull
of the other rows of theta, $\sum_j \alpha_j = |w_c|^2 = 1 / \gamma_c^2$. Hence, for every row of the
class and wherever it starts,

$$t \, L_i \to 1 / \gamma_c^2, \quad \min_j m_j - \log t \to -\log \max_j \alpha_j.$$

For a simplex frame, $\theta \theta^T = a (I - 1 1^T / k)$, this is $t L \to (k - 1) / (a k)$, in accord
with the closed form $e^m + (k - 1) m = 1 + a k t$.

At every time, not only late, $|\sum_j p_j (\theta_c - \theta_j)| \geq (1 - p_c) \gamma_c$, and so the
log-odds of the label, $u = \log (p_c / (1 - p_c))$, obey

$$u + e^u \geq u_0 + e^{u_0} + \gamma_c^2 t,$$

an equality for two classes.

Reference: Soudry et al., arXiv 1710.10345, for the direction and the residuals of such flows.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls


class LateTimes(NamedTuple):
    """Predictions for each class; k rows, and in `alpha` k columns with zeros on the diagonal."""

    alpha: np.ndarray  # limits of t q_j
    distance: np.ndarray  # gamma, from theta's row to the convex hull of the others
    direction: np.ndarray  # w, the features' velocity in log t, shape (k, f)
    support: np.ndarray  # how many other classes hold the row back, alpha > 0
    exponent: np.ndarray  # r <= 1: t q_j nears its limit like t^-r, and no faster than log t / t
    nearest: np.ndarray  # 1 / min |theta_c - theta_j|^2, what alpha would be with one rival alone


def late_times(theta: np.ndarray) -> LateTimes:
    """The predictions of every class from class weights, shape (k, f)."""
    theta = np.asarray(theta, np.float64)
    k = len(theta)
    alpha, exponent, nearest = np.zeros((k, k)), np.zeros(k), np.zeros(k)
    for c in range(k):
        others = np.arange(k) != c
        differences = theta[c] - theta[others]
        alpha[c, others], exponent[c] = _hard_margin(differences)
        nearest[c] = 1 / np.min(np.sum(differences**2, axis=1))
    weights = alpha.sum(axis=1)
    direction, support = weights[:, None] * theta - alpha @ theta, (alpha > 0).sum(axis=1)
    return LateTimes(alpha, weights**-0.5, direction, support, exponent, nearest)


def _hard_margin(differences: np.ndarray) -> tuple[np.ndarray, float]:
    """alpha of one class, and the exponent of the approach to it."""
    # Non-negative least squares |D^T x|^2 + (sum x - 1)^2: its conditions are those of alpha up to
    # the factor 1 - sum x.
    rows = np.vstack([differences.T, np.ones(len(differences))])
    x, _ = nnls(rows, np.append(np.zeros(differences.shape[1]), 1.0))
    alpha = x / (1 - x.sum())
    gram = differences @ differences.T
    held = alpha > 0
    # Where t q is x, dx_j / dlog t = x_j (1 - (K x)_j): linear about alpha, each rival that is not in
    # the support dies out by itself.
    modes = np.linalg.eigvals(alpha[held, None] * gram[np.ix_(held, held)]).real
    return alpha, float(np.min(np.append(modes, (gram @ alpha - 1)[~held])))


def bound_slack(log_odds: np.ndarray, ts: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """By how much of log-odds each row is ahead of the bound that holds at every time."""
    value = log_odds[0] + np.exp(log_odds[0]) + np.square(distance) * ts[:, None]
    # The root v of v + exp(v) = value, by Newton's method in a form that cannot overflow.
    v = np.where(value > 1, np.log(np.maximum(value, 1)), value)
    for _ in range(50):
        # From the right of the root of an increasing convex function the steps only go down.
        v = v - (v + np.exp(v) - value) / (1 + np.exp(v))
    return log_odds - v
