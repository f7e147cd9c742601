"""How much more a large language model makes of a document than a small one, and which documents to keep for that."""

from __future__ import annotations

import torch
from torch import Tensor


def likelihood_differences(teacher_losses: Tensor, reference_losses: Tensor, tokens: Tensor | None = None) -> Tensor:
    r"""Returns the score of each document: how much more likely the teacher finds it than the reference does.

    .. math:: s(x) = \mathrm{NLL}_r(x) - \mathrm{NLL}_p(x) = \tfrac{1}{n} \log \frac{p(x)}{r(x)}

    What both models know scores near zero, and so does noise, which neither knows; a large score is hard but can be
    learnt. Whatever is added to both losses of a document cancels.

    Args:
        teacher_losses: ``[N]`` mean negative log-probability of a token, nats.
        reference_losses: ``[N]`` the same of the small model.
        tokens: ``[N]`` number of tokens; scores are then sums over the tokens and no means, which prefers long
            documents and is the same ranking where all are of one length.

    References:
        Gu et al., "MiniPLM: Knowledge Distillation for Pre-Training Language Models", arXiv 2410.17215.

    Example:
        >>> likelihood_differences(torch.tensor([1.0, 3.0]), torch.tensor([1.5, 3.0]))
        tensor([0.5000, 0.0000])
    """
    difference = reference_losses - teacher_losses
    return difference if tokens is None else difference * tokens


def gumbel_scores(scores: Tensor, uniform: Tensor, *, temperature: float) -> Tensor:
    r"""Perturbs scores so that the largest ``k`` are a sample without replacement in proportion to exponentials.

    .. math:: s_i / \tau - \log(-\log u_i)

    Args:
        scores: ``[N]``.
        uniform: ``[N]`` numbers in [0, 1), of which those that are 0 come last.
        temperature: :math:`\tau`, in the unit of the scores; towards 0 the largest scores are taken.

    References:
        Kool et al., "Stochastic Beams and Where to Find Them", arXiv 1903.06059.

    Example:
        >>> gumbel_scores(torch.tensor([1.0, 2.0]), torch.full((2,), 0.5), temperature=0.01).argmax()
        tensor(1)
    """
    return scores / temperature - torch.log(-torch.log(uniform))
