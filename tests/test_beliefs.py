"""Beliefs: rows T1 and T3 of the theory with their controls; entropies; what is forbidden."""

from fractions import Fraction
from math import log

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import central_difference, error
from test_processes import PROCESSES, laws_beyond

from imr import beliefs, processes
from imr.errors import ImrError
from imr.processes import Process
from imr.processes.process import bare

LN2 = np.log(2.0)
MESS3 = PROCESSES["mess3"]
METHODS = ("scan", "associative")


@jax.jit
def run(process, words, level_words):
    """Both filters in one program; the tree is indexed by the number of each word."""
    scan = beliefs.bayes_filter(process, words)
    tree = beliefs.bayes_filter(process, level_words, method="associative")
    return scan, tree


@pytest.mark.parametrize("name", laws_beyond(("mess3",), PROCESSES))
def test_t1_scan_is_associative_scan_is_tree(name):
    process = PROCESSES[name]
    k = process.num_tokens
    depth = min(10, int(np.log(2e5) / np.log(k) + 1e-9)) if k > 1 else 10
    words = np.indices((k,) * depth).reshape(depth, -1).T.astype(np.int32)
    # Matrices of all the words at once would fill the memory.
    few = np.random.default_rng(0).choice(len(words), min(len(words), 4000), replace=False)
    scan, tree = jax.tree.map(np.asarray, run(bare(process), words, words[few]))
    level = jax.tree.map(np.asarray, beliefs.belief_level(process, depth))
    p = np.asarray(level.probabilities)
    assert abs(p.sum() - 1) < 1e-12
    likely = p > 1e-12 * process.generalised
    last, log_p = np.asarray(scan.beliefs)[:, -1], np.asarray(scan.log_probability)[:, -1]
    assert (np.isneginf(log_p) == np.isnan(last).any(-1)).all()
    assert np.isneginf(log_p[p == 0]).all()
    scale = abs(np.asarray(level.beliefs)[likely]).max()
    # Of a generalised process rare words cancel: their relative precision is that of 1 / p.
    tolerance = 1e-12 if not process.generalised else 1e-12 / p[likely].min()
    assert abs(last - level.beliefs)[likely].max() < tolerance * scale
    assert abs(log_p[likely] - np.log(p[likely])).max() < max(1e-9, tolerance)
    both = ~np.isneginf(np.asarray(scan.log_probability)[few])
    assert (np.isneginf(tree.log_probability) == ~both)[:, -1].all() or process.generalised
    both &= likely[few][:, None]
    assert abs(tree.beliefs[both] - scan.beliefs[few][both]).max() < tolerance * scale
    log_p = scan.log_probability[few][both]
    assert abs(tree.log_probability[both] - log_p).max() < max(1e-9, tolerance)


def with_transitions(process, t):
    """The process with other transitions and, as they are independent of them, the same start."""
    return jax.tree.unflatten(jax.tree.structure(process), [t, *jax.tree.leaves(process)[1:]])


def memory(function, *arguments):
    """What a compiled function needs besides its arguments and results, in bytes."""
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    "tokens",
    [pytest.param(2, marks=pytest.mark.laws), pytest.param(17, marks=pytest.mark.acceptance)],
)
def test_memory_of_many_states_is_that_of_the_beliefs(tokens):
    """No matrix for each sequence, in values or derivatives; few tokens and many go different ways."""
    batch, length, states = 64, 10, 300
    t = np.random.default_rng(0).dirichlet(np.ones(tokens * states), states)
    t = t.reshape(states, tokens, states).swapaxes(0, 1)
    process = jax.tree.map(jnp.asarray, Process(t.astype(np.float32)))
    words = jnp.zeros((batch, length), jnp.int32)
    belief, matrix = 4 * batch * states, 4 * states**2

    def last(process, words):
        return beliefs.bayes_filter(process, words).log_probability[:, -1].sum()

    # Beliefs of all positions, as often as there are arrays of them, and copies of the transitions.
    bound = 3 * length * belief + (1 + 2 * tokens) * matrix
    assert 1.5 * bound < batch * matrix
    for function in (last, beliefs.smooth, beliefs.viterbi):
        assert memory(function, process, words) < bound
    assert memory(jax.grad(last), process, words) < 1.5 * bound
    control = jax.vmap(lambda word: process.transitions[word[0]] @ process.transitions[word[1]])
    assert memory(control, words) > batch * matrix


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("zero_one_random", marks=pytest.mark.laws),
        pytest.param("mixture", marks=pytest.mark.acceptance),
    ],
)
def test_gradients_in_transitions_that_are_zero(name):
    """Of both filters, against central differences: a row that is zero has derivatives too."""
    process = PROCESSES[name]
    tokens = processes.sample(process, jax.random.key(1), 7).tokens

    def log_probability(t, method):
        run = beliefs.bayes_filter(with_transitions(process, t), tokens, method=method)
        return run.log_probability[-1]

    t = process.transitions
    scan, tree = jax.jit(lambda t: [jax.grad(log_probability)(t, m) for m in METHODS])(t)
    expected = jax.jit(lambda t: central_difference(lambda t: log_probability(t, "scan"), t))(t)
    assert error(scan, expected) < 1e-8
    assert error(tree, scan) < 1e-13
    assert (np.asarray(expected)[np.asarray(t) == 0] != 0).any()


