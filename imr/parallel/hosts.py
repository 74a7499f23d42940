"""Several processes: joining them, and agreement."""

import os
import socket
import time

import jax
import numpy as np

from imr._checks import check_count, check_positive
from imr.errors import ImrError

_VARIABLES = ("IMR_COORDINATOR", "IMR_NUM_PROCESSES", "IMR_PROCESS_ID")


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None,
    *, timeout: float = 300.0,
) -> None:  # fmt: skip
    """Connects this process with the other processes of a program that runs on several hosts.

    Call it before anything asks jax for its devices. Experiments call it themselves.

    Args:
      coordinator: host:port of process 0. Without arguments jax looks up the cluster: Cloud TPU,
        SLURM or GKE.
      num_processes, process_id: number of processes, and number of this one, from 0.
      timeout: seconds to wait for the others; after that jax ends process 0 with its own report.
    Raises: ImrError if the values do not fit, or the coordinator does not answer in time.
    """
    given = (coordinator, num_processes, process_id)
    if None in given and given != (None, None, None):
        raise ImrError(
            f"coordinator, num_processes and process_id go together; found {given}. Without all of "
            "them the cluster is looked up (Cloud TPU, SLURM, GKE)."
        )
    if coordinator is not None and num_processes is not None:
        check_count("num_processes", num_processes)
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise ImrError(f"coordinator must be host:port; found {coordinator!r}.")
        if not isinstance(process_id, int) or not 0 <= process_id < num_processes:
            last = num_processes - 1
            raise ImrError(f"process_id must lie in 0 to {last}; found {process_id!r}.")
        if process_id:
            _wait_for(host, int(port), timeout)
    # It affects only CPUs, whose processes communicate through it.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(*given, initialization_timeout=max(1, int(timeout)))
        if not jax.local_devices():
            raise RuntimeError("this process has no device: there are too many processes.")
    except (RuntimeError, ValueError) as error:
        where = "the cluster that was looked up" if coordinator is None else coordinator
        raise ImrError(
            f"the processes could not be connected through {where}: {' '.join(str(error).split())} "
            "Each process must run, with the same coordinator, the same number of processes and a "
            "different id, and nothing may have asked jax for devices before."
        ) from error


def _wait_for(host, port, timeout):
    """Waits until the coordinator listens; jax would end the process without naming the address."""
    end, problem = time.monotonic() + timeout, None
    while time.monotonic() < end:
        try:
            with socket.create_connection((host, port), timeout=min(5.0, timeout)):
                return
        except OSError as error:
            problem = error
            time.sleep(min(0.2, timeout))
    raise ImrError(
        f"coordinator {host}:{port} did not answer in {timeout:g} s ({problem}). Check that process 0 "
        "runs, that this host reaches it under this address, and that no firewall closes the port."
    )


def initialize_from_environment() -> None:
    """Calls `initialize` if a launcher has set the environment variables for it.

    `IMR_COORDINATOR`, `IMR_NUM_PROCESSES`, `IMR_PROCESS_ID` and `IMR_TIMEOUT` are its arguments;
    `IMR_DISTRIBUTED=1` calls it without arguments. If none is set, this is the only process.

    Raises: ImrError if only some are set, or one is no number.
    """
    given = [os.environ.get(name) for name in _VARIABLES]
    if not any(given):
        joined = os.environ.get("IMR_DISTRIBUTED", "0")
        if joined not in ("0", "1"):
            raise ImrError(f"IMR_DISTRIBUTED must be 0 or 1; found {joined!r}.")
        if joined == "1":
            initialize()
        return
    wait = os.environ.get("IMR_TIMEOUT", "300")
    try:
        count, number = map(int, given[1:])  # pyright: ignore[reportArgumentType]
        timeout = float(wait)
    except (TypeError, ValueError):
        raise ImrError(
            f"{', '.join(_VARIABLES)} must be an address and two integers, IMR_TIMEOUT seconds; found "
            f"{given} and {wait!r}."
        ) from None
    check_positive("IMR_TIMEOUT", timeout)
    initialize(given[0], count, number, timeout=timeout)


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
