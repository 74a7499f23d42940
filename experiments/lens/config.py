"""The flags of the lens experiment, and what they may be."""

from dataclasses import dataclass
from pathlib import Path

from imr import ImrError


@dataclass(frozen=True)
class Config:
    """Flags of the lens experiment."""

    model_dir: Path | None = None
    """A checkpoint of the BERT or GPT-2 family: config.json, model.safetensors, tokenizer.json."""
    run_dir: Path | None = None
    """A run of experiments.beliefs, or of experiments.images with self_attention, whose nets are
    read instead, trained and untrained; of the latter the weights alone."""
    texts: Path | None = None
    """A file with one text a line; 200 sentences that come along by default."""
    limit: int = 200
    """Use the first so many texts."""
    longest: int = 128
    """Tokens of a text; longer texts are cut into several."""
    draws: int = 16
    """Of each null that is drawn at random."""
    seed: int = 0
    """Of the nulls."""
    smoke: bool = False
    """Two texts and few draws; for tests."""
    out: Path | None = None
    """Run folder; runs/lens/<hash of the configuration> by default."""
    overwrite: bool = False
    """Replace the run in that folder."""


def check(config: Config) -> None:
    """Refuses values that make no run, before anything is read or written."""
    if (config.model_dir is None) == (config.run_dir is None):
        raise ImrError("give --model-dir, a folder with a checkpoint, or --run-dir, a run.")
    if config.run_dir is not None and config.texts is not None:
        raise ImrError(
            "--texts is for --model-dir: the nets of a run read what they were trained on."
        )
    for name, least in (("limit", 1), ("longest", 3), ("draws", 8), ("seed", 0)):
        if (value := getattr(config, name)) < least:
            raise ImrError(f"--{name} must be at least {least}; found {value}.")
