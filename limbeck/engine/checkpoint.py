"""Checkpoints that survive a kill at any moment and hold everything a bit-exact continuation needs.

A checkpoint is a folder that appears by one rename: ``state.pt`` (tensors and plain data, read with ``weights_only``),
what is sharded over processes in ``shards/*.safetensors``, and ``manifest.json`` with the SHA-256 of each. Reading
executes nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from limbeck.errors import CheckpointError, RunFolderError
from limbeck.storage import is_full, write_durably

_FORMAT = 1


def disk_error(error: OSError, path: Path) -> RunFolderError:
    """Returns the error to raise when writing ``path`` failed, naming the cause."""
    if is_full(error):
        return RunFolderError(
            f"the disk is full: '{path}' could not be written. Free some space and run the same command to continue"
        )
    return RunFolderError(f"'{path}' could not be written: {error.strerror or error}")


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    try:
        write_durably(path, [data])
    except OSError as error:
        raise disk_error(error, path) from None


def random_state() -> dict[str, Any]:
    """State of every global generator that a method or a model may draw from."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = cast(tuple[str, np.ndarray, int, int, float], np.random.get_state())
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(words), gauss],
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Sets every global generator to ``state``."""
    torch.set_rng_state(state["torch"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def draft(folder: Path, name: str) -> Path | None:
    """Returns a new hidden folder in which checkpoint ``name`` is to be made, or None when it is there already.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    if (folder / name).exists():
        return None
    temporary = folder / f".{name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    except OSError as error:
        raise disk_error(error, folder / name) from None
    return temporary


def commit(temporary: Path, name: str, state: dict[str, Any]) -> None:
    """Adds ``state`` to a draft, makes it checkpoint ``name`` by one rename, and removes the older ones.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written; the previous checkpoint is untouched.
    """
    folder = temporary.parent
    try:
        torch.save(state, temporary / "state.pt")
        others = [p for p in sorted(temporary.rglob("*")) if p.is_file() and p.name != "state.pt"]
        manifest = {
            "format": _FORMAT,
            "sha256": _digest(temporary / "state.pt"),
            "files": {str(p.relative_to(temporary)): _digest(p) for p in others},
        }
        (temporary / "manifest.json").write_text(json.dumps(manifest))
        for file in [p for p in temporary.rglob("*") if p.is_file()]:
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        os.replace(temporary, folder / name)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        # torch reports a failed write as a RuntimeError of its zip writer.
        cause = error if isinstance(error, OSError) else OSError(errno.ENOSPC, str(error))
        raise disk_error(cause, folder / name) from None
    for old in _names(folder):
        if old != name:
            shutil.rmtree(folder / old, ignore_errors=True)


def last(folder: Path) -> Path | None:
    """Returns the newest checkpoint in ``folder``, or None when there is none."""
    names = _names(folder)
    return folder / names[-1] if names else None


def read(checkpoint: Path) -> dict[str, Any]:
    """Reads one checkpoint folder.

    Raises:
        CheckpointError: it is corrupt, truncated, of another version or not one of ours.
    """
    way_out = f"Remove '{checkpoint}' to start this stage again"
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the checkpoint '{checkpoint}' cannot be read ({error}). {way_out}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise CheckpointError(f"the checkpoint '{checkpoint}' is of another version of limbeck. {way_out}")
    _check_files(checkpoint, {"state.pt": manifest.get("sha256"), **(manifest.get("files") or {})}, way_out)
    try:
        state = torch.load(checkpoint / "state.pt", weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"the checkpoint '{checkpoint}' was refused: {reason}. {way_out}") from None
    return state


def _check_files(checkpoint: Path, digests: dict[str, Any], way_out: str) -> None:
    for name, digest in digests.items():
        file = checkpoint / name
        if not file.is_file():
            raise CheckpointError(f"the checkpoint '{checkpoint}' cannot be read ('{name}' is missing). {way_out}")
        if _digest(file) != digest:
            raise CheckpointError(f"the checkpoint '{checkpoint}' is corrupt: its checksum does not match. {way_out}")


def _digest(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
