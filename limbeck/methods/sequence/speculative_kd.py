"""Speculative KD: sequences that the student proposes and the teacher mends."""

from __future__ import annotations

from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import (
    STUDENT,
    TARGET,
    Average,
    DivergenceChoice,
    SequenceMethod,
    chosen_divergence,
    target_loss,
)
from limbeck.signals import Batch, Signals, Terms


@register(
    "speculative_kd",
    title="Speculative Knowledge Distillation: Bridging the Teacher-Student Gap Through Interleaved Sampling",
    authors="Wenda Xu and Rujun Han and Zifeng Wang and Long T. Le and Dhruv Madeka and Lei Li and William Yang Wang"
    " and Rishabh Agarwal and Chen-Yu Lee and Tomas Pfister",
    paper="2410.11325",
    year=2024,
    family="sequence",
    equation=r"L = \frac{1}{M} \sum_t D(p_t \| q_t), \qquad y_t \sim q_t \text{ if among the } K \text{ likeliest of }"
    r" p_t, \text{ else } y_t \sim p_t",
)
class SpeculativeKD(SequenceMethod):
    """Matches distributions on sequences of which the student wrote what the teacher would accept.

    The student proposes a token; it stays if the teacher ranks it among its ``K`` likeliest, and is replaced by a token
    of the teacher otherwise (:func:`limbeck.functional.speculative.interleave`). ``K`` of 1 is nearly the teacher's
    own sequence, all tokens the student's. The source of sequences holds ``K``.

    Terms:
        kd: divergence at each token, in nats.

    Args:
        divergence: name of a divergence, or a dict of its ``name`` and parameters.
        average: ``token_mean`` over all tokens of the batch, or ``sequence_mean`` over sequences of their means.
    """

    needs = Needs(student={STUDENT}, teacher={TARGET}, batch={"labels", "mask"})

    def __init__(self, *, divergence: DivergenceChoice = "forward_kl", average: Average = "token_mean") -> None:
        super().__init__()
        self.divergence = chosen_divergence(divergence)
        self.average = average
        self.weights = {"kd": 1.0}

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``kd``."""
        values = self.position_losses(student, {"kd": target_loss(self.divergence, teacher, student)}, batch["mask"])
        return {"kd": self.averaged(values["kd"], batch["mask"])}
