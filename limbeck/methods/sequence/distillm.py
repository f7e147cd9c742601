"""DistiLLM: skew divergences, stable where student and teacher have nothing in common."""

from __future__ import annotations

from typing import Literal

from limbeck.hyperparameters import Fraction
from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import STUDENT, TARGET, Average, SequenceMethod, chosen_divergence, target_loss
from limbeck.signals import Batch, Signals, Terms


@register(
    "distillm",
    title="DistiLLM: Towards Streamlined Distillation for Large Language Models",
    authors="Jongwoo Ko and Sungnyun Kim and Tianyi Chen and Se-Young Yun",
    paper="2402.03898",
    year=2024,
    family="sequence",
    equation=r"L = \mathrm{KL}\big(q \,\|\, (1-\alpha) p + \alpha q\big) \quad\text{or}\quad"
    r" \mathrm{KL}\big(p \,\|\, \alpha p + (1-\alpha) q\big)",
)
class DistiLLM(SequenceMethod):
    """A KL divergence to a mixture that holds a little of the distribution itself, so that it is bounded.

    Meant for a source that goes over from data to replayed samples of the student as its validation loss stalls.

    Terms:
        skew: divergence at each token, in nats, at most ``-log(alpha)``.

    Deviations: the authors' code leaves the teacher's negative entropy out of skew KL, a constant. Their scripts train
    without cross-entropy, and so does this.

    Args:
        variant: ``skew_rkl`` from the student to the mixture, or ``skew_kl`` from the teacher.
        alpha: share of the distribution itself in the mixture.
        sparse: how targets are read of which only the largest classes are known.
        average: ``token_mean`` over all tokens of the batch, or ``sequence_mean`` over sequences of their means.
    """

    needs = Needs(student={STUDENT}, teacher={TARGET}, batch={"labels", "mask"})

    def __init__(
        self,
        *,
        variant: Literal["skew_rkl", "skew_kl"] = "skew_rkl",
        alpha: Fraction = 0.1,
        sparse: Literal["tail", "both_renormalized"] = "tail",
        average: Average = "token_mean",
    ) -> None:
        super().__init__()
        self.divergence = chosen_divergence({"name": variant, "alpha": alpha})
        self.sparse = sparse
        self.average = average
        self.weights = {"skew": 1.0}

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``skew``."""
        target = target_loss(self.divergence, teacher, student, reading=self.sparse, labels=batch["labels"])
        values = self.position_losses(student, {"skew": target}, batch["mask"])
        return {"skew": self.averaged(values["skew"], batch["mask"])}
