"""Programs as they are lowered for CPUs, GPUs and TPUs; of compiled ones see test_aot.

`tests/compiled_rows.py` holds the calls, of every public function of arrays.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from compiled_rows import ROWS, Z, tokens_of
from flax import nnx
from jaxlib.mlir import ir
from test_compiled import leaves_of, quickly_compiled

from imr import nn

PLATFORMS = ("cpu", "cuda", "tpu")
TRACED = [name for name, row in ROWS.items() if not row.untraced]
# A loop of unknown length has no reverse derivative.
NO_GRADIENT = ("regressions",)
FLOATS = ("f16", "bf16", "f32", "f64", "complex<f32>", "complex<f64>")


def results(name, z):
    """What a row gives, with ones for its constants."""
    return leaves_of(ROWS[name], "ones", z)


def with_gradient(name, z):
    """What a row gives, and the gradient of its sum."""

    def total(z):
        leaves = results(name, z)
        return sum(jnp.sum(x) for x in leaves), leaves

    if name in NO_GRADIENT:
        return results(name, z)
    return jax.grad(total, has_aux=True)(z)


def lowered(program, *arrays):
    """The module of a program, for every platform in one."""
    return jax.jit(program).trace(*arrays).lower(lowering_platforms=PLATFORMS)


def vague(module):
    """(count of products, those of floating operands that state no full precision, by their lines).

    A product of bfloat16 parts that is summed in float32 is meant so: `imr.attention.platforms`.
    """
    count, found = 0, set()

    def visit(op):
        nonlocal count
        if op.name != "stablehlo.dot_general":
            return ir.WalkResult.ADVANCE
        kinds = {str(x.type.element_type) for x in op.operands}
        parts = kinds == {"bf16"} and str(op.results[0].type.element_type) == "f32"
        stated = re.findall(r"precision (\w+)", str(op.attributes["precision_config"]))
        count += 1
        if kinds <= set(FLOATS) and not parts and set(stated) != {"HIGHEST"}:
            found.add(f"{re.findall(r'.[^ ]*[.]py.:[0-9]+', str(op.location))}"[:300])
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return count, found


@pytest.mark.acceptance
def test_products_state_their_precision():
    """For accelerators, of results and gradients: by default a TPU rounds to 8 bits, a GPU to 11."""
    z, found, count = jnp.asarray(Z, jnp.float32), {}, 0
    for name in TRACED:
        module = lowered(partial(with_gradient, name), z).compiler_ir("stablehlo")
        products, lines = vague(module)
        count += products
        found |= {name: lines} if lines else {}
    assert found == {}
    assert count > 1000


@pytest.mark.acceptance
def test_products_of_a_transformer_in_training_state_their_precision():
    net = nn.Transformer(3, 6, layers=2, heads=2, features=16, rngs=nnx.Rngs(0))
    graph, state = nnx.split(net)
    tokens = tokens_of(jnp.asarray(Z[:8], jnp.float32))

    def loss(state):
        return jnp.mean(nnx.merge(graph, state)(tokens) ** 2)

    count, lines = vague(lowered(jax.grad(loss), state).compiler_ir("stablehlo"))
    assert lines == set()
    assert count > 50


@pytest.mark.acceptance
def test_programs_of_untraced_functions_state_their_precision(tmp_path):
    """Those that compile programs themselves, as they compile them for this machine."""
    z, products = jnp.asarray(Z, jnp.float32), []
    before = jax.config.read("jax_dump_ir_to")
    jax.clear_caches()  # what has been compiled is not written again
    jax.config.update("jax_dump_ir_to", str(tmp_path))
    with quickly_compiled():
        for name in ROWS.keys() - set(TRACED):
            results(name, z)
    jax.config.update("jax_dump_ir_to", before)
    for path in tmp_path.iterdir():
        products += re.findall(r"stablehlo.dot_general .*", path.read_text())
    assert len(products) > 20
    of_floats = [line for line in products if re.search(r"x(f|bf|complex)", line)]
    assert [line for line in of_floats if "precision = [HIGHEST, HIGHEST]" not in line] == []


@pytest.mark.acceptance
def test_a_vague_product_is_found():
    x = jnp.ones((4, 4), jnp.float32)
    count, lines = vague(lowered(lambda x: (x @ x, x.astype(int) @ x.astype(int)), x).compiler_ir())
    assert count == 6
    assert len(lines) == 1
    assert "test_lowered.py" in lines.pop()
