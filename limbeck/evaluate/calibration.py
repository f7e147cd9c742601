"""Calibration: whether a model is right as often as it is sure."""

from __future__ import annotations

from torch import Tensor

from limbeck.evaluate.base import Results, Subject, evaluations, judged, numbers
from limbeck.evaluate.measure import Measure
from limbeck.functional import metrics

_BINS = 15


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
    ),
)
def calibration(subject: Subject) -> Results:
    """Returns ``ece``, ``adaptive_ece``, ``brier``, ``nll``, ``confidence`` and the reliability ``curve``."""
    return judged(subject, _judge)


def _judge(logits: Tensor, labels: Tensor) -> Results:
    curve = metrics.reliability_curve(logits, labels, bins=_BINS)
    return {
        "ece": metrics.expected_calibration_error(logits, labels, bins=_BINS).item(),
        "adaptive_ece": metrics.adaptive_calibration_error(logits, labels, bins=_BINS).item(),
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
