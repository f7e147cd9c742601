"""Time of a training step of every classification method, over that of plain KD, beside the passes it has to make.

All methods train in turns in one process: the same teacher (ResNet-20), student (ResNet-8) and batches, each with its
published defaults and with the transform that makes what it reads (attacks, learnt warps, mixed images). What methods
do to get ready before the first step, and between epochs, does not count; the last column says who does that.

Passes are counted while the loops run, in batches: a pass over a quarter of a batch is 0.25. ``student`` and
``teacher`` are forward passes, learners and frozen models of all roles together, and ``back`` those that keep a graph
for the backward pass. ``needed`` is the time of these passes alone over those of KD: what the equations cost with a
loss that costs nothing. ``beyond`` is the measured ratio over it; above 1.3 there, the last column says why.

    python benchmarks/method_overhead.py [--quick] [--steps 30] [--batch-size 64]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from turns import Times, in_turns, machine, milliseconds, ratio, settle
from workload import Loop, classification_methods, make_batches, make_models, roles_of, stage_loop

from limbeck.engine.roles import Role
from limbeck.methods.base import methods
from limbeck.signals import Batch

WARMUP = 3
BAR = 1.3
QUICK = ("kd", "dkd", "mlkd")
REASONS = {
    "crd": "products with all of two memories, and 16,384 of them gathered for each sample",
    "lsskd": "a convolutional branch with a classifier of its own behind every stage but the last, on four rotations",
    "nst": "products of all pairs of channels for each sample and stage",
    "ofd": "a 1x1 convolution for each stage, and the teacher normalises by the batch",
    "reviewkd": "3x3 convolutions over all fused maps of the student: more arithmetic than the student itself",
    "tgeo_kd": "a second derivative: the backward pass runs through a step of gradient descent",
    "trg": "graphs of 512 sampled tokens of each model: all distances, neighbours, adjacency, contrast",
    "vid": "a regressor of two hidden 1x1 convolutions for each of three stages",
}
"""Why a step takes longer than its passes, where it does by more than the bar."""


@dataclass
class Passes:
    """Forward passes over a batch, per kind of model, and how many of them keep a graph."""

    student: float = 0.0
    teacher: float = 0.0
    student_back: float = 0.0
    teacher_back: float = 0.0
    steps: int = 0
    counting: bool = True
    begun: bool = False

    def in_steps(self, batches: Iterable[Batch], last: int) -> Iterator[Batch]:
        """Yields ``batches`` and counts what is done with each before number ``last``, after which epochs may end.

        Passes that a method makes over the same batches afterwards are not its steps.
        """
        first, self.begun = not self.begun, True
        for number, batch in enumerate(batches):
            self.counting = first and number < last
            self.steps += self.counting
            yield batch

    def watch(self, model: nn.Module, *, learner: bool, batch: int) -> None:
        """Counts the passes of a model from now on."""
        name = "student" if learner else "teacher"

        def count(module: nn.Module, inputs: Any, output: Any) -> None:
            part = inputs[0].shape[0] / batch if self.counting else 0.0
            setattr(self, name, getattr(self, name) + part)
            if isinstance(output, Tensor) and output.requires_grad:
                setattr(self, f"{name}_back", getattr(self, f"{name}_back") + part)

        model.register_forward_hook(count)

    def a_step(self) -> Passes:
        """Returns the passes of one step."""
        return Passes(*(v / self.steps for v in (self.student, self.teacher, self.student_back, self.teacher_back)))

    def seconds(self, costs: Costs) -> float:
        """Returns what the passes alone take."""
        return (
            self.student * costs.student
            + self.teacher * costs.teacher
            + self.student_back * costs.student_back
            + self.teacher_back * costs.teacher_back
        )


@dataclass
class Costs:
    """Seconds of processor time of one pass over a batch, forwards and backwards."""

    student: float
    teacher: float
    student_back: float
    teacher_back: float


def loop_of(name: str, batches: list[Batch], shape: tuple[int, ...], passes: Passes) -> Loop:
    """Returns the stage of a method with models of its own, whose passes are counted once it runs."""
    roles: Mapping[str, Role] = roles_of(name, shape)
    loop = stage_loop(name, roles, batches)

    def run(pace: Any) -> None:
        for role, spec in roles.items():
            assert spec.model is not None
            passes.watch(spec.model, learner=role in methods[name].part.learners, batch=batches[0].size)
        loop(lambda drawn: passes.in_steps(pace(drawn), len(batches) - 1))

    return run


def pass_loop(model: nn.Module, batches: list[Batch], *, backward: bool) -> Loop:
    """Returns a loop of nothing but passes of a model, in the memory format that stages choose."""
    model = model.to(memory_format=torch.channels_last)

    def run(pace: Any) -> None:
        for batch in pace(batches):
            with torch.set_grad_enabled(backward):
                output = model(batch["inputs"].contiguous(memory_format=torch.channels_last))
            if backward:
                output.square().mean().backward()

    return run


def costs_of(times: Mapping[str, Times]) -> Costs:
    """Returns what single passes cost: a backward pass is what a pass with one takes over a pass without."""
    once = {name: milliseconds(times[name].cpu) / 1000 for name in PASSES}
    return Costs(
        once["pass s"], once["pass t"], once["pass s back"] - once["pass s"], once["pass t back"] - once["pass t"]
    )


PASSES = ("pass s", "pass t", "pass s back", "pass t back")


def pass_loops(batches: list[Batch], shape: tuple[int, ...]) -> dict[str, Loop]:
    """Returns the loops of which :func:`costs_of` reads the costs of single passes."""
    loops = {}
    for name in PASSES:
        teacher, student = make_models(shape)
        model = student if name.startswith("pass s") else teacher.eval()
        loops[name] = pass_loop(model, batches, backward=name.endswith("back"))
    return loops


def between_epochs(name: str) -> str:
    """Returns what a method does between epochs, which no step shows."""
    return "a pass over the data" if methods[name].part.refreshes else ""


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three methods, a few small steps: shows that it runs")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--methods", nargs="+", help="only these, beside kd")
    arguments = parser.parse_args()
    settle()
    steps, size, shape = (
        (2, 8, (3, 16, 16)) if arguments.quick else (arguments.steps, arguments.batch_size, (3, 32, 32))
    )
    chosen = arguments.methods or (QUICK if arguments.quick else classification_methods())
    names = list(dict.fromkeys(["kd", *chosen]))
    views = tuple({view for name in names for view in methods[name].part.needs.views})
    batches = make_batches(steps + WARMUP + 2, size, shape, views=views)
    passes = {name: Passes() for name in names}
    loops = {name: loop_of(name, batches, shape, passes[name]) for name in names}
    times = in_turns({**loops, **pass_loops(batches, shape)}, warmup=WARMUP)
    print(f"resnet20 -> resnet8, {'x'.join(map(str, shape))}, batch {size}, {steps} steps of each method in turns")
    print(f"{machine()}\n")
    show(times, {name: found.a_step() for name, found in passes.items()})


def show(times: Mapping[str, Times], passes: Mapping[str, Passes]) -> None:
    """Prints a line a method, the cheapest first."""
    print(
        f"{'method':<28} {'step ms':>8} {'wall time over kd':>22} {'CPU time over kd':>22} "
        f"{'student':>7} {'teacher':>7} {'back':>6} {'needed':>6} {'beyond':>6}  why, where above {BAR}; between epochs"
    )
    plain, costs = times["kd"], costs_of(times)
    for name in sorted(passes, key=lambda name: milliseconds(times[name].cpu)):
        arm, own = times[name], passes[name]
        wall, cpu = ratio(arm.wall, plain.wall), ratio(arm.cpu, plain.cpu)
        needed = own.seconds(costs) / passes["kd"].seconds(costs)
        beyond = cpu.value / needed
        reason = REASONS.get(name, "no reason is known") if beyond > BAR else ""
        notes = "; ".join(filter(None, [reason, between_epochs(name)]))
        counted = f"{own.student:>7.2f} {own.teacher:>7.2f} {own.student_back + own.teacher_back:>6.2f}"
        measured = f"{milliseconds(arm.wall):>8.2f} {wall!s:>22} {cpu!s:>22}"
        print(f"{name:<28} {measured} {counted} {needed:>6.2f} {beyond:>6.2f}  {notes}".rstrip())


if __name__ == "__main__":
    main()
