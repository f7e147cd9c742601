"""A teacher's own training under class imbalance: focal loss and averaged weights."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Lt
from torch import Tensor

from limbeck.errors import NeedsError
from limbeck.functional.focal import balanced_class_weights, focal_cross_entropy
from limbeck.hyperparameters import NonNegative
from limbeck.methods.base import Method, Needs, Setup, register
from limbeck.methods.weight_averaging import WeightAverage
from limbeck.schedules import Progress
from limbeck.signals import Batch, Signals, Terms


@register(
    "focal",
    title="Focal Loss for Dense Object Detection",
    authors="Tsung-Yi Lin and Priya Goyal and Ross Girshick and Kaiming He and Piotr Dollár",
    paper="1708.02002",
    year=2017,
    family="arm",
    equation=r"L = -w_y (1 - p_y)^\gamma \log p_y",
)
class Focal(Method):
    """Learns from labels alone, with more weight on rare classes and on samples that are not yet right.

    It is the way KD-OCT trains its teachers: with weights averaged over the last epochs, of which the mean is what the
    stage leaves.

    Terms:
        focal: focal cross-entropy with the labels.

    Deviations: KD-OCT's code focuses by the weighted probability (``weighted_focus``), and loads its best checkpoint
    over the averaged weights, which then have no effect; here the average is what remains.

    Args:
        gamma: how much samples that are right already lose weight.
        balanced: weigh classes inversely to their number of training samples.
        weighted_focus: see :func:`limbeck.functional.focal.focal_cross_entropy`.
        average_from: part of the run after which the weights at the end of each epoch are averaged; never when None.
    """

    needs = Needs(student={"logits"}, batch={"labels"})

    def __init__(
        self,
        *,
        gamma: NonNegative = 2.0,
        balanced: bool = True,
        weighted_focus: bool = False,
        average_from: Annotated[float, Ge(0), Lt(1)] | None = None,
    ) -> None:
        super().__init__()
        self.gamma, self.balanced = gamma, balanced
        self.weighted_focus, self.average_from = weighted_focus, average_from
        self.average: WeightAverage | None = None
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None)
        self.weights = {"focal": 1.0}

    def build(self, setup: Setup) -> None:
        """Counts the classes of the training data and prepares the average.

        Raises:
            NeedsError: classes are to be balanced, but the training data has no labels.
        """
        if self.balanced:
            if setup.labels is None or setup.num_classes is None:
                raise NeedsError(
                    "focal balances classes by the training labels, which are not there; set balanced: false"
                )
            weights = balanced_class_weights(setup.labels.cpu(), setup.num_classes)
            logits = setup.signals["student"].logits
            self.class_weights = weights if logits is None else weights.to(logits.device)
        if self.average_from is not None:
            self.average = WeightAverage(setup.models["student"], self.average_from)

    def after_step(self, progress: Progress) -> None:
        """Averages weights at the end of an epoch."""
        if self.average is not None:
            self.average.after_step(progress)

    def forward(self, batch: Batch, student: Signals) -> Terms:
        """Returns ``focal``."""
        assert student.logits is not None
        loss = focal_cross_entropy(
            student.logits,
            batch["labels"],
            gamma=self.gamma,
            class_weights=self.class_weights,
            weighted_focus=self.weighted_focus,
            reduction="none",
        )
        return {"focal": loss}
