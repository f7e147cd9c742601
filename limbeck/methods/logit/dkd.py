"""DKD: target-class and non-target-class knowledge, weighed apart."""

from __future__ import annotations

from torch import Tensor

from limbeck.functional.decoupled import decoupled_kl
from limbeck.hyperparameters import NonNegative, Positive
from limbeck.methods.base import LogitMethod, register
from limbeck.schedules import Warmup
from limbeck.signals import Terms


@register(
    "dkd",
    title="Decoupled Knowledge Distillation",
    authors="Borui Zhao and Quan Cui and Renjie Song and Yiyu Qiu and Jiajun Liang",
    paper="2203.08679",
    year=2022,
    family="logit",
    equation=r"L = L_{CE} + w(e)\,T^2 \big[ \alpha\,\mathrm{KL}(b^T \| b^S)"
    r" + \beta\,\mathrm{KL}(\hat p^T \| \hat p^S) \big],"
    r" \quad b = (p_y, 1 - p_y), \quad \hat p_c = p_c / (1 - p_y)",
)
class DKD(LogitMethod):
    """Splits KD into how sure the teacher is of the label and how it ranks the other classes, and stresses the latter.

    Terms:
        ce: cross-entropy with the labels.
        tckd: KL divergence between (target, rest) probabilities.
        nckd: KL divergence between the distributions over the other classes; 0 for two classes.

    Deviations: the authors' code hides the target by adding -1000 to its logit, which leaks for very large logits;
    here the class is left out of the sum. Their warm-up lasts 20 of 240 epochs, which is the default part of any run
    here.

    Args:
        alpha: weight of ``tckd``.
        beta: weight of ``nckd``; the authors use 2, 6 or 8 by pair of models.
        temperature: divides both logits before the softmax.
        warmup_epochs: epochs over which both weights grow linearly; None for a twelfth of the run.
    """

    def __init__(
        self,
        *,
        alpha: NonNegative = 1.0,
        beta: NonNegative = 8.0,
        temperature: Positive = 4.0,
        warmup_epochs: NonNegative | None = None,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.weights = {"ce": 1.0, "tckd": Warmup(alpha, warmup_epochs), "nckd": Warmup(beta, warmup_epochs)}

    def distill(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Terms:
        """Returns ``tckd`` and ``nckd``."""
        parts = decoupled_kl(student_logits, teacher_logits, labels, temperature=self.temperature, reduction="none")
        return {"tckd": parts.tckd, "nckd": parts.nckd}
