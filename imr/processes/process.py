"""A process: labelled transition matrices, checked, with their stationary distribution."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imr._checks import as_numbers, check_finite, check_flags, is_concrete
from imr._numerics import matmul, widen
from imr.errors import ImrError
from imr.processes.stationary import closed_classes, long_run, null_vectors, traced_long_run

_LEAVES = ("transitions", "stationary", "initial", "right")
# The rows of float32 matrices sum to one only up to rounding.
_TOLERANCE = 1e-5


def rounding(*arrays: Any) -> float:
    """How far probabilities that are rounded to the dtypes of these arrays may be from a sum of one."""
    dtypes = [jnp.result_type(x) for x in arrays if isinstance(x, jax.Array | np.ndarray)]
    floating = [x for x in dtypes if jnp.issubdtype(x, jnp.floating)]
    return max([_TOLERANCE, *(float(jnp.finfo(x).eps) for x in floating)])


@jax.tree_util.register_pytree_with_keys_class
class Process:
    r"""A hidden Markov process, or a generalised one, given by labelled transition matrices.

    $T_{x,i,j} = P(\text{emit } x, \text{go to } j \mid i)$, $A = \sum_x T_x$, $\pi A = \pi$,
    $P(x_1 \dots x_d) = \mu T_{x_1} \cdots T_{x_d} w$ with $A w = w$; w is all ones unless the
    process is generalised. Distributions are row vectors. A process is a pytree with static names.
    Under a trace values are not checked, and the stationary distribution is assumed to be unique
    unless a start is given. In half precision sums need to be one up to its rounding only; beliefs,
    samples and entropies are then computed in float32.

    Args:
      transitions: shape (k, s, s).
      initial: start distribution, shape (s,); None is the stationary one. It is needed if the
        stationary distribution is not unique; `stationary` is then the long-run average from it.
      tokens, states: k and s names; None is numbers.
      generalised: whether entries may be negative. w is then computed and scaled to sum to s if
        possible; distributions are normalised by $\mu w = 1$. Only words of one token are checked
        to have probabilities.
    Attributes:
      transitions, stationary, initial, right: T (k, s, s), $\pi$ (s,), $\mu$ (s,), w (s,).
      tokens, states, generalised: as given.
    Raises: ImrError if shapes do not fit, an entry is negative, the probabilities of a row do not
      sum to one (the message names row and excess), or the stationary distribution is not unique
      and no start is given.

    >>> process = Process([[[0.5, 0.0], [1.0, 0.0]], [[0.0, 0.5], [0.0, 0.0]]])
    >>> [round(p, 4) for p in process.stationary.tolist()]
    [0.6667, 0.3333]

    Reference: arXiv 2502.01954, section 2.
    """

    transitions: Any
    stationary: Any
    initial: Any
    right: Any
    tokens: tuple[str, ...]
    states: tuple[str, ...]
    generalised: bool

    def __init__(
        self, transitions: Any, initial: Any = None, *, tokens: Sequence[str] | None = None,
        states: Sequence[str] | None = None, generalised: bool = False,
    ):  # fmt: skip
        if not is_concrete(transitions):
            transitions = jnp.asarray(transitions)
        elif not isinstance(transitions, jax.Array):
            try:
                transitions = np.asarray(transitions)
            except ValueError as error:
                raise ImrError(f"transitions must have shape (k, s, s): {error}.") from None
            as_numbers("transitions", transitions)
        shape = np.shape(transitions)
        if len(shape) != 3 or shape[1] != shape[2] or 0 in shape:
            raise ImrError(f"transitions must have shape (k, s, s), none of them 0; found {shape}.")
        dtype = jnp.result_type(transitions)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ImrError(f"transitions must be a floating array; found dtype {dtype}.")
        check_start(initial, shape[1])
        check_flags(generalised=generalised)
        tokens, states = _names("tokens", tokens, shape[0]), _names("states", states, shape[1])
        vars(self).update(tokens=tokens, states=states, generalised=bool(generalised))
        if is_concrete(transitions, initial):
            computed = _concrete(transitions, initial, self)
        else:
            computed = _traced(jnp.asarray(transitions), initial, self.generalised)
        leaves = (jnp.asarray(x, dtype) for x in (transitions, *computed))
        vars(self).update(zip(_LEAVES, leaves, strict=True))

    def __setattr__(self, name: str, value: Any) -> None:
        raise ImrError(
            f"a Process is immutable; found an assignment to {name}. Construct a new one: "
            "Process(process.transitions, initial, tokens=process.tokens, ...)."
        )

    @property
    def num_tokens(self) -> int:
        """k, the number of tokens."""
        return self.transitions.shape[-3]

    @property
    def num_states(self) -> int:
        """s, the number of states."""
        return self.transitions.shape[-1]

    def __repr__(self) -> str:
        kind = "generalised, " if self.generalised else ""
        return f"Process({kind}tokens={self.tokens}, states={self.states})"

    def tree_flatten_with_keys(self):
        """Arrays as leaves; names and flag static."""
        leaves = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in _LEAVES]
        return leaves, (self.tokens, self.states, self.generalised)

    @classmethod
    def tree_unflatten(cls, static, leaves):
        """Without checks: leaves may be tracers, shapes, or objects of jax's own."""
        self = object.__new__(cls)
        names = (*_LEAVES, "tokens", "states", "generalised")
        vars(self).update(zip(names, (*leaves, *static), strict=True))
        return self


