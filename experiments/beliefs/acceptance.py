"""The acceptance table: every claim with what it must show, and the controls that must fail it."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.beliefs.config import DEEP, LACKING, ONE, TWO, Net
from experiments.beliefs.measures import last_token_kl
from imr.lab.console import markdown_table
from imr.metrics import residual_ratio

Measured = dict[tuple[str, str], list[dict[str, Any]]]  # by net and kind: one for each seed


class Bound(NamedTuple):
    """What values must be: at most, at least, or within low to high (or outside of it)."""

    kind: Literal["at most", "at least", "below", "above", "within", "outside"]
    low: float
    high: float = 0.0

    def holds(self, value: float) -> bool:
        """Whether a value is as it must be; never what is not a number."""
        return bool(
            {
                "at most": value <= self.low,
                "at least": value >= self.low,
                "below": value < self.low,
                "above": value > self.low,
                "within": self.low <= value <= self.high,
                "outside": value < self.low or value > self.high,
            }[self.kind]
        )

    def __str__(self) -> str:
        signs = {"at most": "≤", "at least": "≥", "below": "<", "above": ">"}
        if self.kind in signs:
            return f"{signs[self.kind]} {self.low:g}"
        return f"{'in' if self.kind == 'within' else 'not in'} [{self.low:.3g}, {self.high:.3g}]"

    def failed(self) -> "Bound":
        """What a control shows that fails this."""
        opposite = {
            "at most": "above", "at least": "below", "below": "at least", "above": "at most",
            "within": "outside", "outside": "within",
        }  # fmt: skip
        return self._replace(kind=opposite[self.kind])


def at_most(x):
    """Bound from above."""
    return Bound("at most", x)


def at_least(x):
    """Bound from below."""
    return Bound("at least", x)


def near(x, by):
    """Within so much of x."""
    return Bound("within", x - by, x + by)


class Line(NamedTuple):
    """A check of one net: of a claim, or of its control, which must show what refutes the claim."""

    id: str
    check: str
    net: Net
    kind: str
    role: Literal["claim", "control"]
    bound: Bound
    value: Callable[[dict[str, Any]], float]


def rows(lines: Iterable[Line], measured: Measured) -> list[dict[str, Any]]:
    """The flat rows of the lines whose nets were measured."""
    found = []
    for line in lines:
        runs = measured.get((line.net.name, line.kind))
        if not runs:
            continue
        values = np.array([line.value(run) for run in runs], float)
        holds = [line.bound.holds(v) for v in values]
        found.append(
            {
                "id": line.id,
                "check": line.check,
                "net": line.net.name,
                "trained": line.kind,
                "role": line.role,
                "median": float(np.median(values)),
                "least": float(values.min()),
                "most": float(values.max()),
                "must be": str(line.bound),
                "seeds": len(values),
                "holds": sum(holds),
                "passed": all(holds),
            }
        )
    return found


def lines(kind: str) -> list[Line]:
    """All checks of the nets trained on one kind of targets, with their controls."""
    hard = kind == "hard"
    found: list[Line] = []

    def claim(id, check, net, bound, value, *controls):
        """Controls: (net, kind, what it must show, or None for what refutes the claim)."""
        found.append(Line(id, check, net, kind, "claim", bound, value))
        for other, trained, shows in controls:
            shows = shows or bound.failed()
            found.append(Line(id, check, other, trained, "control", shows, value))

    mean = lambda run: run["kl"].mean()  # noqa: E731
    claim("N1", "mean KL, nats", ONE, at_most(6e-5 if hard else 5e-6), mean)
    last = float(last_token_kl(ONE).mean())
    found.append(
        Line("N1", "mean KL of the last token's best", ONE, kind, "control",
             Bound("above", 6e-5 if hard else 5e-6), lambda run: last)
    )  # fmt: skip
    claim("N2", "mean KL, nats", TWO, at_most(1e-4 if hard else 2e-5), mean,
          (LACKING, kind, at_least(1.5e-4)))  # fmt: skip
    claim(
        "N4", "KL at 3 over KL at 2", LACKING, at_least(10), lambda run: run["kl"][2] / run["kl"][1]
    )
    claim("N4", "KL at 3, nats", LACKING, at_least(1.5e-4), lambda run: run["kl"][2],
          (TWO, kind, at_most(5e-5)))  # fmt: skip
    for net, gap in ((ONE, 0.006), (TWO, 0.015)):
        untrained = (net, "untrained", at_most(0.93))
        middle = lambda run: run["r2"]["mid 0 -> constrained"]  # noqa: E731
        claim("N5", "R2 of middle -> constrained", net, at_least(0.990), middle, untrained)
        found.append(
            Line("N5", "R2 of middle -> shuffled", net, kind, "control", at_most(0.10),
                 lambda run: run["r2_shuffled"])
        )  # fmt: skip
        if net is TWO:
            found.append(
                Line("N5", "R2 of middle -> constrained", LACKING, kind, "control", at_most(0.97), middle)
            )  # fmt: skip
        claim("N6", "R2 of middle -> constrained less -> Bayes", net, at_least(gap),
              lambda run: run["r2"]["mid 0 -> constrained"] - run["r2"]["mid 0 -> bayes"],
              (net, "untrained", at_most(0.0)))  # fmt: skip
        final = lambda run: run["r2"]["final norm -> bayes"]  # noqa: E731
        claim("N7", "R2 of final norm -> Bayes", net, at_least(0.990), final, untrained)
        ratio = lambda run: float(  # noqa: E731
            residual_ratio(run["r2"]["final norm -> constrained"], run["r2"]["final norm -> bayes"])
        )
        claim("N8", "unexplained of final -> constrained over -> Bayes", net, at_least(3), ratio,
              (net, "untrained", None))  # fmt: skip
    claim("N9", "attention at lag 2 over lag 1, rows 7 to 10", ONE, Bound("within", 0.42, 0.62),
          lag_ratio, (ONE, "untrained", None))  # fmt: skip
    for net in (ONE, TWO):
        for j in (1, 2):
            gain = lambda run, j=j: run["gains"][j] / run["gains"][j - 1]  # noqa: E731
            # Of an untrained net one of the two may come near by chance: the pair decides.
            claim("N10", f"gain at lag {j} over lag {j - 1}", net, near(net.decay, 0.12), gain)
        worst = lambda run, lam=net.decay: max(  # noqa: E731
            abs(run["gains"][j] / run["gains"][j - 1] - lam) for j in (1, 2)
        )
        claim("N10", "larger distance of the two from the decay", net, at_most(0.12), worst,
              (net, "untrained", None))  # fmt: skip
    found.append(
        Line("N10", "size of the gain at lag 2", LACKING, kind, "control", at_most(0.05),
             lambda run: abs(run["gains"][2]))
    )  # fmt: skip
    claim("N12", "least share of a head's own parity, one head each", TWO, at_least(0.9), parity,
          (TWO, "untrained", None))  # fmt: skip
    claim("N12", "product of the signs of the heads' OV", TWO, at_most(-1.0),
          lambda run: float(np.prod(np.sign(run["ov_along"].mean(axis=1)))))  # fmt: skip
    claim("N13", "share of OV energy in the belief plane", ONE, at_least(0.35),
          lambda run: run["ov_energy"], (ONE, "untrained", at_most(0.15)))  # fmt: skip
    if not hard:
        site = lambda index: lambda run: run["r2_by_site"][index]  # noqa: E731
        claim("N16", "R2 of the first middle -> Bayes", DEEP, at_most(0.992), site(1))
        claim("N16", "gain of the first MLP", DEEP, at_least(0.004),
              lambda run: run["r2_by_site"][2] - run["r2_by_site"][1])  # fmt: skip
        claim("N16", "R2 of final norm -> Bayes", DEEP, at_least(0.995), site(-1),
              (DEEP, "untrained", at_most(0.95)))  # fmt: skip
    return found


def lag_ratio(run: dict[str, Any]) -> float:
    """Mean over rows 7 to 10 of attention at lag 2 over attention at lag 1."""
    attention = run["attention"][0, 0]
    return float(np.mean([attention[d, d - 2] / attention[d, d - 1] for d in range(6, 10)]))


def parity(run: dict[str, Any]) -> float:
    """The least share of a head's own parity, where both heads have the same that of the worse."""
    even, odd = run["parity"][:, 0], run["parity"][:, 1]
    first = int(np.argmax(even - odd))  # the even head
    return float(min(even[first], odd[1 - first]))


