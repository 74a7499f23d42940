"""The leaning experiment: what it watches in training, its verdicts, and one smoke run."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.leaning.config import Config, check, times
from experiments.leaning.explanations import EXPLANATIONS, Readings, verdict
from experiments.leaning.measures import _weights
from experiments.leaning.nets import FreeBlock, PatchTransformer, circuits, cosines, tie
from experiments.leaning.training import PARTS, optimizer
from imr import ImrError, cross_entropy, lens
from imr.lab.nets import graph_of
from imr.nn import Classifier, PatchBlock, Transformer

ROOT = Path(__file__).resolve().parents[1]
FREE = partial(
    Classifier, 16, 3, iterations=2, block=FreeBlock, image_shape=(4, 4), grid=2, heads=2, rank=2,
    mlp_width=4,
)  # fmt: skip


@pytest.mark.parametrize(
    "call",
    [FREE, partial(PatchTransformer, (4, 4), 3, grid=2, features=6, rank=2),
     partial(Transformer, 3, 5, layers=2, heads=2, features=6, head_features=4, mlp_width=3)],
)  # fmt: skip
def test_cosines_are_those_of_the_lens_and_tied_heads_have_one(call):
    net = call(rngs=nnx.Rngs(0))
    expected = lens.weight_cosines(_weights(circuits(net))).whole
    np.testing.assert_allclose(cosines(circuits(net)), expected, rtol=1e-5, atol=1e-6)
    sizes = [np.linalg.norm(np.asarray(w), axis=(2, 3)) for w in circuits(net)]
    assert (np.abs(expected) < 0.95).all()
    for sign in (1.0, -1.0):
        tie(net, sign)
        now = circuits(net)
        np.testing.assert_allclose(cosines(now), sign, rtol=1e-5)
        before = np.linalg.norm(np.asarray(now.value @ now.output), axis=(2, 3))
        assert (before < sizes[2] * sizes[3] * 1.001).all()
        assert (before > 0).all()


def test_a_free_block_holds_that_of_images():
    # Q = K = V = phi and O = -phi^T: the row half of the flow of the quadratic model.
    options = {"image_shape": (4, 4), "grid": 2, "heads": 2, "rank": 2, "mlp_width": 4}
    flow = PatchBlock(16, 3, column_term=False, **options, rngs=nnx.Rngs(0))
    free = FreeBlock(16, 3, **options, rngs=nnx.Rngs(1))
    free.mlp, phi = flow.mlp, flow.phi[...]
    free.query[...] = free.key[...] = free.value[...] = phi
    free.output[...] = -phi.mT
    z = jax.random.normal(jax.random.key(0), (5, 16))
    np.testing.assert_allclose(free(z), flow(z), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cosines(circuits(_as_net(free))), -1.0, rtol=1e-6)


def _as_net(block):
    net = FREE(rngs=nnx.Rngs(0))
    net.blocks[0] = block
    return net


def test_what_is_watched_adds_up():
    config = Config(steps=200, learning_rate=1e-4)
    graph = graph_of(FREE)
    watched = optimizer(config, graph)
    params = nnx.state(FREE(rngs=nnx.Rngs(0)), nnx.Param)
    x, y = jax.random.normal(jax.random.key(0), (12, 16)), np.arange(12) % 3

    def loss(params):
        return jnp.mean(cross_entropy(nnx.merge(graph, params)(x), y))

    @jax.jit
    def course(params, hyper):
        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            change, state = watched.update(grads, state, params, value=value, hyper=hyper)
            params = jax.tree.map(jnp.add, params, change)
            return (params, state), circuits(nnx.merge(graph, params))

        return jax.lax.scan(step, (params, watched.init(params)), length=200)

    def switched(decay=0.0, attention=1.0, values=1.0):
        return course(params, {"decay": decay, "attention": attention, "values": values})

    start = circuits(nnx.merge(graph, params))
    (_, free), on_the_way = switched()
    at = times(config)
    assert at[0] == 0
    assert at[-1] == 200
    assert len(set(at)) == 12
    for kept, first, later in zip(free.kept, start, on_the_way, strict=True):
        np.testing.assert_array_equal(kept[0], first)
        np.testing.assert_array_equal(kept[1:], later[at[1:] - 1])
    change = cosines(jax.tree.map(lambda w: w[-1], on_the_way)) - cosines(start)
    assert np.abs(change).max() > 1e-3  # of circuits that have moved
    np.testing.assert_allclose(free.parts.sum(axis=0), change, atol=0.02 * np.abs(change).max())
    # Decay shrinks all four factors of a head alike, which turns nothing, to first order.
    (_, decayed), _ = switched(decay=1.0)
    assert np.abs(decayed.parts[PARTS.index("decay")]).max() < 1e-6
    # What is fixed stays, to the bit, and does nothing.
    (_, fixed), ends = switched(decay=1.0, attention=0.0)
    np.testing.assert_array_equal(ends.query[-1], start.query)
    assert not fixed.parts[PARTS.index("attention")].any()
    assert fixed.parts[PARTS.index("values")].any()
    (_, fixed), ends = switched(values=0.0)
    np.testing.assert_array_equal(ends.output[-1], start.output)
    assert not fixed.parts[PARTS.index("values")].any()


def _readings(ends, start=0.0):
    """Readings of nets of one head, whose cosines at the end are given for each way."""
    cosines = {
        way: np.stack([np.full((3, 1, 1), start), np.asarray(end)[:, None, None]], axis=1)
        for way, end in ends.items()
    }
    parts = {way: np.tile(np.array([0.6, 0.4, 0.0])[:, None, None], (3, 1, 1, 1)) for way in ends}
    null = 0.01 * np.random.default_rng(0).normal(size=(2, 64, 3))
    return Readings(cosines, parts, np.full((3, 1, 1), 0.01), null, {})


def test_verdicts_say_what_all_seeds_show():
    lean = [-0.2, -0.3, -0.25]
    ends = dict.fromkeys(("decay", "random targets", "random targets, decay"), lean)
    ends |= {"free": lean, "attention fixed": [0.0, 0.01, 0.0], "values fixed": [-0.2, -0.1, -0.2]}
    ends |= {"climbing": [0.5, 0.4, 0.6], "descending": [-0.9, -0.9, -0.8]}
    words = [verdict(each, _readings(ends))[1] for each in EXPLANATIONS]
    assert words == [
        "falls", "falls", "falls", "stands", "stands", "falls", "open (2/3)", "falls", "stands",
        "falls", "falls",
    ]  # fmt: skip
    assert {verdict(each, _readings({**ends, "free": [-0.2, -0.3, 0.3]}))[1] for each in EXPLANATIONS} == {
        "no lean"
    }  # fmt: skip
    # Nets that climb: the other side is where those begin that descend.
    climbing = _readings(
        {**{way: [-x for x in end] for way, end in ends.items()}, "descending": lean}
    )
    assert climbing.side == -1
    np.testing.assert_allclose(climbing.from_other_side(), lean)


@pytest.mark.parametrize(
    ("flags", "words"),
    [({"steps": 250}, "multiple of 100"), ({"subjects": ()}, "one name"),
     ({"subjects": ("one",)}, "among slow")],
)  # fmt: skip
def test_flags_that_make_no_run_are_refused(flags, words):
    with pytest.raises(ImrError, match=words):
        check(Config(**flags))


@pytest.mark.acceptance
def test_a_smoke_run_measures_and_draws_everything(tmp_path):
    command = [
        sys.executable,
        "-m",
        "experiments.leaning",
        "--smoke",
        "--out",
        str(tmp_path / "run"),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["ways"]) == 2 * 8 * 2  # subjects, ways, seeds
    assert all(np.isfinite(row["end"]) for row in summary["ways"])
    assert len(summary["courses"]) == 12 * len(summary["ways"])
    assert len(summary["explanations"]) == 2 * len(EXPLANATIONS)
    begun = {row["way"]: round(row["start"], 5) for row in summary["ways"]}
    assert begun["climbing"] == 1.0
    assert begun["descending"] == -1.0
    assert {path.name for path in (tmp_path / "run" / "figures").glob("*.png")} == {
        "courses.png", "parts.png",
    }  # fmt: skip
