"""What was asked of whom: labels bought from an oracle and questions to a teacher, each in a book of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from limbeck.errors import DataError


@dataclass
class Ledger:
    """Samples by round, of one kind of question.

    Attributes:
        rounds: numbers of the samples that were asked about in each round, from round 0 on.

    Example:
        >>> book = Ledger()
        >>> book.enter([4, 7])
        >>> book.enter([1])
        >>> book.total, book.samples
        (3, (4, 7, 1))
    """

    rounds: list[tuple[int, ...]] = field(default_factory=list)

    def enter(self, samples: Sequence[int]) -> None:
        """Notes the questions of the next round.

        Raises:
            DataError: a sample was asked about before, or twice.
        """
        new = tuple(int(sample) for sample in samples)
        again = sorted(set(new) & set(self.samples))
        if again or len(set(new)) < len(new):
            raise DataError(f"samples {again[:5] or list(new[:5])} would be asked about twice")
        self.rounds.append(new)

    @property
    def samples(self) -> tuple[int, ...]:
        """All samples, in the order they were asked about."""
        return tuple(sample for part in self.rounds for sample in part)

    @property
    def total(self) -> int:
        """Number of questions."""
        return sum(len(part) for part in self.rounds)

    def up_to(self, number: int) -> tuple[int, ...]:
        """Returns the samples of rounds 0 to ``number``."""
        return tuple(sample for part in self.rounds[: number + 1] for sample in part)

    def plain(self) -> dict[str, Any]:
        """Returns plain data for a file."""
        return {"total": self.total, "rounds": [list(part) for part in self.rounds]}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Ledger:
        """Takes back what :meth:`plain` gave."""
        return cls([tuple(int(sample) for sample in part) for part in data["rounds"]])
