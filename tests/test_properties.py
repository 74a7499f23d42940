"""Random inputs at extreme scales: nothing is wrong, and what is not finite is announced.

hypothesis draws values, never shapes: a program is compiled once for a shape and a dtype. What is
computed in one dtype is held against numpy in float64, within what conditioning explains: logits whose
rounding is delta have softmax weights that are right to exp(2 delta) - 1 of each, and to nothing once
delta is of order one, except that they stay a distribution.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import imr
from imr.attention import attention_log_sums, attention_terms

DTYPES = (np.float32, np.float64)
CALLS = 10_000  # of the long test, over all shapes


# What is drawn


class Draw(NamedTuple):
    """A seed, decimal exponents of features, parameters and beta, and what is degenerate."""

    seed: int
    exponents: tuple[float, float, float]
    rows: str
    mask: str


DRAWS = st.builds(
    Draw,
    st.integers(0, 10**9),
    st.tuples(st.floats(-8, 8), st.floats(-8, 8), st.floats(-6, 6)),
    st.sampled_from(["general", "equal", "rank one", "zero", "opposite"]),
    st.sampled_from(["whole", "random", "empty row"]),
)


def matrix(random, draw, exponent, n, f):
    x = random.normal(size=(n, f))
    if n and draw.rows == "equal":
        x[:] = x[:1]
    if n and draw.rows == "rank one":
        x = x[:, :1] * x[:1]
    if draw.rows == "zero":
        x[::2] = 0
    if n and draw.rows == "opposite":
        x[1::2] = -x[:1]
    return 10.0**exponent * x


def mask(random, draw, n, m, labels):
    """Each row sees its label, unless it is empty."""
    if draw.mask == "whole":
        return np.ones((n, m), bool)
    where = random.random((n, m)) < 0.6
    where[np.arange(n), labels] = True
    if draw.mask == "empty row" and n:
        where[0] = False
    return where


# What is meant, in numpy and float64


def softmax(logits, where):
    logits = np.where(where, logits, -np.inf)
    top = logits.max(axis=1, keepdims=True, initial=-np.inf)
    e = np.exp(logits - np.where(np.isneginf(top), 0, top))
    sums = e.sum(axis=1, keepdims=True)
    lse = np.log(np.where(sums > 0, sums, 1)) + np.where(np.isneginf(top), 0, top)
    return e / np.where(sums > 0, sums, 1), lse[:, 0]


class Bound:
    """What rounding in a dtype may do to weights, sums of them and log-sums, from the logits' terms."""

    def __init__(self, dtype, terms, size):
        self.eps = float(np.finfo(dtype).eps)
        self.largest = float(terms.max(initial=0))
        self.delta = 8 * size * self.eps * self.largest + 1e-30
        # Weights of any two distributions differ by 2 at most.
        self.weights = min(np.expm1(min(2 * self.delta, 1)) + 64 * size * self.eps, 2.0)

    def check(self, name, actual, expected, size, factor=1.0):
        """Within `factor` times the error of weights, of vectors whose entries are at most `size`."""
        actual, expected = np.asarray(actual, float), np.asarray(expected)
        assert actual.shape == expected.shape, name
        assert np.isfinite(actual).all(), name
        if actual.size:
            limit = factor * self.weights * size + 1e-36
            assert np.abs(actual - expected).max() <= limit, (name, actual, expected, limit)


# Attention and the quadratic model


SQUARE = {  # n, f, r, kind
    "square": (6, 3, 2, "symmetric"),
    "square, keys": (6, 3, 2, "keys"),
    "square, one": (1, 1, 1, "symmetric"),
    "square, rank one": (9, 4, 1, "symmetric"),
    "square, empty": (0, 3, 2, "keys"),
}


