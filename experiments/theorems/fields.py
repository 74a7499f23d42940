"""A1 to A3: the loss, the lemma, and the vector fields of the linear and the quadratic model."""

import jax
import jax.numpy as jnp

from experiments.theorems import formulas, reference
from experiments.theorems.claims import (
    AUTODIFF,
    CENTRAL,
    NO_GRADIENT,
    ROUNDING,
    SOLVED,
    Measured,
    asymmetry,
    errors,
    gradient,
    identity,
)
from imr import Latent, Linear, Polynomial, Quadratic, closed_field, feature_loss, gradient_field
from imr.attention import Normalise
from imr.lab.bounds import at_least, at_most
from imr.lab.claims import Check, Claim

# Losses of a problem p, whose arrays are the fields of `Problem`: the linear model, latent classes,
# the quadratic model of any theta, with one symmetric head, one head of Q and K, and all heads.


def linear_loss(p):
    return feature_loss(Linear(p.theta), p.targets)


def latent_loss(p):
    return feature_loss(Latent(p.prototypes, p.group, num_classes=len(p.theta)), p.labels)


def full_loss(p):
    return feature_loss(Quadratic.full(p.full), p.attended)


def symmetric_loss(p):
    return feature_loss(Quadratic(p.q[0]), p.attended)


def query_key_loss(p):
    return feature_loss(Quadratic(p.q[0], p.k[0]), p.attended)


def heads_loss(p):
    return feature_loss(Quadratic(p.q, p.k), p.attended)


# The models of the lemma: any differentiable map from features to logits will do.
MODELS = {
    "linear": lambda p: Linear(p.theta, p.bias),
    "quadratic": lambda p: Quadratic.full(p.full),
    "polynomial": lambda p: Polynomial(p.theta, 3),
    "network": lambda p: lambda z: jnp.tanh(z @ p.hidden) @ jnp.tanh(p.hidden.T @ p.theta.T),
}


def _lemma(name):
    """d LSE / dZ from the Jacobian of the model."""
    model = MODELS[name]

    def measure(p):
        written, lse = formulas.lemma(model(p), p.z), feature_loss(model(p), None)
        by_differences = reference.central_difference(lse, p.z)
        return errors((written, jax.grad(lse)(p.z)), (written, by_differences))

    statement = f"Lemma: dLSEᵢ(N)/dZ = Σⱼ softmaxᵢⱼ dNᵢⱼ/dZ, {name} model"
    return Claim(f"A1.lemma.{name}", statement, measure, (AUTODIFF, CENTRAL))


def _descent(id, model, loss):
    """dL/dt = -||dL/dZ||^2 at a point, and integrated along the flow."""

    def measure(p):
        value = loss(p)
        descend = gradient_field(value)

        def speed(z):
            return jnp.sum(descend(0.0, z, None) ** 2)

        _, rate = jax.jvp(value, (p.z,), (descend(0.0, p.z, None),))

        def both(t, state, args):
            return descend(t, state[0], args), speed(state[0])

        end, dissipated = reference.flow(both, (p.z, jnp.zeros(())), 1.0)
        return errors((rate, -speed(p.z)), (value(p.z) - value(end), dissipated))

    checks = (AUTODIFF, Check("along the flow", at_most(SOLVED)))
    return Claim(id, f"dL/dt = −‖dL/dZ‖², {model} model", measure, checks)


def _written_loss(p):
    """Losses of the linear and of the quadratic model, by imr and as written."""
    linear = formulas.negative_log_likelihood(p.z @ p.theta.T, p.targets)
    quadratic = formulas.negative_log_likelihood(p.z @ p.full @ p.z.T, p.attended)
    return (linear_loss(p)(p.z), full_loss(p)(p.z)), (linear, quadratic)


def _attention_loss(p):
    """The log-sum-exp of one head, without targets."""
    return feature_loss(Quadratic(p.q[0], p.k[0]), None)


def _query_lse(p):
    """The log-sum-exp over queries, the loss of column normalisation."""
    return lambda z: jnp.sum(jax.nn.logsumexp(Quadratic(p.q[0], p.k[0])(z), axis=0))


def _fixed_keys(p):
    """The log-sum-exp of attention with keys held where they are."""
    keys = jax.lax.stop_gradient(p.z) @ p.k[0]
    return lambda z: jnp.sum(jax.nn.logsumexp(z @ p.q[0] @ keys.T, axis=1))


def _latent_of_one(p):
    """Fields of latent classes of one prototype each, and of the linear model."""
    k = len(p.theta)
    latent = feature_loss(Latent(p.theta, jnp.arange(k), num_classes=k), p.labels)
    linear = feature_loss(Linear(p.theta), p.labels)
    return closed_field(latent)(0.0, p.z, None), closed_field(linear)(0.0, p.z, None)


