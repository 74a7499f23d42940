"""The acceptance table: every claim about the nets, and the controls that must fail it."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from experiments.beliefs.config import DEEP, LACKING, ONE, TWO, Config, Net, plan
from experiments.beliefs.readings import Reading, Readings
from experiments.beliefs.theory import last_token_kl
from imr.lab.bounds import Bound, above, at_least, at_most, near
from imr.lab.claims import Check, Claim, Control, Verdict, verdict_words
from imr.lab.console import markdown_table
from imr.metrics import residual_ratio


class Results(NamedTuple):
    """All that the tables show.

    Attributes:
      theory: rows of the equations.
      readings: of every net.
    """

    theory: list[dict[str, Any]]
    readings: Readings


# What is measured: functions from one reading to a number.


def mean_kl(reading: Reading) -> float:
    """Mean KL over positions, nats."""
    return reading.kl.mean()


def kl_at_3(reading: Reading) -> float:
    """KL at the third position, nats."""
    return reading.kl[2]


def kl_growth(reading: Reading) -> float:
    """KL at the third position over that at the second."""
    return reading.kl[2] / reading.kl[1]


def middle_constrained(reading: Reading) -> float:
    """R2 of constrained beliefs from the residual stream between attention and MLP."""
    return reading.r2["mid 0", "constrained"]


def middle_shuffled(reading: Reading) -> float:
    """R2 of shuffled constrained beliefs from the same place."""
    return reading.r2_shuffled


def middle_advantage(reading: Reading) -> float:
    """R2 of constrained beliefs less that of Bayesian beliefs, from the same place."""
    return reading.r2["mid 0", "constrained"] - reading.r2["mid 0", "bayes"]


def final_bayes(reading: Reading) -> float:
    """R2 of Bayesian beliefs from what the unembedding reads."""
    return reading.r2["final norm", "bayes"]


def final_ratio(reading: Reading) -> float:
    """Unexplained variance of constrained over that of Bayesian beliefs, from the same place."""
    r2 = reading.r2
    return float(residual_ratio(r2["final norm", "constrained"], r2["final norm", "bayes"]))


def lag_ratio(reading: Reading) -> float:
    """Mean over rows 7 to 10 of attention at lag 2 over attention at lag 1."""
    attention = reading.attention[0, 0]
    return float(np.mean([attention[d, d - 2] / attention[d, d - 1] for d in range(6, 10)]))


def gain_ratio(reading: Reading, lag: int) -> float:
    """Gain at a lag over the gain at the lag before."""
    return reading.gains[lag] / reading.gains[lag - 1]


def gain_error(reading: Reading, decay: float) -> float:
    """The larger distance of the gain ratios at lags 1 and 2 from the decay of the chain."""
    return max(abs(gain_ratio(reading, lag) - decay) for lag in (1, 2))


def gain_at_2(reading: Reading) -> float:
    """Size of the gain at lag 2."""
    return abs(reading.gains[2])


def parity(reading: Reading) -> float:
    """The least share of a head's own parity; if both heads prefer one parity, that of the worse."""
    even, odd = reading.parity[:, 0], reading.parity[:, 1]
    first = int(np.argmax(even - odd))  # the even head
    return float(min(even[first], odd[1 - first]))


def sign_product(reading: Reading) -> float:
    """Product of the signs with which the heads write along the predicted vectors."""
    return float(np.prod(np.sign(reading.ov_along.mean(axis=1))))


def ov_energy(reading: Reading) -> float:
    """Share of the energy of OV vectors in the plane of beliefs."""
    return reading.ov_energy


def site_r2(reading: Reading, site: int) -> float:
    """R2 of Bayesian beliefs from one site."""
    return reading.r2_by_site[site]


def first_mlp_gain(reading: Reading) -> float:
    """R2 of Bayesian beliefs after the first MLP less that before it."""
    return reading.r2_by_site[2] - reading.r2_by_site[1]


# The claims.


