"""The self-attention field in O(n) memory against the gradient of the dense loss, by number of tokens.

Each point is a process of its own, `python -m experiments.bench.attention WAY N ROUNDS`, so that its
peak of memory is its own.
"""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

RANK = 16
BLOCKS, GENERAL, DENSE = "quadratic_field", "quadratic_field, Q and K", "jax.grad of the dense loss"
FORMATS = {
    "median s": ".4f", "peak GB": ".3f", "difference": ".1e", f"times {BLOCKS}": ".1f"
}  # fmt: skip


def measure(config: Any) -> tuple[str, list[dict[str, Any]]]:
    """A row for each way and number of tokens, and the slopes over the largest numbers."""
    from imr.lab.console import Progress

    points = [(n, way) for n in config.tokens for way in (BLOCKS, GENERAL, DENSE)]
    points = [(n, way) for n, way in points if way != DENSE or n <= config.most_dense]
    rows: list[dict[str, Any]] = []
    with Progress(len(points), "attention", "point") as progress:
        for done, (n, way) in enumerate(points, start=1):
            rounds = config.repetitions if n <= 8192 else 1
            command = [sys.executable, "-P", "-m", "experiments.bench.attention", way, str(n)]
            made = subprocess.run(
                [*command, str(rounds)], capture_output=True, text=True, check=True
            )
            found = json.loads(made.stdout)
            same = [row["norms"] for row in rows if (row["tokens"], row["way"]) == (n, BLOCKS)]
            row = {
                "tokens": n, "way": way, "median s": float(np.median(found["seconds"])),
                "peak GB": found["peak"] / 1e9, **found,
            }  # fmt: skip
            if way == DENSE:
                apart = np.abs(np.subtract(found["norms"], same[0]))
                row["difference"] = float(np.max(apart) / np.max(same[0]))
            rows.append(row)
            progress.update(done)
    for row in rows:
        base = next(r for r in rows if (r["tokens"], r["way"]) == (row["tokens"], BLOCKS))
        row[f"times {BLOCKS}"] = row["median s"] / base["median s"]
    return (
        f"Field of self-attention, forward and reverse term, {RANK} features and rank {RANK}, float32, "
        f"standard normal features. {BLOCKS}: symmetric, in blocks; with Q and K: two projections, "
        f"another problem. `peak GB`: of the whole process. `difference`: of the norms of the first "
        f"rows. {slopes(rows)}"
    ), rows


def slopes(rows: list[dict[str, Any]]) -> str:
    """How time, and memory above that of the smallest problem, grow in log-log over the largest."""
    own = [row for row in rows if row["way"] == BLOCKS][-3:]
    first = next(row for row in rows if row["way"] == BLOCKS)
    if len(own) < 3 or own[0] is first:
        return ""
    n = np.log([row["tokens"] for row in own])
    time = np.polyfit(n, np.log([row["median s"] for row in own]), 1)[0]
    above = np.array([row["arrays"] for row in own])
    memory = np.polyfit(n, np.log(above), 1)[0]
    return f"Log-log slopes over the three largest: time {time:.2f}, memory that XLA reserves {memory:.2f}."


def point(way: str, n: int, rounds: int) -> dict[str, Any]:
    """Times, memory and norms of one way on one problem, in this process."""
    import time

    import jax
    import jax.numpy as jnp

    import imr

    keys = jax.random.split(jax.random.key(0), 3)
    z = jax.random.normal(keys[0], (n, RANK))
    q, k = (jax.random.normal(key, (RANK, RANK)) / RANK**0.5 for key in keys[1:])
    if way == DENSE:
        model = imr.Quadratic(q)
        function = jax.grad(lambda z: jnp.sum(jax.nn.logsumexp(model(z), axis=1)))
    else:
        model = imr.Quadratic(q, k if way == GENERAL else None)
        function = partial(descend, imr.closed_field(imr.feature_loss(model, None)))
    compiled = jax.jit(function).lower(z).compile()
    found = jax.block_until_ready(compiled(z))
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(compiled(z))
        seconds.append(time.perf_counter() - start)
    memory: Any = compiled.memory_analysis()
    return {
        "seconds": seconds,
        "peak": peak_memory(),
        "arrays": sum(
            getattr(memory, f"{kind}_size_in_bytes") for kind in ("argument", "output", "temp")
        ),
        "norms": jnp.linalg.norm(found[:64], axis=1).tolist(),
    }


def descend(field: Any, z: Any) -> Any:
    """Minus the field at time 0: the attention."""
    return -field(0.0, z, None)


def peak_memory() -> int:
    """The most memory that this process has held, in bytes."""
    try:
        # Beside what the system calls it: that begins with what the parent held.
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def draw(run: Any, rows: list[dict[str, Any]]) -> None:
    """Time and memory that XLA reserves against the number of tokens, in log-log."""
    from imr.lab.plotting import new_figure

    figure = new_figure(figsize=(9.6, 4.4))
    axes = figure.subplots(1, 2)
    arrays = {}
    panels = (("median s", 1.0, "seconds", 2), ("arrays", 1e6, "memory of the program, MB", 1))
    for axis, (key, unit, label, slope) in zip(axes, panels, strict=True):
        for number, way in enumerate(dict.fromkeys(row["way"] for row in rows)):
            own = [row for row in rows if row["way"] == way]
            n, y = np.array([r["tokens"] for r in own]), np.array([r[key] for r in own]) / unit
            axis.plot(n, y, color=f"C{number}", marker="o", markersize=3, label=way)
            arrays[f"{key}: {way}"] = y
            arrays[f"tokens: {way}"] = n
            if way == BLOCKS:
                line = y[-1] * (n / n[-1]) ** float(slope)
                axis.plot(n, line, "--", color="0.5", label=f"slope {slope}")
        axis.set(xlabel="tokens", ylabel=label, xscale="log", yscale="log")
        ticks = sorted({row["tokens"] for row in rows})
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=30)
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    run.save_figure("attention", figure, **arrays)


if __name__ == "__main__":
    print(json.dumps(point(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
