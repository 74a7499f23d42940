"""Which number of the README is which entry of the kept summary; `scripts/docs --check` holds them together.

No number needs the courses of single heads: `jq 'del(.courses)' RUN/summary.json > results/nets.json`.
"""

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

NETS = ("one_head", "images", "four_layers", "alternating", "slow", "patches")


def said(run: Callable[[str], Any]) -> Iterator[tuple[Any, ...]]:
    """Texts of the README with fields, and the values of these."""
    found = run("nets")
    causes: dict[str, dict[str, Any]] = {}
    for row in found["explanations"]:
        causes.setdefault(row["cause"], {})[row["subject"]] = row
    middle = {
        cause: {net: median(row["values"]) for net, row in rows.items()}
        for cause, rows in causes.items()
    }

    def of(net: str, way: str, key: str) -> list[Any]:
        return [row[key] for row in found["ways"] if (row["subject"], row["way"]) == (net, way)]

    yield from _table(causes, {net: of(net, "free", "end") for net in NETS})
    decay, without = middle["Decay itself turns them."], middle["Weight decay aligns circuits."]
    yield (
        "(its share is {:.2f} in every net), and without it {:.2f} to {:.2f} of the lean are there",
        max(map(abs, decay.values())), min(without.values()), max(without.values()),
    )  # fmt: skip
    yield (
        "with either fixed {:.2f} and {:.2f} of it are left",
        middle["Values turn, as attention stands."]["one_head"],
        middle["Attention turns, as values stand."]["one_head"],
    )
    climbing = of("images", "free", "end")
    words = {0: "none", 1: "one", 2: "two", 3: "three"}
    yield (
        "free heads *climb*, {:+.2f} in {} seeds of {}, beyond random directions",
        median(climbing), words[sum(z < -3 for z in of("images", "free", "z"))], words[len(climbing)],
    )  # fmt: skip
    last = [
        median(loss for net in nets for loss in of(net, "free", "loss"))
        for nets in (("slow", "four_layers"), ("alternating", "one_head"))
    ]
    digits = max(
        row["loss"]
        for row in found["ways"]
        if row["subject"] in ("patches", "images") and "random" not in row["way"]
    )
    yield (
        "Mess3 to a cross-entropy of {:.3f} and {:.3f} nats (random: ln 3), digits to below {}",
        *last, next(limit for limit in (0.001, 0.01, 0.1, 1, 10) if digits < limit),
    )  # fmt: skip
    yield (
        "The three parts add up to the change of the mean cosine within {:.3f}.",
        max(abs(row["beyond_first_order"]) for row in found["ways"]),
    )


def _table(causes: dict[str, dict[str, Any]], ends: dict[str, list[float]]) -> Iterator[Any]:
    """The table of explanations: nets with nothing to explain in brackets, what stands in bold."""
    line = "| {} | {} | " + " | ".join(["{}"] * len(NETS)) + " |"
    of_nets = next(iter(causes.values()))
    names = [f"({net})" if of_nets[net]["verdict"] == "no lean" else net for net in NETS]
    yield line, "explanation", "predicts", *names
    cells = [f"{median(ends[net]):+.3f}" for net in NETS]
    yield (
        line.replace("{}", "", 1).replace("  ", " "),
        "*mean cosine at the end*",
        *(f"**{x}**" if "+" in x else x for x in cells),
    )
    for cause, rows in causes.items():
        cells = []
        for net in NETS:
            verdict = rows[net]["verdict"].replace("no lean", "")
            cell = (
                f"{round(median(rows[net]['values']), 2) + 0.0:.2f} {verdict}".strip()
            )  # no -0.00
            cells.append(f"**{cell}**" if verdict == "stands" else cell)
        words = f"{rows[NETS[0]]['prediction']} {rows[NETS[0]]['must be']}"
        yield line, cause[0].lower() + cause[1:-1], words, *cells


SETTINGS = (
    "kept at 12 times", "among 16 patches", "Three seeds, 4,000 steps.", "a trial of 200 steps",
    "beyond |z| = 3", "(cosine 1)", "ln 3",
)  # fmt: skip
UNKEPT: dict[str, tuple[str, ...]] = {}
