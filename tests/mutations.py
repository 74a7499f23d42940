"""Mutations of every kind of file that imr reads: the right value, or an ImrError, within a second.

python -m tests.mutations KIND COUNT SEED    in 500 MB; prints what became of them as JSON
"""

import gzip
import io
import json
import pickle
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lens.convert.pickled import read_pickled
from experiments.lens.convert.tensors import SIZES
from imr import lens
from imr.errors import ImrError, RunError
from imr.lab.architecture import describe
from imr.lab.data import read_idx
from imr.lab.flags import RunFlags
from imr.lab.folder import RunFolder, config_dict, open_run
from imr.lab.nets import initialiser, read_nets
from imr.nn import Transformer

MEMORY = 500 * 10**6  # bytes beyond what the process has after its first read
SECONDS = 1.0  # of CPU, for one file


class Kind(NamedTuple):
    """A file to mutate, its reader, and what is right.

    Attributes:
      path: of the file, whole at first.
      read: reads it, and whatever lies around it.
      right: whether a value is the right one for the bytes of the file.
      unpack, pack: to a text or header within the file, and back.
    """

    path: Path
    read: Callable[[], Any]
    right: Callable[[bytes, Any], bool]
    unpack: Callable[[bytes], bytes] = bytes
    pack: Callable[[bytes, bytes], bytes] = lambda inner, whole: inner


# Kinds


def idx_array(data):
    rank = {2049: 1, 2051: 3}[struct.unpack(">I", data[:4])[0]]
    shape = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
    return np.frombuffer(data[4 + 4 * rank :], np.uint8).reshape(shape)


def idx(folder):
    path = folder / "images"
    path.write_bytes(struct.pack(">4I", 2051, 3, 4, 5) + bytes(range(60)))
    return Kind(path, lambda: read_idx(path), lambda b, x: np.array_equal(x, idx_array(b)))


def idx_gz(folder):
    plain = idx(folder)
    path = folder / "images.gz"
    path.write_bytes(gzip.compress(plain.path.read_bytes(), mtime=0))
    return Kind(
        path, lambda: read_idx(path), lambda b, x: plain.right(gzip.decompress(b), x),
        gzip.decompress, lambda inner, _: gzip.compress(inner, 1, mtime=0),
    )  # fmt: skip


GPT2 = {
    "model_type": "gpt2", "vocab_size": 5, "n_positions": 6, "n_embd": 4, "n_head": 2, "n_layer": 1,
    "n_inner": 3, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
}  # fmt: skip
SHAPES = {
    "wte.weight": (5, 4), "wpe.weight": (6, 4), "ln_f.weight": (4,), "ln_f.bias": (4,),
    "h.0.ln_1.weight": (4,), "h.0.ln_1.bias": (4,), "h.0.ln_2.weight": (4,), "h.0.ln_2.bias": (4,),
    "h.0.attn.c_attn.weight": (4, 12), "h.0.attn.c_attn.bias": (12,),
    "h.0.attn.c_proj.weight": (4, 4), "h.0.attn.c_proj.bias": (4,),
    "h.0.mlp.c_fc.weight": (4, 3), "h.0.mlp.c_fc.bias": (3,),
    "h.0.mlp.c_proj.weight": (3, 4), "h.0.mlp.c_proj.bias": (4,),
}  # fmt: skip


def model_folder(folder, shards=1):
    """A checkpoint with one layer, whole or in shards."""
    from safetensors.numpy import save_file

    draw = np.random.default_rng(0)
    tensors = {name: draw.normal(size=s).astype(np.float32) for name, s in SHAPES.items()}
    (folder / "config.json").write_text(json.dumps(GPT2))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    files = {name: f"{i % shards}.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: x for name, x in tensors.items() if files[name] == file}, folder / file)
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": files})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


def header_of(data):
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


def with_header(header, whole):
    return len(header).to_bytes(8, "little") + header + whole[8 + len(header_of(whole)) :]


def tensor_of(data, name):
    header, numpy = header_of(data), {"F64": "f8", "F32": "f4", "F16": "f2"}
    entry = json.loads(header)[name]
    if entry["dtype"] == "BF16":
        numpy = {"BF16": jnp.bfloat16}
    start, end = entry["data_offsets"]
    body = data[8 + len(header) :][start:end]
    return np.frombuffer(body, numpy[entry["dtype"]]).reshape(entry["shape"]).astype(np.float32)


def weights_of(folder):
    model = lens.read_model(folder)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model))
    return model


