"""A6 and A7: layers as steps of the flow, orders of convergence, spheres, the read-out's logits."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.attention import dot_product_attention_weights

import imr
from experiments.theorems import formulas, reference
from experiments.theorems.claims import (
    ORDER,
    ROUNDING,
    SINGLE,
    SOLVED,
    Measured,
    identity,
    relative_error,
    slope,
)
from experiments.theorems.fields import query_key_loss, symmetric_loss
from imr.lab.bounds import at_most, near
from imr.lab.claims import Check, Claim
from imr.nn import Block, Classifier
from imr.splitting import rk4, split_step, strang_stages, triple_jump

TAU = 0.25  # the step of the layers, which are equal at any
END = 0.25  # time at which the integrators are compared
# Numbers of steps. The order is measured on the two finest whose error is above the floor: as deep
# in the regime of the order as can be, ten times above what 512 steps add up in rounding, 1e-13.
STEPS = (8, 16, 32, 64, 128, 256, 512)
FITTED = 2
FLOOR = 1e-12


# Layers


def _cross_layer(attend):
    """An Euler step and the residual cross-attention layer of a library."""

    def pair(p):
        def descend(t, z, args):
            return -imr.cross_attention(z, p.theta, p.bias, beta=p.beta)

        bias = (p.beta * p.bias)[None, None, None, :] + jnp.zeros((1, 1, len(p.z), 1))
        queries, keys = p.z[None, :, None], p.theta[None, :, None]
        layer = p.z - TAU * attend(queries, keys, keys, p.beta, bias)[0, :, 0]
        return imr.lie_step([descend], p.z, TAU), layer

    return pair


def _self_layer(attend):
    """The same of multi-head self-attention, masked: values are keys, Q is the output projection."""

    def pair(p):
        def field(t, z, args):
            return -imr.self_attention(z, p.q, p.k, beta=p.beta, where=p.where)

        queries, keys = (jnp.einsum("if,hfr->ihr", p.z, w)[None] for w in (p.q, p.k))
        bias = jnp.where(p.where, 0, -1e30)[None, None]
        heads = attend(queries, keys, keys, p.beta, bias)[0]
        return imr.lie_step([field], p.z, TAU), p.z - TAU * jnp.einsum("ihr,hfr->if", heads, p.q)

    return pair


def flax_attention(q, k, v, beta, bias):
    """flax's attention weights, with its scale 1/sqrt(r) taken out, in the dtype of its inputs."""
    q = q * beta * q.shape[-1] ** 0.5
    weights = dot_product_attention_weights(q, k, bias=bias, deterministic=True)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def jax_attention(q, k, v, beta, bias):
    """jax's attention; its softmax is in float32 inside."""
    return jax.nn.dot_product_attention(q * beta, k, v, bias=bias, scale=1.0)


def _block(p):
    """A transformer block, and Z' = Z - tau CA(Z), Z+ = Z' + tau MLP(Z')."""
    block = Block(p.z.shape[1], len(p.theta), mlp_width=8, tau=TAU, rngs=nnx.Rngs(0))
    block.theta[...], block.bias[...] = p.theta, p.bias
    after = p.z - TAU * jax.nn.softmax(p.z @ p.theta.T + p.bias[None, :], axis=1) @ p.theta
    mlp: Any = block.mlp
    return block(p.z), after + TAU * mlp(after)


def _read_out(p):
    """Logits of an attention-only classifier, and the iteration of the logits alone."""
    depth = 6
    sizes = {"iterations": depth, "mlp_width": None, "tau": TAU}
    model = Classifier(p.z.shape[1], len(p.theta), **sizes, rngs=nnx.Rngs(0))
    model.blocks[0].theta[...], model.blocks[0].bias[...] = p.theta, p.bias
    start = p.z @ p.theta.T + p.bias[None, :]
    return model(p.z), formulas.attention_only_logits(start, p.theta, TAU, depth)


# Orders of convergence


def linear_parts(p):
    """(label term, attention term) of the linear model's flow."""
    return lambda *_: p.targets @ p.theta, lambda t, z, _: -imr.cross_attention(z, p.theta)


def quadratic_parts(p):
    """(label term, row term, column term) of the symmetric quadratic model's flow."""
    phi, both = p.q[0], p.attended + p.attended.T
    return (
        lambda t, z, args: both @ z @ phi @ phi.T,
        lambda t, z, args: -imr.self_attention(z, phi),
        lambda t, z, args: -imr.reverse_attention(z, phi),
    )


def whole(fields):
    """The sum of fields, as one."""
    return lambda t, z, args: sum(field(t, z, args) for field in fields)


def _path(p):
    """theta(t), from theta to that of the prototypes: untied depth."""
    ends = jnp.stack([p.theta, p.prototypes[: len(p.theta)]])
    path = imr.linear_path(jnp.array([0.0, END]), ends)
    return imr.path_field(lambda z, theta: imr.Linear(theta)(z), path, p.targets)


