"""Checks of what has been caught in a model that someone else has run."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from imr._checks import as_mask, as_numbers, check_finite, check_kind, is_concrete
from imr.errors import DataError, ImrError
from imr.lens.heads import Heads

_THETA = ("query", "key", "query_bias", "key_bias", "query_norm", "key_norm")


class Context(NamedTuple):
    """What a layer meets beside its stream, as `head_gradient` has it."""

    seen: Any
    source: Any = None
    positions: Any = None
    bias: Any = None


def checked_inputs(heads, inputs, seen, source, positions, bias, after) -> tuple[Any, Any, Context]:
    """The stream, the stream at the end of the layer, and the context, which fit the heads."""
    if not isinstance(heads, Heads) or heads.query.ndim != 3:
        hint = "Give one layer, such as read_heads(folder)[0]."
        raise ImrError(f"heads must be Heads of one layer; found {type(heads).__name__}. {hint}")
    if heads.cross != (source is not None):
        kind = "cross" if heads.cross else "self"
        raise ImrError(
            f"source must be given for cross-attention alone; the heads are {kind}-attention."
        )
    h, d = heads.query.shape[:2]
    inputs = _floats("inputs", inputs, (("n", d),))
    n = m = len(inputs)
    after = None if after is None else _floats("after", after, ((n, d),))
    if source is not None:
        source = _floats("source", source, (("m", heads.key.shape[1]),))
        m = len(source)
    if bias is not None:
        bias = _floats("bias", bias, ((n, m), (h, n, m)))
    if positions is not None:
        positions = as_numbers("positions", positions)
    if positions is not None and np.shape(positions) != (n,):
        raise ImrError(f"positions must have shape ({n},); found {np.shape(positions)}.")
    seen = as_seen(seen, n, m)
    if is_concrete(seen) and (count := int(np.any(seen, axis=1).sum())) < 3:
        raise ImrError(f"seen must let 3 tokens or more see any; found {count}.")
    return inputs, after, Context(seen, source, positions, bias)


def _floats(name: str, x: Any, shapes: Sequence[tuple]) -> Any:
    """An array of floats of one of the shapes, which the heads have; torch's tensors too."""
    if hasattr(x, "detach"):  # numpy has no bfloat16
        x = x.detach().cpu().float().numpy()
    array = as_numbers(name, x)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise DataError(f"{name} must be an array of floats; found dtype {array.dtype}.")
    if not any(_fits(array.shape, shape) for shape in shapes):
        listed = " or ".join(f"({', '.join(map(str, shape))})" for shape in shapes)
        batch = " Give one text at a time." if array.ndim > len(shapes[-1]) else ""
        raise ImrError(
            f"{name} must have shape {listed}, as the heads have it; found {array.shape}.{batch}"
        )
    check_finite(name, array)
    return jnp.asarray(array, jnp.result_type(array, jnp.float32))


def _fits(found, wanted):
    return len(found) == len(wanted) and all(
        isinstance(b, str) or a == b for a, b in zip(found, wanted, strict=True)
    )


def as_seen(seen: Any, n: int, m: int) -> Any:
    """Which of m tokens each of n sees, as `head_mask` gives it; torch's tensors too."""
    if seen is None:
        raise ImrError("seen must be booleans, such as head_mask(heads, n) gives; found None.")
    return as_mask(seen.detach().cpu().numpy() if hasattr(seen, "detach") else seen, (n, m), "seen")


def theta_of(heads: Heads) -> dict[str, Any]:
    """What makes the theta of heads, by field."""
    parts = {name: getattr(heads, name) for name in _THETA}
    return {name: jnp.asarray(x) for name, x in parts.items() if x is not None}


def stacked_thetas(heads: Heads, others: Sequence[Heads]) -> dict[str, Any]:
    """`theta_of` several layers, which must be of equal shapes."""
    for layer in others if isinstance(others, Sequence) else [others]:
        check_kind("others", layer, Heads)
    each = [theta_of(layer) for layer in (heads, *others)]
    shapes = [{name: x.shape for name, x in theta.items()} for theta in each]
    for number, shape in enumerate(shapes[1:]):
        if shape != shapes[0]:
            raise ImrError(
                f"others must be layers of the shapes of heads, {shapes[0]}; others[{number}] has "
                f"{shape}."
            )
    return {name: jnp.stack([theta[name] for theta in each]) for name in each[0]}
