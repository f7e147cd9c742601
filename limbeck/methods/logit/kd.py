"""KD: the classic distillation loss."""

from __future__ import annotations

from torch import Tensor

from limbeck.functional.divergences import kl
from limbeck.hyperparameters import Positive
from limbeck.methods.base import LogitMethod, register
from limbeck.signals import Terms


@register(
    "kd",
    title="Distilling the Knowledge in a Neural Network",
    authors="Geoffrey Hinton and Oriol Vinyals and Jeff Dean",
    paper="1503.02531",
    year=2015,
    family="logit",
    equation=r"L = 0.1\,L_{CE} + 0.9\,T^2\, \mathrm{KL}\big(\mathrm{softmax}(t/T) \,\|\, \mathrm{softmax}(s/T)\big)",
)
class KD(LogitMethod):
    """The student matches the teacher's class probabilities, softened by a temperature.

    Terms:
        ce: cross-entropy with the labels, at temperature 1.
        kd: KL divergence from the teacher's to the student's softened probabilities.

    Weights are those of the CIFAR-100 benchmarks; on ImageNet a temperature of 1 and weights of 0.5 each are usual.
    Deviations: the paper minimises a cross-entropy with the soft targets, which differs by the teacher's entropy, a
    constant.

    Args:
        temperature: divides both logits before the softmax.
        scale_by_t2: whether to multiply by the squared temperature, so that the gradient keeps its size.
    """

    semi_supervised = True

    def __init__(self, *, temperature: Positive = 4.0, scale_by_t2: bool = True) -> None:
        super().__init__()
        self.temperature = temperature
        self.scale_by_t2 = scale_by_t2
        self.weights = {"ce": 0.1, "kd": 0.9}

    def distill(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Terms:
        """Returns ``kd``."""
        return {
            "kd": kl(
                student_logits,
                teacher_logits,
                temperature=self.temperature,
                scale_by_t2=self.scale_by_t2,
                reduction="none",
            )
        }
