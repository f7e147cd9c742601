"""Tasks of lm-evaluation-harness on student and teacher."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn

from limbeck.data.text import Tokenizer
from limbeck.errors import DataError, MissingExtraError, RecipeError, UnknownNameError, suggest
from limbeck.evaluate.base import Results, Subject, evaluations
from limbeck.evaluate.continuations import text_of
from limbeck.evaluate.language import TASK
from limbeck.evaluate.measure import Measure
from limbeck.hyperparameters import Count, WholeNumber
from limbeck.modes import evaluation_mode

_PREFERRED = ("acc_norm", "acc", "exact_match", "f1")


@evaluations.register(
    "harness",
    title="Tasks of lm-evaluation-harness",
    task=TASK,
    measures=(
        Measure(
            "harness.score", "Harness", "fraction", "higher", "Mean score over the tasks of lm-evaluation-harness."
        ),
    ),
)
def harness(
    subject: Subject,
    *,
    tasks: tuple[str, ...] = (),
    folder: str | None = None,
    samples: Count | None = None,
    shots: WholeNumber | None = None,
    batch_size: Count = 8,
) -> Results:
    """Returns ``score``, the mean over the tasks, and the metrics of each under ``tasks``; of the teacher likewise.

    The score of a task is its normalised accuracy, or else its accuracy, exact match or F1. Most tasks that come with
    the harness take their questions from the Hugging Face hub; a ``folder`` of one's own task files works without it.

    Args:
        subject: what is judged; models of transformers only.
        tasks: names of tasks or groups of them.
        folder: folder of further task files (YAML), as the harness describes them.
        samples: at most so many questions of each task; all when absent.
        shots: examples before each question; what a task says when absent.
        batch_size: questions at once.

    Raises:
        MissingExtraError: lm-eval is not installed.
        RecipeError: no task is named.
        UnknownNameError: the harness knows no task of that name.
        DataError: the student is no model of transformers, or a task's questions cannot be had.
    """
    if not tasks:
        raise RecipeError("name the tasks of the harness, for example harness.tasks=[arc_easy]")
    if folder is not None and not Path(folder).is_dir():
        raise RecipeError(f"harness.folder = '{folder}' is no folder of task files")
    tokenizer, context = text_of(subject).tokenizer, _context(subject.student, text_of(subject).context)
    options = {"limit": samples, "num_fewshot": shots, "bootstrap_iters": 0, "log_samples": False}
    with _quiet():
        manager = _manager(tasks, folder)
        found = {
            role: _run(model, tokenizer, tasks, manager, context, batch_size, subject, options)
            for role, model in subject.modules.items()
            if role == "student" or hasattr(model, "generate")
        }
    return {**found.pop("student"), **found}


def _context(model: nn.Module, otherwise: int) -> int:
    return int(getattr(getattr(model, "config", None), "max_position_embeddings", otherwise))


def _manager(tasks: Sequence[str], folder: str | None) -> Any:
    """Returns what finds tasks; the harness's own thousands are only listed where the folder does not have them all."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise MissingExtraError("lm-eval", "harness", "tasks of lm-evaluation-harness") from None
    if folder is not None:
        own = TaskManager(include_path=folder, include_defaults=False)
        if set(tasks) <= set(own.all_tasks):
            return own
    manager = TaskManager(include_path=folder)
    for name in tasks:
        if name not in manager.all_tasks:
            raise UnknownNameError(f"the harness knows no task '{name}'. {suggest(name, manager.all_tasks)}")
    return manager


def _run(
    model: nn.Module,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    manager: Any,
    context: int,
    batch_size: int,
    subject: Subject,
    options: Mapping[str, Any],
) -> Results:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    inner = getattr(model, "_orig_mod", model)
    if not hasattr(inner, "generate") or not hasattr(inner, "config"):
        raise DataError(f"the harness runs models of transformers, but this is a {type(inner).__name__}")
    with evaluation_mode(model):
        wrapped = HFLM(
            pretrained=inner, tokenizer=tokenizer.backend, batch_size=batch_size, max_length=context,
            device=str(subject.device),
        )  # fmt: skip
        try:
            said = lm_eval.simple_evaluate(model=wrapped, tasks=list(tasks), task_manager=manager, **options)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            reason = str(error).splitlines()[0] if str(error) else repr(error)
            raise DataError(
                f"the harness cannot run {', '.join(tasks)}: {reason}. Tasks whose questions lie on the hub need it, "
                "or its cache; harness.folder takes task files of your own"
            ) from error
    return _gathered(said)


def _gathered(said: Mapping[str, Any]) -> Results:
    """Returns each task's numbers under plain names: ``acc,none`` of the harness is ``acc``."""
    tasks = {
        task: {
            metric.partition(",")[0]: float(value)
            for metric, value in numbers.items()
            if "," in metric and isinstance(value, int | float)
        }
        for task, numbers in said["results"].items()
    }
    scores = [next(numbers[m] for m in _PREFERRED if m in numbers) for numbers in tasks.values() if _scored(numbers)]
    return {
        "tasks": tasks,
        "questions": {task: numbers["effective"] for task, numbers in said.get("n-samples", {}).items()},
        **({"score": fmean(scores)} if scores else {}),
    }


def _scored(numbers: Mapping[str, float]) -> bool:
    return any(metric in numbers for metric in _PREFERRED)


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness warns of every model that it has not loaded itself."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
