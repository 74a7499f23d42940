"""Image data: the IDX reader and its faults, folders, downloads over loopback, noise, splits."""

import gzip
import hashlib
import http.server
import os
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from imr.errors import DataError, ImrError, MissingPackageError
from imr.lab import data
from tests.problems import images_folder

NAMES = [f"{stem}.gz" for stem in data._STEMS]


def idx_bytes(array):
    magic = {1: 2049, 3: 2051}[array.ndim]
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


def idx_files(num_train=12, num_test=6, shape=(4, 3)):
    rng = np.random.default_rng(0)
    arrays = [
        array
        for n in (num_train, num_test)
        for array in (
            rng.integers(0, 256, (n, *shape), dtype=np.uint8),
            (np.arange(n) % 10).astype(np.uint8),
        )
    ]
    return {
        name: gzip.compress(idx_bytes(array), mtime=0)
        for name, array in zip(NAMES, arrays, strict=True)
    }


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@settings(max_examples=40, deadline=None)
@given(
    array=hnp.arrays(
        np.uint8,
        st.one_of(
            hnp.array_shapes(min_dims=1, max_dims=1, max_side=40),
            hnp.array_shapes(min_dims=3, max_dims=3, max_side=9),
        ),
    ),
    zipped=st.booleans(),
)
def test_read_idx_round_trip(array, zipped):
    content = idx_bytes(array)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(gzip.compress(content) if zipped else content)
        found = data.read_idx(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, array)


IMAGES = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
ZIPPED = gzip.compress(IMAGES)
BAD_CRC = ZIPPED[:-8] + bytes(b ^ 255 for b in ZIPPED[-8:-4]) + ZIPPED[-4:]
HUGE = struct.pack(">4I", 2051, *[2**32 - 1] * 3) + b"\0" * 10
FAULTS = {
    "empty": ("a", b"", "empty"),
    "empty under .gz": ("a.gz", b"", "empty"),
    "gzip of nothing": ("a.gz", gzip.compress(b""), "empty"),
    "not gzip": ("a.gz", IMAGES, "is not a gzip file: it starts with 00 00, not 1f 8b"),
    "gzip cut short": ("a.gz", ZIPPED[:-12], "truncated gzip"),
    "gzip CRC": ("a.gz", BAD_CRC, "corrupt gzip file .*incorrect data check"),
    "gzip body": ("a.gz", ZIPPED[:12] + b"\xff" * 20 + ZIPPED[32:], "corrupt gzip"),
    "gzip with rubbish after it": ("a.gz", ZIPPED + b"rubbish", "corrupt gzip"),
    "magic": ("a", struct.pack(">2I", 2052, 1) + b"0", "magic 2052.*expected four bytes with 2051"),
    "magic cut short": ("a", b"\0\0\x08", "magic 8 .bytes 00 00 08"),
    "header cut short": ("a", IMAGES[:10], "within its header: 10 of 16 bytes"),
    "too few bytes": ("a", IMAGES[:-1], r"too few bytes.*promises 24 .*\(2, 4, 3\), and 23"),
    "too many bytes": ("a", IMAGES + b"12", "too many bytes.*promises 24 .*and 26 are there"),
    "too many in gzip": ("a.gz", gzip.compress(IMAGES + b"1"), "promises 24 .*and 25"),
    "huge header": ("a", HUGE, f"promises {(2**32 - 1) ** 3} .*and 10 are there"),
    "huge header in gzip": ("a.gz", gzip.compress(HUGE), "too few bytes"),
    "empty axis": ("a", struct.pack(">4I", 2051, 2**32 - 1, 2**32 - 1, 0), "holds nothing"),
}


