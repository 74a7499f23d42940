"""A real SLURM of two virtual nodes on this machine: Debian's packages slurm-wlm and munge, as root."""

import contextlib
import fcntl
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tests.signals import free_port

HOSTS = Path("/etc/hosts")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
FILES = {
    "slurm.conf": """
ClusterName=imr
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
EnforcePartLimits=ALL
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=60
SchedulerParameters=sched_interval=2,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{second}] CPUs=4 RealMemory=8000 Gres=gpu:1
NodeName=nowhere[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{third}-{fourth}] CPUs=4 RealMemory=8000
PartitionName=low Nodes=n[1-2] Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=60
PartitionName=high Nodes=n[1-2] MaxTime=60 PriorityTier=10 PreemptMode=OFF
PartitionName=unnamed Nodes=nowhere[1-2] PriorityTier=1
PartitionName=closed Nodes=n[1-2] AllowAccounts=others
""",
    "gres.conf": "NodeName=n[1-2] Name=gpu File={folder}/gpu\n",
}


class Slurm:
    """A SLURM that runs; `environment` has its commands speak to it."""

    def __init__(self, folder):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("IMR_", "XLA_FLAGS"))}
        self.folder, self.environment = folder, kept | {"SLURM_CONF": f"{folder}/slurm.conf"}

    def __call__(self, *words, **options):
        done = subprocess.run(
            words, env=self.environment, text=True, capture_output=True, **options
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def show(self, job):
        """What `scontrol show job` says, by name."""
        text = self("scontrol", "show", "job", "-o", str(job))
        return dict(re.findall(r"(\w[\w:/]*)=(\S*)", text))

    def wait(self, job, until, seconds=240):
        """Waits until `until(show(job))`, without the pause of two minutes before a job runs again.

        A node refuses what starts within the second in which it has ended the job before: some remain.
        """
        end = time.monotonic() + seconds
        queued = time.monotonic()
        while not until(shown := self.show(job)):
            assert time.monotonic() < end, (shown, self.log(job))
            if shown["JobState"] != "PENDING" or not int(shown["Restarts"]):
                queued = time.monotonic()
            elif time.monotonic() - queued > 3:
                subprocess.run(
                    ["scontrol", "update", f"JobId={job}", "StartTime=now"], env=self.environment,
                    capture_output=True,
                )  # fmt: skip
            time.sleep(0.3)
        return shown

    def log(self, job):
        path = Path(self.show(job)["StdOut"])
        return path.read_text() if path.exists() else ""


def missing():
    """What this machine lacks for a SLURM, or nothing."""
    lacks = [name for name in PROGRAMS if shutil.which(name) is None]
    return ", ".join(lacks) or ("" if os.geteuid() == 0 else "the rights of root")


@contextlib.contextmanager
def alone():
    """Waits until no other process of this machine is within: names of nodes are in one file for all."""
    with (Path(tempfile.gettempdir()) / "imr-slurm.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def running(folder):
    """A SLURM with its files in a folder, ended with all that it started at the end of the statement.

    Of several processes that ask for one, each waits for the one before.
    """
    with alone():
        yield from _running(folder)


def _running(folder):
    first = free_port()  # of six in a row
    values = {
        "host": socket.gethostname().split(".")[0], "folder": folder, "port": first,
        "first": first + 1, "second": first + 2, "third": first + 3, "fourth": first + 4,
    }  # fmt: skip
    for name, text in FILES.items():
        (folder / name).write_text(text.format(**values).lstrip())
    for name in ("state", "spool"):
        (folder / name).mkdir()
    # What counts as a GPU is a device like /dev/null.
    os.mknod(folder / "gpu", 0o20666, os.makedev(1, 3))
    slurm, before = Slurm(folder), HOSTS.read_text()
    daemons = []

    def start(*words):
        with (folder / f"{len(daemons)}.log").open("w") as log:
            daemons.append(subprocess.Popen(words, env=slurm.environment, stdout=log, stderr=log))

    try:
        # Programs dial the first node by its name.
        HOSTS.write_text(before.rstrip("\n") + "\n127.0.0.1 n1 n2\n")
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        munge = [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed", "key")]
        start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge)
        start("slurmctld", "-D")
        for node in ("n1", "n2", "nowhere1", "nowhere2"):
            start("slurmd", "-D", "-N", node)
        end = time.monotonic() + 60
        while True:
            ask = ["sinfo", "-h", "-N", "-o", "%t"]
            states = subprocess.run(ask, env=slurm.environment, capture_output=True, text=True)
            if set(states.stdout.split()) == {"idle"}:
                break
            assert time.monotonic() < end, (states, [p.read_text() for p in folder.glob("*.log")])
            time.sleep(0.3)
        yield slurm
        slurm("scancel", "--full", "--signal=KILL", "--user=root")
        slurm("scancel", "--user=root")
    finally:
        HOSTS.write_text(before)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in reversed(daemons):
            daemon.wait(timeout=60)
