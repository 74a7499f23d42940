"""What the README says, as `prose.py` of an experiment has it."""

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

from experiments.bench.attention import BLOCKS, DENSE
from experiments.bench.constants import COMPILED
from experiments.bench.linear import AUTODIFF, REDUCED
from experiments.bench.scale import table
from experiments.bench.tpu import modelled
from imr.lens.names import FAMILIES


def said(run: Callable[[str], Any]) -> Iterator[tuple[Any, ...]]:
    """Texts of the README with fields, and the values of these."""
    law = next(
        r for r in run("features/digits")["law"] if r["flow"] == "free" and r["decade"] == "last"
    )
    yield (
        "the slopes are {:.3f} ± {:.3f} and {:.3f} ± {:.3f} over",
        law["loss_slope"], law["loss_slope_std"], law["margin_slope"], law["margin_slope_std"],
    )  # fmt: skip
    yield "All {} statements of the theory hold", len(run("theorems/theorems")["table"])
    beliefs = run("beliefs/beliefs")["table"]
    soft = beliefs[: next(i for i, row in enumerate(beliefs) if row["trained"] == "hard")]
    yield "Of {} measurements on trained transformers", len(soft)
    yield "{} come out as predicted in all three seeds", sum(row["passed"] for row in soft)
    middle, end = (
        next(r for r in soft if r["id"] == id and r["net"] == "slow" and r["trained"] == "soft" and words in r["check"])
        for id, words in (("N5", "R2 of middle -> constrained"), ("N7", "R2 of final"))
    )  # fmt: skip
    yield (
        "(R² {:.3f}, least to most {:.3f} to {:.3f}), its end the Bayesian one (R² {:.4f})",
        middle["median"], middle["least"], middle["most"], end["median"],
    )  # fmt: skip
    models = run("lens/six")["models"]
    counts = [
        sum(row[key] for row in models)
        for key in ("negative", "heads", "beyond_descent", "beyond_climb")
    ]
    yield "{} of {} value circuits lean", *counts[:2]
    yield (
        "{} of them by more than three standard deviations of the null, {} the other way",
        *counts[2:],
    )
    yield "({} model types, our own nets", len(FAMILIES)
    compiled = json.loads(COMPILED.read_text())
    rows = {row["check"]: row for row in run("incontext/seed_400")["table"]}
    one = rows["1 layers, 10 examples: trained less the step, over the closed form"]
    two, plain = (rows[f"2 layers, 10 examples: {ratio} over GD++"] for ratio in ("trained", "GD"))
    yield (
        "one layer is {:.4f} (three seeds: {:.4f} to {:.4f}) above the best single step of it, two layers {:.3f} "
        "({:.3f} to {:.3f}) times the best two with curvature corrected, against {:.2f} of plain",
        *(row[key] for row in (one, two) for key in ("median", "least", "most")), plain["median"],
    )  # fmt: skip
    noisy = {
        (row["model"], row["train_noise"]): 100 * row["accuracy"]
        for row in run("images/fashion_mnist")["table"]
        if row["iteration"] == row["trained_iterations"] and row["test_noise"] == 0
    }
    yield (
        "by {:.1f} points on Fashion-MNIST",
        noisy["attention_mlp", 0.5] - noisy["multinomial_regression", 0.5],
    )
    halves = [
        [
            modelled(row) / (1e6 * row["Mcycles"])
            for row in compiled["tpu"]
            if row["constants"] == half
        ]
        for half in ("fixed", "tried")
    ]
    worst = 100 * max(abs(ratio - 1) for half in halves for ratio in half)
    yield (
        "is within {:.0f} % for the {} programs that fixed its constants and for {} that did not",
        10 * math.ceil(worst / 10), *map(len, halves),
    )  # fmt: skip
    core = run("bench/one_core")
    fields = {(row["tokens"], row["way"]): row for row in core["attention"]}
    small, dense, large = (
        (row["median s"], row["peak GB"])
        for row in (fields[8192, BLOCKS], fields[8192, DENSE], fields[65536, BLOCKS])
    )
    yield "8,192 tokens, rank 16 | {:.2g} s, {:.2f} GB | {:.2g} s, {:.2f} GB |", *small, *dense
    yield "65,536 tokens | {:.2g} s, {:.2f} GB |", *large
    flows = {row["way"]: row["median s"] for row in core["linear"] if row["scale"] == 4}
    yield "to t = 5 | {:.2g} s | {:.2g} s (diffrax)", flows[REDUCED], flows[AUTODIFF]
    rows = [*compiled["tpu"], *compiled["cuda"]]
    for line in table(rows).splitlines()[2:]:
        cells = [each.strip() for each in line.strip("|").split("|")]
        yield "|" + " {} |" * len(cells), *cells


SETTINGS = (
    "jax from 0.10.1 to 0.12", "Python 3.11 to 3.13", "from 0.10.2 on", "512 rows", "1/(γ²t)",
    "over 5 bootstrap samples", "−1 and 1 are predicted", "rank 16", "n = 8000, f = 784, k = 10, to t = 5",
    "Apache-2.0", "| field of self-attention, 8,192 tokens", "the same, 65,536 tokens", "one H200",
)  # fmt: skip
UNKEPT = {
    "of the process without anything computed": ("0.4 GB of each",),
    "of a GPU that was at hand once": ("0.0005 s |", "0.015 s |", "0.017 s |"),
}
