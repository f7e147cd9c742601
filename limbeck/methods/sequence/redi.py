"""REDI: wrong traces of the teacher teach too, a little less."""

from __future__ import annotations

import torch

from limbeck.functional.sequences import sequence_means
from limbeck.hyperparameters import Fraction, NonNegative
from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import STUDENT, SequenceMethod
from limbeck.signals import Batch, Signals, Term, Terms


@register(
    "redi",
    title="Harnessing Negative Signals: Reinforcement Distillation from Teacher Data for LLM Reasoning",
    authors="Shuyao Xu and Cheng Peng and Jiangxuan Long and Weidi Xu and Wei Chu and Yuan Qi",
    paper="2505.24850",
    year=2025,
    family="policy",
    equation=r"L = -\frac{\log q(y_w)}{|y_w|} + \alpha\,\frac{\log q(y_l)}{|y_l|}",
)
class REDI(SequenceMethod):
    """Makes the teacher's right answers likelier and its wrong ones less likely, without a reference model.

    The batch holds a right answer, and beside it a wrong one to the same question: the view ``rejected`` with
    ``rejected_labels`` and ``rejected_mask``. To be used after supervised fine-tuning on right answers, for one epoch
    at a small learning rate: the objective has no lower bound.

    Terms:
        chosen: mean negative log-probability of the right answer's tokens.
        rejected: mean log-probability of the wrong answer's tokens.

    Args:
        alpha: weight of ``rejected``, below 1 since wrong answers share most of their tokens with right ones.
        fade: how fast ``rejected`` fades out for answers that are unlikely already, by a factor of
            ``exp(fade * mean log-probability)``; 0 for not at all, as published.
    """

    needs = Needs(student={STUDENT}, views=("rejected",), batch={"labels", "mask", "rejected_labels", "rejected_mask"})

    def __init__(self, *, alpha: Fraction = 0.8, fade: NonNegative = 0.0) -> None:
        super().__init__()
        self.fade = fade
        self.weights = {"chosen": 1.0, "rejected": alpha}

    def forward(self, batch: Batch, student: Signals) -> Terms:
        """Returns ``chosen`` and ``rejected``, a value for each answer."""
        right = self.label_log_probabilities(student, batch["labels"], batch["mask"])
        labels, mask = batch["rejected_labels"], batch["rejected_mask"]
        wrong = sequence_means(self.label_log_probabilities(student.views["rejected"], labels, mask), mask)
        if self.fade:
            wrong = wrong * torch.exp(self.fade * wrong)
        # An answer of which nothing is left, cut off behind a long question, is none: it does not dilute the others.
        return {
            "chosen": Term(-sequence_means(right, batch["mask"]), batch["mask"].bool().any(-1)),
            "rejected": Term(wrong, mask.bool().any(-1)),
        }
