"""What a teacher's probabilities say beyond its prediction, and how to take it away."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional.decoupled import other_classes
from limbeck.functional.precision import full_precision


@full_precision
def permuted_dark_knowledge(teacher_logits: Tensor, order: Tensor) -> Tensor:
    """Permutes the probabilities of all classes but the predicted one.

    The largest probability stays where it is, so the confidence survives and the similarity of classes is lost.

    Args:
        teacher_logits: ``[B, C]``.
        order: ``[B, C-1]`` a permutation of ``0 .. C-2`` in each row: the ``j``-th of the other classes, in class
            order, receives the probability of the ``order[j]``-th.

    Returns:
        ``[B, C]`` probabilities without gradient, float32 or better.

    References:
        Furlanello et al., "Born-Again Neural Networks", arXiv 1805.04770, section 3.2 (DKPP).

    Example:
        >>> logits = torch.log(torch.tensor([[0.1, 0.6, 0.3]]))
        >>> permuted_dark_knowledge(logits, torch.tensor([[1, 0]]))
        tensor([[0.3000, 0.6000, 0.1000]])
    """
    probabilities = torch.softmax(teacher_logits.detach(), dim=-1)
    others = other_classes(probabilities.argmax(-1), probabilities.shape[-1])
    return probabilities.scatter(-1, others, probabilities.gather(-1, others.gather(-1, order)))
