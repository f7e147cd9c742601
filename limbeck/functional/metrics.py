"""How good, how faithful and how well calibrated a classifier's predictions are.

All functions take raw logits ``[N, C]`` of a whole test set and integer labels ``[N]``, and compute in at least single
precision.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def checked_logits(logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """Returns logits in at least single precision.

    Raises:
        ValueError: they are not ``[N, C]``, or the labels are not class indices ``[N]`` within range.
    """
    if logits.dim() != 2 or logits.shape[0] == 0:
        raise ValueError(f"logits should be [samples, classes] with at least one sample, not {tuple(logits.shape)}")
    if labels is not None:
        if labels.is_floating_point() or labels.shape != logits.shape[:1]:
            raise ValueError(
                f"labels should be class indices [{logits.shape[0]}], not {labels.dtype} {tuple(labels.shape)}"
            )
        if bool(((labels < 0) | (labels >= logits.shape[1])).any()):
            raise ValueError(f"labels should lie in 0..{logits.shape[1] - 1}")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def checked_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Returns two sets of logits in at least single precision.

    Raises:
        ValueError: their shapes differ, or are not ``[N, C]``.
    """
    if first.shape != second.shape:
        raise ValueError(f"the two sets of logits differ in shape: {tuple(first.shape)} and {tuple(second.shape)}")
    return checked_logits(first), checked_logits(second)


