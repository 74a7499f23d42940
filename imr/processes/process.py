"""A process: labelled transition matrices, checked, with its stationary distribution; sampling."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from imr._checks import check_count, check_finite, check_key, is_concrete
from imr.errors import ImrError


@jax.tree_util.register_pytree_with_keys_class
class Process:
    r"""A hidden Markov process, or a generalised one, as labelled transition matrices.

    $T_{x,i,j} = P(\text{emit } x, \text{go to } j \mid i)$, $A = \sum_x T_x$, $\pi A = \pi$,
    $P(x_1 \dots x_d) = \mu T_{x_1} \cdots T_{x_d} w$ with $A w = w$; w is all ones unless the
    process is generalised. States are row vectors. A pytree, so it passes through `jax.jit`,
    `jax.vmap` and `jax.grad`; names and the flag are static.

    Args:
      transitions: shape (k, s, s).
      initial: start distribution, shape (s,); the stationary one unless given. Needed where the
        stationary distribution is not unique; `stationary` is then the long-run average from it.
      tokens, states: names, k and s of them; numbers unless given.
      generalised: entries may be negative, and w is computed; it is scaled to sum to s where that
        is possible, and distributions are normalised by $\mu w = 1$. Probabilities of longer words
        than one token are not checked.

    Attributes: transitions (k, s, s), stationary (s,), initial (s,), right (s,), tokens, states,
      generalised.
    Raises: ImrError for shapes that do not fit, a negative entry, a row whose probabilities do not
      sum to one (naming the row and by how much), and a stationary distribution that is not unique
      where no start is given. Under a trace values are not checked, and the stationary distribution
      is taken to be unique.

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
        self,
        transitions: Any,
        initial: Any = None,
        *,
        tokens: Sequence[str] | None = None,
        states: Sequence[str] | None = None,
        generalised: bool = False,
    ):
        if not is_concrete(transitions):
            transitions = jnp.asarray(transitions)
        elif not isinstance(transitions, jax.Array):
            try:
                transitions = np.asarray(transitions)
            except ValueError as error:
                raise ImrError(f"transitions must have shape (k, s, s): {error}.") from None
        shape = np.shape(transitions)
        if len(shape) != 3 or shape[1] != shape[2] or 0 in shape:
            raise ImrError(f"transitions must have shape (k, s, s), none of them 0; found {shape}.")
        dtype = jnp.result_type(transitions)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ImrError(f"transitions must be a floating array; found dtype {dtype}.")
        if initial is not None and np.shape(initial) != shape[1:2]:
            raise ImrError(
                f"initial must have shape {shape[1:2]}, one entry for each state of transitions; "
                f"found {np.shape(initial)}."
            )
        tokens, states = _names("tokens", tokens, shape[0]), _names("states", states, shape[1])
        self._set(tokens=tokens, states=states, generalised=bool(generalised))
        if is_concrete(transitions, initial):
            computed = _concrete(np.asarray(transitions, np.float64), initial, self)
        else:
            computed = _traced(jnp.asarray(transitions), initial, self.generalised)
        transitions = jnp.asarray(transitions)
        stationary, initial, right = (jnp.asarray(x, transitions.dtype) for x in computed)
        self._set(transitions=transitions, stationary=stationary, initial=initial, right=right)

    def _set(self, **values: Any) -> None:
        vars(self).update(values)

    def __setattr__(self, name: str, value: Any) -> None:
        raise ImrError(
            f"a Process does not change; found an assignment to {name}. Make another one: "
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
        names = ("transitions", "stationary", "initial", "right")
        leaves = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in names]
        return leaves, (self.tokens, self.states, self.generalised)

    @classmethod
    def tree_unflatten(cls, static, leaves):
        """Without checks: leaves may be tracers, shapes, or objects of jax's own."""
        self = object.__new__(cls)
        names = ("transitions", "stationary", "initial", "right", "tokens", "states", "generalised")
        self._set(**dict(zip(names, (*leaves, *static), strict=True)))
        return self


class Sample(NamedTuple):
    """tokens (..., length); states (..., length) AFTER each token, None of a generalised process."""

    tokens: Int[Array, "*keys length"]
    states: Int[Array, "*keys length"] | None


