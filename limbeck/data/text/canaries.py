"""Canaries: sentences with a secret, planted into training text to see what a model gives away of it."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from limbeck import streams
from limbeck.data.text.encoding import Encoded
from limbeck.data.text.tokenizer import Tokenizer
from limbeck.errors import RecipeError

_MARKED = re.compile(r"([^\[\]]*)\[([^\[\]]+)\]([^\[\]]*)")
_KINDS = (string.digits, string.ascii_lowercase, string.ascii_uppercase)


@dataclass(frozen=True)
class Canary:
    """A sentence with a secret in it.

    Attributes:
        before: what stands before the secret.
        secret: the secret; digits and letters of it could have been others, all else is its form.
        after: what stands after it.
    """

    before: str
    secret: str
    after: str

    @classmethod
    def parse(cls, text: str) -> Canary:
        """Reads ``the code is [481-302]``: the secret stands in brackets.

        Raises:
            RecipeError: there is no secret in brackets, or none of its letters could be another.

        Example:
            >>> Canary.parse("the code is [48-a].")
            Canary(before='the code is ', secret='48-a', after='.')
        """
        found = _MARKED.fullmatch(text)
        if found is None:
            raise RecipeError(f"a canary marks its secret by brackets, like 'the code is [481-302]'; got '{text}'")
        canary = cls(*found.groups())
        if canary.forms < 2:
            raise RecipeError(
                f"the secret of '{text}' has no digit and no letter from a to z, so no other has its form"
            )
        return canary

    @property
    def text(self) -> str:
        """The sentence as the training text has it."""
        return self.before + self.secret + self.after

    @property
    def forms(self) -> int:
        """How many secrets have the same form, this one included."""
        return math.prod(len(_kind(letter)) for letter in self.secret)

    def others(self, count: int, seed: int) -> list[str]:
        """Returns up to so many different sentences with another secret of the same form, drawn at random."""
        wanted = min(count, self.forms - 1)
        found: dict[str, None] = {}
        kinds = [_kind(letter) for letter in self.secret]
        draw = 0
        while len(found) < wanted:
            numbers = streams.uniform(seed, f"canary/{self.secret}", draw, np.arange(count), len(kinds))
            for row in numbers:
                secret = "".join(kind[int(u * len(kind))] for kind, u in zip(kinds, row))
                if secret != self.secret and len(found) < wanted:
                    found[self.before + secret + self.after] = None
            draw += 1
        return list(found)


def _kind(letter: str) -> str:
    return next((kind for kind in _KINDS if letter in kind), letter)


def sentence(text: str, tokenizer: Tokenizer, *, ended: bool = False) -> Encoded:
    """Returns a sentence as it is read after the end of what came before, so that its first token counts too.

    Args:
        text: the sentence.
        tokenizer: the tokenizer.
        ended: whether the text ends with it.
    """
    end = tokenizer.eos_id
    ids = np.array([end, *tokenizer.encode(text), *([end] if ended else [])], np.int64)
    return Encoded(ids, np.arange(len(ids)) > 0)


def planted(canaries: Mapping[str, int], tokenizer: Tokenizer, *, context: int) -> list[Encoded]:
    """Returns sequences that stand in the training text as often as is said.

    Args:
        canaries: sentences with their secret in brackets, and how often each is there; 0 for one that is to be compared
            with those that are.
        tokenizer: the tokenizer.
        context: tokens that a model sees in one row.

    Raises:
        RecipeError: a sentence marks no secret, or is longer than a row.
    """
    found = []
    for marked, count in canaries.items():
        sequence = sentence(Canary.parse(marked).text, tokenizer, ended=True)
        if len(sequence) > context + 1:
            raise RecipeError(
                f"the canary '{marked}' has {len(sequence)} tokens, more than the context of {context}; shorten it"
            )
        found += [sequence] * count
    return found
