"""Files from elsewhere: what is hostile is refused by name, at once, in little memory."""

import gzip
import json
import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest

from imr import lens
from imr._files import LARGEST, MOST_MARKS, parse_json
from imr.errors import DataError, ImrError, RunError
from imr.lab.checkpoint import read_newest
from imr.lab.data import read_idx
from imr.lab.flags import RunFlags
from imr.lab.folder import open_run
from tests import mutations

ROOT = Path(__file__).resolve().parents[1]
needs_lens = pytest.mark.skipif(
    not all(map(find_spec, ("safetensors", "tokenizers"))),
    reason="the extra `lens` is not installed",
)
LIGHT = ("idx", "idx_gz", "texts", "summary", "sums", "metrics", "run_config")
MODEL = ("tokenizer", "weights", "heads", "config", "shard_index", "torch_zip", "torch_plain")


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """What a run folder imports at its first use is no file's fault."""
    with open_run("probe", RunFlags(), out=tmp_path_factory.mktemp("warm") / "run") as run:
        run.metrics().append(1, loss=0.5)
        run.finish({}, "| a |")


@pytest.fixture
def bounded(warm):
    """The test may take a second of CPU and 500 MB more than there are."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("this system does not say how much memory a process has")
    before, start = resource.getrlimit(resource.RLIMIT_DATA), time.process_time()
    mutations.limit_memory()
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)
    assert time.process_time() - start < mutations.SECONDS


# Mutations


@pytest.mark.parametrize("kind", LIGHT)
def test_mutations(tmp_path, kind):
    assert mutations.try_out(kind, tmp_path, 50, 0).faults == []


@needs_lens
@pytest.mark.laws
@pytest.mark.parametrize("kind", MODEL)
def test_mutations_of_models(tmp_path, kind):
    assert mutations.try_out(kind, tmp_path, 100, 0).faults == []


@pytest.mark.laws
def test_mutations_of_checkpoints(tmp_path):
    assert mutations.try_out("nets", tmp_path, 10, 0).faults == []


@needs_lens
@pytest.mark.fuzz
@pytest.mark.parametrize("kind", mutations.KINDS)
def test_ten_thousand_mutations(kind):
    """In two processes, since jax keeps what it has traced: seconds, but minutes for models and nets."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "RUST_BACKTRACE": "0"}
    for seed in ("1", "2"):
        command = [sys.executable, "-W", "error", "-m", "tests.mutations", kind, "5000", seed]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        found = json.loads(done.stdout)
        assert found["faults"] == []
        assert found["accepted"] > 0
        assert found["refused"] > 500


# IDX


def deflated(header, megabytes):
    """A raw deflate stream of the header and so many MiB of zeros, made of one repeated piece."""
    packer = zlib.compressobj(9, wbits=-15)
    start = packer.compress(header) + packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08" + bytes(7) + start + zeros * megabytes


def images(*shape):
    return struct.pack(">4I", 2051, *shape)


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (deflated(images(3, 1024, 2**20), 3072), r"has 3221225472 bytes of data; the most that is read"),
        (deflated(images(200, 1024, 1024), 200), r"would unzip to 209715200, as no images do"),
        (deflated(images(1, 10, 10), 1000), "too many bytes: its header promises 100 .* or more are"),
        (deflated(images(2**31, 2**31, 2**31), 1), r"too few bytes: .* at most \d+ are there"),
        (gzip.compress(b"") * 10000 + gzip.compress(images(1, 1, 1) + b"1"), "a part of it is empty"),
    ],
    ids=["honest", "small", "forged", "absurd", "empty parts"],
)  # fmt: skip
def test_gzip_bombs(tmp_path, content, message):
    path = tmp_path / "bomb.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


