"""Labelled images: digits, MNIST and Fashion-MNIST, from a folder or by download, and noise."""

import contextlib
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imr._checks import (
    as_numbers,
    check_at_least,
    check_choice,
    check_floating,
    check_key,
    check_scalar,
)
from imr._files import expanded
from imr._typing import Array, PRNGKeyArray
from imr.errors import DataError, ImrError
from imr.lab.console import optional_package
from imr.lab.idx import read_idx as read_idx

DATASETS = ("digits", "fashion_mnist", "mnist")

_STEMS = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)  # fmt: skip


class Source(NamedTuple):
    """URLs of folders to download a data set from, tried in order, and the md5 of its four files."""

    mirrors: tuple[str, ...]
    md5: tuple[str, str, str, str]
    class_names: tuple[str, ...]


# fmt: off
SOURCES = {
    "fashion_mnist": Source(
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
         "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"),
        ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe",
         "bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310"),
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
         "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "mnist": Source(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/",
         "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432",
         "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c"),
        tuple("0123456789"),
    ),
}
# fmt: on


class ImageData(NamedTuple):
    """Grey images, float32 in [0, 1], rows of h w pixels, with labels: int32 of `class_names`."""

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    image_shape: tuple[int, int]
    class_names: tuple[str, ...]


def load_digits() -> ImageData:
    """scikit-learn's bundled 8 x 8 digits, pixels / 16, with a fixed stratified split.

    Raises: MissingPackageError if scikit-learn is not installed.

    >>> load_digits().train_images.shape
    (1437, 64)
    """
    optional_package("sklearn", "scikit-learn")
    from sklearn import datasets, model_selection

    pixels, labels = datasets.load_digits(return_X_y=True)
    images, labels = (pixels / 16).astype(np.float32), labels.astype(np.int32)
    rows, split = np.arange(len(labels)), model_selection.train_test_split
    fit, test = split(rows, test_size=360, random_state=0, stratify=labels)
    parts = images[fit], labels[fit], images[test], labels[test]
    return ImageData("digits", *parts, (8, 8), tuple("0123456789"))


def load_images(
    name: str, data_dir: str | Path | None = None, *, cache_dir: str | Path | None = None,
    train_limit: int | None = None, test_limit: int | None = None,
) -> ImageData:  # fmt: skip
    """A data set by name, from a local folder or by download.

    Args:
      name: one of `DATASETS`.
      data_dir: folder with the four official files, `train-images-idx3-ubyte.gz` and so on, also
        without .gz or with `.idx` for `-idx`; None downloads from the mirrors in `SOURCES`.
      cache_dir: keeps downloads, in a folder `name`; the user's cache folder by default.
      train_limit, test_limit: only the first so many images.
    Raises:
      ImrError: if the name is unknown, a limit is not from 1 to the number of images, or digits are
        given a `data_dir`.
      DataError: if a file is missing, damaged, or at odds with its partner, or a download fails.
      MissingPackageError: if scikit-learn or pooch is needed and not installed.
    """
    check_choice("name", name, DATASETS)
    limits = {"train": train_limit, "test": test_limit}
    limits = {part: limit for part, limit in limits.items() if limit is not None}
    for part, limit in limits.items():
        _check_integer(f"{part}_limit", limit, 1)
    if name != "digits":
        data = _read(name, _fetch(name, cache_dir) if data_dir is None else _find(name, data_dir))
    elif data_dir is None:
        data = load_digits()
    else:
        raise ImrError(
            "data_dir must be None for digits, which are bundled with scikit-learn and take no "
            f"folder; found {str(data_dir)!r}. Leave it out."
        )
    for part, limit in limits.items():
        there = len(getattr(data, f"{part}_labels"))
        if limit > there:
            raise ImrError(f"{part}_limit must be at most {there}, all there are; found {limit}.")
        # Copies, for a view would keep the whole set in memory.
        fields = (f"{part}_images", f"{part}_labels")
        data = data._replace(**{field: getattr(data, field)[:limit].copy() for field in fields})
    return data


def _check_integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ImrError(f"{name} must be an integer; found {value!r}.")
    check_at_least(name, value, least)


def _read(name: str, paths: list[Path]) -> ImageData:
    """The data set in four files, in the order of `_STEMS`, checked against each other."""
    class_names = SOURCES[name].class_names
    arrays = [read_idx(path) for path in paths]
    for path, array, rank in zip(paths, arrays, (3, 1, 3, 1), strict=True):
        if array.ndim != rank:
            kinds = {1: "labels (magic 2049)", 3: "images (magic 2051)"}
            raise DataError(f"{path} holds {kinds[array.ndim]}; expected {kinds[rank]}.")
    for at, to, images, labels in zip(
        paths[::2], paths[1::2], arrays[::2], arrays[1::2], strict=True
    ):
        if len(images) != len(labels):
            raise DataError(
                f"{at} has {len(images)} images, but {to} has {len(labels)} labels: they must be "
                "equal. Take both from the same set."
            )
        if (outside := np.flatnonzero(labels >= len(class_names))).size:
            raise DataError(
                f"{to} has label {labels[outside[0]]} at index {outside[0]}; the classes are 0 to "
                f"{len(class_names) - 1}. Is it the label file of {name}?"
            )
    shape, other = arrays[0].shape[1:], arrays[2].shape[1:]
    if shape != other:
        raise DataError(
            f"{paths[0]} has images of {shape} pixels, but {paths[2]} of {other}: they must be "
            "equal. Take both from the same set."
        )
    images = [np.divide(a.reshape(len(a), -1), 255, dtype=np.float32) for a in arrays[::2]]
    labels = [a.astype(np.int32) for a in arrays[1::2]]
    return ImageData(name, images[0], labels[0], images[1], labels[1], shape, class_names)