def weights(folder):
    model_folder(folder)

    def right(data, model):
        pairs = {
            "wte.weight": model.tokens, "wpe.weight": model.positions,
            "ln_f.bias": model.outer_norm.bias, "h.0.mlp.c_fc.weight": model.mlp.into[0],
        }  # fmt: skip
        return all(np.array_equal(tensor_of(data, name), x) for name, x in pairs.items())

    read = partial(weights_of, folder)
    return Kind(folder / "model.safetensors", read, right, header_of, with_header)


HEADS = {
    "model_type": "gemma3_text", "hidden_size": 4, "num_attention_heads": 2, "num_key_value_heads": 1,
    "num_hidden_layers": 1, "head_dim": 6, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 4.0,
    "sliding_window": 3, "layer_types": ["sliding_attention"], "rope_parameters": {
        "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10.0},
    },
}  # fmt: skip


def heads(folder):
    """The configuration of heads with key groups, rotary positions and a window."""
    from safetensors.numpy import save_file

    shapes = {
        "self_attn.q_proj": (12, 4), "self_attn.k_proj": (6, 4), "self_attn.v_proj": (6, 4),
        "self_attn.o_proj": (4, 12), "self_attn.q_norm": (6,), "self_attn.k_norm": (6,),
        "input_layernorm": (4,), "post_attention_layernorm": (4,),
    }  # fmt: skip
    tensors = {f"layers.0.{name}.weight": np.ones(s, np.float32) for name, s in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(HEADS))

    def right(data, layers):
        options, (layer,) = json.loads(data), layers
        window = options.get("sliding_window")
        local = options.get("layer_types") != ["full_attention"]
        rope = options.get("rope_parameters") or {}
        types = ("full_attention", "sliding_attention")
        rope = (rope.get(types[local]) if any(t in rope for t in types) else rope) or {}
        base = rope.get("rope_theta", 10000.0 if local else options.get("rope_theta", 1e6))
        linear = rope.get("rope_type", rope.get("type")) == "linear"
        factor = rope.get("factor", 1.0) if linear else 1.0
        turning = int(6 * rope.get("partial_rotary_factor", 1.0))
        return (
            layer.query.shape == (2, 4, 6)
            and layer.key.shape == (1, 4, 6)
            and layer.scale == (options.get("query_pre_attn_scalar", 256) or 6) ** -0.5
            and layer.reach == (window - 1 if local and window is not None else None)
            and np.allclose(
                layer.frequencies,
                float(base) ** -(np.arange(0, turning, 2) / (turning or 1)) / factor,
            )
        )

    def read():
        return list(lens.read_heads(folder))

    return Kind(folder / "config.json", read, right)


def config(folder):
    model_folder(folder)

    def right(data, model):
        options = {
            "layer_norm_epsilon": 1e-5,
            "activation_function": "gelu_new",
            **json.loads(data),
        }
        return (
            model.attention.epsilon == options["layer_norm_epsilon"]
            and model.activation == options["activation_function"]
            and model.heads.query.shape == (options["n_layer"], options["n_head"], 4, 4 // options["n_head"])
            and model.tokens.shape == (options["vocab_size"], options["n_embd"])
        )  # fmt: skip

    return Kind(folder / "config.json", partial(weights_of, folder), right)


def shard_index(folder):
    model_folder(folder, shards=2)
    first = jax.tree.leaves(weights_of(folder))

    def right(data, model):
        return all(map(np.array_equal, jax.tree.leaves(model), first))

    return Kind(folder / "model.safetensors.index.json", partial(weights_of, folder), right)


TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None,
    "added_tokens": [
        {"id": i, "content": word, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True} for i, word in enumerate(("[UNK]", "[CLS]", "[SEP]"))
    ],
    "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
         "strip_accents": None, "lowercase": True},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    ]},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "BertPreTokenizer"},
        {"type": "Split", "pattern": {"Regex": "[^ ]+|x"}, "behavior": "Isolated", "invert": False},
    ]},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]}},
    },
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {w: i for i, w in enumerate(("[UNK]", "[CLS]", "[SEP]", "a", "b", "##b", "c", "."))},
    },
}  # fmt: skip


