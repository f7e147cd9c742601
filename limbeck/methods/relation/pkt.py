"""PKT: neighbourhood probabilities of the samples of a batch."""

from __future__ import annotations

from limbeck.functional.relations import probabilistic_transfer
from limbeck.hyperparameters import NonNegative
from limbeck.methods.base import FeatureMethod, Needs, register
from limbeck.signals import Batch, Signals, Terms


@register(
    "pkt",
    title="Learning Deep Representations with Probabilistic Knowledge Transfer",
    authors="Nikolaos Passalis and Anastasios Tefas",
    paper="1803.10837",
    year=2018,
    family="relation",
    equation=r"L = L_{CE} + \frac{\lambda}{B^2} \sum_{ij}"
    r" p^T_{ij} \log \frac{p^T_{ij} + \varepsilon}{p^S_{ij} + \varepsilon},"
    r" \quad p_{ij} \propto \tfrac12 \big(\cos(g_i, g_j) + 1\big)",
)
class PKT(FeatureMethod):
    """Each sample's pooled features have the same neighbours for student and teacher, as probabilities.

    Memory grows with the square of the batch.

    Terms:
        ce: cross-entropy with the labels.
        pkt: KL divergence between neighbourhoods under a cosine kernel, averaged over all pairs of samples.

    The weight is as large as it is because the mean over all pairs divides twice by the batch size. Deviations: none
    from the authors' code, but the gradient at a row of zeros is finite where theirs becomes NaN.

    Args:
        eps: added inside both logarithms and to the norms of the features; bounds the loss for opposite features.
    """

    needs = Needs(student={"logits", "features.pooled"}, teacher={"features.pooled"}, batch={"labels"})
    semi_supervised = True
    batch_coupled = True
    batch_memory = "quadratic"

    def __init__(self, *, eps: NonNegative = 1e-7) -> None:
        super().__init__()
        self.eps = eps
        self.weights = {"ce": 1.0, "pkt": 30000.0}

    def distill(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``pkt``."""
        return {"pkt": probabilistic_transfer(student.feature("pooled"), teacher.feature("pooled"), eps=self.eps)}
