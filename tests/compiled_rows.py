"""The rows of test_compiled: how to call each public function of arrays, beside a constant.

A row is a function of features z (8,000 x 10) and of c; c(shape...) is a constant of the program.
"""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import imr
from imr import attention, beliefs, constrained, context, lens, metrics, nn, regression, splitting
from imr import processes as named
from imr._numerics import matmul
from imr.lab import data, train

# Rows, features, classes: the fault shows in attention at 8,000 rows, not at 2,000.
N, F, K = 8000, 10, 10

random = np.random.default_rng(0)
Z = random.normal(size=(N, F))
LABELS = jnp.asarray(random.integers(0, K, N))


class Row(NamedTuple):
    """What a row calls, the public names that it stands for, and how it may be called.

    Attributes:
      constants: what c gives; a row without c is called with one of them.
      draws: random numbers differ between dtypes; results are compared within one.
      untraced: it has compiled programs of its own, and takes concrete values alone.
      half: it takes bfloat16; no process does here, nor what numpy or optax computes.
    """

    call: Callable
    names: tuple[str, ...]
    constants: tuple[str, ...] = ("ones", "zeros", "eye")
    draws: bool = False
    untraced: bool = False
    half: bool = True


ROWS: dict[str, Row] = {}


def row(*names, **options):
    """Notes a row by the name of its function."""

    def note(function):
        ROWS[function.__name__] = Row(function, names or (function.__name__,), **options)
        return function

    return note


# What is constant in programs of processes is the process.
of_process = partial(row, constants=("ones",), half=False)


