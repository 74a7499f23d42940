"""The formulas of the theory, written out as on paper and without imr: what the table compares."""

import jax
import jax.numpy as jnp
from jax.nn import softmax


def negative_log_likelihood(logits, targets):
    """Sum over rows of LSE_i(N) - <C_i, N_i>."""
    return jnp.sum(jnp.log(jnp.sum(jnp.exp(logits), axis=1)) - jnp.sum(targets * logits, axis=1))


def lemma(model, z):
    """d LSE_i(N)/dZ = sum_j softmax_ij dN_ij/dZ, summed over rows, by the whole Jacobian."""
    jacobian = jax.jacfwd(model)(z)
    return jnp.einsum("ij,ijab->ab", softmax(model(z), axis=1), jacobian)


def linear(z, theta, targets):
    """C theta - softmax(Z theta^T) theta."""
    return targets @ theta - softmax(z @ theta.T, axis=1) @ theta


def tempered(z, theta, bias, beta, targets):
    """beta (C theta - softmax(beta (Z theta^T + b)) theta)."""
    return beta * (targets - softmax(beta * (z @ theta.T + bias[None, :]), axis=1)) @ theta


def anchored(z, theta, targets, lam, x):
    """C theta - softmax(Z theta^T) theta - lam (Z - X)."""
    return linear(z, theta, targets) - lam * (z - x)


def polynomial(z, theta, targets, degree):
    """(p (Z theta^T)^(p-1) * (C - softmax((Z theta^T)^p))) theta, products entry by entry."""
    products = z @ theta.T
    return (
        degree * products ** (degree - 1) * (targets - softmax(products**degree, axis=1))
    ) @ theta


def latent(z, theta, labels, group):
    """CA_own(Z, theta) - CA(Z, theta): the label term is attention over the label's prototypes."""
    logits = z @ theta.T
    own = jnp.where(group[None, :] == labels[:, None], jnp.exp(logits), 0)
    return (own / own.sum(axis=1, keepdims=True) - softmax(logits, axis=1)) @ theta


def quadratic(z, theta, targets):
    """A Z theta^T + A^T Z theta, A = C - softmax(Z theta Z^T)."""
    a = targets - softmax(z @ theta @ z.T, axis=1)
    return a @ z @ theta.T + a.T @ z @ theta


def symmetric(z, phi, targets):
    """(A + A^T) Z phi phi^T, A = C - softmax(Z phi phi^T Z^T)."""
    a = targets - softmax(z @ phi @ phi.T @ z.T, axis=1)
    return (a + a.T) @ z @ phi @ phi.T


def query_key(z, q, k, targets, beta=1.0, where=None):
    """beta (A Z K Q^T + A^T Z Q K^T), A = C - softmax(beta Z Q K^T Z^T), masked."""
    logits = beta * z @ q @ k.T @ z.T
    a = targets - softmax(logits if where is None else jnp.where(where, logits, -jnp.inf), axis=1)
    return beta * (a @ z @ k @ q.T + a.T @ z @ q @ k.T)


def heads(z, q, k, targets):
    """Sum over heads of the Q and K flow."""
    return sum(query_key(z, q[h], k[h], targets) for h in range(q.shape[0]))


def row_term(z, q, k):
    """softmax(Z Q K^T Z^T) Z K Q^T: ordinary attention."""
    return softmax(z @ q @ k.T @ z.T, axis=1) @ z @ k @ q.T


def column_normalised(z, q, k):
    """P Z K Q^T + P^T Z Q K^T with P the softmax over queries."""
    p = softmax(z @ q @ k.T @ z.T, axis=0)
    return p @ z @ k @ q.T + p.T @ z @ q @ k.T


def logit_hessian(logits):
    """diag(p) - p p^T for each row."""
    p = softmax(logits, axis=1)
    return p[:, :, None] * jnp.eye(p.shape[1])[None] - p[:, :, None] * p[:, None, :]


def feature_hessian(z, theta):
    """theta^T (diag(p_i) - p_i p_i^T) theta for each row i, zero between rows; (n, f, n, f)."""
    blocks = jnp.einsum("ca,icd,db->iab", theta, logit_hessian(z @ theta.T), theta)
    return jnp.einsum("iab,ij->iajb", blocks, jnp.eye(len(z)))


def two_class_margin(start, gap, ts):
    """u with u + e^u = u_0 + e^u_0 + gap t, (times, rows); gap is ||theta_c - theta_other||^2."""
    total = (start + jnp.exp(start))[None, :] + gap[None, :] * ts[:, None]
    # The left side is convex and increasing, and not below the right one here.
    first = jnp.where(total > 1, jnp.log(jnp.where(total > 1, total, 1)), total)
    return _newton(lambda u: (u + jnp.exp(u) - total) / (1 + jnp.exp(u)), first)


def frame_margin(num_classes, scale, ts):
    """m with e^m + (k - 1) m = 1 + a k t."""
    total = 1 + scale * num_classes * ts
    slope = num_classes - 1
    return _newton(
        lambda m: (jnp.exp(m) + slope * m - total) / (jnp.exp(m) + slope), jnp.log(total)
    )


def _newton(correction, first):
    # From above on a convex function every step lands above: 60 of them are more than enough.
    return jax.lax.fori_loop(0, 60, lambda _, u: u - correction(u), first)


def attention_only_logits(logits, theta, tau, depth):
    """a -> a - tau softmax(a) G, depth times, G = theta theta^T."""
    gram = theta @ theta.T
    for _ in range(depth):
        logits = logits - tau * softmax(logits, axis=1) @ gram
    return logits


def on_spheres(z, norms):
    """Rows scaled to the given norms: the projection that a normalisation layer is."""
    return z * (norms / jnp.linalg.norm(z, axis=1))[:, None]
