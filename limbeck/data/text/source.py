"""Text data sets: named readers, and the rows of tokens that a run sees of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from torch import Tensor

from limbeck.data.hashing import fingerprint
from limbeck.data.source import DataInfo
from limbeck.data.text.encoding import Encoded
from limbeck.data.text.examples import Example
from limbeck.data.text.packing import pack
from limbeck.data.text.pairs import Preference
from limbeck.data.text.tokenizer import Tokenizer
from limbeck.errors import DataError, RecipeError
from limbeck.hyperparameters import validated
from limbeck.registry import Registry

Split = Literal["train", "test", "validation", "holdout"]


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
