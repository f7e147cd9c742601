"""What the benchmarks train: a ResNet-20 teaches a ResNet-8 on random images that lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from turns import Pace, PacedLoader

from limbeck.engine.roles import Role
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stage import Stage
from limbeck.methods.base import build_method, methods
from limbeck.methods.sequence.base import SequenceMethod
from limbeck.signals import Batch
from limbeck.students.loading import build_model
from limbeck.tasks.classification import Classification
from limbeck.transforms.base import build_transform, transforms

CLASSES = 100
PLAIN = {"channels_last": False}
"""Settings of a stage that computes in the memory format of a bare PyTorch loop."""
SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}

PAPERS_TRANSFORMS: dict[str, Sequence[str]] = {"mix_kd": ("partial_mixup",)}
"""Transforms that belong to a method's publication without the method's asking for what they make."""

Loop = Callable[[Pace | Callable[[Any], Any]], None]
"""A training loop; what it is given turns an iterable of batches into an iterator over them, or is just ``iter``."""


def make_batches(count: int, size: int, shape: tuple[int, ...], *, views: tuple[str, ...] = ()) -> list[Batch]:
    """Returns random batches of different samples."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for number in range(count):
        inputs = torch.rand(size, *shape, generator=generator)  # pixel values, which attacks must know the range of
        index = torch.arange(size) + number * size
        # Every class in turn, so that methods that gather by class find all of them.
        batch = Batch(inputs=inputs, labels=index * 7 % CLASSES, index=index, epoch=0)
        if views:
            batch["views"] = {view: torch.randn(size, *shape, generator=generator) for view in views}
        batches.append(batch)
    return batches


def make_models(shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    """Returns a teacher and a student, the same ones at every call."""
    torch.manual_seed(0)
    teacher = build_model("resnet20", num_classes=CLASSES, input_shape=shape)
    return teacher, build_model("resnet8", num_classes=CLASSES, input_shape=shape)


def make_stage(
    method: str, roles: Mapping[str, Role], batches: Any, *, transforms: Sequence[str] | None = None, **train: Any
) -> tuple[Stage, PacedLoader]:
    """Returns a stage of one epoch over ``batches``, a list or a loader, with what the method asks for beside it.

    Args:
        method: its name.
        roles: its models.
        batches: what it trains on.
        transforms: names of transforms; those of :func:`transforms_for` when None.
        train: settings that differ from those of plain SGD.
    """
    chosen = transforms_for(method) if transforms is None else transforms
    loader, built = PacedLoader(batches), build_method(method)
    stage = Stage(
        method=built,
        roles=roles,
        task=Classification(),
        loader=loader,
        settings=TrainSettings(**{"epochs": 1, **SGD, **train}),
        transforms=[build_transform(name, seed=0, num_classes=CLASSES) for name in chosen],
        labels=torch.cat([b["labels"] for b in batches]) if isinstance(batches, list) else batches.source.labels(),
        num_classes=CLASSES,
        holdout=None if built.needs.holdout is None else PacedLoader([as_pixels(b) for b in batches]),
    )
    return stage, loader


def stage_loop(method: str, roles: Mapping[str, Role], batches: Any, **train: Any) -> Loop:
    """Returns the whole training loop of a stage of one epoch over ``batches``, a list or a loader."""
    stage, loader = make_stage(method, roles, batches, **train)

    def run(pace: Pace) -> None:
        loader.pace = pace
        stage.run()

    return run


def classification_methods() -> list[str]:
    """Returns the names of all methods that are not for sequences of tokens."""
    return [entry.name for entry in methods.entries() if not issubclass(entry.part, SequenceMethod)]


def transforms_for(method: str) -> list[str]:
    """Returns the transforms that make what a method reads beside images and labels, and that its paper belongs to."""
    wanted = {key for key in methods[method].part.needs.batch if key.endswith("_inputs")}
    makers = [entry.name for entry in transforms.entries() if wanted & set(entry.part.changes)]
    return [*makers[: len(wanted)], *PAPERS_TRANSFORMS.get(method, ())]


def roles_of(method: str, shape: tuple[int, ...]) -> dict[str, Role]:
    """Returns models of its own for every role of a method: a ResNet-8 learns, a ResNet-20 is frozen."""
    part, roles = methods[method].part, {}
    for role in part.roles():
        teacher, student = make_models(shape)
        # A frozen role through which a transform sends gradients.
        roles[role] = Role(model=student if role in part.learners else teacher, differentiable=method == "hard")
    return roles


def as_pixels(batch: Batch) -> Batch:
    """Returns a batch without the views, which held-out samples do not have."""
    return Batch((key, value) for key, value in batch.items() if key != "views")


def pair(teacher: nn.Module, student: nn.Module) -> dict[str, Role]:
    """Returns the roles of a teacher and a student."""
    return {"student": Role(model=student), "teacher": Role(model=teacher)}


def check_same_training(loops: Callable[[nn.Module, nn.Module, list[Batch]], list[Loop]]) -> None:
    """Refuses to compare loops that do not compute the same: three steps must give the same student.

    Args:
        loops: makes the loops of a teacher and a student; each is run on models of its own.
    """
    batches, students = make_batches(3, 8, (3, 16, 16)), []
    before = _vector(make_models((3, 16, 16))[1])
    for number in range(len(loops(*make_models((3, 16, 16)), batches))):
        teacher, student = make_models((3, 16, 16))
        loops(teacher, student, batches)[number](iter)
        students.append(_vector(student))
    for other in students[1:]:
        gap = float((other - students[0]).norm() / (other - before).norm())
        if not gap < 0.01:
            raise SystemExit(f"the loops train different students: their updates differ by {gap:.2%}")


def _vector(model: nn.Module) -> Tensor:
    """Returns a copy of all parameters of a model in one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])
