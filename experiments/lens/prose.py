"""Which number of the README is which entry of the kept summaries; `scripts/docs --check` holds them together.

Of each summary what the page tells of is kept:

    jq '{models}'                                   # six: --weights-only, six --model-dir
    jq '{heads, layers}'                            # minilm
    jq '{heads: [.heads[] | {folded_weight_cosine, row_cosine, row_cosine_z, column_cosine}]}'  # smollm2: --limit 5
    jq '{edits}'                                    # smollm2_edits: --edits --limit 60 --draws 8
    jq '{edits: [.edits[] | {heads, taken, loss, moved: (.moved | add / length)}]}'     # minilm_edits: --edits
    jq '{heads: [.heads[] | {model, weight_cosine, weight_cosine_z_rotated, row_cosine, energy_change, energy_change_z}],
        layers: [.layers[] | {model, label_final_cosine, label_final_cosine_z}]}'       # beliefs: --run-dir
"""

from collections.abc import Callable, Iterable, Iterator
from statistics import mean, stdev
from typing import Any

import numpy as np

from experiments.lens import edits
from experiments.lens.findings import z_score
from experiments.lens.report import by_kind

Row = dict[str, Any]
Said = Iterator[tuple[Any, ...]]

MODELS = {
    "AntiBERTy": "proteins, 8 × 8", "all-MiniLM-L6-v2": "sentences, 6 × 12", "Piper": "speech, 6 × 2",
    "SmolLM2": "4 bit, 30 × 9", "PP-OCRv4": "vision, 2 × 8", "RXNMapper": "reactions, one tied layer of 8",
}  # fmt: skip


# Nets of the beliefs experiment by the words of the table.
NETS = {
    "λ = 0.55, one head": "slow", "λ = −0.5, two heads": "alternating",
    "λ = −0.5, one head": "alternating, one head", "λ = 0.55, four layers": "slow, four layers",
}  # fmt: skip
WORDS = ("none", "one", "two", "three")


def _weights(models: list[Row]) -> Said:
    """Both tables of six models."""
    for (name, words), row in zip(MODELS.items(), models, strict=True):
        name = "SmolLM2-135M-Instruct" if name == "SmolLM2" else name
        layer = (
            ("{} / {}", row["layer_descent"], row["layer_climb"])
            if "layer_descent" in row
            else ("",)
        )
        yield (
            f"| {name} ({words}) | {{}} of {{}} | {{:.3f}} | {{:.3f}} to {{:.3f}} | {{:.1g}} | "
            f"{{}} / {{}} | {layer[0]} | {{}} / {{}} |".replace("|  |", "| |"),
            row["negative"], row["heads"], row["mean"], row["permuted_low"], row["permuted_high"],
            row["mean_p"], row["beyond_descent"], row["beyond_climb"], *layer[1:],
            row["gauge_descent"], row["gauge_climb"],
        )  # fmt: skip
    for name, row in zip(MODELS, models, strict=True):
        left = [row[f"{key}_left"] for key in ("descent", "climb", "null")]
        left = [x for x in left if x is not None]
        yield (
            f"| {name} | {{:.3f}} | {{}} | {{}} ({{}}) | {'; '.join(['{:.2f}'] * len(left))} |",
            row["untransposed"], row["unshared_negative"], row["symmetric_negative"],
            row["antisymmetric_negative"], *left,
        )  # fmt: skip
    keys = ("negative", "heads", "beyond_descent", "beyond_climb", "gauge_descent", "gauge_climb")
    sums = [sum(row[key] for row in models) for key in keys]
    yield "| all | {} of {} | | | | {} / {} | | {} / {} |", *sums
    smol = models[3]
    yield (
        "a circuit of SmolLM2 has a negative cosine in {} of {} heads (mean {:.3f})",
        smol["group_negative"], smol["heads"], smol["group_mean"],
    )  # fmt: skip


def _beyond(heads: Iterable[Row], key: str, sign: int, kind: str = "") -> int:
    """How many lie beyond three deviations of the null on that side."""
    scores = (row[f"{key}_z{kind}"] if kind else z_score(row, key) for row in heads)
    return sum(sign * z > 3 for z in scores if z is not None)


