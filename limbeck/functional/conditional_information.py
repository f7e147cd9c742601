"""How much a classifier's outputs tell of a sample beyond its class."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.functional.divergences import kl_of_log_probabilities
from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, neutralised, reduce


@full_precision
def log_class_sums(logits: Tensor, labels: Tensor, *, num_classes: int) -> Tensor:
    r"""Log of the summed probabilities of the samples of each class.

    Sums of parts of a data set are joined by :func:`torch.logaddexp`, and normalised rows are the log-centroids
    :math:`\log Q_c = \log \mathrm{mean}_{y = c}\, p(x)`: see :func:`log_centroids`. Computed in logarithms, so that
    probabilities too small for the number format stay apart from zero.

    Args:
        logits: ``[N, C]``.
        labels: ``[N]`` class indices.
        num_classes: number of classes ``K`` of the labels.

    Returns:
        ``[K, C]``, ``-inf`` in rows of classes without samples.

    Example:
        >>> log_class_sums(torch.zeros(3, 2), torch.tensor([0, 0, 1]), num_classes=2).exp()
        tensor([[1.0000, 1.0000],
                [0.5000, 0.5000]])
    """
    log_p = torch.log_softmax(logits.detach(), dim=-1)
    # The largest of each class is taken out before the exponential, as a log-sum-exp does.
    index = labels.unsqueeze(1).expand_as(log_p)
    largest = log_p.new_full((num_classes, log_p.shape[1]), -math.inf)
    largest = largest.scatter_reduce(0, index, log_p, "amax")
    shift = torch.where(torch.isfinite(largest), largest, torch.zeros_like(largest))
    sums = torch.zeros_like(largest).index_add(0, labels, (log_p - shift[labels]).exp())
    return sums.log() + shift


def log_centroids(log_sums: Tensor) -> Tensor:
    """Returns the log of class centroids, rows of :func:`log_class_sums` that are normalised to probabilities.

    A class without samples gets the uniform distribution, for which nothing speaks and nothing else.

    Args:
        log_sums: ``[K, C]`` log of summed probabilities.

    Example:
        >>> log_centroids(torch.tensor([[0.0, 0.0], [-torch.inf, -torch.inf]])).exp()
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """
    empty = torch.isneginf(log_sums).all(-1, keepdim=True)
    return torch.log_softmax(log_sums.masked_fill(empty, 0.0), dim=-1)


@full_precision
def conditional_mutual_information(
    logits: Tensor,
    labels: Tensor,
    log_centroids: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Divergence of a classifier's outputs from the centroid of their class.

    .. math:: I(X; \hat Y | Y) = \mathrm{mean}_x\, \mathrm{KL}\big( p(x) \,\|\, Q_{y(x)} \big)
              = \sum_c \pi_c H(Q_c) - \mathrm{mean}_x\, H(p(x))

    Not negative; zero if and only if all samples of a class have the same output. The second form holds where the
    centroids are those of the same samples. The centroids are constants.

    Args:
        logits: ``[..., C]``.
        labels: ``[...]`` class indices.
        log_centroids: ``[K, C]`` natural logarithms of the centroids.
        mask: ``[...]`` true where a sample counts.
        reduction: see :func:`limbeck.functional.reduction.reduce`.

    Returns:
        The information in nats, float32 or better.

    Raises:
        ValueError: shapes do not fit.

    References:
        Ye et al., "Bayes Conditional Distribution Estimation for Knowledge Distillation Based on Conditional Mutual
        Information", arXiv 2401.08732.

    Example:
        >>> logits, labels = torch.tensor([[99.0, 0.0], [0.0, 99.0]]), torch.tensor([0, 0])
        >>> conditional_mutual_information(logits, labels, torch.tensor([[0.5, 0.5]]).log())
        tensor(0.6931)
    """
    check_same_shape(logits[..., 0], labels, "logits without the class dimension and labels")
    check_same_shape(logits.reshape(-1, logits.shape[-1])[:1], log_centroids[:1], "logits and centroids of one sample")
    chosen = labels if mask is None else labels.masked_fill(~mask.bool(), 0)
    log_p = torch.log_softmax(neutralised(logits, mask), dim=-1)
    return reduce(kl_of_log_probabilities(log_p, log_centroids.detach()[chosen]), reduction, mask=mask)
