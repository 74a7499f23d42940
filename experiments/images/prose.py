"""Which number of the README is which entry of the kept summaries; `scripts/docs --check` holds them together."""

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

from experiments.images.config import REGRESSION
from experiments.images.report import margin_table, table_head
from imr.lab.seeds import cell

LATENT, BOTH = "latent_attention", "attention_mlp"
Summary = dict[str, Any]


def table(run: Summary) -> Iterator[list[str]]:
    """Rows of the README's table: accuracies at the trained depth, and the margin at noise 0.5."""
    margins = {
        tuple(row.values())[:4]: row["noise 0.5"].removesuffix(" beyond")
        for row in margin_table(run["beyond_frontier"])
    }
    at_depth = [row for row in run["table"] if row["iteration"] == row["trained_iterations"]]
    for head, rows in groupby(at_depth, lambda row: tuple(table_head(row).values())):
        yield [*map(str, head), *(cell(row, "accuracy") for row in rows), margins.get(head, "")]


def rows(run: Summary, part: str, model: str, **equal: Any) -> list[dict[str, Any]]:
    """Rows of a part of a summary that have these entries."""
    return [row for row in run[part] if {"model": model, **equal}.items() <= row.items()]


def at_iteration(
    run: Summary, model: str, train: float, test: float, iteration: int | None = None
) -> dict[str, Any]:
    """The row of an iteration, by default that of the trained depth."""
    found = rows(run, "table", model, train_noise=train, test_noise=test)
    depth = found[0]["trained_iterations"]
    [row] = (r for r in found if r["iteration"] == (depth if iteration is None else iteration))
    return row


def accuracy(run: Summary, *which: Any) -> float:
    """Points of accuracy of that row."""
    return 100 * at_iteration(run, *which)["accuracy"]


def gain(run: Summary, model: str, *noises: float) -> float:
    """By how many points a model is better than regression with its validated penalty."""
    return accuracy(run, model, *noises) - accuracy(run, REGRESSION, *noises)


def apart(run: Summary, *models: str) -> float:
    """By how many standard deviations accuracies of two models differ, the most of all noises."""
    pairs = ((train, test) for train in (0.0, 0.5) for test in (0.0, 0.25, 0.5, 1.0))
    both = ([at_iteration(run, model, *noises) for model in models] for noises in pairs)
    return max(
        abs(a["accuracy"] - b["accuracy"]) / max(a["accuracy_std"], b["accuracy_std"])
        for a, b in both
    )


def beyond(run: Summary, model: str, train: float, l2: float = 1e-4) -> float:
    """How many points a model lies beyond the frontier at noise 0.5."""
    [row] = rows(run, "beyond_frontier", model, train_noise=train, l2=l2, test_noise=0.5)
    return 100 * row["margin"]


def change(run: Summary, model: str) -> float:
    """Points by which accuracies from iteration 0 to 8 differ, the most of all noises."""
    found: dict[Any, list[float]] = {}
    for row in rows(run, "table", model):
        if row["iteration"] <= 8:
            found.setdefault((row["train_noise"], row["test_noise"]), []).append(row["accuracy"])
    return 100 * max(max(each) - min(each) for each in found.values())


def step(run: Summary, model: str, train: float = 0.0) -> float:
    """The learned step."""
    [row] = rows(run, "steps", model, train_noise=train)
    return row["tau"]


