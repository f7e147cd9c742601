"""Text data sets: named readers, and the rows of tokens that a run sees of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar, cast

import numpy as np
from torch import Tensor

from limbeck.data.hashing import fingerprint, hash_bytes
from limbeck.data.source import DataInfo
from limbeck.data.text.canaries import planted
from limbeck.data.text.encoding import Encoded, encode_example
from limbeck.data.text.examples import Document, Example
from limbeck.data.text.packing import pack
from limbeck.data.text.pairs import EncodedPair, Preference, encode_pairs, holds_pairs, sides_of
from limbeck.data.text.tokenizer import Tokenizer
from limbeck.errors import DataError, RecipeError, suggest
from limbeck.hyperparameters import Count, WholeNumber, validated
from limbeck.registry import Registry

Split = Literal["train", "test", "validation", "holdout"]
TooLong = Literal["cut", "drop", "error"]
Row = TypeVar("Row", Encoded, EncodedPair)
_HASH_RANGE = 2**64
_SHARED = ("tokenizer", "teacher_tokenizer", "context", "packed", "bos", "too_long", "test", "canaries")
"""Keys of ``data.options`` that every text data set has."""


@dataclass(frozen=True)
class RawText:
    """What a reader found, before any tokenizer.

    Attributes:
        name: the name it was asked for.
        examples: documents, prompts with completions, conversations, or pairs of answers (all, or none of them), of one
            split, or of all where ``divided`` is false.
        divided: whether the examples are those of the split that was asked for.
        licence: licence and origin.
        domains: instead of ``examples``, the texts of several domains by name.
    """

    name: str
    examples: Sequence[Example] | Sequence[Preference] | Sequence[Example | Preference] = ()
    divided: bool = False
    licence: str = ""
    domains: Mapping[str, RawText] | None = None


texts: Registry[Callable[..., RawText]] = Registry("text data set", "limbeck.data.text")


def text_data(name: str, **about: Any) -> Callable[[Callable[..., RawText]], Callable[..., RawText]]:
    """Returns a decorator that registers a reader ``(*, split, **options) -> RawText``, its options checked."""
    enter = texts.register(name, **about)

    def decorate(function: Callable[..., RawText]) -> Callable[..., RawText]:
        return enter(validated(f"text data set '{name}'", function))

    return decorate


class TextSource:
    """Sequences of tokens in rows of at most ``context``.

    Args:
        name: name of the data.
        sequences: the sequences, each with at most ``context + 1`` tokens and at least one to predict.
        tokenizer: the tokenizer they were made with.
        context: tokens a model sees in one row.
        packed: several sequences a row, kept apart by position ids and attention.
        licence: licence and origin of the data.
        notes: what was cut or left out, in words.
        rejected: for each sequence the answer that it is preferred to, where the data are pairs.
        domains: how many of the sequences belong to each domain, in order; None where the data has no domains.
        canaries: sentences with a secret that were planted among the sequences, and how often each.

    Attributes:
        rows: numbers of the sequences in each row.
    """

    def __init__(
        self,
        name: str,
        sequences: Sequence[Encoded],
        tokenizer: Tokenizer,
        *,
        context: int,
        packed: bool = False,
        licence: str = "",
        notes: Sequence[str] = (),
        rejected: Sequence[Encoded] = (),
        domains: Mapping[str, int] | None = None,
        canaries: Mapping[str, int] | None = None,
    ) -> None:
        if not sequences:
            raise DataError(f"the text data '{name}' holds no sequence with a token to predict")
        if rejected and packed:
            raise RecipeError(
                f"'{name}' holds pairs of answers, which are not packed; set data.options.packed to false"
            )
        if rejected and len(rejected) != len(sequences):
            raise DataError(f"'{name}' has {len(sequences)} preferred answers, but {len(rejected)} rejected ones")
        self.sequences = tuple(sequences)
        self.rejected = tuple(rejected)
        self.tokenizer = tokenizer
        self.context = context
        self.packed = packed
        self.notes = tuple(notes)
        self.canaries = dict(canaries or {})
        self.info = DataInfo(name, tokenizer.vocabulary, (context,), licence=licence)
        # The last token of a sequence is predicted and never read.
        lengths = [len(s) - 1 for s in self.sequences]
        self.domain_names = tuple(domains or ())
        self.rows: list[list[int]] = []
        parts: list[np.ndarray] = []
        first = 0
        for number, count in enumerate(domains.values() if domains else [len(lengths)]):
            own = lengths[first : first + count]
            rows = pack(own, context) if packed else [[n] for n in range(count)]
            self.rows += [[first + n for n in row] for row in rows]
            parts.append(np.full(len(rows), number))
            first += count
        self.domains = np.concatenate(parts) if domains else None
        """Number of each row's domain ``[rows]``; None where the data has none."""

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def targets(self) -> int:
        """Number of tokens to predict in one epoch, those of rejected answers included."""
        return sum(s.targets for s in (*self.sequences, *self.rejected))

    @property
    def records(self) -> list[Mapping[str, Any]]:
        """Every column of the line of data of each row; of rows that hold several sequences that of the first."""
        return [self.sequences[row[0]].record for row in self.rows]

    def labels(self) -> Tensor | None:
        """Nothing: text has no classes."""
        return None

    @cached_property
    def sequence_keys(self) -> np.ndarray:
        """A 64-bit content hash of every sequence ``[N]`` uint64."""
        return np.array([s.key() for s in self.sequences], np.uint64)

    @cached_property
    def rejected_keys(self) -> np.ndarray:
        """A 64-bit content hash of every rejected answer ``[N]`` uint64; empty where the data are no pairs."""
        return np.array([s.key() for s in self.rejected], np.uint64)

    def content_hashes(self) -> np.ndarray:
        """A 64-bit hash of every row ``[rows]`` uint64."""
        sides = [self.sequence_keys, self.rejected_keys] if self.rejected else [self.sequence_keys]
        return np.array(
            [int(fingerprint([keys[row].astype("<u8") for keys in sides])[:16], 16) for row in self.rows],
            np.uint64,
        )

    def fingerprint(self) -> str:
        """A hash of the data: its sequences in order and how they lie in rows."""
        beside = [self.rejected_keys.astype("<u8")] if self.rejected else []
        return fingerprint([self.sequence_keys.astype("<u8"), str(self.rows), *beside])


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
                f"text data set '{name}', data.options: unknown key '{key}'. {suggest(str(key), [*readers, *_SHARED])}"
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


class Options:
    """How text becomes rows: the keys of ``data.options`` that are no option of the reader."""

    def __init__(
        self,
        *,
        tokenizer: str | None = None,
        teacher_tokenizer: str | None = None,
        context: Count = 512,
        packed: bool = False,
        bos: bool = False,
        too_long: TooLong = "cut",
        test: float = 0.05,
        canaries: dict[str, WholeNumber] | None = None,
    ) -> None:
        self.canaries = canaries
        self.tokenizer = tokenizer
        self.teacher_tokenizer = teacher_tokenizer
        self.rows: dict[str, Any] = {
            "context": context, "packed": packed, "bos": bos, "too_long": too_long, "test": test,
        }  # fmt: skip


Options.__init__ = validated("data.options", Options.__init__)  # type: ignore[method-assign]


def divide_options(options: Mapping[str, Any]) -> tuple[Options, dict[str, Any]]:
    """Returns how text becomes rows, and the options of the reader.

    Raises:
        RecipeError: a value is out of range.
    """
    own = {key: value for key, value in options.items() if key in _SHARED}
    return Options(**own), {key: value for key, value in options.items() if key not in _SHARED}
