"""The acceptance table: every claim about the nets, and the controls that must fail it."""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from experiments.beliefs.config import DEEP, LACKING, ONE, TWO, Net
from experiments.beliefs.readings import Reading, Readings
from experiments.beliefs.theory import last_token_kl
from imr.lab.bounds import Bound, above, at_least, at_most, near
from imr.lab.claims import Check, Claim, Control, Verdict, verdict_words
from imr.lab.console import markdown_table
from imr.metrics import residual_ratio


class Results(NamedTuple):
    """All that the tables show: rows of the equations, and the readings of every net."""

    theory: list[dict[str, Any]]
    readings: Readings


# What is measured of one net of one seed, where it is more than a field of its reading.


def final_ratio(r: Reading) -> float:
    """Unexplained variance of constrained over that of Bayesian beliefs, at the end of the stream."""
    return float(residual_ratio(r.r2["final norm", "constrained"], r.r2["final norm", "bayes"]))


def lag_ratio(r: Reading) -> float:
    """Mean over rows 7 to 10 of attention at lag 2 over attention at lag 1."""
    attention = r.attention[0, 0]
    return float(np.mean([attention[d, d - 2] / attention[d, d - 1] for d in range(6, 10)]))


def gain_error(r: Reading, decay: float) -> float:
    """The larger distance from the decay of the gain ratios at lags 1 and 2."""
    return max(abs(r.gains[lag] / r.gains[lag - 1] - decay) for lag in (1, 2))


def parity(r: Reading) -> float:
    """The least share of a head's own parity; if both heads prefer one parity, that of the worse."""
    even, odd = r.parity.T
    first = int(np.argmax(even - odd))  # the even head
    return float(min(even[first], odd[1 - first]))


# The claims. N1 to N4: predictions; N5 to N8: the residual stream; N9 to N13: heads; N16: depth.


def claims(targets: str) -> tuple[Claim, ...]:
    """All claims about the nets trained on "soft" or "hard" targets, with their controls."""
    hard = targets == "hard"
    one, two, lacking, deep = ((net, targets) for net in (ONE, TWO, LACKING, DEEP))
    least = 6e-5 if hard else 5e-6
    table = (
        _claim("N1", "mean KL, nats", one, at_most(least), lambda r: r.kl.mean(),
               Control(one, above(least), lambda r: last_token_kl(ONE).mean(), "mean KL of the last token's best")),
        _claim("N2", "mean KL, nats", two, at_most(1e-4 if hard else 2e-5), lambda r: r.kl.mean(),
               Control(lacking, at_least(1.5e-4))),
        _claim("N4", "KL at 3 over KL at 2", lacking, at_least(10), lambda r: r.kl[2] / r.kl[1]),
        _claim("N4", "KL at 3, nats", lacking, at_least(1.5e-4), lambda r: r.kl[2],
               Control(two, at_most(5e-5))),
        *_residual_claims(ONE, targets, 0.006),
        *_residual_claims(TWO, targets, 0.015, Control(lacking, at_most(0.97))),
        _claim("N9", "attention at lag 2 over lag 1, rows 7 to 10", one, near(0.52, 0.10), lag_ratio,
               Control((ONE, "untrained"))),
        *_gain_claims(ONE, targets),
        *_gain_claims(TWO, targets, Control(lacking, at_most(0.05), lambda r: abs(r.gains[2]),
                                            "size of the gain at lag 2")),
        _claim("N12", "least share of a head's own parity, one head each", two, at_least(0.9), parity,
               Control((TWO, "untrained"))),
        _claim("N12", "product of the signs of the heads' OV", two, at_most(-1.0),
               lambda r: float(np.prod(np.sign(r.ov_along.mean(axis=1))))),
        _claim("N13", "share of OV energy in the belief plane", one, at_least(0.35),
               lambda r: r.ov_energy, Control((ONE, "untrained"), at_most(0.15))),
    )  # fmt: skip
    if hard:
        return table
    return (
        *table,
        _claim("N16", "R2 of the first middle -> Bayes", deep, at_most(0.992),
               lambda r: r.r2_by_site[1]),
        _claim("N16", "gain of the first MLP", deep, at_least(0.004),
               lambda r: r.r2_by_site[2] - r.r2_by_site[1]),
        _claim("N16", "R2 of final norm -> Bayes", deep, at_least(0.995),
               lambda r: r.r2_by_site[-1], Control((DEEP, "untrained"), at_most(0.95))),
    )  # fmt: skip


