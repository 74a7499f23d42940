"""Training: one program for all runs, resumed to the bit, and checkpoints that say what they hold."""

import gc
import json
import math
import shutil
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import imr
from imr.lab import train
from imr.lab.architecture import build, describe
from imr.lab.checkpoint import Checkpoints, read_newest
from imr.lab.flags import RunFlags
from imr.lab.folder import open_run
from imr.lab.metrics import Metrics
from imr.lab.nets import graph_of, initialiser, read_nets
from imr.nn import Classifier, PatchBlock, Transformer
from imr.processes import mess3
from tests.problems import linear

RUNS, STEPS = 3, 5


def loss(params, hyper, data, rows, key):
    z, labels = data
    z = z[rows] + hyper * jax.random.normal(key, (len(rows), 4))
    return jnp.mean(imr.cross_entropy(z @ params["theta"].T, labels[rows]))


def init(key):
    # Of different keys different; normal numbers would take a second to compile.
    return {"theta": jnp.cos(jnp.arange(12.0).reshape(3, 4) + jax.random.key_data(key)[0] % 97)}


def schedule(data, key, step):
    del data, step
    return train.epoch_of_batches(key, 20, 4)


class Problem:
    """A small noisy regression, compiled once: fresh states of three runs, and a chunk of 5 steps."""

    def __init__(self):
        self.traced = 0

        def counted(*args):
            self.traced += 1
            return loss(*args)

        p, self.optimizer = linear(20, 4, 3), optax.adam(0.1)
        self.data, self.hyper = (p.z, p.labels), jnp.array([0.0, 0.5, 0.5])
        self.chunk = train.make_chunk(counted, self.optimizer, schedule)
        keys = jax.random.split(jax.random.key(0), RUNS)
        self.states = train.init_states(init, self.optimizer, keys)

    def fresh(self):
        """Chunks consume the states they are given."""
        return jax.tree.map(jnp.copy, self.states)

    def fit(self, states, steps, on_chunk=None):
        return train.fit(
            self.chunk, states, self.hyper, self.data, num_steps=steps, on_chunk=on_chunk
        )


@pytest.fixture(scope="module")
def problem():
    return Problem()


@pytest.fixture(scope="module")
def whole(problem):
    """The states at the end of 6 chunks, and the losses of each chunk."""
    losses = []
    states = problem.fit(problem.fresh(), 6 * STEPS, lambda step, states, l: losses.append(l))
    return states, np.stack(losses)


def same(a, b):
    def raw(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(x) if is_key else x

    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(raw(x), raw(y)) for x, y in pairs)


def test_vmapped_runs_are_one_program_and_equal_single_runs(problem, whole):
    assert problem.traced == 1
    for i in range(RUNS):
        # The same program, three times the same run.
        alone = jax.tree.map(lambda x, i=i: jnp.stack([x[i]] * RUNS), problem.states)
        hyper = jnp.full(RUNS, problem.hyper[i])
        states = train.fit(problem.chunk, alone, hyper, problem.data, num_steps=6 * STEPS)
        for copy in states.params["theta"]:
            np.testing.assert_allclose(copy, whole[0].params["theta"][i], rtol=1e-12)
    assert problem.traced == 1
    # Same noise, other seed: other parameters.
    assert not np.allclose(whole[0].params["theta"][1], whole[0].params["theta"][2])


def test_a_chunk_is_the_steps_it_says(problem):
    """The scan against a plain loop over the same batches and keys."""
    state = jax.tree.map(lambda x: x[1], problem.states)
    chunk_key, step_key = jax.random.split(state.key)
    batches = train.epoch_of_batches(jax.random.fold_in(chunk_key, 0), 20, 4)
    assert sorted(batches.ravel().tolist()) == list(range(20))
    params, opt_state, losses = state.params, state.opt_state, []

    @jax.jit
    def one_step(params, opt_state, step, rows):
        key = jax.random.fold_in(step_key, step)
        value, grads = jax.value_and_grad(loss)(params, problem.hyper[1], problem.data, rows, key)
        updates, opt_state = problem.optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    for step, rows in enumerate(batches):
        params, opt_state, value = one_step(params, opt_state, step, rows)
        losses.append(value)
    states, chunk_losses = problem.chunk(problem.fresh(), problem.hyper, problem.data)
    np.testing.assert_allclose(chunk_losses[1], losses, rtol=1e-12)
    np.testing.assert_allclose(states.params["theta"][1], params["theta"], rtol=1e-12)
    assert states.step.tolist() == [STEPS] * RUNS


def test_training_lowers_the_loss(problem):
    losses = []
    problem.fit(problem.fresh(), 20 * STEPS, lambda step, states, l: losses.append(l))
    assert (losses[-1].mean(axis=1) < losses[0].mean(axis=1)).all()


