"""The cost model against XLA's own analysis of the compiled programs, and the TPU's and NVIDIA's."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imr
from experiments.bench import constants, scale
from experiments.bench.programs import traffic
from experiments.bench.tpu import modelled
from imr.attention import attention_products
from imr.attention.platforms import TPU
from imr.parallel import cost, cycles

N, R, K, F = 512, 16, 10, 784


def analysed(function, *arguments):
    shapes = [jax.ShapeDtypeStruct(x, jnp.float32) for x in arguments]
    actual: Any = jax.jit(function).lower(*shapes).compile().cost_analysis()
    return actual["flops"], actual["transcendentals"]


def check(actual, expected, tolerance):
    flops, exponentials = actual
    assert abs(flops / expected.flops - 1) < tolerance
    assert exponentials == expected.exponentials


def test_attention():
    whole = analysed(lambda q: attention_products(q, block=N), (N, R))
    check(whole, cost.attention_cost(N, R), 0.02)
    # The body of a loop counts once: one strip of eight.
    strip = analysed(lambda q, k: attention_products(q, k, block=64), (N, R), (N, R))
    eighth = cost.attention_cost(N, R, way="strips", block=64).times(1 / 8)
    check(strip, eighth, 0.02)


def test_tiles():
    """Two bodies of a loop, a pair of tiles each; XLA reports the larger branch, so it is alone."""
    from imr.attention.platforms import CPU
    from imr.attention.tiles import tiles

    block = 128
    pair = analysed(lambda q: tiles(q, q, tile=block, columns=True, on=CPU), (R, N))
    pairs = (N // block) * (N // block + 1) / 2
    model = cost.attention_cost(N, R, way="tiles", block=block).times(1 / pairs)
    assert abs(pair[0] / model.flops - 1) < 0.05
    # and the weights of the columns, once.
    assert pair[1] == model.exponentials + N


def test_linear():
    labels = jnp.zeros(N, int)
    targets = imr.as_targets(labels)
    model = imr.Linear(jnp.zeros((K, F), jnp.float32))

    def drift(y, gram):
        return model.descent_at(gram @ y, targets)

    check(analysed(drift, (K, N), (K, K)), cost.linear_flow_cost(N, K), 0.1)

    def field(z, theta):
        return imr.gradient_field(imr.feature_loss(imr.Linear(theta), labels))(0.0, z)

    check(analysed(field, (N, F), (K, F)), cost.linear_field_cost(N, F, K), 0.03)


def test_sums_and_errors():
    one = cost.Cost(1.0, 2.0, 3.0, 4.0)
    assert one.plus(one) == one.times(2)
    machine = cost.Machine("m", 1.0, 2.0, 3.0, 0.0, 8.0)
    assert cost.seconds(one, machine) == 3.0
    assert cost.seconds(one, machine, devices=3) == 1.5
    with pytest.raises(imr.ImrError, match="way must be one of whole, strips, tiles, ring"):
        cost.attention_cost(8, 2, way="dense")
    with pytest.raises(imr.ImrError, match="n must be an integer of at least 1; found 0"):
        cost.linear_flow_cost(0, 2)
    with pytest.raises(imr.ImrError, match="numbers_per_row must be positive"):
        cost.largest_n(cost.H100, 0)


# Of programs for TPUs: the rows that `scripts/bench --parts tpu cuda` made, with the versions of its compilers


def ratios(half):
    """The model's cycles over the compiler's, by program and topology."""
    rows = [row for row in constants.recorded() if row["constants"] == half]
    assert {row["topology"] for row in rows} == {"v5e", "v5p", "v6e", "v5e-256"}
    names = [(row["program"], row["topology"], row["n"], row["r"]) for row in rows]
    assert len(set(names)) == len(names) > 15
    return {n: modelled(row) / (1e6 * row["Mcycles"]) for n, row in zip(names, rows, strict=True)}


def wrong(half):
    """The programs of which the model's cycles are not within 30 % of the compiler's."""
    return {name for name, ratio in ratios(half).items() if abs(ratio - 1) > 0.3}


@pytest.mark.laws
def test_cycles_are_those_of_the_compiler():
    assert wrong("fixed") == set()


@pytest.mark.laws
def test_cycles_of_programs_that_fixed_no_constant():
    assert wrong("tried") == set()
    assert np.median([abs(ratio - 1) for ratio in ratios("tried").values()]) < 0.2


@pytest.mark.laws
def test_constants_are_those_of_their_half():
    """Half of the rows gives the constants; the other half is not looked at."""
    rows = constants.recorded()
    blind = [row if row["constants"] == "fixed" else row | {"Mcycles": 1.0} for row in rows]
    found, v5e, v6e = constants.fit(blind)
    assert (*found, v5e, v6e) == pytest.approx(
        (*cycles.CONSTANTS, cycles.V5E.exponentials, cycles.V6E.exponentials), rel=0.01
    )
    assert cycles.V5P.exponentials == cycles.V5E.exponentials / 2


@pytest.mark.laws
def test_the_table_of_the_readme_is_the_command_s():
    found = json.loads(constants.COMPILED.read_text())
    readme = Path(__file__).resolve().parents[1] / "README.md"
    assert scale.table([*found["tpu"], *found["cuda"]]) in readme.read_text()


@pytest.mark.laws
def test_bytes_are_those_of_the_program_for_an_h100():
    rows = json.loads(constants.COMPILED.read_text())["cuda"]
    assert len(rows) == 6
    for row in rows:
        assert 1 / 1.3 < row["model GB"] / row["compiled GB"] < 1.3, row


@pytest.mark.laws
def test_blocks_of_the_cycles_are_those_of_the_program():
    for n in (2**12, 2**16, 2**18):
        for way, size, devices in (
            ("tiles", TPU.tile, 1), ("strips", TPU.strip_size(n), 1),
            ("ring of tiles", TPU.tile, 4),
        ):  # fmt: skip
            count = [
                cycles.attention_cycles(
                    n,
                    16,
                    cycles.V5E,
                    way=way,
                    devices=devices,
                    **({} if size is None else {"block": size}),
                )
                for size in (None, size)
            ]
            assert count[0] == count[1]


@pytest.mark.laws
def test_bad_arguments_of_cycles():
    with pytest.raises(
        imr.ImrError, match="way must be one of tiles, ring of tiles, strips, gradient"
    ):
        cycles.attention_cycles(8, 2, cycles.V5E, way="whole")
    with pytest.raises(imr.ImrError, match="block must be an integer of at least 1; found 0"):
        cycles.attention_cycles(8, 2, cycles.V5E, block=0)
    with pytest.raises(imr.ImrError, match="way must be one of scan, associative"):
        cycles.filter_cycles(8, cycles.V5E, way="tree")


@pytest.mark.laws
def test_traffic_of_pieces_and_loops():
    """A piece that is cut or changed in place counts, not the whole; room for workings does not."""
    text = """
