"""How much texts repeat themselves, and how much of them is found in another text; texts are token numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from limbeck.functional.sequence_overlap import Tokens, ngrams


def distinct_ngrams(texts: Sequence[Tokens], *, order: int) -> float:
    """Part of the n-grams of all texts together that differ; NaN where there is none.

    Reference: Li et al., "A diversity-promoting objective function for neural conversation models", arXiv 1510.03055.

    Args:
        texts: what one model wrote.
        order: tokens of an n-gram.

    Example:
        >>> distinct_ngrams([[1, 2, 1], [1, 2]], order=2)  # (1, 2), (2, 1) and (1, 2)
        0.6666666666666666
    """
    found = [gram for text in texts for gram in ngrams(text, order).elements()]
    return len(set(found)) / len(found) if found else float("nan")


def repeated_ngrams(text: Tokens, *, order: int) -> float:
    """Part of a text's n-grams that have occurred in it before; NaN where it is shorter than one.

    Reference: "seq-rep-n" of Welleck et al., "Neural text generation with unlikelihood training", arXiv 1908.04319.

    Args:
        text: one text.
        order: tokens of an n-gram.

    Example:
        >>> repeated_ngrams([5, 5, 5, 5], order=2)
        0.6666666666666667
    """
    found = ngrams(text, order)
    total = sum(found.values())
    return 1.0 - len(found) / total if total else float("nan")


class NgramIndex:
    """The n-grams of a corpus, to ask how much of a text it holds. Eight bytes for each that differs.

    N-grams are told apart by 64-bit hashes: two of 100 million share one with a probability below one in a thousand.

    Args:
        corpus: its texts.
        order: tokens of an n-gram.

    Example:
        >>> NgramIndex([[1, 2, 3, 4]], order=2).share([9, 2, 3, 4])
        0.6666666666666666
    """

    def __init__(self, corpus: Iterable[Tokens], *, order: int) -> None:
        # Odd multipliers of a fixed stream: a polynomial in one number would let neighbours collide.
        self._factors = np.random.default_rng(0).integers(1, 2**63, order, dtype=np.uint64) * np.uint64(2) + np.uint64(
            1
        )
        hashes = [self._hashes(text) for text in corpus]
        self._known = np.unique(np.concatenate(hashes)) if hashes else np.empty(0, np.uint64)

    def _hashes(self, text: Tokens) -> np.ndarray:
        """One hash for every place at which an n-gram begins."""
        order = len(self._factors)
        if len(text) < order:
            return np.empty(0, np.uint64)
        windows = np.lib.stride_tricks.sliding_window_view(_scrambled(np.asarray(text, np.uint64)), order)
        return (windows * self._factors).sum(-1, dtype=np.uint64)

    def share(self, text: Tokens) -> float:
        """Part of a text's n-grams that the corpus holds; NaN where the text is shorter than one."""
        hashes = self._hashes(text)
        return float(np.isin(hashes, self._known).mean()) if len(hashes) else float("nan")


def _scrambled(tokens: np.ndarray) -> np.ndarray:
    """Spreads small numbers over all 64 bits (the finaliser of SplitMix64), so that sums of them do not collide."""
    z = (tokens + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def common_prefix(first: Tokens, second: Tokens) -> int:
    """Number of tokens with which both texts begin.

    Example:
        >>> common_prefix([1, 2, 3], [1, 2, 4, 5])
        2
    """
    return next((n for n, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))
