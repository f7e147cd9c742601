"""NST: neuron selectivity transfer."""

from __future__ import annotations

import torch

from limbeck.functional.neuron_selectivity import Kernel, neuron_selectivity
from limbeck.hyperparameters import Count, NonNegative
from limbeck.methods.base import FeatureMethod, Needs, Setup, register
from limbeck.methods.feature.pairing import paired_maps
from limbeck.signals import Batch, Signals, Terms


@register(
    "nst",
    title="Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
    authors="Zehao Huang and Naiyan Wang",
    paper="1707.01219",
    year=2017,
    family="feature",
    equation=r"L = L_{CE} + \beta \sum_k \left[ \overline{k(t_i, t_{i'})} + \overline{k(s_j, s_{j'})} - "
    r"2\,\overline{k(t_i, s_j)} \right], \quad k(x, y) = (x^\top y + c)^d, "
    r"\quad s_j = \frac{f^S_{k,j}}{\|f^S_{k,j}\|_2}",
)
class NST(FeatureMethod):
    """The student's channels, as a set of spatial patterns, are distributed like the teacher's.

    Each channel's map is one sample, scaled to unit length; the two sets are compared by maximum mean discrepancy, so
    their sizes may differ. Of two map sizes the larger is average-pooled to the smaller.

    Terms:
        ce: cross-entropy with the labels.
        nst: squared maximum mean discrepancy, summed over the stages.

    Deviations: every stage is matched, as in mdistiller and RepDistiller, where the paper matches the last one (give
    one tap for that). Products of channels are formed by matrix multiplication, which gives the same values as their
    code with ``HW`` times less memory. The Gaussian kernel's bandwidth counts as a constant.

    Args:
        kernel: ``polynomial`` (published results), ``linear`` or ``gaussian``.
        degree: degree of the polynomial kernel.
        offset: constant of the polynomial kernel.
    """

    needs = Needs(student={"logits", "features.stages"}, teacher={"features.stages"}, batch={"labels"})
    semi_supervised = True

    def __init__(self, *, kernel: Kernel = "polynomial", degree: Count = 2, offset: NonNegative = 0.0) -> None:
        super().__init__()
        self.kernel: Kernel = kernel
        self.degree = degree
        self.offset = offset
        self.weights = {"ce": 1.0, "nst": 50.0}

    def build(self, setup: Setup) -> None:
        """Checks that the stages pair up."""
        paired_maps(setup)

    def distill(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``nst``."""
        kernel, degree, offset = self.kernel, self.degree, self.offset
        losses = [
            neuron_selectivity(ours, theirs, kernel=kernel, degree=degree, offset=offset, reduction="none")
            for ours, theirs in zip(student.features["stages"], teacher.features["stages"])
        ]
        return {"nst": torch.stack(losses).sum(0)}
