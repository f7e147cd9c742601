"""Training loops that take turns, step by step, in one process, so that nothing that slows a machine favours one.

Every arm of a benchmark is a whole training loop that runs in a thread of its own. A :class:`Pace` lets one loop at a
time make one step. What the tables show is the ratio of the medians of two arms, with the interval in which it lies in
95 of 100 resamplings of the steps: in wall-clock time, and in processor time of the thread, which other processes on
the machine cannot stretch.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


@dataclass
class Times:
    """Seconds of each step of an arm."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def verdict(self, bar: float) -> str:
        """Returns whether the ratio is at most ``bar``."""
        return "met" if self.value <= bar else "missed"


class Pace:
    """Hands batches to one of several loops when it is its turn, and times what the loop does with each.

    A step lasts from the request for its batch to the request for the next one, so the making of the batch counts.
    """

    def __init__(self, turns: _Turns, number: int, times: Times) -> None:
        self._turns, self._number, self._times = turns, number, times

    def __call__(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields ``batches``, each in this loop's next turn."""
        source = iter(batches)
        while True:
            self._turns.wait(self._number)
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                yield next(source)
            except StopIteration:
                return
            finally:
                self._times.wall.append(time.perf_counter() - wall)
                self._times.cpu.append(time.thread_time() - cpu)
                self._turns.pass_on()


class PacedLoader:
    """A stage's loader that keeps the pace once it is given one; building the stage is not timed."""

    def __init__(self, batches: Any) -> None:
        self._batches, self.pace = batches, None

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches an epoch."""
        return len(self._batches) if isinstance(self._batches, list) else int(self._batches.steps_per_epoch)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        """Yields the batches of an epoch."""
        fixed = isinstance(self._batches, list)
        batches = self._batches[start_step:] if fixed else self._batches.epoch(epoch, start_step)
        return iter(batches) if self.pace is None else self.pace(batches)


class _Turns:
    """Whose turn it is."""

    def __init__(self, arms: int) -> None:
        self._condition, self._arms, self._turn = threading.Condition(), arms, 0
        self._left: set[int] = set()
        self.failed = False

    def wait(self, number: int) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._turn == number or self.failed)
            if self.failed:
                raise SystemExit

    def pass_on(self) -> None:
        with self._condition:
            self._advance()
            self._condition.notify_all()

    def leave(self, number: int, *, failed: bool) -> None:
        with self._condition:
            self._left.add(number)
            self.failed = self.failed or failed
            if self._turn == number:
                self._advance()
            self._condition.notify_all()

    def _advance(self) -> None:
        others = [(self._turn + n) % self._arms for n in range(1, self._arms + 1)]
        self._turn = next((n for n in others if n not in self._left), self._turn)


def in_turns(loops: Mapping[str, Callable[[Pace], None]], *, warmup: int) -> dict[str, Times]:
    """Runs training loops in turns and returns the times of their steps, without the first and the last ones.

    Args:
        loops: by name, a loop that draws its batches through the pace it is given, all loops equally many.
        warmup: steps at the beginning that do not count; the last step, after which a loop cleans up, never does.
    """
    turns, errors = _Turns(len(loops)), []
    times = {name: Times() for name in loops}

    def run(number: int, name: str) -> None:
        try:
            loops[name](Pace(turns, number, times[name]))
        except BaseException as error:
            errors.append(error)
        turns.leave(number, failed=bool(errors))

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(loops)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if not isinstance(error, SystemExit):
            raise error
    steps = min(len(t.wall) for t in times.values()) - 2
    return {name: Times(t.wall[warmup:steps], t.cpu[warmup:steps]) for name, t in times.items()}


def ratio(first: list[float], second: list[float], *, resamplings: int = 500) -> Ratio:
    """Returns the median of ``first`` over that of ``second``; the steps of a pair stand side by side."""
    pairs = np.array([first, second])
    draws = np.random.default_rng(0).integers(0, pairs.shape[1], (resamplings, pairs.shape[1]))
    above, below = np.median(pairs[:, draws], axis=2)
    low, high = np.quantile(above / below, [0.025, 0.975])
    median = np.median(pairs, axis=1)
    return Ratio(float(median[0] / median[1]), float(low), float(high))


def settle() -> None:
    """Prepares this process for a comparison: one thread, and on Linux an allocator that treats every loop alike.

    glibc gives large blocks back to the system as soon as they are freed and takes them again in the next step. Which
    of two loops pays for that depends on where blocks happen to lie: two copies of one loop differed by up to 10 %.
    With one arena that keeps what is freed they differ by less than 1 %.
    """
    torch.set_num_threads(1)
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)
        for option, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, (1 << 31) - 1)):
            mallopt(option, value)


def milliseconds(seconds: list[float]) -> float:
    """Returns the median in milliseconds."""
    return 1000 * float(np.median(seconds))


def machine(*packages: str) -> str:
    """Returns the processor, the threads that PyTorch uses and the versions of Python, PyTorch and ``packages``."""
    name = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    versions = [f"{p} {importlib.metadata.version(p)}" for p in ("torch", "limbeck", *packages)]
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}; Python {platform.python_version()}, {', '.join(versions)}"
