"""Constrained beliefs: rows T5, T7, T8 and T9 of the theory with their controls."""

import jax
import numpy as np
import pytest
from test_processes import PROCESSES

from imr import constrained, processes
from imr.errors import ImrError

MESS3 = processes.mess3(0.15, 0.6)
HALF = processes.mess3(0.5, 0.6)
WORDS = np.indices((3,) * 6).reshape(6, -1).T.astype(np.int32)


def host(tree):
    return jax.tree.map(np.asarray, tree)


def pooled(length=10, lam=-0.5):
    """All prefixes of mess3 by level in numpy: lags of v in two coordinates, centred eta, P."""
    process = MESS3 if lam > 0 else HALF
    v, t = np.asarray(constrained.token_vectors(process)), np.asarray(process.transitions)
    level, p = np.zeros((1, 0), np.int8), np.full((1, 3), 1 / 3)
    for d in range(1, length + 1):
        level = np.concatenate(
            [np.repeat(level, 3, 0), np.tile(np.arange(3, dtype=np.int8), 3 ** (d - 1))[:, None]], 1
        )
        p = np.einsum("ni,kij->nkj", p, t).reshape(-1, 3)
        by_lag = v[level[:, ::-1]]  # (n, lag, s)
        eta = np.einsum("l,nls->ns", lam ** np.arange(d), by_lag)
        yield by_lag, eta, p.sum(1)


def r_squared(features, expected, weights):
    """Of the best linear map with a constant, weighted."""
    features = np.concatenate([features, np.ones((len(features), 1))], 1)
    root = np.sqrt(weights)[:, None]
    fitted = features @ np.linalg.lstsq(root * features, root * expected, rcond=None)[0]
    mean = np.average(expected, axis=0, weights=weights)
    return 1 - (root**2 * (expected - fitted) ** 2).sum() / (root**2 * (expected - mean) ** 2).sum()


@pytest.mark.laws
@pytest.mark.parametrize("name", ["mess3", "half", "rrxor", "mr_name", "post_quantum"])
def test_t5_recursive_kernel_level_spectral(name):
    process = HALF if name == "half" else PROCESSES[name]
    k = process.num_tokens
    words = np.indices((k,) * 6).reshape(6, -1).T.astype(np.int32)
    level = np.asarray(constrained.constrained_level(process, 6))
    scale = abs(level).max()
    v, matrix = (
        np.asarray(constrained.token_vectors(process)),
        np.asarray(process.transitions).sum(0),
    )
    plain = sum(v[words[:, s]] @ np.linalg.matrix_power(matrix, 5 - s) for s in range(6))
    for method in ("recursive", "kernel", "spectral"):
        actual = np.asarray(constrained.constrained_beliefs(process, words, method=method))
        assert abs(actual[:, -1] - level).max() < 1e-12 * scale
        # The control: without the stationary distribution.
        assert abs(actual[:, -1] - plain).max() > 1e-2 * scale
    assert abs(plain + np.asarray(process.stationary) - level).max() < 1e-12 * scale
    assert abs(level @ np.asarray(process.right) - 1).max() < 1e-12


def test_mess3_kernel_on_paper_and_out_of_the_simplex():
    actual = np.asarray(constrained.constrained_beliefs(MESS3, WORDS))[:, -1]
    tokens = np.eye(3)[WORDS] - 1 / 3
    expected = 0.4 * np.einsum("l,nls->ns", 0.55 ** np.arange(6)[::-1], tokens)
    assert abs(actual - 1 / 3 - expected).max() < 1e-12
    lowest = min(np.asarray(constrained.constrained_level(HALF, d)).min() for d in (10,))
    assert abs(lowest + 0.022) < 1e-3


def test_where_the_ansatz_is_silent():
    rrxor = np.asarray(constrained.constrained_level(PROCESSES["rrxor"], 5))
    assert len(np.unique(rrxor.round(9), axis=0)) == 2
    z1r = processes.z1r(0.5)
    active = np.asarray(constrained.spectrum(z1r).eigenvalues)[constrained.spectrum(z1r).active]
    assert np.allclose(abs(active), 1)


