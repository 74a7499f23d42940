"""Compiled = eager = float64, with constants closed over, for every public function of arrays.

jit sees zeros, ones and the identity as constants, at a size at which the fusions that
`imr._compiler` turns off give garbage.
"""

import inspect
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_docstrings import public

import imr
from imr import _compiler
from imr.processes import mess3

N, F, K = (
    8000,
    10,
    10,
)  # rows, features, classes: the fault shows in attention at 8,000 rows, not 2,000

random = np.random.default_rng(0)
Z = random.normal(size=(N, F))
LABELS = jnp.asarray(random.integers(0, K, N))
TOKENS = jnp.asarray(random.integers(0, 3, (300, 6)))
CONSTANTS = {
    "ones": lambda *shape, dtype: jnp.ones(shape, dtype),
    "zeros": lambda *shape, dtype: jnp.zeros(shape, dtype),
    "eye": lambda *shape, dtype: (
        jnp.broadcast_to(jnp.eye(*shape[-2:], dtype=dtype), shape)
        if len(shape) > 1
        else jnp.ones(shape, dtype)
    ),
}
ROWS = {}


def row(*names):
    """Notes how to call public functions: row(z, c), c(shape...) being the constant."""

    def note(function):
        ROWS.update(dict.fromkeys(names or [function.__name__], function))
        return function

    return note


