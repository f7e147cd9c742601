"""ImitKD: imitation of the teacher on the student's own beginnings."""

from __future__ import annotations

from typing import Literal

from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import (
    STUDENT,
    TARGET,
    Average,
    SequenceMethod,
    chosen_divergence,
    likeliest_loss,
    target_loss,
)
from limbeck.signals import Batch, Signals, Terms


@register(
    "imitkd",
    title="Autoregressive Knowledge Distillation through Imitation Learning",
    authors="Alexander Lin and Jeremy Wohlwend and Howard Chen and Tao Lei",
    paper="2009.07253",
    year=2020,
    family="sequence",
    equation=r"L = -\frac{1}{M} \sum_t \log q\big(\mathrm{argmax}_v p(v \mid y_{<t}) \mid y_{<t}\big),"
    r" \qquad y \sim \text{data or } q",
)
class ImitKD(SequenceMethod):
    """After beginnings that it wrote itself, the student learns what the teacher would say next.

    A batch's sequences are the data's with a probability that decays over the run and the student's own otherwise,
    which is the business of their source; no gradient flows through the sampling.

    Terms:
        imitation: at each token the negative log-probability of the teacher's likeliest one, or the forward KL from
            its distribution.

    Args:
        target: ``likeliest`` token of the teacher, or its whole ``distribution``.
        average: ``token_mean`` over all tokens of the batch, or ``sequence_mean`` over sequences of their means.
    """

    needs = Needs(student={STUDENT}, teacher={TARGET}, batch={"labels", "mask"})

    def __init__(
        self, *, target: Literal["likeliest", "distribution"] = "likeliest", average: Average = "token_mean"
    ) -> None:
        super().__init__()
        self.target = target
        self.average = average
        self.weights = {"imitation": 1.0}

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``imitation``."""
        whole = self.target == "distribution"
        loss = target_loss(chosen_divergence("forward_kl"), teacher, student) if whole else likeliest_loss(teacher)
        values = self.position_losses(student, {"imitation": loss}, batch["mask"])
        return {"imitation": self.averaged(values["imitation"], batch["mask"])}