def claims(targets: str) -> tuple[Claim, ...]:
    """All claims about the nets trained on one kind of targets, with their controls.

    Args:
      targets: "soft" or "hard".

    Returns:
      Claims with one check each; their subjects are (net, kind).
    """
    soft = targets == "soft"
    return (
        *_prediction_claims(targets),
        *_residual_claims(ONE, targets, 0.006),
        *_residual_claims(TWO, targets, 0.015, Control((LACKING, targets), at_most(0.97))),
        *_attention_claims(targets),
        *(_deep_claims(targets) if soft else ()),
    )


def _claim(
    id: str,
    check: str,
    subject: tuple[Net, str],
    bound: Bound,
    measure: Callable[[Reading], float],
    *controls: Control,
) -> Claim:
    return Claim(id, check, measure, (Check(check, bound),), subject, controls)


def _untrained(net: Net, bound: Bound | None = None) -> Control:
    return Control((net, "untrained"), bound)


def _prediction_claims(targets: str) -> tuple[Claim, ...]:
    """N1 to N4: how near the predictions come to Bayes, and where one head falls short."""
    hard = targets == "hard"
    one, two, lacking = ((net, targets) for net in (ONE, TWO, LACKING))
    least = 6e-5 if hard else 5e-6
    last = float(last_token_kl(ONE).mean())
    last_token = Control(
        one, above(least), lambda reading: last, "mean KL of the last token's best"
    )
    return (
        _claim("N1", "mean KL, nats", one, at_most(least), mean_kl, last_token),
        _claim("N2", "mean KL, nats", two, at_most(1e-4 if hard else 2e-5), mean_kl,
               Control(lacking, at_least(1.5e-4))),
        _claim("N4", "KL at 3 over KL at 2", lacking, at_least(10), kl_growth),
        _claim("N4", "KL at 3, nats", lacking, at_least(1.5e-4), kl_at_3,
               Control(two, at_most(5e-5))),
    )  # fmt: skip


def _residual_claims(net: Net, targets: str, gap: float, *controls: Control) -> tuple[Claim, ...]:
    """N5 to N8: constrained beliefs before the MLP, Bayesian beliefs at the end."""
    trained = (net, targets)
    shuffled = Control(trained, at_most(0.10), middle_shuffled, "R2 of middle -> shuffled")
    return (
        _claim("N5", "R2 of middle -> constrained", trained, at_least(0.990), middle_constrained,
               _untrained(net, at_most(0.93)), shuffled, *controls),
        _claim("N6", "R2 of middle -> constrained less -> Bayes", trained, at_least(gap),
               middle_advantage, _untrained(net, at_most(0.0))),
        _claim("N7", "R2 of final norm -> Bayes", trained, at_least(0.990), final_bayes,
               _untrained(net, at_most(0.93))),
        _claim("N8", "unexplained of final -> constrained over -> Bayes", trained, at_least(3),
               final_ratio, _untrained(net)),
    )  # fmt: skip


def _attention_claims(targets: str) -> tuple[Claim, ...]:
    """N9 to N13: patterns of attention, gains of earlier tokens, and what heads write."""
    one, two = (ONE, targets), (TWO, targets)
    lacking = Control((LACKING, targets), at_most(0.05), gain_at_2, "size of the gain at lag 2")
    return (
        _claim("N9", "attention at lag 2 over lag 1, rows 7 to 10", one, near(0.52, 0.10), lag_ratio,
               _untrained(ONE)),
        *_gain_claims(ONE, targets),
        *_gain_claims(TWO, targets, lacking),
        _claim("N12", "least share of a head's own parity, one head each", two, at_least(0.9), parity,
               _untrained(TWO)),
        _claim("N12", "product of the signs of the heads' OV", two, at_most(-1.0), sign_product),
        _claim("N13", "share of OV energy in the belief plane", one, at_least(0.35), ov_energy,
               _untrained(ONE, at_most(0.15))),
    )  # fmt: skip


