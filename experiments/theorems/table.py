"""From claims to the rows of the table."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from experiments.theorems import closed_forms, fields, flows, splitting
from experiments.theorems.claims import Claim
from experiments.theorems.config import Config
from experiments.theorems.problems import Problem
from imr import ImrError
from imr.lab.console import markdown_table

COLUMNS = ("id", "statement", "check", "worst", "median", "threshold", "verdict")


def chosen(config: Config) -> tuple[Claim, ...]:
    """The claims whose id begins with one of `config.only`; all of them where it is empty."""
    claims = (
        *fields.CLAIMS,
        *flows.claims(forward=config.smoke),
        *closed_forms.CLAIMS,
        *splitting.CLAIMS,
    )
    for prefix in config.only:
        if not any(claim.id.startswith(prefix) for claim in claims):
            sections = ", ".join(dict.fromkeys(claim.id.split(".")[0] for claim in claims))
            raise ImrError(
                f"--only takes beginnings of row ids, such as {sections} or {claims[0].id}; found "
                f"{prefix!r}, with which none begins."
            )
    return tuple(c for c in claims if not config.only or c.id.startswith(config.only))


def evaluate(
    claims: Sequence[Claim], problems: Problem
) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Each claim's rows, one for each check, and its arrays, with a leading axis of seeds."""
    with ThreadPoolExecutor(1) as pool:
        waiting: list[tuple[Claim, Any]] = []
        for claim in claims:
            # Traced here, while the one before it compiles there.
            waiting.append((claim, pool.submit(_trace(claim, problems).compile)))
            if len(waiting) == 2:
                yield _result(waiting.pop(0), problems)
        yield _result(waiting.pop(), problems)


def _result(pair, problems):
    claim, program = pair
    measured = jax.tree.map(np.asarray, program.result()(problems))
    return _rows(claim, measured), measured.arrays


def _trace(claim, problems):
    each = jax.lax.map if claim.sequential else lambda f, p: jax.vmap(f)(p)
    return jax.jit(lambda p: each(claim.measure, p)).lower(problems)


def _rows(claim, measured):
    rows = []
    for check, values in zip(claim.checks, measured.values, strict=True):
        worst = check.worst(values)
        rows.append(
            {
                "id": claim.id,
                "statement": claim.statement,
                "check": check.name,
                "worst": worst,
                "median": float(np.median(values)),
                "seeds": len(values),
                "kind": check.kind,
                "expected": check.expected if check.kind == "near" else None,
                "limit": check.limit,
                "passed": check.passes(worst),
            }
        )
    return rows


def failing(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The rows that fail, each as a line."""
    for row in rows:
        if not row["passed"]:
            worst = "not a number" if row["worst"] is None else f"{row['worst']:.3g}"
            yield f"{row['id']}, {row['check']}: {worst}, must be {threshold(row)}"


def threshold(row: dict[str, Any]) -> str:
    """What the value must be, as the table says it."""
    if row["kind"] == "near":
        return f"{row['expected']:g} ± {row['limit']:g}"
    return ("≤ " if row["kind"] == "at most" else "≥ ") + f"{row['limit']:.0e}"


def markdown(rows: Sequence[dict[str, Any]], heading: str) -> str:
    """The table to read."""
    shown = []
    for row in rows:
        form = ".3f" if row["kind"] == "near" else ".1e"
        shown.append(
            {
                **row,
                "worst": format(row["worst"], form),
                "median": format(row["median"], form),
                "threshold": threshold(row),
                "verdict": "pass" if row["passed"] else "FAIL",
            }
        )
    failed = sum(not row["passed"] for row in rows)
    verdict = "All hold." if not failed else f"{failed} of them fail."
    return f"{heading} {len(rows)} rows. {verdict}\n\n{markdown_table(shown, COLUMNS)}"
