"""From a recipe to the parts of a stage: the one place where names become objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from limbeck import streams
from limbeck.engine import distributed
from limbeck.engine.reporter import Reporter
from limbeck.engine.roles import Role
from limbeck.engine.run_folder import RunFolder
from limbeck.engine.stage import Stage
from limbeck.errors import RecipeError
from limbeck.evaluate.accuracy import accuracy_on
from limbeck.recipes.method_section import make_method
from limbeck.recipes.schema import Recipe, StageSpec
from limbeck.recipes.selected import selected_loader
from limbeck.recipes.stage_data import StageData, build_data, cached_views
from limbeck.recipes.stage_roles import RoleBuilder
from limbeck.recipes.task_section import make_task, reads_text
from limbeck.tasks.base import Task
from limbeck.transforms import build_transforms


@dataclass
class BuiltStage:
    """A stage, ready to run, and what surrounds it."""

    stage: Stage
    roles: dict[str, Role]
    data: StageData
    task: Task

    @property
    def text(self) -> bool:
        """Whether the stage reads text."""
        return hasattr(self.data.held, "sequences")


def build_stage(
    recipe: Recipe,
    spec: StageSpec,
    *,
    trust: bool = False,
    folder: RunFolder | None = None,
    reporter: Reporter | None = None,
    earlier: Callable[[str, nn.Module], None] | None = None,
) -> BuiltStage:
    """Returns a stage with everything its recipe names.

    Args:
        recipe: the whole recipe.
        spec: one of its stages.
        trust: allow models that run the code they name.
        folder: the run folder; None for a stage that writes nothing.
        reporter: shows progress.
        earlier: loads into a model the weights that an earlier stage, given by name, left behind.

    Raises:
        LimbeckError: something is unknown, missing or does not fit; the message says what and how to mend it.
    """
    text = reads_text(spec)
    # The method first: a misspelt name or value should not wait for data to be read.
    torch.manual_seed(streams.torch_seed(recipe.seed, f"method/{spec.name}"))
    method, weights = make_method(spec.method)
    _refuse_misspelt_roles(spec, method.roles())
    cache = next((role.cache for role in spec.roles.values() if role.cache is not None), None)
    if text:
        whole = distributed.on_first(lambda: folder is not None)
        data = _language().stage_text(recipe, spec, trust=trust, earlier=earlier, whole=whole)
    else:
        data = build_data(
            spec.data, spec, recipe.seed, view_names=method.needs.views, **(cached_views(cache) if cache else {})
        )
    task = make_task(spec.task, data)
    make_roles = _language().LanguageRoles if text else RoleBuilder
    builder = make_roles(recipe, spec, data, task, trust, earlier)
    # What others are cut from comes first, so that a large model is loaded once.
    first = sorted(spec.roles, key=lambda name: spec.roles[name].from_role is not None)
    made = {name: builder.build(name, spec.roles[name]) for name in first}
    roles = {name: made[name] for name in spec.roles}
    if text:
        _language().refuse_other_tokens(spec, data)
    if method.batch_coupled and len(data.train) % spec.train.batch_size == 1:
        raise RecipeError(
            f"the loss of '{spec.method_name}' compares the samples of a batch, but the last batch of "
            f"{len(data.train)} samples has one; change train.batch_size from {spec.train.batch_size}, or data.limit"
        )
    known: dict[str, Any] = {"seed": recipe.seed, "num_classes": data.train.info.num_classes, "trust": trust}
    changes = build_transforms(spec.transforms, data.loader, **known)
    if cache is not None and any("inputs" in change.changes for change in changes):
        raise RecipeError(
            "a cached teacher knows the samples as the augmentation leaves them, but a transform changes them further; "
            "use a live teacher with this transform"
        )
    across = _across(data, roles) if text else None
    watched = _language().watched_teacher(recipe, roles) if text and across is None else None
    torch.manual_seed(streams.torch_seed(recipe.seed, f"train/{spec.name}"))
    stage = Stage(
        method=method,
        roles=roles,
        task=task,
        loader=selected_loader(spec, method, data, task, roles, recipe.seed, folder),
        settings=spec.train,
        weights=weights,
        # The teacher reads what the transforms have written.
        transforms=changes if across is None else [*changes, across],
        labels=data.train.labels(),
        num_classes=data.train.info.num_classes or None,
        evaluate=lambda student: quick_look(student, data, task, watched),
        folder=folder,
        name=spec.name,
        seed=recipe.seed,
        reporter=_language().watching(reporter, folder) if text and reporter is not None else reporter,
        holdout=getattr(data, "holdout_loader", None),
        token_map=None if across is None else across.token_map,
    )
    return BuiltStage(stage, roles, data, task)


def _refuse_misspelt_roles(spec: StageSpec, known: Sequence[str]) -> None:
    """Refuses a role that nothing asks for and whose name is nearly that of one that is asked for.

    Raises:
        RecipeError: names both.
    """
    for role in spec.roles:
        meant = [] if role in known else get_close_matches(role, {*known, "teacher"}, cutoff=0.8)
        if meant and role != "teacher":
            raise RecipeError(f"nothing asks for the role '{role}'. Did you mean '{meant[0]}'?")


def _across(data: StageData, roles: Mapping[str, Role]) -> Any:
    """Returns what writes batches in the tokens of a teacher with another tokenizer; None where there is none."""
    if not data.tokenizers:
        return None
    from limbeck.recipes.other_tokens import teacher_text

    return teacher_text(data.tokenizers, data.train, roles)


def quick_look(student: nn.Module, data: StageData, task: Task, teacher: nn.Module | None = None) -> dict[str, Any]:
    """Returns what is logged of a student after an epoch: its accuracy, or what it says of held-out text.

    Args:
        student: the student as it is now.
        data: what it is judged on.
        task: how it is run.
        teacher: a language model whose distance to the student is logged as well.
    """
    if hasattr(data.held, "sequences"):
        from limbeck.evaluate.teacher_hacking import epoch_numbers

        return epoch_numbers(student, data.held_loader, task, teacher)
    return {"accuracy": accuracy_on(student, data.held_loader, task)}


def _language() -> Any:
    """Returns the module for text, which needs more libraries than images do."""
    from limbeck.recipes import language

    return language
