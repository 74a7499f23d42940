"""The frame of an experiment: from the command line to results in a run folder."""

import contextlib
import inspect
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NoReturn

import jax

from imr._files import read_bytes
from imr.errors import ImrError, UnreachableError
from imr.lab.cache import compilation_cache
from imr.lab.console import optional_package, say
from imr.lab.files import check_writable, using
from imr.lab.flags import C, check_absolute, check_bounds, resolve_paths
from imr.lab.folder import RunFolder, check_run, open_run
from imr.lab.phases import phase
from imr.lab.plotting import styled
from imr.parallel import (
    Preempted,
    agreed,
    end_on_signals,
    initialize_from_environment,
    is_first,
    stop_if_asked,
    stop_on_signals,
)
from imr.parallel.departure import leave, watch_departures

_UNREACHABLE = 75  # EX_TEMPFAIL of sysexits.h, and what launchers take for a run that resumes
_SECONDS = 10.0  # that a run has to mark its folder, once it is stopped
_replacing: RunFolder | None = None  # of the run that goes on, if it was begun with --overwrite


@dataclass(frozen=True)
class Experiment(Generic[C]):
    """An experiment: its flags, what it refuses, what it measures. `main` is its command.

    Attributes:
      name, question: of its folder in `runs`; what it asks, the head of `--help`.
      config: the type of its flags, which extends `RunFlags`.
      measure: `measure(config, run)`, with `data` `measure(config, run, data)`, returns its results.
      report: `report(config, run, results)` writes figures and ends in `run.finish`.
      check: `check(config)` raises an ImrError for flags that make no run, after the bounds of fields.
      shrink: `shrink(config)` is the small version for `--smoke`.
      data: `data(config)` reads what the run needs before its folder is opened or emptied.
      float64: whether it computes in float64 or in float32, whatever the settings of jax.
      verdict: `verdict(summary)` is the exit code of a run that has finished, now or before.
    """

    name: str
    question: str
    config: type[C]
    measure: Callable[..., Any]
    report: Callable[[C, RunFolder, Any], None]
    check: Callable[[C], None] | None = None
    shrink: Callable[[C], C] | None = None
    data: Callable[[C], Any] | None = None
    float64: bool = False
    verdict: Callable[[Mapping[str, Any]], int] | None = None

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Runs the experiment from the command line, which may be that of one of several processes."""
        return run_main(self.run, self.config, argv, description=self.question)

    def run(self, config: C) -> int:
        """Checks the configuration, measures unless that is done already, and prints the results."""
        check_bounds(config)
        if self.check is not None:
            self.check(config)
        if config.check and os.environ.get("IMR_CHECK_ELSEWHERE"):
            check_absolute(config)
        config = resolve_paths(config)
        if config.check:
            path = check_run(self.name, config, out=config.out, overwrite=config.overwrite)
            if config.overwrite or not (path / "summary.json").exists():  # else it is only read
                check_writable(path)
            say(f"This configuration can run in {path}.")
            return 0
        actual = self.shrink(config) if config.smoke and self.shrink is not None else config
        with compilation_cache(config.compilation_cache), jax.enable_x64(self.float64):
            with phase("data"):
                data = () if self.data is None else (self.data(actual),)
            with open_run(self.name, config, out=config.out, overwrite=config.overwrite) as run:
                if agreed(run.finished):
                    say(f"This configuration has already run; its results, from {run.path}:")
                else:
                    self._carry_out(config, actual, run, *data)
                if is_first():
                    with using(run.path):
                        print(read_bytes(run.path / "table.md").decode(errors="replace"))
                        for figure in sorted(run.figures.glob("*.png")):
                            print(f"figure: {figure}")
                    print(f"every row, as data: {run.path / 'summary.json'}")
                return 0 if self.verdict is None else self.verdict(run.summary())

    def _carry_out(self, config: C, actual: C, run: RunFolder, *data: Any) -> None:
        global _replacing
        # Checkpoints bring back the lines of what they have trained; all else is measured again.
        run.metrics().reset()
        _replacing = run if config.overwrite else None
        try:
            with styled():
                with phase("evaluate"):
                    results = self.measure(actual, run, *data)
                with phase("figures"):
                    self.report(actual, run, results)
        except Preempted as stopped:
            if config.overwrite and stopped.signal == signal.SIGTERM:
                run.resume_in_spite_of_overwrite()
            raise
        finally:
            _replacing = None


def run_main(
    main: Callable[[Any], int | None], config_type: type, argv: Sequence[str] | None = None, *,
    description: str | None = None,
) -> int:  # fmt: skip
    """Runs a function from the command line: flags to a configuration, errors to one line.

    Args:
      main: takes the configuration; what it returns, if anything, is the exit code.
      config_type: a dataclass; each field is a flag, described by its docstring or comment.
      argv: the flags, those of the process by default.
      description: the head of `--help`; the docstring of main by default.
    Returns: The exit code: main's, or 0, or 2 after an error of imr or of the file system, or 75, for
      which launchers run the command again, if an object store does not answer, or, if it was stopped in
      whatever phase, `IMR_PREEMPTED_CODE` (by default 0) after SIGTERM and 130 after SIGINT. With the
      flags of the process a run that was stopped ends it with that code; after one that has ended,
      signals do no more than end the process with the code returned. Of several processes the first that
      an error ends gives its code to all.
    Raises: SystemExit by tyro, after `--help` or for flags that do not fit.
    """
    if argv is not None:
        return _run(main, config_type, argv, description)
    with stop_on_signals(end=_end_stopped):
        code = _run(main, config_type, None, description)
        _flush()
        end_on_signals(code)
        # Within, for others may keep it waiting, and a second signal ends it.
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()
    return code


def _run(
    main: Callable[[Any], int | None], config_type: type, argv: Sequence[str] | None,
    description: str | None,
) -> int:  # fmt: skip
    config = None
    try:
        tyro = optional_package("tyro")
        config = tyro.cli(config_type, description=description or inspect.getdoc(main), args=argv)
        _preempted_code()  # refused at once
        initialize_from_environment()
        watch_departures()
        with stop_on_signals():
            code = main(config)
            stop_if_asked()
        return code or 0
    except Preempted as stopped:
        by_hand = stopped.signal == signal.SIGINT
        say(f"{stopped}: {_remedy(by_hand and getattr(config, 'overwrite', False))}")
        code = 130 if by_hand else _preempted_code()
        if argv is None:
            # At once: the interpreter would wait for the threads that compute on.
            if jax.distributed.is_initialized():
                jax.distributed.shutdown()
            _end(code)
        return code
    except UnreachableError as error:
        anew = getattr(config, "overwrite", False)
        sys.stderr.write(f"error: {error}: once it can, {_remedy(anew)}\n")
        code = 2 if anew else _UNREACHABLE  # no launcher is to begin anew what could resume
        _leave(code)
        return code
    except (ImrError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).splitlines())}\n")
        _leave(2)
        return 2
    except Exception:
        if jax.distributed.is_initialized():
            traceback.print_exc()
            _leave(1)
        raise
    except KeyboardInterrupt:  # of a caller who handles signals in his own way
        sys.stderr.write("\ninterrupted: run the same command again to resume\n")
        return 130


def _end_stopped(number: int) -> None:
    """Ends this single process at whatever line a signal came to: any state of a run can be resumed."""
    by_hand, anew = number == signal.SIGINT, _replacing is not None
    if _replacing is not None and not by_hand:
        # In a thread, for this one may hold what the writing needs.
        marked, run = threading.Event(), _replacing

        def mark() -> None:
            with contextlib.suppress(ImrError, OSError):
                run.resume_in_spite_of_overwrite()
                marked.set()

        threading.Thread(target=mark, daemon=True).start()
        anew = not marked.wait(_SECONDS)
    with contextlib.suppress(OSError):  # past buffers, which this thread may be writing to
        line = "\n" if sys.stderr.isatty() else ""  # after that of a progress bar
        os.write(2, f"{line}stopped: {_remedy(anew)}\n".encode())
    _end(130 if by_hand else _preempted_code())


def _remedy(anew: bool) -> str:
    without = ", without --overwrite," if anew else ""
    return f"run the same command again{without} to resume"


def _preempted_code() -> int:
    code = os.environ.get("IMR_PREEMPTED_CODE", "0")
    if not code.isdecimal() or int(code) > 255:
        raise ImrError(f"IMR_PREEMPTED_CODE must be an exit code from 0 to 255; found {code!r}.")
    return int(code)


def _leave(code: int) -> None:
    """Ends a process of several, and with it the others, who would wait for it."""
    if jax.distributed.is_initialized():
        leave(code)


def _end(code: int) -> NoReturn:
    _flush()
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # closed, or writing now
            stream.flush()
