"""What the TPU's own compiler says of the programs, on a machine without a TPU: cycles and memory.

A process of its own loads the compiler: `python -m experiments.bench.tpu TOPOLOGY...`.
"""

import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.bench.programs import cycles
from experiments.bench.rounds import in_process
from experiments.bench.topologies import ENVIRONMENT, LAYOUTS, check_topologies, tpus
from imr.attention import attention_products
from imr.beliefs import bayes_filter
from imr.errors import ImrError
from imr.parallel import cycles as model
from imr.parallel import make_mesh
from imr.processes import mess3

CORES = {"v5e": model.V5E, "v5p": model.V5P, "v6e": model.V6E}
WAYS = {
    "Q = K": "tiles", "Q and K": "strips", "its gradient": "gradient", "ring": "ring of tiles",
}  # fmt: skip
WORDS = 1000
FORMATS = {
    "Mcycles": ".4g", "model Mcycles": ".4g", "ratio": ".2f", "compiled s": ".3g", "MiB": ".1f",
    "compiling s": ".0f",
}  # fmt: skip


def measure(config: Any) -> tuple[str, list[dict[str, Any]]]:
    """A row for each program and topology."""
    names = config.topologies[:1] if config.smoke else config.topologies
    check_topologies(names)
    rows = in_process("tpu", *names, **ENVIRONMENT)
    return (
        "Compiled ahead of time by the TPU's compiler (libtpu), nothing is run. `Mcycles`: its estimate, loops by "
        "their lengths, in millions, per device; `compiled s`: at the clock of the cores. `model Mcycles`: "
        "imr.parallel.cycles, whose constants are those of the rows `fixed`; on the rows `tried` they are tried. "
        "`MiB`: arguments, results and temporaries of a device."
    ), rows


def modelled(
    row: dict[str, Any], constants: model.Constants = model.CONSTANTS,
    v5e: float = model.V5E.exponentials, v6e: float = model.V6E.exponentials,
) -> float:  # fmt: skip
    """The cycles that `imr.parallel.cycles` gives the program of a row."""
    exponentials = {"v5e": v5e, "v5p": v5e / 2, "v6e": v6e}  # a v5p has two cores of a v5e
    chip = row["topology"].split("-")[0]
    core = CORES[chip]._replace(exponentials=exponentials[chip])
    kind, what = row["program"].split(", ", 1)
    if kind == "filter":
        return model.filter_cycles(row["n"] // WORDS, core, way=what, constants=constants)
    devices = 256 if what == "ring" else 1
    return model.attention_cycles(
        row["n"], row["r"], core, way=WAYS[what], devices=devices, constants=constants
    )


class Program(NamedTuple):
    """A program of the table: what it is, how large, and how it is called."""

    what: str
    n: int
    r: int
    function: Any
    array: Any


def apart(q):
    """Products whose keys are not the queries."""
    return attention_products(q, 2 * q)


def gradient(q):
    """The gradient of the sum of both products, with keys that are the queries."""
    return jax.grad(lambda q: sum(jnp.sum(x) for x in attention_products(q)))(q)


# (n, rank) of the programs of attention, and the length of 1,000 words of Mess3: those on which the
# constants of imr.parallel.cycles are fixed, and those on which they are tried.
SIZES = {
    "fixed": {
        "Q = K": ((2**16, 16), (2**16, 32), (2**19, 16)), "Q and K": ((2**16, 16), (2**16, 64)),
        "its gradient": ((2**16, 16),), "ring": ((2**22, 16),), "filter": (256,),
    },
    "tried": {
        "Q = K": ((2**15, 8), (2**18, 16)), "Q and K": ((2**15, 8),),
        "its gradient": ((2**15, 8),), "ring": ((2**22, 8),), "filter": (64,),
    },
}  # fmt: skip


def programs(mesh: Mesh, half: str) -> Iterator[Program]:
    """Those for the devices of a mesh: the ring for several, the rest for one."""
    sizes: dict[str, Any] = SIZES[half]
    functions = {"Q = K": attention_products, "Q and K": apart, "its gradient": gradient}
    if mesh.size > 1:
        functions = {"ring": partial(attention_products, mesh=mesh)}
    for what, function in functions.items():
        for n, r in sizes[what]:
            array = jax.ShapeDtypeStruct((n, r), jnp.float32)
            yield Program(f"attention, {what}", n, r, function, array)
    process = mess3(0.15, 0.6)
    for length in () if mesh.size > 1 else sizes["filter"]:
        words = jax.ShapeDtypeStruct((WORDS, length), jnp.int32)
        for way in ("scan", "associative"):
            by_way = partial(bayes_filter, process, method=way)
            yield Program(f"filter, {way}", words.size, process.num_states, by_way, words)


def compiled(names: list[str]) -> list[dict[str, Any]]:
    """The rows of some topologies, in a process that has the compiler."""
    check_topologies(names)
    rows = []
    for name in names:
        devices, clock = tpus(name), LAYOUTS[name][1]
        mesh = make_mesh(None if len(devices) > 8 else 1, devices=devices)
        across = NamedSharding(mesh, PartitionSpec("rows"))
        halves = [(half, program) for half in SIZES for program in programs(mesh, half)]
        for half, (what, n, r, function, array) in halves:
            start = time.perf_counter()
            array = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=across)
            program = jax.jit(function).lower(array).compile()
            seconds = time.perf_counter() - start
            memory: Any = program.memory_analysis()
            size = memory.argument_size_in_bytes + memory.output_size_in_bytes
            size += memory.temp_size_in_bytes - memory.alias_size_in_bytes
            count = cycles(program.as_text() or "")
            row = {"program": what, "n": n, "r": r, "platform": "tpu", "topology": name}
            row |= {"constants": half, "Mcycles": count / 1e6}
            if name.split("-")[0] in CORES:
                row |= {"model Mcycles": modelled(row) / 1e6, "ratio": modelled(row) / count}
            row |= {"compiled s": count / clock} if clock else {}
            rows.append(row | {"MiB": size / 2**20, "compiling s": seconds})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    try:
        print(json.dumps(compiled(sys.argv[1:])))
    except ImrError as error:
        raise SystemExit(f"error: {error}") from None
