"""Checks that run in each of two processes; one process alone gives what some of them are compared with.

A check returns tensors and words, or raises where what it does is wrong by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from distributed.stages import Records, TinyLoader, make_stage, roles_of, state_of
from limbeck.data import as_source
from limbeck.data.loader import Loader
from limbeck.engine import distributed, sharding
from limbeck.engine.roles import Role
from limbeck.engine.run_folder import RunFolder
from limbeck.errors import DataError, NonFiniteLossError, RecipeError, RunFolderError
from limbeck.methods.base import build_method
from limbeck.signals import Batch
from limbeck.tasks.classification import Classification
from limbeck.teachers.cache import CachedTeacher, write_cache
from limbeck.teachers.live import FrozenTeacher
from methods.networks import CLASSES, large_teacher, small_student
from methods.workbench import label, variants

Check = Callable[[Path], dict[str, Any]]


def trained(name: str, config: dict[str, Any], folder: Path, **train: Any) -> dict[str, Any]:
    """State after an epoch of two uneven batches, in float64; every block is a group of its own when sharded."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    records = Records()
    try:
        with mock.patch.object(sharding, "_GROUP_SIZE", 1):
            stage = make_stage(name, config, reporter=records, **train)
            stage.run()
    finally:
        torch.set_default_dtype(torch.float32)
    return {**state_of(stage), "notes": records.notes, "epochs": records.epochs}


def gradient_checks() -> Iterator[tuple[str, Check]]:
    for name, config in variants():
        if (name, config) == ("tsd_kd", {"average": "token_mean"}):
            continue  # averages over the openings of the whole batch, and says so when that is to be split
        case, check = label((name, config)), functools.partial(trained, name, config)
        method = build_method(name, **config)
        if method.one_process:
            continue
        # Where a method differentiates through a step, or compares whole gradients, FSDP is refused.
        for kind in ("ddp",) if method.second_order or method.yielding() else ("ddp", "fsdp"):
            yield f"{case} {kind}", functools.partial(check, sharding=kind)
        if not method.batch_coupled:
            yield f"{case} micro", functools.partial(check, micro_batches=2)


def followed(folder: Path, **train: Any) -> dict[str, Any]:
    """A moving average of a student with batch normalisation, whose running statistics each process computes itself."""
    roles = {"student": Role(model=small_student(batch_norm=True)), "teacher": Role(ema_of="student", decay=0.8)}
    stage = make_stage("kd", roles=roles, lr=0.05, epochs=2, **train)
    stage.run()
    observer: Any = stage.observers["teacher"]
    return {**state_of(stage), **{f"average.{n}": t for n, t in observer.state_dict()["model"].items()}}


