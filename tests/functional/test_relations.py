from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.spatial.distance
import torch
from torch import Tensor

from limbeck.functional import (
    consecutive_correlation,
    correlation_congruence,
    pairwise_distances,
    probabilistic_transfer,
    relational_angle,
    relational_distance,
    relations,
    similarity_preserving,
)

BATCH_LOSSES = [
    similarity_preserving,
    relational_distance,
    relational_angle,
    probabilistic_transfer,
    correlation_congruence,
]


def _pair(batch: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 4, dtype=torch.float64, requires_grad=True), torch.randn(batch, 7, dtype=torch.float64)


def _rotation(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q


def _huber(difference: np.ndarray) -> np.ndarray:
    size = np.abs(difference)
    return np.where(size < 1, 0.5 * size**2, size - 0.5)


@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_rotation_and_scale_of_the_teacher_change_nothing(loss) -> None:
    student, teacher = _pair()
    turned = 5 * teacher @ _rotation(7)
    torch.testing.assert_close(loss(student, turned), loss(student, teacher), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("loss", [relational_distance, relational_angle])
def test_translation_changes_nothing(loss) -> None:
    student, teacher = _pair()
    torch.testing.assert_close(loss(student + 3, teacher - 2), loss(student, teacher), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_zero_exactly_where_relations_agree(loss) -> None:
    student, teacher = _pair()
    assert loss(student, student.detach() @ _rotation(4)).abs() < 1e-10
    assert loss(student, teacher) > 1e-5


@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_order_of_the_batch_does_not_matter(loss) -> None:
    student, teacher = _pair()
    order = torch.randperm(6)
    torch.testing.assert_close(loss(student[order], teacher[order]), loss(student, teacher))


@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_zero_and_equal_rows_have_finite_values_and_gradients(loss) -> None:
    for rows in (torch.zeros(4, 3), torch.ones(4, 3), torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [2.0, 5.0]])):
        student = rows.clone().requires_grad_()
        value = loss(student, torch.randn(4, 5))
        value.backward()
        assert value.isfinite()
        assert student.grad is not None
        assert student.grad.isfinite().all()
        assert student.grad.abs().max() < 1e3
        assert loss(torch.randn(4, 5), rows).isfinite()


@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_features_of_another_batch_are_refused(loss) -> None:
    with pytest.raises(ValueError, match="4 and 3"):
        loss(torch.zeros(4, 2), torch.zeros(3, 2))


def test_similarity_matrices_by_hand() -> None:
    student, teacher = torch.randn(5, 2, 3, 3, dtype=torch.float64), torch.randn(5, 4, 2, 2, dtype=torch.float64)
    grams = [(f @ f.T).numpy() for f in (student.flatten(1), teacher.flatten(1))]
    grams = [g / np.linalg.norm(g, axis=1, keepdims=True) for g in grams]
    np.testing.assert_allclose(
        similarity_preserving(student, teacher), ((grams[0] - grams[1]) ** 2).sum() / 25, rtol=1e-10
    )


@pytest.mark.parametrize("squared", [False, True])
def test_distances_by_scipy(squared: bool) -> None:
    student, teacher = _pair()
    matrices = [
        scipy.spatial.distance.cdist(f, f, "sqeuclidean" if squared else "euclidean")
        for f in (student.detach().numpy(), teacher.numpy())
    ]
    np.testing.assert_allclose(pairwise_distances(student, squared=squared).detach(), matrices[0], rtol=1e-10)
    relative = [m / m[m > 0].mean() for m in matrices]
    expected = _huber(relative[0] - relative[1]).mean()
    np.testing.assert_allclose(relational_distance(student, teacher, squared=squared).item(), expected, rtol=1e-10)


def test_equal_samples_keep_their_place_in_the_mean_distance() -> None:
    student, teacher = _pair()
    teacher[1] = teacher[0]
    exact = relational_distance(student, teacher)
    floored = relational_distance(student, teacher, eps=1e-12)
    torch.testing.assert_close(exact, floored, rtol=1e-6, atol=0.0)
    assert pairwise_distances(teacher, eps=4.0)[0, 1] == 2.0
    assert (pairwise_distances(teacher, eps=4.0).diagonal() == 0).all()


def test_near_samples_lose_no_digits_in_single_precision() -> None:
    rows = torch.tensor([[1000.0, 0.0], [1000.0, 0.001]])
    assert pairwise_distances(rows)[0, 1].item() == pytest.approx(0.001, rel=1e-6)


def test_angles_by_hand() -> None:
    student, teacher = _pair(4)
    expected = []
    for i in range(4):
        for j in range(4):
            for k in range(4):
                cosines = []
                for f in (student.detach().numpy(), teacher.numpy()):
                    a, b = f[i] - f[j], f[k] - f[j]
                    norm = np.linalg.norm(a) * np.linalg.norm(b)
                    cosines.append(a @ b / norm if norm > 0 else 0.0)
                expected.append(_huber(np.array(cosines[0] - cosines[1])))
    np.testing.assert_allclose(relational_angle(student, teacher).item(), np.mean(expected), rtol=1e-10)


@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean"])
@pytest.mark.parametrize("size", [1, 30, 1 << 22])
def test_blocks_of_vertices_change_nothing(monkeypatch: pytest.MonkeyPatch, size: int, reduction: str) -> None:
    student, teacher = _pair(7)
    whole = relational_angle(student, teacher, reduction=reduction)
    (gradient,) = torch.autograd.grad(whole, student)
    monkeypatch.setattr(relations, "_CHUNK_ELEMENTS", size)
    blocks = relational_angle(student, teacher, reduction=reduction)
    torch.testing.assert_close(blocks, whole, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(torch.autograd.grad(blocks, student)[0], gradient, rtol=1e-10, atol=1e-14)


def test_neighbourhoods_by_hand() -> None:
    student, teacher = _pair()
    probabilities = []
    for f in (student.detach().numpy(), teacher.numpy()):
        unit = f / (np.linalg.norm(f, axis=1, keepdims=True) + 1e-3)
        kernel = (unit @ unit.T + 1) / 2
        probabilities.append(kernel / kernel.sum(1, keepdims=True))
    s, t = probabilities
    expected = (t * np.log((t + 1e-3) / (s + 1e-3))).mean()
    np.testing.assert_allclose(probabilistic_transfer(student, teacher, eps=1e-3).item(), expected, rtol=1e-10)


def test_opposite_features_are_bounded_by_eps() -> None:
    opposite, alike = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.ones(2, 2)
    assert probabilistic_transfer(opposite, alike, eps=0.0) == torch.inf
    assert probabilistic_transfer(opposite, alike).isfinite()
    assert probabilistic_transfer(alike, opposite, eps=0.0).isfinite()


@pytest.mark.parametrize("order", [1, 2, 4])
def test_kernel_expansion_by_hand(order: int) -> None:
    student, teacher = _pair()
    kernels = []
    for f in (student.detach().numpy(), teacher.numpy()):
        unit = f / np.linalg.norm(f, axis=1, keepdims=True)
        terms = [(2 * 0.7) ** p / math.factorial(p) * (unit @ unit.T) ** p for p in range(order + 1)]
        kernels.append(math.exp(-2 * 0.7) * sum(terms))
    expected = ((kernels[0] - kernels[1]) ** 2).mean()
    ours = correlation_congruence(student, teacher, gamma=0.7, order=order)
    np.testing.assert_allclose(ours.item(), expected, rtol=1e-10)


def test_high_order_expansion_is_the_gaussian_kernel() -> None:
    student, teacher = _pair()
    kernels = [
        np.exp(-0.4 * scipy.spatial.distance.cdist(u, u, "sqeuclidean"))
        for u in (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (student.detach().numpy(), teacher.numpy()))
    ]
    ours = correlation_congruence(student, teacher, gamma=0.4, order=20)
    np.testing.assert_allclose(ours.item(), ((kernels[0] - kernels[1]) ** 2).mean(), rtol=1e-9)


def test_bilinear_kernel_is_the_cosine() -> None:
    student, teacher = _pair()
    cosines = [1 - scipy.spatial.distance.cdist(f, f, "cosine") for f in (student.detach().numpy(), teacher.numpy())]
    ours = correlation_congruence(student, teacher, kernel="bilinear")
    np.testing.assert_allclose(ours.item(), ((cosines[0] - cosines[1]) ** 2).mean(), rtol=1e-9)


def test_consecutive_form_by_hand_and_its_dependence_on_order() -> None:
    student, teacher = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    e = np.abs((student - teacher).detach().numpy())
    expected = np.mean([(e[i] * e[i + 1]).sum() for i in range(4)])
    loss = consecutive_correlation(student, teacher)
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-12)
    loss.backward()
    assert teacher.grad is not None
    assert not torch.isclose(consecutive_correlation(student[[2, 0, 3, 1, 4]], teacher[[2, 0, 3, 1, 4]]), loss)