def test_a_checkpoint_survives_the_chunks_that_follow(problem, tmp_path):
    """Saving is asynchronous, and the next chunk consumes the buffers it was handed."""
    seen = {}

    def on_chunk(step, states, losses):
        seen[step] = np.asarray(states.params["theta"])
        checkpoints.save(step, states)

    with Checkpoints(tmp_path, {}, every=STEPS, keep=5) as checkpoints:
        problem.fit(problem.fresh(), 5 * STEPS, on_chunk)
    for step in sorted(seen, reverse=True):
        with Checkpoints(tmp_path, {}) as checkpoints:
            restored = checkpoints.restore(problem.states)
        assert restored.step[0] == step
        np.testing.assert_array_equal(restored.params["theta"], seen[step])
        shutil.rmtree(tmp_path / str(step))


def test_a_state_or_configuration_that_cannot_be_kept_is_refused_at_once(tmp_path):
    for config in ({"rate": math.inf}, {"model": object()}):
        with pytest.raises(imr.ImrError, match="config must hold what JSON can"):
            Checkpoints(tmp_path, config)
    with pytest.raises(imr.ImrError, match="every must be an integer of at least 1; found 0"):
        Checkpoints(tmp_path, {}, every=0)
    with Checkpoints(tmp_path, {}) as checkpoints:
        with pytest.raises(imr.ImrError, match="state must hold an array; found none"):
            checkpoints.save(1, {})
        with pytest.raises(imr.ImrError, match="state must hold arrays; found a float at a/0"):
            checkpoints.save(1, {"a": [0.5]})


def test_checkpoints_save_when_due_and_at_the_end(tmp_path):
    state = {"x": np.zeros(3)}
    with Checkpoints(tmp_path, {}, every=10, keep=2) as checkpoints:
        for step in range(1, 26):
            checkpoints.save(step, {"x": np.full(3, float(step))}, force=step == 25)
        checkpoints.save(25, state, force=True)  # a second time is no error
    with Checkpoints(tmp_path, {}, every=10) as checkpoints:
        assert checkpoints.restore(state)["x"].tolist() == [25.0] * 3


def test_a_checkpoint_in_double_precision_is_read_in_either(tmp_path):
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(1, {"x": jnp.arange(3) / 3})
    for precision in (jnp.float64, jnp.float32):
        with jax.enable_x64(precision == jnp.float64):
            found = read_newest(tmp_path)[1]["x"]
            assert found.dtype == precision
            np.testing.assert_array_equal(found, np.asarray(np.arange(3) / 3, precision))


def test_halves_of_checkpoints_are_removed(tmp_path):
    """What orbax leaves when it is killed, while it writes one or removes one."""
    state = {"x": np.zeros(3)}
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.save(2, state)
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
    for half in (".removed/1/state", "3.orbax-checkpoint-tmp/state"):
        (tmp_path / half).mkdir(parents=True)
    with Checkpoints(tmp_path, {}) as checkpoints:
        assert checkpoints.restore(state) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


def test_a_checkpoint_brings_its_lines_of_metrics_back(tmp_path):
    state, lines = {"x": np.zeros(3)}, Metrics(tmp_path / "metrics.jsonl", net="a")
    with Checkpoints(tmp_path / "c", {}, lines=lines) as checkpoints:
        assert checkpoints.restore(state) is None
        lines.append(1, loss=0.5)
        checkpoints.save(1, state)
        lines.append(2, loss=0.25)  # of a step that is lost
    for text in (
        (tmp_path / "metrics.jsonl").read_text(),
        "",
        '{"step": 1, "net": "a", "loss": 9.0}\n',
    ):
        (tmp_path / "metrics.jsonl").write_text(text)
        with Checkpoints(tmp_path / "c", {}, lines=lines) as checkpoints:
            checkpoints.restore(state)
        assert lines.rows() == [{"step": 1, "net": "a", "loss": 0.5}]


# The loop of the experiments


class Stopped(Exception):
    pass


def fit_run(run, problem, num_steps=6, name="nets", metrics=train.mean_loss):
    keys = jax.random.split(jax.random.key(0), RUNS)
    training = train.Training(
        init,
        loss,
        schedule,
        problem.optimizer,
        keys,
        problem.hyper,
        problem.data,
        num_steps * STEPS,
    )
    return train.fit_run(
        run, name, training, holds={"model": "regression"}, every=2 * STEPS, label="regression",
        tags={"model": "regression"}, metrics=metrics,
    )  # fmt: skip