def cast(tree, dtype):
    """The floating leaves of a pytree in a dtype."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


# Made outside of any program, as users do: some functions look at the process that they are given.
PROCESSES = {jnp.dtype(x): cast(named.mess3(0.15, 0.6), x) for x in (jnp.float32, jnp.float64)}


def few(z):
    """As many rows as dense n x n arrays are made of in a moment."""
    return z[:512]


def tokens_of(z, length=6):
    """Tokens 0 to 2, traced as z is, one sequence for each row."""
    return (z[:, :length] > -0.4).astype(jnp.int32) + (z[:, :length] > 0.4)


def key(z):
    """A random key that is traced as z is: a compiler takes long to draw from a constant one."""
    return jax.random.key((0 * z[0, 0]).astype(int))


# Models, losses and fields


@row("Linear", "Model", "RowModel", "SpanModel", "feature_loss", "Terms")
def linear(z, c):
    loss = imr.feature_loss(imr.Linear(c(K, F), c(K)), LABELS)
    return loss.model(z), jax.grad(loss)(z), loss(z), imr.Linear(c(K, F))(z)


@row("Latent")
def latent(z, c):
    loss = imr.feature_loss(imr.Latent(c(K, F), np.arange(K) // 2), LABELS // 2)
    return loss.model(z), jax.grad(loss)(z), loss(z)


@row("Polynomial")
def polynomial(z, c):
    loss = imr.feature_loss(imr.Polynomial(0.1 * c(K, F), 2), LABELS)
    return loss.model(z), jax.grad(loss)(z), loss(z)


@row("Quadratic")
def quadratic(z, c):
    loss = imr.feature_loss(imr.Quadratic(0.3 * c(F, 4), 0.3 * c(F, 4)), None)
    return loss.model(few(z)), jax.grad(loss)(few(z))


@row()
def cross_entropy(z, c):
    return imr.cross_entropy(matmul(z, c(F, K)), LABELS)


@row("Targets", "as_targets", "DenseTargets", "LabelTargets", "MaskedTargets", "SparseTargets")
def targets(z, c):
    t = imr.as_targets(c(N, K))
    return t.mv(z[:K]), t.rmv(z, K), t.inner(matmul(z, c(F, K))), imr.as_targets(LABELS).mv(c(K, F))


@row("LowRankTargets", "same_class_targets")
def low_rank(z, c):
    t = imr.same_class_targets(LABELS)
    return t.mv(z), t.rmv(z + c(N, F), N)


@row()
def pointers(z, c):
    loss = imr.feature_loss(imr.Quadratic(0.3 * c(F, 4)), imr.pointers(np.arange(512)))
    return loss(few(z)), jax.grad(loss)(few(z))


@row("closed_field", "gradient_field", "split_fields", "sphere_field")
def fields(z, c):
    loss = imr.feature_loss(imr.Linear(c(K, F)), LABELS)
    fields = [imr.closed_field(loss), imr.gradient_field(loss), *imr.split_fields(loss)]
    unit = z / jnp.linalg.norm(z, axis=1, keepdims=True)
    return [f(0.0, z, None) for f in fields], imr.sphere_field(fields[0])(0.0, unit, None)


@row("joint_field")
def joint(z, c):
    field = imr.joint_field(
        lambda z, theta: jnp.mean(imr.cross_entropy(matmul(z, theta.T), LABELS))
    )
    return field(0.0, (z, c(K, F)), None)


@row("linear_path", "path_field")
def path(z, c):
    path = imr.linear_path(jnp.array([0.0, 1.0], z.dtype), jnp.stack([c(K, F), 2 * c(K, F)]))
    field = imr.path_field(lambda z, theta: matmul(z, theta.T), path, LABELS)
    return path(0.5), field(0.5, z, None)


@row("lie_step", "strang_step", "split_step", "euler", "midpoint", "rk4", "exact")
def steps(z, c):
    fields, s = imr.split_fields(imr.feature_loss(imr.Linear(c(K, F)), LABELS)), splitting
    of_labels = s.exact(lambda z, tau, t, args: z + tau * c(K, F)[LABELS])
    each = [s.euler, s.midpoint, s.rk4, [s.euler, of_labels]]
    return imr.lie_step(fields, z, 0.1), imr.strang_step(fields, z, 0.1), [
        imr.split_step(fields, z, 0.1, stages=s.lie_stages(2), substep=substep) for substep in each
    ]  # fmt: skip


@row("solve", "solve_reduced", "Splitting")
def solves(z, c):
    loss = imr.feature_loss(imr.Linear(c(K, F)), LABELS)
    by_splitting = splitting.Splitting(splitting.strang_stages(2))
    return [
        imr.solve(imr.closed_field(loss), z, t1=0.5, rtol=1e-4, atol=1e-6).z,
        imr.solve(imr.split_fields(loss), z, t1=0.5, dt0=0.25, solver=by_splitting).z,
        imr.solve_reduced(loss, z, t1=0.5).z,
    ]  # fmt: skip


@row("solve_to_steady_state")
def steady(z, c):
    loss = imr.feature_loss(imr.Linear(c(K, F)), LABELS, anchor=(2.0, z))
    return imr.solve_to_steady_state(imr.closed_field(loss), z).z


@row("depth_is_time", untraced=True)
def depth(z, c):
    attend = [
        lambda t, z, args: -imr.cross_attention(z, c(K, F)),
        lambda t, z, args: c(K, F)[LABELS],
    ]
    result = imr.depth_is_time(attend, z, t1=0.5, depths=(2, 4))
    return result.z, result.errors


# Attention


@row()
def cross_attention(z, c):
    return imr.cross_attention(z, c(K, F)), imr.cross_attention(z, c(K, F), c(K))


@row()
def attention_weights(z, c):
    return [
        imr.attention_weights(matmul(few(z), c(F, 512)), norm)
        for norm in ("row", "column", "double")
    ]


@row("self_attention", "reverse_attention", "attention_terms")
def self_attention(z, c):
    q, k = 0.3 * c(F, 4), 0.3 * c(F, 4)
    heads = jnp.stack([q, q])
    return [
        imr.self_attention(few(z), q), imr.self_attention(few(z), q, k, block=128),
        imr.reverse_attention(few(z), q, k), attention.attention_terms(few(z), heads, heads),
    ]  # fmt: skip


@row("attention_products", "attention_log_sums", "projected_terms", "residual_products")
def products(z, c):
    keys, own = c(512, F), imr.as_targets(np.arange(512))
    return [
        attention.attention_products(few(z), keys, block=128),
        attention.residual_products(few(z), keys, own, block=128),
        attention.attention_log_sums(few(z), keys),
        attention.projected_terms(few(z), keys),
    ]


@row("random_feature_products", draws=True)
def random_features(z, c):
    return attention.random_feature_products(0.3 * few(z), 0.3 * c(512, F), key=key(z))


# Processes, beliefs, constrained beliefs


@of_process("bayes_filter", "next_token_probabilities", "is_forbidden", "smooth", "viterbi")
def filters(z, c):
    process, tokens = PROCESSES[z.dtype], tokens_of(z)
    scan, tree = (imr.bayes_filter(process, tokens, method=m) for m in ("scan", "associative"))
    return [
        scan, tree, beliefs.next_token_probabilities(process, scan.beliefs),
        beliefs.smooth(process, tokens), beliefs.viterbi(process, tokens),
        beliefs.is_forbidden(scan).astype(z.dtype),
    ]  # fmt: skip


@of_process(
    "conditional_entropies", "block_entropies", "entropy_rate", "excess_entropy", "belief_level"
)
def entropies(z, c):
    process = PROCESSES[z.dtype]
    return [
        imr.conditional_entropies(process, 6), beliefs.block_entropies(process, 6),
        beliefs.entropy_rate(process, 6), beliefs.excess_entropy(process, 6),
        beliefs.belief_level(process, 8),
    ]  # fmt: skip


@of_process("mixed_states", "fit_process", untraced=True)
def fitted(z, c):
    process, tokens = PROCESSES[z.dtype], np.asarray(tokens_of(z))
    fit = imr.fit_process(tokens, start=process, max_steps=3)
    return imr.mixed_states(process, 5), fit.process, fit.log_likelihood


@of_process("sample", draws=True)
def sampled(z, c):
    tokens, states = imr.sample(PROCESSES[z.dtype], jax.random.split(key(z), 2000), 6)
    return tokens.astype(z.dtype), states.astype(z.dtype)


@of_process(
    "constrained_beliefs", "constrained_level", "token_vectors", "row_normalised_token_vectors",
    "apply_heads", "predicted_values", "one_head_attention", "two_head_attention", "spectrum",
)  # fmt: skip
def constrained_beliefs(z, c):
    process, tokens = PROCESSES[z.dtype], tokens_of(z)
    heads = cast(constrained.one_head_attention(0.55, 6), z.dtype)
    beliefs = [
        imr.constrained_beliefs(process, tokens, method=method)
        for method in ("recursive", "kernel", "spectral")
    ]
    modes = constrained.spectrum(process)
    return [
        beliefs, constrained.constrained_level(process, 8), constrained.token_vectors(process),
        constrained.row_normalised_token_vectors(process),
        constrained.apply_heads(process, tokens, heads),
        constrained.predicted_values(process, cast(constrained.two_head_attention(-0.5, 6), z.dtype)),
        jnp.abs(modes.eigenvalues),
    ]  # fmt: skip


@of_process(
    "Process", "coin", "even", "even_ones", "golden_mean", "z1r", "fanizza", "leaky_rrxor", "matching_parens", "mess3", "mr_name",
    "no_consecutive_ones", "post_quantum", "rrxor", "sns", "tom_quantum", "zero_one_random",
    "conditional_product", "mixture", "product", "with_begin_token", "with_end_token",
)  # fmt: skip
def traced_processes(z, c):
    p = 0.3 + 0.01 * z[0, 0]
    two = [named.coin(p), named.coin(1 - p)]
    made = [
        *two, named.even_ones(p), named.fanizza(p, 0.5 * p), named.leaky_rrxor(p, p, 0.1 * p),
        named.matching_parens(jnp.stack([1 + 0 * p, p])), named.mess3(p, 0.6), named.mr_name(p, p),
        named.no_consecutive_ones(p), named.post_quantum(1 + p, 0.5), named.rrxor(p, p),
        named.sns(p, p), named.tom_quantum(p, 1.0), named.zero_one_random(p),
        named.conditional_product(two[0], [named.sns(p, 0.5), named.sns(0.5, p)]),
        named.mixture(two, jnp.stack([p, 1 - p])), named.product(two),
        named.with_begin_token(two[0]), named.with_end_token(two[0], p),
    ]  # fmt: skip
    return jnp.concatenate([x.ravel() for x in jax.tree.leaves(made)])  # each array is a program


# Metrics, regression and nets


@row("accuracy", "class_means", "class_scatter", "neural_collapse", "margins")
def classes(z, c):
    m, logits = metrics, matmul(z, c(F, K))
    return [
        m.class_means(z, LABELS, K), m.class_scatter(z, LABELS, K), m.margins(logits, LABELS),
        m.accuracy(logits, LABELS), m.neural_collapse(z, jnp.eye(K, F, dtype=z.dtype), LABELS),
    ]  # fmt: skip


@row("cluster_count", "interference", "mean_cosine", "simplex_alignment", "token_cosines")
def directions(z, c):
    m, z = metrics, few(z) + c(512, F)
    clusters = m.cluster_count(z, 0.05).astype(z.dtype)
    return m.interference(z), m.mean_cosine(z), m.simplex_alignment(z), m.token_cosines(z), clusters


@row("antisymmetric_share")
def antisymmetric(z, c):
    field = imr.closed_field(
        imr.feature_loss(imr.Quadratic(0.3 * c(F, 4)), None), column_term=False
    )
    return metrics.antisymmetric_share(field, few(z), key(z), num_probes=2)


@row(
    "fit_probe", "Probe", "encoding", "energy_share", "parity_share", "lag_gains", "residual_ratio"
)
def probes(z, c):
    m, y, w = metrics, z[:, :3], jnp.ones(N, z.dtype) / N
    probe = m.fit_probe(z, y, w)
    words = jnp.asarray(np.arange(N * 4).reshape(N, 4) % 7 % 3)
    return [
        probe(z), probe.r_squared, m.encoding(z, y, w), m.energy_share(z, jnp.eye(2, F, dtype=z.dtype)),
        m.parity_share(c(64, 8, 8)), m.lag_gains(y, jnp.eye(3, dtype=z.dtype), words, w),
        m.residual_ratio(0.1 * z[:, 0], 0.1 * z[:, 1]),
    ]  # fmt: skip


@row(
    "fit_regression",
    "objective",
    "principal_basis",
    "from_basis",
    "largest_gradient",
    "preconditioner",
    half=False,
)
def regressions(z, c):
    r, weights = regression, 1 + c(N)
    fit = r.fit_regression(z, LABELS, K, 0.1, weights=weights)
    basis, coordinates = r.principal_basis(z, weights / weights.sum())
    theta = matmul(c(K, F), basis.axes)
    return [
        fit.theta, fit.bias, r.objective(c(K, F), c(K), z, LABELS, 0.1), matmul(coordinates, basis.axes.T),
        r.from_basis(basis, theta, c(K)), r.largest_gradient(basis, theta, c(K)),
        r.preconditioner(basis, 0.1),
    ]  # fmt: skip


@row("fit_noisy_regression", draws=True)
def noisy_regression(z, c):
    r = regression
    fit = r.fit_noisy_regression(key(z), z, LABELS, K, 0.1, 0.5, weights=1 + c(N), num_steps=8)
    return fit.theta, fit.bias, fit.gradient


@row("coordinates", "ablate_along", "replace_along", "add_along")
def edits(z, c):
    d, values = jnp.eye(2, F, dtype=z.dtype), c(N, 2)
    return [
        nn.coordinates(z, d), nn.ablate_along(z, d), nn.replace_along(z, d, values),
        nn.add_along(z, d, values), nn.add_along(z, c(2, F), z[:, :2]),
    ]  # fmt: skip


def net_of(make, z):
    """A net with its weights, constants of the program, in the dtype of z."""
    graph, state = nnx.split(make)
    return nnx.merge(graph, cast(state, z.dtype))


@row("MLP", "Block", "Classifier", "FlowBlock", "PatchBlock")
def nets(z, c):
    rngs, images = nnx.Rngs(0), z[:, :8]
    made = [
        nn.MLP(F, 16, rngs=rngs), nn.Block(F, K, rngs=rngs),
        nn.Classifier(F, K, iterations=2, rngs=rngs), nn.FlowBlock(F, K, steps=2, rngs=rngs),
        nn.PatchBlock(8, K, image_shape=(2, 4), grid=2, heads=2, rank=2, rngs=rngs),
    ]  # fmt: skip
    nets = [net_of(net, z) for net in made]
    nets[0].w1[...], nets[1].theta[...], nets[4].phi[...] = c(F, 16), c(K, F), c(2, 2, 2)
    return [net(z) for net in nets[:4]], nets[4](images)


@row("Transformer", "Record")
def transformer(z, c):
    made = nn.Transformer(
        3, 6, heads=2, features=16, head_features=4, mlp_width=16, rngs=nnx.Rngs(0)
    )
    net = net_of(made, z)
    net.unembedding.kernel[...], net.layers[0].value[...] = c(16, 3), c(2, 16, 4)
    record = net.record(tokens_of(z))
    return record.logits, record.after, record.logits.sum(axis=-1)


@row("ContextBlock")
def context_block(z, c):
    net = net_of(nn.ContextBlock(F, K, layers=2), z)
    net.theta[...] = c(K, K)
    return net(0.3 * few(z), LABELS[:512], np.arange(512) % 3 > 0)


def one_hot(tokens, c):
    """A model of tokens: its logits are a product with a constant."""
    return matmul(jax.nn.one_hot(tokens, 3, dtype=c.keywords["dtype"]), c(3, 3))


@of_process("exact_kl")
def divergence(z, c):
    return nn.exact_kl(partial(one_hot, c=c), PROCESSES[z.dtype], 6)


@of_process("next_token_loss", draws=True)
def token_loss(z, c):
    model, process = partial(one_hot, c=c), PROCESSES[z.dtype]
    return [
        nn.next_token_loss(model, process, key(z), batch_size=2000, soft=s) for s in (False, True)
    ]


# In context


@row(
    "as_kernel", "DenseKernel", "ExponentialKernel", "FactorKernel", "Kernel", "diffusion_kernel",
    "exponential_kernel", "linear_kernel", "normalised_kernel", half=False,
)  # fmt: skip
def kernels(z, c):
    x, y = 0.3 * few(z), few(z)
    exponential = context.exponential_kernel(x)
    made = [
        context.as_kernel(c(512, 512)), context.linear_kernel(x + c(512, F)), exponential,
        context.normalised_kernel(exponential).kernel, context.diffusion_kernel(exponential, 0.5),
    ]  # fmt: skip
    return [kernel.mv(y) for kernel in made]


@row(
    "context_field", "ContextField", "attention_dynamics", "AttentionDynamics", "squared_flow",
    "kernel_regression", "KernelRegression", half=False,
)  # fmt: skip
def context_flows(z, c):
    labelled, kernel = np.arange(512) % 3 > 0, context.exponential_kernel(0.3 * few(z))
    loss = imr.feature_loss(imr.Linear(c(K, F)), LABELS[:512])
    field = context.context_field(loss, kernel, labelled, 0.1)
    return [
        field(0.0, few(z), None), context.kernel_regression(loss, kernel, labelled, 1.0).z,
        context.squared_flow(c(512, 512), few(z), labelled, 0.1, 0.1),
        context.attention_dynamics(1 + c(F), 10)(0.0, (z[0], z[0, 0])),
    ]  # fmt: skip


@row(
    "linear_self_attention", "LinearAttention", "LinearSelfAttention", "gradient_step_weights",
    "curvature_filter",
)  # fmt: skip
def linear_attention(z, c):
    labelled = np.arange(N) % 3 > 0
    constant = context.LinearAttention(0.1 * c(F, F), 0.1 * c(F, F))
    step = cast(context.gradient_step_weights(F - 1, 1, 0.1), z.dtype)
    net = net_of(nn.LinearSelfAttention(F, 2, layers=2, scale=1.0, rngs=nnx.Rngs(0)), z)
    return [
        context.linear_self_attention(z, constant, labelled), net(few(z), c(512, 2), labelled[:512]),
        context.linear_self_attention(z, step, labelled),
        context.curvature_filter(jnp.abs(z[:, 0]), 0.1 * c(5), 0.01 * c(5)),
    ]  # fmt: skip


# The lens


def heads_shape(name):
    return {"output": (2, 2, 4, F), "output_bias": (2, F)}.get(
        name, (2, 2, 4) if name.endswith("bias") else (2, 2, F, 4)
    )


@cache
def lens_arrays():
    arrays = {
        name: 0.3 * random.normal(size=heads_shape(name)) for name in lens.HeadWeights._fields
    }
    arrays |= {
        "into": random.normal(size=(2, F, 16)), "out": random.normal(size=(2, 16, F)),
        "tokens": random.normal(size=(16, F)), "positions": 0.1 * random.normal(size=(128, F)),
    }  # fmt: skip
    with jax.ensure_compile_time_eval():  # kept beyond the trace that asks first
        return lens.model_from_arrays(arrays)


TEXT = np.arange(128) * 7 % 16


def lens_model(z, c):
    """A model of two layers whose embeddings are traced and whose queries are a constant."""
    model = cast(lens_arrays(), z.dtype)
    attention = dataclasses.replace(model.attention, query=0.3 * c(2, 2, F, 4))
    return dataclasses.replace(model, tokens=z[:16], attention=attention)


@row("record", "Activations", "energy_gradient", "EnergyGradient", "fold_norms", "unembed")
def recorded(z, c):
    model = lens_model(z, c)
    activations, folded = lens.record(model, TEXT), lens.fold_norms(model)
    heads, seen = jax.tree.map(lambda x: x[0], model.heads), jnp.tri(128, dtype=bool)
    gradient = lens.energy_gradient(heads, z[:128], seen)
    logits = lens.unembed(model, activations.final)
    return activations.attention, activations.updates, logits, gradient, folded.query


@row(
    "run", "ablate", "edit", "patch", "project", "row_term", "without_part", "logit_parts", "fold_model",
)  # fmt: skip
def edited(z, c):
    """Every edit, half of it, of a head of each layer."""
    model = lens_model(z, c)
    heads, half = [(0, 1), (1, 0)], {"amount": 0.5}
    part = lens.Part(0.1 * c(2, 2, F, 3), 0.1 * c(2, 2, 3, F))
    edits = [
        lens.edit(lens.row_term, heads, amount=0.1), lens.patch(z[:128], heads, **half),
        lens.without_part(part, heads), lens.project(heads, off=True, **half), lens.ablate(heads, **half),
    ]  # fmt: skip
    activations = lens.run(model, TEXT, edits=edits)
    # Centred behind the fold, equal weights are roundings, of no direction.
    folded = lens.fold_model(model).attention.value
    return activations.updates, folded, lens.logit_parts(model, activations, TEXT)


@row("measure_text", "label_null")
def texts(z, c):
    model = lens_model(z, c)
    measures = lens.measure_text(model, TEXT, 120, key(z), draws=2)
    null = lens.label_null(model, TEXT, 120, key(z), draws=2)
    return (
        measures.cosines,
        measures.energies,
        measures.permuted.sum,
        measures.labels.next,
        null.next,
    )


@row("gradient_shares", draws=True)
def shares(z, c):
    return lens.gradient_shares(lens_model(z, c), TEXT, 120, key(z), probes=2)


@row("head_gradient", "head_logits", "head_updates", "measure_inputs")
def heads(z, c):
    """Heads of other people's models."""
    weights = {
        "query": 0.3 * c(4, F, 4), "key": 0.3 * c(2, F, 4), "value": c(2, F, 4), "output": c(4, 4, F),
    }  # fmt: skip
    heads = lens.Heads(**weights, frequencies=c(2), scale=0.5, cap=3.0)
    z, seen = few(z), jnp.tri(512, dtype=bool)
    caught = lens.measure_inputs(heads, z[:64], seen[:64, :64], key=key(z), draws=2)
    return [
        lens.head_gradient(heads, z, seen), lens.head_updates(heads, z, seen).updates,
        lens.head_logits(heads, z), caught.cosines, caught.energy_change,
    ]  # fmt: skip


