"""Fits of processes: against counts over all paths, hmmlearn, planted processes and one another."""

import itertools
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imr import processes
from imr.beliefs import Fixed, ascent, bayes_filter, fit_process, likelihood
from imr.beliefs.fit import _best
from imr.beliefs.tables import share, start_tables
from imr.errors import ImrError
from imr.processes import Process
from tests.problems import error

MESS3 = processes.mess3(0.15, 0.6)
LENGTHS = np.array([40, 0, 17, 1, 33])


@pytest.fixture(scope="module")
def tokens():
    """One batch for most tests, so that each program is compiled once; MESS3 has three tokens."""
    return np.asarray(processes.sample(MESS3, jax.random.split(jax.random.key(1), 5), 40).tokens)


def emitting(initial, chain, emissions):
    """T_x = diag(B_x) A: a state emits, then moves."""
    return Process(emissions.T[:, :, None] * chain, initial)


def random_start(emission, seed=0, s=3, k=3):
    random = np.random.default_rng(seed)
    initial = random.dirichlet(np.ones(s))
    if emission == "state":
        return emitting(initial, *(random.dirichlet(np.ones(m), s) for m in (s, k)))
    table = random.dirichlet(np.ones(k * s), s).reshape(s, k, s)
    return Process(table.swapaxes(0, 1), initial)


def fit_em(tokens, start, steps, **options):
    return fit_process(tokens, start=start, max_steps=steps, tol=0.0, **options)


def counts_of_paths(process, word, emission):
    """Expected uses of the start, of moves and of emissions, by all paths of states one by one."""
    initial, matrices = np.asarray(process.initial), np.asarray(process.transitions)
    k, s, _ = matrices.shape
    chain, emissions = matrices.sum(0), matrices.sum(2).T
    total, counts = 0.0, [np.zeros(s), np.zeros((k, s, s)), np.zeros((s, s)), np.zeros((s, k))]
    for path in itertools.product(range(s), repeat=len(word) + 1):
        moves = list(zip(word, path, path[1:], strict=False))
        p = initial[path[0]] * np.prod([matrices[move] for move in moves])
        total += p
        counts[0][path[0]] += p
        for d, (x, i, j) in enumerate(moves):
            counts[1][x, i, j] += p
            counts[3][i, x] += p
            if d + 1 < len(moves):
                counts[2][i, j] += p
    chosen = counts[:2] if emission == "general" else [counts[0], *counts[2:]]
    return [count / total for count in chosen], (chain, emissions)


@pytest.mark.laws
@pytest.mark.parametrize("emission", ["general", "state"])
def test_a_step_of_em_is_that_of_counts_over_all_paths(emission):
    start, words = random_start(emission, s=2), [[0, 2, 1, 1], [2, 0, 1]]
    padded = np.array([words[0], [*words[1], -7]])
    fit = fit_em(padded, start, 1, lengths=[4, 3], emission=emission)
    each = [counts_of_paths(start, word, emission)[0] for word in words]
    initial, *counts = (np.sum(c, axis=0) for c in zip(*each, strict=True))
    initial = initial / initial.sum()
    if emission == "general":
        expected = Process(counts[0] / counts[0].sum((0, 2))[None, :, None], initial)
    else:
        expected = emitting(initial, *(c / c.sum(1, keepdims=True) for c in counts))
    assert error(fit.process.initial, expected.initial) < 1e-12
    assert error(fit.process.transitions, expected.transitions) < 1e-12
    for process, mean in zip((start, expected), fit.log_likelihood, strict=True):
        total = sum(bayes_filter(process, word).log_probability[-1] for word in words)
        assert abs(mean - total / 7) < 1e-12


