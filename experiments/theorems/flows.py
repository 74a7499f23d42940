"""A4: reduced flows are the full ones, and so are their gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import jax
import jax.numpy as jnp

from experiments.theorems import reference
from experiments.theorems.claims import (
    ROUNDING,
    SOLVED,
    SOLVED_GRADIENT,
    Check,
    Claim,
    Measured,
    relative_error,
)
from experiments.theorems.fields import heads_loss, latent_loss, query_key_loss, symmetric_loss
from experiments.theorems.problems import Problem
from imr import feature_loss, gradient_field, linear_flow, linear_logits, quadratic_flow

END = 0.5  # time at which flows are compared
TOLERANCES: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-11}


SYMBOLS = {"z": "Z₀", "prototypes": "θ", "theta": "θ", "q": "Q", "k": "K"}


class Reduced(NamedTuple):
    """A reduced flow and the full one that it must equal.

    Attributes:
      id, statement: of the row.
      names: fields of the problem, beside z, to differentiate with respect to.
      loss: problem -> (z -> scalar), whose flow by automatic differentiation is the full one.
      reduced: problem, options -> `Flow` of imr.
    """

    id: str
    statement: str
    names: tuple[str, ...]
    loss: Callable
    reduced: Callable

    def solvers(self, p: Problem, **options: Any) -> tuple[tuple[Any, ...], Callable, Callable]:
        """What to differentiate in, and from there to the end, reduced and full."""
        names = ("z", *self.names)
        moved = lambda arguments: p._replace(**dict(zip(names, arguments, strict=True)))  # noqa: E731

        def reduced(*arguments):
            return self.reduced(moved(arguments), t1=END, **TOLERANCES, **options).z

        def full(*arguments):
            to = moved(arguments)
            return reference.flow(gradient_field(self.loss(to)), to.z, END, num_steps=256)

        return tuple(getattr(p, name) for name in names), reduced, full


def reverse_claim(pair: Reduced) -> Claim:
    """The features at the end, and the gradient of a linear functional of them."""

    def measure(p):
        arguments, reduced, full = pair.solvers(p)

        def answer(end):
            def functional(*arguments):
                z = end(*arguments)
                return jnp.sum(p.weights * z), z

            wrt = tuple(range(len(arguments)))
            return jax.grad(functional, argnums=wrt, has_aux=True)(*arguments)

        found, wanted = answer(reduced), answer(full)
        return Measured((relative_error(found[1], wanted[1]), relative_error(found[0], wanted[0])))

    return _reduced_claim(pair, "gradient", measure, sequential=True)


def forward_claim(pair: Reduced) -> Claim:
    """The features at the end, and their derivative along a direction."""

    def measure(p):
        arguments, reduced, full = pair.solvers(p, adjoint=dfx.ForwardMode())
        direction = jax.tree.map(jnp.cos, arguments)  # any will do
        found, wanted = (jax.jvp(end, arguments, direction) for end in (reduced, full))
        return Measured((relative_error(found[0], wanted[0]), relative_error(found[1], wanted[1])))

    return _reduced_claim(pair, "derivative", measure, sequential=False)


def _reduced_claim(pair, kind, measure, sequential):
    wrt = ", ".join(SYMBOLS[name] for name in ("z", *pair.names))
    checks = (Check("full flow", SOLVED), Check(f"{kind} in {wrt}", SOLVED_GRADIENT))
    return Claim(pair.id, pair.statement, measure, checks, sequential)


def _anchored_loss(p):
    return feature_loss(linear_logits, p.theta, p.labels, anchor=(p.lam, p.anchor))


def _span_claim(id, statement, loss, basis):
    """What of Z(t) - Z_0 lies outside of the span of some vectors (f, d)."""

    def measure(p):
        moved = reference.flow(gradient_field(loss(p)), p.z, END) - p.z
        orthonormal = jnp.linalg.qr(basis(p))[0]
        inside = moved @ orthonormal @ orthonormal.T
        return Measured((relative_error(inside, moved),))

    return Claim(id, statement, measure, (Check("share outside", ROUNDING),))


def _thin(p):
    """The problem with projections of rank 1, so that their span is not everything."""
    return p._replace(q=p.q[:, :, :1], k=p.k[:, :, :1])


SPANS = (
    _span_claim(
        "A4.span.linear",
        "the linear flow never leaves Z₀ + span(rows of θ)",
        lambda p: feature_loss(linear_logits, p.theta[1:], p.labels % (len(p.theta) - 1)),
        lambda p: p.theta[1:].T,
    ),
    _span_claim(
        "A4.span.quadratic",
        "the quadratic flow never leaves Z₀ + span(columns of Q and K)",
        lambda p: query_key_loss(_thin(p)),
        lambda p: jnp.concatenate([_thin(p).q[0], _thin(p).k[0]], axis=1),
    ),
)

PAIRS = (
    Reduced(
        "A4.linear",
        "Z = Z₀ + Bθ, dB/dt = C − softmax(Z₀θᵀ + BG)",
        ("theta",),
        lambda p: feature_loss(linear_logits, p.theta, p.labels),
        lambda p, **options: linear_flow(p.z, p.theta, p.labels, **options),
    ),
    Reduced(
        "A4.anchored",
        "Z = X + exp(−λt)(Z₀ − X) + Bθ, dB/dt = C − softmax(Zθᵀ) − λB",
        ("theta",),
        _anchored_loss,
        lambda p, **options: linear_flow(
            p.z, p.theta, p.labels, anchor=(p.lam, p.anchor), **options
        ),
    ),
    Reduced(
        "A4.latent",
        "latent classes: the same with B of all prototypes",
        ("prototypes",),
        latent_loss,
        lambda p, **options: linear_flow(p.z, p.prototypes, p.labels, group=p.group, **options),
    ),
    Reduced(
        "A4.symmetric",
        "Z = Z₀ + Bφᵀ, dB/dt = (A + Aᵀ)Y, Y = Zφ",
        ("q",),
        symmetric_loss,
        lambda p, **options: quadratic_flow(p.z, p.q[0], None, p.attended, **options),
    ),
    Reduced(
        "A4.query_key",
        "Z = Z₀ + B₁Qᵀ + B₂Kᵀ, dB₁/dt = AZK, dB₂/dt = AᵀZQ",
        ("q", "k"),
        query_key_loss,
        lambda p, **options: quadratic_flow(p.z, p.q[0], p.k[0], p.attended, **options),
    ),
    Reduced(
        "A4.heads",
        "heads: the same with B₁ and B₂ of every head",
        ("q", "k"),
        heads_loss,
        lambda p, **options: quadratic_flow(p.z, p.q, p.k, p.attended, **options),
    ),
)


def claims(forward: bool) -> tuple[Claim, ...]:
    """Those of A4, the derivatives of flows in forward or in reverse mode."""
    return (*SPANS, *map(forward_claim if forward else reverse_claim, PAIRS))