@pytest.mark.laws
def test_the_gradient_of_golden_mean_and_the_word_101():
    process = bare(processes.golden_mean(0.5))

    @jax.jit
    @jax.grad
    def slope(t):
        changed = with_transitions(process, t)
        run = beliefs.bayes_filter(changed, jnp.array([1, 0, 1]), method="associative")
        return run.log_probability[-1]

    expected = [[[0, 0], [1, 0]], [[3, 4], [0.5, 1]]]
    np.testing.assert_allclose(slope(process.transitions), expected, atol=1e-14)


@pytest.fixture(scope="module")
def long():
    return processes.sample(MESS3, jax.random.key(3), 5000).tokens


@pytest.mark.laws
def test_t1_five_thousand_tokens(long):
    scan, tree = jax.tree.map(np.asarray, run(bare(MESS3), long[None], long[None]))
    assert abs(scan.beliefs - tree.beliefs).max() < 1e-12
    assert abs(scan.log_probability - tree.log_probability).max() < 1e-9


def test_t1_control_unscaled_associative_scan_underflows(long):
    matrices = MESS3.transitions.astype(jnp.float32)[long]
    last = jax.jit(lambda m: jax.lax.associative_scan(jnp.matmul, m)[-1])(matrices)
    assert (last == 0).all()


@pytest.mark.acceptance
def test_a_hundred_thousand_tokens_in_float32_and_float64():
    tokens = processes.sample(MESS3, jax.random.key(5), 100_000).tokens
    # Row by row in numpy, the plain way.
    t, eta, log_p = np.asarray(MESS3.transitions), np.full(3, 1 / 3), 0.0
    for x in np.asarray(tokens):
        eta = eta @ t[x]
        log_p += np.log(eta.sum())
        eta = eta / eta.sum()
    for method in ("scan", "associative"):
        actual = beliefs.bayes_filter(MESS3, tokens, method=method)
        assert abs(actual.log_probability[-1] / log_p - 1) < 1e-12
        assert abs(np.asarray(actual.beliefs[-1]) - eta).max() < 1e-12
    single = jax.tree.map(lambda x: x.astype(jnp.float32), MESS3)
    actual = beliefs.bayes_filter(single, tokens, method="associative")
    assert actual.beliefs.dtype == jnp.float32
    assert abs(actual.log_probability[-1] / log_p - 1) < 1e-5


@pytest.mark.acceptance
@pytest.mark.parametrize(("states", "tokens"), [(12, 3), (3, 20), (12, 20)])
def test_the_tree_of_many_states_or_tokens(states, tokens):
    """Their matrices are laid out and chosen in other ways; an odd length halves unevenly."""
    rng = np.random.default_rng(0)
    t = rng.dirichlet(np.full(tokens * states, 0.1), states).reshape(states, tokens, states)
    process = bare(Process(t.swapaxes(0, 1)))
    words, ends = rng.integers(0, tokens, (5, 11)), np.array([11, 0, 1, 6, 10])

    def filtered(transitions, method):
        changed = with_transitions(process, transitions)
        return beliefs.bayes_filter(changed, words, ends, method=method)

    def last(transitions, method):
        return filtered(transitions, method).log_probability[:, -1].sum()

    scan, tree = (filtered(process.transitions, m) for m in METHODS)
    assert error(tree.beliefs, scan.beliefs) < 1e-12
    assert abs(tree.log_probability - scan.log_probability).max() < 1e-12
    scan, tree = (jax.grad(last)(process.transitions, m) for m in METHODS)
    assert error(tree, scan) < 1e-10


