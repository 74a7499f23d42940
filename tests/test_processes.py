"""Processes: what they are, what is refused, what is sampled (row T2 of the theory)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imr import beliefs, processes
from imr.errors import ImrError
from imr.processes import Process

EXAMPLES = {
    "coin": (0.3,),
    "even_ones": (0.4,),
    "no_consecutive_ones": (0.5,),
    "sns": (0.5, 0.3),
    "zero_one_random": (0.5,),
    "rrxor": (0.5, 0.5),
    "leaky_rrxor": (0.5, 0.4, 0.1),
    "mess3": (0.15, 0.6),
    "matching_parens": ([1.0, 0.6, 0.4],),
    "mr_name": (0.4, 0.3),
    "days_of_week": (),
    "fanizza": (2.0, 0.49),
    "post_quantum": (1.0, 0.5),
    "tom_quantum": (1.0, 4.0),
}
NAMED = {name: getattr(processes, name)(*args) for name, args in EXAMPLES.items()}
COMPOSED = {
    "mixture": processes.mixture(
        [NAMED["mess3"], NAMED["zero_one_random"]], [0.3, 0.7], [[0, 1, 2], [3, 1]]
    ),
    "conditional": processes.conditional_product(
        NAMED["coin"], [processes.golden_mean(0.5), processes.golden_mean(0.9)]
    ),
    "begin": processes.with_begin_token(NAMED["mess3"]),
    "end": processes.with_end_token(NAMED["sns"], 0.2),
}
PROCESSES = NAMED | COMPOSED
every_process = pytest.mark.parametrize("name", PROCESSES)


def laws_beyond(few, names):
    """Parameters: the few names by default, and the others with the mark `laws`."""
    return [n if n in few else pytest.param(n, marks=pytest.mark.laws) for n in names]


def chain(process):
    return np.asarray(process.transitions).sum(0)


@every_process
def test_t2_stationary_distribution(name):
    process = PROCESSES[name]
    pi, right = np.asarray(process.stationary), np.asarray(process.right)
    assert abs(pi @ chain(process) - pi).max() < 1e-12
    assert abs(chain(process) @ right - right).max() < 1e-12
    assert abs(pi @ right - 1) < 1e-12
    assert abs(np.asarray(process.initial) @ right - 1) < 1e-12
    if not process.generalised:
        assert (right == 1).all()


def test_t2_control_power_iteration_fails_on_period_three():
    process = NAMED["zero_one_random"]
    pi = np.eye(3)[0] @ np.linalg.matrix_power(chain(process), 10_000)
    assert abs(pi @ chain(process) - pi).max() > 0.1


def test_the_average_from_a_start_where_chains_are_reducible():
    matrix = np.array([[[1.0, 0, 0], [0, 1, 0], [0.25, 0.75, 0]]])
    actual = Process(matrix, np.array([0.5, 0.1, 0.4])).stationary
    assert np.allclose(actual, [0.6, 0.4, 0], atol=1e-14)
    # The fixture's mixture has a period of three in one part and none in the other.
    mixed = COMPOSED["mixture"].stationary
    assert np.allclose(mixed, np.repeat([0.1, 0.7 / 3], 3), atol=1e-14)
    with pytest.raises(ImrError, match=r"reducible.*2 closed classes.*initial="):
        Process(matrix)
    # Written to six digits, rows sum to one within what is allowed, and classes are still closed.
    digits = np.kron(np.eye(2), np.full((3, 3), 0.333333))[None]
    with pytest.raises(ImrError, match=r"reducible.*2 closed classes"):
        Process(digits)
    assert np.allclose(Process(digits, np.eye(6)[0]).stationary, [1 / 3] * 3 + [0] * 3)
    assert np.allclose(processes.mess3(1e-8, 0.6).stationary, 1 / 3)


def test_definitions():
    z1r = np.asarray(NAMED["zero_one_random"].transitions)
    assert z1r[0].tolist() == [[0, 1, 0], [0, 0, 0], [0.5, 0, 0]]
    assert z1r[1].tolist() == [[0, 0, 0], [0, 0, 1], [0.5, 0, 0]]
    mess3 = np.asarray(processes.mess3(0.05, 0.85).transitions)
    assert np.allclose(mess3[0, 0], [0.9 * 0.85, 0.05 * 0.075, 0.05 * 0.075])
    assert np.allclose(chain(NAMED["mess3"]), 0.55 * np.eye(3) + 0.15)
    assert np.allclose(NAMED["matching_parens"].transitions[1], np.diag([0.4, 0.6, 1.0], -1))
    days = np.asarray(NAMED["days_of_week"].transitions)
    # Out of Monday: 5 + 6 names, Tmrw, Yest, one for Wkdy, one for Wknd.
    assert np.allclose(days[:, 0, 1] * 15, [0, 5, 0, 0, 0, 0, 0, 1, 0, 0, 0.2])
    assert np.allclose(days[:, 0, 6] * 15, [0, 0, 0, 0, 0, 0, 1, 0, 1, 0.5, 0])
    mr = np.asarray(NAMED["mr_name"].transitions)
    assert np.allclose(mr.sum(0)[1], [0.3, 0.3, 0.4, 0])
    assert all(not mr[x][:, [j for j in range(4) if j != x]].any() for x in range(4))
    assert np.allclose(processes.sns(0.5, 0.25).transitions[0], [[0.5, 0.5], [0, 0.75]])
    assert np.allclose(processes.leaky_rrxor(0.5, 0.5, 0.1).transitions[0, 0, 0], 0.01)
    assert NAMED["no_consecutive_ones"].transitions[1].tolist() == [[0, 0.5], [0, 0]]
    assert processes.even(0.5).transitions[1].tolist() == [[0, 0.5], [1, 0]]
    assert NAMED["mr_name"].tokens == ("Mr.", "Something", "Blah", "name")
    assert np.allclose(NAMED["fanizza"].right, 1)
    assert np.allclose(NAMED["tom_quantum"].stationary[1:], 0)
    assert (NAMED["days_of_week"].num_tokens, NAMED["post_quantum"].num_tokens) == (11, 3)
    assert processes.even is processes.even_ones
    assert processes.golden_mean is processes.no_consecutive_ones
    assert processes.z1r is processes.zero_one_random


def test_unifilar():
    unifilar = {name for name, it in NAMED.items() if processes.is_unifilar(it)}
    assert {"coin", "even_ones", "no_consecutive_ones", "rrxor", "matching_parens"} <= unifilar
    assert not unifilar & {"sns", "mess3", "leaky_rrxor", "days_of_week"}


def test_products_and_tokens():
    first, second = NAMED["coin"], NAMED["zero_one_random"]
    both = processes.product([first, second])
    a, b = np.asarray(first.transitions), np.asarray(second.transitions)
    for x, y in np.ndindex(2, 2):
        assert np.allclose(both.transitions[2 * x + y], np.kron(a[x], b[y]))
    conditional = np.asarray(COMPOSED["conditional"].transitions)
    assert np.allclose(conditional[2 + 1], 0.7 * np.array([[0, 0.9], [0, 0]]))
    begin = COMPOSED["begin"]
    t = np.asarray(begin.transitions)
    assert begin.tokens[-1] == "BOS"
    assert np.allclose(np.asarray(begin.initial) @ t[3], [1 / 3, 1 / 3, 1 / 3, 0])
    assert np.allclose(t[:3, :, 3], 0)
    ends = processes.with_end_token(first, 0.2, restart=False)
    assert np.allclose(ends.transitions[2], [[0, 0.2], [0, 1]])
    assert np.allclose(ends.stationary, [0, 1])


@pytest.mark.parametrize("name", laws_beyond(("mess3", "post_quantum", "mixture"), PROCESSES))
def test_sampled_frequencies(name):
    """Tokens, pairs and states of independent sequences, within 5 standard errors."""
    process, count, length = PROCESSES[name], 20_000, 6
    tokens, states = processes.sample(process, jax.random.split(jax.random.key(7), count), length)
    tokens, t = np.asarray(tokens), np.asarray(process.transitions)
    assert tokens.shape == (count, length)
    k = process.num_tokens
    before = np.asarray(process.initial) @ np.linalg.matrix_power(chain(process), length - 2)
    pairs = np.einsum("i,xij,yjk,k->xy", before, t, t, process.right)
    actual = np.bincount(tokens[:, -2] * k + tokens[:, -1], minlength=k * k) / count
    for expected, counted in (
        (pairs.ravel(), actual),
        (pairs.sum(0), np.bincount(tokens[:, -1], minlength=k) / count),
    ):
        expected = np.clip(expected, 0, 1)
        assert (
            abs(counted - expected) <= 5 * np.sqrt(expected * (1 - expected) / count) + 1e-9
        ).all()
    if process.generalised:
        assert states is None
        return
    states = np.asarray(states)
    assert (t[tokens[:, 1:], states[:, :-1], states[:, 1:]] > 0).all()
    expected = np.asarray(process.initial) @ np.linalg.matrix_power(chain(process), length)
    actual = np.bincount(states[:, -1], minlength=process.num_states) / count
    expected = np.clip(expected, 0, 1)
    assert (abs(actual - expected) <= 5 * np.sqrt(expected * (1 - expected) / count) + 1e-9).all()


@pytest.mark.laws
def test_sampling_compiles_once_and_maps_over_keys_and_processes():
    keys = jax.random.split(jax.random.key(0), 6).reshape(2, 3)
    process = NAMED["mess3"]
    actual = processes.sample(process, keys, 9)
    assert actual.states is not None
    assert actual.tokens.shape == actual.states.shape == (2, 3, 9)
    one = jax.jit(lambda process, key: processes.sample(process, key, 9))(process, keys[1, 2])
    assert (one.tokens == actual.tokens[1, 2]).all()
    traces = []

    @jax.jit
    def draw(process):
        traces.append(1)
        return processes.sample(process, keys[0, 0], 9).tokens

    draw(process)
    draw(processes.mess3(0.3, 0.4))
    assert len(traces) == 1
    many = jax.tree.map(lambda *x: jnp.stack(x), process, processes.mess3(0.3, 0.4))
    assert jax.vmap(draw)(many).shape == (2, 9)


@pytest.mark.acceptance
@pytest.mark.parametrize(
    "make", [lambda x: processes.mess3(x, 0.6), lambda x: processes.fanizza(x, 0.5)]
)
def test_what_is_drawn_has_no_derivative(make):
    def weighted(x):
        return x * jnp.sum(processes.sample(make(x), jax.random.key(0), 9).tokens + 1)

    value, slope = jax.value_and_grad(weighted)(0.15)
    assert slope == pytest.approx(value / 0.15)


def test_a_process_made_under_a_trace():
    matrix = NAMED["mess3"].transitions

    def stationary(t):
        return Process(t).stationary[0]

    value, slope = jax.jit(jax.value_and_grad(stationary))(matrix)
    assert abs(value - 1 / 3) < 1e-14
    assert np.isfinite(slope).all()
    square = np.eye(3) - chain(NAMED["mess3"]) + 1
    # d pi = pi dA Z with Z the inverse of I - A + 1 pi-like rank one.
    expected = np.outer(np.full(3, 1 / 3), np.linalg.inv(square)[:, 0])
    expected -= expected.mean()
    centred = slope - slope.mean(axis=(1, 2), keepdims=True)
    assert np.allclose(
        centred - centred.mean(2, keepdims=True), (expected - expected.mean(1, keepdims=True))[None]
    )


def test_rates_below_the_rounding_of_the_diagonal_and_absorbing_states():
    """In float32 under a trace, as from values: .667 and .333, and what the start leads to."""
    slow = np.array([[[1 - 1e-7, 1e-7], [2e-7, 1 - 2e-7]]], np.float32)
    absorbing = np.array([[[1.0, 0, 0], [0, 1, 0], [0.25, 0.75, 0]]], np.float32)
    start = np.array([0.5, 0.1, 0.4], np.float32)

    @jax.jit
    def made(slow, absorbing, start):
        slope = jax.grad(lambda t: Process(t).stationary[0])(slow)
        return Process(slow).stationary, Process(absorbing, start).stationary, slope

    unique, average, slope = jax.tree.map(np.asarray, made(slow, absorbing, start))
    assert unique.dtype == np.float32
    np.testing.assert_allclose(unique, [2 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(Process(slow).stationary, [2 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(average, [0.6, 0.4, 0], atol=1e-6)
    # d pi_0 = -pi_0 / (a + b) da + pi_1 / (a + b) db
    np.testing.assert_allclose(slope[0, [0, 1], [1, 0]], [-2 / 9e-7, 1 / 9e-7], rtol=1e-5)


@pytest.mark.laws
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_rounds_and_is_computed_in_float32(dtype):
    exact = NAMED["mess3"].transitions
    process = Process(exact.astype(dtype), np.full(3, 1 / 3, dtype))
    assert process.transitions.dtype == process.stationary.dtype == dtype
    np.testing.assert_allclose(
        process.stationary.astype(float), 1 / 3, rtol=float(jnp.finfo(dtype).eps)
    )
    drawn = processes.sample(process, jax.random.key(0), 6).tokens
    run = beliefs.bayes_filter(process, drawn)
    assert run.beliefs.dtype == run.log_probability.dtype == jnp.float32
    expected = beliefs.bayes_filter(NAMED["mess3"], drawn).log_probability
    np.testing.assert_allclose(run.log_probability, expected, rtol=2 * float(jnp.finfo(dtype).eps))
    with pytest.raises(ImrError, match=r"row 0 .* off by 0.0[12]"):
        Process((1.02 * exact).astype(dtype))


TRACED = {name: args for name, args in EXAMPLES.items() if args}


def composed(weights, end):
    """Compositions whose parameters and parts may be traced."""
    first = processes.golden_mean(weights[0])
    return {
        "mixture": processes.mixture([first, processes.z1r(0.5)], weights, [[0, 1], [2, 0]]),
        "conditional": processes.conditional_product(first, [NAMED["sns"], NAMED["sns"]]),
        "begin": processes.with_begin_token(first),
        "end": processes.with_end_token(first, end),
        "ends": processes.with_end_token(first, end, restart=False),
    }


@jax.jit
def made_under_a_trace(arguments, weights, end):
    named = {name: getattr(processes, name)(*args) for name, args in arguments.items()}
    return named | composed(weights, end)


@pytest.mark.laws
def test_traced_parameters_out_of_range_make_a_process_nan():
    """Each of them alone, infinite; and probabilities below 0 and above 1."""
    bad = {"coin": [-0.2], "mess3": [0.1, 1.2], "sns": [0.3, 0.0], "post_quantum": [1.2, 1.0]}
    longest = max(map(len, TRACED.values()))
    for number in range(longest + 1):
        arguments = {
            name: [
                np.full(np.shape(a), np.inf) if i == number else np.asarray(a, float)
                for i, a in enumerate(args)
            ]
            for name, args in TRACED.items()
        }
        if number == longest:
            arguments |= {name: [np.asarray(a, float) for a in args] for name, args in bad.items()}
        made = made_under_a_trace(
            arguments, np.array([0.3, 0.7]), 1.0 if number == longest else 0.2
        )
        for name, args in TRACED.items():
            wrong = name in bad if number == longest else number < len(args)
            assert bool(np.isnan(made[name].transitions).any()) == wrong, (name, arguments[name])
        assert np.isnan(made["end"].transitions).any() == (number == longest)


@pytest.mark.laws
def test_named_and_composed_processes_of_traced_parameters_are_the_same():
    arguments = {n: [np.asarray(a, float) for a in args] for n, args in TRACED.items()}
    traced = made_under_a_trace(arguments, np.array([0.3, 0.7]), 0.2)
    expected = {name: NAMED[name] for name in TRACED} | composed([0.3, 0.7], 0.2)
    assert traced.keys() == expected.keys()
    for name, process in expected.items():
        for actual, leaf in zip(
            jax.tree.leaves(traced[name]), jax.tree.leaves(process), strict=True
        ):
            np.testing.assert_allclose(actual, leaf, atol=1e-12, err_msg=name)
        assert traced[name].tokens == process.tokens


WORDS = np.array([[0, 1, 1, 0], [1, 1, 0, 1]])


def likelihood(process):
    return beliefs.bayes_filter(process, WORDS).log_probability[:, -1].mean()


FAMILIES = {
    "entropy": lambda a: beliefs.conditional_entropies(processes.mess3(a, 0.6), 2)[-1],
    "likelihood": lambda a: likelihood(processes.mess3(a, 0.6)),
    "mixture": lambda a: likelihood(
        processes.mixture([processes.coin(a), processes.coin(0.7)], [a, 1 - a])
    ),
    "fanizza": lambda a: likelihood(processes.fanizza(2 + a, a)),
    "post_quantum": lambda a: likelihood(processes.post_quantum(1 + a, a)),
}


@pytest.mark.acceptance
@pytest.mark.parametrize("name", FAMILIES)
def test_derivatives_in_the_parameters_of_processes(name):
    """Over a batch of parameters, against central differences."""
    function, at = FAMILIES[name], jnp.array([0.15, 0.3])

    @jax.jit
    def both(at):
        values = jax.vmap(jax.vmap(function))(jnp.stack([at + 1e-5, at - 1e-5]))
        return jax.vmap(jax.grad(function))(at), (values[0] - values[1]) / 2e-5

    slope, expected = both(at)
    np.testing.assert_allclose(slope, expected, rtol=1e-7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Process(np.ones((2, 2))), r"shape \(k, s, s\).*\(2, 2\)"),
        (lambda: Process(np.ones((1, 1, 1), int)), "floating"),
        (lambda: Process(np.full((2, 2, 2), 0.3)), r"row 0.*sums to 1.2, off by 0.2"),
        (lambda: Process(np.array([[[1.5, -0.5], [0, 1.0]]])), r"found -0.5 .*from state '0' to '1'"),
        (lambda: Process(np.array([[[np.nan]]])), "finite"),
        (lambda: Process(np.eye(1)[None] * 1.0, tokens=("a", "b")), "1 different names"),
        (lambda: Process(np.full((1, 2, 2), 0.5), np.array([0.5, 0.6])), "sum 1.1"),
        (lambda: Process(np.full((1, 2, 2), 0.5), np.ones(3)), r"initial must have shape \(2,\)"),
        (lambda: Process(np.eye(2)[None] * 0.5, generalised=True), "eigenvalue 1 once"),
        (lambda: processes.coin(1.5), r"p must lie in \[0, 1\]; found 1.5"),
        (lambda: processes.mess3(0.6, 0.5), r"x must lie in \(0, 0.5\]"),
        (lambda: processes.mess3(0.0, 0.5), r"x must lie in \(0, 0.5\]"),
        (lambda: processes.mess3(0.2, -0.1), r"a must lie in \[0, 1\]"),
        (lambda: processes.sns(0.0, 0.5), r"p must lie in \(0, 1\]"),
        (lambda: processes.rrxor(0.5, 2.0), r"p2 must lie in \[0, 1\]"),
        (lambda: processes.leaky_rrxor(0.5, 0.5, 1.1), r"epsilon must lie in \[0, 1\]"),
        (lambda: processes.mr_name(0.6, 0.6), r"p \+ q must lie in \(0, 1\]"),
        (lambda: processes.matching_parens([0.5]), "begin with 1"),
        (lambda: processes.matching_parens([1.0, 1.0]), r"\[0, 1\)"),
        (lambda: processes.fanizza(1.0, 0.9), r"lamb must lie in \(0, 0.5\]"),
        (lambda: processes.post_quantum(-1.0, 0.5), r"log_alpha must lie in \(0,"),
        (lambda: processes.post_quantum(np.log(2.0), 0.5), "integer"),
        (lambda: processes.post_quantum(np.log(1.5), 0.5), "differ from 2"),
        (lambda: processes.tom_quantum(1.0, 0.0), r"beta must lie in \(-inf, 0\) or \(0, inf\)"),
        (lambda: processes.coin("a"), "p must be a number; found 'a'"),
        (lambda: processes.matching_parens(0.5), "begin with 1"),
        (lambda: Process([[[1.0], [2.0, 3.0]]]), "transitions must have shape"),
        (lambda: Process(np.diag([2.0, 1.0])[None], generalised=True), "none above it"),
        (lambda: Process([[[-0.5]], [[1.5]]], generalised=True), r"probabilities in \[0, 1\]"),
        (lambda: processes.sample(NAMED["coin"], 0, 3), "key must be made by"),
        (lambda: processes.mixture([]), "at least one"),
        (lambda: processes.mixture([NAMED["coin"]], [0.5]), "sum to 1"),
        (lambda: processes.mixture([NAMED["coin"]], None, [[0, 0]]), "2 different tokens"),
        (lambda: processes.product([NAMED["fanizza"]]), "generalised"),
        (lambda: processes.conditional_product(NAMED["coin"], [NAMED["coin"]]), "2 processes"),
        (lambda: processes.with_end_token(NAMED["coin"], 1.0), r"\(0, 1\)"),
        (lambda: processes.sample(NAMED["coin"], jax.random.key(0), 0), "length"),
        (lambda: jax.jit(processes.coin)(np.ones(2)), "p must have shape \\(\\), a number"),
    ],
)  # fmt: skip
def test_bad_input(make, message, unchecked):
    with pytest.raises(ImrError, match=message):
        make()


@pytest.mark.usefixtures("unchecked")
def test_a_process_does_not_change():
    process = processes.coin(0.5)
    with pytest.raises(ImrError, match="is immutable; found an assignment to initial"):
        process.initial = np.ones(1)
    with pytest.raises(ImrError, match="tokens must be a sequence of 2 names"):
        Process(np.full((2, 1, 1), 0.5), tokens=3)  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("bad", [{0: 1, 1: 2}, [0.5, 1.2], "01", [True, False], ["a", "b"]])
def test_vocabularies_hold_integers(bad):
    with pytest.raises(ImrError, match=r"vocabulary\[0\] must be a sequence of integers"):
        processes.mixture([processes.coin(0.5)] * 2, vocabulary=[bad, [0, 1]])


def test_mixtures_keep_names_that_agree():
    a = Process(np.full((2, 1, 1), 0.5), tokens=["a", "b"])
    b = Process(np.full((2, 1, 1), 0.5), tokens=["b", "c"])
    assert processes.mixture([a, b], vocabulary=[[0, 1], [1, 2]]).tokens == ("a", "b", "c")
    assert processes.mixture([a, b]).tokens == ("0", "1")


def test_weights_of_a_mixture_in_half_precision():
    weights = jnp.asarray([0.1, 0.2, 0.7], jnp.bfloat16)  # their sum is 0.999
    initial = processes.mixture([processes.coin(a) for a in (0.3, 0.5, 0.6)], weights).initial
    np.testing.assert_allclose(initial.sum(), 1, rtol=1e-15)
    np.testing.assert_allclose(initial, [0.1, 0.2, 0.7], rtol=2e-3)
