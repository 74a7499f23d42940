"""Checkpoints by orbax: the state of a run and the configuration that it belongs to."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from imr._files import read_json
from imr._typing import PyTree
from imr.errors import RunError
from imr.parallel import Preempted, preempted, stop_on_sigterm

_JSON = ("config/metadata", "state/_METADATA", "state/_sharding")
_REMEDY = "Move or delete that checkpoint folder, or choose another output folder."


class Checkpoints:
    """Numbered states of one run in a folder; the newest is the one to resume from.

    Saving is asynchronous and atomic: a process killed at any moment leaves whole checkpoints only.
    Within the `with` statement SIGTERM has the next `save` save, wait and raise `Preempted`.

    Args:
      directory: is made if it is missing.
      config: JSON-ready description of the run; a checkpoint of another one is refused.
      every: steps between saves; `save` may be called at any step and decides.
      keep: how many to keep.
    Raises: RunError if the folder cannot be made, or a checkpoint there is damaged.
    """

    def __init__(
        self, directory: str | Path, config: Mapping[str, Any], *, every: int = 1, keep: int = 1
    ):
        self.directory = Path(directory).resolve()
        # As it will come back: JSON has no tuples.
        self.config = json.loads(json.dumps(config))
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"checkpoint folder {self.directory} cannot be made: {error}."
            ) from error
        options = ocp.CheckpointManagerOptions(save_interval_steps=every, max_to_keep=keep)
        handlers = {"state": ocp.StandardCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}
        with _reading(f"a checkpoint in {self.directory}"):
            for step in (entry for entry in self.directory.iterdir() if entry.name.isdigit()):
                _check_json(step, "_CHECKPOINT_METADATA")
            self._manager = ocp.CheckpointManager(
                self.directory, item_handlers=handlers, options=options
            )

    def save(self, step: int, state: PyTree, *, force: bool = False) -> None:
        """Saves the state at `step`, a pytree of arrays and random keys, when it is due.

        Raises: Preempted if SIGTERM has asked for it; the state is then saved, due or not.
        """
        stop = preempted()
        if not ((force or stop) and self._manager.latest_step() == step):
            config = ocp.args.JsonSave(self.config)
            args = ocp.args.Composite(state=ocp.args.StandardSave(_raw(state)), config=config)
            self._manager.save(step, args=args, force=force or stop)
        if stop:
            self._manager.wait_until_finished()
            raise Preempted(f"stopped at step {step}, which is saved in {self.directory}")

    def restore(self, like: PyTree) -> PyTree | None:
        """The newest state, or None if there is none.

        Args:
          like: a state of the same structure, shapes and dtypes.
        Raises: RunError if it is of another configuration, shape or dtype, or cannot be read.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        where, raw = f"checkpoint {step} in {self.directory}", _raw(like)
        with _reading(where):
            saved = self._read(step, config=ocp.args.JsonRestore())["config"]
            names = sorted(saved.keys() | self.config.keys())
            pairs = [(k, saved.get(k), self.config.get(k)) for k in names]
            words = ", ".join(f"{k} is {a!r} there and {b!r} here" for k, a, b in pairs if a != b)
            if words:
                raise RunError(f"{where} is of another configuration: {words}. {_REMEDY}")
            shapes = self._manager.item_metadata(step)["state"]
            # Orbax casts a differing dtype without a word.
            there, here = _leaves(getattr(shapes, "tree", shapes)), _leaves(raw)
            for path in sorted(there.keys() | here.keys()):
                a, b = there.get(path, "nothing"), here.get(path, "nothing")
                if a != b:
                    raise RunError(f"{where} has {a} at {path}; this run has {b}. {_REMEDY}")
            target = jax.tree.map(ocp.utils.to_shape_dtype_struct, raw)
            restored = self._read(step, state=ocp.args.StandardRestore(target))["state"]
        return jax.tree.map(
            lambda x, y: jax.random.wrap_key_data(y, impl=jax.random.key_impl(x)) if _is_key(x) else y,
            like, restored,
        )  # fmt: skip

    def _read(self, step: int, **items: Any) -> Mapping[str, Any]:
        _check_json(self.directory / str(step), *_JSON)
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def __enter__(self) -> "Checkpoints":
        self._exits = contextlib.ExitStack()
        self._exits.enter_context(stop_on_sigterm())
        # Called last to first: saves in flight end before the folder is let go.
        self._exits.callback(self._manager.close)
        self._exits.callback(self._manager.wait_until_finished)
        return self

    def __exit__(self, *exception: object) -> None:
        self._exits.close()


def read_newest(directory: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and newest state, in nested dictionaries of arrays, of a folder of `Checkpoints`.

    Raises: RunError if there is no checkpoint, or it cannot be read.
    """
    directory = Path(directory).resolve()
    if not directory.is_dir():
        raise RunError(f"{directory} holds no checkpoint: there is no such folder.")
    with Checkpoints(directory, {}) as checkpoints:
        step = checkpoints._manager.latest_step()
        if step is None:
            raise RunError(f"{directory} holds no checkpoint.")
        items = {"state": ocp.args.StandardRestore(), "config": ocp.args.JsonRestore()}
        with _reading(f"checkpoint {step} in {directory}"):
            newest = checkpoints._read(step, **items)
            if not isinstance(newest["config"], dict):
                raise TypeError("its configuration is no JSON object")
    return newest["config"], newest["state"]


def _check_json(folder: Path, *names: str) -> None:
    """Refuses JSON of a size or depth that no process of ours writes, for orbax reads any."""
    for path in filter(Path.is_file, map(folder.joinpath, names)):
        read_json(path)


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    """Whatever orbax raises within is a RunError of ours."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        raise RunError(f"{where} cannot be read: {error}. {_REMEDY}") from error


def _leaves(tree: PyTree) -> dict[str, str]:
    """Shapes and dtypes by path; orbax keeps a named tuple or a state as a dictionary."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"):
            f"shape {tuple(leaf.shape)} and dtype {leaf.dtype}"
        for path, leaf in leaves
    }  # fmt: skip


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _raw(state: PyTree) -> PyTree:
    """Random keys as plain integers, which is what a checkpoint can hold."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)
