"""PLD: the student's likelihood of the teacher's ranking of all classes, the label on top."""

from __future__ import annotations

from typing import Literal

import torch

from limbeck.functional.plackett_luce import label_first_order, plackett_luce, plackett_luce_distillation
from limbeck.hyperparameters import Positive
from limbeck.methods.base import LogitMethod, register
from limbeck.signals import Batch, Signals, Terms


@register(
    "pld",
    title="PLD: A Choice-Theoretic List-Wise Knowledge Distillation",
    authors="Ejafa Bassam and Dawei Zhu and Kaigui Bian",
    paper="2506.12542",
    year=2025,
    family="logit",
    equation=r"L = \sum_{k=1}^{C} q_{\pi_k} \Big( \log \sum_{l \ge k} e^{s_{\pi_l}} - s_{\pi_k} \Big),"
    r" \quad q = \mathrm{softmax}(t / \tau), \quad \pi_1 = y, \quad t_{\pi_2} \ge \dots \ge t_{\pi_C}",
)
class PLD(LogitMethod):
    """Ranks the classes by the teacher with the label first, and teaches the student to draw them in that order.

    Each place counts as much as the teacher believes in the class there. The first place is the cross-entropy with the
    label, so there is no such term beside it and nothing to balance: this is the whole loss. Where the teacher is sure
    of another class, the label's place weighs little, by design.

    Terms:
        pld: weighted negative log-likelihood of the ranking.

    Deviations: none known; no code of the authors was found. They report that ``logit_transform: standardize`` lowers
    the accuracy of this loss a little.

    Args:
        teacher_temperature: divides the teacher's logits before the softmax that weighs the places: 1 on ImageNet, 4 on
            CIFAR-100.
        places: ``teacher`` weighs the places by the teacher's probabilities; ``uniform`` weighs all alike, by one over
            the number of classes (ListMLE).
    """

    def __init__(
        self, *, teacher_temperature: Positive = 1.0, places: Literal["teacher", "uniform"] = "teacher"
    ) -> None:
        super().__init__()
        self.teacher_temperature = teacher_temperature
        self.places: Literal["teacher", "uniform"] = places
        self.weights = {"pld": 1.0}

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``pld``."""
        assert student.logits is not None
        assert teacher.logits is not None
        ours, theirs = self.logit_transform(student.logits), self.logit_transform(teacher.logits)
        labels = batch["labels"]
        if self.places == "teacher":
            temperature = self.teacher_temperature
            values = plackett_luce_distillation(ours, theirs, labels, teacher_temperature=temperature, reduction="none")
        else:
            order = label_first_order(theirs, labels)
            even = torch.full_like(theirs, 1 / theirs.shape[-1])
            values = plackett_luce(ours, order, weights=even, reduction="none")
        return {"pld": values}
