"""A mark on what a solve depends on: it can be differentiated once, in reverse, and says so.

jax's own errors come from deep inside diffrax, when the program is compiled, and name no remedy.
They cannot be caught where the user's own `jax.jit` compiles. So inputs pass through an identity
whose derivative is a primitive of its own: linear and transposable, which is all that reverse mode
asks for. Forward mode would have to compute it, and a second derivative to differentiate its
transpose; both raise the error.
"""

from typing import Any

import equinox as eqx
import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from imr._typing import PyTree
from imr.errors import ImrError

_MESSAGE = (
    "a solve with the default adjoint can be differentiated once, in reverse mode (jax.grad, "
    "jax.vjp). Forward mode (jax.jvp, jax.jacfwd) needs adjoint=diffrax.ForwardMode(), and second "
    "derivatives (jax.hessian, jax.grad of jax.grad) need adjoint=diffrax.DirectAdjoint()."
)


def once_in_reverse(tree: PyTree) -> PyTree:
    """The tree itself; whatever its derivative cannot do later raises an `ImrError` that says so."""
    inexact, rest = eqx.partition(tree, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(_mark.bind, inexact), rest)


def _identity(name: str) -> Primitive:
    """A primitive that gives back what it is given, under jit and vmap too."""
    primitive = Primitive(name)
    primitive.def_impl(lambda x: x)
    primitive.def_abstract_eval(lambda x: x)
    mlir.register_lowering(primitive, lambda context, x: [x])
    batching.defvectorized(primitive)
    return primitive


def _refuse(*args: Any, **params: Any) -> Any:
    raise ImrError(_MESSAGE)


_mark = _identity("imr_reverse_mode_once")

# The derivative of the mark. Reverse mode transposes it before anything computes it or maps over it.
_tangent = Primitive("imr_reverse_mode_tangent")
_tangent.def_impl(_refuse)
_tangent.def_abstract_eval(lambda x: x)
mlir.register_lowering(_tangent, _refuse)
batching.primitive_batchers[_tangent] = _refuse
ad.deflinear2(_tangent, lambda cotangent, x: [_cotangent.bind(cotangent)])
ad.primitive_jvps[_mark] = lambda primals, tangents: (
    _mark.bind(*primals),
    tangents[0] if isinstance(tangents[0], ad.Zero) else _tangent.bind(*tangents),
)

# The transpose of that.
_cotangent = _identity("imr_reverse_mode_cotangent")
ad.primitive_jvps[_cotangent] = _refuse
