"""The Llama family without transformers: Gemma 2, which has most options, against plain numpy."""

import json

import jax
import numpy as np
import pytest

from imr import lens
from tests.problems import error

safetensors = pytest.importorskip("safetensors.numpy", reason="the extra `lens` is not installed")

H, G, R, D, M, K, N = 4, 2, 6, 10, 14, 17, 7
CONFIG = {
    "model_type": "gemma2", "hidden_size": D, "num_attention_heads": H, "num_key_value_heads": G,
    "num_hidden_layers": 2, "head_dim": R, "intermediate_size": M, "vocab_size": K, "rope_theta": 50.0,
    "query_pre_attn_scalar": 9, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
    "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"], "rms_norm_eps": 1e-3,
}  # fmt: skip
SHAPES = {
    "self_attn.q_proj": (H * R, D), "self_attn.k_proj": (G * R, D), "self_attn.v_proj": (G * R, D),
    "self_attn.o_proj": (D, H * R), "mlp.gate_proj": (M, D), "mlp.up_proj": (M, D), "mlp.down_proj": (D, M),
    "input_layernorm": (D,), "post_attention_layernorm": (D,), "pre_feedforward_layernorm": (D,),
    "post_feedforward_layernorm": (D,),
}  # fmt: skip


def tensors():
    random = np.random.default_rng(0)
    shapes = {f"layers.{i}.{name}": shape for i in range(2) for name, shape in SHAPES.items()}
    shapes |= {"embed_tokens": (K, D), "norm": (D,)}
    return {
        f"model.{name}.weight": random.normal(size=s).astype(np.float32) / 2
        for name, s in shapes.items()
    }


def plain(weights, tokens):
    """Streams before each layer, and logits, in float64."""

    def of(name):
        return np.float64(weights[f"model.{name}.weight"])

    def norm(x, name):
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-3) * (1 + of(name))

    def split(x, name):
        return np.moveaxis((x @ of(name).T).reshape(N, -1, R), 1, 0)

    def turn(x):
        angles = np.arange(N)[:, None] * 50.0 ** -(np.arange(0, R, 2) / R)
        a, b = np.split(x, 2, axis=-1)
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    x, streams = of("embed_tokens")[tokens] * D**0.5, []
    distance = np.arange(N)[:, None] - np.arange(N)
    for i, reach in enumerate((2, N)):
        at = f"layers.{i}."
        streams.append(x)
        read = norm(x, at + "input_layernorm")
        q, k, v = (split(read, f"{at}self_attn.{n}_proj") for n in "qkv")
        k, v = (np.repeat(y, H // G, axis=0) for y in (k, v))
        logits = 2 * np.tanh(turn(q) @ np.swapaxes(turn(k), 1, 2) / 3 / 2)
        p = np.exp(logits) * ((distance >= 0) & (distance <= reach))
        moved = np.moveaxis(p / p.sum(axis=-1, keepdims=True) @ v, 0, 1).reshape(N, -1)
        x = x + norm(moved @ of(at + "self_attn.o_proj").T, at + "post_attention_layernorm")
        read = norm(x, at + "pre_feedforward_layernorm")
        gate, up = (read @ of(f"{at}mlp.{n}_proj").T for n in ("gate", "up"))
        gate = gate / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (gate + 0.044715 * gate**3)))
        x = x + norm((gate * up) @ of(at + "mlp.down_proj").T, at + "post_feedforward_layernorm")
    return np.stack(streams), 3 * np.tanh(norm(x, "norm") @ of("embed_tokens").T / 3)


@pytest.mark.acceptance
def test_a_model_with_all_options_against_plain_numpy(tmp_path):
    """Streams, logits, label terms with the slope of capping, and shares of grouped heads."""
    weights, tokens = tensors(), np.arange(N) * 5 % K
    safetensors.save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    model = lens.read_model(tmp_path)
    taken = lens.record(model, tokens)
    streams, logits = plain(weights, tokens)
    assert error(taken.before, streams) < 1e-5
    assert error(lens.unembed(model, taken.final), logits) < 1e-5
    total = np.asarray(taken.updates).sum(axis=1)  # without biases, all that attention adds
    assert error(total, taken.middle - taken.before) < 1e-5
    c = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) * (1 - (logits / 3) ** 2)
    term, added = c @ weights["model.embed_tokens.weight"], np.asarray(taken.mlp[1])
    term, added = (y - y.mean(axis=0) for y in (term, added))
    wanted = (term * added).sum() / np.linalg.norm(term) / np.linalg.norm(added)
    labels = lens.measure_text(model, tokens, N, jax.random.key(0), 2).labels
    assert labels is not None
    np.testing.assert_allclose([labels.final[1], labels.next[1]], wanted, atol=1e-5)
    shares = np.asarray(lens.gradient_shares(model, tokens, N, jax.random.key(0), 512))
    heads = lens.read_heads(tmp_path)[1]

    def update(x):
        return lens.head_updates(heads, x.reshape(N, D), np.tri(N, dtype=bool)).updates.reshape(
            H, -1
        )

    for jacobian, share in zip(
        jax.jit(jax.jacobian(update))(taken.inputs[1].ravel()), shares[1], strict=True
    ):
        even = (jacobian + jacobian.T) / 2
        np.testing.assert_allclose(
            (even**2).sum() / (jacobian**2).sum(), share, atol=0.01
        )  # they lie from 0.50 to 0.59
