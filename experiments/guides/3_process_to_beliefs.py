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
# # A process of your own: from data to beliefs
#
# A hidden Markov process emits tokens. What does an observer of the tokens know of the hidden state, and how much of that can one layer of attention
# know? (arXiv 2502.01954)

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import imr

plt.rcParams.update(imr.lab.plotting.style() | {"figure.dpi": 90})

# %% [markdown]
# ## The process
#
# `T[x, i, j]` is the probability to emit x and go to j from i. A weather of three states, of which you see whether people carry umbrellas:

# %%
chain = np.array([[0.80, 0.15, 0.05], [0.25, 0.50, 0.25], [0.10, 0.30, 0.60]])  # sun, clouds, rain
umbrella = np.array([0.05, 0.30, 0.90])  # by the state that comes
transitions = np.stack([chain * (1 - umbrella), chain * umbrella])
process = imr.Process(transitions, tokens=("none", "umbrella"), states=("sun", "clouds", "rain"))
print("stationary", process.stationary.round(3))
print(f"entropy rate {imr.conditional_entropies(process, 12)[-1]:.4f} nats")

# %% [markdown]
# A matrix that is no process is refused, with the row and what is missing:

# %%
try:
    imr.Process(0.9 * transitions)
except imr.ImrError as error:
    print(error)

# %% [markdown]
# ## Data, and the filter
#
# Each key gives a sequence; `bayes_filter` says what an observer knows after each token, and the probability of what was seen.

# %%
tokens = imr.sample(process, jax.random.split(jax.random.key(0), 2000), 24).tokens
beliefs, log_probability = imr.bayes_filter(process, tokens)
print(beliefs.shape, f"{-log_probability[:, -1].mean() / 24:.4f} nats for each token")

figure, axis = plt.subplots(figsize=(6, 2.6))
axis.stackplot(
    range(1, 25),
    np.asarray(beliefs[1]).T,
    labels=process.states,
    colors=("gold", "silver", "steelblue"),
)
seen = np.flatnonzero(np.asarray(tokens[1])) + 1
axis.plot(seen, np.full(len(seen), 1.03), "kv", markersize=4, clip_on=False, label="umbrella seen")
axis.set(xlabel="token", ylabel="belief", ylim=(0, 1), xlim=(1, 24))
axis.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.2))
plt.show()

# %% [markdown]
# ## What a sum over tokens can know
#
# Attention adds contributions of single tokens. The best of that kind which follows from the process alone is the *constrained* belief: each token's own
# evidence, carried forward by the chain. It is no probability distribution, and it differs from Bayes where evidence interacts.

# %%
constrained = imr.constrained_beliefs(process, tokens)
print(f"largest distance from Bayes {jnp.abs(constrained - beliefs).max():.2f}")
corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])
figure, axes = plt.subplots(1, 2, figsize=(7, 3.2))
for axis, name, points in zip(axes, ("Bayes", "constrained"), (beliefs, constrained), strict=True):
    points = np.asarray(points[:, 5:]).reshape(-1, 3)
    axis.plot(*corners[[0, 1, 2, 0]].T, color="0.6")
    axis.scatter(*(points @ corners).T, s=1, c=np.clip(points, 0, 1))
    for corner, state in zip(corners, process.states, strict=True):
        axis.annotate(state, corner, fontsize=8, ha="center")
    axis.set(title=name, aspect="equal")
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Attention, predicted
#
# The eigenvalues of the chain say how contributions decay with distance, and how many heads it takes: one for each decay, here 0.65 and 0.25.

# %%
print(
    "eigenvalues", *(f"{value:.2f}" for value in imr.constrained.spectrum(process).eigenvalues.real)
)
print("heads", imr.constrained.head_count(process))

# %% [markdown]
# ## From data back to the process
#
# If you have sequences and no process, fit one: expectation and maximisation, the best of several starts.

# %%
fit = imr.fit_process(tokens, 3, key=jax.random.key(1), restarts=4)
fitted = imr.bayes_filter(fit.process, tokens).log_probability
for name, found in (("fitted", fitted), ("true", log_probability)):
    print(f"{-found[:, -1].mean() / 24:.4f} nats for each token by the {name} process")

# %% [markdown]
# The next guide trains a transformer on such a process and holds it against these predictions.
