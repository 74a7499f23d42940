"""What the lens looks at: a checkpoint and texts, or the nets of a finished run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments.beliefs import config as beliefs
from experiments.beliefs import nets
from experiments.lens.config import Config
from experiments.lens.measures import Subject
from imr import DataError
from imr.console import say
from imr.lens import (
    model_from_transformer,
    read_model,
    read_texts,
    read_tokenizer,
    sample_texts,
    tokenize,
)
from imr.processes import sample
from imr.run import RunFolder


def subjects(config: Config) -> Iterator[Subject]:
    """One after the other."""
    if config.model_dir is not None:
        yield _checkpoint(config, config.model_dir)
    elif config.run_dir is not None:
        kind, settings = _of_run(config.run_dir)
        if kind != "beliefs":
            raise DataError(f"{config.run_dir} is a run of {kind!r}; runs of 'beliefs' are known.")
        yield from _beliefs(config, config.run_dir, settings)


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
    return Subject(folder.resolve().name, model, pieces.tokens)


def _of_run(folder: Path) -> tuple[str, dict[str, Any]]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return found["experiment"], found["config"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{folder} is no run folder: config.json of a run is not in it. Give the folder that "
            "an experiment has written."
        ) from None


def _beliefs(config: Config, folder: Path, settings: dict[str, Any]) -> Iterator[Subject]:
    """Every net, trained and untrained, seed by seed, on words of its own process."""
    made = beliefs.Config(**settings)
    run = RunFolder(folder)
    if not run.finished:
        raise DataError(f"{folder} has not finished; run the same again to resume.")
    count = 2 if config.smoke else config.limit
    for net, targets, steps in beliefs.plan(made):
        keys = jax.random.split(jax.random.key(config.seed), count)
        tokens = list(np.asarray(sample(net.process, keys, beliefs.LENGTH).tokens))
        graph = nets.graph_of(net)
        kinds = {
            "untrained": nets.initial(made, net, steps).params,
            f"trained, {targets}": nets.train_net(made, run, net, targets, steps),
        }
        for kind, params in kinds.items():
            for seed in range(1 if config.smoke else made.seeds):
                one = nnx.merge(graph, jax.tree.map(lambda x, s=seed: x[s], params))
                name = f"{net.name}, {kind}, seed {made.seed + seed}"
                yield Subject(name, model_from_transformer(one), tokens)
