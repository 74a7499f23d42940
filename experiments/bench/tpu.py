"""What the TPU's own compiler says of the programs, on a machine without a TPU: cycles and memory.

A process of its own loads the compiler: `python -m experiments.bench.tpu TOPOLOGY...`.
"""

import importlib.util
import json
import re
import sys
import time
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.bench.rounds import in_process
from imr.attention import attention_products
from imr.beliefs import bayes_filter
from imr.errors import ImrError, missing_package
from imr.parallel import cost
from imr.processes import mess3

RANK = 16
# The compiler's name of each topology, and the clock of its cores in Hz: 197, 459 and 918 TFLOP/s in
# bfloat16 from 4, 8 and 4 units of 128 x 128, 128 x 128 and 256 x 256 multipliers.
LAYOUTS = {
    "v5e": ("v5e:2x2", 1.5e9), "v5p": ("v5p:2x2x1", 1.75e9), "v6e": ("v6e:2x2", 1.75e9),
    "v5e-256": ("v5e:16x16", 1.5e9),
}  # fmt: skip
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost", "TPU_STDERR_LOG_LEVEL": "3", "TF_CPP_MIN_LOG_LEVEL": "3",
}  # fmt: skip
FORMATS = {
    "compiled s": ".3g",
    "model s": ".3g",
    "ratio": ".2f",
    "MiB": ".1f",
    "compiling s": ".0f",
}


def measure(config: Any) -> tuple[str, list[dict[str, Any]]]:
    """A row for each program and topology."""
    if importlib.util.find_spec("libtpu") is None:
        raise missing_package("libtpu", "tpu")
    rows = in_process(
        "tpu", *(config.topologies[:1] if config.smoke else config.topologies), **ENVIRONMENT
    )
    return (
        "Compiled ahead of time by the TPU's compiler (libtpu), nothing is run. `compiled s`: its estimate of "
        "cycles, loops by their lengths, at the clock of the cores, per device. `model s`: imr.parallel.cost at "
        "published peaks, for v5e. `MiB`: arguments, results and temporaries of a device."
    ), rows


def programs(topology: str, devices: Any):
    """(name, n, function, array, mesh, cost by the model or None) of the programs for a topology."""

    def rows(n):
        return jax.ShapeDtypeStruct((n, RANK), jnp.float32)

    if len(devices) > 4:
        n, mesh = 2**22, Mesh(devices, ("rows",), axis_types=(AxisType.Auto,))
        model = cost.attention_cost(n, RANK, way="ring", devices=devices.size)
        yield "attention, ring", n, partial(attention_products, mesh=mesh), rows(n), mesh, model
        return
    mesh = Mesh(devices[:1], ("rows",), axis_types=(AxisType.Auto,))

    def gradient(q):
        return jax.grad(lambda q: sum(jnp.sum(x) for x in attention_products(q)))(q)

    def apart(q):
        return attention_products(q, 2 * q)

    for n in (2**16, 2**19):
        tiles = cost.attention_cost(n, RANK, way="tiles", block=2048)
        yield "attention, Q = K", n, attention_products, rows(n), mesh, tiles
    strips = cost.attention_cost(2**16, RANK, way="strips", block=256)
    yield "attention, Q and K", 2**16, apart, rows(2**16), mesh, strips
    yield "attention, its gradient", 2**16, gradient, rows(2**16), mesh, None
    words = jax.ShapeDtypeStruct((1000, 256), jnp.int32)
    for way in ("scan", "associative"):
        by_way = partial(bayes_filter, mess3(0.15, 0.6), method=way)
        yield f"filter, {way}", words.size, by_way, words, mesh, None


def compiled(names: list[str]) -> list[dict[str, Any]]:
    """The rows of some topologies, in a process that has the compiler."""
    from jax.experimental import topologies

    rows = []
    for name in names:
        layout, clock = LAYOUTS[name]
        devices = np.asarray(topologies.get_topology_desc(layout, platform="tpu").devices)
        for what, n, function, array, mesh, model in programs(name, devices):
            across = NamedSharding(mesh, PartitionSpec("rows"))
            start = time.perf_counter()
            program = jax.jit(function).lower(
                jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=across)
            )
            program = program.compile()
            seconds = time.perf_counter() - start
            memory: Any = program.memory_analysis()
            size = memory.argument_size_in_bytes + memory.output_size_in_bytes
            size += memory.temp_size_in_bytes - memory.alias_size_in_bytes
            row = {
                "program": what, "n": n, "platform": "tpu", "topology": name,
                "compiled s": cycles(program.as_text() or "") / clock,
            }  # fmt: skip
            if model is not None and name.startswith("v5e"):
                row["model s"] = cost.seconds(model, cost.V5E, mesh.size)
                row["ratio"] = row["compiled s"] / row["model s"]
            rows.append(row | {"MiB": size / 2**20, "compiling s": seconds})
    return rows


def cycles(text: str) -> float:
    """The estimated cycles of a compiled program; of branches, the last, which is the case wanted.

    The compiler writes its estimate beside each operation; a loop's number of passes is the constant
    that its condition compares with. Branches: `lax.cond` puts that of False first.
    """
    starts = re.finditer(r"^(ENTRY )?%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", text, re.M | re.S)
    bodies = {match[2]: match for match in starts}

    def passes(condition: str) -> int:
        counts = re.findall(r" s32\[\][^=\n]*constant\((\d+)\)", bodies[condition][3])
        if len(counts) != 1:
            raise ImrError(
                f"the length of a loop must be a constant; found {counts} in {condition}."
            )
        return int(counts[0])

    @cache
    def total(name: str) -> float:
        found = 0.0
        for line in bodies[name][3].splitlines():
            if estimate := re.search(r'"estimated_cycles":"(\d+)"', line):
                found += int(estimate[1])
            if loop := re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
                found += passes(loop[1]) * total(loop[2])
            if branches := re.search(r" conditional\(.*branch_computations=\{([^}]*)\}", line):
                found += total(branches[1].split(",")[-1].strip().lstrip("%"))
            if branch := re.search(r" conditional\(.*true_computation=%?([\w.\-]+)", line):
                found += total(branch[1])
            if called := re.search(r" call\(.*to_apply=%?([\w.\-]+)", line):
                found += total(called[1])
        return found

    return total(next(name for name, match in bodies.items() if match[1]))


if __name__ == "__main__":
    print(json.dumps(compiled(sys.argv[1:])))
