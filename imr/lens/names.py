"""Where the weights of heads lie in a checkpoint: one table of names for each architecture."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class HeadNames:
    """The names of one stack of attention layers: of tensors, and of options in config.json.

    Names of tensors are those behind `layer`, less `.weight` and `.bias`, unless they are said to lie
    outside; an empty name means that there is none.

    Args:
      layer: the beginning of the names of a layer, with {} for its number.
      query, key, value, output: the projections.
      packed: one tensor for queries, keys and values, instead of three.
      packed_by_head: whether it holds the three of each head together, not all queries first.
      transposed: whether weights are (in, out), not (out, in) as torch's Linear has them.
      biased: whether all projections must have a bias; if not, those that are there are read.
      query_norm, key_norm: RMS norms of queries and keys.
      layer_scale: what multiplies the output, whole.
      norm: through which heads read; if not `norm_first`, the one that ends each layer.
      first_norm: in place of `norm` for the first layer, outside of layers: if not `norm_first` it has
        made the embeddings, unless it is of another width. If both are said to be none, it is none.
      source_norm: through which keys and values of cross-attention read, outside of layers.
      output_norm: an RMS norm of what the heads add together.
      norm_first: whether norms come before the parts.
      rms, one_plus: whether norms are RMS norms, and whether their scale is 1 + weight.
      joint_norm: whether norms of queries and keys go over all heads together.
      config: the object in config.json that holds the options, if not itself.
      count, width, heads: options: the number of layers, the width of the stream, the heads.
      groups, size: options: key heads, and features of a head; by default `heads`, and the quotient.
      scale: the option whose inverse root multiplies logits; by default `size`.
      scaled: whether anything multiplies logits.
      cap, epsilon: options: soft capping, and what norms add, with its default.
      base: option and default of the base of rotary positions; without it there are none.
      local_base: the same for layers with a window.
      part: option and default of the share of a head's features that turns.
      window: option: how many tokens a layer with a window sees, on both sides together if not `causal`.
      full: option and default of a number n, and k: layers i with i = k modulo n have no window.
      causal, cross: as in `Heads`.
      demands: options that must have these values if they are there.
      defaults: values of options that are not there.

    >>> HeadNames(layer="layers.{}.", query="q", key="k", value="v", output="o").heads
    'num_attention_heads'
    """

    layer: str
    query: str = ""
    key: str = ""
    value: str = ""
    output: str
    packed: str = ""
    packed_by_head: bool = False
    transposed: bool = False
    biased: bool = False
    query_norm: str = ""
    key_norm: str = ""
    layer_scale: str = ""
    norm: str = ""
    first_norm: str | None = None
    source_norm: str = ""
    output_norm: str = ""
    norm_first: bool = True
    rms: bool = False
    one_plus: bool = False
    joint_norm: bool = False
    config: str = ""
    count: str = "num_hidden_layers"
    width: str = "hidden_size"
    heads: str = "num_attention_heads"
    groups: str = ""
    size: str = ""
    scale: str = ""
    scaled: bool = True
    cap: str = ""
    epsilon: tuple[str, float] = ("layer_norm_eps", 1e-12)
    base: tuple[str, float] | None = None
    local_base: tuple[str, float] | None = None
    part: tuple[str, float] = ("partial_rotary_factor", 1.0)
    window: str = ""
    full: tuple[str, int, int] | None = None
    causal: bool = False
    cross: bool = False
    demands: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


_BERT = HeadNames(
    layer="encoder.layer.{}.",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    output="attention.output.dense",
    biased=True,
    norm="output.LayerNorm",
    first_norm="embeddings.LayerNorm",
    norm_first=False,
    demands={"position_embedding_type": "absolute", "is_decoder": False},
)
_DISTILBERT = HeadNames(
    layer="transformer.layer.{}.",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    output="attention.out_lin",
    biased=True,
    norm="output_layer_norm",
    first_norm="embeddings.LayerNorm",
    norm_first=False,
    count="n_layers",
    width="dim",
    heads="n_heads",
)
_ALBERT = HeadNames(
    layer="encoder.albert_layer_groups.0.albert_layers.{}.",
    query="attention.query",
    key="attention.key",
    value="attention.value",
    output="attention.dense",
    biased=True,
    norm="full_layer_layer_norm",  # the one layer reads what it has made itself
    norm_first=False,
    count="inner_group_num",
    demands={"num_hidden_groups": 1, "inner_group_num": 1, "position_embedding_type": "absolute"},
    defaults={"inner_group_num": 1},
)
_MODERNBERT = HeadNames(
    layer="layers.{}.",
    packed="attn.Wqkv",
    output="attn.Wo",
    norm="attn_norm",
    first_norm="",  # the first layer reads the embeddings as they are
    epsilon=("norm_eps", 1e-5),
    base=("global_rope_theta", 160000.0),
    local_base=("local_rope_theta", 10000.0),
    window="local_attention",
    full=("global_attn_every_n_layers", 3, 0),
)
_GPT2 = HeadNames(
    layer="h.{}.",
    packed="attn.c_attn",
    output="attn.c_proj",
    transposed=True,
    biased=True,
    norm="ln_1",
    count="n_layer",
    width="n_embd",
    heads="n_head",
    epsilon=("layer_norm_epsilon", 1e-5),
    causal=True,
    demands={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
)
_GPT_NEOX = HeadNames(
    layer="layers.{}.",
    packed="attention.query_key_value",
    packed_by_head=True,
    output="attention.dense",
    norm="input_layernorm",
    epsilon=("layer_norm_eps", 1e-5),
    base=("rotary_emb_base", 10000.0),
    part=("rotary_pct", 0.25),
    causal=True,
)
_LLAMA = HeadNames(
    layer="layers.{}.",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.o_proj",
    norm="input_layernorm",
    rms=True,
    groups="num_key_value_heads",
    size="head_dim",
    epsilon=("rms_norm_eps", 1e-6),
    base=("rope_theta", 10000.0),
    window="sliding_window",
    causal=True,
)
_QWEN3 = replace(_LLAMA, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")
_GEMMA = replace(_LLAMA, one_plus=True)
_GEMMA2 = replace(
    _GEMMA,
    output_norm="post_attention_layernorm",
    scale="query_pre_attn_scalar",
    cap="attn_logit_softcapping",
    full=("sliding_window_pattern", 2, 1),
    defaults={"query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0},
)
_GEMMA3 = replace(
    _GEMMA2,
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
    base=("rope_theta", 1000000.0),
    local_base=("rope_local_base_freq", 10000.0),
    full=("sliding_window_pattern", 6, 5),
    defaults={"query_pre_attn_scalar": 256},
)
_OLMO2 = replace(
    _QWEN3, norm="", output_norm="post_attention_layernorm", joint_norm=True,
    epsilon=("rms_norm_eps", 1e-5),
)  # fmt: skip
_VIT = HeadNames(
    layer="encoder.layer.{}.",
    query="attention.attention.query",
    key="attention.attention.key",
    value="attention.attention.value",
    output="attention.output.dense",
    norm="layernorm_before",
)
_DINOV2 = replace(
    _VIT, norm="norm1", layer_scale="layer_scale1.lambda1", epsilon=("layer_norm_eps", 1e-6)
)
_CLIP_TEXT = HeadNames(
    layer="text_model.encoder.layers.{}.",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.out_proj",
    biased=True,
    norm="layer_norm1",
    epsilon=("layer_norm_eps", 1e-5),
    causal=True,
    defaults={"hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 12},
)
_CLIP_VISION = replace(
    _CLIP_TEXT,
    layer="vision_model.encoder.layers.{}.",
    causal=False,
    defaults={"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12},
)
_WHISPER = replace(
    _CLIP_TEXT,
    layer="encoder.layers.{}.",
    biased=False,  # keys have none
    norm="self_attn_layer_norm",
    count="encoder_layers",
    width="d_model",
    heads="encoder_attention_heads",
    causal=False,
    defaults={},
)
_WHISPER_DECODER = replace(
    _WHISPER,
    layer="decoder.layers.{}.",
    count="decoder_layers",
    heads="decoder_attention_heads",
    causal=True,
)
_WHISPER_CROSS = replace(
    _WHISPER_DECODER,
    query="encoder_attn.q_proj",
    key="encoder_attn.k_proj",
    value="encoder_attn.v_proj",
    output="encoder_attn.out_proj",
    norm="encoder_attn_layer_norm",
    source_norm="encoder.layer_norm",
    causal=False,
    cross=True,
)
_VITS = HeadNames(  # the text encoder of a voice
    layer="text_encoder.encoder.layers.{}.",
    query="attention.q_proj",
    key="attention.k_proj",
    value="attention.v_proj",
    output="attention.out_proj",
    norm="final_layer_norm",
    first_norm="",
    norm_first=False,
    epsilon=("layer_norm_eps", 1e-5),
)
_T5 = HeadNames(
    layer="encoder.block.{}.layer.0.",
    query="SelfAttention.q",
    key="SelfAttention.k",
    value="SelfAttention.v",
    output="SelfAttention.o",
    norm="layer_norm",
    rms=True,
    count="num_layers",
    width="d_model",
    heads="num_heads",
    size="d_kv",
    scaled=False,
    epsilon=("layer_norm_epsilon", 1e-6),
)
_T5_DECODER = replace(
    _T5, layer="decoder.block.{}.layer.0.", count="num_decoder_layers", causal=True
)
_T5_CROSS = replace(
    _T5_DECODER,
    layer="decoder.block.{}.layer.1.",
    query="EncDecAttention.q",
    key="EncDecAttention.k",
    value="EncDecAttention.v",
    output="EncDecAttention.o",
    source_norm="encoder.final_layer_norm",
    causal=False,
    cross=True,
)
_T5_PARTS = {"encoder": _T5, "decoder": _T5_DECODER, "cross": _T5_CROSS}

FAMILIES: dict[str, dict[str, HeadNames]] = {
    **{
        kind: {"encoder": _BERT}
        for kind in ("bert", "roberta", "xlm-roberta", "camembert", "electra")
    },
    "distilbert": {"encoder": _DISTILBERT},
    "albert": {"encoder": _ALBERT},
    "modernbert": {"encoder": _MODERNBERT},
    "gpt2": {"decoder": _GPT2},
    "gpt_neox": {"decoder": _GPT_NEOX},
    **{kind: {"decoder": _LLAMA} for kind in ("llama", "mistral", "qwen2")},
    "qwen3": {"decoder": _QWEN3},
    "gemma": {"decoder": _GEMMA},
    "gemma2": {"decoder": _GEMMA2},
    "gemma3_text": {"decoder": _GEMMA3},
    "olmo2": {"decoder": _OLMO2},
    "vit": {"vision": _VIT},
    **{kind: {"vision": _DINOV2} for kind in ("dinov2", "dinov2_with_registers")},
    "clip": {
        "text": replace(_CLIP_TEXT, config="text_config"),
        "vision": replace(_CLIP_VISION, config="vision_config"),
    },
    # Alone, each has a prefix or none, by the version of transformers that has saved it.
    "clip_text_model": {"text": replace(_CLIP_TEXT, layer="encoder.layers.{}.")},
    "clip_vision_model": {"vision": replace(_CLIP_VISION, layer="encoder.layers.{}.")},
    "whisper": {"encoder": _WHISPER, "decoder": _WHISPER_DECODER, "cross": _WHISPER_CROSS},
    "vits": {"encoder": _VITS},
    **dict.fromkeys(("t5", "mt5"), _T5_PARTS),
}
"""By `model_type` in config.json, and by part of the model: the tables that `read_heads` knows."""
