"""A1 to A3: the loss, the lemma, and the vector fields of the linear and the quadratic model."""

import jax
import jax.numpy as jnp

from experiments.theorems import formulas, reference
from experiments.theorems.claims import (
    NO_GRADIENT,
    ROUNDING,
    SOLVED,
    Check,
    Claim,
    Measured,
    asymmetry,
    gradient_claim,
    identity,
    relative_error,
)
from imr import (
    feature_loss,
    gradient_field,
    latent_cross_entropy,
    latent_field,
    linear_field,
    linear_logits,
    low_rank_logits,
    polynomial_logits,
    quadratic_field,
    quadratic_logits,
)


def with_bias(z, parameters):
    """The linear model, its parameters as one pytree."""
    return linear_logits(z, *parameters)


def query_key_logits(z, parameters):
    """The quadratic model of low rank, its parameters as one pytree."""
    return low_rank_logits(z, *parameters)


def linear_loss(p):
    """Of the linear model."""
    return feature_loss(linear_logits, p.theta, p.targets)


def symmetric_loss(p):
    """Of one symmetric head."""
    return feature_loss(low_rank_logits, p.q[0], p.attended)


def query_key_loss(p):
    """Of one head with Q and K."""
    return feature_loss(query_key_logits, (p.q[0], p.k[0]), p.attended)


def heads_loss(p):
    """Of all heads."""
    return feature_loss(query_key_logits, (p.q, p.k), p.attended)


def latent_loss(p):
    """Of latent classes."""
    return lambda z: jnp.sum(
        latent_cross_entropy(linear_logits(z, p.prototypes), p.labels, p.group)
    )


# The models of the lemma: any differentiable map from features to logits will do.
MODELS = {
    "linear": lambda p: lambda z: linear_logits(z, p.theta, p.bias),
    "quadratic": lambda p: lambda z: quadratic_logits(z, p.full),
    "polynomial": lambda p: lambda z: polynomial_logits(z, p.theta, 3),
    "network": lambda p: lambda z: jnp.tanh(z @ p.hidden) @ jnp.tanh(p.hidden.T @ p.theta.T),
}


def _lemma(name):
    """d LSE / dZ from the Jacobian of the model."""
    model = MODELS[name]

    def measure(p):
        written = formulas.lemma(model(p), p.z)
        lse = lambda z: jnp.sum(jax.nn.logsumexp(model(p)(z), axis=1))  # noqa: E731
        return Measured(
            (
                relative_error(written, jax.grad(lse)(p.z)),
                relative_error(written, reference.central_difference(lse, p.z)),
            )
        )

    checks = gradient_claim("", "", linear_loss, lambda p, z: z).checks
    statement = f"Lemma: dLSEᵢ(N)/dZ = Σⱼ softmaxᵢⱼ dNᵢⱼ/dZ, {name} model"
    return Claim(f"A1.lemma.{name}", statement, measure, checks)


def _descent(id, model, loss):
    """dL/dt = -||dL/dZ||^2 at a point, and integrated along the flow."""

    def measure(p):
        value = loss(p)
        descend = gradient_field(value)
        speed = lambda z: jnp.sum(descend(0.0, z, None) ** 2)  # noqa: E731
        _, rate = jax.jvp(value, (p.z,), (descend(0.0, p.z, None),))

        def both(t, state, args):
            return descend(t, state[0], args), speed(state[0])

        end, dissipated = reference.flow(both, (p.z, jnp.zeros(())), 1.0)
        return Measured(
            (
                relative_error(rate, -speed(p.z)),
                relative_error(value(p.z) - value(end), dissipated),
            )
        )

    checks = (Check("autodiff", ROUNDING), Check("along the flow", SOLVED))
    return Claim(id, f"dL/dt = −‖dL/dZ‖², {model} model", measure, checks)


def _written_loss(p):
    """Found and wanted losses of the linear and of the quadratic model."""
    quadratic = feature_loss(quadratic_logits, p.full, p.attended)
    written = (
        formulas.negative_log_likelihood(p.z @ p.theta.T, p.targets),
        formulas.negative_log_likelihood(p.z @ p.full @ p.z.T, p.attended),
    )
    return (linear_loss(p)(p.z), quadratic(p.z)), written


def _query_lse(p):
    """Minus the log-sum-exp over queries, up to sign the loss of column normalisation."""
    return lambda z: jnp.sum(jax.nn.logsumexp(low_rank_logits(z, p.q[0], p.k[0]), axis=0))


def _fixed_keys(p):
    """The log-sum-exp of attention with keys held where they are."""
    keys = jax.lax.stop_gradient(p.z) @ p.k[0]
    return lambda z: jnp.sum(jax.nn.logsumexp(z @ p.q[0] @ keys.T, axis=1))


def _asymmetry_claim(id, statement, gradient, **options):
    """Of the Jacobian of a quadratic field: symmetric exactly where it is a gradient."""

    def measure(p):
        return Measured((asymmetry(quadratic_field(p.q[0], p.k[0], None, **options), p.z),))

    name = "Jacobian − its transpose"
    check = Check(name, ROUNDING) if gradient else Check(name, NO_GRADIENT, "at least")
    return Claim(id, statement, measure, (check,))