@pytest.mark.laws
def test_rows_of_a_product_scale_each_for_itself():
    """A likely part must not drown an unlikely one that later tokens make the likely one."""
    both = processes.mixture([processes.coin(0.999), processes.coin(0.001)])
    tokens = np.concatenate([np.zeros(90, int), np.ones(180, int)])
    scan = beliefs.bayes_filter(both, tokens)
    tree = beliefs.bayes_filter(both, tokens, method="associative")
    assert abs(scan.log_probability / tree.log_probability - 1).max() < 1e-12
    assert abs(tree.beliefs[-1] - np.array([0.0, 1.0])).max() < 1e-12
    assert abs(scan.beliefs - tree.beliefs).max() < 1e-9


def exactly(process, word):
    """Beliefs, log-probabilities and smoothed beliefs in rational arithmetic."""
    t = [[[Fraction(float(p)) for p in row] for row in matrix] for matrix in process.transitions]
    states = range(process.num_states)
    rows, columns = [[Fraction(float(p)) for p in process.initial]], [[Fraction(1)] * len(states)]
    for x in word:
        rows.append([sum(rows[-1][i] * t[x][i][j] for i in states) for j in states])
    for x in reversed(word):
        columns.append([sum(t[x][i][j] * columns[-1][j] for j in states) for i in states])
    both = [
        [a * b for a, b in zip(*pair, strict=True)]
        for pair in zip(rows[1:], columns[-2::-1], strict=True)
    ]

    def shares(rows):
        return np.array([[float(p / sum(row)) for p in row] for row in rows])

    # Of numerators and denominators apart: a float may not hold the quotient.
    totals = map(sum, rows[1:])
    return shares(rows[1:]), [log(p.numerator) - log(p.denominator) for p in totals], shares(both)


RARE = processes.mixture([processes.coin(0.999), processes.coin(0.001)])
LEAKY = np.array(RARE.transitions, np.float32)
LEAKY[0, 0] = [0.998, 0.001]


@pytest.mark.laws
@pytest.mark.parametrize("zeros", [14, pytest.param(60, marks=pytest.mark.acceptance)])
def test_nothing_underflows(zeros):
    """In float32 .001^14 does; the state that it belongs to is the likely one in the end."""
    words = np.repeat([[0, 1], [0, 1]], [zeros, zeros + 1], axis=1)
    lengths = np.array([2 * zeros - 1, 2 * zeros + 1])

    @jax.jit
    def every(process):
        scan, tree = (beliefs.bayes_filter(process, words, lengths, method=m) for m in METHODS)
        return scan, tree, beliefs.smooth(process, words, lengths)

    rounding = 4 * words.shape[1] * np.finfo(np.float32).eps  # of as many products and sums
    for t in (np.asarray(RARE.transitions, np.float32), LEAKY):
        process = bare(Process(t, [0.5, 0.5]))
        *filters, smoothed = jax.tree.map(np.asarray, every(process))
        for row, length in enumerate(lengths):
            eta, log_p, gamma = exactly(process, words[row, :length])
            for found in filters:
                assert abs(found.beliefs[row, :length] - eta).max() < rounding
                assert abs(found.log_probability[row, :length] / log_p - 1).max() < rounding
            assert abs(smoothed[row, :length] - gamma).max() < rounding


@pytest.mark.laws
def test_a_start_does_not_underflow():
    """1e-28 times 1e-15, which float32 does not hold, is all that explains this token."""
    t = np.array([[[1, 0], [0, 1 - 1e-15]], [[0, 0], [0, 1e-15]]], np.float32)
    process = bare(Process(t, np.array([1, 1e-28], np.float32)))
    expected = np.log(1e-28) + np.log(1e-15)
    for method in METHODS:
        found = beliefs.bayes_filter(process, [1], method=method)
        assert abs(found.log_probability[0] / expected - 1) < 1e-6
        assert found.beliefs.tolist() == [[0, 1]]
    assert beliefs.smooth(process, [1]).tolist() == [[0, 1]]
    path = beliefs.viterbi(process, [1])
    assert path.states.tolist() == [1]
    assert abs(path.log_probability / expected - 1) < 1e-6