@pytest.mark.laws
def test_the_row_normalised_variant():
    for process, factor in ((MESS3, 1.41), (HALF, 1.6)):
        v = np.asarray(constrained.token_vectors(process))
        other = np.asarray(constrained.row_normalised_token_vectors(process))
        assert abs(v / other - factor).max() < 5e-3
    for name in ("zero_one_random", "rrxor", "no_consecutive_ones", "even_ones"):
        with pytest.raises(ImrError, match="never emitted from state"):
            constrained.row_normalised_token_vectors(PROCESSES[name])


def test_t7_one_head_and_its_control():
    expected = np.asarray(constrained.constrained_beliefs(MESS3, WORDS)) - 1 / 3
    for embedding in (0.0, 0.3):
        heads = host(constrained.one_head_attention(0.55, 6, embedding))
        actual = np.asarray(constrained.apply_heads(MESS3, WORDS, heads))
        assert abs(actual - expected).max() < 1e-12 * abs(expected).max()
        assert abs(heads.attention.sum(-1) - 1).max() < 1e-13
        assert (heads.attention >= 0).all()
    late = host(constrained.one_head_attention(0.55, 60, 0.3))
    assert abs(late.gains[0, -1] - (0.7 + 0.55 / 0.45)) < 1e-12
    row = late.attention[0, -1]
    assert abs(row[-1] / row[-2] - 0.7 / 0.55) < 1e-12
    # Naive: lam^(d-s) / Z_d and the same values everywhere, all prefixes with one linear map.
    actual, expected, p = [], [], []
    for by_lag, eta, weight in pooled(lam=0.55):
        decay = 0.55 ** np.arange(by_lag.shape[1])
        actual.append(np.einsum("l,nls->ns", decay / decay.sum(), by_lag))
        expected.append(eta)
        p.append(weight)
    actual, expected, p = np.concatenate(actual), np.concatenate(expected), np.concatenate(p)
    assert abs(r_squared(actual, expected, p) - 0.935) < 1e-3


def test_t8_two_heads_and_the_best_single_one():
    expected = np.asarray(constrained.constrained_beliefs(HALF, WORDS)) - 1 / 3
    heads = host(constrained.two_head_attention(-0.5, 6))
    actual = np.asarray(constrained.apply_heads(HALF, WORDS, heads))
    assert abs(actual - expected)[:, 1:].max() < 1e-12 * abs(expected).max()
    assert abs(heads.attention.sum(-1) - 1).max() < 1e-13
    assert (heads.attention >= 0).all()
    late = host(constrained.two_head_attention(-0.5, 60)).gains[:, 30]
    assert np.allclose(late, [0.25 / 0.75, -0.5 / 0.75], atol=1e-12)
    lags, features, etas, p = (0, 1, 3, 5, 7, 9), [], [], []
    for by_lag, eta, weight in pooled():
        use = np.zeros((len(eta), len(lags), 3))
        for i, lag in enumerate(lags):
            if lag < by_lag.shape[1]:
                use[:, i] = by_lag[:, lag]
        features.append(use)
        etas.append(eta)
        p.append(weight)
    features, eta, p = np.concatenate(features), np.concatenate(etas), np.concatenate(p)
    flat = np.swapaxes(features, 1, 2).reshape(-1, len(lags))
    assert abs(r_squared(flat, eta.reshape(-1, 1), np.repeat(p, 3)) - 0.9625) < 1e-3


def test_t9_poles_of_the_best_additive_filter():
    for lam, pole in ((0.55, 0.4666), (-0.5, -0.4233)):
        actual = constrained.additive_filter(lam, 0.4)
        assert abs(actual.pole - pole) < 5e-4
        assert abs(actual.pole - lam) > 0.015
        noise = 1 - 0.4**2
        again = lam**2 * actual.variance * noise / (0.16 * actual.variance + noise) + 1 - lam**2
        assert abs(again - actual.variance) < 1e-14
    assert constrained.additive_filter(0.55, 0.0).pole == 0.55
    assert constrained.additive_filter(0.55, 1.0).pole == 0


