"""DIST: correlations in place of exact probabilities."""

from __future__ import annotations

from torch import Tensor

from limbeck.functional.correlation import inter_class_distance, intra_class_distance
from limbeck.hyperparameters import NonNegative, Positive
from limbeck.methods.base import LogitMethod, register
from limbeck.signals import Terms


@register(
    "dist",
    title="Knowledge Distillation from A Stronger Teacher",
    authors="Tao Huang and Shan You and Fei Wang and Chen Qian and Chang Xu",
    paper="2205.10536",
    year=2022,
    family="logit",
    equation=r"L = L_{CE} + \beta\,\tau^2 \big(1 - \tfrac1B \sum_b \rho(p^S_{b,:}, p^T_{b,:})\big)"
    r" + \gamma\,\tau^2 \big(1 - \tfrac1C \sum_c \rho(p^S_{:,c}, p^T_{:,c})\big)",
)
class DIST(LogitMethod):
    r"""The student's probabilities correlate with the teacher's, over the classes and over the batch.

    A strong teacher's exact probabilities may be out of a small student's reach; Pearson correlation asks only for
    the same preferences, whatever their shift and scale.

    Terms:
        ce: cross-entropy with the labels.
        inter: 1 - correlation over the classes of one sample, times the squared temperature.
        intra: 1 - correlation over the batch of one class, likewise. It couples the samples of a batch.

    Deviations: the authors' code adds 1e-8 to the product of norms, which weakens classes of small variance; give it
    as ``eps`` to have their numbers. Without it, a class that does not vary over the batch counts as uncorrelated.

    Args:
        beta: weight of ``inter``; 2 with a temperature of 4 on CIFAR-100, 1 with a temperature of 1 on ImageNet.
        gamma: weight of ``intra``, likewise.
        temperature: divides both logits before the softmax.
        eps: added to the product of the two norms in the correlation.
    """

    batch_coupled = True

    semi_supervised = True

    def __init__(
        self,
        *,
        beta: NonNegative = 2.0,
        gamma: NonNegative = 2.0,
        temperature: Positive = 4.0,
        eps: NonNegative = 0.0,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.eps = eps
        self.weights = {"ce": 1.0, "inter": beta, "intra": gamma}

    def distill(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Terms:
        """Returns ``inter`` and ``intra``."""
        inter = inter_class_distance(
            student_logits, teacher_logits, temperature=self.temperature, eps=self.eps, reduction="none"
        )
        intra = intra_class_distance(student_logits, teacher_logits, temperature=self.temperature, eps=self.eps)
        return {"inter": inter, "intra": intra}
