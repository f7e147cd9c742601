"""What language models write: samples to read, repetition and length, likeness to the text and to the teacher."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from limbeck.errors import MissingExtraError
from limbeck.evaluate.base import Results, Subject, evaluations, numbers
from limbeck.evaluate.continuations import Continuations, continuations, text_of
from limbeck.evaluate.language import TASK
from limbeck.evaluate.measure import Measure
from limbeck.functional.repetition import distinct_ngrams, repeated_ngrams
from limbeck.functional.sequence_overlap import corpus_bleu
from limbeck.generation import Sampling
from limbeck.hyperparameters import Count, NonNegative

_ORDERS = (1, 2, 3)
Texts = Sequence[Sequence[int]]


def sampling_of(temperature: float, tokens: int) -> Sampling:
    """Returns how tokens are drawn: the likeliest ones at temperature 0."""
    if temperature == 0:
        return Sampling(greedy=True, max_new_tokens=tokens)
    return Sampling(temperature=temperature, max_new_tokens=tokens)


@evaluations.register(
    "writing",
    title="What student and teacher write, greedily, after the beginnings of held-out sequences",
    task=TASK,
    measures=(
        Measure(
            "writing.distinct", "Distinct", "fraction", "higher", "Part of the written pairs of tokens that differ."
        ),
    ),
)
def writing(subject: Subject, *, samples: Count = 4, prompt: Count = 32, tokens: Count = 48) -> Results:
    """Returns ``samples``: prompt, the true continuation, and what each role writes; and ``distinct`` of the student.

    Args:
        subject: what is judged.
        samples: number of prompts, spread over the data.
        prompt: tokens of a prompt, where the data has no prompts of its own.
        tokens: tokens to write.
    """
    source = text_of(subject)
    found = continuations(subject, source, samples=samples, prompt=prompt, sampling=sampling_of(0.0, tokens))
    decode = source.tokenizer.decode
    shown = [
        {"prompt": decode(before), "truth": decode(truth), **{r: decode(t[n]) for r, t in found.written.items()}}
        for n, (before, truth) in enumerate(zip(found.prompts, found.truths))
    ]
    distinct = {role: numbers([distinct_ngrams(texts, order=2)])[0] for role, texts in found.written.items()}
    teacher = {"teacher": {"distinct": distinct["teacher"]}} if "teacher" in distinct else {}
    return {"samples": shown, "distinct": distinct["student"], **teacher}


@evaluations.register(
    "repetition",
    title="Repetition and length of what student and teacher write",
    task=TASK,
    measures=(
        Measure("repetition.distinct2", "Distinct pairs", "fraction", "", "Part of all written pairs that differ."),
        Measure("repetition.repeated", "Repeated", "fraction", "lower", "Part of a text's 4-grams it has had before."),
        Measure("repetition.length.mean", "Length", "number", "", "Tokens written after a prompt."),
        Measure("repetition.length.ended", "Ended", "fraction", "", "Texts that were ended and not cut off."),
    ),
)
def repetition(
    subject: Subject,
    *,
    samples: Count = 32,
    prompt: Count = 32,
    tokens: Count = 64,
    temperature: NonNegative = 1.0,
    order: Count = 4,
) -> Results:
    """Returns ``distinct1`` to ``distinct3``, ``repeated`` n-grams and ``length``; those of the text under ``truth``.

    Args:
        subject: what is judged.
        samples: number of prompts, spread over the data.
        prompt: tokens of a prompt, where the data has no prompts of its own.
        tokens: most tokens to write.
        temperature: of the drawing; 0 takes the likeliest token.
        order: tokens of the n-grams whose repetition within a text is counted.
    """
    source = text_of(subject)
    sampling = sampling_of(temperature, tokens)
    found = continuations(subject, source, samples=samples, prompt=prompt, sampling=sampling)
    by_role = {
        role: {**_repetition(texts, order), "length": _lengths(texts, found.ended[role])}
        for role, texts in found.written.items()
    }
    return {**by_role.pop("student"), "truth": _repetition(found.truths, order), **by_role}


def _repetition(texts: Texts, order: int) -> Results:
    distinct = {f"distinct{n}": numbers([distinct_ngrams(texts, order=n)])[0] for n in _ORDERS}
    repeated = [share for text in texts if not math.isnan(share := repeated_ngrams(text, order=order))]
    return {**distinct, "repeated": fmean(repeated) if repeated else None}


def _lengths(texts: Texts, ended: Sequence[bool]) -> Results:
    lengths = [len(text) for text in texts]
    return {
        "mean": fmean(lengths),
        "median": median(lengths),
        "shortest": min(lengths),
        "longest": max(lengths),
        "ended": fmean(ended),
        "each": lengths,
    }


@evaluations.register(
    "text_overlap",
    title="Likeness of what is written to the true text and to the teacher's: ROUGE-L, exact match, BLEU",
    task=TASK,
    measures=(
        Measure("text_overlap.rouge_l", "ROUGE-L", "fraction", "higher", "Longest common subsequence with the text."),
        Measure("text_overlap.exact_match", "Exact match", "fraction", "higher", "Texts that equal the true one."),
        Measure("text_overlap.with_teacher.rouge_l", "ROUGE-L, teacher", "fraction", "higher", "With the teacher's."),
        Measure("text_overlap.with_teacher.bleu", "BLEU, teacher", "fraction", "higher", "With the teacher's text."),
    ),
)
def text_overlap(
    subject: Subject,
    *,
    samples: Count = 32,
    prompt: Count = 32,
    tokens: Count = 48,
    temperature: NonNegative = 0.0,
) -> Results:
    """Returns ``rouge_l`` and ``exact_match`` with the true continuation, and ``with_teacher`` the same and ``bleu``.

    ROUGE-L is the F-measure of the longest common subsequence of words, whatever their case. Texts match exactly where
    they differ in case and white space only. BLEU is that of the whole corpus of tokens, unsmoothed.

    Args:
        subject: what is judged.
        samples: number of prompts, spread over the data.
        prompt: tokens of a prompt, where the data has no prompts of its own.
        tokens: most tokens to write; texts are compared up to there.
        temperature: of the drawing; 0 takes the likeliest token.

    Raises:
        MissingExtraError: the package rouge-score is not installed.
    """
    source = text_of(subject)
    sampling = sampling_of(temperature, tokens)
    found = continuations(subject, source, samples=samples, prompt=prompt, sampling=sampling)
    decode = source.tokenizer.decode
    truths = [decode(ids) for ids in found.truths]
    texts = {role: [decode(ids) for ids in written] for role, written in found.written.items()}
    results = {role: _likeness(written, truths) for role, written in texts.items()}
    student = results.pop("student")
    if "teacher" in texts:
        student["with_teacher"] = {
            **_likeness(texts["student"], texts["teacher"]),
            "bleu": _bleu(found),
        }
    return {**student, "samples": len(truths), **results}


def _likeness(written: Sequence[str], references: Sequence[str]) -> Results:
    scorer = _rouge()
    return {
        "rouge_l": fmean(scorer.score(r, w)["rougeL"].fmeasure for w, r in zip(written, references)),
        "exact_match": fmean(_plain(w) == _plain(r) for w, r in zip(written, references)),
    }


def _bleu(found: Continuations) -> float:
    return corpus_bleu(found.written["student"], found.written["teacher"])


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


class _Words:
    """The scorer's own tokenizer knows the letters a to z only."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.casefold())


def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise MissingExtraError("rouge-score", "evaluate", "ROUGE-L") from None
    return RougeScorer(["rougeL"], tokenizer=_Words())
