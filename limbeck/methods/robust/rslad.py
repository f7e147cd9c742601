"""RSLAD: a robust teacher's soft labels everywhere, in the attack as well."""

from __future__ import annotations

from limbeck.functional.divergences import kl
from limbeck.hyperparameters import Fraction
from limbeck.methods.base import Method, Needs, Observers, register
from limbeck.methods.robust.attacked import ADVERSARIAL, ADVERSARIAL_INPUTS, observe_both
from limbeck.signals import Batch, Signals, Terms


@register(
    "rslad",
    title="Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student Better",
    authors="Bojia Zi and Shihao Zhao and Xingjun Ma and Yu-Gang Jiang",
    paper="2108.07969",
    year=2021,
    family="robust",
    equation=r"L = \alpha\,\mathrm{KL}\big(p^T(x) \| p^S(\tilde x)\big)"
    r" + (1 - \alpha)\,\mathrm{KL}\big(p^T(x) \| p^S(x)\big), \quad"
    r" \tilde x = \mathrm{argmax}_{\|\tilde x - x\|_\infty \le \varepsilon}"
    r" \mathrm{KL}\big(p^T(x) \| p^S(\tilde x)\big)",
)
class RSLAD(Method):
    """The student says of clean and of adversarial images what a robust teacher says of the clean ones.

    No label takes part. The transform ``pgd`` makes the examples; the paper's own has ``objective: teacher``, which
    attacks the teacher's soft labels.

    Terms:
        robust: KL divergence from the teacher's prediction on the clean image to the student's on the adversarial one.
        clean: the same to the student's prediction on the clean image.

    Deviations: the authors' code averages the divergence over classes as well, and adds 1e-5 to the teacher's
    probabilities in its logarithm, which moves the value and no gradient; here it is the sum over classes.

    Args:
        alpha: weight of ``robust``; ``clean`` has the rest.
    """

    needs = Needs(student={"logits"}, teacher={"logits"}, batch={ADVERSARIAL_INPUTS})

    def __init__(self, *, alpha: Fraction = 5 / 6) -> None:
        super().__init__()
        self.weights = {"robust": alpha, "clean": 1 - alpha}

    def observe(self, batch: Batch, observers: Observers) -> dict[str, Signals]:
        """Shows the teacher the clean images and the student both, in two passes."""
        teacher = observers["teacher"](batch)
        return {"student": observe_both("student", batch, observers), "teacher": teacher}

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``robust`` and ``clean``."""
        attacked = student.views[ADVERSARIAL].logits
        assert attacked is not None
        assert student.logits is not None
        assert teacher.logits is not None
        return {
            "robust": kl(attacked, teacher.logits, reduction="none"),
            "clean": kl(student.logits, teacher.logits, reduction="none"),
        }
