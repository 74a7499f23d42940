"""What NVIDIA's compiler makes of the programs for an H100, on a machine without a GPU: bytes and memory.

A process of its own loads the compiler: `python -m experiments.bench.cuda`.
"""

import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from experiments.bench.programs import traffic
from experiments.bench.rounds import in_process
from experiments.bench.topologies import cuda_environment, h100
from imr.attention import attention_products
from imr.attention.platforms import GPU
from imr.parallel import cost

SIZES = {
    "Q = K": ((2**13, 16), (2**16, 16), (2**19, 16), (2**16, 64)),
    "Q and K": ((2**16, 16), (2**16, 64)),
}
FORMATS = {
    "compiled GB": ".4g",
    "model GB": ".4g",
    "ratio": ".2f",
    "MiB": ".1f",
    "compiling s": ".0f",
}


def measure(config: Any) -> tuple[str, list[dict[str, Any]]]:
    """A row for each program."""
    rows = in_process("cuda", int(config.smoke), **cuda_environment())
    return (
        "Compiled ahead of time for an H100, nothing is run: the tiles and strips that XLA makes where no GPU is at "
        "hand. `compiled GB`: what the operations of the program read and write, loops by their lengths. `model GB`: "
        "imr.parallel.cost, nothing fitted. `MiB`: temporaries."
    ), rows


def compiled(smoke: bool) -> list[dict[str, Any]]:
    """The rows, in a process that has the compiler."""
    place = SingleDeviceSharding(h100())
    functions: Any = {
        "Q = K": attention_products,
        "Q and K": lambda q: attention_products(q, 2 * q),
    }
    rows = []
    for what, sizes in SIZES.items():
        for n, r in sizes[:1] if smoke else sizes:
            start = time.perf_counter()
            array = jax.ShapeDtypeStruct((n, r), jnp.float32, sharding=place)
            program = jax.jit(functions[what]).lower(array).compile()
            seconds = time.perf_counter() - start
            memory: Any = program.memory_analysis()
            way, block = ("tiles", GPU.tile) if what == "Q = K" else ("strips", GPU.strip_size(n))
            model = cost.attention_cost(n, r, way=way, block=block, cache=cost.H100_CACHE)
            size = traffic(program.as_text() or "")
            rows.append(
                {
                    "program": f"attention, {what}", "n": n, "r": r, "platform": "cuda", "topology": "H100",
                    "compiled GB": size / 1e9, "model GB": model.bytes / 1e9, "ratio": model.bytes / size,
                    "MiB": memory.temp_size_in_bytes / 2**20, "compiling s": seconds,
                }
            )  # fmt: skip
    return rows


if __name__ == "__main__":
    print(json.dumps(compiled(bool(int(sys.argv[1])))))
