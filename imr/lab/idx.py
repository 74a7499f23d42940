"""IDX files, the format of MNIST: an array of unsigned bytes, gzip or plain."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from imr.errors import DataError

_RANKS = {2049: 1, 2051: 3}
_AGAIN = "Copy or download it again."


def read_idx(path: str | Path) -> np.ndarray:
    """One IDX file of unsigned bytes, gzip or plain, told apart by content.

    The format: a big-endian magic number (2049 labels, 2051 images), one count for each axis, the
    bytes. No more memory is taken than the file has data, whatever its header promises.

    Returns: uint8 array, (n, rows, cols) for images or (n,) for labels.
    Raises: DataError if the file cannot be read, is empty or damaged, is not gzip under a `.gz`
      name, or its header does not agree with its bytes.

    Reference: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read()
        zipped = data.startswith(b"\x1f\x8b")
        if path.suffix == ".gz" and data and not zipped:
            raise DataError(
                f"{path} is not a gzip file: it starts with {data[:2].hex(' ')}, not 1f 8b. "
                "Download it again, or take .gz off its name if it is a plain IDX file."
            )
        data = gzip.decompress(data) if zipped else data
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        what = "truncated" if isinstance(error, EOFError) else "corrupt"
        raise DataError(f"{path} is a {what} gzip file ({error}). {_AGAIN}") from error
    except OSError as error:
        what = error.strerror or error
        raise DataError(f"{path} cannot be read: {what}. Give a file that can be.") from error
    if not data:
        raise DataError(f"{path} is empty (0 bytes). {_AGAIN}")
    start = data[:4]
    magic = int.from_bytes(start, "big")
    if len(start) < 4 or magic not in _RANKS:
        raise DataError(
            f"{path} has magic {magic} (bytes {start.hex(' ')}); expected four bytes with 2051 "
            "(images) or 2049 (labels). Is it an IDX file?"
        )
    header = 4 + 4 * _RANKS[magic]
    if len(data) < header:
        what = f"ends within its header: {len(data)} of {header} bytes"
        raise DataError(f"{path} {what}. {_AGAIN}")
    shape = tuple(np.frombuffer(data[4:header], ">u4").tolist())
    if 0 in shape:
        raise DataError(f"{path} holds nothing: its header gives shape {shape}. {_AGAIN}")
    promised, size = math.prod(shape), len(data) - header
    if size != promised:
        raise DataError(
            f"{path} holds too {'few' if size < promised else 'many'} bytes: its header promises "
            f"{promised} for shape {shape}, and {size} are there. {_AGAIN}"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
