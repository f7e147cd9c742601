"""How fast a teacher cache is read, and what it adds to an epoch of a student.

First rows a second of random batches of 128, the first touch with its checksums included. Then two students of the
same size are trained in turn
on the same batches, one with cross-entropy alone and one with KD from the cache: the ratio of their times is what an
epoch from the cache costs.

    python benchmarks/cache_read.py [--steps 100] [--student resnet8]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from limbeck.data import as_source
from limbeck.data.loader import Loader
from limbeck.functional.divergences import kl
from limbeck.signals import Batch, Signals
from limbeck.students.loading import build_model
from limbeck.teachers.cache import CachedTeacher, CacheReader, write_cache

SAMPLES, BATCH = 12_800, 128
CACHES = {
    "topk 10 of 10": (10, {"name": "topk", "k": 10}, False),
    "topk 10 of 1000": (1000, {"name": "topk", "k": 10}, False),
    "topk 50 of 1000": (1000, {"name": "topk", "k": 50}, False),
    "full float32, 100": (100, {"name": "full"}, False),
    "full float16, 1000": (1000, {"name": "full", "dtype": "float16"}, False),
    "topk 10 of 100, features 64": (100, {"name": "topk", "k": 10}, True),
}


class RandomTeacher:
    """Gives random logits, and features where asked to."""

    def __init__(self, classes: int, features: bool = False) -> None:
        self.classes, self.features = classes, features

    def __call__(self, batch: Batch) -> Signals:
        """Returns signals that depend on the samples' numbers only."""
        generator = torch.Generator().manual_seed(int(batch["index"][0]))
        logits = 3 * torch.randn(batch.size, self.classes, generator=generator)
        pooled = {"pooled": (torch.randn(batch.size, 64, generator=generator),)} if self.features else {}
        return Signals(logits=logits, features=pooled)

    def start(self) -> None:
        """Does nothing."""

    def finish(self) -> None:
        """Does nothing."""

    def fingerprint(self) -> str:
        """Returns the number of classes."""
        return f"random-{self.classes}"


def rows_per_second(folder: Path) -> tuple[float, float]:
    """Returns rows a second of the first pass over a cache, and of the best of five later ones."""
    reader = CacheReader(folder)
    rates = []
    for turn in range(6):
        order = np.random.default_rng(turn).permutation(SAMPLES)
        started = time.perf_counter()
        for start in range(0, SAMPLES, BATCH):
            reader.read(0, order[start : start + BATCH])
        rates.append(SAMPLES / (time.perf_counter() - started))
    return rates[0], max(rates[1:])


def trainer(name: str, teacher: Callable[[Batch], Signals] | None) -> Callable[[Batch], None]:
    """Returns a function that takes one training step on a batch."""
    torch.manual_seed(0)
    student: nn.Module = build_model(name, num_classes=100, input_shape=(3, 32, 32)).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)

    def step(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        logits = student(batch["inputs"])
        loss = cross_entropy(logits, batch["labels"])
        if teacher is not None:
            loss = 0.1 * loss + 0.9 * kl(logits, teacher(batch).logits, temperature=4.0, reduction="batchmean")
        loss.backward()
        optimizer.step()

    return step


def epoch_ratio(folder: Path, loader: Loader, name: str, steps: int) -> float:
    """Returns the time of steps with the cache over that of steps without, taken in turn."""
    arms = [trainer(name, None), trainer(name, CachedTeacher(folder, loader))]
    seconds: list[list[float]] = [[], []]
    epoch, batches = 0, iter(loader.epoch(0))
    for number in range(steps + 5):
        batch = next(batches, None)
        if batch is None:
            epoch += 1
            batches = iter(loader.epoch(epoch))
            batch = next(batches)
        for arm in (0, 1) if number % 2 else (1, 0):
            started = time.perf_counter()
            arms[arm](batch)
            seconds[arm].append(time.perf_counter() - started)
    alone, cached = (np.array(s[5:]) for s in seconds)
    return float(np.median(cached / alone))


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--student", default="resnet8")
    arguments = parser.parse_args()
    images = torch.randint(0, 256, (SAMPLES, 3, 32, 32), dtype=torch.uint8)
    source = as_source((images, torch.arange(SAMPLES) % 100))
    loader = Loader(source, batch_size=BATCH, shuffle=False)
    print(f"{'cache':<28} {'rows/s, first pass':>19} {'rows/s':>10}")
    with tempfile.TemporaryDirectory() as scratch:
        for name, (classes, codec, features) in CACHES.items():
            folder = Path(scratch) / name.replace(" ", "-")
            extras = ("features.pooled",) if features else ()
            write_cache(folder, loader=loader, teacher=RandomTeacher(classes, features), codec=codec, extras=extras)
            first, later = rows_per_second(folder)
            print(f"{name:<28} {first:>19,.0f} {later:>10,.0f}")
        print(f"\n{'epoch of ' + arguments.student:<28} {'from cache / alone':>19}")
        for name in ("topk 10 of 100, features 64", "full float32, 100"):
            training = Loader(source, batch_size=BATCH)
            ratio = epoch_ratio(Path(scratch) / name.replace(" ", "-"), training, arguments.student, arguments.steps)
            print(f"{name:<28} {ratio:>19.3f}   (bar: at most 1.10)")


if __name__ == "__main__":
    main()