@pytest.mark.parametrize(("name", "content", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_read_idx_faults(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        data.read_idx(path)
    assert str(path) in str(raised.value)


def test_read_idx_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"cannot be read: Is a directory"):
        data.read_idx(tmp_path)
    with pytest.raises(DataError, match="absent cannot be read: No such file"):
        data.read_idx(tmp_path / "absent")

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="locked cannot be read: Permission denied"):
        data.read_idx(str(tmp_path / "locked"))


def plain(files):
    return {name.removesuffix(".gz"): gzip.decompress(content) for name, content in files.items()}


def dotted(files):
    return {name.replace("-idx", ".idx"): content for name, content in plain(files).items()}


@pytest.mark.parametrize("spell", [dict, plain, dotted])
def test_load_images_from_folder(tmp_path, spell):
    files = idx_files()
    found = data.load_images("fashion_mnist", write(tmp_path / "set", spell(files)))
    assert found.name == "fashion_mnist"
    assert found.class_names[9] == "Ankle boot"
    assert found.image_shape == (4, 3)
    assert found.train_images.shape == (12, 12)
    assert found.test_images.shape == (6, 12)
    assert found.train_images.dtype == np.float32
    assert found.train_labels.dtype == found.test_labels.dtype == np.int32
    body = np.frombuffer(gzip.decompress(files[NAMES[2]])[16:], np.uint8).reshape(6, 12)
    np.testing.assert_allclose(found.test_images, body / 255, rtol=1e-6)
    np.testing.assert_array_equal(found.train_labels, np.arange(12) % 10)


@pytest.mark.usefixtures("unchecked")
def test_limits(tmp_path):
    folder = write(tmp_path, idx_files())
    whole = data.load_images("mnist", folder)
    few = data.load_images("mnist", folder, train_limit=5, test_limit=6)
    np.testing.assert_array_equal(few.train_images, whole.train_images[:5])
    np.testing.assert_array_equal(few.train_labels, whole.train_labels[:5])
    np.testing.assert_array_equal(few.test_images, whole.test_images)
    for bad, message in ((0, "at least 1; found 0"), (-3, "found -3"), (2.0, "an integer")):
        with pytest.raises(ImrError, match=f"train_limit must be .*{message}"):
            data.load_images("mnist", folder, train_limit=bad)
    with pytest.raises(ImrError, match=r"test_limit must be at most 6.*found 7"):
        data.load_images("mnist", folder, test_limit=7)


def with_array(number, array):
    return idx_files() | {NAMES[number]: gzip.compress(idx_bytes(array))}


DISAGREEMENTS = {
    "counts": (1, np.zeros(11, np.uint8), r"train-images.* 12 images.*train-labels.* 11 labels"),
    "label": (3, np.array([1, 2, 11, 3, 4, 5], np.uint8), "t10k-labels.*label 11 at index 2.*0 to"),
    "sizes": (2, np.zeros((6, 5, 3), np.uint8), r"\(4, 3\) pixels.*t10k-images.* of \(5, 3\)"),
    "kinds": (0, np.zeros(12, np.uint8), r"train-images.*labels \(magic 2049\); expected images"),
}


@pytest.mark.parametrize(
    ("number", "array", "message"), DISAGREEMENTS.values(), ids=DISAGREEMENTS.keys()
)
def test_files_at_odds(tmp_path, number, array, message):
    folder = write(tmp_path, with_array(number, array))
    with pytest.raises(DataError, match=message):
        data.load_images("mnist", folder)


def test_folder_faults(tmp_path):
    with pytest.raises(DataError, match=r"absent: No such file.*expected .*t10k-labels"):
        data.load_images("mnist", tmp_path / "absent")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="file: Not a directory"):
        data.load_images("mnist", tmp_path / "file")
    files = idx_files()
    del files[NAMES[2]]
    with pytest.raises(DataError, match=r"lacks t10k-images.*Files there: .*train-labels") as error:
        data.load_images("mnist", write(tmp_path / "set", files))
    assert str(tmp_path / "set") in str(error.value)


def test_names():
    with pytest.raises(ImrError, match="digits, fashion_mnist, mnist; found 'cifar'"):
        data.load_images("cifar")
    with pytest.raises(ImrError, match=r"data_dir must be None for digits.*bundled"):
        data.load_images("digits", "somewhere")


def test_digits():
    digits = data.load_images("digits")
    assert digits.train_images.shape == (1437, 64)
    assert digits.test_images.shape == (360, 64)
    assert digits.image_shape == (8, 8)
    assert digits.class_names == tuple("0123456789")
    assert digits.train_images.dtype == np.float32
    assert digits.train_labels.dtype == np.int32
    assert (digits.train_images.min(), digits.train_images.max()) == (0, 1)
    counts = np.bincount(digits.test_labels)
    assert set(counts) <= {35, 36, 37}
    again = data.load_images("digits", test_limit=10)
    np.testing.assert_array_equal(again.test_images, digits.test_images[:10])


