"""RKD: distances and angles between the samples of a batch."""

from __future__ import annotations

from limbeck.functional.relations import relational_angle, relational_distance
from limbeck.hyperparameters import NonNegative
from limbeck.methods.base import FeatureMethod, Needs, register
from limbeck.signals import Batch, Signals, Terms


@register(
    "rkd",
    title="Relational Knowledge Distillation",
    authors="Wonpyo Park and Dongju Kim and Yan Lu and Minsu Cho",
    paper="1904.05068",
    year=2019,
    family="relation",
    equation=r"L = L_{CE} + \frac{\lambda_D}{B^2} \sum_{ij} \ell_1\big(\psi^S_{ij}, \psi^T_{ij}\big)"
    r" + \frac{\lambda_A}{B^3} \sum_{ijk} \ell_1\big(\cos\angle^S_{ijk}, \cos\angle^T_{ijk}\big)",
)
class RKD(FeatureMethod):
    """The pooled features of a batch keep the teacher's shape: relative distances and the angles of all triplets.

    Memory grows with the square of the batch: of more than 160 samples, angles are recomputed for the backward pass.

    Terms:
        ce: cross-entropy with the labels.
        distance: Huber loss between pairwise distances, each divided by their mean.
        angle: Huber loss between the cosines of the angles of all triplets; time grows with the cube of the batch size.

    Deviations: distances come from differences, not from the expanded square, so near samples lose no digits. Equal
    samples have distance 0 and no gradient there; the authors' code sets 1e-12 as the smallest squared distance,
    which ``eps`` repeats, and has an exploding gradient of the angles at equal samples.

    Args:
        squared: whether distances are squared.
        eps: smallest squared distance of two samples; nearer ones count as that far.
    """

    needs = Needs(student={"logits", "features.pooled"}, teacher={"features.pooled"}, batch={"labels"})
    semi_supervised = True
    batch_coupled = True
    batch_memory = "quadratic"

    def __init__(self, *, squared: bool = False, eps: NonNegative = 0.0) -> None:
        super().__init__()
        self.squared = squared
        self.eps = eps
        self.weights = {"ce": 1.0, "distance": 25.0, "angle": 50.0}

    def distill(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``distance`` and ``angle``."""
        ours, theirs = student.feature("pooled"), teacher.feature("pooled")
        return {
            "distance": relational_distance(ours, theirs, squared=self.squared, eps=self.eps),
            "angle": relational_angle(ours, theirs),
        }
