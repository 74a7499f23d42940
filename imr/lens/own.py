"""Models that are not on disk: weights handed over as arrays, and transformers of `imr.nn`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imr._checks import check_choice
from imr.errors import DataError
from imr.lens.model import ACTIVATIONS, Heads, Mlp, Model, Norm
from imr.nn import Transformer

_SHAPES = {
    "query": "l h d r", "key": "l h d r", "value": "l h d r", "output": "l h r d",
    "query_bias": "l h r", "key_bias": "l h r", "value_bias": "l h r", "output_bias": "l d",
    "into": "l d m", "into_bias": "l m", "out": "l m d", "out_bias": "l d",
    "tokens": "k d", "positions": "p d", "unembedding": "d k",
    "attention_norm_scale": "l d", "attention_norm_bias": "l d", "mlp_norm_scale": "l d",
    "mlp_norm_bias": "l d", "outer_norm_scale": "d", "outer_norm_bias": "d",
}  # fmt: skip
_NEEDED = ("query", "key", "value", "output")


def model_from_arrays(
    arrays: Mapping[str, Any],
    *,
    causal: bool = True,
    norm_first: bool = True,
    activation: str = "gelu",
    epsilon: float = 1e-5,
) -> Model:
    """A model from weights of flax, torch (on the CPU, detached), numpy or anything like them.

    Args:
      arrays: by name, in the order (in, out); torch's Linear keeps (out, in), so transpose. Needed:
        query, key, value (l, h, d, r) and output (l, h, r, d). Where they are missing biases are 0,
        norms have scale 1, the MLP adds nothing, there is one token and one position, and the
        embeddings, transposed, unembed: query_bias, key_bias, value_bias (l, h, r), output_bias
        (l, d); into (l, d, m), into_bias (l, m), out (l, m, d), out_bias (l, d); tokens (k, d),
        positions (p, d), unembedding (d, k); scale and bias of the norms, as in
        attention_norm_scale: attention_norm and mlp_norm (l, d), outer_norm (d,).
      causal, norm_first, activation, epsilon: as in `Model`.

    Raises:
      DataError: where a name is not known, or an array is missing, of another shape or not finite.

    >>> w = np.ones((1, 2, 4, 3))
    >>> model = model_from_arrays({"query": w, "key": w, "value": w, "output": np.ones((1, 2, 3, 4))})
    >>> model.heads.query_bias.shape
    (1, 2, 3)
    """
    check_choice("activation", activation, tuple(ACTIVATIONS))
    if unknown := set(arrays) - set(_SHAPES):
        raise DataError(
            f"arrays has {', '.join(sorted(unknown))}; known names are {', '.join(_SHAPES)}."
        )
    if missing := [name for name in _NEEDED if name not in arrays]:
        raise DataError(f"arrays must have {', '.join(_NEEDED)}; {', '.join(missing)} is missing.")
    found: dict[str, np.ndarray] = {}
    sizes: dict[str, int] = {}
    for name, value in arrays.items():
        array = found[name] = _floats(name, value)
        axes = _SHAPES[name].split()
        if array.ndim != len(axes) or not array.size:
            raise DataError(f"{name} must have axes ({_SHAPES[name]}); found shape {array.shape}.")
        wanted = tuple(sizes.get(axis, "any") for axis in axes)
        if any(
            sizes.setdefault(axis, size) != size
            for axis, size in zip(axes, array.shape, strict=True)
        ):
            raise DataError(
                f"{name} ({_SHAPES[name]}) must have shape {wanted}; found {array.shape}."
            )
    sizes = {"m": 1, "k": 1, "p": 1} | sizes

    def get(name):
        shape = tuple(sizes[axis] for axis in _SHAPES[name].split())
        ones = name.endswith("norm_scale")
        return jnp.asarray(found.get(name, np.full(shape, float(ones), np.float32)))

    norm = lambda name: Norm(get(f"{name}_scale"), get(f"{name}_bias"))  # noqa: E731
    return Model(
        tokens=get("tokens"),
        positions=get("positions"),
        heads=Heads(*(get(name) for name in Heads._fields)),
        attention_norm=norm("attention_norm"),
        mlp=Mlp(*(get(name) for name in Mlp._fields)),
        mlp_norm=norm("mlp_norm"),
        outer_norm=norm("outer_norm"),
        causal=causal,
        norm_first=norm_first,
        activation=activation,
        epsilon=epsilon,
        unembedding=get("unembedding") if "unembedding" in found else None,
    )


def _floats(name: str, value: Any) -> np.ndarray:
    """In float32; bfloat16 of torch has no numpy form and is asked for its own."""
    try:
        array = np.asarray(value.float() if hasattr(value, "float") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name} must be an array of floats on the CPU: {error}.") from None
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise DataError(f"{name} must be an array of floats; found dtype {array.dtype}.")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise DataError(f"{name} holds values that are not finite.")
    return array


def model_from_transformer(transformer: Transformer) -> Model:
    """A trained `imr.nn.Transformer` as plain arrays; `record` of both agree."""
    layers = list(transformer.layers)
    arrays = {
        name: np.stack([np.asarray(getattr(layer, name)[...]) for layer in layers])
        for name in _NEEDED
    }
    for name, part in (("into", "widen"), ("out", "narrow")):
        parts = [getattr(layer, part) for layer in layers]
        arrays[name] = np.stack([np.asarray(p.kernel[...]) for p in parts])
        arrays[f"{name}_bias"] = np.stack([np.asarray(p.bias[...]) for p in parts])
    last: Any = transformer.norm
    for name in ("attention_norm", "mlp_norm"):
        for kind in ("scale", "bias"):
            parts = [getattr(getattr(layer, name), kind)[...] for layer in layers]
            arrays[f"{name}_{kind}"] = np.stack(list(map(np.asarray, parts)))
    arrays |= {
        "tokens": transformer.embedding.embedding[...],
        "positions": transformer.position[...],
        "unembedding": transformer.unembedding.kernel[...],
        "outer_norm_scale": last.scale[...],
        "outer_norm_bias": last.bias[...],
    }
    arrays = jax.tree.map(np.asarray, arrays)
    return model_from_arrays(arrays, activation="relu", epsilon=last.epsilon)
