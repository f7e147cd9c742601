"""Canary exposure: how much likelier a model finds a secret of its training text than others of the same form."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch import Tensor, nn

from limbeck import streams
from limbeck.data.text import Encoded, TextLoader, TextSource, Tokenizer
from limbeck.errors import RecipeError
from limbeck.evaluate.base import Results, Subject, evaluations
from limbeck.evaluate.continuations import text_of
from limbeck.evaluate.language import TASK
from limbeck.evaluate.measure import Measure
from limbeck.evaluate.tokens import measure_tokens
from limbeck.functional.privacy import exposure
from limbeck.hyperparameters import WholeNumber

_MARKED = re.compile(r"([^\[\]]*)\[([^\[\]]+)\]([^\[\]]*)")
_KINDS = (string.digits, string.ascii_lowercase, string.ascii_uppercase)
_ROWS = 64
_LARGEST = 4096


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


@evaluations.register(
    "canaries",
    title="Canary exposure: how likely secrets of the training text are among others of their form",
    task=TASK,
    measures=(
        Measure("canaries.mean", "Exposure", "number", "lower", "Mean exposure of the canaries, bits; 1.4 by chance."),
        Measure("canaries.largest", "Largest exposure", "number", "lower", "Exposure of the worst canary, bits."),
    ),
)
def canaries(subject: Subject, *, texts: tuple[str, ...] = (), others: WholeNumber = 1000, seed: int = 0) -> Results:
    """Returns ``mean`` and ``largest`` exposure in bits, the ``limit``, and rank and exposure of ``each`` canary.

    A canary is a sentence of the training text with a secret in brackets, ``the code is [481-302]``. It is compared
    with sentences whose secret has the same form: other digits for digits, other letters for letters. A model that has
    learnt nothing of the secret gives it a random rank, whose exposure is 1.4 bits on average; ``limit`` is that of the
    first rank, which is all that so many others can show. ``extrapolated`` goes beyond it by a normal distribution.

    Reference: Carlini et al., "The secret sharer", arXiv 1802.08232.

    Args:
        subject: what is judged.
        texts: the canaries, as they stand in the training text but for the brackets.
        others: sentences that each is compared with.
        seed: seed of the other secrets.

    Raises:
        RecipeError: no canary is given, or one marks no secret.
    """
    if not texts:
        raise RecipeError("name the canaries, for example canaries.texts=['the code is [481-302]']")
    if not 2 <= others <= 10**6:
        raise RecipeError(f"canaries.others = {others} should lie between 2 and a million")
    known = [Canary.parse(text) for text in texts]
    source = text_of(subject)
    results = {
        role: _exposed(model, known, source.tokenizer, subject, others, seed) for role, model in subject.modules.items()
    }
    return {**results.pop("student"), **results}


def _exposed(
    model: nn.Module, known: Sequence[Canary], tokenizer: Tokenizer, subject: Subject, others: int, seed: int
) -> Results:
    each: list[Results] = []
    for canary in known:
        losses = _losses(model, [canary.text, *canary.others(others, seed)], tokenizer, subject)
        found = exposure(losses[1:], float(losses[0]))
        each.append(
            {
                "form": canary.before + re.sub(r"[0-9A-Za-z]", "•", canary.secret) + canary.after,
                "rank": found.rank,
                "bits": found.bits,
                "extrapolated": found.extrapolated,
                "limit": math.log2(len(losses)),
            }
        )
    bits = [entry["bits"] for entry in each]
    return {"mean": fmean(bits), "largest": max(bits), "limit": max(e["limit"] for e in each), "each": each}


def _losses(model: nn.Module, texts: Sequence[str], tokenizer: Tokenizer, subject: Subject) -> Tensor:
    """Returns the negative log-likelihood ``[N]`` of every sentence, nats."""
    ids = [np.array(tokenizer.encode(text), np.int64) for text in texts]
    # A sentence is read after the end of what came before, so that its first token counts too.
    rows = [Encoded(np.concatenate([[tokenizer.eos_id], i]), np.arange(len(i) + 1) > 0) for i in ids]
    longest = max(len(r) for r in rows)
    source = TextSource("canaries", rows, tokenizer, context=min(longest, _LARGEST))
    loader = TextLoader(source, batch_size=_ROWS, shuffle=False)
    tokens = measure_tokens({"student": model}, loader, subject.task, device=subject.device)
    return torch.zeros(len(rows), dtype=torch.float64).index_add_(0, tokens.rows, tokens.loss["student"].double())
