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
# # Predicting a trained transformer
#
# Mess3 is a process of three states and three tokens. From its spectrum alone follow the attention of a one-layer transformer that has learned it, and the
# geometry of its residual stream (arXiv 2502.01954). Predict first, then train, then look.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import imr

plt.rcParams.update(imr.lab.plotting.style() | {"figure.dpi": 90})
LENGTH = 10
process = imr.processes.mess3(0.15, 0.6)

# %% [markdown]
# ## The prediction
#
# The chain has the eigenvalues 1, 0.55, 0.55: contributions of tokens decay by 0.55 a step, and one head carries them.

# %%
eigenvalue = float(imr.constrained.spectrum(process).eigenvalues.real[1])
head = imr.constrained.one_head_attention(eigenvalue, LENGTH)
predicted = np.asarray(head.attention[0])
print(f"eigenvalue {eigenvalue:.2f}, heads {imr.constrained.head_count(process)}")

# %% [markdown]
# ## The training
#
# The loss takes the exact next-token distribution as its target, which has the gradient of sampled tokens without their noise.

# %%
model = imr.nn.Transformer(3, LENGTH, rngs=nnx.Rngs(0))
graph, params = nnx.split(model)
schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 200, 3000, 1e-5)
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.99))
state = optimizer.init(params)


@jax.jit
def train(params, state, keys):
    def step(carry, key):
        params, state = carry

        def loss(params):
            return imr.nn.next_token_loss(nnx.merge(graph, params), process, key, soft=True)

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    return jax.lax.scan(step, (params, state), keys)


untrained = params
keys = jax.random.split(jax.random.key(1), 3000)
losses = []
for chunk in np.split(np.arange(3000), 5):
    (params, state), values = train(params, state, keys[chunk])
    losses.append(float(values[-50:].mean()))
print("loss", np.round(losses, 4))
exact = nnx.jit(lambda params: imr.nn.exact_kl(nnx.merge(graph, params), process, 8))
print("nats above Bayes, by position:", *(f"{abs(nats):.0e}" for nats in exact(params)))

# %% [markdown]
# ## Attention
#
# By distance, of the last position. The prediction is a decay by the eigenvalue; an untrained net attends evenly.

# %%
tokens = imr.sample(process, jax.random.split(jax.random.key(2), 1000), LENGTH).tokens
record = nnx.jit(lambda params: nnx.merge(graph, params).record(tokens))
trained, before = record(params), record(untrained)
lags = np.arange(LENGTH)
plt.figure(figsize=(5, 3))
plt.semilogy(lags, predicted[-1, ::-1], "k--", label="predicted")
for name, one in (("trained", trained), ("untrained", before)):
    attention = np.asarray(one.attention[0, :, 0, -1, ::-1])
    plt.semilogy(lags, attention.mean(axis=0), "o-", label=name)
plt.xlabel("distance looked back")
plt.ylabel("attention")
plt.ylim(1e-3, 1)
plt.legend()
plt.show()

# %% [markdown]
# ## Geometry
#
# In the middle of the layer, after attention alone, the residual stream should hold the *constrained* belief; at its end the Bayesian one. A linear probe
# says how well each can be read, against the other.

# %%
bayes = imr.bayes_filter(process, tokens)[0]
constrained = imr.constrained_beliefs(process, tokens)


def r_squared(stream, beliefs):
    """Of a linear probe, from the fourth token on."""
    stream, beliefs = stream[:, 3:].reshape(-1, stream.shape[-1]), beliefs[:, 3:].reshape(-1, 3)
    return float(imr.metrics.fit_probe(stream, beliefs, jnp.ones(len(stream))).r_squared)


for name, one in (("trained", trained), ("untrained", before)):
    middle, end = one.middle[0], one.normed
    print(f"{name:>9}: middle to constrained {r_squared(middle, constrained):.4f}, to Bayes {r_squared(middle, bayes):.4f};"
          f" end to constrained {r_squared(end, constrained):.4f}, to Bayes {r_squared(end, bayes):.4f}")  # fmt: skip

# %% [markdown]
# 3,000 steps are few: `python -m experiments.beliefs` trains longer, over several seeds, with two heads, four layers and a control for every claim.
