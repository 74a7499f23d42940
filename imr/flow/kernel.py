r"""The flow of a context in coordinates of its labelled tokens.

$$Z(t) = e^{-\lambda t} Z_0 + L B(t)^T V, \qquad dB/dt = g(V Z_S^T) R - \lambda B, \quad B(0) = 0,$$

where g is minus the gradient of the cross-entropy with respect to the products $V Z_S^T$ of the
examples. L is $K_{\cdot S}$ and R the identity, or, with a factor X of few columns, L is X and R is
$X_S$: B is (m, s) or (m, r).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imr._checks import as_floats, check_axis, check_finite
from imr._module import Module
from imr._numerics import matmul
from imr._shapes import check_features
from imr._typing import ScalarLike
from imr.context.examples import Examples, examples_of
from imr.context.fields import context_field
from imr.context.kernels import FactorKernel, Kernel
from imr.errors import ImrError
from imr.flow.integrate import Path, integrate
from imr.flow.solve import Flow, as_flow, finished
from imr.flow.state import as_state, atol_of_coordinates
from imr.flow.state import norm as state_norm
from imr.flow.times import as_times
from imr.models.model import RowModel


def solve_in_context(
    loss: Any, z0: Any, kernel: Any, labelled: Any, ridge: Any, *, t0: Any, t1: Any, ts: Any,
    rtol: ScalarLike, atol: ScalarLike, throw: bool | None, **choices: Any,
) -> Flow:  # fmt: skip
    """`imr.solve_reduced` with a kernel; `choices` go to `integrate`."""
    if labelled is None:
        raise ImrError("labelled must say which tokens are examples, (n,) booleans; found None.")
    given = as_floats("z0", z0)
    check_features(given)
    check_finite("z0", given)
    context = context_field(loss, kernel, labelled, ridge)
    check_axis("z0", given.shape[0], "kernel", context.kernel.size, "tokens")
    num_classes = jax.eval_shape(context.loss.model, given).shape[1]
    examples = examples_of(context, num_classes)
    z0 = as_state(given)
    t0, t1, ts = as_times(t0, t1, ts, z0.dtype)
    field = _field(context.loss.model, examples, z0, context.ridge, jnp.asarray(t0))
    all_tokens = context.kernel
    path = integrate(
        field, field.origin(), t0=t0, t1=t1, ts=ts, rtol=rtol,
        atol=atol_of_coordinates(z0, _length(field, all_tokens, z0), rtol, atol), **choices,
    )  # fmt: skip
    return finished(_read_off(path, z0, all_tokens, field, saved=ts is not None), given, throw)


class ExampleField(Module):
    """dB/dt = g R - lam B."""

    model: RowModel
    examples: Examples
    vectors: Float[Array, "m d"]
    gram: Float[Array, "m m"]
    at_start: Float[Array, "m s"]  # V Z_0^T of the examples
    ridge: Array
    t0: Array

    @property
    def factor(self) -> Float[Array, "s r"] | None:
        """X_S, if coordinates are those of a factor."""
        kernel = self.examples.kernel
        return kernel.factor.astype(self.gram.dtype) if isinstance(kernel, FactorKernel) else None

    def origin(self) -> Float[Array, "m r"]:
        """B(0); features that are not finite show in it."""
        columns = self.at_start.shape[1] if self.factor is None else self.factor.shape[1]
        start = jnp.where(jnp.all(jnp.isfinite(self.at_start)), 0, jnp.nan)
        return jnp.full((self.gram.shape[0], columns), start, self.gram.dtype)

    def __call__(self, t: Any, b: Any, args: Any) -> Any:
        del args
        slope = self.slope(t, b)
        return (slope if self.factor is None else matmul(slope, self.factor)) - self.ridge * b

    def slope(self, t: Any, b: Any) -> Float[Array, "m s"]:
        """g, minus the gradient of each example's cross-entropy."""
        examples = self.examples
        slope = self.model.descent_at(self.products(t, b), examples.targets, where=examples.where)
        return slope.astype(b.dtype)

    def loss(self, t: Any, b: Any) -> Array:
        """The cross-entropy of the examples."""
        examples = self.examples
        return self.model.loss_at(self.products(t, b), examples.targets, where=examples.where)

    def products(self, t: Any, b: Any) -> Float[Array, "m s"]:
        """V Z_S^T."""
        factor = self.factor
        change = self.examples.kernel.mv(b.T).T if factor is None else matmul(b, factor.T)
        return self.kept(t) * self.at_start + matmul(self.gram, change)

    def kept(self, t: Any) -> Array:
        """What the ridge has left of the start."""
        return jnp.exp(-self.ridge * (t - self.t0))

    def lift(self, b: Float[Array, "m r"], kernel: Kernel) -> Float[Array, "n d"]:
        """L B^T V, of all tokens."""
        rows = matmul(b.T, self.vectors)
        if isinstance(kernel, FactorKernel) and self.factor is not None:
            return matmul(kernel.factor.astype(b.dtype), rows)
        return self.examples.spread(kernel, rows)


@eqx.filter_jit
def _field(model: RowModel, examples: Examples, z0: Array, ridge: Array, t0: Array) -> ExampleField:
    vectors = model.span().astype(z0.dtype)
    at_start = matmul(vectors, examples.gather(z0).T)
    gram = matmul(vectors, vectors.T)
    return ExampleField(model, examples, vectors, gram, at_start, ridge.astype(z0.dtype), t0)


@eqx.filter_jit
def _length(field: ExampleField, kernel: Kernel, z0: Array) -> Array:
    """By how much more than B features may be off: |L| |V|, and the root of the ratio of sizes."""
    spread = kernel.bound() if field.factor is None else jnp.sqrt(kernel.bound())
    sizes = field.origin().size / max(z0.size, 1)
    return spread.astype(z0.dtype) * state_norm(field.vectors) * sizes**0.5


@eqx.filter_jit
def _read_off(path: Path, z0: Array, kernel: Kernel, field: ExampleField, *, saved: bool) -> Flow:
    """Features of all tokens at the end and at the times asked for, and the measures of each."""

    def at(t, b):
        z = field.kept(t) * z0 + field.lift(b, kernel)
        slope = field.lift(field(t, b, None) + field.ridge * b, kernel) - field.ridge * z
        return z, field.loss(t, b), state_norm(slope)

    z, loss, norm = at(path.end, path.y)
    if not saved:
        return as_flow(path, z, None, loss[None], norm[None])
    # What was not reached is replaced before it is measured: masked only after, it would make every
    # gradient NaN.
    reached = jnp.isfinite(path.ts)[:, None, None]
    times = jnp.where(reached[:, 0, 0], path.ts, path.end)
    states = jnp.where(reached, path.ys, path.y[None])
    zs, losses, norms = jax.lax.map(lambda pair: at(*pair), (times, states))
    return as_flow(path, z, jnp.where(reached, zs, jnp.inf), losses, norms)
