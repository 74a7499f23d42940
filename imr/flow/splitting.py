r"""Operator splitting: one field after the other instead of all at once.

A step of $dz/dt = f_0 + f_1 + ...$ is a sequence of stages. Each stage follows one field for a share
of the step, by some substep (Euler, midpoint, Runge-Kutta, or the exact flow). A transformer block
without normalisation is a Lie step of two fields, attention and MLP, by Euler.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import diffrax as dfx
import jax
import numpy as np

from imr._checks import check_count, check_scalar
from imr._typing import Field, ScalarLike
from imr.errors import ImrError
from imr.flow.state import as_arrays, cast_like

Stages = Sequence[tuple[int, float]]
Substep = Callable[[Field, Any, Any, Any, Any], Any]


def lie_step(
    fields: Sequence[Field], z: Any, tau: ScalarLike, t: ScalarLike = 0.0, args: Any = None
) -> Any:
    r"""Lie splitting: one explicit Euler step of each field in turn, first order in tau.

    $$z \leftarrow z + \tau f_j(t, z, args), \quad j = 1, 2, ...$$

    With one field it is an Euler step of the flow, a residual attention layer; with the attention
    term and an MLP it is a transformer block.

    Args:
      fields: functions f(t, z, args), in order of application.
      z: features, any pytree of floating arrays, whose dtypes a step keeps.
      tau: step size.
      t: time at the start of the step.
      args: handed to each field.
    Returns: The features at t + tau, as z.
    Raises: ImrError if fields is empty or not a sequence of callables, or z is not floating.

    >>> import jax.numpy as jnp
    >>> double = lambda t, z, args: z
    >>> lie_step([double, double], jnp.array(1.0), 0.5).item()
    2.25

    Reference: arXiv 2509.04653, Corollary on operator splitting.
    """
    stages = lie_stages(len(check_fields(fields)))
    return split_step(fields, z, tau, t, args, stages=stages, substep=euler)


def strang_step(
    fields: Sequence[Field], z: Any, tau: ScalarLike, t: ScalarLike = 0.0, args: Any = None
) -> Any:
    """Strang splitting, symmetric in time, second order in tau.

    For two fields: half a step of f0, a full step of f1, half a step of f0. For more: half steps of
    all but the last in order, the full last one, the half steps again in reverse. Each substep uses
    the explicit midpoint rule.

    Args:
      fields, z, tau, t, args: as in `lie_step`.
    Returns: The features at t + tau, as z.
    Raises: ImrError if fields is empty or not a sequence of callables, or z is not floating.

    >>> import jax.numpy as jnp
    >>> double = lambda t, z, args: z
    >>> strang_step([double], jnp.array(1.0), 1.0).item()
    2.5

    Reference: Strang, SIAM J. Numer. Anal. 5 (1968); arXiv 2509.04653, Corollary on splitting.
    """
    stages = strang_stages(len(check_fields(fields)))
    return split_step(fields, z, tau, t, args, stages=stages, substep=midpoint)


def split_step(
    fields: Sequence[Field],
    z: Any,
    tau: ScalarLike,
    t: ScalarLike = 0.0,
    args: Any = None,
    *,
    stages: Stages,
    substep: "Substep | Sequence[Substep] | None" = None,
) -> Any:
    r"""One step of any splitting: stage by stage, each field for a share of the step.

    Stage (j, c) follows $dz/dt = f_j(t, z, args)$ for a time $c \tau$. Each field has its own clock,
    moved by its own stages alone, so that the order of the splitting holds for fields that depend on
    time.

    Args:
      fields, z, tau, t, args: as in `lie_step`.
      stages: pairs (index of a field, share of the step), in order of application; the shares of
        each field add up to 1. `lie_stages`, `strang_stages` and `triple_jump` make them.
      substep: how a stage follows its field: `euler`, `midpoint`, `rk4` (the default),
        `exact(flow)`, or any function (field, z, tau, t, args) -> z; or one of them for each field.
        The order of the whole is at most theirs.
    Returns: The features at t + tau, as z.
    Raises: ImrError if fields is no sequence of callables, a stage names no field, the shares of a
      field do not add up to 1, or there is not one substep for each field.

    >>> import jax.numpy as jnp
    >>> decay, push = lambda t, z, args: -z, lambda t, z, args: 2.0
    >>> both = exact(lambda z, tau, t, args: z * jnp.exp(-tau)), euler  # each field's own flow
    >>> split_step([decay, push], 1.0, 1.0, stages=strang_stages(2), substep=both).round(4).item()
    1.5809

    Reference: McLachlan, Quispel, "Splitting methods", Acta Numerica 11 (2002).
    """
    check_fields(fields)
    stages, substeps = _check_stages(stages, len(fields)), _check_substeps(substep, len(fields))
    check_scalar("tau", tau)
    check_scalar("t", t)
    clocks = [t] * len(fields)
    z = as_arrays("z", z)
    for index, share in stages:
        # A step in parameters of another precision is in that of z.
        z = cast_like(substeps[index](fields[index], z, share * tau, clocks[index], args), z)
        clocks[index] = clocks[index] + share * tau
    return z


# Stages


def lie_stages(num_fields: int) -> Stages:
    """Each field once, for the whole step: order 1.

    >>> lie_stages(2)
    ((0, 1.0), (1, 1.0))
    """
    check_count("num_fields", num_fields)
    return tuple((index, 1.0) for index in range(num_fields))


def strang_stages(num_fields: int) -> Stages:
    """Half steps of all fields but the last, a full one of it, half steps in reverse: order 2.

    >>> strang_stages(2)
    ((0, 0.5), (1, 1.0), (0, 0.5))
    """
    check_count("num_fields", num_fields)
    outer = tuple((index, 0.5) for index in range(num_fields - 1))
    return (*outer, (num_fields - 1, 1.0), *outer[::-1])


def triple_jump(stages: Stages, order: int) -> Stages:
    r"""From a symmetric splitting of even order p one of order p + 2: forward, back, forward.

    $$S_{\gamma \tau} \circ S_{(1 - 2 \gamma) \tau} \circ S_{\gamma \tau}, \quad
      \gamma = 1 / (2 - 2^{1 / (p + 1)})$$

    The step in the middle goes back in time, as some step of any splitting of order above 2 must. It
    does not suit a field that damps strongly, or that has noise.

    Args:
      stages: the stages of S, which must read the same backwards.
      order: p, the order of S.
    Raises: ImrError if the stages are not symmetric, or the order is not even.

    >>> [round(share, 4) for _, share in triple_jump(((0, 1.0),), 2)]
    [1.3512, -1.7024, 1.3512]

    Reference: Yoshida, Physics Letters A 150 (1990).
    """
    stages = _as_stages(stages)
    check_count("order", order)
    if order < 2 or order % 2:
        raise ImrError(f"order must be that of the stages, even and at least 2; found {order}.")
    if stages != stages[::-1]:
        raise ImrError(
            f"stages must be the same read backwards, as strang_stages are; found {stages}."
        )
    jump = 1 / (2 - 2 ** (1 / (order + 1)))
    return tuple(
        (index, scale * share) for scale in (jump, 1 - 2 * jump, jump) for index, share in stages
    )


# Substeps


def euler(field: Field, z: Any, tau: ScalarLike, t: ScalarLike, args: Any) -> Any:
    """Explicit Euler: order 1, and exact for a constant field."""
    z = _checked(field, z, tau, t)
    return _axpy(tau, field(t, z, args), z)


def midpoint(field: Field, z: Any, tau: ScalarLike, t: ScalarLike, args: Any) -> Any:
    """The explicit midpoint rule: order 2."""
    z = _checked(field, z, tau, t)
    middle = _axpy(tau / 2, field(t, z, args), z)
    return _axpy(tau, field(t + tau / 2, middle, args), z)


def rk4(field: Field, z: Any, tau: ScalarLike, t: ScalarLike, args: Any) -> Any:
    """The classical Runge-Kutta method: order 4."""
    z = _checked(field, z, tau, t)
    k1 = field(t, z, args)
    k2 = field(t + tau / 2, _axpy(tau / 2, k1, z), args)
    k3 = field(t + tau / 2, _axpy(tau / 2, k2, z), args)
    k4 = field(t + tau, _axpy(tau, k3, z), args)
    mean = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, k1, k2, k3, k4)
    return _axpy(tau, mean, z)


def _checked(field, z, tau, t):
    """z as floating arrays; of a field and of numbers."""
    check_fields([field])
    check_scalar("tau", tau)
    check_scalar("t", t)
    return as_arrays("z", z)


def exact(flow: Callable[[Any, Any, Any, Any], Any]) -> Substep:
    """The substep of a field whose flow is known: (z, tau, t, args) -> the features at t + tau."""

    def substep(field, z, tau, t, args):
        del field
        return flow(z, tau, t, args)

    return substep


class Splitting(dfx.AbstractSolver):
    """A splitting as a solver of diffrax: `diffeqsolve(MultiTerm(ODETerm(f0), ODETerm(f1)), ...)`.

    It has no error estimate, so its steps are constant: `ConstantStepSize`, or `dt0` in
    `imr.solve([f0, f1], ...)`.

    Args:
      stages, substep: as in `split_step`.

    >>> import diffrax as dfx, jax.numpy as jnp
    >>> terms = dfx.MultiTerm(dfx.ODETerm(lambda t, z, args: -z), dfx.ODETerm(lambda t, z, args: z))
    >>> end = dfx.diffeqsolve(terms, Splitting(strang_stages(2)), 0.0, 1.0, 0.1, jnp.array(3.0))
    >>> end.ys.round(4).item()
    3.0
    """

    stages: tuple[tuple[int, float], ...]
    substep: Any

    term_structure = dfx.MultiTerm
    interpolation_cls = dfx.LocalLinearInterpolation

    def __init__(self, stages: Stages, substep: Any = None):
        self.stages = _as_stages(stages)
        several = isinstance(substep, list | tuple)
        _check_substeps(substep, len(substep) if several else 1)
        self.substep = tuple(substep) if several else substep

    def init(self, terms, t0, t1, y0, args) -> None:
        """No state is carried from step to step."""
        del terms, t0, t1, y0, args

    def func(self, terms, t0, y0, args) -> Any:
        """The sum of the fields."""
        return jax.tree.map(lambda *parts: sum(parts), *terms.vf(t0, y0, args))

    def step(self, terms, t0: Any, t1: Any, y0, args, solver_state, made_jump):
        """One step from t0 to t1."""
        del made_jump
        fields = [_directed(term, t0, t1) for term in terms.terms]
        y1 = split_step(fields, y0, t1 - t0, t0, args, stages=self.stages, substep=self.substep)
        return y1, None, {"y0": y0, "y1": y1}, solver_state, dfx.RESULTS.successful


def _directed(term: Any, t0: Any, t1: Any) -> Field:
    """The term's field, with the sign that diffrax gives its steps if it goes back in time."""
    control = term.contr(t0, t1)
    if jax.tree.structure(control) != jax.tree.structure(0.0) or jax.numpy.ndim(control) != 0:
        raise ImrError("Splitting takes terms of time, ODETerm; found one with another control.")
    sign = control / (t1 - t0)
    return lambda t, y, args: jax.tree.map(lambda x: sign * x, term.vf(t, y, args))


