"""Distillation on images whose distribution is not that of the teacher: what to keep of them, and how to use it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as torch_cross_entropy
from torch.nn.functional import sigmoid

from limbeck.functional.feature_maps import unit_vectors
from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, reduce


def teacher_share(epoch: float, *, period: float = 160.0, last: float = 120.0) -> float:
    r"""Share of the teacher in the mixed opinion that selects samples: near 1 at first, then the student's alone.

    .. math:: \alpha_e = 1 - \exp\big(-5 \, ((e+1)/P - 1)^2\big) \text{ for } e < E, \text{ else } 0

    Args:
        epoch: :math:`e`, from 0.
        period: :math:`P`.
        last: :math:`E`.

    References:
        Tang et al., "Distribution Shift Matters for Knowledge Distillation with Webly Collected Images",
        arXiv 2307.11469.

    Example:
        >>> round(teacher_share(0), 4), teacher_share(120)
        (0.9928, 0.0)
    """
    return -math.expm1(-5 * ((epoch + 1) / period - 1) ** 2) if epoch < last else 0.0


class Confident(NamedTuple):
    """Which samples of a pool student and teacher are jointly confident about.

    Attributes:
        selected: ``[N]`` bool.
        confidence: ``[N]`` largest probability of the mixed opinion.
        predicted: ``[N]`` its class.
        thresholds: ``[C]`` what the confidence must exceed, by class.
    """

    selected: Tensor
    confidence: Tensor
    predicted: Tensor
    thresholds: Tensor


@full_precision
def confident_samples(
    student_logits: Tensor, teacher_logits: Tensor, *, share: float, cutoff: float = 0.95
) -> Confident:
    r"""Selects the samples that student and teacher together are sure of, by a threshold of each class.

    .. math:: p = \mathrm{softmax}(\alpha z_t + (1-\alpha) z_s), \qquad
        \theta_c = \tau \frac{\beta_c}{2 - \beta_c}, \quad \beta_c = \frac{n_c}{\max n}

    Classes that are rarely predicted have a lower threshold, so that they are selected too.

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``.
        share: :math:`\alpha` of the teacher.
        cutoff: :math:`\tau`, the threshold of the class that is predicted most.

    Returns:
        Who is selected, and why.

    References:
        Tang et al., arXiv 2307.11469; the thresholds are those of FlexMatch, arXiv 2110.08263.

    Example:
        >>> sure = torch.tensor([[9.0, 0.0], [0.1, 0.0], [0.0, 1.0]])
        >>> confident_samples(sure, sure, share=0.5).selected
        tensor([ True, False,  True])
    """
    check_same_shape(student_logits, teacher_logits, "student and teacher logits")
    mixed = share * teacher_logits + (1 - share) * student_logits
    confidence, predicted = mixed.softmax(1).max(1)
    counts = torch.bincount(predicted, minlength=mixed.shape[1]).to(confidence.dtype)
    relative = counts / counts.max().clamp(min=1)
    thresholds = cutoff * relative / (2 - relative)
    return Confident(confidence > thresholds[predicted], confidence, predicted, thresholds)


@full_precision
def disagreement_weights(student_logits: Tensor, teacher_logits: Tensor, *, eps: float = 0.0) -> Tensor:
    r"""Weights of samples that grow with the distance of two sets of logits, ``sigmoid(|z_s - z_t|)``.

    Args:
        student_logits: ``[B, C]``.
        teacher_logits: ``[B, C]``.
        eps: added to each difference; 1e-6 in the authors' code.

    Returns:
        ``[B]`` in [1/2, 1), without gradient.

    References:
        Tang et al., arXiv 2307.11469.

    Example:
        >>> disagreement_weights(torch.zeros(1, 3), torch.zeros(1, 3))
        tensor([0.5000])
    """
    check_same_shape(student_logits, teacher_logits, "student and teacher logits")
    gap = student_logits.detach() - teacher_logits.detach() + eps
    return sigmoid(torch.linalg.vector_norm(gap, dim=1))


@full_precision
def mix_distributions(images: Tensor, partner: Tensor, shares: Tensor, *, eps: float = 1e-6) -> Tensor:
    r"""Gives each image, channel by channel, a mean and deviation between its own and another image's.

    .. math:: \tilde x = \frac{x - \mu}{\sigma} \, \sigma' + \mu', \qquad
        \mu' = \lambda \mu + (1-\lambda) \mu_{\pi}, \quad \sigma' = \lambda \sigma + (1-\lambda) \sigma_{\pi}

    Args:
        images: ``[B, C, H, W]``.
        partner: ``[B]`` number of the other image.
        shares: ``[B]`` :math:`\lambda` in [0, 1]; 1 keeps the image as it is.
        eps: added to the variance.

    Returns:
        ``[B, C, H, W]``.

    References:
        Tang et al., arXiv 2307.11469; the mixing of statistics is MixStyle's, arXiv 2104.02008.

    Example:
        >>> images = torch.rand(2, 1, 4, 4)
        >>> bool(torch.allclose(mix_distributions(images, torch.tensor([1, 0]), torch.ones(2)), images, atol=1e-5))
        True
    """
    mean = images.mean((2, 3), keepdim=True).detach()
    deviation = (images.var((2, 3), keepdim=True) + eps).sqrt().detach()
    share = shares.to(images.dtype).view(-1, 1, 1, 1)
    mixed_mean = share * mean + (1 - share) * mean[partner]
    mixed_deviation = share * deviation + (1 - share) * deviation[partner]
    return (images - mean) / deviation * mixed_deviation + mixed_mean


@full_precision
def normalized_contrast(
    first: Tensor,
    second: Tensor,
    *,
    temperature: float = 0.3,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""NT-Xent: tells the other view of a sample from all other views in the batch, by cosine.

    .. math:: L_i = -\log \frac{e^{\cos(h_i, h_{i'}) / \tau}}{\sum_{j \ne i} e^{\cos(h_i, h_j) / \tau}}

    Args:
        first: ``[B, D]`` embeddings of one view.
        second: ``[B, D]`` of the other.
        temperature: :math:`\tau`.
        mask: ``[B]`` true where a sample counts; others are still contrasted with.
        reduction: see :func:`limbeck.functional.reduction.reduce`; over samples, each the mean of its two views.

    Returns:
        ``[B]`` or a scalar.

    Raises:
        ValueError: shapes differ.

    References:
        Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", arXiv 2002.05709.

    Example:
        >>> normalized_contrast(torch.eye(2), torch.eye(2), temperature=1.0)
        tensor(0.5514)
    """
    check_same_shape(first, second, "both views' embeddings")
    rows = unit_vectors(torch.cat([first, second]))
    own = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    scores = (rows @ rows.T / temperature).masked_fill(own, -torch.inf)
    other = torch.arange(len(rows), device=rows.device).roll(len(first))
    values = torch_cross_entropy(scores, other, reduction="none").view(2, -1).mean(0)
    return reduce(values, reduction, mask=mask)
