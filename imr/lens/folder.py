"""Checkpoints in Hugging Face's folder format, read into plain arrays; safetensors only."""

import os
from collections.abc import Callable, Iterable

import jax
import numpy as np

from imr._files import expanded
from imr.lens._config import Config
from imr.lens._tensors import Tensors
from imr.lens.arrays import model_from_arrays
from imr.lens.decoders import DECODERS, read_decoder
from imr.lens.model import ACTIVATIONS, TransformerWeights

Pair = tuple[np.ndarray, np.ndarray]


def read_model(folder: str | os.PathLike[str]) -> TransformerWeights:
    """Reads a checkpoint of the BERT, GPT-2 or Llama family from `config.json` and safetensors files.

    Of the last: Llama, Mistral, Qwen 2 and 3, Gemma 1 to 3 (text).

    Half precision is widened to float32. Nothing is ever unpickled.

    Args:
      folder: with `config.json` and `model.safetensors`, or its shards beside
        `model.safetensors.index.json`.
    Raises:
      DataError: if it is no such folder, the architecture or one of its options is not known, a
        tensor is missing, misshapen, quantised or not finite, or a file is damaged.
      MissingPackageError: without safetensors; the extra `lens` has it.
    """
    folder = expanded(folder)
    config = Config(folder)
    hint = " Of others read_heads reads the heads, and measure_inputs the streams that you catch."
    kind = config.choice("model_type", "model_type", _FAMILIES, hint=hint)
    return _FAMILIES[kind](config, Tensors(folder))


def can_run(folder: str | os.PathLike[str]) -> bool:
    """Whether `read_model` knows the architecture of a checkpoint; of others `read_heads` has the heads."""
    return Config(expanded(folder)).options.get("model_type") in tuple(_FAMILIES)


def _bert(config: Config, tensors: Tensors) -> TransformerWeights:
    """Reads a model of the BERT family."""
    d, m, l = config.sizes("hidden_size", "intermediate_size", "num_hidden_layers")
    vocabulary, p, t = config.sizes("vocab_size", "max_position_embeddings", "type_vocab_size")
    h = config.heads("num_attention_heads", d)
    config.demand(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    tensors.find_prefix("embeddings.word_embeddings.weight", ("", "bert."))
    tensors.check_layers("encoder.layer.", l)

    def norm(name):
        # The oldest checkpoints keep TensorFlow's names.
        scale, bias = ("gamma", "beta") if f"{name}.gamma" in tensors else ("weight", "bias")
        return tensors(f"{name}.{scale}", d), tensors(f"{name}.{bias}", d)

    def linear(name, into, out):  # torch keeps (out, in)
        return tensors(f"{name}.weight", out, into).T, tensors(f"{name}.bias", out)

    def layer(number):
        at = f"encoder.layer.{number}"
        three = [linear(f"{at}.attention.self.{x}", d, d) for x in ("query", "key", "value")]
        parts = {
            "output": linear(f"{at}.attention.output.dense", d, d),
            "into": linear(f"{at}.intermediate.dense", d, m),
            "out": linear(f"{at}.output.dense", m, d),
            "attention_norm": norm(f"{at}.attention.output.LayerNorm"),
            "mlp_norm": norm(f"{at}.output.LayerNorm"),
        }
        return _layer(h, three, parts)

    arrays = _stacked(layer, l) | _named("outer_norm", norm("embeddings.LayerNorm"))
    segments = tensors("embeddings.token_type_embeddings.weight", t, d)
    positions = tensors("embeddings.position_embeddings.weight", p, d)
    arrays["tokens"] = tensors("embeddings.word_embeddings.weight", vocabulary, d)
    arrays["positions"] = positions + segments[0]
    activation = config.choice("hidden_act", "the activation", ACTIVATIONS, "gelu")
    epsilon = config.epsilon("layer_norm_eps", 1e-12)
    return model_from_arrays(
        arrays, causal=False, norm_first=False, activation=activation, epsilon=epsilon
    )


def _gpt2(config: Config, tensors: Tensors) -> TransformerWeights:
    """Reads a model of the GPT-2 family."""
    vocabulary, p, d, l = config.sizes("vocab_size", "n_positions", "n_embd", "n_layer")
    h = config.heads("n_head", d)
    m = 4 * d if config.options.get("n_inner") is None else config.size("n_inner")
    config.demand(
        scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False
    )
    tensors.find_prefix("wte.weight", ("", "transformer."))
    tensors.check_layers("h.", l)

    def norm(name):
        return tensors(f"{name}.weight", d), tensors(f"{name}.bias", d)

    def linear(name, into, out):
        return tensors(f"{name}.weight", into, out), tensors(f"{name}.bias", out)

    def layer(number):
        at = f"h.{number}"
        three = (np.split(x, 3, axis=-1) for x in linear(f"{at}.attn.c_attn", d, 3 * d))
        parts = {
            "output": linear(f"{at}.attn.c_proj", d, d),
            "into": linear(f"{at}.mlp.c_fc", d, m),
            "out": linear(f"{at}.mlp.c_proj", m, d),
            "attention_norm": norm(f"{at}.ln_1"),
            "mlp_norm": norm(f"{at}.ln_2"),
        }
        return _layer(h, zip(*three, strict=True), parts)

    arrays = _stacked(layer, l) | _named("outer_norm", norm("ln_f"))
    arrays["tokens"] = tensors("wte.weight", vocabulary, d)
    arrays["positions"] = tensors("wpe.weight", p, d)
    if config.options.get("tie_word_embeddings", True) is not True:
        arrays["unembedding"] = tensors("lm_head.weight", vocabulary, d, prefix="").T
    activation = config.choice("activation_function", "the activation", ACTIVATIONS, "gelu_new")
    epsilon = config.epsilon("layer_norm_epsilon", 1e-5)
    return model_from_arrays(arrays, activation=activation, epsilon=epsilon)


def _layer(h: int, three: Iterable[Pair], parts: dict[str, Pair]) -> dict[str, np.ndarray]:
    """Arrays of one layer by the names of `model_from_arrays`, its three projections by head."""
    arrays = {}
    for name, (weight, bias) in zip(("query", "key", "value"), three, strict=True):
        arrays[name] = np.moveaxis(weight.reshape(len(weight), h, -1), 1, 0)
        arrays[f"{name}_bias"] = bias.reshape(h, -1)
    for name, pair in parts.items():
        arrays |= _named(name, pair)
    return arrays | {"output": arrays["output"].reshape(h, -1, len(parts["output"][1]))}


def _named(name: str, pair: Pair) -> dict[str, np.ndarray]:
    """Weight and bias, or scale and bias, by the names of `model_from_arrays`."""
    return {f"{name}_scale" if name.endswith("norm") else name: pair[0], f"{name}_bias": pair[1]}


def _stacked(layer: Callable[[int], dict[str, np.ndarray]], count: int) -> dict[str, np.ndarray]:
    return jax.tree.map(lambda *x: np.stack(x), *map(layer, range(count)))


_FAMILIES: dict[str, Callable[[Config, Tensors], TransformerWeights]] = {
    "bert": _bert,
    "gpt2": _gpt2,
    **dict.fromkeys(DECODERS, read_decoder),
}
