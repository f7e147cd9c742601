"""How a model is run on a batch and judged. One task is one file."""

from limbeck.tasks.base import Task, tasks

__all__ = ["Task", "tasks"]