def check_process(process: Any) -> None:
    """Raises an `ImrError` unless it is a `Process`."""
    if not isinstance(process, Process):
        hint = f" Pass its parameters: {process.__name__}(...)." if callable(process) else ""
        raise ImrError(f"process must be an imr.Process; found a {type(process).__name__}.{hint}")


def check_hidden(process: Any) -> None:
    """Raises an `ImrError` unless it is a hidden Markov process."""
    check_process(process)
    if process.generalised:
        kind = "a generalised one, whose beliefs are no probabilities of states"
        raise ImrError(f"process must be hidden Markov; found {kind}.")


def bare(process: Process) -> Process:
    """The process to compute with: not in half precision, and without names.

    Processes of one shape then share jitted programs.
    """
    leaves = map(widen, jax.tree.leaves(process))
    return Process.tree_unflatten(((), (), process.generalised), leaves)


def is_unifilar(process: Process) -> bool:
    """Whether state and token determine the next state.

    Args:
      process: the process.
    Raises: ImrError if the process is traced.

    >>> from imr.processes import sns, z1r
    >>> is_unifilar(z1r(0.5)), is_unifilar(sns(0.5, 0.5))
    (True, False)
    """
    check_process(process)
    if not is_concrete(process):
        raise ImrError("is_unifilar needs a concrete process; call it outside of jax.jit.")
    return bool(np.all(np.sum(np.asarray(process.transitions) != 0, axis=-1) <= 1))


def _names(what, names, count):
    if names is not None and not isinstance(names, Sequence):
        raise ImrError(f"{what} must be a sequence of {count} names; found {names!r}.")
    names = tuple(map(str, range(count) if names is None else names))
    if len(names) != count or len(set(names)) != count:
        raise ImrError(f"{what} must hold {count} different names; found {names}.")
    return names


def check_start(initial, size, right=None, generalised=False, tolerance=_TOLERANCE):
    """Checks the shape of a start distribution, and its values if the right vector is given."""
    if initial is None:
        return
    as_numbers("initial", initial)
    if np.shape(initial) != (size,):
        raise ImrError(
            f"initial must have shape ({size},), one entry for each state; found {np.shape(initial)}."
        )
    if right is None:
        return
    check_finite("initial", initial)
    initial = np.asarray(initial, np.float64)
    total = float(initial @ np.asarray(right, np.float64))
    if not generalised and (initial.min() < 0 or abs(total - 1) > tolerance):
        raise ImrError(
            f"initial must hold probabilities that sum to 1; the smallest is {initial.min():g} "
            f"and the sum {total:g}."
        )
    if abs(total - 1) > tolerance:
        rule = "normalised by the right eigenvector, initial @ right = 1"
        raise ImrError(f"initial must be {rule}; found {total:g}.")