@pytest.mark.acceptance
def test_gradients_of_what_would_underflow():
    """In float32 against float64, at entries that are zero too."""
    word = np.repeat([0, 1], [30, 31])

    def slopes(dtype):
        process = bare(Process(np.asarray(RARE.transitions, dtype), np.array([0.5, 0.5], dtype)))

        def last(t, method):
            changed = with_transitions(process, t)
            return beliefs.bayes_filter(changed, word, method=method).log_probability[-1]

        slopes = jax.jit(lambda t: [jax.grad(last)(t, m) for m in METHODS])
        return [np.asarray(x) for x in slopes(process.transitions)]

    expected = slopes(np.float64)
    assert error(expected[0], expected[1]) < 1e-12
    # The chance of a switch back is worth e^200: more than float32 holds, and still no infinity.
    in_range = abs(expected[0]) < 1e18
    assert in_range.sum() == 6
    for found in slopes(np.float32):
        np.testing.assert_allclose(found[in_range], expected[0][in_range], rtol=1e-3)
        assert np.isfinite(found).all()
        assert (found[~in_range] > 1e18).all()


# h_1, h_2, h_10, mean of h_1 to h_10, distinct mixed states up to words of length 10.
REFERENCE = {
    "mess3": (MESS3, 1.09107, 1.08939, 1.08888821, 1.0891714990, 88573),
    "mess3 half": (processes.mess3(0.5, 0.6), 1.09202, 1.09066, 1.09028621, 1.0905069054, 88573),
    "z1r": (processes.z1r(0.5), 0.63651, 0.46210, LN2 / 3, 0.2947004770, 7),
    "rrxor": (processes.rrxor(0.5, 0.5), 0.69315, 0.63651, 0.50334, 0.5781850790, 36),
    "golden mean": (processes.golden_mean(0.5), 0.46210, 0.46210, 0.46210, 0.4620981204, 3),
}


def against_reference(process, expected):
    h = np.asarray(beliefs.conditional_entropies(process, 10))
    assert h.shape == (11,)
    return abs(h[[1, 2, 10]] - np.array(expected[:3])).max(), abs(h[1:].mean() - expected[3])


@pytest.mark.laws
@pytest.mark.parametrize("name", laws_beyond(("mess3", "mess3 half", "z1r"), REFERENCE))
def test_t3_reference_values(name):
    process, *expected = REFERENCE[name]
    entropies, mean = against_reference(process, expected)
    assert entropies < 1e-5
    assert mean < 1e-9
    assert beliefs.count_mixed_states(process, 10) == expected[4]


def test_t3_control_transposed_rrxor():
    """Read the wrong way round it is no process. Made one, it is the reversal in time, whose
    entropies are those of any process itself: they could not tell."""
    process = REFERENCE["rrxor"][0]
    t = np.swapaxes(np.asarray(process.transitions), 1, 2)
    with pytest.raises(ImrError, match=r"row .* sums to"):
        Process(t)
    leaky = PROCESSES["leaky_rrxor"]
    pi = np.asarray(leaky.stationary)
    t = np.swapaxes(np.asarray(leaky.transitions), 1, 2)
    reversed_ = Process(t * pi[None, None, :] / pi[None, :, None])
    actual, plain = (beliefs.conditional_entropies(p, 6) for p in (reversed_, leaky))
    assert abs(np.asarray(actual) - np.asarray(plain)).max() < 1e-12


def test_alignment_belief_after_prediction_for_the_next():
    process = processes.z1r(0.5)
    actual = beliefs.bayes_filter(process, np.array([0, 0, 1]))
    # 00 can only be the random token and the zero of the next period: a one must follow.
    predicted = beliefs.next_token_probabilities(process, actual.beliefs)
    assert np.allclose(actual.beliefs[1], [0, 1, 0])
    assert np.allclose(predicted[1:], [[0, 1], [0.5, 0.5]])
    # Chain rule: the prediction at d is the step of log P from d to d + 1.
    tokens = np.array([[0, 2, 1, 1, 0, 2, 2, 1]])
    actual = beliefs.bayes_filter(MESS3, tokens)
    predicted = beliefs.next_token_probabilities(MESS3, actual.beliefs)
    steps = np.take_along_axis(np.log(np.asarray(predicted))[0, :-1], tokens[0, 1:, None], 1)[:, 0]
    assert np.allclose(np.diff(actual.log_probability[0]), steps, atol=1e-14)


