"""Settings of the tests: 8 CPU devices, float64, no silent rank promotion, shapes checked.

Doctests run as a reader would run them, in jax's own float32 settings. Default and `laws` tests
compile without most of XLA's optimisations: compilation is what they spend their time on, and this
halves it. Tests marked `acceptance` or `optimised` compile as users do, and with
IMR_TEST_OPTIMISED=1 all tests do.
"""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
# Ours first: of two equal flags XLA takes the last, here the user's. Eight devices cost the tests
# that use one nothing that can be measured.
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"
)
# Tests must not read programs that another test, or the user, has compiled.
os.environ["IMR_COMPILATION_CACHE"] = "0"

import beartype
import jax
import jaxtyping
import pytest

# What tests share has no doctests, and is imported by those that need it.
collect_ignore = [
    each.name for each in Path(__file__).parent.glob("*.py") if not each.name.startswith("test_")
]

OPTIMISED = os.environ.get("IMR_TEST_OPTIMISED", "0") == "1"

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

# As type checkers do, and beartype by itself does not, an int is taken for a float.
typechecked = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
# Before anything imports imr: every annotated shape is then checked at every call.
jaxtyping.install_import_hook("imr", f"{__name__}.typechecked")

import imr  # noqa: E402, F401 - before a test module computes anything, as users should


class _EveryTest:
    """Hooks for the doctests of imr/ and README.md too, which fixtures of this file do not reach."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        marks = {mark.name for mark in item.iter_markers()}
        optimised = OPTIMISED or not marks.isdisjoint({"acceptance", "optimised"})
        before = jax.config.read("jax_disable_most_optimizations")
        jax.config.update("jax_disable_most_optimizations", before or not optimised)
        try:
            return (yield)
        finally:
            jax.config.update("jax_disable_most_optimizations", before)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        if not isinstance(item, pytest.DoctestItem):
            return (yield)
        with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
            return (yield)


# Doctests that compile a whole solve, fit or net, seconds each; tests of their modules show the same.
DEAR = {
    "imr.beliefs.fit.fit_process",
    "imr.flow.depth.depth_is_time",
    "imr.flow.moving.path_field",
    "imr.flow.reduced.solve_reduced",
    "imr.lens.activations.run",
    "imr.lens.attribution.logit_parts",
    "imr.nn.block.Block",
    "imr.nn.flow.FlowBlock",
    "imr.nn.patches.PatchBlock",
    "imr.nn.transformer.Transformer",
}


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by mark
def pytest_collection_modifyitems(items):
    """Whole runs of experiments, the fixture `smoke`, are `acceptance`; READMEs and the like `guides`."""
    for item in items:
        if "smoke" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.acceptance)
        if item.path.name == "README.md" or item.name in DEAR:
            item.add_marker(pytest.mark.guides)


def pytest_terminal_summary(terminalreporter):
    """What programs need that were compiled for machines that are not at hand."""
    properties = [x for each in terminalreporter.getreports("passed") for x in each.user_properties]
    rows = [row for name, row in properties if name == "compiled"]
    if rows:
        from imr.lab.console import markdown_table

        terminalreporter.write_line(markdown_table(rows, formats={"MiB": ".2f"}))


def pytest_configure(config):
    config.pluginmanager.register(_EveryTest())


@pytest.fixture
def unchecked():
    """Calls go through without the shape checks, as users' calls do, to reach imr's own errors."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
