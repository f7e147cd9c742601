from __future__ import annotations

import pytest
import scipy.stats
import torch
from torch import Tensor

from limbeck.functional import LOGIT_TRANSFORMS, kl, logit_transform, standardize


def _logits(rows: int = 5, classes: int = 8) -> Tensor:
    return (4 * torch.randn(rows, classes, dtype=torch.float64) + 3).requires_grad_()


def test_rows_become_z_scores() -> None:
    logits = _logits()
    expected = torch.from_numpy(scipy.stats.zscore(logits.detach().numpy(), axis=1, ddof=1))
    torch.testing.assert_close(standardize(logits).detach(), expected)
    by_hand = (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + 0.3)
    torch.testing.assert_close(standardize(logits, eps=0.3), by_hand)


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 7.0, 1e200])
def test_positive_affine_maps_change_nothing(scale: float) -> None:
    logits = _logits()
    torch.testing.assert_close(standardize(scale * logits - scale), standardize(logits), rtol=1e-9, atol=1e-12)


def test_student_that_is_an_affine_map_of_the_teacher_costs_nothing_only_when_standardised() -> None:
    teacher = _logits().detach()
    student = 3 * teacher - 5
    assert kl(student, teacher) > 0.01
    assert kl(standardize(student), standardize(teacher)).abs() < 1e-12


def test_gradient_has_no_part_along_shift_and_scale() -> None:
    student, teacher = _logits(), _logits().detach()
    kl(standardize(student), standardize(teacher)).backward()
    gradient = student.grad
    assert gradient is not None
    assert gradient.abs().max() > 1e-4
    torch.testing.assert_close(gradient.sum(1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-15)
    along = (gradient * (student - student.mean(1, keepdim=True))).sum(1)
    torch.testing.assert_close(along, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_rows_become_zeros_with_finite_gradient(value: float, dtype: torch.dtype) -> None:
    logits = torch.full((2, 7), value, dtype=dtype, requires_grad=True)
    scores = standardize(logits)
    assert (scores == 0).all()
    (scores * torch.arange(7)).sum().backward()
    assert logits.grad is not None
    assert (logits.grad == 0).all()
    assert standardize(logits, eps=1e-7).isfinite().all()


def test_single_class_is_refused() -> None:
    with pytest.raises(ValueError, match="single class"):
        standardize(torch.zeros(3, 1))


def test_transforms_are_found_by_name() -> None:
    logits = _logits()
    assert logit_transform("identity")(logits) is logits
    assert all(transform(logits).shape == logits.shape for transform in LOGIT_TRANSFORMS.values())
    with pytest.raises(ValueError, match="did you mean 'standardize'"):
        logit_transform("standardise")


def test_options_of_a_transform() -> None:
    logits = _logits().detach()
    assert torch.equal(logit_transform("standardize", eps=0.3)(logits), standardize(logits, eps=0.3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 1.0}, "known: eps"),
        ({"eps": -1.0}, "0 or more"),
        ({"eps": "small"}, "number"),
        ({"eps": True}, "number"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        logit_transform("standardize", **options)
    with pytest.raises(ValueError, match="no option 'eps'"):
        logit_transform("identity", eps=1.0)