def composed(fields, z, tau, t=0.0, args=None):
    """Strang's splitting composed by the triple jump, order 4; substeps of order 4."""
    stages = triple_jump(strang_stages(len(fields)), 2)
    return split_step(fields, z, tau, t, args, stages=stages, substep=rk4)


def projected_step(fields, z, tau, t=0.0, args=None):
    """An Euler step, then each row back to its norm: a layer with normalisation after it."""
    return formulas.on_spheres(imr.lie_step(fields, z, tau, t, args), jnp.linalg.norm(z, axis=1))


def order(taus, errors):
    """The slope of log error against log tau over the finest few steps above the floor."""
    above = errors > FLOOR
    finer = jnp.cumsum(above[::-1])[::-1]  # how many above the floor, from here on
    return slope(jnp.log(taus), jnp.log(errors), above & (finer <= FITTED))


def order_claim(id, statement, expected, step, fields, field=None, within=ORDER):
    """The order of a step of fields, against the flow of their sum, or of another field."""

    def measure(p):
        parts, counts = fields(p), jnp.array(STEPS)
        end = reference.flow(whole(parts) if field is None else field(p), p.z, END)

        def error(count):
            tau = END / count
            last = jax.lax.fori_loop(0, count, lambda i, z: step(parts, z, tau, i * tau), p.z)
            return jnp.linalg.norm(last - end)

        taus, errors = END / counts, jax.vmap(error)(counts) / jnp.linalg.norm(end)
        return Measured((order(taus, errors),), {"tau": taus, "error": errors})

    return Claim(id, statement, measure, (Check("order", near(float(expected), within)),))


# Spheres


def _sphere(p):
    """The tangent field is orthogonal to the features, and its flow keeps their norms."""
    field = imr.sphere_field(imr.gradient_field(query_key_loss(p)))
    velocity = field(0.0, p.z, None)
    norms = jnp.linalg.norm(p.z, axis=1)
    along = jnp.sum(velocity * p.z, axis=1) / (norms * jnp.linalg.norm(velocity, axis=1))
    end = reference.flow(field, p.z, END)
    return Measured((jnp.max(jnp.abs(along)), relative_error(jnp.linalg.norm(end, axis=1), norms)))


_CROSS = ("A6.layer.cross", "Euler step of the field = residual cross-attention layer")
_SELF = (
    "A6.layer.self", "Euler step of the row term = residual multi-head attention layer, masked"
)  # fmt: skip
CLAIMS = (
    identity(*_CROSS, _cross_layer(flax_attention), "flax's attention"),
    identity(*_CROSS, _cross_layer(jax_attention), "jax's attention (float32)", SINGLE),
    identity(*_SELF, _self_layer(flax_attention), "flax's attention"),
    identity(*_SELF, _self_layer(jax_attention), "jax's attention (float32)", SINGLE),
    identity("A6.block", "transformer block = Lie step: Z′ = Z − τCA(Z), Z⁺ = Z′ + τMLP(Z′)",
             _block, "imr.nn.Block"),
    order_claim("A6.order.euler", "depth is time: L layers of τ = T/L, order 1 (Euler)",
                 1, imr.lie_step, lambda p: (whole(linear_parts(p)),)),
    order_claim("A6.order.untied", "untied layers: the flow under θ(t), order 1 (Euler)",
                 1, imr.lie_step, lambda p: (_path(p),)),
    order_claim("A6.order.lie", "Lie splitting, order 1", 1, imr.lie_step, linear_parts),
    order_claim("A6.order.strang", "Strang splitting, order 2", 2, imr.strang_step, linear_parts),
    order_claim(
        "A6.order.triple_jump", "triple jump of Strang, order 4", 4, composed, linear_parts
    ),
    order_claim("A6.order.quadratic.lie", "Lie splitting of label, row and column term, order 1",
                 1, imr.lie_step, quadratic_parts),
    order_claim("A6.order.quadratic.strang", "Strang splitting of the three, order 2",
                 2, imr.strang_step, quadratic_parts),
    order_claim("A6.order.quadratic.triple_jump", "triple jump of Strang of the three, order 4",
                 4, composed, quadratic_parts),
    Claim(
        "A6.sphere", "tangent field: each row keeps its norm", _sphere,
        (Check("cosine with Z", at_most(ROUNDING)), Check("norms along the flow", at_most(SOLVED))),
    ),
    order_claim("A6.order.sphere", "normalisation after the step: the tangent flow, order 1",
                 1, projected_step, lambda p: (imr.gradient_field(symmetric_loss(p)),),
                 lambda p: imr.sphere_field(imr.gradient_field(symmetric_loss(p)))),
    identity("A7.read_out", "attention-only logits follow a → a − τ softmax(a)G, G = θθᵀ",
             _read_out, "imr.nn.Classifier"),
)  # fmt: skip
