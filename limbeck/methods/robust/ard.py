"""ARD: a robust teacher's answers, on images that are attacked."""

from __future__ import annotations

from limbeck.functional.divergences import kl
from limbeck.hyperparameters import Fraction, Positive
from limbeck.methods.base import Method, Needs, Observers, label_loss, register
from limbeck.methods.robust.attacked import ADVERSARIAL, ADVERSARIAL_INPUTS, observe_both, seen_by_all
from limbeck.signals import Batch, Signals, Terms


@register(
    "ard",
    title="Adversarially Robust Distillation",
    authors="Micah Goldblum and Liam Fowl and Soheil Feizi and Tom Goldstein",
    paper="1905.09747",
    year=2020,
    family="robust",
    equation=r"L = \alpha T^2\,\mathrm{KL}\big(p^T(x) \| p^S(\tilde x)\big) - (1 - \alpha) \log p^S_y(x)",
)
class ARD(Method):
    """On the adversarial image the student says what a robust teacher says of the clean one.

    The transform ``pgd`` makes the examples, against the labels as the authors do.

    Terms:
        kd: KL divergence from the teacher's tempered probabilities on the clean image to the student's on the
            adversarial one.

    Where ``alpha`` is below 1 there is a second term, ``ce``, the cross-entropy of clean images with the labels.

    Deviations: none known.

    Args:
        alpha: weight of ``kd``; the labels have the rest. The authors' best is 1: no labels but in the attack.
        temperature: divides both logits in ``kd``; the divergence is multiplied by its square.
    """

    needs = Needs(student={"logits"}, teacher={"logits"}, batch={"labels", ADVERSARIAL_INPUTS})

    def __init__(self, *, alpha: Fraction = 1.0, temperature: Positive = 30.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.weights = {"kd": alpha, **({"ce": 1 - alpha} if alpha < 1 else {})}

    def observe(self, batch: Batch, observers: Observers) -> dict[str, Signals]:
        """Shows the teacher clean images and the student adversarial ones, or both where it learns from both."""
        teacher = observers["teacher"](batch)
        if "ce" in self.weights:
            return {"student": observe_both("student", batch, observers), "teacher": teacher}
        return {"student": observers["student"](seen_by_all(batch)), "teacher": teacher}

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``kd``, and ``ce`` where it has a weight."""
        attacked = student.views.get(ADVERSARIAL, student).logits
        assert attacked is not None
        assert student.logits is not None
        assert teacher.logits is not None
        terms: Terms = {"kd": kl(attacked, teacher.logits, temperature=self.temperature, reduction="none")}
        if "ce" in self.weights:
            terms["ce"] = label_loss(student.logits, batch)
        return terms
