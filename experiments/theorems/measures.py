"""From claims to the rows of the table."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.theorems import closed_forms, context, fields, flows, splitting
from experiments.theorems.config import Config
from experiments.theorems.problems import Problem, make_problems
from imr.lab.beside import beside
from imr.lab.claims import Claim, Verdict
from imr.lab.console import Progress
from imr.lab.flags import flag_error
from imr.lab.folder import RunFolder


class Results(NamedTuple):
    """All that the table and the figures show."""

    rows: list[dict[str, Any]]
    arrays: dict[str, dict[str, np.ndarray]]


def chosen(config: Config) -> tuple[Claim, ...]:
    """The claims whose id begins with one of `config.only`, or all of them."""
    reduced = flows.claims(forward=config.smoke)
    claims = (*fields.CLAIMS, *reduced, *closed_forms.CLAIMS, *splitting.CLAIMS, *context.CLAIMS)
    for prefix in config.only:
        if not any(claim.id.startswith(prefix) for claim in claims):
            sections = ", ".join(dict.fromkeys(claim.id.split(".")[0] for claim in claims))
            rule = f"takes beginnings of row ids, such as {sections} or {claims[0].id}"
            raise flag_error("only", rule, f"{prefix!r}, with which none begins")
    return tuple(c for c in claims if not config.only or c.id.startswith(config.only))


def measure(config: Config, run: RunFolder, claims: Sequence[Claim]) -> Results:
    """Checks every claim, and writes each row to the metrics as soon as it is there."""
    metrics = run.metrics()
    results = Results([], {})
    with Progress(len(claims), "theorems", "claim") as progress:
        for done, (claim, measured) in enumerate(evaluate(claims, make_problems(config)), start=1):
            results.arrays[claim.id] = measured.arrays
            for row in _rows(claim, measured.values):
                metrics.append(len(results.rows), **row)
                results.rows.append(row)
            progress.update(done, failed=sum(not row["passed"] for row in results.rows))
    return results


def evaluate(claims: Sequence[Claim], problems: Problem) -> Iterator[tuple[Claim, Any]]:
    """Measures every claim on all problems, in a program for each claim."""

    def result(claim, program):
        return claim, jax.tree.map(np.asarray, program.result()(problems))

    with beside() as thread:
        waiting: list[tuple[Claim, Any]] = []
        for claim in claims:
            # Traced here, while the one before it compiles there.
            lowered = jax.jit(jax.vmap(claim.measure)).lower(problems)
            waiting.append((claim, thread.submit(lowered.compile)))
            if len(waiting) == 2:
                yield result(*waiting.pop(0))
        yield result(*waiting.pop())


def _rows(claim: Claim, values: Sequence[np.ndarray]) -> Iterator[dict[str, Any]]:
    for check, seeds in zip(claim.checks, values, strict=True):
        verdict, (kind, value, by) = Verdict(check.bound, seeds), check.bound
        expected, limit = (value, by) if kind == "near" else (None, value)
        yield {
            "id": claim.id, "statement": claim.statement, "check": check.name,
            "worst": verdict.worst, "median": verdict.median, "seeds": len(seeds),
            "kind": kind, "expected": expected, "limit": limit, "passed": verdict.passed,
        }  # fmt: skip
