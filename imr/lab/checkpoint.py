"""Checkpoints by orbax: the state of a run and the configuration that it belongs to."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental.multihost_utils import process_allgather

from imr._checks import check_count
from imr._files import read_json
from imr._typing import PyTree
from imr.errors import ImrError, RunError
from imr.lab.files import Place, entries, is_local, make_folder, place, remove, unreachable, using
from imr.lab.metrics import Metrics
from imr.parallel import Preempted, agreed, is_first, preempted, stop_on_signals

# Old checkpoints are moved there before they are removed, so that none is ever there by half.
_REMOVED = ".removed"
_COMPLETE = "commit_success.txt"
_JSON = ("config/metadata", "record/metadata", "state/_METADATA", "state/_sharding")
_REMEDY = "Move or delete that checkpoint folder, or choose another output folder."


class Checkpoints:
    """Numbered states of one run in a folder; the newest is the one to resume from.

    Saving is asynchronous and atomic: a process killed at any moment leaves whole checkpoints, and
    halves that the next one removes. A checkpoint holds a checksum of all that is in it. Within the
    `with` statement SIGTERM and SIGINT have the next `save` save, wait and raise `Preempted`.

    Args:
      directory: is made if it is missing.
      config: JSON-ready description of the run; a checkpoint of another one is refused.
      every: from 1; `save` may be called at any step, and saves the first one in a new folder and
        those that this number divides.
      keep: how many to keep.
      lines: lines of metrics that belong to the state: saved and restored with it.
    Raises: ImrError if config or every is none; RunError if the folder cannot be made, or a checkpoint
      there is damaged.
    """

    def __init__(
        self, directory: str | os.PathLike[str], config: Mapping[str, Any], *, every: int = 1, keep: int = 1,
        lines: Metrics | None = None,
    ):  # fmt: skip
        self.directory, self.lines = place(directory), lines
        check_count("every", every)
        try:
            # As it will come back: JSON has no tuples.
            self.config = json.loads(json.dumps(config, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ImrError(
                f"config must hold what JSON can: {_short(error)}. Convert it."
            ) from None
        with using(self.directory, " for checkpoints"):
            make_folder(self.directory)
            if is_first():
                _sweep(self.directory)
        agreed(True)  # none looks at the folder before it is swept
        self._manager = _manager(self.directory, save_interval_steps=every, max_to_keep=keep)

    def save(self, step: int, state: PyTree, *, force: bool = False) -> None:
        """Saves the state at `step`, a pytree of arrays and random keys, when it is due.

        Raises:
          ImrError: if the state holds no array, or anything else.
          Preempted: if a signal has asked for it; the state is then saved, due or not.
          RunError: if this checkpoint or the one before cannot be written.
        """
        stop = preempted()
        _check_state(state)
        with self._writing():
            there = self._manager.latest_step() == step
            if ((force or stop) and not there) or self._manager.should_save(step):
                raw, rows = _raw(state), self.lines.rows() if self.lines else []
                if self.lines:
                    self.lines.flush()
                record = {"lines": rows, "sha256": _digest(raw, self.config, rows)}
                args = ocp.args.Composite(
                    state=ocp.args.StandardSave(raw), config=ocp.args.JsonSave(self.config),
                    record=ocp.args.JsonSave(record),
                )  # fmt: skip
                self._settle()
                self._manager.save(step, args=args, force=True)
            if stop:
                self._settle()
        if stop:
            raise Preempted(f"stopped at step {step}, which is saved in {self.directory}", stop)

    def restore(self, like: PyTree) -> PyTree | None:
        """The newest state, with its lines of metrics; None, and no lines, if there is none.

        Args:
          like: a state of the same structure, shapes and dtypes.
        Raises: RunError if it is of another configuration, shape or dtype, or damaged.
        """
        step = self._manager.latest_step()
        if step is None:
            if self.lines is not None:
                self.lines.reset()
            return None
        where, raw = f"checkpoint {step} in {self.directory}", _raw(like)
        with _reading(where, self.directory):
            saved = _read(self._manager, step, config=ocp.args.JsonRestore())["config"]
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
            restored, rows = _verified(self._manager, step, self.config, target)
        if self.lines is not None:
            self.lines.reset(rows)
        return jax.tree.map(
            lambda x, y: jax.random.wrap_key_data(y, impl=jax.random.key_impl(x)) if _is_key(x) else y,
            like, restored,
        )  # fmt: skip

    def __enter__(self) -> "Checkpoints":
        self._exits = contextlib.ExitStack()
        self._exits.enter_context(stop_on_signals(wait=True))
        self._exits.enter_context(self._writing())
        # Called last to first: saves in flight end before the folder is let go.
        self._exits.callback(self._manager.close)
        self._exits.callback(self._settle)
        return self

    def __exit__(self, *exception: object) -> None:
        self._exits.close()

    def _settle(self) -> None:
        """Waits for the save in flight, and removes what it has replaced."""
        self._manager.wait_until_finished()
        if is_first():
            _sweep(self.directory)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Whatever orbax raises within is a RunError of ours."""
        try:
            yield
        except ImrError:
            raise
        except Exception as error:
            raise unreachable(self.directory, error) or RunError(
                f"no checkpoint can be written to {self.directory} ({_short(error)}); make room there, "
                "if that is missing, and run again, without --overwrite, to resume."
            ) from error


