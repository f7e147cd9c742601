"""The largest log-probabilities of a row and the exact mass of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import CacheError, RecipeError
from limbeck.hyperparameters import Count
from limbeck.signals import Signals, TopK
from limbeck.teachers.cache.codecs.base import Column, codec
from limbeck.teachers.cache.codecs.bits import pack, packed_bytes, unpack, width_of

_LOWEST = float(np.finfo(np.float16).min)


@codec("topk", title="The k largest log-probabilities and the exact mass of the rest")
class TopKCodec:
    """Stores the ``k`` largest log-probabilities and the log-mass of all other classes in half precision.

    As TinyViT (Wu et al., 2022, https://arxiv.org/abs/2207.10666) does, with these differences: class numbers take as
    many bits as the number of classes needs (so none overflows) instead of 16; log-probabilities keep small values that
    probabilities in half precision lose; and the rest is summed from the logits, not left over from rounded numbers,
    so it is never negative. A row takes ``2 k + 2 + ceil(k bits / 8)`` bytes, without the 2 where ``k`` is the number
    of classes.

    A log-probability read back differs from the teacher's by its rounding to half precision (``2**-11`` of it) and by
    the normalisation that makes each row sum to one again in float32. Those below -65504 are stored as -65504.

    Args:
        k: number of classes kept, at most the number of classes.
    """

    name: ClassVar[str]

    def __init__(self, *, k: Count = 10) -> None:
        self.k = k

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"k": self.k}

    def columns(self, classes: int) -> dict[str, Column]:
        """Log-probabilities ``logprobs``, packed class numbers ``indices``, and ``tail`` where classes are left out."""
        if self.k > classes:
            raise RecipeError(f"codec 'topk': k = {self.k} is more than the {classes} classes; lower k")
        columns = {
            "logprobs": Column("float16", (self.k,)),
            "indices": Column("uint8", (packed_bytes(self.k, width_of(classes)),)),
        }
        if self.k < classes:
            columns["tail"] = Column("float16")
        return columns

    def encode(self, logits: Tensor) -> dict[str, np.ndarray]:
        """Returns the columns of ``[B, C]`` logits."""
        classes = logits.shape[-1]
        logprobs = logits.float().log_softmax(-1)
        kept, indices = logprobs.topk(self.k, dim=-1)
        columns = {"logprobs": _half(kept), "indices": pack(indices.cpu().numpy(), width_of(classes))}
        if self.k < classes:
            columns["tail"] = _half(logprobs.scatter(-1, indices, -torch.inf).logsumexp(-1))
        return columns

    def decode(self, columns: Mapping[str, np.ndarray], classes: int) -> Signals:
        """Returns ``topk``, normalised to a total of one, and ``logits`` with the tail spread evenly."""
        topk = self.sparse(columns, classes)
        return Signals(topk=topk, logits=topk.dense())

    def sparse(self, columns: Mapping[str, np.ndarray], classes: int) -> TopK:
        """Returns the kept classes, normalised to a total of one with the rest."""
        logprobs = torch.from_numpy(columns["logprobs"]).float()
        indices = torch.from_numpy(unpack(columns["indices"], self.k, width_of(classes)))
        if indices.numel() and int(indices.max()) >= classes:
            raise CacheError(f"a cached row names class {int(indices.max())} of only {classes}; write the cache again")
        if self.k < classes:
            tail = torch.from_numpy(columns["tail"]).float()
        else:
            tail = logprobs.new_full(logprobs.shape[:1], -torch.inf)
        total = torch.cat([logprobs, tail.unsqueeze(-1)], dim=-1).logsumexp(-1)
        return TopK(logprobs - total.unsqueeze(-1), indices, tail - total, classes)


def _half(logprobs: Tensor) -> np.ndarray:
    """Returns log-probabilities in half precision; those that it cannot hold stay finite, and zero stays zero."""
    clamped = torch.where(torch.isfinite(logprobs), logprobs.clamp(min=_LOWEST), logprobs)
    return clamped.cpu().numpy().astype(np.float16)
