"""Self-distillation that keeps the labels beside the parent's predictions, as squared errors of probabilities."""

from __future__ import annotations

from torch import Tensor

from limbeck.functional.divergences import tempered_log_softmax
from limbeck.functional.probability_error import probability_error
from limbeck.hyperparameters import Fraction
from limbeck.methods.base import LogitMethod, register
from limbeck.signals import Batch, Signals, Terms


@register(
    "weighted_self_distillation",
    title="Even your Teacher Needs Guidance: Ground-Truth Targets Dampen Regularization Imposed by Self-Distillation",
    authors="Kenneth Borup and Lars N. Andersen",
    paper="2102.13088",
    year=2021,
    family="self",
    equation=r"L = \alpha\,\tfrac1C \| p^S - y \|^2 + (1 - \alpha)\,\tfrac1C \| p^S - p^T \|^2",
)
class WeightedSelfDistillation(LogitMethod):
    """A student of the teacher's architecture fits a mixture of the labels and of its parent's probabilities.

    Without the labels (``alpha`` 0) each generation regularises more, until the model says nothing; with them the chain
    has a limit, which :mod:`limbeck.functional.kernel_self_distillation` gives exactly for kernel ridge regression. The
    best ``alpha`` of a generation can be had from two trainings, with 1 and with 0, through
    :func:`limbeck.functional.kernel_self_distillation.optimal_weight` on held-out probabilities.

    Terms:
        labels: squared error of the probabilities against the one-hot labels, mean over classes.
        parent: squared error against the teacher's probabilities, mean over classes.

    Deviations: the authors' code adds the norms of all parameters, not squared, to the loss; here weight decay is the
    optimizer's.

    Args:
        alpha: weight of ``labels``; ``parent`` has the rest. 0.6 in the authors' command for CIFAR-10.
    """

    def __init__(self, *, alpha: Fraction = 0.6) -> None:
        super().__init__()
        self.weights = {name: w for name, w in (("labels", alpha), ("parent", 1 - alpha)) if w > 0}

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``labels`` and ``parent``, as far as they count."""
        assert student.logits is not None
        assert teacher.logits is not None
        given = self.logit_transform(student.logits), self.logit_transform(teacher.logits)
        terms: dict[str, Tensor] = {}
        if "labels" in self.weights:
            terms["labels"] = probability_error(student.logits, batch["labels"], reduction="none")
        if "parent" in self.weights:
            target = tempered_log_softmax(given[1].detach(), 1.0).exp()
            terms["parent"] = probability_error(given[0], target, reduction="none")
        return dict(terms)
