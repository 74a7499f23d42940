"""The eight flows, and what is measured along them: one program, whatever the setting."""

from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

import imr
from imr.metrics import antisymmetric_share, cluster_count, token_cosines

BINS = 64  # of the histogram of cosines, over [-1, 1]


class Setting(NamedTuple):
    """Which of the eight flows, and its names in figures and tables."""

    sign: int  # -1 goes down the log-sum-exp (tokens repel), +1 up it (tokens attract)
    sphere: bool
    column_term: bool

    @property
    def name(self) -> str:
        """All of it in words."""
        return f"{self.direction}, {self.place}, {self.terms}"

    @property
    def direction(self) -> str:
        """The sign in words."""
        return "ascent" if self.sign > 0 else "descent"

    @property
    def place(self) -> str:
        """Where the tokens live, in words."""
        return "on the sphere" if self.sphere else "off the sphere"

    @property
    def terms(self) -> str:
        """The terms of the field, in words."""
        return "row + column" if self.column_term else "row only"

    @property
    def surface(self) -> str:
        """Where the tokens live, in names of files."""
        return "sphere" if self.sphere else "plane"

    @property
    def key(self) -> str:
        """The name of an array, beside the sign."""
        return f"{self.surface}_row_column" if self.column_term else f"{self.surface}_row"


SETTINGS = tuple(Setting(*choice) for choice in product((1, -1), (True, False), (False, True)))


def token_field(setting: Setting, phi, beta) -> Partial:
    r"""The field of a setting, in the time of Geshkovski et al., $t = \beta t_{imr}$.

    $$dz/dt = \pm P_z [SA(Z, \phi) + c \, SA_{rev}(Z, \phi)]$$

    P is the projection to the tangent (on the sphere only), c is 1 with the column term, else 0.
    """
    return Partial(_flow, *_flags(setting), phi, beta)


def _flags(setting: Setting):
    """A setting as arrays: arguments of a program, so that it is compiled once for all eight."""
    return tuple(map(jnp.asarray, (float(setting.sign), setting.sphere, setting.column_term)))


def _flow(sign, sphere, column_term, phi, beta, t, z, args):
    """Both terms are taken and one chosen: much less to compile than a branch for each setting.

    The temperature goes in with phi. Where it multiplies finished logits, a compiler may fuse that
    product into the softmax's subtraction of the maximum; of huge logits the difference can then be
    positive, and overflow.
    """
    scaled = jnp.sqrt(beta) * phi
    loss = imr.feature_loss(imr.Quadratic(scaled), None)
    row, whole = (imr.closed_field(loss, column_term=c)(t, z, args) for c in (False, True))
    # imr's field goes down, in imr's time.
    field = -sign / beta * jnp.where(column_term, whole, row)
    tangent = imr.sphere_field(lambda t, z, args: field)(t, z, args)
    return jnp.where(sphere, tangent, field)


class Energies(NamedTuple):
    """Two functions of the tokens, each in units that make its flow free of beta."""

    attention: Any
    r"""$\frac1\beta \sum_i LSE_i(\beta Z \phi \phi^T Z^T)$: the flow with the column term is its
    gradient flow."""
    interaction: Any
    r"""$\frac1\beta \log \sum_{ij} \exp(\beta N_{ij})$. Its gradient is the row term with row i
    weighed by $2 Z_i / \sum_l Z_l$, Z_i the softmax's denominator, so that the flow of the row term
    alone is monotone in it (the interaction energy of Geshkovski et al., Section 3.3)."""


def energies(z, phi, beta) -> Energies:
    """Both energies of tokens (n, d)."""
    logits = imr.Quadratic(jnp.sqrt(beta) * phi)(z)
    rows = jax.nn.logsumexp(logits, axis=1)
    return Energies(rows.sum() / beta, jax.nn.logsumexp(rows) / beta)


class Measures(NamedTuple):
    """Of tokens at a time; NaN where the flow did not get there."""

    mean_cosine: Any
    clusters: Any
    attention_energy: Any
    interaction_energy: Any
    gradient_cosine: Any  # of the field and the gradient of the attention energy
    speed: Any  # root mean square over tokens of the field's norm
    norm: Any  # root mean square norm of a token
    norm_error: Any  # the largest distance of a token's norm from 1
    histogram: Any  # pairs in each bin of the cosine, shape (BINS,)


