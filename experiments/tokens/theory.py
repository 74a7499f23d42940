"""Tokens that start mutually orthogonal: all cosines stay equal, and obey one equation."""

import numpy as np

_STEP = 0.05


def orthogonal_cosine(n: int, betas, ts, rate: float) -> np.ndarray:
    r"""The common cosine of n tokens on the sphere that start orthogonal, with phi the identity.

    $$\gamma' = rate \, \frac{2 e^{\beta \gamma} (1 - \gamma) ((n - 1) \gamma + 1)}
      {e^\beta + (n - 1) e^{\beta \gamma}}, \quad \gamma(0) = 0$$

    By symmetry the attention matrix is symmetric, so that the column term equals the row term: it
    doubles the rate and changes nothing else. In $u = \log((1 + (n - 1) \gamma) / (1 - \gamma))$ it
    reads $u' = 2 n \, rate / (e^{\beta (1 - \gamma)} + n - 1)$, which is smooth up to the cluster.

    Reference: Geshkovski et al., arXiv 2312.10794 (the row term up, rate 1).
    """
    betas = np.asarray(betas, np.float64)

    def cosine(u):
        # From the side of the larger exponential, which may overflow: 1 is exact then.
        e, less = np.exp(-np.abs(u)), np.expm1(-np.abs(u))
        return np.where(u > 0, -less / (1 + (n - 1) * e), less / (e + n - 1))

    def slope(u):
        return 2 * n * rate / (np.exp(np.minimum(betas * (1 - cosine(u)), 700)) + n - 1)

    u, now, found = np.zeros_like(betas), 0.0, []
    for t in np.asarray(ts, np.float64):
        steps = max(1, int(np.ceil((t - now) / _STEP)))
        h = (t - now) / steps
        for _ in range(steps):
            k1 = slope(u)
            k2 = slope(u + h / 2 * k1)
            k3 = slope(u + h / 2 * k2)
            u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(u + h * k3))
        now = t
        found.append(cosine(u))
    return np.stack(found, axis=1)
