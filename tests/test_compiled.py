"""Compiled = eager = float64, with constants closed over, for every public function of arrays.

jit sees zeros, ones and the identity as constants, at a size at which the fusions that
`imr._compiler` turns off give garbage. `tests/compiled_rows.py` holds the calls.
"""

import ast
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_rows import ROWS, N, Z
from jax.extend.core import ClosedJaxpr
from jax.interpreters import partial_eval

import imr
from imr import _compiler

CONSTANTS = {
    "ones": lambda *shape, dtype: jnp.ones(shape, dtype),
    "zeros": lambda *shape, dtype: jnp.zeros(shape, dtype),
    "eye": lambda *shape, dtype: (
        jnp.broadcast_to(jnp.eye(*shape[-2:], dtype=dtype), shape)
        if len(shape) > 1
        else jnp.ones(shape, dtype)
    ),
}

# Public names that compute no arrays from arrays, and why not.
NO_ARRAY_FUNCTIONS = {
    "numbers from numbers": {
        "all_words", "unique_prefixes", "additive_filter", "welch_bound", "lie_stages",
        "strang_stages", "triple_jump", "largest_n", "seconds", "step_cost", "attention_cost",
        "linear_field_cost", "linear_flow_cost", "quadratic_field_cost", "days_of_week",
        "attention_cycles", "filter_cycles", "Core", "Constants",
    },
    "a number or a truth about a concrete process": {
        "count_mixed_states", "head_count", "is_unifilar",
    },
    "processes and devices, between which arrays are moved as they are": {
        "agreed", "initialize", "initialize_from_environment", "is_first", "largest", "preempted",
        "stop_on_signals", "stop_if_asked", "end_on_signals", "from_local_rows", "local", "make_mesh", "mesh_of_all",
        "replicate",
    },
    "files and texts": {
        "read_model", "read_heads", "HeadNames", "HeadLayers", "read_texts", "read_tokenizer", "sample_texts", "tokenize", "ImageData", "Source",
        "load_digits", "load_images", "held_back_split", "read_idx", "write_whole", "using", "lock",
        "Lock", "Checkpoints", "read_newest", "read_nets", "SavedNets", "fit_run", "cache_folder",
        "compilation_cache", "place", "is_local", "unreachable", "entries", "Lines", "StoredLines", "lines_of",
        "make_folder", "remove", "check_run",
    },
    "how experiments are run, told and drawn": {
        "Bound", "Check", "Claim", "Control", "Line", "Verdict", "verdict_words", "Experiment",
        "run_main", "RunFlags", "check_bounds", "check_absolute", "check_writable", "flag_error", "repeated", "resolve_paths", "RunFolder",
        "config_dict", "config_hash", "provenance", "open_run", "Metrics", "Progress", "say", "optional_package",
        "markdown_table", "json_ready", "beside", "phase", "current_phase", "std", "plus_minus",
        "cell", "new_figure", "png", "style", "styled", "panels", "ribbon", "band", "label_edges", "legend_below", "frontier",
        "iteration_strip", "accuracy_by_iteration",
    },
    "nets from a key, or from their description": {"graph_of", "initialiser", "build", "describe"},
    "types and constants": {"Normalise", "Projection", "MOST_WORDS", "FAMILIES"},
    "weights of heads by numpy, in which XLA has no part, and a mask from integers": {
        "head_weights", "fold_heads", "rotary_spectra", "damped_heads", "attended_distances",
        "shifted_cosines", "layer_cosines", "layer_scores", "pair_cosines", "part_cosines",
        "gauge_scores", "permuted_layers", "without_shared", "head_mask", "context_circuits", "construction_cosines",
        "permuted_circuit", "rotated_circuit", "construction_rows", "circuit_part",
    },
    "classes of results, options and errors": {
        "DepthIsTime", "Result", "Flow", "Sample", "RandomFeatureProducts", "EntropyRate", "Fit",
        "Fixed", "Tied", "Filtered", "ViterbiPath", "Level", "MixedStates", "Prefixes", "AdditiveFilter",
        "Heads", "Values", "Spectrum", "LabelCosines", "Energies", "TermCosines", "TextMeasures",
        "HeadUpdates", "RotarySpectra", "Distances", "PartCosines", "Gauge", "FamilyWise",
        "Edit", "Site", "Part", "LogitParts", "Circuit", "HeadWeights", "Mlp", "Norm", "TransformerWeights", "Pieces", "Fits", "Score", "Spectra",
        "WeightCosines", "ClassScatter", "NeuralCollapse", "Regression", "Basis",
        "Cost", "Machine", "TrainState", "Training", "Preempted", "DataError", "FlowError",
        "ImrError", "MissingPackageError", "RunError",
    },
}  # fmt: skip


