"""Which number of the README is which entry of the kept summary; `scripts/docs --check` holds them together."""

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from experiments.beliefs.config import LACKING, ONE, TWO, Net


def said(run: Callable[[str], Any]) -> Iterator[tuple[Any, ...]]:
    """Texts of the README with fields, and the values of these."""
    summary = run("beliefs")
    first = next(i for i, row in enumerate(summary["table"]) if row["trained"] == "hard")
    soft, hard = summary["table"][:first], summary["table"][first:]

    def of(id: str, check: str, net: Net, kind: str = "soft") -> dict[str, Any]:
        """The row of the table of Bayes targets, or of sampled ones, where those are all."""
        rows = hard if kind == "hard" else soft
        return next(
            row
            for row in rows
            if row["id"] == id and row["check"].startswith(check)
            if row["net"] == net.name and row["trained"] == kind
        )  # fmt: skip

    def cell(row: dict[str, Any], form: str) -> str:
        """The median over seeds and, where they print otherwise, the least and the most."""
        middle, least, most = (format(row[name], form) for name in ("median", "least", "most"))
        return middle if least == most else f"{middle} ({least} to {most})"

    def seeds(net: Net, kind: str) -> list[dict[str, Any]]:
        """Of each seed, by position and lag, and its attention's spread."""
        pairs = zip(summary["courses"], summary["attention_spread"], strict=True)
        return [
            {**course, "spread": row["largest spread of attention"]}
            for course, row in pairs
            if (course["net"], course["trained"]) == (net.name, kind)
        ]

    yield "Bayes targets, median over {} seeds (least to most):", soft[0]["seeds"]
    nets = (("N1", ONE), ("N2", TWO), ("N2", LACKING))
    yield (
        "mean over positions, nats | {} | {} | {} |",
        *(cell(of(id, "mean KL, nats", net), ".1e") for id, net in nets),
    )
    for template, id, check, *forms in (
        ("→ constrained belief | {} | {} | {} | {:.3f}, {:.3f} |", "N5", "R2 of middle", ".3f", ".4f", ".3f"),
        ("less R² → Bayes belief | {} | {} | | {:.3f}, {:.3f} |", "N6", "R2 of middle", "+.3f", "+.3f"),
        ("final residual → Bayes belief | {} | {} | | {:.3f}, {:.3f} |", "N7", "R2 of final", ".4f", ".4f"),
    ):  # fmt: skip
        trained = zip((ONE, TWO, LACKING), forms, strict=False)
        plain = (of(id, check, net, "untrained")["median"] for net in (ONE, TWO))
        yield template, *(cell(of(id, check, net), form) for net, form in trained), *plain
    lags = of("N9", "attention", ONE), of("N9", "attention", ONE, "untrained")
    yield "at lag 2 over lag 1 | {} | | | {:.2f} |", cell(lags[0], ".2f"), lags[1]["median"]
    gains = {
        net: [cell(of("N10", f"gain at lag {lag}", net), form) for lag in (1, 2)]
        for net, form in ((ONE, ".2f"), (TWO, ".3f"))
    }
    yield "over lag 0; 2 over 1 | {}; {} | {}; {} | | |", *gains[ONE], *gains[TWO]
    own = of("N12", "least share", TWO), of("N12", "least share", TWO, "untrained")
    yield "own parity of lags | | {} | | {:.3f} |", cell(own[0], ".3f"), own[1]["median"]

    two = seeds(TWO, "soft")
    written = [[head[-1] for head in seed["ov_along"]] for seed in two]
    yield (
        "of opposite sign ({:.2f} and {:.2f} at position ten;",
        median(map(max, written)), median(map(min, written)),
    )  # fmt: skip
    sites = [c["r2_by_site"] for c in summary["courses"] if c["net"] == "slow, four layers"]
    yield (
        "R² is {:.3f} before it and {:.3f} after it.",
        *(median(r[i] for r in sites) for i in (1, 2)),
    )

    passed = sum(row["passed"] for row in soft)
    yield "{} of {} rows come out as predicted in every seed.", passed, len(soft)
    yield "The other {}:", len(soft) - passed
    stuck = sorted(seeds(LACKING, "soft"), key=lambda seed: -seed["kl"][-1])
    free = stuck.pop()
    ends, loose = {f"{seed['kl'][-1]:.0e}" for seed in stuck}, free["kl"][-1]
    yield "Two seeds of three do lose them ({} at position 10).", " or ".join(sorted(ends))
    spreads = sorted({f"{seed['spread']:.2f}" for seed in stuck})
    lost = max(abs(seed["gains"][2]) for seed in stuck)
    yield (
        "its weights vary by {:.2f} (standard deviation over words; {} in the other seeds), its gain at lag "
        "2 is {:.2f} ({:.2f}), and its KL is {:.0e} at position 10, still {:.0f} times that of two heads.",
        free["spread"], " and ".join(spreads), free["gains"][2], lost, loose,
        loose / median(seed["kl"][-1] for seed in two),
    )  # fmt: skip
    rises = [next(i for i, kl in enumerate(seed["kl"], 1) if kl > 1e-4) for seed in stuck]
    yield "comes at position {} in one seed and at position {} in another.", *sorted(rises)
    zero = [seed["gains"][0] for seed in seeds(ONE, "soft")]
    yield "decays by the factor {:.2f} for each lag,", lags[0]["median"]
    yield (
        "The gain at lag 0 is {:.2f} to {:.2f} of the predicted one, so that lag 1 over lag 0 is up to "
        "{:.2f}.",
        min(zero), max(zero), of("N10", "gain at lag 1", ONE)["most"],
    )  # fmt: skip

    passed = sum(row["passed"] for row in hard)
    every = "all" if passed == len(hard) else f"{passed} of"
    words = "training far noisier, {} {} rows come out as predicted in all three seeds."
    yield words, every, len(hard)
    single = seeds(LACKING, "hard")
    spread = [seed["spread"] for seed in single]
    third, last = ([seed["kl"][position] for seed in single] for position in (2, 9))
    yield "(spread {:.2f} to {:.2f};", min(spread), max(spread)
    yield "KL {:.1e} to {:.1e} at position 3", min(third), max(third)
    yield "and {:.1e} at position 10).", median(last)
    yield "Attention decays by {} for each lag,", cell(of("N9", "attention", ONE, "hard"), ".2f")
    yield "and lag 1 over lag 0 is {}.", cell(of("N10", "gain at lag 1", ONE, "hard"), ".2f")
    means = [of(id, "mean KL, nats", net, "hard")["median"] for id, net in nets]
    yield "The mean KL is {:.1e} (one head, λ = 0.55), {:.1e} (two heads) and {:.1e}", *means
    constrained = (of("N5", "R2 of middle -> constrained", net, "hard") for _, net in nets)
    yield (
        "R² of middle → constrained belief is {:.3f}, {:.3f} and {:.3f}.",
        *(row["median"] for row in constrained),
    )


SETTINGS = (
    "Mess3(0.15, 0.6)", "Mess3(0.5, 0.6)", "λ = 0.55", "λ = −0.5", "all 88,572 prefixes",
    "words of 8 tokens", "attention at lag 2 over lag 1", "lag 1 over lag 0", "; 2 over 1 |",
    "theory predicts 1/3 and −2/3", "KL of about 3e-4 from position 3 on", "at position 10",
    "at position 3", "best additive filter, 0.47", "at lag 0", "gain at lag 2 is",
)  # fmt: skip
UNKEPT: dict[str, tuple[str, ...]] = {}