@pytest.mark.usefixtures("bounded")
def test_idx_files_that_are_large_or_none(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(images(3, 1024, 2**20))
    os.truncate(path, 16 + 3 * 2**30)
    with pytest.raises(
        DataError, match="3221225472 bytes of data; the most that is read is 268435456"
    ):
        read_idx(path)
    with pytest.raises(DataError, match="has 60 bytes of data; the most that is read is 59"):
        read_idx(mutations.idx(tmp_path).path, largest=59)
    os.mkfifo(tmp_path / "pipe")
    for special in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(DataError, match="is no regular file"):
            read_idx(special)


def test_gzip_in_several_parts_and_filled_up(tmp_path):
    kind, path = mutations.idx(tmp_path), tmp_path / "parts.gz"
    whole = kind.path.read_bytes()
    path.write_bytes(gzip.compress(whole[:7]) + gzip.compress(whole[7:]) + bytes(1000))
    np.testing.assert_array_equal(read_idx(path), kind.read())


# JSON, texts and run folders


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 10**6, "nested more than 100 deep"),
        (b"[" * 101 + b"]" * 101, "nested more than 100 deep"),
        (b"[" + b"{}," * (MOST_MARKS // 2) + b"0]", f"more than {MOST_MARKS} values"),
        (b'{"a": NaN}', "NaN is no finite number"),
        (b'{"a": -1e999}', "-1e999 is no finite number"),
        (b"9" * 5000, "4300 digits"),
        (b'{"a": 1, "b": 2, "a": 3}', "the name 'a' stands twice"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        (b'{"a": 1', "Expecting"),
    ],
)
def test_json_that_is_refused(content, message):
    with pytest.raises(DataError, match=f"x.json is damaged: .*{message}"):
        parse_json(content, "x.json")


def test_texts(tmp_path):
    path = tmp_path / "texts"
    path.write_bytes(b"\xef\xbb\xbfone\ntwo\xef\xbb\xbf\n")
    assert lens.read_texts(path) == ["one", "two\ufeff"]
    os.truncate(path, LARGEST + 1)
    with pytest.raises(DataError, match=f"texts is larger than {LARGEST} bytes"):
        lens.read_texts(path)
    with pytest.raises(DataError, match="/dev/zero is no regular file"):
        lens.read_texts("/dev/zero")


@pytest.mark.parametrize(
    "line", [b'{"step": null}', b'{"step": 1, "note": "\xff"}', b'{"step": true}', b"[" * 10**5, b'{"step": 1e999}']
)  # fmt: skip
def test_lines_of_metrics_that_are_refused(tmp_path, line):
    kind = mutations.metrics(tmp_path)
    kind.path.write_bytes(kind.path.read_bytes() + line + b"\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl is damaged"):
        kind.read()


@pytest.mark.parametrize("content", [b"[" * 10**5, b"\xff", b"3", b"null", b'{"a": 1, "a": 1}'])
@pytest.mark.parametrize(
    ("name", "message"), [("run_config", "left alone.*--out"), ("summary", "has not finished")]
)
def test_run_folders_that_are_refused(tmp_path, name, message, content):
    kind = mutations.KINDS[name](tmp_path)
    kind.path.write_bytes(content)
    with pytest.raises(RunError, match=message) as caught:
        kind.read()
    assert str(kind.path.parent) in str(caught.value)


@pytest.mark.usefixtures("bounded")
def test_links_in_a_run_folder(tmp_path):
    """Nothing beside the folder is written."""
    mine = tmp_path / "mine"
    mine.write_text("half a line")
    folder = tmp_path / "run"
    open_run("probe", RunFlags(), out=folder).close()
    for name in (".lock", "metrics.jsonl"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(mine)
        with pytest.raises(RunError, match=f"{name} is a link, which no run makes"):
            open_run("probe", RunFlags(), out=folder).metrics()
        (folder / name).unlink()
    (folder / "summary.json.tmp").symlink_to(mine)
    with open_run("probe", RunFlags(), out=folder) as run:
        (folder / "table.md.tmp").symlink_to(mine)
        run.metrics().append(1, loss=0.5)
        run.finish({}, "| a |")
        assert run.finished
    assert mine.read_text() == "half a line"


@pytest.mark.usefixtures("bounded")
def test_devices_and_absurd_sizes_in_a_run_folder(tmp_path):
    """Nothing that has no end is read."""
    folder = tmp_path / "run"
    with open_run("probe", RunFlags(), out=folder) as run:
        run.metrics().append(1, loss=0.5)
        run.finish({}, "| a |")
        assert run.finished
        for sums in ('{"/dev/zero": "x"}', "[1]", "3", "{}"):
            (folder / ".sums").write_text(sums)
            assert not run.finished
    with (folder / "metrics.jsonl").open("r+b") as file:
        file.truncate(3 * 10**9)
    with pytest.raises(DataError, match=r"metrics\.jsonl is larger than"):
        open_run("probe", RunFlags(), out=folder).metrics()


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "a\0b"])
def test_paths_that_cannot_be(path):
    for read in (lens.read_texts, lens.read_model, read_idx, read_newest, open_probe):
        with pytest.raises(ImrError, match="is no path: "):
            read(path)