CLAIMS = (
    identity("A1.loss", "L = Σᵢ LSEᵢ(N) − ⟨Cᵢ, Nᵢ⟩", _written_loss),
    *(_lemma(name) for name in MODELS),
    _descent("A1.descent.linear", "linear", linear_loss),
    _descent("A1.descent.quadratic", "quadratic", query_key_loss),
    gradient_claim(
        "A2.theorem1",
        "Theorem 1: dZ/dt = Cθ − softmax(Zθᵀ)θ",
        linear_loss,
        lambda p, z: formulas.linear(z, p.theta, p.targets),
        lambda p: linear_field(p.theta, p.targets),
    ),
    gradient_claim(
        "A2.bias",
        "N = Zθᵀ + b: CA = softmax(Zθᵀ + b)θ",
        lambda p: feature_loss(with_bias, (p.theta, p.bias), p.targets),
        lambda p, z: formulas.tempered(z, p.theta, p.bias, 1.0, p.targets),
        lambda p: linear_field(p.theta, p.targets, p.bias),
    ),
    gradient_claim(
        "A2.beta",
        "β(Zθᵀ + b): dZ/dt = β(Cθ − softmax(β(Zθᵀ + b))θ)",
        lambda p: feature_loss(with_bias, (p.theta, p.bias), p.targets, beta=p.beta),
        lambda p, z: formulas.tempered(z, p.theta, p.bias, p.beta, p.targets),
        lambda p: linear_field(p.theta, p.targets, p.bias, beta=p.beta),
    ),
    gradient_claim(
        "A2.anchor",
        "+ (λ/2)‖Z − X‖²: dZ/dt = Cθ − CA − λ(Z − X)",
        lambda p: feature_loss(linear_logits, p.theta, p.targets, anchor=(p.lam, p.anchor)),
        lambda p, z: formulas.anchored(z, p.theta, p.targets, p.lam, p.anchor),
        lambda p: linear_field(p.theta, p.targets, anchor=(p.lam, p.anchor)),
    ),
    gradient_claim(
        "A3.theorem2",
        "Theorem 2: N = ZθZᵀ, dZ/dt = AZθᵀ + AᵀZθ",
        lambda p: feature_loss(quadratic_logits, p.full, p.attended),
        lambda p, z: formulas.quadratic(z, p.full, p.attended),
        lambda p: quadratic_field(p.full, jnp.eye(len(p.full)), p.attended),
    ),
    gradient_claim(
        "A3.symmetric",
        "Corollary: θ = φφᵀ, dZ/dt = (A + Aᵀ)Zφφᵀ",
        symmetric_loss,
        lambda p, z: formulas.symmetric(z, p.q[0], p.attended),
        lambda p: quadratic_field(p.q[0], None, p.attended),
    ),
    gradient_claim(
        "A3.query_key",
        "θ = QKᵀ: dZ/dt = AZKQᵀ + AᵀZQKᵀ",
        query_key_loss,
        lambda p, z: formulas.query_key(z, p.q[0], p.k[0], p.attended),
        lambda p: quadratic_field(p.q[0], p.k[0], p.attended),
    ),
    gradient_claim(
        "A3.heads",
        "heads: losses add, fields add",
        heads_loss,
        lambda p, z: formulas.heads(z, p.q, p.k, p.attended),
        lambda p: quadratic_field(p.q, p.k, p.attended),
    ),
    gradient_claim(
        "A3.mask",
        "mask and β: the softmax over what takes part",
        lambda p: feature_loss(
            query_key_logits, (p.q[0], p.k[0]), p.visible, beta=p.beta, where=p.where
        ),
        lambda p, z: formulas.query_key(z, p.q[0], p.k[0], p.visible, p.beta, p.where),
        lambda p: quadratic_field(p.q[0], p.k[0], p.visible, beta=p.beta, where=p.where),
    ),
    *(
        gradient_claim(
            f"A3.polynomial{degree}",
            f"N = (Zθᵀ)^{degree}: the field from the Lemma",
            lambda p, d=degree: feature_loss(
                lambda z, theta: polynomial_logits(z, theta, d), p.theta, p.targets
            ),
            lambda p, z, d=degree: formulas.polynomial(z, p.theta, p.targets, d),
        )
        for degree in (2, 3)
    ),
    gradient_claim(
        "A3.latent",
        "latent classes: dZ/dt = CA_own(Z, θ) − CA(Z, θ)",
        latent_loss,
        lambda p, z: formulas.latent(z, p.prototypes, p.labels, p.group),
        lambda p: latent_field(p.prototypes, p.labels, p.group),
    ),
    identity(
        "A3.latent.one",
        "latent classes of one prototype each are the linear model",
        lambda p: (
            latent_field(p.theta, p.labels, jnp.arange(len(p.theta)))(0.0, p.z, None),
            linear_field(p.theta, p.labels)(0.0, p.z, None),
        ),
    ),
    gradient_claim(
        "A3.fixed_keys",
        "keys held fixed: dLSE/dZ is the row term alone, ordinary attention",
        _fixed_keys,
        lambda p, z: -formulas.row_term(z, p.q[0], p.k[0]),
        lambda p: quadratic_field(p.q[0], p.k[0], None, column_term=False),
    ),
    gradient_claim(
        "A3.columns",
        "softmax over queries P: −(PZKQᵀ + PᵀZQKᵀ) descends the LSE over queries",
        _query_lse,
        lambda p, z: -formulas.column_normalised(z, p.q[0], p.k[0]),
        lambda p: quadratic_field(p.q[0], p.k[0], None, normalise="column"),
    ),
    _asymmetry_claim("A3.gradient.row", "softmax over keys, row and column term: a gradient", True),
    _asymmetry_claim(
        "A3.gradient.column",
        "softmax over queries, row and column term: a gradient",
        True,
        normalise="column",
    ),
    _asymmetry_claim(
        "A3.gradient.row_alone",
        "row term alone, keys tied to Z: not a gradient",
        False,
        column_term=False,
    ),
    _asymmetry_claim(
        "A3.gradient.double",
        "both normalisations in turn: not a gradient",
        False,
        normalise="double",
    ),
)
