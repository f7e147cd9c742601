"""Checkpoints that survive a kill at any moment and hold everything a bit-exact continuation needs.

A checkpoint is a folder that appears by one rename: ``state.pt`` (tensors and plain data, read with ``weights_only``) and
``manifest.json`` with its SHA-256. Reading executes nothing.
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
from typing import Any

import numpy as np
import torch

from limbeck.errors import CheckpointError, RunFolderError
from limbeck.storage import is_full, write_durably

_FORMAT = 1


def disk_error(error: OSError, path: Path) -> RunFolderError:
    """Returns the error to raise when writing ``path`` failed, naming the cause."""
    if is_full(error):
        return RunFolderError(f"the disk is full: '{path}' could not be written. Free some space and run the same command to continue")
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
    name, keys, position, has_gauss, cached = np.random.get_state()
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


def save(folder: Path, name: str, state: dict[str, Any]) -> None:
    """Writes ``state`` as checkpoint ``name``, unless it is there already, and removes the older ones.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written; the previous checkpoint is untouched.
    """
    if (folder / name).exists():
        return
    temporary = folder / f".{name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        torch.save(state, temporary / "state.pt")
        digest = hashlib.sha256((temporary / "state.pt").read_bytes()).hexdigest()
        (temporary / "manifest.json").write_text(json.dumps({"format": _FORMAT, "sha256": digest}))
        for file in temporary.iterdir():
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


def load_last(folder: Path) -> dict[str, Any] | None:
    """Returns the newest checkpoint in ``folder``, or None when there is none.

    Raises:
        CheckpointError: the checkpoint is corrupt, truncated or not one of ours; the message names the file and the way out.
    """
    names = _names(folder)
    return read(folder / names[-1]) if names else None


def read(checkpoint: Path) -> dict[str, Any]:
    """Reads one checkpoint folder.

    Raises:
        CheckpointError: it is corrupt, truncated, of another version or not one of ours.
    """
    way_out = f"Remove '{checkpoint}' to start this stage again"
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        data = (checkpoint / "state.pt").read_bytes()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the checkpoint '{checkpoint}' cannot be read ({error}). {way_out}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise CheckpointError(f"the checkpoint '{checkpoint}' is of another version of limbeck. {way_out}")
    if hashlib.sha256(data).hexdigest() != manifest.get("sha256"):
        raise CheckpointError(f"the checkpoint '{checkpoint}' is corrupt: its checksum does not match. {way_out}")
    try:
        state = torch.load(checkpoint / "state.pt", weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"the checkpoint '{checkpoint}' was refused: {reason}. {way_out}") from None
    return state  # type: ignore[no-any-return]


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
