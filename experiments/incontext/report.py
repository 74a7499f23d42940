"""The tables of the incontext experiment."""

import sys
from collections.abc import Mapping
from typing import Any

from experiments.incontext import claims
from experiments.incontext.config import Config, sizes
from experiments.incontext.measures import Results
from imr.lab.claims import verdict_words
from imr.lab.console import markdown_table
from imr.lab.folder import RunFolder
from imr.lab.seeds import cell

TITLES = {
    "regression": "Linear regression in context. `GD` and `GD++` are gradient descent without and with "
    "curvature correction, their steps tuned to convergence from several starts; x doubled is out of "
    "distribution; the cosine is that of sensitivities to the query with those of GD++.",
    "dynamics": "Gradient descent of one linear layer against its flow: the largest deviation of a mode "
    "as a share of its limit, the drift of v^2 - |U|^2, and when the first and the last mode come to "
    "half their limits.",
    "autoregression": "Rotations s' = W s, every prefix a context: one causal linear layer against the best "
    "gradient step; the cosine is that of predictions.",
    "classification": "Classification in context.",
    "images": "Accuracy on classes held out.",
    "recurrences": "Mean squared error of affine recurrences after so many pairs.",
}


def report(config: Config, run: RunFolder, results: Results) -> None:
    """Writes the tables and the summary into the run folder."""
    small = sizes(config)
    table = claims.rows(claims.claims(small), results.parts)
    again = claims.rows(claims.retested(small), results.parts)
    parts = [
        "The theory, in float64. Differences are relative to the largest entry.",
        markdown_table([
            {**row, "value": f"{row['value']:.2e}", "verdict": verdict_words(row["role"], row["passed"])}
            for row in results.theory
        ], ("id", "check", "role", "value", "must be", "verdict")),
    ]  # fmt: skip
    if table:
        failed = sum(not row["passed"] for row in table)
        ends = (
            f"{failed} are not as they must be." if failed else "All hold, and all controls fail."
        )
        parts += [
            f"Trained nets, {config.seeds} seeds, each on tasks of its own, drawn apart from those on "
            "which anything was trained or chosen. A claim holds where every seed shows it; a control "
            f"must show what refutes the claim. {len(table)} rows. {ends}",
            markdown_table([_line(row) for row in table]),
            "Claims that an earlier measurement had refuted, tested again:",
            markdown_table([_again(row) for row in again]),
        ]
    for name, part in results.parts.items():
        parts += [f"{TITLES[name]} {_TUNED}", markdown_table([_row(row) for row in part.rows])]
    if results.heads:
        parts += [
            "The lens on the checkpoints: cosines of key-query and value circuits with the "
            "construction, and in standard deviations of the same with the entries permuted (p) and, "
            "where they do not leave the construction alone, rotated (r).",
            markdown_table(results.heads),
        ]
    if config.smoke:
        parts.append("A smoke run: nets have learned too little for the verdicts to mean anything.")
    summary = {"theory": results.theory, "table": table, "retested": again, "heads": results.heads}
    summary |= {name: part.rows for name, part in results.parts.items()}
    run.finish(summary, "\n\n".join(parts))


_TUNED = (
    "Means ± standard deviations over seeds. Tuned: learning rates that a net was trained with, or "
    "settings that were tried of another method, the best chosen on tasks of their own."
)


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1e-2 else f"{value:.4f}"


def _line(row: Mapping[str, Any]) -> dict[str, Any]:
    words = verdict_words(row["role"], row["passed"])
    words += "" if row["passed"] else f" ({row['holds']}/{row['seeds']})"
    numbers = {name: _number(row[name]) for name in ("median", "least", "most")}
    head = {name: row[name] for name in ("id", "part", "check", "role")}
    return {**head, **numbers, "must be": row["must be"], "verdict": words}


def _again(row: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {name: _number(row[name]) for name in ("median", "least", "most")}
    verdict = "holds" if row["passed"] else f"fails again ({row['holds']}/{row['seeds']} seeds)"
    head = {"claim": row["statement"], "measured": row["check"]}
    return {**head, **numbers, "would be": row["must be"], "verdict": verdict}


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a part with each mean and its standard deviation in one cell."""
    shown = {}
    for key, value in row.items():
        if key.endswith("_std"):
            continue
        if f"{key}_std" in row:
            value = cell(row, key, ".3f" if 0.1 <= abs(value) < 1000 else ".3g")
        shown[key] = value
    return {
        k: "-" if v is None else f"{v:g}" if isinstance(v, float) else v for k, v in shown.items()
    }


def verdict(summary: Mapping[str, Any]) -> int:
    """Names on standard error what is not as predicted; equations have to hold."""
    for row in (*summary["theory"], *summary["table"]):
        if not row["passed"]:
            sys.stderr.write(f"not as predicted: {row['id']}, {row['check']}\n")
    return 0 if all(row["passed"] for row in summary["theory"]) else 1
