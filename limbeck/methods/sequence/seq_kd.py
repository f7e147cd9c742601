"""SeqKD: learning what the teacher wrote."""

from __future__ import annotations

from limbeck.functional.token_losses import LabelLoss
from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import STUDENT, Average, SequenceMethod
from limbeck.signals import Batch, Signals, Terms


@register(
    "seq_kd",
    title="Sequence-Level Knowledge Distillation",
    authors="Yoon Kim and Alexander M. Rush",
    paper="1606.07947",
    year=2016,
    family="sequence",
    equation=r"L = -\frac{1}{M} \sum_t \log q(\hat y_t \mid \hat y_{<t}), \qquad \hat y \sim p",
)
class SeqKD(SequenceMethod):
    """Cross-entropy with sequences that the teacher generated, by beam search or sampling.

    The teacher's part is the data: completions that it wrote before training, or that a transform has it write. A
    server that gives nothing but text suffices.

    Terms:
        nll: negative log-probability of each token of the teacher's completions.

    Args:
        average: ``token_mean`` over all tokens of the batch, or ``sequence_mean`` over sequences of their means.
    """

    needs = Needs(student={STUDENT}, batch={"labels", "mask"})

    def __init__(self, *, average: Average = "token_mean") -> None:
        super().__init__()
        self.average = average
        self.weights = {"nll": 1.0}

    def forward(self, batch: Batch, student: Signals) -> Terms:
        """Returns ``nll``."""
        mask = batch["mask"]
        values = self.position_losses(student, {"nll": LabelLoss(batch["labels"])}, mask)
        return {"nll": self.averaged(values["nll"], mask)}