def _axpy(a: ScalarLike, x: Any, y: Any) -> Any:
    return jax.tree.map(lambda x_, y_: y_ + a * x_, x, y)


def check_fields(fields: Sequence[Field]) -> Sequence[Field]:
    """Demands one or more functions."""
    if not isinstance(fields, list | tuple) or not fields or not all(map(callable, fields)):
        raise ImrError(
            "fields must be a sequence of one or more functions f(t, z, args), in order of "
            f"application; found {fields!r}."
        )
    return fields


def _as_stages(stages: Stages) -> tuple[tuple[int, float], ...]:
    try:
        return tuple((operator.index(i), float(share)) for i, share in stages)
    except (TypeError, ValueError) as error:
        raise ImrError(
            f"stages must be pairs (index of a field, share of the step); found {stages!r}."
        ) from error


def _check_stages(stages: Stages, num_fields: int) -> Stages:
    stages = _as_stages(stages)
    for index, _ in stages:
        if not 0 <= index < num_fields:
            raise ImrError(
                f"stages must name fields by their index, 0 to {num_fields - 1}; found {index}."
            )
    for index in range(num_fields):
        total = sum(share for i, share in stages if i == index)
        if not np.isclose(total, 1, rtol=0, atol=1e-6):
            raise ImrError(
                f"stages must follow each field for one whole step; the shares of field {index} "
                f"add up to {total:g}."
            )
    return stages


def _check_substeps(substep: Any, num_fields: int) -> Sequence[Substep]:
    if substep is None or callable(substep):
        return [substep or rk4] * num_fields
    several = isinstance(substep, list | tuple) and all(map(callable, substep))
    if not several or len(substep) != num_fields:
        found = len(substep) if several else repr(substep)
        raise ImrError(
            f"substep must be one function, or one for each of the {num_fields} fields; found {found}."
        )
    return substep
