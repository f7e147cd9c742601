"""Content hashes of a model: to notice that a frozen one changed, and to know a teacher again by what it computes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def tensor_digests(model: nn.Module) -> dict[str, bytes]:
    """Returns a 128-bit hash of every parameter and buffer, by name.

    The hash covers type, shape and bytes in logical order, so it does not depend on the memory format or the device.
    """
    return {name: _digest(tensor) for name, tensor in _tensors(model)}


def fingerprint(model: nn.Module) -> str:
    """Returns a 128-bit hash, in hexadecimal, of a model's architecture, parameters and buffers.

    Two models with the same fingerprint compute the same function in eval mode. Training flags, hooks and devices do
    not matter. It takes about a second for 1 GB of weights.

    Example:
        >>> a, b = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> _ = b.load_state_dict(a.state_dict())
        >>> fingerprint(a) == fingerprint(b)
        True
    """
    whole = hashlib.blake2b(_ADDRESS.sub("", repr(model)).encode(), digest_size=16)
    for name, digest in tensor_digests(model).items():
        whole.update(name.encode() + b"\0" + digest)
    return whole.hexdigest()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _digest(tensor: Tensor) -> bytes:
    head = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return hashlib.blake2b(content, digest_size=16, key=hashlib.blake2b(head, digest_size=16).digest()).digest()
