from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck.functional.kernel_self_distillation import (
    constant_weight_spectrum,
    greedy_weights,
    optimal_weight,
    rbf_kernel,
    self_distillation_limit,
    self_distillation_path,
    self_distillation_spectrum,
    spectrum_limit,
)

RIDGE = 0.3


def _problem(outputs: int = 2, n: int = 9, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Kernel, targets, kernel of held-out samples, held-out targets: a noisy sine."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n + 6, 1, generator=generator, dtype=torch.float64)
    y = torch.sin(6 * x) + 0.5 * torch.randn(n + 6, outputs, generator=generator, dtype=torch.float64)
    kernel = rbf_kernel(x, x[:n], gamma=20.0)
    return kernel[:n], y[:n], kernel[n:], y[n:]


@pytest.mark.parametrize("weights", [[0.3] * 6, [0.0] * 6, [1.0] * 6, [0.9, 0.1, 0.7, 0.0, 0.4, 0.6]])
def test_iteration_equals_the_spectral_form(weights: list[float]) -> None:
    kernel, targets, _, _ = _problem()
    values, vectors = torch.linalg.eigh(kernel)
    spectrum = self_distillation_spectrum(values, ridge=RIDGE, weights=weights)
    direct = torch.stack([vectors @ (b.unsqueeze(1) * (vectors.T @ targets)) for b in spectrum])
    path = self_distillation_path(kernel, targets, ridge=RIDGE, weights=weights)
    torch.testing.assert_close(path.train, direct, rtol=1e-10, atol=1e-10)
    if len(set(weights)) == 1:
        closed = constant_weight_spectrum(values, ridge=RIDGE, weight=weights[0], generations=6)
        torch.testing.assert_close(closed, spectrum, rtol=1e-10, atol=1e-12)


def test_generations_minimise_the_weighted_objective() -> None:
    kernel, targets, _, _ = _problem()
    alpha, path = 0.3, self_distillation_path(*_problem()[:2], ridge=RIDGE, weights=[1.0, 0.3])
    dual = torch.linalg.solve(kernel, path.train[1]).requires_grad_()
    fitted = kernel @ dual
    loss = alpha * (fitted - targets).square().sum() + (1 - alpha) * (fitted - path.train[0]).square().sum()
    (gradient,) = torch.autograd.grad(loss + RIDGE * (dual * (kernel @ dual)).sum(), dual)
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("weight", [0.2, 0.7])
def test_the_limit_is_ridge_regression_with_a_larger_ridge(weight: float) -> None:
    kernel, targets, queries, _ = _problem()
    path = self_distillation_path(kernel, targets, ridge=RIDGE, weights=[weight] * 400, queries=queries)
    limit = self_distillation_limit(kernel, targets, ridge=RIDGE, weight=weight, queries=queries)
    ordinary = queries @ torch.linalg.solve(kernel + RIDGE / weight * torch.eye(9), targets)
    torch.testing.assert_close(limit.queries[0], ordinary)
    torch.testing.assert_close(path.queries[-1], ordinary)
    torch.testing.assert_close(path.train[-1], limit.train[0])


def test_without_targets_the_model_collapses_and_with_them_alone_nothing_changes() -> None:
    kernel, targets, queries, _ = _problem()
    norms = self_distillation_path(kernel, targets, ridge=RIDGE, weights=[0.0] * 60).train.flatten(1).norm(dim=1)
    assert (norms.diff() < 0).all()
    assert norms[-1] < 0.05 * norms[0]
    assert not self_distillation_limit(kernel, targets, ridge=RIDGE, weight=0.0, queries=queries).queries.any()
    same = self_distillation_path(kernel, targets, ridge=RIDGE, weights=[0.4, 1.0, 1.0]).train
    torch.testing.assert_close(same, same[:1].expand_as(same))


def test_shrinkage_falls_towards_its_limit_and_targets_dampen_sparsification() -> None:
    values = torch.tensor([0.05, 0.4, 2.0, 9.0], dtype=torch.float64)
    for weight in (0.0, 0.25, 0.8):
        kept = constant_weight_spectrum(values, ridge=RIDGE, weight=weight, generations=40)
        assert (kept.diff(dim=0) <= 1e-15).all()
        assert (kept >= spectrum_limit(values, ridge=RIDGE, weight=weight) - 1e-15).all()
        ratio = kept[:, 3] / kept[:, 1]
        assert (ratio >= ratio[0] - 1e-12).all()
        if weight == 0:
            assert (ratio.diff() > 0).all()
        else:
            a, b = weight * values[3], weight * values[1]
            limit = values[3] * (b + RIDGE) / (values[1] * (a + RIDGE))
            assert ratio[-1].item() == pytest.approx(limit.item(), rel=1e-3)


def test_optimal_weight_is_that_of_a_grid() -> None:
    kernel, targets, queries, held = _problem(seed=3)
    first = self_distillation_path(kernel, targets, ridge=0.05, weights=[1.0], queries=queries).queries[0]

    def error(alpha: float) -> float:
        path = self_distillation_path(kernel, targets, ridge=0.05, weights=[1.0, alpha], queries=queries)
        return float((path.queries[1] - held).square().mean())

    unguided = self_distillation_path(kernel, targets, ridge=0.05, weights=[1.0, 0.0], queries=queries).queries[1]
    best = float(optimal_weight(first, unguided, held, clip=False))
    assert error(best) <= min(error(best - 1e-3), error(best + 1e-3))
    assert optimal_weight(first, first, held) == 1
    clipped = float(optimal_weight(first, unguided, held))
    assert error(clipped) <= min(error(a / 50) for a in range(51)) + 1e-12


def test_greedy_weights_never_end_worse_than_the_first_generation() -> None:
    for seed in range(8):
        kernel, targets, queries, held = _problem(seed=seed)
        for clip in (False, True):
            found = greedy_weights(
                kernel, targets, ridge=0.05, generations=6, queries=queries, held_out=held, clip=clip
            )
            assert (found.errors <= found.errors[0] + 1e-12).all()
            assert found.weights.shape == (5,)


@pytest.mark.parametrize("call", [
    lambda k, y: self_distillation_path(k, y, ridge=0.0, weights=[1.0]),
    lambda k, y: self_distillation_limit(k, y, ridge=1.0, weight=1.5),
    lambda k, y: rbf_kernel(y, y, gamma=-1.0),
])  # fmt: skip
def test_values_out_of_range_are_named(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="should"):
        call(torch.eye(3), torch.ones(3, 1))
