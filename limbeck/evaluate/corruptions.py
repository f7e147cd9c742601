"""Robustness to common corruptions: accuracy on test images with noise, blur, weather and digital damage."""

from __future__ import annotations

from statistics import fmean
from typing import Any, Literal

from limbeck.data.corruptions import corruptions as kinds_of_corruption
from limbeck.data.corruptions import families
from limbeck.data.corruptions.base import SEVERITIES, Severity
from limbeck.data.source import Source
from limbeck.data.subsets import limit
from limbeck.evaluate.base import Results, Subject, evaluations
from limbeck.evaluate.measure import Measure
from limbeck.functional import metrics
from limbeck.hyperparameters import Count

Family = Literal["noise", "blur", "weather", "digital"]


@evaluations.register(
    "corruptions",
    title="Accuracy on corrupted test images: 15 kinds in 5 severities, as in CIFAR-10-C, generated",
    measures=(
        Measure(
            "corruptions.accuracy",
            "Corrupted accuracy",
            "fraction",
            "higher",
            "Mean accuracy over kinds and severities of common corruptions.",
        ),
        Measure("corruptions.worst", "Worst corruption", "fraction", "higher", "Accuracy under the worst kind."),
    ),
)
def corruptions(
    subject: Subject,
    *,
    kinds: tuple[str, ...] | None = None,
    severities: tuple[Severity, ...] = SEVERITIES,
    samples: Count | None = None,
) -> Results:
    """Returns mean ``accuracy``, ``by_kind`` (a list over severities), ``by_family``, the ``worst`` kind and ``clean``.

    ``relative_error`` is what the benchmark calls mCE: the student's errors over the teacher's, summed over severities
    and averaged over kinds; above 1 the student suffers more. The pictures are the same for every model and every run.

    Args:
        subject: what is judged.
        kinds: kinds of corruption; all fifteen when absent.
        severities: which of 1 to 5.
        samples: at most so many test images, balanced over classes; all when absent.

    Raises:
        DataError: the test data are no images of limbeck's own loader.
        RecipeError: the images are too large or too small for the severities.
        UnknownNameError: there is no such kind.
    """
    chosen = list(dict.fromkeys(kinds)) if kinds else [kind for names in families().values() for kind in names]
    for kind in chosen:
        kinds_of_corruption[kind]
    source = subject.source if samples is None else limit(subject.source, samples)
    clean = _accuracies(subject, source, ())
    table: dict[str, dict[str, list[float]]] = {role: {} for role in clean}
    for kind in chosen:
        rates = [
            _accuracies(subject, source, ({"name": "corruption", "kind": kind, "severity": s},)) for s in severities
        ]
        for role in clean:
            table[role][kind] = [rate[role] for rate in rates]
    results = {
        role: {**_summary(by_kind, clean[role]), "severities": list(severities)} for role, by_kind in table.items()
    }
    student = results.pop("student")
    facts: dict[str, Any] = {"samples": len(source)}
    if "teacher" in table:
        facts["relative_error"] = relative_error(table["student"], table["teacher"])
    return {**student, **facts, **results}


def relative_error(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> float | None:
    """Returns the mean over kinds of our summed errors over theirs; None where they make none under some kind.

    Args:
        ours: accuracies over severities by kind.
        theirs: those of the reference model.
    """
    errors = [(sum(1 - a for a in ours[kind]), sum(1 - a for a in theirs[kind])) for kind in ours]
    if any(reference == 0 for _, reference in errors):
        return None
    return fmean(error / reference for error, reference in errors)


def _summary(by_kind: dict[str, list[float]], clean: float) -> Results:
    means = {kind: fmean(rates) for kind, rates in by_kind.items()}
    worst = min(means, key=lambda kind: means[kind])
    grouped = {family: [means[k] for k in kinds if k in means] for family, kinds in families().items()}
    return {
        "accuracy": fmean(means.values()),
        "clean": clean,
        "worst": means[worst],
        "worst_kind": worst,
        "by_family": {family: fmean(rates) for family, rates in grouped.items() if rates},
        "by_kind": by_kind,
    }


def _accuracies(subject: Subject, source: Source, augment: Any) -> dict[str, float]:
    found = subject.predict(subject.shown(source, augment))
    return {role: metrics.accuracy(logits, found.labels).item() for role, logits in found.logits.items()}
