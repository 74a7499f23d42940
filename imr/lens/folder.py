"""Checkpoints in Hugging Face's folder format, read into plain arrays; safetensors only."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from imr.errors import DataError
from imr.lens._tensors import Tensors
from imr.lens.model import ACTIVATIONS, HeadWeights, Mlp, Norm, TransformerWeights


def read_model(folder: str | os.PathLike[str]) -> TransformerWeights:
    """Reads a checkpoint of the BERT or GPT-2 family from `config.json` and safetensors files.

    Half precision is widened to float32. Nothing is ever unpickled.

    Args:
      folder: with `config.json` and `model.safetensors`, or its shards beside
        `model.safetensors.index.json`.
    Raises:
      DataError: if it is no such folder, the architecture or one of its options is not known, a
        tensor is missing, misshapen, quantised or not finite, or a file is damaged.
      MissingPackageError: without safetensors; the extra `lens` has it.
    """
    folder = Path(folder).expanduser()
    config = _Config(folder)
    kind = config.choice("model_type", "model_type", _FAMILIES)
    return _FAMILIES[kind](config, Tensors(folder))


class _Config:
    """The options of a checkpoint, each checked when it is asked for."""

    def __init__(self, folder: Path):
        self.path = folder / "config.json"
        if not self.path.is_file():
            raise DataError(
                f"{folder} is no model folder: config.json is not in it. Give the folder that holds "
                "config.json and model.safetensors."
            )
        try:
            self.options: Any = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{self.path} is damaged: {error}.") from None
        if not isinstance(self.options, dict):
            kind = type(self.options).__name__
            raise DataError(f"{self.path} must hold a JSON object; found a {kind}.")

    def choice(self, name: str, what: str, known: Any, default: Any = None) -> str:
        """An option that is one of the known names."""
        value = self.options.get(name, default)
        if not isinstance(value, str) or value not in known:
            raise DataError(f"{self.path} has {what} {value!r}; known are {', '.join(known)}.")
        return value

    def activation(self, name: str, default: str) -> str:
        """The activation of the MLPs."""
        return self.choice(name, "the activation", ACTIVATIONS, default)

    def positive(self, name: str, kind: Any = int | float, default: Any = None) -> Any:
        """A positive number of that kind."""
        value = self.options.get(name, default)
        if isinstance(value, bool) or not isinstance(value, kind) or not value > 0:
            raise DataError(f"{self.path} must have a positive {name}; found {value!r}.")
        return value

    def sizes(self, *names: str) -> list[int]:
        """Positive integers."""
        return [self.positive(name, int) for name in names]

    def heads(self, name: str, width: int) -> int:
        """The number of heads, which must divide the width of the stream."""
        if width % (heads := self.positive(name, int)):
            raise DataError(f"{self.path} has {heads} heads, which do not divide width {width}.")
        return heads

    def demand(self, **options: Any) -> None:
        """Refuses options that make another architecture of it; a missing one is as demanded."""
        for option, known in options.items():
            if (value := self.options.get(option, known)) != known:
                raise DataError(
                    f"{self.path} has {option} {value!r}, which is not known; {known!r} is."
                )


def _bert(config: _Config, tensors: Tensors) -> TransformerWeights:
    """Reads a model of the BERT family."""
    d, m, l = config.sizes("hidden_size", "intermediate_size", "num_hidden_layers")
    vocabulary, p, t = config.sizes("vocab_size", "max_position_embeddings", "type_vocab_size")
    h = config.heads("num_attention_heads", d)
    config.demand(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    tensors.find_prefix("embeddings.word_embeddings.weight", ("", "bert."))

    def norm(name):
        # The oldest checkpoints keep TensorFlow's names.
        scale, bias = ("gamma", "beta") if f"{name}.gamma" in tensors else ("weight", "bias")
        return Norm(tensors(f"{name}.{scale}", d), tensors(f"{name}.{bias}", d))

    def heads(layer):
        at = f"encoder.layer.{layer}.attention"
        parts = [f"{at}.self.{part}" for part in ("query", "key", "value")]
        q, k, v = (_by_head(tensors(f"{part}.weight", d, d).T, h) for part in parts)
        output = tensors(f"{at}.output.dense.weight", d, d).T.reshape(h, -1, d)
        bq, bk, bv = (tensors(f"{part}.bias", d).reshape(h, -1) for part in parts)
        return HeadWeights(q, k, v, output, bq, bk, bv, tensors(f"{at}.output.dense.bias", d))

    def mlp(layer):
        into, out = (
            f"encoder.layer.{layer}.intermediate.dense",
            f"encoder.layer.{layer}.output.dense",
        )
        return Mlp(
            tensors(f"{into}.weight", m, d).T, tensors(f"{into}.bias", m),
            tensors(f"{out}.weight", d, m).T, tensors(f"{out}.bias", d),
        )  # fmt: skip

    segments = tensors("embeddings.token_type_embeddings.weight", t, d)
    positions = tensors("embeddings.position_embeddings.weight", p, d)
    return TransformerWeights(
        tokens=jnp.asarray(tensors("embeddings.word_embeddings.weight", vocabulary, d)),
        positions=jnp.asarray(positions + segments[0]),
        heads=_stacked(heads, l),
        attention_norm=_stacked(
            lambda layer: norm(f"encoder.layer.{layer}.attention.output.LayerNorm"), l
        ),
        mlp=_stacked(mlp, l),
        mlp_norm=_stacked(lambda layer: norm(f"encoder.layer.{layer}.output.LayerNorm"), l),
        outer_norm=Norm(*map(jnp.asarray, norm("embeddings.LayerNorm"))),
        causal=False,
        norm_first=False,
        activation=config.activation("hidden_act", "gelu"),
        epsilon=float(config.positive("layer_norm_eps", default=1e-12)),
    )


def _gpt2(config: _Config, tensors: Tensors) -> TransformerWeights:
    """Reads a model of the GPT-2 family."""
    vocabulary, p, d, l = config.sizes("vocab_size", "n_positions", "n_embd", "n_layer")
    h = config.heads("n_head", d)
    m = 4 * d if config.options.get("n_inner") is None else config.positive("n_inner", int)
    config.demand(
        scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False
    )
    tensors.find_prefix("wte.weight", ("", "transformer."))
    unembedding = None
    if config.options.get("tie_word_embeddings", True) is not True:
        unembedding = jnp.asarray(tensors.whole("lm_head.weight", vocabulary, d).T)

    def norm(name):
        return Norm(tensors(f"{name}.weight", d), tensors(f"{name}.bias", d))

    def heads(layer):
        at = f"h.{layer}.attn"
        weights = np.split(tensors(f"{at}.c_attn.weight", d, 3 * d), 3, axis=1)
        biases: Any = np.split(tensors(f"{at}.c_attn.bias", 3 * d), 3)
        q, k, v = (_by_head(w, h) for w in weights)
        output = tensors(f"{at}.c_proj.weight", d, d).reshape(h, -1, d)
        bq, bk, bv = (b.reshape(h, -1) for b in biases)
        return HeadWeights(q, k, v, output, bq, bk, bv, tensors(f"{at}.c_proj.bias", d))

    def mlp(layer):
        at = f"h.{layer}.mlp"
        return Mlp(
            tensors(f"{at}.c_fc.weight", d, m), tensors(f"{at}.c_fc.bias", m),
            tensors(f"{at}.c_proj.weight", m, d), tensors(f"{at}.c_proj.bias", d),
        )  # fmt: skip

    return TransformerWeights(
        tokens=jnp.asarray(tensors("wte.weight", vocabulary, d)),
        positions=jnp.asarray(tensors("wpe.weight", p, d)),
        heads=_stacked(heads, l),
        attention_norm=_stacked(lambda layer: norm(f"h.{layer}.ln_1"), l),
        mlp=_stacked(mlp, l),
        mlp_norm=_stacked(lambda layer: norm(f"h.{layer}.ln_2"), l),
        outer_norm=Norm(*map(jnp.asarray, norm("ln_f"))),
        causal=True,
        norm_first=True,
        activation=config.activation("activation_function", "gelu_new"),
        epsilon=float(config.positive("layer_norm_epsilon", default=1e-5)),
        unembedding=unembedding,
    )


def _stacked(make: Callable[[int], Any], count: int) -> Any:
    """Named tuples of layers as one of stacked arrays."""
    layers = [make(number) for number in range(count)]
    return type(layers[0])(*(jnp.asarray(np.stack(x)) for x in zip(*layers, strict=True)))


def _by_head(weight: np.ndarray, h: int) -> Any:
    """(d, h r) to (h, d, r)."""
    return np.moveaxis(weight.reshape(weight.shape[0], h, -1), 1, 0)


_FAMILIES: dict[str, Callable[[_Config, Tensors], TransformerWeights]] = {
    "bert": _bert,
    "gpt2": _gpt2,
}
