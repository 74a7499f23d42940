"""The table of the theorems experiment."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.theorems.config import Config
from experiments.theorems.figures import draw
from experiments.theorems.measures import Results
from imr.lab.console import markdown_table
from imr.lab.folder import RunFolder

COLUMNS = ("id", "statement", "check", "worst", "median", "threshold", "verdict")


def report(config: Config, run: RunFolder, results: Results) -> None:
    """Writes the figures, the table and the summary into the run folder."""
    draw(run, results.rows, results.arrays)
    heading = (
        f"Worst and median over {config.seeds} random problems of n = {config.rows}, "
        f"f = {config.features}, k = {config.classes}, r = {config.rank}, {config.heads} heads, in "
        "float64. Errors are largest differences over largest entries."
    )
    run.finish({"table": results.rows}, markdown(results.rows, heading))


def verdict(summary: Mapping[str, Any]) -> int:
    """Names the rows that fail on standard error."""
    failed = [row for row in summary["table"] if not row["passed"]]
    for row in failed:
        worst = "not a number" if row["worst"] is None else f"{row['worst']:.3g}"
        line = f"{row['id']}, {row['check']}: {worst}, must be {_threshold(row)}"
        sys.stderr.write(f"failed: {line}\n")
    return 1 if failed else 0


def _threshold(row: Mapping[str, Any]) -> str:
    """What the value must be, as the table says it."""
    if row["kind"] == "near":
        return f"{row['expected']:g} ± {row['limit']:g}"
    return ("≤ " if row["kind"] == "at most" else "≥ ") + f"{row['limit']:.0e}"


def markdown(rows: Sequence[Mapping[str, Any]], heading: str) -> str:
    """The table to read, in Markdown."""
    shown = []
    for row in rows:
        form = ".3f" if row["kind"] == "near" else ".1e"
        numbers = {name: format(row[name], form) for name in ("worst", "median")}
        words = {"threshold": _threshold(row), "verdict": "pass" if row["passed"] else "FAIL"}
        shown.append({**row, **numbers, **words})
    failed = sum(not row["passed"] for row in rows)
    verdict = "All hold." if not failed else f"{failed} of them fail."
    return f"{heading} {len(rows)} rows. {verdict}\n\n{markdown_table(shown, COLUMNS)}"
