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
# # Attention from regression, step by step
#
# Fix a multinomial regression with logits N(Z, θ) and let the features Z follow the gradient flow of its cross-entropy
# (arXiv 2509.04653). What comes out is attention, and a label term. Each step below is checked against automatic differentiation.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

import imr

plt.rcParams.update(imr.lab.plotting.style() | {"figure.dpi": 90})
_, images, labels, *_ = imr.lab.data.load_digits()
z, labels = jnp.asarray(images[:500]), jnp.asarray(labels[:500])
theta = imr.regression.fit_regression(z, labels, 10, l2=1e-3).theta


def gap(a, b):
    """The largest difference over the largest entry: about 1e-7 is equal, in float32."""
    return float(jnp.abs(a - b).max() / jnp.abs(b).max())


# %% [markdown]
# ## 1. Linear logits: cross-attention to the classes
#
# N = Zθᵀ. The gradient by Z is softmax(Zθᵀ)θ − Cθ: queries are the features, keys and values are the rows of θ, and C says the labels.

# %%
loss = imr.feature_loss(imr.Linear(theta), labels)
flow = imr.gradient_field(loss)(0.0, z, None)
softmax = jax.nn.softmax(z @ theta.T)
attention = imr.cross_attention(z, theta)
print(f"attention is softmax(Z θᵀ) θ: {gap(attention, softmax @ theta):.0e}")
print(f"flow is Cθ − attention:       {gap(theta[labels] - attention, flow):.0e}")

# %% [markdown]
# ## 2. Quadratic logits: self-attention among tokens
#
# N = ZθZᵀ, where each token points at another one. The flow now has two attention terms: the usual one, over keys, and the *column term*, by which tokens
# answer those that attend to them.

# %%
tokens = jax.random.normal(jax.random.key(0), (12, 6))
q, k = 0.5 * jax.random.normal(jax.random.key(1), (2, 6, 3))
pointed = jnp.roll(jnp.arange(12), 1)  # each token points at the one before
quadratic = imr.feature_loss(imr.Quadratic(q, k), imr.pointers(pointed))
weights = imr.attention_weights((tokens @ q) @ (tokens @ k).T)
row = weights @ tokens @ k @ q.T  # sum_j P_ij z_j theta^T
column = weights.T @ tokens @ q @ k.T  # sum_i P_ij z_i theta
to = jnp.zeros_like(tokens).at[pointed].add(tokens @ q @ k.T)
label_term = tokens[pointed] @ k @ q.T + to
flow = imr.gradient_field(quadratic)(0.0, tokens, None)
print(f"flow is label term − row − column: {gap(label_term - row - column, flow):.0e}")

# %% [markdown]
# Only the row term is what transformers compute. Is it a gradient of anything by itself? The antisymmetric share of its Jacobian says no:

# %%
key = jax.random.key(2)
share = imr.metrics.antisymmetric_share
both = imr.closed_field(quadratic)
print(f"row and column terms: {share(both, tokens, key):.2f}")


def row_alone(t, z, args):
    return -imr.attention_weights((z @ q) @ (z @ k).T) @ z @ k @ q.T


print(f"row term alone:       {share(row_alone, tokens, key):.2f}")

# %% [markdown]
# ## 3. Split the flow, and step: a transformer block
#
# The flow is a sum of two operators. A Lie step carries out one after the other: first attention, then the label term. Smaller steps come closer to the
# flow, at first order.

# %%
attend, label = imr.split_fields(loss)  # −attention, Cθ
exact = imr.solve_reduced(loss, z, t1=1.0).z
counts = [1, 2, 4, 8, 16, 32]
errors = []
for count in counts:
    state = z
    for _ in range(count):
        state = imr.lie_step([attend, label], state, tau=1.0 / count)
    errors.append(gap(state, exact))
plt.figure(figsize=(4.5, 3))
plt.loglog(counts, errors, "o-", label="stack of Lie steps")
plt.loglog(counts, errors[0] / np.array(counts), "k--", label="first order")
plt.xlabel("blocks from t = 0 to t = 1")
plt.ylabel("distance from the flow")
plt.legend()
plt.show()

# %% [markdown]
# ## 4. The MLP stands in for the labels
#
# At test time nobody knows C. A transformer block has an MLP in the place of Cθ: that is `imr.nn.Block`, whose θ, step and MLP are learned. Untrained it is
# the same map as a Lie step of its own two operators:

# %%
block = imr.nn.Block(64, 10, tau=0.25, rngs=nnx.Rngs(0))
by_hand = z - block.tau * imr.cross_attention(z, block.theta[...])
by_hand = by_hand + block.tau * block.mlp(by_hand)
print(f"block is Z' = Z − τ CA, Z⁺ = Z' + τ MLP(Z'): {gap(block(z), by_hand):.0e}")

# %% [markdown]
# A picture of it all: images along the flow, and what each operator does to them in one step.

# %%
which = [int(jnp.argmax(labels == c)) for c in (3, 5, 8)]
step = 2.0
after = imr.lie_step([attend], z, tau=step)
columns = {
    "Z": z, "−τ attention": after - z, "τ Cθ": step * label(0.0, after, None),
    "flow, t = 10": imr.solve_reduced(loss, z, t1=10.0).z,
}  # fmt: skip
figure, axes = plt.subplots(3, 4, figsize=(6, 4.6))
for line, at in zip(axes, which, strict=True):
    for axis, (name, pictures) in zip(line, columns.items(), strict=True):
        change = "τ" in name
        size = float(jnp.abs(pictures[jnp.array(which)]).max())
        axis.imshow(
            pictures[at].reshape(8, 8), cmap="RdBu_r" if change else "gray",
            vmin=-size if change else 0, vmax=size,
        )  # fmt: skip
        axis.set(xticks=[], yticks=[])
        axis.set_title(name, fontsize=9)
plt.show()
