"""The contract of a reward: a completion in, a number out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from limbeck.errors import DataError, RecipeError, suggest
from limbeck.hyperparameters import validated
from limbeck.registry import Registry


@dataclass(frozen=True)
class Judged:
    """One completion and what is known of the sample that it belongs to.

    Attributes:
        prompt: what the model was given.
        completion: what it wrote, without special tokens.
        record: the sample's record: every column of its line of data, such as ``answer``.
        index: number of the sample in the training data.
        tokens: number of tokens of the completion, the one that ends it included.
        finished: whether the model ended it, and was not cut off.
    """

    prompt: str
    completion: str
    record: Mapping[str, Any] = field(default_factory=dict)
    index: int = 0
    tokens: int = 0
    finished: bool = True


class Reward:
    """Base of every reward: a callable that gives a :class:`Judged` completion a finite number.

    Rule-based rewards read text; none runs code that a model wrote.

    Attributes:
        columns: columns of the sample's record that it reads.
        name: what errors call it.
    """

    columns: tuple[str, ...] = ()
    name: str = "reward"

    def __call__(self, sample: Judged) -> float:
        """Returns what the completion is worth."""
        raise TypeError(f"{type(self).__name__} does not define __call__(sample)")

    def check(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Refuses data whose records lack a column that this reward reads, before anything is sampled.

        Raises:
            DataError: names the first such sample, the column and the columns that there are.
        """
        for number, record in enumerate(records):
            for column in self.columns:
                if column not in record:
                    raise DataError(
                        f"the reward '{self.name}' reads the column '{column}', which sample {number} does not have; "
                        f"it has {sorted(record) or 'none'}. {suggest(column, record)} Name the column in the "
                        "reward's options, or rename it with data.options.columns"
                    )


rewards: Registry[type[Reward]] = Registry("reward", "limbeck.rewards")

R = TypeVar("R", bound=type[Reward])


def reward(name: str, *, title: str, **about: Any) -> Callable[[R], R]:
    """Returns a decorator that registers a :class:`Reward` and checks its options at construction."""
    enter = rewards.register(name, title=title, **about)

    def decorate(cls: R) -> R:
        cls.__init__ = validated(f"reward '{name}'", cls.__init__)  # type: ignore[method-assign]
        cls.name = name
        enter(cls)
        return cls

    return decorate


class Callback(Reward):
    """A function of the prompt, the completion and the sample's record.

    Args:
        function: ``(prompt, completion, record) -> number``.
        name: what errors call it.
    """

    _taken: ClassVar[str] = "a function (prompt, completion, record) -> number"

    def __init__(self, function: Callable[[str, str, Mapping[str, Any]], float], name: str | None = None) -> None:
        if not callable(function):
            raise RecipeError(f"a reward is a name, a mapping with a name, a list of those, or {self._taken}")
        self.function = function
        self.name = name or str(getattr(function, "__name__", type(function).__name__))

    def __call__(self, sample: Judged) -> float:
        """Returns what the function gives."""
        return self.function(sample.prompt, sample.completion, sample.record)
