"""Several processes and devices: joining, agreement, training, preemption, and launchers."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import make_dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import imr
from imr import parallel
from imr.attention import attention_products
from imr.errors import UnreachableError
from imr.lab import train
from imr.lab.checkpoint import Checkpoints, read_newest
from imr.lab.experiment import run_main
from imr.parallel import hosts
from imr.parallel.mesh import ring_order
from tests.signals import free_port
from tests.test_stops import end_of

ROOT = Path(__file__).resolve().parents[1]
STEPS, CHUNK, ROWS = 60, 5, 32


def environment(**changes):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("IMR_", "XLA_FLAGS"))}
    return {**kept, "JAX_ENABLE_X64": "1", "PYTHONPATH": str(ROOT), **changes}


def start(folder, process, count, port, seconds=0.0, what="training"):
    """A process of a training or another function, its output in a file."""
    code = f"from tests.test_parallel import {what}; {what}({str(folder)!r}, {seconds})"
    joined = {
        "IMR_COORDINATOR": f"127.0.0.1:{port}", "IMR_NUM_PROCESSES": str(count),
        "IMR_PROCESS_ID": str(process),
    }  # fmt: skip
    with (folder.parent / f"{folder.name}.{process}.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-c", code], env=environment(**(joined if count > 1 else {})),
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


def finish(processes, folder):
    codes = [process.wait(timeout=240) for process in processes]
    logs = "\n".join(path.read_text() for path in sorted(folder.parent.glob("*.log")))
    assert codes == [0] * len(processes), logs
    return logs


def training(folder, seconds):
    """Least squares on minibatches; writes what came out, and each step as it is reached."""

    def main(config):
        del config
        folder_ = Path(folder)
        mesh = parallel.mesh_of_all()
        random = np.random.default_rng(0)
        data = random.normal(size=(100, 8)), random.normal(size=100)
        keys = jnp.stack([jax.random.key(0), jax.random.key(1)])
        optimizer = optax.adam(0.1)

        def loss(params, hyper, data, rows, key):
            x, y = data
            noise = jax.random.normal(key, (ROWS, 8))
            return hyper * jnp.mean(((x[rows] + 0.1 * noise) @ params - y[rows]) ** 2)

        def schedule(data, key, step):
            del step
            return jax.random.randint(key, (CHUNK, ROWS), 0, len(data[1]))

        def init(key):
            return jax.random.normal(key, (8,), float)

        states = train.init_states(init, optimizer, keys, mesh=mesh)
        chunk = train.make_chunk(loss, optimizer, schedule, mesh=mesh)
        hyper, data = parallel.replicate((jnp.ones(2), data), mesh)
        with Checkpoints(folder_ / "checkpoints", {}, every=1000) as checkpoints:
            restored = checkpoints.restore(states)
            states = states if restored is None else restored
            print(f"from {int(states.step[0])}", flush=True)

            def on_chunk(step, states, losses):
                (folder_ / f"reached.{jax.process_index()}").write_text(str(step))
                time.sleep(seconds)
                checkpoints.save(step, states, force=step == STEPS)

            states = train.fit(chunk, states, hyper, data, num_steps=STEPS, on_chunk=on_chunk)
        if parallel.is_first():
            np.save(folder_ / "end.npy", np.asarray(parallel.local(states).params))

    raise SystemExit(run_main(main, make_dataclass("Config", []), []))


def own_rows():
    return np.arange(3.0) + 3 * jax.process_index()


def products(folder, seconds):
    """Both products of attention and a gradient through them, spread over the processes."""
    del seconds

    def main(config):
        del config
        mesh = parallel.mesh_of_all()
        q = parallel.replicate(np.random.default_rng(0).normal(size=(45, 4)), mesh)

        def scalar(q):
            rows, columns = attention_products(q, mesh=mesh)
            return jnp.sum(rows**2) + jnp.sum(columns**3), (rows, columns)

        everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        run = jax.jit(jax.value_and_grad(scalar, has_aux=True), out_shardings=everywhere)
        (_, actual), gradient = run(q)
        with Checkpoints(Path(folder) / "checkpoints", {}) as checkpoints:
            # Of two processes each holds a half.
            rows = np.arange(6.0) if mesh is None else parallel.from_local_rows(own_rows(), mesh)
            checkpoints.save(1, {"rows": rows})
        if parallel.is_first():
            np.save(Path(folder) / "end.npy", np.stack(parallel.local((*actual, gradient))))

    raise SystemExit(run_main(main, make_dataclass("Config", []), []))


@pytest.mark.acceptance
def test_two_processes_make_the_products_of_one(tmp_path):
    ends = []
    for name, count in (("alone", 1), ("two", 2)):
        folder = tmp_path / name
        folder.mkdir()
        port = free_port()
        finish([start(folder, i, count, port, what="products") for i in range(count)], folder)
        ends.append(np.load(folder / "end.npy"))
        # Its checksum is that of the whole, whoever has saved which part.
        saved = read_newest(folder / "checkpoints")[1]["rows"]
        np.testing.assert_array_equal(saved, np.arange(6.0))
    np.testing.assert_allclose(ends[1], ends[0], rtol=0, atol=1e-10 * np.abs(ends[0]).max())


@pytest.mark.acceptance
def test_two_processes_stop_on_sigterm_and_go_on(tmp_path):
    """Both save and end with 0; the restart ends bit for bit where an unbroken run does."""
    ends = {}
    for name, count in (("alone", 1), ("two", 2)):
        folder = tmp_path / name
        folder.mkdir()
        port = free_port()
        finish([start(folder, i, count, port) for i in range(count)], folder)
        ends[name] = np.load(folder / "end.npy")
    np.testing.assert_allclose(ends["two"], ends["alone"], rtol=1e-10)

    folder = tmp_path / "broken"
    folder.mkdir()
    port = free_port()
    processes = [start(folder, i, 2, port, seconds=0.5) for i in range(2)]
    reached = folder / "reached.1"
    deadline = time.monotonic() + 200
    while not (reached.exists() and reached.read_text() not in ("", "5")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    logs = finish(processes, folder)
    assert "is saved in" in logs
    assert "run the same command again to resume" in logs
    assert not (folder / "end.npy").exists()
    # One process picks up what two have left, on a copy: another topology.
    other = tmp_path / "other"
    subprocess.run(["cp", "-r", folder, other], check=True)
    finish([start(other, 0, 1, 0)], other)
    np.testing.assert_allclose(np.load(other / "end.npy"), ends["alone"], rtol=1e-10)
    port = free_port()
    logs = finish([start(folder, i, 2, port) for i in range(2)], folder)
    assert logs.count("from 0") == 5  # alone, two and the first of broken
    np.testing.assert_array_equal(np.load(folder / "end.npy"), ends["two"])


def test_preemption_saves_though_nothing_is_due(tmp_path):
    state = {"x": jnp.arange(3.0)}
    with Checkpoints(tmp_path, {}, every=1000) as checkpoints:
        checkpoints.save(0, state)
        checkpoints.save(7, state)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(parallel.Preempted, match="stopped at step 8"):
            checkpoints.save(8, {"x": 2 * state["x"]})
    assert not parallel.preempted()
    with Checkpoints(tmp_path, {}) as checkpoints:
        actual = checkpoints.restore(state)
    assert actual is not None
    assert actual["x"].tolist() == [0.0, 2.0, 4.0]


@pytest.mark.acceptance
def test_a_signal_that_nobody_looked_at_still_ends_the_process():
    code = (
        "import os, signal\nfrom imr.parallel import stop_on_signals\n"
        "with stop_on_signals(wait=True):\n    os.kill(os.getpid(), signal.SIGTERM)\n    print('within')\n"
        "print('after')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM
    assert "after" not in done.stdout


def failing(folder, number):
    """The process of that number fails where the other waits for it."""
    del folder

    def main(config):
        del config
        if jax.process_index() == number:
            raise imr.ImrError("no data here") if number else UnreachableError("no store here")
        parallel.agreed(False)

    raise SystemExit(run_main(main, make_dataclass("Config", []), []))


@pytest.mark.acceptance
@pytest.mark.parametrize(("number", "code"), [(0, 75), (1, 2)])
def test_a_process_that_ends_before_the_others_ends_them_with_its_code(tmp_path, number, code):
    folder, port = tmp_path / "run", free_port()
    folder.mkdir()
    processes = [start(folder, i, 2, port, number, "failing") for i in range(2)]
    codes = [process.wait(timeout=120) for process in processes]
    logs = [(tmp_path / f"run.{i}.log").read_text() for i in range(2)]
    assert codes == [code, code], logs
    assert "error: no " in logs[number]
    assert f"process {number} has ended with exit code {code}: so does this one" in logs[1 - number]
    assert "Traceback" not in "".join(logs)


@pytest.mark.acceptance
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_local_launcher_is_stopped_with_all_that_it_has_started(tmp_path, number):
    """By a signal to its whole group, as `timeout` and a terminal send them: each process has one."""

    def launched(folder, marker="none", phase="none"):
        words = ("-m", "tests.small", marker, phase, "--out", folder)
        return subprocess.Popen(
            [ROOT / "scripts" / "local", "2", *words], cwd=tmp_path, start_new_session=True,
            env=environment(IMR_PYTHON=sys.executable, IMR_PREEMPTED_CODE="75"),
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    with launched("unbroken") as process:
        assert process.wait(timeout=120) == 0
    with launched("broken", tmp_path / "there", "train") as process:
        while not (tmp_path / "there.1").exists():
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == (75 if number == signal.SIGTERM else 130)
    assert "is saved in" in said
    assert "a process has failed" not in said
    with launched("broken") as process:
        assert process.wait(timeout=120) == 0
    assert end_of(tmp_path / "broken") == end_of(tmp_path / "unbroken")


def test_a_coordinator_out_of_reach(monkeypatch, capsys):
    monkeypatch.setattr(hosts, "_SECONDS", 0.0)
    port = free_port()
    with pytest.raises(
        imr.ImrError, match=rf"coordinator 127.0.0.1:{port} did not answer in 0.3 s"
    ):
        parallel.initialize(f"127.0.0.1:{port}", 2, 1, timeout=0.3)
    assert f"waiting for coordinator 127.0.0.1:{port} (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node07", "node07"), ("a,b", "a"), ("n[1-2]", "n1"), ("node[007-012,20],x", "node007"),
        ("node[3,7]", "node3"), ("r[1-2].lan,x[1-3]", "r1.lan"), ("n-1.lan", "n-1.lan"),
    ],
)  # fmt: skip
def test_the_coordinator_of_slurm(monkeypatch, nodes, host):
    """As jax finds it, but for names that jax does not understand."""
    values = {
        "JOB_ID": "70001",
        "STEP_NODELIST": nodes,
        "NTASKS": "4",
        "PROCID": "3",
        "LOCALID": "1",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("JAX_COORDINATOR_PORT", raising=False)
    assert hosts._slurm() == (f"{host}:{61440 + 70001 % 4096}", 4, 3)
    if "." not in nodes:
        from jax._src.clusters.slurm_cluster import SlurmCluster

        assert SlurmCluster.get_coordinator_address(None, None) == hosts._slurm()[0]
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "7")
    assert hosts._slurm()[0] == f"{host}:7"
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "x")
    assert hosts._slurm() is None


@pytest.mark.parametrize("number", [0, 1])
def test_a_coordinator_whose_name_is_not_known(monkeypatch, number):
    """Of process 0, too, which would wait for itself; no other process can mend it by a later start."""

    def unknown(*address):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(hosts, "_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", unknown)
        with pytest.raises(
            imr.ImrError, match=r"coordinator nowhere:1 did not answer in 0.* not known"
        ):
            parallel.initialize("nowhere:1", 2, number, timeout=100)


@pytest.mark.acceptance
def test_the_program_of_the_readme_as_two_processes(tmp_path):
    text = (ROOT / "imr" / "parallel" / "README.md").read_text()
    (program,) = [
        code for code in re.findall(r"```python\n(.*?)```", text, re.S) if ">>>" not in code
    ]
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [ROOT / "scripts" / "local", "2", "program.py"], cwd=tmp_path, capture_output=True, text=True,
        env=environment(IMR_PYTHON=sys.executable), timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "(64, 8) on 2 devices of 2 processes" in done.stdout
    assert done.stdout.count("devices of 2 processes") == 1
    # Alone it is one process, unless a launcher says that there are more.
    run = partial(
        subprocess.run, [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True
    )
    done = run(env=environment())
    assert "(32, 8) on 1 devices of 1 processes" in done.stdout, done.stderr
    assert done.stderr == "imr: no cluster is found; this is the only process\n"
    done = run(env=environment(IMR_DISTRIBUTED="1"))
    assert "could not be connected through the cluster that was looked up" in done.stderr


def test_errors(monkeypatch):
    jax.devices()  # once they have been asked for, processes cannot be connected
    with pytest.raises(imr.ImrError, match="go together"):
        parallel.initialize("127.0.0.1:1", 2)
    with pytest.raises(imr.ImrError, match="coordinator must be host:port; found 'here'"):
        parallel.initialize("here", 2, 0)
    with pytest.raises(imr.ImrError, match="coordinator must be host:port; found 'a:²'"):
        parallel.initialize("a:²", 2, 0)
    with pytest.raises(imr.ImrError, match="process_id must lie in 0 to 1"):
        parallel.initialize("127.0.0.1:1", 2, 2)
    with pytest.raises(imr.ImrError, match=r"could not be connected through 127\.0\.0\.1:1"):
        parallel.initialize("127.0.0.1:1", 1, 0)
    monkeypatch.setenv("IMR_COORDINATOR", "127.0.0.1:1")
    with pytest.raises(imr.ImrError, match="must be an address and two integers"):
        parallel.initialize_from_environment()
    monkeypatch.setenv("IMR_NUM_PROCESSES", "2")
    monkeypatch.setenv("IMR_PROCESS_ID", "1")
    monkeypatch.setenv("IMR_TIMEOUT", "5m")
    with pytest.raises(imr.ImrError, match=r"IMR_TIMEOUT must be .* seconds; found '5m'"):
        parallel.initialize_from_environment()
    monkeypatch.delenv("IMR_COORDINATOR")
    monkeypatch.delenv("IMR_NUM_PROCESSES")
    monkeypatch.delenv("IMR_PROCESS_ID")
    monkeypatch.setenv("IMR_DISTRIBUTED", "yes")
    with pytest.raises(imr.ImrError, match="IMR_DISTRIBUTED must be 0 or 1; found 'yes'"):
        parallel.initialize_from_environment()
    count = jax.device_count() + 1
    with pytest.raises(imr.ImrError, match=f"at most the {count - 1} devices"):
        parallel.make_mesh(count)
    with pytest.raises(imr.ImrError, match="at most the 1 devices of the topology; found 2"):
        parallel.make_mesh(2, devices=jax.devices()[:1])


def test_a_ring_takes_one_link_a_hop():
    """Through the chips of a torus, whatever their order in the mesh; others go as the mesh has them."""

    def order(chips):
        devices = np.empty(len(chips), object)
        devices[:] = [SimpleNamespace(coords=list(chip)) for chip in chips]
        return ring_order(SimpleNamespace(devices=devices, size=len(chips)))

    def hops(chips):
        ring = [chips[place] for place in order(chips)]
        assert sorted(ring) == sorted(chips)
        return [
            np.abs(np.subtract(a, b)).sum() for a, b in zip(ring, ring[1:] + ring[:1], strict=True)
        ]

    def box(*sides):
        return [tuple(cell) for cell in np.ndindex(*sides)]

    # As sixteen-chip hosts of 2 x 2 chips number them.
    hosts = sorted(box(4, 4, 1), key=lambda chip: (chip[0] // 2, chip[1] // 2, chip))
    for chips in (hosts, box(2, 2, 1), box(16, 16, 1), box(3, 2), box(4, 4, 8), box(3, 5, 2)):
        assert set(hops(chips)) == {1}, chips
    assert max(np.abs(np.diff(hosts, axis=0)).sum(axis=1)) > 1
    shifted = [(x + 3, y + 5) for x, y in box(2, 4)]
    assert set(hops(shifted)) == {1}
    cores = order([(0, 0), (0, 0), (1, 0), (1, 0), (0, 1), (0, 1), (1, 1), (1, 1)])
    assert cores == (0, 1, 4, 5, 6, 7, 2, 3)  # those of one chip together
    for chips in ([(0, 0), (1, 0), (0, 1)], box(3, 3), box(1, 4)):  # no ring, or no box
        assert sorted(order(chips)) == list(range(len(chips)))
    assert ring_order(parallel.make_mesh(3)) == (0, 1, 2)


def test_placement_and_what_is_local():
    mesh = parallel.make_mesh(1)
    tree = {"key": jax.random.key(3), "x": np.arange(4.0)}
    placed = parallel.replicate(tree, mesh)
    back = parallel.local(placed)
    assert (jax.random.key_data(back["key"]) == jax.random.key_data(tree["key"])).all()
    np.testing.assert_array_equal(back["x"], tree["x"])
    np.testing.assert_array_equal(parallel.from_local_rows(tree["x"], mesh), tree["x"])
    assert parallel.replicate(tree, None) is tree


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        (["tpu/launch", "--name", "a", "--", "-m", "x"], 2, ("--zone is missing",)),
        (["tpu/launch", "--name"], 2, ("--name needs a value",)),
        (["slurm/launch", "--nodes", "0", "--", "-m", "x"], 2, ("at least 1; found 0",)),
        (["local", "two"], 2, ("number of processes",)),
        (["run", "nothing"], 2, ("there is no experiment nothing", "features")),
        (["local", "2"], 2, ("say what to run",)),
    ],
)  # fmt: skip
def test_launchers(command, status, words):
    done = subprocess.run(
        [ROOT / "scripts" / command[0], *command[1:]], capture_output=True, text=True
    )
    assert done.returncode == status, done.stderr
    for word in words:
        assert word in done.stdout + done.stderr