def _minilm(heads: list[Row], layers: list[Row]) -> Said:
    """The section of MiniLM."""
    columns = {
        "weight_cosine": -1,
        "within_cosine": 0,
        "row_cosine": 1,
        "column_cosine": 0,
        "sum_cosine": 0,
    }
    for layer in range(6):
        own, values = [row for row in heads if row["layer"] == layer], []
        for key, sign in columns.items():
            values.append(mean(row[key] for row in own))
            values += [_beyond(own, key, side) for side in (sign, -sign)] if sign else []
        line = "| {} | {:.3f} ({}, {}) | {:.3f} | {:.3f} ({}, {}) | {:.3f} | {:.3f} |"
        yield line, layer, *values
    weight, row = ([each[f"{key}_cosine"] for each in heads] for key in ("weight", "row"))
    count = len(heads)
    yield (
        "{} of {} heads have a negative weight cosine (from {:.2f} to {:.2f}). {} of them lie beyond the null "
        "(its standard deviation is about {:.3f}), and {} heads lie beyond it on the positive side.",
        sum(x < 0 for x in weight), count, min(weight), max(weight), _beyond(heads, "weight_cosine", -1),
        mean(each["weight_cosine_null_std"] for each in heads), _beyond(heads, "weight_cosine", 1),
    )  # fmt: skip
    yield (
        "the counts are {} and {}; with the layer norms folded into the weights they are {} and {}.",
        *(_beyond(heads, "weight_cosine", sign, "_rotated") for sign in (-1, 1)),
        *(_beyond(heads, "folded_weight_cosine", sign) for sign in (-1, 1)),
    )
    yield (
        "text, {} of {} updates have a positive cosine with minus the row term, {} of them beyond the null, and {} "
        "are beyond it on the negative side. The 95 % intervals over texts are at most ± {:.3f}.",
        sum(x > 0 for x in row), count, *(_beyond(heads, "row_cosine", sign) for sign in (1, -1)),
        max(each["row_cosine_ci"] for each in heads),
    )  # fmt: skip
    descent, climb, null = (
        [each[key] for each in heads]
        for key in ("descent_residual", "climb_residual", "descent_residual_null")
    )
    yield (
        "leaves {:.2f} of a head if the head is to descend ({:.2f} with the θ of other heads; {:.2f} for the best "
        "head), and {:.2f} if it is to climb.",
        mean(descent), mean(null), min(descent), mean(climb),
    )  # fmt: skip
    shares = [each["gradient_share"] for each in heads]
    yield "(the symmetric share of its Jacobian is {:.2f} to {:.2f})", min(shares), max(shares)
    lower = sum(each["energy_change"] < 0 for each in heads)
    yield "lowers a head's log-sum-exp in only {} of {} heads.", lower, count
    first = layers[0]
    yield (
        "climb the sum of their row terms (cosine {:.2f}) and the sum of both terms ({:.2f})",
        first["row_cosine"], first["sum_cosine"],
    )  # fmt: skip
    label, final = ([each[f"label_{end}_cosine"] for each in layers] for end in ("next", "final"))
    nulls = [each["label_next_cosine_null"] for each in layers]
    yield (
        "lie along the C at their own end ({:.2f}, {:.2f}, {:.2f}, {:.2f}; null {:.2f} to {:.2f}).",
        *label[:4], min(nulls[:4]), max(nulls[:4]),
    )  # fmt: skip
    nulls = [each["label_final_cosine_null"] for each in layers]
    yield (
        "along the model's final C ({:.2f}; null {:.2f}), and the last layer avoids it ({:.2f}; null {:.2f})",
        final[1], nulls[1], final[-1], nulls[-1],
    )  # fmt: skip


# What is taken out of SmolLM2, in the words of the table.
TAKEN = {
    edits.WHOLE: "their whole update", edits.OWN: "the part along their own θᵀ",
    edits.TURNED: "as much along θᵀ turned at random (± over draws)",
    edits.OTHERS: "as much along θᵀ of other heads",
    edits.UNTRANSPOSED: "as much along their own θ, untransposed",
    edits.AGAIN: "the part along θᵀ put in once more instead",
}  # fmt: skip


