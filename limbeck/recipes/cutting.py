"""From a recipe's keys to a student that is cut from a model: layers, heads, neurons, channels, tokens, adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from limbeck.data.text import TextLoader, TextSource, Tokenizer
from limbeck.data.text.trimming import trim_tokenizer
from limbeck.errors import DataError, RecipeError
from limbeck.recipes.schema import RoleSpec, StageSpec
from limbeck.signals import Batch
from limbeck.students.language import adapted, cut, trim_embeddings

_ROWS = 4


def cut_student(model: nn.Module, spec: RoleSpec, source: TextSource) -> nn.Module:
    """Makes a model, in place, what the role of a recipe says, and returns it.

    Args:
        model: a copy of the model that the student comes from.
        spec: the role.
        source: the training text, on which parts are scored.

    Raises:
        RecipeError: the model has no such parts.
    """
    model = cut(
        model,
        text=lambda: scoring_text(source, spec.scored_rows),
        layers=list(spec.layers) if isinstance(spec.layers, tuple) else spec.layers,
        scored=spec.scored,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        inner=spec.inner,
        width=spec.width,
    )
    return adapted(model, lora=spec.lora, checkpointing=spec.checkpointing)


def scoring_text(source: TextSource, rows: int) -> Sequence[Batch]:
    """Returns sequences of the training text, evenly spaced in it, one a row."""
    count = len(source.sequences)
    numbers = sorted({int(n) for n in np.linspace(0, count - 1, min(rows, count))})
    chosen = TextSource(
        source.info.name, [source.sequences[n] for n in numbers], source.tokenizer, context=source.context
    )
    return list(TextLoader(chosen, batch_size=min(_ROWS, len(chosen)), shuffle=False).epoch(0))


def wanted_vocabulary(stage: StageSpec) -> str | int | None:
    """Returns which tokens a stage keeps, as its roles say; None for all.

    Raises:
        RecipeError: roles want different vocabularies, or a teacher cannot follow.
    """
    asked = {name: role.vocabulary for name, role in stage.roles.items() if role.vocabulary is not None}
    if len(set(asked.values())) > 1:
        raise RecipeError(f"roles of one stage share their tokens, but they want different vocabularies: {asked}")
    far = next((name for name, role in stage.roles.items() if role.remote is not None), None)
    if asked and far is not None:
        raise RecipeError(
            f"roles.{far} is a server, which knows tokens by the ids of its whole tokenizer; cut the vocabulary with a "
            "live teacher, or from a cache that was written by the same recipe"
        )
    return next(iter(asked.values()), None)


def with_fewer_tokens(
    source: TextSource, wanted: str | int | None, read: Callable[[Tokenizer], TextSource]
) -> TextSource:
    """Returns a text in the tokens that it needs; unchanged where all are kept.

    Args:
        source: the training text in the tokens of the whole tokenizer.
        wanted: see :func:`wanted_vocabulary`.
        read: reads the text again with another tokenizer.

    Raises:
        DataError: the tokenizer cannot be trimmed.
    """
    if wanted is None:
        return source
    counts = np.zeros(source.tokenizer.vocabulary, np.int64)
    for sequence in (*source.sequences, *source.rejected):
        counts += np.bincount(sequence.ids, minlength=len(counts))
    trimmed = read(trim_tokenizer(source.tokenizer, counts, most=None if wanted == "seen" else int(wanted)))
    if wanted == "seen":
        _check_same_tokens(source, trimmed)
    return trimmed


def _check_same_tokens(before: TextSource, after: TextSource) -> None:
    kept = np.array(after.tokenizer.kept)
    for number, (old, new) in enumerate(zip(before.sequences, after.sequences)):
        if not np.array_equal(old.ids, kept[new.ids]):
            raise DataError(
                f"the trimmed tokenizer divides sequence {number} of '{before.info.name}' otherwise than "
                f"'{before.tokenizer.name}' does, so what the teacher knows would not fit; leave out `vocabulary`"
            )


def trimmed_model(model: Any, tokenizer: Tokenizer) -> nn.Module:
    """Returns a model whose tokens are those of a tokenizer: unchanged where the tokenizer is whole."""
    return model if tokenizer.origin is None else trim_embeddings(model, tokenizer.kept)
