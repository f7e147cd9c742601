"""The files of CIFAR-10 and CIFAR-100: the binary version, and the Python version without unpickling anything.

The binary version is a sequence of records: label bytes, then 3,072 bytes of an image in channel, row, column order.
The Python version is a pickle, that is, a program; here it is interpreted with stand-ins for the three names of NumPy
that it may use, so no code of the file's choosing can run.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import DataError

_PIXELS = 3 * 32 * 32
_LARGEST = 1 << 28


def read_member(folder: Path, archive: str, member: str) -> bytes | None:
    """Returns the bytes of ``member``, from a folder or from the archive in it; None where there is none.

    Args:
        folder: where to look: the folder above the unpacked one, the unpacked one itself, or the one that holds the
            archive.
        archive: file name of the archive.
        member: path of the file in the archive, ``folder/file``.

    Raises:
        DataError: the archive is damaged.
    """
    for place in (folder / member, folder / Path(member).name):
        if place.is_file():
            return _small_enough(place).read_bytes()
    packed = folder if folder.name == archive and folder.is_file() else folder / archive
    if not packed.is_file():
        return None
    try:
        with tarfile.open(packed) as opened:
            file = opened.extractfile(member)
            return None if file is None else file.read(_LARGEST)
    except KeyError:
        return None
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {packed}: {error}; delete it and fetch it again") from error


def _small_enough(path: Path) -> Path:
    if path.stat().st_size > _LARGEST:
        raise DataError(f"{path} is {path.stat().st_size:,} bytes, far more than any file of CIFAR")
    return path


def parse_binary(content: bytes, label_bytes: int, called: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images ``[N, 3, 32, 32]`` and labels ``[N]`` (the last label byte of each record) of a binary file.

    Raises:
        DataError: the length is no whole number of records.
    """
    size = label_bytes + _PIXELS
    if not content or len(content) % size:
        raise DataError(
            f"{called} is truncated or damaged: {len(content)} bytes are no whole number of {size}-byte records"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), records[:, label_bytes - 1]


def parse_python(content: bytes, label_key: bytes, called: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images ``[N, 3, 32, 32]`` and labels ``[N]`` of a file of the Python version.

    Raises:
        DataError: the file is damaged, or asks for anything that such a file has no need of.
    """
    try:
        entries = _InertUnpickler(io.BytesIO(content), encoding="bytes").load()
        entries = {k.encode() if isinstance(k, str) else k: v for k, v in entries.items()}
        images, labels = entries[b"data"].bytes_of_shape(), np.array(entries[label_key])
    except DataError:
        raise
    except Exception as error:  # A hostile file can make the interpreter fail in any way.
        raise DataError(f"{called} is no file of CIFAR's Python version: {type(error).__name__}: {error}") from error
    if (
        images.ndim != 2
        or images.shape[1] != _PIXELS
        or labels.shape != images.shape[:1]
        or labels.dtype.kind not in "iu"
    ):
        raise DataError(
            f"{called} holds arrays of shapes {images.shape} and {labels.shape}, not images and labels of CIFAR"
        )
    return images.reshape(-1, 3, 32, 32), labels.astype(np.int64)


class _InertArray:
    """Stands in for a NumPy array while a pickle is read: keeps the state that the file gives, and does nothing."""

    def __init__(self) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def bytes_of_shape(self) -> np.ndarray:
        _, shape, kind, column_major, content = self.state
        if not isinstance(kind, _InertType) or kind.name not in ("u1", b"u1") or column_major:
            raise ValueError("the images are no array of bytes in row order")
        return np.frombuffer(content, np.uint8).reshape([int(n) for n in shape])


class _InertType:
    """Stands in for a NumPy type."""

    def __init__(self, name: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        pass


def _make_array(*_: Any) -> _InertArray:
    return _InertArray()


def _make_type(name: Any = None, *_: Any) -> _InertType:
    return _InertType(name)


def _text_to_bytes(text: Any, *_: Any) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _make_type,
    ("numpy.core.multiarray", "_reconstruct"): _make_array,
    ("numpy._core.multiarray", "_reconstruct"): _make_array,
    ("_codecs", "encode"): _text_to_bytes,
}


class _InertUnpickler(pickle.Unpickler):
    """Interprets a pickle that may name nothing but what a NumPy array is written with."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in for a name, or refuses it."""
        if (module, name) not in _STAND_INS:
            raise DataError(
                f"a file of CIFAR's Python version asks for '{module}.{name}', which it has no need of: refused, "
                "nothing was run"
            )
        return _STAND_INS[(module, name)]