def tokenizer(folder):
    from tokenizers import Tokenizer

    path, texts = folder / "tokenizer.json", ["Ab  c b.", "c" * 40 + " a é b b a b a b c c"]
    path.write_text(json.dumps(TOKENIZER))

    def right(data, pieces):
        library = Tokenizer.from_buffer(data)
        library.no_truncation()
        library.no_padding()
        ids = library.encode(texts[0]).ids
        tokens = [x.tolist() for x in pieces.tokens]
        assert all(len(x) <= 9 and min(x) >= 0 for x in tokens)
        return len(ids) > 9 or len(ids) < 3 or tokens[0] == ids

    return Kind(path, lambda: lens.tokenize(lens.read_tokenizer(folder), texts, 9), right)


def texts(folder):
    path = folder / "texts.txt"
    path.write_text("\ufeffone text\n\n two téxts\r\nthree\n", encoding="utf-8")

    def right(data, found):
        lines = data.decode().removeprefix("\ufeff").splitlines()
        return found == [line.strip() for line in lines if line.strip()]

    return Kind(path, lambda: lens.read_texts(path), right)


def run_config(folder):
    flags = RunFlags(seed=3)
    with open_run("probe", flags, out=folder / "run") as run:
        path = run.path / "config.json"

    def right(data, run):
        record = json.loads(data)
        return (record["experiment"], record["config"]) == ("probe", config_dict(flags))

    def read():
        with open_run("probe", flags, out=folder / "run") as run:
            return run

    return Kind(path, read, right)


def summary(folder):
    run = RunFolder(folder)
    run.finish({"rows": [{"loss": 0.5, "n": 3, "data": "é"}, {"loss": None}]}, "| a |")
    path = folder / "summary.json"
    return Kind(path, run.summary, lambda data, value: value == json.loads(data))


def sums(folder):
    summary(folder)
    whole = (folder / ".sums").read_text()

    def read():
        if not RunFolder(folder).finished:
            raise RunError("these are the sums of other files")

    def right(data, value):
        return json.loads(data) == json.loads(whole)

    return Kind(folder / ".sums", read, right)


def metrics(folder):
    run = RunFolder(folder)
    for step in range(4):
        run.metrics(data="digits").append(step, loss=0.5, note="a b")
    path = folder / "metrics.jsonl"

    def right(data, rows):
        whole = data[: data.rfind(b"\n") + 1]
        return rows == [json.loads(line) for line in whole.splitlines()]

    return Kind(path, lambda: run.metrics().rows(), right)


def nets(folder):
    from imr.lab import checkpoint

    call = partial(Transformer, 3, 4, features=4, head_features=2, mlp_width=4)
    params = jax.vmap(initialiser(call))(jax.random.split(jax.random.key(0), 2))
    runs = [{"seed": 0, "noise": 0.5}, {"seed": 1, "noise": 0.0}]
    holds = {"architecture": describe(call), "runs": runs}
    with checkpoint.Checkpoints(folder, holds) as checkpoints:
        checkpoints.save(1, {"params": params}, force=True)
    digest = json.loads((folder / "1" / "record" / "metadata").read_text())["sha256"]

    def read():
        # With a checksum that fits, as whoever changes a file by intention makes it.
        with mock.patch.object(checkpoint, "_digest", return_value=digest):
            found = read_nets(folder)
        found.net(0)
        return found

    def right(data, found):
        return found.runs == json.loads(data)["runs"] and all(
            map(np.array_equal, jax.tree.leaves(found.params), jax.tree.leaves(params))
        )

    return Kind(folder / "1" / "config" / "metadata", read, right)


# Files of torch, written without torch.

STATE = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3) - 2.5,
    "b.weight": np.float32([1.5, 7.25]),
}


