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
# # In context
#
# In a context with labelled examples the label term is known, and comes to the tokens without a label by attention over examples:
# df_i/dt = Σ_j K(x_i, x_j)(w_{c_j} − softmax(f_j Wᵀ)W), j over the labelled tokens. That is gradient descent in function space, and no parameter is
# trained.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

import imr
from imr import context

plt.rcParams.update(imr.lab.plotting.style() | {"figure.dpi": 90})
_, images, digits, *_ = imr.lab.data.load_digits()
x, truth = jnp.asarray(images[:600]), jnp.asarray(digits[:600])

# %% [markdown]
# ## Few-shot classification without training
#
# Ten labelled images of each class at most. Labels of the others are never read: −1 stands in their place.

# %%
shots = np.concatenate([np.flatnonzero(np.asarray(truth) == c)[:10] for c in range(10)])
labelled = jnp.zeros(len(x), bool).at[shots].set(True)
loss = imr.feature_loss(imr.Linear(jnp.eye(10)), jnp.where(labelled, truth, -1))
kernel = context.exponential_kernel(x, 0.5, distance=True)
times = jnp.geomspace(0.02, 20.0, 40)
flow = imr.solve_reduced(
    loss, jnp.zeros((len(x), 10)), t1=20.0, ts=times, kernel=kernel, labelled=labelled
)


def accuracy(latents):
    return jnp.mean(latents.argmax(axis=-1) == truth, where=~labelled)


best = context.kernel_regression(loss, kernel, labelled, ridge=0.01)
for name, found in (("one step", flow.zs[0]), ("flow", flow.z), ("kernel regression", best.z)):
    print(f"{name}: accuracy {accuracy(found):.3f}")
plt.figure(figsize=(5, 3))
plt.semilogx(times, jax.vmap(accuracy)(flow.zs), label="flow")
plt.axhline(
    float(accuracy(best.z)), color="k", linestyle="--", label="kernel regression, ridge 0.01"
)
plt.xlabel("time t, or depth")
plt.ylabel("accuracy on images without a label")
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## The label term does the work
#
# Shuffle the labels, and little is left; take attention to be even, and nothing is learned.

# %%
shuffled = jnp.where(labelled, jax.random.permutation(jax.random.key(0), truth), -1)
even = jnp.ones((len(x), 1))  # a factor (n, r) of a kernel that is one everywhere
zeros = jnp.zeros((len(x), 10))
controls = {
    "labels shuffled": imr.solve_reduced(
        imr.feature_loss(imr.Linear(jnp.eye(10)), shuffled), zeros, t1=20.0, kernel=kernel, labelled=labelled
    ),
    "even attention": imr.solve_reduced(loss, zeros, t1=20.0, kernel=even, labelled=labelled),
}  # fmt: skip
for name, control in controls.items():
    print(f"{name}: accuracy {accuracy(control.z):.3f}, chance 0.1")

# %% [markdown]
# ## A linear attention layer is one gradient step
#
# The squared loss gives the construction of von Oswald et al.: with the right weights L layers of linear self-attention are L steps of gradient descent
# on the examples in the context, up to rounding.

# %%
random = jax.random.split(jax.random.key(1), 2)
w = jax.random.normal(random[0], (5, 1))
inputs = jax.random.normal(random[1], (30, 5))
known = jnp.arange(30) < 20
answers = jnp.where(known[:, None], inputs @ w, jnp.nan)  # of the others nobody knows
net = imr.nn.LinearSelfAttention(5, layers=3, rngs=nnx.Rngs(0))
net.gradient_steps(0.4)

steps = jnp.zeros((5, 1))
for _ in range(3):
    wrong = jnp.where(known[:, None], inputs @ w - inputs @ steps, 0)
    steps = steps + 0.4 / 20 * inputs.T @ wrong
found = net(inputs, answers, known)
print(f"net − three gradient steps: {jnp.abs(found - inputs @ steps).max():.0e}")

# %% [markdown]
# ## A block that can be trained
#
# `imr.nn.ContextBlock` is a stack of steps of the flow above, with a learned metric, step and ridge. As it starts, from the identity, it is the flow in
# Euler steps; trained over many tasks it finds the metric. `python -m experiments.incontext` trains it, and asks of trained linear nets whether they
# are the construction.

# %%
block = imr.nn.ContextBlock(64, 10, layers=20, kernel="exponential", tau=2.0, ridge=1e-3)
untrained = block(x, jnp.where(labelled, truth, -1), labelled)
print(f"block of 20 layers, untrained: {accuracy(untrained):.3f}")
