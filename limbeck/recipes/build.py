"""From a recipe to the parts of a stage: the one place where names become objects."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from limbeck import streams
from limbeck.data.load import Split, load_data
from limbeck.data.loader import Loader
from limbeck.data.partly_labelled import PartlyLabelled, keep_labels, labelled_only
from limbeck.data.source import Source
from limbeck.data.subsets import hold_out, subset
from limbeck.engine import distributed
from limbeck.engine.preflight import tap_groups
from limbeck.engine.reporter import Reporter
from limbeck.engine.roles import Role, prefers_channels_last
from limbeck.engine.run_folder import RunFolder
from limbeck.engine.stage import Stage
from limbeck.errors import RecipeError, suggest
from limbeck.evaluate.predictions import predict
from limbeck.functional.metrics import accuracy
from limbeck.recipes.method_section import make_method
from limbeck.recipes.schema import DataSpec, Recipe, RoleSpec, StageSpec
from limbeck.recipes.selected import selected_loader
from limbeck.students.loading import build_model, load_weights
from limbeck.tasks.base import Task, tasks
from limbeck.teachers.live import FrozenTeacher
from limbeck.transforms import build_transform


@dataclass(frozen=True)
class StageData:
    """The data of a stage.

    Attributes:
        train: training samples.
        held: samples on which the student is judged: the test split, or the validation part where the recipe holds one
            out.
        split: what ``held`` is, ``test`` or ``validation``.
        loader: training batches.
        held_loader: unaugmented batches of ``held``.
        holdout_loader: unaugmented batches of what the recipe keeps out of training; None where it keeps nothing.
        tokenizers: of roles that read text in other tokens than the data's.
    """

    train: Source
    held: Source
    split: str
    loader: Loader
    held_loader: Loader
    holdout_loader: Loader | None = None
    tokenizers: Mapping[str, Any] = field(default_factory=dict)


def held_split(spec: DataSpec) -> Split:
    """Returns what the student is judged on: the validation part where the recipe holds one out, else the test data."""
    return "validation" if spec.validation else "test"


def load_split(spec: DataSpec, split: Split) -> Source:
    """Returns one split of a recipe's data.

    Raises:
        LimbeckError: the data is unknown, missing or damaged.
    """
    given = {"path": spec.path, "limit": spec.limit, "validation": spec.validation or None}
    return load_data(
        {"name": spec.name, **spec.options, **{k: v for k, v in given.items() if v is not None}}, split=split
    )


def build_data(
    spec: DataSpec,
    stage: StageSpec,
    seed: int,
    *,
    view_seed: int | None = None,
    view_epochs: int | None = None,
    view_names: Sequence[str] = (),
    shuffle: bool = True,
) -> StageData:
    """Returns the data of a stage.

    Args:
        spec: which data.
        stage: its batch size, workers and the views that its method needs.
        seed: seed of the order of samples.
        view_seed: seed of the augmentation, that of a cache for example; ``seed`` when None.
        view_epochs: number of epochs after which augmented views repeat, that of a cache; never when None.
        view_names: further views that the method needs; one that the recipe does not define is made by RandAugment.
        shuffle: whether training samples come in random order.
    """
    split = held_split(spec)
    train, held = load_split(spec, "train"), load_split(spec, split)
    train_settings = stage.train
    usual = train.info.augment if spec.augment is None else spec.augment
    # The literature's second view of a sample is the usual augmentation followed by RandAugment.
    views = {**{name: (*usual, {"name": "randaugment"}) for name in view_names}, **spec.views}
    common: dict[str, Any] = {"normalize": spec.normalize, "workers": train_settings.workers}
    ranks: dict[str, Any] = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    apart = None
    check_holdout(spec)
    if spec.holdout:
        kept_out = hold_out(train, spec.holdout, "held", purpose="holdout")
        train = kept_out if spec.train_on == "holdout" else hold_out(train, spec.holdout, "rest", purpose="holdout")
        size = min(train_settings.batch_size, len(kept_out))
        apart = Loader(kept_out, (), batch_size=size, seed=seed, normalize=spec.normalize, **ranks)
    if spec.labelled is not None:
        train = keep_labels(train, spec.labelled)
    train = _asked_about(train, spec)
    if spec.unlabelled == "drop":
        train = labelled_only(train)
    loader = Loader(
        train, usual, batch_size=train_settings.batch_size, seed=seed, shuffle=shuffle,
        labelled_per_batch=spec.labelled_per_batch if shuffle else None,
        views=views, view_seed=view_seed, view_epochs=view_epochs,
        **ranks, **common,
    )  # fmt: skip
    held_loader = Loader(held, (), batch_size=max(256, train_settings.batch_size), seed=seed, shuffle=False, **common)
    return StageData(train, held, split, loader, held_loader, apart)


def check_holdout(spec: DataSpec) -> None:
    """Refuses to train on what is kept out where nothing is.

    Raises:
        RecipeError: says what is missing.
    """
    if spec.train_on == "holdout" and not spec.holdout:
        raise RecipeError("data.train_on: holdout needs a part of the data that is kept out, `data: {holdout: 0.1}`")


def _asked_about(source: Source, spec: DataSpec) -> Source:
    """Returns the samples that a recipe names by number, with the labels that it leaves them.

    Raises:
        RecipeError: there is no sample of that number.
    """
    for key in ("label_ids", "use_ids"):
        numbers = getattr(spec, key) or ()
        if max(numbers, default=0) >= len(source):
            raise RecipeError(f"data.{key} names sample {max(numbers)}, but there are {len(source)}, from 0 on")
    if spec.label_ids is not None:
        source = PartlyLabelled(source, np.asarray(spec.label_ids, dtype=np.int64))
    return source if spec.use_ids is None else subset(source, np.asarray(spec.use_ids, dtype=np.int64))


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
    cache = next((role.cache for role in spec.roles.values() if role.cache is not None), None)
    if text:
        whole = distributed.on_first(lambda: folder is not None)
        data = _language().stage_text(recipe, spec, trust=trust, earlier=earlier, whole=whole)
    else:
        data = build_data(
            spec.data, spec, recipe.seed, view_names=method.needs.views, **(_cached_views(cache) if cache else {})
        )
    task = make_task(spec.task, data)
    make_roles = _language().LanguageRoles if text else RoleBuilder
    builder = make_roles(recipe, spec, data, task, trust, earlier)
    roles = {name: builder.build(name, role) for name, role in spec.roles.items()}
    if text:
        _language().refuse_other_tokens(spec, data)
    if method.batch_coupled and len(data.train) % spec.train.batch_size == 1:
        raise RecipeError(
            f"the loss of '{spec.method_name}' compares the samples of a batch, but the last batch of "
            f"{len(data.train)} samples has one; change train.batch_size from {spec.train.batch_size}, or data.limit"
        )
    known: dict[str, Any] = {"seed": recipe.seed, "num_classes": data.train.info.num_classes, "trust": trust}
    changes = [build_transform(entry, **known) for entry in spec.transforms]
    for change in changes:
        change.pixel_scale = getattr(data.loader, "pixel_scale", change.pixel_scale)
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


def _across(data: StageData, roles: Mapping[str, Role]) -> Any:
    """Returns what writes batches in the tokens of a teacher with another tokenizer; None where there is none."""
    if not data.tokenizers:
        return None
    from limbeck.recipes.other_tokens import teacher_text

    return teacher_text(data.tokenizers, data.train, roles)


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


def build_cached_role(
    recipe: Recipe, spec: StageSpec, role: str, *, trust: bool = False
) -> tuple[FrozenTeacher | Any, Loader, list[str]]:
    """Returns a role's provider, a loader in dataset order, and which signals beside logits a cache should store.

    Raises:
        RecipeError: the recipe has no such role, or it is trained.
    """
    if role not in spec.roles:
        raise RecipeError(f"the recipe has no role '{role}' to cache. {suggest(role, spec.roles)}")
    method, _ = make_method(spec.method)
    if role in method.learners:
        raise RecipeError(
            f"the role '{role}' is trained by '{spec.method_name}', so its outputs change and cannot be cached"
        )
    data = build_data(spec.data, spec, recipe.seed, view_names=method.needs.views, shuffle=False)
    task = make_task(spec.task, data)
    made = RoleBuilder(recipe, spec, data, task, trust, None).build(role, spec.roles[role])
    if made.provider is not None:
        return made.provider, data.loader, []
    groups = tap_groups(role, _required(made.model), method.needs.groups(role), made.taps)
    chosen = spec.train.channels_last
    autocast = torch.bfloat16 if (made.precision or spec.train.precision) == "bf16" else None
    teacher = FrozenTeacher(
        role,
        _required(made.model),
        task,
        groups,
        method.needs.views,
        autocast=autocast,
        channels_last=prefers_channels_last(_required(made.model)) if chosen is None else chosen,
    )
    return teacher, data.loader, sorted(method.needs.roles.get(role, frozenset()) - {"logits"})


def accuracy_on(student: nn.Module, loader: Loader, task: Task) -> float:
    """Returns a student's top-1 accuracy."""
    found = predict({"student": student}, loader, task)
    return accuracy(found.logits["student"], found.labels).item()


def _cached_views(folder: str) -> dict[str, Any]:
    """Returns the seed and the number of views of a cache, which the loader must replay."""
    from limbeck.teachers.cache import read_header

    header = read_header(Path(folder))
    return {"view_seed": header.seed, "view_epochs": len(header.views)}


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
        if spec.from_role is not None or spec.remote is not None:
            raise RecipeError(f"roles.{name}: 'from' and 'remote' are for language models, not for {self.stage.task}")
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

        members: list[Any] = []
        for number, member in enumerate(spec.ensemble or ()):
            role = self.build(f"{name}{number}", member)
            members.append(
                role.provider if role.provider is not None else FrozenTeacher(name, _required(role.model), self.task)
            )
        return Ensemble(members, weights=spec.member_weights, average=spec.average)  # type: ignore[arg-type]


def _required(model: nn.Module | None) -> nn.Module:
    if model is None:
        raise RecipeError("a member of an ensemble is a model or a cache, not a moving average")
    return model


def _model_name(spec: str | dict[str, Any]) -> str:
    return spec if isinstance(spec, str) else str(spec.get("name", ""))