@pytest.mark.parametrize(
    ("module", "name", "package"),
    [("sklearn", "digits", "scikit-learn"), ("pooch", "mnist", "pooch")],
)
def test_missing_package(monkeypatch, tmp_path, module, name, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=rf"{package}.*pip install 'imr\[experiments\]'"):
        data.load_images(name, cache_dir=tmp_path)


class Server:
    """Serves `files` under /a/ and /b/ on loopback, and notes what was asked for."""

    def __init__(self):
        self.files, self.asked = {}, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                content, promised = outer.files.get(self.path, (None, 0))
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(promised))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *args):
                del args

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def serve(self, mirror, files, missing_bytes=0):
        for name, content in files.items():
            self.files[f"/{mirror}/{name}"] = (content, len(content) + missing_bytes)

    def close(self):
        if self.thread.is_alive():
            self.http.shutdown()
            self.thread.join()
            self.http.server_close()


@pytest.fixture
def server(monkeypatch):
    """A server that is both mirrors of MNIST, whose checksums are those of `idx_files()`."""
    # A proxy of the machine must not stand between the test and loopback.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    source = data.Source(
        mirrors=(server.url + "a/", server.url + "b/"),
        md5=tuple(hashlib.md5(content).hexdigest() for content in idx_files().values()),
        class_names=tuple("0123456789"),
    )
    monkeypatch.setitem(data.SOURCES, "mnist", source)
    yield server
    server.close()


def listing(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_download_then_cache(server, tmp_path):
    server.serve("a", idx_files())
    first = data.load_images("mnist", cache_dir=tmp_path)
    assert server.asked == [f"/a/{name}" for name in NAMES]
    assert listing(tmp_path) == sorted(NAMES)
    server.close()
    second = data.load_images("mnist", cache_dir=tmp_path)
    assert len(server.asked) == 4
    np.testing.assert_array_equal(first.train_images, second.train_images)


def test_what_a_killed_download_has_left_is_removed(server, tmp_path):
    server.serve("a", idx_files())
    now = time.time()
    for name, age in (("tmpabcd_123", 4000), ("tmp9876_xyz", 10)):  # the other may be in progress
        write(tmp_path / "mnist", {name: b"half"})
        os.utime(tmp_path / "mnist" / name, (now - age, now - age))
    data.load_images("mnist", cache_dir=tmp_path)
    assert listing(tmp_path) == sorted([*NAMES, "tmp9876_xyz"])


def test_download_from_second_mirror(server, tmp_path):
    server.serve("b", idx_files())
    assert len(data.load_images("mnist", cache_dir=tmp_path).train_labels) == 12
    assert server.asked[:2] == [f"/a/{NAMES[0]}", f"/b/{NAMES[0]}"]


def test_broken_cached_file_is_downloaded_again(server, tmp_path):
    files = idx_files()
    server.serve("a", files)
    write(tmp_path / "mnist", files | {NAMES[1]: files[NAMES[1]][:-3]})
    data.load_images("mnist", cache_dir=tmp_path)
    assert server.asked == [f"/a/{NAMES[1]}"]
    assert (tmp_path / "mnist" / NAMES[1]).read_bytes() == files[NAMES[1]]


@pytest.mark.parametrize("fault", ["checksum", "404", "cut short", "offline"])
def test_failed_download(server, tmp_path, fault):
    files, wrong = idx_files(), b"not the file"
    if fault == "checksum":
        server.serve("a", dict.fromkeys(files, wrong))
    elif fault == "cut short":
        server.serve("a", files, missing_bytes=50)
    elif fault == "offline":
        server.close()
    found = {
        "checksum": hashlib.md5(wrong).hexdigest(),
        "404": "404 Client Error",
        "cut short": "50 more expected",
        "offline": "ConnectionError",
    }[fault]
    with pytest.raises(DataError) as error:
        data.load_images("mnist", cache_dir=tmp_path)
    message = str(error.value)
    expected = hashlib.md5(files[NAMES[0]]).hexdigest()
    urls = [server.url + f"{mirror}/{NAMES[0]}" for mirror in "ab"]
    for part in (*urls, expected, found, "partial file was removed", "--data-dir"):
        assert part in message
    assert listing(tmp_path) == []


def test_cache_that_cannot_be_written(server, tmp_path):
    server.serve("a", idx_files())
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"could not be downloaded to .*file"):
        data.load_images("mnist", cache_dir=tmp_path / "file")


