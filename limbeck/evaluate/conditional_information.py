"""Conditional mutual information: what outputs tell of a sample beyond its class."""

from __future__ import annotations

from torch import Tensor

from limbeck.evaluate.base import Results, Subject, evaluations, judged
from limbeck.evaluate.measure import Measure
from limbeck.functional.conditional_information import (
    conditional_mutual_information,
    log_centroids,
    log_class_sums,
)
from limbeck.hyperparameters import Positive

_KEY = "conditional_information"


@evaluations.register(
    _KEY,
    title="Conditional mutual information: how much outputs tell of a sample beyond its class",
    measures=(
        Measure(
            f"{_KEY}.teacher.mean",
            "CMI of the teacher",
            explanation="Mean divergence of the teacher's outputs from the mean output of their class, nats: what it "
            "can tell a student beyond the label.",
        ),
        Measure(f"{_KEY}.mean", "CMI", explanation="The same of the student."),
    ),
)
def conditional_information(subject: Subject, *, temperature: Positive = 1.0) -> Results:
    """Returns the ``mean`` conditional mutual information in nats, and that of each class as ``by_class``.

    Ye et al. (https://arxiv.org/abs/2401.08732) find that teachers with more of it teach better. Centroids are those of
    the judged samples themselves, so a class of one sample has none.

    Args:
        subject: what is judged.
        temperature: divides the logits first.
    """
    return judged(subject, lambda logits, labels: _judge(logits / temperature, labels))


def _judge(logits: Tensor, labels: Tensor) -> Results:
    centroids = log_centroids(log_class_sums(logits, labels, num_classes=logits.shape[1]))
    information = conditional_mutual_information(logits, labels, centroids, reduction="none")
    by_class = {int(c): information[labels == c].mean().item() for c in labels.unique()}
    return {"mean": information.mean().item(), "by_class": {str(c): value for c, value in by_class.items()}}
