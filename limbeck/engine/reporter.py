"""What a stage tells the outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.schedules import Progress


class Reporter:
    """Hears how a stage goes on. All methods do nothing; override what you show."""

    def note(self, message: str) -> None:
        """Something a person should know was decided."""

    def stage_started(self, name: str, progress: Progress) -> None:
        """A stage begins, or goes on from ``progress``."""

    def measured(self, rates: Mapping[str, float]) -> None:
        """How fast transforms are, such as ``tokens_per_second``; heard before each step is done."""

    def step_done(self, progress: Progress, loss: float) -> None:
        """An optimizer step was taken."""

    def epoch_done(self, record: Mapping[str, Any]) -> None:
        """An epoch was logged."""

    def stage_done(self, name: str) -> None:
        """A stage has ended."""
