"""DCKD: an aligned teacher's distributions on preferred and on rejected answers."""

from __future__ import annotations

from limbeck.functional.divergence_registry import divergence
from limbeck.functional.token_losses import LabelLoss
from limbeck.hyperparameters import NonNegative
from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import STUDENT, TARGET, SequenceMethod, target_loss
from limbeck.signals import Batch, Signals, Term, Terms


@register(
    "dckd",
    title="Advantage-Guided Distillation for Preference Alignment in Small Language Models",
    authors="Shiping Gao and Fanqi Wan and Jiajian Guo and Xiaojun Quan and Qifan Wang",
    paper="2502.17927",
    year=2025,
    family="sequence",
    equation=r"L = L_{CE}(y_w) + \alpha \big[ \mathrm{KL}(p \| q)(y_w) + \mathrm{KL}(p \| q)(y_l) \big]",
)
class DCKD(SequenceMethod):
    """Dual-constrained KD: what an aligned teacher thinks of a rejected answer is worth as much as of a preferred one.

    The batch holds a preferred answer, and beside it a rejected one: the view ``rejected`` with ``rejected_labels`` and
    ``rejected_mask``.

    Terms:
        ce: cross-entropy with the preferred answer.
        chosen: forward KL from the teacher at each token of the preferred answer.
        rejected: forward KL from the teacher at each token of the rejected answer.

    Args:
        alpha: weight of both divergences.
    """

    needs = Needs(
        student={STUDENT},
        teacher={TARGET},
        views=("rejected",),
        batch={"labels", "mask", "rejected_labels", "rejected_mask"},
    )

    def __init__(self, *, alpha: NonNegative = 0.1) -> None:
        super().__init__()
        self.weights = {"ce": 1.0, "chosen": alpha, "rejected": alpha}

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``ce``, ``chosen`` and ``rejected``."""
        forward_kl, mask, other = divergence("forward_kl"), batch["mask"], batch["rejected_mask"]
        losses = {"ce": LabelLoss(batch["labels"]), "chosen": target_loss(forward_kl, teacher, student)}
        values = self.position_losses(student, losses, mask)
        theirs, ours = teacher.views["rejected"], student.views["rejected"]
        rejected = self.position_losses(ours, {"rejected": target_loss(forward_kl, theirs, ours)}, other)
        return {
            "ce": Term(values["ce"], mask),
            "chosen": Term(values["chosen"], mask),
            "rejected": Term(rejected["rejected"], other),
        }