def sample(process: Process, key: Any, length: int) -> Sample:
    r"""Draws tokens, and the hidden states they lead to: $x_d, j_d \sim T_{\cdot, j_{d-1}, \cdot}$.

    The state before the first token is drawn from `process.initial`. A generalised process has no
    hidden states: its tokens are drawn from the prediction $\eta T_x w$ of its belief $\eta$.

    Args:
      process: the process.
      key: a key, or an array of keys of any shape, one for each sequence.
      length: number of tokens.
    Returns: tokens and states, each of shape (..., length).
    Raises: ImrError where length is no positive integer, or key no random key.

    >>> from imr.processes import coin
    >>> sample(coin(1.0), jax.random.key(0), 3).tokens.tolist()
    [0, 0, 0]
    """
    check_process(process)
    check_count("length", length)
    check_key(key)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    uniforms = _uniforms(key, length + 1, process.transitions.dtype)
    return _sample(bare(process), uniforms)


# Apart from `_sample`, so that it is compiled once for all processes.
@partial(jax.jit, static_argnames=("count", "dtype"))
def _uniforms(key, count, dtype):
    draw = jax.vmap(lambda key: jax.random.uniform(key, (count,), dtype))
    return draw(key.reshape(-1)).reshape(*key.shape, count)


def check_process(process: Any) -> None:
    """Demands a `Process`."""
    if not isinstance(process, Process):
        hint = (
            f" Call it with its parameters: {process.__name__}(...)." if callable(process) else ""
        )
        raise ImrError(f"process must be an imr.Process; found a {type(process).__name__}.{hint}")


def bare(process: Process) -> Process:
    """Without names: jitted programs are then shared between processes of one shape."""
    leaves, _ = jax.tree.flatten(process)
    return Process.tree_unflatten(((), (), process.generalised), leaves)


@jax.jit
def _sample(process, uniforms):
    draw = partial(_sample_one, process)
    for _ in uniforms.shape[1:]:
        draw = jax.vmap(draw)
    return draw(uniforms)


