"""Numbers as people and models write them, read exactly."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_MARKS = re.compile(r"####|<answer>|(?:final\s+)?answer\s*(?:is\b\s*:?|:|=)", re.IGNORECASE)
_INTEGER = r"(?:\d{1,3}(?:(?:,|\{,\}|\\,|\\!|[\u00a0\u2009\u202f])\d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(
    rf"""(?P<sign>[-+]\s?)?(?:[$€£¥]\s*|\\\$\s*)?(?:
      \\[dt]?frac\s*\{{\s*(?P<over>-?{_DECIMAL})\s*\}}\s*\{{\s*(?P<under>-?{_DECIMAL})\s*\}}
    | (?P<whole>\d+)[ ](?P<numerator>\d+)\s*/\s*(?P<denominator>\d+)
    | (?P<top>{_DECIMAL})\s*/\s*(?P<bottom>{_DECIMAL})
    | (?P<plain>{_DECIMAL})(?:(?:[eE]|\s*(?:\\times|\\cdot|×|\*)\s*10\s*\^)\s*\{{?(?P<power>[-+]?\d+)\}}?)?
    )(?P<percent>\s*(?:\\?%|percent\b|per\ cent\b))?""",
    re.VERBOSE,
)
_LARGEST_POWER = 400
"""Powers of ten beyond this are no answers, and would cost memory."""


class Number(NamedTuple):
    """A number as it is written.

    Attributes:
        value: its exact value, 50 for ``50%``.
        percent: whether a percent sign follows.
    """

    value: Fraction
    percent: bool = False

    def equals(self, other: Number, *, tolerance: float = 0.0) -> bool:
        """Whether both are the same number within a relative tolerance.

        Where only one is a percentage, either reading of it counts: ``50%`` is 50 and 0.5.

        Example:
            >>> Number(Fraction(50), percent=True).equals(Number(Fraction(1, 2)))
            True
        """
        values = [(self.value, other.value)]
        if self.percent != other.percent:
            ours, theirs = (self.value / 100 if self.percent else self.value), other.value
            values.append((ours, theirs / 100 if other.percent else theirs))
        return any(abs(a - b) <= Fraction(tolerance) * abs(b) for a, b in values)


def final_answer(text: str) -> str:
    r"""Returns where a text says its answer: what its last box holds, what follows its last mark, or the whole text.

    Marks are ``####``, ``<answer>``, ``answer is``, ``answer:`` and ``answer =``.

    Example:
        >>> final_answer(r"so it is \boxed{\frac{1}{2}}."), final_answer("3 + 4 = 7\n#### 7")
        ('\\frac{1}{2}', '7')
    """
    boxes = [_braced(text, found.end()) for found in _BOX.finditer(text)]
    closed = [box for box in boxes if box is not None]
    if closed:
        return closed[-1].strip()
    marks = list(_MARKS.finditer(text))
    if not marks:
        return text.strip()
    rest = text[marks[-1].end() :].split("</answer>")[0].strip()
    return rest.splitlines()[0].strip() if rest else ""


def _braced(text: str, start: int) -> str | None:
    """Returns what stands from ``start`` to the brace that closes; None where none does."""
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if not depth:
            return text[start:position]
    return None


def numbers_in(text: str) -> list[Number]:
    r"""Returns all numbers of a text in order: integers, decimals, thousands, fractions, mixed numbers, percentages.

    Example:
        >>> [str(n.value) for n in numbers_in(r"$1,234.50, 2 1/2, \frac{3}{4}, -0.25, 3e2")]
        ['2469/2', '5/2', '3/4', '-1/4', '300']
    """
    # A typographic minus, and the braces and dollar signs that typesetting puts around numbers.
    plain = text.replace("\N{MINUS SIGN}", "-").replace(r"\left", "").strip()
    found = (_number(match, plain) for match in _NUMBER.finditer(plain))
    return [number for number in found if number is not None]


def last_number(text: str) -> Number | None:
    """Returns the last number of a text; None where there is none.

    Example:
        >>> last_number("12 apples and 30 pears are 42 fruits").value
        Fraction(42, 1)
    """
    found = numbers_in(text)
    return found[-1] if found else None


def only_number(text: str) -> Number | None:
    """Returns the number that a short text is, with a unit at most; None where it says more.

    Example:
        >>> only_number("$190 sec").value, only_number("1/2 + 1/3")
        (Fraction(190, 1), None)
    """
    found = numbers_in(text)
    if len(found) != 1 or re.search(r"[\^_=<>*]|\\(?!d?frac|text|mathrm|%|\$|circ|,|!|times)|[a-zA-Z]\s*\(", text):
        return None
    return found[0]


def _number(match: re.Match[str], text: str) -> Number | None:
    parts = match.groupdict()
    value = _value(parts)
    if value is None:
        return None
    negative = (parts["sign"] or "").startswith("-") and not _joins(parts["sign"] or "", text[: match.start()])
    return Number(-value if negative else value, parts["percent"] is not None)


def _joins(hyphen: str, before: str) -> bool:
    """Whether a hyphen joins or subtracts: right after a letter or digit, or between two of them with spaces around."""
    left = (before.rstrip() if hyphen != "-" else before)[-1:]
    return left.isalnum() or (left != "" and left in ")}")


def _value(parts: dict[str, str | None]) -> Fraction | None:
    for above, below in (("over", "under"), ("top", "bottom"), ("numerator", "denominator")):
        if parts[above] is not None:
            divisor = _plain(str(parts[below]))
            if not divisor:
                return None
            return _plain(str(parts[above])) / divisor + _plain(parts["whole"] or "0")
    power = int(parts["power"] or 0)
    if abs(power) > _LARGEST_POWER:
        return None
    return _plain(str(parts["plain"])) * Fraction(10) ** power


def _plain(digits: str) -> Fraction:
    return Fraction(re.sub(r"[^\d.\-]", "", digits))
