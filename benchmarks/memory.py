"""Peak memory of a training step with a live teacher, against the bare PyTorch loop.

Each measurement is a process of its own, the arms in turns. glibc is told to map every larger block by itself, so that
resident memory is what tensors hold at that moment and not what an allocator keeps. Linux only.

    python benchmarks/memory.py [--quick] [--batch-size 256]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import torch
from bare import bare_loop
from turns import machine
from workload import PLAIN, make_batches, make_models, pair, stage_loop

BAR = 1.02
METHODS = {"none": "student alone", "kd": "kd, logits", "at": "at, three taps"}
STEPS = 3


def status(entry: str) -> int:
    """Returns an entry of this process's status in bytes."""
    found = re.search(rf"^{entry}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit("this system does not say how much memory a process holds")
    return 1024 * int(found[1])


def measure(arm: str, method: str, batch_size: int, side: int) -> int:
    """Returns how far memory rises above what models and batches take, in three steps of training."""
    torch.set_num_threads(1)
    batches = make_batches(STEPS, batch_size, (3, side, side))
    teacher, student = make_models((3, side, side))
    warm, warm_batches = make_models((3, side, side)), make_batches(2, 2, (3, side, side))
    # Code that is loaded at the first step is no part of a step.
    _loop(arm, method, *warm, warm_batches)(iter)
    loop = _loop(arm, method, teacher, student, batches)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    loop(iter)
    return status("VmHWM") - before


def _loop(arm: str, method: str, teacher: torch.nn.Module, student: torch.nn.Module, batches: list) -> object:
    if arm == "bare":
        return bare_loop(method, teacher, student, batches)
    roles = pair(teacher, student)
    return stage_loop(method, roles if method != "none" else {"student": roles["student"]}, batches, **PLAIN)


def in_process(arm: str, method: str, batch_size: int, side: int) -> int:
    """Runs :func:`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", json.dumps([arm, method, batch_size, side])]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    """Prints the table, or one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small batch, once")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(measure(*arguments.measure))
        return
    size, side, repeats = (32, 16, 1) if arguments.quick else (arguments.batch_size, 32, 3)
    methods = ["kd"] if arguments.quick else list(METHODS)
    print(f"resnet20 -> resnet8, 3x{side}x{side}, batch {size}, medians of {repeats} processes\n{machine()}\n")
    print(f"{'peak above models and data':<28} {'limbeck MiB':>11} {'bare MiB':>9} {'ratio':>6} {'<=1.02':>6}")
    for method in methods:
        peaks: dict[str, list[int]] = {"limbeck": [], "bare": []}
        for _ in range(repeats):
            for arm, values in peaks.items():
                values.append(in_process(arm, method, size, side))
        ours, bare = (median(values) for values in peaks.values())
        verdict = "met" if ours <= BAR * bare else "missed"
        print(
            f"{METHODS[method]:<28} {ours / 2**20:>11.1f} {bare / 2**20:>9.1f} {ours / bare:>6.3f} {verdict:>6}",
            flush=True,
        )


if __name__ == "__main__":
    main()
