"""The arm without distillation."""

from __future__ import annotations

from limbeck.functional.classification import cross_entropy
from limbeck.methods.base import Method, Needs, register
from limbeck.signals import Batch, Signals, Terms


@register("none", title="No distillation", paper="", year=0, family="arm", equation=r"L = -\log p^S_y")
class NoDistillation(Method):
    """Plain cross-entropy with the labels, the arm that every method is measured against.

    Terms:
        ce: cross-entropy with the labels.
    """

    needs = Needs(student={"logits"}, batch={"labels"})

    def __init__(self) -> None:
        super().__init__()
        self.weights = {"ce": 1.0}

    def forward(self, batch: Batch, student: Signals) -> Terms:
        """Returns ``ce``."""
        assert student.logits is not None
        return {"ce": cross_entropy(student.logits, batch["labels"], reduction="none")}
