"""Conditional mutual information: identities, centroids, and a teacher that is prepared with it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from limbeck import distill
from limbeck.functional.conditional_information import conditional_mutual_information, log_centroids, log_class_sums
from limbeck.signals import as_term
from methods.workbench import all_labels, bench


def _outputs(rows: int = 40, classes: int = 5) -> tuple[Tensor, Tensor]:
    return 3 * torch.randn(rows, classes, dtype=torch.float64), torch.arange(rows) % classes


def _centroids(logits: Tensor, labels: Tensor, classes: int = 5) -> Tensor:
    return log_centroids(log_class_sums(logits, labels, num_classes=classes))


def test_centroids_are_class_means_of_probabilities() -> None:
    logits, labels = _outputs()
    p = torch.softmax(logits, 1)
    expected = torch.stack([p[labels == c].mean(0) for c in range(5)])
    torch.testing.assert_close(_centroids(logits, labels).exp(), expected)
    parts = [log_class_sums(logits[rows], labels[rows], num_classes=5) for rows in (slice(0, 7), slice(7, 40))]
    torch.testing.assert_close(log_centroids(torch.logaddexp(*parts)).exp(), expected)


def test_the_information_is_what_entropies_say() -> None:
    logits, labels = _outputs()
    entropy = lambda log_p: -(log_p.exp() * log_p).sum(-1)  # noqa: E731
    centroids = _centroids(logits, labels)
    shares = torch.bincount(labels).double() / len(labels)
    expected = (shares * entropy(centroids)).sum() - entropy(torch.log_softmax(logits, 1)).mean()
    found = conditional_mutual_information(logits, labels, centroids)
    assert abs((found - expected).item()) < 1e-12
    assert found > 0


def test_classes_with_one_output_tell_nothing_of_their_samples() -> None:
    _, labels = _outputs()
    logits = torch.randn(5, 5, dtype=torch.float64)[labels]
    assert conditional_mutual_information(logits, labels, _centroids(logits, labels)).item() == pytest.approx(0)


def test_centroids_are_constants_and_absent_classes_need_none() -> None:
    logits, labels = _outputs()
    logits.requires_grad_()
    (through,) = torch.autograd.grad(
        conditional_mutual_information(logits, labels, _centroids(logits, labels)), logits, retain_graph=True
    )
    (fixed,) = torch.autograd.grad(
        conditional_mutual_information(logits, labels, _centroids(logits, labels).clone().detach()), logits
    )
    assert torch.equal(through, fixed)
    wide = _centroids(logits, labels, classes=7)
    assert torch.isfinite(wide).all()
    torch.testing.assert_close(conditional_mutual_information(logits, labels, wide[:5]), _information(logits, labels))


def _information(logits: Tensor, labels: Tensor) -> Tensor:
    return conditional_mutual_information(logits, labels, _centroids(logits, labels))


def test_extreme_outputs_stay_finite() -> None:
    logits, labels = _outputs()
    extreme = (1e4 * logits).float().requires_grad_()
    loss = _information(extreme, labels)
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, extreme)[0]).all()


def test_masked_samples_do_not_count() -> None:
    logits, labels = _outputs(6)
    mask = torch.tensor([1, 1, 0, 1, 0, 1], dtype=torch.bool)
    centroids = _centroids(logits, labels)
    spoilt = logits.masked_fill(~mask[:, None], torch.nan)
    found = conditional_mutual_information(spoilt, labels.masked_fill(~mask, -100), centroids, mask=mask)
    torch.testing.assert_close(found, conditional_mutual_information(logits[mask], labels[mask], centroids))


@pytest.mark.parametrize("when", ["epoch", "once"])
def test_centroids_follow_the_model_where_asked(when: str) -> None:
    built = bench("mcmi", {"centroids": when})
    before = built.method.log_centroids.clone()
    logits = torch.cat([built.signals(built.bench_batch(s))["student"].logits for s in range(4)])
    torch.testing.assert_close(before, _centroids(logits, all_labels()))
    with torch.no_grad():
        built.learners["student"].head.weight.mul_(3)
    built.train(2)
    assert torch.equal(before, built.method.log_centroids) == (when == "once")


def test_without_weight_it_is_fine_tuning() -> None:
    built = bench("mcmi", {"weight": 0.0})
    terms = built.terms()
    rows = nn.functional.cross_entropy(built.signals(built.batch())["student"].logits, built.batch()["labels"])
    assert built.method.weights["negative_cmi"] == 0
    torch.testing.assert_close(as_term(terms["ce"]).mean(), rows)


def test_the_information_of_a_prepared_teacher_grows_with_the_weight() -> None:
    torch.manual_seed(0)
    labels = torch.arange(240) % 3
    inputs = torch.randn(240, 6) + 2 * torch.nn.functional.one_hot(labels, 6)
    teacher = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    distill(None, teacher, (inputs, labels), method="none", epochs=4, lr=0.1, batch_size=60)
    found, accuracy = [], []
    for weight in (0.0, 0.15, 0.3):
        prepared = copy.deepcopy(teacher)
        distill(None, prepared, (inputs, labels), method={"name": "mcmi", "weight": weight}, epochs=4, batch_size=60)
        logits = prepared(inputs).detach()
        found.append(conditional_mutual_information(logits, labels, _centroids(logits, labels, 3)).item())
        accuracy.append((logits.argmax(1) == labels).float().mean().item())
    assert found[0] < found[1] < found[2]
    assert min(accuracy) > accuracy[0] - 0.02