def test_stopped_and_resumed_is_bit_identical(problem, whole, tmp_path, capsys, monkeypatch):
    # The programs that are there already, for one device.
    monkeypatch.setattr(train, "mesh_of_all", lambda: None)
    monkeypatch.setattr(train, "make_chunk", lambda *args, mesh: problem.chunk)
    monkeypatch.setattr(train, "init_states", lambda *args, mesh: problem.fresh())
    run, chunks = open_run("probe", RunFlags(), out=tmp_path), []

    def stopping(losses):
        chunks.append(losses)
        if len(chunks) == 5:
            raise Stopped
        return train.mean_loss(losses)

    with pytest.raises(Stopped):
        fit_run(run, problem, metrics=stopping)
    # Killed in the fifth chunk: the newest checkpoint is that of the fourth, with all its lines.
    run.metrics(model="regression").append(5 * STEPS, loss=-1.0)
    run.metrics(model="other").append(5 * STEPS, loss=-1.0)
    states = fit_run(run, problem)
    assert same(states, whole[0])
    lines = run.metrics(model="regression").rows()
    assert [line["step"] for line in lines] == [STEPS * i for i in range(1, 7)]
    found = [line["loss"] for line in lines]
    np.testing.assert_allclose(found, whole[1].mean(axis=(1, 2)), rtol=1e-12)
    assert len(run.metrics(model="other").rows()) == 1
    assert "regression: 30/30" in capsys.readouterr().err
    # At its end it only reads.
    assert same(fit_run(run, problem, metrics=stopping), whole[0])
    assert len(chunks) == 5


# What a checkpoint says of itself


NETS = {
    "transformer": partial(Transformer, 3, 4, features=8, head_features=4, mlp_width=8),
    "patches": partial(
        Classifier,
        16,
        3,
        iterations=2,
        block=PatchBlock,
        image_shape=(4, 4),
        grid=2,
        heads=1,
        rank=2,
    ),
    "plain": partial(Classifier, 4, 3, iterations=1),
}


@pytest.mark.parametrize("name", NETS)
def test_a_description_builds_the_same_net(name):
    description = json.loads(json.dumps(describe(NETS[name])))
    assert describe(build(description)) == description
    before, after = (graph_of(call) for call in (NETS[name], build(description)))
    assert before == after


def test_a_description_holds_defaults_and_processes():
    assert describe(NETS["transformer"])["arguments"]["layers"] == 1
    process = build(json.loads(json.dumps(describe(partial(mess3, 0.15, 0.6)))))()
    np.testing.assert_array_equal(process.transitions, mess3(0.15, 0.6).transitions)


def test_only_nets_and_processes_of_ours_are_built():
    with pytest.raises(imr.RunError, match=r"call must be a public name of imr\.nn or"):
        describe(partial(dict, a=1))
    for bad in (
        {"module": "os", "name": "system", "arguments": {"command": "true"}},
        {"module": "imr.nn", "name": "nnx", "arguments": {}},
        {"module": "imr.nn", "name": "_Layer", "arguments": {}},
        {"module": "imr.nn", "name": "NoSuchNet", "arguments": {}},
        {"name": "Transformer"},
    ):
        with pytest.raises(imr.RunError, match="description must name"):
            build(bad)


@pytest.fixture(scope="module")
def untrained():
    keys = jnp.stack([jax.random.key(s) for s in (3, 4)])
    return train.init_states(initialiser(NETS["plain"]), optax.identity(), keys)


def saved_nets(folder, untrained, **changes):
    holds = {"architecture": describe(NETS["plain"]), "runs": [{"seed": 3}, {"seed": 4}], **changes}
    with Checkpoints(folder, {k: v for k, v in holds.items() if v is not None}) as checkpoints:
        moved = untrained._replace(params=jax.tree.map(lambda x: x + 1, untrained.params))
        checkpoints.save(1, moved, force=True)


@pytest.mark.laws
def test_the_nets_of_a_checkpoint_without_its_experiment(untrained, tmp_path):
    saved_nets(tmp_path, untrained)
    nets = read_nets(tmp_path)
    assert nets.runs == [{"seed": 3}, {"seed": 4}]
    assert same(nets.untrained(), untrained.params)
    assert same(nets.params, jax.tree.map(lambda x: x + 1, untrained.params))
    net = nets.net(1, untrained.params)
    assert same(nnx.state(net, nnx.Param), jax.tree.map(lambda x: x[1], untrained.params))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": None}, "does not say its architecture"),
        ({"runs": [{"seed": 3}]}, "not those of 1 runs"),
        ({"architecture": describe(NETS["transformer"])}, "does not hold what it says"),
    ],
)
def test_a_checkpoint_that_does_not_say_what_it_holds(untrained, tmp_path, changes, message):
    saved_nets(tmp_path, untrained, **changes)
    with pytest.raises(imr.RunError, match=message):
        read_nets(tmp_path)


