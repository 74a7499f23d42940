"""A pretended gcloud: its slices are folders, their workers processes of this machine.

`PRETENDED_GCLOUD` is the folder of slices, and `calls.log` in it has every call. A test takes a slice
away by `preempt` or `suspend`, cuts all connections while there is a file `cut`, or that to the last
worker, once, by a file `half` with words of a command; `denied` has gcloud refuse to describe anything.
"""

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

FOLDER = Path(os.environ.get("PRETENDED_GCLOUD", "."))
HOSTS = {"v5litepod-8": 1, "v4-16": 2}
LOST = 255
LAUNCH = ".imr-launch"  # where the launcher keeps what it makes on a worker
UV = """#!/usr/bin/env bash
if [ "$1" = venv ]; then
  mkdir -p imr-env/bin
  printf '#!/usr/bin/env bash\\nexec %q "$@"\\n' {python} >imr-env/bin/python
  chmod +x imr-env/bin/python
fi
"""


# By the last words of a command: flags of it that the real one has, with a value and without.
_PLACE = ("--zone", "--project")
KNOWN = {
    "storage cat": ((), ()), "storage ls": ((), ()), "storage rsync": ((), ("--recursive",)),
    "queued-resources create": (
        (*_PLACE, "--node-id", "--accelerator-type", "--runtime-version", "--network", "--service-account", "--labels"),
        ("--spot", "--internal-ips"),
    ),
    "queued-resources describe": ((*_PLACE, "--format"), ()), "tpu-vm describe": ((*_PLACE, "--format"), ()),
    "queued-resources delete": (_PLACE, ("--force", "--quiet")), "tpu-vm delete": (_PLACE, ("--quiet",)),
    "tpu-vm ssh": ((*_PLACE, "--worker", "--command"), ("--internal-ip",)),
    "tpu-vm scp": ((*_PLACE, "--worker"), ("--recurse", "--internal-ip")),
}  # fmt: skip


def parse(words):
    flags, rest = {}, []
    pairs = [" ".join(pair) for pair in itertools.pairwise(words)]
    valued, alone = next((KNOWN[pair] for pair in pairs if pair in KNOWN), ((), ()))
    words = iter(words)
    for word in words:
        if word in alone:
            flags[word] = True
        elif word in valued:
            flags[word] = next(words)
        elif word.startswith("--"):
            sys.exit(f"ERROR: (gcloud) unrecognized arguments: {word}")
        else:
            rest.append(word)
    return flags, rest


def preempt(folder, name):
    """What Google does to a spot slice: its workers are gone, though it can still be described."""
    (folder / name / "state").write_text("PREEMPTED")
    end(folder / name)


def suspend(folder, name):
    """What Google does in the end: the slice is deleted, and its request remains."""
    end(folder / name)
    (folder / name / "state").unlink()
    (folder / name / "request").write_text("SUSPENDING\nSUSPENDED")


def end(slice_):
    """Kills what runs on the workers of a slice, and takes their disks away."""
    for worker in slice_.glob("[0-9]*"):
        pid = worker / LAUNCH / "imr.pid"
        with contextlib.suppress(OSError, ValueError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)
        shutil.rmtree(worker)


def create(name, flags):
    slice_ = FOLDER / flags["--node-id"]
    if slice_.exists():
        sys.exit(f"ERROR: {name} exists")
    for number in range(HOSTS[flags["--accelerator-type"]]):
        uv = slice_ / str(number) / ".local" / "bin" / "uv"
        uv.parent.mkdir(parents=True)
        uv.write_text(UV.replace("{python}", shlex.quote(sys.executable)))
        uv.chmod(0o755)
    (slice_ / "type").write_text(flags["--accelerator-type"])
    (slice_ / "marks").write_text(flags.get("--labels", "").removeprefix("imr=") + ",,")
    (slice_ / "request").write_text("WAITING_FOR_RESOURCES")


# What is asked of a slice and of a request: their states, and the type and the marks of both.
_MARKS = ("acceleratorType", "labels.imr", "schedulingConfig.spot", "schedulingConfig.preemptible")
FORMATS = {
    "state": f"csv[no-heading]({','.join(('state', *_MARKS))})",
    "request": f"csv[no-heading]({','.join(('state.state', *(f'tpu.nodeSpec[0].node.{each}' for each in _MARKS)))})",
}


def described(slice_, what, flags):
    """Prints it; a state of which the file has several lines, the first ones pass by."""
    if (FOLDER / "denied").exists():
        sys.exit("ERROR: (gcloud) PERMISSION_DENIED: The caller does not have permission")
    file = slice_ / what
    if not file.exists():
        sys.exit(f"ERROR: (gcloud) NOT_FOUND: {what} of {slice_.name}")
    assert flags["--format"] == FORMATS[what], flags
    now, *later = file.read_text().splitlines()
    print("WARNING: a newer version is there", file=sys.stderr)
    print(now, (slice_ / "type").read_text(), (slice_ / "marks").read_text(), sep=",")
    if later:
        file.write_text("\n".join(later))
    elif now == "WAITING_FOR_RESOURCES":
        file.write_text("ACTIVE")
        (slice_ / "state").write_text("CREATING\nREADY")


