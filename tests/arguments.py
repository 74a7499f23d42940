"""Valid arguments of each public function of arrays: a row of tiny ones, and wrong kinds of each."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import imr
from imr import attention, beliefs, constrained, context, lens, metrics, nn, regression, splitting
from imr import processes as named
from imr.lab import data, train
from imr.parallel import cost, cycles

N, F, K, R = 4, 3, 5, 2

random = np.random.default_rng(0)
Z, THETA, SQUARE = (jnp.asarray(random.normal(size=shape)) for shape in ((N, F), (K, F), (N, N)))
Q = jnp.asarray(random.normal(size=(F, R)))
BIAS, BETA, WEIGHTS = jnp.zeros(K), 0.5, jnp.full(N, 0.25)
LABELS, COLUMNS = jnp.asarray([0, 3, 4, 1]), jnp.asarray([1, 2, 0, 3])
SEEN, SOME = jnp.tri(N, dtype=bool), jnp.asarray([True, True, False, True])
KEY = jax.random.key(0)

LOSS = imr.feature_loss(imr.Linear(THETA), LABELS)
FIELD, FIELDS = imr.closed_field(LOSS), imr.split_fields(LOSS)
KERNEL = context.linear_kernel(Z)
LAYERED = context.LinearAttention(jnp.eye(F), jnp.eye(F))

PROCESS = named.mess3(0.15, 0.6)
TOKENS, LENGTHS = np.asarray([[0, 1, 2], [2, 1, 0]]), np.asarray([3, 2])
FILTERED = imr.bayes_filter(PROCESS, TOKENS)
VECTORS = jnp.eye(2, F)

W = jnp.asarray(random.normal(size=(2, 3, F, R)))
BIASES = jnp.zeros((2, 3, R))
STACKED = lens.HeadWeights(W, W, W, W.mT, BIASES, BIASES, BIASES, jnp.zeros((2, F)))
LAYER = jax.tree.map(lambda x: x[0], STACKED)
HEADS = lens.Heads(query=W[0], key=W[0], value=W[0], output=W[0].mT, scale=0.5)
TURNED = lens.Heads(
    query=W[0], key=W[0], value=W[0], output=W[0].mT, scale=0.5, frequencies=np.ones(1)
)
MODEL = lens.model_from_arrays(
    {name: np.asarray(x) for name, x in STACKED._asdict().items()}
    | {"into": random.normal(size=(2, F, 6)), "out": random.normal(size=(2, 6, F))}
    | {"tokens": random.normal(size=(K, F)), "positions": random.normal(size=(8, F))}
)
NET = nn.LinearSelfAttention(F, 1, heads=1, rngs=nnx.Rngs(0))
CIRCUIT = lens.context_circuits(NET)[0]


class Row(NamedTuple):
    """A public function or class, and arguments that it takes."""

    call: Callable
    arguments: dict[str, Any]


ROWS: list[Row] = []


def row(*functions: Callable, **arguments: Any) -> None:
    ROWS.extend(Row(function, arguments) for function in functions)


def scalar(z):
    return jnp.sum(z**2)


def logits_of(z, theta):
    return z @ theta.T


def uniform(tokens):
    return jnp.zeros((*tokens.shape, 3))


# Models, losses and fields
row(imr.Linear, theta=THETA, bias=BIAS, beta=BETA)
row(imr.Latent, theta=THETA, group=np.asarray([0, 0, 1, 1, 2]), bias=BIAS, beta=BETA, num_classes=3)
row(imr.Polynomial, theta=THETA, degree=2, bias=BIAS, beta=BETA)
row(imr.Quadratic, q=Q, k=Q, beta=BETA)
row(imr.Quadratic.full, theta=jnp.eye(F), beta=BETA)
row(imr.cross_entropy, logits=SQUARE, targets=COLUMNS, where=jnp.ones((N, N), bool))
row(imr.feature_loss, model=LOSS.model, targets=LABELS, anchor=(0.5, Z))
row(imr.closed_field, loss=LOSS)
row(imr.split_fields, loss=LOSS)
row(imr.gradient_field, loss=scalar)
row(imr.sphere_field, field=FIELD)
row(imr.joint_field, loss=lambda z, theta: scalar(z) + scalar(theta))
row(imr.linear_path, ts=jnp.asarray([0.0, 1.0]), values=jnp.stack([THETA, THETA]))
row(imr.path_field, logits_fn=logits_of, path=lambda t: THETA, targets=LABELS)
row(imr.as_targets, x=LABELS)
row(imr.pointers, columns=COLUMNS)
row(imr.same_class_targets, labels=LABELS, num_classes=K)

# Flows
row(imr.solve, field=FIELD, z0=Z, t1=0.5, ts=[0.2, 0.5], dt0=0.1, loss=scalar)
row(imr.solve_reduced, loss=LOSS, z0=Z, t1=0.5, ts=[0.2, 0.5])
row(imr.solve_to_steady_state, field=imr.gradient_field(scalar), z0=Z, loss=scalar)
row(imr.depth_is_time, fields=FIELDS, z0=Z, t1=0.5, depths=(2, 4))
row(imr.lie_step, imr.strang_step, fields=FIELDS, z=Z, tau=0.1)
row(imr.split_step, fields=FIELDS, z=Z, tau=0.1, stages=splitting.lie_stages(2))
row(splitting.euler, splitting.midpoint, splitting.rk4, field=FIELD, z=Z, tau=0.1, t=0.0, args=None)
row(splitting.exact, flow=lambda z, tau, t, args: z)
row(splitting.lie_stages, splitting.strang_stages, num_fields=2)
row(splitting.triple_jump, stages=splitting.strang_stages(2), order=2)
row(splitting.Splitting, stages=splitting.lie_stages(2))

# Attention
MASKED = {"beta": BETA, "where": SEEN, "block": 2}
row(imr.cross_attention, z=Z, theta=THETA, bias=BIAS, beta=BETA)
row(imr.attention_weights, logits=SQUARE, where=SEEN)
row(imr.self_attention, imr.reverse_attention, attention.attention_terms, z=Z, q=Q, k=Q, **MASKED)
row(
    attention.attention_products, attention.attention_log_sums, attention.projected_terms,
    queries=Z, keys=Z, **MASKED,
)  # fmt: skip
row(attention.residual_products, queries=Z, keys=Z, targets=imr.pointers(jnp.arange(N)), beta=BETA)
row(attention.random_feature_products, queries=Z, keys=Z, key=KEY, num_features=8, beta=BETA)

# Processes
row(named.coin, named.even_ones, named.no_consecutive_ones, named.zero_one_random, p=0.3)
row(named.sns, named.mr_name, p=0.3, q=0.4)
row(named.mess3, x=0.1, a=0.6)
row(named.rrxor, p1=0.3, p2=0.4)
row(named.leaky_rrxor, p1=0.3, p2=0.4, epsilon=0.1)
row(named.fanizza, alpha=0.5, lamb=0.2)
row(named.post_quantum, log_alpha=1.2, beta=0.5)
row(named.tom_quantum, alpha=0.9, beta=1.0)
row(named.matching_parens, open_probs=[1.0, 0.5])
row(imr.Process, transitions=PROCESS.transitions, initial=PROCESS.initial)
row(named.product, factors=[named.coin(0.3), named.coin(0.4)])
row(
    named.conditional_product, first=named.coin(0.3), seconds=[named.sns(0.3, 0.4), named.sns(0.5, 0.5)]
)  # fmt: skip
row(named.mixture, processes=[named.coin(0.3), named.coin(0.4)], weights=[0.5, 0.5])
row(named.with_begin_token, process=PROCESS)
row(named.with_end_token, process=PROCESS, probability=0.1)
row(named.is_unifilar, process=PROCESS)
row(imr.sample, process=PROCESS, key=jax.random.split(KEY, 2), length=3, lengths=LENGTHS)

# Beliefs, and constrained ones
row(imr.bayes_filter, process=PROCESS, tokens=TOKENS, lengths=LENGTHS, initial=PROCESS.initial)
row(beliefs.smooth, beliefs.viterbi, process=PROCESS, tokens=TOKENS, lengths=LENGTHS)
row(imr.constrained_beliefs, process=PROCESS, tokens=TOKENS, lengths=LENGTHS)
row(beliefs.is_forbidden, filtered=FILTERED)
row(beliefs.next_token_probabilities, process=PROCESS, beliefs=FILTERED.beliefs)
row(
    imr.conditional_entropies, imr.mixed_states, beliefs.belief_level, beliefs.block_entropies,
    beliefs.count_mixed_states, beliefs.entropy_rate, beliefs.excess_entropy,
    constrained.constrained_level, process=PROCESS, depth=3,
)  # fmt: skip
row(beliefs.all_words, beliefs.unique_prefixes, num_tokens=2, length=3)
row(
    imr.fit_process, tokens=TOKENS, start=PROCESS, key=KEY, lengths=LENGTHS, max_steps=1, restarts=1
)
row(constrained.additive_filter, eigenvalue=0.5, correlation=0.2)
row(constrained.one_head_attention, eigenvalue=0.5, length=3)
row(constrained.two_head_attention, eigenvalue=-0.5, length=3)
row(
    constrained.spectrum, constrained.head_count, constrained.token_vectors,
    constrained.row_normalised_token_vectors, process=PROCESS,
)  # fmt: skip
row(
    constrained.apply_heads,
    process=PROCESS, tokens=TOKENS, heads=constrained.one_head_attention(0.5, 3), lengths=LENGTHS,
)  # fmt: skip
row(constrained.predicted_values, process=PROCESS, heads=constrained.one_head_attention(0.5, 3))

# In context
row(context.as_kernel, kernel=SQUARE @ SQUARE.T, num_tokens=N)
row(context.linear_kernel, context.exponential_kernel, x=Z)
row(context.normalised_kernel, kernel=context.exponential_kernel(Z), labelled=SOME)
row(context.diffusion_kernel, kernel=context.exponential_kernel(Z), share=0.5)
row(context.context_field, loss=LOSS, kernel=KERNEL, labelled=SOME, ridge=0.1, weights=WEIGHTS)
row(context.kernel_regression, loss=LOSS, kernel=KERNEL, labelled=SOME, ridge=0.1)
row(context.squared_flow, kernel=KERNEL, values=Z, labelled=SOME, t=1.0, ridge=0.1)
row(context.linear_self_attention, tokens=Z, weights=LAYERED, labelled=SOME)
row(context.gradient_step_weights, num_features=F, num_outputs=1, step=0.1, curvature=0.1)
row(context.curvature_filter, spectrum=WEIGHTS, steps=jnp.ones(2), curvature=jnp.ones(2))
row(context.attention_dynamics, eigenvalues=WEIGHTS, num_examples=10)

# Metrics
row(metrics.accuracy, metrics.margins, logits=Z @ THETA.T, labels=LABELS)
row(metrics.class_means, metrics.class_scatter, z=Z, labels=LABELS, num_classes=K)
row(metrics.neural_collapse, z=Z, theta=THETA, labels=LABELS, bias=BIAS)
row(metrics.cluster_count, metrics.mean_cosine, metrics.token_cosines, z=Z)
row(metrics.interference, metrics.simplex_alignment, vectors=Z)
row(metrics.antisymmetric_share, field=FIELD, z=Z, key=KEY, num_probes=1)
row(metrics.fit_probe, features=Z, targets=Z, weights=WEIGHTS, ridge=0.1)
row(metrics.encoding, features=Z, targets=Z, weights=WEIGHTS)
row(metrics.energy_share, vectors=Z, directions=VECTORS)
row(metrics.parity_share, attention=jnp.ones((2, N, N)) / N)
row(
    metrics.lag_gains,
    decoded=Z, vectors=jnp.eye(3), words=jnp.zeros((N, 4), int), weights=WEIGHTS,
)  # fmt: skip
row(metrics.residual_ratio, r_squared=jnp.asarray(0.9), other=jnp.asarray(0.5))
row(metrics.welch_bound, k=5, f=3)

# Regression
row(
    regression.fit_regression, x=Z, labels=LABELS, num_classes=K, l2=0.1, where=SOME, weights=WEIGHTS,
    max_steps=2,
)  # fmt: skip
row(
    regression.fit_noisy_regression, key=KEY, x=Z, labels=LABELS, num_classes=K, l2=0.1, noise=0.5,
    where=SOME, weights=WEIGHTS, num_steps=2,
)  # fmt: skip
row(regression.objective, theta=THETA, bias=BIAS, x=Z, labels=LABELS, l2=0.1, where=SOME)
row(regression.principal_basis, x=Z, weights=WEIGHTS)

# Nets
SIZES = {"num_features": F, "num_classes": K}
row(nn.MLP, num_features=F, width=4, rngs=nnx.Rngs(0))
row(nn.Block, nn.FlowBlock, **SIZES, mlp_width=4, tau=0.1, rngs=nnx.Rngs(0))
row(nn.Classifier, **SIZES, iterations=2, rngs=nnx.Rngs(0))
row(nn.ContextBlock, **SIZES, tau=0.1, ridge=0.1, noise=0.1, rngs=nnx.Rngs(0))
row(nn.LinearSelfAttention, num_features=F, num_outputs=1, rngs=nnx.Rngs(0))
row(
    nn.PatchBlock,
    num_features=4,
    num_classes=K,
    image_shape=(2, 2),
    grid=2,
    rank=1,
    heads=1,
    rngs=nnx.Rngs(0),
)
row(
    nn.Transformer,
    num_tokens=3,
    length=4,
    features=4,
    head_features=2,
    mlp_width=4,
    rngs=nnx.Rngs(0),
)
row(nn.coordinates, residual=Z, directions=VECTORS)
row(nn.ablate_along, residual=Z, directions=VECTORS, origin=0.0)
row(nn.replace_along, nn.add_along, residual=Z, directions=VECTORS, values=jnp.ones((N, 2)))
row(nn.exact_kl, model=uniform, process=PROCESS, length=3)
row(nn.next_token_loss, model=uniform, process=PROCESS, key=KEY, batch_size=2, length=3)

# The lens
row(lens.head_logits, heads=HEADS, inputs=Z)
row(lens.head_updates, lens.head_gradient, lens.measure_inputs, heads=HEADS, inputs=Z, seen=SEEN)
row(lens.energy_gradient, heads=LAYER, inputs=Z, seen=SEEN)
row(lens.head_mask, heads=HEADS, n=3)
row(lens.head_weights, layers=[HEADS, HEADS])
row(lens.fold_heads, heads=HEADS)
row(lens.imr_fits, lens.theta_spectra, lens.weight_cosines, heads=STACKED)
row(lens.mismatched, heads=STACKED, shift=1)
row(lens.rotated, heads=STACKED, key=KEY)
row(lens.score, value=jnp.ones(4), null=jnp.zeros((2, 4)))
row(lens.rotary_spectra, heads=TURNED)
row(lens.damped_heads, heads=TURNED, distances=np.arange(3))
row(lens.attended_distances, attention=np.asarray(jnp.ones((2, N, N)) / N))
row(
    lens.layer_cosines, lens.layer_scores, lens.pair_cosines, lens.part_cosines, lens.gauge_scores,
    heads=STACKED,
)  # fmt: skip
row(lens.without_shared, heads=STACKED, count=1)
row(lens.permuted_layers, heads=STACKED, key=KEY, draws=19)
row(lens.shifted_cosines, heads=STACKED, key=KEY, draws=2)
row(lens.record, lens.run, model=MODEL, tokens=np.asarray([0, 1, 2, 3]), length=4)
row(
    lens.measure_text, lens.label_null, lens.gradient_shares,
    model=MODEL, tokens=np.asarray([0, 1, 2, 3]), length=4, key=KEY,
)  # fmt: skip
row(lens.unembed, model=MODEL, final=Z)
row(lens.fold_norms, lens.fold_model, model=MODEL)
PAIRS = {"heads": [(0, 1)], "amount": jnp.ones(1), "at": [0]}
SITE = lens.Site(jnp.asarray(0), HEADS, Z, SEEN, jnp.ones((3, N, N)) / N, jnp.ones((3, N, F)))
row(lens.ablate, **PAIRS)
row(lens.edit, function=lens.row_term, **PAIRS)
row(lens.patch, updates=Z, **PAIRS)
row(lens.project, along=lens.row_term, like=lens.row_term, off=True, **PAIRS)
row(lens.without_part, part=lens.circuit_part(STACKED), **PAIRS)
row(lens.circuit_part, heads=STACKED, along=STACKED)
row(lens.row_term, site=SITE)
row(
    lens.logit_parts, model=MODEL, activations=lens.run(MODEL, np.asarray([0, 1, 2, 3])),
    tokens=np.asarray([0, 1, 2, 3]), incorrect=np.asarray([1, 2, 3, 4]),
)  # fmt: skip
row(lens.context_circuits, net=NET)
row(lens.construction_cosines, circuit=CIRCUIT)
row(lens.construction_rows, nets=[NET], key=KEY, draws=2)
row(lens.permuted_circuit, lens.rotated_circuit, circuit=CIRCUIT, key=KEY)

# Costs, training and data
row(cost.attention_cost, n=10, r=2)
row(cycles.attention_cycles, n=2048, r=2, core=cycles.V5E)
row(cycles.filter_cycles, length=10, core=cycles.V5E)
row(cost.linear_field_cost, n=10, f=3, k=5)
row(cost.linear_flow_cost, n=10, k=5)
row(cost.quadratic_field_cost, n=10, f=3, r=2)
row(cost.step_cost, field=cost.attention_cost(10, 2), size=30.0)
row(data.add_noise, key=KEY, images=Z, std=0.5)
row(data.held_back_split, labels=np.asarray([0, 0, 1, 1]), share=0.5, seed=0)
row(train.epoch_of_batches, key=KEY, num_rows=4, batch_size=2)


def wrong_kinds(valid: Any, every: bool) -> Iterator[tuple[str, Any]]:
    """Things of other kinds than a valid argument, by name; every one, or those that differ most."""
    yield "a string", "a"
    yield "None", None
    yield "nested ragged lists", [[0], [0, 1]]
    yield "an empty list", []
    yield "a negative number", -1
    yield "half a number", 2.5
    yield "NaN", jnp.nan
    if every:
        yield "zero", 0
        yield "True", True
        yield "infinity", jnp.inf
        yield "a complex number", 1j
        yield "a huge number", 10**400
        yield "a dict", {}
        yield "an empty array", jnp.zeros(0)
        yield "an array of rank 3", jnp.zeros((1, 1, 1))
    if is_key(valid):
        yield "three keys", jax.random.split(KEY, 3)
        yield "words that are no key", jnp.zeros(3, jnp.uint32)
    else:
        yield "random keys", jax.random.split(KEY, 3)
    if not isinstance(valid, jax.Array | np.ndarray) or not valid.ndim:
        return
    array = np.zeros(2) if is_key(valid) else np.asarray(valid)
    yield "of one axis more", array[None]
    yield "of no rows", array[:0]
    yield "integers", np.full(array.shape, -1)
    yield "strings", np.full(array.shape, "a")
    if every:
        yield "of one axis less", array[0]
        yield "of one row less", array[1:]
        yield "zeros", np.zeros(array.shape, int)
        yield "large integers", np.full(array.shape, 10**6)
        yield "floats", np.full(array.shape, 0.5)
        yield "NaNs", np.full(array.shape, np.nan)
        yield "booleans", np.ones(array.shape, bool)
        yield "a list", array.tolist()


def is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def parameters(function: Callable) -> list[str]:
    """The names of the parameters of a function or class that may be given by keyword."""
    function = function.__init__ if inspect.isclass(function) else function
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    every = inspect.signature(inspect.unwrap(function)).parameters.values()
    # Anything may be handed on to fields.
    return [p.name for p in every if p.kind in kinds and p.name not in ("self", "cls", "args")]