@pytest.mark.laws
@pytest.mark.parametrize(("name", "batch", "length"), [("mess3", 5, 40), ("z1r", 3, 3000)])
def test_the_likelihood_is_that_of_the_filter(name, batch, length, monkeypatch):
    """With lengths; long sequences in chunks; many in groups; transitions that are zero."""
    process = {"mess3": MESS3, "z1r": processes.z1r(0.5)}[name]
    keys = jax.random.split(jax.random.key(2), batch)
    tokens = np.array(processes.sample(process, keys, length).tokens)
    lengths = np.linspace(length, 0, batch).astype(int)
    monkeypatch.setattr(likelihood, "_ENTRIES", 15)
    sequences = np.where(np.arange(length) < lengths[:, None], tokens, -1)
    packed = likelihood.pack(sequences, 3, process.num_tokens, ends=False)
    assert packed.index.shape[0] > 1
    assert (packed.index.shape[-1] > packed.occupied.shape[-1]) == (length > 40)
    of = jax.value_and_grad(likelihood.mean_log_likelihood, argnums=1, has_aux=True)
    (mean, small), slope = jax.jit(of)(process.initial, process.transitions, packed)
    assert not small
    (exact, _), exact_slope = jax.jit(partial(of, exact=True))(
        process.initial, process.transitions, packed
    )
    assert abs(exact / mean - 1) < 1e-14
    assert error(exact_slope, slope) < 1e-12
    ends = bayes_filter(process, tokens).log_probability
    total = sum(float(row[n - 1]) for row, n in zip(ends, lengths, strict=True) if n)
    assert abs(mean * lengths.sum() / total - 1) < 1e-12
    # Every token is emitted once.
    assert abs(jnp.sum(slope * process.transitions) - 1) < 1e-12


@pytest.mark.laws
def test_a_step_holds_no_matrix_for_each_token():
    """The memory of the program for 10^5 tokens and 30 states: 720 MB would be a matrix each."""
    s, k, count = 30, 3, 100_000
    packed = likelihood.pack(np.zeros((1, count), int), s, k, ends=False)
    gradient = jax.jit(jax.grad(likelihood.mean_log_likelihood, argnums=(0, 1), has_aux=True))
    compiled = gradient.lower(jnp.full(s, 1 / s), jnp.full((k, s, s), 1 / s / k), packed).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 20e6


@pytest.mark.laws
@pytest.mark.parametrize("implementation", ["log", "scaling"])
def test_every_step_of_em_is_that_of_hmmlearn(tokens, implementation):
    hmm = pytest.importorskip("hmmlearn.hmm", reason="hmmlearn is not installed: imr[bench]")
    start = random_start("state")
    matrices = np.asarray(start.transitions)
    peer = hmm.CategoricalHMM(
        3, n_features=3, init_params="", n_iter=1, tol=-np.inf, implementation=implementation
    )
    peer.startprob_ = np.asarray(start.initial)
    peer.transmat_, peer.emissionprob_ = matrices.sum(0), matrices.sum(2).T
    lengths = LENGTHS[LENGTHS > 0]
    rows = np.concatenate([row[:n] for row, n in zip(tokens, LENGTHS, strict=True)])[:, None]
    for steps in range(1, 8):
        before = peer.score(rows, lengths) / len(rows)
        peer.fit(rows, lengths)
        fit = fit_em(tokens, start, steps, lengths=LENGTHS, emission="state")
        assert abs(fit.log_likelihood[-2] / before - 1) < 1e-10
        matrices = np.asarray(fit.process.transitions)
        assert error(fit.process.initial, peer.startprob_) < 1e-9
        assert error(matrices.sum(0), peer.transmat_) < 1e-9
        assert error(matrices.sum(2).T, peer.emissionprob_) < 1e-9


@pytest.mark.parametrize("emission", ["general", pytest.param("state", marks=pytest.mark.laws)])
def test_em_climbs_and_keeps_what_is_fixed(tokens, emission):
    start = np.array(random_start(emission, 1).transitions)
    start[:, 0, 1] = 0
    start /= start.sum((0, 2))[None, :, None]
    start = Process(start, [0.5, 0.5, 0])
    shape = (3, 3, 3) if emission == "general" else (3, 3)
    fixed = np.zeros(shape, bool)
    fixed[..., 2] = True
    options = {"emission": emission, "lengths": LENGTHS, "restarts": 3, "key": jax.random.key(0)}
    fit = fit_process(tokens, start=start, fixed=Fixed(transitions=fixed), max_steps=40, **options)
    assert np.diff(fit.log_likelihood).min() >= -1e-14
    assert fit.log_likelihood[-1] - fit.log_likelihood[0] > 1e-3
    before, after = np.asarray(start.transitions), np.asarray(fit.process.transitions)
    if emission == "state":
        before, after = before.sum(0), after.sum(0)
    assert (after[before == 0] == 0).all()
    assert error(after[fixed], before[fixed]) < 1e-14
    assert abs(after - before)[~fixed].max() > 0.01
    assert fit.process.initial[2] == 0
    assert fit.scores.shape == (3,)
    assert fit.log_likelihood[-1] == fit.scores.max()


