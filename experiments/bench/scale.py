"""The table of README's section on scale: `python -m experiments.bench.scale [SUMMARY]`.

Of the summary.json of a run of `scripts/bench --parts tpu cuda`, or of the rows in compiled.json beside this file.
"""

import json
import sys
from pathlib import Path
from typing import Any

from experiments.bench.constants import COMPILED
from experiments.bench.tpu import CORES, modelled
from imr.lab.console import markdown_table


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each program of the half that fixes the constants, with a column for each chip."""
    lines: dict[Any, dict[str, Any]] = {}
    for row in rows:
        if row.get("constants", "fixed") != "fixed" or row["topology"].split("-")[0] not in (
            *CORES,
            "H100",
        ):
            continue  # fmt: skip
        if row["platform"] == "tpu":
            ratio, cost = modelled(row) / (1e6 * row["Mcycles"]), f"{row['compiled s']:.2g} s"
        else:
            ratio, cost = row["model GB"] / row["compiled GB"], f"{row['compiled GB']:,.1f} GB"
        name = row["program"] + (" of 256 chips" if row["topology"] == "v5e-256" else "")
        line = {"program": name, "tokens, rank": f"{row['n']:,}, {row['r']}"}
        line = lines.setdefault(tuple(line.values()), line | dict.fromkeys((*CORES, "H100"), ""))
        line[row["topology"].split("-")[0]] = f"{cost}, {ratio:.2f}, {row['MiB']:.3g} MiB"
    return markdown_table(list(lines.values()))


if __name__ == "__main__":
    found = json.loads((Path(sys.argv[1]) if sys.argv[1:] else COMPILED).read_text())
    print(table([*found["tpu"], *found["cuda"]]))