class TestErrors:
    def saved(self, folder):
        with Checkpoints(folder, {"model": "a", "depth": 3}) as checkpoints:
            checkpoints.save(1, {"x": jnp.zeros((2, 3), jnp.float32)}, force=True)

    def test_another_configuration(self, tmp_path):
        self.saved(tmp_path)
        with (
            Checkpoints(tmp_path, {"model": "b", "depth": 3}) as checkpoints,
            pytest.raises(imr.RunError, match="another configuration: model is 'a' there and 'b'"),
        ):
            checkpoints.restore({"x": jnp.zeros((2, 3), jnp.float32)})

    def test_other_shapes_dtypes_and_leaves(self, tmp_path):
        self.saved(tmp_path)
        with Checkpoints(tmp_path, {"model": "a", "depth": 3}) as checkpoints:
            with pytest.raises(imr.RunError, match=r"shape \(2, 3\) and dtype float32 at .*x"):
                checkpoints.restore({"x": jnp.zeros((2, 4), jnp.float32)})
            with pytest.raises(imr.RunError, match="float64"):
                checkpoints.restore({"x": jnp.zeros((2, 3), jnp.float64)})
            with pytest.raises(imr.RunError, match="has nothing at y; this run has shape"):
                checkpoints.restore({"x": jnp.zeros((2, 3), jnp.float32), "y": jnp.zeros(1)})

    def test_damaged(self, tmp_path):
        self.saved(tmp_path)
        for file in (tmp_path / "1" / "state").rglob("*"):
            if file.is_file() and "metadata" not in file.name.lower():
                file.write_bytes(b"")
        with (
            Checkpoints(tmp_path, {"model": "a", "depth": 3}) as checkpoints,
            pytest.raises(imr.RunError, match="cannot be read"),
        ):
            checkpoints.restore({"x": jnp.zeros((2, 3), jnp.float32)})

    def test_altered_or_truncated(self, tmp_path):
        """Orbax and its file format notice few of the bits that flip."""
        like = {"x": jnp.cos(jnp.arange(4096.0)).reshape(64, 64)}
        with Checkpoints(tmp_path, {}) as checkpoints:
            checkpoints.save(1, like)
        largest = max((tmp_path / "1").rglob("*"), key=lambda path: path.stat().st_size)
        record = tmp_path / "1" / "record" / "metadata"
        data, words = bytearray(largest.read_bytes()), record.read_text()
        data[len(data) // 2] ^= 1
        unsigned = json.dumps(json.loads(words) | {"sha256": None}).encode()
        half = data[: len(data) // 2]
        for path, bad in ((record, unsigned), (record, b""), (largest, data), (largest, half)):
            record.write_text(words)
            path.write_bytes(bad)
            for read in (
                lambda: Checkpoints(tmp_path, {}).restore(like),
                lambda: read_newest(tmp_path),
            ):
                with pytest.raises(
                    imr.RunError, match=r"checkpoint 1 in .* cannot be read: .*Move"
                ):
                    read()

    # Orbax leaves reads that it has begun behind where another one fails.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
    @pytest.mark.acceptance
    def test_whatever_file_is_altered(self, tmp_path):
        """The state that was saved, or an error: of a file that is cut, empty, gone, or has a bit flipped."""
        folder, state = tmp_path / "c", {"x": jnp.cos(jnp.arange(64.0)), "y": jnp.arange(3)}
        with Checkpoints(folder, {"model": "a"}) as checkpoints:
            checkpoints.save(1, state)
        refused = Counter()
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            whole = path.read_bytes()
            flipped = [
                bytes([*whole[:at], whole[at] ^ 4, *whole[at + 1 :]]) for at in (0, len(whole) // 2)
            ]
            for data in (b"", whole[: len(whole) // 2], *flipped, None):
                path.unlink() if data is None else path.write_bytes(data)
                try:
                    holds, found = read_newest(folder)
                except imr.RunError as error:
                    assert str(folder) in str(error)  # noqa: PT017
                    assert "Move or delete" in str(error) or "holds no" in str(error)  # noqa: PT017
                    refused[path.relative_to(folder / "1").parts[0], path.name] += 1
                else:
                    assert holds == {"model": "a"}
                    assert same(found, state)
                path.write_bytes(whole)
        # Of what holds the state every change is; there are other files that orbax never reads.
        assert refused["config", "metadata"] == refused["record", "metadata"] == 5
        assert 5 in {count for (item, _), count in refused.items() if item == "state"}
        gc.collect()  # here, where the warnings of it are none

    def test_steps_that_do_not_divide(self, problem):
        with pytest.raises(imr.ImrError, match="num_steps must be a whole number of chunks"):
            problem.fit(problem.fresh(), STEPS + 1)

    def test_folder_that_cannot_be(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(imr.RunError, match=r"file/c cannot be used.*--out"):
            Checkpoints(tmp_path / "file" / "c", {})

    def test_no_checkpoint(self, tmp_path):
        for folder in (tmp_path, tmp_path / "absent"):
            with pytest.raises(imr.RunError, match="holds no checkpoint"):
                read_nets(folder)
