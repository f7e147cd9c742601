from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck.functional import kl
from limbeck.functional.subclasses import (
    SubclassProjections,
    class_log_probabilities,
    fit_subclasses,
    subclass_kl,
    subclass_log_targets,
)

CLASSES, WIDTH, SUBCLASSES = 3, 8, 4


def _data(rows: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, labels and the classifier's weights."""
    embeddings = torch.randn(rows, WIDTH, dtype=torch.float64) * torch.arange(1.0, WIDTH + 1).double() + 5.0
    return embeddings, torch.arange(rows) % CLASSES, torch.randn(CLASSES, WIDTH, dtype=torch.float64)


def _rotation() -> Tensor:
    return torch.linalg.qr(torch.randn(SUBCLASSES, SUBCLASSES, dtype=torch.float64))[0]


def _fit(
    embeddings: Tensor, labels: Tensor, classifier: Tensor | None, rotation: Tensor | None = None
) -> SubclassProjections:
    return fit_subclasses(
        embeddings, labels, num_classes=CLASSES, subclasses=SUBCLASSES, classifier=classifier, rotation=rotation
    )


def test_directions_are_orthonormal_and_unread_by_the_classifier() -> None:
    embeddings, labels, classifier = _data()
    found = _fit(embeddings, labels, classifier, _rotation())
    for directions in found.directions:
        torch.testing.assert_close(directions @ directions.T, torch.eye(SUBCLASSES).double(), rtol=0, atol=1e-9)
        differences = classifier - classifier.mean(0)
        torch.testing.assert_close(
            differences @ directions.T, torch.zeros(CLASSES, SUBCLASSES).double(), rtol=0, atol=1e-9
        )


def test_directions_explain_the_most_variance_and_are_scaled_to_one() -> None:
    embeddings, labels, _ = _data()
    found = _fit(embeddings, labels, None)
    rows = embeddings[labels == 1]
    values, axes = torch.linalg.eigh(torch.cov(rows.T))
    leading = axes[:, values.argsort(descending=True)[:SUBCLASSES]]
    torch.testing.assert_close(found.directions[1].T @ found.directions[1], leading @ leading.T)
    projected = (rows - found.means[1]) @ found.directions[1].T / found.scale[1]
    torch.testing.assert_close(projected.square().mean(), torch.tensor(1.0, dtype=torch.float64))


def test_a_translation_and_a_change_of_basis_leave_the_targets() -> None:
    embeddings, labels, classifier = _data()
    logits = torch.randn(len(labels), CLASSES, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64))[0]
    shares = []
    for rows, weights in ((embeddings, classifier), (embeddings @ basis + 3.0, classifier @ basis)):
        found = _fit(rows, labels, weights)
        targets = subclass_log_targets(logits, rows, found).exp().unflatten(1, (CLASSES, SUBCLASSES))
        # The sign of a principal axis depends on the basis, so compare what a flip leaves.
        projected = torch.einsum("csd,bcd->bcs", found.directions, rows[:, None] - found.means) / found.scale[:, None]
        shares.append((projected.abs(), targets.sum(-1)))
    for before, after in zip(*shares):
        torch.testing.assert_close(before, after, rtol=1e-7, atol=1e-9)


def test_targets_sum_to_the_teachers_probabilities() -> None:
    embeddings, labels, classifier = _data()
    logits = 3 * torch.randn(len(labels), CLASSES, dtype=torch.float64)
    found = _fit(embeddings, labels, classifier)
    targets = subclass_log_targets(logits, embeddings, found, temperature=2.0, sharpness=1.5).exp()
    torch.testing.assert_close(targets.unflatten(1, (CLASSES, -1)).sum(-1), torch.softmax(logits / 2.0, 1))
    even = subclass_log_targets(logits, embeddings, found, sharpness=1e12).exp().unflatten(1, (CLASSES, -1))
    torch.testing.assert_close(even, torch.softmax(logits, 1)[..., None].expand_as(even) / SUBCLASSES)


def test_one_subclass_is_plain_distillation() -> None:
    embeddings, labels, _ = _data()
    teacher, student = (3 * torch.randn(len(labels), CLASSES, dtype=torch.float64) for _ in range(2))
    found = fit_subclasses(embeddings, labels, num_classes=CLASSES, subclasses=1)
    targets = subclass_log_targets(teacher, embeddings, found, temperature=3.0)
    torch.testing.assert_close(subclass_kl(student, targets, temperature=3.0), kl(student, teacher, temperature=3.0))
    torch.testing.assert_close(class_log_probabilities(student, CLASSES), torch.log_softmax(student, 1))


def test_unlabelled_samples_are_left_out() -> None:
    embeddings, labels, classifier = _data()
    partly = labels.clone()
    partly[30:] = -100
    for one, other in zip(_fit(embeddings, partly, classifier), _fit(embeddings[:30], labels[:30], classifier)):
        torch.testing.assert_close(one, other)


def test_classes_that_vary_in_fewer_directions_use_those_they_have() -> None:
    embeddings, labels, _ = _data(rows=9)
    found = _fit(embeddings, labels, None, _rotation())
    assert [int(torch.linalg.matrix_rank(d)) for d in found.directions] == [2, 2, 2]
    logits = torch.randn(9, CLASSES, dtype=torch.float64)
    targets = subclass_log_targets(logits, embeddings, found).exp().unflatten(1, (CLASSES, -1))
    torch.testing.assert_close(targets.sum(-1), torch.softmax(logits, 1))
    single = _fit(embeddings[:3], labels[:3], None)
    assert (single.directions == 0).all()
    even = subclass_log_targets(logits, embeddings, single).exp().unflatten(1, (CLASSES, -1))
    torch.testing.assert_close(even, torch.softmax(logits, 1)[..., None].expand_as(even) / SUBCLASSES)


def test_what_cannot_be_fitted_is_named() -> None:
    embeddings, labels, _ = _data(rows=9)
    with pytest.raises(ValueError, match="class 2 has no sample"):
        fit_subclasses(embeddings, labels % 2, num_classes=3, subclasses=1)
    with pytest.raises(ValueError, match="divided"):
        class_log_probabilities(torch.zeros(1, 7), 3)