def public():
    """Names that imr and its submodules define, or import "as" the same name. Nothing is imported."""
    root = Path(imr.__file__).parent
    submodules = [root / name / "__init__.py" for name in imr.SUBMODULES]
    alone = [root / f"{name}.py" for name in imr.SUBMODULES]
    alone += [root / "parallel" / f"{name}.py" for name in ("cost", "cycles")]
    paths = [root / "__init__.py", *submodules, *alone, *(root / "lab").glob("[!_]*.py")]
    modules = {path.stem for path in alone}
    for path in filter(Path.exists, paths):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                names = {alias.name for alias in node.names if alias.asname == alias.name}
                yield from names - modules
            elif isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_":
                yield node.name


def test_every_public_name_has_a_row():
    names = set(public())
    assert {"closed_field", "context_field", "euler", "objective", "mean_loss"} < names
    rows = {name for row in ROWS.values() for name in row.names}
    none = set().union(*NO_ARRAY_FUNCTIONS.values())
    assert names - rows - none == set(), "give it a row, or list it as no array function"
    assert (rows | none) - names == set(), "no longer public"
    assert rows & none == set()


def leaves_of(row, constant, z):
    """The floating arrays that a row gives."""
    tree = row.call(z, partial(CONSTANTS[constant], dtype=z.dtype))
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.floating)]