def workers(slice_, flags):
    if (FOLDER / "cut").exists() or (slice_ / "state").read_text() != "READY":
        print("ssh: connect to host 10.0.0.2 port 22: Connection refused", file=sys.stderr)
        sys.exit(LOST)
    there = sorted(slice_.glob("[0-9]*"))
    return there if flags["--worker"] == "all" else [there[int(flags["--worker"])]]


def ssh(slice_, flags):
    count = len(list(slice_.glob("[0-9]*")))
    processes, reached, half = [], workers(slice_, flags), FOLDER / "half"
    broken = half.exists() and half.read_text() in flags["--command"]
    if broken:
        half.unlink()
        reached.pop()
    for worker in reached:
        environment = os.environ | {
            "HOME": str(worker), "PYTHONPATH": f"{worker}/{LAUNCH}/imr", "JAX_PLATFORMS": "cpu",
            "PATH": f"{FOLDER}/bin:{os.environ['PATH']}", "IMR_COORDINATOR": f"127.0.0.1:{os.environ['PORT']}",
            "IMR_NUM_PROCESSES": str(count), "IMR_PROCESS_ID": worker.name,
        }  # fmt: skip
        words = ["bash", "-c", flags["--command"]]
        processes.append(subprocess.Popen(words, cwd=worker, env=environment))
    while any(process.poll() is None for process in processes):
        time.sleep(0.05)
        if (FOLDER / "cut").exists() or (slice_ / "state").read_text() != "READY":
            for process in processes:
                process.kill()
            sys.exit(LOST)
    sys.exit(LOST if broken else max(abs(process.returncode) for process in processes))


def scp(source, target, flags):
    def copy(source, target):
        try:
            if Path(source).is_dir() and "--recurse" in flags:
                shutil.copytree(source, target)
            else:
                shutil.copy(source, target)
        except FileNotFoundError:
            sys.exit(f"scp: {source}: No such file or directory")

    if ":" in target:
        name, path = target.split(":")
        for worker in workers(FOLDER / name, flags):
            copy(source, worker / path)
    else:
        name, path = source.split(":")
        copy(workers(FOLDER / name, flags)[0] / path, target)


def stored(address):
    """Names and contents of the objects of the stand-in for the store below an address."""
    server = os.environ["STORAGE_EMULATOR_HOST"] + "/storage/v1/b/bucket/o"
    prefix = re.sub("gs://[^/]+/", "", address)
    with urllib.request.urlopen(f"{server}?prefix={quote(prefix)}") as answer:
        names = [item["name"] for item in json.load(answer)["items"]]
    for name in names:
        with urllib.request.urlopen(f"{server}/{quote(name, safe='')}?alt=media") as answer:
            yield name.removeprefix(prefix).lstrip("/"), answer.read()


def main(words):
    with (FOLDER / "calls.log").open("a") as log:
        log.write(f"{shlex.join(words)}\n")
    flags, rest = parse(words)
    match rest:
        case ["storage", "cat", address]:
            if (FOLDER / "denied").exists():
                sys.exit(
                    "ERROR: (gcloud.storage.cat) [me] does not have permission to access b instance"
                )
            if not address.startswith("gs://bucket/"):
                sys.exit(
                    f"ERROR: (gcloud.storage.cat) {address[: address.find('/', 5)]} not found: 404."
                )
            for _, data in stored(address):
                sys.stdout.write(data.decode())
                return
            said = "The following URLs matched no objects or files:"
            sys.exit(f"ERROR: (gcloud.storage.cat) {said}\n-{address}")
        case ["storage", "ls", address]:
            found = list(stored(address))
            for name, _ in found:
                print(address + name)
            if not found:
                sys.exit("ERROR: (gcloud.storage.ls) One or more URLs matched no objects.")
        case ["storage", "rsync", address, folder]:
            found = list(stored(f"{address}/"))
            if not found:
                said = "Did not find existing container at:"
                sys.exit(f"ERROR: (gcloud.storage.rsync) {said} {address}/")
            for name, data in found:
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        case ["compute", "tpus", "queued-resources", "create", name]:
            create(name, flags)
        case ["compute", "tpus", "queued-resources", "describe", name]:
            described(FOLDER / name, "request", flags)
        case ["compute", "tpus", "queued-resources" | "tpu-vm" as what, "delete", name]:
            if (FOLDER / name / "request").exists() != (what == "queued-resources"):
                sys.exit(f"ERROR: (gcloud) {name} is no resource of {what} alone")
            end(FOLDER / name)
            shutil.rmtree(FOLDER / name)
        case ["compute", "tpus", "tpu-vm", "describe", name]:
            described(FOLDER / name, "state", flags)
        case ["compute", "tpus", "tpu-vm", "ssh", name]:
            ssh(FOLDER / name, flags)
        case ["compute", "tpus", "tpu-vm", "scp", source, target]:
            scp(source, target, flags)
        case _:
            sys.exit(f"ERROR: unknown command {words}")


if __name__ == "__main__":
    main(sys.argv[1:])
