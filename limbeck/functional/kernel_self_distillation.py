r"""Self-distillation in kernel ridge regression, exactly: what repeated distillation does to a model.

A generation fits the mixture of the original targets and of its parent's predictions,
:math:`T_t = \alpha_t Y + (1 - \alpha_t) Y_{t-1}`, with :math:`Y_0 = Y`. Targets have no intercept: centre them.

Reference:
    Borup and Andersen, "Even your Teacher Needs Guidance: Ground-Truth Targets Dampen Regularization Imposed by
    Self-Distillation", NeurIPS 2021, arXiv 2102.13088.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.functional.reduction import check_same_shape


def rbf_kernel(first: Tensor, second: Tensor, *, gamma: float) -> Tensor:
    r"""Gaussian kernel :math:`k(x, x') = \exp(-\gamma \|x - x'\|^2)`.

    Args:
        first: ``[N, D]``.
        second: ``[M, D]``.
        gamma: inverse squared width.

    Returns:
        ``[N, M]``.

    Raises:
        ValueError: ``gamma`` is not positive.

    Example:
        >>> rbf_kernel(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0]]), gamma=1.0).tolist()
        [[1.0], [0.3678794503211975]]
    """
    if not gamma > 0:
        raise ValueError(f"gamma is {gamma}, but should be positive")
    distances = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.exp(-gamma * distances.square())


class SelfDistillationPath(NamedTuple):
    """Predictions of each generation.

    Attributes:
        train: ``[S, N, O]`` predictions at the training inputs.
        queries: ``[S, M, O]`` predictions at other inputs.
    """

    train: Tensor
    queries: Tensor


def _factor(kernel: Tensor, ridge: float) -> Tensor:
    if not ridge > 0:
        raise ValueError(f"ridge is {ridge}, but should be positive")
    return torch.linalg.cholesky(kernel + ridge * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device))


def _queries(kernel: Tensor, queries: Tensor | None) -> Tensor:
    return kernel[:0] if queries is None else queries


def self_distillation_path(
    kernel: Tensor, targets: Tensor, *, ridge: float, weights: Sequence[float], queries: Tensor | None = None
) -> SelfDistillationPath:
    r"""Returns the predictions of successive generations.

    .. math:: f_t(x) = k(x, X)\,(K + \lambda I)^{-1} \big(\alpha_t Y + (1 - \alpha_t) Y_{t-1}\big)

    Args:
        kernel: ``[N, N]`` kernel of the training inputs.
        targets: ``[N, O]`` original targets :math:`Y`.
        ridge: :math:`\lambda > 0`.
        weights: :math:`\alpha_t` of each generation, the weight of the original targets. The first has no effect,
            because the parent of the first generation is :math:`Y` itself.
        queries: ``[M, N]`` kernel between other inputs and the training inputs.

    Raises:
        ValueError: ``ridge`` is not positive.

    Example:
        >>> path = self_distillation_path(torch.eye(2), torch.ones(2, 1), ridge=1.0, weights=[0.0, 0.0, 0.0])
        >>> path.train[:, 0, 0].tolist()
        [0.5, 0.25, 0.125]
    """
    factor, others = _factor(kernel, ridge), _queries(kernel, queries)
    previous, train, elsewhere = targets, [], []
    for weight in weights:
        dual = torch.cholesky_solve(weight * targets + (1 - weight) * previous, factor)
        previous = kernel @ dual
        train.append(previous)
        elsewhere.append(others @ dual)
    return SelfDistillationPath(torch.stack(train), torch.stack(elsewhere))


def self_distillation_limit(
    kernel: Tensor, targets: Tensor, *, ridge: float, weight: float, queries: Tensor | None = None
) -> SelfDistillationPath:
    r"""Returns what endless self-distillation with a constant weight tends to.

    It is ridge regression with :math:`\lambda/\alpha`: self-distillation regularises more, ever more without targets.

    Args:
        kernel: ``[N, N]``.
        targets: ``[N, O]``.
        ridge: :math:`\lambda > 0`.
        weight: :math:`\alpha` in [0, 1]; 0 tends to zero everywhere.
        queries: ``[M, N]`` kernel between other inputs and the training inputs.

    Returns:
        A path of one generation.

    Raises:
        ValueError: ``ridge`` is not positive or ``weight`` lies outside [0, 1].
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is {weight}, but should lie in [0, 1]")
    if weight == 0:
        path = self_distillation_path(kernel, targets, ridge=ridge, weights=[0.0], queries=queries)
        return SelfDistillationPath(torch.zeros_like(path.train), torch.zeros_like(path.queries))
    return self_distillation_path(kernel, targets, ridge=ridge / weight, weights=[1.0], queries=queries)


