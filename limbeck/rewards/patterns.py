"""Rewards for how a completion is written: a pattern, sections in order, a syntax, a length."""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Literal

from limbeck.errors import RecipeError
from limbeck.hyperparameters import Count
from limbeck.rewards.base import Judged, Reward, reward

_FENCE = re.compile(r"```[\w+-]*\n(.*?)```", re.DOTALL)


@reward("regex", title="whether a regular expression matches")
class Regex(Reward):
    """1 where a regular expression matches the completion, 0 elsewhere.

    Args:
        pattern: a regular expression of Python.
        whole: whether it must match the whole completion, and not only a part.
        column: compare its first group with this column of the record instead of only looking for a match.
    """

    def __init__(self, *, pattern: str, whole: bool = False, column: str | None = None) -> None:
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise RecipeError(f"reward 'regex': the pattern {pattern!r} is no regular expression: {error}") from None
        if column is not None and not self.pattern.groups:
            raise RecipeError(f"reward 'regex': the pattern {pattern!r} has no group to compare with '{column}'")
        self.whole = whole
        self.columns = () if column is None else (column,)

    def __call__(self, sample: Judged) -> float:
        """Returns 1 or 0."""
        found = (self.pattern.fullmatch if self.whole else self.pattern.search)(sample.completion)
        if found is None or not self.columns:
            return float(found is not None)
        return float(str(found[1]).strip() == str(sample.record[self.columns[0]]).strip())


@reward("format", title="whether the completion has its sections, once each and in order")
class Format(Reward):
    """1 where a completion is its tagged sections, each once, in order and not empty, with nothing around; 0 elsewhere.

    Args:
        tags: names of the sections: ``[think, answer]`` asks for ``<think>...</think><answer>...</answer>``.
    """

    def __init__(self, *, tags: tuple[str, ...] = ("think", "answer")) -> None:
        if not tags:
            raise RecipeError("reward 'format': tags is empty; name at least one section")
        self.tags = tags

    def __call__(self, sample: Judged) -> float:
        """Returns 1 or 0."""
        rest = sample.completion.strip()
        for tag in self.tags:
            opening, closing = f"<{tag}>", f"</{tag}>"
            inside, closed, after = rest.removeprefix(opening).partition(closing)
            if not rest.startswith(opening) or not closed or not inside.strip():
                return 0.0
            if any(f"<{t}>" in inside or f"</{t}>" in inside for t in self.tags):
                return 0.0
            rest = after.strip()
        return float(not rest)


@reward("syntax", title="whether a program or document can be parsed; nothing is run")
class Syntax(Reward):
    """1 where the completion parses, 0 elsewhere. It is read and never run.

    Of a completion with fenced blocks the last block counts.

    Args:
        language: ``json`` or ``python``.
        longest: characters beyond which it counts as not parsed.
    """

    def __init__(self, *, language: Literal["json", "python"], longest: Count = 20_000) -> None:
        self.language = language
        self.longest = longest

    def __call__(self, sample: Judged) -> float:
        """Returns 1 or 0."""
        blocks = _FENCE.findall(sample.completion)
        source = (blocks[-1] if blocks else sample.completion).strip()
        if not source or len(source) > self.longest:
            return 0.0
        try:
            if self.language == "json":
                json.loads(source)
            else:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # Odd escapes in what a model wrote are its own affair.
                    ast.parse(source)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return 0.0
        return 1.0


@reward("length", title="a penalty for completions that are too long")
class Length(Reward):
    r"""0 up to a length, then falling in a straight line to -1; and -1 where a completion was cut off.

    .. math:: r = -\min\big(1, \max(0, (n - \mathrm{free}) / (\mathrm{limit} - \mathrm{free}))\big)

    Args:
        free: tokens that cost nothing.
        limit: tokens that cost 1.

    Reference:
        Yu et al., DAPO, 2025, https://arxiv.org/abs/2503.14476, section 3.4
    """

    def __init__(self, *, free: int, limit: Count) -> None:
        if not 0 <= free < limit:
            raise RecipeError(f"reward 'length': free = {free} should be at least 0 and below limit = {limit}")
        self.free, self.limit = free, limit

    def __call__(self, sample: Judged) -> float:
        """Returns a number in [-1, 0]."""
        if not sample.finished:
            return -1.0
        return -min(1.0, max(0.0, (sample.tokens - self.free) / (self.limit - self.free)))
