"""A small experiment killed between two changes of its files, and gone on with.

python -m tests.killed FOLDER KILLS    prints how many changes there are, of a run and of one that
replaces another, and kills at so many of each, drawn at random, or at all of them; fails with the first
run that does not end with the bits of an unbroken one
"""

import os
import pickle
import random
import shutil
import signal
import sys
from pathlib import Path

import jax

from tests.test_stops import PROBE, end_of

CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link"}


def in_child(folder, *flags, kill=None):
    """The exit code of a run in a forked process, and how many changes of files it has begun.

    The process is killed as it is about to begin the change of that number.
    """
    log, begun = folder.with_suffix(".changes"), 0

    def hook(event, arguments):
        nonlocal begun
        if event in CHANGES and str(folder) in str(arguments[0]):
            if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
                return
            begun += 1
            if begun == kill:
                os.kill(os.getpid(), signal.SIGKILL)

    if (child := os.fork()) == 0:
        sys.stdout = sys.stderr = log.open("w")
        sys.addaudithook(hook)
        code = PROBE.main(["--out", str(folder), *flags])
        count, begun = begun, -1
        with jax.enable_x64(True):
            folder.with_suffix(".end").write_bytes(pickle.dumps((count, end_of(folder))))
        sys.stdout.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder, kills):
    def run(name, *flags, kill=None):
        code = in_child(folder / name, *flags, kill=kill)
        if kill is not None and code == -signal.SIGKILL:
            return None
        assert code == 0, (folder / name).with_suffix(".changes").read_text()
        return pickle.loads((folder / name).with_suffix(".end").read_bytes())

    draw, (count, unbroken) = random.Random(kills), run("unbroken")
    for flags in ((), ("--overwrite",)):
        if flags:
            count, end = run("unbroken", *flags)
            assert end == unbroken
        chosen = range(1, count + 1)
        for number in chosen if kills >= count else draw.sample(chosen, kills):
            if flags:
                shutil.copytree(folder / "unbroken", folder / "run")
            # Threads of orbax change files too: not all runs of one kind have as many changes.
            run("run", *flags, kill=number)
            _, end = run("run")
            assert end == unbroken, f"killed at change {number}, {flags}"
            shutil.rmtree(folder / "run")
        print(count, *flags)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
