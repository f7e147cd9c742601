"""Time of a training step of limbeck against torchdistill's, same models, data and loss.

Four comparisons. In the first three each side reads the same in-memory images through its own loader, and torchdistill
runs as its example script does, with a meter for each step and the optimizer its sample configurations name:

- *as it comes*: its frozen teacher is in train mode, and limbeck keeps images channels-last, its default on CPUs;
- *equal*: its teacher is in eval mode, as limbeck's always is;
- *equal, one format*: moreover limbeck is told to keep PyTorch's usual memory format;
- *machinery*: moreover both get the same batches, torchdistill gets the fused optimizer and its loop keeps no meters,
  so that nothing but the way from batch to step differs.

Needs torchdistill: `pip install -e .[bench]`.

    python benchmarks/against_torchdistill.py [--quick] [--steps 60] [--batch-size 64]
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.data import RandomSampler, TensorDataset
from turns import Pace, in_turns, machine, milliseconds, ratio, settle
from workload import CLASSES, PLAIN, SGD, Loop, check_same_training, make_batches, make_models, pair, stage_loop

from limbeck.data import as_source
from limbeck.data.loader import Loader
from limbeck.signals import Batch
from limbeck.torchvision_compat import ensure_torchvision

WARMUP = 10
BARS = {"as it comes": 0.90, "equal": 1.00, "equal, one format": None, "machinery": None}
SHAPE = (3, 32, 32)
METHODS = {"kd": "kd, logits", "at": "at, three taps"}


def criterion(method: str) -> dict[str, Any]:
    """Returns torchdistill's configuration of a loss."""
    if method == "kd":
        paths = {"student_module_path": ".", "teacher_module_path": "."}
        ends = {"student_module_io": "output", "teacher_module_io": "output"}
        loss = {"key": "KDLoss", "kwargs": {**paths, **ends, "temperature": 4.0, "alpha": 0.1}}
        return {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}}}
    maps = [{"io": "output", "path": f"stages.{n}"} for n in range(3)]
    pairs = {f"pair{n}": {"teacher": tap, "student": tap, "weight": 1} for n, tap in enumerate(maps)}
    logits = {"is_from_teacher": False, "module_path": ".", "io": "output"}
    ce = {
        "criterion": {"key": "CrossEntropyLoss", "kwargs": {}},
        "criterion_wrapper": {
            "key": "SimpleLossWrapper",
            "kwargs": {"input": logits, "target": {"uses_label": True}},
        },
        "weight": 1.0,
    }
    at = {"criterion": {"key": "ATLoss", "kwargs": {"at_pairs": pairs, "mode": "code"}}, "weight": 1000.0}
    return {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"ce": ce, "at": at}}}


def make_box(
    method: str, models: tuple[nn.Module, nn.Module], steps: int, data: Any = None, size: int = 1, **sgd: Any
) -> Any:
    """Returns torchdistill's box with a frozen teacher and a cosine schedule by steps."""
    from torchdistill.core.distillation import get_distillation_box

    taps = {"output": [f"stages.{n}" for n in range(3)]} if method == "at" else {}
    model = {"forward_proc": "forward_batch_only", "forward_hook": taps}
    config: dict[str, Any] = {
        "num_epochs": 1,
        "teacher": {**model, "requires_grad": False},
        "student": model,
        "optimizer": {"key": "SGD", "kwargs": {**SGD, **sgd}},
        "scheduler": {"key": "CosineAnnealingLR", "kwargs": {"T_max": steps}, "scheduling_step": 1},
        "criterion": criterion(method),
    }
    if data is not None:
        sampler = {"class_or_func": RandomSampler, "kwargs": {}}
        config["train_data_loader"] = {"dataset_id": "train", "sampler": sampler, "kwargs": {"batch_size": size}}
    return get_distillation_box(*models, {"train": data}, config, torch.device("cpu"), None, False, 1)


def machinery_loop(method: str, teacher: nn.Module, student: nn.Module, batches: list[Batch]) -> Loop:
    """Returns a loop around torchdistill's box that is given what limbeck uses."""

    def run(pace: Pace) -> None:
        box = make_box(method, (teacher, student), len(batches), fused=True)
        box.pre_epoch_process(epoch=0)
        box.teacher_model.eval()
        total = 0.0
        for batch in pace(batches):
            loss = box.forward_process(batch["inputs"], batch["labels"], None)
            box.post_forward_process(loss=loss)
            total += loss.item()
        if not math.isfinite(total):
            raise SystemExit("the loss is not finite")

    return run


