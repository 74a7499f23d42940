"""Training: one program for all runs, resumed bit by bit, and checkpoints that refuse strangers."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import imr
from imr.lab import train
from imr.lab.checkpoint import Checkpoints
from tests.problems import linear

RUNS, STEPS = 3, 5


def problem(counter=None):
    """A small noisy regression: states of three runs, their hyper-parameters, chunk and data."""
    p = linear(20, 4, 3)

    def loss(params, hyper, data, rows, key):
        if counter is not None:
            counter.append(1)
        z, labels = data
        z = z[rows] + hyper * jax.random.normal(key, (len(rows), 4))
        return jnp.mean(imr.cross_entropy(imr.linear_logits(z, params["theta"]), labels[rows]))

    def schedule(data, key, step):
        del data, step
        return train.epoch_of_batches(key, 20, 4)

    optimizer = optax.adam(0.1)
    init = lambda key: {"theta": jax.random.normal(key, (3, 4))}  # noqa: E731
    states = train.init_states(init, optimizer, jax.random.split(jax.random.key(0), RUNS))
    hyper = jnp.array([0.0, 0.5, 0.5])
    return states, hyper, train.make_chunk(loss, optimizer, schedule), (p.z, p.labels), loss


def same(a, b):
    raw = lambda x: (  # noqa: E731
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    )
    return all(
        np.array_equal(raw(x), raw(y))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.slow
def test_vmapped_runs_are_one_program_and_equal_single_runs():
    counter = []
    states, hyper, chunk, data, _ = problem(counter)
    lone = [jax.tree.map(lambda x, i=i: x[i : i + 1].copy(), states) for i in range(RUNS)]
    together = train.fit(chunk, states, hyper, data, num_steps=4 * STEPS)
    assert len(counter) == 1
    for i, state in enumerate(lone):
        alone = train.fit(chunk, state, hyper[i : i + 1], data, num_steps=4 * STEPS)
        np.testing.assert_allclose(
            alone.params["theta"][0], together.params["theta"][i], rtol=1e-12
        )
    # Same noise, other seed: other parameters.
    assert not np.allclose(together.params["theta"][1], together.params["theta"][2])


def test_a_chunk_is_the_steps_it_says():
    """The scan against a plain loop over the same batches and keys."""
    states, hyper, chunk, data, loss = problem()
    state = jax.tree.map(lambda x: x[1].copy(), states)
    chunk_key, step_key = jax.random.split(state.key)
    batches = train.epoch_of_batches(jax.random.fold_in(chunk_key, 0), 20, 4)
    assert sorted(batches.ravel().tolist()) == list(range(20))
    optimizer = optax.adam(0.1)
    params, opt_state, losses = state.params, state.opt_state, []

    @jax.jit
    def one_step(params, opt_state, step, rows):
        key = jax.random.fold_in(step_key, step)
        value, grads = jax.value_and_grad(loss)(params, hyper[1], data, rows, key)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    for step, rows in enumerate(batches):
        params, opt_state, value = one_step(params, opt_state, step, rows)
        losses.append(value)
    states, chunk_losses = chunk(states, hyper, data)
    np.testing.assert_allclose(chunk_losses[1], losses, rtol=1e-12)
    np.testing.assert_allclose(states.params["theta"][1], params["theta"], rtol=1e-12)
    assert states.step.tolist() == [STEPS] * RUNS


def test_training_lowers_the_loss():
    states, hyper, chunk, data, _ = problem()
    seen = []
    train.fit(
        chunk, states, hyper, data, num_steps=20 * STEPS,
        on_chunk=lambda step, states, losses: seen.append(np.asarray(losses).mean(axis=1)),
    )  # fmt: skip
    assert (seen[-1] < seen[0]).all()


def test_stopped_and_resumed_is_bit_identical(tmp_path):
    states, hyper, chunk, data, _ = problem()
    whole = train.fit(chunk, states, hyper, data, num_steps=6 * STEPS)

    states, *_ = problem()
    with Checkpoints(tmp_path / "c", {"name": "a"}, every=STEPS) as checkpoints:
        assert checkpoints.restore(states) is None
        train.fit(
            chunk, states, hyper, data, num_steps=3 * STEPS,
            on_chunk=lambda step, states, losses: checkpoints.save(step, states),
        )  # fmt: skip
    fresh, *_ = problem()
    with Checkpoints(tmp_path / "c", {"name": "a"}, every=STEPS) as checkpoints:
        restored = checkpoints.restore(fresh)
    assert restored.step.tolist() == [3 * STEPS] * RUNS
    assert same(restored.key, fresh.key)
    assert same(train.fit(chunk, restored, hyper, data, num_steps=6 * STEPS), whole)


@pytest.mark.slow
def test_a_checkpoint_survives_the_chunks_that_follow(tmp_path):
    """Saving is asynchronous, and the next chunk consumes the buffers it was handed."""
    states, hyper, chunk, data, _ = problem()
    seen = {}

    def on_chunk(step, states, losses):
        seen[step] = np.asarray(states.params["theta"])
        checkpoints.save(step, states)

    with Checkpoints(tmp_path, {}, every=STEPS, keep=5) as checkpoints:
        train.fit(chunk, states, hyper, data, num_steps=5 * STEPS, on_chunk=on_chunk)
    fresh, *_ = problem()
    for step in sorted(seen, reverse=True):
        with Checkpoints(tmp_path, {}) as checkpoints:
            restored = checkpoints.restore(fresh)
        assert restored.step[0] == step
        np.testing.assert_array_equal(restored.params["theta"], seen[step])
        shutil.rmtree(tmp_path / str(step))


def test_checkpoints_save_when_due_and_at_the_end(tmp_path):
    state = {"x": jnp.zeros(3)}
    with Checkpoints(tmp_path, {}, every=10, keep=2) as checkpoints:
        for step in range(1, 26):
            checkpoints.save(step, {"x": jnp.full(3, float(step))}, force=step == 25)
        checkpoints.save(25, state, force=True)  # a second time is no error
    with Checkpoints(tmp_path, {}, every=10) as checkpoints:
        assert checkpoints.restore(state)["x"].tolist() == [25.0] * 3


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

    def test_steps_that_do_not_divide(self):
        states, hyper, chunk, data, _ = problem()
        with pytest.raises(imr.ImrError, match="num_steps must be a whole number of chunks"):
            train.fit(chunk, states, hyper, data, num_steps=STEPS + 1)

    def test_folder_that_cannot_be(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(imr.RunError, match="cannot be made"):
            Checkpoints(tmp_path / "file" / "c", {})
