"""The acceptance table: every claim, the controls that must fail it, and claims that had failed."""

from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any

import numpy as np

from experiments.incontext.config import Sizes
from experiments.incontext.images import COARSE, FEW
from experiments.incontext.readings import Part
from experiments.incontext.regression import Net
from experiments.incontext.tasks import FEATURES
from imr.lab.bounds import Bound, above, at_least, at_most, below, near
from imr.lab.claims import Check, Claim, Control, Verdict


def claims(sizes: Sizes) -> tuple[Claim, ...]:
    """What must hold of every seed, and what must fail it.

    ln 5 is exact but for the rounding of float32 means over ten thousand queries, some 1e-6.
    """
    n, few = sizes.examples[0], min(sizes.shots)
    late = [s for s in sizes.shots if s >= FEW]
    one, two = ([Net(l, n, rank).tag for rank in (None, FEATURES)] for l in (1, 2))
    rate, some = f"{sizes.rates[-1]:g}", sizes.depths[1]
    deep = f"exponential and ridge, {some} layers"
    block = f"process, {deep}"
    less = "less the step, over the closed form"
    depth = ("process: accuracy, deep less one layer", "prototypes: accuracy, deep less one layer")
    rise = ("process: CE rise when iterated, ridge", "process: CE rise when iterated, no ridge")
    deeper = tuple(
        f"process: CE rise when trained deeper, {what}" for what in ("ridge", "no ridge")
    )
    table = [
        *(claim for tag in one for claim in (
            ("regression", "I1", f"{tag}: trained {less}", near(0, 0.01), f"{tag}: untrained {less}"),
            ("regression", "I1", f"{tag}: cosine of trained", at_least(0.999), f"{tag}: cosine of untrained"))),
        *(claim for tag in two for claim in (
            ("regression", "I2", f"{tag}: trained over GD++", near(1, 0.02), f"{tag}: GD over GD++"),
            ("regression", "I2", f"{tag}: cosine of trained", at_least(0.995), f"{tag}: cosine of untrained"))),
        ("regression", "I2", f"{two[0]}: GD over GD++", above(1.4), f"{two[0]}: trained over GD++"),
        ("dynamics", "I3", f"deviation at {rate}", at_most(0.05),
         f"deviation at {rate} from infinitely many examples"),
        *(("dynamics", "I3", f"drift at {a:g} over {b:g}", near(2, 0.3), f"change of v^2 at {a:g} over {b:g}")
          for a, b in zip(sizes.rates[:-1], sizes.rates[1:], strict=True)),
        ("autoregression", "I4", "trained over best step", near(1, 0.02), "untrained over best step"),
        ("autoregression", "I4", "cosine of trained", at_least(0.99), "cosine of untrained"),
        ("classification", "I5", "process, exponential: CE less kernel regression", at_most(0.01),
         "process, linear: CE less kernel regression"),
        *(("classification", "I5", f"{block}: {what}", at_most(limit), f"{block}, untrained: {what}")
          for what, limit in (("metric off identity", 0.05), ("G off simplex", 0.10))),
        ("classification", "I6", depth[0], at_least(0.005), depth[1]),
        ("classification", "I6", depth[1], at_most(0.0), depth[0]),
        ("classification", "I6", "prototypes, exponential: accuracy, deep less one layer", at_most(0.0), depth[0]),
        ("classification", "I7", deeper[0], at_most(0.02), deeper[1]),
        ("classification", "I7", deeper[1], at_least(0.05), deeper[0]),
        ("classification", "I7", rise[0], at_most(0.02), rise[1]),
        ("classification", "I7", rise[1], at_least(0.05), rise[0]),
        *(("images", "I8", f"{s} shots: flow less kernel regression", near(0, 0.015),
           f"{s} shots: rbf flow, {COARSE} components less kernel regression",
           *([f"{s} shots: class mean less kernel regression"] if s >= 10 else [])) for s in sizes.shots),
        *(("images", "I8", f"{s} shots: flow less one step", at_least(0.03),
           f"{few} shots: flow less one step") for s in late),
        ("images", "I8", f"{few} shots: flow less one step", near(0, 0.01), f"{late[-1]} shots: flow less one step"),
        ("images", "I9", f"{few} shots: all queries less one at a time", at_least(0.02),
         f"{FEW} shots: all queries less one at a time"),
        ("classification", "I10", "process: shuffled less majority", at_most(0.0), "process: trained less majority"),
        ("classification", "I10", "prototypes, uniform attention: CE less ln 5", near(0, 1e-5),
         "prototypes, labels shuffled: CE less ln 5"),
        ("classification", "I10", "prototypes, labels shuffled: accuracy", near(0.2, 0.02),
         f"prototypes, {deep}: accuracy"),
        *(("classification", "I10", f"prototypes, {net} without labels: accuracy", near(0.2, 0.02),
           f"prototypes, {net}: accuracy") for net in (deep, "standard transformer")),
        ("classification", "I10", f"prototypes, {deep} without labels: CE less ln 5", near(0, 1e-5),
         "prototypes, labels shuffled: CE less ln 5"),
        ("recurrences", "I11", "squared-loss flow over Bayes", at_most(1.1), "Nadaraya-Watson over Bayes"),
    ]  # fmt: skip
    return tuple(_claim(*line) for line in table)


def retested(sizes: Sizes) -> tuple[Claim, ...]:
    """Claims that an earlier measurement had refuted, as they would have to hold."""
    table = [
        ("classification", "a block beats kernel regression",
         "process, exponential: CE less kernel regression", below(0.0)),
        ("classification", "depth always helps", "prototypes: accuracy, deep less one layer", above(0.0)),
        *(("images", "early stopping helps", f"{s} shots: best time less late", above(0.009)) for s in sizes.shots),
        ("images", "meta-training transfers to other classes", "meta-training on held-out classes", above(0.0)),
        ("images", "softmax is better at convergence", f"{max(sizes.shots)} shots: softmax less rbf flow", above(0.0)),
        ("images", "transduction helps beyond 2 shots", f"{FEW} shots: all queries less one at a time", at_least(0.02)),
        ("recurrences", "negative similarity predicts", "negative similarity over Nadaraya-Watson", below(1.0)),
    ]  # fmt: skip
    return tuple(
        Claim("R", words, itemgetter(key), (Check(key, bound),), part)
        for part, words, key, bound in table
    )


def _claim(part: str, id: str, key: str, bound: Bound, *controls: str) -> Claim:
    failing = tuple(Control(part, None, itemgetter(other), other) for other in controls)
    return Claim(id, key, itemgetter(key), (Check(key, bound),), part, failing)


def rows(claims: Iterable[Claim], parts: Mapping[str, Part]) -> list[dict[str, Any]]:
    """A flat row for each claim whose part was carried out and, after it, for each control."""
    table = []
    for claim in claims:
        for line in claim.lines():
            if line.subject not in parts:
                continue
            values = np.array([line.measure(each) for each in parts[line.subject].readings], float)
            verdict = Verdict(line.bound, values)
            table.append({
                "id": claim.id, "statement": claim.statement, "check": line.name, "part": line.subject,
                "role": line.role, "median": verdict.median, "least": float(values.min()),
                "most": float(values.max()), "must be": str(line.bound), "seeds": len(values),
                "holds": verdict.holds, "passed": verdict.passed,
            })  # fmt: skip
    return table
