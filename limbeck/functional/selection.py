"""Which samples of a pool to ask about: coverings, games against a wrong teacher, uncertainty."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.functional.precision import full_precision

Gain = Literal["margin", "entropy", "confidence"]
"""How little a model knows of a sample: 1 minus the lead of its first guess, its entropy, 1 minus its confidence."""

GAIN_FLOOR = 1e-6
"""Smallest gain: what a model is certain of is not worth nothing, or it could not be divided by."""


class Cover(NamedTuple):
    """Points that were picked one after the other.

    Attributes:
        picked: ``[q]`` their numbers, in order.
        distance: ``[q]`` how far each was from the nearest centre when it was picked; never growing.
    """

    picked: Tensor
    distance: Tensor


@full_precision
def k_center_greedy(
    pool: Tensor, centers: Tensor, count: int, *, metric: Literal["euclidean", "cosine"] = "euclidean"
) -> Cover:
    r"""Covers a pool: repeatedly picks the point that is farthest from all centres and makes it one.

    .. math:: u^* = \mathrm{argmax}_u \min_c \lVert p_u - p_c \rVert

    In the space of class probabilities this is PCoreSet, in that of features the core-set method. Only the distance to
    the nearest centre is kept, so a pick costs one pass over the pool. Of equal distances the first is picked.

    Args:
        pool: ``[N, D]``.
        centers: ``[M, D]`` points that are covered already; without any, the first pick is the first point of the pool.
        count: number of picks ``q``.
        metric: ``euclidean``, or ``cosine`` (1 minus the similarity).

    Returns:
        Which points, and how far they were.

    Raises:
        ValueError: there are fewer than ``count`` points.

    References:
        Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", arXiv 1708.00489;
        Kang et al., arXiv 2506.00910.

    Example:
        >>> k_center_greedy(torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[0.0]]), 2).picked
        tensor([2, 1])
    """
    _check_count(count, len(pool))
    pool, nearest = _uncovered(pool, centers, metric)
    picked, distances = [], []
    for _ in range(count):
        chosen = int(nearest.argmax())
        picked.append(chosen)
        distances.append(nearest[chosen].clone())
        nearest = torch.minimum(nearest, _distance(pool, pool[chosen], metric))
        nearest[picked] = -torch.inf
    return Cover(torch.tensor(picked), torch.stack(distances) if distances else nearest[:0])


@full_precision
def uncovered(pool: Tensor, centers: Tensor, *, metric: Literal["euclidean", "cosine"] = "euclidean") -> Tensor:
    """Returns how far each point ``[N]`` is from the nearest centre; infinite where there is none.

    Args:
        pool: ``[N, D]``.
        centers: ``[M, D]``.
        metric: ``euclidean``, or ``cosine`` (1 minus the similarity).

    Example:
        >>> uncovered(torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[0.0], [4.0]]))
        tensor([0., 1., 1.])
    """
    return _uncovered(pool, centers, metric)[1]


def _uncovered(pool: Tensor, centers: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Returns the points as the metric sees them, and how far each is from the nearest centre."""
    if metric == "cosine":
        pool, centers = (torch.nn.functional.normalize(points, dim=-1) for points in (pool, centers))
    nearest = pool.new_full((len(pool),), torch.inf)
    for center in centers:
        nearest = torch.minimum(nearest, _distance(pool, center, metric))
    return pool, nearest


def _distance(points: Tensor, center: Tensor, metric: str) -> Tensor:
    if metric == "cosine":
        return 1 - points @ center
    return torch.linalg.vector_norm(points - center, dim=-1)


def _check_count(count: int, size: int) -> None:
    if not 0 <= count <= size:
        raise ValueError(f"{count} of {size} samples cannot be picked")


@full_precision
def uncertainty(logits: Tensor, *, gain: Gain = "margin") -> Tensor:
    """Returns how much there is to learn of each sample, at least :data:`GAIN_FLOOR`.

    Args:
        logits: ``[N, C]`` of the student.
        gain: see :data:`Gain`.

    Returns:
        ``[N]``.

    Raises:
        ValueError: the gain is unknown.

    Example:
        >>> uncertainty(torch.tensor([[0.0, 0.0], [50.0, 0.0]]))
        tensor([1.0000e+00, 1.0000e-06])
    """
    log_p = logits.log_softmax(-1)
    first, second = log_p.exp().topk(2, -1).values.unbind(-1)
    if gain == "margin":
        value = 1 - (first - second)
    elif gain == "confidence":
        value = 1 - first
    elif gain == "entropy":
        value = torch.special.entr(log_p.exp()).sum(-1)
    else:
        raise ValueError(f"gain should be margin, entropy or confidence, not '{gain}'")
    return value.clamp(min=GAIN_FLOOR)


