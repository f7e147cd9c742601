"""Files that survive a kill at any moment, and folders that one process owns."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

TEMPORARY = ".tmp"
"""Ending of files that are being written; one that is left over belongs to a writer that was killed."""


def write_durably(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part, whenever the process is killed.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old content is untouched.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder, not only the files' content, reach the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_full(error: OSError) -> bool:
    """Whether a write failed because no space is left, on the disk or in the quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def folder_lock(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Owns ``folder`` while the context lasts. The lock goes with the process, also when it is killed.

    Raises:
        BlockingIOError: another process owns the folder.
        OSError: the folder cannot be written.
    """
    path = folder / name
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise
        # The owner before may have removed the file between our open and our lock: then we hold a lock on nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == path.stat().st_ino:
                break
        os.close(handle)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
