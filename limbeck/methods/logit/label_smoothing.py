"""The arm with smoothed labels in place of a teacher."""

from __future__ import annotations

from limbeck.functional.classification import cross_entropy
from limbeck.hyperparameters import Fraction
from limbeck.methods.base import Method, Needs, register
from limbeck.signals import Batch, Signals, Terms


@register(
    "label_smoothing",
    title="Rethinking the Inception Architecture for Computer Vision",
    authors="Christian Szegedy and Vincent Vanhoucke and Sergey Ioffe and Jonathon Shlens and Zbigniew Wojna",
    paper="1512.00567",
    year=2016,
    family="arm",
    equation=r"L = -(1-\epsilon) \log p^S_y - \frac{\epsilon}{C} \sum_c \log p^S_c",
)
class LabelSmoothing(Method):
    """Cross-entropy with labels of which a part is spread evenly over all classes.

    A regulariser without a teacher: what distillation gains beyond it comes from the teacher's knowledge.

    Terms:
        ce: cross-entropy with the smoothed labels.

    Args:
        smoothing: part of the probability mass that is spread over all classes, the right one included.
    """

    needs = Needs(student={"logits"}, batch={"labels"})

    def __init__(self, *, smoothing: Fraction = 0.1) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.weights = {"ce": 1.0}

    def forward(self, batch: Batch, student: Signals) -> Terms:
        """Returns ``ce``."""
        assert student.logits is not None
        loss = cross_entropy(student.logits, batch["labels"], label_smoothing=self.smoothing, reduction="none")
        return {"ce": loss}
