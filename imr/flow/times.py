"""The times of a solve: where it starts and ends, and where it is saved."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imr._checks import as_numbers, is_concrete
from imr.errors import ImrError


def as_times(t0: Any, t1: Any, ts: Any, dtype: Any) -> tuple[Any, Any, Any]:
    """t0, t1 and ts in the dtype of the state, checked where they are concrete.

    A time asked for that a rounding has put outside of [t0, t1] is moved to that end: the last of
    `np.linspace(0, 0.1 * 3)` lies after 0.3.
    """
    t0, t1 = as_numbers("t0", t0), as_numbers("t1", t1)
    if jnp.ndim(t0) or jnp.ndim(t1):
        raise ImrError(
            f"t0 and t1 must be scalars; found shapes {jnp.shape(t0)} and {jnp.shape(t1)}. For several "
            "use jax.vmap."
        )
    given = [t0, t1]
    if ts is not None:
        given.append(as_numbers("ts", ts))
        if jnp.ndim(given[2]) != 1 or not given[2].size:
            raise ImrError(
                f"ts must hold one or more times, shape (s,); found shape {jnp.shape(given[2])}."
            )
    # Concrete times are checked, and stay concrete inside a trace.
    xp: Any = np if is_concrete(given) else jnp
    start, end, *saved = (xp.asarray(t).astype(dtype) for t in given)
    if xp is np:
        _check_ends(start, end)
    if not saved:
        return start, end, None
    coarse = [dtype, *(t.dtype for t in given if jnp.issubdtype(t.dtype, jnp.floating))]
    rounding = 4 * max(float(jnp.finfo(kind).eps) for kind in coarse)
    rounding *= xp.maximum(abs(start), abs(end))
    low, high = xp.minimum(start, end), xp.maximum(start, end)
    # Not by clip: of a time that is t0 or t1 it takes half of the derivative.
    early, late = low - saved[0], saved[0] - high
    times = xp.where((early > 0) & (early <= rounding), low, saved[0])
    times = xp.where((late > 0) & (late <= rounding), high, times).astype(dtype)
    if xp is np:
        _check_saved(start, end, times)
    return start, end, times


def _check_ends(t0: np.ndarray, t1: np.ndarray) -> None:
    if not np.isfinite(t0) or np.isnan(t1):
        raise ImrError(f"t0 and t1 must be finite; found {t0} and {t1}.")
    if np.isinf(t1):
        raise ImrError("t1 must be finite; for the limit there is solve_to_steady_state.")
    if t0 == t1:
        raise ImrError(
            f"t1 must differ from t0, and lies before it if time runs backwards; found {t1} for both."
        )


def _check_saved(t0: np.ndarray, t1: np.ndarray, ts: np.ndarray) -> None:
    backwards = t1 < t0
    ordered = np.diff(ts) < 0 if backwards else np.diff(ts) > 0
    if not ordered.all():
        at = int(np.argmin(ordered))
        raise ImrError(
            f"ts must {'decrease' if backwards else 'increase'} from t0 to t1; found ts[{at}] = "
            f"{ts[at]} and ts[{at + 1}] = {ts[at + 1]} in {ts.dtype}."
        )
    low, high = sorted((float(t0), float(t1)))
    if not (ts.min() >= low and ts.max() <= high):
        raise ImrError(f"ts must lie within [t0, t1] = [{t0}, {t1}]; found {ts[0]} to {ts[-1]}.")


def in_order(t0: jax.Array, t1: jax.Array, ts: jax.Array | None) -> jax.Array:
    """Whether times run from t0 to t1, one way or the other, as a value of the program."""
    direction = jnp.sign(t1 - t0)
    ordered = (jnp.abs(direction) == 1) & jnp.isfinite(t0)
    if ts is not None:
        stretches = direction * jnp.diff(jnp.concatenate([t0[None], ts, t1[None]]))
        ordered &= jnp.all(stretches >= 0) & jnp.all(stretches[1:-1] > 0)
    return ordered
