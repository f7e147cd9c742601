"""Two students on the same samples: which is better, and whether the samples can tell."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import DataError, RunFolderError
from limbeck.evaluate.predictions import Predictions
from limbeck.evaluate.significance import Interval, McNemar, mcnemar, paired_bootstrap
from limbeck.functional import metrics


@dataclass(frozen=True)
class Paired:
    """What the comparison of two students says.

    Attributes:
        samples: number of test samples.
        accuracy: accuracy of the first and the second.
        difference: accuracy of the first minus that of the second, with its bootstrap interval.
        test: McNemar's test.
        nll: negative log-likelihood of the first minus that of the second, in nats; below 0 the first is better.
        agreement: part of the samples on which both name one class.
        per_class: accuracy of the first minus that of the second for each class; None for a class without samples.
    """

    samples: int
    accuracy: tuple[float, float]
    difference: Interval
    test: McNemar
    nll: Interval
    agreement: float
    per_class: tuple[float | None, ...]

    @property
    def verdict(self) -> str:
        """The comparison in one sentence, which claims no more than the samples allow.

        The test decides; the interval may disagree with it where its end is close to 0.
        """
        if self.test.p >= 1 - self.difference.level:
            return f"These {self.samples} samples do not tell the two apart (McNemar p = {self.test.p:.2g})."
        better = "first" if self.difference.value > 0 else "second"
        return (
            f"The {better} is more accurate on these {self.samples} samples (McNemar p = {self.test.p:.2g}). "
            "One run of each says nothing about other seeds."
        )

    def plain(self) -> dict[str, Any]:
        """Returns JSON-able numbers by name."""
        return {**asdict(self), "test": self.test._asdict(), "verdict": self.verdict}


def compare(
    first: Predictions,
    second: Predictions,
    *,
    roles: tuple[str, str] = ("student", "student"),
    level: float = 0.95,
    resamples: int = 2000,
) -> Paired:
    """Compares two models on the samples that both have judged.

    Args:
        first: what one run predicted.
        second: what the other predicted, on the same samples.
        roles: whose predictions to compare.
        level: confidence of intervals; ``1 - level`` is what McNemar's probability is measured by.
        resamples: draws of the bootstrap.

    Raises:
        DataError: the two were judged on other samples, or have other classes.
        MissingExtraError: scipy is not installed.
    """
    if not torch.equal(first.index, second.index) or not torch.equal(first.labels, second.labels):
        raise DataError("the two runs were judged on different samples; compare runs with the same data and limits")
    labels = first.labels
    for predictions, role in zip((first, second), roles):
        if role not in predictions.logits:
            raise DataError(f"a run kept no predictions of the role '{role}', only of {sorted(predictions.logits)}")
    logits = first.logits[roles[0]], second.logits[roles[1]]
    if logits[0].shape != logits[1].shape:
        raise DataError(f"the two students have {logits[0].shape[1]} and {logits[1].shape[1]} classes")
    right = [scores.argmax(1) == labels for scores in logits]
    losses = [torch.nn.functional.cross_entropy(s.double(), labels.long(), reduction="none") for s in logits]
    rates = [metrics.per_class_accuracy(scores, labels) for scores in logits]
    return Paired(
        samples=len(labels),
        accuracy=(_mean(right[0]), _mean(right[1])),
        difference=paired_bootstrap(right[0], right[1], level=level, resamples=resamples),
        test=mcnemar(right[0], right[1]),
        nll=paired_bootstrap(losses[0], losses[1], level=level, resamples=resamples),
        agreement=_mean(logits[0].argmax(1) == logits[1].argmax(1)),
        per_class=tuple(None if v != v else v for v in (rates[0] - rates[1]).tolist()),
    )


def compare_runs(folder: str | Path, against: str | Path, **options: Any) -> Paired:
    """Compares the students of two finished runs and writes ``against-<other run>.json`` into the first's folder.

    Args:
        folder: a run folder.
        against: another one.
        **options: those of :func:`compare`.

    Raises:
        RunFolderError: a folder holds no predictions.
        DataError: the two were judged on other samples, or have other classes.
        MissingExtraError: scipy is not installed.
    """
    first, second = Path(folder), Path(against)
    found = compare(_predictions(first), _predictions(second), **options)
    written = {"run": first.name, "against": second.name, **found.plain()}
    (first / f"against-{second.name}.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
    return found


def _predictions(folder: Path) -> Predictions:
    path = folder / "predictions.safetensors"
    if not path.exists():
        raise RunFolderError(f"'{folder}' holds no predictions; finish the run, or evaluate it again to write them")
    return Predictions.load(path)


def _mean(values: Tensor) -> float:
    return float(values.double().mean())
