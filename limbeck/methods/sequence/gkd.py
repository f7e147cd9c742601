"""GKD: generalised Jensen-Shannon divergence on the student's own sequences."""

from __future__ import annotations

from typing import Literal

from limbeck.hyperparameters import Fraction, Positive
from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import STUDENT, TARGET, Average, SequenceMethod, chosen_divergence, target_loss
from limbeck.signals import Batch, Signals, Terms


@register(
    "gkd",
    title="On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
    authors="Rishabh Agarwal and Nino Vieillard and Yongchao Zhou and Piotr Stanczyk and Sabela Ramos and"
    " Matthieu Geist and Olivier Bachem",
    paper="2306.13649",
    year=2023,
    family="sequence",
    equation=r"L = \frac{1}{M} \sum_t \beta\,\mathrm{KL}(p_t \| m_t) + (1-\beta)\,\mathrm{KL}(q_t \| m_t),"
    r" \qquad m_t = \beta p_t + (1-\beta) q_t",
)
class GKD(SequenceMethod):
    """Matches distributions by a generalised Jensen-Shannon divergence, on data, on the student's samples, or on both.

    With ``beta`` 0 on data this is word-level KD, with 1 on the student's samples it is reverse KL on-policy. How often
    a batch is sampled by the student is its source's ``probability``.

    Terms:
        jsd: divergence at each token, in nats.

    Deviations: TRL scores at temperature 1 what was sampled at 0.9; ``temperature`` here is that of the loss. The
    divergence is the formula for 0 < ``beta`` < 1 but forward and reverse KL at its ends, as everywhere, and so it
    jumps there; ``normalized`` removes the jump.

    Args:
        beta: weight of the teacher in the mixture.
        temperature: divides both logits; the loss is not multiplied by its square.
        normalized: whether to divide by ``beta (1 - beta)``, whose limits are forward and reverse KL.
        sparse: how targets are read of which only the largest classes are known.
        average: ``token_mean`` over all tokens of the batch, or ``sequence_mean`` over sequences of their means.
    """

    needs = Needs(student={STUDENT}, teacher={TARGET}, batch={"labels", "mask"})

    def __init__(
        self,
        *,
        beta: Fraction = 0.5,
        temperature: Positive = 1.0,
        normalized: bool = False,
        sparse: Literal["tail", "both_renormalized"] = "tail",
        average: Average = "token_mean",
    ) -> None:
        super().__init__()
        self.divergence = chosen_divergence({"name": "jsd", "beta": beta, "normalized": normalized})
        self.temperature = temperature
        self.sparse = sparse
        self.average = average
        self.weights = {"jsd": 1.0}

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``jsd``."""
        target = target_loss(
            self.divergence, teacher, student, temperature=self.temperature, reading=self.sparse, labels=batch["labels"]
        )
        values = self.position_losses(student, {"jsd": target}, batch["mask"])
        return {"jsd": self.averaged(values["jsd"], batch["mask"])}
