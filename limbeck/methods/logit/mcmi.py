"""MCMI: prepares a teacher whose outputs tell more of each sample than its class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from limbeck.functional.classification import class_indices, cross_entropy
from limbeck.functional.conditional_information import conditional_mutual_information, log_centroids, log_class_sums
from limbeck.hyperparameters import NonNegative
from limbeck.methods.base import Method, Needs, Observed, Passes, Setup, register
from limbeck.schedules import Progress
from limbeck.signals import Batch, Signals, Terms


@register(
    "mcmi",
    title="Bayes Conditional Distribution Estimation for Knowledge Distillation Based on Conditional Mutual"
    " Information",
    authors="Linfeng Ye and Shayan Mohajer Hamidi and Renhao Tan and En-Hui Yang",
    paper="2401.08732",
    year=2024,
    family="logit",
    equation=r"L = L_{CE} - \lambda\,\mathrm{KL}\big(p(x) \| Q_y\big),"
    r" \quad Q_c = \mathrm{mean}_{x: y = c}\, p(x)",
)
class MCMI(Method):
    """Fine-tunes a trained teacher to fit the labels and to keep its outputs within a class apart from each other.

    A stage of its own, before any distillation: its ``student`` is the model that will be the teacher, with trained
    weights, and a later stage takes it by ``teacher: {from_stage: ...}``. Nothing of it is left in the final student.

    Terms:
        ce: cross-entropy with the labels.
        negative_cmi: minus the divergence of the output from its class's centroid, whose mean is the conditional mutual
            information of sample and output given the class.

    The objective has no lower bound: with too large a weight the model gives up its labels within a few steps.

    Deviations: the paper alternates between training and new centroids, the authors' code computes them once, in train
    mode; here they are computed in eval mode, anew after every epoch unless ``centroids`` is ``once``. Zero
    probabilities are not clamped but kept apart from zero by logarithms.

    Args:
        weight: of ``negative_cmi``, the authors' lambda; they use 0.05 to 0.25 by teacher.
        centroids: ``epoch`` computes the centroids before the first and after every epoch, ``once`` before the first
            only.
    """

    needs = Needs(student={"logits"}, batch={"labels"})
    log_centroids: Tensor

    def __init__(self, *, weight: NonNegative = 0.15, centroids: Literal["epoch", "once"] = "epoch") -> None:
        super().__init__()
        self.refreshes = centroids == "epoch"
        self.weights = {"ce": 1.0, "negative_cmi": weight}

    def build(self, setup: Setup) -> None:
        """Makes room for the centroids."""
        logits = setup.signals["student"].logits
        assert logits is not None
        classes = logits.shape[1]
        self.register_buffer("log_centroids", log_centroids(torch.zeros(classes, classes, device=logits.device)))

    def prepare(self, observe_all: Callable[[], Observed]) -> None:
        """Averages the outputs over each class."""
        self._average(observe_all())

    def refresh(self, progress: Progress, passes: Passes) -> None:
        """Averages the outputs of the model as it is now."""
        if self.refreshes:
            self._average(passes.training())

    def _average(self, observed: Observed) -> None:
        sums: Tensor | None = None
        for batch, signals in observed:
            logits, labels = signals["student"].logits, class_indices(batch["labels"])
            assert logits is not None
            found = log_class_sums(logits.double(), labels, num_classes=len(self.log_centroids))
            sums = found if sums is None else torch.logaddexp(sums, found)
        if sums is not None:
            self.log_centroids.copy_(log_centroids(sums))

    def forward(self, batch: Batch, student: Signals) -> Terms:
        """Returns ``ce`` and ``negative_cmi``."""
        assert student.logits is not None
        labels = class_indices(batch["labels"])
        information = conditional_mutual_information(student.logits, labels, self.log_centroids, reduction="none")
        return {"ce": cross_entropy(student.logits, batch["labels"], reduction="none"), "negative_cmi": -information}
