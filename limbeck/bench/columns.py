"""What tables of a comparison show of each arm, whichever page or terminal they stand in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from limbeck.bench.table import Summary
from limbeck.evaluate import measures
from limbeck.evaluate.measure import Measure


@dataclass(frozen=True)
class Fact:
    """A column of such a table.

    Attributes:
        title: its heading.
        explanation: one sentence for readers.
        value: the number of an arm; NaN where it has none.
        text: how that is written.
    """

    title: str
    explanation: str
    value: Callable[[Summary], float]
    text: Callable[[Summary], str]


def facts_of(summaries: Sequence[Summary]) -> list[Fact]:
    """Returns the columns between an arm's name and its seeds: criterion, gains, further measures.

    Args:
        summaries: the arms of one comparison, at least one.
    """
    terms = summaries[0].terms
    first, last = (called(arm) for arm in (terms.first, terms.last))
    found = [
        Fact(
            terms.criterion.title,
            f"{_sentence(terms.criterion.explanation)}Mean and standard deviation over seeds; last epoch.",
            lambda s: s.mean,
            lambda s: terms.text(s.mean, s.spread, several=s.seeds > 1),
        ),
        _gain(f"Over {terms.first}", first, terms.unit, lambda s: s.gain),
    ]
    if terms.last != terms.first:
        found.append(_gain(f"Over {terms.last}", last, terms.unit, lambda s: s.gain_over_plain))
    found += [fact for fact in _OF_CLASSIFIERS if any(not math.isnan(fact.value(s)) for s in summaries)]
    return found + [_further(measure) for measure in further_measures(summaries)]


def further_measures(summaries: Sequence[Summary]) -> list[Measure]:
    """Returns the measures that some arm has beside those that every comparison tells, as far as they are known."""
    terms = summaries[0].terms
    keys = dict.fromkeys(key for s in summaries for key in s.measures if key != terms.criterion.key)
    known = [m for m in measures(dict.fromkeys(key.partition(".")[0] for key in keys)) if m.key in keys]
    return known if terms.columns is None else [m for key in terms.columns for m in known if m.key == key]


def _gain(title: str, over: str, unit: str, read: Callable[[Summary], float]) -> Fact:
    explanation = f"Mean difference to {over} of the same seed, in {unit}; positive is better."
    return Fact(title, explanation, read, lambda s: s.terms.signed(read(s)))


def _further(measure: Measure) -> Fact:
    def value(summary: Summary) -> float:
        spread = summary.measures.get(measure.key)
        return math.nan if spread is None else spread.mean

    return Fact(measure.title, measure.explanation, value, lambda s: measure.text(s.measures.get(measure.key)))


def called(arm: str) -> str:
    """Returns what a baseline is called in a sentence."""
    return {"none": "the student without distillation", "kd": "plain KD"}.get(arm, f"the arm {arm}")


def _sentence(text: str) -> str:
    return f"{text.rstrip('.')}. " if text else ""


def _percent(read: Callable[[Summary], float]) -> Callable[[Summary], str]:
    return lambda s: "–" if math.isnan(read(s)) else f"{100 * read(s):.2f} %"


_OF_CLASSIFIERS = (
    Fact(
        "Agreement",
        "How often student and teacher say the same class.",
        lambda s: s.agreement,
        _percent(lambda s: s.agreement),
    ),
    Fact("ECE", "Expected calibration error; lower is better.", lambda s: s.ece, _percent(lambda s: s.ece)),
)
