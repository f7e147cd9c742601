"""The task of a stage: what it reads, and how it is made."""

from __future__ import annotations

import inspect
from typing import Any

from limbeck.errors import RecipeError, suggest
from limbeck.recipes.schema import StageSpec
from limbeck.recipes.stage_data import StageData
from limbeck.tasks.base import Task, tasks


def reads_text(spec: StageSpec) -> bool:
    """Whether a stage's task reads text and not images.

    Raises:
        RecipeError: no task has that name.
    """
    if spec.task not in tasks:
        raise RecipeError(f"unknown task '{spec.task}'. {suggest(spec.task, tasks)}")
    return tasks[spec.task].about.get("data") == "text"


def make_task(name: str, data: StageData) -> Task:
    """Returns a task, which may need to know how many tokens there are."""
    make: Any = tasks[name].part
    facts = {"vocabulary": data.train.info.num_classes}
    takes = inspect.signature(make).parameters
    return make(**{key: value for key, value in facts.items() if key in takes})
