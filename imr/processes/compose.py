"""Composed processes: mixtures, products of factors, begin and end tokens.

Processes and probabilities may be traced, by `jax.grad` or `jax.vmap`; values are then not checked.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from imr._checks import as_numbers, check_flags, is_concrete, numpy_of
from imr._parameters import as_parameter
from imr._typing import ScalarLike
from imr.errors import ImrError
from imr.processes.process import Process, rounding


def mixture(
    processes: Sequence[Process], weights: Any = None, vocabulary: Any = None
) -> Process:  # fmt: skip
    r"""One process, chosen at the start and kept: a non-ergodic mixture.

    $T_x = \bigoplus_i \sum_{y : m_i(y) = x} T^i_y$, $\mu = (c_1 \mu_1, \dots, c_n \mu_n)$

    Args:
      processes: n hidden Markov processes.
      weights: probabilities c, shape (n,); None is uniform.
      vocabulary: for each process a sequence m of different integers: its token y is token m[y] of
        the mixture. None keeps the numbers. A token keeps its name if all processes agree on it.
    Returns: A `Process`; its states are those of all processes in order, named `i:state`.
    Raises: ImrError if weights are no distribution, or vocabulary does not fit the processes.

    >>> from imr.processes import coin
    >>> both = mixture([coin(0.5), coin(0.9)], vocabulary=[[0, 1], [1, 2]])
    >>> both.num_tokens, both.initial.tolist()
    (3, [0.5, 0.5])
    """
    processes = _hidden("processes", processes)
    count, lib = len(processes), numpy_of(processes, weights)
    if weights is not None:
        as_numbers("weights", weights)
    slack = rounding(weights)
    weights = lib.full(count, 1 / count) if weights is None else lib.asarray(weights, float)
    if weights.shape != (count,) or (is_concrete(weights) and not _is_distribution(weights, slack)):
        raise ImrError(f"weights must be {count} probabilities that sum to 1; found {weights}.")
    if is_concrete(weights) and slack > 1e-4:  # of half precision, which rounded them
        weights = weights / weights.sum()
    maps = _token_maps(vocabulary, processes)
    tokens, size = _token_names(maps, processes), sum(p.num_states for p in processes)
    at, transitions = 0, 0
    for m, p in zip(maps, processes, strict=True):
        around = (at, size - at - p.num_states)
        # A matrix of zeros for the tokens that the process does not have.
        padded = lib.pad(lib.asarray(p.transitions), ((0, 1), around, around))
        own = np.full(len(tokens), p.num_tokens)
        own[m] = np.arange(p.num_tokens)
        transitions, at = transitions + padded[own], at + p.num_states
    initial = [w * lib.asarray(p.initial) for w, p in zip(weights, processes, strict=True)]
    states = [f"{i}:{name}" for i, p in enumerate(processes) for name in p.states]
    return Process(transitions, lib.concatenate(initial), tokens=tokens, states=states)


def _is_distribution(weights, slack):
    return weights.min() >= 0 and abs(weights.sum() - 1) <= slack


def _token_maps(vocabulary, processes):
    """For each process a list of the mixture's tokens."""
    if vocabulary is None:
        return [list(range(p.num_tokens)) for p in processes]
    if not isinstance(vocabulary, Sequence | np.ndarray) or len(vocabulary) != len(processes):
        raise ImrError(
            f"vocabulary must hold {len(processes)} maps, one for each process; found {vocabulary}."
        )
    maps = []
    for i, (m, p) in enumerate(zip(vocabulary, processes, strict=True)):
        try:
            tokens = np.asarray([] if isinstance(m, dict | str) else m)
        except ValueError:
            tokens = np.asarray([])
        different = tokens.shape == (p.num_tokens,) == np.unique(tokens).shape
        if not different or tokens.dtype.kind not in "iu" or min(tokens) < 0:
            raise ImrError(
                f"vocabulary[{i}] must be a sequence of integers, {p.num_tokens} different tokens, "
                f"none negative; found {m!r}."
            )
        maps.append(tokens.tolist())
    return maps


def _token_names(maps, processes):
    """Names of the mixture's tokens: numbers, unless each token has one name that is its alone."""
    names: list[set[str]] = [set() for _ in range(1 + max(max(m) for m in maps))]
    for m, p in zip(maps, processes, strict=True):
        for x, name in zip(m, p.tokens, strict=True):
            names[x].add(name)
    agreed = [name for each in names for name in each]
    unique = len(set(agreed)) == len(agreed) == len(names)
    return agreed if unique else [str(x) for x in range(len(names))]


def product(factors: Sequence[Process]) -> Process:
    r"""Independent processes in parallel: $T_{(x,y)} = T^1_x \otimes T^2_y$.

    A token is the tuple of the factors' tokens, a state the tuple of their states; the first factor
    is the most significant digit of the index. The start is the product of the factors' starts.

    Args:
      factors: hidden Markov processes, at least one.
    """
    result, *others = _hidden("factors", factors)
    for factor in others:
        result = conditional_product(result, [factor] * result.num_tokens)
    return result


