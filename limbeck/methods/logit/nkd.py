"""NKD: target knowledge and normalised non-target knowledge, weighed apart."""

from __future__ import annotations

from torch import Tensor

from limbeck.functional.normalized import normalized_kd
from limbeck.hyperparameters import NonNegative, Positive
from limbeck.methods.base import LogitMethod, register
from limbeck.signals import Terms


@register(
    "nkd",
    title="From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and "
    "Customized Soft Labels",
    authors="Zhendong Yang and Ailing Zeng and Zhe Li and Tianke Zhang and Chun Yuan and Yu Li",
    paper="2303.13005",
    year=2023,
    family="logit",
    equation=r"L = L_{CE} - p^T_y \log p^S_y - \gamma\,T^2 \sum_{c \ne y} \hat p^T_c \log \hat p^S_c,"
    r" \quad \hat p_c = \mathrm{softmax}_{c \ne y}(z_c / T)",
)
class NKD(LogitMethod):
    """The teacher's confidence in the label, and its distribution over the other classes renormalised to sum to 1.

    Plain distillation weighs the other classes by the teacher's doubt, so a sure teacher says little about them; here
    ``gamma`` sets their weight. With class probabilities as labels (mixup) the largest names the target.

    Terms:
        ce: cross-entropy with the labels.
        target: cross-entropy of the label's class, weighted by the teacher's probability of it, at temperature 1.
        nontarget: cross-entropy with the teacher's distribution over the other classes; 0 for two classes.

    Deviations: none known. The defaults are those of the authors for ImageNet; on CIFAR-100 they use temperature 3 and
    ``gamma`` 3.5. A small student may spend its capacity on the non-target term: lower ``gamma`` then.

    Args:
        gamma: weight of ``nontarget``.
        temperature: divides the logits of the other classes before the softmax.
    """

    def __init__(self, *, gamma: NonNegative = 1.5, temperature: Positive = 1.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.weights = {"ce": 1.0, "target": 1.0, "nontarget": gamma}

    def distill(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Terms:
        """Returns ``target`` and ``nontarget``."""
        parts = normalized_kd(student_logits, teacher_logits, labels, temperature=self.temperature, reduction="none")
        return {"target": parts.target, "nontarget": parts.nontarget}