def test_spectrum_and_heads():
    actual = host(constrained.spectrum(MESS3))
    matrix = (actual.right * actual.eigenvalues) @ actual.left
    assert abs(matrix - np.asarray(MESS3.transitions).sum(0)).max() < 1e-13
    counts = {"mess3": 1, "rrxor": 0, "coin": 0, "zero_one_random": 3, "no_consecutive_ones": 2}
    assert {n: constrained.head_count(PROCESSES[n]) for n in counts} == counts
    assert constrained.head_count(HALF) == 2
    values = host(constrained.predicted_values(HALF, constrained.two_head_attention(-0.5, 6)))
    v = np.asarray(constrained.token_vectors(HALF))
    assert np.allclose(values.embeddings, v)
    assert values.values.shape == (2, 6, 3, 3)
    assert ((values.values[0] * v[None]).sum((-1, -2)) > 0).all()
    assert ((values.values[1] * v[None]).sum((-1, -2)) < 0).all()


@pytest.mark.laws
def test_slow_and_nearly_reducible_chains_under_vmap_in_float32():
    """Processes made from arrays under vmap: as in float64, with rates of all orders from 1e-13 on."""
    random, size = np.random.default_rng(0), 200
    rates = np.exp(random.uniform(-30, 0, (size, 2, 3, 3)))
    many = (rates / rates.sum((1, 3))[:, None, :, None]).astype(np.float32)
    words = random.integers(0, 2, (size, 20))
    run = jax.jit(jax.vmap(lambda t, x: constrained.constrained_beliefs(processes.Process(t), x)))
    actual = np.asarray(run(many, words))
    assert actual.dtype == np.float32
    assert abs(actual.sum(-1) - 1).max() < 1e-5
    for t, word, eta in zip(many.astype(float), words, actual, strict=True):
        process = processes.Process(t)
        v, matrix = np.asarray(constrained.token_vectors(process)), t.sum(0)
        z = np.zeros(3)
        for x, found in zip(word, eta, strict=True):
            z = z @ matrix + v[x]
            assert abs(np.asarray(process.stationary) + z - found).max() < 1e-5


@pytest.mark.laws
def test_sequences_of_different_lengths_are_those_one_by_one():
    tokens, lengths = WORDS[[5, 100, 300, 700]].copy(), np.array([6, 3, 0, 1])
    tokens[1:, 4:] = 7  # never read
    heads = constrained.one_head_attention(0.55, 6)
    runs = {
        method: constrained.constrained_beliefs(MESS3, tokens, lengths, method=method)
        for method in ("recursive", "kernel", "spectral")
    }
    runs["heads"] = constrained.apply_heads(MESS3, tokens, heads, lengths) + 1 / 3
    whole = np.asarray(constrained.constrained_beliefs(MESS3, tokens % 3))
    for name, actual in runs.items():
        assert abs(actual[2] - 1 / 3).max() < 1e-15
        for row, alone, n in zip(np.asarray(actual), whole, lengths, strict=True):
            assert abs(row[:n] - alone[:n]).max(initial=0) < 1e-12, name
            assert np.ptp(row[max(n - 1, 0) :], axis=0).max() == 0


def test_tokens_out_of_range_under_a_trace_are_nan():
    for method in ("recursive", "kernel"):
        run = jax.jit(lambda x, m=method: constrained.constrained_beliefs(MESS3, x, method=m))
        assert np.isnan(run(np.array([5, -1]))).all()
    with pytest.raises(ImrError, match="hidden Markov"):
        constrained.row_normalised_token_vectors(PROCESSES["tom_quantum"])


