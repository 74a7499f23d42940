"""What the lens looks at: a checkpoint and texts, or the nets of a finished run."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.lens.config import Config
from imr import DataError, lens
from imr.lab.architecture import build
from imr.lab.checkpoint import read_newest
from imr.lab.console import say
from imr.lab.nets import SavedNets, read_nets
from imr.lens.folder import can_run
from imr.nn import Classifier, ContextBlock, LinearSelfAttention, Transformer
from imr.processes import sample

MASK = "[MASK]"  # of BERT's tokenizers
JOINED = 5  # sentences, to a text that a decoder predicts


class Subject(NamedTuple):
    """A model and the texts that it reads; without any, only its weights are measured.

    Attributes:
      name: of the model.
      model: whole, or the layers of its heads, if it cannot be run or need not.
      tokens: of texts.
      mask: the token that stands for one to predict, if the model sees both sides of it.
    """

    name: str
    model: lens.TransformerWeights | list[lens.Heads]
    tokens: list[np.ndarray]
    mask: int | None = None


class InContext(NamedTuple):
    """Nets that learn from examples in their context, of one kind and several seeds."""

    name: str
    nets: list[Any]


def subjects(config: Config) -> list[Subject | InContext]:
    """Reads all models and texts."""
    if config.model_dir:
        names = _names(config.model_dir)
        pairs = zip(names, config.model_dir, strict=True)
        return [subject for name, folder in pairs for subject in _checkpoint(config, name, folder)]
    assert config.run_dir is not None  # by `check`
    return _nets_of_run(config, config.run_dir)


def _names(folders: tuple[Path, ...]) -> list[str]:
    """The ends of their paths, of as many folders as tell each from all others."""
    paths = [folder.resolve().parts for folder in folders]
    return [
        next(
            "/".join(path[-k:])
            for k in range(1, len(path) + 1)
            if sum(path[-k:] == other[-k:] for other in paths) == 1
        )
        for path in paths
    ]


def _checkpoint(config: Config, name: str, folder: Path) -> list[Subject]:
    """The model, or, if it cannot be run or is to read no texts, the heads of each of its parts."""
    readable = (folder / "tokenizer.json").exists() or config.texts is not None
    if config.weights_only or not can_run(folder) or not readable:
        lacks = "no tokenizer.json" if can_run(folder) else "an architecture that imr does not run"
        if config.edits:
            raise DataError(f"{folder} has {lacks}, but --edits measures losses on texts.")
        if not config.weights_only:
            say(f"{name} has {lacks}: its weights alone are measured.")
        layers = lens.read_heads(folder)
        parts: dict[str, list[lens.Heads]] = {}
        for label, heads in zip(layers.names, layers, strict=True):
            parts.setdefault(label.split(".")[0], []).append(heads)
        alone = len(parts) == 1
        return [Subject(name if alone else f"{name}, {p}", each, []) for p, each in parts.items()]
    model = lens.read_model(folder)
    tokenizer = lens.read_tokenizer(folder)
    texts = lens.sample_texts() if config.texts is None else lens.read_texts(config.texts)
    texts = texts[: config.limit]
    if config.edits and model.attention.causal:  # with something to go by
        texts = [" ".join(texts[i : i + JOINED]) for i in range(0, len(texts), JOINED)]
    most = config.longest if model.positions is None else len(model.positions)
    longest = min(config.longest, most)
    pieces = lens.tokenize(tokenizer, texts, longest)
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
    mask = tokenizer.token_to_id(MASK)
    if config.edits and not model.attention.causal and mask is None:
        raise DataError(f"{folder}/tokenizer.json has no token {MASK}, which --edits predicts.")
    return [Subject(name, model, pieces.tokens, mask)]


def _nets_of_run(config: Config, folder: Path) -> list[Subject | InContext]:
    folders = sorted((folder / "checkpoints").glob("*"))
    if not (folder / "config.json").is_file() or not folders:
        raise DataError(
            f"{folder} is no run folder: it has no config.json and checkpoints. Give the folder that "
            "experiments.beliefs, experiments.images or experiments.incontext has written."
        )
    found = []
    for each in folders:
        architecture = read_newest(each)[0].get("architecture")
        if isinstance(architecture, Mapping) and "baseline" in architecture:
            say(f"{each.name}: a {architecture['baseline']}, to compare with; left out.")
            continue
        nets = read_nets(each)
        net = nets.net(0)
        if not isinstance(nets.holds.get("net"), str):
            raise DataError(
                f"{each} does not say which net it holds. Train again, with --overwrite."
            )
        if isinstance(net, Transformer):
            found += _of_nets(config, nets, lens.model_from_transformer, _words(config, nets, net))
        elif isinstance(net, Classifier) and getattr(net.blocks[0], "phi", None) is not None:
            found += _of_nets(config, nets, _patch_heads, [])
        elif isinstance(net, LinearSelfAttention | ContextBlock):
            found += _in_context(nets)
        else:
            say(f"{each.name}: no heads with queries and keys; left out.")
    if not found:
        raise DataError(
            f"{folder} holds no heads with queries and keys. Give a run of experiments.beliefs or "
            "experiments.incontext, or of experiments.images --models self_attention."
        )
    return found


def _of_nets(
    config: Config, nets: SavedNets, weights: Callable[[Any], lens.TransformerWeights], tokens: list
) -> Iterator[Subject]:
    """Every net of a checkpoint, before and after its training."""
    trained = ", ".join(
        ["trained", f"{nets.holds['targets']}"] if "targets" in nets.holds else ["trained"]
    )
    for kind, params in (("untrained", nets.untrained()), (trained, nets.params)):
        for index, run in enumerate(nets.runs[: 1 if config.smoke else None]):
            settings = [f"{name} {value:g}" for name, value in run.items() if name != "seed"]
            name = ", ".join([nets.holds["net"], *settings, kind, f"seed {run['seed']}"])
            yield Subject(name, weights(nets.net(index, params)), tokens)


def _in_context(nets: SavedNets) -> Iterator[InContext]:
    """The nets of a checkpoint before training and, for each setting of it, after."""
    groups: dict[str, list[int]] = {}
    for index, run in enumerate(nets.runs):
        settings = [f"{name} {value:g}" for name, value in run.items() if name != "seed"]
        groups.setdefault(", ".join([*settings, "trained"]), []).append(index)
    before, first = nets.untrained(), next(iter(groups.values()))
    for words, rows, params in (
        ("untrained", first, before),
        *((words, rows, nets.params) for words, rows in groups.items()),
    ):
        yield InContext(f"{nets.holds['net']}, {words}", [nets.net(i, params) for i in rows])


def _words(config: Config, nets: SavedNets, net: Transformer) -> list[np.ndarray]:
    """Sequences of the process that the nets were trained on."""
    keys = jax.random.split(jax.random.key(config.seed), config.limit)
    try:
        process = build(nets.holds["process"])()
        if process.num_tokens != net.num_tokens:
            raise ValueError(f"it has {process.num_tokens} tokens, but the net {net.num_tokens}")
    # A function of imr.processes may raise anything if its arguments are of the wrong kind.
    except Exception as error:
        raise DataError(
            f"a checkpoint of {config.run_dir} does not say what process its net has learned: "
            f"{str(error).rstrip('.')}. Train again, with --overwrite."
        ) from error
    return list(np.asarray(sample(process, keys, net.length).tokens))


def _patch_heads(net: Classifier) -> lens.TransformerWeights:
    """Heads of a block of patches: Q = K = V = phi and O = -tau phi^T, and no texts."""
    block: Any = net.blocks[0]
    weights = np.asarray(block.phi[...], np.float64)[None]
    output = -np.float64(block.tau) * weights.mT
    shared = dict.fromkeys(("query", "key", "value"), weights)
    return lens.model_from_arrays(shared | {"output": output})


def padded(model: lens.TransformerWeights, tokens: np.ndarray) -> tuple[np.ndarray, np.int32]:
    """The text padded to one of few sizes, as each is a compiled program, and its length."""
    size = 8
    while size < len(tokens):
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    most = size if model.positions is None else len(model.positions)
    padded = np.zeros(min(size, most), np.int32)
    padded[: len(tokens)] = tokens
    return padded, np.int32(len(tokens))