def _claim(id: str, check: str, subject, bound: Bound, measure, *controls: Control) -> Claim:
    return Claim(id, check, measure, (Check(check, bound),), subject, controls)


def _residual_claims(net: Net, targets: str, gap: float, *controls: Control) -> tuple[Claim, ...]:
    """Constrained beliefs between attention and MLP, Bayesian beliefs at the end."""
    trained, untrained = (net, targets), (net, "untrained")
    return (
        _claim("N5", "R2 of middle -> constrained", trained, at_least(0.990),
               lambda r: r.r2["mid 0", "constrained"], Control(untrained, at_most(0.93)),
               Control(trained, at_most(0.10), lambda r: r.r2_shuffled, "R2 of middle -> shuffled"),
               *controls),
        _claim("N6", "R2 of middle -> constrained less -> Bayes", trained, at_least(gap),
               lambda r: r.r2["mid 0", "constrained"] - r.r2["mid 0", "bayes"],
               Control(untrained, at_most(0.0))),
        _claim("N7", "R2 of final norm -> Bayes", trained, at_least(0.990),
               lambda r: r.r2["final norm", "bayes"], Control(untrained, at_most(0.93))),
        _claim("N8", "unexplained of final -> constrained over -> Bayes", trained, at_least(3),
               final_ratio, Control(untrained)),
    )  # fmt: skip


def _gain_claims(net: Net, targets: str, *controls: Control) -> tuple[Claim, ...]:
    """One of an untrained net's two ratios may come near by chance: the pair decides."""
    trained = (net, targets)
    return (
        *(_claim("N10", f"gain at lag {lag} over lag {lag - 1}", trained, near(net.decay, 0.12),
                 lambda r, lag=lag: r.gains[lag] / r.gains[lag - 1]) for lag in (1, 2)),
        _claim("N10", "larger distance of the two from the decay", trained, at_most(0.12),
               partial(gain_error, decay=net.decay), Control((net, "untrained")), *controls),
    )  # fmt: skip


# The rows.


def rows(claims: Iterable[Claim], readings: Readings) -> list[dict[str, Any]]:
    """A flat row for each claim whose net was read and, after it, for each of its controls."""
    table = []
    for claim in claims:
        for line in claim.lines():
            net, kind = line.subject
            if not (seeds := readings.get((net.name, kind))):
                continue
            values = np.array([line.measure(one) for one in seeds], float)
            verdict = Verdict(line.bound, values)
            table.append({
                "id": claim.id, "check": line.name, "net": net.name, "trained": kind,
                "role": line.role, "median": verdict.median, "least": float(values.min()),
                "most": float(values.max()), "must be": str(line.bound), "seeds": len(seeds),
                "holds": verdict.holds, "passed": verdict.passed,
            })  # fmt: skip
    return table


def spreads(readings: Readings) -> list[dict[str, Any]]:
    """How much attention depends on the tokens; the predictions take it to be content-free."""
    return [
        {
            "net": net, "trained": kind, "seed": seed,
            "largest spread of attention": reading.attention_spread,
            "mean KL, nats": float(reading.kl.mean()),
            "KL at 3, nats": float(reading.kl[2]), "KL at 10, nats": float(reading.kl[-1]),
        }
        for (net, kind), seeds in readings.items()
        if kind != "untrained"
        for seed, reading in enumerate(seeds)
    ]  # fmt: skip


def courses(readings: Readings) -> list[dict[str, Any]]:
    """What is read off each trained net by position, by lag and by site."""
    return [
        {
            "net": net, "trained": kind, "seed": seed,
            "kl": reading.kl.tolist(), "gains": reading.gains.tolist(),
            "ov_along": reading.ov_along.tolist(), "r2_by_site": reading.r2_by_site,
        }
        for (net, kind), seeds in readings.items()
        if kind != "untrained"
        for seed, reading in enumerate(seeds)
    ]  # fmt: skip


def markdown(table: list[dict[str, Any]]) -> str:
    """The table to read, in Markdown."""
    shown = []
    for row in table:
        verdict = verdict_words(row["role"], row["passed"])
        if not row["passed"]:
            verdict += f" ({row['holds']}/{row['seeds']})"
        numbers = {name: f"{row[name]:.3g}" if abs(row[name]) < 1e-2 else f"{row[name]:.4f}"
                   for name in ("median", "least", "most")}  # fmt: skip
        shown.append({**row, **numbers, "verdict": verdict})
    columns = "id, check, net, trained, role, median, least, most, must be, verdict"
    return markdown_table(shown, columns.split(", "))
