"""The contract of an evaluation, and what it may look at.

An evaluation is a function of a :class:`Subject` and of keyword-only options, registered with the measures that tables
show. A recipe gives options as ``{name: ood, data: digits}``, the command as ``ood.data=digits``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from limbeck.data.augment.base import Entry
from limbeck.data.loader import Loader
from limbeck.data.source import Source
from limbeck.errors import DataError
from limbeck.evaluate.predictions import Model, Predictions, batches_of, predict
from limbeck.registry import Registry
from limbeck.signals import Batch
from limbeck.tasks.base import Task

Results = dict[str, Any]
"""JSON-able numbers by name. What an evaluation says of the teacher stands under ``teacher``, with the same names."""


class Evaluation(Protocol):
    """Judges a subject. Registered with ``measures``, the numbers that tables show."""

    def __call__(self, subject: Subject, *arguments: Any, **options: Any) -> Results:
        """Returns JSON-able numbers by name."""


evaluations: Registry[Evaluation] = Registry("evaluation", "limbeck.evaluate")


@dataclass
class Subject:
    """The student under evaluation and what it is judged on.

    Attributes:
        student: the student.
        loader: the test data: batches, or an object whose ``epoch(0)`` gives them.
        task: how a model is run.
        teacher: a model or a provider; None where there is no teacher.
        device: where models run.
        known: predictions that exist already, so that no model is run for them.
        train: the samples that the student was trained on, for what compares them with others.
        history: records of the epochs of its training, oldest first, for what looks at their course.
    """

    student: nn.Module
    loader: Any
    task: Task
    teacher: Model | None = None
    device: torch.device | str = "cpu"
    known: Predictions | None = field(default=None, repr=False)
    train: Source | None = field(default=None, repr=False)
    history: Sequence[Mapping[str, Any]] = field(default=(), repr=False)

    @cached_property
    def predictions(self) -> Predictions:
        """Logits of student and teacher on the whole test data, computed once.

        Raises:
            DataError: the data is text, of which no model can keep all logits.
        """
        if hasattr(getattr(self.loader, "source", None), "sequences"):
            raise DataError(
                "this evaluation is for classification; of language models limbeck judges token_loss, token_agreement "
                "and others (limbeck.evaluate.evaluations)"
            )
        return self.known or predict(self.roles, self.loader, self.task, device=self.device)

    @property
    def roles(self) -> dict[str, Model]:
        """Student and, where there is one, teacher."""
        return {"student": self.student} | ({"teacher": self.teacher} if self.teacher is not None else {})

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The roles that are live models: those whose cost can be told."""
        return {role: model for role, model in self.roles.items() if isinstance(model, nn.Module)}

    @property
    def labels(self) -> Tensor:
        """``[N]`` labels of the test data."""
        return self.predictions.labels

    def logits(self, role: str) -> Tensor | None:
        """Returns a role's ``[N, C]`` logits; None where the role is absent or has other classes than the student."""
        found = self.predictions.logits
        if role not in found or found[role].shape != found["student"].shape:
            return None
        return found[role]

    def absence(self) -> str:
        """Why there are no teacher logits to compare with, in words."""
        if "teacher" not in self.predictions.logits:
            return "no teacher"
        theirs, ours = (self.predictions.logits[r].shape[1] for r in ("teacher", "student"))
        return f"the teacher has {theirs} classes and the student {ours}, so their predictions cannot be compared"

    @property
    def source(self) -> Source:
        """The test data as it was before it became inputs.

        Raises:
            DataError: the loader is one of somebody's own, which does not tell.
        """
        return self._own_loader().source

    def _own_loader(self) -> Loader:
        if not isinstance(self.loader, Loader):
            raise DataError("this needs the samples before normalisation, which only limbeck's own loader gives")
        return self.loader

    def shown(self, source: Source, augment: Sequence[Entry] = ()) -> Loader:
        """Returns batches of another source, in order, shown as the test data are: scaled and normalised alike.

        Raises:
            DataError: the test data's loader is one of somebody's own, which does not tell how it shows them.
        """
        own = self._own_loader()
        return Loader(source, augment, batch_size=own.batch_size, shuffle=False, normalize=bool(own.pixel_scale.std))

    def predict(self, loader: Loader) -> Predictions:
        """Returns what the live models say about other data; a cached teacher knows nothing of it and is left out."""
        return predict(self.modules, loader, self.task, device=self.device)

    def example(self, size: int) -> Batch:
        """Returns a batch of ``size`` test samples, repeating them where the first batch of the data has fewer.

        Raises:
            DataError: there is no test data.
        """
        first = next(iter(batches_of(self.loader)), None)
        if first is None:
            raise DataError("the test data is empty; there is nothing to evaluate on")
        rows = torch.arange(size) % first.size
        return first.map(lambda t: t[rows.to(t.device)]).to(self.device)


def judged(subject: Subject, judge: Callable[[Tensor, Tensor], Results]) -> Results:
    """Applies ``judge(logits, labels)`` to the student, and to the teacher under ``teacher``."""
    student = subject.logits("student")
    assert student is not None
    results = judge(student, subject.labels)
    teacher = subject.logits("teacher")
    return results if teacher is None else {**results, "teacher": judge(teacher, subject.labels)}


def numbers(values: Iterable[float]) -> list[float | None]:
    """Returns JSON-able numbers: NaN becomes null."""
    return [None if v != v else float(v) for v in values]
