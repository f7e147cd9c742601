"""Where sequences begin and end, and how conversations are written, on both sides."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from limbeck.data.text import Tokenizer
from limbeck.errors import DataError
from limbeck.recipes.doctor.finding import Finding

SAMPLES: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}),
    (
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "  Name a colour. "},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": "Another?"},
        {"role": "assistant", "content": "Blue."},
    ),
)
"""Conversations that templates are compared on: with and without a system message, with spaces at the edges."""
_AROUND = 40


def compare_templates(role: str, theirs: Tokenizer, ours: Tokenizer) -> list[Finding]:
    """Returns how the same conversation looks to a model and to the data, side by side where they differ."""
    if not theirs.template and not ours.template:
        return []
    if not theirs.template or not ours.template:
        lacks = role if not theirs.template else "the data's tokenizer"
        return [
            Finding(
                "note",
                f"{lacks} has no chat template",
                "the other side has one",
                "only conversations need it; a base model reads a template's marks as text that it has hardly seen",
            )
        ]
    findings = []
    for number, sample in enumerate(SAMPLES):
        for ask in (False, True):
            messages = sample[:-1] if ask else sample
            a, b = _rendered(theirs, messages, ask), _rendered(ours, messages, ask)
            if a != b:
                findings.append(_difference(role, ours, a, b, number, ask))
    return findings[:1]


def _rendered(tokenizer: Tokenizer, messages: Sequence[dict[str, str]], ask: bool) -> str:
    try:
        return tokenizer.render(messages, ask=ask)
    except DataError as error:
        return f"[refused: {error}]"


def _difference(role: str, ours: Tokenizer, a: str, b: str, number: int, ask: bool) -> Finding:
    place = next((n for n, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    start = max(place - _AROUND // 2, 0)
    shown = [text[start : place + _AROUND] for text in (a, b)]
    case = "before an answer" if ask else "whole"
    return Finding(
        "warning",
        f"{role} writes conversations otherwise than the data's tokenizer '{ours.name}'",
        f"sample {number + 1}, {case}, from character {place}: {shown[0]!r} and {shown[1]!r}",
        "give both the same template (chat_template.jinja of the model folder); a teacher that reads another template "
        "than it was trained on gives biased probabilities",
    )


def check_ends(
    role: str, tokenizer: Tokenizer, stops: Collection[int], *, conversations: bool = True, trained: bool = False
) -> list[Finding]:
    """Returns whether generation stops where answers end.

    Args:
        role: the model's role.
        tokenizer: its tokenizer.
        stops: ids at which its generation stops, from its generation configuration.
        conversations: whether the template's end of a turn counts; else only the end of a document.
        trained: whether the role is trained on this data, and so learns to end by its tokens.
    """
    findings = []
    names = ", ".join(repr(tokenizer.decode([n], special=True)) for n in sorted(stops)) or "nothing"
    end = tokenizer.backend.eos_token_id
    if end is not None and end not in stops:
        findings.append(
            Finding(
                "warning",
                f"{role} writes past the end of a sequence",
                f"sequences of the data end with {tokenizer.backend.eos_token!r}, generation stops at {names}",
                _stop_fix(stops, end),
            )
        )
    turn = turn_end(tokenizer) if conversations else None
    if turn is not None and turn not in stops and (turn != end or not findings):
        learns = " and will learn it" if trained else ""
        findings.append(
            Finding(
                "warning",
                f"{role} writes past the end of an answer",
                f"the chat template ends an answer with {tokenizer.decode([turn], special=True)!r}{learns}, generation "
                f"stops at {names}",
                _stop_fix(stops, turn),
            )
        )
    return findings


def _stop_fix(stops: Collection[int], more: int) -> str:
    return f"set eos_token_id: {sorted({*stops, more})} in the model's generation_config.json"


def compare_ends(role: str, theirs: Collection[int], ours: Collection[int], other: str) -> list[Finding]:
    """Returns whether two models stop at the same tokens."""
    if set(theirs) == set(ours) or not theirs or not ours:
        return []
    return [
        Finding(
            "warning",
            f"{role} and {other} stop at different tokens",
            f"{sorted(theirs)} and {sorted(ours)}",
            "a base and a chat model were mixed, most likely; give both generation_config.json the same eos_token_id",
        )
    ]


def turn_end(tokenizer: Tokenizer) -> int | None:
    """Returns the special token by which a chat template ends an answer; None where it has none."""
    if not tokenizer.template:
        return None
    *before, answer = SAMPLES[0]
    try:
        text = tokenizer.render([*before, answer])
    except DataError:
        return None
    _, _, rest = text.rpartition(answer["content"])
    ids = tokenizer.encode(rest.strip())
    special = set(tokenizer.backend.all_special_ids) | set(tokenizer.backend.get_added_vocab().values())
    return ids[0] if ids and ids[0] in special else None


def stops_of(model: Any) -> set[int]:
    """Returns the ids at which a model's generation stops: of its generation configuration, or else of its own."""
    for config in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        found = getattr(config, "eos_token_id", None)
        if found is not None:
            return {int(n) for n in (found if isinstance(found, (list, tuple)) else [found])}
    return set()


def check_begins(tokenizer: Tokenizer, sequences: Sequence[np.ndarray]) -> list[Finding]:
    """Returns whether sequences begin with one begin-of-sequence token where the tokenizer wants one.

    Args:
        tokenizer: the tokenizer of the data.
        sequences: token ids.
    """
    begin = tokenizer.bos_id
    if begin is None or not len(sequences):
        return []
    name = repr(tokenizer.backend.bos_token)
    first = [list(ids[:2]) for ids in sequences]
    doubled = sum(ids == [begin, begin] for ids in first)
    if doubled:
        return [
            Finding(
                "error",
                "sequences begin with two begin-of-sequence tokens",
                f"{doubled:,} of {len(first):,} with {name} twice",
                "set data.options.bos: false, or take the token out of the text",
            )
        ]
    wants = list(tokenizer.backend("a", verbose=False)["input_ids"])[:1] == [begin]
    without = sum(ids[:1] != [begin] for ids in first)
    if wants and without:
        return [
            Finding(
                "warning",
                "sequences lack the token that this tokenizer begins text with",
                f"{without:,} of {len(first):,} do not begin with {name}",
                "set data.options.bos: true; models that always saw it predict worse without",
            )
        ]
    return []
