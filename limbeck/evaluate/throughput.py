"""Throughput of language models on this machine: tokens a second while reading and while writing, and the peak."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from limbeck.evaluate.base import Results, Subject, evaluations
from limbeck.evaluate.continuations import text_of
from limbeck.evaluate.language import TASK
from limbeck.evaluate.latency import machine, synchronise
from limbeck.evaluate.measure import Measure
from limbeck.evaluate.memory import peak_bytes, weights_bytes
from limbeck.generation.decoding import decoder
from limbeck.hyperparameters import Count
from limbeck.modes import evaluation_mode


@evaluations.register(
    "throughput",
    title="Throughput on this machine: tokens a second in prefill and in decoding, and peak memory",
    task=TASK,
    measures=(
        Measure("throughput.prefill", "Prefill", "count", "higher", "Prompt tokens read a second."),
        Measure("throughput.decode", "Decoding", "count", "higher", "Tokens written a second."),
        Measure("throughput.peak_bytes", "Peak", "bytes", "lower", "Weights and the most held beside them."),
    ),
)
def throughput(
    subject: Subject, *, batch: Count = 1, prompt: Count = 128, tokens: Count = 32, repeats: Count = 3
) -> Results:
    """Returns ``prefill`` and ``decode`` in tokens a second, ``first_token_ms``, ``peak_bytes`` and the machine.

    Models write with their key-value cache where they have one. All models take turns, so that a change in the
    machine's load meets each; the median of the repetitions counts. The peak is that of reading the prompts and writing
    all tokens, weights included, as PyTorch's allocator counts.

    Args:
        subject: what is judged.
        batch: sequences at once.
        prompt: tokens of a prompt.
        tokens: tokens written after it.
        repeats: how often everything is timed, after a warm-up.
    """
    vocabulary = text_of(subject).info.num_classes
    ids = torch.randint(vocabulary, (batch, prompt), generator=torch.Generator().manual_seed(0)).to(subject.device)
    models = subject.modules
    times: dict[str, list[tuple[float, float]]] = {role: [] for role in models}
    with evaluation_mode(*models.values()):
        for repeat in range(repeats + 1):
            for role, model in models.items():
                found = _timed(model, ids, tokens, vocabulary, lambda: synchronise(subject.device))
                if repeat:
                    times[role].append(found)
        results = {
            role: {
                **_rates(times[role], ids.numel(), batch * tokens),
                "peak_bytes": weights_bytes(model)
                + peak_bytes(lambda m=model: _timed(m, ids, tokens, vocabulary, _nothing), subject.device),  # type: ignore[misc]
            }
            for role, model in models.items()
        }
    return {**results.pop("student"), **machine(subject.device), "batch": batch, "prompt": prompt, **results}


def _nothing() -> None:
    """There is nothing to wait for."""


def _timed(
    model: nn.Module, ids: Tensor, tokens: int, vocabulary: int, wait: Callable[[], None]
) -> tuple[float, float]:
    """Seconds to read prompts, and to write tokens after them, the likeliest each time."""
    writer = decoder(model, vocabulary=vocabulary)
    wait()
    start = time.perf_counter()
    logits = writer.start(ids, torch.ones_like(ids), 1, tokens)
    wait()
    read = time.perf_counter()
    for _ in range(tokens):
        logits = writer.step(logits.argmax(-1))
    wait()
    return read - start, time.perf_counter() - read


def _rates(times: list[tuple[float, float]], read: int, written: int) -> Results:
    reading, writing = (median(column) for column in zip(*times))
    return {"prefill": read / reading, "decode": written / writing, "first_token_ms": 1e3 * reading}
