"""Distillation written by hand: the loop that limbeck is measured against, with nothing in it that is not needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional
from turns import Pace
from workload import SGD, Loop

from limbeck.signals import Batch

Loss = Callable[[Batch], Tensor]


def bare_loop(method: str, teacher: nn.Module, student: nn.Module, batches: list[Batch]) -> Loop:
    """Returns the loop of a method, one epoch over ``batches``."""

    def run(pace: Pace) -> None:
        teacher.eval().requires_grad_(False)
        student.train()
        loss = LOSSES[method](teacher, student)
        optimizer = torch.optim.SGD(student.parameters(), fused=True, **SGD)
        if not math.isfinite(train(pace(batches), loss, optimizer, len(batches))):
            raise SystemExit("the loss is not finite")

    return run


def train(batches: Iterable[Batch], loss_of: Loss, optimizer: torch.optim.Optimizer, steps: int) -> float:
    """Trains with a cosine schedule and returns the sum of the losses."""
    total = 0.0
    for step, batch in enumerate(batches):
        optimizer.zero_grad(set_to_none=True)
        optimizer.param_groups[0]["lr"] = SGD["lr"] * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = loss_of(batch)
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total


def student_alone(teacher: nn.Module, student: nn.Module) -> Loss:
    """Returns cross-entropy as a function of a batch."""
    return lambda batch: functional.cross_entropy(student(batch["inputs"]), batch["labels"])


def kd(teacher: nn.Module, student: nn.Module) -> Loss:
    """Returns cross-entropy and KL divergence at temperature 4 as a function of a batch."""

    def loss(batch: Batch) -> Tensor:
        with torch.no_grad():
            target = functional.log_softmax(teacher(batch["inputs"]) / 4, dim=1)
        logits = student(batch["inputs"])
        ce = functional.cross_entropy(logits, batch["labels"])
        kl = functional.kl_div(
            functional.log_softmax(logits / 4, dim=1), target, log_target=True, reduction="batchmean"
        )
        return 0.1 * ce + 0.9 * 16 * kl

    return loss


def at(teacher: nn.Module, student: nn.Module) -> Loss:
    """Returns cross-entropy and attention transfer at three stages as a function of a batch."""
    seen: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    for role, model in (("teacher", teacher), ("student", student)):
        for stage in model.stages:
            stage.register_forward_hook(lambda _, __, output, kept=seen[role]: kept.append(output))

    def attention(maps: Tensor) -> Tensor:
        return functional.normalize(maps.square().mean(1).flatten(1))

    def loss(batch: Batch) -> Tensor:
        for maps in seen.values():
            maps.clear()
        with torch.no_grad():
            teacher(batch["inputs"])
            targets = [attention(maps) for maps in seen["teacher"]]
        ce = functional.cross_entropy(student(batch["inputs"]), batch["labels"])
        distances = [functional.mse_loss(attention(maps), target) for maps, target in zip(seen["student"], targets)]
        return ce + 1000 * torch.stack(distances).sum()

    return loss


LOSSES: dict[str, Callable[[nn.Module, nn.Module], Loss]] = {"none": student_alone, "kd": kd, "at": at}
