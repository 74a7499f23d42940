"""The ring over 1, 2, 4 and 8 devices that one CPU pretends to be: results and bytes, not speed.

A process of its own has the devices: `python -m experiments.bench.devices N`.
"""

import json
import math
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench.programs import total
from experiments.bench.rounds import difference, in_process
from imr.attention import attention_products
from imr.parallel import cost, make_mesh

RANK = 16
DEVICES = (1, 2, 4, 8)
FORMATS = {
    "difference": ".1e", "gradient's": ".1e", "MB sent, compiled": ".3f", "MB sent, model": ".3f"
}  # fmt: skip


def measure(config: Any) -> tuple[str, list[dict[str, Any]]]:
    """A row for each number of devices."""
    n = 511 if config.smoke else 4095  # one less than what tiles divide
    flags = "--xla_force_host_platform_device_count=8"
    rows = in_process("devices", n, XLA_FLAGS=flags, NPROC="32", JAX_PLATFORMS="cpu")
    return (
        f"attention_products of {n} rows, rank {RANK}, float32, over devices that are threads of this CPU: "
        "their speed means nothing and is not given. `difference`: from one device without a mesh, "
        "largest over the largest entry. `MB sent`: by each device, counted in the compiled program, and by "
        "imr.parallel.cost."
    ), rows


def compare(n: int) -> list[dict[str, Any]]:
    """A row for each number of devices, in a process that has eight."""
    q = jax.random.normal(jax.random.key(0), (n, RANK)) / RANK**0.25

    def run(q, mesh):
        def scalar(q):
            found = attention_products(q, mesh=mesh, block=n if mesh is None else None)
            return jnp.sum(found[0] ** 2) + jnp.sum(found[1] ** 2), found

        return jax.value_and_grad(scalar, has_aux=True)(q)

    (_, wanted), slope = jax.jit(lambda q: run(q, None))(q)
    rows = []
    for count in DEVICES:
        mesh = make_mesh(count)
        (_, products), gradient = jax.jit(lambda q, mesh=mesh: run(q, mesh))(q)
        program = jax.jit(lambda q, mesh=mesh: attention_products(q, mesh=mesh)).lower(q).compile()
        model = cost.attention_cost(n + -n % count, RANK, way="ring of tiles", devices=count)
        rows.append(
            {
                "devices": count, "difference": max(map(difference, products, wanted)),
                "gradient's": difference(gradient, slope),
                "MB sent, compiled": permuted(program.as_text() or "") / 1e6,
                "MB sent, model": model.exchanged / 1e6,
            }
        )  # fmt: skip
    return rows


def permuted(text: str) -> float:
    """Bytes that the collective permutations of a program send."""
    size = {"f32": 4, "pred": 1, "s32": 4}

    def amount(line: str, _: str) -> float:
        if not re.search(r" = .* collective-permute\(", line):
            return 0.0
        shapes = re.findall(r"(f32|pred|s32)\[([\d,]*)\]", line.split(" collective-permute")[0])
        return sum(
            size[kind] * math.prod(int(d) for d in dims.split(",") if d) for kind, dims in shapes
        )

    return total(text, amount)


if __name__ == "__main__":
    print(json.dumps(compare(int(sys.argv[1]))))