def _concrete(transitions, initial, process):
    """Stationary, initial and right vectors in float64; the values are checked first."""
    check_finite("transitions", transitions)
    tolerance = rounding(transitions, initial)
    transitions = np.asarray(transitions, np.float64)
    initial = None if initial is None else np.asarray(initial, np.float64)
    vectors = _generalised_vectors if process.generalised else _hidden_vectors
    stationary, right = vectors(transitions, initial, process, tolerance)
    return stationary, stationary if initial is None else initial, right


def _hidden_vectors(transitions, initial, process, tolerance):
    """Stationary and right vector of a hidden Markov process."""
    if transitions.min() < 0:
        x, i, j = np.unravel_index(np.argmin(transitions), transitions.shape)
        raise ImrError(
            f"transitions must not be negative; found {transitions[x, i, j]:g} for token "
            f"{process.tokens[x]!r} from state {process.states[i]!r} to {process.states[j]!r}. "
            "For a generalised process pass generalised=True."
        )
    matrix = transitions.sum(0)
    excess = matrix.sum(1) - 1
    i = int(np.argmax(np.abs(excess)))
    if abs(excess[i]) > tolerance:
        raise ImrError(
            f"transitions out of each state must sum to 1 over tokens and next states; row {i} "
            f"(state {process.states[i]!r}) sums to {excess[i] + 1:.9g}, off by {excess[i]:.3g}."
        )
    ones = np.ones(len(matrix))
    check_start(initial, len(matrix), ones, tolerance=tolerance)
    if initial is None and (classes := closed_classes(matrix)) > 1:
        raise ImrError(
            f"the chain is reducible: it has {classes} closed classes of states, hence no unique "
            "stationary distribution. Give the start distribution as initial=..."
        )
    return long_run(matrix, ones / len(matrix) if initial is None else initial), ones


def _generalised_vectors(transitions, initial, process, tolerance):
    """Stationary and right vector of a generalised process."""
    matrix = transitions.sum(0)
    u, scales, vh = np.linalg.svd(matrix - np.eye(len(matrix)))
    fixed, values = np.sum(scales < 1e-7 * max(1.0, scales[0])), np.linalg.eigvals(matrix)
    if scales[-1] > tolerance or fixed > 1 or np.abs(values).max() > 1 + tolerance:
        raise ImrError(
            "the sum of the transitions of a generalised process must have the eigenvalue 1 "
            f"once and none above it; found the eigenvalues {np.round(values, 6).tolist()}. "
            "Divide the transitions by the largest of them."
        )
    right = vh[-1]
    total = right.sum()
    right = right * (len(right) / total if abs(total) > 1e-9 else 1.0)
    check_start(initial, len(matrix), right, True, tolerance)
    stationary = u[:, -1] / (u[:, -1] @ right)
    chances = (stationary if initial is None else initial) @ transitions @ right
    if chances.min() < -tolerance or chances.max() > 1 + tolerance:
        raise ImrError(
            "words of one token of a generalised process must have probabilities in [0, 1]; "
            f"found {np.round(chances, 6).tolist()}."
        )
    return stationary, right


def _traced(transitions, initial, generalised):
    """Stationary, initial and right vectors under a trace."""
    size, matrix = transitions.shape[1], transitions.sum(0)
    if generalised:
        left, right = null_vectors(matrix)
        total = right.sum()
        right = right * jnp.where(jnp.abs(total) > 1e-9, size / total, 1)
        stationary = left / matmul(left, right)
    else:
        # From any start, if the stationary distribution is unique.
        right = jnp.ones(size, matrix.dtype)
        start = right / size if initial is None else jnp.asarray(initial, matrix.dtype)
        stationary = traced_long_run(matrix, start)
    return stationary, stationary if initial is None else jnp.asarray(initial), right


def least_probability(process, dtype):
    """Probabilities up to this count as zero: in a generalised process zeros are cancellations."""
    return 64 * float(jnp.finfo(dtype).eps) if process.generalised else 0.0