@cache
def square_program(kind) -> Callable[..., Any]:
    """Everything that the quadratic model gives, at once, in blocks and on devices."""

    @jax.jit
    def program(z, q, k, beta, where, columns, soft):
        k = None if kind == "symmetric" else k
        sharded, model = imr.parallel.make_mesh(4), imr.Quadratic(q, k, beta)
        results = {}
        for name, options in (
            ("dense", {}),
            ("blocks", {"block": 4}),
            ("devices", {"mesh": sharded}),
        ):
            results[name] = attention_terms(z, q, k, beta=beta, **options)
            results[f"{name}, masked"] = attention_terms(z, q, k, beta=beta, where=where, **options)
            keys = z @ (q if k is None else k)
            results[f"{name}, sums"] = attention_log_sums(
                z @ q, keys, beta=beta, where=where, **options
            )
        for normalise in ("column", "double"):
            results[normalise] = attention_terms(z, q, k, beta=beta, normalise=normalise)
        for name, targets in (("pointers", imr.pointers(columns)), ("soft", soft)):
            loss = imr.feature_loss(model, targets, where=where)
            results[f"{name}, loss"] = loss(z)
            results[f"{name}, gradient"] = imr.gradient_field(loss)(0.0, z)
            results[f"{name}, closed"] = imr.closed_field(loss)(0.0, z)
            results[f"{name}, blocks"] = imr.closed_field(loss, block=4)(0.0, z)
        return results

    return program


def check_square(name, draw, dtype):
    n, f, r, kind = SQUARE[name]
    random = np.random.default_rng(draw.seed)
    z = matrix(random, draw, draw.exponents[0], n, f).astype(dtype)
    q, k = (matrix(random, draw, draw.exponents[1], f, r).astype(dtype) for _ in range(2))
    k = q if kind == "symmetric" else k
    beta = dtype(10.0 ** draw.exponents[2])
    columns = random.integers(0, max(n, 1), n)
    where = mask(random, draw, n, n, columns)
    soft = np.where(where.any(axis=1, keepdims=True), where, 1.0)
    soft = soft / soft.sum(axis=1, keepdims=True)
    actual = square_program(kind)(z, q, k, beta, where, columns, soft.astype(dtype))

    z, q, k, beta = (np.asarray(x, float) for x in (z, q, k, beta))
    queries, keys = z @ q, z @ k
    logits = beta * queries @ keys.T
    terms = beta * (np.abs(z) @ np.abs(q)) @ (np.abs(z) @ np.abs(k)).T
    bound = Bound(dtype, terms, f + r + n)
    sides = [
        (np.abs(z) @ np.abs(a)).max(initial=0) * np.abs(b).sum(axis=1).max()
        for a, b in ((k, q), (q, k))
    ]
    if max(terms.max(initial=0), beta * max(sides)) * max(n, 1) > 1e37 and dtype == np.float32:
        return  # beyond the range of the dtype
    whole = np.ones((n, n), bool)

    def both(p):
        return p @ keys @ q.T, p.T @ queries @ k.T

    for way in ("dense", "blocks", "devices"):
        for case, seen in (("", whole), (", masked", where)):
            for a, b, size in zip(
                actual[way + case], both(softmax(logits, seen)[0]), sides, strict=True
            ):
                bound.check(f"{way}{case}", a, b, size, max(n, 1))
        lse = softmax(logits, where)[1]
        slack = 2 * bound.delta + 8 * bound.eps * (bound.largest + 1 + np.log(max(n, 1)))
        assert np.isfinite(actual[f"{way}, sums"]).all()
        assert np.abs(actual[f"{way}, sums"] - lse).max(initial=0) <= slack
    p = softmax(logits.T, whole)[0].T
    double = softmax(logits - softmax(logits.T, whole)[1][None, :], whole)[0]
    for way, weights in (("column", p), ("double", double)):
        for a, b, size in zip(actual[way], both(weights), sides, strict=True):
            bound.check(way, a, b, size, 4 * max(n, 1))
    p, lse = softmax(logits, where)
    read = where.any(axis=1, keepdims=True)
    for kind, targets in (("pointers", np.eye(max(n, 1))[columns][:, :n]), ("soft", soft)):
        c = np.where(read, targets, 0)
        field = beta * sum(both(c - p))
        for way in ("gradient", "closed", "blocks"):
            bound.check(
                f"{kind}, {way}", actual[f"{kind}, {way}"], field, beta * sum(sides), 2 * max(n, 1)
            )
        loss = float(np.sum(lse) - np.sum(np.where(c > 0, c * logits, 0)))
        slack = max(n, 1) * (
            4 * bound.delta + 16 * bound.eps * (bound.largest + 1 + np.log(max(n, 1)))
        )
        assert np.isfinite(actual[f"{kind}, loss"])
        assert abs(float(actual[f"{kind}, loss"]) - loss) <= slack


