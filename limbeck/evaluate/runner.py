"""Runs the evaluations that a recipe names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from limbeck.data.source import Source
from limbeck.errors import DataError
from limbeck.evaluate.base import Results, Subject, evaluations
from limbeck.evaluate.measure import Measure
from limbeck.evaluate.plan import Wanted, planned
from limbeck.evaluate.predictions import Model, Predictions
from limbeck.tasks.base import Task, tasks

DEFAULT = ("accuracy", "agreement", "calibration", "cost", "latency")


def evaluate(
    student: nn.Module,
    *,
    loader: Any,
    task: Task,
    teacher: Model | None = None,
    names: Sequence[Wanted] = DEFAULT,
    device: torch.device | str = "cpu",
    predictions: Predictions | None = None,
    train: Source | None = None,
    history: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Results]:
    """Judges a student on test data.

    Every model runs over the data once, whatever the number of evaluations, in eval mode and without gradients; the
    training flags of all modules are as before afterwards.

    Args:
        student: the model to judge, on ``device``.
        loader: the test data: batches, or an object whose ``epoch(0)`` gives them.
        task: how a model is run on a batch.
        teacher: a model or a provider to compare with; None where there is none.
        names: evaluations to run, by name or as mappings of ``name`` and options; ``evaluations`` has them all.
        device: where the models are.
        predictions: what :func:`limbeck.evaluate.predict` gave for these models, where it has run already.
        train: the samples that the student was trained on; only some evaluations ask for them.
        history: records of the epochs of its training, oldest first; only some evaluations ask for them.

    Returns:
        JSON-able results by evaluation; what they say of the teacher stands under ``teacher`` in each.

    Raises:
        UnknownNameError: no evaluation has a name that was asked for; nothing has been run then.
        RecipeError: an option is unknown or out of its range; likewise.
        DataError: the test data is empty or has no labels, or an evaluation is for another task.
    """
    chosen = planned(names)
    _check_task(chosen, task)
    subject = Subject(student, loader, task, teacher, device, predictions, train, history)
    return {name: evaluations[name].part(subject, **options) for name, options in chosen.items()}


def _check_task(names: Iterable[str], task: Task) -> None:
    """Refuses evaluations of language models for others."""
    for name in names:
        wanted = evaluations[name].about.get("task")
        if wanted is not None and not isinstance(task, tasks[wanted].part):
            raise DataError(f"the evaluation '{name}' is for the task {wanted}, but this is {type(task).__name__}")


def of_teacher(results: Mapping[str, Any]) -> dict[str, Results]:
    """Returns the results of the teacher as though it had been the student; empty where there was no teacher."""
    return {
        name: dict(part["teacher"]) for name, part in results.items() if isinstance(part, Mapping) and "teacher" in part
    }


def measures(names: Iterable[str] | None = None) -> list[Measure]:
    """Returns the measures of evaluations in the order of ``names``.

    Args:
        names: names of evaluations, or results, whose entries that are no evaluation (``method``, ``seed``) are
        passed over;
            the default evaluations when None.
    """
    known = set(evaluations)
    chosen = [name for name in (DEFAULT if names is None else names) if name in known]
    return [measure for name in chosen for measure in evaluations[name].about.get("measures", ())]