class Torn(TinyLoader):
    """Ends by an error in every process before a given step of an epoch, as a power cut would."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__(SIZES)
        self._end = (epoch, step)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        for number, batch in enumerate(super().epoch(epoch, start_step), start_step):
            if (epoch, number) == self._end:
                raise PowerCutError
            yield batch


class PowerCutError(Exception):
    """The end of a process."""


SIZES = (7, 5, 6)
RESUMED: dict[str, tuple[str, dict[str, Any]]] = {
    "crd ddp": ("crd", {"momentum": 0.9}),
    "dml adamw ddp": ("dml", {"optimizer": "adamw"}),
    "crd fsdp": ("crd", {"momentum": 0.9, "sharding": "fsdp"}),
    "fitnet adamw fsdp": ("fitnet", {"optimizer": "adamw", "sharding": "fsdp"}),
    "average fsdp": ("kd", {"momentum": 0.9, "sharding": "fsdp"}),
    "average dropout ddp": ("kd", {"momentum": 0.9}),
}


def resumed(kind: str, folder: Path) -> dict[str, Any]:
    """A run that ended between two checkpoints and went on, and one that did not; both with dropout and averages."""
    name, train = RESUMED[kind]
    with pytest.raises(PowerCutError):
        run_in_folder(kind, folder / f"{kind} torn", name, train, Torn(1, 2))
    ends = [
        run_in_folder(kind, folder / f"{kind} {case}", name, train, TinyLoader(SIZES)) for case in ("whole", "torn")
    ]
    started = [end.pop("started") for end in ends]
    assert distributed.rank() > 0 or started == [0, 4]
    assert ends[0].keys() == ends[1].keys()
    for key, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][key]), f"{kind}: '{key}' differs after going on"
    logs = [(folder / f"{kind} {case}" / "metrics.jsonl").read_bytes() for case in ("whole", "torn")]
    assert logs[0] == logs[1]
    return ends[0]


SHARDED = ("fitnet adamw fsdp", *RESUMED["fitnet adamw fsdp"])


def left(folder: Path) -> dict[str, Any]:
    """Leaves a sharded checkpoint behind, for another number of processes to go on from."""
    kind, name, train = SHARDED
    with pytest.raises(PowerCutError):
        run_in_folder(kind, folder / "left", name, train, Torn(1, 2))
    return {}


def run_in_folder(kind: str, path: Path, name: str, train: dict[str, Any], loader: TinyLoader) -> dict[str, Any]:
    torch.manual_seed(0)
    own = RunFolder.open(path, {"kind": kind})
    try:
        if "average" in kind:
            student = small_student(batch_norm=True)
            if "dropout" in kind:
                student.head = nn.Sequential(nn.Dropout(0.5), student.head)
                student.anatomy = None
            roles = {"student": Role(model=student), "teacher": Role(ema_of="student", decay=0.8)}
        else:
            roles = roles_of(name)
        with mock.patch.object(sharding, "_GROUP_SIZE", 1):
            options = {"lr": 0.01, "checkpoint_every": 2, "epochs": 3, **train}
            records = Records()
            stage = make_stage(name, roles=roles, folder=own, loader=loader, reporter=records, **options)
            stage.run()
        return {**state_of(stage), "started": records.started}
    finally:
        if own is not None:
            own.close()


class Spoilt(TinyLoader):
    """Data of which one batch is wrong, and that in the last process alone."""

    def __init__(self, step: int, change: Callable[[Batch], None]) -> None:
        super().__init__((6, 6))
        self._step, self._change = step, change

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        for number, batch in enumerate(super().epoch(epoch, start_step), start_step):
            if distributed.rank() == distributed.world_size() - 1 and number == self._step:
                self._change(batch)
            yield batch


def _not_a_number(batch: Batch) -> None:
    batch["inputs"][0] = torch.nan


def _wrong_label(batch: Batch) -> None:
    batch["labels"][0] = 99


def failed(folder: Path) -> dict[str, Any]:
    """What every process says when something is wrong in one of them."""
    with pytest.raises(NonFiniteLossError) as loss:
        make_stage("kd", loader=Spoilt(1, _not_a_number)).run()
    with pytest.raises(DataError) as data:
        make_stage("kd", loader=Spoilt(0, _wrong_label))
    with pytest.raises(RecipeError) as single:
        make_stage("kd_aif", {"through": "all"})
    (folder / "file").write_text("no folder")
    with pytest.raises(RunFolderError) as run_folder:
        RunFolder.open(folder / "file", {})
    found = {
        "loss": str(loss.value),
        "data": str(data.value),
        "folder": str(run_folder.value),
        "single": str(single.value),
    }
    everywhere = distributed.gather_objects(found)
    assert everywhere == [found] * distributed.world_size()
    return found


def cached(folder: Path) -> dict[str, Any]:
    """A student of a teacher that each process reads from a cache, under augmentation."""
    torch.manual_seed(0)
    parts = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    source = as_source((images, torch.arange(20) % CLASSES), num_classes=CLASSES)
    whole = Loader(source, ["flip"], batch_size=8, seed=4, shuffle=False)
    own = Loader(source, ["flip"], batch_size=8, seed=4, **parts)

    def write() -> None:
        teacher = FrozenTeacher("teacher", large_teacher(), Classification())
        write_cache(
            folder / "cache", loader=whole, teacher=teacher, epochs=2, codec={"name": "full", "dtype": "float32"}
        )

    distributed.on_first(write)
    provider = CachedTeacher(folder / "cache", own)
    roles = {"student": Role(model=small_student()), "teacher": Role(provider=provider)}
    stage = make_stage("kd", roles=roles, loader=own, epochs=2, lr=0.01)
    stage.run()
    return state_of(stage)


CHECKS: dict[str, Check] = {
    **dict(gradient_checks()),
    "followed ddp": functools.partial(followed, sharding="ddp"),
    "followed fsdp": functools.partial(followed, sharding="fsdp"),
    **{f"resumed {kind}": functools.partial(resumed, kind) for kind in RESUMED},
    "left": left,
    "cached": cached,
    "failed": failed,
}
