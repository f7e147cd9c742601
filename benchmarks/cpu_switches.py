"""What the switches for CPUs gain, and how far they move results.

- ``channels_last``, ``precision: bf16`` and both together, and ``compile: true``: whole stages in turns with the plain
  one, KD from a ResNet-20 to a ResNet-8 on images of 3x32x32.
- ``compile_loss: true``: the loss alone, forwards and backwards, eager and compiled in turns, at large class counts.
- glibc's allocator told to keep freed memory, by environment variables: processes in turns.

The difference is that of the first step from the same start: of the loss, and of the whole gradient by its norm.

    python benchmarks/cpu_switches.py [--quick] [--steps 60] [--batch-size 64] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from turns import in_turns, machine, milliseconds, ratio, settle
from workload import CLASSES, PLAIN, make_batches, make_models, pair, stage_loop

from limbeck.engine.combine import combine, term_means
from limbeck.engine.reporter import Reporter
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stage import Stage
from limbeck.methods.base import Method, build_method
from limbeck.schedules import Progress
from limbeck.signals import Batch, Signals
from limbeck.tasks.classification import Classification

WARMUP, SHAPE = 5, (3, 32, 32)
SWITCHES: dict[str, dict[str, Any]] = {
    "channels_last": {"channels_last": True},
    "bf16": {"precision": "bf16"},
    "channels_last, bf16": {"channels_last": True, "precision": "bf16"},
    "compile": {"compile": True},
}
LOSSES = (("kd", 1000), ("kd", 32_000), ("kd", 131_072), ("dkd", 32_000), ("dist", 32_000))
KEEP = {"MALLOC_TRIM_THRESHOLD_": "2000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TOP_PAD_": "67108864"}
HEAD = f"{'':<24} {'plain ms':>9} {'ratio, wall time':>22} {'ratio, CPU time':>22} {'loss':>9} {'gradient':>9}"


class _Fixed:
    """A loader of one batch."""

    steps_per_epoch = 1

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def epoch(self, epoch: int, start_step: int = 0) -> list[Batch]:
        return [self._batch][start_step:]


class _Loss(Reporter):
    """Keeps the loss of the last step."""

    value = 0.0

    def step_done(self, progress: Progress, loss: float) -> None:
        self.value = loss


def first_step(batch: Batch, **train: Any) -> tuple[float, Tensor]:
    """Returns the loss of a first step and the student's gradient as one vector."""
    teacher, student = make_models(SHAPE)
    seen = _Loss()
    settings = TrainSettings(**{"epochs": 1, **PLAIN, **train})
    roles = pair(teacher, student)
    kd, task = build_method("kd"), Classification()
    Stage(method=kd, roles=roles, task=task, loader=_Fixed(batch), settings=settings, reporter=seen).run()
    return seen.value, torch.cat([p.grad.flatten() for p in student.parameters()])


def differences(plain: tuple[float, Tensor], other: tuple[float, Tensor]) -> str:
    """Returns the relative differences of loss and gradient."""
    loss = abs(other[0] - plain[0]) / abs(plain[0])
    gradient = float((other[1] - plain[1]).norm() / plain[1].norm())
    return f"{loss:>9.1e} {gradient:>9.1e}"


def compare_switch(name: str, steps: int, size: int) -> str:
    """Returns the line of a switch of a stage."""
    batches = make_batches(steps + WARMUP + 2, size, SHAPE)
    train = SWITCHES[name]
    difference = differences(first_step(batches[0]), first_step(batches[0], **train))
    plain = stage_loop("kd", pair(*make_models(SHAPE)), batches, **PLAIN)
    times = in_turns(
        {"plain": plain, name: stage_loop("kd", pair(*make_models(SHAPE)), batches, **{**PLAIN, **train})},
        warmup=WARMUP,
    )
    return _line(name, times["plain"], times[name], difference)


def _line(name: str, plain: Any, other: Any, difference: str) -> str:
    wall, cpu = ratio(other.wall, plain.wall), ratio(other.cpu, plain.cpu)
    return f"{name:<24} {milliseconds(plain.wall):>9.3f} {wall!s:>22} {cpu!s:>22} {difference}"


