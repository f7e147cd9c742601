"""Tokens of sequences: which count, how they add up, and how sure a model is of them."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional.divergences import tempered_log_softmax
from limbeck.functional.log_divergences import times
from limbeck.functional.precision import full_precision


def next_tokens(labels: Tensor, *, ignore: int = -100) -> tuple[Tensor, Tensor]:
    """Shifts labels: the output at a position predicts the token after it.

    Args:
        labels: ``[B, T]`` labels at their own positions, ``ignore`` where a token is not to be learnt. The first never
            counts, because nothing predicts it.
        ignore: the label that does not count.

    Returns:
        ``[B, T - 1]`` labels for the outputs at all positions but the last, and where they count.

    Example:
        >>> next_tokens(torch.tensor([[5, -100, 7]]))
        (tensor([[-100,    7]]), tensor([[False,  True]]))
    """
    shifted = labels[..., 1:]
    return shifted, shifted != ignore


def sequence_means(values: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean over the tokens of each sequence that count, ``[B]``; 0 where none does.

    Args:
        values: ``[B, T]``.
        mask: ``[B, T]`` true where a token counts.

    Example:
        >>> sequence_means(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[1, 1, 0]]))
        tensor([2.])
    """
    return sequence_sums(values, mask) / mask.bool().sum(-1).clamp(min=1)


def sequence_sums(values: Tensor, mask: Tensor) -> Tensor:
    """Returns the sum over the tokens of each sequence that count, ``[B]``.

    Args:
        values: ``[B, T]``, such as log-probabilities of tokens, of which these are the sequences'.
        mask: ``[B, T]`` true where a token counts.

    Example:
        >>> sequence_sums(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[1, 1, 0]]))
        tensor([4.])
    """
    return torch.where(mask.bool(), values, values.new_zeros(())).sum(-1)


@full_precision
def entropy(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Returns the entropy in nats of ``softmax(logits / temperature)``, ``[...]`` from ``[..., V]``.

    Example:
        >>> entropy(torch.zeros(2))
        tensor(0.6931)
    """
    log_q = tempered_log_softmax(logits, temperature)
    return -times(log_q.exp(), log_q).sum(-1)


def opening(weights: Tensor, mask: Tensor, *, fraction: float) -> Tensor:
    """Returns the shortest beginning of each sequence that holds a fraction of its total weight, ``[B, T]`` bool.

    Args:
        weights: ``[B, T]`` non-negative, such as entropies.
        mask: ``[B, T]`` true where a token counts; only such tokens are chosen.
        fraction: in (0, 1]; 1 chooses all tokens that count.

    Example:
        >>> opening(torch.tensor([[1.0, 3.0, 4.0]]), torch.ones(1, 3), fraction=0.5)
        tensor([[ True,  True, False]])
    """
    flags = mask.bool()
    kept = torch.where(flags, weights, weights.new_zeros(()))
    before = kept.cumsum(-1) - kept
    if fraction >= 1.0:
        return flags
    # A token belongs to the beginning as long as those before it do not suffice.
    return flags & (before < fraction * kept.sum(-1, keepdim=True))


def top_fraction(values: Tensor, mask: Tensor, *, fraction: float) -> Tensor:
    """Returns the largest tenth, say, of each sequence's tokens: ``ceil(fraction n)`` of the ``n`` that count.

    Args:
        values: ``[B, T]``.
        mask: ``[B, T]`` true where a token counts.
        fraction: in [0, 1].

    Returns:
        ``[B, T]`` bool. Of equal values the earlier is chosen.

    Example:
        >>> top_fraction(torch.tensor([[1.0, 3.0, 4.0]]), torch.ones(1, 3), fraction=0.34)
        tensor([[False,  True,  True]])
    """
    flags = mask.bool()
    order = values.masked_fill(~flags, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1)
    # A hair less, so that 0.1 * 30 is three and not four.
    number = (fraction * flags.sum(-1, keepdim=True).double() - 1e-9).ceil()
    return flags & (rank < number)


def spread_hits(hits: Tensor, *, decay: float) -> Tensor:
    r"""Returns :math:`\max_j h_j\,\mathrm{decay}^{|t - j|}`: what is found at a token also concerns its neighbours.

    Args:
        hits: ``[B, T]`` in [0, 1].
        decay: in [0, 1]; 0 keeps hits where they are.

    Example:
        >>> spread_hits(torch.tensor([[0.0, 1.0, 0.0]]), decay=0.5)
        tensor([[0.5000, 1.0000, 0.5000]])
    """
    places = torch.arange(hits.shape[-1], device=hits.device)
    distance = (places.unsqueeze(0) - places.unsqueeze(1)).abs()
    reach = hits.new_tensor(decay) ** distance
    return (hits.unsqueeze(-2) * reach).amax(-1)