def _smollm2_edits(rows: list[Row]) -> Said:
    """The table of edits and what is said of it."""
    every, down, up = dict.fromkeys(row["heads"] for row in rows)
    counts = np.array(rows[0]["counts"])

    def cost(heads: str, taken: str) -> tuple[float, float]:
        """In nats for each token: ± over draws of parts of circuits, else over texts."""
        changes = np.array(
            [x["changes"] for x in rows if (x["heads"], x["taken"]) == (heads, taken)]
        )
        if taken not in (edits.TURNED, edits.OTHERS):
            return edits.interval(changes.mean(axis=0), counts)
        means = changes @ counts / counts.sum()
        return means.mean(), means.std(ddof=1)

    def thousandths(heads: str, *taken: str) -> list[float]:
        return [1e3 * x for each in taken for x in cost(heads, each)]

    yield "| taken out of SmolLM2 (loss {:.3f}) | {} | {} |", rows[0]["loss"], down, up
    yield "SmolLM2 reads {} texts", len(counts)
    for taken, words in TAKEN.items():
        bold = "**" * (taken == edits.OWN)
        cells = thousandths(down, taken) + thousandths(up, taken)
        yield f"| {words} | {bold}{{:.0f}} ± {{:.0f}}{bold} | {{:.0f}} ± {{:.0f}} |", *cells
    yield (
        "| of all heads: updates' part along their row terms; random; row terms of others | "
        "{:.0f} ± {:.0f}; {:.0f} ± {:.0f}; {:.0f} ± {:.0f} | |",
        *thousandths(every, edits.ROW, edits.RANDOM, edits.ROLLED),
    )
    own, (turned, turned_std), (other, other_std) = (
        cost(down, taken) for taken in (edits.OWN, edits.TURNED, edits.OTHERS)
    )
    draws = sum((x["heads"], x["taken"]) == (down, edits.TURNED) for x in rows)
    yield (
        "costs {:.0f} nats of loss if it is taken out, {:.0f} times as much as at random (z = {:.0f} over {} draws) and {:.1f} times "
        "as much as along θᵀ of other heads (z = {:.0f}).",
        own[0], own[0] / turned, (own[0] - turned) / turned_std, draws, own[0] / other,
        (own[0] - other) / other_std,
    )  # fmt: skip


def _minilm_edits(rows: list[Row]) -> Said:
    """What edits of MiniLM move."""
    every, down = list(dict.fromkeys(row["heads"] for row in rows))[:2]

    def moved(heads: str, taken: str) -> list[float]:
        return [x["moved"] for x in rows if (x["heads"], x["taken"]) == (heads, taken)]

    yield (
        "its loss of these, {:.2f}, is above that of a uniform guess, {:.2f},",
        rows[0]["loss"],
        np.log(30522),
    )
    (own,), turned = moved(down, edits.OWN), moved(down, edits.TURNED)
    other, (untransposed,) = moved(down, edits.OTHERS), moved(down, edits.UNTRANSPOSED)
    yield (
        "moves {:.0f} times as far (1 − cosine {:.3f}) if the part along θᵀ of its {} descending heads is taken out "
        "as at random ({:.3f} ± {:.3f}), {:.1f} times as far as along θᵀ of other heads ({:.3f} ± {:.3f}), and half "
        "as far as along θ ({:.3f}). The row terms of updates move it by {:.3f}, random ones by {:.3f}.",
        own / mean(turned), own, down.split()[0], mean(turned), stdev(turned), own / mean(other), mean(other),
        stdev(other), untransposed, mean(moved(every, edits.ROW)), mean(moved(every, edits.RANDOM)),
    )  # fmt: skip


