"""What the benchmarks train: a ResNet-20 teaches a ResNet-8 on random images that lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from turns import Pace, PacedLoader

from limbeck.engine.roles import Role
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stage import Stage
from limbeck.methods.base import build_method
from limbeck.signals import Batch
from limbeck.students.loading import build_model
from limbeck.tasks.classification import Classification

CLASSES = 100
PLAIN = {"channels_last": False}
"""Settings of a stage that computes in the memory format of a bare PyTorch loop."""
SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}

Loop = Callable[[Pace | Callable[[Any], Any]], None]
"""A training loop; what it is given turns an iterable of batches into an iterator over them, or is just ``iter``."""


def make_batches(count: int, size: int, shape: tuple[int, ...], *, views: tuple[str, ...] = ()) -> list[Batch]:
    """Returns random batches of different samples."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for number in range(count):
        inputs = torch.randn(size, *shape, generator=generator)
        labels = torch.randint(0, CLASSES, (size,), generator=generator)
        batch = Batch(inputs=inputs, labels=labels, index=torch.arange(size) + number * size, epoch=0)
        if views:
            batch["views"] = {view: torch.randn(size, *shape, generator=generator) for view in views}
        batches.append(batch)
    return batches


def make_models(shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    """Returns a teacher and a student, the same ones at every call."""
    torch.manual_seed(0)
    teacher = build_model("resnet20", num_classes=CLASSES, input_shape=shape)
    return teacher, build_model("resnet8", num_classes=CLASSES, input_shape=shape)


def stage_loop(method: str, roles: Mapping[str, Role], batches: Any, **train: Any) -> Loop:
    """Returns the whole training loop of a stage of one epoch over ``batches``, a list or a loader."""
    loader = PacedLoader(batches)
    stage = Stage(
        method=build_method(method),
        roles=roles,
        task=Classification(),
        loader=loader,
        settings=TrainSettings(**{"epochs": 1, **SGD, **train}),
        labels=torch.cat([b["labels"] for b in batches]) if isinstance(batches, list) else batches.source.labels(),
        num_classes=CLASSES,
    )

    def run(pace: Pace) -> None:
        loader.pace = pace
        stage.run()

    return run


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