def largest_error(found, exact):
    """Largest difference over the largest entry, or over 1 where entries are smaller."""
    errors = [0.0]
    for a, b in zip(found, exact, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        both = np.isfinite(b)
        if not np.array_equal(np.isfinite(a), both):
            return np.inf
        scale = np.max(np.abs(b), initial=1.0, where=both)
        errors.append(np.max(np.abs(a - b), initial=0.0, where=both) / scale)
    return float(max(errors))


def means_of(leaves):
    """Means of the rows: a user's own reduction behind what a function returns."""
    return [x.mean(axis=-1) for x in leaves if x.ndim]


@contextmanager
def quickly_compiled():
    """Without most optimisations, in half the time."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def compiled(row, constant, z, apart=True):
    """The results of a row and their means, compiled: in one program, and `apart` each by its own.

    A constant, or a product, with two uses is kept out of the fusions that are wrong. Those are made
    with few optimisations as with all. They have never been wrong for zeros and identities.
    """

    def results(z):
        leaves = leaves_of(row, constant, z)
        return [*leaves, *means_of(leaves)]

    def program(i):
        """What does not lead to result i is left out before it is lowered."""
        used = [j == i for j in range(len(traced.out_avals))]
        jaxpr, _ = partial_eval.dce_jaxpr(traced.jaxpr, used, instantiate=True)
        return jax.jit(jax.extend.core.jaxpr_as_fun(ClosedJaxpr(jaxpr, traced.consts)))

    yield jax.jit(results)(z)
    if apart and constant == "ones":
        traced = jax.make_jaxpr(results)(z)
        with quickly_compiled():
            yield [program(i)(z)[0] for i in range(len(traced.out_avals))]


def errors(name, constant, dtype):
    """Errors of a row run eagerly and compiled, relative to float64."""
    row, z = ROWS[name], jnp.asarray(Z, dtype)
    wide, results = z.astype(jnp.float64), partial(leaves_of, row, constant)
    if row.untraced:  # it compiles its programs itself
        eager, exact = results(z), results(wide)
    else:
        with quickly_compiled():
            eager = results(z)
            exact = eager if row.draws else jax.jit(results)(wide)
    assert eager
    eager, exact = ([*x, *means_of(x)] for x in (eager, exact))
    found = [eager] if row.untraced else compiled(row, constant, z)
    return largest_error(eager, exact), max(largest_error(x, exact) for x in found)


def rounding(dtype):
    """What the order of N additions makes of their roundings, a random walk, and the last rounding."""
    return (N**0.5 + 1) * float(jnp.finfo(dtype).eps)


def is_right(eager, compiled, dtype):
    """Whether errors are those of roundings.

    That of the eager result shows how the function is conditioned: another order of the same
    operations draws from the same distribution again, and a factor of 4 holds its tails. It must not
    itself be that of garbage: N roundings of one sign are the most.
    """
    return eager < N**0.5 * rounding(dtype) and compiled < 4 * eager + rounding(dtype)


# Without the protection these rows are garbage on every jaxlib from 0.10.2 to 0.12.0.1: they hand on a
# product with the constant, and a sum comes next. The others reduce a product in two ways at once,
# as a softmax does, or not at all, and were right at every size tried.
WRONG_WITHOUT = ("linear", "targets", "fields", "self_attention", "edits", "noisy")


@pytest.mark.acceptance
@pytest.mark.parametrize("name", ROWS)
def test_compiled_is_eager_is_float64(name):
    for constant in ROWS[name].constants:
        dtypes = [jnp.float32]
        if name in WRONG_WITHOUT and constant == "ones":
            dtypes += [jnp.float64]
        for dtype in dtypes:
            eager, compiled = errors(name, constant, dtype)
            assert is_right(eager, compiled, dtype), (constant, dtype, eager, compiled)


@pytest.mark.acceptance
@pytest.mark.parametrize(
    "name", [name for name, row in ROWS.items() if row.half and not (row.draws or row.untraced)]
)
def test_bfloat16_is_float64_within_its_rounding(name):
    """Eager and compiled. z, products, logits, weights, sums and results are rounded: six roundings,
    each of which moves a result by what one of z does in float64, or by one of its own."""
    row, z = ROWS[name], jnp.asarray(Z, jnp.bfloat16)
    results, wide = partial(leaves_of, row, "ones"), z.astype(jnp.float64)
    eps = float(jnp.finfo(z.dtype).eps)
    signs = np.random.default_rng(1).choice([-1, 1], wide.shape)
    with quickly_compiled():
        program = jax.jit(results)
        found, exact, moved = results(z), program(wide), program(wide * (1 + eps / 2 * signs))
        found, exact, moved = ([*x, *means_of(x)] for x in (found, exact, moved))
        each = [found, *compiled(row, "ones", z, apart=name in WRONG_WITHOUT)]
    error = max(largest_error(x, exact) for x in each)
    assert error < 6 * (largest_error(moved, exact) + eps)


CODE = """
import json, os, sys, warnings
import jax
if sys.argv[1] == "late":
    jax.devices()
if sys.argv[1] == "flags read":
    from jaxlib import xla_client
    xla_client.CompileOptions()
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import imr
if sys.argv[1] == "flags anew":
    os.environ["XLA_FLAGS"] = ""
if sys.argv[1] == "unprotected":
    os.environ["XLA_FLAGS"] = ""
    from jax._src import compiler
    compiler.get_compile_options = compiler.get_compile_options.__wrapped__
import test_compiled as table
warned = any("compiled before may be wrong" in str(w.message) for w in seen)
print(json.dumps([warned, [table.errors(name, "ones", "float32") for name in sys.argv[2:]]]))
"""


def run(when, flags="", names=WRONG_WITHOUT):
    """Whether the import warned in a fresh process, and whether each of the rows is right there."""
    tests = Path(__file__).parent
    env = {
        **os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1",
        "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", CODE, when, *names], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    warned, found = json.loads(done.stdout.splitlines()[-1])
    return warned, [is_right(*errors, jnp.float32) for errors in found]


needs_protection = pytest.mark.skipif(
    _compiler.version() < (0, 10, 2), reason="this jaxlib is right by itself"
)


@pytest.mark.acceptance
@needs_protection
def test_without_the_protection_known_rows_are_wrong():
    """On a jaxlib where this fails the protection can go."""
    assert run("unprotected") == (False, [False] * len(WRONG_WITHOUT))


@pytest.mark.acceptance
@needs_protection
def test_a_late_import_protects_what_is_compiled_after_it_and_warns():
    assert run("late") == (True, [True] * len(WRONG_WITHOUT))
    # Before jax has started nothing was compiled, and nobody is warned.
    for when in ("flags read", "flags anew"):
        assert run(when, names=["linear"]) == (False, [True])
    # A process that one of imr has started has the flag, and may set its flags anew all the same.
    assert run("flags anew", f"{_compiler.FLAG}=individual_dot", ["linear"]) == (False, [True])
    # As the warning says.
    assert run("late", f"{_compiler.FLAG}=individual_dot", ["linear"]) == (False, [True])


def test_the_protection_is_on_in_tests():
    if _compiler.version() >= (0, 10, 2):
        assert _compiler.FLAG in os.environ["XLA_FLAGS"]


@pytest.fixture
def unprotected(monkeypatch):
    """As before the import, where jax has not started."""
    monkeypatch.setattr(_compiler, "backends_are_initialized", lambda: False)
    monkeypatch.setattr(_compiler.compiler, "get_compile_options", lambda **options: options)


@needs_protection
@pytest.mark.parametrize(
    ("users", "flags"),
    [
        ("", "{flag}=individual_dot"),
        ("--xla_one=1", "--xla_one=1 {flag}=individual_dot"),
        ("{flag}=", "{flag}="),
        ("{flag}=reduce {flag}=INDIVIDUAL_DOT", "{flag}=reduce {flag}=INDIVIDUAL_DOT"),
        ("flags.txt", "flags.txt"),
    ],
)
def test_flags_of_the_user_stay(unprotected, monkeypatch, users, flags):
    monkeypatch.setenv("XLA_FLAGS", users.format(flag=_compiler.FLAG))
    _compiler.keep_products_apart()
    assert os.environ["XLA_FLAGS"] == flags.format(flag=_compiler.FLAG)


@needs_protection
@pytest.mark.parametrize("value", ["individual_dot,reduce", "reduce"])
def test_a_flag_of_the_user_that_is_wrong_is_told(unprotected, monkeypatch, value):
    monkeypatch.setenv("XLA_FLAGS", f"{_compiler.FLAG}={value}")
    with pytest.warns(RuntimeWarning, match=f"={value}, with which jaxlib .* wrong numbers"):
        _compiler.keep_products_apart()


@needs_protection
def test_programs_of_cpus_get_the_option_where_jax_has_started(monkeypatch):
    def get_compile_options(*, env_options_overrides=None, backend=None):
        return env_options_overrides

    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(_compiler.compiler, "get_compile_options", get_compile_options)
    with pytest.warns(RuntimeWarning, match="import imr before anything is computed"):
        _compiler.keep_products_apart()
    get, cpu = _compiler.compiler.get_compile_options, jax.devices()[0].client
    assert get(backend=cpu) == {_compiler.OPTION: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    users = {_compiler.OPTION: "", "xla_other": True}
    assert get(backend=cpu, env_options_overrides=users) == users
    assert get(backend=SimpleNamespace(platform="tpu"), env_options_overrides=users) == users
    assert get(backend=SimpleNamespace(platform="tpu")) is None
