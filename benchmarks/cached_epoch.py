"""What an epoch costs whose teacher is read from a cache, against an epoch of the student alone.

All arms are whole stages on the same augmented images: the student alone (``none``), KD from caches that hold the views
of the epoch, and KD from the live teacher. A step counts from the making of its batch on, and the first touch of a
shard, which checks its checksum, lies in the sum over the epoch.

    python benchmarks/cached_epoch.py [--quick] [--steps 120] [--student resnet8]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from turns import in_turns, machine, milliseconds, ratio, settle
from workload import CLASSES, pair, stage_loop

from limbeck.data import as_source
from limbeck.data.loader import Loader
from limbeck.engine.roles import Role
from limbeck.students.loading import build_model
from limbeck.tasks.classification import Classification
from limbeck.teachers.cache import CachedTeacher, write_cache
from limbeck.teachers.live import FrozenTeacher

BAR, BATCH = 1.10, 128
AUGMENT = [{"name": "crop", "padding": 4}, {"name": "flip"}]
CODECS: dict[str, dict[str, Any]] = {
    "cache, topk of 10": {"name": "topk", "k": 10},
    "cache, full float16": {"name": "full", "dtype": "float16"},
}
ALONE, LIVE = "student alone", "live teacher"


def write_caches(folder: Path, source: Any, teacher: nn.Module, batch: int) -> None:
    """Writes the views of the first epoch, once with every codec."""
    loader = Loader(source, AUGMENT, batch_size=batch, shuffle=False)
    provider = FrozenTeacher("teacher", teacher, Classification())
    for name, codec in CODECS.items():
        write_cache(folder / name, loader=loader, teacher=provider, codec=codec)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few small steps: shows that it runs, not how fast")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--student", default="resnet8")
    arguments = parser.parse_args()
    settle()
    steps, batch, side = (2, 8, 8) if arguments.quick else (arguments.steps, BATCH, 32)
    shape, count = (3, side, side), (steps + 2) * batch
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8)
    source = as_source((images, torch.arange(count) % CLASSES))
    torch.manual_seed(0)
    teacher = build_model("resnet20", num_classes=CLASSES, input_shape=shape)

    def student() -> nn.Module:
        torch.manual_seed(1)
        return build_model(arguments.student, num_classes=CLASSES, input_shape=shape)

    def loader() -> Loader:
        return Loader(source, AUGMENT, batch_size=batch)

    with tempfile.TemporaryDirectory() as scratch:
        write_caches(Path(scratch), source, teacher, batch)
        # First, because the first arm pays for what all kernels do at their first call.
        loops = {LIVE: stage_loop("kd", pair(teacher, student()), loader())}
        loops[ALONE] = stage_loop("none", {"student": Role(model=student())}, loader())
        for name in CODECS:
            data = loader()
            cached = CachedTeacher(Path(scratch) / name, data)
            loops[name] = stage_loop("kd", {"student": Role(model=student()), "teacher": Role(provider=cached)}, data)
        times = in_turns(loops, warmup=0)
    print(
        f"{arguments.student}, {'x'.join(map(str, shape))}, {CLASSES} classes, batch {batch}, an epoch of {steps} steps"
    )
    print(f"{machine()}\n")
    print(
        f"{'':<20} {'step ms':>9} {'step, wall time':>22} {'step, CPU time':>22} {'epoch, CPU time':>16} {'<=1.10':>6}"
    )
    alone = times[ALONE]
    for name in (ALONE, *CODECS, LIVE):
        arm = times[name]
        wall, whole = ratio(arm.wall, alone.wall), sum(arm.cpu) / sum(alone.cpu)
        verdict = wall.verdict(BAR) if name in CODECS else ""
        cpu = ratio(arm.cpu, alone.cpu)
        print(f"{name:<20} {milliseconds(arm.wall):>9.3f} {wall!s:>22} {cpu!s:>22} {whole:>16.3f} {verdict:>6}")
    print(f"\nratios to the {ALONE}")


if __name__ == "__main__":
    main()
