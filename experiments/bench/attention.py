"""The self-attention field in O(n) memory against the gradient of the dense loss, by number of tokens.

Each point is a process of its own, `python -m experiments.bench.attention WAY N ROUNDS`, so that its
peak of memory is its own.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import imr
from experiments.bench.rounds import difference, in_process, race

RANK = 16
BLOCKS, GENERAL, DENSE = "quadratic_field", "quadratic_field, Q and K", "jax.grad of the dense loss"
FORMATS = {
    "median s": ".4f", "peak GB": ".3f", "difference": ".1e", f"times {BLOCKS}": ".1f"
}  # fmt: skip


def measure(config: Any) -> tuple[str, list[dict[str, Any]]]:
    """A row for each way and number of tokens, and the slopes over the largest numbers."""
    from imr.lab.console import Progress  # not in the processes whose memory is measured

    points = [(n, way) for n in config.tokens for way in (BLOCKS, GENERAL, DENSE)]
    points = [(n, way) for n, way in points if way != DENSE or n <= config.most_dense]
    rows, base = [], {}
    with Progress(len(points), "attention", "point") as progress:
        for done, (n, way) in enumerate(points, start=1):
            rounds = config.repetitions if n <= 8192 else 1
            found = in_process("attention", way, n, rounds)
            row = {
                "tokens": n, "way": way, "median s": float(np.median(found["seconds"])),
                "peak GB": found["peak"] / 1e9, **found,
            }  # fmt: skip
            base = row if way == BLOCKS else base
            row[f"times {BLOCKS}"] = row["median s"] / base["median s"]
            if way == DENSE:
                row["difference"] = difference(row["norms"], base["norms"])
            rows.append(row)
            progress.update(done)
    return (
        f"Field of self-attention, forward and reverse term, {RANK} features and rank {RANK}, float32, "
        f"standard normal features. {BLOCKS}: symmetric, in blocks; with Q and K: two projections, "
        f"another problem. `peak GB`: of the whole process. `difference`: of the norms of the first "
        f"rows. {slopes(rows)}"
    ), rows


def slopes(rows: list[dict[str, Any]]) -> str:
    """How time, and the memory that XLA reserves, grow in log-log over the largest problems."""
    own = [row for row in rows if row["way"] == BLOCKS]
    if len(own) < 4:
        return ""
    n = np.log([row["tokens"] for row in own[-3:]])
    both = np.log([[row["median s"], row["arrays"]] for row in own[-3:]])
    time, memory = np.polyfit(n, both, 1)[0]
    return f"Log-log slopes over the three largest: time {time:.2f}, memory that XLA reserves {memory:.2f}."


def point(way: str, n: int, rounds: int) -> dict[str, Any]:
    """Times, memory and norms of one way on one problem, in this process."""
    keys = jax.random.split(jax.random.key(0), 3)
    z = jax.random.normal(keys[0], (n, RANK))
    q, k = (jax.random.normal(key, (RANK, RANK)) / RANK**0.5 for key in keys[1:])
    model = imr.Quadratic(q, k if way == GENERAL else None)

    def attention(z):
        return -imr.closed_field(imr.feature_loss(model, None))(0.0, z, None)

    def dense(z):
        return jnp.sum(jax.nn.logsumexp(model(z), axis=1))

    compiled = jax.jit(jax.grad(dense) if way == DENSE else attention).lower(z).compile()
    found, times = race({way: lambda: compiled(z)}, rounds, way)
    memory: Any = compiled.memory_analysis()
    kinds = ("argument", "output", "temp")
    return {
        "seconds": times[way]["seconds"], "peak": peak_memory(),
        "arrays": sum(getattr(memory, f"{kind}_size_in_bytes") for kind in kinds),
        "norms": jnp.linalg.norm(found[way][:64], axis=1).tolist(),
    }  # fmt: skip


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
    from imr.lab.plotting import panels

    figure, axes = panels(1, 2, (9.6, 4.4))
    arrays, ticks = {}, sorted({row["tokens"] for row in rows})
    shown = (("median s", 1.0, "seconds", 2), ("arrays", 1e6, "memory of the program, MB", 1))
    for axis, (key, unit, label, slope) in zip(axes[0], shown, strict=True):
        for way in dict.fromkeys(row["way"] for row in rows):
            own = [row for row in rows if row["way"] == way]
            n, y = np.array([r["tokens"] for r in own]), np.array([r[key] for r in own]) / unit
            axis.plot(n, y, marker="o", markersize=3, label=way)
            arrays |= {f"{key}: {way}": y, f"tokens: {way}": n}
            if way == BLOCKS:
                line = y[-1] * (n / n[-1]) ** float(slope)
                axis.plot(n, line, "--", color="0.5", label=f"slope {slope}")
        axis.set(xlabel="tokens", ylabel=label, xscale="log", yscale="log")
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=30)
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    run.save_figure("attention", figure, **arrays)


if __name__ == "__main__":
    print(json.dumps(point(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