def test_lists_and_empty_sequences():
    actual, expected = (beliefs.bayes_filter(MESS3, x) for x in ([0, 2], np.array([0, 2])))
    assert (np.asarray(actual.beliefs) == np.asarray(expected.beliefs)).all()
    for method in ("scan", "associative"):
        empty = beliefs.bayes_filter(MESS3, np.zeros((2, 0), int), method=method)
        assert empty.beliefs.shape == (2, 0, 3)
    many = processes.product([processes.coin(0.5)] * 3 + [processes.golden_mean(0.5)])
    rate = beliefs.entropy_rate(many)
    assert abs(rate.lower - (3 + 2 / 3) * LN2) < 1e-12


@pytest.mark.laws
def test_forbidden_words_are_marked_and_stay_so():
    tokens = np.array([[0, 1, 1, 0, 0], [0, 1, 0, 1, 0]])
    for method in ("scan", "associative"):
        actual = beliefs.bayes_filter(PROCESSES["no_consecutive_ones"], tokens, method=method)
        expected = np.array([[0, 0, 1, 1, 1], [0] * 5], bool)
        assert (np.asarray(beliefs.is_forbidden(actual)) == expected).all()
        assert (np.isnan(actual.beliefs).all(-1) == expected).all()
        assert (np.isneginf(actual.log_probability) == expected).all()
        traced = jax.jit(lambda x, m=method: beliefs.bayes_filter(MESS3, x, method=m))
        marked = traced(np.array([0, 3, 1])).log_probability
        assert (np.isneginf(marked) == np.array([False, True, True])).all()
    smoothed = beliefs.smooth(PROCESSES["no_consecutive_ones"], tokens)
    assert np.isnan(smoothed[0]).all()
    assert np.isfinite(smoothed[1]).all()


def test_smoothing_against_enumeration_of_state_paths():
    process, tokens = PROCESSES["leaky_rrxor"], np.array([0, 1, 1, 0])
    t, pi = np.asarray(process.transitions), np.asarray(process.initial)
    joint = np.einsum("i,ia,ab,bc,cd->abcd", pi, *t[tokens])
    expected = [joint.sum(tuple(j for j in range(4) if j != d)) / joint.sum() for d in range(4)]
    assert np.allclose(beliefs.smooth(process, tokens), expected, atol=1e-14)


@pytest.mark.acceptance
@pytest.mark.parametrize("tokens", [3, 17])
def test_many_states_go_the_same_way(tokens):
    """As few states that do not lead to the others, in values and derivatives."""
    random, few, many = np.random.default_rng(0), 5, 40
    t = random.dirichlet(np.ones(tokens * few), few).reshape(few, tokens, few).swapaxes(0, 1)
    large = np.zeros((tokens, many, many))
    large[:, :few, :few] = t
    large[0, few:, 0] = 1
    words = random.integers(0, tokens, (4, 6))
    start = random.dirichlet(np.ones(few))

    @jax.jit
    def every(t, start):
        def total(t):
            process = Process(t, start)
            return beliefs.bayes_filter(process, words).log_probability[:, -1].sum()

        process = Process(t, start)
        return (
            *beliefs.bayes_filter(process, words),
            beliefs.smooth(process, words),
            jax.grad(total)(t),
        )

    actual, log_p, smoothed, slope = every(large, np.pad(start, (0, many - few)))
    expected = every(t, start)
    for x, y in zip(
        (actual[..., :few], log_p, smoothed[..., :few], slope[:, :few, :few]), expected, strict=True
    ):
        np.testing.assert_allclose(x, y, atol=1e-12)


RAGGED = np.random.default_rng(0).integers(0, 3, (2, 2, 7))
LENGTHS = np.array([[7, 3], [0, 3]], np.uint8)
PADDED = np.where(np.arange(7) < LENGTHS[..., None], RAGGED, -9)  # never read


