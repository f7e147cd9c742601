"""BAN: a student of the teacher's own architecture, and the two arms that explain why it gains."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from limbeck import streams
from limbeck.functional.classification import confidence_weights, cross_entropy
from limbeck.functional.dark_knowledge import permuted_dark_knowledge
from limbeck.functional.divergences import tempered_log_softmax
from limbeck.methods.base import Method, Needs, Setup, register
from limbeck.signals import Batch, Signals, Terms


@register(
    "born_again",
    title="Born-Again Neural Networks",
    authors="Tommaso Furlanello and Zachary C. Lipton and Michael Tschannen and Laurent Itti and Anima Anandkumar",
    paper="1805.04770",
    year=2018,
    family="self",
    equation=r"L = L_{CE} - \sum_c p^T_c \log p^S_c",
)
class BornAgain(Method):
    """A student of the teacher's architecture learns from labels and from the teacher's probabilities, untempered.

    Terms:
        ce: cross-entropy with the labels (``ban``), or its mean weighted by the teacher's confidence (``cwtm``).
        soft_ce: cross-entropy with the teacher's probabilities (``ban``), or with their permutation (``dkpp``).

    Deviations: none from the paper's losses. A generation is one stage; a chain of generations is a recipe with
    several stages, and their ensemble averages probabilities.

    Args:
        variant: ``ban``; or one of the paper's controls: ``cwtm`` keeps only how much the teacher trusts each sample,
            and couples the samples of a batch; ``dkpp`` keeps only the largest probability and permutes the others,
            anew for
            each sample and epoch, from the run's seed. ``batch["dark_order"]`` replaces the drawn permutations.
    """

    needs = Needs(student={"logits"}, teacher={"logits"}, batch={"labels"})

    def __init__(self, *, variant: Literal["ban", "cwtm", "dkpp"] = "ban") -> None:
        super().__init__()
        self.variant: Literal["ban", "cwtm", "dkpp"] = variant
        self.batch_coupled = variant == "cwtm"
        terms = {"ban": ("ce", "soft_ce"), "cwtm": ("ce",), "dkpp": ("soft_ce",)}[variant]
        self.weights = dict.fromkeys(terms, 1.0)
        self._seed = 0

    def build(self, setup: Setup) -> None:
        """Remembers the seed that the permutations come from."""
        self._seed = setup.seed

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``ce`` and ``soft_ce``, as far as the variant has them."""
        assert student.logits is not None
        assert teacher.logits is not None
        if self.variant == "dkpp":
            targets = permuted_dark_knowledge(teacher.logits, self._order(batch, teacher.logits))
            return {"soft_ce": cross_entropy(student.logits, targets, reduction="none")}
        ce = cross_entropy(student.logits, batch["labels"], reduction="none")
        if self.variant == "cwtm":
            return {"ce": (confidence_weights(teacher.logits) * ce).sum()}
        targets = tempered_log_softmax(teacher.logits, 1.0).exp()
        return {"ce": ce, "soft_ce": cross_entropy(student.logits, targets, reduction="none")}

    def _order(self, batch: Batch, logits: Tensor) -> Tensor:
        """A permutation of the classes that are not predicted, for each sample ``[B, C-1]``."""
        if "dark_order" in batch:
            order: Tensor = batch["dark_order"]
            return order
        index = batch["index"].cpu().numpy()
        words = streams.words(self._seed, "dark knowledge", int(batch.get("epoch", 0)), index, logits.shape[1] - 1)
        return torch.from_numpy(np.argsort(words, axis=1, kind="stable")).to(logits.device)
