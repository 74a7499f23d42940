"""What NVIDIA's compiler makes of the programs for an H100, on a machine without a GPU: bytes and memory.

A process of its own loads the compiler: `python -m experiments.bench.cuda`.
"""

import importlib.util
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from experiments.bench.programs import traffic
from experiments.bench.rounds import in_process
from imr.attention import attention_products
from imr.attention.platforms import GPU
from imr.errors import missing_package
from imr.parallel import cost

SIZES = {
    "Q = K": ((2**13, 16), (2**16, 16), (2**19, 16), (2**16, 64)),
    "Q and K": ((2**16, 16), (2**16, 64)),
}
# An H100 (SXM), as XLA describes it.
TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 7 }
runtime_version { major: 13 minor: 0 patch: 0 } device_description_str: "NVIDIA H100 80GB HBM3"
"""
FORMATS = {
    "compiled GB": ".4g",
    "model GB": ".4g",
    "ratio": ".2f",
    "MiB": ".1f",
    "compiling s": ".0f",
}


def measure(config: Any) -> tuple[str, list[dict[str, Any]]]:
    """A row for each program."""
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise missing_package("jax-cuda13-plugin", "cuda")
    nvidia = importlib.util.find_spec("nvidia")
    folders = (
        [Path(each) / "cu13" for each in nvidia.submodule_search_locations or ()] if nvidia else []
    )
    folder = next((each for each in folders if (each / "bin").is_dir()), None)
    if folder is None:
        raise missing_package("nvidia-cuda-nvcc", "cuda")
    flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    rows = in_process(
        "cuda", int(config.smoke), JAX_PLATFORMS="cpu",
        XLA_FLAGS=f"{flags} --xla_gpu_cuda_data_dir={folder}",
        PATH=f"{folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
    )  # fmt: skip
    return (
        "Compiled ahead of time for an H100, nothing is run: the tiles and strips that XLA makes where no GPU is at "
        "hand. `compiled GB`: what the operations of the program read and write, loops by their lengths. `model GB`: "
        "imr.parallel.cost, nothing fitted. `MiB`: temporaries."
    ), rows


def compiled(smoke: bool) -> list[dict[str, Any]]:
    """The rows, in a process that has the compiler."""
    from jax.experimental import topologies

    _discover()
    description = topologies.get_topology_desc("", "cuda", target_config=TARGET, topology="1x1x1")
    place = SingleDeviceSharding(np.asarray(description.devices).flat[0])
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
                    "compiled GB": size / 1e9, "model GB": model.bytes / 1e9, "ratio": size / model.bytes,
                    "MiB": memory.temp_size_in_bytes / 2**20, "compiling s": seconds,
                }
            )  # fmt: skip
    return rows


def _discover() -> None:
    """Makes the plugin known to jax, which looks for one only where it has not been told of a CPU."""
    from jax._src import xla_bridge

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        xla_bridge.discover_pjrt_plugins()


if __name__ == "__main__":
    print(json.dumps(compiled(bool(int(sys.argv[1])))))