@pytest.mark.laws
def test_ragged_sequences_are_as_each_alone():
    """Beyond its length a sequence repeats the last value."""

    @jax.jit
    def every(tokens, lengths=None):
        runs = [beliefs.bayes_filter(MESS3, tokens, lengths, method=m) for m in METHODS]
        return *runs[0], *runs[1], beliefs.smooth(MESS3, tokens, lengths)

    results = every(PADDED, LENGTHS)
    for index, length in np.ndenumerate(LENGTHS):
        if not length:
            np.testing.assert_array_equal(results[0][index], np.tile(MESS3.initial, (7, 1)))
            np.testing.assert_array_equal(results[1][index], np.zeros(7))
            continue
        for found, one in zip(results, every(RAGGED[index][:length]), strict=True):
            found = np.asarray(found)[index]
            np.testing.assert_allclose(found[:length], one, atol=1e-14)
            assert (found[length:] == found[length - 1]).all()


@pytest.mark.acceptance
@pytest.mark.parametrize("kind", [*METHODS, "smooth"])
def test_gradients_of_ragged_sequences_are_the_sums_of_each_alone(kind):
    """Of a number that depends on every entry up to the lengths."""

    @jax.jit
    @jax.grad
    def slope(t, tokens, weights, lengths=None):
        process = Process(t, np.full(3, 1 / 3))
        if kind == "smooth":
            result = beliefs.smooth(process, tokens, lengths)[..., 0]
        else:
            run = beliefs.bayes_filter(process, tokens, lengths, method=kind)
            result = run.beliefs[..., 0] + run.log_probability
        return jnp.sum(weights * result)

    t, weights = MESS3.transitions, np.sin(np.arange(1.0, 8))
    alone = [slope(t, RAGGED[i][:n], weights[:n]) for i, n in np.ndenumerate(LENGTHS) if n]
    inside = weights * (np.arange(7) < LENGTHS[..., None])
    assert error(slope(t, PADDED, inside, LENGTHS), sum(alone)) < 1e-13


def test_lengths_under_vmap_and_those_that_do_not_fit(unchecked):
    run = jax.jit(jax.vmap(lambda x, n: beliefs.bayes_filter(MESS3, x, n).log_probability[-1]))
    actual = run(RAGGED[0], LENGTHS[0])
    expected = beliefs.bayes_filter(MESS3, RAGGED[0]).log_probability
    np.testing.assert_allclose(actual, [expected[0, -1], expected[1, 2]], atol=1e-14)
    for lengths, message in (([7], r"shape \(2,\).*found int64 of shape \(1,\)"), ([8, 1], "0 to 7; found 1 to 8"), ([1.0, 2.0], "must be integers"), ([[1], [2, 3]], "must be integers"), (3, r"of shape \(2,\)")):  # fmt: skip
        with pytest.raises(ImrError, match=f"lengths .*{message}"):
            beliefs.smooth(MESS3, RAGGED[0], lengths)
    with pytest.raises(ImrError, match="tokens must lie in 0 to 2; found -9"):
        beliefs.bayes_filter(MESS3, PADDED)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32, np.uint64, np.int64])
def test_integers_of_every_width(dtype):
    """300 symbols, of which narrow integers can name some: none is taken for another."""
    t = np.random.default_rng(0).dirichlet(np.ones(300))[:, None, None]
    tokens = np.array([[5, 127, 0]])
    run = jax.jit(lambda x: beliefs.bayes_filter(Process(t), x).log_probability)
    expected = np.cumsum(np.log(t[tokens, 0, 0]), 1)
    np.testing.assert_allclose(run(tokens.astype(dtype)), expected, rtol=1e-12)
    if np.iinfo(dtype).max > 2**31:
        far = np.array([[5, 2**32 + 1 if np.iinfo(dtype).max > 2**32 else 2**32 - 1, 0]], dtype)
        assert np.isneginf(run(far)[0, 1:]).all()


def best_path(process, tokens):
    """The algorithm of Viterbi in numpy, in probabilities: its states and log-probability."""
    t, score, sources = np.asarray(process.transitions), np.asarray(process.initial), []
    for d, x in enumerate(tokens):
        moves = score[:, None] * t[x]
        sources.append(moves.argmax(0))
        score = moves.max(0) if d else moves.sum(0)
    path = [int(score.argmax())]
    for source in sources[:0:-1]:
        path.append(int(source[path[-1]]))
    return path[::-1], np.log(score.max())