SEPARATE = emitting(
    np.full(3, 1 / 3),
    np.full((3, 3), 0.05) + 0.85 * np.eye(3),
    np.full((3, 3), 0.1) + 0.7 * np.eye(3),
)


def largest_gap(fits, tokens, emission, fixed=None, tied=None):
    r"""How far apart the likelihoods of two stops on one hill may be, from gradients there.

    Of a quadratic $L(a) - L(b) = (a - b) (g_a + g_b) / 2$, here in the logits of the entries.
    """
    packed = likelihood.pack(np.asarray(tokens), 3, 3, ends=emission == "state")
    starts = [start_tables(fit.process, 3, 3, emission, fixed, tied) for fit in fits]
    entries = starts[0][1]

    @jax.jit
    def slopes(tables):
        def mean(logits):
            return ascent._log_likelihood(ascent._softmax(logits, tables, entries), packed)[0]

        logits = ascent._logits(tables, entries)
        return logits, jax.grad(mean)(logits)

    (a, slope_a), (b, slope_b) = (
        [np.concatenate([np.ravel(x) for x in part]) for part in slopes(tables)]
        for tables, _ in starts
    )
    return np.sum(abs(a - b) * np.maximum(abs(slope_a), abs(slope_b)))


@pytest.mark.parametrize(
    ("emission", "tol"),
    [
        pytest.param("general", 1e-6, marks=pytest.mark.acceptance),
        pytest.param("state", 1e-7, marks=pytest.mark.laws),
    ],
)
def test_both_methods_reach_one_optimum(emission, tol):
    """Free moves are flat in many directions: there EM takes thousands of steps."""
    tokens = processes.sample(SEPARATE, jax.random.split(jax.random.key(6), 50), 100).tokens
    chain, emissions = (
        np.full((3, 3), 0.2) + 0.4 * np.eye(3),
        np.full((3, 3), 0.2) + 0.4 * np.eye(3),
    )
    start = emitting(np.array([0.5, 0.3, 0.2]), chain, emissions)
    em, gradient = (
        fit_process(tokens, start=start, emission=emission, method=method, tol=tol, max_steps=9000)
        for method in ("em", "gradient")
    )
    assert em.converged
    assert gradient.converged
    for fit in (em, gradient):
        assert np.diff(fit.log_likelihood).min() >= -1e-14
    gap = abs(em.log_likelihood[-1] - gradient.log_likelihood[-1])
    print(f"apart {gap:.1e}, allowed {largest_gap((em, gradient), tokens, emission):.1e}")
    assert gap < largest_gap((em, gradient), tokens, emission) + 1e-14
    assert gradient.num_steps < em.num_steps


def best_match(process, planted):
    """The largest difference of transitions, states taken in the best order."""
    actual, expected = np.asarray(process.transitions), np.asarray(planted.transitions)
    orders = itertools.permutations(range(len(expected[0])))
    return min(abs(actual[:, o][:, :, o] - expected).max() for o in map(list, orders))


PLANTED = {
    "golden mean": (processes.golden_mean(0.4), "general", processes.golden_mean(0.9)),
    "even": (processes.even(0.3), "general", None),
    "z1r": (processes.z1r(0.3), "general", None),
    "separate": (SEPARATE, "state", None),
}


