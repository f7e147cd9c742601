"""From a named text data set to the rows of tokens of a split: read, encoded, cut to the context, divided."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from limbeck.data.hashing import hash_bytes
from limbeck.data.text.canaries import planted
from limbeck.data.text.encoding import Encoded, encode_example
from limbeck.data.text.examples import Document, Example
from limbeck.data.text.options import SHARED, TooLong
from limbeck.data.text.pairs import EncodedPair, Preference, encode_pairs, holds_pairs, sides_of
from limbeck.data.text.source import RawText, Split, TextSource, texts
from limbeck.data.text.tokenizer import Tokenizer
from limbeck.errors import DataError, RecipeError, suggest

Row = TypeVar("Row", Encoded, EncodedPair)
_HASH_RANGE = 2**64


def load_text(
    spec: Mapping[str, Any],
    tokenizer: Tokenizer,
    *,
    split: Split = "train",
    context: int = 512,
    packed: bool = False,
    bos: bool = False,
    too_long: TooLong = "cut",
    test: float = 0.05,
    validation: float = 0.0,
    holdout: float = 0.0,
    limit: int | Mapping[str, int] | None = None,
    canaries: Mapping[str, int] | None = None,
) -> TextSource:
    """Returns a split of a text data set as rows of tokens.

    Documents longer than a row are cut into windows that overlap by one token, so every token is predicted once.
    Where the data has no split of its own, documents that were cut are divided in order (the last windows are for
    tests) and all else by content.

    Args:
        spec: ``name`` of a reader and its options.
        tokenizer: the tokenizer.
        split: ``train``, ``test``, ``validation`` or ``holdout``.
        context: tokens a model sees in one row.
        packed: several short sequences in one row.
        bos: begin documents and prompts with the begin-of-sequence token.
        too_long: prompts with completions and conversations that are longer than a row are ``cut`` at the end, or
            dropped, or an ``error``.
        test: part of the sequences held out for tests, where the data has no test split.
        validation: part held out of the training sequences.
        holdout: part of what is then left for training that is kept apart too, for methods that judge the student while
            it trains and for reference models.
        limit: at most that many training sequences; ``{train: n, test: m}`` limits other splits too. Of a mixture of
            domains, so many of all together, as many of each.
        canaries: sentences with their secret in brackets that are planted into the split, and how often each, see
            :mod:`limbeck.data.text.canaries`.

    Raises:
        UnknownNameError: no reader has that name.
        RecipeError: an option is unknown or out of range.
        DataError: the data is missing, empty or damaged.
    """
    if context < 1:
        raise RecipeError(f"context = {context}: a row needs at least one token")
    options = dict(spec)
    name = str(options.pop("name"))
    _refuse_unknown(name, options)
    raw = texts[name].part(split="test" if split == "test" else "train", **options)
    parts = {raw.name: raw} if raw.domains is None else raw.domains
    count = limit.get(split) if isinstance(limit, Mapping) else limit if split == "train" else None
    shares = _even_parts(count, len(parts))
    found: dict[str, list[Encoded] | list[EncodedPair]] = {}
    notes: list[str] = []
    for (domain, part), share in zip(parts.items(), shares):
        held, said = _sequences(
            part, tokenizer, split, context=context, bos=bos, too_long=too_long,
            fractions={"test": test, "validation": validation, "holdout": holdout},
        )  # fmt: skip
        found[domain] = held[:share]
        notes += said
    sequences, rejected = sides_of([row for rows in found.values() for row in rows], raw.name)
    if canaries:
        if rejected or raw.domains is not None:
            raise RecipeError(
                f"canaries are planted into plain text, but '{raw.name}' holds {'pairs' if rejected else 'domains'}; "
                "remove data.options.canaries"
            )
        further = planted(canaries, tokenizer, context=context)
        notes.append(f"{len(further)} canaries are planted among {len(sequences)} sequences of '{raw.name}'")
        sequences = [*sequences, *further]
    return TextSource(
        raw.name,
        sequences,
        tokenizer,
        context=context,
        packed=packed,
        licence=raw.licence,
        notes=notes,
        rejected=rejected,
        domains=None if raw.domains is None else {domain: len(rows) for domain, rows in found.items()},
        canaries=canaries,
    )


def _refuse_unknown(name: str, options: Mapping[str, Any]) -> None:
    """Refuses options that neither the reader nor :class:`Options` has, with those of both."""
    readers = [key for key in inspect.signature(texts[name].part).parameters if key != "split"]
    for key in options:
        if key not in readers:
            raise RecipeError(
                f"text data set '{name}', data.options: unknown key '{key}'. {suggest(str(key), [*readers, *SHARED])}"
            )


def _even_parts(count: int | None, parts: int) -> list[int | None]:
    """Divides a number of sequences over the domains; the first get one more where it does not go in evenly."""
    if count is None:
        return [None] * parts
    if count < parts:
        raise RecipeError(f"data.limit = {count} leaves some of the {parts} domains without a sequence; raise it")
    return [count // parts + (number < count % parts) for number in range(parts)]


def _sequences(
    raw: RawText,
    tokenizer: Tokenizer,
    split: Split,
    *,
    context: int,
    bos: bool,
    too_long: TooLong,
    fractions: Mapping[str, float],
) -> tuple[list[Encoded] | list[EncodedPair], list[str]]:
    """Returns the sequences of a split of one text, and what was cut or left out of the whole."""
    if holds_pairs(raw.examples, raw.name):
        pairs, notes = encode_pairs(
            cast(Sequence[Preference], raw.examples), tokenizer,
            name=raw.name, context=context, bos=bos, too_long=too_long,
        )  # fmt: skip
        return _in_split(pairs, raw, split, fractions, False), notes
    encoded = [
        (example, encode_example(example, tokenizer, bos=bos, where=f"sample {n} of '{raw.name}'"))
        for n, example in enumerate(cast(Sequence[Example], raw.examples))
    ]
    whole = [(type(example), piece) for example, found in encoded for piece in _windows(example, found, context)]
    kept, notes = _fitting(whole, raw.name, context, too_long)
    in_order = any(len(e) > context + 1 for _, e in encoded)
    return _in_split([k for _, k in kept], raw, split, fractions, in_order), notes


def _windows(example: Example, found: Encoded, context: int) -> list[Encoded]:
    """Cuts a long document into windows of ``context + 1`` tokens that overlap by one."""
    if not isinstance(example, Document) or len(found) <= context + 1:
        return [found]
    starts = range(0, len(found) - 1, context)
    return [Encoded(found.ids[s : s + context + 1], found.learn[s : s + context + 1]) for s in starts]


def _fitting(
    sequences: Sequence[tuple[type, Encoded]], name: str, context: int, too_long: TooLong
) -> tuple[list[tuple[type, Encoded]], list[str]]:
    """Returns the sequences that fit and have something to learn, and what happened to the others."""
    long = [n for n, (_, s) in enumerate(sequences) if len(s) > context + 1]
    if long and too_long == "error":
        raise DataError(
            f"{len(long)} sequences of '{name}' (the first is number {long[0]} with {len(sequences[long[0]][1])} "
            f"tokens) are longer than the context of {context}; raise `context`, or set `too_long` to cut or drop"
        )
    notes = []
    if long:
        what = "cut to" if too_long == "cut" else "left out: they are longer than"
        notes.append(f"{len(long)} of {len(sequences)} sequences of '{name}' {what} {context} tokens")
    fitting = [(kind, s.cut(context + 1)) for kind, s in sequences if len(s) <= context + 1 or too_long == "cut"]
    kept = [(kind, s) for kind, s in fitting if s.targets]
    if len(kept) < len(fitting):
        notes.append(f"{len(fitting) - len(kept)} sequences of '{name}' have no token to predict and are left out")
    if not kept:
        raise DataError(
            f"no sequence of '{name}' has a token to predict within {context} tokens; raise `context`, or look at the "
            "data"
        )
    return kept, notes


def _in_split(
    sequences: list[Row], raw: RawText, split: Split, fractions: Mapping[str, float], in_order: bool
) -> list[Row]:
    """Returns the sequences of a split: what is held out is taken away for one purpose after the other."""
    for part, size in fractions.items():
        if not 0 <= size < 1:
            raise RecipeError(f"{part} = {size}: the part held out is at least 0 and below 1")
    rest = sequences
    for part, size in fractions.items():
        if part == "test" and raw.divided:
            held, fix = rest, "give it samples"
        else:
            rest, held = _divided(rest, size, in_order, part)
            fix = f"raise `{part}`"
        if split == part:
            return _nonempty(held, raw.name, split, fix)
    return _nonempty(rest, raw.name, "train", "hold out less")


def _divided(sequences: list[Row], part: float, in_order: bool, purpose: str) -> tuple[list[Row], list[Row]]:
    """Divides in order where windows are neighbours in one text, else by content, so that copies stay together."""
    if not part:
        return sequences, []
    if in_order:
        first = min(int(len(sequences) * (1 - part)), len(sequences) - 1)
        return sequences[:first], sequences[first:]
    # A hash for each purpose: what is left after one division would otherwise lie on one side of the next.
    chosen = [hash_bytes(s.key().to_bytes(8, "little"), purpose) < part * _HASH_RANGE for s in sequences]
    return [s for s, c in zip(sequences, chosen) if not c], [s for s, c in zip(sequences, chosen) if c]


def _nonempty(sequences: list[Row], name: str, split: str, fix: str) -> list[Row]:
    if not sequences:
        raise DataError(f"the split '{split}' of '{name}' is empty; {fix}")
    return sequences
