"""Processes from processes: mixtures, products of factors, begin and end tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from imr._checks import is_concrete
from imr.errors import ImrError
from imr.processes.process import Process


def mixture(
    processes: Sequence[Process], weights: Any = None, vocabulary: Any = None
) -> Process:  # fmt: skip
    r"""One process, chosen at the start and kept: a non-ergodic mixture.

    $T_x = \bigoplus_i \sum_{y : m_i(y) = x} T^i_y$, $\mu = (c_1 \mu_1, \dots, c_n \mu_n)$

    Args:
      processes: n of them, hidden Markov.
      weights: probabilities c, shape (n,); equal unless given.
      vocabulary: for each process the tokens of the mixture that its own become, a sequence of
        different integers; unless given each keeps its numbers. Names are kept where they agree.
    Returns: a Process whose states are those of all, one process after the other, named `i:state`.
    Raises: ImrError for weights that are no distribution and maps that do not fit.

    >>> from imr.processes import coin
    >>> both = mixture([coin(0.5), coin(0.9)], vocabulary=[[0, 1], [1, 2]])
    >>> both.num_tokens, both.initial.tolist()
    (3, [0.5, 0.5])
    """
    processes = list(processes)
    _check_hidden("processes", processes)
    count = len(processes)
    weights = np.full(count, 1 / count) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (count,) or weights.min() < 0 or abs(weights.sum() - 1) > 1e-6:
        raise ImrError(f"weights must be {count} probabilities that sum to 1; found {weights}.")
    if vocabulary is None:
        vocabulary = [range(p.num_tokens) for p in processes]
    if not isinstance(vocabulary, Sequence | np.ndarray) or len(vocabulary) != count:
        raise ImrError(
            f"vocabulary must hold {count} maps, one for each process; found {vocabulary}."
        )
    maps = [_map(f"vocabulary[{i}]", m) for i, m in enumerate(vocabulary)]
    for i, (m, p) in enumerate(zip(maps, processes, strict=True)):
        if len(m) != p.num_tokens or len(set(m)) != len(m) or min(m) < 0:
            raise ImrError(
                f"vocabulary[{i}] must hold {p.num_tokens} different tokens, none negative; "
                f"found {m}."
            )
    size = sum(p.num_states for p in processes)
    names: list[set[str]] = [set() for _ in range(1 + max(max(m) for m in maps))]
    for m, p in zip(maps, processes, strict=True):
        for x, name in zip(m, p.tokens, strict=True):
            names[x].add(name)
    agreed = [name for each in names for name in each]
    # Numbers, unless every token has one name, and no other token has it.
    unique = len(set(agreed)) == len(agreed) == len(names)
    tokens = agreed if unique else [str(x) for x in range(len(names))]
    transitions = np.zeros((len(tokens), size, size))
    at = 0
    for m, p in zip(maps, processes, strict=True):
        block = slice(at, at + p.num_states)
        transitions[m, block, block] = np.asarray(p.transitions)
        at += p.num_states
    initial = [w * np.asarray(p.initial) for w, p in zip(weights, processes, strict=True)]
    states = [f"{i}:{name}" for i, p in enumerate(processes) for name in p.states]
    return Process(transitions, np.concatenate(initial), tokens=tokens, states=states)


def _map(name, m):
    """A map of tokens as a list of integers."""
    try:
        found = np.asarray([] if isinstance(m, dict | str) else m)
    except ValueError:
        found = np.asarray([])
    if found.ndim != 1 or found.size == 0 or found.dtype.kind not in "iu":
        raise ImrError(f"{name} must be a sequence of integers, a token for each; found {m!r}.")
    return found.tolist()


def product(factors: Sequence[Process]) -> Process:
    r"""Independent factors side by side: $T_{(x,y)} = T^1_x \otimes T^2_y$.

    A token is the tuple of the factors' tokens, a state that of their states; the first factor is
    the most significant digit of the index. It starts from the product of the factors' starts.

    Args:
      factors: hidden Markov processes, at least one.
    Returns: a Process of $\prod k_i$ tokens and $\prod s_i$ states.
    Raises: ImrError without a factor, or for a generalised one.

    >>> from imr.processes import coin, z1r
    >>> product([coin(0.5), z1r(0.5)]).transitions.shape
    (4, 3, 3)
    """
    factors = list(factors)
    _check_hidden("factors", factors)
    made = factors[0]
    for factor in factors[1:]:
        made = conditional_product(made, [factor] * made.num_tokens)
    return made


def conditional_product(first: Process, seconds: Sequence[Process]) -> Process:
    r"""A factor whose dynamics the token of another chooses: $T_{(x,y)} = T^1_x \otimes T^{2|x}_y$.

    Args:
      first: the factor that leads, k tokens.
      seconds: k processes on the same tokens and states; at each step the one that the token of
        `first` names moves the second state. The second state starts as the first of them does.
    Returns: a Process; the index of `first` is the most significant digit of tokens and states.
    Raises: ImrError where seconds are not k processes of one shape, or one is generalised.

    >>> from imr.processes import coin, z1r
    >>> conditional_product(coin(0.5), [z1r(0.1), z1r(0.9)]).num_tokens
    4
    """
    seconds = list(seconds)
    _check_hidden("first", [first])
    _check_hidden("seconds", seconds)
    shapes = {p.transitions.shape for p in seconds}
    if len(seconds) != first.num_tokens or len(shapes) > 1:
        raise ImrError(
            f"seconds must be {first.num_tokens} processes, one for each token of first, of the "
            f"same shape; found {len(seconds)} of shapes {sorted(shapes)}."
        )
    lead = np.asarray(first.transitions)
    follow = np.stack([np.asarray(p.transitions) for p in seconds])
    (k, s, _), (_, m, r, _) = lead.shape, follow.shape
    transitions = np.einsum("xij,xyab->xyiajb", lead, follow).reshape(k * m, s * r, s * r)
    pairs = lambda a, b: [f"{x},{y}" for x in a for y in b]  # noqa: E731
    return Process(
        transitions,
        np.kron(np.asarray(first.initial), np.asarray(seconds[0].initial)),
        tokens=pairs(first.tokens, seconds[0].tokens),
        states=pairs(first.states, seconds[0].states),
    )


def with_begin_token(process: Process, name: str = "BOS") -> Process:
    """Every sequence begins with one more token, number k, which says nothing else.

    One more state, number s, where the process starts: it emits the token and goes to
    `process.initial`. `stationary` is that of the process.

    >>> from imr.processes import coin
    >>> with_begin_token(coin(0.5)).tokens
    ('0', '1', 'BOS')
    """
    _check_hidden("process", [process])
    k, s = process.num_tokens, process.num_states
    transitions = np.zeros((k + 1, s + 1, s + 1))
    transitions[:k, :s, :s] = np.asarray(process.transitions)
    transitions[k, s, :s] = np.asarray(process.initial)
    return Process(
        transitions, np.eye(s + 1)[s], tokens=(*process.tokens, name), states=(*process.states, name)
    )  # fmt: skip


def with_end_token(
    process: Process, probability: float, name: str = "EOS", *, restart: bool = True
) -> Process:
    """Before each token the sequence ends with the given probability, and says so by token k.

    Args:
      process: hidden Markov.
      probability: of ending, in (0, 1).
      name: of the token.
      restart: whether another sequence follows, from `process.initial`; otherwise the token is
        repeated for ever, from one more state.
    Returns: a Process of one more token.
    Raises: ImrError for a probability out of range.

    >>> from imr.processes import coin
    >>> with_end_token(coin(0.5), 0.5).transitions.ravel().tolist()
    [0.25, 0.25, 0.5]
    """
    _check_hidden("process", [process])
    if not 0 < float(probability) < 1:
        raise ImrError(f"probability must lie in (0, 1); found {probability}.")
    k, s = process.num_tokens, process.num_states
    size = s if restart else s + 1
    transitions = np.zeros((k + 1, size, size))
    transitions[:k, :s, :s] = (1 - probability) * np.asarray(process.transitions)
    start = np.zeros(size)
    start[:s] = np.asarray(process.initial)
    transitions[k] = probability * start[None, :]
    if not restart:
        transitions[k, :s] = probability * np.eye(size)[s][None, :]
        transitions[k, s] = np.eye(size)[s]
    states = process.states if restart else (*process.states, name)
    return Process(transitions, start, tokens=(*process.tokens, name), states=states)


def _check_hidden(name, processes):
    if not processes:
        raise ImrError(f"{name} must hold at least one process; found none.")
    if not is_concrete(processes):
        raise ImrError(f"{name} must have values: compose processes outside of jax.jit.")
    if any(p.generalised for p in processes):
        raise ImrError(f"{name} must be hidden Markov; found a generalised process.")
