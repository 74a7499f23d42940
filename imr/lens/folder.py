"""Checkpoints in Hugging Face's folder format, read into plain arrays; safetensors only."""

import os
from collections.abc import Callable
from pathlib import Path

from imr.lens._config import FolderConfig
from imr.lens._families import read_bert, read_gpt2
from imr.lens._tensors import Tensors
from imr.lens.model import TransformerWeights

_FAMILIES: dict[str, Callable[[FolderConfig, Tensors], TransformerWeights]] = {
    "bert": read_bert,
    "gpt2": read_gpt2,
}


def read_model(folder: str | os.PathLike[str]) -> TransformerWeights:
    """Reads a checkpoint of the BERT or GPT-2 family from `config.json` and safetensors files.

    Half precision is widened to float32. Nothing is ever unpickled.

    Args:
      folder: with `config.json` and `model.safetensors`, or its shards beside
        `model.safetensors.index.json`.

    Returns:
      The transformer.

    Raises:
      DataError: if it is no such folder, the architecture or one of its options is not known, a
        tensor is missing, misshapen, quantised or not finite, or a file is damaged.
      MissingPackageError: without safetensors; the extra `lens` has it.
    """
    folder = Path(folder).expanduser()
    config = FolderConfig(folder)
    kind = config.choice("model_type", "model_type", _FAMILIES)
    return _FAMILIES[kind](config, Tensors(folder))
