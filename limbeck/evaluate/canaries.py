"""Canary exposure: how much likelier a model finds a secret of its training text than others of the same form."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor, nn

from limbeck.data.text import TextLoader, TextSource, Tokenizer
from limbeck.data.text.canaries import Canary, sentence
from limbeck.errors import RecipeError
from limbeck.evaluate.base import Results, Subject, evaluations
from limbeck.evaluate.continuations import text_of
from limbeck.evaluate.language import TASK
from limbeck.evaluate.measure import Measure
from limbeck.evaluate.tokens import measure_tokens
from limbeck.functional.privacy import exposure
from limbeck.hyperparameters import WholeNumber

_ROWS = 64
_LARGEST = 4096


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

    Recipes plant them (``data.options.canaries``), and those are asked for where none is named; ``planted`` then says
    how often each one is in an epoch. The mean is that of the planted ones: sentences that stand there 0 times are
    controls, whose mean is ``unplanted``.

    A canary is a sentence of the training text with a secret in brackets, ``the code is [481-302]``. It is compared
    with sentences whose secret has the same form: other digits for digits, other letters for letters. A model that has
    learnt nothing of the secret gives it a random rank, whose exposure is 1.4 bits on average; ``limit`` is that of the
    first rank, which is all that so many others can show. ``extrapolated`` goes beyond it by a normal distribution.

    Reference: Carlini et al., "The secret sharer", arXiv 1802.08232.

    Args:
        subject: what is judged.
        texts: the canaries, as they stand in the training text but for the brackets; those that the recipe has planted
            when empty.
        others: sentences that each is compared with.
        seed: seed of the other secrets.

    Raises:
        RecipeError: no canary is given, or one marks no secret.
    """
    planted: Mapping[str, int] = getattr(subject.train, "canaries", {})
    texts = texts or tuple(planted)
    if not texts:
        raise RecipeError(
            "name the canaries, for example canaries.texts=['the code is [481-302]'], or have them planted: "
            "data.options.canaries={'the code is [481-302]': 8}"
        )
    if not 2 <= others <= 10**6:
        raise RecipeError(f"canaries.others = {others} should lie between 2 and a million")
    known = [Canary.parse(text) for text in texts]
    source = text_of(subject)
    results = {
        role: _exposed(model, dict(zip(texts, known)), source.tokenizer, subject, others, seed, planted)
        for role, model in subject.modules.items()
    }
    return {**results.pop("student"), **results}


def _exposed(
    model: nn.Module,
    known: Mapping[str, Canary],
    tokenizer: Tokenizer,
    subject: Subject,
    others: int,
    seed: int,
    planted: Mapping[str, int],
) -> Results:
    each: list[Results] = []
    for text, canary in known.items():
        losses = _losses(model, [canary.text, *canary.others(others, seed)], tokenizer, subject)
        found = exposure(losses[1:], float(losses[0]))
        each.append(
            {
                "form": canary.before + re.sub(r"[0-9A-Za-z]", "•", canary.secret) + canary.after,
                "rank": found.rank,
                "bits": found.bits,
                "extrapolated": found.extrapolated,
                "limit": math.log2(len(losses)),
                **({"planted": planted[text]} if text in planted else {}),
            }
        )
    controls = [entry["bits"] for entry in each if entry.get("planted") == 0]
    bits = [entry["bits"] for entry in each if entry.get("planted") != 0] or controls
    return {
        "mean": fmean(bits),
        "largest": max(bits),
        "limit": max(e["limit"] for e in each),
        "each": each,
        **({"unplanted": fmean(controls)} if controls else {}),
    }


def _losses(model: nn.Module, texts: Sequence[str], tokenizer: Tokenizer, subject: Subject) -> Tensor:
    """Returns the negative log-likelihood ``[N]`` of every sentence, nats."""
    rows = [sentence(text, tokenizer) for text in texts]
    longest = max(len(r) for r in rows)
    source = TextSource("canaries", rows, tokenizer, context=min(longest, _LARGEST))
    loader = TextLoader(source, batch_size=_ROWS, shuffle=False)
    tokens = measure_tokens({"student": model}, loader, subject.task, device=subject.device)
    return torch.zeros(len(rows), dtype=torch.float64).index_add_(0, tokens.rows, tokens.loss["student"].double())
