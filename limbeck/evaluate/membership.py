"""Membership inference: whether the loss on a sample gives away that the student was trained on it."""

from __future__ import annotations

from statistics import fmean

import torch
from torch import Tensor

from limbeck.data.subsets import limit
from limbeck.errors import DataError
from limbeck.evaluate.base import Results, Subject, evaluations
from limbeck.evaluate.measure import Measure
from limbeck.functional import detection
from limbeck.hyperparameters import Count

_FEWEST = 4


@evaluations.register(
    "membership",
    title="Membership inference: how well a threshold on the loss tells training samples from test samples",
    measures=(
        Measure(
            "membership.advantage",
            "Membership advantage",
            "fraction",
            "lower",
            "True minus false positive rate of a threshold on the loss; 0 means nothing is given away.",
        ),
        Measure("membership.auroc", "Membership AUROC", "fraction", "lower", "50 % is a guess."),
    ),
)
def membership(subject: Subject, *, samples: Count | None = None) -> Results:
    """Returns ``advantage``, ``auroc``, ``tpr_at_1_fpr`` and the mean ``loss`` on both groups.

    The attack guesses that a sample was trained on where the loss on its unaugmented image is low. Half of the samples
    choose the threshold and the other half are judged by it, in turn, so an advantage of 0 is what a student without
    memory has. It is a lower bound: stronger attacks train shadow models. For the teacher, the figures say how far it
    tells the *student's* training samples, which are its own where both learnt from one set.
    References: Yeom et al., arXiv 1709.01604; Carlini et al., arXiv 2112.03570 (the rate at 1 % false positives).

    Args:
        subject: what is judged.
        samples: at most so many training samples, balanced over classes; all when absent.

    Raises:
        DataError: the training samples are not known, or either group is tiny.
    """
    if subject.train is None:
        raise DataError("membership inference compares with the training samples; give them as `train`")
    members = subject.train if samples is None else limit(subject.train, samples)
    seen, unseen = subject.predict(subject.shown(members)), subject.predictions
    if min(len(seen.labels), len(unseen.labels)) < _FEWEST:
        raise DataError(f"membership inference needs at least {_FEWEST} training and test samples")
    results = {
        role: judge(_losses(logits, seen.labels), _losses(unseen.logits[role], unseen.labels))
        for role, logits in seen.logits.items()
        if role in unseen.logits
    }
    return {**results.pop("student"), "members": len(seen.labels), "others": len(unseen.labels), **results}


def judge(member_losses: Tensor, other_losses: Tensor) -> Results:
    """Returns what a threshold on the loss gives away.

    Args:
        member_losses: ``[M]`` losses on training samples.
        other_losses: ``[N]`` losses on samples that were never trained on.
    """
    members, others = -member_losses, -other_losses
    return {
        "advantage": fmean(_crossed_advantages(members, others)),
        "auroc": detection.auroc(members, others).item(),
        "tpr_at_1_fpr": detection.true_positive_rate(members, others, false_positive_rate=0.01).item(),
        "loss": {"members": float(member_losses.mean()), "others": float(other_losses.mean())},
    }


def _crossed_advantages(members: Tensor, others: Tensor) -> list[float]:
    """The advantage on each half of the samples, at the threshold that is best for the other half."""
    halves = [_halved(members), _halved(others)]
    found = []
    for judged in (0, 1):
        threshold = detection.best_threshold(halves[0][1 - judged], halves[1][1 - judged])
        found.append(detection.advantage(halves[0][judged], halves[1][judged], threshold=threshold).item())
    return found


def _halved(scores: Tensor) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0))
    first, second = scores[order].tensor_split(2)
    return first, second


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.double(), labels.long(), reduction="none")
