r"""What is known of the frames: simplex frames, tight frames, softmax codes, and two closed forms.

Softmax codes are k unit vectors in f dimensions whose least distance from one of them to the convex
hull of the others is as large as can be; to them generalised neural collapse leads at low temperature
(Jiang et al., arXiv 2310.05351). Where they are known that distance is k / (k - 1) for f >= k - 1
(the simplex frame), 1 - cos(2 pi / k) for f = 2 (points of a regular polygon), and 1 for k <= 2 f.

In the symmetric setting of `flows` a collapsed simplex frame of margin m, with f >= k - 1, has

$$e^m = k / \lambda - k + 1$$

as its fixed point under decay lambda; without, $dm/dt = 2 k m / (e^m + k - 1)$, and so the loss of a
row falls as $L t \to (k - 1) / (2 k m)$: faster than 1 / t by the growth of the margin.
"""

import numpy as np
from scipy.optimize import nnls


def code_distance(k: int, f: int) -> float | None:
    """Least one-against-rest distance of a softmax code, or None where it is not known here."""
    if f >= k - 1:
        return k / (k - 1)
    if f == 2:
        return float(1 - np.cos(2 * np.pi / k))
    return 1.0 if k <= 2 * f else None


def code_angle(k: int, f: int) -> float | None:
    """The largest least angle between k directions in degrees, or None where not known here."""
    if f >= k - 1:
        return float(np.degrees(np.arccos(-1 / (k - 1))))
    if f == 2:
        return 360 / k
    return 90.0 if k <= 2 * f else None


def margin_with_decay(k: int, decay: float) -> float:
    """The margin of the collapsed simplex frame that weight decay holds still."""
    return float(np.log(k / decay - k + 1))


def unit_rows(theta: np.ndarray) -> np.ndarray:
    """Rows less their mean, which the softmax does not see, scaled to norm 1; axes (..., k, f)."""
    theta = np.asarray(theta, np.float64)
    theta = theta - theta.mean(axis=-2, keepdims=True)
    return theta / np.linalg.norm(theta, axis=-1, keepdims=True)


def least_angle(units: np.ndarray) -> float:
    """The least angle between two of the unit rows (k, f), in degrees."""
    cosines = units @ units.T - 2 * np.eye(len(units))
    return float(np.degrees(np.arccos(np.clip(cosines.max(), -1, 1))))


def one_against_rest(units: np.ndarray) -> float:
    """The least distance from one of the rows (k, f) to the convex hull of the others."""
    least = np.inf
    for c in range(len(units)):
        differences = units[c] - np.delete(units, c, axis=0)
        # Least |D^T x|^2 + (sum x - 1)^2 over x >= 0: x is a multiple of the hull's nearest point's
        # weights, and its sum is 1 / (1 + distance^2).
        rows = np.vstack([differences.T, np.ones(len(differences))])
        x, _ = nnls(rows, np.append(np.zeros(units.shape[1]), 1.0))
        least = min(least, max(1 / x.sum() - 1, 0.0) ** 0.5)
    return float(least)


def blocks(units: np.ndarray, threshold: float = 0.1) -> str:
    """Sizes of the groups of rows that are orthogonal to all others, such as 4+2.

    Two rows are in one group where a chain of cosines beyond the threshold joins them.
    """
    joined = np.abs(units @ units.T) > threshold
    for _ in range(len(units)):
        joined = joined @ joined
    sizes = [int(row.sum()) for row in np.unique(joined, axis=0)]
    return "+".join(map(str, sorted(sizes, reverse=True)))