def _nets(heads: list[Row], layers: list[Row]) -> Said:
    """Nets of the beliefs experiment."""
    kinds = {row["nets"]: row for row in by_kind(heads, layers)}
    columns = ("weight", "row", "energy", "label, final")
    for words, net in NETS.items():
        for title, kind in ((f"{words}: untrained", "untrained"), ("trained", "trained, soft")):
            row = kinds[f"{net}, {kind}"]
            yield f"| {title} | {{}} | {{}} | {{}} | {{}} |", *(row[column] for column in columns)
    before, after = (
        [row for row in heads if f", {kind}" in row["model"]] for kind in ("untrained", "trained")
    )
    weight = [(each, sign) for each in (after, before) for sign in (-1, 1)]
    down, up, untrained_down, untrained_up = (
        _beyond(each, "weight_cosine", sign, "_rotated") for each, sign in weight
    )
    yield (
        "{} of {} trained heads lie beyond random rotations of θ on the negative side and {} on the other; of "
        "untrained heads {} and {} do.",
        down, len(after), WORDS[up], WORDS[untrained_down], WORDS[untrained_up],
    )  # fmt: skip
    yield (
        "{} of {} trained heads lower their own log-sum-exp by their own update, {} of them by more than updates "
        "with permuted features do (untrained: {}, and {}).",
        sum(row["energy_change"] < 0 for row in after), len(after), _beyond(after, "energy_change", -1),
        sum(row["energy_change"] < 0 for row in before), WORDS[_beyond(before, "energy_change", -1)],
    )  # fmt: skip
    gains = [
        float(new[:5]) / float(old[:5])
        for new, old in (
            [kinds[f"{net}, {kind}"]["label, final"] for kind in ("trained, soft", "untrained")]
            for net in NETS.values()
        )
    ]
    yield "The MLPs lie along Cθ {:.1f} to {:.1f} times as closely", min(gains), max(gains)
    label = [
        [row["label_final_cosine_z"] > 3 for row in layers if f", {kind}" in row["model"]]
        for kind in ("trained", "untrained")
    ]
    yield (
        "as before training, {} of them beyond updates with features in random order (untrained: {})",
        "all" if all(label[0]) else str(sum(label[0])), WORDS[sum(label[1])],
    )  # fmt: skip


def said(run: Callable[[str], Any]) -> Said:
    """Texts of the README with fields, and the values of these."""
    yield from _weights(run("six")["models"])
    heads = run("smollm2")["heads"]
    yield (
        "the updates of {} of {} heads of SmolLM2 have a positive cosine with minus the row term, {} of them beyond "
        "the null and {} on the other side; with the column term the mean is {:.3f}.",
        sum(row["row_cosine"] > 0 for row in heads), len(heads), _beyond(heads, "row_cosine", 1),
        WORDS[_beyond(heads, "row_cosine", -1)], mean(row["column_cosine"] for row in heads),
    )  # fmt: skip
    yield (
        "The part along θᵀ, {:.3f} of the norm of a descending head's circuit in the mean,",
        mean(-row["folded_weight_cosine"] for row in heads if row["folded_weight_cosine"] < 0),
    )
    yield from _minilm(run("minilm")["heads"], run("minilm")["layers"])
    yield from _smollm2_edits(run("smollm2_edits")["edits"])
    yield from _minilm_edits(run("minilm_edits")["edits"])
    yield from _nets(run("beliefs")["heads"], run("beliefs")["layers"])


SETTINGS = (
    "GPT-2, Llama", "the 200 sentences", "z is cut at 10, and a dot marks |z| > 3.",
    "more than 1024 heads it meets 64.", "up to 128 heads", "By chance: 95 % of the means",
    *MODELS.values(), "SmolLM2-135M-Instruct", "without 32 shared directions",
    "Means over the 12 heads of a layer.", "(z < −3, z > 3)", "(z > 3, z < −3)", "1/d = 0.003",
    "The 95 % intervals", "heads of layer 0 together", "Layers 0 to 3 lie", "Only layer 1 lies",
    "15 % of the tokens", "half the 95 % interval", "MiniLM 200", "(1 − cosine", "soft targets, 3 seeds",
    *NETS, "has the cosine −1",
)  # fmt: skip
UNKEPT = {
    "time and memory that a command took, by itself on two cores": (
        "took 58 s and 1.5 GB on two cores; SmolLM2 alone 27 s and 1.4 GB.", "`, 5 minutes)", "(8 minutes)",
    )
}  # fmt: skip
