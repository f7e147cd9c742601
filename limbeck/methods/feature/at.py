"""AT: attention transfer."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge

from limbeck.functional.feature_maps import attention_transfer
from limbeck.methods.base import FeatureMethod, Needs, Setup, register
from limbeck.methods.feature.pairing import paired_maps
from limbeck.signals import Batch, Signals, Terms


@register(
    "at",
    title="Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via "
    "Attention Transfer",
    authors="Sergey Zagoruyko and Nikos Komodakis",
    paper="1612.03928",
    year=2017,
    family="feature",
    equation=r"L = L_{CE} + \beta \sum_k \frac{1}{H_k W_k} \left\| \frac{m(f^S_k)}{\|m(f^S_k)\|_2} - "
    r"\frac{m(f^T_k)}{\|m(f^T_k)\|_2} \right\|_2^2, \quad m(f) = \frac{1}{C} \sum_c |f_c|^p",
)
class AttentionTransfer(FeatureMethod):
    """The student looks where the teacher looks: unit-length maps of mean activation strength agree at every stage.

    Channels may differ; of two sizes the larger map is average-pooled to the smaller.

    Terms:
        ce: cross-entropy with the labels.
        at: attention transfer, summed over the stages.

    Deviations: the absolute value is taken before the power, as in the paper; mdistiller's code leaves it out, which
    differs for odd powers of maps with negative entries. Authors' code squares the distance of the paper's equation 2;
    so does the default here, and ``distance="l2"`` is the paper's (its values are larger: lower the weight).

    Args:
        p: power of the activations in the attention map, at least 1.
        distance: ``squared`` (authors' code) or ``l2`` (the paper's equation).
    """

    needs = Needs(student={"logits", "features.stages"}, teacher={"features.stages"}, batch={"labels"})
    semi_supervised = True

    def __init__(self, *, p: Annotated[float, Ge(1)] = 2.0, distance: Literal["squared", "l2"] = "squared") -> None:
        super().__init__()
        self.p = p
        self.distance: Literal["squared", "l2"] = distance
        self.weights = {"ce": 1.0, "at": 1000.0}

    def build(self, setup: Setup) -> None:
        """Checks that the stages pair up."""
        paired_maps(setup)

    def distill(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``at``."""
        losses = [
            attention_transfer(ours, theirs, p=self.p, distance=self.distance, reduction="none")
            for ours, theirs in zip(student.features["stages"], teacher.features["stages"])
        ]
        return {"at": torch.stack(losses).sum(0)}
