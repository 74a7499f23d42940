"""The way in: `python -m experiments.theorems`."""

import sys

import jax

from experiments.theorems.claims import Claim
from experiments.theorems.config import Config, check, shrink
from experiments.theorems.figures import draw
from experiments.theorems.problems import make_problems
from experiments.theorems.table import chosen, evaluate, failing, markdown
from imr.lab.console import Progress
from imr.lab.experiment import run_main, run_once
from imr.lab.folder import RunFolder, open_run


def main(config: Config) -> int:
    """Does every statement of the theory hold, to what precision, and at which orders?"""
    check(config)
    claims = chosen(config)
    run = open_run("theorems", config, out=config.out, overwrite=config.overwrite)

    def work():
        with jax.enable_x64(True):
            measure(shrink(config) if config.smoke else config, run, claims)

    run_once(run, work)
    failures = list(failing(run.summary()["table"]))
    for line in failures:
        sys.stderr.write(f"failed: {line}\n")
    return 1 if failures else 0


def measure(config: Config, run: RunFolder, claims: tuple[Claim, ...]) -> None:
    """Checks every claim, and writes table and figures into the run folder."""
    problems = make_problems(config)
    metrics = run.metrics()
    metrics.rewind(-1)  # of a run that was cut off: it starts afresh
    rows, arrays = [], {}
    with Progress(len(claims), "theorems", "claim") as progress:
        for done, (found, shown) in enumerate(evaluate(claims, problems), start=1):
            arrays[found[0]["id"]] = shown
            for row in found:
                metrics.append(len(rows), **row)
                rows.append(row)
            progress.update(done, failed=sum(not row["passed"] for row in rows))
    draw(run, rows, arrays)
    heading = (
        f"Worst and median over {config.seeds} random problems of n = {config.rows}, "
        f"f = {config.features}, k = {config.classes}, r = {config.rank}, {config.heads} heads, in "
        "float64. Errors are largest differences over largest entries."
    )
    run.finish({"table": rows}, markdown(rows, heading))


if __name__ == "__main__":
    raise SystemExit(run_main(main, Config))
