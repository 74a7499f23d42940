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


def check_rank(name: str, array: Any, rank: int, shape: str) -> None:
    """Demands an array of that many axes; `shape` says what they are."""
    if jnp.ndim(array) != rank:
        hint = " For leading batch axes use jax.vmap." if jnp.ndim(array) > rank else ""
        raise ImrError(f"{name} must have shape {shape}; found shape {jnp.shape(array)}.{hint}")


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
        if bad.any():
            where = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ImrError(
                f"{name} must be finite; found {int(bad.sum())} non-finite value(s), "
                f"the first at index {where}."
            )


def check_positive(name: str, value: Any) -> None:
    """Demands a number above zero, where it is concrete."""
    if is_concrete(value) and not bool(np.all(np.asarray(value) > 0)):
        raise ImrError(f"{name} must be positive; found {value}.")


def check_at_least(name: str, value: Any, least: float) -> None:
    """Demands a number not below `least`, where it is concrete."""
    if is_concrete(value) and not bool(np.all(np.asarray(value) >= least)):
        raise ImrError(f"{name} must be at least {least}; found {value}.")


def check_key(key: Any) -> None:
    """Demands random keys, new or old."""
    if not isinstance(key, jax.Array):
        raise ImrError(f"key must be made by jax.random.key or split; found {key!r}.")


def check_count(name, value, least=1):
    """Demands an integer of at least 1, or of at least the number given."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ImrError(f"{name} must be an integer of at least {least}; found {value!r}.")


def check_counts(**values):
    """Demands positive integers; the keywords are their names."""
    for name, value in values.items():
        check_count(name, value)


def as_number(name: str, value: Any, interval: str, hint: str = "") -> float:
    """A concrete real number within an interval such as "(0, 1]"."""
    if not is_concrete(value):
        raise ImrError(
            f"{name} must be a concrete number, because its range is checked; found a traced value. "
            "Call this outside of jax.jit, vmap and grad and pass the result in as an argument."
        )
    try:
        value = complex(value)
    except (TypeError, ValueError, OverflowError):  # an integer above any float
        raise ImrError(f"{name} must be a number; found {shortened(value)}.") from None
    if value.imag:
        raise ImrError(f"{name} must be real; found {value:g}.")
    value, (low, high) = value.real, map(float, interval[1:-1].split(","))
    on_open_end = (value == low and interval[0] == "(") or (value == high and interval[-1] == ")")
    if on_open_end or not low <= value <= high or not np.isfinite(value):
        raise ImrError(f"{name} must lie in {interval}; found {value:g}.{hint}")
    return value


def as_tokens(tokens: Any, num_tokens: int) -> jax.Array:
    """Tokens as integers (..., l), of 0 to num_tokens - 1 where they are concrete."""
    if not isinstance(tokens, jax.Array):
        try:
            tokens = np.asarray(tokens)
        except ValueError as error:
            raise ImrError(f"tokens must be integers of shape (..., l): {error}.") from None
        if tokens.size == 0 and tokens.dtype == float:  # an empty list
            tokens = tokens.astype(np.int32)
    if jnp.ndim(tokens) < 1 or tokens.dtype.kind not in "iu":
        raise ImrError(
            f"tokens must be integers of shape (..., l), 0 to {num_tokens - 1}; found {tokens.dtype} "
            f"of shape {np.shape(tokens)}. Names of tokens are found in process.tokens.index(name)."
        )
    if is_concrete(tokens) and np.size(tokens):
        low, high = np.min(np.asarray(tokens)), np.max(np.asarray(tokens))
        if low < 0 or high >= num_tokens:
            raise ImrError(f"tokens must lie in 0 to {num_tokens - 1}; found {low} to {high}.")
    return jnp.asarray(tokens)


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Demands one of the known names."""
    if value not in choices:
        raise ImrError(f"{name} must be one of {', '.join(map(str, choices))}; found {value!r}.")


def check_mask(where: Any, shape: tuple[int, ...]) -> None:
    """Demands a boolean mask of the shape of the logits that leaves each row an entry."""
    if jnp.shape(where) != shape or jnp.result_type(where) != jnp.dtype(bool):
        raise ImrError(
            f"where must be boolean with the shape of the logits, {shape}; found shape "
            f"{jnp.shape(where)} and dtype {jnp.result_type(where)}."
        )
    if is_concrete(where):
        empty = ~np.asarray(where).any(axis=1)
        if empty.any():
            raise ImrError(
                f"where must leave each row an entry; row {int(np.argmax(empty))} is fully masked. "
                "Leave that row out."
            )


def check_anchor(anchor: Any) -> None:
    """Demands None or a pair (lam, x) of finite values."""
    if anchor is None:
        return
    if not (isinstance(anchor, tuple) and len(anchor) == 2):
        raise ImrError(f"anchor must be a pair (lam, x); found {type(anchor).__name__}.")
    check_finite("anchor", anchor)


def check_linear(z: Any, theta: Any, bias: Any) -> None:
    """Demands features (n, f), class weights (k, f) and, if there is one, a bias (k,)."""
    check_features(z)
    check_rank("theta", theta, 2, "(k, f)")
    check_axis("z", z.shape[1], "theta", theta.shape[1], "features (its last axis)")
    if bias is not None:
        check_rank("bias", bias, 1, "(k,)")
        check_axis("bias", bias.shape[0], "theta", theta.shape[0], "classes (its first axis)")


def check_projections(z: Any, q: Any, k: Any) -> None:
    """Demands features (n, f) and projections (f, r) or (h, f, r), of rank r at most f."""
    check_features(z)
    check_projection_pair(q, k)
    check_axis("z", z.shape[1], "q", q.shape[-2], "features")


def check_projection_pair(q: Any, k: Any) -> None:
    """Demands q of shape (f, r) or (h, f, r), r at most f, and k of the same shape or None."""
    if jnp.ndim(q) not in (2, 3):
        raise ImrError(f"q must have shape (f, r), or (h, f, r) for heads; found {jnp.shape(q)}.")
    if q.shape[-1] > q.shape[-2]:
        raise ImrError(
            f"q has rank {q.shape[-1]}, more than the {q.shape[-2]} features: theta = q k^T needs no "
            "more. Use fewer columns, or imr.Quadratic.full with the whole theta."
        )
    if k is not None and jnp.shape(k) != q.shape:
        raise ImrError(f"k must have the shape of q, {q.shape}; found {jnp.shape(k)}.")


def check_features(z: Any) -> None:
    """Demands floating features (n, f)."""
    check_rank("z", z, 2, "(n, f)")
    check_floating("z", z)
