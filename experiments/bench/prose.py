"""Which number of the README is which entry of a run's summary and of compiled.json; `scripts/docs --check` holds them together."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from experiments.bench.attention import BLOCKS, DENSE, GENERAL, slopes
from experiments.bench.beliefs import SCAN, TREE
from experiments.bench.constants import COMPILED
from experiments.bench.context import VMAPPED
from experiments.bench.linear import AUTODIFF, REDUCED, TORCH
from experiments.bench.tpu import WORDS, modelled
from imr.parallel import cost, cycles

Rows = list[dict[str, Any]]
Texts = Iterator[tuple[Any, ...]]


def said(run: Callable[[str], Any]) -> Texts:
    """Texts of the README with fields, and the values of these."""
    yield from one_core(run("one_core"))
    compiled = json.loads(COMPILED.read_text())
    versions = compiled["versions"]
    yield "(libtpu {}, jax {})", versions["libtpu"], versions["jax"]
    yield from tpu(compiled["tpu"])
    yield from cost_model(compiled["tpu"])
    yield "(jax {}, CUDA {:.4})", versions["jax"], versions["nvidia-cuda-nvcc"]
    for row in compiled["cuda"]:
        yield (
            "| {} | {:,}, {} | {:,.4g} GB | {:,.4g} GB | {:.2f} |",
            row["program"], row["n"], row["r"], row["compiled GB"], row["model GB"], row["ratio"],
        )  # fmt: skip


def one_core(run: dict[str, Any]) -> Texts:
    """What was timed on one core."""
    yield "One core: {}, with other work on the second core.", run["machine"]
    for scale in dict.fromkeys(row["scale"] for row in run["linear"]):
        ways = {row["way"]: row for row in run["linear"] if row["scale"] == scale}
        own, *others = (ways[name] for name in (REDUCED, AUTODIFF, TORCH) if name in ways)
        yield (
            "| {:g} | {} | {:.3f} s |" + " {:.3g} s | {:.0f} |" * len(others),
            scale, own["steps"], own["median s"],
            *(row[key] for row in others for key in ("median s", f"times {REDUCED}")),
        )  # fmt: skip
    yield (
        "All solutions lie within {:.0e} of each other",
        max(row["difference"] for row in run["linear"]),
    )

    fields = {(row["tokens"], row["way"]): row for row in run["attention"]}
    for n in (2048, 8192, 65536):
        blocks, apart = fields[n, BLOCKS], fields[n, GENERAL]
        dense = fields.get((n, DENSE))
        yield (
            "| {:,} | {:.2g} s | {:.2g} s | {} | {} |",
            n, blocks["median s"], apart["median s"],
            "" if dense is None else f"{dense['median s']:.2g} s",
            f"{blocks['peak GB']:.2f} GB" + ("" if dense is None else f", {dense['peak GB']:.2f} GB"),
        )  # fmt: skip
    time, memory = re.findall(r"\d+\.\d\d", slopes(run["attention"]))
    yield (
        "over the last three of {} sizes: time {}, memory that the program reserves {}.",
        "six" if len({row["tokens"] for row in run["attention"]}) == 6 else "?", time, memory,
    )  # fmt: skip

    for ridge in dict.fromkeys(row["ridge"] for row in run["context"]):
        own, *others = (row for row in run["context"] if row["ridge"] == ridge)
        yield (
            "| {:g} | {:.3f} s | {:.0e} |" + " {:.2f} s | {:.0f} | {:.0e} |" * len(others),
            ridge, own["median s"], own["gap"],
            *(row[key] for row in others for key in ("median s", f"times {VMAPPED}", "gap")),
        )  # fmt: skip

    yield (
        "results and gradients agree with one device to {:.0e} in float32",
        max(max(row["difference"], row["gradient's"]) for row in run["devices"]),
    )
    peak, attention, *_, h100, _ = run["rates"]
    yield (
        "(here {:.0f} GFLOP/s, {:.1f} Gexp/s, {:.0f} GB/s on one core)",
        peak["GFLOP/s"], peak["Gexp/s"], peak["GB/s"],
    )  # fmt: skip
    yield (
        "the model says {:.2g} s and {:.2g} s are measured.",
        attention["model s"], attention["median s"],
    )  # fmt: skip
    yield "n = 524,288 on an H100 or an H200 takes {:.2f} s a field", h100["model s"]

    many, long = (
        {row["way"]: 1e3 * row["median s"] for row in run["beliefs"] if row["problem"] == problem}
        for problem in ("10,000 sequences of 100", "one of 100,000")
    )
    yield (
        "On one CPU core the tree takes {:.0f} ms for 10,000 sequences of 100 tokens, where the scan takes "
        "{:.0f}, and {:.0f} ms for one of 100,000, where the scan takes {:.0f};",
        many[TREE], many[SCAN], long[TREE], long[SCAN],
    )  # fmt: skip


def tpu(rows: Rows) -> Texts:
    """What the TPU's compiler makes of the programs for a v5e."""
    v5e = {(row["program"], row["n"], row["r"]): row for row in rows if "v5e" in row["topology"]}
    for before, key in BEFORE.items():
        row = v5e[key]
        yield f"| {before} s |" + " {:.2g} s | {:.0f} MiB |", row["compiled s"], row["MiB"]
    gradient, strips, ring = (v5e[BEFORE[key]] for key in ("0.389", "0.135", "1.57"))
    yield (
        "a gradient costs {:.1f} times the products of strips.",
        gradient["Mcycles"] / strips["Mcycles"],
    )
    _, n, r = BEFORE["1.57"]
    sent = cost.attention_cost(n, r, way="ring of tiles", devices=256).exchanged
    yield (
        "A hop takes {:.1f} ms of computation and moves {:.1f} MB;",
        1e3 * ring["compiled s"] / 256, sent / 256 / 1e6,
    )  # fmt: skip
    scan = v5e["filter, scan", 256 * WORDS, 3]
    yield "by scan 1,000 x 256 tokens take {:.1f} ms:", 1e3 * scan["compiled s"]
    long, short = (v5e["filter, associative", n * WORDS, 3] for n in (256, 64))
    yield "{:,.0f}, 21 s | {:.1f}, 1.3 MiB |", round(1e3 * short["Mcycles"]) * 1e3, short["MiB"]
    yield (
        "| {:,.0f} ({:.1f} ms), 4 to 30 s | {:.1f}, 4.9 MiB |",
        round(1e3 * long["Mcycles"]) * 1e3, 1e3 * long["compiled s"], long["MiB"],
    )  # fmt: skip
    again = next(row for row in rows if row["topology"] == "v5p" and row["r"] == 32)
    yield "and into {:.0f} million cycles for a v5p", again["Mcycles"]


