"""Errors of imr, and the eager checks of arguments.

Values are checked where they are concrete. Under a trace (`jax.jit`, `jax.vmap`, `jax.grad`) only
shapes and dtypes are: bad values then come out as NaN, or as a result code where there is one.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from reprlib import repr as shortened
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from imr.errors import ImrError


def is_concrete(*arrays: Any) -> bool:
    """Whether all the arrays have values here: no leaf is traced, or spread over other processes."""

    def unknown(leaf):
        if isinstance(leaf, jax.core.Tracer):
            return True
        if not isinstance(leaf, jax.Array):
            return False
        return not (leaf.is_fully_addressable or leaf.is_fully_replicated)

    return not any(map(unknown, jax.tree.leaves(arrays)))


def out_of_traces(x: Any) -> AbstractContextManager:
    """A context in which jax computes with concrete values at once, even inside a trace."""
    return jax.ensure_compile_time_eval() if is_concrete(x) else nullcontext()


def numpy_of(*values: Any) -> Any:
    """numpy where all the values are concrete, and jax.numpy where one is traced."""
    return np if is_concrete(values) else jnp


def as_labels(name: str, x: Any) -> jax.Array:
    """Integers of shape (n,) as int32: a narrower type wraps beside a large number."""
    x = as_numbers(name, x)
    check_rank(name, x, 1, "(n,)")
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ImrError(
            f"{name} must be integers; found dtype {x.dtype} of shape {x.shape}. Use .astype(int)."
        )
    if x.dtype == jnp.int32:
        return x
    # What int32 cannot hold is out of range for any number of columns, and stays so. Labels that are
    # concrete must not escape the checks of their values by being cast in a trace; by numpy, since of
    # what jax computes from constants in a trace it keeps an entry of a cache.
    has, holds, xp = jnp.iinfo(x.dtype), jnp.iinfo(jnp.int32), numpy_of(x)
    clipped = xp.clip(xp.asarray(x), max(has.min, holds.min), min(has.max, holds.max))
    with out_of_traces(x):
        return jnp.asarray(clipped.astype(jnp.int32))


def check_rank(name: str, array: Any, rank: int, shape: str) -> None:
    """Demands an array of that many axes; `shape` says what they are."""
    if np.ndim(array) != rank:
        hint = " For leading batch axes use jax.vmap." if np.ndim(array) > rank else ""
        raise ImrError(f"{name} must have shape {shape}; found shape {np.shape(array)}.{hint}")


def check_axis(name: str, found: int, other: str, wanted: int, what: str) -> None:
    """Demands that two arrays agree on the length of an axis, and names both."""
    if found != wanted:
        raise ImrError(f"{name} has {found} {what}, but {other} has {wanted}: they must be equal.")


def check_floating(name: str, array: Any) -> None:
    """Demands a floating dtype."""
    dtype = jnp.result_type(array)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ImrError(
            f"{name} must be a floating array; found dtype {dtype}. Convert it with .astype(float)."
        )


def _as_array(name: str, x: Any) -> jax.Array:
    """An array; what is concrete stays so inside a trace, and can be checked."""
    if isinstance(x, jax.Array):
        return x
    try:
        if any(isinstance(leaf, str | bytes) for leaf in jax.tree.leaves(x)):
            raise TypeError  # jax takes some strings in a list for the names of dtypes
        # What is too large for the dtype becomes infinite, for which there are checks.
        with out_of_traces(x), np.errstate(over="ignore"):
            return jnp.asarray(x)
    except (TypeError, ValueError, OverflowError):
        raise ImrError(f"{name} must be an array of numbers; found {shortened(x)}.") from None


def as_numbers(name: str, x: Any) -> jax.Array:
    """Real numbers as an array; what is concrete stays so inside a trace, and can be checked."""
    array = _as_array(name, x)
    if not jnp.issubdtype(array.dtype, jnp.number) or jnp.iscomplexobj(array):
        raise ImrError(f"{name} must hold real numbers; found dtype {array.dtype}.")
    return array


def as_floats(name: str, x: Any) -> jax.Array:
    """Real numbers as a floating array; Python's integers become floats, arrays of them do not.

    The type is strong: what is weak, as `jnp.full(shape, 1.0)` is, would yield to any other.
    """
    array = as_numbers(name, x)
    if not (isinstance(x, list | tuple | int) and jnp.issubdtype(array.dtype, jnp.integer)):
        check_floating(name, array)
        if not array.weak_type:
            return array
    with out_of_traces(x):
        return array.astype(array.dtype if jnp.issubdtype(array.dtype, jnp.floating) else float)


def check_finite(name: str, array: Any) -> None:
    """Demands finite values, where they are concrete."""
    if not is_concrete(array):
        return
    for leaf in jax.tree.leaves(array):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            continue
        values = np.asarray(leaf)
        with np.errstate(all="ignore"):
            # One pass: what is not finite does not leave a sum. The sum may also overflow.
            if np.isfinite(values.sum()):
                continue
        bad = ~np.isfinite(values)
        if bad.any() and not bad.ndim:
            raise ImrError(f"{name} must be finite; found {values}.")
        if bad.any():
            where = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ImrError(
                f"{name} must be finite; found {int(bad.sum())} non-finite value(s), "
                f"the first at index {where}."
            )


def check_positive(name: str, value: Any) -> None:
    """Demands a number above zero, where it is concrete."""
    if is_concrete(value) and not np.all(_as_values(name, value) > 0):
        raise ImrError(f"{name} must be positive; found {value}.")


def check_at_least(name: str, value: Any, least: float) -> None:
    """Demands a number not below `least`, where it is concrete."""
    if is_concrete(value) and not np.all(_as_values(name, value) >= least):
        raise ImrError(f"{name} must be at least {least}; found {value}.")


def check_scalar(name: str, value: Any, least: float | None = None) -> None:
    """Demands one real number, not NaN and not below `least` where it is concrete."""
    if is_concrete(value):
        if least is not None:
            check_at_least(name, value, least)
        if np.isnan(_as_values(name, value)).any():
            raise ImrError(f"{name} must be a number; found {value}.")
    check_rank(name, value, 0, "(), a number")


def _as_values(name: str, value: Any) -> np.ndarray:
    """Concrete real numbers by numpy, whose floats are those of Python."""
    try:
        values = np.asarray(value)
    except (TypeError, ValueError):  # ragged lists, and keys
        values = np.asarray(None)
    if not jnp.issubdtype(values.dtype, jnp.number) or np.iscomplexobj(values) or not values.size:
        raise ImrError(f"{name} must be a real number; found {shortened(value)}.")
    return values


def check_key(key: Any) -> None:
    """Demands one random key, new or old."""
    shape = as_keys(key).shape
    if shape:
        raise ImrError(
            f"key must be one random key; found an array of keys of shape {shape}. Take one of them, or "
            "jax.vmap over them."
        )


def as_keys(key: Any) -> jax.Array:
    """Random keys of any shape; those of the old kind, rows of uint32, as new ones."""
    if isinstance(key, jax.Array):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            return key
        try:
            return jax.random.wrap_key_data(key)
        except (TypeError, ValueError):  # not of uint32, or rows of another length
            pass
    raise ImrError(f"key must be made by jax.random.key or split; found {shortened(key)}.")


def check_flags(**values: Any) -> None:
    """Demands True or False; the keywords are the names. What is no boolean would count as True."""
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_):
            raise ImrError(f"{name} must be True or False; found {shortened(value)}.")


def check_kind(name: str, value: Any, *kinds: type) -> None:
    """Demands an object of one of those classes."""
    if not isinstance(value, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ImrError(f"{name} must be a {names}; found a {type(value).__name__}.")


def check_callable(name: str, function: Any) -> None:
    """Demands a function."""
    if not callable(function):
        raise ImrError(f"{name} must be callable; found {shortened(function)}.")


def check_rngs(rngs: Any) -> None:
    """Demands random streams of flax."""
    if not callable(getattr(rngs, "params", None)):
        raise ImrError(f"rngs must be made by flax.nnx.Rngs, as nnx.Rngs(0) is; found {rngs!r}.")


def check_count(name, value, least=1, most=2**31 - 1):
    """Demands an integer of at least 1, or of at least the number given; int32 holds it."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ImrError(f"{name} must be an integer of at least {least}; found {shortened(value)}.")
    if value > most:
        raise ImrError(f"{name} must be at most {most}; found {shortened(value)}.")


