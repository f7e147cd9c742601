"""Latency: seconds a forward pass takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from limbeck.engine.run_folder import processor
from limbeck.evaluate.base import Results, Subject, evaluations
from limbeck.evaluate.measure import Measure
from limbeck.modes import evaluation_mode
from limbeck.signals import Batch

_BATCH_SIZES = (1, 32)
_WARM_UP = 5
_FEWEST, _MOST = 20, 200
_SECONDS = 2.0


@evaluations.register(
    "latency",
    title="Latency of a forward pass on this machine, for one sample and for 32",
    measures=(
        Measure("latency.batch_1.p50_ms", "Latency, 1", "ms", "lower", "Median time of a forward pass of one sample."),
        Measure("latency.batch_32.p50_ms", "Latency, 32", "ms", "lower", "Median time of a forward pass of 32."),
    ),
)
def latency(subject: Subject) -> Results:
    """Returns percentiles in milliseconds by batch size, with the device, the processor and the number of threads.

    Student and teacher are timed in turn, so that a change in the machine's load meets both.
    """
    results = machine(subject.device)
    teacher: Results = {}
    with evaluation_mode(*subject.modules.values()):
        for size in _BATCH_SIZES:
            batch = subject.example(size)
            times = measure(_passes(subject, batch), lambda: synchronise(subject.device))
            results[f"batch_{size}"] = _percentiles(times["student"], size)
            if "teacher" in times:
                teacher[f"batch_{size}"] = _percentiles(times["teacher"], size)
    return {**results, "teacher": teacher} if teacher else results


def measure(
    passes: Mapping[str, Callable[[], Any]],
    synchronise: Callable[[], None] = lambda: None,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Times several callables in turn, after a warm-up.

    Args:
        passes: what to time, by name.
        synchronise: waits until the device is idle.
        clock: gives seconds.

    Returns:
        Seconds of each repetition by name: at least 20 and at most 200 of them, fewer of what is slow.
    """
    for _ in range(_WARM_UP):
        for run in passes.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in passes}
    start = clock()
    for repetition in range(_MOST):
        if repetition >= _FEWEST and clock() - start > _SECONDS:
            break
        for name, run in passes.items():
            synchronise()
            before = clock()
            run()
            synchronise()
            times[name].append(clock() - before)
    return times


def _passes(subject: Subject, batch: Batch) -> dict[str, Callable[[], Any]]:
    def run(model: nn.Module, inputs: Any) -> Callable[[], Any]:
        return lambda: subject.task.run(model, inputs)

    return {role: run(model, batch.inputs_for(role)) for role, model in subject.modules.items()}


def _percentiles(seconds: list[float], size: int) -> Results:
    milliseconds = torch.tensor(seconds, dtype=torch.float64) * 1e3
    p50, p90, p99 = (float(milliseconds.quantile(q)) for q in (0.5, 0.9, 0.99))
    return {
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "samples_per_second": size / p50 * 1e3,
        "repeats": len(seconds),
    }


def synchronise(device: torch.device | str) -> None:
    """Waits until a device has done all it was given; nothing has to be waited for on a CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device | str) -> Results:
    """Returns ``device``, the name of the ``processor`` and the number of ``threads``."""
    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else processor()
    return {"device": kind, "processor": name, "threads": torch.get_num_threads()}
