"""Checkpoints in Hugging Face's folder format, read into plain arrays; safetensors only."""

import importlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from imr.errors import DataError, missing_package
from imr.lens.model import ACTIVATIONS, Heads, Mlp, Model, Norm

_FLOATS = {"F64", "F32", "F16", "BF16"}


def read_model(folder: str | os.PathLike[str]) -> Model:
    """Reads a checkpoint of the BERT or GPT-2 family from `config.json` and safetensors files.

    Half precision is widened to float32. Nothing is ever unpickled.

    Args:
      folder: with `config.json` and `model.safetensors`, or its shards beside
        `model.safetensors.index.json`.

    Raises:
      DataError: where it is no such folder, the architecture or one of its options is not known, a
        tensor is missing, misshapen, quantised or not finite, or a file is damaged.
      MissingPackageError: without safetensors; the extra `lens` has it.
    """
    folder = Path(folder).expanduser()
    config = _config(folder)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _FAMILIES:
        raise DataError(
            f"{folder}/config.json has model_type {kind!r}; known are {', '.join(_FAMILIES)}."
        )
    return _FAMILIES[kind](folder, config, Tensors(folder))


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise DataError(
            f"{folder} is no model folder: config.json is not in it. Give the folder that holds "
            "config.json and model.safetensors."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}.") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} must hold a JSON object; found a {type(found).__name__}.")
    return found


class Tensors:
    """The tensors of a folder by name, each read when it is asked for.

    Args:
      folder: with safetensors files.
    """

    def __init__(self, folder: Path):
        try:
            self._library: Any = importlib.import_module("safetensors")
        except ImportError as error:
            raise missing_package("safetensors", "lens") from error
        index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
        if whole.is_file():
            files = {whole.name}
        elif index.is_file():
            try:
                files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
                if not all(isinstance(name, str) for name in files):
                    raise ValueError
            except (ValueError, KeyError, AttributeError, TypeError):
                raise DataError(f"{index} is damaged: it must hold a weight_map.") from None
        else:
            raise DataError(
                f"{folder} holds no model.safetensors, whole or in shards. Checkpoints of other "
                "formats are not read: convert them with save_pretrained(safe_serialization=True)."
            )
        self._where: dict[str, Path] = {}
        for name in sorted(files):
            with self._open(folder / name) as file:
                self._where.update(dict.fromkeys(file.keys(), folder / name))
        self.prefix = ""

    def _open(self, path: Path) -> Any:
        if not path.is_file():
            raise DataError(f"{path} is missing, which model.safetensors.index.json names.")
        try:
            return self._library.safe_open(path, framework="flax")
        except (self._library.SafetensorError, OSError) as error:
            raise DataError(f"{path} is damaged or no safetensors file: {error}.") from None

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self._where

    def find_prefix(self, name: str, prefixes: tuple[str, ...]) -> None:
        """Sets what stands before all names: a head on top of the model puts one there."""
        known = [prefix for prefix in prefixes if prefix + name in self._where]
        if not known:
            raise DataError(f"tensor {name} is missing, also behind {prefixes[1:]}.")
        self.prefix = known[0]

    def __call__(self, name: str, *shape: int) -> Any:
        """A tensor of that shape in float32, behind the prefix."""
        return self.whole(self.prefix + name, *shape)

    def whole(self, name: str, *shape: int) -> Any:
        """The same, by its whole name."""
        if name not in self._where:
            raise DataError(f"tensor {name} is missing from the checkpoint.")
        path = self._where[name]
        with self._open(path) as file:
            view = file.get_slice(name)
            if (dtype := view.get_dtype()) not in _FLOATS:
                raise DataError(
                    f"tensor {name} has dtype {dtype}: quantised weights are not read. Convert them to "
                    "a floating dtype first."
                )
            if tuple(view.get_shape()) != shape:
                raise DataError(
                    f"tensor {name} must have shape {shape}; found {tuple(view.get_shape())}."
                )
            found = np.asarray(jnp.asarray(file.get_tensor(name), jnp.float32))
        if not np.isfinite(found).all():
            raise DataError(f"tensor {name} holds values that are not finite.")
        return found


def _sizes(folder: Path, config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, int]:
    found = {}
    for key, name in names.items():
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DataError(f"{folder}/config.json must have a positive {name}; found {value!r}.")
        found[key] = value
    if "d" in found and found["d"] % found["h"]:
        raise DataError(
            f"{folder}/config.json has {found['h']} heads, which do not divide width {found['d']}."
        )
    return found


def _activation(folder: Path, name: Any) -> str:
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise DataError(
            f"{folder}/config.json has the activation {name!r}; known are {', '.join(ACTIVATIONS)}."
        )
    return name


