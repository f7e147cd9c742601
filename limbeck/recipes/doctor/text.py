"""What happened to the text on its way into rows."""

from __future__ import annotations

from limbeck.data.text import TextSource
from limbeck.recipes.doctor.finding import Finding

_MANY, _SOME = 0.2, 0.01


def check_text(source: TextSource) -> list[Finding]:
    """Returns how much of the text was cut, is empty, or is unknown to the tokenizer."""
    return [*_cut(source), *_empty(source), *_unknown(source)]


def _cut(source: TextSource) -> list[Finding]:
    """Counts prompts with completions and conversations that were cut: their end is gone."""
    answered = [s for s in source.sequences if s.prompt]
    end = source.tokenizer.backend.eos_token_id
    cut = sum(len(s) == source.context + 1 and s.ids[-1] != end for s in answered)
    share = cut / len(answered) if answered else 0.0
    if share < _SOME:
        return []
    return [
        Finding(
            "warning",
            "answers are cut off before their end" if share < _MANY else "many answers are cut off before their end",
            f"{cut:,} of {len(answered):,} ({share:.0%}) fill a row of {source.context} tokens and do not end",
            "raise data.options.context, or set too_long: drop; a student of cut answers learns not to stop",
        )
    ]


def _empty(source: TextSource) -> list[Finding]:
    """Counts completions of which only the end is left to learn."""
    answered = [s for s in source.sequences if s.prompt]
    empty = sum(s.targets <= 1 for s in answered)
    share = empty / len(answered) if answered else 0.0
    if share < _SOME:
        return []
    return [
        Finding(
            "warning",
            "completions are empty",
            f"{empty:,} of {len(answered):,} ({share:.0%}) have one token to learn, the end",
            "remove these lines; a student learns from them to say nothing",
        )
    ]


def _unknown(source: TextSource) -> list[Finding]:
    unknown = source.tokenizer.backend.unk_token_id
    total = sum(len(s) for s in source.sequences)
    if unknown is None or unknown in {source.tokenizer.backend.eos_token_id, source.tokenizer.backend.bos_token_id}:
        return []
    count = sum(int((s.ids == unknown).sum()) for s in source.sequences)
    if count < 0.001 * total:
        return []
    return [
        Finding(
            "warning",
            "the tokenizer does not know parts of the text",
            f"{count:,} of {total:,} tokens are {source.tokenizer.backend.unk_token!r}",
            "use a tokenizer that can write every byte, or one made for this language",
        )
    ]