def loss_and_gradient(
    method: Method, forward: Callable[..., Any], batch: Batch, student: Tensor, teacher: Tensor
) -> tuple[float, Tensor]:
    """Computes a method's loss and its gradient by the student's logits, as a stage does."""
    student.grad = None
    terms = forward(batch, student=Signals(logits=student), teacher=Signals(logits=teacher))
    loss = combine(term_means(terms), method.weights, Progress(0, 1, 100))
    loss.backward()
    return loss.item(), student.grad


def compare_loss(name: str, classes: int, rows: int, steps: int) -> str:
    """Returns the line of a compiled loss."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(rows, classes, generator=generator) for _ in range(2))
    student.requires_grad_()
    labels = torch.randint(0, classes, (rows,), generator=generator)
    batch = Batch(inputs=labels, labels=labels, index=torch.arange(rows))
    method = build_method(name)
    compiled = torch.compile(method.forward)
    arms = {"plain": method, "compiled": compiled}
    results = {arm: loss_and_gradient(method, forward, batch, student, teacher) for arm, forward in arms.items()}

    def loop(forward: Callable[..., Any]) -> Callable[..., None]:
        def run(pace: Any) -> None:
            for given in pace([batch] * (steps + WARMUP + 2)):
                loss_and_gradient(method, forward, given, student, teacher)

        return run

    times = in_turns({arm: loop(forward) for arm, forward in arms.items()}, warmup=WARMUP)
    label = f"{name}, {classes:,} classes"
    return _line(label, times["plain"], times["compiled"], differences(results["plain"], results["compiled"]))


def step_seconds(steps: int, size: int) -> float:
    """Returns the median time of a step in this process, whatever its allocator was told."""
    torch.set_num_threads(1)
    times: list[float] = []

    def pace(batches: Any) -> Any:
        for batch in batches:
            started = time.thread_time()
            yield batch
            times.append(time.thread_time() - started)

    stage_loop("kd", pair(*make_models(SHAPE)), make_batches(steps + WARMUP, size, SHAPE))(pace)
    return median(times[WARMUP:])


def compare_allocators(steps: int, size: int, repeats: int) -> str:
    """Returns the line of the allocator, from processes in turns."""
    command = [sys.executable, __file__, "--measure", json.dumps([steps, size])]
    found: dict[str, list[float]] = {"plain": [], "keep": []}
    for _ in range(repeats):
        for arm, values in found.items():
            environment = {**os.environ, **(KEEP if arm == "keep" else {})}
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            values.append(float(done.stdout.split()[-1]))
    plain, keep = (median(values) for values in found.values())
    spread = f"{min(found['keep']) / max(found['plain']):.3f}, {max(found['keep']) / min(found['plain']):.3f}"
    cpu = f"{keep / plain:.3f} [{spread}]"
    return f"{'allocator keeps memory':<24} {1000 * plain:>9.3f} {'':>22} {cpu:>22} {0:>9.1e} {0:>9.1e}"


def main() -> None:
    """Prints the tables, or one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few small steps: shows that it runs, not how fast")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--only", nargs="*", choices=["stage", "compile", "loss", "allocator"], help="parts to run")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(step_seconds(*arguments.measure))
        return
    settle()
    steps, size = (2, 4) if arguments.quick else (arguments.steps, arguments.batch_size)
    parts = arguments.only or (["stage"] if arguments.quick else ["stage", "compile", "loss", "allocator"])
    print(f"batch {size}, {steps} steps, {CLASSES} classes; differences of the first step, relative")
    print(f"{machine()}\n\n{HEAD}")
    switches = [n for n in SWITCHES if n != "compile"] if "stage" in parts else []
    switches += ["compile"] if "compile" in parts else []
    for name in switches[:1] if arguments.quick else switches:
        print(compare_switch(name, steps, size), flush=True)
    if "allocator" in parts:
        print(compare_allocators(steps // 2, size, repeats=3), flush=True)
    if "loss" in parts:
        print(f"\ncompile_loss, 16 rows of logits\n{HEAD}")
        for name, classes in LOSSES:
            print(compare_loss(name, classes, 16, steps), flush=True)


if __name__ == "__main__":
    main()