@pytest.mark.acceptance
@pytest.mark.parametrize("name", PLANTED)
def test_planted_processes_are_recovered(name):
    planted, emission, start = PLANTED[name]
    keys = jax.random.split(jax.random.key(3), 200)
    train, fresh = (processes.sample(planted, keys[i : i + 100], 200).tokens for i in (0, 100))
    fit = fit_process(
        train, None if start else planted.num_states, start=start, emission=emission, restarts=8,
        method="gradient", key=jax.random.key(0), held_out=fresh, max_steps=300,
    )  # fmt: skip
    assert best_match(fit.process, planted) < 0.03
    of_planted, of_fit = (
        float(bayes_filter(p, fresh).log_probability[:, -1].mean()) / 200
        for p in (planted, fit.process)
    )
    assert abs(of_fit - fit.scores.max()) < 1e-12
    assert abs(of_fit - of_planted) < 1e-3


@pytest.mark.laws
def test_held_out_tokens_choose_among_restarts(tokens):
    """The best for the tokens is not the best for a coin's. A restart is what it is alone."""
    options = {"key": jax.random.key(5), "lengths": LENGTHS, "restarts": 3, "max_steps": 5}
    coin = np.ones((5, 40), int)
    start = random_start("general", 3)
    plain = fit_process(tokens, start=start, **options)
    chosen = fit_process(tokens, start=start, held_out=coin, held_out_lengths=LENGTHS, **options)
    assert np.argmax(plain.scores) != np.argmax(chosen.scores)
    rows = bayes_filter(chosen.process, coin).log_probability
    total = sum(float(row[n - 1]) for row, n in zip(rows, LENGTHS, strict=True) if n)
    assert abs(total / LENGTHS.sum() - chosen.scores.max()) < 1e-12
    alone = fit_process(tokens, start=start, lengths=LENGTHS, max_steps=5)
    assert abs(alone.log_likelihood[-1] - plain.scores[0]) < 1e-12


@pytest.mark.acceptance
@pytest.mark.parametrize("emission", ["general", "state"])
def test_mess3_from_a_million_tokens(emission):
    """The best of five restarts on tokens that it has not seen, against the true process."""
    count = 10**6
    train, fresh = (processes.sample(MESS3, jax.random.key(s), count).tokens for s in (1, 2))
    fit = fit_process(
        train, 3, key=jax.random.key(0), restarts=5, emission=emission, method="gradient",
        tol=1e-6, max_steps=150,
    )  # fmt: skip
    of_fit, of_mess3 = (
        float(bayes_filter(p, fresh).log_probability[-1]) / count for p in (fit.process, MESS3)
    )
    print(f"{fit.num_steps} steps; fresh tokens: {of_fit:.7f}, of Mess3 {of_mess3:.7f}")
    assert fit.converged
    assert of_mess3 - of_fit < 2e-5
    # The control: the best prediction without memory.
    assert of_mess3 + np.log(3) > 100 * abs(of_mess3 - of_fit)


@pytest.mark.acceptance
def test_twenty_times_the_speed_of_hmmlearn():
    """A step of EM on 1,000 sequences of 100 tokens, both from one start, best of five each."""
    hmm = pytest.importorskip("hmmlearn.hmm", reason="hmmlearn is not installed: imr[bench]")
    tokens = np.asarray(
        processes.sample(MESS3, jax.random.split(jax.random.key(4), 1000), 100).tokens
    )
    start = random_start("state")
    matrices = np.asarray(start.transitions)

    def peer(steps):
        it = hmm.CategoricalHMM(3, n_features=3, init_params="", n_iter=steps, tol=-np.inf)
        it.startprob_ = np.asarray(start.initial)
        it.transmat_, it.emissionprob_ = matrices.sum(0), matrices.sum(2).T
        return it.fit(tokens.reshape(-1, 1), [100] * 1000)

    def ours(steps):
        return fit_em(tokens, start, steps, emission="state")

    # This compiles too.
    assert abs(ours(20).log_likelihood[19] * tokens.size / peer(20).monitor_.history[-1] - 1) < 1e-6
    seconds = {}
    for name, run in (("hmmlearn", peer), ("imr", ours)):
        seconds[name] = min(timed(run, 20) for _ in range(5)) / 20
    print({name: f"{1e3 * each:.2f} ms a step" for name, each in seconds.items()})
    assert seconds["hmmlearn"] > 20 * seconds["imr"]