def open_probe(path):
    return open_run("probe", RunFlags(), out=path)


@pytest.mark.laws
def test_checkpoints_that_describe_no_net(tmp_path):
    path, read, *_ = mutations.nets(tmp_path)
    whole, metadata = json.loads(path.read_text()), tmp_path / "1" / "_CHECKPOINT_METADATA"

    def refuses(content, words, file=path):
        before = file.read_bytes()
        file.write_text(content if isinstance(content, str) else json.dumps(whole | content))
        with pytest.raises(RunError, match=words):
            read()
        file.write_bytes(before)

    refuses("3", "its configuration is no JSON object")
    refuses("{}", "does not say its architecture and runs")
    refuses("[" * 10**5, "cannot be read: .*nested more than 100 deep")
    refuses("[1]", "cannot be read", metadata)
    refuses("[" * 10**5, "cannot be read: .*nested more than 100 deep", metadata)
    refuses({"runs": [1, 2]}, "does not hold what it says")
    refuses({"runs": [{"seed": 10**30}, {"seed": 1}]}, "does not hold what it says")
    net = whole["architecture"]
    refuses({"architecture": net | {"arguments": 3}}, "description must name")
    many = net | {"arguments": net["arguments"] | {"layers": 10**9}}
    refuses({"architecture": many}, "1000000000 layers have more than its 17 arrays")
    wide = net | {"arguments": net["arguments"] | {"features": 10**12}}
    refuses({"architecture": wide}, "does not hold what it says")


# Model folders


def change(folder, **options):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


@needs_lens
@pytest.mark.usefixtures("bounded")
def test_configurations_that_are_refused(tmp_path):
    folder = mutations.model_folder(tmp_path)
    for words, options in {
        "layer_norm_epsilon of at most 1; found 1000": {"layer_norm_epsilon": 10**400},
        "Infinity is no finite number": {"layer_norm_epsilon": float("inf")},
        "n_embd of at most 2147483647; found 2147483648": {"n_embd": 2**31},
        "vocab_size must|must have shape": {"vocab_size": 10**9},
        "3 heads, which do not divide width 4": {"n_head": 3},
        "activation .*[.]{3}.*; known are": {"activation_function": "x" * 10**6},
        "tensor h.1.attn.c_attn.weight is missing": {"n_layer": 10**9},
    }.items():
        change(folder, **(mutations.GPT2 | options))
        with pytest.raises(DataError, match=words) as caught:
            lens.read_model(folder)
        assert len(str(caught.value)) < 1000
    with pytest.raises(ImrError, match="epsilon must be a number; found 1000"):
        lens.model_from_arrays({}, epsilon=10**400)
    with pytest.raises(ImrError, match=r"epsilon must lie in \[0, 1\]; found inf"):
        lens.model_from_arrays({}, epsilon=float("inf"))


