"""A mark on what a solve depends on: it can be differentiated once, in reverse, and says so.

jax's own errors come from deep inside diffrax, when the program is compiled, and name no remedy.
They cannot be caught where the user's own `jax.jit` compiles. So inputs pass through an identity
whose derivative is a primitive of its own: linear and transposable, which is all that reverse mode
asks for. Forward mode would have to compute it, and a second derivative to differentiate its
transpose; both raise the error.
"""

from functools import partial
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from imr._checks import is_concrete
from imr._typing import PyTree
from imr.errors import ImrError

_SOLVE = (
    "a solve with {} can be differentiated once, in reverse mode (jax.grad, "
    "jax.vjp). Forward mode (jax.jvp, jax.jacfwd) needs adjoint=diffrax.ForwardMode(), and second "
    "derivatives (jax.hessian, jax.grad of jax.grad) need adjoint=diffrax.DirectAdjoint()."
)
_FORWARD = (
    "a solve with ForwardMode can be differentiated in forward mode (jax.jvp, jax.jacfwd), once and "
    "again. Reverse mode (jax.grad, jax.vjp) is what the default adjoint is for, and jax.hessian needs "
    "adjoint=diffrax.DirectAdjoint()."
)
_STEADY = (
    "a steady state can be differentiated in reverse mode (jax.grad, jax.vjp), once and again. For "
    "forward mode (jax.jvp, jax.jacfwd, jax.hessian) take jax.jacrev, or follow its flow by imr.solve "
    "to a late t1 with adjoint=diffrax.ForwardMode(), or DirectAdjoint() for jax.hessian."
)


def once_in_reverse(tree: PyTree, adjoint: dfx.AbstractAdjoint) -> PyTree:
    """The tree itself; whatever its derivative cannot do later raises an `ImrError` that says so."""
    name = (
        "BacksolveAdjoint" if isinstance(adjoint, dfx.BacksolveAdjoint) else "the default adjoint"
    )
    return _marked(tree, message=_SOLVE.format(name), once=True)


def forward_alone(tree: PyTree) -> PyTree:
    """The tree itself, of results by ForwardMode; reverse mode raises an `ImrError`."""
    inexact, rest = eqx.partition(tree, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(_forward.bind, inexact), rest)


def with_captured(field: Any, traced: Any, args: Any, *shapes: Any) -> Any:
    """A field that holds the traced values that it closes over as leaves, for marks and adjoints.

    Args:
      field: a pytree, called as field(t, z, args).
      traced: its jaxpr, in which these values are constants.
      args: of the field.
      shapes: those of t and z.
    Returns: field itself if it closes over none: a converted one would compile at every call.
    """
    known = {id(leaf) for leaf in jax.tree.leaves((field, args))}
    if any(not is_concrete(x) and id(x) not in known for x in traced.consts):
        return eqx.filter_closure_convert(field, *shapes, args)
    return field


def in_reverse(tree: PyTree) -> PyTree:
    """The tree itself, for a steady state; forward mode raises an `ImrError`, reverse mode never."""
    return _marked(tree, message=_STEADY, once=False)


def _marked(tree, **params):
    inexact, rest = eqx.partition(tree, eqx.is_inexact_array)
    mark = partial(_mark.bind, done=False, **params)
    return eqx.combine(jax.tree.map(mark, inexact), rest)


def _identity(name: str) -> Primitive:
    """A primitive that gives back what it is given, under jit and vmap too."""
    primitive = Primitive(name)
    primitive.def_impl(lambda x, **params: x)
    primitive.def_abstract_eval(lambda x, **params: x)
    mlir.register_lowering(primitive, lambda context, x, **params: [x])
    batching.defvectorized(primitive)
    return primitive


def _refuse(*args: Any, message: str, **params: Any) -> Any:
    raise ImrError(message)


def _mark_jvp(primals, tangents, *, done, **params):
    (tangent,) = tangents
    if not isinstance(tangent, ad.Zero):
        if done:
            _refuse(**params)
        tangent = _tangent.bind(tangent, **params)
    # The value in a derivative is not differentiated again.
    return _mark.bind(*primals, done=params["once"], **params), tangent


def _transposed(cotangent, x, **params):
    return [_cotangent.bind(cotangent, **params) if params["once"] else cotangent]


_mark = _identity("imr_reverse_mode_once")
ad.primitive_jvps[_mark] = _mark_jvp

# The derivative of the mark. Reverse mode transposes it before anything computes it or maps over it.
_tangent = Primitive("imr_reverse_mode_tangent")
_tangent.def_impl(_refuse)
_tangent.def_abstract_eval(lambda x, **params: x)
mlir.register_lowering(_tangent, _refuse)
batching.primitive_batchers[_tangent] = _refuse
ad.deflinear2(_tangent, _transposed)

# The transpose of that.
_cotangent = _identity("imr_reverse_mode_cotangent")
ad.primitive_jvps[_cotangent] = _refuse

# A mark on results, whose derivative is not transposed.
_forward = _identity("imr_forward_mode")
_forward_tangent = _identity("imr_forward_mode_tangent")
ad.deflinear2(_forward_tangent, lambda *args: _refuse(message=_FORWARD))


def _forward_jvp(primals, tangents):
    (tangent,) = tangents
    if not isinstance(tangent, ad.Zero):
        tangent = _forward_tangent.bind(tangent)
    return _forward.bind(*primals), tangent


ad.primitive_jvps[_forward] = _forward_jvp
