"""Time of a training step of every registered method, over that of plain KD.

All methods train in turns in one process: the same teacher (ResNet-20), student (ResNet-8) and batches, each with its
published defaults. MLKD's steps see a second view of each sample, DML trains a second student instead of using a
teacher, OFD's teacher normalises by the batch; what methods do to get ready before the first step does not count.

    python benchmarks/method_overhead.py [--quick] [--steps 30] [--batch-size 64]
"""

from __future__ import annotations

import argparse

from turns import in_turns, machine, milliseconds, ratio, settle
from workload import Loop, make_batches, make_models, stage_loop

from limbeck.engine.roles import Role
from limbeck.methods.base import methods
from limbeck.signals import Batch

WARMUP = 3


def loop_of(name: str, batches: list[Batch], shape: tuple[int, ...]) -> Loop:
    """Returns the stage of a method with models of its own."""
    method = methods[name].part
    roles = {}
    for role in method.roles():
        teacher, student = make_models(shape)
        roles[role] = Role(model=student if role in method.learners else teacher)
    return stage_loop(name, roles, batches)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two methods, a few small steps: shows that it runs")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    settle()
    steps, size, shape = (2, 4, (3, 8, 8)) if arguments.quick else (arguments.steps, arguments.batch_size, (3, 32, 32))
    names = ["kd", "dkd"] if arguments.quick else list(methods)
    views = tuple({view for name in names for view in methods[name].part.needs.views})
    batches = make_batches(steps + WARMUP + 2, size, shape, views=views)
    times = in_turns({name: loop_of(name, batches, shape) for name in names}, warmup=WARMUP)
    print(f"resnet20 -> resnet8, {'x'.join(map(str, shape))}, batch {size}, {steps} steps of each method in turns")
    print(f"{machine()}\n")
    print(f"{'method':<16} {'family':<18} {'step ms':>9} {'ratio to kd, wall time':>23} {'ratio to kd, CPU time':>23}")
    plain = times["kd"]
    for name in sorted(times, key=lambda name: milliseconds(times[name].cpu)):
        arm = times[name]
        wall, cpu = ratio(arm.wall, plain.wall), ratio(arm.cpu, plain.cpu)
        print(f"{name:<16} {methods[name].about['family']:<18} {milliseconds(arm.wall):>9.2f} {wall!s:>23} {cpu!s:>23}")


if __name__ == "__main__":
    main()