def said(run: Callable[[str], Any]) -> Iterator[tuple[Any, ...]]:
    """Texts of the README with fields, and the values of these."""
    digits, patches = run("digits"), run("digits_patches")
    fashion, eight, none = run("fashion_mnist"), run("fashion_mnist_8"), run("fashion_mnist_0")
    signed, half = run("fashion_mnist_signed"), run("fashion_mnist_tau")

    whole = digits, fashion
    for summary in (*whole, patches, eight, none):
        for row in table(summary):
            # The flow is shown on digits; what further runs repeat is not shown again.
            if row[0] != ("flow" if summary is not digits else None) and (
                row[0] != REGRESSION or summary in whole
            ):
                yield "|" + " {} |" * len(row), *row

    [best] = {row["l2"] for row in rows(fashion, "table", REGRESSION, train_noise=0.0)}
    clean, noisy, strong, strong_noisy = (
        rows(fashion, "frontier", REGRESSION, train_noise=0.0, l2=l2, test_noise=noise)[0][
            "accuracy"
        ]
        for l2 in (best, 3e-2)
        for noise in (0.0, 1.0)
    )
    yield (
        "regression gains {:.0f} points at noise 1 for {:.0f} points of clean accuracy by its penalty "
        "alone ({:.3f} and {:.3f} at {:.0e}, {:.3f} and {:.3f} at",
        100 * (strong_noisy - noisy), 100 * (clean - strong), clean, noisy, best, strong, strong_noisy,
    )  # fmt: skip

    yield (
        "3 iterations gains {:.1f} points on clean images and {:.1f} at noise 0.5 over regression trained "
        "with the same noise, and lies {:.1f} points beyond the frontier. Trained without noise it gains "
        "{:.1f} on clean images and loses {:.1f} to {:.1f} on noisy ones.",
        gain(fashion, BOTH, 0.5, 0), gain(fashion, BOTH, 0.5, 0.5), beyond(fashion, BOTH, 0.5),
        gain(fashion, BOTH, 0, 0), -gain(fashion, BOTH, 0, 0.25), -gain(fashion, BOTH, 0, 1),
    )  # fmt: skip
    yield (
        "The MLP alone has the same accuracies, within {:.1f} standard deviations, on digits",
        max(apart(summary, "mlp", BOTH) for summary in whole),
    )
    yield (
        "the flow has the block's accuracies within {:.1f} standard deviations.",
        max(apart(summary, "flow", BOTH) for summary in (digits, fashion)),
    )
    yield (
        "with 8 iterations it gains {:.1f} points at noise 1 over regression with its validated penalty, "
        "and loses {:.1f} point on clean images. A stronger penalty gives regression the same: the model "
        "lies {:.1f} points beyond the frontier, on digits with 3 iterations {:.1f} within it.",
        gain(eight, "attention", 0, 1), -gain(eight, "attention", 0, 0),
        beyond(eight, "attention", 0), -beyond(digits, "attention", 0),
    )  # fmt: skip
    zero, tenfold = (beyond(none, LATENT, 0, l2) for l2 in (1e-4, 1e-3))
    three = beyond(fashion, LATENT, 0)
    yield (
        "3 iterations gain {:.1f} points on clean images and {:.1f} at noise 0.5 over regression with its "
        "validated penalty, {:.1f} points beyond the frontier. Without iterations the model is {:.1f} and "
        "{:.1f} points beyond it, at two penalties a factor of ten apart: {:.1f} of the {:.1f} comes from "
        "iterating.",
        gain(fashion, LATENT, 0, 0), gain(fashion, LATENT, 0, 0.5), three, zero, tenfold,
        three - zero, three,
    )  # fmt: skip
    yield (
        "models trained with 3 iterations change by at most {:.1f} points on Fashion-MNIST, latent ones "
        "trained with 8 by {:.1f}. Plain attention trained with 8 does need them ({:.1f} % clean at "
        "iteration 0, {:.1f} % at 8).",
        max(change(fashion, "attention"), change(fashion, LATENT)), change(eight, LATENT),
        accuracy(eight, "attention", 0, 0, 0), accuracy(eight, "attention", 0, 0),
    )  # fmt: skip
    yield (
        "trained and tested with noise 0.5: {:.1f} % at iteration 3, {:.1f} % at 8).",
        accuracy(fashion, BOTH, 0.5, 0.5), accuracy(fashion, BOTH, 0.5, 0.5, 8),
    )  # fmt: skip
    yield (
        "({:.2f}, attention climbs the log-sum-exp), and the gain under noise is gone: at noise 1, "
        "attention alone has {:.3f} and latent classes {:.3f}.",
        step(signed, "attention"), accuracy(signed, "attention", 0, 1) / 100,
        accuracy(signed, LATENT, 0, 1) / 100,
    )  # fmt: skip
    yield (
        "it comes to {:.2f} from a start of 0.25, and to {:.2f} from 0.5",
        step(fashion, LATENT), step(half, LATENT),
    )  # fmt: skip
    row, column = (at_iteration(patches, f"self_attention{term}", 0.5, 0) for term in ("_row", ""))
    yield (
        "is {:.1f} points worse and {:.0f} times as uncertain over seeds (clean {} against {}, trained "
        "with noise).",
        100 * (row["accuracy"] - column["accuracy"]), column["accuracy_std"] / row["accuracy_std"],
        cell(column, "accuracy"), cell(row, "accuracy"),
    )  # fmt: skip


