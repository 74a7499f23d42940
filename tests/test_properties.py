"""Random inputs at extreme scales: nothing is wrong, and what is not finite is announced.

hypothesis draws values, never shapes: a program is compiled once for a shape and a dtype. What is
computed in one dtype is held against numpy in float64, within what conditioning explains. Each logit is
off by no more than the rounding of the terms that it sums; weights of all logits within that lie
between two numbers, entry by entry, and sum to one; and so do the results between two. Where logits
have no digits left the bounds are still those of averages of what is attended to. Beliefs lie between
those with and without the masses that underflow. Flows are held against LSODA in float64, within their
tolerance and what roundings put in at the start make of the end.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

import imr
from imr.attention import attention_log_sums, attention_terms

DTYPES = (np.float32, np.float64)
EPS = float(np.finfo(float).eps)
RTOL, ATOL = 1e-5, 1e-7  # of flows
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


# What is meant, in numpy and float64, and how far rounding may lead from it


class Range(NamedTuple):
    """Between which numbers a result lies, entry by entry."""

    low: np.ndarray
    high: np.ndarray

    def __add__(self, other):
        return Range(self.low + other.low, self.high + other.high)

    def __neg__(self):
        return Range(-self.high, -self.low)

    def __sub__(self, other):
        return self + -other

    def times(self, positive):
        return Range(self.low * positive, self.high * positive)

    def widened(self, by):
        return Range(self.low - by, self.high + by)

    @property
    def size(self):
        return np.maximum(np.abs(self.low), np.abs(self.high))


def exactly(x):
    return Range(x, x)


class Logits(NamedTuple):
    """Logits, how far each may be off, what each row sees of them, and which weights underflow."""

    values: np.ndarray
    slack: np.ndarray
    where: np.ndarray
    tiny: float

    @property
    def T(self):
        return Logits(self.values.T, self.slack.T, self.where.T, self.tiny)

    def weights(self):
        """Softmax of each row, of logits that are anywhere within their slack."""
        m = self.values.shape[1]
        others = self.where[:, None, :] & ~np.eye(m, dtype=bool)[None]
        apart = self.values[:, None, :] - self.values[:, :, None]
        slack = self.slack[:, None, :] + self.slack[:, :, None]
        with np.errstate(over="ignore"):
            low, high = (
                1 / (1 + np.sum(np.exp(apart + sign * slack), axis=2, where=others))
                for sign in (1, -1)
            )
        # The largest must leave room for others that are smaller than its rounding here.
        rounding = 8 * m * EPS
        low = np.maximum((1 - rounding) * low - self.tiny, 0)
        high = (1 + rounding) * high + self.tiny
        return Range(np.where(self.where, low, 0), np.where(self.where, high, 0))

    def log_sums(self):
        """0 for a row that sees nothing."""
        sums = []
        for x in (self.values - self.slack, self.values + self.slack):
            x = np.where(self.where, x, -np.inf)
            top = np.where(self.where.any(axis=1), x.max(axis=1, initial=-np.inf), 0)
            e = np.exp(x - top[:, None]).sum(axis=1)
            sums.append(np.log(np.where(e > 0, e, 1)) + top)
        return Range(*sums)


def logits_of(values, terms, where, count, dtype):
    """Logits that are sums of `count` terms in all, whose absolute values sum to `terms`."""
    info = np.finfo(dtype)
    top = np.max(values, axis=1, keepdims=True, where=where, initial=-np.inf)
    below = np.where(where, np.where(np.isfinite(top), top, 0) - values, 0)
    slack = float(info.eps) * (count * terms + 2 * below)
    return Logits(values, slack, where, 64 * float(info.tiny))


def averages(weights, values):
    """What the rows of weights, whose sum is known, make of values (m, f)."""

    def largest(values):
        order = np.argsort(-values, axis=0)  # as much as may be on the largest
        v = np.take_along_axis(values, order, 0)[None]
        low, high = (x[:, order] for x in weights)
        room = high - low
        rest = np.where(high.any(axis=1), 1 - low.sum(axis=1), 0)[:, None]
        taken = np.clip(rest - (np.cumsum(room, axis=1) - room), 0, room)
        return ((low + taken) * v).sum(axis=1)

    rounding = 16 * len(values) * EPS * weights.high @ np.abs(values)  # of this function
    return Range(-largest(-values), largest(values)).widened(rounding)


def sums(weights, values):
    """The same of weights whose sum is not known."""
    up, down = np.maximum(values, 0), np.minimum(values, 0)
    (low, high) = weights
    return Range(low @ up + high @ down, high @ up + low @ down)


def check_within(name, actual, expected, dtype):
    actual = np.asarray(actual, float)
    assert actual.shape == np.shape(expected.low), name
    assert np.isfinite(actual).all(), (name, actual)
    low, high = expected.widened(64 * float(np.finfo(dtype).tiny))  # products that underflow
    assert np.all((low <= actual) & (actual <= high)), (name, actual, low, high)


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
    # The logits stay within the range of float32.
    beta = dtype(10.0 ** min(draw.exponents[2], 34 - 2 * sum(draw.exponents[:2])))
    columns = random.integers(0, max(n, 1), n)
    where = mask(random, draw, n, n, columns)
    soft = np.where(where.any(axis=1, keepdims=True), where, 1.0)
    soft = soft / soft.sum(axis=1, keepdims=True)
    actual = square_program(kind)(z, q, k, beta, where, columns, soft.astype(dtype))

    z, q, k, beta = (np.asarray(x, float) for x in (z, q, k, beta))
    eps, count = float(np.finfo(dtype).eps), 2 * f + r + 4
    rounding = 4 * (count + 3 * n + 8) * eps
    size_of_queries, size_of_keys = np.abs(z) @ np.abs(q), np.abs(z) @ np.abs(k)
    # What the weights average, and what is as large as all that is added up there.
    rows, row_sizes = z @ k @ q.T, size_of_keys @ np.abs(q).T
    columns_, column_sizes = z @ q @ k.T, size_of_queries @ np.abs(k).T

    def logits(where):
        values, terms = beta * (z @ q) @ (z @ k).T, beta * size_of_queries @ size_of_keys.T
        return logits_of(values, terms, where, count, dtype)

    def check_terms(name, weights, of_rows=averages, of_columns=sums):
        row, column = actual[name]
        expected = of_rows(weights, rows)
        error = rounding * weights.high @ row_sizes
        check_within(f"{name}, rows", row, expected.widened(error), dtype)
        weights = Range(weights.low.T, weights.high.T)
        expected = of_columns(weights, columns_)
        error = rounding * weights.high @ column_sizes
        check_within(f"{name}, columns", column, expected.widened(error), dtype)

    whole, masked = logits(np.ones((n, n), bool)), logits(where)
    for way in ("dense", "blocks", "devices"):
        check_terms(way, whole.weights())
        check_terms(f"{way}, masked", masked.weights())
        lse = masked.log_sums()
        error = rounding * (lse.size + np.log(max(n, 1)))
        check_within(f"{way}, sums", actual[f"{way}, sums"], lse.widened(error), dtype)
    turned = whole.T.weights()
    check_terms("column", Range(turned.low.T, turned.high.T), sums, averages)
    lse = whole.T.log_sums()
    centre, slack = (lse.low + lse.high) / 2, (lse.high - lse.low) / 2 + rounding * lse.size
    double = logits_of(whole.values - centre, np.abs(whole.values), whole.where, count, dtype)
    check_terms("double", double._replace(slack=double.slack + whole.slack + slack).weights())

    p, lse = masked.weights(), masked.log_sums()
    read = where.any(axis=1, keepdims=True)
    for kind, targets in (("pointers", np.eye(max(n, 1))[columns][:, :n]), ("soft", soft)):
        c = np.where(read, targets, 0)
        left = exactly(c) - p
        for way in ("gradient", "closed", "blocks"):
            expected = (
                exactly(c @ rows)
                - averages(p, rows)
                + sums(Range(left.low.T, left.high.T), columns_)
            )
            error = rounding * ((c + p.high) @ row_sizes + (c + p.high).T @ column_sizes)
            check_within(
                f"{kind}, {way}",
                actual[f"{kind}, {way}"],
                expected.widened(error).times(beta),
                dtype,
            )
        chosen, slack = (np.sum(c * x, axis=1) for x in (masked.values, masked.slack))
        error = slack + rounding * (lse.size + np.abs(chosen))
        losses = (lse - exactly(chosen)).widened(error)
        check_within(
            f"{kind}, loss", actual[f"{kind}, loss"],
            Range(*(x.sum() for x in losses)).widened(rounding * losses.size.sum()), dtype,
        )  # fmt: skip


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
    eps, count = float(np.finfo(dtype).eps), f + 4
    rounding = 4 * (f + 3 * k + 8) * eps
    group = np.arange(k) // 2
    own = group[None] == (labels // 2)[:, None]

    def logits(where):
        values = beta * (z @ theta.T + bias[None])
        terms = beta * (np.abs(z) @ np.abs(theta).T + np.abs(bias)[None])
        return logits_of(values, terms, where, count, dtype)

    whole, masked, within = logits(np.ones((n, k), bool)), logits(where), logits(own)
    p = whole.weights()
    expected = averages(p, theta).widened(rounding * p.high @ np.abs(theta))
    check_within("cross", actual["cross"], expected, dtype)
    read = where.any(axis=1, keepdims=True)
    for name, c, seen in (
        ("labels", exactly(np.where(read, np.eye(k)[labels], 0)), masked),
        ("soft", exactly(np.where(read, soft, 0)), masked),
        ("latent", within.weights(), whole),
    ):
        loss, fields = actual[name]
        p, lse = seen.weights(), seen.log_sums()
        for way, field in zip(("gradient", "closed"), fields, strict=True):
            # The closed field takes one minus the weight of a label as the sum of the others.
            exact = name == "labels" and way == "closed"
            size = (c - p).size if exact else c.high + p.high
            expected = averages(c, theta) - averages(p, theta)
            error = rounding * size @ np.abs(theta)
            check_within(f"{name}, {way}", field, expected.widened(error).times(beta), dtype)
        if name == "latent":
            chosen = within.log_sums()
        else:
            value, slack = (np.sum(c.low * x, axis=1) for x in (seen.values, seen.slack))
            chosen = exactly(value).widened(slack)
        losses = (lse - chosen).widened(rounding * (lse.size + chosen.size))
        expected = Range(*(x.sum() for x in losses)).widened(rounding * losses.size.sum())
        check_within(f"{name}, loss", loss, expected, dtype)


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
    info = np.finfo(dtype)
    matrices, initial, right = (
        np.asarray(x, float) for x in (process.transitions, process.initial, process.right)
    )
    low = high = initial
    paths = []  # the mass of the words so far in each state
    for token in word:
        high = high @ matrices[token]
        # Masses that underflow beside those of other states are lost.
        lost = 64 * states * float(info.tiny) * high.sum()
        low = np.maximum(low @ matrices[token] - lost, 0)
        paths.append(Range(low, high))
    low, high = (np.array(x) for x in zip(*paths, strict=True))
    least, most = low @ right, high @ right
    rounding = 4 * (states + 4) * float(info.eps) * np.arange(2, length + 2)
    for way, (beliefs, log_probability) in zip(
        ("scan", "associative"), filter_program(process, word), strict=True
    ):
        beliefs, found = np.asarray(beliefs, float), np.isfinite(log_probability)
        assert np.all(found <= (most > 0)), (way, "possible only here")
        assert np.all(found >= (least > 0)), (way, "impossible only here")
        assert np.isnan(beliefs[~found]).all()
        assert np.isneginf(log_probability[~found]).all()
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = Range(np.log(least), np.log(most))
            between = Range(low / most[:, None], np.minimum(high / least[:, None], 1))
        error = rounding * (1 + np.abs(logs.high))
        check_within(
            f"{way}, log-probability", log_probability[found],
            Range(*(x[found] for x in logs.widened(error))), dtype,
        )  # fmt: skip
        between = (
            between.times(1 - rounding[:, None]).low,
            between.times(1 + rounding[:, None]).high,
        )
        check_within(f"{way}, beliefs", beliefs[found], Range(*(x[found] for x in between)), dtype)


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
        return imr.solve_reduced(loss, z, t1=1.0, rtol=RTOL, atol=ATOL, max_steps=32, throw=False)

    return program


def keys_and_logits(linear, z, parameters, beta, jitter=0.0):
    """The keys, and logits that are off by `jitter` times the terms that they are sums of."""
    keys = parameters if linear else z @ parameters
    queries, sizes = (z, np.abs(z)) if linear else (keys, np.abs(z) @ np.abs(parameters))
    terms = beta * sizes @ (np.abs(parameters) if linear else sizes).T
    values = beta * queries @ keys.T
    return keys, Logits(values + jitter * terms, terms, np.ones(values.shape, bool), 0.0)


def end_of_flow(linear, z, parameters, beta, hot, jitter=0.0):
    """Features at t = 1 in float64 and how far the coordinates went, or None: logits may have no digits.

    Over log t, in which a flow that starts fast and slows down is smooth.
    """
    evaluations = iter(range(5000))

    def slope(log_t, state):
        if next(evaluations, None) is None:
            raise StopIteration
        keys, logits = keys_and_logits(
            linear, state[:-1].reshape(z.shape), parameters, beta, jitter
        )
        left = hot - logits._replace(slack=0 * logits.slack).weights().high
        coordinates = beta * (left if linear else (left + left.T) @ keys)
        moved = coordinates @ (parameters if linear else parameters.T)
        return np.exp(log_t) * np.append(moved.ravel(), np.abs(coordinates).max())

    start, atol = np.append(z.ravel(), 0), 1e-12 * np.abs(z).max() + 1e-30
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a solve that fails
        try:
            path = solve_ivp(
                slope, (np.log(1e-30), 0), start, method="LSODA", rtol=1e-10, atol=atol
            )
        except StopIteration:
            return None
    return (path.y[:-1, -1].reshape(z.shape), path.y[-1, -1]) if path.success else None


def check_flow(name, draw, dtype):
    n, f, k = FLOWS[name]
    linear, random = name == "flow, linear", np.random.default_rng(draw.seed)
    z = matrix(random, draw, draw.exponents[0], n, f).astype(dtype)
    parameters = matrix(random, draw, draw.exponents[1], *((k, f) if linear else (f, k)))
    parameters = parameters.astype(dtype)
    labels = random.integers(0, k if linear else max(n, 1), n)
    beta = dtype(10.0 ** draw.exponents[2])
    flow = flow_program(name)(z, parameters, beta, labels)
    if not flow.converged:
        return
    for x in (flow.z, flow.loss, flow.grad_norm):
        assert np.isfinite(x).all(), flow
    if not n:
        return
    z, parameters, beta = (np.asarray(x, float) for x in (z, parameters, beta))
    eps, vectors = float(np.finfo(dtype).eps), parameters if linear else parameters.T
    hot = np.eye(k if linear else n)[labels]

    def loss(z):
        """Within the rounding of its logits."""
        terms = keys_and_logits(linear, z, parameters, beta)[1]
        logits = terms._replace(slack=8 * eps * terms.slack)
        chosen = (np.sum(hot * x, axis=1) for x in logits[:2])
        each = logits.log_sums() - exactly(next(chosen)).widened(next(chosen))
        return Range(*(x.sum() for x in each.widened(8 * eps * each.size)))

    found = np.asarray(flow.z, float)
    reference = end_of_flow(linear, z, parameters, beta, hot)
    if reference is None:
        assert loss(found).low <= loss(z).high
        return
    end, length = reference
    # The root mean square of what a step adds is below the tolerance.
    step = RTOL * (length * np.abs(vectors).sum(axis=0) + np.sqrt(np.mean(z**2))) + ATOL
    tolerance = int(flow.num_steps) * np.sqrt(z.size) * step[None]
    within = tolerance + 8 * eps * (np.abs(z) + np.abs(end))
    if np.all(np.abs(found - end) <= within):
        return
    # What roundings and tolerance, put in at the start, make of the end.
    for _ in range(4):
        signs = [random.choice([-1, 1], x.shape) for x in (z, parameters, hot)]
        other = (
            z + signs[0] * (8 * eps * np.abs(z) + tolerance),
            parameters * (1 + 8 * eps * signs[1]),
        )
        moved = end_of_flow(linear, *other, beta, hot, 8 * eps * signs[2])
        within = within + (np.inf if moved is None else np.abs(moved[0] - end).max())
    assert np.all(np.abs(found - end) <= within), (found, end, within, flow)


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
