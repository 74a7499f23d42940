"""Flags of experiments: those that all of them have, and the bounds that stand on the fields.

    classes: Annotated[int, at_least(3)] = 6
    decay: Annotated[float, above(0), below(1)] = 0.01

A bound on a tuple is a bound on each of its numbers, and None keeps every bound.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

from imr.errors import ImrError
from imr.lab.bounds import Bound, at_least

# Where and how a run goes, not what it computes: these fields take no part in its identity.
CONTROL = ("out", "overwrite", "check", "compilation_cache")


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """The flags that every experiment has, which its Config extends.

    Experiments that repeat what they draw add `seeds`, the number of seeds, with a default of their
    own: there is none that fits all, and some, of a given net or of times, repeat nothing.
    """

    seed: Annotated[int, at_least(0)] = 0
    """The first of the seeds."""
    smoke: bool = False
    """A small version of everything, for tests."""
    # A Path would make gs:/ of gs://.
    out: str | Path | None = None
    """Run folder, or gs://BUCKET/FOLDER; runs/NAME/<hash of the configuration> by default."""
    overwrite: bool = False
    """Replace the run in that folder."""
    check: bool = False
    """Say whether the flags and the run folder fit, and run nothing."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder, so that a run that is repeated or resumed
    compiles nothing anew; see IMR_COMPILATION_CACHE."""


C = TypeVar("C", bound=RunFlags)


def check_bounds(config: Any) -> None:
    """Refuses a configuration in which a flag breaks a `Bound` of its field, or is a float that is not
    finite, with a bound or without."""
    hints = get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        metadata = getattr(hints[field.name], "__metadata__", ())
        bounds = [each for each in metadata if isinstance(each, Bound)]
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is None or not (bounds or isinstance(number, float)):
                continue
            if math.isfinite(number) and all(bound.holds(number) for bound in bounds):
                continue
            words = [bound.words for bound in bounds]
            words += ["finite"] if isinstance(number, float) and len(bounds) < 2 else []
            known = field.default not in (dataclasses.MISSING, None, ())
            remedy = f"The default is {field.default}." if known else ""
            raise flag_error(field.name, f"must be {' and '.join(words)}", value, remedy)


def flag_error(name: str, rule: str, value: Any, remedy: str = "") -> ImrError:
    """The error for a flag whose value breaks a rule.

    >>> str(flag_error("train_noise", "must be at least 0", -1.0, "Try 0.5."))
    '--train-noise must be at least 0; found -1.0. Try 0.5.'
    """
    flag = name.replace("_", "-")
    return ImrError(f"--{flag} {rule}; found {value}. {remedy}".rstrip())


def check_absolute(config: RunFlags) -> None:
    """Refuses relative paths, but for `out`: on another machine they are another configuration."""
    for name, value in vars(config).items():
        for path in value if isinstance(value, tuple) else (value,):
            if name != "out" and isinstance(path, Path) and not path.is_absolute():
                raise flag_error(
                    name, "must be an absolute path, that of the machine which runs it", path
                )


def resolve_paths(config: C) -> C:
    """The same configuration with absolute paths, but for `out`: one folder is one configuration."""

    def resolved(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(resolved, value))
        return value.expanduser().resolve() if isinstance(value, Path) else value

    values: Any = {name: resolved(x) for name, x in vars(config).items() if name != "out"}
    return dataclasses.replace(config, **values)


def repeated() -> Any:
    """What marks the field of a flag that is given several times, a value each.

    folders: Annotated[tuple[Path, ...], repeated()] = ()
    """
    try:
        from tyro.conf import UseAppendAction
    except ImportError:  # `run_main` says so
        return None
    return UseAppendAction
