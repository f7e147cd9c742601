"""What one aligned model would rather say than another, for every token of the vocabulary."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.functional.precision import full_precision

_LEAST = 1e-7


@full_precision
def expected_advantage(log_q: Tensor, advantage: Tensor) -> Tensor:
    r"""Returns :math:`\sum_a q(a) A(a)`, ``[...]``, with gradient to the whole distribution.

    Args:
        log_q: ``[..., V]`` log-probabilities.
        advantage: ``[..., V]``, a constant.
    """
    return (log_q.exp() * advantage.detach()).sum(-1)


class SparseAdvantage(NamedTuple):
    """Advantages of the classes that were kept; those of all others are taken for zero.

    Attributes:
        indices: ``[..., k]`` int64, by decreasing advantage.
        values: ``[..., k]``.
    """

    indices: Tensor
    values: Tensor


def sparse_advantage(
    aligned_logprobs: Tensor, aligned_indices: Tensor, reference_logprobs: Tensor, reference_indices: Tensor
) -> SparseAdvantage:
    r"""Returns :math:`\log p_{aligned} - \log p_{ref}` on the kept classes of the aligned model.

    A class that the reference did not keep gets the smallest probability that the aligned model kept, and no
    probability is below 1e-7, as in the authors' code.

    Args:
        aligned_logprobs: ``[..., k]``.
        aligned_indices: ``[..., k]``.
        reference_logprobs: ``[..., m]``.
        reference_indices: ``[..., m]``.

    References:
        Gao et al., "Advantage-Guided Distillation", arXiv 2502.17927.
    """
    own = aligned_logprobs.exp()
    same = aligned_indices.unsqueeze(-1) == reference_indices.unsqueeze(-2)
    theirs = (same * reference_logprobs.exp().unsqueeze(-2)).sum(-1)
    theirs = torch.where(same.any(-1), theirs, own.amin(-1, keepdim=True))
    gap = own.clamp(min=_LEAST).log() - theirs.clamp(min=_LEAST).log()
    values, order = gap.sort(dim=-1, descending=True, stable=True)
    return SparseAdvantage(aligned_indices.gather(-1, order), values)
