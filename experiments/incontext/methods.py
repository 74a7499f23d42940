"""Predictors of classification without training, each at its best setting."""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.incontext import baselines
from experiments.incontext.config import Sizes
from experiments.incontext.readings import at_edge
from experiments.incontext.tasks import CLASSES, NOISE, SPREAD, Labels

BETAS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 8.0, 16.0, 32.0)  # of kernels
MEAN_BETAS = (0.3, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0, 16.0, 24.0)  # of distances to a mean
RIDGES = (0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.3, 0.5, 1.0, 3.0)
# Of labels that are hardly random.
PROTOTYPE_RIDGES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3)
TAUS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # steps of flows that are not trained
LINEAR_TAUS = tuple(np.geomspace(0.03, 1000, 28))
NEIGHBOURS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 15, 20, 25)


class Method(NamedTuple):
    """Predictors without training that share their settings, of which each has the best for itself."""

    logits: Callable[..., jax.Array]  # of tokens, targets and a setting, (entries, n, k)
    settings: tuple[tuple[float, ...], ...]
    entries: tuple[str, ...]
    share: int = 1  # of one test task in so many
    votes: bool = False  # logits are votes, which are chosen by their accuracy and have no CE


def methods(sizes: Sizes, prototypes: bool) -> tuple[Method, ...]:
    """Those of a kind of task: flows, kernel regression, and what needs no kernel."""
    depths = tuple(dict.fromkeys((*sizes.depths, 2 * sizes.depths[-1])))

    def flows(kernels, x, targets, beta, tau):
        weights = [baselines.attention(kernel, x, len(targets), beta) for kernel in kernels]
        each = jax.vmap(lambda w: baselines.flow(w, targets, tau, depths))(jnp.stack(weights))
        return each.reshape(-1, *each.shape[2:])

    def regression(kernel, x, targets, beta, ridge):
        # Without the share of one over the number of examples that attention has.
        gram = x @ x.T if kernel == "linear" else baselines.attention(kernel, x, len(x), beta)
        return baselines.kernel_regression(gram, targets, ridge)[None]

    def flow(*kernels, widths, taus):
        entries = tuple(f"{kernel} flow, {depth} steps" for kernel in kernels for depth in depths)
        return Method(partial(flows, kernels), tuple(product(widths, taus)), entries, 5)

    def fit(name, kernel, widths):
        settings = tuple(product(widths, PROTOTYPE_RIDGES if prototypes else RIDGES))
        return Method(partial(regression, kernel), settings, (f"{name} kernel regression",))

    found = (
        flow("softmax", "exponential", widths=BETAS, taus=TAUS),
        # A width of linear attention, or of a linear kernel, is another step or ridge.
        flow("linear", widths=(1.0,), taus=LINEAR_TAUS),
        fit("rbf", "exponential", BETAS),
        fit("linear", "linear", (1.0,)),
        Method(
            lambda x, targets, count: baselines.nearest(x, targets, count)[None],
            tuple((float(count),) for count in NEIGHBOURS), ("nearest neighbours",), votes=True,
        ),
        Method(
            lambda x, targets, beta: baselines.class_means(x, targets, beta)[None],
            tuple((beta,) for beta in MEAN_BETAS), ("class mean",),
        ),
    )  # fmt: skip
    if not prototypes:
        return found
    bayes = Method(lambda x, targets: baselines.bayes(x, targets, SPREAD, NOISE)[None], ((),), ("Bayes",))  # fmt: skip
    return (*found, bayes)


def measure_method(
    examples: int, method: Method, chosen: Labels, tests: list[Labels]
) -> dict[str, tuple[np.ndarray, int, str]]:
    """By entry: scores on fresh tasks at the best setting, shape (seeds, 2), how many were tried, and
    what of that setting lies at the edge of its grid."""

    def one(setting, *task):
        task = Labels(*task)
        targets = jax.nn.one_hot(task.y[:examples], CLASSES)
        logits = method.logits(task.x, targets, *setting)
        return jax.vmap(baselines.scores, (0, None, None))(logits, task.y, examples)

    @jax.jit
    def evaluate(tasks, settings):
        return jax.lax.map(lambda s: baselines.over_tasks(partial(one, s), tasks), settings)

    settings = np.array(method.settings, np.float32)
    tried = np.asarray(evaluate(chosen, settings))  # (settings, entries, 2)
    wrong = 1 - tried[..., 0] if method.votes else tried[..., 1]
    wrong = np.where(np.isnan(wrong), np.inf, wrong)
    best = np.argmin(wrong, axis=0)
    some, where = np.unique(best, return_inverse=True)
    found = np.stack([
        evaluate(jax.tree.map(lambda x: x[:: method.share], test), settings[some]) for test in tests
    ])  # fmt: skip
    return {
        name: (
            found[:, where[e], e],
            len(settings),
            at_edge(settings, wrong[:, e], int(best[e])),
        )
        for e, name in enumerate(method.entries)
    }
