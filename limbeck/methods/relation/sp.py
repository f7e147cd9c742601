"""SP: similarities between the samples of a batch."""

from __future__ import annotations

from limbeck.functional.relations import similarity_preserving
from limbeck.methods.base import FeatureMethod, Needs, register
from limbeck.signals import Batch, Signals, Terms


@register(
    "sp",
    title="Similarity-Preserving Knowledge Distillation",
    authors="Frederick Tung and Greg Mori",
    paper="1907.09682",
    year=2019,
    family="relation",
    equation=r"L = L_{CE} + \frac{\gamma}{B^2} \big\| \tilde G^S - \tilde G^T \big\|_F^2, \quad"
    r" \tilde G = \mathrm{rownorm}_2(F F^\top)",
)
class SimilarityPreserving(FeatureMethod):
    """Samples that are alike for the teacher are alike for the student, at the last feature map.

    Sizes and channels of the maps may differ; nothing is projected. Memory grows with the square of the batch.

    Terms:
        ce: cross-entropy with the labels.
        sp: squared difference of row-normalised similarity matrices, divided by the squared batch size.

    Deviations: none from the paper with one pair of layers, which is also what the benchmarks use.
    """

    needs = Needs(student={"logits", "features.stages"}, teacher={"features.stages"}, batch={"labels"})
    semi_supervised = True
    batch_coupled = True
    batch_memory = "quadratic"

    def __init__(self) -> None:
        super().__init__()
        self.weights = {"ce": 1.0, "sp": 3000.0}

    def distill(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``sp``."""
        return {"sp": similarity_preserving(student.feature("stages"), teacher.feature("stages"))}