def _find(name: str, data_dir: str | Path) -> list[Path]:
    """The four files in a local folder, in the order of `_STEMS`."""
    folder = expanded(data_dir)
    expected = f"expected the files of {name}, with or without .gz: {', '.join(_STEMS)}"
    try:
        there = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    except OSError as error:
        raise DataError(f"data_dir {folder}: {error.strerror or error}; {expected}.") from error
    paths = []
    for stem in _STEMS:
        dotted = stem.replace("-idx", ".idx")
        spellings = (f"{stem}.gz", stem, f"{dotted}.gz", dotted)
        file = next((spelling for spelling in spellings if spelling in there), None)
        if file is None:
            listing = ", ".join(there[:20]) + (", ..." if len(there) > 20 else "")
            raise DataError(
                f"data_dir {folder} lacks {stem}; {expected}. Files there: {listing or 'none'}."
            )
        paths.append(folder / file)
    return paths


def _fetch(name: str, cache_dir: str | Path | None) -> list[Path]:
    """The four files in the cache, downloaded if they are missing or damaged."""
    pooch, source = optional_package("pooch"), SOURCES[name]
    root = pooch.os_cache("imr") if cache_dir is None else expanded(cache_dir)
    # One folder a data set: the files of MNIST and of Fashion-MNIST bear the same names.
    folder = Path(root) / name
    _remove_partial(folder)
    paths = []
    for stem, md5 in zip(_STEMS, source.md5, strict=True):
        file, failures = f"{stem}.gz", []
        for mirror in source.mirrors:
            try:
                paths.append(Path(pooch.retrieve(mirror + file, f"md5:{md5}", file, folder)))
                break
            # The errors of requests are OSErrors; a wrong checksum is a ValueError of pooch, which
            # writes to a temporary file and removes it on either, but leaves a refused response open.
            except (OSError, ValueError) as error:
                response = getattr(error, "response", None)
                if response is not None:
                    response.close()
                failures.append((mirror + file, error))
        else:
            tried = "\n".join(f"  {url}: {type(e).__name__}: {e}" for url, e in failures)
            raise DataError(
                f"{file} of {name} (expected md5 {md5}) could not be downloaded to {folder}; the "
                f"partial file was removed. Tried:\n{tried}\nTry again with a network, or put the "
                "four files into a folder and pass it as data_dir (--data-dir)."
            ) from (failures[-1][1] if failures else None)
    return paths


def _remove_partial(folder: Path) -> None:
    """Removes what killed downloads have left: files of pooch's that nobody has written to for an hour."""
    for path in folder.glob("tmp????????"):
        with contextlib.suppress(OSError):  # another process may do the same
            if time.time() - path.stat().st_mtime > 3600:
                path.unlink()


def add_noise(key: PRNGKeyArray, images: Array | np.ndarray, std: Array | float) -> Array:
    """images + std * N(0, 1), independent for every pixel and not clipped; images of any shape.

    Raises: ImrError if images are not floating, or a concrete `std` is negative or NaN.

    >>> add_noise(jax.random.key(0), np.zeros((2, 3), np.float32), 0.5).shape
    (2, 3)

    Reference: arXiv 2509.04653.
    """
    check_key(key)
    images = as_numbers("images", images)
    check_floating("images", images)
    check_scalar("std", std, 0)
    noise = jax.random.normal(key, images.shape, images.dtype)
    return images + jnp.asarray(std, images.dtype) * noise


def held_back_split(labels: Any, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices to fit on and indices held back, each class in the same share.

    Args:
      labels: (n,) integers.
      share: part to hold back, in (0, 1): round(share * n) of all, and of each class its share
        rounded down or up.
      seed: integer >= 0; the same seed gives the same split.
    Returns: Indices to fit on and indices held back, each in increasing order; together 0..n-1.
    Raises: ImrError if share is not in (0, 1) or leaves one part empty, labels are no (n,) integers,
      or the seed is none.

    >>> fit, held_back = held_back_split([0, 0, 0, 0, 1, 1], 0.5, seed=0)
    >>> len(fit), len(held_back)
    (3, 3)
    """
    labels = np.asarray(as_numbers("labels", labels))
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ImrError(
            f"labels must be integers of shape (n,); found {labels.dtype} of shape {labels.shape}."
        )
    check_scalar("share", share)
    if not 0 < share < 1:
        raise ImrError(f"share must be between 0 and 1, both excluded; found {share}.")
    _check_integer("seed", seed, 0)
    total = round(share * len(labels))
    if not 0 < total < len(labels):
        raise ImrError(
            f"share {share} of {len(labels)} labels holds back {total}, which leaves one part "
            "empty. Use more labels or another share."
        )
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    quota = share * counts
    held = np.floor(quota).astype(int)
    held[np.argsort(held - quota, kind="stable")[: total - held.sum()]] += 1
    rng = np.random.default_rng(seed)
    members = (np.flatnonzero(inverse == c) for c in range(len(counts)))
    held_back = np.concatenate([rng.permutation(m)[:k] for m, k in zip(members, held, strict=True)])
    held_back.sort()
    return np.setdiff1d(np.arange(len(labels)), held_back), held_back
