"""Stages of any method around small networks, for one process or a part of several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine import distributed
from limbeck.engine.reporter import Reporter
from limbeck.engine.roles import Role
from limbeck.engine.run_folder import RunFolder
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stage import Stage
from limbeck.methods.base import build_method, methods
from limbeck.methods.sequence.base import SequenceMethod
from limbeck.schedules import Progress
from limbeck.signals import Batch
from limbeck.tasks.causal_lm import CausalLM
from limbeck.tasks.classification import Classification
from methods.networks import CLASSES, large_teacher, small_student
from methods.sequences import VOCABULARY, LanguageModel, sequence_batch
from methods.workbench import SAMPLES, all_labels, make_batch

RATE = 1e-4
UNEVEN = (7, 5)
"""Samples of the two batches of an epoch: two processes get 3 and 4, then 2 and 3."""


def in_default_type(tensor: Tensor) -> Tensor:
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


class TinyLoader:
    """Batches of given sizes from the fixed data set, this process's part of each.

    Args:
        sizes: samples of each batch, over all processes.
        views: names of further views.
        needed: entries that the method reads.
        sequences: whether samples are sequences of tokens.
        on_policy: whether they are said to be the student's own words.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        views: tuple[str, ...] = (),
        needed: frozenset[str] = frozenset(),
        *,
        sequences: bool = False,
        on_policy: bool = False,
    ) -> None:
        self._sizes, self._views, self._needed, self._sequences = tuple(sizes), views, needed, sequences
        self._on_policy = on_policy
        self.steps_per_epoch = len(sizes)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        rank, world = distributed.rank(), distributed.world_size()
        for step in range(start_step, len(self._sizes)):
            size, start = self._sizes[step], sum(self._sizes[:step])
            first, last = size * rank // world, size * (rank + 1) // world
            batch = self._batch(start + first, start + last)
            batch["epoch"] = epoch
            yield batch.map(in_default_type)

    def _batch(self, first: int, last: int) -> Batch:
        """Images, or sequences with the entries that a method reads."""
        if not self._sequences:
            return make_batch(last - first, start=first, views=self._views, needed=self._needed)
        batch = sequence_batch(SAMPLES, slice(first, last), views=self._views)
        found = Batch((k, v) for k, v in batch.items() if k in {"inputs", "index", "views", *self._needed})
        if self._on_policy:
            found["on_policy"] = torch.ones(found.size, dtype=torch.bool)
        return found


def roles_of(name: str, *, batch_norm: bool = False) -> dict[str, Role]:
    """The method's models: learners that differ, and teachers with as many stages."""
    method = methods[name].part
    if issubclass(method, SequenceMethod):
        return {
            role: Role(
                model=LanguageModel(6 if role in method.learners else 9, seed=10 + number).to(torch.get_default_dtype())
            )
            for number, role in enumerate(method.roles())
        }
    return {
        role: Role(
            model=(
                small_student(seed=10 + number, batch_norm=batch_norm)
                if role in method.learners
                else large_teacher(seed=20 + number, same_channels=method.same_channels)
            ).to(torch.get_default_dtype())
        )
        for number, role in enumerate(method.roles())
    }


def make_stage(
    name: str,
    config: dict[str, Any] | None = None,
    *,
    roles: dict[str, Role] | None = None,
    sizes: Sequence[int] = UNEVEN,
    folder: RunFolder | None = None,
    loader: Any = None,
    reporter: Reporter | None = None,
    **train: Any,
) -> Stage:
    """A stage of one epoch of plain gradient descent; normalisations inside the method use running statistics."""
    settings = {
        "epochs": 1,
        "lr": RATE,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "schedule": "constant",
        "evaluate_every": 0,
        **train,
    }
    options = {"negatives": 8, "embedding": 6} if name == "crd" else {}
    method = build_method(name, **options, **(config or {}))
    sequential = isinstance(method, SequenceMethod)
    needed = method.needs.batch
    if isinstance(method, SequenceMethod):
        needed = needed | method.optional_entries | {"mask"}
    stage = Stage(
        method=method,
        roles=roles if roles is not None else roles_of(name),
        task=CausalLM() if sequential else Classification(),
        loader=loader
        if loader is not None
        else TinyLoader(
            sizes, method.needs.views, needed, sequences=sequential, on_policy="on_policy" in method.needs.batch
        ),
        settings=TrainSettings(**settings),
        labels=all_labels(),
        num_classes=VOCABULARY if sequential else CLASSES,
        folder=folder,
        seed=5,
        reporter=reporter,
        holdout=TinyLoader((4, 4)) if method.needs.holdout else None,
    )
    for module in method.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
    return stage


class Records(Reporter):
    """Remembers what a stage says."""

    def __init__(self) -> None:
        self.started = 0
        self.notes: list[str] = []
        self.epochs: list[dict[str, Any]] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def stage_started(self, name: str, progress: Progress) -> None:
        self.started = progress.step

    def epoch_done(self, record: Mapping[str, Any]) -> None:
        self.epochs.append(dict(record))


def state_of(stage: Stage) -> dict[str, Tensor]:
    """Everything that a stage has learnt or remembers."""
    modules = {**stage.learners, "method": stage.method}
    return {
        f"{owner}.{name}": tensor.detach().clone()
        for owner, module in modules.items()
        for name, tensor in module.state_dict().items()
    }
