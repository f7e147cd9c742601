"""TinyViT's pretraining: cross-entropy with a teacher's sparse soft labels, and no labels at all."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.functional.sparse_labels import sparse_cross_entropy
from limbeck.hyperparameters import Count
from limbeck.methods.base import LogitMethod, Needs, Setup, register
from limbeck.signals import Batch, Signals, Terms


@register(
    "tinyvit",
    title="TinyViT: Fast Pretraining Distillation for Small Vision Transformers",
    authors="Kan Wu and Jinnian Zhang and Houwen Peng and Mengchen Liu and Bin Xiao and Jianlong Fu and Lu Yuan",
    paper="2207.10666",
    year=2022,
    family="logit",
    equation=r"L = -\sum_c \hat p_c \log p^S_c, \quad \hat p_c = p^T_c \text{ for the } K \text{ largest, }"
    r" \frac{1 - \sum_k p^T_k}{C - K} \text{ else}",
)
class TinyViT(LogitMethod):
    """The student learns the teacher's largest probabilities, and the rest as if it were spread evenly.

    Made for a cache: write one with ``limbeck cache --codec topk``, which replays the same augmented views, and train
    any number of students with no teacher in memory. A live teacher is cut to its ``k`` largest classes in the same
    way. Neither labels nor a temperature take part.

    Terms:
        soft_ce: cross-entropy with the sparse target.

    Deviations: limbeck's own cache keeps log-probabilities and the exact mass of the rest, where the authors round
    probabilities to half precision and take as rest what they leave, which may be slightly negative:
    ``half_precision`` does that. Their files are read and written by :mod:`limbeck.teachers.cache.tinyvit_records`.

    Args:
        k: classes kept of a live teacher's distribution; all when None. What a ``topk`` cache left out stays out.
        half_precision: round the kept probabilities to half precision, as the authors' files do.
    """

    needs = Needs(student={"logits"}, teacher={"logits"})

    def __init__(self, *, k: Count | None = None, half_precision: bool = False) -> None:
        super().__init__()
        self.k, self.half_precision = k, half_precision
        self.weights = {"soft_ce": 1.0}

    def build(self, setup: Setup) -> None:
        """Refuses to keep more classes than there are.

        Raises:
            RecipeError: ``k`` is larger than the number of classes.
        """
        logits = setup.signals["teacher"].logits
        assert logits is not None
        if self.k is not None and self.k > logits.shape[-1]:
            raise RecipeError(f"method 'tinyvit': k = {self.k} is more than the {logits.shape[-1]} classes; lower k")

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``soft_ce``."""
        assert student.logits is not None
        assert teacher.logits is not None
        probabilities, indices = self.target(self.logit_transform(teacher.logits.detach()))
        logits = self.logit_transform(student.logits)
        loss = sparse_cross_entropy(
            logits, indices, probabilities, clamp_rest=not self.half_precision, reduction="none"
        )
        return {"soft_ce": loss}

    def target(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the kept probabilities and their classes, ``[B, k]`` each, the largest first."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        probabilities, indices = torch.softmax(wide, dim=-1).topk(self.k or wide.shape[-1], dim=-1)
        return probabilities.half().to(wide.dtype) if self.half_precision else probabilities, indices