def spreads(measured: Measured) -> list[dict[str, Any]]:
    """Whether attention is content-free, as the predictions of one head and of two take it to be."""
    return [
        {
            "net": net,
            "trained": kind,
            "seed": seed,
            "largest spread of attention": run["attention_spread"],
            "mean KL, nats": float(run["kl"].mean()),
            "KL at 3, nats": float(run["kl"][2]),
            "KL at 10, nats": float(run["kl"][-1]),
        }
        for (net, kind), runs in measured.items()
        if kind != "untrained"
        for seed, run in enumerate(runs)
    ]


COLUMNS = (
    "id", "check", "net", "trained", "role", "median", "least", "most", "must be", "verdict"
)  # fmt: skip


def markdown(found: list[dict[str, Any]]) -> str:
    """The table to read."""
    shown = []
    for row in found:
        words = (
            ("holds", "FAILS") if row["role"] == "claim" else ("fails, as it must", "DOES NOT FAIL")
        )
        verdict = words[0] if row["passed"] else f"{words[1]} ({row['holds']}/{row['seeds']})"
        numbers = {name: f"{row[name]:.3g}" if abs(row[name]) < 1e-2 else f"{row[name]:.4f}"
                   for name in ("median", "least", "most")}  # fmt: skip
        shown.append({**row, **numbers, "verdict": verdict})
    return markdown_table(shown, COLUMNS)
