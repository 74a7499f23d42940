"""Heads of every family against transformers: logits, outputs and norms of tiny random checkpoints.

Modules are found by the values of their weights, not by their names, which transformers changes when
it saves.
"""

import json
from collections import defaultdict

import numpy as np
import pytest

from imr import lens
from tests.problems import error

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
safetensors = pytest.importorskip("safetensors.numpy", reason="the extra `lens` is not installed")

pytestmark = [
    pytest.mark.acceptance,
    # Transformers 4 and the newest torch.
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]

N, K = 11, 30  # tokens, of a vocabulary
PLAIN = {
    "hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 20,
    "vocab_size": K, "max_position_embeddings": 40, "pad_token_id": 0,
}  # fmt: skip
GROUPED = PLAIN | {"num_key_value_heads": 2}
SIZED = GROUPED | {"head_dim": 10}
IMAGES = {
    "hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 20,
    "image_size": 12, "patch_size": 4,
}  # fmt: skip
STACKS = {
    "d_model": 24, "d_kv": 10, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 3, "d_ff": 20,
    "vocab_size": K,
}  # fmt: skip
LOCAL = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
LINEAR = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
CASES = {
    "bert": ("Bert", PLAIN),
    "roberta": ("Roberta", PLAIN),
    "xlm-roberta": ("XLMRoberta", PLAIN),
    "camembert": ("Camembert", PLAIN),
    "distilbert": ("DistilBert", {
        "dim": 24, "n_heads": 4, "n_layers": 2, "hidden_dim": 20, "vocab_size": K, "max_position_embeddings": 40,
    }),
    "electra": ("Electra", PLAIN | {"embedding_size": 12}),
    "electra-wide": ("Electra", PLAIN | {"embedding_size": 24}),
    "albert": ("Albert", PLAIN | {"embedding_size": 12}),
    "modernbert": ("ModernBert", PLAIN | {
        "num_hidden_layers": 4, "local_attention": 6, "layer_types": None, "bos_token_id": 1, "eos_token_id": 2,
        "cls_token_id": 1, "sep_token_id": 2,
    }),
    "gpt2": ("GPT2", {"n_embd": 24, "n_head": 4, "n_layer": 2, "n_positions": 40, "vocab_size": K}),
    "gpt_neox": ("GPTNeoX", PLAIN | {"hidden_size": 32, "rotary_pct": 0.25}),
    "llama": ("Llama", SIZED),
    "llama-3": ("Llama", SIZED | {"rope_parameters": LLAMA3, "attention_bias": True}),
    "mistral": ("Mistral", SIZED | {"sliding_window": 4}),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", SIZED),
    "gemma": ("Gemma", SIZED),
    "gemma2": ("Gemma2", SIZED | LOCAL | {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 12}),
    "gemma3": ("Gemma3Text", SIZED | LOCAL | {"rope_parameters": LINEAR, "query_pre_attn_scalar": 12}),
    "olmo2": ("Olmo2", GROUPED),
    "vit": ("ViT", IMAGES),
    "dinov2": ("Dinov2", IMAGES | {"mlp_ratio": 2}),
    "dinov2_with_registers": ("Dinov2WithRegisters", IMAGES | {"mlp_ratio": 2}),
    "clip-text": ("CLIPText", PLAIN),
    "clip-vision": ("CLIPVision", IMAGES),
    "clip": ("CLIP", {"text_config": PLAIN, "vision_config": IMAGES | {"hidden_size": 32}}),
    "whisper": ("Whisper", {
        "d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 3, "encoder_ffn_dim": 20, "decoder_ffn_dim": 20, "vocab_size": K,
        "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 20, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    }),
    "t5": ("T5", STACKS),
    "mt5": ("MT5", STACKS),
}  # fmt: skip


def before_5(options):
    """Options of rotary positions as transformers 4 has them."""
    options = dict(options)
    rope = options.pop("rope_parameters", {})
    rope = dict(rope.get("full_attention", rope))
    if "rope_theta" in rope:
        options["rope_theta"] = rope.pop("rope_theta")
    return options | ({"rope_scaling": rope} if rope else {})


def saved(kind, folder):
    """A checkpoint of large random weights, and its model."""
    name, options = CASES[kind]
    if transformers.__version__.startswith("4."):
        options = before_5(options)
    config = getattr(transformers, f"{name}Config")(**options)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}Model")._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1.0 if parameter.ndim == 1 and parameter.mean() == 1 else 0.0
            parameter.copy_(scale + 0.3 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder)
    return model


def inputs_of(kind):
    tokens = torch.tensor(np.random.default_rng(0).integers(3, K, (1, N)))
    draw = torch.manual_seed(1)
    if CASES[kind][1].keys() >= IMAGES.keys():
        return {"pixel_values": torch.randn(1, 3, 12, 12, generator=draw)}
    if kind == "clip":
        return {"pixel_values": torch.randn(1, 3, 12, 12, generator=draw), "input_ids": tokens}
    if kind == "whisper":
        features = torch.randn(1, 8, 20, generator=draw)
        return {"input_features": features, "decoder_input_ids": tokens}
    if kind.endswith("t5"):
        return {"input_ids": tokens, "decoder_input_ids": tokens[:, :7]}
    return {"input_ids": tokens}


class Caught:
    """What went into and came out of each module, by the value of one of its parameters."""

    def __init__(self, model, monkeypatch):
        self.calls, self.logits, self.owners = defaultdict(list), [], []
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                self.owners.append((parameter.detach().numpy(), module))
            module.register_forward_hook(self.note)
        softmax = torch.nn.functional.softmax

        def noting(logits, *args, **kwargs):
            self.logits.append(logits[0].detach().numpy())
            return softmax(logits, *args, **kwargs)

        monkeypatch.setattr(torch.nn.functional, "softmax", noting)

    def note(self, module, inputs, output):
        if inputs and torch.is_tensor(inputs[0]) and torch.is_tensor(output):
            pair = (inputs[0][0].detach().numpy(), output[0].detach().numpy(), len(self.logits))
            self.calls[module].append(pair)

    def of(self, parameter):
        """The calls of the one module that has this parameter: input, output, softmaxes before."""
        (module,) = {
            module for value, module in self.owners
            if value.shape == parameter.shape and (value == parameter).all()
        }  # fmt: skip
        return self.calls[module]


def whitened(x, norm, rms):
    """How far x is from scale * (normalised) + bias."""
    x = (x - norm.bias) / norm.scale
    centre = 0 if rms else np.abs(x.mean(axis=-1)).max()
    return max(centre, np.abs((x**2).mean(axis=-1) - 1).max())


def check(kind, folder, monkeypatch):
    """The largest error of logits, outputs and norms, over all layers."""
    model = saved(kind, folder)
    caught = Caught(model, monkeypatch)
    with torch.no_grad():
        model(**inputs_of(kind))
    tensors = safetensors.load_file(folder / "model.safetensors")
    tables = lens.FAMILIES[json.loads((folder / "config.json").read_text())["model_type"]]
    worst = {"logits": 0.0, "outputs": 0.0, "norms": 0.0}
    layers = lens.read_heads(folder)
    # Some versions save the towers of CLIP behind a prefix.
    prefix = kind.removeprefix("clip-") + "_model."
    prefix = (
        prefix if kind.startswith("clip-") and any(t.startswith(prefix) for t in tensors) else ""
    )
    for place, heads in zip(layers.names, layers, strict=True):
        part, i = place.split(".")
        names = tables[part]
        at = prefix + names.layer.format(i)
        reads = caught.of(tensors[at + (names.packed or names.query) + ".weight"])
        writes = caught.of(tensors[at + names.output + ".weight"])
        if names.layer_scale:
            writes = caught.of(tensors[at + names.layer_scale])
        keys = caught.of(tensors[at + names.key + ".weight"]) if names.cross else reads
        assert reads
        for (x, _, before), (source, _, _), (_, written, _) in zip(
            reads, keys, writes, strict=True
        ):
            wanted, bias = caught.logits[before], None
            if kind.endswith("t5") and not names.cross:
                stack = getattr(model, part).block[0].layer[0].SelfAttention
                bias = stack.compute_bias(len(x), len(x))[0].detach().numpy()
            seen = np.asarray(lens.head_mask(heads, len(x), len(source)))
            source = source if names.cross else None
            logits = np.asarray(lens.head_logits(heads, x, source, bias=bias))
            assert ((wanted > -1e9) == seen[None]).all()
            worst["logits"] = max(worst["logits"], error(logits[:, seen], wanted[:, seen]))
            updates = lens.head_updates(heads, x, seen, source, bias=bias).updates
            output = np.asarray(updates).sum(axis=0)
            output = output if heads.output_bias is None else output + heads.output_bias
            worst["outputs"] = max(worst["outputs"], error(output, written))
            if heads.norm is not None and (kind != "albert" or before > 0):
                worst["norms"] = max(worst["norms"], whitened(x, heads.norm, heads.rms))
            if heads.source_norm is not None:
                worst["norms"] = max(worst["norms"], whitened(source, heads.source_norm, heads.rms))
            if names.output_norm:
                ((_, normed, _),) = caught.of(tensors[at + names.output_norm + ".weight"])
                size = np.sqrt((output**2).mean(axis=-1, keepdims=True))
                wrong = error(output / size * heads.output_norm, normed)
                worst["norms"] = max(worst["norms"], wrong)
    assert len(caught.logits) == len(layers) + (kind == "albert")
    return worst


@pytest.mark.parametrize("kind", CASES)
def test_logits_outputs_and_norms(kind, tmp_path, monkeypatch):
    worst = check(kind, tmp_path, monkeypatch)
    assert worst["logits"] < 1e-5
    assert worst["outputs"] < 1e-5
    assert worst["norms"] < 1e-3  # epsilon takes some of the length
