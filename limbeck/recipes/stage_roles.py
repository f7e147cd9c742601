"""The roles of a stage on images: models, caches, ensembles, averages, students of earlier stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck import streams
from limbeck.engine.roles import Role
from limbeck.errors import RecipeError, suggest
from limbeck.recipes.schema import Recipe, RoleSpec, StageSpec
from limbeck.recipes.stage_data import StageData
from limbeck.students.loading import build_model, load_weights
from limbeck.tasks.base import Task
from limbeck.teachers.live import FrozenTeacher


@dataclass
class RoleBuilder:
    """Makes roles from their specs."""

    recipe: Recipe
    stage: StageSpec
    data: StageData
    task: Task
    trust: bool
    earlier: Callable[[str, nn.Module], None] | None

    def build(self, name: str, spec: RoleSpec) -> Role:
        """Returns a role: a model, or what gives its signals."""
        if spec.from_role is not None or spec.remote is not None or spec.router is not None:
            raise RecipeError(
                f"roles.{name}: 'from', 'remote' and 'router' are for language models, not for {self.stage.task}"
            )
        if spec.cache is not None:
            return Role(provider=self._cache(spec.cache))
        if spec.ensemble is not None:
            return Role(provider=self._ensemble(name, spec))
        if spec.ema is not None:
            return Role(ema_of=spec.ema.of, decay=spec.ema.decay, taps=spec.taps, precision=spec.precision)
        if spec.adapter_off is not None:
            return Role(without_adapters=spec.adapter_off, precision=spec.precision)
        model = self._from_stage(name, spec) if spec.from_stage is not None else self._model(name, spec)
        return Role(model=model, taps=spec.taps, precision=spec.precision, differentiable=spec.differentiable)

    def _model(self, name: str, spec: RoleSpec) -> nn.Module:
        info = self.data.train.info
        # One stream a role: the student starts from the same weights whatever the method, the teacher and the other
        # roles are.
        torch.manual_seed(streams.torch_seed(self.recipe.seed, f"init/{name}"))
        assert spec.model is not None
        shown = {"mean": info.mean, "std": info.std} if self.stage.data.normalize else {}
        model = build_model(
            spec.model,
            num_classes=info.num_classes,
            input_shape=self.data.loader.input_shape,
            trust=self.trust,
            **shown,
        )
        if spec.weights is not None:
            load_weights(model, spec.weights, model_name=_model_name(spec.model), data_name=info.part_of or info.name)
        return model

    def _from_stage(self, name: str, spec: RoleSpec) -> nn.Module:
        stages = {s.name: s for s in self.recipe.stages}
        if spec.from_stage not in stages or self.earlier is None:
            raise RecipeError(
                f"roles.{name}.from_stage names no earlier stage '{spec.from_stage}'. "
                f"{suggest(str(spec.from_stage), stages)}"
            )
        origin = stages[spec.from_stage].roles.get("student")
        if origin is None or (origin.model is None and origin.from_role is None):
            raise RecipeError(f"the stage '{spec.from_stage}' has no student model to take")
        model = self._model("student", origin) if origin.model is not None else self.build("student", origin).model
        assert model is not None
        self.earlier(spec.from_stage, model)
        return model

    def _cache(self, folder: str) -> Any:
        from limbeck.teachers.cache import CachedTeacher

        return CachedTeacher(Path(folder), self.data.loader)

    def _ensemble(self, name: str, spec: RoleSpec) -> Any:
        from limbeck.teachers.ensemble import Ensemble

        members = [self._member(name, f"{name}{number}", m) for number, m in enumerate(spec.ensemble or ())]
        return Ensemble(members, weights=spec.member_weights, average=spec.average)  # type: ignore[arg-type]

    def _member(self, role: str, own: str, spec: RoleSpec) -> Any:
        """Returns the provider of one of several teachers; ``own`` names the random numbers of its first weights."""
        made = self.build(own, spec)
        if made.provider is not None:
            return made.provider
        precision = made.precision or self.stage.train.precision
        autocast = torch.bfloat16 if precision == "bf16" else None
        return FrozenTeacher(role, required_model(made.model), self.task, autocast=autocast)


def required_model(model: nn.Module | None) -> nn.Module:
    """Returns the model of a role that must have one of its own.

    Raises:
        RecipeError: it has none.
    """
    if model is None:
        raise RecipeError("a moving average cannot be cached or be a member of an ensemble; name a model or a cache")
    return model


def _model_name(spec: str | dict[str, Any]) -> str:
    return spec if isinstance(spec, str) else str(spec.get("name", ""))
