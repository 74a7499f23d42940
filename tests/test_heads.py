"""Heads of any family: reading them, folding norms, and gradients of their energies."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import imr
from imr import lens
from imr.lens import Heads, Norm
from tests.problems import error

safetensors = pytest.importorskip("safetensors.numpy", reason="the extra `lens` is not installed")

L, H, G, D, R = 2, 4, 2, 12, 6
CONFIG = {
    "model_type": "qwen3", "hidden_size": D, "num_attention_heads": H, "num_key_value_heads": G,
    "num_hidden_layers": L, "head_dim": R, "rms_norm_eps": 1e-6, "rope_theta": 100.0,
}  # fmt: skip


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def heads_of(seed=0, groups=G, **parts):
    """Random heads of one layer; what is given stands."""
    shapes = {
        "query": (H, D, R),
        "key": (groups, D, R),
        "value": (groups, D, R),
        "output": (H, R, D),
    }
    weights = {name: draw((seed, i), *s) for i, (name, s) in enumerate(shapes.items())}
    return Heads(**(weights | {"scale": R**-0.5} | parts))


# Reading


def tensors_of(layer, heads, prefix=""):
    """One layer in the format of Qwen 3; torch keeps (out, in)."""
    at = f"{prefix}layers.{layer}."

    def flat(w):
        return np.moveaxis(w, 0, 1).reshape(D, -1).T

    return {
        f"{at}self_attn.q_proj.weight": flat(heads.query),
        f"{at}self_attn.k_proj.weight": flat(heads.key),
        f"{at}self_attn.v_proj.weight": flat(heads.value),
        f"{at}self_attn.o_proj.weight": heads.output.reshape(H * R, D).T,
        f"{at}self_attn.q_norm.weight": heads.query_norm[0],
        f"{at}self_attn.k_norm.weight": heads.key_norm[0],
        f"{at}input_layernorm.weight": heads.norm.scale,
    }


def qwen(seed):
    norms = {
        "query_norm": np.tile(draw((seed, 7), R), (H, 1)),
        "key_norm": np.tile(draw((seed, 8), R), (G, 1)),
    }
    scale = draw((seed, 9), D)
    return heads_of(seed, **norms, norm=Norm(scale, 0 * scale), rms=True)


def write(folder, prefix="", change=None, drop=(), dtype=np.float32, **options):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for layer in range(L):
        tensors |= tensors_of(layer, qwen(layer), prefix)
    tensors = {
        k: np.ascontiguousarray(v.astype(dtype)) for k, v in tensors.items() if k not in drop
    }
    safetensors.save_file(tensors | (change or {}), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | options))
    return folder


@pytest.mark.parametrize("prefix", ["", "model.", "0.auto_model.", "_orig_mod.module."])
def test_layers_are_read_behind_any_prefix_in_half_precision(tmp_path, prefix):
    layers = lens.read_heads(write(tmp_path, prefix, dtype=ml_dtypes.bfloat16))
    assert layers.names == ["decoder.0", "decoder.1"]
    assert len(layers) == len(layers[:]) == L
    for made, read in zip(map(qwen, range(L)), layers, strict=True):
        for name in ("query", "key", "value", "output", "query_norm", "key_norm"):
            wanted = np.asarray(getattr(made, name), ml_dtypes.bfloat16).astype(np.float32)
            np.testing.assert_array_equal(getattr(read, name), wanted)
        np.testing.assert_allclose(read.frequencies, 100.0 ** -(np.arange(3) / 3))
        assert read.rms
        assert read.causal
        assert read.scale == pytest.approx(R**-0.5)
    assert lens.read_heads(tmp_path, prefix=prefix)[-1].key.shape == (G, D, R)
    assert lens.head_weights(layers).key.shape == (L, H, D, R)


def test_a_table_of_names_makes_an_architecture_known(tmp_path):
    folder = write(tmp_path, model_type="mine")
    with pytest.raises(imr.DataError, match=r"'mine'; known are bert, .* Give names=, a table"):
        lens.read_heads(folder)
    names = replace(lens.FAMILIES["qwen3"]["decoder"], query_norm="", key_norm="")
    read = lens.read_heads(folder, names={"mine": names})
    assert read.names == ["mine.0", "mine.1"]
    assert read[0].query_norm is None
    with pytest.raises(imr.ImrError, match=r"part must be .*mine.*; found 'cross'"):
        lens.read_heads(folder, names={"mine": names}, part="cross")


def test_options_of_before_transformers_5_say_the_same(tmp_path):
    def read(number, **options):
        return lens.read_heads(write(tmp_path / str(number), **options))

    new = read(0, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 50.0})
    old = read(1, rope_scaling={"type": "linear", "factor": 4.0}, rope_theta=50.0)
    np.testing.assert_allclose(new[0].frequencies, old[0].frequencies)
    np.testing.assert_allclose(new[0].frequencies, 50.0 ** -(np.arange(3) / 3) / 4)
    gemma = {
        "model_type": "gemma3_text",
        "rope_theta": 50.0,
        "rope_local_base_freq": 10.0,
        "sliding_window": 4,
    }
    tables = {"decoder": replace(lens.FAMILIES["gemma3_text"]["decoder"], output_norm="")}
    folder = write(
        tmp_path / "2",
        **gemma,
        sliding_window_pattern=2,
        rope_scaling={"type": "linear", "factor": 8.0},
    )
    local, whole = lens.read_heads(folder, names=tables)
    assert (local.reach, whole.reach) == (3, None)
    np.testing.assert_allclose(local.frequencies, 10.0 ** -(np.arange(3) / 3))
    np.testing.assert_allclose(whole.frequencies, 50.0 ** -(np.arange(3) / 3) / 8)
    kinds = {"full_attention": {"rope_theta": 50.0, "rope_type": "linear", "factor": 8.0},
             "sliding_attention": {"rope_theta": 10.0, "rope_type": "default"}}  # fmt: skip
    types = ["sliding_attention", "full_attention"]
    folder = write(tmp_path / "3", **gemma, layer_types=types, rope_parameters=kinds)
    for ours, theirs in zip(lens.read_heads(folder, names=tables), (local, whole), strict=True):
        np.testing.assert_allclose(ours.frequencies, theirs.frequencies)
        assert ours.reach == theirs.reach


@pytest.mark.usefixtures("unchecked")
def test_checkpoints_that_are_refused(tmp_path):
    at = "layers.0.self_attn.k_proj"

    def refuses(words, **changes):
        with pytest.raises(imr.DataError, match=words) as caught:
            list(lens.read_heads(write(tmp_path, **changes)))
        assert len(str(caught.value)) < 1000

    refuses(r"k_proj.weight must have shape \(12, 12\), 2 heads of 6 features, as config.json says; "
            r"found \(18, 12\)", change={f"{at}.weight": draw(0, 18, D)})  # fmt: skip
    refuses("has 3 key heads, which do not divide 4 heads", num_key_value_heads=3)
    refuses("positive num_key_value_heads; found '2'", num_key_value_heads="2")
    refuses("dtype I8: quantised weights are not read. Convert them first: AutoModel",
            change={f"{at}.weight": np.zeros((12, D), np.int8)})  # fmt: skip
    quantised = {f"{at}.qweight": np.zeros((2, 12), np.int32)}
    refuses(r"k_proj.weight is missing.* k_proj.qweight is there: the weights are quantised.*dequantize"
            .replace(" k_proj", " .*k_proj"), drop=(f"{at}.weight",), change=quantised)  # fmt: skip
    first = "layers.0.self_attn.q_proj"
    quantised = {f"{first}.weight_packed": np.zeros((2, 12), np.int32)}
    refuses("is missing, behind whatever prefix.*weight_packed is there: the weights are quantised",
            drop=(f"{first}.weight",), change=quantised)  # fmt: skip
    refuses("not finite", change={f"{at}.weight": np.full((12, D), np.inf, np.float32)})
    refuses(r"lies behind \['', 'teacher.'\]. Say which with prefix=",
            change={f"teacher.{first}.weight": draw(0, 24, D)})  # fmt: skip
    for count in (1, 10**9):
        refuses(f"the weights have 2 layers, but config.json says {count}", num_hidden_layers=count)
    refuses("positive head_dim; found -6", head_dim=-6)
    refuses("has 4 heads, which do not divide width 11", hidden_size=11, head_dim=None)
    with pytest.raises(imr.DataError, match=r"q_proj.weight is missing, behind prefix 'model.'"):
        lens.read_heads(write(tmp_path), prefix="model.")
    refuses(
        "rope_type 'yarn'; known are default, linear, llama3", rope_scaling={"rope_type": "yarn"}
    )
    refuses("must have an object rope_parameters; found 3", rope_parameters=3)
    refuses("positive rope_theta; found 0", rope_theta=0)
    refuses("rope_theta of at most 1000000000000; found 1", rope_theta=10**400)
    refuses("must have layer_types of 2 layers", layer_types=["full_attention"], sliding_window=3)
    refuses("type of layer 0 'chunked'; known are full_attention, sliding_attention",
            layer_types=["chunked", "full_attention"], sliding_window=3)  # fmt: skip
    refuses("positive factor; found None", rope_scaling={"type": "linear"})
    refuses("makes 3 of 6 features turn", rope_parameters={"partial_rotary_factor": 0.5})


# Planted heads and folding

NORMS = {
    "layer norm": {"norm": Norm(1 + 0.3 * draw(20, D), draw(21, D))},
    "norm of the stream": {"norm": Norm(1 + 0.3 * draw(20, D), draw(21, D)), "norm_first": False},
    "rms": {"norm": Norm(1 + 0.3 * draw(20, D), np.zeros(D, np.float32)), "rms": True},
    "output norm": {"output_norm": 1 + 0.3 * draw(22, D), "rms": True},
}
KINDS = NORMS | {
    "grouped": {},
    "query and key norms": {"query_norm": draw(23, H, R), "key_norm": draw(24, G, R)},
    "cross": {"cross": True, "source_norm": Norm(1 + 0.3 * draw(25, D), draw(26, D))}
    | NORMS["layer norm"],
}


def planted(heads, sign):
    """The heads with W_V W_O = sign theta^T once their norms are in the weights."""
    scale = 1.0 if heads.key_norm is None else heads.key_norm[:, None]
    query = np.asarray(lens.head_weights(lens.fold_heads(heads)).query)[0]
    written = np.ones(D) if heads.output_norm is None else heads.output_norm
    if not heads.norm_first:
        written = written / heads.norm.scale
    output = (sign * query.mT / written).astype(np.float32)
    return replace(heads, value=heads.key * scale, output=output)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_planted_heads_of_every_kind_are_recovered(kind, sign):
    heads = planted(heads_of(**KINDS[kind]), sign)
    folded = lens.weight_cosines(lens.head_weights(lens.fold_heads(heads))).whole
    np.testing.assert_allclose(folded, sign, atol=1e-6)
    if heads.norm is not None or heads.output_norm is not None:
        assert np.abs(lens.weight_cosines(lens.head_weights(heads)).whole).max() < 0.999


@pytest.mark.parametrize("kind", NORMS)
def test_folded_heads_do_the_same(kind):
    """What heads read and write, by the norms in plain numpy, and by the folded weights."""
    heads = heads_of(output_bias=draw(30, D), query_bias=draw(31, H, R), **NORMS[kind])
    folded = lens.fold_heads(heads)
    assert folded.norm is folded.output_norm is None
    hat = draw(32, 5, D)
    if not heads.rms:
        hat = hat - hat.mean(axis=1, keepdims=True)
    read = hat if heads.norm is None else hat * heads.norm.scale + heads.norm.bias
    for name in ("query", "key", "value"):
        bias, new = getattr(heads, f"{name}_bias"), getattr(folded, f"{name}_bias")
        plain = read @ getattr(heads, name) + (0 if bias is None else bias[:, None])
        ours = hat @ getattr(folded, name) + (0 if new is None else np.asarray(new)[:, None])
        assert error(ours, plain) < 1e-5
    written = np.asarray(heads.output)
    if heads.output_norm is not None:
        written = written * heads.output_norm
    if not heads.norm_first:
        written = written / heads.norm.scale
    if heads.norm is not None and not heads.rms:
        written = written - written.mean(axis=-1, keepdims=True)
    assert error(folded.output, written) < 1e-6
    assert heads_of().norm is None
    assert (lens.fold_heads(heads_of()).query == heads_of().query).all()


# Gradients

FORMS = {
    "capped, partial, norms of heads": {
        "frequencies": np.array([1.0, 0.1]), "query_norm": draw(40, H, R), "key_norm": draw(41, G, R),
        "cap": 2.0, "epsilon": 1e-2, "causal": True, "reach": 3,
    },
    "norms over all heads, biases": {
        "query_norm": draw(42, H, R), "key_norm": draw(43, G, R), "joint_norm": True, "epsilon": 1e-2,
        "query_bias": draw(44, H, R), "key_bias": draw(45, G, R), "frequencies": np.ones(3),
    },
    "cross": {"cross": True, "query_bias": draw(46, H, R), "cap": 3.0},
}  # fmt: skip


@pytest.mark.laws
@pytest.mark.parametrize("form", FORMS)
def test_gradients_against_autodiff(form):
    """Rows and columns of heads, weighted at random, are jax.grad of their energies."""
    heads = jax.tree.map(np.float64, heads_of(3, **FORMS[form]))
    n, m = 6, 5 if heads.cross else 6
    x, source = (np.float64(draw(seed, size, D)) / 3 for seed, size in ((47, n), (48, m)))
    source = source if heads.cross else None
    bias, shares = np.float64(draw(49, H, n, m)), np.float64(draw(50, H))
    seen = np.array(lens.head_mask(heads, n, m))
    seen[2] = False

    @jax.jit
    def both(x):
        def energy(x):
            gradient = lens.head_gradient(heads, x, seen, source, bias=bias)
            return jnp.sum(shares * gradient.energy), gradient

        return jax.grad(energy, has_aux=True)(x), lens.head_logits(heads, x, source, bias=bias)

    (autodiff, gradient), logits = both(x)
    masked = np.where(seen, logits, -np.inf)[:, [0, 1, 3, 4, 5]]
    assert error(gradient.energy, np.log(np.exp(masked).sum(axis=2)).sum(axis=1)) < 1e-12
    assert error(np.einsum("h,hnd->nd", shares, gradient.rows + gradient.columns), autodiff) < 1e-12
    assert not np.asarray(gradient.rows[:, 2]).any()
    assert bool(np.asarray(gradient.columns).any()) != heads.cross


@pytest.mark.acceptance
def test_plain_heads_have_the_gradient_and_logits_of_head_weights():
    heads = jax.tree.map(np.float64, heads_of(5, query_bias=draw(50, H, R), scale=0.7))
    weights = jax.tree.map(lambda x: jnp.asarray(x[0]), lens.head_weights(heads))
    x, seen = np.float64(draw(52, 6, D)) / 3, jnp.tri(6, dtype=bool)

    @jax.jit
    def both(x):
        far = replace(heads, frequencies=np.ones(3))
        far = lens.head_logits(far, x, positions=np.full(6, 7.0))
        ours, theirs = lens.head_gradient(heads, x, seen), lens.energy_gradient(weights, x, seen)
        return ours, theirs, far, lens.head_logits(heads, x)

    ours, theirs, far, here = both(jnp.asarray(x))
    for a, b in zip(ours, theirs, strict=True):
        assert error(a, b) < 1e-6  # head_weights are float32
    assert error(far, here) < 1e-12


@pytest.mark.usefixtures("unchecked")
def test_heads_and_inputs_that_do_not_fit():
    cross = heads_of(cross=True)
    with pytest.raises(imr.ImrError, match="source is missing, but the heads are cross-attention"):
        lens.head_logits(cross, jnp.ones((3, D)))
    with pytest.raises(imr.ImrError, match="source is given, but the heads are self-attention"):
        lens.head_logits(heads_of(), jnp.ones((3, D)), jnp.ones((2, D)))
    with pytest.raises(imr.ImrError, match="divides the 4 heads of query; found 3"):
        lens.head_weights(heads_of(groups=3))
    with pytest.raises(imr.ImrError, match="layers of equal shapes; found none"):
        lens.head_weights([])
    w = draw(0, 1, 2, 2)
    small = Heads(query=w, key=w, value=w, output=w, scale=1.0)
    with pytest.raises(imr.ImrError, match=r"layers of equal shapes; found .*Measure those of one"):
        lens.head_weights([heads_of(), small])