def timed(run, steps):
    start = time.perf_counter()
    run(steps)
    return time.perf_counter() - start


@pytest.mark.acceptance
@pytest.mark.parametrize("length", [200, 4000])
def test_likelihoods_and_counts_that_would_underflow(length):
    """In float32, against float64: words of 1e-8 each, and a state that comes to be the likely one.

    The long sequence goes in chunks.
    """
    t = np.stack([np.diag([1 - 1e-8, 1e-4]), np.diag([1e-8, 1 - 1e-4])])
    words = np.repeat([[0, 1]], [30, length - 30], axis=1)
    packed = likelihood.pack(words, 2, 2, ends=False)
    of = jax.value_and_grad(likelihood.mean_log_likelihood, argnums=1, has_aux=True)
    of = jax.jit(of, static_argnames="exact")

    def evaluated(dtype, initial, exact):
        (mean, small), slope = of(
            jnp.asarray(initial, dtype), jnp.asarray(t, dtype), packed, exact=exact
        )
        return float(mean), slope * t, bool(small)

    for initial in ([0.5, 0.5], [0.0, 1.0]):
        mean, counts, _ = evaluated(np.float64, initial, False)
        found, found_counts, _ = evaluated(np.float32, initial, True)
        assert abs(found / mean - 1) < 1e-5
        assert error(found_counts, counts) < 1e-5
        assert evaluated(np.float32, initial, False)[2]
    start = Process(t.astype(np.float32), [0.5, 0.5])
    fitted = fit_process(words, start=start, held_out=words[:, ::-1], max_steps=1)
    assert abs(fitted.log_likelihood[0] / evaluated(np.float64, [0.5, 0.5], False)[0] - 1) < 1e-5
    assert np.isfinite(fitted.scores).all()


@pytest.mark.acceptance
def test_restarts_of_no_finite_score(tokens):
    """One that gives the held-out tokens probability zero is not chosen; if all do, it is said."""
    options = {"key": jax.random.key(5), "restarts": 3, "max_steps": 20}
    assert _best(np.array([np.nan, -np.inf, -3.0, -2.0]), "a fit must give the tokens") == 3
    words = "a restart must give held_out a positive probability; found zero"
    with pytest.raises(ImrError, match=words):
        fit_process([0, 1, 0], 2, num_tokens=3, held_out=[2, 2], **options)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), MESS3)
    found = fit_process(tokens, start=half, max_steps=20)
    assert found.process.transitions.dtype == found.log_likelihood.dtype == jnp.float32
    assert np.diff(found.log_likelihood).min() > -1e-6


