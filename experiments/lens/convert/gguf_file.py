"""Models of llama.cpp: the header of a GGUF file within bounds, its tensors by the package `gguf`."""

import importlib
import json
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.lens.convert.tensors import Tensor, check_quantised, of_array
from imr import DataError, ImrError
from imr._files import open_file
from imr.errors import missing_package
from imr.lab.console import say

_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_MOST = 2**22  # entries of an array, of a header
_PLAIN = {0: "F32", 1: "F16", 30: "BF16", 28: "F64"}  # dtypes by ggml's numbers
_NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class _Place(NamedTuple):
    shape: tuple[int, ...]  # in C order
    kind: int
    offset: int


class _Header:
    """What stands before the tensors."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 8
        if data[:4] != b"GGUF" or int.from_bytes(data[4:8], "little") not in (2, 3):
            raise ValueError("it does not begin as GGUF files of version 2 or 3 do")
        tensors, entries = self.count(), self.count()
        self.fields: dict[str, Any] = {}
        for _ in range(entries):
            name = self.string()
            self.fields[name] = self.value(self.number("I"))
        self.tensors: dict[str, _Place] = {}
        for _ in range(tensors):
            name, dimensions = self.string(), self.number("I")
            if dimensions > 4 or name in self.tensors:
                raise ValueError(
                    f"tensor {name[:80]!r} has {dimensions} dimensions, or stands twice"
                )
            shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
            self.tensors[name] = _Place(shape, self.number("I"), self.number("Q"))
        alignment = self.fields.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 2**16:
            raise ValueError(f"its alignment is {str(alignment)[:40]}")
        self.start = -(-self.at // alignment) * alignment

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise ValueError("it is cut short")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]

    def count(self) -> int:
        if (count := self.number("Q")) > _MOST:
            raise ValueError(f"it promises {count} entries; at most {_MOST} are read")
        return count

    def string(self) -> str:
        return self.take(self.number("Q")).decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(_NUMBERS[kind])
        kind, count = self.number("I"), self.count()
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        form = f"<{count}{_NUMBERS[kind]}"  # arrays of arrays there are none
        return list(struct.unpack(form, self.take(struct.calcsize(form))))


def read_gguf(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, bytes]]:
    """Tensors, config.json and tokenizer.json of a model of the Llama architecture.

    Quantised types are widened to float32 by the package `gguf`.

    Raises:
      OSError: if the file cannot be read.
      DataError: if it is damaged, of another architecture, or a type of tensors is not known.
      MissingPackageError: if it has quantised tensors, without the package.
    """
    with open_file(path) as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise DataError(f"{path} is empty.") from None
    try:
        header = _Header(data)
        config = _config(path, header)
        tensors = _tensors(path, header, config)
        files = _tokenizer(header.fields)
    except ImrError:
        raise
    except (ValueError, LookupError, TypeError, ArithmeticError, struct.error) as error:
        raise DataError(f"{path} is damaged or no GGUF file: {str(error)[:200]}.") from None
    return tensors, config, files


def _config(path: Path, header: _Header) -> dict[str, Any]:
    fields = header.fields
    kind = fields.get("general.architecture")
    if kind != "llama":
        raise DataError(f"{path} has the architecture {str(kind)[:40]!r}; llama is known.")
    if "rope_freqs.weight" in header.tensors or any("rope.scaling" in name for name in fields):
        raise DataError(f"{path} scales its rotary positions, which is not converted.")

    def whole(name: str, default: int | None = None) -> int:
        value = fields.get(f"llama.{name}", default)
        if type(value) is not int or not 0 < value < 2**31:
            raise ValueError(f"llama.{name} is {str(value)[:40]}")
        return value

    heads, width = whole("attention.head_count"), whole("embedding_length")
    return {
        "model_type": "llama", "hidden_size": width, "intermediate_size": whole("feed_forward_length"),
        "num_hidden_layers": whole("block_count"), "num_attention_heads": heads,
        "num_key_value_heads": whole("attention.head_count_kv", heads),
        "head_dim": whole("attention.key_length", max(width // heads, 1)), "hidden_act": "silu",
        "max_position_embeddings": whole("context_length", 2048),
        "rms_norm_eps": float(fields["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": float(fields.get("llama.rope.freq_base", 10000.0)),
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }  # fmt: skip


def _tensors(path: Path, header: _Header, config: Mapping[str, Any]) -> dict[str, Tensor]:
    gguf, known = None, {}
    if any(place.kind not in _PLAIN for place in header.tensors.values()):
        try:
            gguf: Any = importlib.import_module("gguf")
        except ImportError as error:
            raise missing_package("gguf", "lens") from error
        known = {int(kind): kind for kind in gguf.GGML_QUANT_SIZES}
        unknown = [name for name, place in header.tensors.items() if place.kind not in known]
        check_quantised(path, unknown, "types that the package gguf does not know")
    pairs = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors, taken = {}, 0
    for name, place in header.tensors.items():
        block, unit = (1, 0) if gguf is None else gguf.GGML_QUANT_SIZES[known[place.kind]]
        unit = unit or {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}[_PLAIN[place.kind]]
        total = math.prod(place.shape)
        if not place.shape or place.shape[-1] % block:
            raise ValueError(f"tensor {name} has a shape that its type does not allow")
        start, size = header.start + place.offset, total // block * unit
        taken += size
        if start + size > len(header.data) or taken > len(header.data):
            raise ValueError(f"tensor {name} lies beyond the file, or on others")
        stem, _, part = name.rpartition(".")
        layer = stem.split(".")
        if layer[0] == "blk" and len(layer) == 3 and layer[2] in _NAMES:
            target = f"model.layers.{int(layer[1])}.{_NAMES[layer[2]]}.{part}"
        elif stem in _OUTER:
            target = f"{_OUTER[stem]}.{part}"
        else:
            raise ValueError(f"tensor {name[:80]} is none of a Llama")
        heads = pairs.get(layer[-1], 0)
        if heads and place.shape[0] % (2 * heads):
            raise ValueError(f"tensor {name} does not have {heads} heads")
        known_kind = known.get(place.kind)

        def read(start=start, size=size, place=place, kind=known_kind, heads=heads) -> bytes:
            data = np.frombuffer(header.data[start : start + size], np.uint8)
            if place.kind in _PLAIN:
                array = Tensor(_PLAIN[place.kind], place.shape, data.tobytes).array()
            else:
                rows = data.reshape(*place.shape[:-1], -1)
                quants = importlib.import_module("gguf.quants")
                array = quants.dequantize(rows, kind).reshape(place.shape)
            if heads:
                # llama.cpp keeps both features of a rotary pair side by side.
                shape = heads, array.shape[0] // heads // 2, 2, *array.shape[1:]
                array = array.reshape(shape).swapaxes(1, 2).reshape(array.shape)
            return of_array(array).read()

        tensors[target] = Tensor("F32", place.shape, read)
    return tensors


def _tokenizer(fields: Mapping[str, Any]) -> dict[str, bytes]:
    """tokenizer.json of byte pairs, as tokenizers has it; of other kinds none."""
    before: dict[str, list[dict[str, Any]]] = {
        "smollm": [{"type": "Digits", "individual_digits": True}], "gpt-2": [], "default": [],
    }  # fmt: skip
    kind = fields.get("tokenizer.ggml.pre", "default")
    if fields.get("tokenizer.ggml.model") != "gpt2" or kind not in before:
        say("Its tokenizer is of a kind that is not converted: give texts another way.")
        return {}
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    bytes_ = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    value = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [
            {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind == 3
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*before[kind], bytes_]},
        "post_processor": None, "decoder": bytes_,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": fields["tokenizer.ggml.merges"],
        },
    }  # fmt: skip
    return {"tokenizer.json": json.dumps(value).encode()}