@pytest.mark.parametrize("name", laws_beyond(("sns",), ("sns", "leaky_rrxor", "mess3")))
def test_viterbi_against_every_path(name):
    process, length = PROCESSES[name], 5
    tokens = processes.sample(process, jax.random.key(2), length).tokens
    t, s = np.asarray(process.transitions), process.num_states
    every = np.asarray(process.initial) @ t[tokens[0]]
    for d in range(1, length):
        every = every[..., None] * t[tokens[d]].reshape(*[1] * (d - 1), s, s)
    actual = beliefs.viterbi(process, tokens)
    np.testing.assert_allclose(actual.log_probability, np.log(every.max()), rtol=1e-13)
    np.testing.assert_allclose(every[tuple(actual.states)], every.max(), rtol=1e-13)


@pytest.mark.laws
@pytest.mark.parametrize("states", [3, 40])
def test_viterbi_of_ragged_sequences_under_jit_and_vmap(states):
    """Few states and many go different ways; both are those of each sequence alone in numpy."""
    random = np.random.default_rng(states)
    t = random.dirichlet(np.full(3 * states, 0.3), states).reshape(states, 3, states)
    process = Process(np.swapaxes(t, 0, 1))
    actual = jax.jit(beliefs.viterbi)(process, PADDED, LENGTHS)
    mapped = jax.jit(jax.vmap(beliefs.viterbi, (None, 0, 0)))(process, PADDED, LENGTHS)
    for index, length in np.ndenumerate(LENGTHS):
        states, log_p = best_path(process, RAGGED[index][:length]) if length else ([], 0.0)
        for path in (actual, mapped):
            assert path.states[index].tolist() == states + [-1] * (7 - length)
            np.testing.assert_allclose(path.log_probability[index], log_p, rtol=1e-13)


def test_viterbi_of_impossible_words_and_processes_without_states(unchecked):
    path = beliefs.viterbi(processes.golden_mean(0.5), [[0, 1, 1, 0], [0, 1, 0, 0]])
    assert path.states.tolist() == [[-1] * 4, [0, 1, 0, 0]]
    assert np.isneginf(path.log_probability).tolist() == [True, False]
    for call in (beliefs.viterbi, beliefs.smooth):
        with pytest.raises(
            ImrError, match="process must be hidden Markov; found a generalised one"
        ):
            call(PROCESSES["fanizza"], np.array([0]))
    assert beliefs.viterbi(MESS3, np.zeros((2, 0), int)).states.shape == (2, 0)


@pytest.mark.laws
def test_mixed_states_agree_with_the_levels():
    tree = beliefs.mixed_states(PROCESSES["zero_one_random"], 5)
    merged = beliefs.mixed_states(PROCESSES["zero_one_random"], 5, merge=True)
    level = beliefs.belief_level(PROCESSES["zero_one_random"], 5)
    p = np.asarray(level.probabilities)
    words = np.asarray(tree.words[5])
    assert (words @ 2 ** np.arange(5)[::-1] == np.flatnonzero(p)).all()
    assert np.allclose(tree.beliefs[5], level.beliefs[p > 0], atol=1e-12)
    assert np.allclose(tree.probabilities[5], p[p > 0], atol=1e-14)
    assert all(abs(x.sum() - 1) < 1e-12 for x in (*tree.probabilities, *merged.probabilities))
    assert len(merged.beliefs[5]) < len(tree.beliefs[5])
    deep = beliefs.mixed_states(PROCESSES["rrxor"], 300, merge=True)
    assert len(deep.beliefs[-1]) <= 36


@pytest.mark.laws
def test_entropies_known_on_paper():
    h = beliefs.entropy_rate(processes.z1r(0.5))
    assert abs(h.lower - LN2 / 3) < 1e-12
    assert abs(h.upper - LN2 / 3) < 1e-12
    # A period of three known from the past, and nothing else.
    assert abs(beliefs.excess_entropy(processes.z1r(0.5), 14) - np.log(3)) < 1e-2
    assert abs(beliefs.excess_entropy(processes.golden_mean(0.5), 8) - 0.1744160479) < 1e-9
    blocks = np.asarray(beliefs.block_entropies(MESS3, 3))
    p = np.asarray(beliefs.belief_level(MESS3, 3).probabilities)
    assert abs(blocks[3] + (p * np.log(p)).sum()) < 1e-12
    lower, upper = beliefs.entropy_rate(MESS3, 8)
    assert lower < upper < lower + 1e-2
    assert beliefs.entropy_rate(PROCESSES["post_quantum"], 4).lower == 0