def reheaded(folder, edit):
    """The safetensors file with another header."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(mutations.with_header(edit(mutations.header_of(data)), data))


@needs_lens
@pytest.mark.usefixtures("bounded")
def test_weights_that_are_refused(tmp_path):
    def refuses(words, edit):
        folder = mutations.model_folder(tmp_path)
        edit(folder)
        with pytest.raises(DataError, match=words):
            lens.read_model(folder)

    refuses("the name 'wpe.weight' stands twice",
            lambda f: reheaded(f, lambda h: h.replace(b"wte.weight", b"wpe.weight")))  # fmt: skip
    refuses("its header has [0-9]+ bytes; at most",
            lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 8))  # fmt: skip
    refuses("nested more than", lambda f: reheaded(f, lambda h: b"[" * 10**6))
    refuses("the weights have 2 layers, but config.json says 1",
            lambda f: reheaded(f, lambda h: h.replace(b"h.0.ln_1.bias", b"h.1.ln_1.bias")))  # fmt: skip


@needs_lens
@pytest.mark.parametrize("name", ["../b/0.safetensors", "/etc/passwd", "a\0b", "..", "x" * 300])  # fmt: skip
def test_shards_elsewhere_are_refused(tmp_path, name):
    folder = tmp_path / "a"
    for each in (folder, tmp_path / "b"):
        each.mkdir()
        mutations.model_folder(each, shards=2)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"0.safetensors"', json.dumps(name)))
    with pytest.raises(DataError, match=r"is no file in .* itself|is missing|File name too long"):
        lens.read_model(folder)


@needs_lens
def test_links_out_of_a_folder_are_refused_but_for_those_of_the_cache(tmp_path):
    (tmp_path / "blobs").mkdir()
    first = jax.tree.leaves(lens.read_model(mutations.model_folder(tmp_path / "blobs")))
    for place, allowed in (("snapshots/1", True), ("models/1", False)):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (folder / name).symlink_to(tmp_path / "blobs" / name)
        if allowed:
            assert all(map(np.array_equal, jax.tree.leaves(lens.read_model(folder)), first))
        else:
            with pytest.raises(DataError, match=r"config.json is no file in .*Copy it there"):
                lens.read_model(folder)


@needs_lens
def test_an_index_and_its_shards_must_agree(tmp_path):
    folder = mutations.model_folder(tmp_path, shards=2)
    index = folder / "model.safetensors.index.json"
    text = index.read_text()
    index.write_text(text.replace('"ln_f.bias": "1', '"ln_f.bias": "0'))
    with pytest.raises(
        DataError, match=r"0.safetensors lacks tensor ln_f.bias, which .* places there"
    ):
        lens.read_model(folder)
    from safetensors.numpy import load_file, save_file

    index.write_text(text)
    tensors = load_file(folder / "1.safetensors")
    save_file(tensors | {"wte.weight": np.ones((5, 4), np.float32)}, folder / "1.safetensors")
    with pytest.raises(
        DataError, match=r"1.safetensors has tensor wte.weight, which .* does not place"
    ):
        lens.read_model(folder)


def split(expression):
    return {
        "type": "Split",
        "pattern": {"Regex": expression},
        "behavior": "Isolated",
        "invert": False,
    }


def replace(content, **pattern):
    return {"type": "Replace", "pattern": pattern, "content": content}


TOKENIZERS = {
    "backtracks": ({"pre_tokenizer": split("(a+)+$")}, "fails on texts.0.: .*retry-limit"),
    "no expression": ({"pre_tokenizer": split("(")}, "tokenizer.json is damaged: .*parenthesis"),
    "aborts": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}},
               "precompiled_charsmap is cut short"),
    "panics": ({"post_processor": {"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "[X]", "type_id": 0}}], "pair": [], "special_tokens": {}}}, "tokenizer"),
    "doubles": ({"normalizer": {"type": "Sequence", "normalizers": 40 * [replace("aa", String="a")]}},
                r"a text 1\.1e\+12 times longer"),
    "fills": ({"normalizer": replace("x" * 1000, Regex="")}, "a text 1e[+]03 times longer"),
    "large": ({"added_tokens": [[]] * MOST_MARKS}, "more than [0-9]+ values"),
    "tokens": ({"model": mutations.TOKENIZER["model"] | {"vocab": {"[UNK]": 2**31}}, "added_tokens": []},
               "gives token 2147483648; the largest is 2147483647"),
}  # fmt: skip


@needs_lens
@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize(("options", "message"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_tokenizers_that_are_refused(tmp_path, options, message):
    (tmp_path / "tokenizer.json").write_text(json.dumps(mutations.TOKENIZER | options))
    with pytest.raises(DataError, match=message):
        lens.tokenize(lens.read_tokenizer(tmp_path), ["a" * 60 + "!"], 99)
