"""The tables and the figures of the leaning experiment."""

from typing import Any

import numpy as np

from experiments.leaning import figures
from experiments.leaning.config import Config, times
from experiments.leaning.measures import Results
from experiments.leaning.training import PARTS
from imr.lab.console import markdown_table
from imr.lab.folder import RunFolder


def report(config: Config, run: RunFolder, results: Results) -> None:
    """Writes the figures, the tables and the summary into the run folder."""
    titles = {subject.name: subject.title for subject in results.subjects}
    ways = list(next(iter(results.readings.values())).cosines)
    courses = {
        f"{name}_{way.replace(', ', '_').replace(' ', '_')}": cosines.mean(axis=(2, 3))
        for name, readings in results.readings.items()
        for way, cosines in readings.cosines.items()
    }
    nulls = {name: float(readings.null[-1].std()) for name, readings in results.readings.items()}
    steps = times(config)
    figure = figures.courses(steps, results.readings, nulls, titles)
    run.save_figure("courses", figure, steps=steps, null=np.array(list(nulls.values())), **courses)
    parts = {
        name: np.array([readings.parts[way].mean(axis=(2, 3)) for way in ways])
        for name, readings in results.readings.items()
    }
    run.save_figure("parts", figures.parts(parts, ways, PARTS, titles), **parts)
    run.finish(results.rows, tables(config, results.rows, titles))


def tables(
    config: Config, rows: dict[str, list[dict[str, Any]]], titles: dict[str, str]
) -> str:  # fmt: skip
    """The tables to read, in Markdown, with what the columns mean."""
    texts = [
        f"Cosine of W_V W_O with theta^T, mean over the heads of a net; -1 is descent. {config.seeds} "
        f"seeds, {config.steps} steps: median (least to most). Parts: what the training of attention "
        "(queries and keys), of values (values and outputs), and decay have added to the mean cosine, "
        "to first order. z: against theta in random directions, at start and end.",
    ]
    for name, title in titles.items():
        of = [row for row in rows["ways"] if row["subject"] == name]
        shown = []
        for way in dict.fromkeys(row["way"] for row in of):
            seeds = [row for row in of if row["way"] == way]
            line = {
                "trained": way, "loss": f"{np.median([row['loss'] for row in seeds]):.3f}",
                "cosine": _spread([row["end"] for row in seeds]),
                **{part: _spread([row[part] for row in seeds], short=True) for part in PARTS},
                "negative": f"{sum(row['negative'] for row in seeds)}/"
                            f"{sum(row['heads'] for row in seeds)}",
                "z": None,
            }  # fmt: skip
            if "z" in seeds[0]:
                starts, ends = ([row[key] for row in seeds] for key in ("z_start", "z"))
                line["z"] = f"{np.median(starts):+.1f}, {np.median(ends):+.1f}"
            shown.append(line)
        texts += [f"**{title}**", markdown_table(shown)]
    texts.append(
        "What each explanation predicts, in bounds that were written before the runs of the README, and what "
        "every seed shows. It stands if all seeds keep the bound, falls if none does; unless all "
        "seeds lean to one side, beyond |z| = 3, there is nothing to explain."
    )
    causes = {}
    for row in rows["explanations"]:
        line = causes.setdefault(row["cause"], {
            "explanation": row["cause"], "predicts": f"{row['prediction']} {row['must be']}",
        })  # fmt: skip
        line[row["subject"]] = f"{_spread(row['values'], '+.2f')} {row['verdict']}"
    texts.append(markdown_table(list(causes.values())))
    if config.smoke:
        texts.append("A smoke run: nets have learned too little for this to mean anything.")
    return "\n\n".join(texts)


def _spread(values: list[float], form: str = "+.3f", short: bool = False) -> str:
    middle = format(np.median(values), form)
    return middle if short else f"{middle} ({min(values):{form}} to {max(values):{form}})"
