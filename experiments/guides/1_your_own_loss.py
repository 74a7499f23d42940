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
# # Your own loss, and its flow
#
# Everything in `imr` begins with a loss of *features*: a function of Z (n, f) alone. Its gradient flow dZ/dt = −∂L/∂Z is what the theory is
# about. Here is one of yours, its flow by automatic differentiation, and what you get if you also know its closed form.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import imr

plt.rcParams.update(imr.lab.plotting.style() | {"figure.dpi": 90})
_, images, labels, *_ = imr.lab.data.load_digits()
images, labels = jnp.asarray(images[:300]), jnp.asarray(labels[:300])

# %% [markdown]
# ## A loss is a function of the features
#
# Any scalar function will do. This one is the squared hinge loss of a linear classifier that is fitted first and then stays as it is.

# %%
theta = imr.regression.fit_regression(images, labels, 10, l2=1e-3).theta  # (10, 64), then fixed


def hinge(z):
    """Squared hinge: how far the logit of the label is from leading all others by one."""
    logits = z @ theta.T
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    short = jnp.maximum(0, 1 + logits - own) * (1 - jax.nn.one_hot(labels, 10))
    return jnp.sum(short**2)


field = imr.gradient_field(hinge)  # f(t, z, args) = -dL/dz, by jax.grad
times = jnp.geomspace(0.01, 10.0, 30)
flow = imr.solve(field, images, t1=10.0, ts=times)
print(imr.Result(int(flow.result)).name, flow.zs.shape)
print(f"loss {hinge(images):.1f} -> {hinge(flow.z):.1g}")

# %% [markdown]
# `flow.zs` holds the features at the times that were asked for, and `flow.result` says how it ended; a flow that fails raises an error that says
# why. Images stay images: this is what the hinge loss makes of a digit, beside cross-entropy.

# %%
entropy = imr.feature_loss(imr.Linear(theta), labels)  # cross-entropy of multinomial regression
other = imr.solve(imr.gradient_field(entropy), images, t1=10.0, ts=times)
figure, axes = plt.subplots(1, 3, figsize=(7, 2.6))
for axis, picture, name in zip(
    axes, (images[0], flow.z[0] - images[0], other.z[0] - images[0]),
    ("a digit", "change: hinge", "change: cross-entropy"), strict=True,
):  # fmt: skip
    axis.imshow(picture.reshape(8, 8), cmap="gray" if name == "a digit" else "RdBu_r")
    axis.set(title=name, xticks=[], yticks=[])
plt.show()

# %% [markdown]
# The hinge stops pushing once a margin is reached; the cross-entropy never does. That shows in the margins:

# %%
margins = jax.vmap(lambda z: jnp.median(imr.metrics.margins(z @ theta.T, labels)))
plt.figure(figsize=(5, 3))
plt.semilogx(times, margins(flow.zs), label="squared hinge")
plt.semilogx(times, margins(other.zs), label="cross-entropy")
plt.xlabel("time t")
plt.ylabel("median margin")
plt.legend()
plt.show()

# %% [markdown]
# ## Many at once, and differentiable
#
# A flow is a function like any other: `jax.vmap` solves a batch in one program, and `jax.grad` passes through the solve. Here is the margin at the
# end by the inverse temperature of the loss, and its derivative.


# %%
def end_margin(beta):
    loss = imr.feature_loss(imr.Linear(theta, beta=beta), labels)
    z = imr.solve(imr.gradient_field(loss), images, t1=1.0).z
    return jnp.mean(imr.metrics.margins(z @ theta.T, labels))


betas = jnp.array([0.5, 1.0, 2.0])
print("margins", jax.vmap(end_margin)(betas).round(2))
print(f"derivative at 1: {jax.grad(end_margin)(1.0):.2f}")

# %% [markdown]
# ## The closed form
#
# A model that knows its own attention needs no autodiff, and its flow can be solved in a few coordinates. Subclass `imr.Model`: `attention` is
# Σⱼ softmaxᵢⱼ ∂Nᵢⱼ/∂zᵢ, and `label_term` the same with the targets in the place of the softmax. Softmax over squared distances, for one:


# %%
class Distances(imr.Model):
    """Logits that fall with the squared distance from centres."""

    centres: jax.Array

    def __call__(self, z):
        return -0.5 * jnp.sum((z[:, None] - self.centres[None]) ** 2, axis=2)

    def attention(self, z):
        return jax.nn.softmax(self(z)) @ self.centres - z

    def label_term(self, z, targets):
        return targets.mv(self.centres) - z


means = jnp.stack([images[labels == c].mean(axis=0) for c in range(10)])
loss = imr.feature_loss(Distances(means), labels)
by_autodiff = imr.gradient_field(loss)(0.0, images, None)
by_formula = imr.closed_field(loss)(0.0, images, None)  # label term - attention
print(f"largest difference {jnp.abs(by_autodiff - by_formula).max():.0e}")

# %% [markdown]
# The two operators of that flow, stepped one after the other, are a transformer block: the next guide takes it apart.
