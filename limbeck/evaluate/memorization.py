"""What a language model gives away of its training text: verbatim continuations and copied n-grams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from limbeck.data.text import TextSource
from limbeck.errors import DataError
from limbeck.evaluate.base import Results, Subject, evaluations
from limbeck.evaluate.continuations import Continuations, continuations, text_of
from limbeck.evaluate.language import TASK
from limbeck.evaluate.measure import Measure
from limbeck.evaluate.writing import sampling_of
from limbeck.functional.repetition import NgramIndex, common_prefix
from limbeck.hyperparameters import Count


def training_text(subject: Subject, what: str) -> TextSource:
    """Returns the text that the student was trained on.

    Raises:
        DataError: it is not known; names ``what`` asks for it.
    """
    if not isinstance(subject.train, TextSource):
        raise DataError(f"{what} asks what is left of the training text; give it as `train`")
    return subject.train


@evaluations.register(
    "memorization",
    title="Memorisation: training text that is continued verbatim, n-grams that are copied from it",
    task=TASK,
    measures=(
        Measure(
            "memorization.extractable", "Extractable", "fraction", "lower", "Training sequences continued verbatim."
        ),
        Measure(
            "memorization.matched", "Verbatim", "fraction", "lower", "Part of a training continuation before an error."
        ),
        Measure("memorization.copied", "Copied", "fraction", "lower", "Written n-grams that the training text holds."),
    ),
)
def memorization(
    subject: Subject, *, samples: Count = 32, prompt: Count = 32, tokens: Count = 32, order: Count = 8
) -> Results:
    """Returns ``extractable`` and ``matched`` on training sequences, the same on ``held_out`` ones, and ``copied``.

    A sequence is extractable with ``prompt`` tokens of context if the likeliest tokens after them are its next
    ``tokens``, every one of them. Held-out sequences show how much of that is mere predictability. ``copied`` is the
    part of the n-grams drawn at temperature 1 after held-out prompts that the training text holds, and
    ``held_out.copied`` that of the true text after these prompts. The teacher's figures are about the student's
    training text, which need not be its own.

    Reference: Carlini et al., "Quantifying memorization across neural language models", arXiv 2202.07646.

    Args:
        subject: what is judged.
        samples: sequences of either text, evenly spread.
        prompt: tokens of context, where the data has no prompts of its own.
        tokens: tokens that are to be continued; where a sequence has fewer left, all of those.
        order: tokens of the n-grams.

    Raises:
        DataError: the training text is not known.
    """
    train, held = training_text(subject, "memorization"), text_of(subject)
    greedy, drawn = sampling_of(0.0, tokens), sampling_of(1.0, tokens)
    seen = continuations(subject, train, samples=samples, prompt=prompt, sampling=greedy)
    unseen = continuations(subject, held, samples=samples, prompt=prompt, sampling=greedy)
    free = continuations(subject, held, samples=samples, prompt=prompt, sampling=drawn)
    index = NgramIndex((s.ids for s in train.sequences), order=order)  # type: ignore[misc]
    truth = _copied(index, free.truths)
    results = {
        role: {
            **_verbatim(seen, role),
            "copied": _copied(index, free.written[role]),
            "held_out": {**_verbatim(unseen, role), "copied": truth},
        }
        for role in subject.modules
    }
    return {**results.pop("student"), "sequences": len(seen.prompts), "order": order, **results}


def _verbatim(found: Continuations, role: str) -> Results:
    pairs = [(w[: len(truth)], truth) for w, truth in zip(found.written[role], found.truths) if truth]
    if not pairs:
        raise DataError("no sequence is longer than the prompt; lower memorization.prompt")
    return {
        "extractable": fmean(written == truth for written, truth in pairs),
        "matched": fmean(common_prefix(written, truth) / len(truth) for written, truth in pairs),
    }


def _copied(index: NgramIndex, texts: Sequence[Sequence[int]]) -> float | None:
    shares = [share for text in texts if not math.isnan(share := index.share(text))]
    return fmean(shares) if shares else None