def self_distillation_spectrum(eigenvalues: Tensor, *, ridge: float, weights: Sequence[float]) -> Tensor:
    r"""Returns how much of each eigen-direction of the kernel the predictions of each generation keep.

    .. math:: b_{i,t} = a_i \big( (1 - \alpha_t)\, b_{i,t-1} + \alpha_t \big), \qquad
              a_i = \frac{d_i}{d_i + \lambda}, \quad b_{i,0} = 1

    so that :math:`Y_t = V \mathrm{diag}(b_t) V^\top Y`: any generation directly, without the ones before.

    Args:
        eigenvalues: ``[N]`` eigenvalues :math:`d` of the kernel.
        ridge: :math:`\lambda > 0`.
        weights: :math:`\alpha_t` of each generation.

    Returns:
        ``[S, N]``.

    Example:
        >>> self_distillation_spectrum(torch.tensor([1.0]), ridge=1.0, weights=[0.5, 0.5]).flatten().tolist()
        [0.5, 0.375]
    """
    shrinkage = eigenvalues / (eigenvalues + ridge)
    kept, generations = torch.ones_like(eigenvalues), []
    for weight in weights:
        kept = shrinkage * ((1 - weight) * kept + weight)
        generations.append(kept)
    return torch.stack(generations)


def constant_weight_spectrum(eigenvalues: Tensor, *, ridge: float, weight: float, generations: int) -> Tensor:
    r"""Returns :func:`self_distillation_spectrum` of a constant weight in closed form.

    .. math:: b_{i,t} = b_i^* + (1 - b_i^*) \big(a_i (1 - \alpha)\big)^t, \qquad
              b_i^* = \frac{\alpha d_i}{\alpha d_i + \lambda}

    Args:
        eigenvalues: ``[N]``.
        ridge: :math:`\lambda > 0`.
        weight: :math:`\alpha` in [0, 1].
        generations: number of generations :math:`S`; row ``t`` is generation ``t + 1``.

    Returns:
        ``[S, N]``.
    """
    limit = spectrum_limit(eigenvalues, ridge=ridge, weight=weight)
    rate = eigenvalues / (eigenvalues + ridge) * (1 - weight)
    powers = torch.arange(1, generations + 1, dtype=eigenvalues.dtype, device=eigenvalues.device).unsqueeze(1)
    return limit + (1 - limit) * rate**powers


def spectrum_limit(eigenvalues: Tensor, *, ridge: float, weight: float) -> Tensor:
    """Returns what :func:`constant_weight_spectrum` tends to, ``[N]``."""
    return weight * eigenvalues / (weight * eigenvalues + ridge)


def optimal_weight(guided: Tensor, unguided: Tensor, targets: Tensor, *, clip: bool = True) -> Tensor:
    r"""Returns the best weight of the original targets, by least squares on held-out samples.

    Predictions are affine in the weight, :math:`f(\alpha) = \alpha f(1) + (1 - \alpha) f(0)`, so

    .. math:: \alpha^* = \frac{\langle f(1) - f(0),\; y - f(0) \rangle}{\| f(1) - f(0) \|^2}

    Exact for kernel ridge regression. For networks it is an estimate from two trainings, instead of one for each weight
    of a grid: give the class probabilities of both and one-hot labels.

    Args:
        guided: predictions of the model that was fitted to the original targets alone, any shape.
        unguided: predictions of the model that was fitted to its parent's predictions alone.
        targets: what should have been predicted.
        clip: whether to clip to [0, 1].

    Returns:
        A scalar; 1 where both models say the same.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> optimal_weight(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([0.25]))
        tensor(0.2500)
    """
    check_same_shape(guided, unguided, "the two predictions")
    check_same_shape(guided, targets, "predictions and targets")
    direction = guided - unguided
    square = direction.square().sum()
    weight = (direction * (targets - unguided)).sum() / torch.where(square > 0, square, torch.ones_like(square))
    weight = torch.where(square > 0, weight, torch.ones_like(weight))
    return weight.clamp(0, 1) if clip else weight


class GreedyWeights(NamedTuple):
    """The weights that were best for each generation, one after the other.

    Attributes:
        weights: ``[S - 1]`` of the second generation and later ones.
        errors: ``[S]`` mean squared error of each generation on the held-out samples.
    """

    weights: Tensor
    errors: Tensor


def greedy_weights(
    kernel: Tensor,
    targets: Tensor,
    *,
    ridge: float,
    generations: int,
    queries: Tensor,
    held_out: Tensor,
    clip: bool = True,
) -> GreedyWeights:
    """Chooses each generation's weight to be optimal on held-out samples, given the generations before.

    Without clipping no generation is worse on these samples than the first, because a weight of 1 gives the first
    again; the error need not fall from each generation to the next.

    Args:
        kernel: ``[N, N]``.
        targets: ``[N, O]``.
        ridge: regularisation, positive.
        generations: number of generations.
        queries: ``[M, N]`` kernel between held-out and training inputs.
        held_out: ``[M, O]`` targets of the held-out samples.
        clip: whether weights are clipped to [0, 1].
    """
    factor = _factor(kernel, ridge)
    dual = torch.cholesky_solve(targets, factor)
    first, previous = queries @ dual, kernel @ dual
    weights, errors = [], [(first - held_out).square().mean()]
    for _ in range(generations - 1):
        weight = optimal_weight(first, queries @ torch.cholesky_solve(previous, factor), held_out, clip=clip)
        dual = torch.cholesky_solve(weight * targets + (1 - weight) * previous, factor)
        previous = kernel @ dual
        weights.append(weight)
        errors.append((queries @ dual - held_out).square().mean())
    return GreedyWeights(torch.stack(weights) if weights else first.new_zeros(0), torch.stack(errors))