def cost_model(rows: Rows) -> Texts:
    """The compiler's cycles and the model's over these, a line for each program."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        program = row["program"] + ", 256 chips" * (row["topology"] == "v5e-256")
        size = f"{row['n']:,}, {row['r']}"
        if program.startswith("filter"):
            size = f"{WORDS:,} x {row['n'] // WORDS}"
        ratio = modelled(row) / (1e6 * row["Mcycles"])
        line = lines.setdefault((program, size), {})
        line[row["topology"].split("-")[0]] = f"{row['Mcycles']:,.4g}, {ratio:.2f}"
    for head, line in lines.items():
        yield "| {} | {} | {} | {} | {} |", *head, *(line.get(c, "") for c in ("v5e", "v5p", "v6e"))

    found: list[Any] = []
    for half in ("fixed", "tried"):
        own = [row for row in rows if row["constants"] == half]
        off = [100 * abs(modelled(row) / (1e6 * row["Mcycles"]) - 1) for row in own]
        found += [len(own), float(np.median(off)), max(off)]
    yield (
        "Of the {} rows that fix the constants all are within 30 % (the median is off by {:.0f} %, the worst "
        "by {:.0f} %), and so are the {} others ({:.0f} and {:.0f} %).",
        *found,
    )
    yield "arrays of few rows take {:.0f} cycles for 1024 numbers", cycles.CONSTANTS.narrow
    [ring] = (row for row in rows if row["program"] == "attention, ring" and row["r"] == 8)
    yield "The ring of rank 8 ({:.2f})", modelled(ring) / (1e6 * ring["Mcycles"])


# Seconds of programs before float32 products were packed, and what they are.
BEFORE = {
    "0.109": ("attention, Q = K", 2**16, 16), "6.6": ("attention, Q = K", 2**19, 16),
    "0.135": ("attention, Q and K", 2**16, 16), "0.389": ("attention, its gradient", 2**16, 16),
    "1.57": ("attention, ring", 2**22, 16),
}  # fmt: skip
SETTINGS = (
    "Medians of 7 rounds", "(2 of torchdiffeq",
    "n = 8000, f = 784, k = 10, t1 = 5, rtol 1e-5, atol 1e-7", "reverse term, rank 16, one core",
    "in 1,000 contexts of 50 labelled and 75 unlabelled tokens, 5 classes", "be below 1e-3",
    "scikit-learn, tol 1e-4", "scikit-learn, tol 1e-3", "n = 8192, r = 16", "n = 524,288",
    "at 1.5 GHz, rank 16", "| 65,536 |", "| 524,288 |", "| 4,194,304 |", "256 chips", "At rank 64",
    "17 rows and 65,536 columns", "16 x 16 chips", "128 x 128", "1024 numbers",
    "are within 30 %",
    "beyond 30 %", "four of the 19", "`Q = K`, 65,536, rank 32", "of rank 8", "1,000 x 16",
    "1,000 x 64", "1,000 x 256",
    "10,000 sequences of 100 tokens", "one of 100,000", "of (8000, 784)", "order 5", "order 3",
    "order 2",
    "(7, 8000, 784)", "44 calls", "8,000 rows", "tiles of 4096", "16 million entries", "50 MB of cache",
    "linear flow, n = 8000, f = 784, rows of θ of length 1 / 4",
    "batch 128, f = 784: 1 seed / 16 seeds", "256 sequences of 1,000 tokens",
    "attention, rank 16, both terms", "| 8,192 |", "| 262,144 |", "65,536 tokens at rank 1 / 32",
)  # fmt: skip
UNKEPT: dict[str, tuple[str, ...]] = {
    "an earlier version, compiled once": (
        *(f"| {seconds} s |" for seconds in BEFORE), "(0.91 s)", "the worst by 46 %", "drawn them to 7",
        "into 86", "704,000, 25 s", "315 MiB, 442 s", "10.9 million | 266 MiB",
    ),
    "compiled once, by hand": (
        "takes 298 ms", "347,000, 6 s | 0.3, 0.3 MiB", "21 s |", "1.3 MiB |", "4 to 30 s", "4.9 MiB |",
        "2.5 million | 73 MiB",
        "4.8 million | 146 MiB", "2.0 million | 1 MiB", "0.32 million | 1.4 MiB", "8 times cheaper",
        "took 11 minutes", "178, 122 and 18 MiB",
    ),
    "counted once on the devices of 16 x 16 chips": ("would cross 1.5 in", "1.06 and two"),
    "seen once": ("Of the peaks 0.4 GB",),
    "one GPU, lent once": (
        "the kernel takes 0.84 s",
        "0.60 instead of 0.89 ms and 0.43 instead of 0.54 ms (jax 0.11.2)",
        "(driver 580, jax 0.11.2, float32, host of 16 cores)",
        "to 1e-6 of the largest entry, compiled or not",
        "the linear flow to 3e-7", "18 / 17 ms", "20 / 33 ms", "34 / 45 ms", "1.2 / 3.0 s",
        "0.26 / 0.73 ms",
        "7.9 / 0.57 ms", "77 / 20 s", "| 0.5 ms | 1.4 ms | 2 MB, 136 MB |", "| 15 ms | 43 ms |",
        "| 0.21 s | 0.66 s | 67 MB, 238 MB |", "| 0.84 s | 2.6 s | 105 MB, 443 MB |",
        "14 / 21 ms against 30 / 53 ms", "exact to 1e-6", "of the CPU to 0.001",
    ),
}  # fmt: skip