@row(
    "imr_fits", "mismatched", "rotated", "score", "theta_spectra", "weight_cosines",
    "model_from_arrays", "model_from_transformer", untraced=True,
)  # fmt: skip
def weights_of_heads(z, c):
    """They are numpy's, but for the draw of a rotation."""
    heads = cast(lens_arrays(), z.dtype).heads._replace(query=np.asarray(c(2, 2, F, 4)))
    made = nn.Transformer(3, 6, features=8, head_features=4, mlp_width=8, rngs=nnx.Rngs(0))
    cosines = lens.weight_cosines(heads)
    nulls = [lens.weight_cosines(lens.mismatched(heads, shift)).whole for shift in (1, 2)]
    return [
        lens.imr_fits(heads), cosines, lens.theta_spectra(heads).singular_values,
        lens.score(cosines.whole, nulls).null_mean, lens.mismatched(heads, 1).query,
        lens.theta_spectra(lens.rotated(heads, key(z))).symmetric_share,
        lens.model_from_transformer(made).heads.query, lens_arrays().heads.query,
    ]  # fmt: skip


# Training


@row("init_states", "make_chunk", "epoch_of_batches", "fit", "mean_loss", untraced=True)
def training(z, c):
    def loss(theta, hyper, rows, batch, key):
        logits = matmul(matmul(rows[batch], theta.T), c(K, K))
        return hyper * jnp.mean(imr.cross_entropy(logits, LABELS[batch]))

    def schedule(rows, key, step):
        return train.epoch_of_batches(key, len(rows), 2000)

    optimizer = optax.sgd(0.1)
    states = train.init_states(lambda key: c(K, F), optimizer, jax.random.split(key(z), 2))
    chunk, means = train.make_chunk(loss, optimizer, schedule), []
    states = train.fit(
        chunk, states, jnp.ones(2, z.dtype), z, num_steps=4,
        on_chunk=lambda step, states, losses: means.append(train.mean_loss(losses)[0]["loss"]),
    )  # fmt: skip
    return states.params, means


@row("add_noise", draws=True)
def noisy(z, c):
    return data.add_noise(key(z), matmul(z, c(F, F)), 0.5).sum(axis=1)
