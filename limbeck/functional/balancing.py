"""Balance between losses, and between teachers, that training itself adjusts."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional.precision import full_precision


def relative_share(loss: float, other: float, first_loss: float, first_other: float) -> float:
    r"""Part that a loss has in the sum of two, each measured by its own first value.

    .. math:: g = \frac{a / a_0}{a / a_0 + b / b_0}

    The loss that shrank less since the beginning has the larger share.

    Args:
        loss: :math:`a`, not negative.
        other: :math:`b`, not negative.
        first_loss: :math:`a_0`.
        first_other: :math:`b_0`.

    Returns:
        A number in [0, 1]; 1/2 where both losses vanish.

    References:
        Zhao et al., "Mitigating the Accuracy-Robustness Trade-off via Multi-Teacher Adversarial Distillation",
        arXiv 2306.16170.

    Example:
        >>> relative_share(1.0, 1.0, 2.0, 1.0)
        0.3333333333333333
    """
    ours, theirs = loss * first_other, other * first_loss
    return ours / (ours + theirs) if ours + theirs > 0 else 0.5


@full_precision
def soft_divergence(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float | Tensor = 1.0, log_eps: float = 0.0
) -> tuple[Tensor, Tensor]:
    r"""KL divergence from a tempered teacher to an untempered student, and the teacher's entropy, both over classes.

    .. math:: K = \frac{1}{C} \sum_c p_c \big( \log (p_c + \epsilon) - \log q_c \big), \qquad
        H = -\frac{1}{C} \sum_c p_c \log (p_c + \epsilon), \qquad p = \mathrm{softmax}(t / T)

    Args:
        student_logits: ``[B, C]``.
        teacher_logits: ``[B, C]``, a constant.
        temperature: :math:`T > 0` of the teacher.
        log_eps: :math:`\epsilon`; 0 for the true divergence.

    Returns:
        The divergence and the entropy of each sample, ``[B]``, in nats a class.

    References:
        Zhao et al., arXiv 2306.16170.

    Example:
        >>> soft_divergence(torch.zeros(1, 2), torch.zeros(1, 2))[1].item()
        0.3465735912322998
    """
    log_p = torch.log_softmax(teacher_logits.detach() / temperature, -1)
    log_q = torch.log_softmax(student_logits, -1)
    mass = log_p.exp()
    log_mass = log_p if log_eps == 0 else (mass + log_eps).log()
    nothing = mass.new_zeros(())
    negative = (mass * torch.where(mass > 0, log_mass, nothing)).mean(-1)
    return negative - (mass * torch.where(mass > 0, log_q, nothing)).mean(-1), -negative
