"""DDK: distillation on a mixture of domains that follows where the student lags behind its teacher."""

from __future__ import annotations

from limbeck.functional.token_losses import LabelLoss
from limbeck.hyperparameters import NonNegative, Positive
from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import (
    STUDENT,
    TARGET,
    Average,
    DivergenceChoice,
    SequenceMethod,
    chosen_divergence,
    on_policy_rows,
    target_loss,
)
from limbeck.signals import Batch, Signals, Terms


@register(
    "ddk",
    title="DDK: Distilling Domain Knowledge for Efficient Large Language Models",
    authors="Jiaheng Liu and Chenchen Zhang and Jinyang Guo and Yuanxing Zhang and Haoran Que and Ken Deng and others",
    paper="2407.16154",
    year=2024,
    family="sequence",
    equation=r"r_{t+1} = \alpha\,\frac{r_t \odot e^{\rho}}{\sum_j r_{t,j} e^{\rho_j}} + \frac{1-\alpha}{N},\quad"
    r" \rho_i = \frac{\mathrm{PPL}_q(i)}{\mathrm{PPL}_p(i)}, \qquad L = L_{CE} + \gamma\,"
    r"\frac{1}{M} \sum_t \mathrm{KL}(p_t \,\|\, q_t)",
)
class DDK(SequenceMethod):
    """Cross-entropy and the teacher's distributions, on domains drawn by how far the student is behind in each.

    The selection ``domain_discrepancy`` measures student and teacher on text of every domain that is held out
    (``data: {name: domains, holdout: 0.05}``), from time to time, and draws the rows that follow accordingly.

    Terms:
        ce: cross-entropy with the tokens of the data; zero on the student's own sequences.
        kd: divergence from the teacher's distributions, nats a token.

    Deviations: the paper does not say which way round its KL is, and writes the student first; forward KL is the
    default here, ``divergence: reverse_kl`` is the other. Its equation of the loss names the held-out text where the
    training text is meant. The paper stops where all ratios are close to 1; here the recipe's epochs are run, and the
    metrics tell the ratios.

    Args:
        gamma: weight of ``kd``.
        divergence: name of a divergence, or a dict of its ``name`` and parameters.
        temperature: divides both logits of ``kd``.
        average: ``token_mean`` over all tokens of the batch, or ``sequence_mean`` over sequences of their means.
    """

    needs = Needs(student={STUDENT}, teacher={TARGET}, batch={"labels", "mask"})
    optional_entries = frozenset({"on_policy"})
    selection = "domain_discrepancy"

    def __init__(
        self,
        *,
        gamma: NonNegative = 0.2,
        divergence: DivergenceChoice = "forward_kl",
        temperature: Positive = 1.0,
        average: Average = "token_mean",
    ) -> None:
        super().__init__()
        self.divergence = chosen_divergence(divergence)
        self.temperature = temperature
        self.average = average
        self.weights = {"ce": 1.0, "kd": gamma}

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``ce`` and ``kd``."""
        labels, mask = batch["labels"], batch["mask"]
        losses = {
            "ce": LabelLoss(labels),
            "kd": target_loss(self.divergence, teacher, student, temperature=self.temperature),
        }
        values = self.position_losses(student, losses, mask)
        given = values["ce"] * on_policy_rows(batch, mask)
        return {"ce": self.averaged(given, mask), "kd": self.averaged(values["kd"], mask)}
