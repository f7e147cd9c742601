"""DHKD: labels and logits each teach a classifier of their own, on one backbone."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from limbeck import streams
from limbeck.functional.binary_divergences import binary_kl, binary_kl_norm
from limbeck.functional.classification import cross_entropy
from limbeck.hyperparameters import NonNegative, Positive
from limbeck.methods.base import LogitMethod, Needs, Setup, register
from limbeck.methods.heads import PerceptronHead, further_head
from limbeck.methods.projectors import project
from limbeck.signals import Batch, Signals, Terms


@register(
    "dhkd",
    title="Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head",
    authors="Penghui Yang and Chen-Chen Zong and Sheng-Jun Huang and Lei Feng and Bo An",
    paper="2411.08937",
    year=2024,
    family="logit",
    equation=r"L = \gamma\,L_{CE}(s_1, y) + \alpha\,T^2 \sum_c \mathrm{KL}\big(\mathrm{Bern}(\tfrac12) \,\|\,"
    r" \mathrm{Bern}(\sigma((s_{2,c} - t_c) / T))\big), \quad s_i = \mathrm{head}_i(h)",
)
class DHKD(LogitMethod):
    """A loss on raw logits helps the features and harms the classifier, so it gets a classifier that is thrown away.

    The student's own classifier learns the labels alone; an auxiliary one on the same pooled features learns the
    teacher's logits. Only the student with its own classifier is deployed.

    Terms:
        ce: cross-entropy of the student's own classifier with the labels.
        logit: distance of the auxiliary classifier's logits from the teacher's, summed over classes.

    Deviations: the authors cut the sigmoid to [1e-8, 1 - 1e-8], so that very wrong logits teach nothing any more; here
    ``eps`` does so. Their aligned gradients give parameters that no loss reaches a gradient of zero, which weight
    decay then moves; here such parameters have none. Dropout of the auxiliary classifier is drawn for each sample and
    epoch from the run's seed.

    Args:
        alpha: weight of ``logit``. The loss grows with the number of classes: 1 serves a hundred, 0.01 to 0.2 ten.
        gamma: weight of ``ce``.
        temperature: scale of the differences of logits.
        loss: ``binary_kl_norm`` compares differences of logits; ``binary_kl`` the sigmoids of both sides.
        heads: ``dual``; or ``single``, where both losses meet in the student's own classifier.
        auxiliary: ``linear``; or ``perceptron``, a classifier with a hidden layer of 200, dropout and normalisation.
        gradients: ``sum``; or ``aligned``, where the gradient of ``logit`` over all parameters loses its component
            against that of ``ce`` when the two point apart.
        eps: cuts the sigmoids to ``[eps, 1 - eps]``.
    """

    def __init__(
        self,
        *,
        alpha: NonNegative = 1.0,
        gamma: NonNegative = 1.0,
        temperature: Positive = 2.0,
        loss: Literal["binary_kl_norm", "binary_kl"] = "binary_kl_norm",
        heads: Literal["dual", "single"] = "dual",
        auxiliary: Literal["linear", "perceptron"] = "linear",
        gradients: Literal["sum", "aligned"] = "sum",
        eps: Annotated[float, Ge(0), Lt(0.5)] = 0.0,
    ) -> None:
        super().__init__()
        self.temperature, self.eps = temperature, eps
        self.loss = {"binary_kl_norm": binary_kl_norm, "binary_kl": binary_kl}[loss]
        self.dual, self.auxiliary = heads == "dual", auxiliary
        student = {"logits", "features.pooled"} if self.dual else {"logits"}
        self.needs = Needs(student=student, teacher={"logits"}, batch={"labels"})
        self.weights = {"ce": gamma, "logit": alpha}
        self.aligned = gradients == "aligned"
        self.head: nn.Module = nn.Identity()
        self._seed = 0

    def build(self, setup: Setup) -> None:
        """Makes the auxiliary classifier."""
        self._seed = setup.seed
        logits = setup.signals["student"].logits
        if self.dual and logits is not None:
            hidden, dropout = (200, 0.1) if self.auxiliary == "perceptron" else (0, 0.0)
            self.head = further_head(setup, logits.shape[1], "dhkd", hidden=hidden, dropout=dropout)

    def yielding(self) -> frozenset[str]:
        """Returns ``logit`` where gradients are aligned."""
        return frozenset({"logit"} if self.aligned else ())

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``ce`` and ``logit``."""
        assert student.logits is not None
        assert teacher.logits is not None
        ours = self.auxiliary_logits(batch, student) if self.dual else student.logits
        ours, theirs = self.logit_transform(ours), self.logit_transform(teacher.logits)
        return {
            "ce": cross_entropy(student.logits, batch["labels"], reduction="none"),
            "logit": self.loss(ours, theirs, temperature=self.temperature, eps=self.eps, reduction="none"),
        }

    def auxiliary_logits(self, batch: Batch, student: Signals) -> Tensor:
        """Returns the logits ``[B, C]`` of the auxiliary classifier."""
        features = student.feature("pooled").flatten(1)
        if not isinstance(self.head, PerceptronHead) or not self.training:
            return project(self.head, features)
        index, width = batch["index"].cpu().numpy(), self.head.inner.out_features
        chances = streams.uniform(self._seed, "dhkd dropout", int(batch.get("epoch", 0)), index, width)
        inputs = features.to(self.head.inner.weight.dtype)
        return self.head(inputs, torch.from_numpy(chances).to(inputs))
