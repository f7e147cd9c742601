"""The folder of a cache while it is written: owned by one process, every file whole or absent."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import BaseModel

from limbeck.errors import CacheError, TeacherChangedError
from limbeck.storage import TEMPORARY, folder_lock, is_full, sync_folder, write_durably
from limbeck.teachers.cache.header import HEADER, PLAN, FileEntry, sealed
from limbeck.teachers.cache.table import table_file
from limbeck.teachers.provider import Provider

_LOCK = ".lock"
H = TypeVar("H", bound=BaseModel)


class CacheFolder:
    """A cache's files as they are written.

    Args:
        path: the folder, which this process owns (see :func:`owned`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: list[Path] = []
        for pattern in (f".*{TEMPORARY}", f"*/.*{TEMPORARY}"):
            for leftover in path.glob(pattern):
                leftover.unlink()

    def headers(self, read: Callable[[Path, str], H]) -> list[H]:
        """Returns the headers of a finished and of a begun cache, where there are any.

        Raises:
            CacheError: the folder holds something else.
        """
        found = [read(self.path, name) for name in (HEADER, PLAN) if (self.path / name).exists()]
        strangers = sorted(p.name for p in self.path.iterdir() if p.name != _LOCK)
        if strangers and not found:
            raise CacheError(f"'{self.path}' holds other files ({strangers[0]}) and no cache; choose an empty folder")
        return found

    def store(self, path: Path, content: bytes) -> None:
        """Writes a file, unless it is there with this content already.

        Raises:
            CacheError: the disk is full or the folder cannot be written.
        """
        try:
            if path.exists() and path.stat().st_size == len(content) and path.read_bytes() == content:
                return
            path.parent.mkdir(exist_ok=True)
            write_durably(path, [content])
        except OSError as error:
            raise write_error(error, path) from None

    def store_rows(self, path: Path, columns: Mapping[str, np.ndarray], rows_per_block: int) -> FileEntry:
        """Writes a file of rows that come from the teacher."""
        content, entry = table_file(columns, rows_per_block)
        self.store(path, content)
        self._written.append(path)
        return entry

    @contextmanager
    def watching(self, teacher: Provider) -> Iterator[None]:
        """Starts the teacher and finishes it; what was written is removed where the teacher changed meanwhile."""
        teacher.start()
        try:
            yield
        finally:
            try:
                teacher.finish()
            except TeacherChangedError:
                for path in self._written:
                    path.unlink(missing_ok=True)
                raise

    def conclude(self, header: BaseModel) -> None:
        """Writes the header, which makes the cache a finished one."""
        self.store(self.path / HEADER, sealed(header))
        (self.path / PLAN).unlink()
        sync_folder(self.path)


@contextmanager
def owned(folder: str | Path) -> Iterator[CacheFolder]:
    """Owns the folder of a cache, made when absent, while the context lasts.

    Raises:
        CacheError: another process writes there, or nobody can.
    """
    path = Path(folder)
    with ExitStack() as stack:
        try:
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(folder_lock(path, _LOCK))
        except BlockingIOError:
            raise CacheError(
                f"another process is writing the cache '{path}'; wait for it, or use another folder"
            ) from None
        except OSError as error:
            raise write_error(error, path) from None
        yield CacheFolder(path)


def refuse_another(folder: Path, before: BaseModel, plan: BaseModel, compared: Mapping[str, str], way_out: str) -> None:
    """Refuses a plan that is not what a folder already holds.

    Args:
        folder: the cache.
        before: the header that is there.
        plan: the header that is asked for.
        compared: fields that must be the same, and what they are called.
        way_out: what to do instead.

    Raises:
        CacheError: they differ; the message says in what, with both values.
    """
    for field, name in compared.items():
        held, wanted = getattr(before, field), getattr(plan, field)
        if held != wanted:
            raise CacheError(
                f"the cache '{folder}' has another {name}: it holds {held}, now asked for is {wanted}; {way_out}"
            )


def write_error(error: OSError, path: Path) -> CacheError:
    """Returns the error that says why a file of a cache could not be written."""
    if is_full(error):
        free = shutil.disk_usage(path.parent if path.parent.exists() else ".").free
        return CacheError(
            f"the disk is full ({free / 1e6:.1f} MB free): '{path}' could not be written. What was finished is kept; "
            "free some space and run the same command to continue"
        )
    return CacheError(f"the cache file '{path}' could not be written: {error.strerror or error}")
