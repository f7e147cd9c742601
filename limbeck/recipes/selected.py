"""What a stage trains on, where a recipe or a method has a selector choose it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.data.loader import Loader
from limbeck.data.selected import SelectedLoader
from limbeck.engine import distributed
from limbeck.engine.roles import Role
from limbeck.engine.run_folder import RunFolder
from limbeck.errors import NeedsError, RecipeError
from limbeck.methods.base import Method
from limbeck.recipes.schema import StageSpec
from limbeck.recipes.stage_data import StageData
from limbeck.selection.base import build_selector, selectors
from limbeck.tasks.base import Task
from limbeck.teachers.live import FrozenTeacher

_FOLDER = "document_losses"
_WANTED = frozenset({"hidden|logits"})


def selected_loader(
    spec: StageSpec,
    method: Method,
    data: StageData,
    task: Task,
    roles: Mapping[str, Role],
    seed: int,
    folder: RunFolder | None,
) -> Any:
    """Returns the training batches: of all the data, or of what the selector of the recipe or the method chooses.

    Args:
        spec: the stage; its ``selection`` comes before the method's.
        method: the method.
        data: the data.
        task: how models are run.
        roles: where signals come from.
        seed: seed of the order.
        folder: the run folder; None for a stage that writes nothing.

    Raises:
        RecipeError: the selector chooses something that this data has not.
        NeedsError: a role that it asks is missing.
    """
    entry = method.selection if spec.selection is None else spec.selection
    if entry is None:
        return data.loader
    if not hasattr(data.held, "sequences"):
        plain = Loader(data.train, (), batch_size=256, shuffle=False, normalize=spec.data.normalize)
        rule = build_selector(entry, counted=False)
        return SelectedLoader(data.loader, plain, rule, task, epochs=spec.train.epochs, seed=seed)
    name = entry if isinstance(entry, str) else str(entry.get("name"))
    unit = selectors[name].part.unit
    if unit == "documents":
        return _refined(entry, spec, data, task, roles, seed, folder)
    if unit == "domains":
        return _mixed(entry, spec, data, task, seed, folder)
    fitting = [e.name for e in selectors.entries() if e.part.unit in ("documents", "domains")]
    raise RecipeError(f"selection: '{name}' chooses {unit}; of text, rows or domains are chosen: {', '.join(fitting)}")


def _refined(
    entry: Any,
    spec: StageSpec,
    data: Any,
    task: Task,
    roles: Mapping[str, Role],
    seed: int,
    folder: RunFolder | None,
) -> Any:
    from limbeck.data.text.refined import RefinedLoader
    from limbeck.selection.documents import DifferenceSampling

    selector = build_selector(entry, "documents", counted=False)
    assert isinstance(selector, DifferenceSampling)
    scorers = {role: _scorer(role, roles, spec, task) for role in selector.roles}
    place = Path(folder.path) / _FOLDER if folder is not None else None
    return RefinedLoader(
        data.loader, selector, scorers, seed=seed, folder=place,
        gather=distributed.gather_objects, on_first=distributed.on_first,
    )  # fmt: skip


def _scorer(name: str, roles: Mapping[str, Role], spec: StageSpec, task: Task) -> Any:
    """Returns what gives a role's signals, of a frozen model or of what stands for one."""
    role = roles.get(name)
    if role is None or (role.model is None and role.provider is None):
        raise NeedsError(
            f"documents are chosen by what a teacher and a small reference make of them, but no role is '{name}'; "
            "give `roles: {teacher: ..., reference: ...}`, the reference trained by an earlier stage for example"
        )
    if role.provider is not None:
        return role.provider
    assert isinstance(role.model, nn.Module)
    bf16 = (role.precision or spec.train.precision) == "bf16"
    return FrozenTeacher(name, role.model, task, wanted=_WANTED, autocast=torch.bfloat16 if bf16 else None)


def _mixed(entry: Any, spec: StageSpec, data: Any, task: Task, seed: int, folder: RunFolder | None) -> Any:
    from limbeck.data.text.domain_mix import DomainLoader
    from limbeck.selection.domains import DomainDiscrepancy

    selector = build_selector(entry, "domains", counted=False)
    assert isinstance(selector, DomainDiscrepancy)
    if data.holdout_loader is None:
        raise NeedsError(
            "domains are weighted by what student and teacher make of text that is held out; keep some out, "
            "`data: {holdout: 0.05}`"
        )

    def log(history: list[dict[str, Any]]) -> None:
        distributed.on_first(
            lambda: folder.write_json(f"domains_{spec.name}.json", history) if folder is not None else None
        )

    return DomainLoader(
        data.loader, data.holdout_loader, selector, task, seed=seed, gather=distributed.gather_objects, log=log
    )
