"""Supervised fine-tuning: the arm without a teacher."""

from __future__ import annotations

from limbeck.functional.token_losses import LabelLoss
from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import STUDENT, Average, SequenceMethod
from limbeck.signals import Batch, Signals, Terms


@register(
    "sft",
    title="Supervised fine-tuning",
    paper="",
    year=0,
    family="arm",
    equation=r"L = -\frac{1}{M} \sum_t \log q(y_t \mid y_{<t})",
)
class SFT(SequenceMethod):
    """Cross-entropy of the student with the tokens of the data. What every distilled student is compared with.

    Terms:
        ce: negative log-probability of each token that counts.

    Args:
        average: ``token_mean`` over all tokens of the batch, or ``sequence_mean`` over sequences of their means.
    """

    needs = Needs(student={STUDENT}, batch={"labels", "mask"})

    def __init__(self, *, average: Average = "token_mean") -> None:
        super().__init__()
        self.average = average
        self.weights = {"ce": 1.0}

    def forward(self, batch: Batch, student: Signals) -> Terms:
        """Returns ``ce``."""
        mask = batch["mask"]
        values = self.position_losses(student, {"ce": LabelLoss(batch["labels"])}, mask)
        return {"ce": self.averaged(values["ce"], mask)}