SETTINGS = (
    "each class 8 rows", "at times 0, τ, 2τ,", "16 patches", "in [0, 1], N(0, 0.5²)", "over 5 seeds",
    "regression at noise 0.5:", "at noise 1 for", "3e-2)", "first 8,000 + 1,500 images", "rows of 8 iterations",
    "MNIST, 60,000 + 10,000 images", "| noise 0.25    | noise 0.5     | noise 1       |",
    "trained with noise 0.5", "with 3 iterations", "at noise 0.5", "with 8 iterations", "at noise 1",
    "28 x 28 images", "3 iterations gain", "from 0 to 8", "trained with 8", "iteration 0,", "at 8)",
    "tested with noise 0.5", "iteration 3,", "a start of 0.25", "from 0.5 (", "Z(0)", "1,437 + 360 images",
)  # fmt: skip
UNKEPT: dict[str, tuple[str, ...]] = {
    "an earlier version, before the package was reorganised": (
        "| multinomial_regression | 0 | 0.0001 | 0 | 0.926 ± 0.000 | 0.881 ± 0.002 | 0.743 ± 0.004 | 0.488 ± 0.002 |",
        "| attention | 0 | 0.0001 | 3 | 0.915 ± 0.000 | 0.900 ± 0.002 | 0.850 ± 0.003 | 0.675 ± 0.005 | +0.4 ± 0.1 |",
        "| latent_attention | 0 | 0.0001 | 3 | 0.944 ± 0.002 | 0.935 ± 0.003 | 0.901 ± 0.002 | 0.747 ± 0.007 | +5.0 ± 0.5 |",
        "| mlp | 0 | 0.0001 | 3 | 0.983 ± 0.000 | 0.961 ± 0.002 | 0.847 ± 0.002 | 0.532 ± 0.007 | +6.1 ± 0.0 |",
        "| attention_mlp | 0 | 0.0001 | 3 | 0.982 ± 0.001 | 0.962 ± 0.002 | 0.849 ± 0.003 | 0.539 ± 0.011 | +6.0 ± 0.1 |",
        "| multinomial_regression | 0.5 | 0.0001 | 0 | 0.910 ± 0.000 | 0.898 ± 0.001 | 0.859 ± 0.003 | 0.709 ± 0.003 |",
        "| attention | 0.5 | 0.0001 | 3 | 0.906 ± 0.000 | 0.893 ± 0.001 | 0.855 ± 0.003 | 0.711 ± 0.002 | -0.4 ± 0.1 |",
        "| latent_attention | 0.5 | 0.0001 | 3 | 0.937 ± 0.003 | 0.930 ± 0.004 | 0.901 ± 0.002 | 0.767 ± 0.005 | +4.2 ± 0.5 |",
        "| mlp | 0.5 | 0.0001 | 3 | 0.975 ± 0.001 | 0.971 ± 0.001 | 0.943 ± 0.002 | 0.770 ± 0.003 | +8.4 ± 0.3 |",
        "| attention_mlp | 0.5 | 0.0001 | 3 | 0.975 ± 0.001 | 0.971 ± 0.001 | 0.943 ± 0.001 | 0.771 ± 0.003 | +8.4 ± 0.3 |",
    ),
    "about how long it takes": ("4 minutes",),
}  # fmt: skip
