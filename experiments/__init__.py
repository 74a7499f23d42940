"""Experiments: each runs by `python -m experiments.NAME`; `--help` lists its flags."""

import os
import re
import signal
import sys
from types import FrameType


class Stop:
    """Ends the process, which still imports what it needs, as a run that is stopped ends.

    One of several processes leaves the first signal, in `asked`, to `imr.parallel.stop_on_signals`: the
    others wait for it, to agree with them.
    """

    asked = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked = number
        several = ("IMR_COORDINATOR", "IMR_DISTRIBUTED")
        if all(os.environ.get(name, "") in ("", "0") for name in several):
            os.write(2, b"stopped: run the same command again to resume\n")
            code = os.environ.get("IMR_PREEMPTED_CODE", "0")
            os._exit(130 if number == signal.SIGINT else int(code) if code.isdecimal() else 0)


def _handle_signals() -> None:
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


# As Python has it while it looks for the module that is the command.
if sys.argv[:1] == ["-m"] and any(
    re.fullmatch(r"(-\w*m)?experiments\.\w+", word) for word in sys.orig_argv
):
    _handle_signals()
