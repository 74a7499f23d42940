"""Public functions compiled ahead of time for TPUs and an H100 that are not at hand, mark `aot`.

`scripts/test -m aot -k v6e` compiles for one of them, in minutes; what each program needs is shown in the
end. `tests/compiled_rows.py` holds the calls, but for those that compile programs of their own.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from compiled_rows import Z
from jax.sharding import SingleDeviceSharding
from test_lowered import TRACED, results

import imr
from experiments.bench.programs import cycles
from experiments.bench.topologies import ENVIRONMENT, LAYOUTS, cuda_environment, h100, tpus
from experiments.bench.tpu import apart, gradient
from imr.attention.kernel import kernel_products
from imr.attention.memory import memory_of
from imr.parallel import make_mesh
from imr.parallel.mesh import ring_order
from imr.processes import mess3

pytestmark = pytest.mark.aot
TPUS = [name for name in LAYOUTS if name != "v5e-256"]


class Machine:
    """A chip that is not at hand: compiles programs of arrays for it."""

    def __init__(self, name, device):
        self.name, self.device = name, device
        self.place = SingleDeviceSharding(device)

    def compiled(self, program, *arrays):
        arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.place) for x in arrays]
        return jax.jit(program).lower(*arrays).compile()


@pytest.fixture(scope="module")
def machines():
    """Machines by name, in the environment that their compilers need."""
    with pytest.MonkeyPatch.context() as patch:

        def machine(name):
            try:
                environment = cuda_environment() if name == "h100" else ENVIRONMENT
                for key, value in environment.items():
                    patch.setenv(key, value)
                return Machine(name, h100() if name == "h100" else tpus(name)[0])
            except imr.MissingPackageError as missing:
                pytest.skip(str(missing))

        with jax.enable_x64(False):  # as users of accelerators have it
            yield machine


@pytest.fixture(scope="module", params=[*TPUS, "h100"])
def machine(request, machines):
    return machines(request.param)


@pytest.fixture(scope="module")
def v5e(machines):
    return machines("v5e")


# Integers of the table are those of tests, in 64 bits.
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64")
@pytest.mark.parametrize("name", TRACED)
def test_public_functions_compile(name, machine, record_property):
    start = time.perf_counter()
    program = machine.compiled(partial(results, name), jnp.asarray(Z, jnp.float32))
    memory = program.memory_analysis()
    size = memory.argument_size_in_bytes + memory.output_size_in_bytes
    size += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    row = {"topology": machine.name, "program": name, "MiB": size / 2**20}
    record_property("compiled", row | {"compiling s": time.perf_counter() - start})
    assert 0 < size < min(memory_of(machine.device), 80e9)


def test_the_kernel_compiles_for_an_h100(machines):
    """And holds no tile in memory: arrays of the size of its arguments alone."""
    q = jax.ShapeDtypeStruct((16, 2**16), jnp.float32)
    program = machines("h100").compiled(partial(kernel_products, columns=True), q, q, q)
    assert program.memory_analysis().temp_size_in_bytes < 2**26


def test_rings_follow_the_links_of_their_torus(machines):
    machines("v6e")
    for name in ("v5e", "v6e", "v5e-256"):
        mesh = make_mesh(devices=tpus(name))
        chips = [mesh.devices.flat[place].coords for place in ring_order(mesh)]
        for here, there in zip(chips, chips[1:] + chips[:1], strict=True):
            assert sum(abs(a - b) for a, b in zip(here, there, strict=True)) == 1


def test_what_products_of_attention_and_their_gradient_cost(v5e):
    """Parts of the keys are made once for all strips: in each of them they took a sixth of the time.

    For a gradient a strip is made anew and multiplied six times, at full precision.
    """
    q = jax.ShapeDtypeStruct((2**16, 16), jnp.float32)
    products, slope = (cycles(v5e.compiled(each, q).as_text()) for each in (apart, gradient))
    assert products < 105e6
    assert slope < 3.5 * products


def test_the_tree_of_the_filter_compiles_soon_and_needs_little_memory(v5e):
    words = jax.ShapeDtypeStruct((1000, 256), jnp.int32)
    start = time.perf_counter()
    program = v5e.compiled(partial(imr.bayes_filter, mess3(0.15, 0.6), method="associative"), words)
    assert time.perf_counter() - start < 60
    memory = program.memory_analysis()
    data = memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert data < 5 * 2**20  # tokens, beliefs and log-probabilities, without padding
    assert data + memory.temp_size_in_bytes <= 4 * data
