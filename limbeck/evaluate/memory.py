"""Memory: the most that a forward pass holds at once, beside the weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from limbeck.evaluate.base import Results, Subject, evaluations
from limbeck.evaluate.measure import Measure
from limbeck.modes import evaluation_mode

_BATCH_SIZES = (1, 32)


@evaluations.register(
    "memory",
    title="Memory: peak of a forward pass for one sample and for 32, and that of the weights",
    measures=(
        Measure("memory.batch_1.peak_bytes", "Memory, 1", "bytes", "lower", "Weights and peak of one sample's pass."),
        Measure("memory.batch_32.peak_bytes", "Memory, 32", "bytes", "lower", "Weights and peak of a pass of 32."),
    ),
)
def memory(subject: Subject) -> Results:
    """Returns ``weights_bytes``, and ``activations_bytes`` and ``peak_bytes`` by batch size.

    Counted is what PyTorch's allocator hands out during the pass, inputs excepted, workspaces of kernels included; the
    interpreter and its libraries are not. Batch 1 tells what a device needs, 32 how it grows.
    """
    results: Results = {}
    for role, model in subject.modules.items():
        weights = weights_bytes(model)
        results[role] = {"weights_bytes": weights}
        for size in _BATCH_SIZES:
            inputs = subject.example(size).inputs_for(role)
            with evaluation_mode(model):
                peak = peak_bytes(partial(subject.task.run, model, inputs), subject.device)
            results[role][f"batch_{size}"] = {"activations_bytes": peak, "peak_bytes": weights + peak}
    return {**results.pop("student"), **results}


def weights_bytes(model: nn.Module) -> int:
    """Returns the bytes of a model's parameters and buffers; what they share counts once."""
    found = {t.untyped_storage().data_ptr(): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in found.values())


def peak_bytes(run: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """Returns the largest number of bytes that ``run`` held at once beyond what was held before.

    On a GPU the allocator keeps the count; elsewhere the profiler's record of every allocation is added up.
    ``run`` is called twice, as libraries allocate at a first call what they keep.

    Args:
        run: what is measured.
        device: where it runs.

    Example:
        >>> x = torch.zeros(1000)
        >>> peak_bytes(lambda: x.neg().neg())  # two results of 4000 bytes
        8000
    """
    run()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return max(torch.cuda.max_memory_allocated(device) - before, 0)
    return _profiled_peak(run)


def _profiled_peak(run: Callable[[], Any]) -> int:
    # The profiler's library announces every start and stop on standard error otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        kept = run()
    del kept
    held = peak = 0
    assert record.profiler is not None
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
