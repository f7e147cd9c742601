"""Sums with exact answers, generated: a task on which a reward can be checked and a tiny model can get better."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Literal

from limbeck import streams
from limbeck.data.text.examples import Pair
from limbeck.data.text.source import RawText, Split, text_data
from limbeck.errors import RecipeError
from limbeck.hyperparameters import Count, Fraction, WholeNumber

Operation = Literal["+", "-", "*"]
_OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@text_data("arithmetic", title="sums such as `17+25=`, generated, with exact answers", licence="generated")
def arithmetic(
    *,
    split: Split,
    largest: WholeNumber = 9,
    operations: tuple[Operation, ...] = ("+",),
    worked: bool = False,
    hinted: Fraction = 0.0,
    count: Count | None = None,
    seed: WholeNumber = 0,
) -> RawText:
    """Returns sums of two whole numbers, each once, in a random order.

    A record has the columns ``prompt`` (``17+25=``), ``completion``, ``answer`` (``42``) and ``solution``, which says
    how: ``17+5=22, 22+20=42``, the units first. The completion is the answer, or the solution and ``#### 42``.

    Args:
        split: all splits come from the same sums.
        largest: largest number in a sum.
        operations: which operations: ``+``, ``-``, ``*``.
        worked: whether completions show how.
        hinted: part of the sums whose prompt begins with the solution: ``17+5=22, 22+20=42, 17+25=``. A model that has
            learnt such prompts makes use of a hint.
        count: how many sums; all there are when None.
        seed: seed of their order.

    Raises:
        RecipeError: no operation is named.
    """
    if not operations:
        raise RecipeError("data 'arithmetic': operations is empty; name at least one of + - *")
    numbers = range(largest + 1)
    sums = [(first, sign, second) for sign in dict.fromkeys(operations) for first in numbers for second in numbers]
    order = streams.permutation(seed, "arithmetic", 0, len(sums))[:count]
    told = streams.uniform(seed, "arithmetic/hint", 0, order, 1)[:, 0] < hinted
    pairs = [_pair(*sums[n], worked=worked, hint=hint) for n, hint in zip(order.tolist(), told.tolist())]
    return RawText("arithmetic", pairs, licence="generated")


def _pair(first: int, sign: str, second: int, *, worked: bool, hint: bool) -> Pair:
    solution, answer = _solution(first, sign, second), str(_OPERATIONS[sign](first, second))
    prompt = f"{solution}, {first}{sign}{second}=" if hint else f"{first}{sign}{second}="
    completion = f"{solution} #### {answer}" if worked else answer
    record = {"prompt": prompt, "completion": completion, "answer": answer, "solution": solution}
    return Pair(prompt, completion, record)


def _solution(first: int, sign: str, second: int) -> str:
    """Says how a sum is done: with the units of the second number first, and then with its tens."""
    apply = _OPERATIONS[sign]
    units, rest = second % 10, second - second % 10
    start = apply(first, units)
    steps = [f"{first}{sign}{units}={start}"]
    if rest and sign == "*":
        steps += [f"{first}*{rest}={first * rest}", f"{start}+{first * rest}={first * second}"]
    elif rest:
        steps.append(f"{start}{sign}{rest}={apply(start, rest)}")
    return ", ".join(steps)
