"""Models that are not on disk: weights handed over as arrays, and transformers of `imr.nn`."""

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import jax.numpy as jnp
import numpy as np

from imr._checks import check_choice
from imr._parameters import as_number
from imr.errors import DataError
from imr.lens.heads import Heads, HeadWeights, Norm
from imr.lens.model import ACTIVATIONS, Mlp, TransformerWeights
from imr.nn import Transformer

_NEEDED = {"query": "l h d r", "key": "l h d r", "value": "l h d r", "output": "l h r d"}
_AXES = _NEEDED | {
    "query_bias": "l h r", "key_bias": "l h r", "value_bias": "l h r", "output_bias": "l d",
    "into": "l d m", "into_bias": "l m", "out": "l m d", "out_bias": "l d",
    "tokens": "k d", "positions": "p d", "unembedding": "d k",
    "attention_norm_scale": "l d", "attention_norm_bias": "l d", "mlp_norm_scale": "l d",
    "mlp_norm_bias": "l d", "outer_norm_scale": "d", "outer_norm_bias": "d",
}  # fmt: skip


def model_from_arrays(
    arrays: Mapping[str, Any],
    *,
    causal: bool = True,
    norm_first: bool = True,
    activation: str = "gelu",
    epsilon: float = 1e-5,
) -> TransformerWeights:
    """A model from weights of flax, torch (on the CPU, detached), numpy or anything like them.

    Args:
      arrays: by name, in the order (in, out); torch's Linear keeps (out, in), so transpose. Needed:
        query, key, value (l, h, d, r) and output (l, h, r, d). Optional: query_bias, key_bias,
        value_bias (l, h, r), output_bias (l, d); into (l, d, m), into_bias (l, m), out (l, m, d),
        out_bias (l, d); tokens (k, d), positions (p, d), unembedding (d, k); attention_norm_scale,
        attention_norm_bias, mlp_norm_scale, mlp_norm_bias (l, d), outer_norm_scale,
        outer_norm_bias (d,). If they are missing, biases are 0, norms have scale 1, the MLP adds
        nothing, there is one token and one position, and the transposed embeddings unembed.
      causal: whether a token sees only itself and those before it.
      norm_first: whether norms come before the parts.
      activation: of the MLP.
      epsilon: added to the variance in norms.
    Raises:
      DataError: if a name is not known, or an array is missing, of another shape or not finite.
      ImrError: if `activation` or `epsilon` is out of its range.

    >>> w = np.ones((1, 2, 4, 3))
    >>> model = model_from_arrays({"query": w, "key": w, "value": w, "output": np.ones((1, 2, 3, 4))})
    >>> model.heads.query_bias.shape
    (1, 2, 3)
    """
    check_choice("activation", activation, tuple(ACTIVATIONS))
    as_number("epsilon", epsilon, "[0, 1]")
    if unknown := set(arrays) - set(_AXES):
        raise DataError(
            f"arrays has {', '.join(sorted(unknown))}; known names are {', '.join(_AXES)}."
        )
    if missing := [name for name in _NEEDED if name not in arrays]:
        raise DataError(f"arrays must have {', '.join(_NEEDED)}; {', '.join(missing)} is missing.")
    given = {name: _floats(name, value) for name, value in arrays.items()}
    sizes = {"m": 1, "k": 1, "p": 1} | _sizes(given)

    def get(name):
        shape = tuple(sizes[axis] for axis in _AXES[name].split())
        default = np.full(shape, float(name.endswith("norm_scale")), np.float32)
        return jnp.asarray(given.get(name, default))

    def norm(name):
        return Norm(get(f"{name}_scale"), get(f"{name}_bias"))

    weights: Any = dict(zip(HeadWeights._fields, map(get, HeadWeights._fields), strict=True))
    return TransformerWeights(
        tokens=get("tokens"),
        positions=get("positions"),
        attention=Heads(
            **weights,
            scale=sizes["r"] ** -0.5,
            norm_first=norm_first,
            epsilon=epsilon,
            causal=causal,
        ),
        attention_norm=norm("attention_norm"),
        mlp=Mlp(*map(get, Mlp._fields[:4])),
        mlp_norm=norm("mlp_norm"),
        outer_norm=norm("outer_norm"),
        activation=activation,
        unembedding=get("unembedding") if "unembedding" in given else None,
    )


def _sizes(given: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The length of each axis, on which all arrays must agree."""
    sizes: dict[str, int] = {}
    for name, array in given.items():
        axes = _AXES[name].split()
        if array.ndim != len(axes) or not array.size:
            raise DataError(f"{name} must have axes ({_AXES[name]}); found shape {array.shape}.")
        shape = tuple(sizes.get(axis, "any") for axis in axes)
        pairs = zip(axes, array.shape, strict=True)
        if any(sizes.setdefault(axis, size) != size for axis, size in pairs):
            raise DataError(f"{name} ({_AXES[name]}) must have shape {shape}; found {array.shape}.")
    return sizes


def _floats(name: str, value: Any) -> np.ndarray:
    """An array in float32; bfloat16 of torch has no numpy form, but `.float()`."""
    try:
        array = np.asarray(value.float() if hasattr(value, "float") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name} must be an array of floats on the CPU: {error}.") from None
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise DataError(f"{name} must be an array of floats; found dtype {array.dtype}.")
    array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise DataError(f"{name} holds values that are not finite.")
    return array


def model_from_transformer(transformer: Transformer) -> TransformerWeights:
    """A trained `imr.nn.Transformer` as plain arrays, whose activations are the same.

    Args:
      transformer: of `imr.nn`.
    """
    paths = {name: name for name in _NEEDED} | {
        f"{norm}_{kind}": f"{norm}.{kind}"
        for norm in ("attention_norm", "mlp_norm") for kind in ("scale", "bias")
    } | {
        "into": "widen.kernel", "into_bias": "widen.bias",
        "out": "narrow.kernel", "out_bias": "narrow.bias",
    }  # fmt: skip
    outer = {
        "tokens": "embedding.embedding", "positions": "position", "unembedding": "unembedding.kernel",
        "outer_norm_scale": "norm.scale", "outer_norm_bias": "norm.bias",
    }  # fmt: skip

    def read(module, path):
        return np.asarray(attrgetter(path)(module)[...])

    layers = transformer.layers
    arrays = {name: np.stack([read(layer, at) for layer in layers]) for name, at in paths.items()}
    arrays |= {name: read(transformer, at) for name, at in outer.items()}
    return model_from_arrays(arrays, activation="relu", epsilon=transformer.norm.epsilon)
