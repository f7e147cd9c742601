"""MIX-KD: distillation on partly mixed batches, with each sample's logits scaled by their own deviation."""

from __future__ import annotations

from limbeck.functional.classification import cross_entropy
from limbeck.functional.divergences import kl
from limbeck.functional.logit_transforms import standardize
from limbeck.hyperparameters import NonNegative
from limbeck.methods.base import Method, Needs, register
from limbeck.signals import Batch, Signals, Terms


@register(
    "mix_kd",
    title="Understanding the Role of Mixup in Knowledge Distillation: An Empirical Study",
    authors="Hongjun Choi and Eun Som Jeon and Ankita Shukla and Pavan Turaga",
    paper="2211.03946",
    year=2023,
    family="logit",
    equation=r"L = -\gamma \sum_c \tilde y_c \log p^S_c + \alpha\,\mathrm{KL}(p^T \| p^S), \quad"
    r" p = \mathrm{softmax}(z / \sigma_z)",
)
class MixKD(Method):
    """KD whose temperature is each sample's own: the deviation of its logits over the classes.

    Mixed samples make predictions smooth as a temperature does; scaling by the deviation keeps both from adding up.
    Meant for the transform ``partial_mixup`` and a teacher that was trained without mixup, and for a live teacher,
    since nobody can cache what it says of mixtures.

    Terms:
        ce: cross-entropy of the scaled logits with the (mixed) labels.
        kd: KL divergence of the scaled logits' distributions, without a squared temperature.

    Deviations: the authors divide by the deviation and leave the mean, here it is subtracted as well, which changes
    no probability and no gradient. Logits without deviation count as zeros where the authors divide by zero.

    Args:
        gamma: weight of ``ce``.
        alpha: weight of ``kd``.
    """

    needs = Needs(student={"logits"}, teacher={"logits"}, batch={"labels"})

    def __init__(self, *, gamma: NonNegative = 0.1, alpha: NonNegative = 0.9) -> None:
        super().__init__()
        self.weights = {"ce": gamma, "kd": alpha}

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``ce`` and ``kd``."""
        assert student.logits is not None
        assert teacher.logits is not None
        scaled = standardize(student.logits)
        return {
            "ce": cross_entropy(scaled, batch["labels"], reduction="none"),
            "kd": kl(scaled, standardize(teacher.logits), reduction="none"),
        }
