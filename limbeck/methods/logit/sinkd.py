"""SinKD: optimal transport between the student's and the teacher's batch of predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional.classification import cross_entropy
from limbeck.functional.sinkhorn import sinkhorn_distance
from limbeck.hyperparameters import Count, Fraction, NonNegative, Positive, WholeNumber
from limbeck.methods.base import LogitMethod, label_loss, register
from limbeck.signals import Batch, Signals, Terms


@register(
    "sinkd",
    title="Sinkhorn Distance Minimization for Knowledge Distillation",
    authors="Xiao Cui and Yulei Qin and Yuting Gao and Enwei Zhang and Zihan Xu and Tong Wu and Ke Li and Xing Sun and "
    "Wengang Zhou and Houqiang Li",
    paper="2402.17110",
    year=2024,
    family="logit",
    equation=r"L = (1-\alpha)\,L_{CE} - \alpha \sum_c q^T_c \log q^S_c + \beta\,\tfrac1B \sum_{ij} P_{ij} D_{ij},"
    r" \quad D_{ij} = \| p^S_i - p^T_j \|_1, \quad P = \mathrm{Sinkhorn}_n(e^{-D/\varepsilon})",
)
class SinKD(LogitMethod):
    """Beside soft labels, the cost of carrying the student's batch of distributions to the teacher's.

    The transport sees the geometry of the whole batch, where a divergence sees one sample; it does not know which
    sample is which, so the other terms must. For two classes it moves along one line, for a single output it is
    constant. Memory and time grow with the square of the batch.

    Terms:
        ce: cross-entropy with the labels.
        kd: cross-entropy with the teacher's tempered probabilities, not multiplied by the squared temperature.
        sinkhorn: cost of the transport a sample.

    Deviations: the authors sum the transport over the batch and multiply it by 0.001, which for their batches of 32 is
    a weight ``beta`` of about 0.03 here and hardly moves the student; here it is a mean, so that ``beta`` does not
    depend on the size of the batch. Their transport runs at temperature 2 whatever is asked for. Their code for
    sequences normalises over the axis of positions; flatten positions instead.

    Args:
        alpha: weight of ``kd``; the labels get the rest.
        beta: weight of ``sinkhorn``.
        temperature: divides both logits before the softmax of the transport.
        kd_temperature: divides both logits before the softmax of ``kd``.
        anneal_epochs: epochs over which ``kd_temperature`` falls linearly to 1; 0 keeps it.
        epsilon: entropic smoothing of the transport.
        iterations: how often its rows and columns are normalised.
    """

    batch_coupled = True
    batch_memory = "quadratic"
    semi_supervised = True

    def __init__(
        self,
        *,
        alpha: Fraction = 0.8,
        beta: NonNegative = 0.8,
        temperature: Positive = 2.0,
        kd_temperature: Positive = 2.0,
        anneal_epochs: WholeNumber = 0,
        epsilon: Positive = 0.1,
        iterations: Count = 20,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.kd_temperature = kd_temperature
        self.anneal_epochs = anneal_epochs
        self.epsilon = epsilon
        self.iterations = iterations
        self.weights = {"ce": 1.0 - alpha, "kd": alpha, "sinkhorn": beta}

    def temperature_in(self, epoch: int) -> float:
        """Returns the temperature of ``kd`` in an epoch, counted from 0."""
        if self.anneal_epochs == 0:
            return self.kd_temperature
        done = min(epoch / (self.anneal_epochs - 1), 1.0) if self.anneal_epochs > 1 else 1.0
        return self.kd_temperature + (1 - self.kd_temperature) * done

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``ce``, ``kd`` and ``sinkhorn``."""
        assert student.logits is not None
        assert teacher.logits is not None
        ours, theirs = self.logit_transform(student.logits), self.logit_transform(teacher.logits)
        return {
            "ce": label_loss(student.logits, batch),
            "kd": self._soft(ours, theirs, self.temperature_in(int(batch.get("epoch", 0)))),
            "sinkhorn": sinkhorn_distance(
                ours, theirs, temperature=self.temperature, epsilon=self.epsilon, iterations=self.iterations,
                reduction="none",
            ),
        }  # fmt: skip

    def _soft(self, ours: Tensor, theirs: Tensor, temperature: float) -> Tensor:
        wide = torch.promote_types(theirs.dtype, torch.float32)
        targets = torch.softmax(theirs.detach().to(wide) / temperature, -1)
        return cross_entropy(ours.to(wide) / temperature, targets, reduction="none")