class Flows(NamedTuple):
    """Solved flows of one setting, over inverse temperatures and seeds."""

    measures: Measures  # leaves of shape (b, s, 1 + t, ...): at time 0 first
    result: Any  # codes of `imr.Result`, shape (b, s)
    steps: Any
    antisymmetric_start: Any  # share of the unprojected field's Jacobian, shape (b, s)
    antisymmetric_later: Any  # the same at the time asked for
    paths: Any  # of the first seed, shape (b, 1 + t, n, d); inf where the flow did not get there


@partial(jax.jit, static_argnames=("probes", "max_steps"))
def solve(flags, phi, betas, z0, ts, later, keys, threshold, rtol, *, probes, max_steps) -> Flows:
    """Solves a setting, given as arrays, for every inverse temperature and seed in one program."""

    def one(beta, z0, phi, key):
        field = Partial(_flow, *flags, phi, beta)
        options = {"rtol": rtol, "atol": rtol / 100, "max_steps": max_steps}
        flow: Any = imr.solve(field, z0, t1=ts[-1], ts=ts, **options)
        zs = jnp.concatenate([z0[None], flow.zs])
        measures = jax.lax.map(partial(_measure, flags, phi, beta, threshold), zs)
        # Unprojected: a gradient's projection to the sphere has no symmetric Jacobian in R^d.
        ambient = Partial(_flow, flags[0], jnp.asarray(False), flags[2], phi, beta)

        def share(z):
            reached = jnp.isfinite(z).all()
            share = antisymmetric_share(ambient, jnp.where(reached, z, 1.0), key, probes)
            return jnp.where(reached, share, jnp.nan)

        first, second = jax.lax.map(share, zs[jnp.array([0, later + 1])])
        return Flows(measures, flow.result, flow.num_steps, first, second, zs)

    over_seeds = jax.vmap(one, in_axes=(None, 0, 0, 0))
    flows = jax.vmap(over_seeds, in_axes=(0, None, None, None))(betas, z0, phi, keys)
    return flows._replace(paths=flows.paths[:, 0])


def _measure(flags, phi, beta, threshold, z) -> Measures:
    n = z.shape[0]
    reached = jnp.isfinite(z).all()
    z = jnp.where(reached, z, 1.0)
    cosines = token_cosines(z)
    other = ~jnp.eye(n, dtype=bool)
    bins = jnp.clip(jnp.floor((cosines + 1) / 2 * BINS), 0, BINS - 1).astype(int)
    histogram = jnp.zeros(BINS, z.dtype).at[bins].add(jnp.where(other, 0.5, 0.0))
    sign, sphere, column_term = flags
    field, gradient = jax.vmap(lambda c: _flow(sign, sphere, c, phi, beta, 0.0, z, None))(
        jnp.stack([column_term, jnp.ones_like(column_term)])
    )
    # Scaled first: the squares of large features overflow before they do.
    largest = jnp.abs(z).max()
    norms = jnp.linalg.norm(z / largest, axis=1)
    measures = Measures(
        jnp.sum(cosines * other) / (n * (n - 1)), cluster_count(z, threshold).astype(z.dtype),
        *energies(z, phi, beta), _cosine(field, gradient), jnp.sqrt(jnp.sum(field**2) / n),
        largest * jnp.sqrt(jnp.mean(norms**2)), jnp.abs(largest * norms - 1).max(), histogram,
    )  # fmt: skip
    return jax.tree.map(lambda x: jnp.where(reached, x, jnp.nan), measures)


def _cosine(a, b):
    """Scaled first: products of tiny fields underflow. Not defined where a field is zero."""
    a, b = (x / jnp.abs(x).max() for x in (a, b))
    return jnp.sum(a * b) / jnp.sqrt(jnp.sum(a**2) * jnp.sum(b**2))


def start(config) -> tuple[Any, Any, Any]:
    """Tokens (s, n, d) uniform on the unit sphere, phi (s, d, r), and keys (s,), of each seed."""

    def one(seed):
        tokens, projection, probes = jax.random.split(jax.random.key(seed), 3)
        z = jax.random.normal(tokens, (config.tokens, config.dim))
        z = z / jnp.linalg.norm(z, axis=1, keepdims=True)
        if config.rank is None:
            return z, jnp.eye(config.dim), probes
        phi = jax.random.normal(projection, (config.dim, config.rank)) / config.rank**0.5
        return z, phi, probes

    return jax.jit(jax.vmap(one))(config.seed + jnp.arange(config.seeds))
