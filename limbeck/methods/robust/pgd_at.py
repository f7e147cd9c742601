"""PGD-AT: adversarial training without a teacher."""

from __future__ import annotations

from limbeck.functional.classification import cross_entropy
from limbeck.methods.base import Method, Needs, Observers, register
from limbeck.methods.robust.attacked import ADVERSARIAL_INPUTS, seen_by_all
from limbeck.signals import Batch, Signals, Terms


@register(
    "pgd_at",
    title="Towards Deep Learning Models Resistant to Adversarial Attacks",
    authors="Aleksander Madry and Aleksandar Makelov and Ludwig Schmidt and Dimitris Tsipras and Adrian Vladu",
    paper="1706.06083",
    year=2018,
    family="robust",
    equation=r"L = \max_{\|\tilde x - x\|_\infty \le \varepsilon} -\log p^S_y(\tilde x)",
)
class PGDAdversarialTraining(Method):
    """The student learns the labels of adversarial examples alone.

    The arm without a teacher, against which robust distillation is measured. The transform ``pgd`` makes the examples.

    Terms:
        ce: cross-entropy of the adversarial example with its label.

    Deviations: the paper attacks the model in the mode it trains in; here, as in later work, the attack sees it in
    eval mode.
    """

    needs = Needs(student={"logits"}, batch={"labels", ADVERSARIAL_INPUTS})

    def __init__(self) -> None:
        super().__init__()
        self.weights = {"ce": 1.0}

    def observe(self, batch: Batch, observers: Observers) -> dict[str, Signals]:
        """Shows the student the adversarial examples only."""
        return {"student": observers["student"](seen_by_all(batch))}

    def forward(self, batch: Batch, student: Signals) -> Terms:
        """Returns ``ce``."""
        assert student.logits is not None
        return {"ce": cross_entropy(student.logits, batch["labels"], reduction="none")}