def _gain_claims(net: Net, targets: str, *controls: Control) -> tuple[Claim, ...]:
    """N10. One of an untrained net's two ratios may come near by chance: the pair decides."""
    trained = (net, targets)
    return (
        *(
            _claim("N10", f"gain at lag {lag} over lag {lag - 1}", trained, near(net.decay, 0.12),
                   partial(gain_ratio, lag=lag))
            for lag in (1, 2)
        ),
        _claim("N10", "larger distance of the two from the decay", trained, at_most(0.12),
               partial(gain_error, decay=net.decay), _untrained(net), *controls),
    )  # fmt: skip


def _deep_claims(targets: str) -> tuple[Claim, ...]:
    """N16: deeper nets come nearer to Bayes from layer to layer."""
    deep = (DEEP, targets)
    return (
        _claim("N16", "R2 of the first middle -> Bayes", deep, at_most(0.992),
               partial(site_r2, site=1)),
        _claim("N16", "gain of the first MLP", deep, at_least(0.004), first_mlp_gain),
        _claim("N16", "R2 of final norm -> Bayes", deep, at_least(0.995), partial(site_r2, site=-1),
               _untrained(DEEP, at_most(0.95))),
    )  # fmt: skip


# The rows.


def rows(claims: Iterable[Claim], readings: Readings) -> list[dict[str, Any]]:
    """Flat rows of the claims and controls whose nets were read.

    Args:
      claims: with one check each; their subjects are (net, kind).
      readings: by net and kind.

    Returns:
      A row for each claim and, after it, for each of its controls.
    """
    table = []
    for claim in claims:
        for line in claim.lines():
            net, kind = line.subject
            seeds = readings.get((net.name, kind))
            if not seeds:
                continue
            verdict = Verdict(line.bound, np.array([line.measure(one) for one in seeds], float))
            table.append(
                {
                    "id": claim.id,
                    "check": line.name,
                    "net": net.name,
                    "trained": kind,
                    "role": line.role,
                    "median": verdict.median,
                    "least": float(verdict.values.min()),
                    "most": float(verdict.values.max()),
                    "must be": str(line.bound),
                    "seeds": len(seeds),
                    "holds": verdict.holds,
                    "passed": verdict.passed,
                }
            )
    return table


def all_rows(config: Config, readings: Readings) -> list[dict[str, Any]]:
    """The rows of every kind of targets that the configuration trains on.

    Args:
      config: the flags.
      readings: of its nets.

    Returns:
      Flat rows.
    """
    kinds = dict.fromkeys(targets for _, targets, _ in plan(config))
    return [row for kind in kinds for row in rows(claims(kind), readings)]


def spreads(readings: Readings) -> list[dict[str, Any]]:
    """Whether attention depends on the tokens; the predictions take it to be content-free.

    Args:
      readings: by net and kind.

    Returns:
      A row for each trained net and seed.
    """
    return [
        {
            "net": net,
            "trained": kind,
            "seed": seed,
            "largest spread of attention": reading.attention_spread,
            "mean KL, nats": float(reading.kl.mean()),
            "KL at 3, nats": float(reading.kl[2]),
            "KL at 10, nats": float(reading.kl[-1]),
        }
        for (net, kind), seeds in readings.items()
        if kind != "untrained"
        for seed, reading in enumerate(seeds)
    ]


COLUMNS = (
    "id", "check", "net", "trained", "role", "median", "least", "most", "must be", "verdict"
)  # fmt: skip


def markdown(table: list[dict[str, Any]]) -> str:
    """The table to read, in Markdown.

    Args:
      table: of `rows`.

    Returns:
      The text.
    """
    shown = []
    for row in table:
        verdict = verdict_words(row["role"], row["passed"])
        if not row["passed"]:
            verdict += f" ({row['holds']}/{row['seeds']})"
        numbers = {name: f"{row[name]:.3g}" if abs(row[name]) < 1e-2 else f"{row[name]:.4f}"
                   for name in ("median", "least", "most")}  # fmt: skip
        shown.append({**row, **numbers, "verdict": verdict})
    return markdown_table(shown, COLUMNS)