def _sample_one(process, uniforms):
    def pick(weights, u):
        """Inverse of the cumulative sum: an entry of weight zero is never picked."""
        edges = jnp.cumsum(weights)
        # u times the total may round up to the total.
        u = jnp.minimum(u * edges[-1], jnp.nextafter(edges[-1], jnp.zeros_like(u)))
        return jnp.sum(edges <= u)

    if process.generalised:
        readout = process.transitions @ process.right

        def observe(belief, u):
            # Cancellation leaves tiny negative probabilities.
            token = pick(jnp.maximum(readout @ belief, 0), u)
            belief = belief @ process.transitions[token]
            return belief / (belief @ process.right), token

        return Sample(jax.lax.scan(observe, process.initial, uniforms[1:])[1], None)

    weights = jnp.swapaxes(process.transitions, 0, 1).reshape(process.num_states, -1)

    def step(state, u):
        both = pick(weights[state], u)
        state = both % process.num_states
        return state, (both // process.num_states, state)

    start = pick(process.initial, uniforms[0])
    return Sample(*jax.lax.scan(step, start, uniforms[1:])[1])


def is_unifilar(process: Process) -> bool:
    """Whether state and token determine the next state.

    >>> from imr.processes import sns, z1r
    >>> is_unifilar(z1r(0.5)), is_unifilar(sns(0.5, 0.5))
    (True, False)
    """
    if not is_concrete(process):
        raise ImrError("is_unifilar needs the values of the process; call it outside of jax.jit.")
    return bool(np.all(np.sum(np.asarray(process.transitions) != 0, axis=-1) <= 1))


def _names(what, names, count):
    if names is not None and not isinstance(names, Sequence):
        raise ImrError(f"{what} must be a sequence of {count} names; found {names!r}.")
    names = tuple(map(str, range(count) if names is None else names))
    if len(names) != count or len(set(names)) != count:
        raise ImrError(f"{what} must hold {count} different names; found {names}.")
    return names


def _concrete(transitions, initial, process):
    """Stationary, initial, right in float64, of values that are checked first."""
    check_finite("transitions", transitions)
    # float32 matrices sum to one within their rounding only.
    tolerance = 1e-5
    matrix = transitions.sum(0)
    eye, ones = np.eye(len(matrix)), np.ones(len(matrix))
    if not process.generalised:
        _check_entries(transitions, matrix, process, tolerance)
        # Entries of a few digits: what is left of the sum would pass for a way out of a class.
        matrix = matrix / matrix.sum(1, keepdims=True)
    u, scales, vh = np.linalg.svd(matrix - eye)
    if process.generalised:
        fixed = max(int(np.sum(scales < 1e-7 * max(1.0, scales[0]))), 1)
        values = np.linalg.eigvals(matrix)
        if scales[-1] > tolerance or fixed > 1 or np.abs(values).max() > 1 + tolerance:
            raise ImrError(
                "the sum of the transitions of a generalised process must have the eigenvalue 1 "
                f"once and none above it; found the eigenvalues {np.round(values, 6).tolist()}. "
                "Divide the transitions by the largest of them."
            )
    else:
        fixed = _closed_classes(matrix)
    if initial is not None:
        initial = np.asarray(initial, np.float64)
        check_finite("initial", initial)
    right = ones
    if process.generalised:
        right = vh[-1]
        total = right.sum()
        right = right * (len(ones) / total if abs(total) > 1e-9 else 1.0)
    elif initial is not None and (initial.min() < 0 or abs(initial.sum() - 1) > tolerance):
        raise ImrError(
            f"initial must hold probabilities that sum to 1; the smallest is {initial.min():g} "
            f"and the sum {initial.sum():g}."
        )
    if initial is not None and abs(initial @ right - 1) > tolerance:
        raise ImrError(
            f"initial must be normalised by the right eigenvector, initial @ right = 1; "
            f"found {initial @ right:g}."
        )
    if fixed > 1:
        if initial is None:
            raise ImrError(
                f"the chain is reducible: it has {fixed} closed classes of states, and as many "
                "stationary distributions. Give the start distribution as initial=..."
            )
        left = u[:, -fixed:].T
        rights = vh[-fixed:].T
        stationary = (initial @ rights) @ np.linalg.solve(left @ rights, left)
    elif process.generalised:
        stationary = u[:, -1] / (u[:, -1] @ right)
    else:
        equations = np.concatenate([matrix.T - eye, ones[None]])
        stationary = np.linalg.lstsq(equations, np.append(0 * ones, 1.0), rcond=None)[0]
    if process.generalised:
        start = stationary if initial is None else initial
        chances = start @ transitions @ right
        if chances.min() < -tolerance or chances.max() > 1 + tolerance:
            raise ImrError(
                "words of one token of a generalised process must have probabilities in [0, 1]; "
                f"found {np.round(chances, 6).tolist()}."
            )
    else:
        # Transient states come out as rounding errors of either sign.
        stationary = np.where(stationary > 1e-14, stationary, 0.0)
        stationary = stationary / stationary.sum()
    return stationary, stationary if initial is None else initial, right


def _closed_classes(matrix):
    """The number of classes of states that are never left, from what can be reached at all."""
    reached = (matrix > 0) | np.eye(len(matrix), dtype=bool)
    for _ in range(int(np.ceil(np.log2(max(len(matrix), 2))))):
        reached = (reached.astype(np.float32) @ reached.astype(np.float32)) > 0
    closed = ~np.any(reached & ~reached.T, axis=1)
    return len(np.unique(reached[closed], axis=0))


def _check_entries(transitions, matrix, process, tolerance):
    if transitions.min() < 0:
        x, i, j = np.unravel_index(np.argmin(transitions), transitions.shape)
        raise ImrError(
            f"transitions must not be negative; found {transitions[x, i, j]:g} for token "
            f"{process.tokens[x]!r} from state {process.states[i]!r} to {process.states[j]!r}. "
            "A generalised process is made with generalised=True."
        )
    excess = matrix.sum(1) - 1
    i = int(np.argmax(np.abs(excess)))
    if abs(excess[i]) > tolerance:
        raise ImrError(
            f"transitions out of each state must sum to 1 over tokens and next states; row {i} "
            f"(state {process.states[i]!r}) sums to {excess[i] + 1:.9g}, off by {excess[i]:.3g}."
        )


def _traced(transitions, initial, generalised):
    """The same under a trace, where the stationary distribution is taken to be unique."""
    size = transitions.shape[1]
    matrix, ones = transitions.sum(0), jnp.ones(size, transitions.dtype)
    right = ones
    if generalised:
        right = jnp.linalg.svd(matrix - jnp.eye(size, dtype=matrix.dtype))[2][-1]
        right = right * (size / right.sum())
    # pi (I - A + w w^T) = w^T for pi w = 1: the derivative of a solve is stable, that of least
    # squares by singular values is not.
    square = jnp.eye(size, dtype=matrix.dtype) - matrix + jnp.outer(right, right)
    stationary = jnp.linalg.solve(square.T, right)
    return stationary, stationary if initial is None else jnp.asarray(initial), right


def least_probability(process, dtype):
    """Probabilities up to this are zero: in a generalised process zeros come from cancellation."""
    return 64 * float(jnp.finfo(dtype).eps) if process.generalised else 0.0