def test_jit_vmap_gradient_export():
    tokens = WORDS[:5]
    for method in ("recursive", "kernel"):
        run = jax.jit(lambda p, x, m=method: constrained.constrained_beliefs(p, x, method=m))
        assert jax.vmap(lambda x, run=run: run(MESS3, x))(tokens).shape == (5, 6, 3)
        on_arrays = jax.jit(
            lambda t, x, m=method: constrained.constrained_beliefs(
                processes.Process(t), x, method=m
            )
        )
        exported = jax.export.export(on_arrays, platforms=["cpu", "cuda", "tpu"])(
            MESS3.transitions, tokens
        )
        assert len(exported.platforms) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constrained.constrained_beliefs(MESS3, np.array([3])), "0 to 2"),
        (lambda: constrained.constrained_beliefs(MESS3, np.array([0]), method="x"), "method"),
        (lambda: constrained.constrained_level(MESS3, -1), "depth"),
        (lambda: constrained.token_vectors(processes.coin(1.0)), r"\['1'\] have none"),
        (lambda: constrained.one_head_attention(1.5, 3), r"eigenvalue must lie in \(0, 1\)"),
        (lambda: constrained.one_head_attention(0.5, 3, 0.6), "embedding"),
        (lambda: constrained.one_head_attention(0.5, 0), "length"),
        (lambda: constrained.two_head_attention(0.5, 3), r"\(-1, 0\)"),
        (lambda: constrained.additive_filter(0.5, 2.0), "correlation"),
        (lambda: constrained.apply_heads(MESS3, WORDS, constrained.one_head_attention(0.5, 3)), "length 6"),
        (lambda: constrained.constrained_beliefs(MESS3, WORDS, [7]), r"lengths must .*shape \(729,\)"),
        (lambda: constrained.apply_heads(MESS3, [0], constrained.one_head_attention(0.5, 1), 2), "0 to 1; found 2"),
        (lambda: jax.jit(constrained.spectrum)(MESS3), "outside of jax.jit"),
    ],
)  # fmt: skip
def test_bad_input(make, message, unchecked):
    with pytest.raises(ImrError, match=message):
        make()


def test_the_spectrum_of_a_known_process_inside_jit():
    tokens = WORDS[:5]
    inside = jax.jit(lambda t: constrained.constrained_beliefs(MESS3, t, method="spectral"))(tokens)
    expected = constrained.constrained_beliefs(MESS3, tokens)
    np.testing.assert_allclose(inside, expected, atol=1e-12)


def test_a_known_process_is_looked_at_inside_jit():
    rows = jax.jit(
        lambda x: (
            x * constrained.head_count(MESS3) * constrained.row_normalised_token_vectors(MESS3)
        )
    )
    np.testing.assert_allclose(rows(3.0), 3 * constrained.row_normalised_token_vectors(MESS3))


@pytest.mark.acceptance
def test_functions_of_processes_take_traced_parameters():
    heads = constrained.one_head_attention(0.55, 6)

    def all_of(x):
        process = processes.mess3(x, 0.6)
        return [
            constrained.token_vectors(process), constrained.row_normalised_token_vectors(process),
            constrained.constrained_level(process, 2), constrained.predicted_values(process, heads),
            constrained.constrained_beliefs(process, WORDS[:5]),
            constrained.constrained_beliefs(process, WORDS[:5], method="kernel"),
            constrained.apply_heads(process, WORDS[:5], heads),
        ]  # fmt: skip

    h = 1e-5
    many = jax.jit(jax.vmap(all_of))(np.array([0.15 - h, 0.15, 0.15 + h]))
    slopes = jax.jit(jax.jacfwd(all_of))(0.15)
    for x, slope, one in zip(*map(jax.tree.leaves, (many, slopes, all_of(0.15))), strict=True):
        np.testing.assert_allclose(x[1], one, atol=1e-12)
        np.testing.assert_allclose(slope, (x[2] - x[0]) / (2 * h), atol=1e-8)


def test_eigenvalues_of_a_spectrum_are_taken():
    value = constrained.spectrum(MESS3).eigenvalues[1]
    assert constrained.one_head_attention(value, 4).attention.shape == (1, 4, 4)
    with pytest.raises(ImrError, match="use two_head_attention"):
        constrained.one_head_attention(-0.2, 4)
    with pytest.raises(ImrError, match="eigenvalue must be real"):
        constrained.one_head_attention(0.2 + 0.1j, 4)  # pyright: ignore[reportArgumentType]
