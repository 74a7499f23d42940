"""Several processes: joining them, and agreement."""

import os
import re
import socket
import sys
import time

import jax
import numpy as np

from imr._checks import check_count, check_positive
from imr.errors import ImrError

_VARIABLES = ("IMR_COORDINATOR", "IMR_NUM_PROCESSES", "IMR_PROCESS_ID")
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_SECONDS = 30.0  # after which a process that waits says for what


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None,
    *, timeout: float | None = None,
) -> None:  # fmt: skip
    """Connects this process with the other processes of a program that runs on several hosts.

    Call it before anything asks jax for its devices. Experiments call it themselves.

    Args:
      coordinator: host:port of process 0. Without arguments they are the environment variables
        `IMR_COORDINATOR`, `IMR_NUM_PROCESSES` and `IMR_PROCESS_ID`, or the cluster is looked up: SLURM,
        Cloud TPU or GKE. Outside of all it is the only process, unless `IMR_DISTRIBUTED=1`.
      num_processes, process_id: number of processes, and number of this one, from 0.
      timeout: seconds to wait for the others, by default `IMR_TIMEOUT` or 300; after that jax ends
        process 0 with its own report.
    Raises: ImrError if the values do not fit, or the coordinator does not answer in time.
    """
    given = (coordinator, num_processes, process_id)
    if None in given and given != (None, None, None):
        raise ImrError(
            f"coordinator, num_processes and process_id go together; found {given}. Without all of "
            "them the cluster is looked up (Cloud TPU, SLURM, GKE)."
        )
    if coordinator is None:
        coordinator, num_processes, process_id = given = _of_environment() or _slurm() or given
    timeout = _timeout() if timeout is None else timeout
    if coordinator is not None and num_processes is not None:
        check_count("num_processes", num_processes)
        host, _, port = coordinator.rpartition(":")
        if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
            raise ImrError(f"coordinator must be host:port; found {coordinator!r}.")
        if not isinstance(process_id, int) or not 0 <= process_id < num_processes:
            last = num_processes - 1
            raise ImrError(f"process_id must lie in 0 to {last}; found {process_id!r}.")
        _wait_for(host, int(port), process_id, timeout)
    # It affects only CPUs, whose processes communicate through it.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM from whoever handles it, such as `imr.parallel.stop_on_signals`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(*given, initialization_timeout=max(1, int(timeout)))
        if not jax.local_devices():
            raise RuntimeError("this process has no device: there are too many processes.")
    except (RuntimeError, ValueError) as error:
        if _alone(error):
            jax.config.update("jax_cpu_collectives_implementation", None)
            print("imr: no cluster is found; this is the only process", file=sys.stderr, flush=True)
            return
        where = "the cluster that was looked up" if coordinator is None else coordinator
        raise ImrError(
            f"the processes could not be connected through {where}: {' '.join(str(error).split())} "
            "Each process must run, with the same coordinator, the same number of processes and a "
            "different id, and nothing may have asked jax for devices before."
        ) from error


def _alone(error: Exception) -> bool:
    """Whether jax has found no cluster, though no launcher says that there is one."""
    found_none = str(error) == "coordinator_address should be defined."
    return found_none and os.environ.get("IMR_DISTRIBUTED", "0") != "1"


def _slurm() -> tuple[str, int, int] | None:
    """Coordinator, number of processes and number of this one in a step of SLURM, as jax has them.

    Looked up here, so that `_wait_for` can say what is wrong with the address.
    """
    values = [os.environ.get(name) for name in _SLURM]
    if (
        None in values or not str(values[0]).isdecimal() or "OMPI_MCA_orte_hnp_uri" in os.environ
    ):  # by which jax prefers Open MPI
        return None
    job, nodes, count, number, _ = map(str, values)
    # The first of node07,x or of node[07-12],x.
    first = re.match(r"([^,[]*)(?:\[(\d+)[^]]*\]([^,[]*))?", nodes)
    host = "".join(part or "" for part in first.groups()) if first else nodes
    port = os.environ.get("JAX_COORDINATOR_PORT") or 2**16 - 2**12 + int(job) % 2**12
    return f"{host}:{port}", int(count), int(number)


def _wait_for(host: str, port: int, process_id: int, timeout: float) -> None:
    """Waits until the coordinator listens; jax would end the process without naming the address."""
    start, said, problem = time.monotonic(), 0.0, None
    while (waited := time.monotonic() - start) < timeout:
        try:
            socket.getaddrinfo(host, port)
            if process_id == 0:
                return
            with socket.create_connection((host, port), timeout=min(5.0, timeout)):
                return
        except OSError as error:
            problem = error
        if waited - said > _SECONDS:
            if isinstance(problem, socket.gaierror):  # which no later start of process 0 can mend
                break
            said = waited
            print(f"waiting for coordinator {host}:{port} ({problem})", file=sys.stderr, flush=True)
        time.sleep(min(0.2, timeout))
    raise ImrError(
        f"coordinator {host}:{port} did not answer in {min(waited, timeout):.1f} s ({problem}). Check that "
        "process 0 runs, that this host reaches it under this address, and that no firewall closes the "
        "port."
    )


def initialize_from_environment() -> None:
    """Calls `initialize` without arguments if a launcher has set the environment variables for it.

    They are `IMR_COORDINATOR`, `IMR_NUM_PROCESSES` and `IMR_PROCESS_ID`, or `IMR_DISTRIBUTED=1` for a
    cluster that is looked up. If none is set, this is the only process.

    Raises: ImrError if only some are set, or one is no number.
    """
    joined = os.environ.get("IMR_DISTRIBUTED", "0")
    if joined not in ("0", "1"):
        raise ImrError(f"IMR_DISTRIBUTED must be 0 or 1; found {joined!r}.")
    if joined == "1" or _of_environment() is not None:
        initialize()


def is_one_of_several() -> bool:
    """Whether this process has joined others, or a launcher has set the variables by which it will."""
    variables = [os.environ.get(name, "") for name in ("IMR_DISTRIBUTED", *_VARIABLES)]
    return jax.distributed.is_initialized() or any(each not in ("", "0") for each in variables)


def _of_environment() -> tuple[str, int, int] | None:
    given = [os.environ.get(name, "") for name in _VARIABLES]
    if not any(given):
        return None
    try:
        return given[0], int(given[1]), int(given[2])
    except ValueError:
        raise ImrError(
            f"{', '.join(_VARIABLES)} must be an address and two integers; found {given}."
        ) from None


def _timeout() -> float:
    wait = os.environ.get("IMR_TIMEOUT", "300")
    try:
        timeout = float(wait)
    except ValueError:
        raise ImrError(f"IMR_TIMEOUT must be a number of seconds; found {wait!r}.") from None
    check_positive("IMR_TIMEOUT", timeout)
    return min(timeout, 1e9)  # which is as long as inf for what counts in integers


def is_first() -> bool:
    """Whether this is process 0, the one that writes files and prints."""
    return jax.process_index() == 0


def agreed(flag: bool) -> bool:
    """Whether the flag is set in any process; all processes must call this together.

    Args:
      flag: of this process.
    """
    return bool(largest(bool(flag)))


def largest(value: int) -> int:
    """The largest of the values of all processes, which must call this together.

    Args:
      value: of this process.
    """
    if jax.process_count() == 1:
        return int(value)
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.asarray(value, np.int32))))