def conditional_product(first: Process, seconds: Sequence[Process]) -> Process:
    r"""A process whose token selects the dynamics of another: $T_{(x,y)} = T^1_x \otimes T^{2|x}_y$.

    Args:
      first: of k tokens; its tokens and states are the most significant digits of the indices.
      seconds: k processes on the same tokens and states; if `first` emits x, the second state moves
        by seconds[x]. It starts from the start distribution of seconds[0].
    Raises: ImrError if seconds are not k hidden Markov processes of one shape.

    >>> from imr.processes import coin, z1r
    >>> conditional_product(coin(0.5), [z1r(0.1), z1r(0.9)]).num_tokens
    4
    """
    _hidden("first", [first])
    seconds = _hidden("seconds", seconds)
    shapes = {p.transitions.shape for p in seconds}
    if len(seconds) != first.num_tokens or len(shapes) > 1:
        raise ImrError(
            f"seconds must be {first.num_tokens} processes, one for each token of first, of the "
            f"same shape; found {len(seconds)} of shapes {sorted(shapes)}."
        )
    lib = numpy_of(first, seconds)
    lead = lib.asarray(first.transitions)[:, None, :, None, :, None]
    follow = lib.stack([lib.asarray(p.transitions) for p in seconds])[:, :, None, :, None, :]
    (k, m), (s, r) = (lead.shape[0], follow.shape[1]), (lead.shape[2], follow.shape[3])
    return Process(
        (lead * follow).reshape(k * m, s * r, s * r),
        lib.kron(lib.asarray(first.initial), lib.asarray(seconds[0].initial)),
        tokens=[f"{x},{y}" for x in first.tokens for y in seconds[0].tokens],
        states=[f"{x},{y}" for x in first.states for y in seconds[0].states],
    )


def with_begin_token(process: Process, name: str = "BOS") -> Process:
    """Puts a begin-of-sequence token, number k, in front of every sequence.

    The process starts in a new state, number s, which emits the token and moves to
    `process.initial`. The stationary distribution stays as it is.

    Args:
      process: hidden Markov, of k tokens and s states.
      name: of the token.

    >>> from imr.processes import coin
    >>> with_begin_token(coin(0.5)).tokens
    ('0', '1', 'BOS')
    """
    _hidden("process", [process])
    lib, s = numpy_of(process), process.num_states
    begin = lib.pad(lib.asarray(process.initial)[None, None, :], ((0, 0), (s, 0), (0, 1)))
    transitions = lib.pad(lib.asarray(process.transitions), ((0, 0), (0, 1), (0, 1)))
    return Process(
        lib.concatenate([transitions, begin]), np.eye(s + 1)[s],
        tokens=(*process.tokens, name), states=(*process.states, name),
    )  # fmt: skip


def with_end_token(
    process: Process, probability: ScalarLike, name: str = "EOS", *, restart: bool = True
) -> Process:
    """Ends the sequence with the given probability at each step, by an end token, number k.

    Args:
      process: hidden Markov, of k tokens.
      probability: of the end, in (0, 1).
      name: of the token.
      restart: whether another sequence follows, from `process.initial`; if not, the end token is
        repeated forever, from a new state.
    Raises: ImrError if probability is out of range.

    >>> from imr.processes import coin
    >>> with_end_token(coin(0.5), 0.5).transitions.ravel().tolist()
    [0.25, 0.25, 0.5]
    """
    _hidden("process", [process])
    check_flags(restart=restart)
    probability = as_parameter("probability", probability, "(0, 1)")
    lib, s = numpy_of(process, probability), process.num_states
    more = 0 if restart else 1
    start = lib.pad(lib.asarray(process.initial), (0, more))
    goes_on = lib.pad(lib.asarray(process.transitions), ((0, 0), (0, more), (0, more)))
    ends = probability * (start if restart else np.eye(s + 1)[s])[None, :]
    ends = lib.broadcast_to(ends, (s, s + more))
    if not restart:
        ends = lib.concatenate([ends, np.eye(s + 1)[s:]])
    transitions = lib.concatenate([(1 - probability) * goes_on, ends[None]])
    states = process.states if restart else (*process.states, name)
    return Process(transitions, start, tokens=(*process.tokens, name), states=states)


def _hidden(name, processes):
    """A list of one hidden Markov process or more."""
    processes = list(processes) if isinstance(processes, Iterable) else [processes]
    for process in processes:
        if not isinstance(process, Process):
            kind = type(process).__name__
            raise ImrError(f"{name} must be of the type imr.Process; found a {kind}.")
    if not processes:
        raise ImrError(f"{name} must hold at least one process; found none.")
    if any(p.generalised for p in processes):
        raise ImrError(f"{name} must be hidden Markov; found a generalised process.")
    return processes