def read_newest(directory: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and newest state, in nested dictionaries of arrays, of a folder of `Checkpoints`.

    Arrays of 64 bits are cast to 32 as jax casts them all, if it is not set to 64.

    Raises: RunError if there is no checkpoint, or it is damaged.
    """
    directory = place(directory)
    if not directory.is_dir():
        raise RunError(f"{directory} holds no checkpoint: there is no such folder.")
    with contextlib.closing(_manager(directory, read_only=True)) as manager:
        step = manager.latest_step()
        if step is None:
            raise RunError(f"{directory} holds no checkpoint.")
        with _reading(f"checkpoint {step} in {directory}", directory):
            config = _read(manager, step, config=ocp.args.JsonRestore())["config"]
            if not isinstance(config, dict):
                raise TypeError("its configuration is no JSON object")
            # In numpy first: whatever devices and processes have saved it, in whatever precision.
            shapes = manager.item_metadata(step)["state"]
            target = jax.tree.map(
                lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape),
                getattr(shapes, "tree", shapes),
            )
            return config, jax.tree.map(jnp.asarray, _verified(manager, step, config, target)[0])


def _manager(directory: Place, **options: Any) -> ocp.CheckpointManager:
    json_handlers = {name: ocp.JsonCheckpointHandler() for name in ("config", "record")}
    # A folder that cannot be made is then an error at once, for which no thread waits in vain.
    now = ocp.options.AsyncOptions(create_directories_asynchronously=False)
    with _reading(f"a checkpoint in {directory}", directory):
        for step in (entry for entry in entries(directory) if entry.name.isdigit()):
            _check_json(step, "_CHECKPOINT_METADATA")
        return ocp.CheckpointManager(
            directory, item_handlers={"state": ocp.StandardCheckpointHandler(), **json_handlers},
            options=ocp.CheckpointManagerOptions(async_options=now, **options),
        )  # fmt: skip


def _check_json(folder: Place, *names: str) -> None:
    """Refuses JSON of a size or depth that no process of ours writes, for orbax reads any."""
    for path in map(folder.joinpath, names):
        if path.is_file():
            read_json(path)


def _sweep(directory: Place) -> None:
    """Removes halves of checkpoints, which orbax renames once they are complete, and old ones."""
    for entry in entries(directory):
        if entry.name == _REMOVED or "orbax-checkpoint-tmp" in entry.name or _is_half(entry):
            remove(entry)


def _is_half(step: Place) -> bool:
    """Whether orbax has not completed a checkpoint in an object store, where it renames none."""
    return not is_local(step) and step.name.isdigit() and not (step / _COMPLETE).exists()


def _read(manager: ocp.CheckpointManager, step: int, **items: Any) -> Mapping[str, Any]:
    _check_json(place(manager.directory) / str(step), *_JSON)
    return manager.restore(step, args=ocp.args.Composite(**items))


def _verified(
    manager: ocp.CheckpointManager, step: int, config: Mapping[str, Any], *target: PyTree
) -> tuple[Any, list[dict[str, Any]]]:
    """State and lines of a checkpoint, which are those that its checksum was made of."""
    items = {"state": ocp.args.StandardRestore(*target), "record": ocp.args.JsonRestore()}
    newest = _read(manager, step, **items)
    state, record = newest["state"], newest["record"]
    if record["sha256"] != _digest(state, config, record["lines"]):
        raise ValueError("its checksum differs")
    return state, record["lines"]


def _digest(state: PyTree, config: Mapping[str, Any], rows: list[dict[str, Any]]) -> str:
    """A checksum of a checkpoint; a leaf that is spread over processes is gathered from all."""
    digest = sha256(json.dumps([config, rows], sort_keys=True).encode())
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for path, leaf in sorted((_name(path), leaf) for path, leaf in leaves):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            whole = leaf.is_fully_replicated
            leaf = leaf.addressable_data(0) if whole else process_allgather(leaf, tiled=True)
        digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _short(error: Exception) -> str:
    words = " ".join(str(error).split())
    return words if len(words) < 300 else f"{words[:300]}..."


@contextlib.contextmanager
def _reading(where: str, directory: Place) -> Iterator[None]:
    """Whatever orbax raises within is a RunError of ours."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        words = f"{where} cannot be read: {_short(error)}. {_REMEDY}"
        raise unreachable(directory, error) or RunError(words) from error


def _leaves(tree: PyTree) -> dict[str, str]:
    """Shapes and dtypes by path; orbax keeps a named tuple or a state as a dictionary."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        _name(path): f"shape {tuple(leaf.shape)} and dtype {leaf.dtype}" for path, leaf in leaves
    }


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _check_state(state: PyTree) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for path, leaf in leaves:
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
            raise ImrError(
                f"state must hold arrays; found a {type(leaf).__name__} at {_name(path) or 'its root'}. "
                "Make it one by jnp.asarray."
            )
    if not leaves:
        raise ImrError("state must hold an array; found none.")


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _raw(state: PyTree) -> PyTree:
    """Random keys as plain integers, which is what a checkpoint can hold."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)