def _epsilon(folder: Path, config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise DataError(f"{folder}/config.json must have a positive {name}; found {value!r}.")
    return float(value)


def _known(folder: Path, config: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuses options that make another model of it."""
    for option, known in options.items():
        if (found := config.get(option, known)) != known:
            raise DataError(
                f"{folder}/config.json has {option} {found!r}, which is not known; {known!r} is."
            )


def _stack(make: Callable[[int], Any], count: int) -> Any:
    """Named tuples of layers as one of stacked arrays."""
    layers = [make(number) for number in range(count)]
    return type(layers[0])(*(jnp.asarray(np.stack(x)) for x in zip(*layers, strict=True)))


def _split(weight: np.ndarray, h: int) -> Any:
    """(d, h r) to (h, d, r)."""
    return np.moveaxis(weight.reshape(weight.shape[0], h, -1), 1, 0)


def _bert(folder: Path, config: Mapping[str, Any], tensors: Tensors) -> Model:
    names = {
        "k": "vocab_size", "p": "max_position_embeddings", "d": "hidden_size",
        "h": "num_attention_heads", "l": "num_hidden_layers", "m": "intermediate_size",
        "t": "type_vocab_size",
    }  # fmt: skip
    n = _sizes(folder, config, names)
    options = {
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    }
    _known(folder, config, options)
    tensors.find_prefix("embeddings.word_embeddings.weight", ("", "bert."))
    d, h, m = n["d"], n["h"], n["m"]

    def norm(name):
        # The oldest checkpoints keep TensorFlow's names.
        scale, bias = ("gamma", "beta") if f"{name}.gamma" in tensors else ("weight", "bias")
        return Norm(tensors(f"{name}.{scale}", d), tensors(f"{name}.{bias}", d))

    def heads(layer):
        at = f"encoder.layer.{layer}.attention"
        parts = ("query", "key", "value")
        q, k, v = (_split(tensors(f"{at}.self.{part}.weight", d, d).T, h) for part in parts)
        bq, bk, bv = (tensors(f"{at}.self.{part}.bias", d).reshape(h, -1) for part in parts)
        output = tensors(f"{at}.output.dense.weight", d, d).T.reshape(h, -1, d)
        return Heads(q, k, v, output, bq, bk, bv, tensors(f"{at}.output.dense.bias", d))

    def mlp(layer):
        at = f"encoder.layer.{layer}"
        return Mlp(
            tensors(f"{at}.intermediate.dense.weight", m, d).T,
            tensors(f"{at}.intermediate.dense.bias", m),
            tensors(f"{at}.output.dense.weight", d, m).T,
            tensors(f"{at}.output.dense.bias", d),
        )

    segments = tensors("embeddings.token_type_embeddings.weight", n["t"], d)
    return Model(
        tokens=jnp.asarray(tensors("embeddings.word_embeddings.weight", n["k"], d)),
        positions=jnp.asarray(
            tensors("embeddings.position_embeddings.weight", n["p"], d) + segments[0]
        ),
        heads=_stack(heads, n["l"]),
        attention_norm=_stack(
            lambda layer: norm(f"encoder.layer.{layer}.attention.output.LayerNorm"), n["l"]
        ),
        mlp=_stack(mlp, n["l"]),
        mlp_norm=_stack(lambda layer: norm(f"encoder.layer.{layer}.output.LayerNorm"), n["l"]),
        outer_norm=Norm(*map(jnp.asarray, norm("embeddings.LayerNorm"))),
        causal=False,
        norm_first=False,
        activation=_activation(folder, config.get("hidden_act", "gelu")),
        epsilon=_epsilon(folder, config, "layer_norm_eps", 1e-12),
    )


def _gpt2(folder: Path, config: Mapping[str, Any], tensors: Tensors) -> Model:
    names = {"k": "vocab_size", "p": "n_positions", "d": "n_embd", "h": "n_head", "l": "n_layer"}
    n = _sizes(folder, config, names)
    options = {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }
    _known(folder, config, options)
    tensors.find_prefix("wte.weight", ("", "transformer."))
    d, h = n["d"], n["h"]
    unembedding = None
    if config.get("tie_word_embeddings", True) is not True:
        unembedding = jnp.asarray(tensors.whole("lm_head.weight", n["k"], d).T)
    m = 4 * d if config.get("n_inner") is None else _sizes(folder, config, {"m": "n_inner"})["m"]

    def norm(name):
        return Norm(tensors(f"{name}.weight", d), tensors(f"{name}.bias", d))

    def heads(layer):
        at = f"h.{layer}.attn"
        weights = np.split(tensors(f"{at}.c_attn.weight", d, 3 * d), 3, axis=1)
        biases: Any = np.split(tensors(f"{at}.c_attn.bias", 3 * d), 3)
        q, k, v = (_split(w, h) for w in weights)
        bq, bk, bv = (b.reshape(h, -1) for b in biases)
        output = tensors(f"{at}.c_proj.weight", d, d).reshape(h, -1, d)
        return Heads(q, k, v, output, bq, bk, bv, tensors(f"{at}.c_proj.bias", d))

    def mlp(layer):
        at = f"h.{layer}.mlp"
        return Mlp(
            tensors(f"{at}.c_fc.weight", d, m), tensors(f"{at}.c_fc.bias", m),
            tensors(f"{at}.c_proj.weight", m, d), tensors(f"{at}.c_proj.bias", d),
        )  # fmt: skip

    return Model(
        tokens=jnp.asarray(tensors("wte.weight", n["k"], d)),
        positions=jnp.asarray(tensors("wpe.weight", n["p"], d)),
        heads=_stack(heads, n["l"]),
        attention_norm=_stack(lambda layer: norm(f"h.{layer}.ln_1"), n["l"]),
        mlp=_stack(mlp, n["l"]),
        mlp_norm=_stack(lambda layer: norm(f"h.{layer}.ln_2"), n["l"]),
        outer_norm=Norm(*map(jnp.asarray, norm("ln_f"))),
        causal=True,
        norm_first=True,
        activation=_activation(folder, config.get("activation_function", "gelu_new")),
        epsilon=_epsilon(folder, config, "layer_norm_epsilon", 1e-5),
        unembedding=unembedding,
    )


_FAMILIES: dict[Any, Callable[..., Model]] = {"bert": _bert, "gpt2": _gpt2}
