"""CC: correlations between the samples of a batch."""

from __future__ import annotations

from typing import Literal

from torch import nn

from limbeck.functional.relations import consecutive_correlation, correlation_congruence
from limbeck.hyperparameters import Count, Positive
from limbeck.methods.base import FeatureMethod, Needs, Setup, register
from limbeck.methods.projectors import project
from limbeck.signals import Batch, Signals, Terms


@register(
    "cc",
    title="Correlation Congruence for Knowledge Distillation",
    authors="Baoyun Peng and Xiao Jin and Jiaheng Liu and Shunfeng Zhou and "
    "Yichao Wu and Yu Liu and Dongsheng Li and Zhaoning Zhang",
    paper="1904.01802",
    year=2019,
    family="relation",
    equation=r"L = L_{CE} + \frac{\lambda}{B^2} \| K^S - K^T \|_F^2, \quad"
    r" k(x, y) = e^{-2\gamma} \sum_{p=0}^{P} \frac{(2\gamma)^p}{p!} (x^\top y)^p",
)
class CorrelationCongruence(FeatureMethod):
    """The kernel matrix of a batch's pooled features is the same for student and teacher.

    Memory grows with the square of the batch.

    Terms:
        ce: cross-entropy with the labels.
        cc: the loss of the chosen form.

    Deviations: the benchmarks' numbers (RepDistiller) come from another loss, ``form="repdistiller"``: both features
    are embedded by trained layers, and the absolute differences of neighbours in the batch are multiplied. It depends
    on the order of the batch and is smallest where both embeddings collapse, so the paper's kernel is the default.
    The weight of ``repdistiller`` is the benchmarks' 0.02; the kernel's 100 was chosen here, because its loss on
    features of unit length is that much smaller.

    Args:
        form: ``kernel`` (the paper) or ``repdistiller``.
        kernel: ``rbf``, a Taylor expansion of a Gaussian, or ``bilinear``; for the form ``kernel``.
        gamma: width of the Gaussian; for ``rbf``.
        order: highest power of the expansion; for ``rbf``.
        embedding: size of the embeddings; for the form ``repdistiller``.
    """

    needs = Needs(student={"logits", "features.pooled"}, teacher={"features.pooled"}, batch={"labels"})
    semi_supervised = True
    batch_coupled = True
    batch_memory = "quadratic"

    def __init__(
        self,
        *,
        form: Literal["kernel", "repdistiller"] = "kernel",
        kernel: Literal["rbf", "bilinear"] = "rbf",
        gamma: Positive = 0.4,
        order: Count = 2,
        embedding: Count = 128,
    ) -> None:
        super().__init__()
        self.form: Literal["kernel", "repdistiller"] = form
        self.kernel: Literal["rbf", "bilinear"] = kernel
        self.gamma = gamma
        self.order = order
        self.embedding = embedding
        self.order_dependent = form == "repdistiller"
        self.order_dependent = form == "repdistiller"
        self.weights = {"ce": 1.0, "cc": 100.0 if form == "kernel" else 0.02}

    def build(self, setup: Setup) -> None:
        """Makes the embeddings of the form ``repdistiller``."""
        if self.form == "repdistiller":
            pooled = {role: setup.signals[role].feature("pooled").flatten(1) for role in ("student", "teacher")}
            self.embed = nn.ModuleDict(
                {role: nn.Linear(f.shape[1], self.embedding).to(f.device) for role, f in pooled.items()}
            )

    def distill(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``cc``."""
        ours, theirs = student.feature("pooled").flatten(1), teacher.feature("pooled").flatten(1)
        if self.form == "repdistiller":
            embeddings = project(self.embed["student"], ours), project(self.embed["teacher"], theirs)
            return {"cc": consecutive_correlation(*embeddings)}
        return {"cc": correlation_congruence(ours, theirs, kernel=self.kernel, gamma=self.gamma, order=self.order)}
