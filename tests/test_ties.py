"""Fits with tied entries: the closed step against all tied tables, planted processes, bad groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imr import processes
from imr.beliefs import Fixed, Tied, bayes_filter, fit_process
from imr.beliefs.tables import share
from imr.beliefs.ties import make_ties
from imr.errors import ImrError
from imr.processes import Process
from tests.problems import error
from tests.test_fit import largest_gap

MESS3 = processes.mess3(0.15, 0.6)
# The rows of a circulant matrix are one another's permutations, as those of Mess3 are.
CIRCULANT = (np.arange(3)[None, :] - np.arange(3)[:, None]) % 3
# T[x, i, j] = T[x + 1, i + 1, j + 1], indices modulo 3.
SYMMETRY = 3 * CIRCULANT[None] + (np.arange(3)[:, None] - np.arange(3)[None, :])[:, :, None] % 3

GROUPS = {  # of a table (3, 4); -1 stands alone
    "all of three rows": [[0, 1, 1, 2], [1, 0, 2, 1], [1, 2, 1, 0]],
    "one entry of each": [[0, -1, -1, -1], [-1, 0, -1, -1], [-1, -1, 0, -1]],
    "two rows, and one by itself": [[0, 1, -1, 3], [1, 0, 2, 2], [-1, 4, 4, -1]],
    "twice in each row": [[0, 0, 5, -1], [-1, 0, 5, 0], [-1, 6, 6, 6]],
    "beside fixed ones": [[0, 1, -1, -1], [1, 0, -1, -1], [-1, 2, 2, -1]],
}


shares = jax.jit(jax.vmap(share, (None, 0, None, None)))


@pytest.mark.parametrize("name", GROUPS)
def test_shares_of_counts_are_the_best_of_all_tied_tables(name):
    """sum N log theta is concave, and tied tables are a convex set: no direction in it leads up."""
    random, groups = np.random.default_rng(0), np.array(GROUPS[name])
    free = np.ones((3, 4), bool)
    free[:, 3] = name != "beside fixed ones"
    table = np.full((3, 4), 0.25)
    ties = make_ties("tied", groups, table, free)
    draws = random.exponential(size=(50, 3, 4))
    tables = np.asarray(shares(table, draws, free, ties))
    np.testing.assert_allclose(tables.sum(2), 1, atol=1e-14)
    np.testing.assert_array_equal(tables[:, ~free], 0.25)
    for group in np.unique(groups[groups >= 0]):
        np.testing.assert_allclose(np.ptp(tables[:, groups == group], axis=1), 0, atol=1e-15)
    # The derivative towards each other table of what the counts of the first give.
    slopes = np.sum((draws[0] * (tables / tables[0] - 1))[:, free], axis=1)
    np.testing.assert_allclose(slopes, 0, atol=1e-12)
    # The tables spread over all directions that the ties leave.
    values = len(np.unique(np.where(groups < 0, 100 + np.arange(12).reshape(3, 4), groups)[free]))
    sums = 1 if name == "all of three rows" else 3
    assert np.linalg.matrix_rank((tables - tables[0]).reshape(50, -1), tol=1e-9) == values - sums


@pytest.mark.acceptance
def test_both_methods_reach_one_optimum_under_ties():
    """Of moves that are tied, fixed and zero."""
    tokens = np.asarray(processes.sample(MESS3, jax.random.split(jax.random.key(1), 5), 40).tokens)
    chain = np.array([[0.5, 0.3, 0.2], [0.3, 0.5, 0.2], [0.5, 0.5, 0]])
    emissions = np.array([[0.6, 0.2, 0.2], [0.3, 0.4, 0.3], [0.2, 0.2, 0.6]])
    start = Process(emissions.T[:, :, None] * chain, [0.4, 0.4, 0.2])
    fixed = np.zeros((3, 3), bool)
    fixed[:2, 2] = True
    options = {
        "start": start, "emission": "state", "tol": 1e-7, "fixed": Fixed(transitions=fixed),
        "tied": Tied([0, 0, -1], [[0, 1, -1], [1, 0, -1], [-1, -1, -1]], [[7, 8, 8], [-1, -1, -1], [8, 8, 7]]),
    }  # fmt: skip
    em, gradient = (
        fit_process(tokens, method=m, max_steps=9000, **options) for m in ("em", "gradient")
    )
    for fit in (em, gradient):
        assert fit.converged
        assert np.diff(fit.log_likelihood).min() >= -1e-14
        matrices = np.asarray(fit.process.transitions)
        a, b = matrices.sum(0), matrices.sum(2).T
        assert error(a[0, [0, 1]], a[1, [1, 0]]) < 1e-14
        assert error(a[:, 2], [0.2, 0.2, 0]) < 1e-14
        assert error([b[0, 0], b[0, 1], b[0, 2]], [b[2, 2], b[2, 0], b[2, 1]]) < 1e-14
        assert fit.process.initial[0] == fit.process.initial[1]
    given = {name: options[name] for name in ("emission", "fixed", "tied")}
    gap = abs(em.log_likelihood[-1] - gradient.log_likelihood[-1])
    assert gap < largest_gap((em, gradient), tokens, **given) + 1e-14
    free = fit_process(tokens, **{**options, "tied": None})
    assert free.log_likelihood[-1] > em.log_likelihood[-1] + 1e-4


@pytest.mark.acceptance
def test_a_planted_process_of_tied_moves_is_recovered():
    """Eight free numbers instead of 24 come closer to Mess3, on tokens that neither has seen."""
    keys = jax.random.split(jax.random.key(3), 100)
    train, fresh = (processes.sample(MESS3, keys[i : i + 50], 400).tokens for i in (0, 50))
    options = {"key": jax.random.key(0), "restarts": 6, "method": "gradient", "max_steps": 500}
    tied = fit_process(train, 3, tied=Tied(transitions=SYMMETRY), **options)
    free = fit_process(train, 3, **options)
    matrices = np.asarray(tied.process.transitions)
    for group in range(9):
        assert np.ptp(matrices[group == SYMMETRY]) < 1e-15
    assert free.log_likelihood[-1] > tied.log_likelihood[-1]

    def short(process):
        """Nats a token below Mess3; d parameters cost d / 2 over all tokens in the mean."""
        of_mess3, of_fit = (bayes_filter(p, fresh).log_probability[:, -1] for p in (MESS3, process))
        return float(jnp.sum(of_mess3 - of_fit)) / fresh.size

    print(f"tied: {short(tied.process):.2e}, free: {short(free.process):.2e}")
    assert short(tied.process) < 3 * 8 / 2 / train.size
    assert short(free.process) > short(tied.process)


PAIR = np.full((3, 3, 3), -1)
PAIR[0, 0, :2] = 0  # T[0, 0, 0] = .765 * .6 and T[0, 0, 1] differ


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tied": 3}, "tied must be a Tied; found a int"),
        ({"tied": Tied(emissions=[[0]])}, 'tied.emissions needs emission="state"'),
        ({"tied": Tied(transitions=CIRCULANT)}, r"tied.transitions .* shape \(3, 3, 3\).*found int"),
        ({"tied": Tied(initial=[0.0, 0, 1])}, "tied.initial must be integers.*found float64"),
        ({"tied": Tied(transitions=PAIR)}, "group must be equal in start; those of group 0 lie in"),
        (
            {"tied": Tied(initial=[4, 4, -1]), "fixed": Fixed(initial=[True, False, False])},
            "tied.initial: entries of a group must be all free; of group 4 1 are fixed or zero",
        ),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_bad_groups(options, message):
    with pytest.raises(ImrError, match=message):
        fit_process([0, 1, 2], start=MESS3, **options)


@pytest.mark.parametrize(
    ("chain", "fixed", "message"),
    [
        ([[0, 0, -1], [0, -1, -1], [-1] * 3], False, "group 0 stands 2 times in row 0 and 1 in row 1"),
        ([[0, 1, -1], [0, -1, -1], [-1] * 3], False, None),
        ([[0, 1, -1], [0, 1, -1], [1, -1, -1]], False, "group 0 stands 1 times in row 0 and 0 in row 2"),
        ([[0, -1, -1], [0, -1, -1], [-1] * 3], True, "same sum of free entries; those of group 0 have"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_groups_whose_step_is_not_closed(chain, fixed, message):
    table, free = np.full((3, 3), 1 / 3), np.ones((3, 3), bool)
    free[0, 2] = not fixed
    if message is None:
        assert not make_ties("tied", np.array(chain), table, free).shared[0, 1]
        return
    with pytest.raises(ImrError, match=message):
        make_ties("tied.transitions", np.array(chain), table, free)
