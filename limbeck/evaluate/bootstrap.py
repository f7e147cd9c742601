"""Confidence intervals: how far the numbers would move with other test samples of the same kind."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from limbeck.evaluate.base import Results, Subject, evaluations, judged
from limbeck.evaluate.measure import Measure
from limbeck.evaluate.significance import Interval, bootstrap_means, percentile_interval
from limbeck.functional import metrics
from limbeck.hyperparameters import Count, WholeNumber

_BINS = 15


@evaluations.register(
    "bootstrap",
    title="Confidence intervals over the test samples, by bootstrap: accuracy, calibration, likelihood, agreement",
    measures=(
        Measure("bootstrap.accuracy.low", "Accuracy, low", "fraction", "", "Lower end of its confidence interval."),
        Measure("bootstrap.accuracy.high", "Accuracy, high", "fraction", "", "Upper end of its confidence interval."),
    ),
)
def bootstrap(
    subject: Subject,
    *,
    resamples: Count = 2000,
    level: Annotated[float, Gt(0), Lt(1)] = 0.95,
    seed: WholeNumber = 0,
) -> Results:
    """Returns ``value``, ``low`` and ``high`` of each number.

    The interval is about the choice of test samples for this one student; how much students of other seeds differ is
    another matter, which several runs tell. The interval of the calibration error lies a little high, since every
    draw adds some error of its own.

    Args:
        subject: what is judged.
        resamples: draws of the test samples with replacement.
        level: confidence of the intervals.
        seed: seed of the draws.
    """

    def judge(logits: Tensor, labels: Tensor) -> Results:
        found = intervals(logits, labels, resamples=resamples, level=level, seed=seed)
        return {name: _plain(interval) for name, interval in found.items()}

    results = judged(subject, judge)
    student, teacher = subject.logits("student"), subject.logits("teacher")
    if student is not None and teacher is not None:
        same = (student.argmax(1) == teacher.argmax(1)).double().unsqueeze(1)
        drawn = bootstrap_means(same, resamples=resamples, seed=seed)[:, 0]
        results["agreement"] = _plain(percentile_interval(float(same.mean()), drawn, level=level))
    return {**results, "level": level, "resamples": resamples}


def intervals(
    logits: Tensor, labels: Tensor, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Returns bootstrap intervals of ``accuracy``, ``ece``, ``brier`` and ``nll`` of one model.

    Args:
        logits: ``[N, C]``.
        labels: ``[N]`` class indices.
        resamples: draws of all samples with replacement.
        level: confidence.
        seed: seed of the draws.
    """
    scores = logits.double()
    probabilities = scores.softmax(1)
    confidence, predicted = probabilities.max(1)
    right = (predicted == labels).double()
    truth = torch.nn.functional.one_hot(labels.long(), logits.shape[1])
    columns = [
        right,
        (probabilities - truth).square().sum(1),
        torch.nn.functional.cross_entropy(scores, labels.long(), reduction="none"),
    ]
    edges = torch.linspace(0, 1, _BINS + 1, dtype=torch.float64)[1:-1].contiguous()
    # Within a bin, the calibration error is the difference of two sums over samples, so it is a mean like the others.
    gaps = torch.nn.functional.one_hot(torch.bucketize(confidence, edges), _BINS) * (right - confidence).unsqueeze(1)
    drawn = bootstrap_means(torch.cat([torch.stack(columns, 1), gaps], 1), resamples=resamples, seed=seed)
    values = {
        "accuracy": (float(right.mean()), drawn[:, 0]),
        "brier": (float(columns[1].mean()), drawn[:, 1]),
        "nll": (float(columns[2].mean()), drawn[:, 2]),
        "ece": (
            metrics.expected_calibration_error(scores, labels, bins=_BINS).item(),
            drawn[:, 3:].abs().sum(1),
        ),
    }
    return {name: percentile_interval(value, draws, level=level) for name, (value, draws) in values.items()}


def _plain(interval: Interval) -> Results:
    return {"value": interval.value, "low": interval.low, "high": interval.high}
