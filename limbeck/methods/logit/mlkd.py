"""MLKD: instances, batches and classes, at several temperatures and on two views."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from limbeck.functional.classification import cross_entropy
from limbeck.functional.correlation import batch_correlation, class_correlation
from limbeck.functional.divergences import kl
from limbeck.hyperparameters import Positive
from limbeck.methods.base import LogitMethod, Needs, register
from limbeck.signals import Batch, Signals, Terms

STRONG = "strong"


@register(
    "mlkd",
    title="Multi-Level Logit Distillation",
    authors="Ying Jin and Jiaqi Wang and Dahua Lin",
    paper="https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html",
    year=2023,
    family="logit",
    equation=r"L = 0.1\,L_{CE} + 0.9 \sum_{T \in \mathcal{T}} \big[ T^2\,\mathrm{KL}(p^T \| p^S)"
    r" + \tfrac1B \| P^S {P^S}^\top - P^T {P^T}^\top \|^2 + \tfrac1C \| {P^S}^\top P^S - {P^T}^\top P^T \|^2 \big]",
)
class MLKD(LogitMethod):
    """Aligns single predictions, the correlations of samples and those of classes, over a weak and a strong view.

    On the weak view only samples on which the teacher is no surer than a percentile of the batch count, and only
    classes with no more total probability than that percentile; on the strong view all do. Memory grows with the square
    of the batch.

    Terms:
        ce: cross-entropy with the labels, the sum of both views.
        kd: instance-level KL divergence, summed over views and temperatures.
        bc: batch-level correlation, likewise.
        cc: class-level correlation, likewise.

    Deviations: the released code averages its weak terms before it masks them, so that the masks only scale them by
    their mean, takes the weak view for the last two temperatures of the strong KL divergence, and drops the strong
    correlation terms. The default here is the evident intention; ``released_code`` repeats the release. The published
    run takes 480 epochs with strong augmentation. A ``logit_transform`` applies to the KL divergence only, as its
    authors do.

    Args:
        temperature: first of the temperatures.
        extra_temperatures: the others.
        percentile: percentile of the teacher's confidences up to which samples (and classes) count on the weak view.
        released_code: whether to repeat the released code exactly.
    """

    needs = Needs(student={"logits"}, teacher={"logits"}, batch={"labels"}, views=(STRONG,))
    batch_coupled = True
    batch_memory = "quadratic"

    def __init__(
        self,
        *,
        temperature: Positive = 4.0,
        extra_temperatures: tuple[Positive, ...] = (3.0, 5.0, 2.0, 6.0),
        percentile: Annotated[float, Ge(0), Le(100)] = 50.0,
        released_code: bool = False,
    ) -> None:
        super().__init__()
        self.temperatures = (temperature, *extra_temperatures)
        self.percentile = percentile
        self.released_code = released_code
        self.weights = {"ce": 0.1, "kd": 0.9, "bc": 0.9, "cc": 0.9}

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``ce``, ``kd``, ``bc`` and ``cc``."""
        weak = _logits(student), _logits(teacher)
        strong = _logits(student.views[STRONG]), _logits(teacher.views[STRONG])
        labels = batch["labels"]
        samples, classes = self.masks(weak[1])
        return {
            "ce": cross_entropy(weak[0], labels, reduction="none") + cross_entropy(strong[0], labels, reduction="none"),
            "kd": self._instances(weak, strong, samples),
            **self._correlations(weak, strong, samples, classes),
        }

    def masks(self, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Returns which samples ``[B]`` and which classes ``[C]`` count on the weak view."""
        probabilities = torch.softmax(
            teacher_logits.detach().to(torch.promote_types(teacher_logits.dtype, torch.float32)), 1
        )
        confidence, total = probabilities.amax(1), probabilities.sum(0)
        rank = self.percentile / 100
        return confidence <= torch.quantile(confidence, rank), total <= torch.quantile(total, rank)

    def _instances(self, weak: tuple[Tensor, Tensor], strong: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """KL divergences of both views, summed over the temperatures, ``[B]``."""
        transform = self.logit_transform
        weak, strong = (transform(weak[0]), transform(weak[1])), (transform(strong[0]), transform(strong[1]))
        losses = []
        for number, temperature in enumerate(self.temperatures):
            instances = kl(*weak, temperature=temperature, reduction="none")
            repeats_weak = self.released_code and number >= len(self.temperatures) - 2
            losses.append(instances if repeats_weak else kl(*strong, temperature=temperature, reduction="none"))
            kept = mask.to(instances.dtype)
            losses.append(instances * (kept.mean() if self.released_code else kept))
        return torch.stack(losses).sum(0)

    def _correlations(
        self, weak: tuple[Tensor, Tensor], strong: tuple[Tensor, Tensor], samples: Tensor, classes: Tensor
    ) -> Terms:
        """Batch-level and class-level distances, summed over views and temperatures, scalars."""
        terms: Terms = {}
        for name, distance, mask in (("bc", batch_correlation, samples), ("cc", class_correlation, classes)):
            losses = []
            for temperature in self.temperatures:
                if self.released_code:
                    whole = distance(*weak, temperature=temperature)
                    losses.append(whole * mask.to(whole.dtype).mean())
                else:
                    losses.append(distance(*weak, temperature=temperature, mask=mask, reduction="batchmean"))
                    losses.append(distance(*strong, temperature=temperature))
            terms[name] = torch.stack(losses).sum()
        return terms


def _logits(signals: Signals) -> Tensor:
    assert signals.logits is not None
    return signals.logits
