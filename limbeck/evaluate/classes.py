"""Class by class: which classes the student wins or loses against the teacher, and its worst one."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.evaluate.base import Results, Subject, evaluations, judged, numbers
from limbeck.evaluate.measure import Measure
from limbeck.functional import metrics
from limbeck.hyperparameters import Count, WholeNumber


@evaluations.register(
    "classes",
    title="Class by class: the worst one, its distance to the mean, and what the student wins or loses in each",
    measures=(
        Measure("classes.worst", "Worst class", "fraction", "higher", "Accuracy on the class that is told worst."),
        Measure("classes.gap", "Class gap", "fraction", "lower", "Best class minus worst class."),
    ),
)
def classes(
    subject: Subject, *, fewest: Count = 1, groups: dict[str, tuple[WholeNumber, ...]] | None = None
) -> Results:
    """Returns ``worst``, ``worst_class``, ``best``, ``gap``, the ``mean`` over classes, and ``gain`` over the teacher.

    A mean over all samples can rise while a class is lost; distillation is known to do that.

    Args:
        subject: what is judged.
        fewest: classes with fewer test samples are left out of worst and best.
        groups: named groups of class numbers, such as ``{shoes: [5, 7, 9], bags: [8]}``, whose accuracies are told
            too, with the worst of them.
    """
    results = judged(subject, lambda logits, labels: _judge(logits, labels, fewest, groups or {}))
    student, teacher = subject.logits("student"), subject.logits("teacher")
    if student is not None and teacher is not None:
        rates = [metrics.per_class_accuracy(logits, subject.labels) for logits in (student, teacher)]
        results["gain"] = numbers((rates[0] - rates[1]).tolist())
    return results


def _judge(logits: Tensor, labels: Tensor, fewest: int, groups: dict[str, tuple[int, ...]]) -> Results:
    rates = metrics.per_class_accuracy(logits, labels)
    counts = torch.bincount(labels, minlength=logits.shape[1])
    counted = rates.masked_fill(counts < max(fewest, 1), torch.nan)
    if bool(counted.isnan().all()):
        return {"note": f"no class has {fewest} test samples"}
    worst, best = _extremes(counted)
    return {
        "worst": worst[0],
        "worst_class": worst[1],
        "best": best[0],
        "best_class": best[1],
        "gap": best[0] - worst[0],
        "mean": float(counted.nanmean()),
        "samples": counts.tolist(),
        **_by_group(logits, labels, groups),
    }


def _by_group(logits: Tensor, labels: Tensor, groups: dict[str, tuple[int, ...]]) -> Results:
    right = (logits.argmax(1) == labels).double()
    rates = {}
    for name, members in groups.items():
        inside = torch.isin(labels, torch.tensor(members, dtype=labels.dtype))
        if not bool(inside.any()):
            raise RecipeError(f"the group '{name}' has no test sample of its classes {list(members)}")
        rates[name] = float(right[inside].mean())
    if not rates:
        return {}
    worst = min(rates, key=lambda name: rates[name])
    return {"groups": rates, "worst_group": {"name": worst, "accuracy": rates[worst]}}


def _extremes(rates: Tensor) -> tuple[tuple[float, int], tuple[float, int]]:
    low, high = rates.nan_to_num(torch.inf), rates.nan_to_num(-torch.inf)
    return (float(low.min()), int(low.argmin())), (float(high.max()), int(high.argmax()))
