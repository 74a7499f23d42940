"""Tables and figures of the benchmark."""

from experiments.bench import attention
from experiments.bench.config import Config
from experiments.bench.measures import MODULES, Part, machine
from imr.lab.console import markdown_table
from imr.lab.folder import RunFolder

HIDDEN = ("seconds", "norms", "arrays", "peak")  # in summary.json alone


def report(config: Config, run: RunFolder, results: dict[str, Part]) -> None:
    """Writes the figures, the tables and the summary into the run folder."""
    texts = [
        f"Warm, median of {config.repetitions} rounds; {machine(config)}. `times ...`: median over "
        "rounds of the ratio in one round."
    ]
    for name, part in results.items():
        if name == "attention":
            attention.draw(run, part.rows)
        shown = [{k: v for k, v in row.items() if k not in HIDDEN} for row in part.rows]
        texts += [part.words, markdown_table(shown, formats=MODULES[name].FORMATS)]
    summary = {name: part.rows for name, part in results.items()}
    run.finish({**summary, "machine": machine(config)}, "\n\n".join(texts))
