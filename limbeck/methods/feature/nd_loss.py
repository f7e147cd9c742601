"""ND loss: the norm and the direction of features, beside logit distillation (KD++)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from limbeck import streams
from limbeck.functional.classification import class_indices
from limbeck.functional.divergences import kl
from limbeck.functional.feature_direction import norm_and_direction
from limbeck.hyperparameters import Fraction, NonNegative, Positive
from limbeck.methods.base import FeatureMethod, Needs, Setup, register
from limbeck.methods.class_means import class_means
from limbeck.schedules import Warmup
from limbeck.signals import Batch, Signals, Terms


class EmbeddingProjector(nn.Module):
    """Normalises an embedding, drops parts of it and maps it linearly to the teacher's width.

    Args:
        student: ``[B, Ds]`` from a dry run; only its shape and device are used.
        teacher: ``[B, Dt]``, likewise.
    """

    def __init__(self, student: Tensor, teacher: Tensor) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(student.shape[1])
        self.linear = nn.Linear(student.shape[1], teacher.shape[1])
        self.to(student.device)

    def forward(self, embedding: Tensor, scale: Tensor | None = None) -> Tensor:
        """Returns ``[B, Dt]``; ``scale`` ``[B, Ds]`` is what dropout multiplies the normalised entries by."""
        normalised = self.norm(embedding.to(self.linear.weight.dtype))
        return self.linear(normalised if scale is None else normalised * scale.to(normalised))


@register(
    "nd_loss",
    title="Improving Knowledge Distillation via Regularizing Feature Norm and Direction",
    authors="Yuzhu Wang and Lechao Cheng and Manni Duan and Yongheng Wang and Zunlei Feng and Shu Kong",
    paper="2305.17007",
    year=2023,
    family="feature",
    equation=r"L = L_{CE} + w_{KD}(e)\,L_{KD} + w\,\Big(1 - \frac{\langle f^S, e_y \rangle}"
    r"{\max(\|f^S\|, \|f^T\|)}\Big), \quad e_y = c_y / \|c_y\|",
)
class NDLoss(FeatureMethod):
    """Pulls the student's pooled features to the length of the teacher's and to the direction of the teacher's class.

    The direction of a class is that of the mean of the teacher's pooled features over the training data, gathered in
    one pass before the first step. Where the widths differ, a projector carries the student's features to the
    teacher's space; it is left out of the deployed student.

    Terms:
        ce: cross-entropy with the labels.
        kd: KL divergence from the teacher's tempered probabilities to the student's; weight 0 leaves plain ND.
        nd: one minus the projection on the class's direction, over the longer of the two lengths.

    Deviations: class means are computed from the training data and the teacher at hand; the authors' code reads them
    from a file, rounded to four digits. Their ``kd`` weight is zero in the first of 20 warm-up epochs, here one step
    of the warm-up higher. The projector's dropout draws from the run's counter-based streams. With mixed-up labels the
    class is the one of the larger share.

    Args:
        weight: weight of ``nd``; the authors use 0.5 to 4 by pair of models.
        kd_weight: weight of ``kd``; the authors use 1 to 4.
        temperature: divides both logits in ``kd``.
        warmup_epochs: epochs over which the weight of ``kd`` grows linearly; None for a twelfth of the run.
        dropout: part of the student's features that the projector leaves out in training.
    """

    needs = Needs(
        student={"logits", "features.pooled"}, teacher={"logits", "features.pooled"}, batch={"labels", "index"}
    )
    class_means: Tensor

    def __init__(
        self,
        *,
        weight: NonNegative = 2.0,
        kd_weight: NonNegative = 1.0,
        temperature: Positive = 4.0,
        warmup_epochs: NonNegative | None = None,
        dropout: Fraction = 0.5,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.dropout = dropout
        self.weights = {"ce": 1.0, "kd": Warmup(kd_weight, warmup_epochs), "nd": weight}
        self.projector: EmbeddingProjector | None = None
        self._seed = 0

    def build(self, setup: Setup) -> None:
        """Makes room for the class means, and a projector where the widths differ."""
        ours, theirs = (setup.signals[role].feature("pooled").flatten(1) for role in ("student", "teacher"))
        logits = setup.signals["student"].logits
        assert logits is not None
        self.register_buffer("class_means", torch.zeros(logits.shape[1], theirs.shape[1], device=theirs.device))
        self.projector = EmbeddingProjector(ours, theirs) if ours.shape[1] != theirs.shape[1] else None
        self._seed = setup.seed

    def prepare(self, observe_all: Callable[[], Iterator[tuple[Batch, dict[str, Signals]]]]) -> None:
        """Averages the teacher's features over each class."""
        means = class_means(
            observe_all(), lambda signals: signals["teacher"].feature("pooled").flatten(1), len(self.class_means)
        )
        self.class_means.copy_(means)

    def distill(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``kd`` and ``nd``."""
        assert student.logits is not None
        assert teacher.logits is not None
        ours = student.feature("pooled").flatten(1)
        if self.projector is not None:
            ours = self.projector(ours, self._dropout_scale(batch, ours))
        theirs = teacher.feature("pooled").flatten(1)
        labels = class_indices(batch["labels"])
        return {
            "kd": kl(student.logits, teacher.logits, temperature=self.temperature, reduction="none"),
            "nd": norm_and_direction(ours, theirs, self.class_means, labels, reduction="none"),
        }

    def _dropout_scale(self, batch: Batch, embedding: Tensor) -> Tensor | None:
        """What dropout multiplies each entry by: a function of the seed, the epoch and the sample."""
        if not self.training or self.dropout == 0:
            return None
        index, epoch = batch["index"].cpu().numpy(), int(batch.get("epoch", 0))
        drawn = streams.uniform(self._seed, "nd dropout", epoch, index, embedding.shape[1])
        kept = torch.from_numpy(drawn >= self.dropout).to(embedding.device)
        return kept / max(1 - self.dropout, torch.finfo(torch.float32).tiny)
