"""Which tokens end what a model writes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from limbeck.errors import DataError

if TYPE_CHECKING:
    from limbeck.data.text.tokenizer import Tokenizer


def end_tokens(model: nn.Module | None = None, tokenizer: Tokenizer | None = None) -> tuple[int, ...]:
    """Returns the ids that end a completion, in increasing order.

    They are those of the model's generation configuration and configuration, the tokenizer's end of a sequence, and the
    special token with which its chat template ends an assistant's turn. A chat model often names only some of them in
    each place, and one that is missing lets it write on for ever.

    Args:
        model: a model; those of transformers name ends in ``generation_config`` and ``config``.
        tokenizer: a tokenizer.
    """
    found: set[int] = set()
    inner: Any = getattr(model, "_orig_mod", model)
    for config in (getattr(inner, "generation_config", None), getattr(inner, "config", None)):
        found.update(_ids(getattr(config, "eos_token_id", None)))
    if tokenizer is not None:
        found.update(_ids(tokenizer.backend.eos_token_id))
        found.update(_turn_ends(tokenizer))
    return tuple(sorted(found))


def _ids(named: int | Iterable[int] | None) -> list[int]:
    if named is None:
        return []
    return [named] if isinstance(named, int) else [int(i) for i in named]


def _turn_ends(tokenizer: Tokenizer) -> list[int]:
    """Returns the special token right after what the assistant says; none where the template has no such token."""
    if not tokenizer.template:
        return []
    said = "limbeck"
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}]
    try:
        text = tokenizer.render(messages)
    except DataError:
        return []
    after = tokenizer.encode(text[text.rfind(said) + len(said) :].lstrip())[:1]
    special = {int(i) for i in tokenizer.backend.all_special_ids}
    added = {int(i) for i in getattr(tokenizer.backend, "added_tokens_decoder", {})}
    return [i for i in after if i in special | added]