def test_noise():
    images = np.full((200, 50), 0.5, np.float32)
    noisy = data.add_noise(jax.random.key(0), images, 0.3)
    assert noisy.shape == images.shape
    assert noisy.dtype == jnp.float32
    noise = np.asarray(noisy) - images
    assert abs(noise.mean()) < 0.3 * 4 / 100
    assert abs(noise.std() / 0.3 - 1) < 4 / np.sqrt(2 * noise.size)
    assert noisy.min() < 0 and noisy.max() > 1  # noqa: PT018
    assert not np.array_equal(noisy, data.add_noise(jax.random.key(1), images, 0.3))
    np.testing.assert_array_equal(data.add_noise(jax.random.key(0), images, 0.0), images)
    assert data.add_noise(jax.random.key(0), jnp.zeros((), jnp.bfloat16), 1).dtype == jnp.bfloat16
    compiled = jax.jit(data.add_noise)(jax.random.key(0), images, 0.3)
    np.testing.assert_allclose(compiled, noisy, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("images", "std", "message"),
    [
        (np.zeros(3, np.float32), -0.1, "std must be at least 0; found -0.1"),
        (np.zeros(3, np.float32), float("nan"), "std must be at least 0; found nan"),
        (np.zeros(3, np.float32), np.ones(3), "std must have shape"),
        (np.zeros(3, np.uint8), 0.1, "images must be a floating array"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_noise_faults(images, std, message):
    with pytest.raises(ImrError, match=message):
        data.add_noise(jax.random.key(0), images, std)


@given(
    labels=hnp.arrays(np.int32, st.integers(8, 60), elements=st.integers(-2, 4)),
    share=st.floats(0.2, 0.8),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=50, deadline=None)
def test_split_is_stratified(labels, share, seed):
    fit, held_back = data.held_back_split(labels, share, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([fit, held_back])), np.arange(len(labels)))
    assert (np.diff(fit) > 0).all()
    assert (np.diff(held_back) > 0).all()
    assert len(held_back) == round(share * len(labels))
    for label in np.unique(labels):
        wanted = share * (labels == label).sum()
        assert abs((labels[held_back] == label).sum() - wanted) < 1 + 1e-9
    again = data.held_back_split(jnp.asarray(labels), share, seed)
    np.testing.assert_array_equal(again[1], held_back)


def test_split_depends_on_the_seed():
    labels = np.repeat(np.arange(10), 30)
    splits = [data.held_back_split(labels, 0.2, seed)[1] for seed in (0, 1)]
    assert not np.array_equal(*splits)


@pytest.mark.parametrize(
    ("labels", "share", "seed", "message"),
    [
        ([0, 1], 0.0, 0, "share must be between 0 and 1.*found 0.0"),
        ([0, 1], 1.0, 0, "found 1.0"),
        ([0, 1], float("nan"), 0, "found nan"),
        ([0, 1], 0.1, 0, "of 2 labels holds back 0"),
        ([0, 1], 0.5, -1, "seed must be at least 0"),
        ([0, 1], 0.5, 1.5, "seed must be an integer"),
        ([[0, 1]], 0.5, 0, r"labels must be integers of shape \(n,\)"),
        ([0.0, 1.0], 0.5, 0, "found float64"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_split_faults(labels, share, seed, message):
    with pytest.raises(ImrError, match=message):
        data.held_back_split(labels, share, seed)


def test_real_mnist():
    folder = images_folder("mnist")
    for file, md5 in (
        (NAMES[0], "6bbc9ace898e44ae57da46a324031adb"),
        (NAMES[2], "2646ac647ad5339dbf082846283269ea"),
    ):
        with gzip.open(folder / file) as stream:
            assert hashlib.md5(stream.read()).hexdigest() == md5
    mnist = data.load_images("mnist", folder)
    assert mnist.train_images.shape == (60000, 784)
    assert mnist.test_images.shape == (10000, 784)
    assert mnist.image_shape == (28, 28)
    assert mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert (mnist.train_images.min(), mnist.train_images.max()) == (0, 1)


def test_real_fashion_mnist_head():
    folder = images_folder("fashion_mnist_head")
    fashion = data.load_images("fashion_mnist", folder, train_limit=8000)
    assert fashion.train_images.shape == (8000, 784)
    assert fashion.test_images.shape == (1500, 784)
    assert fashion.class_names[fashion.train_labels[0]] == "Ankle boot"
    with pytest.raises(ImrError, match="train_limit must be at most 8000"):
        data.load_images("fashion_mnist", folder, train_limit=8001)
