"""A4: reduced flows are the full ones, and so are their gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import jax
import jax.numpy as jnp

from experiments.theorems import reference
from experiments.theorems.claims import SOLVED, errors, identity
from experiments.theorems.fields import heads_loss, latent_loss, query_key_loss, symmetric_loss
from imr import Linear, feature_loss, gradient_field, solve_reduced
from imr.lab.bounds import at_most
from imr.lab.claims import Check, Claim

END = 0.5  # time at which flows are compared
TOLERANCES: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-11}
SYMBOLS = {"z": "Z₀", "prototypes": "θ", "theta": "θ", "q": "Q", "k": "K"}


class Reduced(NamedTuple):
    """A reduced flow and the full one that it must equal, by automatic differentiation of the loss.

    `names`: fields of the problem, beside z, to differentiate with respect to.
    """

    id: str
    statement: str
    names: tuple[str, ...]
    loss: Callable


def _reduced_claim(pair: Reduced, forward: bool) -> Claim:
    """The features at the end; their derivative along a direction, or the gradient of a functional."""
    names = ("z", *pair.names)

    def moved(p, arguments):
        return p._replace(**dict(zip(names, arguments, strict=True)))

    def measure(p):
        arguments = tuple(getattr(p, name) for name in names)

        def reduced(*arguments):
            to, adjoint = moved(p, arguments), dfx.ForwardMode() if forward else None
            return solve_reduced(pair.loss(to), to.z, t1=END, adjoint=adjoint, **TOLERANCES).z

        def full(*arguments):
            to = moved(p, arguments)
            return reference.flow(gradient_field(pair.loss(to)), to.z, END, num_steps=256)

        def answer(end):
            if forward:
                return jax.jvp(end, arguments, jax.tree.map(jnp.cos, arguments))  # any will do

            def functional(*arguments):
                z = end(*arguments)
                return jnp.sum(p.weights * z), z

            wrt = tuple(range(len(arguments)))
            slope, z = jax.grad(functional, argnums=wrt, has_aux=True)(*arguments)
            return z, slope

        return errors(*zip(answer(reduced), answer(full), strict=True))

    # One problem after the other: the loops of an adaptive solver and of its adjoint take far longer
    # to compile side by side.
    measure = measure if forward else jax.custom_batching.sequential_vmap(measure)
    wrt = ", ".join(SYMBOLS[name] for name in names)
    slope = Check(f"{'derivative' if forward else 'gradient'} in {wrt}", at_most(SOLVED))
    return Claim(pair.id, pair.statement, measure, (Check("full flow", at_most(SOLVED)), slope))


def _labelled_loss(p):
    return feature_loss(Linear(p.theta), p.labels)


def _anchored_loss(p):
    return feature_loss(Linear(p.theta), p.labels, anchor=(p.lam, p.anchor))


def _span_claim(id, statement, loss, basis):
    """The share of Z(t) - Z_0 outside of the span of some vectors (f, d)."""

    def inside(p):
        moved = reference.flow(gradient_field(loss(p)), p.z, END) - p.z
        orthonormal = jnp.linalg.qr(basis(p))[0]
        return moved @ orthonormal @ orthonormal.T, moved

    return identity(id, statement, inside, "share outside")


def _thin(p):
    """The problem with projections of rank 1, so that their span is not everything."""
    return p._replace(q=p.q[:, :, :1], k=p.k[:, :, :1])


SPANS = (
    _span_claim("A4.span.linear", "the linear flow never leaves Z₀ + span(rows of θ)",
                lambda p: feature_loss(Linear(p.theta[1:]), p.labels % (len(p.theta) - 1)),
                lambda p: p.theta[1:].T),
    _span_claim("A4.span.quadratic",
                "the quadratic flow never leaves Z₀ + span(columns of Q and K)",
                lambda p: query_key_loss(_thin(p)),
                lambda p: jnp.concatenate([_thin(p).q[0], _thin(p).k[0]], axis=1)),
)  # fmt: skip

PAIRS = (
    Reduced("A4.linear", "Z = Z₀ + Bθ, dB/dt = C − softmax(Z₀θᵀ + BG)", ("theta",), _labelled_loss),
    Reduced("A4.anchored", "Z = X + exp(−λt)(Z₀ − X) + Bθ, dB/dt = C − softmax(Zθᵀ) − λB",
            ("theta",), _anchored_loss),
    Reduced("A4.latent", "latent classes: the same with B of all prototypes", ("prototypes",),
            latent_loss),
    Reduced("A4.symmetric", "Z = Z₀ + Bφᵀ, dB/dt = (A + Aᵀ)Y, Y = Zφ", ("q",), symmetric_loss),
    Reduced("A4.query_key", "Z = Z₀ + B₁Qᵀ + B₂Kᵀ, dB₁/dt = AZK, dB₂/dt = AᵀZQ", ("q", "k"),
            query_key_loss),
    Reduced("A4.heads", "heads: the same with B₁ and B₂ of every head", ("q", "k"), heads_loss),
)  # fmt: skip


def claims(forward: bool) -> tuple[Claim, ...]:
    """The claims of A4, flows differentiated in forward or in reverse mode."""
    return (*SPANS, *(_reduced_claim(pair, forward) for pair in PAIRS))
