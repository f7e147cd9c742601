"""What a preference for one of two answers teaches, from the log-probabilities of both."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, reduce


@full_precision
def implicit_reward(log_q: Tensor, log_reference: Tensor, *, beta: float = 1.0) -> Tensor:
    r"""Returns :math:`\beta\,(\log q(y) - \log q_{ref}(y))`, ``[...]``: what a policy says that answers are worth.

    It is the reward for which the policy would be the best one within reach of the reference, but for a constant that
    depends on the prompt alone and cancels between two answers to it.

    Args:
        log_q: ``[...]`` log-probabilities of whole answers.
        log_reference: ``[...]`` those of the reference, a constant.
        beta: how dear the distance from the reference is.

    References:
        Rafailov et al., "Direct Preference Optimization", arXiv 2305.18290, section 4.
    """
    return beta * (log_q - log_reference.detach().to(log_q))


@full_precision
def preference_loss(
    margin: Tensor, *, label_smoothing: float = 0.0, reduction: Reduction = "mean", mask: Tensor | None = None
) -> Tensor:
    r"""Returns the negative log-likelihood that the preferred answer is the better one, in the Bradley-Terry model.

    .. math:: L = -(1-\epsilon) \log\sigma(m) - \epsilon \log\sigma(-m)

    Args:
        margin: ``[...]`` reward of the preferred answer less that of the other one.
        label_smoothing: :math:`\epsilon` in [0, 0.5): how often a preference is the wrong way round.
        reduction: ``none``, ``mean``, ``sum`` or ``batchmean``.
        mask: ``[...]`` which pairs count.

    References:
        Rafailov et al., "Direct Preference Optimization", arXiv 2305.18290, equation 7; the smoothing is that of
        Mitchell, "A note on DPO with noisy preferences", https://ericmitchell.ai/cdpo.pdf.

    Example:
        >>> import torch
        >>> preference_loss(torch.zeros(3))
        tensor(0.6931)
    """
    values = -(1.0 - label_smoothing) * logsigmoid(margin)
    if label_smoothing:
        values = values - label_smoothing * logsigmoid(-margin)
    return reduce(values, reduction, mask=mask)
