"""Time of a training step of limbeck against the same computation written as a bare PyTorch loop.

A ResNet-20 teaches a ResNet-8 on batches that lie in memory: KD, which compares logits, and AT, which taps three stages
of both networks. Both loops run the same models on the same batches with the same fused optimizer and the same cosine
schedule, and look at the loss of every step. Both keep PyTorch's usual memory format; what limbeck's own default on
CPUs gains beside it is in `cpu_switches.py`.

    python benchmarks/step_time.py [--quick] [--steps 200] [--batch-size 64]
"""

from __future__ import annotations

import argparse
import copy

from bare import bare_loop
from turns import in_turns, machine, milliseconds, ratio, settle
from workload import PLAIN, check_same_training, make_batches, make_models, pair, stage_loop

WARMUP, BAR = 10, 1.03
SHAPES = {"3x32x32": (3, 32, 32), "1x28x28": (1, 28, 28)}
METHODS = {"kd": "kd, logits", "at": "at, three taps"}


def compare(method: str, shape: tuple[int, ...], size: int, steps: int) -> str:
    """Runs both loops in turns and returns a line of the table."""
    check_same_training(lambda t, s, b: [stage_loop(method, pair(t, s), b, **PLAIN), bare_loop(method, t, s, b)])
    batches = make_batches(steps + WARMUP + 2, size, shape)
    models = make_models(shape)
    others = copy.deepcopy(models)
    times = in_turns(
        {"limbeck": stage_loop(method, pair(*models), batches, **PLAIN), "bare": bare_loop(method, *others, batches)},
        warmup=WARMUP,
    )
    ours, bare = times["limbeck"], times["bare"]
    wall = ratio(ours.wall, bare.wall)
    return (
        f"{milliseconds(ours.wall):>10.3f} {milliseconds(bare.wall):>8.3f} {wall!s:>22} "
        f"{ratio(ours.cpu, bare.cpu)!s:>22} {wall.verdict(BAR):>6}"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few small steps: shows that it runs, not how fast")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    settle()
    steps, size = (2, 4) if arguments.quick else (arguments.steps, arguments.batch_size)
    shapes = {"3x8x8": (3, 8, 8)} if arguments.quick else SHAPES
    print(f"resnet20 -> resnet8, batch {size}, {steps} steps of each loop in turns\n{machine()}\n")
    print(f"{'':<24} {'limbeck ms':>10} {'bare ms':>8} {'ratio, wall time':>22} {'ratio, CPU time':>22} {'<=1.03':>6}")
    for label, shape in shapes.items():
        for method, what in METHODS.items():
            print(f"{what + ', ' + label:<24} {compare(method, shape, size, steps)}", flush=True)


if __name__ == "__main__":
    main()
