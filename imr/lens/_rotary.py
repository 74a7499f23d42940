"""The frequencies of rotary positions, as config.json describes them."""

from typing import Any

import numpy as np

from imr.errors import DataError
from imr.lens._config import Config
from imr.lens.names import HeadNames

_KINDS = ("default", "linear", "llama3")


def rotary_frequencies(config: Config, names: HeadNames, local: bool, size: int) -> Any:
    """The angles (f,) by which pairs of features turn from token to token, or None.

    Options stand in `rope_parameters`, for each type of layer or for all, or before transformers 5 in
    options of their own, of which `rope_scaling` is for layers without a window.
    """
    if names.base is None:
        return None
    rope = config.inside(config.options.get("rope_parameters"), "rope_parameters").options
    types = ("full_attention", "sliding_attention")
    if any(name in rope for name in types):
        rope = rope.get(types[local])
        rope = config.inside(rope, "rope_parameters").options
    own_base = local and names.local_base is not None
    if not own_base:
        rope = config.inside(config.options.get("rope_scaling"), "rope_scaling").options | rope
    base, part = names.local_base if own_base and names.local_base else names.base, names.part
    own = {
        "rope_theta": config.number(*_bounded(base)),
        part[0]: config.number(part[0], 1, part[1]),
    }
    own["partial_rotary_factor"] = own[part[0]]
    own["rope_type"] = rope.get("type", "default")
    rope = config.inside(own | rope, "rope_parameters")
    kind = rope.choice("rope_type", "rope_type", _KINDS)
    turning = int(size * rope.number("partial_rotary_factor", 1))
    if turning % 2:
        raise DataError(
            f"{config.path} makes {turning} of {size} features turn; rotary positions take an even number."
        )
    exponents = np.arange(0, turning, 2) / max(turning, 1)
    frequencies = rope.number("rope_theta", 10**12) ** -exponents
    if kind == "default":
        return frequencies
    factor = rope.number("factor", 10**9)
    if kind == "linear":
        return frequencies / factor
    # Llama 3.1: turns that are long beside the context of pretraining are made longer.
    turns = rope.number("original_max_position_embeddings", 10**12) * frequencies / (2 * np.pi)
    low, high = rope.number("low_freq_factor", 10**9), rope.number("high_freq_factor", 10**9)
    share = np.clip((turns - low) / max(high - low, 1e-9), 0, 1)
    return frequencies * (share + (1 - share) / factor)


def _bounded(option: tuple[str, float]) -> tuple[str, float, float]:
    return option[0], 10**12, option[1]