def accuracy(logits: Tensor, labels: Tensor, *, k: int = 1) -> Tensor:
    """Fraction of samples whose label is among the ``k`` largest logits.

    Of equal logits the one with the smaller class index ranks first, so a constant model is right on one class only;
    NaN ranks above everything, so a label is never counted as found because of one.

    Args:
        logits: ``[N, C]``.
        labels: ``[N]`` class indices.
        k: how many guesses a model has.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: shapes do not fit, a label is out of range, or ``k`` is not positive.

    Example:
        >>> accuracy(torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]), torch.tensor([0, 1])).item()
        0.5
    """
    if k < 1:
        raise ValueError(f"k should be at least 1, not {k}")
    scores = checked_logits(logits, labels)
    target = scores.gather(1, labels.long().unsqueeze(1))
    earlier = torch.arange(scores.shape[1], device=scores.device) < labels.unsqueeze(1)
    above = ~(scores < target) & ((scores != target) | earlier)
    rank = above.sum(1)
    return (rank < k).to(scores.dtype).mean()


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts samples by true class (row) and predicted class (column).

    Args:
        predicted: ``[N]`` class indices.
        labels: ``[N]`` class indices.
        num_classes: number of classes ``C``.

    Returns:
        ``[C, C]`` int64.

    Example:
        >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    cells = torch.bincount(labels.long() * num_classes + predicted.long(), minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def per_class_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Fraction of each class's samples that are classified right (recall); NaN for a class without samples.

    Args:
        logits: ``[N, C]``.
        labels: ``[N]`` class indices.

    Returns:
        ``[C]``.
    """
    scores = checked_logits(logits, labels)
    table = confusion_matrix(scores.argmax(1), labels, scores.shape[1]).to(scores.dtype)
    return table.diagonal() / table.sum(1)


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of ``-log p(label)`` in nats.

    Args:
        logits: ``[N, C]``.
        labels: ``[N]`` class indices.
    """
    return torch.nn.functional.cross_entropy(checked_logits(logits, labels), labels.long())


def brier_score(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean squared distance of the predicted distribution to the one-hot label, summed over classes: in [0, 2].

    Reference: Brier, "Verification of forecasts expressed in terms of probability", 1950.

    Args:
        logits: ``[N, C]``.
        labels: ``[N]`` class indices.
    """
    probabilities = checked_logits(logits, labels).softmax(1)
    truth = torch.nn.functional.one_hot(labels.long(), logits.shape[1])
    return (probabilities - truth).square().sum(1).mean()


class ReliabilityCurve(NamedTuple):
    """Confidence against accuracy in bins of equal width.

    Attributes:
        edges: ``[bins + 1]`` from 0 to 1; a bin holds its upper edge and not its lower one.
        confidence: ``[bins]`` mean confidence; NaN where a bin is empty.
        accuracy: ``[bins]`` fraction of right predictions; NaN where a bin is empty.
        samples: ``[bins]`` number of samples, int64.
    """

    edges: Tensor
    confidence: Tensor
    accuracy: Tensor
    samples: Tensor


def _confidence(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of the predicted class, and whether that class (and not just any) is the label's."""
    confidence, predicted = checked_logits(logits, labels).softmax(1).max(1)
    return confidence, (predicted == labels).to(confidence.dtype)


def reliability_curve(logits: Tensor, labels: Tensor, *, bins: int = 15) -> ReliabilityCurve:
    """Groups samples by the confidence of their predicted class, and compares it with how often that class is right.

    Args:
        logits: ``[N, C]``.
        labels: ``[N]`` class indices.
        bins: number of bins of equal width.

    Raises:
        ValueError: shapes do not fit, a label is out of range, or ``bins`` is not positive.
    """
    return binned_confidence(*_confidence(logits, labels), bins=bins)


def binned_confidence(confidence: Tensor, right: Tensor, *, bins: int = 15) -> ReliabilityCurve:
    """Groups predictions by their confidence, and compares it with how often they are right.

    Args:
        confidence: ``[N]`` in [0, 1].
        right: ``[N]`` 1 where a prediction is right and 0 elsewhere, like ``confidence`` in type.
        bins: number of bins of equal width.

    Raises:
        ValueError: ``bins`` is not positive.
    """
    if bins < 1:
        raise ValueError(f"bins should be at least 1, not {bins}")
    edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype, device=confidence.device)
    where = torch.bucketize(confidence, edges[1:-1].contiguous())
    count = torch.bincount(where, minlength=bins)
    mean_confidence = torch.bincount(where, weights=confidence, minlength=bins) / count
    mean_accuracy = torch.bincount(where, weights=right, minlength=bins) / count
    return ReliabilityCurve(edges, mean_confidence, mean_accuracy, count)


def expected_calibration_error(logits: Tensor, labels: Tensor, *, bins: int = 15) -> Tensor:
    """Mean distance of confidence and accuracy over bins of equal width, weighted by their samples: in [0, 1].

    ``ECE = sum_b n_b / N * |accuracy_b - confidence_b|``, where confidence is the probability of the *predicted*
    class and accuracy says whether that class is right.
    Reference: Guo et al., "On calibration of modern neural networks", arXiv 1706.04599.

    Args:
        logits: ``[N, C]``.
        labels: ``[N]`` class indices.
        bins: number of bins of equal width.

    Example:
        >>> sure_and_wrong = torch.tensor([[50.0, 0.0]])
        >>> expected_calibration_error(sure_and_wrong, torch.tensor([1])).item()
        1.0
    """
    return calibration_gap(reliability_curve(logits, labels, bins=bins))


def calibration_gap(curve: ReliabilityCurve) -> Tensor:
    """Returns the mean distance of confidence and accuracy over the bins of a curve, weighted by their samples."""
    gap = (curve.accuracy - curve.confidence).abs().nan_to_num(0.0)
    return (gap * curve.samples).sum() / curve.samples.sum()


def adaptive_calibration_error(logits: Tensor, labels: Tensor, *, bins: int = 15) -> Tensor:
    """Expected calibration error over bins that hold equally many samples instead of being equally wide.

    Samples of equal confidence share their mean accuracy, so the result does not depend on the order of the samples.
    Reference: AdaECE in Mukhoti et al., "Calibrating deep neural networks using focal loss", arXiv 2002.09437.

    Args:
        logits: ``[N, C]``.
        labels: ``[N]`` class indices.
        bins: number of bins; no more than there are samples are used.
    """
    return adaptive_gap(*_confidence(logits, labels), bins=bins)


def adaptive_gap(confidence: Tensor, right: Tensor, *, bins: int = 15) -> Tensor:
    """Mean distance of confidence and accuracy over bins that hold equally many predictions.

    Args:
        confidence: ``[N]`` in [0, 1].
        right: ``[N]`` 1 where a prediction is right and 0 elsewhere, like ``confidence`` in type.
        bins: number of bins; no more than there are predictions are used.

    Raises:
        ValueError: ``bins`` is not positive.
    """
    if bins < 1:
        raise ValueError(f"bins should be at least 1, not {bins}")
    levels, level, count = confidence.unique(return_inverse=True, return_counts=True)
    shared = torch.bincount(level, weights=right, minlength=len(levels)) / count
    ordered = level.sort().values
    gaps = (shared - levels)[ordered]
    return torch.stack([part.sum().abs() for part in gaps.tensor_split(min(bins, len(gaps)))]).sum() / len(gaps)


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Fraction of samples on which student and teacher predict the same class, whether it is right or not.

    Reference: Stanton et al., "Does knowledge distillation really work?", arXiv 2106.05945.

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``.

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = checked_pair(student_logits, teacher_logits)
    return (student.argmax(1) == teacher.argmax(1)).to(student.dtype).mean()


def predictive_divergence(logits: Tensor, other_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Mean ``KL(p || q)`` in nats of the distributions that two sets of logits stand for.

    A class that ``p`` excludes (logit ``-inf``) adds nothing; one that only ``q`` excludes makes the divergence
    infinite.

    Args:
        logits: ``[N, C]`` of ``p``.
        other_logits: ``[N, C]`` of ``q``.
        temperature: divides both; the divergence is not multiplied by its square.

    Raises:
        ValueError: the shapes differ.
    """
    first, second = checked_pair(logits, other_logits)
    log_p, log_q = (first / temperature).log_softmax(1), (second / temperature).log_softmax(1)
    excluded = log_p == -torch.inf
    pointwise = log_p.exp() * (log_p - log_q)
    return torch.where(excluded, pointwise.new_zeros(()), pointwise).sum(1).mean()


class Contingency(NamedTuple):
    """Who is right: fractions of all samples that add up to 1.

    Attributes:
        both: student and teacher are right.
        teacher_only: the teacher is right and the student wrong.
        student_only: the student is right and the teacher wrong.
        neither: both are wrong.
    """

    both: Tensor
    teacher_only: Tensor
    student_only: Tensor
    neither: Tensor


def contingency(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Contingency:
    """Splits the samples by whether student and teacher are right.

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``.
        labels: ``[N]`` class indices.

    Raises:
        ValueError: shapes differ, or a label is out of range.
    """
    student, teacher = checked_pair(student_logits, teacher_logits)
    checked_logits(student, labels)
    student_right, teacher_right = student.argmax(1) == labels, teacher.argmax(1) == labels
    cells = (
        student_right & teacher_right,
        ~student_right & teacher_right,
        student_right & ~teacher_right,
        ~student_right & ~teacher_right,
    )
    return Contingency(*(cell.to(student.dtype).mean() for cell in cells))
