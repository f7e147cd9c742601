"""Calibration of language models: whether tokens come as often as their probabilities say."""

from __future__ import annotations

from torch import Tensor

from limbeck.evaluate.base import Results, Subject, evaluations, numbers
from limbeck.evaluate.language import TASK, tokens_of
from limbeck.evaluate.measure import Measure
from limbeck.functional.metrics import adaptive_gap, binned_confidence, calibration_gap
from limbeck.hyperparameters import Count


@evaluations.register(
    "token_calibration",
    title="Calibration on held-out text: confidence against accuracy, loss against the entropy that the model expects",
    task=TASK,
    measures=(
        Measure(
            "token_calibration.ece",
            "Calibration error",
            "fraction",
            "lower",
            "Mean distance of confidence and accuracy of the likeliest token over 15 bins (ECE).",
        ),
        Measure(
            "token_calibration.overconfidence",
            "Overconfidence",
            "number",
            "",
            "Loss minus mean entropy, nats a token: 0 where a model is as often surprised as it expects to be.",
        ),
    ),
)
def token_calibration(subject: Subject, *, bins: Count = 15) -> Results:
    """Returns ``ece``, ``adaptive_ece``, ``nll``, ``entropy``, ``overconfidence`` and the reliability ``curve``.

    The curve is about the likeliest token at each place. ``overconfidence`` is about whole distributions: a model
    whose probabilities are right loses, on average, as many nats as its own entropy says.
    References: Guo et al., arXiv 1706.04599; Braverman et al., "Calibration, entropy rates, and memory in language
    models", arXiv 1906.05664.

    Args:
        subject: what is judged.
        bins: number of bins, of equal width for ``ece`` and the curve, of equally many tokens for ``adaptive_ece``.
    """
    tokens = tokens_of(subject)
    found = {
        role: _describe(
            tokens.confidence[role].double(),
            (tokens.top1[role] == tokens.labels).double(),
            tokens.loss[role].double().mean().item(),
            tokens.entropy[role].double().mean().item(),
            bins,
        )
        for role in subject.roles
    }
    return {**found.pop("student"), **found}


def _describe(confidence: Tensor, right: Tensor, loss: float, entropy: float, bins: int) -> Results:
    curve = binned_confidence(confidence, right, bins=bins)
    return {
        "ece": calibration_gap(curve).item(),
        "adaptive_ece": adaptive_gap(confidence, right, bins=bins).item(),
        "nll": loss,
        "entropy": entropy,
        "overconfidence": loss - entropy,
        "confidence": confidence.mean().item(),
        "accuracy": right.mean().item(),
        "curve": {
            "edges": curve.edges.tolist(),
            "confidence": numbers(curve.confidence.tolist()),
            "accuracy": numbers(curve.accuracy.tolist()),
            "samples": curve.samples.tolist(),
        },
    }