# Models of rows


ROWS = {  # n, f, k
    "rows": (5, 3, 4),
    "rows, one": (1, 1, 1),
    "rows, one feature": (6, 1, 3),
    "rows, empty": (0, 3, 2),
}


@jax.jit
def rows_program(z, theta, bias, beta, where, labels, soft):
    """Everything that the linear model gives, and the latent one with two prototypes a class."""
    group = np.arange(len(theta)) // 2
    linear, latent = imr.Linear(theta, bias, beta), imr.Latent(theta, group, bias, beta)
    results = {"cross": imr.cross_attention(z, theta, bias, beta=beta)}
    for name, loss in (
        ("labels", imr.feature_loss(linear, labels, where=where)),
        ("soft", imr.feature_loss(linear, soft, where=where)),
        ("latent", imr.feature_loss(latent, labels // 2)),
    ):
        fields = imr.gradient_field(loss)(0.0, z), imr.closed_field(loss)(0.0, z)
        results[name] = loss(z), fields
    return results


def check_rows(name, draw, dtype):
    n, f, k = ROWS[name]
    random = np.random.default_rng(draw.seed)
    small, large, beta = draw.exponents
    z = matrix(random, draw, small, n, f).astype(dtype)
    theta = matrix(random, draw, large, k, f).astype(dtype)
    bias = (10.0 ** (small + large) * random.normal(size=k)).astype(dtype)
    beta = dtype(10.0**beta)
    labels = random.integers(0, k, n)
    where = mask(random, draw, n, k, labels)
    soft = np.where(where.any(axis=1, keepdims=True), where, 1.0)
    soft = soft / soft.sum(axis=1, keepdims=True)
    actual = rows_program(z, theta, bias, beta, where, labels, soft.astype(dtype))

    z, theta, bias, beta = (np.asarray(x, float) for x in (z, theta, bias, beta))
    logits = beta * (z @ theta.T + bias[None])
    terms = beta * (np.abs(z) @ np.abs(theta).T + np.abs(bias)[None])
    bound, size = Bound(dtype, terms, f + k), np.abs(theta).max()
    if max(terms.max(initial=0), beta * size) > 1e37 and dtype == np.float32:
        return  # beyond the range of the dtype
    whole = np.ones((n, k), bool)
    bound.check("cross", actual["cross"], softmax(logits, whole)[0] @ theta, size, 2)
    group = np.arange(k) // 2
    own = group[None] == (labels // 2)[:, None]
    hot = np.eye(k)[labels]
    for name, c, seen in (
        ("labels", hot, where), ("soft", soft, where), ("latent", softmax(logits, own)[0], whole),
    ):  # fmt: skip
        p, lse = softmax(logits, seen)
        c = np.where(seen.any(axis=1, keepdims=True), c, 0)
        loss, fields = actual[name]
        for way, field in zip(("gradient", "closed"), fields, strict=True):
            bound.check(f"{name}, {way}", field, beta * (c - p) @ theta, beta * size, 8)
        each = lse - (softmax(logits, own)[1] if name == "latent" else (c * logits).sum(axis=1))
        slack = n * (8 * bound.delta + 32 * bound.eps * (bound.largest + 1 + np.log(k)))
        assert abs(float(loss) - each.sum()) <= slack + 1e-36, (name, loss, each)


# The filter, both ways


FILTERS = {"filter": (3, 2, 9), "filter, one state": (1, 1, 5)}  # states, tokens, length


@jax.jit
def filter_program(process, tokens):
    """By a scan and by a tree of products."""
    return [imr.bayes_filter(process, tokens, method=m) for m in ("scan", "associative")]


def check_filter(name, draw, dtype):
    states, tokens, length = FILTERS[name]
    random = np.random.default_rng(draw.seed)
    transitions = 10.0 ** (min(draw.exponents[0], 0) * random.random((tokens, states, states)))
    if draw.mask != "whole":
        transitions *= random.random(transitions.shape) < 0.8
        transitions[0] += 1e-3 * np.roll(np.eye(states), 1, axis=1)  # every state can be left
    transitions /= transitions.sum(axis=(0, 2), keepdims=True)
    process = imr.Process(jnp.asarray(transitions, dtype))
    word = random.integers(0, tokens, length)
    scan, tree = filter_program(process, word)
    slack = 64 * length * states * np.finfo(dtype).eps
    possible = np.isfinite(scan.log_probability)
    np.testing.assert_array_equal(possible, np.isfinite(tree.log_probability))
    for a, b in zip(scan, tree, strict=True):
        a, b = np.asarray(a)[possible], np.asarray(b)[possible]
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=slack, atol=slack)


# Reduced flows: what is not finite has a code


FLOWS = {  # n, f and k or r
    "flow, linear": (5, 3, 4),
    "flow, quadratic": (6, 3, 2),
    "flow, quadratic, empty": (0, 3, 2),
}


@cache
def flow_program(name) -> Callable[..., Any]:
    @jax.jit
    def program(z, parameters, beta, labels):
        if name == "flow, linear":
            loss = imr.feature_loss(imr.Linear(parameters, None, beta), labels)
        else:
            loss = imr.feature_loss(imr.Quadratic(parameters, None, beta), imr.pointers(labels))
        return imr.solve_reduced(loss, z, t1=1.0, max_steps=32, throw=False)

    return program


def check_flow(name, draw, dtype):
    n, f, k = FLOWS[name]
    random = np.random.default_rng(draw.seed)
    z = matrix(random, draw, draw.exponents[0], n, f).astype(dtype)
    shape = (k, f) if name == "flow, linear" else (f, k)
    parameters = matrix(random, draw, draw.exponents[1], *shape).astype(dtype)
    labels = random.integers(0, k if name == "flow, linear" else max(n, 1), n)
    flow = flow_program(name)(z, parameters, dtype(10.0 ** draw.exponents[2]), labels)
    if flow.converged:
        for x in (flow.z, flow.loss, flow.grad_norm):
            assert np.isfinite(x).all(), flow


TABLE = (
    *((check_square, name) for name in SQUARE),
    *((check_rows, name) for name in ROWS),
    *((check_filter, name) for name in FILTERS),
    *((check_flow, name) for name in FLOWS),
)
CHECKED = [(check, name) for check, name in TABLE if name in ("square, keys", "rows", "filter")]


def run(check, name, dtype, count):
    def one(draw):
        check(name, draw, dtype)

    wrapped = settings(
        max_examples=count, deadline=None, database=None, derandomize=True, phases=(Phase.generate,)
    )(given(DRAWS)(one))
    wrapped()


@pytest.mark.laws
@pytest.mark.parametrize(("check", "name"), CHECKED)
def test_extreme_inputs(check, name):
    run(check, name, np.float32, 25)


@pytest.mark.fuzz
@pytest.mark.optimised
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("check", "name"), TABLE)
def test_ten_thousand_calls(check, name, dtype):
    """As a compiler makes them for users: it is in fused programs that roundings differ."""
    run(check, name, dtype, -(-CALLS // (len(TABLE) * len(DTYPES))))
