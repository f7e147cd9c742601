"""How much of a reference text a student's text repeats: BLEU on sequences of token numbers.

Reference: Papineni et al., "BLEU: a method for automatic evaluation of machine translation", 2002.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

Tokens = Sequence[int]


def corpus_bleu(hypotheses: Sequence[Tokens], references: Sequence[Tokens], *, order: int = 4) -> float:
    """BLEU of a whole corpus: matches and lengths are added up over all pairs before anything is divided; unsmoothed.

    Args:
        hypotheses: the student's texts.
        references: one reference for each, the teacher's texts for example.
        order: longest n-gram that is counted.

    Returns:
        A number in [0, 1]; 0 where no n-gram of some order matches.

    Raises:
        ValueError: there are not as many references as hypotheses, or none.

    Example:
        >>> round(corpus_bleu([[1, 2, 3, 4, 5]], [[1, 2, 3, 4, 6]]), 4)  # 4/5 x 3/4 x 2/3 x 1/2, its fourth root
        0.6687
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses and {len(references)} references: give as many, at least one")
    pairs = list(zip(hypotheses, references))
    matches = [sum(_matches(h, r, n) for h, r in pairs) for n in range(1, order + 1)]
    totals = [sum(max(len(h) - n + 1, 0) for h in hypotheses) for n in range(1, order + 1)]
    lengths = sum(map(len, hypotheses)), sum(map(len, references))
    return _brevity(*lengths) * _geometric_mean(matches, totals)


def sentence_bleu(hypothesis: Tokens, reference: Tokens, *, order: int = 4) -> float:
    """BLEU of one pair, with one added to matches and totals of n-grams from pairs on, as a single text has few.

    Reference: Lin and Och, "ORANGE: a method for evaluating automatic evaluation metrics for machine translation",
    2004.

    Args:
        hypothesis: the student's text.
        reference: the teacher's.
        order: longest n-gram that is counted.

    Returns:
        A number in [0, 1].
    """
    matches = [_matches(hypothesis, reference, n) + (n > 1) for n in range(1, order + 1)]
    totals = [max(len(hypothesis) - n + 1, 0) + (n > 1) for n in range(1, order + 1)]
    return _brevity(len(hypothesis), len(reference)) * _geometric_mean(matches, totals)


def _matches(hypothesis: Tokens, reference: Tokens, size: int) -> int:
    """N-grams that both have, each counted as often as the one that has it less often."""
    return sum((ngrams(hypothesis, size) & ngrams(reference, size)).values())


def ngrams(tokens: Tokens, size: int) -> Counter[tuple[int, ...]]:
    """Counts the runs of ``size`` tokens in a text.

    Example:
        >>> ngrams([1, 2, 1, 2], 2)
        Counter({(1, 2): 2, (2, 1): 1})
    """
    return Counter(tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1))


def _geometric_mean(matches: Sequence[int], totals: Sequence[int]) -> float:
    if not all(matches):
        return 0.0
    return math.exp(sum(math.log(m / t) for m, t in zip(matches, totals)) / len(matches))


def _brevity(length: int, reference_length: int) -> float:
    if length == 0:
        return 0.0
    return 1.0 if length > reference_length else math.exp(1 - reference_length / length)