def example_loop(
    method: str, models: tuple[nn.Module, nn.Module], data: TensorDataset, size: int, *, frozen_mode: bool
) -> Loop:
    """Returns the loop of torchdistill's example script for image classification.

    Args:
        method: which loss.
        models: teacher and student.
        data: images and labels.
        size: of a batch.
        frozen_mode: whether the teacher is put into eval mode, which torchdistill leaves to its users.
    """
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    def run(pace: Pace) -> None:
        models[0].train(not frozen_mode)
        box = make_box(method, models, len(data) // size, data, size)
        box.pre_epoch_process(epoch=0)
        meters = MetricLogger(delimiter="  ")
        meters.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
        meters.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
        for images, labels, supplement in meters.log_every(_Sized(pace, box.train_data_loader), 1000, "Epoch: [0]"):
            started = time.time()
            loss = box.forward_process(images, labels, supplement)
            box.post_forward_process(loss=loss)
            meters.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
            meters.meters["img/s"].update(len(images) / (time.time() - started))
            if torch.isnan(loss) or torch.isinf(loss):
                raise ValueError(f"loss = {loss}")

    return run


class _Sized:
    """A paced data loader that knows its length, which torchdistill's logger asks for."""

    def __init__(self, pace: Pace, batches: Any) -> None:
        self._pace, self._batches = pace, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterable[Any]:
        return self._pace(self._batches)


def loops_of(kind: str, method: str, count: int, size: int) -> dict[str, Loop]:
    """Returns limbeck's loop and torchdistill's, of ``count`` steps."""
    if kind == "machinery":
        check_same_training(
            lambda t, s, b: [stage_loop(method, pair(t, s), b, **PLAIN), machinery_loop(method, t, s, b)]
        )
        batches = make_batches(count, size, SHAPE)
        ours, theirs = make_models(SHAPE), make_models(SHAPE)
        return {
            "limbeck": stage_loop(method, pair(*ours), batches, **PLAIN),
            "torchdistill": machinery_loop(method, *theirs, batches),
        }
    images, labels = torch.rand(count * size, *SHAPE), torch.arange(count * size) % CLASSES
    loader = Loader(as_source((images, labels)), batch_size=size)
    data = TensorDataset(images, labels)
    return {
        "limbeck": stage_loop(method, pair(*make_models(SHAPE)), loader, **(PLAIN if "one format" in kind else {})),
        "torchdistill": example_loop(method, make_models(SHAPE), data, size, frozen_mode=kind != "as it comes"),
    }


def compare(kind: str, method: str, steps: int, size: int) -> str:
    """Runs both loops in turns and returns a line of the table."""
    times = in_turns(loops_of(kind, method, steps + WARMUP + 2, size), warmup=WARMUP)
    ours, theirs = times["limbeck"], times["torchdistill"]
    wall, bar = ratio(ours.wall, theirs.wall), BARS[kind]
    verdict = f"{bar:>5.2f} {wall.verdict(bar):>6}" if bar is not None else ""
    return (
        f"{milliseconds(ours.wall):>10.3f} {milliseconds(theirs.wall):>15.3f} {wall!s:>22} "
        f"{ratio(ours.cpu, theirs.cpu)!s:>22} {verdict}"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few small steps: shows that it runs, not how fast")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    settle()
    ensure_torchvision()
    logging.getLogger("torchdistill").setLevel(logging.WARNING)
    steps, size = (2, 4) if arguments.quick else (arguments.steps, arguments.batch_size)
    print(f"resnet20 -> resnet8, 3x32x32, batch {size}, {steps} steps of each loop in turns")
    print(f"{machine('torchdistill')}\n")
    head = f"{'':<32} {'limbeck ms':>10} {'torchdistill ms':>15} {'ratio, wall time':>22} {'ratio, CPU time':>22}"
    print(f"{head} {'below':>5}")
    for kind in BARS:
        for method, what in METHODS.items():
            print(f"{kind + ': ' + what:<32} {compare(kind, method, steps, size)}", flush=True)


if __name__ == "__main__":
    main()
