"""Accuracy: how often the first guess, or one of the first five, is right."""

from __future__ import annotations

from torch import Tensor, nn

from limbeck.data.loader import Loader
from limbeck.evaluate.base import Results, Subject, evaluations, judged, numbers
from limbeck.evaluate.measure import Measure
from limbeck.evaluate.predictions import predict
from limbeck.functional import metrics
from limbeck.tasks.base import Task

_CLASSES_FOR_TOP5 = 10


@evaluations.register(
    "accuracy",
    title="Accuracy on the test data, over all samples and by class",
    measures=(Measure("accuracy.top1", "Accuracy", "fraction", "higher", "How often the most likely class is right."),),
)
def accuracy(subject: Subject) -> Results:
    """Returns ``top1``, ``top5`` (from ten classes on), ``per_class`` and the number of ``samples``."""
    return judged(subject, _judge)


def _judge(logits: Tensor, labels: Tensor) -> Results:
    top5 = {"top5": metrics.accuracy(logits, labels, k=5).item()} if logits.shape[1] >= _CLASSES_FOR_TOP5 else {}
    return {
        "top1": metrics.accuracy(logits, labels).item(),
        **top5,
        "per_class": numbers(metrics.per_class_accuracy(logits, labels).tolist()),
        "samples": len(labels),
    }


def accuracy_on(student: nn.Module, loader: Loader, task: Task) -> float:
    """Returns a student's top-1 accuracy."""
    found = predict({"student": student}, loader, task)
    return metrics.accuracy(found.logits["student"], found.labels).item()
