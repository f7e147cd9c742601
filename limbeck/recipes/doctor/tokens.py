"""Whether two models mean the same by a token: compared by the bytes of every one, never by names or counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from limbeck.data.text import Tokenizer
from limbeck.data.text.token_bytes import TokenBytes
from limbeck.errors import DataError
from limbeck.recipes.doctor.finding import Finding

_SHOWN = 3


def compare_tokenizers(role: str, theirs: Tokenizer, ours: Tokenizer) -> list[Finding]:
    """Returns what differs between the tokens a model knows and those of the data.

    Args:
        role: the model's role.
        theirs: the tokenizer that comes with the model.
        ours: the tokenizer of the data.
    """
    known, used = _meanings(theirs), _meanings(ours)
    both = known.keys() & used.keys()
    differ = sorted(n for n in both if known[n] != used[n])
    findings = list(_same_names(role, theirs, ours, bool(differ)))
    if differ:
        moved = len(differ) - len({known[n] for n in differ} - set(used.values()))
        same_size = " although both have as many" if len(known) == len(used) else ""
        findings.append(
            Finding(
                "error",
                f"{role} means other text by the same ids than the data's tokenizer '{ours.name}'{same_size}",
                f"{len(differ):,} of {len(both):,} ids stand for other bytes, {moved:,} of them under another id; "
                + "; ".join(f"{n}: {known[n]!r} and {used[n]!r}" for n in differ[:_SHOWN]),
                f"let the data take this model's tokenizer (data.options.tokenizer: {theirs.name}), or use a method "
                "across tokenizers",
            )
        )
    elif len(used) > len(known):
        findings.append(
            Finding(
                "error",
                f"{role} does not know all tokens of the data's tokenizer '{ours.name}'",
                f"{len(used) - len(known)} more: {_listed(used[n] for n in sorted(used.keys() - known.keys()))}",
                f"let the data take this model's tokenizer (data.options.tokenizer: {theirs.name})",
            )
        )
    elif len(known) > len(used):
        findings.append(
            Finding(
                "note",
                f"{role} knows tokens that the data's tokenizer '{ours.name}' lacks",
                f"{len(known) - len(used)} more: {_listed(known[n] for n in sorted(known.keys() - used.keys()))}",
                "nothing, where they are unused; the task compares the tokens that both have",
            )
        )
    return findings + compare_special_tokens(role, theirs, ours)


def _meanings(tokenizer: Tokenizer) -> dict[int, bytes]:
    """Returns what each token stands for: its bytes, or its name where it is special or the kind is unknown."""
    names = {number: token.encode() for token, number in tokenizer.backend.get_vocab().items()}
    try:
        pieces = TokenBytes(tokenizer).pieces
    except DataError:
        return names
    return {n: pieces[n] if n < len(pieces) and pieces[n] is not None else name for n, name in names.items()}


def _same_names(role: str, theirs: Tokenizer, ours: Tokenizer, differ: bool) -> Iterator[Finding]:
    """Says so where tokens have other names and the same bytes, which a comparison of names would refuse."""
    names, others = ({n: token for token, n in t.backend.get_vocab().items()} for t in (theirs, ours))
    renamed = [n for n in names.keys() & others.keys() if names[n] != others[n]]
    if renamed and not differ:
        first = min(renamed)
        yield Finding(
            "note",
            f"{role} and the data write tokens under other names that stand for the same bytes",
            f"{len(renamed):,} of them, such as {names[first]!r} and {others[first]!r}",
        )


def compare_special_tokens(role: str, theirs: Tokenizer, ours: Tokenizer) -> list[Finding]:
    """Returns which special tokens a model's tokenizer and the data's name differently."""
    wanted = ("bos_token", "eos_token", "unk_token", "pad_token")
    pairs = [(name, getattr(theirs.backend, name), getattr(ours.backend, name)) for name in wanted]
    different = [(name, a, b) for name, a, b in pairs if a != b]
    if not different:
        return []
    ends = any(name == "eos_token" for name, _, _ in different)
    return [
        Finding(
            "warning" if ends else "note",
            f"{role} and the data's tokenizer '{ours.name}' name different special tokens",
            ", ".join(f"{name.removesuffix('_token')} {a!r} and {b!r}" for name, a, b in different),
            "documents end by the data's eos; if the model was trained to end by its own, take its tokenizer"
            if ends
            else "",
        )
    ]


def check_padding(ours: Tokenizer) -> list[Finding]:
    """Returns what is to say of the token that fills rows."""
    pad, end = ours.backend.pad_token, ours.backend.eos_token
    if pad is not None and pad != end:
        return []
    said = f"{pad!r} both fills and ends" if pad is not None else f"there is no pad token, so {end!r} fills rows"
    return [
        Finding(
            "note",
            "rows are filled with the token that ends a sequence",
            said,
            "nothing: here masks tell padding. A trainer that masks by id would never learn to stop from it",
        )
    ]


def check_rows(role: str, rows: int, vocabulary: int) -> list[Finding]:
    """Returns what is to say of a model's output rows and the true number of tokens."""
    if rows < vocabulary:
        return [
            Finding(
                "error",
                f"{role} cannot say every token of the data",
                f"its head has {rows:,} rows, the tokenizer {vocabulary:,} tokens",
                "take this model's tokenizer, or a model that was made for this one",
            )
        ]
    if rows == vocabulary:
        return []
    return [
        Finding(
            "note",
            f"{role} has rows in its head that stand for no token",
            f"{rows:,} rows, {vocabulary:,} tokens",
            "nothing: the task cuts them off on both sides, so they take part in no softmax",
        )
    ]


def _listed(values: Iterable[Any]) -> str:
    found = list(values)
    more = ", ..." if len(found) > _SHOWN else ""
    return ", ".join(repr(v) for v in found[:_SHOWN]) + more
