from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from limbeck.functional import batch_correlation, class_correlation, inter_class_distance, intra_class_distance, pearson


def _pair(rows: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    student, teacher = (2 * torch.randn(rows, classes, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher


def _softmax(logits: Tensor, temperature: float) -> np.ndarray:
    return scipy.special.softmax(logits.detach().numpy() / temperature, axis=1)


def test_pearson_is_scipys() -> None:
    x, y = _pair()
    expected = [scipy.stats.pearsonr(a, b).statistic for a, b in zip(x.detach().numpy(), y.numpy())]
    np.testing.assert_allclose(pearson(x, y).detach(), expected, rtol=1e-12)
    np.testing.assert_allclose(pearson(x.T, y.T, dim=0).detach(), expected, rtol=1e-12)


def test_eps_is_added_to_the_product_of_norms() -> None:
    x, y = _pair()
    a, b = (z - z.mean(1, keepdim=True) for z in (x, y))
    torch.testing.assert_close(pearson(x, y, eps=0.5), (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 0.5))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_pearson_ignores_positive_affine_maps(scale: float) -> None:
    x, y = _pair()
    torch.testing.assert_close(pearson(scale * x + scale, 3 * y - 1), pearson(x, y), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(pearson(-x, y), -pearson(x, y))


def test_gradient_survives_small_variances() -> None:
    x, y = _pair()
    (gradient,) = torch.autograd.grad(pearson(x, y).sum(), x)
    small = (1e-30 * x).detach().requires_grad_()
    (scaled,) = torch.autograd.grad(pearson(small, y).sum(), small)
    torch.testing.assert_close(1e-30 * scaled, gradient, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_vectors_are_uncorrelated(value: float, dtype: torch.dtype) -> None:
    x = torch.full((3, 7), value, dtype=dtype, requires_grad=True)
    rho = pearson(x, torch.randn(3, 7, dtype=dtype))
    assert (rho == 0).all()
    rho.sum().backward()
    assert x.grad is not None
    assert (x.grad == 0).all()


def test_distances_are_over_classes_and_over_the_batch() -> None:
    student, teacher = _pair()
    s, t = _softmax(student, 4.0), _softmax(teacher, 4.0)
    inter = [1 - scipy.stats.pearsonr(a, b).statistic for a, b in zip(s, t)]
    intra = [1 - scipy.stats.pearsonr(a, b).statistic for a, b in zip(s.T, t.T)]
    options = {"temperature": 4.0, "reduction": "none"}
    np.testing.assert_allclose(
        inter_class_distance(student, teacher, **options).detach(), 16 * np.array(inter), rtol=1e-9
    )
    np.testing.assert_allclose(
        intra_class_distance(student, teacher, **options).detach(), 16 * np.array(intra), rtol=1e-9
    )
    plain = inter_class_distance(student, teacher, temperature=4.0, scale_by_t2=False)
    np.testing.assert_allclose(plain.item(), np.mean(inter), rtol=1e-9)


@pytest.mark.parametrize("loss", [inter_class_distance, intra_class_distance, batch_correlation, class_correlation])
def test_equal_logits_cost_nothing(loss) -> None:
    _, teacher = _pair()
    assert loss(teacher + 2.0, teacher).abs() < 1e-12


def test_one_sample_and_one_class_batches_stay_finite() -> None:
    single = torch.randn(1, 5, requires_grad=True)
    loss = intra_class_distance(single, torch.randn(1, 5))
    assert loss == 1
    loss.backward()
    assert single.grad is not None
    assert (single.grad == 0).all()
    same = torch.randn(1, 5).expand(4, 5)
    assert intra_class_distance(same, torch.randn(4, 5)) == 1


@pytest.mark.parametrize(("loss", "transpose"), [(batch_correlation, False), (class_correlation, True)])
def test_gram_distances_by_hand(loss, transpose: bool) -> None:
    student, teacher = _pair()
    s, t = ((_softmax(z, 3.0).T if transpose else _softmax(z, 3.0)) for z in (student, teacher))
    rows = ((s @ s.T - t @ t.T) ** 2).sum(1)
    np.testing.assert_allclose(loss(student, teacher, temperature=3.0, reduction="none").detach(), rows, rtol=1e-10)
    mask = torch.arange(len(rows)) % 2 == 0
    masked = loss(student, teacher, temperature=3.0, mask=mask, reduction="batchmean")
    np.testing.assert_allclose(masked.item(), rows[mask].sum() / len(rows), rtol=1e-10)
