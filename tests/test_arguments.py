"""A user's mistake in any argument of any public function is an error of imr, or harmless.

`tests/arguments.py` holds valid arguments of each; here each of them becomes a thing of another kind
in turn. Functions are traced, not run: errors come before that, and nothing is compiled.
"""

import jax
import pytest
from test_compiled import NO_ARRAY_FUNCTIONS, public

import imr

# Where public functions are defined.
MODULES = (
    "attention", "beliefs", "constrained", "context", "flow", "lab", "lens", "losses", "metrics",
    "models", "nn", "parallel", "processes", "regression", "targets",
)  # fmt: skip

# Public names that take no arguments of arrays and numbers: what they take has tests of its own.
ELSEWHERE = {
    "processes and devices, between which arrays are moved as they are", "files and texts",
    "how experiments are run, told and drawn", "nets from a key, or from their description",
    "types and constants", "classes of results, options and errors",
}  # fmt: skip
OTHERS = {
    "bases and protocols": {
        "Model", "RowModel", "SpanModel", "Terms", "Targets", "DenseTargets", "LabelTargets",
        "LowRankTargets", "MaskedTargets", "SparseTargets", "Kernel", "DenseKernel", "FactorKernel",
        "ExponentialKernel", "Record",
    },
    "results, made by functions that are here": {
        "Activations", "AttentionDynamics", "ContextField", "EnergyGradient", "KernelRegression",
        "LinearAttention", "Probe",
    },
    "functions of such results": {
        "from_basis", "largest_gradient", "preconditioner", "largest_n", "seconds",
    },
    "functions of no arguments, or of nets, arrays of a checkpoint and loops": {
        "days_of_week", "model_from_arrays", "model_from_transformer", "init_states", "make_chunk",
        "fit", "mean_loss",
    },
    "constants of chips": {"Core", "Constants"},
    "other names of functions that are here": {"even", "golden_mean", "z1r"},
}  # fmt: skip


def module_of(function):
    """The module of imr that defines it."""
    return function.__module__.split(".")[1].removeprefix("_")


def outcome(function, arguments, traced=True):
    """Whether a call gives a result, an error of imr, or what else it raises."""

    def call():
        function(**arguments)

    try:
        jax.eval_shape(call) if traced else call()
    except imr.ImrError:
        return "refused"
    except Exception as error:
        # What is not written for a trace is run.
        return outcome(function, arguments, traced=False) if traced else error
    return "result"


@pytest.mark.acceptance
def test_every_public_function_has_valid_arguments():
    from arguments import ROWS, parameters

    names = {row.call.__name__ for row in ROWS} - {"full"}
    listed = set().union(*(NO_ARRAY_FUNCTIONS[group] for group in ELSEWHERE), *OTHERS.values())
    assert set(public()) - names - listed == set(), "give it a row in tests/arguments.py"
    assert names - set(public()) == set()
    assert {module_of(row.call) for row in ROWS} == set(MODULES)
    for row in ROWS:
        assert set(row.arguments) <= {*parameters(row.call), "args"}, row.call


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(
    "every",
    [
        pytest.param(False, marks=pytest.mark.acceptance, id="most"),
        pytest.param(True, marks=pytest.mark.fuzz, id="every"),
    ],
)
def test_arguments_of_another_kind(module, every):
    from arguments import ROWS, parameters, wrong_kinds

    raised = []
    with jax.numpy_rank_promotion("allow"):
        for call, valid in ROWS:
            if module_of(call) != module:
                continue
            traced = outcome(call, valid) == "result"
            assert traced or outcome(call, valid, traced=False) == "result", call
            for name in parameters(call):
                for kind, wrong in wrong_kinds(valid.get(name), every):
                    found = outcome(call, {**valid, name: wrong}, traced)
                    if isinstance(found, Exception):
                        told = f"{type(found).__name__}: {str(found)[:200]}"
                        raised.append(f"{call.__name__}, {name} {kind}: {told}")
    assert not raised, "\n".join(raised)