def _symmetry(id, statement, bound, *, column_term=True, normalise: Normalise = "row"):
    """The Jacobian of a quadratic field: symmetric exactly if it is a gradient."""

    def measure(p):
        field = closed_field(_attention_loss(p), column_term=column_term, normalise=normalise)
        return Measured((asymmetry(field, p.z),))

    return Claim(id, statement, measure, (Check("Jacobian − its transpose", bound),))


CLAIMS = (
    identity("A1.loss", "L = Σᵢ LSEᵢ(N) − ⟨Cᵢ, Nᵢ⟩", _written_loss),
    *(_lemma(name) for name in MODELS),
    _descent("A1.descent.linear", "linear", linear_loss),
    _descent("A1.descent.quadratic", "quadratic", query_key_loss),
    gradient("A2.theorem1", "Theorem 1: dZ/dt = Cθ − softmax(Zθᵀ)θ",
             linear_loss, lambda p, z: formulas.linear(z, p.theta, p.targets)),
    gradient("A2.bias", "N = Zθᵀ + b: CA = softmax(Zθᵀ + b)θ",
             lambda p: feature_loss(Linear(p.theta, p.bias), p.targets),
             lambda p, z: formulas.tempered(z, p.theta, p.bias, 1.0, p.targets)),
    gradient("A2.beta", "β(Zθᵀ + b): dZ/dt = β(Cθ − softmax(β(Zθᵀ + b))θ)",
             lambda p: feature_loss(Linear(p.theta, p.bias, p.beta), p.targets),
             lambda p, z: formulas.tempered(z, p.theta, p.bias, p.beta, p.targets)),
    gradient("A2.anchor", "+ (λ/2)‖Z − X‖²: dZ/dt = Cθ − CA − λ(Z − X)",
             lambda p: feature_loss(Linear(p.theta), p.targets, anchor=(p.lam, p.anchor)),
             lambda p, z: formulas.anchored(z, p.theta, p.targets, p.lam, p.anchor)),
    gradient("A3.theorem2", "Theorem 2: N = ZθZᵀ, dZ/dt = AZθᵀ + AᵀZθ",
             full_loss, lambda p, z: formulas.quadratic(z, p.full, p.attended)),
    gradient("A3.symmetric", "Corollary: θ = φφᵀ, dZ/dt = (A + Aᵀ)Zφφᵀ",
             symmetric_loss, lambda p, z: formulas.symmetric(z, p.q[0], p.attended)),
    gradient("A3.query_key", "θ = QKᵀ: dZ/dt = AZKQᵀ + AᵀZQKᵀ",
             query_key_loss, lambda p, z: formulas.query_key(z, p.q[0], p.k[0], p.attended)),
    gradient("A3.heads", "heads: losses add, fields add",
             heads_loss, lambda p, z: formulas.heads(z, p.q, p.k, p.attended)),
    gradient("A3.mask", "mask and β: the softmax over what takes part",
             lambda p: feature_loss(Quadratic(p.q[0], p.k[0], p.beta), p.visible, where=p.where),
             lambda p, z: formulas.query_key(z, p.q[0], p.k[0], p.visible, p.beta, p.where)),
    *(gradient(f"A3.polynomial{d}", f"N = (Zθᵀ)^{d}: the field from the Lemma",
               lambda p, d=d: feature_loss(Polynomial(p.theta, d), p.targets),
               lambda p, z, d=d: formulas.polynomial(z, p.theta, p.targets, d), closed=False)
      for d in (2, 3)),
    gradient("A3.latent", "latent classes: dZ/dt = CA_own(Z, θ) − CA(Z, θ)",
             latent_loss, lambda p, z: formulas.latent(z, p.prototypes, p.labels, p.group)),
    identity(
        "A3.latent.one", "latent classes of one prototype each are the linear model", _latent_of_one
    ),
    gradient("A3.fixed_keys", "keys held fixed: dLSE/dZ is the row term alone, ordinary attention",
             _fixed_keys, lambda p, z: -formulas.row_term(z, p.q[0], p.k[0]),
             closed=lambda p: closed_field(_attention_loss(p), column_term=False)),
    gradient("A3.columns",
             "softmax over queries P: −(PZKQᵀ + PᵀZQKᵀ) descends the LSE over queries",
             _query_lse, lambda p, z: -formulas.column_normalised(z, p.q[0], p.k[0]),
             closed=lambda p: closed_field(_attention_loss(p), normalise="column")),
    _symmetry("A3.gradient.row", "softmax over keys, row and column term: a gradient",
              at_most(ROUNDING)),
    _symmetry("A3.gradient.column", "softmax over queries, row and column term: a gradient",
              at_most(ROUNDING), normalise="column"),
    _symmetry("A3.gradient.row_alone", "row term alone, keys tied to Z: not a gradient",
              at_least(NO_GRADIENT), column_term=False),
    _symmetry("A3.gradient.double", "both normalisations in turn: not a gradient",
              at_least(NO_GRADIENT), normalise="double"),
)  # fmt: skip
