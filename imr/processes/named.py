"""Processes of the literature by name. Transitions not listed in a formula are zero.

Parameters may be traced, by `jax.grad` or `jax.vmap`; one out of range then makes the process NaN.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imr._checks import as_numbers, is_concrete, numpy_of
from imr._parameters import as_parameter
from imr._typing import ScalarLike
from imr.errors import ImrError
from imr.processes.process import Process


def coin(p: ScalarLike) -> Process:
    """Independent tokens: 0 with probability p, otherwise 1.

    Args:
      p: in [0, 1].

    >>> coin(0.25).transitions.ravel().tolist()
    [0.25, 0.75]
    """
    p = as_parameter("p", p, "[0, 1]")
    return Process([[[p]], [[1 - p]]], states="C")


def even_ones(p: ScalarLike) -> Process:
    """Runs of ones have even length.

    States E, O. T[0]: E->E 1-p. T[1]: E->O p, O->E 1.

    Args:
      p: probability that a run begins, in [0, 1].
    """
    p = as_parameter("p", p, "[0, 1]")
    return Process([[[1 - p, 0], [0, 0]], [[0, p], [1, 0]]], states="EO")


def no_consecutive_ones(p: ScalarLike) -> Process:
    """The golden mean process: a one never follows a one.

    States A, B. T[0]: A->A 1-p, B->A 1. T[1]: A->B p.

    Args:
      p: probability of a one after a zero, in [0, 1].
    """
    p = as_parameter("p", p, "[0, 1]")
    return Process([[[1 - p, 0], [1, 0]], [[0, p], [0, 0]]], states="AB")


def sns(p: ScalarLike, q: ScalarLike) -> Process:
    """The simple non-unifilar source.

    States A, B. T[0]: A->A 1-p, A->B p, B->B 1-q. T[1]: B->A q.

    Args:
      p, q: in (0, 1].
    """
    p, q = as_parameter("p", p, "(0, 1]"), as_parameter("q", q, "(0, 1]")
    return Process([[[1 - p, p], [0, 1 - q]], [[0, 0], [q, 0]]], states="AB")


def zero_one_random(p: ScalarLike) -> Process:
    """Z1R: a zero, a one, then a random bit, again and again (period 3).

    States 0, 1, R. T[0]: 0->1 1, R->0 1-p. T[1]: 1->R 1, R->0 p.

    Args:
      p: probability that the random bit is one, in [0, 1].
    """
    p = as_parameter("p", p, "[0, 1]")
    zero, one = [[0, 1, 0], [0, 0, 0], [1 - p, 0, 0]], [[0, 0, 0], [0, 0, 1], [p, 0, 0]]
    return Process([zero, one], states="01R")


def rrxor(p1: ScalarLike, p2: ScalarLike) -> Process:
    """Two random bits, then their exclusive or, again and again (period 3).

    States S, 0, 1, T, F. T[0]: S->0 p1, 0->F p2, 1->T p2, F->S 1. T[1]: S->1 1-p1, 0->T 1-p2,
    1->F 1-p2, T->S 1.

    Args:
      p1, p2: probabilities that the first and the second bit are zero, in [0, 1].
    """
    p1, p2 = as_parameter("p1", p1, "[0, 1]"), as_parameter("p2", p2, "[0, 1]")
    zeros = {(0, 1): p1, (1, 4): p2, (2, 3): p2, (4, 0): 1}
    ones = {(0, 2): 1 - p1, (1, 3): 1 - p2, (2, 4): 1 - p2, (3, 0): 1}
    matrices = [
        [[token.get((i, j), 0) for j in range(5)] for i in range(5)] for token in (zeros, ones)
    ]
    return Process(matrices, states="S01TF")


def leaky_rrxor(p1: ScalarLike, p2: ScalarLike, epsilon: ScalarLike) -> Process:
    """`rrxor` with uniform noise: every entry becomes (1 - epsilon) T + epsilon / 10.

    Args:
      p1, p2, epsilon: as in `rrxor`, and in [0, 1].
    """
    epsilon = as_parameter("epsilon", epsilon, "[0, 1]")
    plain = rrxor(p1, p2)
    transitions = (1 - epsilon) * numpy_of(plain).asarray(plain.transitions) + epsilon / 10
    return Process(transitions, states=plain.states)


def mess3(x: ScalarLike, a: ScalarLike) -> Process:
    r"""Three states and three tokens; each token is a noisy observation of the state just reached.

    $T_{x,i,j} = M_{ij} E_{jx}$; M has 1-2x on the diagonal and x elsewhere, E has a and (1-a)/2.
    $A = \lambda I + x 1 1^T$ with $\lambda = 1 - 3x$.

    Args:
      x: probability of a move to each other state, in (0, 1/2].
      a: probability of the token of the state, in [0, 1].

    >>> round(mess3(0.15, 0.6).transitions[0, 0, 0].item(), 4)
    0.42

    Reference: arXiv 2502.01954, section 2.
    """
    x, a = as_parameter("x", x, "(0, 0.5]"), as_parameter("a", a, "[0, 1]")
    move = x + (1 - 3 * x) * np.eye(3)
    emit = (1 - a) / 2 + (3 * a - 1) / 2 * np.eye(3)
    return Process(move[None] * emit.T[:, None, :], tokens="ABC")


def matching_parens(open_probs: Sequence[float] | Float[Array, "d"]) -> Process:
    """Balanced parentheses of bounded depth; the state is the depth.

    At depth d token 0, open, has probability open_probs[d], and token 1, close, the rest. At the
    greatest depth, d = len(open_probs), only close is possible.

    Args:
      open_probs: the first is 1, the others lie in [0, 1).
    Raises: ImrError if the first is not 1 or another is out of range.
    """
    if not isinstance(open_probs, Sequence):
        open_probs = as_numbers("open_probs", open_probs)
        open_probs = list(numpy_of(open_probs).atleast_1d(open_probs))
    probs = [as_parameter(f"open_probs[{d}]", p, "[0, 1]") for d, p in enumerate(open_probs)]
    if not probs or (is_concrete(probs) and (probs[0] != 1 or 1 in probs[1:])):
        raise ImrError(
            "open_probs must begin with 1, as nothing is open at depth 0, and go on in [0, 1); "
            f"found {probs}."
        )
    lib = numpy_of(probs)
    closing = 1 - lib.asarray([*probs[1:], 0.0])
    return Process(lib.stack([lib.diag(lib.asarray(probs), 1), lib.diag(closing, -1)]), tokens="()")


def mr_name(p: ScalarLike, q: ScalarLike) -> Process:
    """Sentences about Mr. name; the tokens are the states, and each token names the next state.

    Mr.->name 1; name->Something, Blah 1/2 each; Something->Mr. q, Something 1-p-q, Blah p;
    Blah->Mr. q, Something p, Blah 1-p-q.

    Args:
      p, q: positive, p + q at most 1.
    Raises: ImrError if p + q exceeds 1.
    """
    p, q = as_parameter("p", p, "(0, 1]"), as_parameter("q", q, "(0, 1]")
    rest = 1 - p - q
    if is_concrete(rest):
        if rest < -1e-12:
            raise ImrError(f"p + q must lie in (0, 1]; found {p:g} + {q:g} = {p + q:g}.")
        rest = max(rest, 0.0)
    rows = [[0, 0, 0, 1], [q, rest, p, 0], [q, p, rest, 0], [0, 0.5, 0.5, 0]]
    matrix = numpy_of(rows).asarray(rows)
    names = ("Mr.", "Something", "Blah", "name")
    # One matrix for each token: only its own column.
    return Process(np.eye(4)[:, None, :] * matrix[None], tokens=names, states=names)


def days_of_week() -> Process:
    """Days of the week, named or described by Tmrw, Yest, Wknd and Wkdy; the state is the day.

    Weights before each row is normalised: the name of the next day 5, of any other day 1, Tmrw to
    the next day 1, Yest to the day before 1, Wkdy to each weekday 1/5, Wknd to each weekend day 1/2.
    """
    days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    eye, weights = np.eye(7), np.zeros((11, 7, 7))
    tomorrow = np.roll(eye, 1, axis=1)
    weights[:7] = eye[:, None, :] * (1 + 4 * tomorrow)
    weights[7:9] = tomorrow, tomorrow.T
    weights[9, :, 5:] = 1 / 2
    weights[10, :, :5] = 1 / 5
    weights /= weights.sum((0, 2))[None, :, None]
    return Process(weights, tokens=(*days, "Tmrw", "Yest", "Wknd", "Wkdy"), states=days)


def fanizza(alpha: ScalarLike, lamb: ScalarLike) -> Process:
    r"""A generalised process of 4 states that equals no finite hidden Markov process.

    With $D = 1 - 2 l \cos\alpha + l^2$, $u = (1 - l\cos\alpha + l\sin\alpha)/D$,
    $v = (1 - l\cos\alpha - l\sin\alpha)/D$: $T_0 = w p_0^T$, $p_0 = (1 - (2/(1-l) - u - v)/4,
    1/(2(1-l)), -u/4, -v/4)$, $w = (1, 1-l, 1 + l(\sin\alpha - \cos\alpha),
    1 - l(\sin\alpha + \cos\alpha))$; $T_1 = l \cdot \mathrm{diag}(0, 1, \mathrm{rot}(\alpha))$.

    Args:
      alpha, lamb: an angle, and l in (0, 1/2].

    Reference: Fanizza, Lumbreras, Winter, arXiv 2209.14782.
    """
    alpha = as_parameter("alpha", alpha, "[-inf, inf]")
    lamb = as_parameter("lamb", lamb, "(0, 0.5]")
    lib = numpy_of(alpha, lamb)
    cos, sin = lamb * lib.cos(alpha), lamb * lib.sin(alpha)
    scale = 1 - 2 * cos + lamb**2
    u, v = (1 - cos + sin) / scale, (1 - cos - sin) / scale
    w = lib.asarray([1, 1 - lamb, 1 + sin - cos, 1 - sin - cos])
    start = lib.asarray([1 - (2 / (1 - lamb) - u - v) / 4, 1 / (2 * (1 - lamb)), -u / 4, -v / 4])
    one = [[0, 0, 0, 0], [0, lamb, 0, 0], [0, 0, cos, -sin], [0, 0, sin, cos]]
    return Process(lib.stack([lib.outer(w, start), lib.asarray(one)]), generalised=True)


def post_quantum(log_alpha: ScalarLike, beta: ScalarLike) -> Process:
    r"""A generalised process of 3 states that no quantum memory of finite dimension generates.

    $T_0 = (1,1,0)^T (1,-1,-1)$; $T_1, T_2 = [[v,0,0],[0,1,0],[0,\ln v,1]]$ for $v = \alpha, \beta$;
    all divided by the largest absolute eigenvalue of the sum.

    Args:
      log_alpha: $\ln\alpha$, positive.
      beta: in (0, 1); $\alpha + \beta \ne 2$, and $\ln\alpha / \ln\beta$ is no integer.
    Raises: ImrError if the two do not fit together.

    Reference: Fanizza, Lumbreras, Winter, arXiv 2209.14782.
    """
    log_alpha = as_parameter("log_alpha", log_alpha, "(0, 700]")
    beta = as_parameter("beta", beta, "(0, 1)")
    lib = numpy_of(log_alpha, beta)
    alpha, ratio = lib.exp(log_alpha), log_alpha / lib.log(beta)
    if is_concrete(ratio):
        if abs(alpha + beta - 2) < 1e-9:
            raise ImrError(f"alpha + beta must differ from 2; found {alpha:g} + {beta:g}.")
        if abs(ratio - round(ratio)) < 1e-9:
            raise ImrError(f"log_alpha / ln(beta) must not be an integer; found {ratio:g}.")
    first = [[1, -1, -1], [1, -1, -1], [0, 0, 0]]
    second, third = ([[v, 0, 0], [0, 1, 0], [0, lib.log(v), 1]] for v in (alpha, beta))
    transitions = lib.asarray([first, second, third])
    return Process(
        transitions / _largest_root(alpha + beta, log_alpha + lib.log(beta)), generalised=True
    )


def _largest_root(total, log_product):
    """The eigenvalue of largest modulus of the sum of the matrices of `post_quantum`.

    It is the largest root of the characteristic polynomial, to which Newton's steps from a bound
    descend. A TPU has no eigenvalues of matrices that are not symmetric.
    """
    bound = total + 3 + abs(log_product)
    u = 1 / bound  # the unit is the bound, whose powers would overflow
    first, last = (1 + total) * u, (log_product - 2) * u

    def step(_, root):
        minor = (root - u) * (root - 2 * u) + log_product * u**2
        slope = minor + (root - first) * (2 * root - 3 * u) + u**2
        return root - ((root - first) * minor + (root + last) * u**2) / slope

    if is_concrete(total):
        return functools.reduce(lambda root, i: step(i, root), range(32), 1.0) * bound
    return jax.lax.fori_loop(0, 32, step, jnp.ones_like(bound)) * bound


def tom_quantum(alpha: ScalarLike, beta: ScalarLike) -> Process:
    r"""Measurements of a qubit: a generalised process of 3 states and 4 tokens.

    With $g = 1/(4(\alpha^2+\beta^2))$, $m = (\alpha^2-\beta^2) g$, $o = 2\alpha\beta g$:
    $[[1/4, 0, \pm o], [0, m, 0], [\pm o, 0, 1/4]]$ and $[[1/4, \pm o, 0], [\pm o, 1/4, 0],
    [0, 0, m]]$.

    Args:
      alpha, beta: real, beta not zero.
    Raises: ImrError if beta is zero.

    Reference: arXiv 2507.07432.
    """
    alpha = as_parameter("alpha", alpha, "[-inf, inf]")
    beta = as_parameter("beta", beta, "[-inf, inf]")
    if is_concrete(beta) and beta == 0:
        raise ImrError(f"beta must lie in (-inf, 0) or (0, inf); found {beta:g}.")
    lib = numpy_of(alpha, beta)
    size = lib.hypot(alpha, beta)
    alpha, beta = alpha / size, beta / size
    m, o = (alpha**2 - beta**2) / 4, alpha * beta / 2
    first = [[[1 / 4, 0, s * o], [0, m, 0], [s * o, 0, 1 / 4]] for s in (1, -1)]
    second = [[[1 / 4, s * o, 0], [s * o, 1 / 4, 0], [0, 0, m]] for s in (1, -1)]
    return Process(lib.asarray(first + second), generalised=True)


even = even_ones
golden_mean = no_consecutive_ones
z1r = zero_one_random