def cast(tree, dtype):
    """The floating leaves of a pytree in a dtype."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


# Made outside of any program, as users do: some functions look at the process that they are given.
PROCESSES = {x.dtype: cast(mess3(0.15, 0.6), x.dtype) for x in (np.float32([]), np.float64([]))}


def few(z):
    """As many rows as dense n x n arrays are made of in a moment."""
    return z[:512]


# Models, losses and fields


@row("Linear", "Model", "RowModel", "SpanModel", "feature_loss", "Terms")
def linear(z, c):
    loss = imr.feature_loss(imr.Linear(c(K, F), c(K)), LABELS)
    return loss.model(z), jax.grad(loss)(z), loss(z)


@row("Latent")
def latent(z, c):
    group = np.arange(K) // 2
    loss = imr.feature_loss(imr.Latent(c(K, F), group), LABELS // 2)
    return loss.model(z), jax.grad(loss)(z)


@row("Polynomial")
def polynomial(z, c):
    loss = imr.feature_loss(imr.Polynomial(0.1 * c(K, F), 2), LABELS)
    return loss.model(z), jax.grad(loss)(z)


@row("Quadratic")
def quadratic(z, c):
    loss = imr.feature_loss(imr.Quadratic(0.3 * c(F, 4), 0.3 * c(F, 4)), None)
    return loss.model(few(z)), jax.grad(loss)(few(z))


@row()
def cross_entropy(z, c):
    return imr.cross_entropy(z @ c(F, K), LABELS)


@row("Targets", "as_targets")
def targets(z, c):
    t = imr.as_targets(jnp.asarray(c(N, K)))
    return t.mv(z[:K]), t.rmv(z, K)


@row("LowRankTargets", "same_class_targets")
def low_rank(z, c):
    t = imr.same_class_targets(LABELS)
    return t.mv(z), t.rmv(z + c(N, F), N)


@row("pointers")
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
    field = imr.joint_field(lambda z, theta: jnp.mean(imr.cross_entropy(z @ theta.T, LABELS)))
    return field(0.0, (z, c(K, F)), None)


@row("linear_path", "path_field")
def path(z, c):
    path = imr.linear_path(jnp.array([0.0, 1.0], z.dtype), jnp.stack([c(K, F), 2 * c(K, F)]))
    field = imr.path_field(lambda z, theta: z @ theta.T, path, LABELS)
    return path(0.5), field(0.5, z, None)


@row("lie_step", "strang_step", "split_step")
def steps(z, c):
    fields = imr.split_fields(imr.feature_loss(imr.Linear(c(K, F)), LABELS))
    step = partial(imr.split_step, stages=imr.splitting.lie_stages(2))
    return [step(fields, z, 0.1) for step in (imr.lie_step, imr.strang_step, step)]


@row("solve", "solve_reduced")
def solves(z, c):
    loss = imr.feature_loss(imr.Linear(c(K, F)), LABELS)
    full = imr.solve(imr.closed_field(loss), z, t1=0.5, rtol=1e-4, atol=1e-6)
    return full.z, imr.solve_reduced(loss, z, t1=0.5).z


# Attention


@row()
def cross_attention(z, c):
    return imr.cross_attention(z, c(K, F)), imr.cross_attention(z, c(K, F), c(K))


@row()
def attention_weights(z, c):
    return [imr.attention_weights(few(z) @ c(F, 512), norm) for norm in ("row", "column", "double")]


@row("self_attention", "reverse_attention", "attention_terms")
def self_attention(z, c):
    q, k = 0.3 * c(F, 4), 0.3 * c(F, 4)
    heads = jnp.stack([q, q])
    return [
        imr.self_attention(few(z), q), imr.self_attention(few(z), q, k, block=128),
        imr.reverse_attention(few(z), q, k), imr.attention.attention_terms(few(z), heads, heads),
    ]  # fmt: skip


@row("attention_products", "attention_log_sums", "projected_terms")
def products(z, c):
    keys = c(512, F)
    return [
        imr.attention.attention_products(few(z), keys, block=128),
        imr.attention.attention_log_sums(few(z), keys),
        imr.attention.projected_terms(few(z), keys),
    ]


# Processes and beliefs: what they hold is constant


@row("bayes_filter", "next_token_probabilities", "is_forbidden", "smooth")
def filters(z, c):
    process = PROCESSES[z.dtype]
    scan, tree = (imr.bayes_filter(process, TOKENS, method=m) for m in ("scan", "associative"))
    following = imr.beliefs.next_token_probabilities(process, scan.beliefs)
    return (
        scan,
        tree,
        following,
        imr.beliefs.smooth(process, TOKENS),
        imr.beliefs.is_forbidden(scan),
    )


@row("conditional_entropies", "block_entropies", "excess_entropy", "belief_level")
def entropies(z, c):
    process = PROCESSES[z.dtype]
    return [
        imr.conditional_entropies(process, 6), imr.beliefs.block_entropies(process, 6),
        imr.beliefs.excess_entropy(process, 6), imr.beliefs.belief_level(process, 6),
    ]  # fmt: skip


# Metrics, regression and nets


@row("class_means", "class_scatter", "neural_collapse", "margins")
def classes(z, c):
    m = imr.metrics
    return [
        m.class_means(z, LABELS, K), m.class_scatter(z, LABELS, K), m.margins(z @ c(F, K), LABELS),
        m.neural_collapse(z, jnp.eye(K, F, dtype=z.dtype), LABELS),
    ]  # fmt: skip


@row("interference", "mean_cosine", "simplex_alignment", "token_cosines")
def directions(z, c):
    m, z = imr.metrics, few(z) + c(512, F)
    return m.interference(z), m.mean_cosine(z), m.simplex_alignment(z), m.token_cosines(z)


@row("fit_probe", "encoding", "energy_share", "parity_share", "lag_gains", "residual_ratio")
def probes(z, c):
    m, y, w = imr.metrics, z[:, :3], jnp.ones(N, z.dtype) / N
    probe = m.fit_probe(z, y, w)
    words = jnp.asarray(np.arange(N * 4).reshape(N, 4) % 7 % 3)
    return [
        probe(z), probe.r_squared, m.encoding(z, y, w), m.energy_share(z, jnp.eye(2, F, dtype=z.dtype)),
        m.parity_share(c(64, 8, 8)), m.lag_gains(y, jnp.eye(3, dtype=z.dtype), words, w),
        m.residual_ratio(0.1 * z[:, 0], 0.1 * z[:, 1]),
    ]  # fmt: skip


@row("coordinates", "ablate_along", "replace_along", "add_along")
def edits(z, c):
    e, d = imr.nn, jnp.eye(2, F, dtype=z.dtype)
    values = c(N, 2)
    return [
        e.coordinates(z, d), e.ablate_along(z, d), e.replace_along(z, d, values),
        e.add_along(z, d, values),
    ]  # fmt: skip


def net_of(make, z):
    """A net with its weights, constants of the program, in the dtype of z."""
    graph, state = nnx.split(make)
    return nnx.merge(graph, cast(state, z.dtype))


@row("MLP", "Block", "Classifier", "FlowBlock")
def nets(z, c):
    rngs = nnx.Rngs(0)
    made = [
        imr.nn.MLP(F, 16, rngs=rngs), imr.nn.Block(F, K, rngs=rngs),
        imr.nn.Classifier(F, K, iterations=2, rngs=rngs), imr.nn.FlowBlock(F, K, steps=2, rngs=rngs),
    ]  # fmt: skip
    nets = [net_of(net, z) for net in made]
    nets[0].w1[...], nets[1].theta[...] = c(F, 16), c(K, F)
    return [net(z) for net in nets]


# Public names that compute no arrays from arrays in a user's program, and why not.
NO_ARRAY_FUNCTIONS = {
    "integers, or concrete values alone": {
        "all_words", "unique_prefixes", "count_mixed_states", "mixed_states", "is_unifilar",
        "head_count", "spectrum", "additive_filter", "welch_bound", "cluster_count", "accuracy",
        "one_head_attention", "two_head_attention",
    },
    "built on concrete numbers": {
        "coin", "days_of_week", "even_ones", "fanizza", "leaky_rrxor", "matching_parens", "mess3",
        "mr_name", "no_consecutive_ones", "post_quantum", "rrxor", "sns", "tom_quantum",
        "zero_one_random", "conditional_product", "mixture", "product", "with_begin_token",
        "with_end_token",
    },
    "processes and devices": {
        "agreed", "initialize", "initialize_from_environment", "is_first", "preempted",
        "stop_on_signals", "stop_if_asked", "from_local_rows", "local", "make_mesh", "mesh_of_all", "replicate",
    },
    "files, texts and imports": {
        "read_model", "read_texts", "read_tokenizer", "sample_texts", "tokenize", "load_on_use",
        "keep_products_apart",
    },
    # Functions of arrays without a row as yet: random draws differ between dtypes, weights are
    # float32, the programs are long, or a process that is a constant of a program is refused.
    "to do": {
        "sample", "random_feature_products", "antisymmetric_share", "entropy_rate", "depth_is_time",
        "solve_to_steady_state", "fit_regression", "fit_noisy_regression", "apply_heads",
        "predicted_values", "Transformer", "PatchBlock", "exact_kl", "next_token_loss", "record",
        "measure_text", "label_null", "gradient_shares", "energy_gradient", "model_from_arrays",
        "model_from_transformer", "fold_norms", "imr_fits", "mismatched", "rotated", "score",
        "theta_spectra", "weight_cosines", "constrained_level", "context_circuits",
        "construction_cosines", "permuted_circuit", "rotated_circuit",
        "constrained_beliefs", "token_vectors", "row_normalised_token_vectors",
        "ContextBlock", "LinearSelfAttention", "Fit", "Fixed", "ViterbiPath", "fit_process", "largest", "residual_products", "viterbi",
    },
    "classes of results and errors": {
        "DepthIsTime", "Result", "Flow", "Process", "Sample", "RandomFeatureProducts", "EntropyRate",
        "Filtered", "Level", "MixedStates", "Prefixes", "AdditiveFilter", "Heads", "Values",
        "Spectrum", "Activations", "EnergyGradient", "LabelCosines", "Energies", "TermCosines",
        "TextMeasures", "HeadWeights", "Mlp", "Norm", "TransformerWeights", "Pieces", "Fits",
        "Score", "Spectra", "WeightCosines", "Circuit", "ClassScatter", "NeuralCollapse", "Probe", "Record",
        "Preempted", "DataError", "FlowError", "ImrError", "MissingPackageError", "RunError",
    },
}  # fmt: skip


# Heads of other people's models.


@row("head_gradient", "head_logits", "head_updates")
def heads(z, c):
    weights = {
        "query": 0.3 * c(4, F, 4),
        "key": 0.3 * c(2, F, 4),
        "value": c(2, F, 4),
        "output": c(4, 4, F),
    }
    heads = imr.lens.Heads(**weights, frequencies=c(2), scale=0.5, cap=3.0)
    z, seen = few(z), jnp.tri(512, dtype=bool)
    return (
        imr.lens.head_gradient(heads, z, seen),
        imr.lens.head_updates(heads, z, seen).updates,
        imr.lens.head_logits(heads, z),
    )


NO_ARRAY_FUNCTIONS["heads, by numpy, and their results"] = {
    "read_heads", "head_weights", "fold_heads", "head_mask", "HeadNames", "HeadLayers", "HeadUpdates",
    "rotary_spectra", "damped_heads", "attended_distances", "RotarySpectra", "Distances",
    "shifted_cosines", "layer_cosines", "layer_scores", "part_cosines", "gauge_scores", "permuted_layers",
    "without_shared", "PartCosines", "Gauge", "FamilyWise",
}  # fmt: skip


def test_every_public_name_has_a_row():
    names = {full.split(".")[-1] for full in public()}
    none = set().union(*NO_ARRAY_FUNCTIONS.values())
    assert names - set(ROWS) - none == set(), "give it a row, or list it as no array function"
    regression = {n for n, x in vars(imr.regression).items() if n.startswith("fit") and callable(x)}
    assert (set(ROWS) | none) - names - regression == set(), "no longer public"
    assert set(ROWS) & none == set()


def leaves_of(function, z, constant):
    """The floating arrays that a row gives."""
    tree = function(z, partial(constant, dtype=z.dtype))
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


def largest_error(found, wanted):
    """Largest difference over the largest entry, or over 1 where entries are smaller."""
    errors = [0.0]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        scale = np.nanmax(np.abs(b), initial=1.0, where=np.isfinite(b))
        assert (np.isfinite(a) == np.isfinite(b)).all()
        both = np.isfinite(a)
        errors.append(np.max(np.abs(a - b), initial=0.0, where=both) / scale)
    return max(errors)


# What is constant in programs of processes is the process.
OF_PROCESSES = {filters, entropies}
CASES = [
    pytest.param(function, constant, id=f"{function.__name__}-{constant}")
    for function in dict.fromkeys(ROWS.values())
    for constant in (["ones"] if function in OF_PROCESSES else CONSTANTS)
]


@pytest.mark.acceptance
@pytest.mark.parametrize(("function", "constant"), CASES)
def test_compiled_is_eager_is_float64(function, constant):
    make, narrow = CONSTANTS[constant], jnp.asarray(Z, jnp.float32)
    wide = leaves_of(function, jnp.asarray(Z, jnp.float64), make)
    eager = leaves_of(function, narrow, make)
    # One array a program: a constant with two uses is kept out of the fusions that are wrong.
    one = jax.jit(lambda z, i: leaves_of(function, z, make)[i], static_argnums=1)
    compiled = [one(narrow, i) for i in range(len(wide))]
    assert compiled
    assert largest_error(eager, wide) < 2e-4
    assert largest_error(compiled, wide) < 2e-4


CODE = """
import sys, warnings
import jax, jax.numpy as jnp
if sys.argv[1] == "late":
    jax.devices()
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import imr
z = jax.random.normal(jax.random.key(0), (8000, 10))
sums = jax.jit(lambda z: imr.Linear(jnp.ones((10, 10)))(z).sum(axis=1))(z)
off = jnp.abs(sums - 10 * z.sum(axis=1)).max() / 100
print(any("too late" in str(w.message) for w in seen), float(off))
"""


def run(when, flags=""):
    """Whether a fresh process warned, and by how much its sums of logits were off."""
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, when], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    warned, off = done.stdout.split()
    return warned == "True", float(off)


@pytest.mark.acceptance
def test_an_import_in_time_protects():
    assert run("early") == (False, pytest.approx(0, abs=1e-5))
    # A user's own flags stay, and count beside ours.
    assert run("early", "--xla_force_host_platform_device_count=2")[1] < 1e-5


@pytest.mark.acceptance
def test_a_late_import_warns_and_without_protection_results_are_wrong():
    warned, off = run("late")
    if _compiler.version() < (0, 10, 2):
        assert not warned
        pytest.skip("this jaxlib is right by itself")
    assert warned
    if off < 1e-5:
        pytest.skip("this jaxlib is right by itself: the protection can go")
    assert off > 0.1
    # As the warning says.
    assert run("late", f"{_compiler.FLAG}=individual_dot") == (False, pytest.approx(0, abs=1e-5))


def test_the_protection_is_on_in_tests():
    assert inspect.isfunction(imr.keep_products_apart)
    if _compiler.version() >= (0, 10, 2):
        assert _compiler.FLAG in os.environ["XLA_FLAGS"]
