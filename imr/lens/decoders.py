"""Decoders of the Llama family from disk: Llama, Mistral, Qwen and Gemma, by options."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imr.lens._config import Config
from imr.lens._tensors import Tensors
from imr.lens.heads import Norm
from imr.lens.model import ACTIVATIONS, Mlp, TransformerWeights
from imr.lens.names import FAMILIES
from imr.lens.reading import Stack

_FAR = 2**30  # the reach of a layer without a window, beside layers with one


class _Options(NamedTuple):
    """What differs beside the heads."""

    activation: tuple[str, ...] = (
        "hidden_act",
    )  # the option, and those before it that still count
    default: str = "silu"
    scaled: bool = False  # whether embeddings are multiplied by the root of the width
    cap: float | None = None  # of logits of tokens, if the option is missing


_GEMMA = _Options(("hidden_activation", "hidden_act"), "gelu_pytorch_tanh", scaled=True)
DECODERS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _Options()),
    **dict.fromkeys(("gemma", "gemma3_text"), _GEMMA),
    "gemma2": _GEMMA._replace(cap=30.0),
}


def read_decoder(config: Config, tensors: Tensors) -> TransformerWeights:
    """Reads a model of the Llama family."""
    kind = config.options["model_type"]
    options, names = DECODERS[kind], FAMILIES[kind]["decoder"]
    stack, given = Stack(config, tensors, names, None), config.options
    config = stack.config  # without options that are null
    config.demand(mlp_bias=False, use_bidirectional_attention=False)
    m, vocabulary = config.sizes("intermediate_size", "vocab_size")
    d, tensors.prefix = stack.width, stack.prefix
    # With a norm of what heads add, this name is that norm's.
    sandwich = bool(names.output_norm)
    mlp_norm = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"

    def layer(i):
        at, heads = names.layer.format(i), stack.layer(i)
        gate, up = (tensors(f"{at}mlp.{name}_proj.weight", m, d).T for name in ("gate", "up"))
        out, nothing = tensors(f"{at}mlp.down_proj.weight", d, m).T, np.zeros(m + d, np.float32)
        mlp: Any = up, nothing[:m], out, nothing[m:], gate
        return {
            "attention": replace(heads, norm=None, reach=None),
            "reach": np.int32(_FAR if heads.reach is None else heads.reach),
            "attention_norm": heads.norm,
            "mlp": Mlp(*mlp),
            "mlp_norm": stack.norm(at + mlp_norm),
            "mlp_output_norm": (
                stack.norm(at + "post_feedforward_layernorm").scale if sandwich else None
            ),
        }

    layers: Any = jax.tree.map(lambda *x: np.stack(x), *map(layer, range(stack.count)))
    if (layers["reach"] == _FAR).all():
        layers["reach"] = None
    if not config.options.get("tie_word_embeddings", not tensors.has("lm_head.weight")):
        layers["unembedding"] = tensors("lm_head.weight", vocabulary, d, prefix="").T
    activation = next((x for x in options.activation if x in config.options), options.activation[0])
    cap = "final_logit_softcapping"
    capped = given.get(cap, options.cap) is not None  # null is no missing option
    weights = jax.tree.map(jnp.asarray, layers)
    return TransformerWeights(
        **weights,
        tokens=jnp.asarray(tensors("embed_tokens.weight", vocabulary, d)),
        positions=None,
        outer_norm=Norm(*map(jnp.asarray, stack.norm("norm"))),
        activation=config.choice(activation, "the activation", ACTIVATIONS, options.default),
        embedding_scale=d**0.5 if options.scaled else 1.0,
        cap=config.number(cap, 10**9, options.cap) if capped else None,
    )
