"""Whether an exported language model says what the student says, on real text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.signals import Batch

Logits = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From ``input_ids``, ``attention_mask`` and ``position_ids``, each ``[B, T]``, to logits ``[B, T, V]``."""
TOLERANCE = 1e-4
_WRITTEN = 12


@dataclass(frozen=True)
class Parity:
    """How far an exported model is from the student.

    Attributes:
        tokens: tokens of real text on which both were compared.
        max_abs_error: largest difference of a logit.
        max_relative_error: the same, divided by the largest logit.
        same_top: share of tokens after which both name the same likeliest token.
        same_writing: whether both write the same tokens after the beginnings of the text, always the likeliest one.
    """

    tokens: int
    max_abs_error: float
    max_relative_error: float
    same_top: float
    same_writing: bool

    def __str__(self) -> str:
        """One line for people."""
        written = "the same" if self.same_writing else "other"
        return (
            f"logits within {self.max_abs_error:.1e} of the student's on {self.tokens:,} tokens of text, the same "
            f"likeliest token after {self.same_top:.2%} of them, {written} greedy continuations"
        )


@torch.no_grad()
def compare(student: Logits, exported: Logits, batches: Iterable[Batch], *, tolerance: float = TOLERANCE) -> Parity:
    """Returns how far two language models are apart on text.

    Args:
        student: the one that was trained.
        exported: the one that was written.
        batches: text.
        tolerance: largest relative error.

    Raises:
        LimbeckError: they differ by more.
    """
    absolute, largest, same, count, writing = 0.0, 0.0, 0, 0, True
    for batch in batches:
        inputs = batch["inputs"]
        given = (inputs["input_ids"], inputs["attention_mask"], inputs["position_ids"])
        seen = inputs["attention_mask"].bool()
        a, b = student(*given)[seen].float(), exported(*given)[seen].float()
        if a.shape != b.shape:
            raise LimbeckError(f"the exported model gives logits {tuple(b.shape)}, the student {tuple(a.shape)}")
        absolute = max(absolute, float((a - b).abs().max()))
        largest = max(largest, float(a.abs().max()))
        same += int((a.argmax(-1) == b.argmax(-1)).sum())
        count += len(a)
        beginning = inputs["input_ids"][:1, : max(int(seen[0].sum()) // 2, 1)]
        writing = writing and torch.equal(_greedy(student, beginning), _greedy(exported, beginning))
    relative = absolute / max(largest, 1e-12)
    if not relative <= tolerance:
        raise LimbeckError(
            f"the exported model's logits differ from the student's by {absolute:.2e}, {relative:.2e} of the largest, "
            f"which is more than {tolerance:g}; nothing was written"
        )
    return Parity(count, absolute, relative, same / max(count, 1), writing)


def _greedy(logits: Logits, ids: Tensor) -> Tensor:
    for _ in range(_WRITTEN):
        places = torch.arange(ids.shape[1]).unsqueeze(0)
        step = logits(ids, torch.ones_like(ids), places)[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, step], dim=1)
    return ids
