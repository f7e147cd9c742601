from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from limbeck.functional import sinkhorn_distance, sinkhorn_plan


def _logits(rows: int = 7, classes: int = 4) -> tuple[Tensor, Tensor]:
    student, teacher = (2 * torch.randn(rows, classes, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher


def _distances(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    ours, theirs = (torch.softmax(z.detach() / temperature, 1) for z in (student, teacher))
    return (ours[:, None] - theirs[None]).abs().sum(-1)


def test_columns_have_their_mass_exactly_and_rows_nearly() -> None:
    plan = sinkhorn_plan(_distances(*_logits()), epsilon=0.2, iterations=100)
    torch.testing.assert_close(plan.sum(0), torch.ones(7, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(plan.sum(1), torch.ones(7, dtype=torch.float64), rtol=0, atol=1e-3)


def test_the_plan_is_that_of_the_multiplicative_iterations() -> None:
    cost = _distances(*_logits())[:5]
    kernel = np.exp(-cost.numpy() / 0.3)
    for _ in range(6):
        kernel = kernel / kernel.sum(1, keepdims=True) * 7 / 5
        kernel = kernel / kernel.sum(0, keepdims=True)
    np.testing.assert_allclose(sinkhorn_plan(cost, epsilon=0.3, iterations=6).numpy(), kernel, rtol=1e-12)


def test_swapped_roles_transpose_the_plan() -> None:
    cost = _distances(*_logits())
    there, back = (sinkhorn_plan(c, epsilon=0.3, iterations=500) for c in (cost, cost.T))
    torch.testing.assert_close(there, back.T, rtol=0, atol=1e-9)


def test_without_smoothing_it_is_the_best_assignment() -> None:
    student, teacher = _logits()
    cost = _distances(student, teacher)
    rows, columns = linear_sum_assignment(cost.numpy())
    best = cost[rows, columns].sum()
    ours = sinkhorn_distance(student, teacher, epsilon=2e-3, iterations=3000, reduction="sum")
    torch.testing.assert_close(ours.detach(), best, rtol=1e-3, atol=0)


def test_with_endless_smoothing_everything_goes_everywhere() -> None:
    student, teacher = _logits()
    ours = sinkhorn_distance(student, teacher, epsilon=1e9)
    torch.testing.assert_close(ours.detach(), _distances(student, teacher).mean())


def test_one_sample_costs_its_distance() -> None:
    student, teacher = _logits(rows=1)
    torch.testing.assert_close(sinkhorn_distance(student, teacher).detach(), _distances(student, teacher)[0, 0])


def test_batches_that_are_equal_as_sets_cost_nothing_but_the_smoothing() -> None:
    _, teacher = _logits()
    shuffled = teacher[torch.randperm(7)]
    assert sinkhorn_distance(shuffled, teacher, epsilon=1e-3, iterations=200) < 1e-6
    assert sinkhorn_distance(teacher, teacher, epsilon=0.5) > 1e-3


def test_gradients_flow_through_the_iterations() -> None:
    student, teacher = _logits(rows=3, classes=3)
    assert torch.autograd.gradcheck(lambda s: sinkhorn_distance(s, teacher, epsilon=0.3, iterations=4), student)


def test_masked_samples_neither_send_nor_receive() -> None:
    student, teacher = _logits()
    mask = torch.tensor([1, 0, 1, 1, 0, 1, 1]).bool()
    masked = sinkhorn_distance(student, teacher, mask=mask, reduction="none")
    torch.testing.assert_close(masked[mask], sinkhorn_distance(student[mask], teacher[mask], reduction="none"))
    assert (masked[~mask] == 0).all()


@pytest.mark.parametrize(
    ("cost", "options", "message"),
    [
        (torch.zeros(3), {}, "matrix"),
        (torch.zeros(3, 3), {"epsilon": 0.0}, "epsilon"),
        (torch.zeros(3, 3), {"iterations": 0}, "iterations"),
    ],
)
def test_what_does_not_fit_is_refused(cost: Tensor, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sinkhorn_plan(cost, **options)
    with pytest.raises(ValueError, match="flatten"):
        sinkhorn_distance(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))
