"""What the lens looks at: a checkpoint and texts, or the nets of a finished run."""

from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.lens.config import Config
from experiments.lens.measures import Subject
from imr import DataError
from imr.lab import train
from imr.lab.checkpoint import read_newest
from imr.lab.console import say
from imr.lens import (
    model_from_arrays,
    model_from_transformer,
    read_model,
    read_texts,
    read_tokenizer,
    sample_texts,
    tokenize,
)
from imr.nn import Transformer
from imr.processes import mess3, sample

NOISE = 0.6  # a of every Mess3 of experiments.beliefs


def subjects(config: Config) -> Iterator[Subject]:
    """One after the other."""
    if config.model_dir is not None:
        yield _checkpoint(config, config.model_dir)
    elif config.run_dir is not None:
        yield from _of_run(config, config.run_dir)


def _checkpoint(config: Config, folder: Path) -> Subject:
    model = read_model(folder)
    tokenizer = read_tokenizer(folder)
    texts = sample_texts() if config.texts is None else read_texts(config.texts)
    texts = texts[: 2 if config.smoke else config.limit]
    longest = min(config.longest, len(model.positions))
    pieces = tokenize(tokenizer, texts, longest)
    if pieces.split:
        say(f"{pieces.split} texts were longer than {longest} tokens and were split.")
    if pieces.dropped:
        say(f"{pieces.dropped} pieces of fewer than 3 tokens were left out.")
    if not pieces.tokens:
        raise DataError("texts must have 3 tokens or more; none has.")
    most, count = max(int(piece.max()) for piece in pieces.tokens), len(model.tokens)
    if most >= count:
        raise DataError(
            f"{folder}/tokenizer.json gives token {most}, but the model has {count}. Give a folder whose "
            "tokenizer belongs to its model."
        )
    return Subject(folder.resolve().name, model, pieces.tokens)


def _of_run(config: Config, folder: Path) -> Iterator[Subject]:
    """Every transformer and every block with patches of a run, trained and untrained, by seeds."""
    folders = sorted((folder / "checkpoints").glob("*"))
    if not (folder / "config.json").is_file() or not folders:
        raise DataError(
            f"{folder} is no run folder: it has no config.json and checkpoints. Give the folder that "
            "experiments.beliefs or experiments.images has written."
        )
    known = False
    for each in folders:
        settings, state = read_newest(each)
        params = _values(state["params"])
        if "net" in settings:
            made = _transformers(config, settings, params)
        elif "phi" in params.get("blocks", {}).get("0", {}):
            made = _patch_blocks(settings, params["blocks"]["0"])
        else:
            say(f"{each.name}: no heads with queries and keys; left out.")
            continue
        known = True
        yield from made
    if not known:
        raise DataError(
            f"{folder} holds no heads with queries and keys. Give a run of experiments.beliefs, or of "
            "experiments.images --models self_attention."
        )


def _transformers(config: Config, settings: dict[str, Any], params: Any) -> Iterator[Subject]:
    """Nets of experiments.beliefs, on words of their own process."""
    build, params = _rebuilt(params)
    net, count = settings["net"], 2 if config.smoke else config.limit
    trained = f"trained, {settings['targets']}"
    for kind, states in (("untrained", _untrained(build, settings)), (trained, params)):
        for seed in range(1 if config.smoke else settings["seeds"]):
            graph, empty = nnx.split(build(rngs=nnx.Rngs(0)), nnx.Param)
            nnx.replace_by_pure_dict(empty, jax.tree.map(lambda x, s=seed: x[s], states))
            one = nnx.merge(graph, empty)
            keys = jax.random.split(jax.random.key(config.seed), count)
            words = sample(mess3(net["x"], NOISE), keys, one.length).tokens
            name = f"{net['name']}, {kind}, seed {settings['seed'] + seed}"
            yield Subject(name, model_from_transformer(one), list(np.asarray(words)))


def _patch_blocks(settings: dict[str, Any], block: dict[str, Any]) -> Iterator[Subject]:
    """Heads of experiments.images: Q = K = V = phi and O = -tau phi^T / sqrt(r), nothing to read."""
    phi = np.asarray(block["phi"], np.float64)
    step = np.asarray(block["step"], np.float64)
    step = step if settings["signed_step"] else np.exp(step)
    fresh = np.random.default_rng(settings["seed"]).normal(size=phi.shape) / phi.shape[2] ** 0.5
    runs = product(settings["train_noise"], settings["l2"], range(settings["seeds"]))
    for number, (noise, l2, seed) in enumerate(runs):
        for kind, weights, tau in (
            ("untrained", fresh, settings["tau"]),
            ("trained", phi, step[number]),
        ):
            w = weights[number][None]
            output = -tau * np.swapaxes(w, 2, 3) / w.shape[-1] ** 0.5
            arrays = {"query": w, "key": w, "value": w, "output": output}
            name = f"{settings['model']}, noise {noise:g}, l2 {l2:g}, {kind}, seed {settings['seed'] + seed}"
            yield Subject(name, model_from_arrays(arrays), [])


def _rebuilt(params: dict[str, Any]) -> tuple[Any, Any]:
    """What makes such a transformer, read off the shapes, and its parameters, seeds first."""
    bare = nnx.restore_int_paths(params)
    layer = bare["layers"][0]
    _, heads, features, head_features = layer["query"].shape
    sizes = {
        "layers": len(bare["layers"]), "heads": heads, "features": features,
        "head_features": head_features, "mlp_width": layer["widen"]["kernel"].shape[-1],
    }  # fmt: skip
    num_tokens, length = bare["embedding"]["embedding"].shape[1], bare["position"].shape[1]
    return partial(Transformer, num_tokens, length, **sizes), bare


def _values(tree: Any) -> Any:
    """Without the level "value" that a checkpoint puts below each parameter."""
    if not isinstance(tree, dict):
        return tree
    return tree["value"] if set(tree) == {"value"} else {k: _values(v) for k, v in tree.items()}


def _untrained(build: Any, settings: dict[str, Any]) -> Any:
    """The parameters that training began with."""
    keys = [jax.random.key(settings["seed"] + seed) for seed in range(settings["seeds"])]
    init = lambda key: nnx.state(build(rngs=nnx.Rngs(key)), nnx.Param)  # noqa: E731
    states = train.init_states(init, optax.identity(), jnp.stack(keys))
    return nnx.to_pure_dict(states.params)
