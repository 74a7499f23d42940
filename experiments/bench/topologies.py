"""Machines that are not at hand, as their compilers know them: TPUs by libtpu, an H100 by NVIDIA's compiler."""

import importlib.util
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from imr.errors import ImrError, missing_package

# The compiler's name of each topology of TPUs, and the clock of its cores in Hz: 275, 197, 459 and 918
# TFLOP/s in bfloat16 from 8, 4, 8 and 4 units of 128 x 128, 128 x 128, 128 x 128 and 256 x 256
# multipliers. None: not published.
LAYOUTS: dict[str, tuple[str, float | None]] = {
    "v4": ("v4:2x2x1", 1.05e9), "v5e": ("v5e:2x2", 1.5e9), "v5p": ("v5p:2x2x1", 1.75e9),
    "v6e": ("v6e:2x2", 1.75e9), "tpu7x": ("tpu7x:2x2x1", None), "v5e-256": ("v5e:16x16", 1.5e9),
}  # fmt: skip
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost", "TPU_STDERR_LOG_LEVEL": "3", "TF_CPP_MIN_LOG_LEVEL": "3",
}  # fmt: skip
# An H100 (SXM), as XLA describes it.
H100 = """
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


def check_topologies(names: Iterable[str]) -> None:
    """Demands names of known topologies of TPUs, and their compiler."""
    unknown = [name for name in names if name not in LAYOUTS]
    if unknown:
        raise ImrError(f"a topology must be one of {', '.join(LAYOUTS)}; found {unknown[0]!r}.")
    if importlib.util.find_spec("libtpu") is None:
        raise missing_package("libtpu", "tpu")


def tpus(name: str) -> list[Any]:
    """The devices of a topology, in a process that has `ENVIRONMENT`."""
    from jax.experimental import topologies

    check_topologies([name])
    return list(topologies.get_topology_desc(LAYOUTS[name][0], platform="tpu").devices)


def cuda_environment() -> dict[str, str]:
    """What a process needs to compile for an H100; the packages must be there."""
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise missing_package("jax-cuda13-plugin", "cuda")
    plugins = importlib.util.find_spec("jax_plugins")
    if plugins is None or importlib.util.find_spec("jax_plugins.xla_cuda13") is None:
        raise missing_package("jax-cuda13-pjrt", "cuda")
    nvidia = importlib.util.find_spec("nvidia")
    found = nvidia.submodule_search_locations if nvidia else None
    folders = [Path(each) / "cu13" for each in found or ()]
    folder = next((each for each in folders if (each / "bin").is_dir()), None)
    if folder is None:
        raise missing_package("nvidia-cuda-nvcc", "cuda")
    flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    return {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{flags} --xla_gpu_cuda_data_dir={folder}",
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
    }  # fmt: skip


def h100() -> Any:
    """An H100, in a process that has `cuda_environment`."""
    from jax._src import xla_bridge
    from jax.experimental import topologies

    # jax looks for a plugin only where it has not been told of a CPU.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        xla_bridge.discover_pjrt_plugins()
    return topologies.get_topology_desc(
        "", "cuda", target_config=H100, topology="1x1x1"
    ).devices[0]  # fmt: skip
