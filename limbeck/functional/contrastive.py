"""Contrast of one positive with many negatives from a memory of earlier embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, neutralised, reduce


@full_precision
def memory_scores(embedding: Tensor, memory: Tensor, index: Tensor, *, temperature: float = 0.07) -> Tensor:
    r"""Similarities of embeddings to chosen rows of a memory, ``<v_b, m_{i_bk}> / temperature``.

    Args:
        embedding: ``[B, D]``.
        memory: ``[N, D]``, a constant: no gradient flows to it.
        index: ``[B, K]`` rows of the memory.
        temperature: divides the products.

    Returns:
        ``[B, K]`` scores, float32 or better.

    Example:
        >>> memory_scores(torch.ones(1, 2), torch.eye(2), torch.tensor([[0, 1, 1]]), temperature=0.5)
        tensor([[2., 2., 2.]])
    """
    memory = memory.detach()
    if memory.shape[0] <= index.shape[1] * memory.shape[1]:
        # All products take less memory than a copy of K rows for each sample, and run ten to twenty times as fast.
        return (embedding @ memory.T).gather(1, index) / temperature
    return torch.einsum("bd,bkd->bk", embedding, memory[index]) / temperature


@full_precision
def log_partition(scores: Tensor, *, population: int) -> Tensor:
    r"""Estimates :math:`\log Z`, the normaliser of ``exp(scores)`` over a population, from a sample of scores.

    .. math:: \log Z = \log\big(N \cdot \mathrm{mean}\, e^{a}\big)

    Args:
        scores: sampled scores of any shape.
        population: number of candidates ``N``.

    Example:
        >>> log_partition(torch.zeros(2, 3), population=10).exp()
        tensor(10.)
    """
    return scores.detach().flatten().logsumexp(0) + math.log(population / scores.numel())


@full_precision
def noise_contrastive(
    scores: Tensor,
    log_z: Tensor,
    *,
    population: int,
    eps: float = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Noise-contrastive estimation: tell the positive from ``K`` negatives drawn from a uniform noise distribution.

    With :math:`h = e^{a} / Z` and the noise level :math:`\nu = K / N`,

    .. math:: L = -\log \frac{h_0}{h_0 + \nu + \varepsilon} - \sum_{k=1}^{K} \log \frac{\nu}{h_k + \nu + \varepsilon}

    computed from logarithms, so that scores of any size stay finite.

    Args:
        scores: ``[B, 1 + K]`` scores :math:`a`, the positive first.
        log_z: scalar :math:`\log Z`, see :func:`log_partition`.
        population: number of candidates ``N``.
        eps: added to the denominators; the authors' code has 1e-7.
        mask: ``[B]`` true where a sample counts.
        reduction: over the ``B`` samples.

    Returns:
        The loss in nats, float32 or better.

    Raises:
        ValueError: there are no negatives.

    References:
        Tian, Krishnan and Isola, "Contrastive Representation Distillation", arXiv 1910.10699.

    Example:
        >>> noise_contrastive(torch.zeros(1, 2), torch.tensor(0.0), population=1)
        tensor(1.3863)
    """
    negatives = scores.shape[1] - 1
    if negatives < 1:
        raise ValueError("contrast needs at least one negative for each sample")
    log_noise = math.log(negatives / population)
    log_floor = math.log(negatives / population + eps)
    log_h = neutralised(scores, mask) - log_z
    positive = softplus(log_floor - log_h[:, 0])
    negative = softplus(log_h[:, 1:] - log_floor) + (log_floor - log_noise)
    return reduce(positive + negative.sum(1), reduction, mask=mask)
