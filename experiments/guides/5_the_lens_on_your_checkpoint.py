# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The lens on your checkpoint
#
# A head with θ = W_Q W_Kᵀ/√r that descends the log-sum-exp of its own attention has the value circuit W_V W_O ∝ −θᵀ. Do the heads of *your* model lean
# that way? Set `FOLDER` to a model folder (config.json and safetensors) of any of the families that `imr.lens` knows; without one this guide writes a
# small Llama of random weights, in which one head is planted. It needs `pip install 'imr[experiments,lens]'`.

# %%
import json
import os
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from safetensors.numpy import save_file

import imr
from imr import lens

plt.rcParams.update(imr.lab.plotting.style() | {"figure.dpi": 90})
FOLDER = os.environ.get("IMR_GUIDE_MODEL", "")

# %%
LAYERS, HEADS, GROUPS, WIDTH, RANK = 6, 6, 3, 96, 16


def write_model(folder):
    """A Llama of random weights; head 2 of layer 3 is the flow without rotary positions."""
    random = np.random.default_rng(0)

    def draw(*shape):
        return (random.normal(size=shape) / WIDTH**0.5).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": draw(50, WIDTH),
        "model.norm.weight": np.ones(WIDTH, np.float32),
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        wide, narrow = HEADS * RANK, GROUPS * RANK
        query, key, value, output = (
            draw(wide, WIDTH),
            draw(narrow, WIDTH),
            draw(narrow, WIDTH),
            draw(WIDTH, wide),
        )
        if layer == 3:
            head, group = (
                slice(2 * RANK, 3 * RANK),
                slice(RANK, 2 * RANK),
            )  # two heads share their keys
            value[group] = key[group]
            output[:, head] = -query[head].T
        tensors |= {
            at + "self_attn.q_proj.weight": query, at + "self_attn.k_proj.weight": key,
            at + "self_attn.v_proj.weight": value, at + "self_attn.o_proj.weight": output,
            at + "input_layernorm.weight": np.ones(WIDTH, np.float32),
            at + "post_attention_layernorm.weight": np.ones(WIDTH, np.float32),
            at + "mlp.gate_proj.weight": draw(2 * WIDTH, WIDTH), at + "mlp.up_proj.weight": draw(2 * WIDTH, WIDTH),
            at + "mlp.down_proj.weight": draw(WIDTH, 2 * WIDTH),
        }  # fmt: skip
    config = {
        "model_type": "llama", "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "vocab_size": 50,
        "num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "intermediate_size": 2 * WIDTH,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "max_position_embeddings": 64,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")


folder = Path(FOLDER or tempfile.mkdtemp())
if not FOLDER:
    write_model(folder)

# %% [markdown]
# ## Weights
#
# `read_heads` streams the attention weights, a layer at a time, without a forward pass. `fold_heads` puts the norms into them, and `head_weights` stacks
# their circuits.

# %%
layers = lens.read_heads(folder)
print(layers.names[0], "...", layers.names[-1], layers[0].query.shape)
heads = lens.head_weights(lens.fold_heads(each) for each in layers)
cosine = lens.weight_cosines(heads).whole
print(f"mean cosine with θᵀ {cosine.mean():.3f}, negative in {(cosine < 0).sum()} of {cosine.size}")

# %% [markdown]
# ## Is that more than chance?
#
# A cosine means nothing without a null. The circuits meet the θ of heads outside their key group; and one figure for the whole model permutes heads
# within layers, since heads of one model are not independent.

# %%
groups = layers[0].key.shape[0]
null = lens.shifted_cosines(heads, jax.random.key(0), groups=groups)
z = lens.score(cosine, null).z
print("beyond three standard deviations: descending", (z < -3).sum(), "climbing", (z > 3).sum())
whole = lens.permuted_layers(heads, jax.random.key(1))
print(f"the model: mean {whole.mean:.4f}, p = {whole.mean_p:.2f}")
print(f"share negative {whole.negative:.2f}, p = {whole.negative_p:.2f}")

figure, axis = plt.subplots(figsize=(6, 3))
band = 3 * null.std()
axis.axhspan(-band, band, color="0.88", label="null, 3 sd")
for layer, row in enumerate(cosine):
    beyond = np.abs(z[layer]) > 3
    at = layer + np.linspace(-0.25, 0.25, len(row))
    axis.scatter(at[~beyond], row[~beyond], s=12, color="0.4")
    axis.scatter(at[beyond], row[beyond], s=30, c=np.where(row[beyond] < 0, "tab:blue", "tab:red"))
axis.set(xlabel="layer", ylabel="cosine of W_V W_O with θᵀ", xticks=range(len(cosine)))
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# In the model that this guide has written the planted head stands out (of 36 others one may leave the band by chance), and the whole model does not lean: one head of 36 does not make a
# model. In trained models it is the other way round: hardly a head stands out so far, and nearly all lean.
#
# ## Rotary positions
#
# With rotary positions θ depends on the distance D between tokens, of which the value circuit knows nothing. The spectrum says at which distances they
# agree.

# %%
if layers[0].frequencies is None:
    print("this model has no rotary positions")
else:
    distances = np.arange(17)
    along = np.array([
        [lens.weight_cosines(lens.damped_heads(lens.fold_heads(each), d)).whole[0] for each in layers]
        for d in distances
    ])  # fmt: skip
    layer, head = np.unravel_index(np.argmin(cosine), cosine.shape)
    plt.figure(figsize=(5, 2.8))
    plt.plot(distances, along[:, layer, head], "o-", label=f"head {head} of layer {layer}")
    plt.plot(distances, along.mean(axis=(1, 2)), "k--", label="mean of all heads")
    plt.xlabel("distance D")
    plt.ylabel("cosine with θ_Dᵀ")
    plt.legend(fontsize=8)
    plt.show()

# %% [markdown]
# On text, with activations that you have caught yourself or by a forward pass of `imr`, go on with `lens.measure_inputs` and `lens.measure_text`; all of it at
# once is `python -m experiments.lens --model-dir FOLDER`.