class Game(NamedTuple):
    """Solution of the game against a teacher that is wrong on some points.

    Attributes:
        distribution: ``[N]`` probability with which to query each point.
        support: how many of the largest gains have any.
        value: guaranteed expected gain; not positive where no distribution can be trusted, which is then uniform.
        values: ``[N]`` guaranteed gain of a support of 1, 2, ... points.
    """

    distribution: Tensor
    support: int
    value: Tensor
    values: Tensor


@full_precision
def robust_distribution(gains: Tensor, *, incorrect: float, wrong_cost: float = 0.0) -> Game:
    r"""Distribution of queries with the largest gain that no choice of wrongly labelled points can take away.

    .. math:: \max_q \min_{|S| \le m} \Big[ \sum_{i \notin S} q_i g_i - c \sum_{i \in S} q_i g_i \Big], \qquad
        V_k = \frac{k - (1+c)\,m}{\sum_{i \le k} 1/g_i}, \qquad q_i \propto 1/g_i \text{ for the } k^* \text{ largest}

    On its support :math:`q_i g_i` is constant, so an adversary has no better choice than another, and of the points
    that are asked about the least certain are asked least often.

    Args:
        gains: ``[N]`` positive.
        incorrect: :math:`m`, how many points the teacher may label wrong.
        wrong_cost: :math:`c`: 0 where a wrong label brings nothing, 1 where it costs what a right one brings.

    Returns:
        The distribution and the value of the game.

    Raises:
        ValueError: a gain is not positive, or a number is negative.

    References:
        Baykal et al., "Robust Active Distillation", arXiv 2210.01213; the closed form is derived anew.

    Example:
        >>> robust_distribution(torch.tensor([1.0, 1.0, 1.0, 1.0]), incorrect=1).distribution
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    if incorrect < 0 or wrong_cost < 0 or gains.numel() == 0 or not bool((gains > 0).all()):
        raise ValueError("gains should be positive, incorrect and wrong_cost not negative")
    ordered, order = gains.sort(descending=True, stable=True)
    harmonic = ordered.reciprocal().cumsum(0)
    sizes = torch.arange(1, len(gains) + 1, dtype=gains.dtype, device=gains.device)
    values = (sizes - (1 + wrong_cost) * incorrect) / harmonic
    support = int(values.argmax()) + 1
    value = values[support - 1]
    if not value > 0:
        return Game(torch.full_like(gains, 1 / len(gains)), len(gains), value, values)
    weights = torch.zeros_like(gains)
    weights[order[:support]] = ordered[:support].reciprocal() / harmonic[support - 1]
    return Game(weights, support, value, values)


@full_precision
def sample_without_replacement(
    distribution: Tensor, count: int, uniform: Tensor, *, fallback: Tensor | None = None
) -> Tensor:
    r"""Draws distinct points with probabilities proportional to a distribution (Gumbel top-k).

    .. math:: \mathrm{top}_b \big( \log q_i - \log(-\log u_i) \big)

    Args:
        distribution: ``[N]``, not necessarily normalised.
        count: how many.
        uniform: ``[N]`` random numbers in (0, 1).
        fallback: ``[N]``; where too few points have any probability, those of the largest values here fill up.

    Returns:
        ``[count]`` numbers of points, in decreasing order of their keys.

    Raises:
        ValueError: there are fewer than ``count`` points.

    Example:
        >>> sample_without_replacement(torch.tensor([0.0, 1.0, 1.0]), 2, torch.tensor([0.9, 0.2, 0.8]))
        tensor([2, 1])
    """
    _check_count(count, len(distribution))
    tiny = torch.finfo(uniform.dtype).tiny
    keys = distribution.log() - (-uniform.clamp(tiny, 1 - torch.finfo(uniform.dtype).eps).log()).log()
    drawn = keys.sort(descending=True, stable=True).indices
    drawn = drawn[: min(count, int((distribution > 0).sum()))]
    if len(drawn) == count:
        return drawn
    left = torch.ones_like(distribution, dtype=torch.bool)
    left[drawn] = False
    order = (distribution if fallback is None else fallback).masked_fill(~left, -torch.inf)
    return torch.cat([drawn, order.sort(descending=True, stable=True).indices[: count - len(drawn)]])
