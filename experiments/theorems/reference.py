"""Solutions to compare with, by methods that share nothing with imr's own solvers."""

import jax
import jax.numpy as jnp
import numpy as np

STEPS = 512


def flow(field, z0, t1, num_steps=STEPS):
    """The end of dz/dt = f(t, z, args): Runge-Kutta of order 4, extrapolated from two step sizes.

    Both run in one scan; the coarse one stands still in its second half. At 512 steps of a flow whose
    rates are about 1 to 10 the error is near 1e-13.
    """
    half = num_steps // 2
    sizes = np.stack(
        [np.r_[np.full(half, 1 / half), np.zeros(half)], np.full(num_steps, 1 / num_steps)]
    )
    starts = np.cumsum(sizes, axis=1) - sizes
    sizes, starts = jnp.asarray(sizes.T) * t1, jnp.asarray(starts.T) * t1

    def step(pair, at):
        return jax.vmap(lambda z, h, t: _runge_kutta(field, z, h, t))(pair, *at), None

    pair = jax.tree.map(lambda x: jnp.stack([x, x]), z0)
    coarse_and_fine = jax.lax.scan(step, pair, (sizes, starts))[0]
    return jax.tree.map(lambda x: x[1] + (x[1] - x[0]) / 15, coarse_and_fine)


def _runge_kutta(field, z, h, t):
    def ahead(a, k):
        return jax.tree.map(lambda x, y: x + a * y, z, k)

    k1 = field(t, z, None)
    k2 = field(t + h / 2, ahead(h / 2, k1), None)
    k3 = field(t + h / 2, ahead(h / 2, k2), None)
    k4 = field(t + h, ahead(h, k3), None)
    return ahead(h / 6, jax.tree.map(lambda a, b, c, d: a + 2 * b + 2 * c + d, k1, k2, k3, k4))


def minimum(loss, start, num_steps=30):
    """The minimum of a strongly convex loss, by Newton's method with the whole Hessian.

    Of the whole step and its halves it takes the one that leaves the smallest gradient, without
    which the softmax, flat far from its minimum, throws Newton's method out.
    """
    gradient = jax.grad(loss)
    shares = jnp.asarray(0.5 ** np.arange(8))

    def step(_, z):
        hessian = jax.hessian(loss)(z).reshape(z.size, z.size)
        move = jnp.linalg.solve(hessian, gradient(z).reshape(z.size)).reshape(z.shape)
        tried = z[None] - shares[:, None, None] * move[None]
        return tried[jnp.argmin(jnp.sum(jax.vmap(gradient)(tried) ** 2, axis=(1, 2)))]

    return jax.lax.fori_loop(0, num_steps, step, start)


def central_difference(function, x, step=1e-5):
    """Jacobian of a function by central differences; the axes of x come last, as with jax.jacobian.

    The step balances its square, the truncation, against rounding over the step, near eps^(1/3).
    """
    moves = step * np.eye(x.size).reshape(x.size, *x.shape)
    moved = jax.vmap(lambda e: function(x + e))(jnp.asarray(np.concatenate([moves, -moves])))
    rows = (moved[: x.size] - moved[x.size :]) / (2 * step)
    return jnp.moveaxis(rows, 0, -1).reshape(*rows.shape[1:], *x.shape)