%cut (x: f32[8,64], i: s32[]) -> f32[8,4] {
  %x = f32[8,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %piece = f32[8,4]{1,0} dynamic-slice(%x, %i), dynamic_slice_sizes={8,4}
}

%put (y: f32[8,64], p: f32[8,4], i: s32[]) -> f32[8,64] {
  %y = f32[8,64]{1,0} parameter(0)
  %p = f32[8,4]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %new = f32[8,64]{1,0} dynamic-update-slice(%y, %p, %i)
}

%body (t: (s32[], f32[8,64])) -> (s32[], f32[8,64]) {
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[8,64]{1,0} get-tuple-element(%t), index=1
  %a = f32[8,4]{1,0} fusion(%x, %i), kind=kLoop, calls=%cut
  %b = (f32[8,4]{1,0}, s8[4096]{0}) custom-call(%a), custom_call_target="product"
  %c = f32[8,4]{1,0} get-tuple-element(%b), index=0
  %d = f32[8,64]{1,0} fusion(%x, %c, %i), kind=kLoop, calls=%put
}

ENTRY %main (t: (s32[], f32[8,64])) -> (s32[], f32[8,64]) {
  %while.1 = (s32[], f32[8,64]) while(%t), condition=%no, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""
    piece, index = 4 * 8 * 4, 4
    assert traffic(text) == 5 * (3 * 2 * piece + 2 * index)
