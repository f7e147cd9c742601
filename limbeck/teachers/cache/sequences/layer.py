"""The teacher's output layer on disk, once for all hidden states."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from limbeck.errors import CacheError
from limbeck.signals import Head


def head_file(head: Head) -> tuple[bytes, dict[str, Any]]:
    """Returns the content of a file with the output layer's tensors, and what the cache's header says of it."""
    rows = head.classes
    weight = head.weight[:rows].detach().float()
    if head.adapter is not None:
        low, high, strength = head.adapter
        weight = weight + strength * (high[:rows].detach().float() @ low.detach().float())
    tensors = {"weight": weight.contiguous().cpu()}
    if head.bias is not None:
        tensors["bias"] = head.bias[:rows].detach().float().contiguous().cpu()
    content = save(tensors)
    return content, {"scale": head.scale, "softcap": head.softcap, "checksum": _digest(content)}


def read_head(path: Path, described: dict[str, Any]) -> Head:
    """Returns the output layer.

    Raises:
        CacheError: the file is missing or corrupt.
    """
    try:
        content = path.read_bytes()
        tensors = load_file(path)
        whole = _digest(content) == described["checksum"]
    except (OSError, SafetensorError, KeyError):
        whole = False
    if not whole:
        raise CacheError(f"the cache file '{path}' is missing or corrupt; run the command that wrote the cache again")
    softcap = described["softcap"]
    return Head(tensors["weight"], tensors.get("bias"), float(described["scale"]), softcap)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
