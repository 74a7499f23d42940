"""The flags of the lens experiment, and what they may be."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from imr import ImrError
from imr.lab.bounds import at_least
from imr.lab.flags import RunFlags, repeated


@dataclass(frozen=True, kw_only=True)
class Config(RunFlags):
    """Flags of the lens experiment; `seed` is that of the nulls."""

    model_dir: Annotated[tuple[Path, ...], repeated()] = ()
    """A checkpoint: config.json, model.safetensors and, to measure it on texts, tokenizer.json, if
    imr.lens can run it (BERT, GPT-2, Llama, Mistral, Qwen, Gemma). May be given several times."""
    run_dir: Path | None = None
    """A run of experiments.beliefs, of experiments.images with self_attention or of
    experiments.incontext, whose nets are read instead, trained and untrained; of images the weights
    alone, and of nets that learn in context whether they are the construction."""
    weights_only: bool = False
    """Measure the weights of checkpoints and read no texts."""
    texts: Path | None = None
    """A file with one text a line; by default 200 sentences that are part of imr."""
    limit: Annotated[int, at_least(1)] = 200
    """The most texts to read, from the first on."""
    longest: Annotated[int, at_least(3)] = 128
    """The most tokens of a text; longer texts are cut into several."""
    edits: bool = False
    """Instead of measuring heads, edit them: the loss on texts without what lies along theta^T, beside
    as much taken out in other directions. Five texts make one that a decoder predicts."""
    draws: Annotated[int, at_least(8)] = 16
    """Draws of each random null."""


def check(config: Config) -> None:
    """Refuses flags that do not name one source of models."""
    if bool(config.model_dir) == (config.run_dir is not None):
        raise ImrError("give --model-dir, a folder with a checkpoint, or --run-dir, a run.")
    if config.run_dir is not None and (config.texts is not None or config.weights_only):
        name = "--texts" if config.texts is not None else "--weights-only"
        raise ImrError(
            f"{name} is for --model-dir: the nets of a run read what they were trained on."
        )
    if config.weights_only and config.texts is not None:
        raise ImrError("--texts and --weights-only exclude one another. Leave one out.")
    if config.weights_only and config.edits:
        raise ImrError("--edits reads texts and --weights-only none. Leave one out.")
    if len({folder.resolve() for folder in config.model_dir}) < len(config.model_dir):
        raise ImrError("--model-dir names a folder twice. Name each once.")


def shrink(config: Config) -> Config:
    """The smoke version: two texts, and of a run the nets of the first seed."""
    return replace(config, limit=min(config.limit, 2))
