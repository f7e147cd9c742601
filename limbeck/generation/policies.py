"""Who writes the next token: one model, two that are mixed, or one that proposes and one that disposes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.functional.speculative import interleave, inverse_cdf
from limbeck.generation.sampling import Sampling, log_probabilities


class Chosen(NamedTuple):
    """One token of each sequence, ``[B]`` each.

    Attributes:
        tokens: int64.
        logprobs: log-probability under the first model as it is: temperature 1, nothing truncated.
        proposal_logprobs: log-probability with which it was drawn.
        accepted: whether it is the first model's own token.
    """

    tokens: Tensor
    logprobs: Tensor
    proposal_logprobs: Tensor
    accepted: Tensor


class Policy(Protocol):
    """Draws the next token of sequences.

    Attributes:
        models: how many models it asks.
        numbers: how many uniform numbers it needs for a token.
    """

    models: int
    numbers: int

    def choose(self, logits: Sequence[Tensor], uniform: Tensor, sampling: Sampling) -> Chosen:
        """Returns the next tokens.

        Args:
            logits: ``[B, V]`` float32 of each model.
            uniform: ``[B, numbers]`` float64 in [0, 1).
            sampling: how tokens are drawn.
        """


class Alone:
    """The model itself draws."""

    models = 1
    numbers = 1

    def choose(self, logits: Sequence[Tensor], uniform: Tensor, sampling: Sampling) -> Chosen:
        """Returns the next tokens."""
        (own,) = logits
        accepted = torch.ones(len(own), dtype=torch.bool, device=own.device)
        if sampling.greedy:
            tokens = own.argmax(-1)
            found = log_probabilities(own, tokens)
            return Chosen(tokens, found, torch.zeros_like(found), accepted)
        filtered = sampling.filtered(own)
        tokens = inverse_cdf(filtered, uniform[:, 0])
        found = log_probabilities(own, tokens)
        proposed = found if sampling.plain else log_probabilities(filtered, tokens)
        return Chosen(tokens, found, proposed, accepted)


class Mixed:
    r"""Each token is drawn from :math:`(1-\alpha) q + \alpha p` of the first and the second model.

    Args:
        share: :math:`\alpha`, the second model's part.

    Reference:
        Gu et al., "MiniLLM", arXiv 2306.08543, section 2.2.
    """

    models = 2
    numbers = 1

    def __init__(self, share: float) -> None:
        if not 0 <= share <= 1:
            raise RecipeError(f"share = {share} should lie between 0 and 1")
        self.share = share

    def choose(self, logits: Sequence[Tensor], uniform: Tensor, sampling: Sampling) -> Chosen:
        """Returns the next tokens."""
        own, other = logits
        sides = [sampling.filtered(side).log_softmax(-1) for side in (own, other)]
        weights = (_log(1 - self.share), _log(self.share))
        mixture = torch.logaddexp(sides[0] + weights[0], sides[1] + weights[1])
        tokens = inverse_cdf(mixture, uniform[:, 0])
        own_part = sides[0] + weights[0]
        accepted = own_part.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) > -torch.inf
        return Chosen(tokens, log_probabilities(own, tokens), log_probabilities(mixture, tokens), accepted)


class Speculative:
    """The first model proposes; a token that the second does not rank among its likeliest is drawn by the second.

    Args:
        top_k: how many of the second model's likeliest tokens are accepted.

    Reference:
        Xu et al., "Speculative Knowledge Distillation", arXiv 2410.11325.
    """

    models = 2
    numbers = 2

    def __init__(self, top_k: int) -> None:
        if top_k < 1:
            raise RecipeError(f"top_k = {top_k} accepted tokens should be at least 1")
        self.top_k = top_k

    def choose(self, logits: Sequence[Tensor], uniform: Tensor, sampling: Sampling) -> Chosen:
        """Returns the next tokens; both models draw tempered and truncated alike, ranks are of the whole vocabulary."""
        own, other = logits
        proposal, replacement = (sampling.filtered(side) for side in (own, other))
        kept = interleave(proposal, replacement, uniform[:, 0], uniform[:, 1], top_k=self.top_k, ranking=other)
        drawn = _interleaved_log_probabilities(proposal, replacement, other, kept.tokens, self.top_k)
        return Chosen(kept.tokens, log_probabilities(own, kept.tokens), drawn, kept.accepted)


def _interleaved_log_probabilities(
    proposal: Tensor, replacement: Tensor, ranking: Tensor, tokens: Tensor, top_k: int
) -> Tensor:
    """Log-probability of a token being kept, or of any other being refused and this one drawn in its place."""
    log_q, log_p = proposal.log_softmax(-1), replacement.log_softmax(-1)
    # Of equal logits all count, as in the rule itself: a token is refused if top_k others are strictly likelier.
    least = ranking.topk(min(top_k, ranking.shape[-1]), dim=-1).values[..., -1:]
    among = ranking >= least
    refused = log_q.masked_fill(among, -torch.inf).logsumexp(-1)
    at = tokens.unsqueeze(-1)
    kept = log_q.masked_fill(~among, -torch.inf).gather(-1, at).squeeze(-1)
    return torch.logaddexp(kept, refused + log_p.gather(-1, at).squeeze(-1))


def _log(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf
