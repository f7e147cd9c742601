"""Metrics against torchmetrics, scikit-learn and hand-made cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, confusion_matrix, log_loss, recall_score, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_calibration_error

from limbeck.functional import metrics


def predictions(
    samples: int = 400, classes: int = 7, seed: int = 0, scale: float = 2.0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    guess = logits.argmax(1)
    noise = torch.randint(classes, (samples,), generator=generator)
    keep = torch.rand(samples, generator=generator) < 0.6
    return logits, torch.where(keep, guess, noise)


@pytest.mark.parametrize("k", [1, 2, 5, 7, 9])
def test_accuracy_equals_scikit_learn(k: int) -> None:
    logits, labels = predictions()
    ours = metrics.accuracy(logits, labels, k=k).item()
    assert ours == pytest.approx(top_k_accuracy_score(labels, logits, k=min(k, 6)) if k < 7 else 1.0, abs=1e-12)


def test_a_constant_model_is_right_on_one_class_only() -> None:
    labels = torch.arange(5).repeat(4)
    assert metrics.accuracy(torch.zeros(20, 5), labels).item() == pytest.approx(0.2)
    assert metrics.accuracy(torch.zeros(20, 5), labels, k=2).item() == pytest.approx(0.4)


def test_nan_is_never_counted_as_right() -> None:
    assert metrics.accuracy(torch.full((4, 3), math.nan), torch.tensor([0, 1, 2, 0])).item() <= 0.5
    other = torch.tensor([[math.nan, 5.0, 1.0]])
    assert metrics.accuracy(other, torch.tensor([1])).item() == 0.0


@pytest.mark.parametrize("bins", [1, 10, 15, 40])
@pytest.mark.parametrize("scale", [0.1, 2.0, 30.0])
def test_calibration_error_equals_torchmetrics(bins: int, scale: float) -> None:
    logits, labels = predictions(scale=scale)
    theirs = multiclass_calibration_error(logits.softmax(1), labels, num_classes=7, n_bins=bins, norm="l1")
    assert metrics.expected_calibration_error(logits, labels, bins=bins).item() == pytest.approx(
        theirs.item(), abs=1e-6
    )


def test_calibration_error_judges_the_predicted_class_not_the_label() -> None:
    # A confident model that always says class 2 of a test set where class 2 is always right: perfectly calibrated.
    # Pairing the confidence with the raw label (2, or "label > 0") gives something else.
    logits = torch.zeros(50, 3)
    logits[:, 2] = 100.0
    right = torch.full((50,), 2)
    assert metrics.expected_calibration_error(logits, right).item() == pytest.approx(0.0, abs=1e-6)
    assert metrics.expected_calibration_error(logits, torch.ones(50, dtype=torch.long)).item() == pytest.approx(1.0)
    assert metrics.expected_calibration_error(
        logits.roll(1, 1), torch.zeros(50, dtype=torch.long)
    ).item() == pytest.approx(0.0, abs=1e-6)


def test_reliability_curve_by_hand() -> None:
    # Confidences 0.6, 0.6, 0.9 and 1.0 in ten bins; a bin holds its upper edge.
    p = torch.tensor([[0.6, 0.4], [0.4, 0.6], [0.9, 0.1], [1.0, 0.0]], dtype=torch.float64)
    curve = metrics.reliability_curve(p.log(), torch.tensor([0, 0, 0, 0]), bins=5)
    assert curve.samples.tolist() == [0, 0, 2, 0, 2]
    assert curve.accuracy[[2, 4]].tolist() == [0.5, 1.0]
    assert curve.confidence[[2, 4]].tolist() == pytest.approx([0.6, 0.95])
    assert torch.isnan(curve.accuracy[[0, 1, 3]]).all()
    assert metrics.expected_calibration_error(
        p.log(), torch.zeros(4, dtype=torch.long), bins=5
    ).item() == pytest.approx(0.5 * 0.1 + 0.5 * 0.05)


def reference_adaptive_error(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    order = np.argsort(confidence)
    parts = np.array_split(order, bins)
    return sum(len(p) * abs(right[p].mean() - confidence[p].mean()) for p in parts) / len(order)


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_adaptive_calibration_error_equals_a_loop_over_equal_parts(bins: int) -> None:
    logits, labels = predictions(samples=403)
    p = logits.softmax(1).numpy()
    expected = reference_adaptive_error(p.max(1), p.argmax(1) == labels.numpy(), bins)
    assert metrics.adaptive_calibration_error(logits, labels, bins=bins).item() == pytest.approx(expected, abs=1e-12)


def test_adaptive_calibration_error_of_tied_confidences_ignores_the_order() -> None:
    logits, labels = predictions(samples=200)
    logits = logits.sign()
    mixed = torch.randperm(200, generator=torch.Generator().manual_seed(3))
    first = metrics.adaptive_calibration_error(logits, labels)
    assert metrics.adaptive_calibration_error(logits[mixed], labels[mixed]).item() == pytest.approx(
        first.item(), abs=1e-12
    )


def test_brier_and_likelihood_equal_scikit_learn() -> None:
    logits, labels = predictions()
    p = logits.softmax(1).numpy()
    theirs = brier_score_loss(labels.numpy(), p, scale_by_half=False, labels=list(range(7)))
    assert metrics.brier_score(logits, labels).item() == pytest.approx(theirs, abs=1e-12)
    assert metrics.negative_log_likelihood(logits, labels).item() == pytest.approx(
        log_loss(labels.numpy(), p), abs=1e-12
    )


def test_per_class_accuracy_and_confusion_equal_scikit_learn() -> None:
    logits, labels = predictions()
    guess = logits.argmax(1)
    assert metrics.confusion_matrix(guess, labels, 7).tolist() == confusion_matrix(labels, guess).tolist()
    assert metrics.per_class_accuracy(logits, labels).tolist() == pytest.approx(
        recall_score(labels, guess, average=None)
    )


def test_a_class_without_samples_has_no_accuracy() -> None:
    result = metrics.per_class_accuracy(torch.eye(3), torch.tensor([0, 1, 1]))
    assert result[:2].tolist() == [1.0, 0.5]
    assert torch.isnan(result[2])


def test_predictive_divergence_equals_scipy() -> None:
    from scipy.stats import entropy

    a, b = predictions(seed=1)[0], predictions(seed=2)[0]
    p, q = a.softmax(1).numpy(), b.softmax(1).numpy()
    assert metrics.predictive_divergence(a, b).item() == pytest.approx(entropy(p, q, axis=1).mean(), rel=1e-12)
    assert metrics.predictive_divergence(b, a).item() == pytest.approx(entropy(q, p, axis=1).mean(), rel=1e-12)
    assert metrics.predictive_divergence(a, a + 3).item() == pytest.approx(0.0, abs=1e-12)


def test_predictive_divergence_with_excluded_classes() -> None:
    p, q = torch.tensor([[1.0, 2.0, -math.inf]]), torch.tensor([[1.0, 2.0, 0.0]])
    assert math.isfinite(metrics.predictive_divergence(p, q).item())
    assert metrics.predictive_divergence(q, p).item() == math.inf
    assert metrics.predictive_divergence(p, p).item() == pytest.approx(0.0, abs=1e-7)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), samples=st.integers(1, 40), classes=st.integers(2, 6))
def test_properties_of_any_predictions(seed: int, samples: int, classes: int) -> None:
    student, labels = predictions(samples, classes, seed)
    teacher, _ = predictions(samples, classes, seed + 1)
    who = metrics.contingency(student, teacher, labels)
    assert sum(cell.item() for cell in who) == pytest.approx(1.0)
    assert (who.both + who.student_only).item() == pytest.approx(metrics.accuracy(student, labels).item())
    assert (who.both + who.teacher_only).item() == pytest.approx(metrics.accuracy(teacher, labels).item())
    assert metrics.agreement(student, student).item() == 1.0
    assert metrics.agreement(student, teacher).item() >= who.both.item()
    shifted = student + torch.randn(samples, 1, dtype=student.dtype)
    for judge in (
        metrics.accuracy,
        metrics.expected_calibration_error,
        metrics.adaptive_calibration_error,
        metrics.brier_score,
        metrics.negative_log_likelihood,
    ):
        assert judge(shifted, labels).item() == pytest.approx(judge(student, labels).item(), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_in_every_precision_give_finite_numbers(dtype: torch.dtype) -> None:
    logits = torch.tensor([[3e4, -3e4, 0.0], [-3e4, 3e4, 0.0]], dtype=dtype)
    labels = torch.tensor([0, 0])
    assert metrics.accuracy(logits, labels).item() == 0.5
    assert metrics.expected_calibration_error(logits, labels).item() == pytest.approx(0.5)
    assert metrics.brier_score(logits, labels).item() == pytest.approx(1.0)
    assert math.isfinite(metrics.negative_log_likelihood(logits, labels).item())
    assert math.isfinite(metrics.predictive_divergence(logits, logits.flip(0)).item())


@pytest.mark.parametrize(
    ("logits", "labels", "says"),
    [
        (torch.zeros(3), torch.zeros(3, dtype=torch.long), "samples, classes"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), "at least one"),
        (torch.zeros(2, 3), torch.zeros(2), "class indices"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), "class indices"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "0..2"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), "0..2"),
    ],
)
def test_wrong_shapes_and_labels_are_refused(logits: torch.Tensor, labels: torch.Tensor, says: str) -> None:
    for judge in (metrics.accuracy, metrics.brier_score, metrics.reliability_curve, metrics.per_class_accuracy):
        with pytest.raises(ValueError, match=says):
            judge(logits, labels)


def test_wrong_pairs_and_settings_are_refused() -> None:
    a, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="differ in shape"):
        metrics.agreement(a, torch.zeros(2, 4))
    with pytest.raises(ValueError, match="k should be"):
        metrics.accuracy(a, labels, k=0)
    for judge in (metrics.expected_calibration_error, metrics.adaptive_calibration_error):
        with pytest.raises(ValueError, match="bins"):
            judge(a, labels, bins=0)
