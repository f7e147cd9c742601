"""Rewards that compare a completion's answer with the sample's own: exactly, as a number, as a choice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from limbeck.errors import DataError, MissingExtraError
from limbeck.hyperparameters import Count, NonNegative
from limbeck.rewards.base import Judged, Reward, reward
from limbeck.rewards.numbers import final_answer, last_number, only_number

_LONGEST = 300
"""Characters of an expression; a longer one is no answer, and could keep an algebra system busy for ever."""


def normalised(text: str, *, case: bool = False) -> str:
    """Returns a text without what does not make an answer another one: case, white space, outer punctuation.

    Example:
        >>> normalised('  "Los  Angeles." ')
        'los angeles'
    """
    plain = " ".join(text.split()).strip(" .,;:!?\"'`*()[]")
    return plain if case else plain.casefold()


@reward("exact_answer", title="the answer, compared as text after normalisation")
class ExactAnswer(Reward):
    r"""1 where the completion's answer is one of the sample's after normalisation, 0 elsewhere.

    The answer is what the last box (``\boxed{}``), the last ``####``, ``<answer>`` or ``answer:`` announces, or the
    whole completion.

    Args:
        column: column of the record with the answer, or with a list of answers that count.
        case: whether capitals matter.
    """

    def __init__(self, *, column: str = "answer", case: bool = False) -> None:
        self.columns = (column,)
        self.case = case

    def __call__(self, sample: Judged) -> float:
        """Returns 1 or 0."""
        right = sample.record[self.columns[0]]
        known = right if isinstance(right, (list, tuple)) else [right]
        said = normalised(final_answer(sample.completion), case=self.case)
        return float(bool(said) and any(said == normalised(str(answer), case=self.case) for answer in known))


@reward("maths", title="the final answer, compared as a number or as an expression")
class Maths(Reward):
    r"""1 where the completion ends in the right number, 0 elsewhere.

    The answer is looked for in the last ``\boxed{}``, after the last ``####``, ``<answer>`` or ``answer is``, and is
    the last number otherwise. Numbers are read exactly: thousands separators, decimals, fractions, mixed numbers,
    percentages, powers of ten, signs of money; units after a number do not count. The sample's answer may be a worked
    solution that ends in ``#### 72``.

    With ``symbolic`` answers that are no plain numbers are compared as LaTeX expressions by the library math-verify,
    which parses and never evaluates them as code. It stops after ``seconds``.

    Args:
        column: column of the record with the answer.
        tolerance: relative difference that does not count.
        symbolic: whether to compare expressions.
        seconds: how long a comparison of expressions may take.
    """

    def __init__(
        self, *, column: str = "answer", tolerance: NonNegative = 0.0, symbolic: bool = False, seconds: Count = 5
    ) -> None:
        self.columns = (column,)
        self.tolerance = tolerance
        self.symbolic = symbolic
        self.seconds = seconds
        if symbolic:
            _math_verify()

    def __call__(self, sample: Judged) -> float:
        """Returns 1 or 0.

        Raises:
            DataError: the sample's own answer holds no number, and expressions are not compared.
        """
        right = final_answer(str(sample.record[self.columns[0]]))
        said = final_answer(sample.completion)
        if self.symbolic and only_number(right) is None:
            return float(_same_expression(right, said, self.seconds))
        known = last_number(right)
        if known is None:
            raise DataError(
                f"the answer {right!r} in the column '{self.columns[0]}' holds no number; set symbolic: true for "
                "expressions, or use the reward exact_answer"
            )
        found = last_number(said)
        return float(found is not None and found.equals(known, tolerance=self.tolerance))


def _math_verify() -> Any:
    try:
        import math_verify
    except ImportError:
        raise MissingExtraError("math-verify", "rewards", "comparing expressions (symbolic: true)") from None
    return math_verify


def _same_expression(right: str, said: str, seconds: int) -> bool:
    if not said or len(said) > _LONGEST:
        return False
    library = _math_verify()
    # Its other reader of expressions hands strings to Python's own parser; this one has a grammar for LaTeX.
    only_latex = [library.LatexExtractionConfig()]
    known, found = (
        library.parse(f"${text.strip('$')}$", extraction_config=only_latex, parsing_timeout=seconds)
        for text in (right, said)
    )
    return bool(known and found and library.verify(known, found, timeout_seconds=seconds))


_LETTER = re.compile(r"(?<![A-Za-z])\(?([A-Z])\)?(?![A-Za-z])")


@reward("multiple_choice", title="the chosen letter, number or text of several choices")
class MultipleChoice(Reward):
    """1 where the completion chooses the right one of several, 0 elsewhere or where it names more than one.

    A choice is a letter (``B``, ``(B)``, ``answer: B``), or the text of one of the choices.

    Args:
        column: column of the record with the right choice: its letter, its number from 0, or its text.
        choices: column with the list of choices.
    """

    def __init__(self, *, column: str = "answer", choices: str = "choices") -> None:
        self.columns = (column, choices)

    def __call__(self, sample: Judged) -> float:
        """Returns 1 or 0.

        Raises:
            DataError: the right answer is none of the choices.
        """
        answer, choices = (sample.record[column] for column in self.columns)
        texts = [str(choice) for choice in choices]
        chosen = _chosen(final_answer(sample.completion), texts)
        return float(chosen is not None and chosen == _right(answer, texts))


def _right(answer: Any, choices: Sequence[str]) -> int:
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    plain = [normalised(choice) for choice in choices]
    if normalised(str(answer)) in plain:
        return plain.index(normalised(str(answer)))
    letter = normalised(str(answer), case=True)
    if len(letter) == 1 and 0 <= ord(letter) - ord("A") < len(choices):
        return ord(letter) - ord("A")
    raise DataError(f"the answer {answer!r} is none of the choices {list(choices)}")


def _chosen(said: str, choices: Sequence[str]) -> int | None:
    plain = [normalised(choice) for choice in choices]
    if normalised(said) in plain:
        return plain.index(normalised(said))
    letters = {ord(letter) - ord("A") for letter in _LETTER.findall(said)}
    named = {number for number in letters if number < len(choices)}
    if not named:
        named = {number for number, text in enumerate(plain) if text and _stands_in(text, said.casefold())}
    return named.pop() if len(named) == 1 else None


def _stands_in(choice: str, text: str) -> bool:
    """Whether a choice stands in a text, and not within a longer word or number: 3 is not said by 300 or 3.5."""
    return re.search(rf"(?<![\w.]){re.escape(choice)}(?!\w|\.\d)", text) is not None