def check_counts(**values):
    """Demands positive integers; the keywords are their names."""
    for name, value in values.items():
        check_count(name, value)


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Demands one of the known names."""
    if not isinstance(value, str | int | None) or value not in choices:
        raise ImrError(f"{name} must be one of {', '.join(map(str, choices))}; found {value!r}.")


def as_mask(
    where: Any, shape: tuple[int, ...] | None = None, name: str = "where"
) -> jax.Array | None:
    """A mask as booleans, of the shape of the logits if that is known; None stays None.

    A row that it leaves without an entry takes no part: its attention, its loss and their gradients
    are zero.
    """
    if where is None:
        return None
    where = _as_array(name, where)
    if shape is not None and where.shape != tuple(shape):
        raise ImrError(
            f"{name} must have the shape of the logits, {tuple(shape)}; found {where.shape}."
        )
    if where.dtype == bool:
        return where
    remedy = (
        "True, or 1, says that an entry takes part. Of a mask that is added to the logits, 0 and a "
        f"large negative number, pass {name}=mask == 0."
    )
    if not jnp.issubdtype(where.dtype, jnp.integer):
        raise ImrError(f"{name} must be boolean; found dtype {where.dtype}. {remedy}")
    if not is_concrete(where):
        raise ImrError(
            f"{name} must be boolean if it is traced (jit, vmap, grad), as its values cannot be "
            f"checked; found dtype {where.dtype}. {remedy}"
        )
    values = np.asarray(where)
    if ((values != 0) & (values != 1)).any():
        found = f"values from {values.min()} to {values.max()}"
        raise ImrError(f"{name} must hold 0 and 1; found {found}. {remedy}")
    with out_of_traces(where):
        return where == 1


def as_choice_of(what: str, name: str, mask: Any, size: int | None = None) -> jax.Array:
    """A mask of rows or tokens, shape (n,), as booleans; one of them at least, where it is concrete.

    There is no result without one, so that it is an error; under a trace what depends on them is NaN
    or zero, as the function says.
    """
    chosen = as_mask(mask, None, name)
    if chosen is None:
        raise ImrError(f"{name} must be booleans of shape (n,), one for each {what}; found None.")
    check_rank(name, chosen, 1, "(n,)")
    if size is not None and chosen.shape[0] != size:
        raise ImrError(f"{name} must have shape ({size},); found {chosen.shape}.")
    if is_concrete(chosen) and not np.asarray(chosen).any():
        raise ImrError(f"{name} must leave at least one {what}; found none.")
    return chosen
