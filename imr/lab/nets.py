"""Nets by the call that makes them: their static part, their parameters, and those of a checkpoint."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PRNGKeyArray, PyTree

from imr.errors import RunError
from imr.lab.architecture import build

Call = Callable[..., nnx.Module]


def graph_of(call: Call) -> nnx.GraphDef:
    """The static part of a net, without drawing its parameters."""
    return nnx.split(nnx.eval_shape(lambda: call(rngs=nnx.Rngs(0))), nnx.Param)[0]


def initialiser(call: Call) -> Callable[[PRNGKeyArray], PyTree]:
    """The function from a key to the parameters of a new net, as `init_states` takes it."""
    return lambda key: nnx.state(call(rngs=nnx.Rngs(key)), nnx.Param)


class SavedNets(NamedTuple):
    """The nets of a checkpoint, one for each run that was trained beside the others."""

    holds: Mapping[
        str, Any
    ]  # what the checkpoint says of itself, `architecture` and `runs` among it
    call: Call  # makes such a net from `rngs=`
    runs: list[dict[str, Any]]  # what tells each run from the others; `seed` is that of its key
    params: PyTree  # trained, leading axis of runs

    def untrained(self) -> PyTree:
        """The parameters that training began with, leading axis of runs."""
        import optax

        from imr.lab.train import init_states

        keys = jnp.stack([jax.random.key(run["seed"]) for run in self.runs])
        return init_states(initialiser(self.call), optax.identity(), keys).params

    def net(self, index: int, params: PyTree | None = None) -> nnx.Module:
        """One of the nets."""
        states = self.params if params is None else params
        return nnx.merge(graph_of(self.call), jax.tree.map(lambda x: x[index], states))


def read_nets(directory: str | os.PathLike[str]) -> SavedNets:
    """The nets of the newest checkpoint in a folder of `fit_run`, as that checkpoint describes them.

    Raises: RunError if there is no checkpoint, or it does not say what it holds, or holds something
      else.
    """
    from imr.lab.checkpoint import read_newest

    holds, state = read_newest(directory)
    remedy = "Train again, with --overwrite."
    if missing := [name for name in ("architecture", "runs") if name not in holds]:
        words = f"its {' and '.join(missing)}, as those of this version of imr do"
        raise RunError(f"the checkpoint in {directory} does not say {words}. {remedy}")
    call: Any = build(holds["architecture"])
    try:
        runs = _checked_runs(holds["runs"])
        _check_count(call.keywords, len(jax.tree.leaves(state)))
        params = nnx.state(nnx.eval_shape(lambda: call(rngs=nnx.Rngs(0))), nnx.Param)
        shapes = [(len(runs), *x.shape) for x in jax.tree.leaves(params)]
        nnx.replace_by_pure_dict(params, nnx.restore_int_paths(_values(state["params"])))
        if shapes != [x.shape for x in jax.tree.leaves(params)]:
            raise ValueError(f"parameters are not those of {len(runs)} runs")
    # A class of imr.nn may raise anything if its arguments are of the wrong kind.
    except Exception as error:
        what = f"does not hold what it says: {str(error).rstrip('.')}"
        raise RunError(f"the checkpoint in {directory} {what}. {remedy}") from error
    return SavedNets(holds, call, runs, params)


def _checked_runs(runs: Any) -> list[dict[str, Any]]:
    """Descriptions of runs: names and numbers, and a seed that jax takes."""
    numbers = [number for run in runs for number in run.values()]
    if not all(isinstance(number, int | float) for number in numbers):
        raise TypeError("runs must be described by numbers")
    for run in runs:
        jax.random.key(run["seed"])
    return runs


def _check_count(arguments: Mapping[str, Any], leaves: int) -> None:
    """Refuses more layers than there are arrays, for making the layers would take as long."""
    most = max(
        arguments.get("layers", 1),
        1 if arguments.get("tied", True) else arguments.get("iterations", 1),
    )
    if most > max(leaves, 64):  # a few layers may share their arrays
        raise ValueError(f"{most} layers have more than its {leaves} arrays")


def _values(tree: Any) -> Any:
    """Without the level "value" that a checkpoint puts below each parameter."""
    if not isinstance(tree, dict):
        return tree
    return tree["value"] if set(tree) == {"value"} else {k: _values(v) for k, v in tree.items()}
