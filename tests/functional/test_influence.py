"""Influence: exact products, the solver, and agreement with retraining."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from limbeck.functional.influence import (
    conjugate_gradient,
    directional_derivative,
    head_hessian_product,
    helpfulness,
    hessian_vector_product,
    influence_weights,
    minimal_residual,
)


def _logistic(rows: int = 30, width: int = 4, classes: int = 3) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(rows, width, dtype=torch.float64)
    truth = torch.randn(classes, width, dtype=torch.float64)
    return inputs, (inputs @ truth.T + torch.randn(rows, classes, dtype=torch.float64)).argmax(1)


def test_products_are_those_of_the_exact_hessian() -> None:
    inputs = torch.randn(6, 3, dtype=torch.float64)
    first, second = (torch.randn(*shape, dtype=torch.float64) for shape in ((4, 3), (2, 4)))

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return (torch.tanh(inputs @ a.T) @ b.T).square().mean()

    def flat(theta: Tensor) -> Tensor:
        return loss(theta[:12].view(4, 3), theta[12:].view(2, 4))

    hessian = torch.func.hessian(flat)(torch.cat([first.flatten(), second.flatten()]))
    vector = torch.randn(20, dtype=torch.float64)
    found = hessian_vector_product(loss, [first, second], [vector[:12].view(4, 3), vector[12:].view(2, 4)])
    torch.testing.assert_close(torch.cat([part.flatten() for part in found]), hessian @ vector)


def test_a_linear_loss_has_no_curvature() -> None:
    assert hessian_vector_product(lambda x: x.sum(), [torch.ones(3)], [torch.ones(3)])[0].tolist() == [0.0] * 3


def test_the_classifiers_products_are_exact() -> None:
    inputs, labels = _logistic()
    weight, vector = (torch.randn(3, 4, dtype=torch.float64) for _ in range(2))
    expected = hessian_vector_product(lambda w: cross_entropy(inputs @ w.T, labels), [weight], [vector])[0]
    found = head_hessian_product(torch.softmax(inputs @ weight.T, 1), inputs, vector)
    torch.testing.assert_close(found, expected)


def test_the_solver_solves() -> None:
    root = torch.randn(12, 12, dtype=torch.float64)
    matrix, target = root @ root.T + 0.1 * torch.eye(12, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    found = conjugate_gradient(lambda v: matrix @ v, target)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, target), rtol=1e-8, atol=1e-10)
    assert conjugate_gradient(lambda v: matrix @ v, torch.zeros(12)).tolist() == [0.0] * 12
    short = conjugate_gradient(lambda v: matrix @ v, target, iterations=2)
    assert (matrix @ short - target).norm() > (matrix @ found - target).norm()


def test_indefinite_systems_are_solved_as_well() -> None:
    root = torch.randn(14, 14, dtype=torch.float64)
    matrix, target = root + root.T, torch.randn(14, dtype=torch.float64)
    assert torch.linalg.eigvalsh(matrix).min() < 0 < torch.linalg.eigvalsh(matrix).max()
    found = minimal_residual(lambda v: matrix @ v, target)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, target), rtol=1e-7, atol=1e-9)
    left = [
        (matrix @ minimal_residual(lambda v: matrix @ v, target, iterations=n) - target).norm() for n in range(1, 8)
    ]
    assert all(later <= sooner + 1e-12 for sooner, later in itertools.pairwise(left))
    assert minimal_residual(lambda v: matrix @ v, torch.zeros(14)).tolist() == [0.0] * 14


def test_derivatives_along_a_direction_are_those_of_the_jacobian() -> None:
    inputs = torch.randn(6, 3, dtype=torch.float64)
    weight, direction = torch.randn(2, 4, 3, dtype=torch.float64)
    outputs = lambda w: torch.tanh(inputs @ w.T)  # noqa: E731
    expected = torch.func.jvp(outputs, (weight,), (direction,))[1]
    torch.testing.assert_close(directional_derivative(outputs, [weight], [direction]), expected)


def test_what_cannot_be_solved_is_refused() -> None:
    with pytest.raises(ValueError, match="not positive definite; use a larger damping"):
        conjugate_gradient(lambda v: -v, torch.ones(2))
    with pytest.raises(ValueError, match="damping is 0"):
        helpfulness(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1), damping=0.0)


def _trained(inputs: Tensor, labels: Tensor, weights: Tensor, decay: float) -> Tensor:
    """The minimum of a weighted, regularised logistic loss, by Newton's method."""
    theta = torch.zeros(3, inputs.shape[1], dtype=torch.float64)
    target, identity = torch.nn.functional.one_hot(labels, 3), torch.eye(theta.numel(), dtype=torch.float64)
    for _ in range(8):
        p = torch.softmax(inputs @ theta.T, 1)
        slope = (weights[:, None] * (p - target)).T @ inputs / len(inputs) + decay * theta
        curvature = weights[:, None, None] * (torch.diag_embed(p) - p[:, :, None] * p[:, None])
        hessian = torch.einsum("ncd,nk,nl->ckdl", curvature, inputs, inputs).reshape(identity.shape) / len(inputs)
        theta = theta - torch.linalg.solve(hessian + decay * identity, slope.flatten()).view_as(theta)
    return theta


def test_scores_agree_with_leaving_samples_out() -> None:
    """The exact effect of removing a sample on the held-out loss, on a convex problem."""
    torch.manual_seed(1)
    inputs, labels = _logistic(40)
    labels[:6] = (labels[:6] + 1) % 3
    held_inputs, held_labels = _logistic(60)
    ones, decay = torch.ones(40, dtype=torch.float64), 0.05
    weight = _trained(inputs, labels, ones, decay)
    held = lambda w: cross_entropy(held_inputs @ w.T, held_labels)  # noqa: E731
    p = torch.softmax(inputs @ weight.T, 1)
    residuals = p - torch.nn.functional.one_hot(labels, 3)
    scores = helpfulness(residuals, inputs, p, torch.func.grad(held)(weight), damping=decay)
    effect = []
    for left_out in range(40):
        kept = ones.clone()
        kept[left_out] = 0
        effect.append((held(_trained(inputs, labels, kept, decay)) - held(weight)).item())
    ranks = torch.stack([scores, torch.tensor(effect, dtype=torch.float64)]).argsort(1).argsort(1).double()
    assert torch.corrcoef(ranks)[0, 1] > 0.95
    assert (scores.sign() == torch.tensor(effect).sign()).double().mean() > 0.9


@pytest.mark.parametrize("form", ["exp_minmax", "sigmoid", "drop"])
def test_weights_grow_with_the_score_and_are_equal_for_equal_scores(form: str) -> None:
    scores = torch.randn(20, dtype=torch.float64)
    weights = influence_weights(scores, form=form)
    assert (weights >= 0).all()
    assert (weights[scores.argsort()].diff() >= 0).all()
    assert weights.max() > weights.min()
    assert len(influence_weights(torch.full((5,), 0.3), form=form).unique()) == 1
    order = torch.randperm(20)
    assert torch.equal(influence_weights(scores[order], form=form), weights[order])


def test_ranges_of_the_forms() -> None:
    scores = torch.tensor([-5.0, 0.0, 5.0])
    torch.testing.assert_close(influence_weights(scores), torch.tensor([-1.0, 0.0, 1.0]).exp())
    torch.testing.assert_close(influence_weights(scores, form="sigmoid"), torch.tensor([-1.0, 0.0, 1.0]).sigmoid())
    assert influence_weights(torch.zeros(1), form="sigmoid").item() == 0.5
    with pytest.raises(ValueError, match="not 'linear'"):
        influence_weights(scores, form="linear")