@pytest.mark.laws
def test_many_sequences_maps_gradients_and_export():
    tokens = processes.sample(MESS3, jax.random.split(jax.random.key(0), 10_000), 100).tokens
    actual = beliefs.bayes_filter(MESS3, tokens)
    assert actual.beliefs.shape == (10_000, 100, 3)
    one = jax.jit(jax.vmap(lambda x: beliefs.bayes_filter(MESS3, x)))(tokens[:4])
    assert abs(one.beliefs - actual.beliefs[:4]).max() < 1e-14

    def total(t):
        return beliefs.bayes_filter(Process(t, np.full(3, 1 / 3)), tokens[0]).log_probability[-1]

    step = np.zeros((3, 3, 3))
    step[0, 1, 2] = 1e-6
    value = jax.jit(total)
    slope = jax.jit(jax.grad(total))(MESS3.transitions)
    up, down = value(MESS3.transitions + step), value(MESS3.transitions - step)
    assert abs(slope[0, 1, 2] - (up - down) / 2e-6) < 1e-5 * abs(slope[0, 1, 2])
    for method in ("scan", "associative"):
        run = jax.jit(lambda t, x, m=method: beliefs.bayes_filter(Process(t), x, method=m)[1])
        exported = jax.export.export(run, platforms=["cpu", "cuda", "tpu"])(
            MESS3.transitions, tokens[0]
        )
        assert set(exported.platforms) == {"cpu", "cuda", "tpu"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: beliefs.bayes_filter(MESS3, np.array([0, 3])), "0 to 2; found 0 to 3"),
        (lambda: beliefs.bayes_filter(MESS3, np.array([-1])), "0 to 2"),
        (lambda: beliefs.bayes_filter(MESS3, np.array([0.5])), "integers"),
        (lambda: beliefs.bayes_filter(MESS3, np.array([0]), method="fast"), "method"),
        (lambda: beliefs.bayes_filter(MESS3, np.array([0]), initial=np.ones(2)), "initial"),
        (lambda: beliefs.bayes_filter(MESS3, [0], initial=np.array([0.2, 0, 0])), "sum 0.2"),
        (lambda: beliefs.bayes_filter(MESS3, [[0, 1], [2]]), "tokens must be integers"),
        (lambda: beliefs.block_entropies(MESS3, -1), "depth .* found -1"),
        (lambda: beliefs.all_words(2, -1), "length"),
        (lambda: beliefs.smooth(PROCESSES["fanizza"], np.array([0])), "generalised"),
        (lambda: beliefs.next_token_probabilities(MESS3, jnp.ones(2)), r"\(..., 3\)"),
        (lambda: beliefs.conditional_entropies(MESS3, -1), "depth"),
        (lambda: beliefs.conditional_entropies(MESS3, 40), "more than"),
        (lambda: beliefs.mixed_states(MESS3, 1.5), "depth"),
    ],
)
def test_bad_input(make, message, unchecked):
    with pytest.raises(ImrError, match=message):
        make()


def test_mixed_states_merge_in_float32():
    """Matrices rounded to float32 must not make nine states look like more."""
    with jax.enable_x64(False):
        process = processes.product([processes.even(0.3), processes.golden_mean(0.3)])
        assert beliefs.count_mixed_states(process, 8) == 9
        assert beliefs.count_mixed_states(process, 8, tolerance=1e-10) > 9


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_process_or_no_beliefs():
    for call in (beliefs.bayes_filter, beliefs.smooth, beliefs.next_token_probabilities):
        with pytest.raises(ImrError, match=r"process must be an imr.Process; .* mess3\(\.\.\.\)"):
            call(processes.mess3, np.array([0]))
    for call in (beliefs.belief_level, beliefs.mixed_states, beliefs.entropy_rate):
        with pytest.raises(ImrError, match=r"process must be an imr\.Process; found a list"):
            call([[1.0]], 2)
    with pytest.raises(ImrError, match=r"pass its \.beliefs"):
        beliefs.next_token_probabilities(MESS3, beliefs.bayes_filter(MESS3, np.array([0])))
    with pytest.raises(ImrError, match="tolerance must be positive"):
        beliefs.mixed_states(MESS3, 2, merge=True, tolerance=-1.0)
    assert beliefs.smooth(MESS3, np.zeros((2, 0), int)).shape == (2, 0, 3)