def torch_text(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def torch_integer(number):
    return b"\x8a\x08" + struct.pack("<q", number)


def torch_name(module, name):
    return f"c{module}\n{name}\n".encode()


def torch_tuple(*parts):
    return b"(" + b"".join(parts) + b"t"


def torch_state(
    state=None, *, shape=None, strides=None, offset=0, count=None, view=None, shared=False,
    function=None, kind="FloatStorage",
):  # fmt: skip
    """The pickle of a state dict; what is given differs from what is right in its first tensor."""
    items = b""
    for number, (name, array) in enumerate((STATE if state is None else state).items()):
        size, steps = array.shape, tuple(x // array.itemsize for x in array.strides)
        total, start = array.size, 0
        if number == 0:
            size, total, start = shape or size, count or total, offset
            steps = strides or steps
        parts = [
            torch_text("storage"), torch_name("torch", kind), torch_text("0" if shared else str(number)),
            torch_text("cpu"), torch_integer(total), *([] if view is None else [view]),
        ]  # fmt: skip
        sizes = (torch_tuple(*map(torch_integer, x)) for x in (size, steps))
        hooks = torch_name("collections", "OrderedDict") + b")R"
        made = function or torch_name("torch._utils", "_rebuild_tensor_v2")
        items += torch_text(name) + made
        items += (
            torch_tuple(torch_tuple(*parts) + b"Q", torch_integer(start), *sizes, b"\x89", hooks)
            + b"R"
        )
    return b"\x80\x02}(" + items + b"u."


def torch_zip_file(
    pickled=None, *, storages=None, compression=zipfile.ZIP_STORED, name="archive/data.pkl"
):
    """A file as torch writes it today."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as archive:
        archive.writestr(name, torch_state() if pickled is None else pickled)
        archive.writestr("archive/byteorder", "little")
        for number, array in enumerate(storages or STATE.values()):
            archive.writestr(f"archive/data/{number}", array.tobytes())
    return data.getvalue()


def torch_plain_file(pickled=None):
    """A file as torch wrote it before."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    keys = list(map(str, range(len(STATE))))
    storages = (struct.pack("<q", x.size) + x.tobytes() for x in STATE.values())
    return b"".join([
        *(pickle.dumps(x, 2) for x in head), torch_state() if pickled is None else pickled,
        pickle.dumps(keys, 2), *storages,
    ])  # fmt: skip


def _torch(folder, data):
    path = folder / "pytorch_model.bin"
    path.write_bytes(data)

    def right(data, tensors):
        """No more than there is, and no number that is not in the file."""
        whole = [tensor.read() for tensor in tensors.values()]
        assert sum(map(len, whole)) <= 4 * len(data)
        sizes = [SIZES[tensor.dtype] for tensor in tensors.values()]
        return all(
            data.find(bytes_[i : i + size]) >= 0
            for bytes_, size in zip(whole, sizes, strict=True)
            for i in range(0, len(bytes_), size)
        )

    return Kind(path, lambda: read_pickled(path), right)


def torch_zip(folder):
    return _torch(folder, torch_zip_file())


def torch_plain(folder):
    return _torch(folder, torch_plain_file())


KINDS = {
    kind.__name__: kind
    for kind in (
        idx, idx_gz, weights, heads, config, shard_index, tokenizer, texts, run_config, summary, sums, metrics, nets, torch_zip,
        torch_plain,
    )
}  # fmt: skip

# Mutations

NUMBERS = (0, 1, -1, 2, 127, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**53 + 1, 2**63, 10**18)
VALUES = (
    None, True, *NUMBERS, 10**400, 0.5, 1e308, -0.0, float("inf"), float("nan"), "", "x" * 300, "../x",
    "/etc/passwd", "a\0b", "\ud800", "(a+)+$", [], {}, [[]], ["a"], {"a": 1},
)  # fmt: skip
WORDS = (
    b"NaN", b"-Infinity", b"1e999", b"null", b"9" * 400, b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b'"',
    b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"\\ud800", b'"../x"',
)  # fmt: skip


def mutated(draw: random.Random, data: bytes) -> bytes:
    """The bytes with one to three changes."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        data = draw.choice(CHANGES)(draw, data)
    return data


def _flip(draw, data):
    at = draw.randrange(len(data) or 1)
    return (
        data[:at] + bytes(b ^ (1 << draw.randrange(8)) for b in data[at : at + 1]) + data[at + 1 :]
    )


def _byte(draw, data):
    at = draw.randrange(len(data) or 1)
    return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]


def _cut(draw, data):
    return data[: draw.randrange(len(data) + 1)]


def _remove(draw, data):
    at = draw.randrange(len(data) + 1)
    return data[:at] + data[at + draw.randrange(20) :]


def _repeat(draw, data):
    at, to = draw.randrange(len(data) + 1), draw.randrange(len(data) + 1)
    return data[:to] + data[at : at + draw.randrange(60)] + data[to:]


def _insert(draw, data):
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.choice((*WORDS, draw.randbytes(4))) + data[at:]


def _integer(draw, data):
    """A binary number of four or eight bytes becomes another."""
    size, order = draw.choice((4, 8)), draw.choice(("big", "little"))
    at = draw.choice((0, 4, 8, 12, draw.randrange(len(data) + 1)))
    number = draw.choice(NUMBERS) % 2 ** (8 * size)
    return data[:at] + number.to_bytes(size, order) + data[at + size :]


def _digits(draw, data):
    """A decimal number becomes another."""
    there = list(re.finditer(rb"[0-9]+", data))
    if not there:
        return data
    match = draw.choice(there)
    return data[: match.start()] + b"%d" % draw.choice(NUMBERS) + data[match.end() :]


def _field(draw, data):
    """A value anywhere in JSON becomes another, goes, or comes twice."""
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError):
        return data
    places, level = [], [whole]
    while level:
        each = level.pop()
        pairs = (
            each.items()
            if isinstance(each, dict)
            else enumerate(each)
            if isinstance(each, list)
            else ()
        )
        for key, value in pairs:
            places.append((each, key))
            level.append(value)
    if not places:
        return json.dumps(draw.choice(VALUES)).encode()
    (owner, key), (other, name) = draw.choice(places), draw.choice(places)
    change = draw.randrange(6)
    if change == 0:
        del owner[key]
    elif change == 1:
        owner[key] = other[name] if not isinstance(other[name], dict | list) else []
    elif change == 2 and isinstance(key, str):
        owner["\0twice"] = draw.choice((owner[key], draw.choice(VALUES)))
        return json.dumps(whole).replace(json.dumps("\0twice"), json.dumps(key)).encode()
    elif change == 3 and isinstance(key, str):
        owner[draw.choice(("", "type", "x" * 300, key + "x"))] = owner.pop(key)
    else:
        owner[key] = draw.choice(VALUES)
    return json.dumps(whole).encode()


CHANGES = (_flip, _byte, _cut, _remove, _repeat, _insert, _integer, _digits, _field, _field, _field)


class Outcome(NamedTuple):
    """How many files were accepted and refused, the most CPU seconds of one, and what went wrong."""

    accepted: int
    refused: int
    slowest: float
    faults: list[str]


def try_out(
    name: str, folder: Path, count: int, seed: int, ready: Callable[[], None] = int
) -> Outcome:
    """Reads that many mutations; `ready` is called after the whole file has been read once."""
    kind, draw = KINDS[name](folder), random.Random(f"{name} {seed}")
    whole = kind.path.read_bytes()
    assert kind.right(whole, kind.read())
    ready()
    accepted, refused, slowest, faults = 0, 0, 0.0, []
    for number in range(count):
        if draw.random() < 0.5:
            data = mutated(draw, whole)
        else:
            data = kind.pack(mutated(draw, kind.unpack(whole)), whole)
        kind.path.write_bytes(data)
        start, fault = time.process_time(), None
        try:
            value = kind.read()
            seconds = time.process_time() - start
            accepted += 1
            fault = None if kind.right(data, value) else "wrong value"
        except ImrError:
            seconds = time.process_time() - start
            refused += 1
        except Exception as error:
            seconds = time.process_time() - start
            fault = f"{type(error).__name__}: {error}"
        slowest = max(slowest, seconds)
        if seconds > SECONDS:
            fault = f"{seconds:.1f} s"
        if fault is not None:
            faults.append(f"mutation {number}, {fault[:300]}: {data[:2000]!r}")
    return Outcome(accepted, refused, slowest, faults)


def limit_memory() -> None:
    """Has every allocation fail that would take the process to more than `MEMORY` above the present."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    [kilobytes] = re.findall(r"VmData:\s+(\d+) kB", text)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (int(kilobytes) * 1024 + MEMORY, hard))


def main() -> None:
    name, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    # Ends the process if all of it hangs.
    signal.alarm(60 + count // 5)
    with tempfile.TemporaryDirectory() as folder:
        outcome = try_out(name, Path(folder), count, seed, limit_memory)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({**outcome._asdict(), "peak": peak}))


if __name__ == "__main__":
    main()
