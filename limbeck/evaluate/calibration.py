"""Calibration: whether a model is right as often as it is sure, as it is and after temperature scaling."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.evaluate.base import Results, Subject, evaluations, judged, numbers
from limbeck.evaluate.measure import Measure
from limbeck.functional import metrics
from limbeck.functional.temperature_scaling import optimal_temperature
from limbeck.hyperparameters import Count

_BINS = 15
_FEWEST_TO_SCALE = 20


@evaluations.register(
    "calibration",
    title="Calibration: expected calibration error (15 equal bins, and adaptive), Brier score, log-likelihood",
    measures=(
        Measure(
            "calibration.ece",
            "Calibration error",
            "fraction",
            "lower",
            "Mean distance of confidence and accuracy over 15 bins (ECE).",
        ),
        Measure("calibration.nll", "NLL", "number", "lower", "Mean negative log-likelihood of the label in nats."),
        Measure(
            "calibration.scaled.ece",
            "Scaled calibration error",
            "fraction",
            "lower",
            "The same after temperature scaling: what is left is no mere over- or underconfidence.",
        ),
    ),
)
def calibration(subject: Subject, *, bins: Count = _BINS) -> Results:
    """Returns ``ece``, ``adaptive_ece``, ``brier``, ``nll``, ``confidence``, the reliability ``curve``, and ``scaled``.

    Under ``scaled`` stands the same after temperature scaling. The test samples are halved, and each half is scaled by
    the temperature that fits the other best, so that no label has a part in scaling its own sample.

    Args:
        subject: what is judged.
        bins: number of bins.
    """
    return judged(subject, lambda logits, labels: _judge(logits, labels, bins))


def _judge(logits: Tensor, labels: Tensor, bins: int) -> Results:
    results = _describe(logits, labels, bins)
    if len(labels) >= _FEWEST_TO_SCALE:
        scaled, temperatures = _cross_scaled(logits, labels)
        results["scaled"] = {**_describe(scaled, labels, bins), "temperature": sum(temperatures) / 2}
    return results


def _cross_scaled(logits: Tensor, labels: Tensor) -> tuple[Tensor, list[float]]:
    """Returns logits scaled by the temperature of the other half, and both temperatures."""
    # Halves in a fixed random order: neighbours in a data set are often of one class.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    halves = order.tensor_split(2)
    temperatures = [optimal_temperature(logits[half], labels[half]) for half in halves]
    scaled = torch.empty_like(logits)
    for half, temperature in zip(halves, reversed(temperatures)):
        scaled[half] = logits[half] / temperature
    return scaled, temperatures


def _describe(logits: Tensor, labels: Tensor, bins: int) -> Results:
    curve = metrics.reliability_curve(logits, labels, bins=bins)
    return {
        "ece": metrics.expected_calibration_error(logits, labels, bins=bins).item(),
        "adaptive_ece": metrics.adaptive_calibration_error(logits, labels, bins=bins).item(),
        "brier": metrics.brier_score(logits, labels).item(),
        "nll": metrics.negative_log_likelihood(logits, labels).item(),
        "confidence": logits.softmax(1).max(1).values.mean().item(),
        "curve": {
            "edges": curve.edges.tolist(),
            "confidence": numbers(curve.confidence.tolist()),
            "accuracy": numbers(curve.accuracy.tolist()),
            "samples": curve.samples.tolist(),
        },
    }
