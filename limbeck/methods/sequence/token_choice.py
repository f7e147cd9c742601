"""Which tokens of a batch count for a term, and how much: a selector of tokens on what the models say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import NeedsError
from limbeck.functional.loss_head import projected_token_losses, token_losses
from limbeck.functional.token_losses import EntropyLoss
from limbeck.selection.base import Choice, PoolSignals, Selector
from limbeck.signals import Signals

TokenChoice = str | dict[str, Any]
"""Name of a selector of tokens, or a dict of its ``name`` and options."""


def chosen_tokens(selector: Selector, signals: Mapping[str, Signals], mask: Tensor) -> Choice:
    """Returns what a selector takes of the tokens of a batch, without gradient.

    Args:
        selector: chooses by how unsure its roles are of each token.
        signals: what each role says.
        mask: ``[B, T]`` where a token counts.

    Raises:
        NeedsError: one of the selector's roles does not give whole distributions.
    """
    entropy = {role: token_entropy(signals[role], mask, role) for role in selector.roles}
    return selector(PoolSignals(entropy=entropy, mask=mask))


@torch.no_grad()
def token_entropy(signals: Signals, mask: Tensor, role: str) -> Tensor:
    """Returns the entropy of each prediction ``[B, T]``, nats, a chunk of logits at a time; 0 where masked.

    Raises:
        NeedsError: the role gives neither logits nor hidden states.
    """
    losses = {"entropy": EntropyLoss(mask.shape)}
    if signals.hidden is not None:
        return projected_token_losses(signals.hidden.states, signals.hidden.head, losses, mask=mask)["entropy"]
    if signals.logits is None:
        raise NeedsError(
            f"tokens are chosen by how sure the role '{role}' is, which takes its whole distribution; a live model has "
            "it, and a cache of hidden states or of all logits"
        )
    return token_losses(signals.logits, losses, mask=mask)["entropy"]