@pytest.mark.acceptance
def test_float32_and_narrow_tokens(tokens):
    start = random_start("state")
    narrow = jax.tree.map(lambda x: x.astype(jnp.float32), start)
    single = fit_process(tokens.astype(np.uint8), start=narrow, emission="state", max_steps=20)
    double = fit_process(tokens, start=start, emission="state", max_steps=20)
    assert single.process.transitions.dtype == single.log_likelihood.dtype == jnp.float32
    assert error(single.log_likelihood, double.log_likelihood) < 1e-5
    # Of the last digits no more is asked than they have.
    stuck = fit_process(tokens, start=narrow, emission="state", tol=0.0, max_steps=5000,
                        method="gradient")  # fmt: skip
    assert not stuck.converged
    assert stuck.num_steps < 5000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_states": 0}, "num_states must be an integer of at least 1; found 0"),
        ({}, "num_states or start must be given; found None for both"),
        ({"num_states": 2}, "key must be given for random starts.*found None"),
        ({"num_states": 2, "key": 0}, "key must be made by"),
        ({"num_states": 2, "key": jax.random.split(jax.random.key(0), 3)}, r"key must be one random key.* \(3,\)"),
        ({"start": MESS3, "num_states": 2}, "num_states must be that of start, 3, or None; found 2"),
        ({"start": MESS3, "num_tokens": 4}, "num_tokens must be that of start, 3"),
        ({"num_states": 2, "num_tokens": 0}, "num_tokens must be an integer of at least 1"),
        ({"num_states": 2, "num_tokens": 2}, "tokens must lie in 0 to 1; found 0 to 2"),
        ({"start": MESS3, "tokens": [0.5]}, "tokens must be integers"),
        ({"start": MESS3, "tokens": [-1, 0]}, "tokens must lie in 0 to 2; found -1 to 0"),
        ({"start": MESS3, "tokens": []}, "at least one token; found none"),
        ({"start": MESS3, "lengths": 0}, "at least one token; found none"),
        ({"start": MESS3, "lengths": 4}, r"lengths must lie in 0 to 3; found 4 to 4"),
        ({"start": MESS3, "lengths": [3]}, r"lengths must be integers of shape \(\)"),
        ({"start": MESS3, "lengths": 1.0}, "lengths must be integers .* found float64"),
        ({"start": MESS3, "held_out": [3]}, "held_out: tokens must lie in 0 to 2; found 3"),
        ({"start": MESS3, "held_out": [1], "held_out_lengths": 2}, "held_out: lengths must lie in 0 to 1; found 2 to 2"),
        ({"start": MESS3, "held_out": []}, "held_out: tokens must hold at least one token"),
        ({"start": MESS3, "held_out_lengths": 2}, "held_out_lengths needs held_out"),
        ({"start": MESS3, "method": "viterbi"}, "method must be one of em, gradient; found 'vi"),
        ({"start": MESS3, "emission": "edge"}, "emission must be one of general, state; found 'e"),
        ({"start": MESS3, "emission": "state"}, r"T_x = diag\(B_x\) A.*off by 0\.\d+"),
        ({"start": MESS3, "restarts": 0}, "restarts must be an integer of at least 1"),
        ({"start": MESS3, "restarts": 2}, "key must be given for random starts"),
        ({"start": MESS3, "max_steps": -1}, "max_steps must be an integer of at least 0"),
        ({"start": MESS3, "tol": -1.0}, "tol must be at least 0; found -1"),
        ({"start": processes.fanizza(2.0, 0.49)}, "start must be hidden Markov"),
        ({"start": "mess3"}, "process must be an imr.Process; found a str"),
        ({"num_states": 2, "fixed": Fixed(initial=True)}, "fixed needs start"),
        ({"start": MESS3, "fixed": True}, "fixed must be a Fixed; found a bool"),
        ({"start": MESS3, "fixed": Fixed(emissions=True)}, 'fixed.emissions needs emission="state"'),
        ({"start": MESS3, "fixed": Fixed(initial=[True])}, r"booleans of shape \(3,\); .*\(1,\)"),
        ({"start": MESS3, "fixed": Fixed(transitions=0.5)}, "fixed.transitions must be boolean; found"),
    ],
)  # fmt: skip
def test_bad_input(options, message, unchecked):
    tokens = options.pop("tokens", [0, 1, 2])
    with pytest.raises(ImrError, match=message):
        fit_process(tokens, **options)


@pytest.mark.laws
@pytest.mark.usefixtures("unchecked")
def test_more_bad_input():
    with pytest.raises(
        ImrError, match="tokens, start and key must be concrete; found a traced value"
    ):
        jax.jit(lambda tokens: fit_process(tokens, start=MESS3).log_likelihood)(jnp.zeros(3, int))
    with pytest.raises(ImrError, match="tokens must be numbers from 0 on without large gaps"):
        fit_process([0, 2**30], num_states=2)
    with pytest.raises(ImrError, match="start must give the tokens a positive probability"):
        fit_process([1, 1], start=processes.golden_mean(0.5))


def test_rows_keep_their_sum_through_thousands_of_float32_steps():
    key, free = jax.random.key(0), np.array([[True] * 7, [False, *[True] * 6]])
    table = jax.random.dirichlet(key, jnp.ones(7), (2,), jnp.float32)

    @jax.jit
    def steps(table):
        def step(table, key):
            return share(table, jax.random.uniform(key, table.shape, jnp.float32), free, None), None

        return jax.lax.scan(step, table, jax.random.split(key, 5000))[0]

    after = steps(table)
    np.testing.assert_allclose(after.sum(axis=1), 1, atol=1e-6)
    assert after[1, 0] == table[1, 0]
